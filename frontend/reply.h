/* frontend/reply.h - what goes back: error objects, usage, log probabilities.
 *
 * One table maps statuses to error types. Words come from the code that refused; nothing of the
 * system's own messages is passed on.
 *
 * Source: OpenAI API reference. Thread: any. */
#pragma once

#include "frontend/fields.h"
#include "frontend/http.h"
#include "runtime/engine/engine.h"
#include "runtime/text/tokenizer.h"

typedef struct sp_fault {
    int http;            /* 0: none */
    const char *message; /* lives as long as the request */
    const char *param;   /* NULL: null */
    const char *code;    /* NULL: the HTTP status as a number */
    int retry_after_s;   /* 0: no Retry-After */
} sp_fault;

const char *sp_fault_type(int http);
/** 400 with all violations of `f`; lives as long as its arena. */
sp_fault sp_fault_of_fields(sp_fields *f);
/** {"error":{"message","type","param","code"}} */
void sp_put_fault(sp_buf *out, const sp_fault *fault);
void sp_reply_fault(sp_http_call *call, const sp_fault *fault);
/** Replies what `json` holds; 500 when it could not be built (memory, limit). `headers`: "", or whole
 * lines ending in CRLF. */
void sp_reply_json(sp_http_call *call, const char *headers, const sp_buf *json);

typedef struct sp_usage {
    int64_t prompt, completion, cached;
} sp_usage;
void sp_put_usage(sp_jw *w, sp_usage u);

/** "stop", "length", …; NULL while it goes on. */
const char *sp_finish_name(sp_finish f);

void sp_put_float(sp_jw *w, float v); /* shortest that reads back the same float */
/** A log probability: as sp_put_float, never below -9999.0 (JSON has no infinity). */
void sp_put_logprob(sp_jw *w, float v);

typedef struct sp_token_style {
    const sp_tokenizer *tokenizer;
    bool as_ids; /* "token_id:N" instead of the text */
} sp_token_style;
/** The text that stands for one token, into `out` (emptied first). */
void sp_token_text(const sp_token_style *s, int32_t id, sp_buf *out);
/** One entry of a chat choice's logprobs.content. `n_top`: entries of top_logprobs wanted. */
void sp_put_chat_logprob(sp_jw *w, const sp_token_style *s, const sp_token_logprobs *lp, int n_top);
/** {"text": logprob, …} of a completion: the token itself, then the n_top most likely. */
void sp_put_text_top_logprobs(sp_jw *w, const sp_token_style *s, const sp_token_logprobs *lp,
                              int n_top);
/** prompt_logprobs as vLLM writes them: null, then {"id":{"logprob","rank","decoded_token"}}. */
void sp_put_prompt_logprobs(sp_jw *w, const sp_token_style *s, sp_token_logprobs *const *lp, int n,
                            int n_top);
