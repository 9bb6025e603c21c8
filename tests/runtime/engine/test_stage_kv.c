/* Covers runtime/engine/stage_kv.c, and what of runtime/engine/stage.c leads to it. */
#include "runtime/engine/stage_kv.h"

#include "runtime/base/clock.h"
#include "runtime/base/thread.h"
#include "runtime/engine/null_model.h"
#include "runtime/engine/stage.h"
#include "tests/fake_rank.h"
#include "tests/harness.h"

#include <string.h>
#include <unistd.h>

#define BLOCKS 32

typedef struct fake { /* what the callbacks saw, and what they are to give */
    sp_link *rank;
    sp_wire_kv_block seen[8];
    int32_t n_seals, n_frees, n_pulls, n_sources, n_leaves, n_seen;
    sp_wire_kv_move move;
    uint64_t transfer, lease;
    uint32_t source;
    char text[64];
    size_t text_bytes;
    sp_wire_kv_leave left;
    sp_status gives, settles;
    int32_t n_settles;
    pthread_mutex_t lock; /* of what is to be told: a test's thread says so */
    sp_stage_kv_note notes[4];
    uint64_t done[4];
    int n_notes, n_done;
    uint32_t outcomes[3];
} fake;

static sp_status seal(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err) {
    fake *f = ctx;
    f->n_seals++;
    f->n_seen = n;
    memcpy(f->seen, blocks, (size_t)n * sizeof *blocks);
    return f->gives ? SP_FAIL(err, f->gives, "as the test wants") : SP_OK;
}
static sp_status free_blocks(void *ctx, const sp_wire_kv_block *blocks, int32_t n, sp_err *err) {
    fake *f = ctx;
    (void)err;
    f->n_frees++;
    f->n_seen = n;
    memcpy(f->seen, blocks, (size_t)n * sizeof *blocks);
    return SP_OK;
}
static sp_status pull(void *ctx, const sp_wire_kv_pull *p, sp_err *err) {
    fake *f = ctx;
    (void)err;
    f->n_pulls++;
    f->move = p->moves[p->n - 1];
    f->transfer = p->transfer;
    f->source = p->source;
    f->lease = p->lease;
    return SP_OK;
}
static sp_status source(void *ctx, uint32_t number, sp_slice text, sp_err *err) {
    fake *f = ctx;
    (void)err;
    f->n_sources++;
    f->source = number;
    f->text_bytes = text.len;
    if (text.len && text.len <= sizeof f->text) memcpy(f->text, text.ptr, text.len);
    return SP_OK;
}
static sp_status leave(void *ctx, const sp_wire_kv_leave *w, sp_err *err) {
    fake *f = ctx;
    (void)err;
    f->n_leaves++;
    f->left = *w;
    return SP_OK;
}
static bool poll_note(void *ctx, sp_stage_kv_note *out) {
    fake *f = ctx;
    pthread_mutex_lock(&f->lock);
    const bool is = f->n_notes > 0;
    if (is) *out = f->notes[--f->n_notes];
    pthread_mutex_unlock(&f->lock);
    return is;
}
static bool poll_done(void *ctx, sp_wire_kv_pulled *out) {
    fake *f = ctx;
    pthread_mutex_lock(&f->lock);
    const bool is = f->n_done > 0;
    if (is) *out = (sp_wire_kv_pulled){f->done[--f->n_done], 3, f->outcomes};
    pthread_mutex_unlock(&f->lock);
    return is;
}

static sp_status settle(void *ctx, sp_err *err) {
    fake *f = ctx;
    f->n_settles++;
    return f->settles ? SP_FAIL(err, f->settles, "the copies went wrong") : SP_OK;
}

typedef struct bench {
    sp_link *head, *rank;
    sp_null_model *null;
    sp_stage *stage;
    fake fake;
    sp_stage_kvx kvx;
    sp_thread thread;
    sp_status ended;
} bench;

