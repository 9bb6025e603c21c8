/* Covers runtime/engine/kv_port.c inside a pod (other pods: test_kv_from.c), and with it
 * runtime/model/kv_pieces.c and comm/kvx.c over a real model: one group computes prompts, another of any shape pulls their full blocks and goes on, and
 * every logit has the bytes that one rank alone gives. */
#include "runtime/engine/kv_port.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "runtime/model/forward.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 8
#define MAX_LEN 64
#define N_SEQS 2
#define N_BLOCKS (N_SEQS * MAX_LEN / BLOCK)
#define MAX_TOKENS 64
#define HIDDEN_MAX 256
#define RANKS_MAX 8
static const int32_t lengths[N_SEQS] = {45, 26};
#define ALL_TOKENS (45 + 26)
#define FULL_BLOCKS (45 / BLOCK + 26 / BLOCK)

static const uint8_t key[SP_KVX_KEY_BYTES] = "pod", identity[SP_KVX_IDENTITY_BYTES] = "tiny exact";

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

typedef struct model {
    sp_model_desc desc;
    const sp_arch *arch;
    sp_model_dir *dir;
} model;

/* What all ranks of a group do: some positions of each sequence, over blocks of their own order. */
typedef struct pod {
    const model *m;
    int32_t tp, pp;
    const int32_t *pp_layers;
    sp_dtype kv_dtype;
    bool exports, tcp;
    uint64_t other_name;    /* xored into the names that are asked for, but the first one's */
    const struct pod *from; /* pulls the full blocks from it first; NULL: computes all */
    int32_t stride; /* block k of sequence i is number (k * N_SEQS + i) * stride mod N_BLOCKS */
    float *out;     /* [ALL_TOKENS, V]; rows that were not computed stay NAN */
    struct rank *ranks;
} pod;

typedef struct rank {
    const pod *p;
    int32_t stage, tp_rank;
    sp_group *tp_group, *pp_group;
    sp_dev dev;
    sp_kvx_region *region;
    char address[SP_KVX_ADDRESS_BYTES];
    sp_kv_layout layout;
    sp_part part;
    sp_forward *f;
    sp_kv_port *port;
    sp_link *link, *head; /* a ring, to be woken by */
    uint32_t outcomes[FULL_BLOCKS];
    sp_thread thread;
    sp_status st;
    sp_err err;
} rank;

static int32_t id_at(int32_t seq, int32_t pos, int32_t vocab) {
    return (seq * 101 + pos * 37 + pos * pos * 3 + 11) % vocab;
}

static int32_t block_of(const pod *p, int32_t seq, int32_t k) {
    return (k * N_SEQS + seq) * p->stride % N_BLOCKS;
}

static uint32_t generation_of(int32_t seq, int32_t k) {
    return 1000u + (uint32_t)(seq * 100 + k);
}

static uint64_t name_of(int32_t seq, int32_t k) {
    return UINT64_C(0x9e3779b97f4a7c15) * (uint64_t)(seq * 1000 + k + 1);
}

/* ---- one rank ---- */

static sp_status open_region(rank *r) {
    const pod *p = r->p;
    sp_kvx_config c = {.shape = sp_kv_port_shape(&r->layout, &r->part, N_BLOCKS),
                       .serve_shm = !p->tcp,
                       .serve_tcp = p->tcp,
                       .host = "127.0.0.1"};
    char tcp[40];
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, identity, sizeof c.identity);
    SP_TRY(sp_kvx_region_open(&r->region, &c, &r->err));
    snprintf(tcp, sizeof tcp, "127.0.0.1:%d", sp_kvx_region_port(r->region));
    return sp_kvx_region_address(r->region, tcp, r->address, &r->err);
}

