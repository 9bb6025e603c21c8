/* Covers runtime/model/{weights,forward,attn,ffn}.c as parts of a pod: ranks as threads, and the
 * logits of every position the same bytes at every TP and PP as on one rank. */
#include "runtime/model/forward.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RANKS_MAX 64
#define MAX_LEN 128
#define MAX_TOKENS 160
#define BLOCK 8
#define N_SEQS 3
static const int32_t lengths[N_SEQS] = {37, 5, 22}; /* of the prompts */
#define ALL_TOKENS (37 + 5 + 22)

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

#define HIDDEN_MAX 256
static void open_members(sp_group **out, int n) {
    sp_err err = {0};
    sp_group_config c = {.n = n,
                         .max_reduce = MAX_TOKENS * HIDDEN_MAX,
                         .max_message = MAX_TOKENS * HIDDEN_MAX * sizeof(float),
                         .timeout_ns = 30 * SP_NS_PER_S,
                         .crowded = true};
    int fd;
    must(sp_group_shm_create(&fd, &c, &err), &err);
    for (c.me = 0; c.me < n; c.me++) must(sp_group_open_shm(&out[c.me], fd, &c, &err), &err);
    close(fd);
}

/* ---- a pod of threads ---- */

typedef struct model {
    sp_model_desc desc;
    const sp_arch *arch;
    sp_model_dir *dir;
} model;

static void open_model(model *m, const char *dir) {
    sp_err err = {0};
    *m = (model){0};
    must(sp_model_desc_load(&m->desc, dir, &err), &err);
    must(sp_arch_find(&m->arch, &m->desc, &err), &err);
    must(sp_model_dir_open(&m->dir, dir, &err), &err);
}

typedef struct pod {
    const model *m;
    int32_t tp, pp;
    const int32_t *pp_layers;
    const char *backend;
    int32_t chunk;  /* rows of one sequence in one step */
    int32_t bad_at; /* this step has an id outside the vocabulary; -1: none */
    float *out;     /* [ALL_TOKENS, V]: sequences one after the other */
} pod;

typedef struct rank {
    const pod *p;
    int32_t stage, tp_rank;
    sp_group *tp_group, *pp_group;
    sp_thread thread;
    sp_status st; /* of opening or of the first step that failed */
    sp_err err;
    int32_t steps; /* that ended well */
    bool told;     /* logits came out here */
} rank;

static int32_t id_at(int32_t seq, int32_t pos, int32_t vocab) {
    return (seq * 101 + pos * 37 + pos * pos * 3 + 11) % vocab;
}

/* One step's batch, built by each rank for itself from the same numbers. */
typedef struct step {
    int32_t ids[MAX_TOKENS], rows[MAX_TOKENS], blocks[N_SEQS][MAX_LEN / BLOCK];
    sp_seq_rows seqs[N_SEQS];
    int32_t at[N_SEQS]; /* first row of each sequence's in pod.out */
    sp_batch b;
} step;

static bool make_step(step *s, const pod *p, int32_t number) {
    int32_t n = 0, n_seqs = 0, before = 0;
    for (int32_t i = 0; i < N_SEQS; before += lengths[i++]) {
        const int32_t pos0 = number * p->chunk, left = lengths[i] - pos0;
        if (left <= 0) continue;
        const int32_t take = left < p->chunk ? left : p->chunk;
        for (int32_t k = 0; k < MAX_LEN / BLOCK; k++)
            s->blocks[i][k] = N_SEQS * MAX_LEN / BLOCK - 1 - (k * N_SEQS + i);
        for (int32_t k = 0; k < take; k++) s->ids[n + k] = id_at(i, pos0 + k, p->m->desc.vocab);
        s->at[n_seqs] = before + pos0;
        s->seqs[n_seqs++] = (sp_seq_rows){n, take, pos0, s->blocks[i]};
        n += take;
    }
    for (int32_t k = 0; k < n; k++) s->rows[k] = k;
    if (number == p->bad_at) s->ids[n / 2] = p->m->desc.vocab;
    s->b = (sp_batch){s->ids, n, s->seqs, n_seqs, s->rows, n};
    return n > 0;
}