static void bench_init(bench *b, bool with_kvx) {
    sp_err err = {0};
    int fd = -1;
    memset(b, 0, sizeof *b);
    pthread_mutex_init(&b->fake.lock, NULL);
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&b->head, fd, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&b->rank, fd, 1, &err), SP_OK);
    close(fd);
    const sp_null_model_config nc = {
        .n_vocab = 61, .n_blocks = BLOCKS, .block_tokens = 8, .max_step_rows = 64};
    CU_ASSERT_EQUAL_FATAL(sp_null_model_create(&b->null, &nc, &err), SP_OK);
    const sp_stage_model m = sp_null_model_callbacks(b->null);
    b->kvx = (sp_stage_kvx){seal,      free_blocks, pull,   source,  leave,
                            poll_note, poll_done,   settle, &b->fake};
    const sp_stage_config sc = {.offer = sp_fake_offer(61, BLOCKS, 8),
                                .role = {.embeds = true, .samples = true},
                                .kvx = with_kvx ? &b->kvx : NULL};
    CU_ASSERT_EQUAL_FATAL(sp_stage_create(&b->stage, &sc, b->rank, &m, &err), SP_OK);
}

static void bench_fini(bench *b) {
    sp_stage_destroy(b->stage);
    sp_null_model_destroy(b->null);
    sp_link_close(b->head);
    sp_link_close(b->rank);
    pthread_mutex_destroy(&b->fake.lock);
}

static sp_status take(bench *b, sp_frame_type type, const sp_piece *pieces, int n) {
    static _Alignas(8) unsigned char payload[4096];
    uint32_t len = 0;
    sp_err err = {0};
    for (int i = 0; i < n; i++) {
        memcpy(payload + len, pieces[i].ptr, pieces[i].len);
        len += pieces[i].len;
    }
    const sp_frame f = {.type = type, .payload = payload, .length = len};
    return sp_stage_take(b->stage, &f, &err);
}

static sp_status take_list(bench *b, bool freed, uint64_t ticket, const sp_wire_kv_block *blocks,
                           int32_t n) {
    const sp_wire_kv_list list = {ticket, n, blocks};
    sp_wire_kv_head head;
    sp_piece pieces[2];
    int k = sp_wire_kv_list_pieces(&list, &head, pieces);
    return take(b, freed ? SP_FRAME_KV_FREE : SP_FRAME_KV_SEAL, pieces, k);
}

static sp_status take_pull(bench *b, sp_wire_kv_move move) {
    const sp_wire_kv_move moves[] = {{.src_block = 1, .generation = 2, .dst_block = 3}, move};
    const sp_wire_kv_pull p = {.transfer = 91, .lease = 9, .source = 4, .n = 2, .moves = moves};
    sp_wire_kv_pull_head head;
    sp_piece pieces[2];
    int k = sp_wire_kv_pull_pieces(&p, &head, pieces);
    return take(b, SP_FRAME_KV_PULL, pieces, k);
}

static void blocks_are_sealed_and_freed_by_the_callbacks_and_sealing_is_answered(void) {
    bench b;
    sp_err err = {0};
    sp_frame f;
    uint64_t ticket = 0;
    bench_init(&b, true);
    const sp_wire_kv_block blocks[] = {{.name = 0xabcdef0123456789, .block = 3, .generation = 700},
                                       {.name = 0, .block = BLOCKS - 1, .generation = 701}};
    CU_ASSERT_EQUAL(take_list(&b, false, 55, blocks, 2), SP_OK);
    CU_ASSERT(b.fake.n_seals == 1 && b.fake.n_seen == 2);
    CU_ASSERT_EQUAL(memcmp(b.fake.seen, blocks, sizeof blocks), 0);
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(b.head, &f, 0, &err), SP_OK);
    CU_ASSERT_EQUAL(f.type, SP_FRAME_KV_SEALED);
    CU_ASSERT_EQUAL(sp_wire_kv_sealed_decode(f.payload, f.length, &ticket, &err), SP_OK);
    CU_ASSERT_EQUAL(ticket, 55);
    CU_ASSERT_EQUAL(take_list(&b, true, 0, blocks + 1, 1), SP_OK); /* freed without a name */
    CU_ASSERT(b.fake.n_frees == 1 && b.fake.n_seen == 1 && b.fake.seen[0].generation == 701);
    CU_ASSERT_EQUAL(sp_link_recv(b.head, &f, 0, &err), SP_AGAIN);
    bench_fini(&b);
}