static sp_status open_rank(rank *r) {
    const pod *p = r->p;
    const model *m = p->m;
    sp_forward_config c = {.max_tokens = MAX_TOKENS,
                           .max_rows = MAX_TOKENS,
                           .max_model_len = MAX_LEN,
                           .block_tokens = BLOCK,
                           .n_blocks = N_BLOCKS,
                           .kv_dtype = p->kv_dtype,
                           .tp = r->tp_group,
                           .pp = r->pp_group};
    const sp_dev_config dc = {.backend = "auto", .n_threads = 1};
    SP_TRY(sp_part_of(&c.part, &m->desc, m->arch, p->tp, p->pp, p->pp_layers, r->stage, r->tp_rank,
                      &r->err));
    r->part = c.part;
    r->layout = sp_kv_layout_of(c.part.stage.n_layers, c.part.slice.n_kv_heads, m->desc.head_dim,
                                BLOCK, p->kv_dtype);
    if (p->exports) {
        SP_TRY(open_region(r));
        c.kv_memory = sp_kvx_region_memory(r->region, &c.kv_memory_bytes);
    }
    SP_TRY(sp_dev_open(&r->dev, &dc, &r->err));
    SP_TRY(sp_forward_open(&r->f, &r->dev, m->dir, &m->desc, m->arch, &c, NULL, NULL, &r->err));
    if (p->exports && r->f->kv != c.kv_memory) return SP_E_INTERNAL;
    memset(r->f->kv, 0xff, r->f->kv_bytes);
    return SP_OK;
}

static sp_status open_port(rank *r) {
    const pod *from = r->p->from;
    const char *addresses[RANKS_MAX];
    bool same_node[RANKS_MAX];
    sp_kv_group g = {.cut = {0}, .addresses = addresses, .same_node = same_node};
    int fd;
    SP_TRY(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &r->err));
    SP_TRY(sp_link_open_ring(&r->head, fd, 0, &r->err));
    SP_TRY(sp_link_open_ring(&r->link, fd, 1, &r->err));
    close(fd);
    sp_kv_port_config c = {.region = r->region,
                           .desc = &r->p->m->desc,
                           .arch = r->p->m->arch,
                           .part = r->part,
                           .layout = r->layout,
                           .n_blocks = N_BLOCKS,
                           .kv = r->f->kv,
                           .groups = &g,
                           .n_groups = 1,
                           .link = r->link};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, identity, sizeof c.identity);
    if (from) {
        g.cut = (sp_kv_source){from->tp, from->pp, from->pp_layers};
        for (int32_t i = 0; i < from->tp * from->pp; i++) {
            addresses[i] = from->ranks[i].address;
            same_node[i] = !from->tcp;
        }
    }
    return sp_kv_port_open(&r->port, &c, &r->err);
}

static sp_status seal_all(rank *r) {
    const sp_stage_kvx *k = sp_kv_port_callbacks(r->port);
    for (int32_t i = 0; i < N_SEQS; i++)
        for (int32_t b = 0; b < lengths[i] / BLOCK; b++) {
            sp_wire_kv_block ref = {name_of(i, b), (uint32_t)block_of(r->p, i, b),
                                    generation_of(i, b)};
            SP_TRY(k->seal(k->ctx, &ref, 1, &r->err));
        }
    return SP_OK;
}

static sp_status pull_all(rank *r) {
    const sp_stage_kvx *k = sp_kv_port_callbacks(r->port);
    sp_wire_kv_move moves[FULL_BLOCKS];
    int32_t n = 0;
    for (int32_t i = 0; i < N_SEQS; i++)
        for (int32_t b = 0; b < lengths[i] / BLOCK; b++)
            moves[n++] = (sp_wire_kv_move){.name = name_of(i, b) ^ r->p->other_name,
                                           .src_block = (uint32_t)block_of(r->p->from, i, b),
                                           .generation = generation_of(i, b),
                                           .dst_block = (uint32_t)block_of(r->p, i, b)};
    moves[0].name = name_of(0, 0);
    const sp_wire_kv_pull pull = {.transfer = 77, .lease = 1, .source = 0, .n = n, .moves = moves};
    SP_TRY(k->pull(k->ctx, &pull, &r->err));
    sp_wire_kv_pulled done;
    for (;;) {
        SP_TRY(k->settle(k->ctx, &r->err));
        if (k->poll_done(k->ctx, &done)) break;
        sp_frame f;
        sp_status st = sp_link_recv(r->link, &f, sp_now_ns() + 30 * SP_NS_PER_S, &r->err);
        if (st != SP_AGAIN) return SP_E_INTERNAL;
    }
    if (done.transfer != 77 || done.n != n) return SP_E_INTERNAL;
    memcpy(r->outcomes, done.outcomes, (size_t)n * sizeof *r->outcomes);
    return SP_OK;
}

