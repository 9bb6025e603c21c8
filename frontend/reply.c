#include "frontend/reply.h"

#include <stdio.h>
#include <stdlib.h>

const char *sp_fault_type(int http) {
    switch (http) {
    case 401:
        return "AuthenticationError";
    case 403:
        return "PermissionDeniedError";
    case 404:
        return "NotFoundError";
    case 405:
        return "MethodNotAllowedError";
    case 408:
        return "RequestTimeoutError";
    case 422:
        return "UnprocessableEntityError";
    case 429:
        return "RateLimitError";
    case 500:
        return "InternalServerError";
    case 501:
        return "NotImplementedError";
    case 503:
        return "ServiceUnavailableError";
    default:
        return http < 500 ? "BadRequestError" : "InternalServerError";
    }
}

sp_fault sp_fault_of_fields(sp_fields *f) {
    const char *first = sp_arena_strndup(f->arena, f->first, strlen(f->first));
    return (sp_fault){
        .http = 400, .message = sp_fields_message(f), .param = first[0] ? first : NULL};
}

void sp_put_fault(sp_buf *out, const sp_fault *fault) {
    sp_jw w = sp_jw_on(out);
    sp_jw_object(&w);
    sp_jw_key(&w, "error");
    sp_jw_object(&w);
    sp_jw_key(&w, "message"), sp_jw_str(&w, fault->message);
    sp_jw_key(&w, "type"), sp_jw_str(&w, sp_fault_type(fault->http));
    sp_jw_key(&w, "param");
    if (fault->param)
        sp_jw_str(&w, fault->param);
    else
        sp_jw_null(&w);
    sp_jw_key(&w, "code");
    if (fault->code)
        sp_jw_str(&w, fault->code);
    else
        sp_jw_int(&w, fault->http);
    sp_jw_object_end(&w);
    sp_jw_object_end(&w);
}

void sp_reply_fault(sp_http_call *call, const sp_fault *fault) {
    char headers[160] = "";
    if (fault->http == 401)
        snprintf(headers, sizeof headers, "WWW-Authenticate: Bearer\r\n");
    else if (fault->retry_after_s > 0)
        snprintf(headers, sizeof headers, "Retry-After: %d\r\nx-should-retry: true\r\n",
                 fault->retry_after_s);
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_put_fault(&b, fault);
    sp_http_reply(call, fault->http, "application/json", headers, sp_buf_slice(&b));
    sp_buf_fini(&b);
}

void sp_reply_json(sp_http_call *call, const char *headers, const sp_buf *json) {
    if (json->failed) {
        sp_reply_fault(call,
                       &(sp_fault){500, "the answer is too large to be built", NULL, NULL, 0});
        return;
    }
    sp_http_reply(call, 200, "application/json", headers, sp_buf_slice(json));
}

void sp_put_usage(sp_jw *w, sp_usage u) {
    sp_jw_object(w);
    sp_jw_key(w, "prompt_tokens"), sp_jw_int(w, u.prompt);
    sp_jw_key(w, "completion_tokens"), sp_jw_int(w, u.completion);
    sp_jw_key(w, "total_tokens"), sp_jw_int(w, u.prompt + u.completion);
    sp_jw_key(w, "prompt_tokens_details");
    sp_jw_object(w);
    sp_jw_key(w, "cached_tokens"), sp_jw_int(w, u.cached);
    sp_jw_object_end(w);
    sp_jw_key(w, "completion_tokens_details");
    sp_jw_object(w);
    sp_jw_key(w, "reasoning_tokens"), sp_jw_int(w, 0);
    sp_jw_object_end(w);
    sp_jw_object_end(w);
}

const char *sp_finish_name(sp_finish f) {
    switch (f) {
    case SP_FINISH_STOP:
        return "stop";
    case SP_FINISH_LENGTH:
        return "length";
    case SP_FINISH_ABORT:
        return "abort";
    case SP_FINISH_ERROR:
        return "error";
    case SP_FINISH_NONE:
        break;
    }
    return NULL;
}

void sp_put_float(sp_jw *w, float v) {
    char text[32];
    if (!(v - v == 0)) {
        sp_jw_null(w);
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v) break;
    }
    sp_jw_raw(w, sp_slice_of(text));
}

void sp_put_logprob(sp_jw *w, float v) {
    if (v >= -9999.0f)
        sp_put_float(w, v);
    else
        sp_jw_raw(w, SP_SLICE("-9999.0"));
}

void sp_token_text(const sp_token_style *s, int32_t id, sp_buf *out) {
    sp_buf_clear(out);
    if (s->as_ids)
        sp_buf_printf(out, "token_id:%d", id);
    else
        sp_tokenizer_token_bytes(s->tokenizer, id, out);
}