static void a_failed_seal_is_not_answered_and_ends_the_rank(void) {
    bench b;
    sp_err err = {0};
    sp_frame f;
    bench_init(&b, true);
    b.fake.gives = SP_E_INVALID;
    const sp_wire_kv_block block = {.block = 3, .generation = 700};
    CU_ASSERT_EQUAL(take_list(&b, false, 55, &block, 1), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_link_recv(b.head, &f, 0, &err), SP_AGAIN);
    bench_fini(&b);
}

static sp_wire_kv_move move_of(uint32_t from, uint32_t generation, uint32_t to) {
    return (sp_wire_kv_move){
        .name = 77, .src_block = from, .generation = generation, .dst_block = to};
}

static void a_pull_is_handed_over_whole(void) {
    bench b;
    bench_init(&b, true);
    /* How many blocks the source has is for the source to say. */
    CU_ASSERT_EQUAL(take_pull(&b, move_of(100000, 6, BLOCKS - 1)), SP_OK);
    CU_ASSERT(b.fake.n_pulls == 1 && b.fake.transfer == 91 && b.fake.source == 4);
    CU_ASSERT(b.fake.lease == 9 && b.fake.move.name == 77);
    CU_ASSERT(b.fake.move.src_block == 100000 && b.fake.move.generation == 6 &&
              b.fake.move.dst_block == BLOCKS - 1);
    bench_fini(&b);
}

static sp_status take_source(bench *b, uint32_t number, const char *text) {
    const sp_wire_kv_source_head head = {number, (uint32_t)strlen(text)};
    const sp_piece pieces[] = {{&head, sizeof head}, {text, head.text_bytes}};
    return take(b, SP_FRAME_KV_SOURCE, pieces, 2);
}

static sp_status take_leave(bench *b, uint64_t lease, uint32_t number) {
    const sp_wire_kv_leave w = {.lease = lease, .source = number};
    const sp_piece piece = {&w, sizeof w};
    return take(b, SP_FRAME_KV_LEAVE, &piece, 1);
}

static void groups_of_other_pods_come_and_go_and_their_leases_are_given_back(void) {
    bench b;
    sp_err err = {0};
    sp_frame f;
    bench_init(&b, true);
    CU_ASSERT_EQUAL(take_source(&b, SP_KV_SOURCE_FIRST + 7, "no JSON, for all we know"), SP_OK);
    CU_ASSERT(b.fake.n_sources == 1 && b.fake.source == SP_KV_SOURCE_FIRST + 7);
    CU_ASSERT(b.fake.text_bytes == 24 && memcmp(b.fake.text, "no JSON, for all", 16) == 0);
    CU_ASSERT_EQUAL(take_source(&b, SP_KV_SOURCE_FIRST, ""), SP_OK);
    CU_ASSERT(b.fake.n_sources == 2 && b.fake.source == SP_KV_SOURCE_FIRST);
    CU_ASSERT_EQUAL(b.fake.text_bytes, 0);
    CU_ASSERT_EQUAL(take_leave(&b, 0x1234567890, SP_KV_SOURCE_FIRST + 63), SP_OK);
    CU_ASSERT(b.fake.n_leaves == 1 && b.fake.left.lease == 0x1234567890);
    CU_ASSERT_EQUAL(b.fake.left.source, SP_KV_SOURCE_FIRST + 63);
    CU_ASSERT_EQUAL(sp_link_recv(b.head, &f, 0, &err), SP_AGAIN); /* none is answered */
    bench_fini(&b);
}