/* The positions of one sequence that are left, in one step; all its rows' logits. */
static sp_status run_rest(rank *r, int32_t seq) {
    const pod *p = r->p;
    const size_t V = (size_t)p->m->desc.vocab;
    int32_t ids[MAX_TOKENS], rows[MAX_TOKENS], blocks[MAX_LEN / BLOCK];
    const int32_t first = p->from ? lengths[seq] / BLOCK * BLOCK : 0, n = lengths[seq] - first;
    for (int32_t k = 0; k < MAX_LEN / BLOCK; k++) blocks[k] = block_of(p, seq, k);
    for (int32_t i = 0; i < n; i++) {
        ids[i] = id_at(seq, first + i, (int32_t)V);
        rows[i] = i;
    }
    const sp_seq_rows s = {0, n, first, blocks};
    const sp_batch b = {ids, n, &s, 1, rows, n};
    const float *logits = NULL;
    SP_TRY(sp_forward_run(r->f, &b, &logits, &r->err));
    const int32_t before = seq ? lengths[0] : 0;
    if (logits)
        memcpy(p->out + (size_t)(before + first) * V, logits, (size_t)n * V * sizeof *logits);
    return SP_OK;
}

static void *rank_main(void *arg) {
    rank *r = arg;
    r->st = open_rank(r);
    if (r->st == SP_OK) r->st = open_port(r);
    if (r->st == SP_OK && r->p->from) r->st = pull_all(r);
    for (int32_t i = 0; r->st == SP_OK && i < N_SEQS; i++) r->st = run_rest(r, i);
    if (r->st == SP_OK && r->p->exports) r->st = seal_all(r);
    if (r->st != SP_OK && r->tp_group) r->tp_group->ops->abort(r->tp_group);
    if (r->st != SP_OK && r->pp_group) r->pp_group->ops->abort(r->pp_group);
    return NULL;
}

/* ---- a group of ranks ---- */

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

static void run_pod(pod *p) {
    const int32_t n = p->tp * p->pp;
    const size_t floats = (size_t)ALL_TOKENS * (size_t)p->m->desc.vocab;
    sp_group *members[RANKS_MAX];
    p->out = sp_alloc(floats * sizeof(float));
    for (size_t i = 0; i < floats; i++) p->out[i] = NAN;
    p->ranks = sp_alloc((size_t)n * sizeof *p->ranks);
    for (int32_t i = 0; i < n; i++)
        p->ranks[i] = (rank){.p = p, .stage = i / p->tp, .tp_rank = i % p->tp};
    for (int32_t s = 0; p->tp > 1 && s < p->pp; s++) {
        open_members(members, p->tp);
        for (int32_t i = 0; i < p->tp; i++) p->ranks[s * p->tp + i].tp_group = members[i];
    }
    for (int32_t i = 0; p->pp > 1 && i < p->tp; i++) {
        open_members(members, p->pp);
        for (int32_t s = 0; s < p->pp; s++) p->ranks[s * p->tp + i].pp_group = members[s];
    }
    sp_err err = {0};
    for (int32_t i = 0; i < n; i++)
        must(sp_thread_start(&p->ranks[i].thread, "rank", rank_main, &p->ranks[i], &err), &err);
    for (int32_t i = 0; i < n; i++) sp_thread_join(&p->ranks[i].thread);
    for (int32_t i = 0; i < n; i++) must(p->ranks[i].st, &p->ranks[i].err);
}

static void end_pod(pod *p) {
    for (int32_t i = 0; i < p->tp * p->pp; i++) {
        rank *r = &p->ranks[i];
        sp_kv_port_close(r->port);
        if (r->link) sp_link_close(r->link);
        if (r->head) sp_link_close(r->head);
        sp_forward_close(r->f);
        if (r->dev.ops) sp_dev_close(&r->dev);
        sp_kvx_region_close(r->region);
        if (r->tp_group) r->tp_group->ops->close(r->tp_group);
        if (r->pp_group) r->pp_group->ops->close(r->pp_group);
    }
    sp_free(p->ranks);
    sp_free(p->out);
}

/* Whether what `got` computed has the bytes of `want`; what it pulled has no logits. */
static bool same_tail(const pod *got, const float *want) {
    const size_t V = (size_t)got->m->desc.vocab;
    int32_t before = 0;
    for (int32_t i = 0; i < N_SEQS; before += lengths[i++]) {
        const int32_t first = lengths[i] / BLOCK * BLOCK;
        const size_t at = (size_t)(before + first) * V;
        if (!isnan(got->out[at - 1])) return false;
        if (memcmp(got->out + at, want + at, (size_t)(lengths[i] - first) * V * sizeof *want) != 0)
            return false;
    }
    return true;
}

