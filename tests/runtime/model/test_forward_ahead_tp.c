/* Covers runtime/model/forward_ahead.c with tensor parallelism: ranks are threads, each with an emulated
 * device, their group NCCL's (the emulated one's); what steps ahead draw is what one rank draws. */
#include "runtime/model/forward_ahead.h"

#include "kernels/cuda/cuda_dev.h"
#include "tests/kernels/cuda/nccl_env.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const sp_dev_plugin *superpod_device_plugin(int abi);

#if defined(__SANITIZE_THREAD__)
#define NEEDS_FIBRES() SP_SKIP("fibres under the thread sanitizer")
#else
#define NEEDS_FIBRES() (void)0
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SLOW 1
#else
#define SLOW 0
#endif

#define MAX_LEN 64
#define BLOCK 16
#define SEQS 5
#define SEQ_BLOCKS (MAX_LEN / BLOCK)
#define N_BLOCKS (SEQS * SEQ_BLOCKS)
#define MAX_TOKENS 24
#define VOCAB SP_TINY_VOCAB_MIN
#define STEPS (SLOW ? 8 : 14)
#define LOGITS_EVERY 5 /* such a step is run, not submitted, and draws nothing */

typedef struct record {
    sp_drawn drawn[STEPS * SEQS];
    float logits[STEPS / LOGITS_EVERY + 1][SEQS * VOCAB];
    int n, n_logits;
} record;

/* What all ranks are told. */
typedef struct pod {
    char *folder;
    int32_t tp;
    bool submits; /* else: steps are waited for one by one */
    int lost_at;  /* the last rank takes no further step; -1: it takes all */
    int64_t timeout_ns;
    cu_nccl_id id;
    record got;
} pod;

typedef struct rank {
    pod *p;
    int32_t me;
    pthread_t thread;
    sp_status st;
    sp_err err;
    int64_t waited_ns; /* of the call that failed */
} rank;

typedef struct model {
    sp_model_desc desc;
    const sp_arch *arch;
    sp_model_dir *dir;
    sp_dev dev;
    sp_group *tp;
    sp_forward *f;
} model;

static sp_status open_group(model *m, const rank *r, sp_err *err) {
    if (r->p->tp == 1) return SP_OK;
    const sp_group_config gc = {.n = r->p->tp,
                                .me = r->me,
                                .max_reduce = (size_t)MAX_TOKENS * 64,
                                .timeout_ns = r->p->timeout_ns};
    return sp_group_open_nccl(&m->tp, cast_nccl(), &r->p->id, ((cu_dev *)m->dev.impl)->stream,
                              false, &gc, NULL, err);
}

static sp_status open_model(model *m, const rank *r, sp_err *err) {
    sp_forward_config c = {.max_tokens = MAX_TOKENS,
                           .max_rows = MAX_TOKENS,
                           .max_model_len = MAX_LEN,
                           .block_tokens = BLOCK,
                           .n_blocks = N_BLOCKS,
                           .kv_dtype = SP_DTYPE_F32,
                           .n_slots = SEQS};
    const sp_dev_config dc = {.backend = "emu", .index = r->me};
    m->dev.ops = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops;
    SP_TRY(sp_model_desc_load(&m->desc, r->p->folder, err));
    SP_TRY(sp_arch_find(&m->arch, &m->desc, err));
    SP_TRY(sp_model_dir_open(&m->dir, r->p->folder, err));
    SP_TRY(m->dev.ops->open(&m->dev, &dc, err));
    SP_TRY(open_group(m, r, err));
    c.tp = m->tp;
    SP_TRY(sp_part_of(&c.part, &m->desc, m->arch, r->p->tp, 1, NULL, 0, r->me, err));
    return sp_forward_open(&m->f, &m->dev, m->dir, &m->desc, m->arch, &c, NULL, NULL, err);
}

static void close_model(model *m) {
    sp_forward_close(m->f);
    if (m->tp) m->tp->ops->close(m->tp);
    if (m->dev.impl) sp_dev_close(&m->dev);
    sp_model_dir_close(m->dir);
}

/* ---- steps ---- */

/* A sequence as every rank knows it: its prompt, and how long it is. Nobody keeps what was drawn. */
typedef struct sequence {
    int32_t n_prompt, n, done, generation;
} sequence;

typedef struct step {
    int32_t ids[MAX_TOKENS], rows[SEQS], blocks[SEQS][SEQ_BLOCKS];
    sp_seq_rows seqs[SEQS];
    sp_draw draws[SEQS];
    sp_batch b;
    int32_t n_draws;
} step;

