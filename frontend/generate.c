#include "frontend/generate.h"

#include "runtime/base/clock.h"

#include <stdio.h>

#define EVENTS_A_TIME 64
#define BATCHES_A_TURN 16
#define PRIME_TOKENS 16 /* of the prompt, for decoders that look back */
#define SLOTS_MAX (1 << 20)

/* What `user` of an engine request means: a slot and its generation. */
typedef struct slot {
    sp_gen *gen; /* NULL: free */
    int prompt;
    uint32_t generation;
    uint32_t next_free;
} slot;

struct sp_gens {
    sp_front *front;
    sp_gen *first;
    int count;
    slot *slots; /* entry 0 is never used */
    uint32_t n_slots, free_slot;
};

sp_gens *sp_gens_create(sp_front *front) {
    sp_gens *all = sp_alloc(sizeof *all);
    all->front = front;
    return all;
}

void sp_gens_destroy(sp_gens *all) {
    if (!all) return;
    while (all->first) sp_gen_end(all->first);
    sp_free(all->slots);
    sp_free(all);
}

int sp_gens_count(const sp_gens *all) {
    return all->count;
}

/* 0: no memory. */
static uint32_t take_slot(sp_gens *all, sp_gen *g, int prompt) {
    uint32_t i = all->free_slot;
    if (i == 0) {
        uint32_t n = all->n_slots ? all->n_slots * 2 : 64;
        slot *grown = n <= SLOTS_MAX ? sp_try_realloc(all->slots, n * sizeof *grown) : NULL;
        if (!grown) return 0;
        memset(grown + all->n_slots, 0, (n - all->n_slots) * sizeof *grown);
        for (uint32_t k = n - 1; k >= (all->n_slots ? all->n_slots : 1); k--) {
            grown[k].next_free = all->free_slot;
            all->free_slot = k;
        }
        all->slots = grown;
        all->n_slots = n;
        i = all->free_slot;
    }
    slot *s = &all->slots[i];
    all->free_slot = s->next_free;
    s->gen = g;
    s->prompt = prompt;
    return i;
}

static void drop_slot(sp_gens *all, uint32_t i) {
    slot *s = &all->slots[i];
    s->gen = NULL;
    s->generation++;
    s->next_free = all->free_slot;
    all->free_slot = i;
}

static void *name_of_slot(const sp_gens *all, uint32_t i) {
    return (void *)((uintptr_t)all->slots[i].generation << 20 | i); /* SLOTS_MAX is 2^20 */
}

static slot *find_slot(sp_gens *all, const void *name) {
    uintptr_t i = (uintptr_t)name & (SLOTS_MAX - 1);
    if (i == 0 || i >= all->n_slots) return NULL;
    return name_of_slot(all, (uint32_t)i) == name && all->slots[i].gen ? &all->slots[i] : NULL;
}

/* The end of a request, in whatever state it is. */

static void drop_prompts(sp_gen *g) {
    sp_gens *all = g->front->gens;
    for (int i = 0; i < g->n_prompts; i++) {
        sp_gen_prompt *p = &g->prompts[i];
        if (p->slot) {
            if (g->n_live > 0)
                sp_engine_cancel(g->front->engine, p->engine_id, -1, SP_FINISH_ABORT);
            drop_slot(all, p->slot);
        }
        sp_event owner = {.prompt_logprobs = p->logprobs, .n_prompt_logprobs = p->n_logprobs};
        sp_event_release(&owner);
    }
}

static void drop_choices(sp_gen *g) {
    for (int i = 0; i < g->n_choices; i++) {
        sp_gen_choice *c = &g->choices[i];
        sp_detok_destroy(c->detok);
        sp_buf_fini(&c->text);
        for (size_t k = 0; k < SP_LEN(c->logprobs); k++) sp_buf_fini(&c->logprobs[k]);
        sp_ids_fini(&c->ids);
    }
    sp_free(g->choices);
}

