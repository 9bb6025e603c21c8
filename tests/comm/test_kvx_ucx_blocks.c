/* Covers what comm/kvx_serve.c and kvx_tcp.c do with comm/kvx_ucx.c: blocks come bit by bit, what is
 * not proven is never called right, nobody hangs, and who has no UCX reads over TCP. */
#include "comm/kvx.h"

#include "comm/kvx_part.h"
#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "tests/ucx_cast.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint8_t key[SP_KVX_KEY_BYTES] = "a key that all of the pod know";
static const uint8_t model[SP_KVX_IDENTITY_BYTES] = "a model";

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

/* ---- regions and readers ---- */

typedef struct side {
    sp_kvx_shape shape;
    sp_kvx_region *region;
    unsigned char *kv;
    char address[SP_KVX_ADDRESS_BYTES];
} side;

static sp_kvx_shape shape_of(int32_t tokens, int32_t dim, int32_t layers, int32_t heads,
                             int32_t n) {
    sp_kvx_shape s = {.n_blocks = n,
                      .block_tokens = tokens,
                      .head_dim = dim,
                      .dtype = SP_DTYPE_F32,
                      .layer_first = 3,
                      .n_layers = layers,
                      .head_first = 2,
                      .n_heads = heads};
    s.block_bytes = sp_kvx_piece_bytes(&s) * 2 * (size_t)layers * (size_t)heads + 64;
    return s;
}

static void open_side(side *s, sp_kvx_shape shape, bool ucx) {
    sp_err err = {0};
    sp_kvx_config c = {.shape = shape, .serve_tcp = true, .serve_ucx = ucx, .host = "127.0.0.1"};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, model, sizeof c.identity);
    size_t bytes;
    char tcp[40];
    *s = (side){.shape = shape};
    must(sp_kvx_region_open(&s->region, &c, &err), &err);
    s->kv = sp_kvx_region_memory(s->region, &bytes);
    snprintf(tcp, sizeof tcp, "127.0.0.1:%d", sp_kvx_region_port(s->region));
    must(sp_kvx_region_address(s->region, tcp, s->address, &err), &err);
}

static unsigned char byte_at(uint32_t block, uint32_t version, size_t i) {
    uint64_t h = (i + 1) * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)block * 77 + version * 1009u;
    return (unsigned char)(h >> 29);
}

static uint64_t name_of(uint32_t block) {
    return UINT64_C(0xabcdef0123456789) ^ block;
}

static void fill_and_seal(const side *s, uint32_t block, uint32_t generation) {
    sp_err err = {0};
    unsigned char *p = s->kv + (size_t)block * s->shape.block_bytes;
    for (size_t i = 0; i < s->shape.block_bytes; i++) p[i] = byte_at(block, generation, i);
    must(sp_kvx_seal(s->region, block, generation, name_of(block), &err), &err);
}

static sp_kvx *open_reader(const char *address, sp_kvx_shape shape, bool ucx) {
    sp_err err = {0};
    sp_kvx_reader_config c = {.shape = shape, .ucx = ucx};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, model, sizeof c.identity);
    sp_kvx *k = NULL;
    must(sp_kvx_open(&k, address, &c, &err), &err);
    return k;
}

/* `gap` bytes between runs of the destination: 0, and all of them are side by side. */
static sp_kvx_ask ask_of(const sp_kvx_shape *s, unsigned char *to, uint32_t block,
                         uint32_t generation, int32_t layer, int32_t layers, int32_t head,
                         int32_t heads, size_t gap) {
    size_t run = (size_t)heads * sp_kvx_piece_bytes(s) + gap;
    return (sp_kvx_ask){.block = block,
                        .generation = generation,
                        .name = name_of(block),
                        .layer_first = layer,
                        .n_layers = layers,
                        .head_first = head,
                        .n_heads = heads,
                        .to = to,
                        .layer_stride = 2 * run,
                        .value_offset = run};
}

static sp_kvx_ask whole(const side *s, unsigned char *to, uint32_t block, uint32_t generation) {
    return ask_of(&s->shape, to, block, generation, s->shape.layer_first, s->shape.n_layers,
                  s->shape.head_first, s->shape.n_heads, 0);
}

