/* Covers runtime/engine/kv_mirror.c and what of kv_port.c, stage_kv.c and stage.c leads to it, on the
 * emulated device: what is sealed and pulled has the device's bytes, what is not proven never gets
 * there, and a copy that fails ends the rank by its name. */
#include "runtime/engine/kv_mirror.h"

#include "kernels/cuda/emu/emu.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "runtime/engine/kv_port.h"
#include "runtime/engine/null_model.h"
#include "runtime/engine/stage.h"
#include "tests/fake_rank.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const sp_dev_plugin *superpod_device_plugin(int abi);

#define BLOCK 16
#define N_BLOCKS 12

static const uint8_t key[SP_KVX_KEY_BYTES] = "pod", identity[SP_KVX_IDENTITY_BYTES] = "a model";

/* Kernels run as fibres, of which the thread sanitizer knows nothing. Copies do not. */
#if defined(__SANITIZE_THREAD__)
#define NEEDS_FIBRES() SP_SKIP("fibres under the thread sanitizer")
#else
#define NEEDS_FIBRES() (void)0
#endif

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

static void fresh(cu_emu_pace pace) {
    cu_emu_config c;
    cu_emu_get_config(&c);
    c.pace = pace;
    c.seed = 5;
    c.memory_bytes = (size_t)64 << 20;
    c.protect = 1;
    c.quiet = 1;
    cu_emu_configure(&c);
    cu_emu_reset();
}

/* ---- blocks on a device, and their place on the host ---- */

typedef struct side {
    sp_dev_ops ops; /* of the device, or with less */
    sp_dev dev;
    size_t block_bytes, bytes;
    unsigned char *there, *here; /* here: the test's, or a region's */
    sp_kv_mirror *mirror;
} side;

static unsigned char byte_of(size_t i, int seed) {
    return (unsigned char)(i * 31 + (i >> 9) + (size_t)seed);
}

static void fill(side *s, int seed) {
    unsigned char *p = malloc(s->bytes);
    for (size_t i = 0; i < s->bytes; i++) p[i] = byte_of(i, seed);
    s->dev.ops->upload(&s->dev, s->there, p, s->bytes);
    free(p);
}

static void open_device(side *s, size_t block_bytes, bool locks) {
    sp_err err = {0};
    *s = (side){.ops = *superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops, .block_bytes = block_bytes};
    if (!locks) s->ops.host_pin = NULL;
    s->dev.ops = &s->ops;
    s->bytes = N_BLOCKS * block_bytes;
    const sp_dev_config dc = {.backend = "emu"};
    must(s->ops.open(&s->dev, &dc, &err), &err);
    s->there = s->ops.alloc(&s->dev, s->bytes);
    CU_ASSERT_PTR_NOT_NULL_FATAL(s->there);
}

static void open_mirror(side *s) {
    sp_err err = {0};
    const sp_kv_mirror_config mc = {.dev = &s->dev,
                                    .there = s->there,
                                    .here = s->here,
                                    .here_bytes = s->bytes,
                                    .block_bytes = s->block_bytes,
                                    .n_blocks = N_BLOCKS};
    must(sp_kv_mirror_open(&s->mirror, &mc, &err), &err);
    CU_ASSERT_EQUAL(sp_kv_mirror_is_locked(s->mirror), s->ops.host_pin != NULL);
}

static void open_side(side *s, size_t block_bytes, bool locks) {
    open_device(s, block_bytes, locks);
    CU_ASSERT_EQUAL_FATAL(posix_memalign((void **)&s->here, 4096, s->bytes), 0);
    memset(s->here, 0x11, s->bytes);
    open_mirror(s);
}

static void close_device(side *s) {
    sp_kv_mirror_close(s->mirror);
    s->ops.free(&s->dev, s->there, s->bytes);
    sp_dev_close(&s->dev);
}