static void expect_all_ok(const pod *p) {
    for (int32_t i = 0; i < p->tp * p->pp; i++)
        for (int32_t b = 0; b < FULL_BLOCKS; b++)
            CU_ASSERT_EQUAL(p->ranks[i].outcomes[b], SP_KVX_OK);
}

/* ---- tests ---- */

static void open_model(model *m, const char *dir) {
    sp_err err = {0};
    *m = (model){0};
    must(sp_model_desc_load(&m->desc, dir, &err), &err);
    must(sp_arch_find(&m->arch, &m->desc, &err), &err);
    must(sp_model_dir_open(&m->dir, dir, &err), &err);
}

static const int32_t shapes[6][2] = {{1, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}, {4, 2}};

#ifdef SP_DEBUG
#define FEW true /* sanitizers look for other things */
#else
#define FEW false
#endif

static void all_pairs(const char *dir, sp_dtype kv_dtype, bool tcp) {
    model m;
    open_model(&m, dir);
    const int32_t uneven_a[2] = {1, m.desc.n_layers - 1}, uneven_b[2] = {m.desc.n_layers - 1, 1};
    pod alone = {.m = &m, .tp = 1, .pp = 1, .kv_dtype = kv_dtype, .stride = 1};
    run_pod(&alone);
    CU_ASSERT(isfinite(alone.out[0]));
    for (int a = 0; a < 6; a++) {
        pod p = {.m = &m,
                 .tp = shapes[a][0],
                 .pp = shapes[a][1],
                 .pp_layers = shapes[a][1] > 1 && a % 2 ? uneven_a : NULL,
                 .kv_dtype = kv_dtype,
                 .exports = true,
                 .tcp = tcp,
                 .stride = 3};
        if (FEW && a != 1 && a != 5) continue;
        run_pod(&p);
        for (int b = 0; b < 6; b++) {
            pod d = {.m = &m,
                     .tp = shapes[b][0],
                     .pp = shapes[b][1],
                     .pp_layers = shapes[b][1] > 1 && b % 2 == 0 ? uneven_b : NULL,
                     .kv_dtype = kv_dtype,
                     .from = &p,
                     .stride = 5};
            if (FEW && b != 0 && b != 4) continue;
            run_pod(&d);
            expect_all_ok(&d);
            const bool same = same_tail(&d, alone.out);
            if (!same) fprintf(stderr, "other bytes: %dx%d from %dx%d\n", d.tp, d.pp, p.tp, p.pp);
            CU_ASSERT(same);
            end_pod(&d);
        }
        end_pod(&p);
    }
    end_pod(&alone);
    sp_model_dir_close(m.dir);
}

static void any_shape_goes_on_from_the_blocks_of_any_other_to_the_same_bits(void) {
    sp_tiny t = sp_tiny_default();
    t.n_heads = 8;
    t.n_kv_heads = 4;
    t.n_layers = 5;
    char *dir = sp_tiny_create(&t);
    all_pairs(dir, SP_DTYPE_F32, false);
    all_pairs(dir, SP_DTYPE_BF16, true);
    sp_tiny_remove(dir);
}

static void shared_kv_heads_are_taken_from_one_of_their_ranks(void) {
    sp_tiny t = sp_tiny_default();
    t.n_heads = 8;
    t.n_kv_heads = 2;
    t.n_layers = 3;
    char *dir = sp_tiny_create(&t);
    all_pairs(dir, SP_DTYPE_F16, false);
    sp_tiny_remove(dir);
}