static sp_kvx_fault read_one(sp_kvx *k, const sp_kvx_ask *a) {
    sp_kvx_fault f = SP_KVX_FAULT_COUNT;
    sp_kvx_read(k, a, 1, &f);
    return f;
}

/* Whether `a` was filled with what was sealed, and nothing between its runs was touched. */
static bool came(const side *s, const sp_kvx_ask *a, size_t gap) {
    const size_t n = sp_kvx_piece_bytes(&s->shape);
    for (int32_t l = 0; l < a->n_layers; l++)
        for (int v = 0; v < 2; v++) {
            const unsigned char *p =
                a->to + (size_t)l * a->layer_stride + (v ? a->value_offset : 0);
            size_t at = sp_kvx_piece_index(&s->shape, a->layer_first + l, v, a->head_first) * n;
            for (size_t i = 0; i < (size_t)a->n_heads * n; i++)
                if (*p++ != byte_at(a->block, a->generation, at + i)) return false;
            for (size_t i = 0; i < gap; i++)
                if (*p++ != 0xee) return false;
        }
    return true;
}

static void any_rectangle_of_blocks_of_many_shapes_comes_over(void) {
    NEEDS_UCX;
    const sp_kvx_shape shapes[] = {
        shape_of(1, 2, 40, 3, 2),    /* pieces of 8 bytes: many runs a message */
        shape_of(8, 6, 24, 4, 3),    /* 192 bytes */
        shape_of(16, 64, 6, 4, 3),   /* 4 KiB */
        shape_of(64, 128, 3, 2, 2),  /* 32 KiB: a run is a message */
        shape_of(256, 256, 2, 3, 2), /* 256 KiB */
    };
    for (size_t i = 0; i < SP_LEN(shapes); i++) {
        side s;
        open_side(&s, shapes[i], true);
        const sp_kvx_shape *h = &s.shape;
        sp_kvx *k = open_reader(s.address, *h, true);
        unsigned char *to = sp_alloc(2 * h->block_bytes + 100000);
        for (uint32_t b = 0; b < (uint32_t)h->n_blocks; b++) fill_and_seal(&s, b, 100 + b);
        for (int32_t l = 0; l < h->n_layers; l += 1 + h->n_layers / 3)
            for (int32_t nl = 1; l + nl <= h->n_layers; nl += 1 + h->n_layers / 3)
                for (int32_t d = 0; d < h->n_heads; d++)
                    for (int32_t nd = 1; d + nd <= h->n_heads; nd++)
                        for (size_t gap = 0; gap <= 13; gap += 13) {
                            uint32_t b = (uint32_t)(l + nl + d + nd) % (uint32_t)h->n_blocks;
                            sp_kvx_ask a = ask_of(h, to, b, 100 + b, 3 + l, nl, 2 + d, nd, gap);
                            size_t n = a.layer_stride * (size_t)nl;
                            memset(to, 0xee, n + 1);
                            CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
                            CU_ASSERT(came(&s, &a, gap));
                            CU_ASSERT_EQUAL(to[n], 0xee);
                        }
        CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "ucx");
        sp_kvx_close(k);
        sp_free(to);
        sp_kvx_region_close(s.region);
    }
}

static void many_asks_ahead_and_asks_above_the_credit_come_over(void) {
    NEEDS_UCX;
    const sp_kvx_shape shapes[] = {shape_of(2, 4, 3, 2, 700), shape_of(128, 128, 40, 4, 2)};
    for (size_t i = 0; i < SP_LEN(shapes); i++) {
        side s;
        open_side(&s, shapes[i], true);
        const int n = s.shape.n_blocks;
        sp_kvx *k = open_reader(s.address, s.shape, true);
        unsigned char *to = sp_alloc((size_t)n * s.shape.block_bytes);
        sp_kvx_ask *a = sp_alloc((size_t)n * sizeof *a);
        sp_kvx_fault *f = sp_alloc((size_t)n * sizeof *f);
        for (int b = 0; b < n; b++) {
            fill_and_seal(&s, (uint32_t)b, 7);
            a[b] = whole(&s, to + (size_t)b * s.shape.block_bytes, (uint32_t)b, 7);
        }
        for (int b = 5; b < n; b += 9) a[b].generation = 8; /* faults among them */
        sp_kvx_read(k, a, n, f);
        for (int b = 0; b < n; b++) {
            const bool bad = a[b].generation == 8;
            CU_ASSERT_EQUAL(f[b], bad ? SP_KVX_STALE : SP_KVX_OK);
            if (!bad) CU_ASSERT(came(&s, &a[b], 0));
        }
        CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "ucx");
        sp_kvx_close(k);
        sp_free(to);
        sp_free(a);
        sp_free(f);
        sp_kvx_region_close(s.region);
    }
}