void sp_gen_end(sp_gen *g) {
    sp_gens *all = g->front->gens;
    drop_prompts(g);
    drop_choices(g);
    if (g->prev)
        g->prev->next = g->next;
    else
        all->first = g->next;
    if (g->next) g->next->prev = g->prev;
    all->count--;
    sp_limit_drop(&g->front->limit, g->n_body);
    sp_buf_fini(&g->body);
    sp_buf_fini(&g->chunk_head);
    sp_free(g->kv);
    sp_arena_fini(&g->arena);
    sp_free(g);
}

void sp_gen_fail(sp_gen *g, const sp_fault *fault) {
    sp_http_call *call = g->call;
    g->call = NULL;
    if (call && g->started) {
        sp_buf *out = sp_http_stream_buf(call);
        sp_buf_puts(out, "data: ");
        sp_put_fault(out, fault);
        sp_buf_puts(out, "\n\ndata: [DONE]\n\n");
        sp_http_stream_end(call);
    } else if (call) {
        sp_reply_fault(call, fault);
    }
    /* A text thread still has it: it comes back and finds nobody to answer. */
    if (g->in_text)
        sp_text_pool_skip(g->front->text, &g->job);
    else
        sp_gen_end(g);
}

static void client_left(void *ctx) {
    sp_gen *g = ctx;
    g->call = NULL;
    if (g->in_text)
        sp_text_pool_skip(g->front->text, &g->job);
    else
        sp_gen_end(g);
}

/* The text phase. */

sp_status sp_gen_set_prompts(sp_gen *g, int n, sp_err *err) {
    g->prompts = sp_arena_try(&g->arena, (size_t)n * sizeof *g->prompts);
    if (!g->prompts) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d prompts", n);
    g->n_prompts = n;
    return SP_OK;
}

sp_status sp_gen_set_ids(sp_gen *g, sp_gen_prompt *p, const sp_ids *ids, sp_err *err) {
    if (ids->len > INT32_MAX) return SP_FAIL(err, SP_E_INVALID, "the prompt is too long");
    p->ids = sp_arena_try(&g->arena, ids->len * sizeof *p->ids + 1);
    if (!p->ids) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu tokens", ids->len);
    if (ids->len) memcpy(p->ids, ids->ptr, ids->len * sizeof *p->ids);
    p->n_ids = (int32_t)ids->len;
    return SP_OK;
}

static void set_fault(sp_gen *g, int http, const char *param, const char *message) {
    g->fault = (sp_fault){.http = http,
                          .param = param,
                          .message = sp_arena_strndup(&g->arena, message, strlen(message)),
                          .retry_after_s = http == 503 ? 1 : 0};
}

static void set_fault_of(sp_gen *g, sp_status st, const sp_err *err, const char *param) {
    int http = sp_status_http(st);
    set_fault(g, http == 413 ? 400 : http, param, err->text);
}

static void too_long(sp_gen *g, const sp_gen_prompt *p, int32_t wanted) {
    char text[400];
    int32_t most = g->env.max_model_len;
    snprintf(text, sizeof text,
             "This model's maximum context length is %d tokens. However, you requested %s%d output "
             "tokens and your prompt contains %d input tokens, for a total of %lld tokens. Please "
             "reduce the length of the prompt or the number of requested output tokens. "
             "(context_length_exceeded)",
             most, g->opt.has_max_tokens ? "" : "at least ", wanted, p->n_ids,
             (long long)p->n_ids + wanted);
    set_fault(g, 400, p->n_ids + (wanted > 0) > most ? "input_tokens" : "max_tokens", text);
    g->fault.code = "context_length_exceeded";
}

static void truncate(const sp_gen_options *o, int32_t max_model_len, sp_gen_prompt *p) {
    int32_t keep = o->truncate_prompt;
    int32_t answer = o->has_max_tokens && o->params.max_tokens > 0 ? o->params.max_tokens : 1;
    if (keep == -1) keep = answer < max_model_len ? max_model_len - answer : 1;
    if (keep <= 0 || p->n_ids <= keep) return;
    if (!o->truncate_right) p->ids += p->n_ids - keep;
    p->n_ids = keep;
}

