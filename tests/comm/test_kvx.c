/* Covers comm/kvx.c, kvx_region.c and kvx_shm.c: what a reader gets of a region, by both ways, and that
 * nothing that is not proven is ever called right. Networks and leases: test_kvx_tcp.c. */
#include "comm/kvx.h"

#include "comm/kvx_part.h"
#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"
#include "tests/kvx_side.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void any_rectangle_of_a_block_comes_over_by_both_ways(void) {
    sp_side s;
    sp_side_open(&s, sp_side_small());
    unsigned char *to = sp_alloc(s.shape.block_bytes + 1);
    for (uint32_t b = 0; b < 9; b++) sp_side_seal(&s, b, 100 + b);
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        sp_kvx *k = sp_side_reader(s.address, s.shape, way);
        for (int32_t l = 3; l < 27; l += 5)
            for (int32_t nl = 1; l + nl <= 27; nl += 7)
                for (int32_t h = 2; h < 6; h++)
                    for (int32_t nh = 1; h + nh <= 6; nh++) {
                        uint32_t b = (uint32_t)(l + nl + h + nh) % 9;
                        sp_kvx_ask a = sp_side_ask(&s.shape, to, b, 100 + b, l, nl, h, nh);
                        size_t n = a.layer_stride * (size_t)nl;
                        memset(to, 0xee, s.shape.block_bytes + 1);
                        CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_OK);
                        CU_ASSERT(sp_side_came(&s, &a, 100 + b));
                        CU_ASSERT_EQUAL(to[n], 0xee);
                    }
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* Below, at and above what is copied at once; aligned for wide stores, and not. */
static void pieces_of_any_size_come_to_any_place(void) {
    static const int32_t dims[] = {1, 3, 16, 250, 1024, 2047, 2048, 2049, 5000, 9216};
    for (size_t i = 0; i < SP_LEN(dims); i++) {
        sp_kvx_shape shape = {.n_blocks = 2,
                              .block_tokens = 4,
                              .head_dim = dims[i],
                              .dtype = SP_DTYPE_I8,
                              .n_layers = 2,
                              .n_heads = 3};
        shape.block_bytes = sp_kvx_piece_bytes(&shape) * 2 * 2 * 3;
        sp_side s;
        sp_side_open(&s, shape);
        sp_side_seal(&s, 1, 5);
        unsigned char *to = sp_alloc_aligned(64, shape.block_bytes + 64);
        for (int way = 0; way < SP_SIDE_WAYS; way++) {
            sp_kvx *k = sp_side_reader(s.address, s.shape, way);
            for (size_t off = 0; off <= 16; off += off ? 15 : 1) {
                sp_kvx_ask a = sp_side_whole(&s, to + off, 1, 5);
                memset(to, 0xee, shape.block_bytes + 64);
                CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_OK);
                CU_ASSERT(sp_side_came(&s, &a, 5));
                CU_ASSERT_EQUAL(to[off + shape.block_bytes], 0xee);
            }
            sp_kvx_close(k);
        }
        sp_free(to);
        sp_kvx_region_close(s.region);
    }
}