static void close_side(side *s) {
    close_device(s);
    /* Nothing of it is locked any more. */
    CU_ASSERT_EQUAL(cudaHostRegister(s->here, s->bytes, cudaHostRegisterDefault), cudaSuccess);
    CU_ASSERT_EQUAL(cudaHostUnregister(s->here), cudaSuccess);
    free(s->here);
}

/* Owner: caller, free(). */
static unsigned char *read_back(side *s) {
    sp_err err = {0};
    unsigned char *pinned = s->ops.host_alloc(&s->dev, s->bytes), *p = malloc(s->bytes);
    s->ops.download(&s->dev, pinned, s->there, s->bytes);
    must(s->ops.poll(&s->dev, s->ops.submit(&s->dev), SP_NEVER, &err), &err);
    memcpy(p, pinned, s->bytes);
    s->ops.host_free(&s->dev, pinned, s->bytes);
    return p;
}

static bool is_filled(const unsigned char *p, const side *s, uint32_t block, int seed) {
    const size_t first = block * s->block_bytes;
    for (size_t i = first; i < first + s->block_bytes; i++)
        if (p[i] != byte_of(i, seed)) return false;
    return true;
}
static bool is_all(const unsigned char *p, const side *s, uint32_t block, int byte) {
    const size_t first = block * s->block_bytes;
    for (size_t i = first; i < first + s->block_bytes; i++)
        if (p[i] != byte) return false;
    return true;
}

/* Neighbours upwards, downwards, alone, twice; the first and the last. */
static const uint32_t wanted[] = {5, 6, 7, 3, 2, 9, 9, 0, 11};
static bool is_wanted(uint32_t block) {
    for (size_t i = 0; i < SP_LEN(wanted); i++)
        if (wanted[i] == block) return true;
    return false;
}

static const cu_emu_pace paces[] = {CU_EMU_EAGER, CU_EMU_LAZY, CU_EMU_MIXED};

/* What was queued before and has not happened yet counts too: nobody waits for a step to end. */
static void a_block_that_is_saved_has_the_bytes_that_the_step_before_wrote(void) {
    for (int k = 0; k < 2 * (int)SP_LEN(paces); k++) {
        side s;
        sp_err err = {0};
        fresh(paces[k / 2]);
        open_side(&s, 2304, k % 2 == 0);
        fill(&s, 1);
        must(s.ops.poll(&s.dev, s.ops.submit(&s.dev), SP_NEVER, &err), &err);
        fill(&s, 2);
        (void)s.ops.submit(&s.dev);
        for (size_t i = 0; i < SP_LEN(wanted); i++) sp_kv_mirror_save(s.mirror, wanted[i]);
        must(sp_kv_mirror_settle(s.mirror, &err), &err);
        for (uint32_t b = 0; b < N_BLOCKS; b++)
            CU_ASSERT(is_wanted(b) ? is_filled(s.here, &s, b, 2) : is_all(s.here, &s, b, 0x11));
        close_side(&s);
    }
}

static void a_block_that_is_loaded_is_there_for_the_step_after_and_no_other_is(void) {
    for (int k = 0; k < 2 * (int)SP_LEN(paces); k++) {
        side s;
        sp_err err = {0};
        fresh(paces[k / 2]);
        open_side(&s, 2304, k % 2 == 0);
        fill(&s, 3);
        for (size_t i = 0; i < SP_LEN(wanted); i++) sp_kv_mirror_load(s.mirror, wanted[i]);
        must(sp_kv_mirror_settle(s.mirror, &err), &err);
        memset(s.here, 0x22, s.bytes); /* may be: it is not read any more */
        unsigned char *p = read_back(&s);
        for (uint32_t b = 0; b < N_BLOCKS; b++)
            CU_ASSERT(is_wanted(b) ? is_all(p, &s, b, 0x11) : is_filled(p, &s, b, 3));
        free(p);
        close_side(&s);
    }
}