static void frames_that_cannot_be_are_protocol_errors(void) {
    bench b;
    bench_init(&b, true);
    const sp_wire_kv_block beyond = {.block = BLOCKS, .generation = 700},
                           no_generation = {.block = 1}, good = {.block = 1, .generation = 2};
    CU_ASSERT_EQUAL(take_list(&b, false, 55, &beyond, 1), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_list(&b, true, 0, &beyond, 1), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_list(&b, false, 55, &no_generation, 1), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_list(&b, true, 9, &good, 1), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_pull(&b, move_of(1, 6, BLOCKS)), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_pull(&b, move_of(1, 0, 2)), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_source(&b, SP_KV_SOURCE_FIRST - 1, "x"), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_source(&b, SP_KV_SOURCE_FIRST + SP_KV_SOURCES_MAX, "x"), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_leave(&b, 0, SP_KV_SOURCE_FIRST), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(take_leave(&b, 5, 0), SP_E_PROTOCOL);
    const sp_frame_type types[] = {SP_FRAME_KV_SEAL, SP_FRAME_KV_FREE, SP_FRAME_KV_PULL,
                                   SP_FRAME_KV_SOURCE, SP_FRAME_KV_LEAVE};
    unsigned char bytes[64] = {0};
    for (size_t t = 0; t < SP_LEN(types); t++)
        for (uint32_t n = 0; n < sizeof bytes; n++) {
            const sp_piece piece = {bytes, n};
            CU_ASSERT_EQUAL(take(&b, types[t], &piece, 1), SP_E_PROTOCOL);
        }
    CU_ASSERT_EQUAL(b.fake.n_seals + b.fake.n_frees + b.fake.n_pulls, 0);
    CU_ASSERT_EQUAL(b.fake.n_sources + b.fake.n_leaves, 0);
    bench_fini(&b);
}

static void a_rank_without_the_callbacks_knows_no_such_frame(void) {
    bench b;
    bench_init(&b, false);
    const sp_wire_kv_block block = {.block = 3, .generation = 700};
    CU_ASSERT_EQUAL(take_list(&b, false, 55, &block, 1), SP_AGAIN);
    CU_ASSERT_EQUAL(take_pull(&b, move_of(1, 6, 2)), SP_AGAIN);
    CU_ASSERT_EQUAL(take_source(&b, SP_KV_SOURCE_FIRST, "x"), SP_AGAIN);
    CU_ASSERT_EQUAL(take_leave(&b, 5, SP_KV_SOURCE_FIRST), SP_AGAIN);
    bench_fini(&b);
}

static void *run(void *arg) {
    bench *b = arg;
    sp_err err = {0};
    b->ended = sp_stage_run(b->stage, &err);
    return NULL;
}

static sp_frame next(bench *b) {
    sp_frame f = {0};
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(b->head, &f, sp_now_ns() + 10 * SP_NS_PER_S, &err), SP_OK);
    return f;
}

static void finish(bench *b, uint64_t transfer) {
    pthread_mutex_lock(&b->fake.lock);
    b->fake.done[b->fake.n_done++] = transfer;
    pthread_mutex_unlock(&b->fake.lock);
    sp_link_wake(b->rank);
}

static void a_pull_that_ends_while_the_rank_waits_is_told_at_once(void) {
    bench b;
    sp_err err = {0};
    bench_init(&b, true);
    b.fake.outcomes[1] = 2;
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&b.thread, "rank", run, &b, &err), SP_OK);
    CU_ASSERT_EQUAL(next(&b).type, SP_FRAME_READY);
    for (uint64_t i = 1; i <= 50; i++) {
        finish(&b, i);
        sp_frame f = next(&b);
        sp_wire_kv_pulled p;
        CU_ASSERT_EQUAL(f.type, SP_FRAME_KV_PULLED);
        CU_ASSERT_EQUAL_FATAL(sp_wire_kv_pulled_decode(f.payload, f.length, &p, &err), SP_OK);
        CU_ASSERT(p.transfer == i && p.n == 3);
        CU_ASSERT(p.outcomes[0] == 0 && p.outcomes[1] == 2 && p.outcomes[2] == 0);
    }
    CU_ASSERT_EQUAL(sp_link_send(b.head, SP_FRAME_BYE, NULL, 0, SP_NEVER, &err), SP_OK);
    sp_thread_join(&b.thread);
    CU_ASSERT_EQUAL(b.ended, SP_OK);
    bench_fini(&b);
}

