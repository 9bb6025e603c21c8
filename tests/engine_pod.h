/* tests/engine_pod.h - an engine and its fake ranks; requests as a test sees them; the oracle.
 *
 * A pod of more than one rank (pod_start_shape) rehearses: every rank is a thread that does the real
 * collectives over fake groups and keeps hashes in its own blocks; the sampler makes the null
 * model's logits of what all of them agree on. So one oracle serves every shape.
 *
 * expect() computes what a request gives when nothing else is in the world: from its tokens alone,
 * with the null model's logits and the real sampler. Whatever the engine does (batches, chunks,
 * shared blocks, preemption), it must give the same.
 *
 * Thread: one, the consumer. */
#pragma once

#include "runtime/base/clock.h"
#include "runtime/engine/desk.h"
#include "runtime/engine/engine_core.h"
#include "runtime/engine/rehearsal.h"
#include "runtime/gen/sampler.h"
#include "tests/fake_group.h"
#include "tests/fake_rank.h"
#include "tests/harness.h"

enum {
    VOCAB = 97,
    EOS = 5,
    CHOICES_MAX = 5,
    OUT_MAX = 300,
    PROMPT_MAX = 256
};

typedef struct pod_shape pod_shape;

typedef struct pod {
    sp_fake_rank rank; /* the only one, or the sampler */
    pod_shape *shape;  /* the others; NULL: alone */
    sp_engine *engine;
    sp_engine_config config;
} pod;

/** 8 sequences, 64 tokens a step, 200 a sequence, blocks of 16. */
sp_engine_config pod_config(void);
/** Starts both threads and waits until the engine is ready. `allowed`: see sp_fake_rank_allow(). */
void pod_start(pod *p, const sp_engine_config *c, int32_t n_blocks, int allowed);
/** The same with a rank whose device draws, and runs ahead of it. */
void pod_start_ahead(pod *p, const sp_engine_config *c, int32_t n_blocks, int allowed);
/** The same over `tp` x `pp` ranks; rank (stage, tp_rank) is link stage * tp + tp_rank. Sets what
 * the configuration says of stages and sampler. */
void pod_start_shape(pod *p, sp_engine_config c, int32_t n_blocks, int allowed, int tp, int pp);
int pod_rank_count(const pod *p);
sp_fake_rank *pod_rank(pod *p, int link);
void pod_wait_state(pod *p, sp_engine_state want);
/** Takes events until the engine has drained; all ranks must have ended well and keep nothing. */
void pod_drain(pod *p);
void pod_end(pod *p);

typedef struct ask {
    int32_t prompt[PROMPT_MAX];
    int32_t n_prompt;
    sp_gen_params params;
    const char *salt;
    int32_t priority;
    uint64_t id;
    bool live, cancelled[CHOICES_MAX];
    int32_t out[CHOICES_MAX][OUT_MAX];
    int32_t n_out[CHOICES_MAX];
    sp_finish finish[CHOICES_MAX];
    int32_t stop_id[CHOICES_MAX];
    sp_status error[CHOICES_MAX];
    int32_t n_cached, n_rows, n_prompt_logprobs;
    char text[120];
    bool keep_kv;
    const sp_kv_import *from;
    sp_kv_handle *kv; /* that came with the last event; ask_fini() */
} ask;

void ask_init(ask *a, int32_t n_prompt, int32_t seed); /* greedy, 16 tokens, no EOS */
void ask_fini(ask *a);
sp_status ask_submit(pod *p, ask *a, int64_t deadline_ns, sp_err *err);
void ask_must_submit(pod *p, ask *a);
void ask_take(ask *a, const sp_event *ev);
bool ask_over(const ask *a);
/** Takes what waits, or waits for it; false: nothing came. */
bool pod_pump(pod *p, int wait_ms);
void pod_finish(pod *p, ask *asks, int n); /* until all of them are over */

typedef struct expectation {
    int32_t out[OUT_MAX];
    int32_t n;
    sp_finish finish;
    int32_t stop_id;
} expectation;
expectation expect(const ask *a, int32_t choice, int32_t max_model_len);
/** Compares every choice that was neither cancelled nor ended by an error with expect(). */
void ask_check(const ask *a, int32_t max_model_len);
/** Compares log-probabilities of tokens[position] with those of the row after the tokens before. */
void check_logprobs(const sp_token_logprobs *lp, const int32_t *tokens, int32_t position,
                    int32_t n_top);

int64_t pod_gauge(pod *p, size_t offset);
uint64_t pod_counter(pod *p, size_t offset);
#define GAUGE(p, name) pod_gauge((p), offsetof(sp_engine_metrics, name))
#define COUNTER(p, name) pod_counter((p), offsetof(sp_engine_metrics, name))
uint64_t pod_observed(const sp_histogram *h); /* how many values */