static void each_block_of_a_read_has_its_own_outcome(void) {
    NEEDS_UCX;
    side s;
    sp_err err = {0};
    open_side(&s, shape_of(16, 16, 12, 4, 9), true);
    unsigned char *to = sp_alloc(9 * s.shape.block_bytes);
    for (uint32_t b = 0; b < 9; b++) fill_and_seal(&s, b, 7 + b);
    must(sp_kvx_free(s.region, 1, 8, &err), &err);
    fill_and_seal(&s, 2, 1000);
    s.kv[3 * s.shape.block_bytes + 777] ^= 4;
    sp_kvx *k = open_reader(s.address, s.shape, true);
    sp_kvx_ask a[12];
    sp_kvx_fault f[12];
    for (uint32_t b = 0; b < 9; b++) a[b] = whole(&s, to + b * s.shape.block_bytes, b, 7 + b);
    for (int i = 9; i < 12; i++) a[i] = whole(&s, to, 0, 7);
    a[4].block = 9;
    a[5].layer_first--;
    a[6].n_heads++;
    a[7].name ^= 1;
    a[9].n_layers = INT32_MAX;
    a[10].n_heads = 0;
    a[11].generation = 0;
    for (int round = 0; round < 3; round++) {
        sp_kvx_read(k, a, 12, f);
        static const sp_kvx_fault want[12] = {SP_KVX_OK,       SP_KVX_STALE,   SP_KVX_STALE,
                                              SP_KVX_CHECKSUM, SP_KVX_RANGE,   SP_KVX_RANGE,
                                              SP_KVX_RANGE,    SP_KVX_FOREIGN, SP_KVX_OK,
                                              SP_KVX_RANGE,    SP_KVX_RANGE,   SP_KVX_STALE};
        for (int i = 0; i < 12; i++) {
            CU_ASSERT_EQUAL(f[i], want[i]);
            if (f[i] == SP_KVX_OK) CU_ASSERT(came(&s, &a[i], 0));
        }
        CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "ucx"); /* the connection has not suffered */
    }
    sp_kvx_close(k);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

