/* runtime/engine/engine_metrics.h - the engine's figures: bucket bounds, what is observed when.
 *
 * Bounds and definitions are those that dashboards made for vLLM expect:
 *   ttft       arrival to the first token          queue    arrival to the first step
 *   prefill    first step to the first token       decode   first to last token
 *   inference  prefill and decode                  tpot     decode / (tokens - 1), from 2 tokens
 *   itl        between two events with tokens of a choice   e2e  arrival to the end
 * Each is observed once a choice, n once a request. Prompt tokens and their cache hits count once a
 * request, however many choices read them. Bounds of what crosses between groups (kv_*): bytes in
 * powers of 4 from 2 KiB, seconds from a millisecond.
 *
 * Thread: engine observes, any reads. */
#pragma once

#include "runtime/engine/seq.h"

/** Empty figures; token histograms go up to max_model_len. */
void sp_engine_metrics_init(sp_engine_metrics *m, int32_t max_model_len);

/** A token (one of an event) has come for `q` at `now_ns`; updates q's times. generation_tokens is
 * left to the caller, who adds a whole answer at once. */
void sp_engine_metrics_token(sp_engine_metrics *m, sp_seq *q, int64_t now_ns);

/** The prompt of a request was computed. */
void sp_engine_metrics_prompt(sp_engine_metrics *m, const sp_request *r);

/** A choice ends. */
void sp_engine_metrics_end(sp_engine_metrics *m, const sp_seq *q, sp_finish finish, int64_t now_ns);

/** The last choice of a request has ended. */
void sp_engine_metrics_request(sp_engine_metrics *m, const sp_request *r);