static int32_t prompt_id(int s, int32_t generation, int32_t pos) {
    return (s * 131 + generation * 57 + pos * 29 + pos * pos) % VOCAB;
}

/* Sequence s begins at step s, 3 and 4 in two pieces, beside others that go on; 1 begins anew in step 6,
 * in its slot. A sequence rests now and then. */
static void lay_out(step *t, sequence *seqs, int i, bool draws) {
    int32_t left = MAX_TOKENS;
    *t = (step){.b = {t->ids, 0, t->seqs, 0, t->rows, 0}};
    for (int s = 0; s < SEQS; s++) {
        sequence *q = &seqs[s];
        if (i == s || (s == 1 && i == 6))
            *q = (sequence){4 + 3 * s, 4 + 3 * s, 0, q->generation + 1};
        int32_t n = q->n - q->done;
        if (n == 0 || (i + s) % 7 == 6) continue;
        if (n > 11) n = 11;
        if (n > left) n = left;
        const bool last = n == q->n - q->done;
        if (n == 0 || (!draws && last && n > 1)) continue;
        left -= n;
        for (int b = 0; b < SEQ_BLOCKS; b++) t->blocks[s][b] = N_BLOCKS - 1 - (b * SEQS + s);
        t->seqs[t->b.n_seqs++] = (sp_seq_rows){t->b.n_tokens, n, q->done, t->blocks[s]};
        for (int32_t k = 0; k < n; k++, q->done++)
            t->ids[t->b.n_tokens++] =
                q->done < q->n_prompt ? prompt_id(s, q->generation, q->done) : -1 - s;
        if (!last) continue;
        t->rows[t->b.n_rows] = t->b.n_tokens - 1;
        if (!draws) q->done--; /* once more in the next step, with the same keys */
        if (draws)
            t->draws[t->n_draws++] = (sp_draw){.row = t->b.n_rows,
                                               .slot = s,
                                               .temperature = s % 2 ? 0.8f : 0,
                                               .top_p = 0.95f,
                                               .repetition_penalty = 1,
                                               .top_k = s % 3 ? 40 : 0,
                                               .position = q->n++,
                                               .seed = 77 + (uint64_t)s,
                                               .n_logprobs = s % 4 == 3 ? 3 : -1,
                                               .n_allowed = -1};
        t->b.n_rows++;
    }
}

static sp_status finish(rank *r, model *m, const step *t) {
    record *l = &r->p->got;
    const sp_drawn *drawn = NULL;
    const int64_t since = sp_now_ns();
    const sp_status st = sp_forward_finish(m->f, SP_NEVER, &drawn, &r->err);
    r->waited_ns = sp_now_ns() - since;
    if (st != SP_OK || r->me != 0) return st;
    for (int32_t k = 0; k < t->n_draws; k++) l->drawn[l->n++] = drawn[k];
    return SP_OK;
}

static sp_status look(rank *r, model *m, const step *t) {
    record *l = &r->p->got;
    const float *logits = NULL;
    SP_TRY(sp_forward_run(m->f, &t->b, &logits, &r->err));
    if (r->me != 0 || !logits) return SP_OK;
    memcpy(l->logits[l->n_logits++], logits, (size_t)t->b.n_rows * VOCAB * sizeof *logits);
    return SP_OK;
}

static sp_status run_steps(rank *r, model *m) {
    sequence seqs[SEQS] = {0};
    step t[2];
    int n = 0, ended = 0;
    if (!sp_forward_runs_ahead(m->f)) return SP_FAIL(&r->err, SP_E_INTERNAL, "not ahead");
    for (int i = 0; i < STEPS; i++) {
        const bool looks = i % LOGITS_EVERY == LOGITS_EVERY - 1;
        step *now = &t[n % 2];
        if (i == r->p->lost_at && r->me == r->p->tp - 1) return SP_OK;
        /* Members end steps at different times: none may depend on what another has finished. */
        const int behind = looks || !r->p->submits ? 0 : r->me % 2 ? 0 : 1;
        while (n - ended > behind) {
            SP_TRY(finish(r, m, &t[ended % 2]));
            ended++;
        }
        lay_out(now, seqs, i, !looks);
        if (now->b.n_tokens == 0) continue;
        if (looks) {
            SP_TRY(look(r, m, now));
            continue;
        }
        const sp_draw_args a = {.n = now->n_draws, .draws = r->me ? NULL : now->draws};
        SP_TRY(sp_forward_submit(m->f, &now->b, &a, &r->err));
        n++;
    }
    while (ended < n) {
        SP_TRY(finish(r, m, &t[ended % 2]));
        ended++;
    }
    return SP_OK;
}