/* Fits one prompt and its answer into the context. False: it does not, and `fault` is set. */
static bool fit(sp_gen *g, sp_gen_prompt *p) {
    const sp_gen_options *o = &g->opt;
    int32_t most = g->env.max_model_len, wanted = o->params.max_tokens;
    bool open_end = g->api->chat && !o->has_max_tokens;
    truncate(o, most, p);
    if (p->n_ids == 0) {
        set_fault(g, 400, g->api->chat ? "messages" : "prompt", "the prompt has no tokens");
        return false;
    }
    int32_t least = open_end || wanted > 0 ? 1 : 0;
    if (p->n_ids > most - least || (o->has_max_tokens && wanted > most)) {
        too_long(g, p, o->has_max_tokens ? wanted : least);
        return false;
    }
    int32_t room = most - p->n_ids, cap = g->env.config->defaults.max_new_tokens;
    if (open_end || wanted > room) wanted = room;
    if (cap > 0 && wanted > cap) wanted = cap;
    p->max_tokens = wanted;
    return true;
}

static sp_status make_choice(sp_gen *g, int index, sp_err *err) {
    sp_gen_choice *c = &g->choices[index];
    sp_gen_prompt *p = &g->prompts[index / g->opt.params.n];
    sp_detok_config config = {.skip_special = g->opt.skip_special,
                              .stops = g->opt.stops,
                              .n_stops = g->opt.n_stops,
                              .include_stop = g->opt.include_stop};
    c->index = index;
    c->prompt = p;
    c->stop_index = -1;
    c->stop_id = -1;
    SP_TRY(sp_detok_create(&c->detok, g->env.tokenizer, &config, err));
    size_t n = p->n_ids < PRIME_TOKENS ? (size_t)p->n_ids : PRIME_TOKENS;
    sp_detok_prime(c->detok, p->ids + p->n_ids - n, n);
    return SP_OK;
}

static sp_status make_choices(sp_gen *g, sp_err *err) {
    int n = g->n_prompts * g->opt.params.n;
    if (n > SP_CHOICES_MAX)
        return SP_FAIL(err, SP_E_INVALID, "want at most %d prompts x n, got %d", SP_CHOICES_MAX, n);
    g->choices = sp_try_alloc_array((size_t)n, sizeof *g->choices);
    if (!g->choices) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d choices", n);
    g->n_choices = n;
    for (int i = 0; i < n; i++) SP_TRY(make_choice(g, i, err));
    g->n_live = n;
    return SP_OK;
}

/* Everything constant of a chunk, once a request. */
static void make_chunk_head(sp_gen *g) {
    if (!g->opt.stream) return;
    sp_buf *b = &g->chunk_head;
    sp_buf_puts(b, "data: ");
    sp_jw w = sp_jw_on(b);
    sp_jw_object(&w);
    sp_jw_key(&w, "id"), sp_jw_str(&w, g->id);
    sp_jw_key(&w, "object"), sp_jw_str(&w, g->api->chunk_object);
    sp_jw_key(&w, "created"), sp_jw_int(&w, g->created_s);
    sp_jw_key(&w, "model"), sp_jw_str(&w, g->opt.model);
    sp_buf_puts(b, ",\"choices\":[{\"index\":");
}

static void encode(sp_gen *g, const sp_json_node *root) {
    sp_err err = {0};
    sp_status st = g->api->encode(g, root, &err);
    for (int i = 0; st == SP_OK && i < g->n_prompts; i++)
        if (!fit(g, &g->prompts[i])) return;
    if (st == SP_OK) st = make_choices(g, &err);
    if (st != SP_OK) {
        set_fault_of(g, st, &err, g->api->chat ? "messages" : "prompt");
        return;
    }
    make_chunk_head(g);
}

