/* Covers comm/kvx*.c: what a reader gets of a region, by both ways, and that nothing that is not
 * proven is ever called right. The faults of a network are made by a relay between the two ends. */
#include "comm/kvx.h"

#include "comm/kvx_part.h"
#include "comm/secret.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint8_t key[SP_KVX_KEY_BYTES] = "a key that all of the pod know";
static const uint8_t model_a[SP_KVX_IDENTITY_BYTES] = "model a";

/* 24 layers 3.., 4 heads 2..; pieces of 8 x 6 floats; blocks with something after the pieces. */
static sp_kvx_shape small(void) {
    sp_kvx_shape s = {.n_blocks = 9,
                      .block_tokens = 8,
                      .head_dim = 6,
                      .dtype = SP_DTYPE_F32,
                      .layer_first = 3,
                      .n_layers = 24,
                      .head_first = 2,
                      .n_heads = 4};
    s.block_bytes = sp_kvx_piece_bytes(&s) * 24 * 2 * 4 + 64;
    return s;
}

typedef struct side {
    sp_kvx_shape shape;
    sp_kvx_region *region;
    unsigned char *kv;
    char address[SP_KVX_ADDRESS_BYTES];
    int port;
} side;

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

static void address_at(const side *s, int port, char out[SP_KVX_ADDRESS_BYTES]) {
    char tcp[40] = "";
    sp_err err = {0};
    if (port) snprintf(tcp, sizeof tcp, "127.0.0.1:%d", port);
    must(sp_kvx_region_address(s->region, tcp, out, &err), &err);
}

static void open_side(side *s, sp_kvx_shape shape) {
    sp_err err = {0};
    sp_kvx_config c = {.shape = shape, .serve_shm = true, .serve_tcp = true, .host = "127.0.0.1"};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, model_a, sizeof c.identity);
    size_t bytes;
    *s = (side){.shape = shape};
    must(sp_kvx_region_open(&s->region, &c, &err), &err);
    s->kv = sp_kvx_region_memory(s->region, &bytes);
    CU_ASSERT_EQUAL(bytes, shape.block_bytes * (size_t)shape.n_blocks);
    s->port = sp_kvx_region_port(s->region);
    address_at(s, s->port, s->address);
}

static unsigned char byte_at(uint32_t block, uint32_t version, size_t i) {
    uint64_t h = (i + 1) * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)block * 77 + version * 1009u;
    return (unsigned char)(h >> 29);
}

static void fill(const side *s, uint32_t block, uint32_t version) {
    unsigned char *p = s->kv + (size_t)block * s->shape.block_bytes;
    for (size_t i = 0; i < s->shape.block_bytes; i++) p[i] = byte_at(block, version, i);
}

static void fill_and_seal(const side *s, uint32_t block, uint32_t generation) {
    sp_err err = {0};
    fill(s, block, generation);
    must(sp_kvx_seal(s->region, block, generation, &err), &err);
}

enum {
    SHM,
    TCP,
    WAYS
};

static sp_kvx *open_reader(const char *address, sp_kvx_shape shape, int way) {
    sp_err err = {0};
    sp_kvx_reader_config c = {.shape = shape, .same_node = way == SHM};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, model_a, sizeof c.identity);
    sp_kvx *k = NULL;
    must(sp_kvx_open(&k, address, &c, &err), &err);
    CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), way == SHM ? "shm" : "tcp");
    return k;
}

/* An ask for a rectangle of a block into memory of its own layout: heads of this reader only. */
static sp_kvx_ask ask_of(const sp_kvx_shape *s, unsigned char *to, uint32_t block,
                         uint32_t generation, int32_t layer, int32_t layers, int32_t head,
                         int32_t heads) {
    size_t run = (size_t)heads * sp_kvx_piece_bytes(s);
    return (sp_kvx_ask){.block = block,
                        .generation = generation,
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
                  s->shape.head_first, s->shape.n_heads);
}