static void each_block_of_a_read_has_its_own_outcome(void) {
    sp_side s;
    sp_err err = {0};
    sp_side_open(&s, sp_side_small());
    unsigned char *to = sp_alloc(9 * s.shape.block_bytes);
    for (uint32_t b = 0; b < 9; b++) sp_side_seal(&s, b, 7 + b);
    sp_side_must(sp_kvx_free(s.region, 1, 8, &err), &err);
    sp_side_seal(&s, 2, 1000);
    s.kv[3 * s.shape.block_bytes + 777] ^= 4;
    sp_side_must(sp_kvx_free(s.region, 8, 99, &err), &err); /* of another generation: nothing */
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        sp_kvx *k = sp_side_reader(s.address, s.shape, way);
        sp_kvx_ask a[12];
        sp_kvx_fault f[12];
        for (uint32_t b = 0; b < 9; b++)
            a[b] = sp_side_whole(&s, to + b * s.shape.block_bytes, b, 7 + b);
        a[4].block = 9;
        a[5].layer_first--;
        a[6].n_heads++;
        a[9] = sp_side_whole(&s, to, 0, 7);
        a[9].n_layers = INT32_MAX;
        a[10] = sp_side_whole(&s, to, 0, 7);
        a[10].n_heads = 0;
        a[11] = sp_side_whole(&s, to, 0, 0);
        sp_kvx_read(k, a, 12, f);
        static const sp_kvx_fault want[12] = {
            SP_KVX_OK,    SP_KVX_STALE, SP_KVX_STALE, SP_KVX_CHECKSUM, SP_KVX_RANGE, SP_KVX_RANGE,
            SP_KVX_RANGE, SP_KVX_OK,    SP_KVX_OK,    SP_KVX_RANGE,    SP_KVX_RANGE, SP_KVX_STALE};
        for (int i = 0; i < 12; i++) {
            if (f[i] != want[i])
                fprintf(stderr, "way %d ask %d: %s, want %s\n", way, i, sp_kvx_fault_name(f[i]),
                        sp_kvx_fault_name(want[i]));
            CU_ASSERT_EQUAL(f[i], want[i]);
            if (f[i] == SP_KVX_OK) CU_ASSERT(sp_side_came(&s, &a[i], a[i].generation));
        }
        /* The connection has not suffered. */
        a[2] = sp_side_whole(&s, to + 2 * s.shape.block_bytes, 2, 1000);
        CU_ASSERT_EQUAL(sp_side_read(k, &a[2]), SP_KVX_OK);
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* Every byte of a block is under a checksum, and no other bit pattern of the same piece passes. */
static void a_flipped_bit_anywhere_is_found(void) {
    sp_side s;
    sp_kvx_shape shape = sp_side_small();
    shape.n_layers = 2;
    sp_side_open(&s, shape);
    sp_side_seal(&s, 4, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    const size_t n = sp_kvx_piece_bytes(&shape) * 2 * 2 * 4;
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        sp_kvx *k = sp_side_reader(s.address, s.shape, way);
        sp_kvx_ask a = sp_side_whole(&s, to, 4, 5);
        for (size_t i = 0; i < n; i += way == SP_SIDE_SHM ? 1 : 17) {
            unsigned char *p = s.kv + 4 * s.shape.block_bytes + i,
                          bit = (unsigned char)(1 << i % 8);
            *p ^= bit;
            CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_CHECKSUM);
            *p ^= bit;
        }
        CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_OK);
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* All pieces hold the same bytes, so only the seed tells them apart. */
static void the_right_bytes_in_the_wrong_place_have_another_checksum(void) {
    sp_kvx_shape s = sp_side_small();
    uint8_t model_b[SP_KVX_IDENTITY_BYTES] = "model b", key_b[SP_KVX_KEY_BYTES] = "another pod";
    const char same[64] = "the same bytes everywhere";
    uint64_t seen[700];
    size_t n = 0;
    const uint64_t bases[] = {sp_kvx_seed_base(sp_side_key, sp_side_model, &s),
                              sp_kvx_seed_base(sp_side_key, model_b, &s),
                              sp_kvx_seed_base(key_b, sp_side_model, &s)};
    for (size_t b = 0; b < SP_LEN(bases); b++)
        for (uint32_t block = 0; block < 3; block++)
            for (uint32_t gen = 1; gen < 4; gen++)
                for (uint64_t name = 0; name < 3; name++)
                    for (int place = 0; place < 8; place++)
                        seen[n++] =
                            sp_kvx_sum(sp_kvx_seed_block(bases[b], block, gen, name), place >> 2,
                                       place & 1, place >> 1 & 1, same, sizeof same);
    int twice = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) twice += seen[i] == seen[j];
    CU_ASSERT_EQUAL(n, 648);
    CU_ASSERT_EQUAL(twice, 0);
}

static void a_piece_summed_bit_by_bit_has_the_same_checksum(void) {
    static unsigned char bytes[40000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 7 + i / 251);
    sp_kvx_summer *s = sp_kvx_summer_create();
    CU_ASSERT_PTR_NOT_NULL_FATAL(s);
    for (size_t n = 1; n <= sizeof bytes; n += n < 300 ? 1 : n / 3) {
        const uint64_t want = sp_kvx_sum(n, 3, n & 1, 2, bytes, n);
        for (size_t each = 1 + n / 40; each <= 2 * n; each *= 3) {
            sp_kvx_summer_begin(s, n, 3, n & 1, 2);
            for (size_t at = 0; at < n; at += each)
                sp_kvx_summer_more(s, bytes + at, n - at < each ? n - at : each);
            CU_ASSERT_EQUAL(sp_kvx_summer_end(s), want);
        }
    }
    sp_kvx_summer_begin(s, 1, 3, false, 2);
    sp_kvx_summer_more(s, bytes, 64);
    CU_ASSERT_NOT_EQUAL(sp_kvx_summer_end(s), sp_kvx_sum(1, 3, true, 2, bytes, 64));
    sp_kvx_summer_destroy(s);
}

