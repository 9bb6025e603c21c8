#include "runtime/engine/engine_metrics.h"

#include <string.h>

static const double ttft_bounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                     1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
static const double itl_bounds[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                    .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
static const double latency_bounds[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double n_bounds[] = {1, 2, 5, 10, 20};
static const double iteration_bounds[] = {1,   8,    16,   32,   64,   128,  256,
                                          512, 1024, 2048, 4096, 8192, 16384};
/* Blocks that cross from group to group. */
static const double xfer_s_bounds[] = {.001, .002, .005, .01, .025, .05, .075, .1, .2,
                                       .3,   .5,   .75,  1,   2.5,  5,   10,   30};
static const double xfer_bytes_bounds[] = {0x1p11, 0x1p13, 0x1p15, 0x1p17, 0x1p19, 0x1p21,
                                           0x1p23, 0x1p25, 0x1p27, 0x1p29, 0x1p31, 0x1p33};
static const double xfer_blocks_bounds[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4096};
/* 1-2-5 steps; cut at the longest sequence there can be. */
static const double token_bounds[] = {1,   2,   5,   10,  20,  50,  1e2, 2e2, 5e2, 1e3, 2e3, 5e3,
                                      1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7};

void sp_engine_metrics_init(sp_engine_metrics *m, int32_t max_model_len) {
    memset(m, 0, sizeof *m);
    sp_histogram_init(&m->ttft_s, ttft_bounds, SP_LEN(ttft_bounds));
    sp_histogram *const gaps[] = {&m->itl_s, &m->tpot_s};
    for (size_t i = 0; i < SP_LEN(gaps); i++)
        sp_histogram_init(gaps[i], itl_bounds, SP_LEN(itl_bounds));
    sp_histogram *const spans[] = {&m->e2e_s,     &m->queue_s,  &m->inference_s,
                                   &m->prefill_s, &m->decode_s, &m->handoff_s};
    for (size_t i = 0; i < SP_LEN(spans); i++)
        sp_histogram_init(spans[i], latency_bounds, SP_LEN(latency_bounds));
    sp_histogram_init(&m->kv_xfer_s, xfer_s_bounds, SP_LEN(xfer_s_bounds));
    sp_histogram_init(&m->kv_post_s, xfer_s_bounds, SP_LEN(xfer_s_bounds));
    sp_histogram_init(&m->kv_xfer_bytes, xfer_bytes_bounds, SP_LEN(xfer_bytes_bounds));
    sp_histogram_init(&m->kv_xfer_blocks, xfer_blocks_bounds, SP_LEN(xfer_blocks_bounds));
    sp_histogram_init(&m->req_n, n_bounds, SP_LEN(n_bounds));
    sp_histogram_init(&m->iteration_tokens, iteration_bounds, SP_LEN(iteration_bounds));
    int n = 1;
    while (n < (int)SP_LEN(token_bounds) && token_bounds[n] <= max_model_len) n++;
    sp_histogram *const counts[] = {&m->req_prompt_tokens, &m->req_generation_tokens,
                                    &m->req_max_tokens, &m->req_max_generation_tokens,
                                    &m->req_prefill_computed_tokens};
    for (size_t i = 0; i < SP_LEN(counts); i++) sp_histogram_init(counts[i], token_bounds, n);
}

const char *sp_kv_cause_name(sp_kv_cause cause) {
    static const char *const names[SP_KV_CAUSE_COUNT] = {
        [SP_KV_OK] = "ok",
        [SP_KV_STALE] = "stale",
        [SP_KV_CHECKSUM] = "checksum",
        [SP_KV_IDENTITY] = "identity",
        [SP_KV_PEER] = "peer",
        [SP_KV_TIMEOUT] = "timeout",
        [SP_KV_RANGE] = "range",
        [SP_KV_FOREIGN] = "foreign",
        [SP_KV_NO_ROOM] = "no_room",
        [SP_KV_LATE] = "late",
        [SP_KV_PREFILL_ENDED] = "prefill_ended",
        [SP_KV_LOST] = "lost",
        [SP_KV_EXPIRED] = "expired",
    };
    return cause < SP_KV_CAUSE_COUNT ? names[cause] : "unknown";
}

static double seconds(int64_t from_ns, int64_t to_ns) {
    return (double)(to_ns - from_ns) * 1e-9;
}

void sp_engine_metrics_token(sp_engine_metrics *m, sp_seq *q, int64_t now_ns) {
    if (q->first_token_ns == 0) {
        q->first_token_ns = now_ns;
        sp_histogram_observe(&m->ttft_s, seconds(q->req->arrival_ns, now_ns));
    } else {
        sp_histogram_observe(&m->itl_s, seconds(q->last_token_ns, now_ns));
    }
    q->last_token_ns = now_ns;
}

void sp_engine_metrics_prompt(sp_engine_metrics *m, const sp_request *r) {
    sp_counter_add(&m->prompt_tokens, (uint64_t)r->n_prompt);
    sp_counter_add(&m->prompt_tokens_cached, (uint64_t)r->n_cached);
}

static void observe_phases(sp_engine_metrics *m, const sp_seq *q, int64_t now_ns) {
    sp_histogram_observe(&m->queue_s, seconds(q->req->arrival_ns, q->scheduled_ns));
    sp_histogram_observe(&m->req_prefill_computed_tokens, q->n_computed);
    int64_t first = q->first_token_ns ? q->first_token_ns : now_ns;
    int64_t last = q->last_token_ns ? q->last_token_ns : now_ns;
    sp_histogram_observe(&m->prefill_s, seconds(q->scheduled_ns, first));
    sp_histogram_observe(&m->decode_s, seconds(first, last));
    sp_histogram_observe(&m->inference_s, seconds(q->scheduled_ns, last));
    if (q->n_output > 1) sp_histogram_observe(&m->tpot_s, seconds(first, last) / (q->n_output - 1));
}

void sp_engine_metrics_end(sp_engine_metrics *m, const sp_seq *q, sp_finish finish,
                           int64_t now_ns) {
    sp_counter_add(&m->finished[finish], 1);
    sp_histogram_observe(&m->e2e_s, seconds(q->req->arrival_ns, now_ns));
    sp_histogram_observe(&m->req_prompt_tokens, q->req->n_prompt);
    sp_histogram_observe(&m->req_generation_tokens, q->n_output);
    sp_histogram_observe(&m->req_max_tokens, q->req->params.max_tokens);
    if (q->scheduled_ns) observe_phases(m, q, now_ns);
}

void sp_engine_metrics_request(sp_engine_metrics *m, const sp_request *r) {
    sp_histogram_observe(&m->req_n, r->params.n);
    sp_histogram_observe(&m->req_max_generation_tokens, r->max_output);
}