static void another_pod_or_model_gets_nothing_by_ucx_either(void) {
    NEEDS_UCX;
    side s;
    open_side(&s, shape_of(8, 6, 4, 4, 2), true);
    fill_and_seal(&s, 0, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 0, 5);
    for (int kind = 0; kind < 2; kind++) {
        sp_err err = {0};
        sp_kvx_reader_config c = {.shape = s.shape, .ucx = true};
        memcpy(c.key, key, sizeof c.key);
        memcpy(c.identity, model, sizeof c.identity);
        (kind ? c.identity : c.key)[0] ^= 1;
        sp_kvx *k = NULL;
        must(sp_kvx_open(&k, s.address, &c, &err), &err);
        CU_ASSERT_EQUAL(read_one(k, &a), kind ? SP_KVX_IDENTITY : SP_KVX_PEER);
        CU_ASSERT_EQUAL(to[0], 0);
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* CUnit's assertions are for one thread: readers count. */
typedef struct crowd {
    const side *s;
    sp_thread thread;
    int rounds, wrong;
} crowd;

static void *one_of_a_crowd(void *arg) {
    crowd *c = arg;
    const side *s = c->s;
    unsigned char *to = sp_alloc(s->shape.block_bytes);
    for (int i = 0; i < c->rounds; i++) {
        sp_kvx_reader_config rc = {.shape = s->shape, .ucx = true};
        sp_kvx *k = NULL;
        memcpy(rc.key, key, sizeof rc.key);
        memcpy(rc.identity, model, sizeof rc.identity);
        if (sp_kvx_open(&k, s->address, &rc, NULL) != SP_OK) {
            c->wrong++;
            break;
        }
        for (uint32_t b = 0; b < (uint32_t)s->shape.n_blocks; b++) {
            sp_kvx_ask a = whole(s, to, b, 5);
            c->wrong += read_one(k, &a) != SP_KVX_OK || !came(s, &a, 0);
        }
        c->wrong += strcmp(sp_kvx_way(k), "ucx") != 0;
        sp_kvx_close(k);
    }
    sp_free(to);
    return NULL;
}

static int descriptors(void) {
    int n = 0;
    for (int fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void many_readers_at_once_share_the_exporters_home_and_leave_nothing_behind(void) {
    NEEDS_UCX;
    side s;
    sp_err err = {0};
    open_side(&s, shape_of(32, 32, 6, 4, 6), true);
    for (uint32_t b = 0; b < 6; b++) fill_and_seal(&s, b, 5);
    const int before = descriptors();
    crowd c[5] = {0};
    for (size_t i = 0; i < SP_LEN(c); i++) {
        c[i].s = &s;
        c[i].rounds = 3;
        must(sp_thread_start(&c[i].thread, "crowd", one_of_a_crowd, &c[i], &err), &err);
    }
    for (size_t i = 0; i < SP_LEN(c); i++) {
        sp_thread_join(&c[i].thread);
        CU_ASSERT_EQUAL(c[i].wrong, 0);
    }
    /* Connections that have ended are cleared away when the next reader comes; the last one is not. */
    const int64_t until = sp_now_ns() + 10 * SP_NS_PER_S;
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 0, 5);
    do {
        sp_kvx *k = open_reader(s.address, s.shape, false);
        CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
        sp_kvx_close(k);
    } while (descriptors() > before + 2 && sp_now_ns() < until);
    CU_ASSERT(descriptors() <= before + 2);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* ---- without UCX ---- */

/* Reads twice and counts the lines in which either side says that it stays with tcp. */
static int lines_of_staying(const side *s, bool reader_ucx, const char *way) {
    char text[4096] = "";
    FILE *log = tmpfile();
    int n = 0, old = dup(STDERR_FILENO);
    CU_ASSERT_FATAL(log != NULL && old >= 0);
    unsigned char *to = sp_alloc(s->shape.block_bytes);
    sp_kvx_ask a = whole(s, to, 0, 5);
    sp_kvx *k = open_reader(s->address, s->shape, reader_ucx);
    fflush(stderr);
    dup2(fileno(log), STDERR_FILENO);
    sp_kvx_fault f[2] = {read_one(k, &a), read_one(k, &a)};
    dup2(old, STDERR_FILENO);
    close(old);
    CU_ASSERT_EQUAL(f[0], SP_KVX_OK);
    CU_ASSERT_EQUAL(f[1], SP_KVX_OK);
    CU_ASSERT(came(s, &a, 0));
    CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), way);
    sp_kvx_close(k);
    sp_free(to);
    rewind(log);
    text[fread(text, 1, sizeof text - 1, log)] = 0;
    fclose(log);
    for (const char *p = text; (p = strstr(p, "KV blocks come by tcp, not ucx")) != NULL; p++) n++;
    return n;
}

static void without_ucx_at_either_side_blocks_come_by_tcp_and_that_is_said_once(void) {
    NEEDS_UCX;
    for (int i = 0; i < 4; i++) {
        const bool exporter = i & 1, reader = i & 2;
        side s;
        open_side(&s, shape_of(8, 6, 4, 4, 2), exporter);
        fill_and_seal(&s, 0, 5);
        const int lines = lines_of_staying(&s, reader, exporter && reader ? "ucx" : "tcp");
        CU_ASSERT_EQUAL(lines, reader && !exporter);
        sp_kvx_region_close(s.region);
    }
}

/* Workers that have nothing but themselves to talk to. */
static void addresses_that_do_not_lead_there_end_in_tcp(void) {
    NEEDS_UCX;
    const char *before = getenv("UCX_TLS");
    char *kept = before ? strdup(before) : NULL;
    setenv("UCX_TLS", "self", 1);
    side s;
    open_side(&s, shape_of(8, 6, 4, 4, 2), true);
    fill_and_seal(&s, 0, 5);
    CU_ASSERT_EQUAL(lines_of_staying(&s, true, "tcp"), 1);
    sp_kvx_region_close(s.region);
    if (kept)
        setenv("UCX_TLS", kept, 1);
    else
        unsetenv("UCX_TLS");
    free(kept);
}

/* ---- what goes wrong on the way ---- */

static void an_exporter_that_ends_in_the_middle_is_a_lost_peer_and_then_left_to_tcp(void) {
    NEEDS_UCX;
    side s;
    sp_err err = {0};
    open_side(&s, shape_of(64, 64, 8, 4, 4), true);
    for (uint32_t b = 0; b < 4; b++) fill_and_seal(&s, b, 5);
    unsigned char *to = sp_alloc(4 * s.shape.block_bytes);
    sp_kvx_ask a[4];
    sp_kvx_fault f[4];
    for (uint32_t b = 0; b < 4; b++) a[b] = whole(&s, to + b * s.shape.block_bytes, b, 5);
    sp_kvx *k = open_reader(s.address, s.shape, true);
    must(sp_chaos_setup("kvx.truncate=1@3", &err), &err);
    for (int i = 0; i < 2; i++) {
        sp_kvx_read(k, a, 4, f);
        for (int b = 0; b < 4; b++) CU_ASSERT_EQUAL(f[b], SP_KVX_PEER);
    }
    must(sp_chaos_setup("", &err), &err);
    sp_kvx_read(k, a, 4, f);
    for (int b = 0; b < 4; b++) CU_ASSERT(f[b] == SP_KVX_OK && came(&s, &a[b], 0));
    CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "tcp"); /* twice in a row: not a third time */
    sp_kvx_close(k);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

static void a_region_that_is_closed_is_a_lost_peer(void) {
    NEEDS_UCX;
    side s;
    open_side(&s, shape_of(8, 6, 4, 4, 2), true);
    fill_and_seal(&s, 0, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 0, 5);
    sp_kvx *k = open_reader(s.address, s.shape, true);
    CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
    sp_kvx_region_close(s.region);
    CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_PEER);
    CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_PEER);
    sp_kvx_close(k);
    sp_free(to);
}