/* The members token, logprob and bytes. */
static void put_token(sp_jw *w, const sp_token_style *s, int32_t id, float logprob) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_token_text(s, id, &text);
    sp_jw_key(w, "token"), sp_jw_string(w, sp_buf_slice(&text));
    sp_jw_key(w, "logprob"), sp_put_logprob(w, logprob);
    sp_jw_key(w, "bytes");
    sp_jw_array(w);
    for (size_t i = 0; i < text.len; i++) sp_jw_int(w, (unsigned char)text.ptr[i]);
    sp_jw_array_end(w);
    sp_buf_fini(&text);
}

void sp_put_chat_logprob(sp_jw *w, const sp_token_style *s, const sp_token_logprobs *lp,
                         int n_top) {
    sp_jw_object(w);
    put_token(w, s, lp->id, lp->logprob);
    sp_jw_key(w, "top_logprobs");
    sp_jw_array(w);
    /* The sampled token comes first even when it is not among the most likely. */
    int left = n_top;
    if (left-- > 0) {
        sp_jw_object(w);
        put_token(w, s, lp->id, lp->logprob);
        sp_jw_object_end(w);
    }
    for (int i = 0; i < lp->n_top && left > 0; i++) {
        if (lp->top[i].id == lp->id) continue;
        sp_jw_object(w);
        put_token(w, s, lp->top[i].id, lp->top[i].logprob);
        sp_jw_object_end(w);
        left--;
    }
    sp_jw_array_end(w);
    sp_jw_object_end(w);
}

/* Two ids may have one text (half a character each); a JSON object must not say a key twice. */
static void put_unless_said(sp_jw *w, sp_buf *said, const sp_buf *text, float logprob) {
    sp_buf key;
    sp_buf_init(&key, 0);
    sp_jw k = sp_jw_on(&key);
    sp_jw_string(&k, sp_buf_slice(text));
    /* Quoted texts hold no bare quote, so a match is a whole key. */
    if (!said->failed && sp_slice_find(sp_buf_slice(said), sp_buf_slice(&key), 0) < 0) {
        sp_buf_put_slice(said, sp_buf_slice(&key));
        sp_buf_putc(said, '\n');
        if (w->comma) sp_buf_putc(w->out, ',');
        sp_buf_put_slice(w->out, sp_buf_slice(&key));
        sp_buf_putc(w->out, ':');
        w->comma = false;
        sp_put_logprob(w, logprob);
    }
    sp_buf_fini(&key);
}

void sp_put_text_top_logprobs(sp_jw *w, const sp_token_style *s, const sp_token_logprobs *lp,
                              int n_top) {
    sp_buf text, said;
    sp_buf_init(&text, 0);
    sp_buf_init(&said, 0);
    sp_buf_putc(&said, '\n'); /* searched from the first key on */
    sp_jw_object(w);
    sp_token_text(s, lp->id, &text);
    put_unless_said(w, &said, &text, lp->logprob);
    for (int i = 0; i < lp->n_top && i < n_top; i++) {
        sp_token_text(s, lp->top[i].id, &text);
        put_unless_said(w, &said, &text, lp->top[i].logprob);
    }
    sp_jw_object_end(w);
    sp_buf_fini(&said);
    sp_buf_fini(&text);
}

static void put_ranked(sp_jw *w, const sp_token_style *s, int32_t id, float logprob, int rank) {
    char key[16];
    sp_buf text;
    sp_buf_init(&text, 0);
    snprintf(key, sizeof key, "%d", id);
    sp_token_text(s, id, &text);
    sp_jw_key(w, key);
    sp_jw_object(w);
    sp_jw_key(w, "logprob"), sp_put_logprob(w, logprob);
    sp_jw_key(w, "rank"), sp_jw_int(w, rank);
    sp_jw_key(w, "decoded_token"), sp_jw_string(w, sp_buf_slice(&text));
    sp_jw_object_end(w);
    sp_buf_fini(&text);
}

void sp_put_prompt_logprobs(sp_jw *w, const sp_token_style *s, sp_token_logprobs *const *lp, int n,
                            int n_top) {
    sp_jw_array(w);
    for (int i = 0; i < n; i++) {
        const sp_token_logprobs *p = lp[i];
        if (!p) {
            sp_jw_null(w);
            continue;
        }
        sp_jw_object(w);
        put_ranked(w, s, p->id, p->logprob, p->rank);
        for (int t = 0; t < p->n_top && t < n_top; t++)
            if (p->top[t].id != p->id) put_ranked(w, s, p->top[t].id, p->top[t].logprob, t + 1);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}