static sp_status open_rank(rank *r, sp_dev *dev, sp_forward **f) {
    const pod *p = r->p;
    const model *m = p->m;
    sp_forward_config c = {.max_tokens = MAX_TOKENS,
                           .max_rows = MAX_TOKENS,
                           .max_model_len = MAX_LEN,
                           .block_tokens = BLOCK,
                           .n_blocks = N_SEQS * MAX_LEN / BLOCK,
                           .kv_dtype = SP_DTYPE_F32,
                           .tp = r->tp_group,
                           .pp = r->pp_group};
    const sp_dev_config dc = {.backend = p->backend, .n_threads = 1};
    SP_TRY(sp_part_of(&c.part, &m->desc, m->arch, p->tp, p->pp, p->pp_layers, r->stage, r->tp_rank,
                      &r->err));
    SP_TRY(sp_dev_open(dev, &dc, &r->err));
    SP_TRY(sp_forward_open(f, dev, m->dir, &m->desc, m->arch, &c, NULL, NULL, &r->err));
    memset((*f)->kv, 0xff, (*f)->kv_bytes);
    return SP_OK;
}

static void keep_logits(const rank *r, const step *s, const float *logits) {
    const size_t V = (size_t)r->p->m->desc.vocab;
    for (int32_t i = 0; i < s->b.n_seqs; i++)
        memcpy(r->p->out + (size_t)s->at[i] * V, logits + (size_t)s->seqs[i].row0 * V,
               (size_t)s->seqs[i].n_rows * V * sizeof *logits);
}

static void *rank_main(void *arg) {
    rank *r = arg;
    sp_dev dev = {0};
    sp_forward *f = NULL;
    step *s = sp_alloc(sizeof *s);
    r->st = open_rank(r, &dev, &f);
    for (; r->st == SP_OK && make_step(s, r->p, r->steps); r->steps++) {
        const float *logits = NULL;
        /* Ids only matter where they are embedded. */
        if (r->stage > 0) s->b.ids = NULL;
        r->st = sp_forward_run(f, &s->b, &logits, &r->err);
        if (r->st != SP_OK) break;
        r->told = logits != NULL;
        if (logits) keep_logits(r, s, logits);
    }
    sp_forward_close(f);
    if (dev.ops) sp_dev_close(&dev);
    sp_free(s);
    /* As the end of a process: nobody waits for us any more. */
    if (r->st != SP_OK && r->tp_group) r->tp_group->ops->abort(r->tp_group);
    if (r->st != SP_OK && r->pp_group) r->pp_group->ops->abort(r->pp_group);
    return NULL;
}

/* Rank i is TP rank i % tp of stage i / tp. */
static void run_pod(const pod *p, rank *ranks) {
    const int32_t n = p->tp * p->pp;
    CU_ASSERT_FATAL(n <= RANKS_MAX);
    sp_group *members[RANKS_MAX];
    for (int32_t i = 0; i < n; i++)
        ranks[i] = (rank){.p = p, .stage = i / p->tp, .tp_rank = i % p->tp};
    for (int32_t stage = 0; p->tp > 1 && stage < p->pp; stage++) {
        open_members(members, p->tp);
        for (int32_t i = 0; i < p->tp; i++) ranks[stage * p->tp + i].tp_group = members[i];
    }
    for (int32_t i = 0; p->pp > 1 && i < p->tp; i++) {
        open_members(members, p->pp);
        for (int32_t k = 0; k < p->pp; k++) ranks[k * p->tp + i].pp_group = members[k];
    }
    for (int32_t i = 0; i < n; i++) {
        sp_err err = {0};
        must(sp_thread_start(&ranks[i].thread, "rank", rank_main, &ranks[i], &err), &err);
    }
    for (int32_t i = 0; i < n; i++) sp_thread_join(&ranks[i].thread);
    for (int32_t i = 0; i < n; i++) {
        if (ranks[i].tp_group) ranks[i].tp_group->ops->close(ranks[i].tp_group);
        if (ranks[i].pp_group) ranks[i].pp_group->ops->close(ranks[i].pp_group);
    }
}