static _Atomic uint64_t leased;

static void on_lease(void *ctx, uint64_t lease, bool renew) {
    (void)ctx;
    leased = lease * 2 + renew;
}

static void a_lease_is_told_of_between_reads_by_ucx(void) {
    NEEDS_UCX;
    side s = {.shape = shape_of(8, 6, 4, 4, 2)};
    sp_err err = {0};
    sp_kvx_config c = {.shape = s.shape,
                       .serve_tcp = true,
                       .serve_ucx = true,
                       .host = "127.0.0.1",
                       .on_lease = on_lease};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, model, sizeof c.identity);
    char tcp[40];
    size_t bytes;
    must(sp_kvx_region_open(&s.region, &c, &err), &err);
    s.kv = sp_kvx_region_memory(s.region, &bytes);
    snprintf(tcp, sizeof tcp, "127.0.0.1:%d", sp_kvx_region_port(s.region));
    must(sp_kvx_region_address(s.region, tcp, s.address, &err), &err);
    fill_and_seal(&s, 0, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 0, 5);
    sp_kvx *k = open_reader(s.address, s.shape, true);
    for (uint64_t i = 1; i < 6; i++) {
        CU_ASSERT_EQUAL(sp_kvx_lease(k, i, i & 1), SP_KVX_OK);
        CU_ASSERT_EQUAL(leased, i * 2 + (i & 1));
        CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
    }
    CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "ucx");
    sp_kvx_close(k);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* ---- an exporter that is a process of its own ---- */

typedef struct other {
    side s; /* no region: it is the other's */
    pid_t pid;
    int to, from;
} other;

