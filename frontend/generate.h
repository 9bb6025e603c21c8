/* frontend/generate.h - one generation request, from its body to its last byte.
 *
 *   loop: admit -> text: parse, check, tokenise -> loop: submit -> engine events -> reply or stream
 *
 * Chat and completions differ only in the table sp_gen_api. A request may hold several prompts, each
 * an engine request of its own with n choices. Stream headers leave with the first event (or the
 * first ping), so that a failure before it is still a proper status.
 * The engine names a request by a slot and its generation, never by a pointer, so an event that
 * comes after its request ended finds nobody.
 *
 * Thread: loop, but for `check` and `encode` of the table, which run on a text thread. */
#pragma once

#include "frontend/front.h"
#include "frontend/reply.h"
#include "runtime/text/detok.h"

#define SP_PROMPTS_MAX 256
#define SP_CHOICES_MAX 1024 /* prompts x n */

typedef struct sp_gen sp_gen;

typedef struct sp_gen_prompt {
    int32_t *ids; /* in the arena */
    int32_t n_ids, max_tokens;
    sp_slice echo; /* given back before the answer; empty without echo */
    uint64_t engine_id;
    uint32_t slot; /* 0: not submitted */
    int32_t n_cached;
    sp_token_logprobs **logprobs; /* [n_logprobs] once they came; owned */
    int32_t n_logprobs;
} sp_gen_prompt;

typedef struct sp_gen_choice {
    int index; /* among all of the request */
    sp_gen_prompt *prompt;
    sp_detok *detok;
    sp_buf text;        /* streaming: not yet sent; else all of it */
    sp_buf logprobs[4]; /* JSON items, of the same tokens; how many lists is the api's */
    sp_ids ids;         /* the same, with return_token_ids */
    int64_t text_chars; /* characters of the tokens' texts so far: text_offset */
    int32_t n_tokens, n_unsent;
    bool opened; /* streaming: the first chunk is written */
    sp_finish finish;
    int32_t stop_id, stop_index; /* of a finish by STOP: the id or -1; the stop string or -1 */
} sp_gen_choice;

typedef struct sp_gen_api {
    const char *id_prefix, *object, *chunk_object;
    bool chat;
    /* Checks the fields that are its own; violations go to `f`. */
    void (*check)(sp_gen *g, sp_fields *f, const sp_json_node *root);
    /* Fills the prompts, of a body that was found good. */
    sp_status (*encode)(sp_gen *g, const sp_json_node *root, sp_err *err);
    /* One token's entry into choice->logprobs. `lp` is never NULL. */
    void (*put_logprob)(sp_gen *g, sp_gen_choice *c, const sp_token_logprobs *lp);
    /* Streaming: whole SSE events. */
    void (*put_first)(sp_gen *g, sp_gen_choice *c, sp_buf *out);
    void (*put_delta)(sp_gen *g, sp_gen_choice *c, sp_buf *out);
    void (*put_last)(sp_gen *g, sp_gen_choice *c, sp_buf *out);
    /* Not streaming: the members between "model" and "usage". */
    void (*put_answer)(sp_gen *g, sp_jw *w);
} sp_gen_api;

struct sp_gen {
    sp_text_job job; /* first: the pool hands it back */
    sp_front *front;
    sp_http_call *call; /* NULL: the client left */
    const sp_gen_api *api;
    sp_gen *prev, *next;   /* all of the front */
    bool in_text, started; /* with a text thread; stream headers are out */
    size_t n_body;         /* what limit.c counts */
    sp_buf body;           /* until parsed */
    sp_arena arena;
    sp_request_env env;
    sp_gen_options opt;
    sp_fault fault;          /* set on the text thread */
    void *own;               /* the api's, in the arena */
    int32_t header_priority; /* X-Vllm-Priority, where the body says none */
    bool named_by_header;    /* X-Request-Id was given */
    char id[160];
    int64_t created_s, deadline_ns, written_ns;
    sp_gen_prompt *prompts;
    sp_gen_choice *choices; /* [n_prompts * n] */
    sp_kv_handle *kv;       /* what the engine lent of the prompt's blocks; owned */
    bool kv_told;           /* streaming: the client has been told of it */
    int n_prompts, n_choices, n_live;
    sp_buf chunk_head; /* the beginning of every chunk, up to a choice's index */
};

SP_NODISCARD sp_gens *sp_gens_create(sp_front *front);
void sp_gens_destroy(sp_gens *all); /* after the text pool and the connections are gone */
/** Takes the request over; answers it in every case. */
void sp_gen_start(sp_front *front, sp_http_call *call, const sp_gen_api *api);
/** Hands out what the engine has; called when its descriptor is readable. */
void sp_gens_take_events(sp_gens *all);
/** Pings quiet streams and ends what is overdue. */
void sp_gens_tick(sp_gens *all, int64_t now_ns);
/** Ends all with an error (503). */
void sp_gens_end_all(sp_gens *all, const char *why);
int sp_gens_count(const sp_gens *all);

/* For the apis. */
/** Makes room for prompts. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_gen_set_prompts(sp_gen *g, int n, sp_err *err);
/** Copies ids into the arena. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_gen_set_ids(sp_gen *g, sp_gen_prompt *p, const sp_ids *ids, sp_err *err);
void sp_gen_put_chunk_head(sp_gen *g, const sp_gen_choice *c, sp_buf *out);
void sp_gen_put_chunk_tail(sp_gen *g, const sp_gen_choice *c, sp_buf *out); /* after choices[0] */
/** The same where the list of choices is closed already and another member was written. */
void sp_gen_put_chunk_tail_open(sp_gen *g, const sp_gen_choice *c, sp_buf *out);
/** The tail of a choice's last chunk, which may have what is told once a request. */
void sp_gen_put_last_tail(sp_gen *g, const sp_gen_choice *c, sp_buf *out);
sp_token_style sp_gen_token_style(const sp_gen *g);
/** finish_reason and stop_reason. */
void sp_gen_put_finish(const sp_gen *g, const sp_gen_choice *c, sp_jw *w);
void sp_gen_put_ids(sp_jw *w, const int32_t *ids, size_t n);

/* Between generate.c and gen_event.c. */
void sp_gen_take_event(sp_gen *g, sp_gen_prompt *p, sp_event *ev);
void sp_gen_begin_stream(sp_gen *g);
void sp_gen_end(sp_gen *g); /* frees; what the engine still does for it is cancelled */
void sp_gen_fail(sp_gen *g, const sp_fault *fault); /* answers with the fault, then ends */