static void *rank_main(void *arg) {
    rank *r = arg;
    model m = {0};
    cudaSetDevice(r->me);
    r->st = open_model(&m, r, &r->err);
    if (r->st == SP_OK) r->st = run_steps(r, &m);
    close_model(&m);
    return NULL;
}

static void run_pod(pod *p, rank *ranks) {
    memset(&p->got, 0, sizeof p->got);
    if (p->tp > 1) CU_ASSERT_EQUAL_FATAL(sp_group_nccl_id(&p->id, cast_nccl(), NULL), SP_OK);
    for (int32_t i = 0; i < p->tp; i++) {
        ranks[i] = (rank){.p = p, .me = i};
        CU_ASSERT_EQUAL_FATAL(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]), 0);
    }
    for (int32_t i = 0; i < p->tp; i++) pthread_join(ranks[i].thread, NULL);
}

static char *make_folder(void) {
    return sp_tiny_create(&(sp_tiny){.seed = 7,
                                     .hidden = 32,
                                     .n_layers = SLOW ? 1 : 2,
                                     .intermediate = 64,
                                     .vocab = VOCAB,
                                     .n_heads = 4,
                                     .n_kv_heads = 4,
                                     .max_positions = MAX_LEN,
                                     .dtype = SP_DTYPE_BF16,
                                     .n_shards = 1,
                                     .tied = true,
                                     .rope_theta = 10000});
}

static void must_all(const pod *p, const rank *ranks) {
    for (int32_t i = 0; i < p->tp; i++) {
        if (ranks[i].st != SP_OK) printf("rank %d: %s\n", i, ranks[i].err.text);
        CU_ASSERT_EQUAL(ranks[i].st, SP_OK);
    }
}

/* ---- tests ---- */

static pod like(char *folder, int32_t tp, bool submits) {
    return (pod){.folder = folder,
                 .tp = tp,
                 .submits = submits,
                 .lost_at = -1,
                 .timeout_ns = 20 * SP_NS_PER_S};
}

static void ranks_that_run_ahead_draw_what_one_rank_draws_step_by_step(void) {
    NEEDS_FIBRES();
    static pod want, got;
    static rank ranks[CAST_MAX];
    static const struct {
        int32_t tp;
        cu_emu_pace pace;
    } ways[] = {{2, CU_EMU_LAZY}, {2, CU_EMU_MIXED}, {4, CU_EMU_EAGER}, {1, CU_EMU_LAZY}};
    char *folder = make_folder();
    cast_pace(CU_EMU_EAGER, 1);
    want = like(folder, 1, false);
    run_pod(&want, ranks);
    must_all(&want, ranks);
    CU_ASSERT(want.got.n > 2 * STEPS && want.got.n_logits == STEPS / LOGITS_EVERY);
    for (size_t i = 0; i < SP_LEN(ways); i++) {
        cast_pace(ways[i].pace, 3 + i);
        got = like(folder, ways[i].tp, true);
        run_pod(&got, ranks);
        must_all(&got, ranks);
        CU_ASSERT_EQUAL(memcmp(&got.got, &want.got, sizeof want.got), 0);
        CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ANY), 0);
    }
    sp_tiny_remove(folder);
}

static void a_member_that_is_lost_ends_the_wait_for_a_step_and_is_named_a_peer(void) {
    NEEDS_FIBRES();
    static pod p;
    static rank ranks[CAST_MAX];
    char *folder = make_folder();
    cast_pace(CU_EMU_LAZY, 1);
    p = like(folder, 2, true);
    p.lost_at = 3;
    p.timeout_ns = 300 * SP_NS_PER_MS;
    run_pod(&p, ranks);
    CU_ASSERT_EQUAL(ranks[0].st, SP_E_PEER_LOST);
    CU_ASSERT(ranks[0].waited_ns < 5 * SP_NS_PER_S);
    sp_tiny_remove(folder);
}

SP_TEST_MAIN("runtime/model/forward_ahead with TP",
             SP_TEST(ranks_that_run_ahead_draw_what_one_rank_draws_step_by_step),
             SP_TEST(a_member_that_is_lost_ends_the_wait_for_a_step_and_is_named_a_peer))