/* `storm`: block 0 is freed and used anew as fast as it goes; its generation, in memory of both. */
static int other_main(sp_kvx_shape shape, int from_parent, int to_parent, _Atomic uint32_t *storm) {
    side s;
    char c;
    open_side(&s, shape, true);
    for (uint32_t b = 0; b < (uint32_t)shape.n_blocks; b++) fill_and_seal(&s, b, 5);
    if (write(to_parent, s.address, sizeof s.address) != sizeof s.address) return 1;
    if (!storm) return read(from_parent, &c, 1) < 0; /* until the parent has done */
    fcntl(from_parent, F_SETFL, O_NONBLOCK);
    *storm = 5;
    for (uint32_t gen = 5; read(from_parent, &c, 1) < 0; gen++) {
        const int64_t until = sp_now_ns() + (gen % 16) * (40 + gen / 16) * SP_NS_PER_US;
        while (sp_now_ns() < until) sched_yield();
        if (sp_kvx_free(s.region, 0, gen, NULL) != SP_OK) return 2;
        fill_and_seal(&s, 0, gen + 1);
        *storm = gen + 1;
    }
    sp_kvx_region_close(s.region);
    return 0;
}

static void open_other(other *o, sp_kvx_shape shape, _Atomic uint32_t *storm) {
    int down[2], up[2];
    *o = (other){.s.shape = shape};
    CU_ASSERT_FATAL(pipe2(down, O_CLOEXEC) == 0 && pipe2(up, O_CLOEXEC) == 0);
    fflush(NULL);
    o->pid = fork();
    CU_ASSERT_FATAL(o->pid >= 0);
    if (o->pid == 0) {
        close(down[1]);
        close(up[0]);
        _exit(other_main(shape, down[0], up[1], storm));
    }
    close(down[0]);
    close(up[1]);
    o->to = down[1];
    o->from = up[0];
    CU_ASSERT_EQUAL_FATAL(read(o->from, o->s.address, sizeof o->s.address), sizeof o->s.address);
}

static int close_other(other *o) {
    int status = 0;
    close(o->to);
    waitpid(o->pid, &status, 0);
    close(o->from);
    return status;
}

/* Returns when it has stopped, and not before: it could still answer. */
static void stop_other(const other *o) {
    int status = 0;
    kill(o->pid, SIGSTOP);
    waitpid(o->pid, &status, WUNTRACED);
    CU_ASSERT(WIFSTOPPED(status));
}

typedef struct reading {
    sp_kvx *k;
    const sp_kvx_ask *a;
    int n;
    sp_kvx_fault *f;
    _Atomic bool over;
} reading;

static void *read_thread(void *arg) {
    reading *r = arg;
    sp_kvx_read(r->k, r->a, r->n, r->f);
    r->over = true;
    return NULL;
}

static void an_exporter_that_is_killed_in_the_middle_is_a_lost_peer(void) {
    NEEDS_PROCESSES;
    enum {
        N = 48
    };
    other o;
    sp_err err = {0};
    open_other(&o, shape_of(64, 64, 8, 8, N), NULL); /* blocks of 2 MiB */
    const size_t bytes = o.s.shape.block_bytes;
    unsigned char *to = sp_alloc(N * bytes);
    sp_kvx_ask a[N];
    sp_kvx_fault f[N];
    for (uint32_t b = 0; b < N; b++) a[b] = whole(&o.s, to + b * bytes, b, 5);
    sp_kvx *k = open_reader(o.s.address, o.s.shape, true);
    CU_ASSERT_EQUAL(read_one(k, &a[0]), SP_KVX_OK);
    CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "ucx");
    /* Killed when the first bytes of block 2 are here: most are still to come. */
    _Atomic unsigned char *seen = (_Atomic unsigned char *)(to + 2 * bytes + 64);
    const int64_t began = sp_now_ns();
    reading r = {.k = k, .a = a, .n = N, .f = f};
    sp_thread t = {0};
    must(sp_thread_start(&t, "reading", read_thread, &r, &err), &err);
    while (*seen == 0 && !r.over) sched_yield();
    kill(o.pid, SIGKILL);
    sp_thread_join(&t);
    CU_ASSERT(sp_now_ns() - began < 8 * SP_NS_PER_S);
    int lost = 0;
    for (int b = 0; b < N; b++) {
        lost += f[b] == SP_KVX_PEER;
        CU_ASSERT(f[b] == SP_KVX_PEER || (f[b] == SP_KVX_OK && came(&o.s, &a[b], 0)));
    }
    CU_ASSERT(lost > 0);
    sp_free(to); /* asan: nobody writes there any more, nor below */
    to = sp_alloc(bytes);
    a[0] = whole(&o.s, to, 0, 5);
    CU_ASSERT_EQUAL(read_one(k, &a[0]), SP_KVX_PEER);
    sp_kvx_close(k);
    sp_free(to);
    close_other(&o);
}