/* Logits of all positions [ALL_TOKENS, V]. */
static float *logits_of(const model *m, int32_t tp, int32_t pp, const int32_t *pp_layers,
                        const char *backend, int32_t chunk) {
    const size_t n = (size_t)ALL_TOKENS * (size_t)m->desc.vocab;
    pod p = {.m = m,
             .tp = tp,
             .pp = pp,
             .pp_layers = pp_layers,
             .backend = backend,
             .chunk = chunk,
             .bad_at = -1,
             .out = sp_alloc(n * sizeof(float))};
    for (size_t i = 0; i < n; i++) p.out[i] = NAN;
    rank *ranks = sp_alloc(RANKS_MAX * sizeof *ranks);
    run_pod(&p, ranks);
    for (int32_t i = 0; i < tp * pp; i++) {
        if (ranks[i].st != SP_OK) fprintf(stderr, "rank %d: %s\n", i, ranks[i].err.text);
        CU_ASSERT_EQUAL(ranks[i].st, SP_OK);
        CU_ASSERT_EQUAL(ranks[i].told, ranks[i].tp_rank == 0 && ranks[i].stage == pp - 1);
    }
    sp_free(ranks);
    return p.out;
}

static void expect_same(const model *m, const float *want, int32_t tp, int32_t pp,
                        const int32_t *pp_layers, const char *backend, int32_t chunk) {
    float *got = logits_of(m, tp, pp, pp_layers, backend, chunk);
    const bool same =
        memcmp(got, want, (size_t)ALL_TOKENS * (size_t)m->desc.vocab * sizeof *got) == 0;
    if (!same) fprintf(stderr, "other bytes at tp %d pp %d chunk %d\n", tp, pp, chunk);
    CU_ASSERT(same);
    sp_free(got);
}

#ifdef SP_DEBUG
#define FEW true /* sanitizers look for other things */
#else
#define FEW false
#endif

/* Every degree that divides, alternating whole prompts and chunks. */
static void all_degrees(const model *m, int32_t pp_max) {
    float *want = logits_of(m, 1, 1, NULL, "auto", MAX_LEN);
    CU_ASSERT(isfinite(want[0]) && isfinite(want[(size_t)ALL_TOKENS * (size_t)m->desc.vocab - 1]));
    expect_same(m, want, 1, 1, NULL, "auto", 6);
    int ways = 0;
    for (int32_t tp = 1; tp <= 8; tp *= 2)
        for (int32_t pp = 1; pp <= pp_max && m->desc.n_heads % tp == 0; pp++) {
            if (tp * pp == 1 || (FEW && tp * pp != 2 && tp * pp != 6)) continue;
            expect_same(m, want, tp, pp, NULL, "auto", ways++ % 2 ? 9 : MAX_LEN);
        }
    CU_ASSERT(ways >= 2);
    sp_free(want);
}

static void check_dir(const char *dir, int32_t pp_max) {
    model m;
    open_model(&m, dir);
    all_degrees(&m, m.desc.n_layers < pp_max ? m.desc.n_layers : pp_max);
    sp_model_dir_close(m.dir);
}

static void no_degree_changes_a_bit_of_the_goldens(void) {
    check_dir("tests/data/goldens/llama2", 4);
    check_dir("tests/data/goldens/llama3.1", 4);
    check_dir("tests/data/goldens/llama-bias", 4);
}

static void no_degree_changes_a_bit_of_the_demo_model(void) {
    check_dir("configs/podling", 4);
}