static void both_ways_follow_one_another_in_the_order_of_the_calls(void) {
    for (int locks = 0; locks < 2; locks++) {
        side s;
        sp_err err = {0};
        fresh(CU_EMU_LAZY);
        open_side(&s, 4096, locks);
        fill(&s, 4);
        sp_kv_mirror_save(s.mirror, 1);
        sp_kv_mirror_load(s.mirror, 2); /* a neighbour, the other way */
        sp_kv_mirror_save(s.mirror, 3);
        must(sp_kv_mirror_settle(s.mirror, &err), &err);
        must(sp_kv_mirror_settle(s.mirror, &err), &err); /* nothing is open */
        unsigned char *p = read_back(&s);
        CU_ASSERT(is_filled(s.here, &s, 1, 4) && is_filled(s.here, &s, 3, 4));
        CU_ASSERT(is_all(s.here, &s, 2, 0x11) && is_all(p, &s, 2, 0x11));
        CU_ASSERT(is_filled(p, &s, 1, 4) && is_filled(p, &s, 3, 4));
        free(p);
        close_side(&s);
    }
}

static void blocks_larger_than_the_buffer_arrive_whole(void) {
    side s;
    sp_err err = {0};
    fresh(CU_EMU_EAGER);
    open_side(&s, 3 * SP_KV_MIRROR_BOUNCE / 4 + 64, false);
    fill(&s, 5);
    for (uint32_t b = 2; b < 6; b++) sp_kv_mirror_save(s.mirror, b);
    must(sp_kv_mirror_settle(s.mirror, &err), &err);
    for (uint32_t b = 1; b < 7; b++)
        CU_ASSERT(b > 1 && b < 6 ? is_filled(s.here, &s, b, 5) : is_all(s.here, &s, b, 0x11));
    close_side(&s);
}

static void too_little_memory_of_the_host_is_refused(void) {
    side s;
    sp_err err = {0};
    sp_kv_mirror *m = NULL;
    fresh(CU_EMU_EAGER);
    open_side(&s, 4096, true);
    const sp_kv_mirror_config mc = {.dev = &s.dev,
                                    .there = s.there,
                                    .here = s.here,
                                    .here_bytes = s.bytes - 1,
                                    .block_bytes = s.block_bytes,
                                    .n_blocks = N_BLOCKS};
    CU_ASSERT_EQUAL(sp_kv_mirror_open(&m, &mc, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NULL(m);
    close_side(&s);
}

/* ---- two ranks ---- */

typedef struct model {
    sp_model_desc desc;
    const sp_arch *arch;
    sp_part part;
    sp_kv_layout layout;
} model;

typedef struct rank {
    side s;
    sp_kvx_region *region;
    char address[SP_KVX_ADDRESS_BYTES];
    sp_link *head, *link;
    sp_kv_port *port;
    const sp_stage_kvx *k;
} rank;

static void open_model(model *m) {
    sp_err err = {0};
    must(sp_model_desc_load(&m->desc, "configs/podling", &err), &err);
    must(sp_arch_find(&m->arch, &m->desc, &err), &err);
    must(sp_part_of(&m->part, &m->desc, m->arch, 1, 1, NULL, 0, 0, &err), &err);
    m->layout = sp_kv_layout_of(m->part.stage.n_layers, m->part.slice.n_kv_heads, m->desc.head_dim,
                                BLOCK, SP_DTYPE_BF16);
}

static void open_region(rank *r, const model *m) {
    sp_err err = {0};
    size_t bytes;
    sp_kvx_config c = {.shape = sp_kv_port_shape(&m->layout, &m->part, N_BLOCKS),
                       .serve_shm = true};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, identity, sizeof c.identity);
    must(sp_kvx_region_open(&r->region, &c, &err), &err);
    must(sp_kvx_region_address(r->region, "", r->address, &err), &err);
    r->s.here = sp_kvx_region_memory(r->region, &bytes);
    CU_ASSERT(bytes >= r->s.bytes);
}

/* `from` NULL: pulls from nobody. */
static void open_rank(rank *r, const model *m, const rank *from, bool locks) {
    sp_err err = {0};
    int fd;
    *r = (rank){0};
    open_device(&r->s, m->layout.block_bytes, locks);
    open_region(r, m);
    open_mirror(&r->s);
    must(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), &err);
    must(sp_link_open_ring(&r->head, fd, 0, &err), &err);
    must(sp_link_open_ring(&r->link, fd, 1, &err), &err);
    close(fd);
    const char *address = from ? from->address : NULL;
    const bool near = true;
    const sp_kv_group group = {.cut = {1, 1, NULL}, .addresses = &address, .same_node = &near};
    sp_kv_port_config c = {.region = r->region,
                           .desc = &m->desc,
                           .arch = m->arch,
                           .part = m->part,
                           .layout = m->layout,
                           .n_blocks = N_BLOCKS,
                           .kv = r->s.here,
                           .groups = &group,
                           .n_groups = from ? 1 : 0,
                           .link = r->link};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, identity, sizeof c.identity);
    must(sp_kv_port_open(&r->port, &c, &err), &err);
    sp_kv_port_set_mirror(r->port, r->s.mirror);
    r->k = sp_kv_port_callbacks(r->port);
}