static void a_pull_that_cannot_be_made_ready_ends_the_rank_by_a_fault(void) {
    bench b;
    sp_err err = {0};
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    bench_init(&b, true);
    b.fake.settles = SP_E_DEVICE;
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&b.thread, "rank", run, &b, &err), SP_OK);
    CU_ASSERT_EQUAL(next(&b).type, SP_FRAME_READY);
    finish(&b, 3);
    const sp_frame f = next(&b); /* and nothing of the pull */
    CU_ASSERT_EQUAL_FATAL(f.type, SP_FRAME_FAULT);
    CU_ASSERT_EQUAL_FATAL(sp_wire_fault_decode(f.payload, f.length, &reason, text, &err), SP_OK);
    CU_ASSERT_EQUAL(reason, SP_FAULT_DEVICE);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "the copies went wrong"));
    sp_thread_join(&b.thread);
    CU_ASSERT_EQUAL(b.ended, SP_E_DEVICE);
    bench_fini(&b);
}

/* What is said of a pull before it ends must not come after its end. */
static void renewals_and_leases_are_told_before_what_has_ended(void) {
    bench b;
    sp_err err = {0};
    uint64_t transfer = 0;
    sp_wire_kv_lease lease;
    sp_wire_kv_pulled p;
    bench_init(&b, true);
    b.fake.notes[0] = (sp_stage_kv_note){.of_lease = true, .id = 0xfeed};
    b.fake.notes[1] = (sp_stage_kv_note){.of_lease = true, .id = 0xfeed, .renewed = true};
    b.fake.notes[2] = (sp_stage_kv_note){.id = 41};
    b.fake.n_notes = 3;
    b.fake.done[0] = 41;
    b.fake.n_done = 1;
    CU_ASSERT_EQUAL_FATAL(sp_stage_kv_tell(&b.kvx, b.rank, &err), SP_OK);
    sp_frame f = next(&b);
    CU_ASSERT_EQUAL(f.type, SP_FRAME_KV_RENEW);
    CU_ASSERT_EQUAL(sp_wire_kv_renew_decode(f.payload, f.length, &transfer, &err), SP_OK);
    CU_ASSERT_EQUAL(transfer, 41);
    for (int renewed = 1; renewed >= 0; renewed--) {
        f = next(&b);
        CU_ASSERT_EQUAL(f.type, SP_FRAME_KV_LEASE);
        CU_ASSERT_EQUAL_FATAL(sp_wire_kv_lease_decode(f.payload, f.length, &lease, &err), SP_OK);
        CU_ASSERT(lease.lease == 0xfeed && lease.renewed == (uint32_t)renewed);
    }
    f = next(&b);
    CU_ASSERT_EQUAL(f.type, SP_FRAME_KV_PULLED);
    CU_ASSERT_EQUAL_FATAL(sp_wire_kv_pulled_decode(f.payload, f.length, &p, &err), SP_OK);
    CU_ASSERT_EQUAL(p.transfer, 41);
    CU_ASSERT_EQUAL(sp_link_recv(b.head, &f, 0, &err), SP_AGAIN);
    bench_fini(&b);
}

SP_TEST_MAIN("runtime/engine/stage_kv",
             SP_TEST(blocks_are_sealed_and_freed_by_the_callbacks_and_sealing_is_answered),
             SP_TEST(a_failed_seal_is_not_answered_and_ends_the_rank),
             SP_TEST(a_pull_is_handed_over_whole),
             SP_TEST(groups_of_other_pods_come_and_go_and_their_leases_are_given_back),
             SP_TEST(frames_that_cannot_be_are_protocol_errors),
             SP_TEST(a_rank_without_the_callbacks_knows_no_such_frame),
             SP_TEST(a_pull_that_ends_while_the_rank_waits_is_told_at_once),
             SP_TEST(a_pull_that_cannot_be_made_ready_ends_the_rank_by_a_fault),
             SP_TEST(renewals_and_leases_are_told_before_what_has_ended))