static void check_tiny(const sp_tiny *t) {
    char *dir = sp_tiny_create(t);
    check_dir(dir, 4);
    sp_tiny_remove(dir);
}

/* 14 heads over 2 KV heads, a vocabulary of 317: no slice is like its neighbour. */
static void no_degree_changes_a_bit_of_odd_models(void) {
    sp_tiny t = sp_tiny_default();
    check_tiny(&t);
    t.tied = t.attention_bias = t.mlp_bias = true;
    t.intermediate = 347;
    check_tiny(&t);
    t.unaligned = true;
    t.dtype = SP_DTYPE_F32;
    t.n_shards = 2;
    check_tiny(&t);
}

/* 2 KV heads over 4 and 8 ranks. */
static void shared_kv_heads_are_replicated_without_changing_a_bit(void) {
    sp_tiny t = sp_tiny_default();
    t.n_heads = 8;
    t.head_dim = 10;
    t.intermediate = 131;
    t.dtype = SP_DTYPE_F16;
    t.unaligned = true;
    check_tiny(&t);
}

static void stages_may_be_forced_and_backends_mixed_in_any_way(void) {
    model m;
    open_model(&m, "tests/data/goldens/llama-bias");
    float *want = logits_of(&m, 1, 1, NULL, "ref", MAX_LEN);
    expect_same(&m, want, 2, 2, (const int32_t[]){3, 1}, "ref", 16);
    expect_same(&m, want, 1, 3, (const int32_t[]){1, 1, 2}, "cpu", 1);
    expect_same(&m, want, 4, 2, (const int32_t[]){1, 3}, "cpu-generic", 5);
    sp_free(want);
    sp_model_dir_close(m.dir);
}

/* Outside the contract: other bits, but the same model. */
static void fourteen_ranks_work_outside_the_contract(void) {
    sp_tiny t = sp_tiny_default();
    char *dir = sp_tiny_create(&t);
    model m;
    open_model(&m, dir);
    float *want = logits_of(&m, 1, 1, NULL, "auto", MAX_LEN);
    float *got = logits_of(&m, 14, 1, NULL, "auto", MAX_LEN);
    double worst = 0;
    for (size_t i = 0; i < (size_t)ALL_TOKENS * (size_t)m.desc.vocab; i++) {
        const double d = fabs((double)got[i] - (double)want[i]);
        if (!(d <= worst)) worst = d;
    }
    CU_ASSERT(worst < 1e-3);
    sp_free(want);
    sp_free(got);
    sp_model_dir_close(m.dir);
    sp_tiny_remove(dir);
}

/* ---- faults ---- */

/* Step 1 of several fails where it is embedded; no later stage may answer it. */
static void a_step_that_fails_at_the_first_stage_gives_logits_nowhere(void) {
    model m;
    open_model(&m, "tests/data/goldens/llama2");
    pod p = {.m = &m, .backend = "auto", .chunk = 9, .bad_at = 1};
    p.out = sp_alloc((size_t)ALL_TOKENS * (size_t)m.desc.vocab * sizeof(float));
    rank *ranks = sp_alloc(RANKS_MAX * sizeof *ranks);
    for (p.tp = 1; p.tp <= 2; p.tp++)
        for (p.pp = 1; p.pp <= 3; p.pp++) {
            run_pod(&p, ranks);
            for (int i = 0; i < p.tp * p.pp; i++) {
                const bool first = i < p.tp;
                CU_ASSERT(first ? ranks[i].steps == 1 : ranks[i].steps <= 1);
                CU_ASSERT_EQUAL(ranks[i].st, first ? SP_E_INVALID : SP_E_PEER_LOST);
                CU_ASSERT(!first || strstr(ranks[i].err.text, "token id 320"));
            }
        }
    sp_free(ranks);
    sp_free(p.out);
    sp_model_dir_close(m.dir);
}