typedef struct greedy {
    pid_t pid;
    int to, from;
} greedy;

/* Waits for an address; then reads on and on, with a byte to the parent for each read that was right. */
static int greedy_main(side *s, int from_parent, int to_parent) {
    if (read(from_parent, s->address, sizeof s->address) != sizeof s->address) return 2;
    unsigned char *to = sp_alloc(s->shape.block_bytes);
    sp_kvx *k = open_reader(s->address, s->shape, true);
    for (uint32_t b = 0;; b = (b + 1) % (uint32_t)s->shape.n_blocks) {
        sp_kvx_ask a = whole(s, to, b, 5);
        if (read_one(k, &a) != SP_KVX_OK || strcmp(sp_kvx_way(k), "ucx") != 0) return 1;
        if (write(to_parent, "r", 1) != 1) return 1;
    }
}

static void start_greedy(greedy *g, side *s) {
    int down[2], up[2];
    CU_ASSERT_FATAL(pipe2(down, O_CLOEXEC) == 0 && pipe2(up, O_CLOEXEC) == 0);
    fflush(NULL);
    g->pid = fork();
    CU_ASSERT_FATAL(g->pid >= 0);
    if (g->pid == 0) {
        close(down[1]);
        close(up[0]);
        _exit(greedy_main(s, down[0], up[1]));
    }
    close(down[0]);
    close(up[1]);
    g->to = down[1];
    g->from = up[0];
}

static void a_reader_that_is_killed_does_not_take_the_exporter_with_it(void) {
    NEEDS_PROCESSES;
    enum {
        N = 6
    };
    side s = {.shape = shape_of(64, 64, 8, 8, 4)}; /* blocks of 2 MiB */
    greedy g[N];
    /* Before there is any UCX here: its threads do not come along. */
    for (int i = 0; i < N; i++) start_greedy(&g[i], &s);
    open_side(&s, s.shape, true);
    for (uint32_t b = 0; b < 4; b++) fill_and_seal(&s, b, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 1, 5);
    for (int i = 0; i < N; i++) {
        char c;
        int status = 0;
        CU_ASSERT_EQUAL(write(g[i].to, s.address, sizeof s.address), sizeof s.address);
        for (int k = 0; k < 2; k++) CU_ASSERT_EQUAL(read(g[i].from, &c, 1), 1);
        const int64_t until = sp_now_ns() + i * 200 * SP_NS_PER_US; /* somewhere in a later one */
        while (sp_now_ns() < until) sched_yield();
        kill(g[i].pid, SIGKILL);
        waitpid(g[i].pid, &status, 0);
        CU_ASSERT(WIFSIGNALED(status));
        close(g[i].to);
        close(g[i].from);
        sp_kvx *k = open_reader(s.address, s.shape, true);
        CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
        CU_ASSERT(came(&s, &a, 0));
        CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "ucx");
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

static void a_stopped_exporter_is_a_timeout_and_read_again_when_it_goes_on(void) {
    NEEDS_PROCESSES;
    other o;
    open_other(&o, shape_of(32, 32, 8, 8, 2), NULL);
    unsigned char *to = sp_alloc(o.s.shape.block_bytes);
    sp_kvx_ask a = whole(&o.s, to, 1, 5);
    sp_kvx *k = open_reader(o.s.address, o.s.shape, true);
    CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
    stop_other(&o);
    const int64_t began = sp_now_ns();
    CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_TIMEOUT);
    CU_ASSERT(sp_now_ns() - began < 4 * SP_NS_PER_S);
    kill(o.pid, SIGCONT);
    memset(to, 0, o.s.shape.block_bytes);
    CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
    CU_ASSERT(came(&o.s, &a, 0));
    CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "ucx");
    sp_kvx_close(k);
    sp_free(to);
    CU_ASSERT_EQUAL(close_other(&o), 0);
}