static sp_kvx_fault read_as(const sp_side *s, const char *address, const uint8_t *by_key,
                            const uint8_t *identity, sp_kvx_shape shape, int way) {
    sp_err err = {0};
    sp_kvx_reader_config c = {.shape = shape, .same_node = way == SP_SIDE_SHM};
    memcpy(c.key, by_key, sizeof c.key);
    memcpy(c.identity, identity, sizeof c.identity);
    sp_kvx *k = NULL;
    sp_side_must(sp_kvx_open(&k, address, &c, &err), &err);
    unsigned char *to = sp_alloc(s->shape.block_bytes);
    sp_kvx_ask a = sp_side_whole(s, to, 0, 5);
    sp_kvx_fault f = sp_side_read(k, &a);
    CU_ASSERT_EQUAL(sp_side_read(k, &a), f); /* it does not get better by asking again */
    sp_kvx_close(k);
    sp_free(to);
    return f;
}

static void another_model_pod_type_or_life_of_the_exporter_is_refused(void) {
    sp_side s;
    uint8_t model_b[SP_KVX_IDENTITY_BYTES] = "model b", key_b[SP_KVX_KEY_BYTES] = "another pod";
    sp_side_open(&s, sp_side_small());
    sp_side_seal(&s, 0, 5);
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        sp_kvx_shape f16 = s.shape, longer = s.shape, wide = s.shape;
        char other_life[SP_KVX_ADDRESS_BYTES];
        f16.dtype = SP_DTYPE_F16;
        longer.block_tokens *= 2;
        wide.head_dim++;
        snprintf(other_life, sizeof other_life, "%s", s.address);
        other_life[6] = other_life[6] == '0' ? '1' : '0';
        CU_ASSERT_EQUAL(read_as(&s, s.address, sp_side_key, sp_side_model, s.shape, way),
                        SP_KVX_OK);
        CU_ASSERT_EQUAL(read_as(&s, s.address, sp_side_key, model_b, s.shape, way),
                        SP_KVX_IDENTITY);
        CU_ASSERT_EQUAL(read_as(&s, s.address, sp_side_key, sp_side_model, f16, way),
                        SP_KVX_IDENTITY);
        CU_ASSERT_EQUAL(read_as(&s, s.address, sp_side_key, sp_side_model, longer, way),
                        SP_KVX_IDENTITY);
        CU_ASSERT_EQUAL(read_as(&s, s.address, sp_side_key, sp_side_model, wide, way),
                        SP_KVX_IDENTITY);
        CU_ASSERT_EQUAL(read_as(&s, s.address, key_b, sp_side_model, s.shape, way), SP_KVX_PEER);
        CU_ASSERT_EQUAL(read_as(&s, other_life, sp_side_key, sp_side_model, s.shape, way),
                        SP_KVX_PEER);
    }
    CU_ASSERT(sp_kvx_region_refused(s.region) >= 4);
    sp_kvx_region_close(s.region);
}

static void an_exporter_that_is_gone_gives_nothing(void) {
    sp_side s;
    sp_side_open(&s, sp_side_small());
    sp_side_seal(&s, 0, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = sp_side_whole(&s, to, 0, 5);
    sp_kvx *met[SP_SIDE_WAYS], *late[SP_SIDE_WAYS];
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        met[way] = sp_side_reader(s.address, s.shape, way);
        late[way] = sp_side_reader(s.address, s.shape, way);
        CU_ASSERT_EQUAL(sp_side_read(met[way], &a), SP_KVX_OK);
    }
    sp_kvx_region_close(s.region);
    CU_ASSERT_EQUAL(sp_side_read(met[SP_SIDE_SHM], &a), SP_KVX_STALE);
    CU_ASSERT_EQUAL(sp_side_read(met[SP_SIDE_TCP], &a), SP_KVX_PEER);
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        CU_ASSERT_EQUAL(sp_side_read(late[way], &a), SP_KVX_PEER);
        sp_kvx_close(met[way]);
        sp_kvx_close(late[way]);
    }
    sp_free(to);
}