static void close_rank(rank *r) {
    sp_kv_port_close(r->port);
    close_device(&r->s);
    sp_kvx_region_close(r->region);
    sp_link_close(r->link);
    sp_link_close(r->head);
}

#define MOVES 4
static const uint32_t from_block[MOVES] = {3, 4, 8, 1}, to_block[MOVES] = {6, 7, 2, 10};

static void blocks_to_seal(sp_wire_kv_block out[MOVES]) {
    for (uint32_t i = 0; i < MOVES; i++)
        out[i] = (sp_wire_kv_block){.name = 90 + i, .block = from_block[i], .generation = 50 + i};
}
static sp_wire_kv_pull pull_of(sp_wire_kv_move moves[MOVES]) {
    for (uint32_t i = 0; i < MOVES; i++)
        moves[i] = (sp_wire_kv_move){.name = 90 + i,
                                     .src_block = from_block[i],
                                     .generation = 50 + i,
                                     .dst_block = to_block[i]};
    return (sp_wire_kv_pull){.transfer = 7, .lease = 1, .source = 0, .n = MOVES, .moves = moves};
}

static void seal_some(rank *r) {
    sp_err err = {0};
    sp_wire_kv_block blocks[MOVES];
    blocks_to_seal(blocks);
    must(r->k->seal(r->k->ctx, blocks, MOVES, &err), &err);
}

static void pull_some(rank *r, uint32_t outcomes[MOVES]) {
    sp_err err = {0};
    sp_frame f;
    sp_wire_kv_move moves[MOVES];
    sp_wire_kv_pulled done;
    const sp_wire_kv_pull pull = pull_of(moves);
    must(r->k->pull(r->k->ctx, &pull, &err), &err);
    for (;;) {
        must(r->k->settle(r->k->ctx, &err), &err);
        if (r->k->poll_done(r->k->ctx, &done)) break;
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(r->link, &f, sp_now_ns() + 30 * SP_NS_PER_S, &err),
                              SP_AGAIN);
    }
    CU_ASSERT_FATAL(done.transfer == 7 && done.n == MOVES);
    memcpy(outcomes, done.outcomes, MOVES * sizeof *outcomes);
}

/* Keys and values; what is behind them in a block does not travel. */
static bool same_block(const unsigned char *a, uint32_t i, const unsigned char *b, uint32_t j,
                       const sp_kv_layout *l) {
    return memcmp(a + i * l->block_bytes, b + j * l->block_bytes, l->trailer_offset) == 0;
}