static sp_kvx_fault read_one(sp_kvx *k, const sp_kvx_ask *a) {
    sp_kvx_fault f = SP_KVX_FAULT_COUNT;
    sp_kvx_read(k, a, 1, &f);
    return f;
}

/* Whether `a` was filled with what fill() wrote. */
static bool came(const side *s, const sp_kvx_ask *a, uint32_t version) {
    const size_t n = sp_kvx_piece_bytes(&s->shape);
    for (int32_t l = 0; l < a->n_layers; l++)
        for (int v = 0; v < 2; v++)
            for (int32_t h = 0; h < a->n_heads; h++) {
                size_t at = sp_kvx_piece_index(&s->shape, a->layer_first + l, v, a->head_first + h);
                const unsigned char *p =
                    a->to + (size_t)l * a->layer_stride + (v ? a->value_offset : 0) + (size_t)h * n;
                for (size_t i = 0; i < n; i++)
                    if (p[i] != byte_at(a->block, version, at * n + i)) return false;
            }
    return true;
}

static void any_rectangle_of_a_block_comes_over_by_both_ways(void) {
    side s;
    open_side(&s, small());
    unsigned char *to = sp_alloc(s.shape.block_bytes + 1);
    for (uint32_t b = 0; b < 9; b++) fill_and_seal(&s, b, 100 + b);
    for (int way = 0; way < WAYS; way++) {
        sp_kvx *k = open_reader(s.address, s.shape, way);
        for (int32_t l = 3; l < 27; l += 5)
            for (int32_t nl = 1; l + nl <= 27; nl += 7)
                for (int32_t h = 2; h < 6; h++)
                    for (int32_t nh = 1; h + nh <= 6; nh++) {
                        uint32_t b = (uint32_t)(l + nl + h + nh) % 9;
                        sp_kvx_ask a = ask_of(&s.shape, to, b, 100 + b, l, nl, h, nh);
                        size_t n = a.layer_stride * (size_t)nl;
                        memset(to, 0xee, s.shape.block_bytes + 1);
                        CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
                        CU_ASSERT(came(&s, &a, 100 + b));
                        CU_ASSERT_EQUAL(to[n], 0xee);
                    }
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

static void each_block_of_a_read_has_its_own_outcome(void) {
    side s;
    sp_err err = {0};
    open_side(&s, small());
    unsigned char *to = sp_alloc(9 * s.shape.block_bytes);
    for (uint32_t b = 0; b < 9; b++) fill_and_seal(&s, b, 7 + b);
    must(sp_kvx_free(s.region, 1, 8, &err), &err);
    fill_and_seal(&s, 2, 1000);
    s.kv[3 * s.shape.block_bytes + 777] ^= 4;
    must(sp_kvx_free(s.region, 8, 99, &err), &err); /* of another generation: nothing */
    for (int way = 0; way < WAYS; way++) {
        sp_kvx *k = open_reader(s.address, s.shape, way);
        sp_kvx_ask a[12];
        sp_kvx_fault f[12];
        for (uint32_t b = 0; b < 9; b++) a[b] = whole(&s, to + b * s.shape.block_bytes, b, 7 + b);
        a[4].block = 9;
        a[5].layer_first--;
        a[6].n_heads++;
        a[9] = whole(&s, to, 0, 7);
        a[9].n_layers = INT32_MAX;
        a[10] = whole(&s, to, 0, 7);
        a[10].n_heads = 0;
        a[11] = whole(&s, to, 0, 0);
        sp_kvx_read(k, a, 12, f);
        static const sp_kvx_fault want[12] = {
            SP_KVX_OK,    SP_KVX_STALE, SP_KVX_STALE, SP_KVX_CHECKSUM, SP_KVX_RANGE, SP_KVX_RANGE,
            SP_KVX_RANGE, SP_KVX_OK,    SP_KVX_OK,    SP_KVX_RANGE,    SP_KVX_RANGE, SP_KVX_STALE};
        for (int i = 0; i < 12; i++) {
            if (f[i] != want[i])
                fprintf(stderr, "way %d ask %d: %s, want %s\n", way, i, sp_kvx_fault_name(f[i]),
                        sp_kvx_fault_name(want[i]));
            CU_ASSERT_EQUAL(f[i], want[i]);
            if (f[i] == SP_KVX_OK) CU_ASSERT(came(&s, &a[i], a[i].generation));
        }
        /* The connection has not suffered. */
        a[2].generation = 1000;
        CU_ASSERT_EQUAL(read_one(k, &a[2]), SP_KVX_OK);
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* Every byte of a block is under a checksum, and no other bit pattern of the same piece passes. */
static void a_flipped_bit_anywhere_is_found(void) {
    side s;
    sp_kvx_shape shape = small();
    shape.n_layers = 2;
    open_side(&s, shape);
    fill_and_seal(&s, 4, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    const size_t n = sp_kvx_piece_bytes(&shape) * 2 * 2 * 4;
    for (int way = 0; way < WAYS; way++) {
        sp_kvx *k = open_reader(s.address, s.shape, way);
        sp_kvx_ask a = whole(&s, to, 4, 5);
        for (size_t i = 0; i < n; i += way == SHM ? 1 : 17) {
            unsigned char *p = s.kv + 4 * s.shape.block_bytes + i,
                          bit = (unsigned char)(1 << i % 8);
            *p ^= bit;
            CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_CHECKSUM);
            *p ^= bit;
        }
        CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
        sp_kvx_close(k);
    }
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* All pieces hold the same bytes, so only the seed tells them apart. */
static void the_right_bytes_in_the_wrong_place_have_another_checksum(void) {
    sp_kvx_shape s = small();
    uint8_t model_b[SP_KVX_IDENTITY_BYTES] = "model b", key_b[SP_KVX_KEY_BYTES] = "another pod";
    const char same[64] = "the same bytes everywhere";
    uint64_t seen[400];
    size_t n = 0;
    const uint64_t bases[] = {sp_kvx_seed_base(key, model_a, &s),
                              sp_kvx_seed_base(key, model_b, &s),
                              sp_kvx_seed_base(key_b, model_a, &s)};
    for (size_t b = 0; b < SP_LEN(bases); b++)
        for (uint32_t block = 0; block < 3; block++)
            for (uint32_t gen = 1; gen < 4; gen++)
                for (int32_t layer = 0; layer < 3; layer++)
                    for (int place = 0; place < 4; place++)
                        seen[n++] = sp_kvx_sum(sp_kvx_seed_block(bases[b], block, gen), layer,
                                               place & 1, place / 2, same, sizeof same);
    int twice = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) twice += seen[i] == seen[j];
    CU_ASSERT_EQUAL(n, 324);
    CU_ASSERT_EQUAL(twice, 0);
}

static sp_kvx_fault read_as(const side *s, const char *address, const uint8_t *by_key,
                            const uint8_t *identity, sp_kvx_shape shape, int way) {
    sp_err err = {0};
    sp_kvx_reader_config c = {.shape = shape, .same_node = way == SHM};
    memcpy(c.key, by_key, sizeof c.key);
    memcpy(c.identity, identity, sizeof c.identity);
    sp_kvx *k = NULL;
    must(sp_kvx_open(&k, address, &c, &err), &err);
    unsigned char *to = sp_alloc(s->shape.block_bytes);
    sp_kvx_ask a = whole(s, to, 0, 5);
    sp_kvx_fault f = read_one(k, &a);
    CU_ASSERT_EQUAL(read_one(k, &a), f); /* it does not get better by asking again */
    sp_kvx_close(k);
    sp_free(to);
    return f;
}

static void another_model_pod_type_or_life_of_the_exporter_is_refused(void) {
    side s;
    uint8_t model_b[SP_KVX_IDENTITY_BYTES] = "model b", key_b[SP_KVX_KEY_BYTES] = "another pod";
    open_side(&s, small());
    fill_and_seal(&s, 0, 5);
    for (int way = 0; way < WAYS; way++) {
        sp_kvx_shape f16 = s.shape, longer = s.shape, wide = s.shape;
        char other_life[SP_KVX_ADDRESS_BYTES];
        f16.dtype = SP_DTYPE_F16;
        longer.block_tokens *= 2;
        wide.head_dim++;
        snprintf(other_life, sizeof other_life, "%s", s.address);
        other_life[6] = other_life[6] == '0' ? '1' : '0';
        CU_ASSERT_EQUAL(read_as(&s, s.address, key, model_a, s.shape, way), SP_KVX_OK);
        CU_ASSERT_EQUAL(read_as(&s, s.address, key, model_b, s.shape, way), SP_KVX_IDENTITY);
        CU_ASSERT_EQUAL(read_as(&s, s.address, key, model_a, f16, way), SP_KVX_IDENTITY);
        CU_ASSERT_EQUAL(read_as(&s, s.address, key, model_a, longer, way), SP_KVX_IDENTITY);
        CU_ASSERT_EQUAL(read_as(&s, s.address, key, model_a, wide, way), SP_KVX_IDENTITY);
        CU_ASSERT_EQUAL(read_as(&s, s.address, key_b, model_a, s.shape, way), SP_KVX_PEER);
        CU_ASSERT_EQUAL(read_as(&s, other_life, key, model_a, s.shape, way), SP_KVX_PEER);
    }
    CU_ASSERT(sp_kvx_region_refused(s.region) >= 4);
    sp_kvx_region_close(s.region);
}

static void an_exporter_that_is_gone_gives_nothing(void) {
    side s;
    open_side(&s, small());
    fill_and_seal(&s, 0, 5);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 0, 5);
    sp_kvx *met[WAYS], *late[WAYS];
    for (int way = 0; way < WAYS; way++) {
        met[way] = open_reader(s.address, s.shape, way);
        late[way] = open_reader(s.address, s.shape, way);
        CU_ASSERT_EQUAL(read_one(met[way], &a), SP_KVX_OK);
    }
    sp_kvx_region_close(s.region);
    CU_ASSERT_EQUAL(read_one(met[SHM], &a), SP_KVX_STALE);
    CU_ASSERT_EQUAL(read_one(met[TCP], &a), SP_KVX_PEER);
    for (int way = 0; way < WAYS; way++) {
        CU_ASSERT_EQUAL(read_one(late[way], &a), SP_KVX_PEER);
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
    sp_kvx_reader_config c = {.shape = small()};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        sp_kvx *k = NULL;
        sp_err err = {0};
        CU_ASSERT_EQUAL(sp_kvx_open(&k, bad[i], &c, &err), SP_E_INVALID);
        CU_ASSERT(k == NULL && err.text[0]);
    }
    for (int i = 0; i < 8; i++) {
        sp_kvx_config rc = {.shape = small()};
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
    side s;
    sp_err err = {0};
    open_side(&s, small());
    CU_ASSERT_EQUAL(sp_kvx_seal(s.region, 9, 1, &err), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_kvx_seal(s.region, 0, 0, &err), SP_E_INVALID);
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
    side s = {.shape = shape};
    sp_kvx *k = open_reader(address, shape, way);
    unsigned char *to = sp_alloc(shape.block_bytes);
    int wrong = 0, right = 0, stale = 0;
    const int64_t until = sp_now_ns() + STORM_NS;
    while (!wrong && (right < STORM_READS || stale < STORM_READS) && sp_now_ns() < until) {
        uint32_t gen = w->generation;
        sp_kvx_ask a = whole(&s, to, 0, gen);
        sp_kvx_fault f = read_one(k, &a);
        right += f == SP_KVX_OK;
        stale += f == SP_KVX_STALE;
        wrong += f != SP_KVX_STALE && (f != SP_KVX_OK || !came(&s, &a, gen));
    }
    sp_kvx_close(k);
    sp_free(to);
    return wrong ? 1 : right < 10 || stale < 10 ? 2 : 0;
}

static void blocks_that_are_freed_and_used_anew_while_they_are_read_never_pass(void) {
    storm *w = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CU_ASSERT_FATAL(w != MAP_FAILED);
    for (int way = 0; way < WAYS; way++) {
        side s;
        sp_err err = {0};
        open_side(&s, small());
        fill_and_seal(&s, 0, 1);
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
            must(sp_kvx_free(s.region, 0, gen, &err), &err);
            fill(&s, 0, 0);
            fill_and_seal(&s, 0, gen + 1);
            w->generation = gen + 1;
        }
        CU_ASSERT(WIFEXITED(status));
        CU_ASSERT_EQUAL(WEXITSTATUS(status), 0);
        sp_kvx_region_close(s.region);
    }
    munmap(w, 4096);
}

/* ---- a network that does harm ---- */

typedef enum harm {
    HARM_NONE,
    HARM_FLIP,   /* a byte of what the exporter says, after `at` bytes of it */
    HARM_CUT,    /* nothing after it, and the end */
    HARM_SILENT, /* nothing after it */
    HARM_HOLD    /* nothing after it until the test says so */
} harm;

typedef struct relay {
    int listen_fd, port, to_port;
    harm kind;
    size_t at, passed;
    _Atomic bool stop, holds, go;
    sp_thread thread;
} relay;

static int dial(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT_EQUAL_FATAL(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void push(int fd, const unsigned char *p, size_t n) {
    while (n > 0) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0) return;
        p += k;
        n -= (size_t)k;
    }
}

/* False: the connection is to end. */
static bool pass_on(relay *r, int to, unsigned char *p, size_t n) {
    bool here = r->kind != HARM_NONE && r->at >= r->passed && r->at < r->passed + n;
    size_t before = here ? r->at - r->passed : n;
    r->passed += n;
    if (here && r->kind == HARM_FLIP) {
        p[before] ^= 0x10;
        before = n;
    }
    push(to, p, before);
    if (!here || r->kind == HARM_FLIP) return true;
    if (r->kind == HARM_CUT) return false;
    r->holds = true;
    while (!r->stop && !r->go) poll(NULL, 0, 1);
    if (r->kind == HARM_SILENT) return false;
    push(to, p + before, n - before);
    return true;
}

static void relay_one(relay *r, int from) {
    unsigned char bytes[8192];
    int to = dial(r->to_port);
    struct pollfd p[] = {{.fd = from, .events = POLLIN}, {.fd = to, .events = POLLIN}};
    bool on = true;
    while (on && !r->stop) {
        if (poll(p, 2, 20) <= 0) continue;
        for (int i = 0; i < 2 && on; i++) {
            if (!p[i].revents) continue;
            ssize_t n = recv(p[i].fd, bytes, sizeof bytes, 0);
            on = n > 0 &&
                 (i == 0 ? (push(to, bytes, (size_t)n), true) : pass_on(r, from, bytes, (size_t)n));
        }
    }
    close(to);
    close(from);
}

static void *relay_main(void *arg) {
    relay *r = arg;
    while (!r->stop) {
        struct pollfd p = {.fd = r->listen_fd, .events = POLLIN};
        if (poll(&p, 1, 20) > 0) {
            int fd = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0) relay_one(r, fd);
        }
    }
    return NULL;
}

static void open_relay(relay *r, const side *s, harm kind, size_t at) {
    sp_err err = {0};
    memset(r, 0, sizeof *r);
    r->to_port = s->port;
    r->kind = kind;
    r->at = at;
    must(sp_door_listen(&r->listen_fd, &r->port, "127.0.0.1", 0, &err), &err);
    must(sp_thread_start(&r->thread, "relay", relay_main, r, &err), &err);
}

static void close_relay(relay *r) {
    r->stop = true;
    sp_thread_join(&r->thread);
    close(r->listen_fd);
}

static sp_kvx_fault read_through(const side *s, relay *r, bool *right) {
    char address[SP_KVX_ADDRESS_BYTES];
    address_at(s, r->port, address);
    sp_kvx *k = open_reader(address, s->shape, TCP);
    unsigned char *to = sp_alloc(s->shape.block_bytes);
    sp_kvx_ask a = whole(s, to, 0, 5);
    sp_kvx_fault f = read_one(k, &a);
    *right = came(s, &a, 5);
    sp_kvx_close(k);
    sp_free(to);
    return f;
}

static size_t bytes_of_a_read(const side *s) {
    relay r;
    bool right;
    open_relay(&r, s, HARM_NONE, 0);
    CU_ASSERT_EQUAL(read_through(s, &r, &right), SP_KVX_OK);
    CU_ASSERT(right);
    close_relay(&r);
    return r.passed;
}

/* Whatever byte of what the exporter says is changed: it is never called right and is not. */
static void a_byte_that_changes_on_the_way_is_never_called_right(void) {
    side s;
    sp_kvx_shape shape = small();
    shape.n_layers = 3;
    open_side(&s, shape);
    fill_and_seal(&s, 0, 5);
    const size_t all = bytes_of_a_read(&s);
    int checksums = 0, ok = 0;
    for (size_t at = 0; at < all; at += at < 600 || at + 40 > all ? 13 : 97) {
        relay r;
        bool right;
        open_relay(&r, &s, HARM_FLIP, at);
        sp_kvx_fault f = read_through(&s, &r, &right);
        close_relay(&r);
        if (f == SP_KVX_OK) CU_ASSERT(right);
        checksums += f == SP_KVX_CHECKSUM;
        ok += f == SP_KVX_OK;
    }
    CU_ASSERT(checksums > 10);
    CU_ASSERT(ok < 40); /* bytes that mean nothing: reserved ones, and those of the head's rest */
    sp_kvx_region_close(s.region);
}

static void a_connection_cut_anywhere_is_a_lost_peer(void) {
    side s;
    sp_kvx_shape shape = small();
    shape.n_layers = 3;
    open_side(&s, shape);
    fill_and_seal(&s, 0, 5);
    const size_t all = bytes_of_a_read(&s);
    for (size_t i = 0; i <= 40; i++) {
        relay r;
        bool right;
        open_relay(&r, &s, HARM_CUT, i == 40 ? all - 1 : all * i / 40);
        CU_ASSERT_EQUAL(read_through(&s, &r, &right), SP_KVX_PEER);
        close_relay(&r);
    }
    sp_kvx_region_close(s.region);
}

static void a_silent_exporter_is_a_timeout_and_a_cancelled_read_ends_at_once(void) {
    side s;
    open_side(&s, small());
    fill_and_seal(&s, 0, 5);
    const size_t all = bytes_of_a_read(&s);
    relay r;
    bool right;
    open_relay(&r, &s, HARM_SILENT, all / 2);
    int64_t begin = sp_now_ns();
    CU_ASSERT_EQUAL(read_through(&s, &r, &right), SP_KVX_TIMEOUT);
    int64_t took = sp_now_ns() - begin;
    CU_ASSERT(took >= SP_NS_PER_S && took < 3 * SP_NS_PER_S);
    close_relay(&r);
    char address[SP_KVX_ADDRESS_BYTES];
    open_relay(&r, &s, HARM_NONE, 0);
    address_at(&s, r.port, address);
    sp_kvx *k = open_reader(address, s.shape, TCP);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 0, 5);
    sp_kvx_cancel(k);
    begin = sp_now_ns();
    (void)read_one(k, &a);
    CU_ASSERT(sp_now_ns() - begin < SP_NS_PER_S / 2);
    sp_kvx_close(k);
    close_relay(&r);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

/* More than the sockets hold between them, so that the exporter is still sending. */
static sp_kvx_shape large(int32_t n_blocks, int32_t n_heads) {
    sp_kvx_shape s = {.n_blocks = n_blocks,
                      .block_tokens = 16,
                      .head_dim = 128,
                      .dtype = SP_DTYPE_F32,
                      .n_layers = 32,
                      .n_heads = n_heads};
    s.block_bytes = sp_kvx_piece_bytes(&s) * 32 * 2 * (size_t)n_heads + 64;
    return s;
}

typedef struct hasty { /* reads while the test holds the relay */
    const side *s;
    relay *r;
    sp_kvx_fault f;
    bool right;
} hasty;

static void *hasty_main(void *arg) {
    hasty *h = arg;
    h->f = read_through(h->s, h->r, &h->right);
    return NULL;
}

static void a_block_freed_while_it_is_on_its_way_is_stale(void) {
    side s;
    sp_err err = {0};
    relay r;
    open_side(&s, large(1, 32));
    fill_and_seal(&s, 0, 5);
    open_relay(&r, &s, HARM_HOLD, 3000);
    hasty h = {.s = &s, .r = &r};
    sp_thread t = {0};
    must(sp_thread_start(&t, "hasty", hasty_main, &h, &err), &err);
    while (!r.holds) poll(NULL, 0, 1);
    must(sp_kvx_free(s.region, 0, 5, &err), &err);
    r.go = true;
    sp_thread_join(&t);
    CU_ASSERT_EQUAL(h.f, SP_KVX_STALE);
    close_relay(&r);
    sp_kvx_region_close(s.region);
}

/* Strangers, garbage and asks beyond all bounds end their own connection and nobody else's. */
static void a_peer_that_talks_nonsense_harms_only_itself(void) {
    side s;
    open_side(&s, small());
    fill_and_seal(&s, 0, 5);
    sp_kvx *k = open_reader(s.address, s.shape, TCP);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 0, 5);
    CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
    for (int i = 0; i < 20; i++) {
        unsigned char junk[600];
        CU_ASSERT_EQUAL(sp_random_bytes(junk, sizeof junk, NULL), SP_OK);
        int fd = dial(s.port);
        push(fd, junk, (size_t)i * 30);
        if (i % 2) shutdown(fd, SHUT_WR);
        CU_ASSERT_EQUAL(read_one(k, &a), SP_KVX_OK);
        close(fd);
    }
    sp_kvx_close(k);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

typedef struct assassin {
    relay *r;
    pid_t pid;
} assassin;

static void *assassin_main(void *arg) {
    assassin *w = arg;
    while (!w->r->holds) poll(NULL, 0, 1);
    kill(w->pid, SIGKILL);
    waitpid(w->pid, NULL, 0);
    w->r->go = true;
    return NULL;
}

static void an_exporter_that_is_killed_while_it_gives_is_a_lost_peer(void) {
    int says[2];
    CU_ASSERT_EQUAL_FATAL(pipe(says), 0);
    fflush(NULL);
    pid_t pid = fork();
    CU_ASSERT_FATAL(pid >= 0);
    if (pid == 0) {
        side s;
        open_side(&s, large(1, 32));
        fill_and_seal(&s, 0, 5);
        if (write(says[1], &s, sizeof s) != (ssize_t)sizeof s) _exit(1);
        for (;;) pause();
    }
    side s;
    CU_ASSERT_EQUAL_FATAL(read(says[0], &s, sizeof s), (ssize_t)sizeof s);
    sp_kvx *shm = open_reader(s.address, s.shape, SHM);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a = whole(&s, to, 0, 5);
    CU_ASSERT_EQUAL(read_one(shm, &a), SP_KVX_OK);
    relay r;
    char address[SP_KVX_ADDRESS_BYTES];
    open_relay(&r, &s, HARM_HOLD, 3000);
    snprintf(address, sizeof address, "%s", s.address);
    *strrchr(address, ':') = 0;
    snprintf(address + strlen(address), sizeof address - strlen(address), ":%d", r.port);
    sp_kvx *tcp = open_reader(address, s.shape, TCP);
    assassin w = {&r, pid};
    sp_thread t = {0};
    sp_err err = {0};
    must(sp_thread_start(&t, "assassin", assassin_main, &w, &err), &err);
    CU_ASSERT_EQUAL(read_one(tcp, &a), SP_KVX_PEER); /* the exporter dies in its midst */
    sp_thread_join(&t);
    close_relay(&r);
    CU_ASSERT_EQUAL(read_one(tcp, &a), SP_KVX_PEER);
    /* Its memory outlives it as long as it is mapped: what was sealed is still right. */
    CU_ASSERT_EQUAL(read_one(shm, &a), SP_KVX_OK);
    CU_ASSERT(came(&s, &a, 5));
    sp_kvx_close(tcp);
    sp_kvx_close(shm);
    sp_free(to);
    close(says[0]);
    close(says[1]);
}

/* An ask above the credit goes in parts, by layers and by heads. */
static void blocks_larger_than_the_credit_come_over_too(void) {
    side s;
    sp_kvx_shape shape = {.n_blocks = 2,
                          .block_tokens = 128,
                          .head_dim = 256,
                          .dtype = SP_DTYPE_F32,
                          .n_layers = 2,
                          .n_heads = 40};
    shape.block_bytes = sp_kvx_piece_bytes(&shape) * 2 * 2 * 40;
    open_side(&s, shape);
    fill_and_seal(&s, 1, 5);
    sp_kvx *k = open_reader(s.address, s.shape, TCP);
    unsigned char *to = sp_alloc(s.shape.block_bytes);
    sp_kvx_ask a[2] = {whole(&s, to, 0, 5), whole(&s, to, 1, 5)};
    sp_kvx_fault f[2];
    sp_kvx_read(k, a, 2, f);
    CU_ASSERT_EQUAL(f[0], SP_KVX_STALE);
    CU_ASSERT_EQUAL(f[1], SP_KVX_OK);
    CU_ASSERT(came(&s, &a[1], 5));
    sp_kvx_close(k);
    sp_free(to);
    sp_kvx_region_close(s.region);
}

SP_TEST_MAIN("comm/kvx", SP_TEST(any_rectangle_of_a_block_comes_over_by_both_ways),
             SP_TEST(each_block_of_a_read_has_its_own_outcome),
             SP_TEST(a_flipped_bit_anywhere_is_found),
             SP_TEST(the_right_bytes_in_the_wrong_place_have_another_checksum),
             SP_TEST(another_model_pod_type_or_life_of_the_exporter_is_refused),
             SP_TEST(an_exporter_that_is_gone_gives_nothing),
             SP_TEST(what_is_no_address_or_no_shape_is_refused_by_name),
             SP_TEST(blocks_that_are_freed_and_used_anew_while_they_are_read_never_pass),
             SP_TEST(a_byte_that_changes_on_the_way_is_never_called_right),
             SP_TEST(a_connection_cut_anywhere_is_a_lost_peer),
             SP_TEST(a_silent_exporter_is_a_timeout_and_a_cancelled_read_ends_at_once),
             SP_TEST(a_block_freed_while_it_is_on_its_way_is_stale),
             SP_TEST(a_peer_that_talks_nonsense_harms_only_itself),
             SP_TEST(an_exporter_that_is_killed_while_it_gives_is_a_lost_peer),
             SP_TEST(blocks_larger_than_the_credit_come_over_too))