static void what_is_no_address_or_no_shape_is_refused_by_name(void) {
    static const char *const bad[] = {"",
                                      "kvx1",
                                      "kvx2 00112233445566778899aabbccddeeff - 127.0.0.1:1",
                                      "kvx1 00112233445566778899aabbccddeef - 127.0.0.1:1",
                                      "kvx1 00112233445566778899aabbccddeeXX - 127.0.0.1:1",
                                      "kvx1 00112233445566778899aabbccddeeff - 127.0.0.1:1 more",
                                      "kvx1 00112233445566778899aabbccddeeff - -",
                                      "kvx1 00112233445566778899aabbccddeeff superpod-x -"};
    sp_kvx_reader_config c = {.shape = sp_side_small()};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_kvx *k = NULL;
        sp_err err = {0};
        CU_ASSERT_EQUAL(sp_kvx_open(&k, bad[i], &c, &err), SP_E_INVALID);
        CU_ASSERT(k == NULL && err.text[0]);
    }
    for (int i = 0; i < 8; i++) {
        sp_kvx_config rc = {.shape = sp_side_small()};
        sp_kvx_region *r = NULL;
        sp_err err = {0};
        int32_t *const fields[] = {
            &rc.shape.n_blocks, &rc.shape.block_tokens, &rc.shape.head_dim,  &rc.shape.n_layers,
            &rc.shape.n_heads,  &rc.shape.layer_first,  &rc.shape.head_first};
        if (i < 7)
            *fields[i] = -1;
        else
            rc.shape.block_bytes = 9000;
        CU_ASSERT_EQUAL(sp_kvx_region_open(&r, &rc, &err), SP_E_INVALID);
        CU_ASSERT(r == NULL);
    }
    sp_side s;
    sp_err err = {0};
    sp_side_open(&s, sp_side_small());
    CU_ASSERT_EQUAL(sp_kvx_seal(s.region, 9, 1, 1, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_kvx_seal(s.region, 0, 0, 1, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_kvx_free(s.region, 9, 1, &err), SP_E_INVALID);
    sp_kvx_region_close(s.region);
}

/* ---- an exporter that writes on while others read ---- */

#define STORM_READS 200
#define STORM_NS (10 * SP_NS_PER_S) /* a machine that is this slow has seen enough */

/* What the exporter tells its readers; in memory of both. */
typedef struct storm {
    _Atomic uint32_t generation;
} storm;

/* A process of its own: reads block 0 as fast as it can while it is freed and used anew. */
static int storm_reader(storm *w, const char *address, sp_kvx_shape shape, int way) {
    sp_side s = {.shape = shape};
    sp_kvx *k = sp_side_reader(address, shape, way);
    unsigned char *to = sp_alloc(shape.block_bytes);
    int wrong = 0, right = 0, stale = 0;
    const int64_t until = sp_now_ns() + STORM_NS;
    while (!wrong && (right < STORM_READS || stale < STORM_READS) && sp_now_ns() < until) {
        uint32_t gen = w->generation;
        sp_kvx_ask a = sp_side_whole(&s, to, 0, gen);
        sp_kvx_fault f = sp_side_read(k, &a);
        right += f == SP_KVX_OK;
        stale += f == SP_KVX_STALE;
        wrong += f != SP_KVX_STALE && (f != SP_KVX_OK || !sp_side_came(&s, &a, gen));
    }
    sp_kvx_close(k);
    sp_free(to);
    return wrong ? 1 : right < 10 || stale < 10 ? 2 : 0;
}

static void blocks_that_are_freed_and_used_anew_while_they_are_read_never_pass(void) {
    storm *w = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CU_ASSERT_FATAL(w != MAP_FAILED);
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        sp_side s;
        sp_err err = {0};
        sp_side_open(&s, sp_side_small());
        sp_side_seal(&s, 0, 1);
        w->generation = 1;
        fflush(NULL);
        pid_t pid = fork();
        CU_ASSERT_FATAL(pid >= 0);
        if (pid == 0) _exit(storm_reader(w, s.address, s.shape, way));
        int status = 0;
        for (uint32_t gen = 1; waitpid(pid, &status, WNOHANG) == 0; gen++) {
            /* Held for longer and longer, so that it is long enough on any machine. */
            int64_t until = sp_now_ns() + (gen % 16) * (20 + gen / 16) * SP_NS_PER_US;
            while (sp_now_ns() < until) sched_yield();
            sp_side_must(sp_kvx_free(s.region, 0, gen, &err), &err);
            sp_side_fill(&s, 0, 0);
            sp_side_seal(&s, 0, gen + 1);
            w->generation = gen + 1;
        }
        CU_ASSERT(WIFEXITED(status));
        CU_ASSERT_EQUAL(WEXITSTATUS(status), 0);
        sp_kvx_region_close(s.region);
    }
    munmap(w, 4096);
}