static void what_one_device_sealed_is_what_the_other_pulled(void) {
    model m;
    open_model(&m);
    for (int k = 0; k < 4; k++) {
        rank a, b;
        uint32_t outcomes[MOVES];
        fresh(k / 2 ? CU_EMU_LAZY : CU_EMU_MIXED);
        open_rank(&a, &m, NULL, k % 2);
        open_rank(&b, &m, &a, k % 2);
        fill(&a.s, 6);
        fill(&b.s, 7);
        seal_some(&a);
        for (int i = 0; i < MOVES; i++) CU_ASSERT(is_filled(a.s.here, &a.s, from_block[i], 6));
        fill(&a.s, 8); /* goes on working: what was sealed is what counts */
        pull_some(&b, outcomes);
        unsigned char *p = read_back(&b.s);
        bool is_new[N_BLOCKS] = {false};
        for (int i = 0; i < MOVES; i++) {
            CU_ASSERT_EQUAL(outcomes[i], SP_KVX_OK);
            is_new[to_block[i]] = true;
            CU_ASSERT(same_block(p, to_block[i], a.s.here, from_block[i], &m.layout));
        }
        for (uint32_t i = 0; i < N_BLOCKS; i++) CU_ASSERT(is_new[i] || is_filled(p, &b.s, i, 7));
        free(p);
        close_rank(&b);
        close_rank(&a);
    }
}

static void what_is_not_proven_never_reaches_the_device(void) {
    model m;
    rank a, b;
    sp_err err = {0};
    uint32_t outcomes[MOVES];
    open_model(&m);
    fresh(CU_EMU_LAZY);
    open_rank(&a, &m, NULL, true);
    open_rank(&b, &m, &a, true);
    fill(&a.s, 6);
    fill(&b.s, 7);
    seal_some(&a);
    a.s.here[from_block[1] * a.s.block_bytes + a.s.block_bytes / 2] ^= 4;
    must(sp_kvx_free(a.region, from_block[2], 52, &err), &err);
    pull_some(&b, outcomes);
    CU_ASSERT(outcomes[0] == SP_KVX_OK && outcomes[1] == SP_KVX_CHECKSUM);
    CU_ASSERT(outcomes[2] == SP_KVX_STALE && outcomes[3] == SP_KVX_OK);
    unsigned char *p = read_back(&b.s);
    for (int i = 0; i < MOVES; i++)
        CU_ASSERT(outcomes[i] == SP_KVX_OK
                      ? same_block(p, to_block[i], a.s.here, from_block[i], &m.layout)
                      : is_filled(p, &b.s, to_block[i], 7));
    free(p);
    close_rank(&b);
    close_rank(&a);
}

/* ---- a device that fails ---- */

/* A kernel on the stream, of which the host hears at the next copy. */
static void break_device(side *s) {
    const sp_mat x = {s->there, 1, 16, 16, SP_DTYPE_F32},
                 y = {s->there + 64, 1, 16, 16, SP_DTYPE_F32};
    cu_emu_fail_launch(1, cudaErrorIllegalAddress);
    s->ops.add(&s->dev, x, y, NULL);
}

typedef struct bench {
    sp_stage *stage;
    sp_null_model *null;
    sp_thread thread;
    sp_status ended;
} bench;

static void *run(void *arg) {
    bench *b = arg;
    sp_err err = {0};
    b->ended = sp_stage_run(b->stage, &err);
    return NULL;
}

static void start(bench *b, rank *r) {
    sp_err err = {0};
    sp_frame f;
    const sp_null_model_config nc = {
        .n_vocab = 61, .n_blocks = N_BLOCKS, .block_tokens = BLOCK, .max_step_rows = 64};
    *b = (bench){.ended = SP_OK};
    must(sp_null_model_create(&b->null, &nc, &err), &err);
    const sp_stage_model sm = sp_null_model_callbacks(b->null);
    const sp_stage_config sc = {.offer = sp_fake_offer(61, N_BLOCKS, BLOCK),
                                .role = {.embeds = true, .samples = true},
                                .kvx = r->k};
    must(sp_stage_create(&b->stage, &sc, r->link, &sm, &err), &err);
    must(sp_thread_start(&b->thread, "rank", run, b, &err), &err);
    must(sp_link_recv(r->head, &f, sp_now_ns() + 10 * SP_NS_PER_S, &err), &err);
    CU_ASSERT_EQUAL(f.type, SP_FRAME_READY);
}