static void a_cancelled_read_ends_at_once_and_lets_its_destination_go(void) {
    NEEDS_PROCESSES;
    enum {
        N = 16
    };
    other o;
    sp_err err = {0};
    open_other(&o, shape_of(64, 64, 8, 8, N), NULL);
    const size_t bytes = o.s.shape.block_bytes;
    unsigned char *to = sp_alloc(N * bytes);
    sp_kvx_ask a[N];
    sp_kvx_fault f[N];
    for (uint32_t b = 0; b < N; b++) a[b] = whole(&o.s, to + b * bytes, b, 5);
    sp_kvx *k = open_reader(o.s.address, o.s.shape, true);
    CU_ASSERT_EQUAL(read_one(k, &a[0]), SP_KVX_OK);
    stop_other(&o);
    reading r = {.k = k, .a = a, .n = N, .f = f};
    sp_thread t = {0};
    must(sp_thread_start(&t, "reading", read_thread, &r, &err), &err);
    const int64_t began = sp_now_ns();
    sp_kvx_cancel(k);
    sp_thread_join(&t);
    CU_ASSERT(sp_now_ns() - began < SP_NS_PER_S);
    for (int b = 0; b < N; b++) CU_ASSERT_EQUAL(f[b], SP_KVX_PEER);
    sp_free(to);
    kill(o.pid, SIGCONT);
    sp_kvx_close(k);
    CU_ASSERT_EQUAL(close_other(&o), 0);
}

static void blocks_used_anew_while_they_are_read_never_pass(void) {
    NEEDS_PROCESSES;
    other o;
    _Atomic uint32_t *now =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CU_ASSERT_FATAL(now != MAP_FAILED);
    open_other(&o, shape_of(16, 16, 12, 4, 2), now);
    unsigned char *to = sp_alloc(o.s.shape.block_bytes);
    sp_kvx *k = open_reader(o.s.address, o.s.shape, true);
    int right = 0, stale = 0, wrong = 0;
    const int64_t until = sp_now_ns() + 5 * SP_NS_PER_S;
    while (!wrong && (right < 100 || stale < 100) && sp_now_ns() < until) {
        sp_kvx_ask a = whole(&o.s, to, 0, *now);
        const sp_kvx_fault f = read_one(k, &a);
        right += f == SP_KVX_OK;
        stale += f == SP_KVX_STALE;
        wrong += f != SP_KVX_STALE && (f != SP_KVX_OK || !came(&o.s, &a, 0));
    }
    CU_ASSERT_EQUAL(wrong, 0);
    CU_ASSERT(stale > 10 && right > 10);
    CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), "ucx");
    sp_kvx_close(k);
    sp_free(to);
    CU_ASSERT_EQUAL(close_other(&o), 0);
    munmap((void *)(uintptr_t)now, 4096);
}

SP_TEST_MAIN("comm/kvx_ucx_blocks", SP_TEST(any_rectangle_of_blocks_of_many_shapes_comes_over),
             SP_TEST(many_asks_ahead_and_asks_above_the_credit_come_over),
             SP_TEST(each_block_of_a_read_has_its_own_outcome),
             SP_TEST(another_pod_or_model_gets_nothing_by_ucx_either),
             SP_TEST(many_readers_at_once_share_the_exporters_home_and_leave_nothing_behind),
             SP_TEST(without_ucx_at_either_side_blocks_come_by_tcp_and_that_is_said_once),
             SP_TEST(addresses_that_do_not_lead_there_end_in_tcp),
             SP_TEST(an_exporter_that_ends_in_the_middle_is_a_lost_peer_and_then_left_to_tcp),
             SP_TEST(a_region_that_is_closed_is_a_lost_peer),
             SP_TEST(a_lease_is_told_of_between_reads_by_ucx),
             SP_TEST(an_exporter_that_is_killed_in_the_middle_is_a_lost_peer),
             SP_TEST(a_reader_that_is_killed_does_not_take_the_exporter_with_it),
             SP_TEST(a_stopped_exporter_is_a_timeout_and_read_again_when_it_goes_on),
             SP_TEST(a_cancelled_read_ends_at_once_and_lets_its_destination_go),
             SP_TEST(blocks_used_anew_while_they_are_read_never_pass))