/* The same block under the same generation, and other tokens than those asked for. */
static void a_block_of_another_name_is_foreign(void) {
    sp_side s;
    sp_side_open(&s, sp_side_small());
    sp_side_seal(&s, 0, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        sp_kvx *k = sp_side_reader(s.address, s.shape, way);
        sp_kvx_ask right = sp_side_whole(&s, to, 0, 5), wrong = right;
        for (int bit = 0; bit < 64; bit += 21) {
            wrong.name = right.name ^ UINT64_C(1) << bit;
            CU_ASSERT_EQUAL(sp_side_read(k, &wrong), SP_KVX_FOREIGN);
        }
        CU_ASSERT_EQUAL(sp_side_read(k, &right), SP_KVX_OK);
        CU_ASSERT(sp_side_came(&s, &right, 5));
        sp_kvx_close(k);
    }
    CU_ASSERT_STRING_EQUAL(sp_kvx_fault_name(SP_KVX_FOREIGN), "foreign");
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* ---- fault points ---- */

typedef struct broken {
    const char *point;
    sp_kvx_fault want;
} broken;

static const broken points[] = {{"kvx.corrupt=1", SP_KVX_CHECKSUM},
                                {"kvx.stale=1", SP_KVX_STALE},
                                {"kvx.foreign=1", SP_KVX_FOREIGN},
                                {"kvx.truncate=1", SP_KVX_PEER},
                                {"kvx.peer_gone=1", SP_KVX_PEER}};

static void arm(const char *text) {
    sp_err err = {0};
    sp_side_must(sp_chaos_setup(text, &err), &err);
}

/* How many bytes of an ask's destination are not `byte`. */
static size_t written(const unsigned char *to, size_t n, unsigned char byte) {
    size_t k = 0;
    for (size_t i = 0; i < n; i++) k += to[i] != byte;
    return k;
}

static void each_fault_point_comes_out_under_its_name_and_leaves_nothing(void) {
    sp_side s;
    sp_side_open(&s, sp_side_small());
    sp_side_seal(&s, 2, 5);
    const size_t n = s.shape.block_bytes - 64;
    unsigned char *to = sp_alloc(n);
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        sp_kvx *k = sp_side_reader(s.address, s.shape, way);
        for (size_t i = 0; i < SP_LEN(points); i++)
            for (int32_t layers = 24; layers > 0; layers /= 5) {
                sp_kvx_ask a = sp_side_whole(&s, to, 2, 5);
                a.n_layers = layers;
                memset(to, 0xee, n);
                arm(points[i].point);
                CU_ASSERT_EQUAL(sp_side_read(k, &a), points[i].want);
                arm(NULL);
                /* What is refused before it is copied has not been copied. */
                size_t got = written(to, n, 0xee);
                if (points[i].want == SP_KVX_FOREIGN || strstr(points[i].point, "gone"))
                    CU_ASSERT_EQUAL(got, 0);
                CU_ASSERT_EQUAL(sp_side_read(k, &a), SP_KVX_OK);
                CU_ASSERT(sp_side_came(&s, &a, 5));
            }
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

static void a_lost_exporter_takes_the_rest_of_a_read_along_and_no_more(void) {
    static const char *const lost[] = {"kvx.truncate=1", "kvx.peer_gone=1"};
    sp_side s;
    sp_side_open(&s, sp_side_small());
    const size_t n = s.shape.block_bytes - 64;
    unsigned char *to = sp_alloc(3 * n);
    for (uint32_t b = 0; b < 3; b++) sp_side_seal(&s, b, 5);
    for (int way = 0; way < SP_SIDE_WAYS; way++)
        for (size_t i = 0; i < SP_LEN(lost); i++) {
            sp_kvx *k = sp_side_reader(s.address, s.shape, way);
            sp_kvx_ask a[3];
            sp_kvx_fault f[3];
            for (uint32_t b = 0; b < 3; b++) a[b] = sp_side_whole(&s, to + b * n, b, 5);
            a[0].generation = 4; /* answered before anything is lost, except when nobody is there */
            memset(to, 0xee, 3 * n);
            arm(lost[i]);
            sp_kvx_read(k, a, 3, f);
            arm(NULL);
            CU_ASSERT_EQUAL(f[0], i == 0 ? SP_KVX_STALE : SP_KVX_PEER);
            CU_ASSERT_EQUAL(f[1], SP_KVX_PEER);
            CU_ASSERT_EQUAL(f[2], SP_KVX_PEER);
            CU_ASSERT_EQUAL(written(to + 2 * n, n, 0xee), 0);
            a[0].generation = 5;
            sp_kvx_read(k, a, 3, f);
            for (int b = 0; b < 3; b++) CU_ASSERT(f[b] == SP_KVX_OK && sp_side_came(&s, &a[b], 5));
            sp_kvx_close(k);
        }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* All of it at once and often: each fault is one that was made, and each block that passes is right. */
static void whatever_is_broken_on_purpose_what_passes_is_right(void) {
    sp_side s;
    sp_kvx_shape shape = sp_side_small();
    shape.n_layers = 3;
    sp_side_open(&s, shape);
    unsigned char *to = sp_alloc(3 * s.shape.block_bytes);
    for (uint32_t b = 0; b < 3; b++) sp_side_seal(&s, b, 5);
    for (int way = 0; way < SP_SIDE_WAYS; way++) {
        sp_kvx *k = sp_side_reader(s.address, s.shape, way);
        int seen[SP_KVX_FAULT_COUNT] = {0};
        arm("kvx.corrupt=0.1,kvx.stale=0.1,kvx.foreign=0.1,kvx.truncate=0.05,kvx.peer_gone=0.1@3");
        for (int turn = 0; turn < 150; turn++) {
            sp_kvx_ask a[3];
            sp_kvx_fault f[3];
            memset(to, 0, 3 * s.shape.block_bytes);
            for (uint32_t b = 0; b < 3; b++)
                a[b] = sp_side_whole(&s, to + b * s.shape.block_bytes, b, 5);
            sp_kvx_read(k, a, 3, f);
            for (int b = 0; b < 3; b++) {
                seen[f[b]]++;
                if (f[b] == SP_KVX_OK) CU_ASSERT(sp_side_came(&s, &a[b], 5));
            }
        }
        for (size_t i = 0; i < SP_LEN(points); i++) CU_ASSERT(seen[points[i].want] > 0);
        CU_ASSERT(seen[SP_KVX_OK] > 150);
        CU_ASSERT_EQUAL(seen[SP_KVX_TIMEOUT] + seen[SP_KVX_RANGE] + seen[SP_KVX_IDENTITY], 0);
        arm(NULL);
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

SP_TEST_MAIN("comm/kvx", SP_TEST(any_rectangle_of_a_block_comes_over_by_both_ways),
             SP_TEST(pieces_of_any_size_come_to_any_place),
             SP_TEST(each_block_of_a_read_has_its_own_outcome),
             SP_TEST(a_flipped_bit_anywhere_is_found),
             SP_TEST(the_right_bytes_in_the_wrong_place_have_another_checksum),
             SP_TEST(a_piece_summed_bit_by_bit_has_the_same_checksum),
             SP_TEST(another_model_pod_type_or_life_of_the_exporter_is_refused),
             SP_TEST(an_exporter_that_is_gone_gives_nothing),
             SP_TEST(what_is_no_address_or_no_shape_is_refused_by_name),
             SP_TEST(blocks_that_are_freed_and_used_anew_while_they_are_read_never_pass),
             SP_TEST(a_block_of_another_name_is_foreign),
             SP_TEST(each_fault_point_comes_out_under_its_name_and_leaves_nothing),
             SP_TEST(a_lost_exporter_takes_the_rest_of_a_read_along_and_no_more),
             SP_TEST(whatever_is_broken_on_purpose_what_passes_is_right))