/* The rank's last words name the device, and nothing was answered before. */
static void expect_fault(bench *b, rank *r) {
    sp_err err = {0};
    sp_frame f;
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    do must(sp_link_recv(r->head, &f, sp_now_ns() + 10 * SP_NS_PER_S, &err), &err);
    while (f.type == SP_FRAME_KV_RENEW);
    CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_FAULT);
    must(sp_wire_fault_decode(f.payload, f.length, &reason, text, &err), &err);
    CU_ASSERT_EQUAL(reason, SP_FAULT_DEVICE);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "cudaErrorIllegalAddress"));
    sp_thread_join(&b->thread);
    CU_ASSERT_EQUAL(b->ended, SP_E_DEVICE);
    sp_stage_destroy(b->stage);
    sp_null_model_destroy(b->null);
}

static void a_seal_whose_copy_fails_is_not_answered_and_ends_the_rank_by_a_fault(void) {
    NEEDS_FIBRES();
    model m;
    open_model(&m);
    for (int locks = 0; locks < 2; locks++) {
        rank a;
        bench b;
        sp_err err = {0};
        sp_wire_kv_block blocks[MOVES];
        sp_wire_kv_head head;
        sp_piece pieces[2];
        fresh(CU_EMU_LAZY);
        open_rank(&a, &m, NULL, locks);
        start(&b, &a);
        break_device(&a.s);
        blocks_to_seal(blocks);
        const sp_wire_kv_list list = {9, MOVES, blocks};
        const int n = sp_wire_kv_list_pieces(&list, &head, pieces);
        must(sp_link_send(a.head, SP_FRAME_KV_SEAL, pieces, n, SP_NEVER, &err), &err);
        expect_fault(&b, &a);
        close_rank(&a);
    }
}

static void a_pull_whose_copy_fails_is_not_told_and_ends_the_rank_by_a_fault(void) {
    NEEDS_FIBRES();
    model m;
    rank a, b;
    bench stage;
    sp_err err = {0};
    sp_wire_kv_move moves[MOVES];
    sp_wire_kv_pull_head head;
    sp_piece pieces[2];
    open_model(&m);
    fresh(CU_EMU_LAZY);
    open_rank(&a, &m, NULL, true);
    open_rank(&b, &m, &a, true);
    fill(&a.s, 6);
    seal_some(&a);
    start(&stage, &b);
    break_device(&b.s);
    const sp_wire_kv_pull pull = pull_of(moves);
    const int n = sp_wire_kv_pull_pieces(&pull, &head, pieces);
    must(sp_link_send(b.head, SP_FRAME_KV_PULL, pieces, n, SP_NEVER, &err), &err);
    expect_fault(&stage, &b);
    close_rank(&b);
    close_rank(&a);
}

SP_TEST_MAIN("runtime/engine/kv_mirror on the emulated device",
             SP_TEST(a_block_that_is_saved_has_the_bytes_that_the_step_before_wrote),
             SP_TEST(a_block_that_is_loaded_is_there_for_the_step_after_and_no_other_is),
             SP_TEST(both_ways_follow_one_another_in_the_order_of_the_calls),
             SP_TEST(blocks_larger_than_the_buffer_arrive_whole),
             SP_TEST(too_little_memory_of_the_host_is_refused),
             SP_TEST(what_one_device_sealed_is_what_the_other_pulled),
             SP_TEST(what_is_not_proven_never_reaches_the_device),
             SP_TEST(a_seal_whose_copy_fails_is_not_answered_and_ends_the_rank_by_a_fault),
             SP_TEST(a_pull_whose_copy_fails_is_not_told_and_ends_the_rank_by_a_fault))