/* ---- memory ---- */

/* The cpu backend with a scale on its alloc and pack. */
typedef struct scale {
    uint64_t alloc_bytes, packed_bytes;
} scale;
static scale weighed;

static void *weighing_alloc(sp_dev *dev, size_t bytes) {
    weighed.alloc_bytes += bytes;
    return sp_dev_cpu.alloc(dev, bytes);
}
static sp_status weighing_pack(sp_dev *dev, sp_weight **out, const sp_weight_part *parts,
                               int n_parts, const sp_segments *seg, sp_err *err) {
    int32_t rows = 0;
    for (int i = 0; i < n_parts; i++) rows += parts[i].rows;
    weighed.packed_bytes += sp_dev_cpu.packed_bytes(rows, seg, parts[0].dtype);
    return sp_dev_cpu.pack(dev, out, parts, n_parts, seg, err);
}

/* Groups that are never called. */
static const sp_group_ops silent_ops = {.name = "silent"};

static uint64_t progress_total;
static void keep_progress(void *ctx, uint64_t done, uint64_t total) {
    uint64_t *last = ctx;
    CU_ASSERT(done > *last && done <= total);
    *last = done;
    progress_total = total;
}

static void weigh_rank(const model *m, const sp_plan *plan, const sp_plan_request *req,
                       int32_t stage, int32_t tp_rank) {
    sp_plan_rank want;
    sp_plan_rank_of(&want, plan, req, stage, tp_rank);
    sp_err err = {0};
    sp_dev dev = {0};
    sp_group tp = {&silent_ops, plan->tp, tp_rank}, pp = {&silent_ops, plan->pp, stage};
    sp_forward *f = NULL;
    sp_forward_config c = {.max_tokens = plan->max_num_batched_tokens,
                           .max_rows = plan->max_rows,
                           .max_model_len = plan->max_model_len,
                           .block_tokens = req->block_tokens,
                           .n_blocks = plan->n_blocks,
                           .kv_dtype = req->kv_dtype,
                           .tp = &tp,
                           .pp = &pp};
    must(sp_part_of(&c.part, &m->desc, m->arch, plan->tp, plan->pp, NULL, stage, tp_rank, &err),
         &err);
    must(sp_dev_open(&dev, &(sp_dev_config){.backend = "cpu", .n_threads = 1}, &err), &err);
    sp_dev_ops ops = *dev.ops;
    ops.alloc = weighing_alloc;
    ops.pack = weighing_pack;
    dev.ops = &ops;
    weighed = (scale){0};
    uint64_t done = 0;
    must(sp_forward_open(&f, &dev, m->dir, &m->desc, m->arch, &c, keep_progress, &done, &err),
         &err);
    CU_ASSERT_EQUAL(weighed.packed_bytes, want.packed_bytes);
    CU_ASSERT_EQUAL(f->kv_bytes, want.kv_bytes);
    /* The plan rounds each of 13 ranges of scratch up to 64 bytes. */
    const uint64_t ids = f->ids ? 8 * (uint64_t)c.max_tokens : 0;
    const uint64_t taken = weighed.alloc_bytes + ids;
    const uint64_t planned = want.vector_bytes + want.scratch_bytes + want.kv_bytes;
    CU_ASSERT(taken <= planned && planned - taken < 13 * 64);
    CU_ASSERT_EQUAL(done, want.weight_bytes);
    CU_ASSERT_EQUAL(progress_total, want.weight_bytes);
    CU_ASSERT_EQUAL(want.total_bytes, want.packed_bytes + planned);
    CU_ASSERT(want.total_bytes <= plan->total_bytes);
    if (stage == plan->most_stage && tp_rank == plan->most_tp_rank)
        CU_ASSERT_EQUAL(want.total_bytes, plan->total_bytes);
    sp_forward_close(f);
    sp_dev_close(&dev);
}