static void check(sp_gen *g, const sp_json_node *root) {
    sp_fields f;
    sp_fields_init(&f, &g->arena);
    sp_request_options(&f, root, &g->env, g->api->chat, &g->opt);
    g->api->check(g, &f, root);
    if (f.n > 0) {
        g->fault = sp_fault_of_fields(&f);
    } else if (!sp_request_model_is_served(&g->env, g->opt.model)) {
        char text[200];
        snprintf(text, sizeof text, "The model `%.120s` does not exist.", g->opt.model);
        set_fault(g, 404, "model", text);
    }
    sp_fields_fini(&f);
    if (!g->opt.request_id || g->named_by_header) return;
    char clean[SP_HTTP_ID_MAX + 1];
    if (sp_http_clean_id(sp_slice_of(g->opt.request_id), clean))
        snprintf(g->id, sizeof g->id, "%s%s", g->api->id_prefix, clean);
}

static void work(sp_text_job *job) {
    sp_gen *g = (sp_gen *)job;
    sp_err err = {0};
    sp_json *doc = NULL;
    sp_status st = sp_request_parse(&doc, sp_buf_slice(&g->body), g->env.config->json_depth, &err);
    sp_buf_fini(&g->body);
    if (st != SP_OK) {
        set_fault_of(g, st, &err, NULL);
        return;
    }
    const sp_json_node *root = sp_json_root(doc);
    if (sp_json_type_of(root) != SP_JSON_OBJECT)
        set_fault(g, 400, NULL, "the body: want an object");
    if (!g->fault.http) check(g, root);
    if (!g->fault.http) encode(g, root);
    sp_json_free(doc);
}

/* Back on the loop. */

static sp_status submit(sp_gen *g, int prompt, sp_err *err) {
    sp_gens *all = g->front->gens;
    sp_gen_prompt *p = &g->prompts[prompt];
    sp_gen_params params = g->opt.params;
    params.max_tokens = p->max_tokens;
    if (params.min_tokens > params.max_tokens) params.min_tokens = params.max_tokens;
    uint32_t s = take_slot(all, g, prompt);
    if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory for a request");
    sp_engine_request req = {.user = name_of_slot(all, s),
                             .prompt = p->ids,
                             .n_prompt = p->n_ids,
                             .params = &params,
                             .deadline_ns = g->deadline_ns,
                             .priority = g->opt.has_priority ? g->opt.priority : g->header_priority,
                             .cache_salt = g->opt.cache_salt,
                             .keep_kv = g->opt.kv.lend,
                             .kv_from = g->opt.kv.from};
    sp_status st = sp_engine_submit(g->front->engine, &req, &p->engine_id, err);
    if (st != SP_OK)
        drop_slot(all, s);
    else
        p->slot = s;
    return st;
}

static void submit_all(sp_gen *g) {
    sp_err err = {0};
    for (int i = 0; i < g->n_prompts; i++) {
        sp_status st = submit(g, i, &err);
        if (st == SP_OK) continue;
        sp_fault fault = {.http = sp_status_http(st), .message = err.text};
        if (fault.http == 429 || fault.http == 503)
            fault.retry_after_s = sp_limit_retry_after_s(&g->front->limit);
        sp_gen_fail(g, &fault);
        return;
    }
}

static void done(sp_text_job *job) {
    sp_gen *g = (sp_gen *)job;
    g->in_text = false;
    g->front->kv_refused[g->opt.kv.refusal]++;
    if (!g->call)
        sp_gen_end(g);
    else if (g->fault.http)
        sp_gen_fail(g, &g->fault);
    else
        submit_all(g);
}

static void drop(sp_text_job *job) {
    sp_gen *g = (sp_gen *)job;
    g->in_text = false;
    sp_gen_end(g);
}

