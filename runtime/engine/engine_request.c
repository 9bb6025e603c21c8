#include "runtime/engine/engine_request.h"

#include <string.h>

static sp_status refuse_id(const char *what, int32_t id, int32_t n_vocab, sp_err *err) {
    return SP_FAIL(err, SP_E_INVALID, "'%s' has token %d, the vocabulary has %d", what, id,
                   n_vocab);
}

/* Whether ids at a stride lie in the vocabulary. */
static sp_status check_ids(const char *what, const int32_t *ids, int32_t n, int32_t stride,
                           int32_t n_vocab, sp_err *err) {
    for (int32_t i = 0; i < n; i++)
        if (ids[(size_t)i * (size_t)stride] < 0 || ids[(size_t)i * (size_t)stride] >= n_vocab)
            return refuse_id(what, ids[(size_t)i * (size_t)stride], n_vocab, err);
    return SP_OK;
}

static sp_status check_bad_words(const sp_gen_params *g, int32_t n_vocab, sp_err *err) {
    for (int32_t at = 0; at < g->n_bad_words_ints;) {
        int32_t n = g->bad_words[at++];
        if (n < 1 || n > g->n_bad_words_ints - at)
            return SP_FAIL(err, SP_E_INVALID, "'bad_words' has a run of %d, %d ids are left", n,
                           g->n_bad_words_ints - at);
        SP_TRY(check_ids("bad_words", g->bad_words + at, n, 1, n_vocab, err));
        at += n;
    }
    return SP_OK;
}

/* What the front end has checked, checked where it would break something if it had not. */
static sp_status check_params(const sp_gen_params *g, int32_t n_vocab, sp_err *err) {
    const struct {
        const char *name;
        int32_t value, min, max;
    } rows[] = {
        {"n", g->n, 1, SP_N_MAX},
        {"max_tokens", g->max_tokens, 0, INT32_MAX},
        {"logprobs", g->n_logprobs, -1, SP_LOGPROBS_MAX},
        {"prompt_logprobs", g->n_prompt_logprobs, -1, SP_LOGPROBS_MAX},
        {"stop_token_ids", g->n_stop_ids, 0, SP_STOP_IDS_MAX},
        {"logit_bias", g->n_logit_bias, 0, SP_LOGIT_BIAS_MAX},
        {"allowed_token_ids", g->n_allowed_ids, 0, SP_ALLOWED_IDS_MAX},
        {"bad_words", g->n_bad_words_ints, 0, SP_BAD_WORDS_TOKENS_MAX},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].value < rows[i].min || rows[i].value > rows[i].max)
            return SP_FAIL(err, SP_E_INVALID, "'%s' is %d, want %d..%d", rows[i].name,
                           rows[i].value, rows[i].min, rows[i].max);
    if (g->n_logit_bias)
        SP_TRY(check_ids("logit_bias", &g->logit_bias[0].id, g->n_logit_bias,
                         sizeof(sp_logit_bias) / sizeof(int32_t), n_vocab, err));
    SP_TRY(check_ids("allowed_token_ids", g->allowed_ids, g->n_allowed_ids, 1, n_vocab, err));
    return check_bad_words(g, n_vocab, err);
}

/* The text in it is looked at where it is used: what is wrong there is a miss, not a fault. */
static sp_status check_import(const sp_kv_import *from, sp_err *err) {
    if (!from->handle || !from->source.ptr)
        return SP_FAIL(err, SP_E_INVALID, "'kv_from' has no handle or no source");
    if (!memchr(from->engine, 0, sizeof from->engine))
        return SP_FAIL(err, SP_E_INVALID, "'kv_from' names an engine without an end");
    if (from->handle->n_blocks < 0 || from->handle->lease == 0)
        return SP_FAIL(err, SP_E_INVALID, "'kv_from' has %d blocks of lease %llu",
                       from->handle->n_blocks, (unsigned long long)from->handle->lease);
    return SP_OK;
}

sp_status sp_request_fits(const sp_engine_request *req, const sp_request_world *w, sp_err *err) {
    const sp_gen_params *g = req->params;
    SP_TRY(check_params(g, w->n_vocab, err));
    int32_t most = w->max_model_len - (g->max_tokens > 0);
    if (req->n_prompt < 1) return SP_FAIL(err, SP_E_INVALID, "the prompt is empty");
    if (req->n_prompt > most)
        return SP_FAIL(err, SP_E_INVALID, "the prompt has %d tokens, the most is %d", req->n_prompt,
                       most);
    if ((req->keep_kv || req->kv_from) && !w->kv_shared)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "blocks are not shared with other pods here");
    if (req->kv_from) SP_TRY(check_import(req->kv_from, err));
    return check_ids("prompt", req->prompt, req->n_prompt, 1, w->n_vocab, err);
}
