/* The frames of KV blocks, byte by byte: what was sent is read, whatever else is refused by name. */
#include "runtime/base/mem.h"
#include "runtime/engine/wire.h"
#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>

enum {
    SEAL,
    FREE,
    SEALED,
    PULL,
    PULLED,
    RENEW,
    SOURCE,
    LEAVE,
    LEASE,
    KINDS
};

static _Alignas(8) unsigned char frame[512];

static uint32_t lay(const sp_piece *p, int n) {
    uint32_t at = 0;
    for (int i = 0; i < n; i++) {
        memcpy(frame + at, p[i].ptr, p[i].len);
        at += p[i].len;
    }
    return at;
}

static uint32_t good_list(bool freed) {
    sp_wire_kv_block b[2] = {{7, 3, 1}, {UINT64_MAX, 4, 2}};
    if (freed) b[0].name = b[1].name = 0;
    sp_wire_kv_list list = {.ticket = freed ? 0 : 9, .n = 2, .blocks = b};
    sp_wire_kv_head head;
    sp_piece p[2];
    return lay(p, sp_wire_kv_list_pieces(&list, &head, p));
}

static uint32_t good_pull(void) {
    const sp_wire_kv_move m[2] = {{11, 3, 1, 8, 0}, {12, 4, 2, 9, 0}};
    sp_wire_kv_pull pull = {.transfer = 5, .lease = 6, .source = 1, .n = 2, .moves = m};
    sp_wire_kv_pull_head head;
    sp_piece p[2];
    return lay(p, sp_wire_kv_pull_pieces(&pull, &head, p));
}

static uint32_t good_pulled(void) {
    const uint32_t o[3] = {0, 7, 1};
    sp_wire_kv_pulled pulled = {.transfer = 5, .n = 3, .outcomes = o};
    sp_wire_kv_pulled_head head;
    sp_piece p[2];
    return lay(p, sp_wire_kv_pulled_pieces(&pulled, &head, p));
}

static uint32_t good(int kind) {
    const sp_wire_kv_source_head source = {SP_KV_SOURCE_FIRST, 4};
    const sp_wire_kv_leave leave = {77, SP_KV_SOURCE_FIRST + SP_KV_SOURCES_MAX - 1, 0};
    const sp_wire_kv_lease lease = {78, 1, 0};
    const uint64_t word = 79;
    switch (kind) {
    case SEAL:
    case FREE:
        return good_list(kind == FREE);
    case PULL:
        return good_pull();
    case PULLED:
        return good_pulled();
    case SOURCE:
        return lay((sp_piece[]){{&source, sizeof source}, {"text", 4}}, 2);
    case LEAVE:
        return lay(&(sp_piece){&leave, sizeof leave}, 1);
    case LEASE:
        return lay(&(sp_piece){&lease, sizeof lease}, 1);
    default:
        return lay(&(sp_piece){&word, sizeof word}, 1);
    }
}

typedef struct got {
    sp_wire_kv_list list;
    sp_wire_kv_pull pull;
    sp_wire_kv_pulled pulled;
    sp_wire_kv_leave leave;
    sp_wire_kv_lease lease;
    uint64_t word;
    uint32_t source;
    sp_slice text;
} got;

static sp_status decode(int kind, const void *at, uint32_t len, got *g, sp_err *err) {
    switch (kind) {
    case SEAL:
    case FREE:
        return sp_wire_kv_list_decode(at, len, kind == FREE, &g->list, err);
    case SEALED:
        return sp_wire_kv_sealed_decode(at, len, &g->word, err);
    case PULL:
        return sp_wire_kv_pull_decode(at, len, &g->pull, err);
    case PULLED:
        return sp_wire_kv_pulled_decode(at, len, &g->pulled, err);
    case RENEW:
        return sp_wire_kv_renew_decode(at, len, &g->word, err);
    case SOURCE:
        return sp_wire_kv_source_decode(at, len, &g->source, &g->text, err);
    case LEAVE:
        return sp_wire_kv_leave_decode(at, len, &g->leave, err);
    default:
        return sp_wire_kv_lease_decode(at, len, &g->lease, err);
    }
}

/* Of exactly `len` bytes, so that a sanitizer sees a read past the end. */
static sp_status decode_copy(int kind, uint32_t len, sp_err *err) {
    void *copy = sp_alloc(len ? len : 1);
    memcpy(copy, frame, len);
    got g;
    sp_status st = decode(kind, copy, len, &g, err);
    sp_free(copy);
    return st;
}

static void every_frame_is_read_as_it_was_sent(void) {
    got g = {0};
    for (int k = 0; k < KINDS; k++) {
        sp_err err = {0};
        uint32_t len = good(k);
        CU_ASSERT_EQUAL_FATAL(decode(k, frame, len, &g, &err), SP_OK);
        if (k == SEAL) {
            CU_ASSERT(g.list.ticket == 9 && g.list.n == 2);
            CU_ASSERT(g.list.blocks[1].name == UINT64_MAX && g.list.blocks[1].block == 4);
        }
        if (k == FREE) CU_ASSERT(g.list.ticket == 0 && g.list.blocks[0].generation == 1);
        if (k == PULL) {
            CU_ASSERT(g.pull.transfer == 5 && g.pull.lease == 6 && g.pull.source == 1);
            CU_ASSERT(g.pull.moves[1].name == 12 && g.pull.moves[1].dst_block == 9);
        }
        if (k == PULLED) CU_ASSERT(g.pulled.n == 3 && g.pulled.outcomes[1] == 7);
        if (k == SEALED || k == RENEW) CU_ASSERT_EQUAL(g.word, 79);
        if (k == SOURCE)
            CU_ASSERT(g.source == 64 && g.text.len == 4 && memcmp(g.text.ptr, "text", 4) == 0);
        if (k == LEAVE) CU_ASSERT(g.leave.lease == 77 && g.leave.source == 127);
        if (k == LEASE) CU_ASSERT(g.lease.lease == 78 && g.lease.renewed == 1);
    }
}