static void take_headers(sp_gen *g) {
    const sp_http_head *head = sp_http_call_head(g->call);
    sp_slice v = sp_http_header_get(head, "x-vllm-priority");
    int64_t priority;
    if (v.len && sp_parse_i64(v, &priority) == SP_OK && priority > INT32_MIN &&
        priority < INT32_MAX)
        g->header_priority = (int32_t)priority;
    g->named_by_header = sp_http_header_get(head, "x-request-id").len > 0;
    snprintf(g->id, sizeof g->id, "%s%s", g->api->id_prefix, sp_http_call_id(g->call));
}

void sp_gen_start(sp_front *front, sp_http_call *call, const sp_gen_api *api) {
    sp_err err = {0};
    const char *why = NULL;
    size_t n_body = sp_http_call_body(call).len;
    if (!sp_front_is_ready(front, &why)) {
        sp_reply_fault(call, &(sp_fault){503, why, NULL, NULL, 1});
        return;
    }
    if (sp_limit_take(&front->limit, n_body, &err) != SP_OK) {
        int retry_s = sp_limit_retry_after_s(&front->limit);
        sp_reply_fault(call, &(sp_fault){429, err.text, NULL, NULL, retry_s});
        return;
    }
    sp_gens *all = front->gens;
    sp_gen *g = sp_alloc(sizeof *g);
    *g = (sp_gen){.job = {.work = work, .done = done, .drop = drop},
                  .front = front,
                  .call = call,
                  .api = api,
                  .next = all->first,
                  .n_body = n_body,
                  .env = sp_front_env(front),
                  .created_s = sp_unix_s(),
                  .written_ns = sp_now_ns(),
                  .deadline_ns = SP_NEVER};
    if (front->config.request_timeout_ms > 0)
        g->deadline_ns = g->written_ns + front->config.request_timeout_ms * SP_NS_PER_MS;
    if (all->first) all->first->prev = g;
    all->first = g;
    all->count++;
    sp_arena_init(&g->arena, 0);
    take_headers(g);
    sp_http_call_take_body(call, &g->body);
    sp_http_call_watch(call, client_left, g);

    if (sp_text_pool_submit(front->text, &g->job, &err) != SP_OK)
        sp_gen_fail(g, &(sp_fault){429, err.text, NULL, NULL, 1});
    else
        g->in_text = true;
}

void sp_gens_take_events(sp_gens *all) {
    sp_event events[EVENTS_A_TIME];
    /* Bounded, so that sockets get their turn; the descriptor stays readable while events wait. */
    for (int batch = 0; batch < BATCHES_A_TURN; batch++) {
        int n = sp_engine_events(all->front->engine, events, EVENTS_A_TIME);
        for (int i = 0; i < n; i++) {
            slot *s = find_slot(all, events[i].user);
            if (s) sp_gen_take_event(s->gen, &s->gen->prompts[s->prompt], &events[i]);
            sp_event_release(&events[i]);
        }
        all->front->n_events += (uint64_t)n;
        if (n == 0) return;
    }
}

void sp_gens_tick(sp_gens *all, int64_t now_ns) {
    int64_t ping_ns = all->front->config.ping_ms * SP_NS_PER_MS;
    for (sp_gen *g = all->first, *next; g; g = next) {
        next = g->next;
        if (now_ns > g->deadline_ns) {
            sp_gen_fail(g, &(sp_fault){503,
                                       "the request did not finish within the server's time "
                                       "limit",
                                       NULL, NULL, 1});
            continue;
        }
        /* Before its options are read nobody knows whether it streams. */
        if (g->in_text || !g->opt.stream || now_ns - g->written_ns < ping_ns) continue;
        if (!g->started) sp_gen_begin_stream(g);
        sp_buf_puts(sp_http_stream_buf(g->call), ": ping\n\n");
        g->written_ns = now_ns;
    }
}

void sp_gens_end_all(sp_gens *all, const char *why) {
    for (sp_gen *g = all->first, *next; g; g = next) {
        next = g->next;
        sp_gen_fail(g, &(sp_fault){503, why, NULL, NULL, 1});
    }
}