static void every_rank_takes_what_its_plan_says(void) {
    sp_tiny t = sp_tiny_default();
    t.attention_bias = t.mlp_bias = true;
    t.n_heads = 8;
    t.head_dim = 8;
    t.intermediate = 347;
    for (int tied = 0; tied < 2; tied++) {
        t.tied = tied;
        char *dir = sp_tiny_create(&t);
        model m;
        open_model(&m, dir);
        for (int32_t tp = 1; tp <= 8; tp *= 2)
            for (int32_t pp = 1; pp <= 3; pp++) {
                sp_plan plan;
                sp_err err = {0};
                sp_plan_request r = {.desc = &m.desc,
                                     .arch = m.arch,
                                     .dir = m.dir,
                                     .packed = sp_dev_cpu.packed_bytes,
                                     .tp = tp,
                                     .pp = pp,
                                     .block_tokens = 16,
                                     .max_num_seqs = 3,
                                     .max_num_batched_tokens = 21,
                                     .max_rows = 7,
                                     .kv_dtype = SP_DTYPE_F16,
                                     .memory = {1 << 30, UINT64_MAX, UINT64_MAX},
                                     .ranks_on_node = tp * pp};
                must(sp_plan_make(&plan, &r, &err), &err);
                CU_ASSERT(plan.exact);
                for (int32_t i = 0; i < tp * pp; i++) weigh_rank(&m, &plan, &r, i / tp, i % tp);
            }
        sp_model_dir_close(m.dir);
        sp_tiny_remove(dir);
    }
}

static void an_open_that_runs_out_of_memory_says_so_and_leaves_nothing(void) {
    model m;
    sp_err err = {0};
    open_model(&m, "tests/data/goldens/llama-bias");
    for (int32_t stage = 0; stage < 2; stage++) {
        sp_group tp = {&silent_ops, 2, 0}, pp = {&silent_ops, 2, stage};
        sp_forward_config c = {.max_tokens = 8,
                               .max_rows = 8,
                               .max_model_len = 16,
                               .block_tokens = 8,
                               .n_blocks = 2,
                               .kv_dtype = SP_DTYPE_F32,
                               .tp = &tp,
                               .pp = &pp};
        must(sp_part_of(&c.part, &m.desc, m.arch, 2, 2, NULL, stage, 0, &err), &err);
        sp_dev dev = {0};
        must(sp_dev_open(&dev, &(sp_dev_config){.backend = "ref"}, &err), &err);
        int failures = 0;
        for (sp_status st = SP_E_NOMEM; st != SP_OK; failures++) {
            sp_forward *f = NULL;
            sp_mem_fail_at(failures + 1);
            st = sp_forward_open(&f, &dev, m.dir, &m.desc, m.arch, &c, NULL, NULL, &err);
            sp_mem_fail_at(0);
            CU_ASSERT(st == SP_OK ? f != NULL : st == SP_E_NOMEM && f == NULL);
            if (st != SP_OK && st != SP_E_NOMEM) break;
            sp_forward_close(f);
        }
        CU_ASSERT(failures > 30);
        sp_dev_close(&dev);
    }
    sp_model_dir_close(m.dir);
}

SP_TEST_MAIN("runtime/model/forward_parts", SP_TEST(no_degree_changes_a_bit_of_the_goldens),
             SP_TEST(no_degree_changes_a_bit_of_the_demo_model),
             SP_TEST(no_degree_changes_a_bit_of_odd_models),
             SP_TEST(shared_kv_heads_are_replicated_without_changing_a_bit),
             SP_TEST(stages_may_be_forced_and_backends_mixed_in_any_way),
             SP_TEST(fourteen_ranks_work_outside_the_contract),
             SP_TEST(a_step_that_fails_at_the_first_stage_gives_logits_nowhere),
             SP_TEST(every_rank_takes_what_its_plan_says),
             SP_TEST(an_open_that_runs_out_of_memory_says_so_and_leaves_nothing))