static void any_other_length_is_refused(void) {
    for (int k = 0; k < KINDS; k++)
        for (uint32_t len = 0; len < good(k) + 9; len++) {
            sp_err err = {0};
            uint32_t right = good(k);
            sp_status st = decode_copy(k, len, &err);
            CU_ASSERT_EQUAL(st, len == right ? SP_OK : SP_E_PROTOCOL);
            CU_ASSERT((st == SP_OK) == (err.text[0] == 0));
        }
}

static void wrong_fields_are_refused_by_name(void) {
    const struct {
        int kind;
        uint32_t offset, value;
        const char *word;
    } rows[] = {
        {SEAL, 0, 0, "ticket 0"},
        {FREE, 0, 1, "ticket 1"},
        {SEAL, 12, 1, "field 1"},
        {SEAL, 8, 3, "frame of"},
        {SEAL, 8, 0, "0 blocks"},
        {SEAL, 8, SP_KV_FRAME_BLOCKS_MAX + 1, "4097 blocks"},
        {SEAL, 16 + 12, 0, "generation 0"},
        {SEAL, 16 + 8, UINT32_MAX, "block 4294967295"},
        {FREE, 32, 5, "name for block 4"},
        {PULL, 8, SP_KV_SOURCE_FIRST + SP_KV_SOURCES_MAX, "source 128"},
        {PULL, 16, 0, "lease 0"},
        {PULL, 12, 0, "0 blocks"},
        {PULL, 24 + 12, 0, "generation 0"},
        {PULL, 24 + 16, UINT32_MAX, "to 4294967295"},
        {PULL, 24 + 20, 2, "field 2"},
        {PULLED, 12, 1, "field is 1"},
        {PULLED, 8, 4, "frame of"},
        {SOURCE, 0, SP_KV_SOURCE_FIRST - 1, "source 63"},
        {SOURCE, 0, SP_KV_SOURCE_FIRST + SP_KV_SOURCES_MAX, "source 128"},
        {SOURCE, 4, 5, "frame of"},
        {LEAVE, 0, 0, "lease 0"},
        {LEAVE, 8, 3, "source 3"},
        {LEAVE, 12, 1, "field 1"},
        {LEASE, 0, 0, "lease 0"},
        {LEASE, 8, 2, "verb 2"},
        {LEASE, 12, 1, "field 1"},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_err err = {0};
        uint32_t len = good(rows[i].kind);
        memcpy(frame + rows[i].offset, &rows[i].value, sizeof rows[i].value);
        CU_ASSERT_EQUAL(decode_copy(rows[i].kind, len, &err), SP_E_PROTOCOL);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].word));
        if (!strstr(err.text, rows[i].word)) fprintf(stderr, "row %zu: %s\n", i, err.text);
    }
}

static void a_source_may_have_no_text_and_not_too_much(void) {
    sp_err err = {0};
    got g = {0};
    sp_wire_kv_source_head head = {SP_KV_SOURCE_FIRST, 0};
    CU_ASSERT_EQUAL(decode(SOURCE, &head, sizeof head, &g, &err), SP_OK);
    CU_ASSERT_EQUAL(g.text.len, 0);
    size_t len = sizeof head + SP_KV_SOURCE_TEXT_MAX + 1;
    sp_wire_kv_source_head *big = sp_alloc(len);
    *big = (sp_wire_kv_source_head){SP_KV_SOURCE_FIRST, SP_KV_SOURCE_TEXT_MAX + 1};
    CU_ASSERT_EQUAL(decode(SOURCE, big, (uint32_t)len, &g, &err), SP_E_PROTOCOL);
    big->text_bytes--;
    CU_ASSERT_EQUAL(decode(SOURCE, big, (uint32_t)len - 1, &g, &err), SP_OK);
    sp_free(big);
}

static void random_damage_never_reads_past_the_end(void) {
    srand(12);
    for (int i = 0; i < 100000; i++) {
        int k = rand() % KINDS;
        uint32_t len = good(k);
        for (int n = 1 + rand() % 4; n > 0 && len > 0; n--) {
            uint32_t at = (uint32_t)rand() % len;
            if (rand() % 3 == 0)
                memset(frame + (at & ~3u), rand() % 2 ? 0xff : 0, 4);
            else if (rand() % 8)
                frame[at] ^= (unsigned char)(1 << rand() % 8);
            else
                len = (uint32_t)rand() % (len + 1);
        }
        sp_err err = {0};
        sp_status st = decode_copy(k, len, &err);
        CU_ASSERT(st == SP_OK || (st == SP_E_PROTOCOL && err.text[0]));
    }
}

SP_TEST_MAIN("runtime/engine/wire kv", SP_TEST(every_frame_is_read_as_it_was_sent),
             SP_TEST(any_other_length_is_refused), SP_TEST(wrong_fields_are_refused_by_name),
             SP_TEST(a_source_may_have_no_text_and_not_too_much),
             SP_TEST(random_damage_never_reads_past_the_end))