/* One source rank of several has freed, spoilt or lost what it had: only those blocks are bad. */
static void a_block_is_only_good_when_every_piece_of_it_was(void) {
    model m;
    sp_err err = {0};
    sp_tiny t = sp_tiny_default();
    t.n_heads = 8;
    t.n_kv_heads = 4;
    t.n_layers = 5;
    char *dir = sp_tiny_create(&t);
    open_model(&m, dir);
    pod p = {.m = &m, .tp = 2, .pp = 2, .kv_dtype = SP_DTYPE_F32, .exports = true, .stride = 3};
    run_pod(&p);
    must(sp_kvx_free(p.ranks[3].region, (uint32_t)block_of(&p, 0, 1), generation_of(0, 1), &err),
         &err);
    p.ranks[1].f->kv[(size_t)block_of(&p, 1, 2) * p.ranks[1].f->block_bytes + 5] ^= 1;
    pod d = {.m = &m, .tp = 1, .pp = 1, .kv_dtype = SP_DTYPE_F32, .from = &p, .stride = 5};
    run_pod(&d);
    for (int32_t b = 0; b < FULL_BLOCKS; b++)
        CU_ASSERT_EQUAL(d.ranks[0].outcomes[b], b == 1                        ? SP_KVX_STALE
                                                : b == lengths[0] / BLOCK + 2 ? SP_KVX_CHECKSUM
                                                                              : SP_KVX_OK);
    end_pod(&d);
    pod other = {.m = &m,
                 .tp = 1,
                 .pp = 1,
                 .kv_dtype = SP_DTYPE_F32,
                 .from = &p,
                 .other_name = 1,
                 .stride = 5};
    run_pod(&other);
    for (int32_t b = 0; b < FULL_BLOCKS; b++)
        CU_ASSERT_EQUAL(other.ranks[0].outcomes[b], b == 0 ? SP_KVX_OK : SP_KVX_FOREIGN);
    end_pod(&other);
    sp_kvx_region_close(p.ranks[2].region);
    p.ranks[2].region = NULL;
    pod late = {.m = &m, .tp = 2, .pp = 1, .kv_dtype = SP_DTYPE_F32, .from = &p, .stride = 5};
    run_pod(&late);
    for (int32_t b = 0; b < FULL_BLOCKS; b++) {
        const bool spoilt = b == lengths[0] / BLOCK + 2;
        CU_ASSERT_EQUAL(late.ranks[0].outcomes[b], SP_KVX_PEER);
        CU_ASSERT_EQUAL(late.ranks[1].outcomes[b], b == 1   ? SP_KVX_STALE
                                                   : spoilt ? SP_KVX_CHECKSUM
                                                            : SP_KVX_OK);
    }
    end_pod(&late);
    end_pod(&p);
    sp_model_dir_close(m.dir);
    sp_tiny_remove(dir);
}

static void what_was_not_configured_is_refused(void) {
    sp_err err = {0};
    sp_kv_port *p = NULL;
    sp_kv_port_config c = {.layout = sp_kv_layout_of(2, 2, 8, BLOCK, SP_DTYPE_F32), .n_blocks = 4};
    must(sp_kv_port_open(&p, &c, &err), &err);
    const sp_stage_kvx *k = sp_kv_port_callbacks(p);
    const sp_wire_kv_block ref = {.block = 1, .generation = 2};
    const sp_wire_kv_move move = {.src_block = 1, .generation = 2, .dst_block = 3};
    const sp_wire_kv_pull pull = {.transfer = 1, .lease = 1, .n = 1, .moves = &move};
    const sp_wire_kv_leave leave = {.lease = 1, .source = SP_KV_SOURCE_FIRST};
    sp_stage_kv_note note;
    sp_wire_kv_pulled done;
    CU_ASSERT_EQUAL(k->seal(k->ctx, &ref, 1, &err), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(k->free_blocks(k->ctx, &ref, 1, &err), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(k->pull(k->ctx, &pull, &err), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(k->source(k->ctx, SP_KV_SOURCE_FIRST, SP_SLICE("x"), &err), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(k->leave(k->ctx, &leave, &err), SP_OK); /* the lease ends by itself */
    CU_ASSERT_EQUAL(sp_kv_port_failed_notices(p), 1);
    CU_ASSERT(!k->poll_note(k->ctx, &note));
    CU_ASSERT_EQUAL(k->settle(k->ctx, &err), SP_OK);
    CU_ASSERT(!k->poll_done(k->ctx, &done));
    sp_kv_port_close(p);
}

SP_TEST_MAIN("runtime/engine/kv_port",
             SP_TEST(any_shape_goes_on_from_the_blocks_of_any_other_to_the_same_bits),
             SP_TEST(shared_kv_heads_are_taken_from_one_of_their_ranks),
             SP_TEST(a_block_is_only_good_when_every_piece_of_it_was),
             SP_TEST(what_was_not_configured_is_refused))
