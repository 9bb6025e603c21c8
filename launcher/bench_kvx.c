#include "launcher/bench_kvx.h"

#include "comm/kvx.h"
#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Pieces as those of a Llama of 8B parameters, 16 tokens a block: 4 KiB each. */
#define HEADS 8
#define HEAD_DIM 128
#define BLOCK_TOKENS 16
#define LAYER_BYTES ((int64_t)2 * HEADS * BLOCK_TOKENS * HEAD_DIM * 2)
#define ASKS_AT_ONCE 64 /* as a rank asks: a window */
#define BLOCKS_MAX (1 << 16)
#define BLOCK_BYTES_MAX ((int64_t)64 << 20)
#define BYTES_MAX ((int64_t)64 << 30)
#define MEMORY_BYTES ((int64_t)320 << 20) /* read in a round, unless told: above any cache */
#define ROUNDS_MAX 1000
#define RECV_BYTES ((size_t)64 << 10)
#define TIMEOUT_S 60

typedef struct bench bench;

/* Blocks that are moved and timed together: short, so that of many times the median is one in which
 * nobody else had our core. */
typedef struct window {
    uint32_t first, n;
} window;

/* A way from one process to another, and its own speed: what carries bytes without proofs. */
typedef struct way {
    const char *name, *probe_name;
    bool same_node, ucx;
    sp_status (*probe)(bench *b, window w, sp_err *err); /* moves its bytes to b->to */
} way;

struct bench {
    const way *via;
    int64_t block_bytes, blocks, rounds;
    size_t bytes;        /* of all blocks */
    unsigned char *from; /* memcpy's source */
    unsigned char *to;
    int words[2];  /* a socket pair: the address comes, and closing it ends the exporter */
    int plain;     /* TCP connection to the exporter's own sender */
    uint16_t port; /* where that is waited for */
    sp_kvx_config config;
    pid_t exporter;
    double *read_rate, *probe_rate; /* [rounds * windows], bytes a second */
};

/* What the exporter says once. */
typedef struct greeting {
    char address[SP_KVX_ADDRESS_BYTES];
    uint16_t port;
} greeting;

static sp_status failed(sp_err *err, const char *what) {
    return SP_FAIL(err, SP_E_IO, "%s: %s", what, strerror(errno));
}

static void fill(unsigned char *p, size_t n) {
    uint64_t s = 1;
    for (size_t i = 0; i + sizeof s <= n; i += sizeof s) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        memcpy(p + i, &s, sizeof s);
    }
}

static bool send_all(int fd, const void *bytes, size_t n) {
    for (const unsigned char *p = bytes; n > 0;) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        p += sent;
        n -= (size_t)sent;
    }
    return true;
}

/* A call takes little: while one lasts, the sender's packets wait in line, and a call for all that
 * is wanted was half as fast. */
static bool recv_all(int fd, void *bytes, size_t n) {
    for (unsigned char *p = bytes; n > 0;) {
        ssize_t got = recv(fd, p, n < RECV_BYTES ? n : RECV_BYTES, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = ECONNRESET;
        if (got <= 0) return false;
        p += got;
        n -= (size_t)got;
    }
    return true;
}

/* ---- the exporter ---- */

static uint64_t name_of(uint32_t block) {
    return UINT64_C(1) << 32 | block;
}

static sp_status export_blocks(const bench *b, sp_kvx_region **out, greeting *g, sp_err *err) {
    char tcp[32] = "";
    size_t bytes;
    SP_TRY(sp_kvx_region_open(out, &b->config, err));
    unsigned char *memory = sp_kvx_region_memory(*out, &bytes);
    fill(memory, bytes);
    for (uint32_t i = 0; i < (uint32_t)b->blocks; i++)
        SP_TRY(sp_kvx_seal(*out, i, i + 1, name_of(i), err));
    if (b->config.serve_tcp) snprintf(tcp, sizeof tcp, "127.0.0.1:%d", sp_kvx_region_port(*out));
    return sp_kvx_region_address(*out, tcp, g->address, err);
}

static int listen_plain(uint16_t *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (bind(fd, (struct sockaddr *)&a, n) != 0 || listen(fd, 1) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &n) != 0) {
        close(fd);
        return -1;
    }
    *port = ntohs(a.sin_port);
    return fd;
}

/* Sends the blocks that it is asked for, one a call, until the other side closes. */
static void send_plain(const bench *b, int listener, const unsigned char *memory) {
    window w;
    int fd = accept(listener, NULL, NULL);
    while (fd >= 0 && recv_all(fd, &w, sizeof w))
        for (int64_t i = w.first; i < (int64_t)w.first + w.n; i++)
            if (!send_all(fd, memory + i * b->block_bytes, (size_t)b->block_bytes)) break;
    if (fd >= 0) close(fd);
}

static int be_exporter(bench *b) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(b->words[0]);
    sp_kvx_region *region = NULL;
    sp_err err = {0};
    greeting g = {0};
    size_t bytes;
    char end;
    int listener = listen_plain(&g.port);
    sp_status st = listener < 0 ? failed(&err, "listening on the loopback")
                                : export_blocks(b, &region, &g, &err);
    if (st != SP_OK)
        fprintf(stderr, "superpod: the exporter: %s\n", err.text);
    else if (send_all(b->words[1], &g, sizeof g)) {
        if (!b->via->same_node) send_plain(b, listener, sp_kvx_region_memory(region, &bytes));
        (void)recv_all(b->words[1], &end, 1); /* it closes: all is done */
    }
    sp_kvx_region_close(region);
    return st != SP_OK;
}

/* ---- the ways' own speed ---- */

static sp_status probe_memory(bench *b, window w, sp_err *err) {
    (void)err;
    for (int64_t i = w.first; i < (int64_t)w.first + w.n; i++)
        memcpy(b->to + i * b->block_bytes, b->from + i * b->block_bytes, (size_t)b->block_bytes);
    return SP_OK;
}

static sp_status probe_socket(bench *b, window w, sp_err *err) {
    const size_t one = (size_t)b->block_bytes;
    if (send_all(b->plain, &w, sizeof w) && recv_all(b->plain, b->to + w.first * one, w.n * one))
        return SP_OK;
    return failed(err, "a plain socket");
}

static const way ways[] = {{"shm", "memcpy", true, false, probe_memory},
                           {"tcp", "socket", false, false, probe_socket},
                           {"ucx", "socket", false, true, probe_socket}};

static sp_status open_probe(bench *b, sp_err *err) {
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons(b->port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct timeval limit = {.tv_sec = TIMEOUT_S};
    if (b->via->same_node) {
        b->from = sp_try_alloc_aligned(4096, b->bytes);
        if (!b->from) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes", b->bytes);
        fill(b->from, b->bytes);
        return SP_OK;
    }
    b->plain = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (b->plain < 0 || setsockopt(b->plain, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0 ||
        connect(b->plain, (struct sockaddr *)&a, sizeof a) != 0)
        return failed(err, "connecting to the exporter");
    return SP_OK;
}

/* ---- reading ---- */

static sp_status read_blocks(const bench *b, sp_kvx *k, window w, sp_err *err) {
    sp_kvx_ask asks[ASKS_AT_ONCE] = {0};
    sp_kvx_fault faults[ASKS_AT_ONCE];
    const sp_kvx_shape *s = &b->config.shape;
    for (uint32_t i = 0; i < w.n; i++) {
        const uint32_t block = w.first + i;
        asks[i] = (sp_kvx_ask){.block = block,
                               .generation = block + 1,
                               .name = name_of(block),
                               .n_layers = s->n_layers,
                               .n_heads = s->n_heads,
                               .to = b->to + block * (size_t)b->block_bytes,
                               .layer_stride = (size_t)LAYER_BYTES,
                               .value_offset = (size_t)LAYER_BYTES / 2};
    }
    sp_kvx_read(k, asks, (int)w.n, faults);
    for (uint32_t i = 0; i < w.n; i++)
        if (faults[i] != SP_KVX_OK)
            return SP_FAIL(err, SP_E_PEER_LOST, "block %u: %s", asks[i].block,
                           sp_kvx_fault_name(faults[i]));
    return SP_OK;
}

/* The pattern of one block stands for no other, so a block at the wrong place is seen too. */
static sp_status compare(const bench *b, sp_err *err) {
    unsigned char *want = sp_try_alloc(b->bytes);
    if (!want) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes", b->bytes);
    fill(want, b->bytes);
    bool same = memcmp(want, b->to, b->bytes) == 0;
    sp_free(want);
    return same ? SP_OK : SP_FAIL(err, SP_E_PEER_LOST, "other bytes came than were exported");
}

static int64_t windows_of(const bench *b) {
    return (b->blocks + ASKS_AT_ONCE - 1) / ASKS_AT_ONCE;
}

static window window_at(const bench *b, int64_t i) {
    const int64_t first = i % windows_of(b) * ASKS_AT_ONCE, left = b->blocks - first;
    return (window){(uint32_t)first, (uint32_t)(left < ASKS_AT_ONCE ? left : ASKS_AT_ONCE)};
}

/* Nothing but the reads can make it right. */
static sp_status read_all_once(const bench *b, sp_kvx *k, sp_err *err) {
    memset(b->to, 0, b->bytes);
    for (int64_t i = 0; i < windows_of(b); i++) SP_TRY(read_blocks(b, k, window_at(b, i), err));
    return compare(b, err);
}

static double rate_of(const bench *b, window w, int64_t ns) {
    return (double)w.n * (double)b->block_bytes / (double)(ns > 0 ? ns : 1) * 1e9;
}

/* The two are half a round apart: what one has just written is in no cache when the other comes. */
static sp_status measure_all(bench *b, sp_kvx *k, sp_err *err) {
    const int64_t n = windows_of(b);
    for (int64_t i = -n; i < b->rounds * n; i++) {
        const window ours = window_at(b, i + n), plain = window_at(b, i + n + n / 2);
        int64_t begin = sp_now_ns();
        SP_TRY(b->via->probe(b, plain, err));
        int64_t middle = sp_now_ns();
        SP_TRY(read_blocks(b, k, ours, err));
        if (i < 0) continue; /* the first round warms */
        b->probe_rate[i] = rate_of(b, plain, middle - begin);
        b->read_rate[i] = rate_of(b, ours, sp_now_ns() - middle);
    }
    return SP_OK;
}

static sp_status measure(bench *b, const char *address, sp_err *err) {
    sp_kvx_reader_config rc = {
        .shape = b->config.shape, .same_node = b->via->same_node, .ucx = b->via->ucx};
    sp_kvx *k;
    memcpy(rc.key, b->config.key, sizeof rc.key);
    memcpy(rc.identity, b->config.identity, sizeof rc.identity);
    SP_TRY(sp_kvx_open(&k, address, &rc, err));
    sp_status st = read_all_once(b, k, err);
    if (st == SP_OK) st = measure_all(b, k, err);
    if (st == SP_OK && strcmp(sp_kvx_way(k), b->via->name) != 0)
        st = SP_FAIL(err, SP_E_UNSUPPORTED, "blocks came by '%s'", sp_kvx_way(k));
    sp_kvx_close(k);
    return st;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_gb(const bench *b, double *rates) {
    const size_t n = (size_t)(b->rounds * windows_of(b));
    qsort(rates, n, sizeof *rates, by_value);
    return rates[n / 2] / 1e9;
}

static void print_line(const bench *b) {
    const double read = median_gb(b, b->read_rate), probe = median_gb(b, b->probe_rate);
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_jw_object(&w);
    sp_jw_key(&w, "way"), sp_jw_str(&w, b->via->name);
    sp_jw_key(&w, "block_bytes"), sp_jw_int(&w, b->block_bytes);
    sp_jw_key(&w, "blocks"), sp_jw_int(&w, b->blocks);
    sp_jw_key(&w, "rounds"), sp_jw_int(&w, b->rounds);
    sp_jw_key(&w, "gb_per_s"), sp_jw_number(&w, read);
    sp_jw_key(&w, "probe"), sp_jw_str(&w, b->via->probe_name);
    sp_jw_key(&w, "probe_gb_per_s"), sp_jw_number(&w, probe);
    sp_jw_key(&w, "ratio"), sp_jw_number(&w, read / probe);
    sp_jw_object_end(&w);
    printf("%s\n", text.failed ? "{}" : text.ptr);
    sp_buf_fini(&text);
}

/* ---- the run ---- */

static void configure(bench *b) {
    sp_kvx_config *c = &b->config;
    c->shape = (sp_kvx_shape){.n_blocks = (int32_t)b->blocks,
                              .block_tokens = BLOCK_TOKENS,
                              .head_dim = HEAD_DIM,
                              .dtype = SP_DTYPE_BF16,
                              .n_layers = (int32_t)(b->block_bytes / LAYER_BYTES),
                              .n_heads = HEADS,
                              .block_bytes = (size_t)b->block_bytes};
    c->serve_shm = b->via->same_node;
    c->serve_tcp = !b->via->same_node;
    c->serve_ucx = b->via->ucx;
    c->host = "127.0.0.1";
    b->bytes = (size_t)(b->blocks * b->block_bytes);
}

static sp_status start_exporter(bench *b, sp_err *err) {
    if (getrandom(b->config.key, sizeof b->config.key, 0) != sizeof b->config.key)
        return failed(err, "making a key");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b->words) != 0)
        return failed(err, "a socket pair");
    fflush(NULL);
    b->exporter = fork();
    if (b->exporter == 0) _exit(be_exporter(b));
    close(b->words[1]);
    return b->exporter < 0 ? failed(err, "fork") : SP_OK;
}

/* Closing what it waits on ends it. False: it ended badly. */
static bool end_exporter(bench *b) {
    int how = 0;
    if (b->plain >= 0) close(b->plain);
    if (b->words[0] >= 0) close(b->words[0]);
    return b->exporter <= 0 || (waitpid(b->exporter, &how, 0) == b->exporter && how == 0);
}

static sp_status run(bench *b, sp_err *err) {
    greeting g;
    SP_TRY(start_exporter(b, err));
    b->to = sp_try_alloc_aligned(4096, b->bytes);
    b->read_rate = sp_alloc((size_t)(b->rounds * windows_of(b)) * sizeof *b->read_rate);
    b->probe_rate = sp_alloc((size_t)(b->rounds * windows_of(b)) * sizeof *b->probe_rate);
    if (!b->to) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu bytes", b->bytes);
    memset(b->to, 1, b->bytes); /* its pages are there before anything is timed */
    if (!recv_all(b->words[0], &g, sizeof g))
        return SP_FAIL(err, SP_E_PEER_LOST, "the exporter did not begin");
    b->port = g.port;
    SP_TRY(open_probe(b, err));
    return measure(b, g.address, err);
}

static int help(FILE *to) {
    fputs(
        "usage: superpod bench kvx [--way shm|tcp|ucx] [--block-bytes B] [--blocks N] [--rounds "
        "N]\n\n"
        "  --way W          shm (one node), tcp or ucx (between nodes; here over loopback) (shm)\n"
        "  --block-bytes B  a multiple of 64 KiB, up to 64 MiB (1MiB)\n"
        "  --blocks N       read in a round, 1 to 65536 (320 MiB of them)\n"
        "  --rounds N       over all of them, in turns with as many of the way alone (9)\n"
        "\nPrints one line of JSON: median rates of reading proven KV blocks and of the way "
        "itself\n(memcpy, or a plain socket), and the first over the second.\n",
        to);
    return to == stdout ? SP_EXIT_OK : SP_EXIT_USAGE;
}

static bool read_count(const char *text, int64_t max, int64_t *out) {
    int64_t v;
    if (sp_parse_i64(sp_slice_of(text), &v) != SP_OK || v < 1 || v > max) return false;
    *out = v;
    return true;
}

static bool read_option(bench *b, const char *name, const char *value) {
    uint64_t bytes;
    if (strcmp(name, "--blocks") == 0) return read_count(value, BLOCKS_MAX, &b->blocks);
    if (strcmp(name, "--rounds") == 0) return read_count(value, ROUNDS_MAX, &b->rounds);
    if (strcmp(name, "--block-bytes") == 0) {
        if (sp_parse_bytes(sp_slice_of(value), &bytes) != SP_OK || bytes == 0 ||
            bytes > (uint64_t)BLOCK_BYTES_MAX || bytes % (uint64_t)LAYER_BYTES != 0)
            return false;
        b->block_bytes = (int64_t)bytes;
        return true;
    }
    if (strcmp(name, "--way") != 0) return false;
    for (size_t i = 0; i < SP_LEN(ways); i++) {
        if (strcmp(value, ways[i].name) != 0) continue;
        b->via = &ways[i];
        return true;
    }
    return false;
}

int sp_bench_kvx(int argc, char **argv) {
    bench b = {
        .via = &ways[0], .block_bytes = 1 << 20, .rounds = 9, .plain = -1, .words = {-1, -1}};
    for (int i = 1; i < argc; i += 2) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return help(stdout);
        if (i + 1 < argc && read_option(&b, argv[i], argv[i + 1])) continue;
        fprintf(stderr, "superpod: bench kvx: cannot take '%s %s'\n", argv[i],
                i + 1 < argc ? argv[i + 1] : "");
        return help(stderr);
    }
    if (b.blocks == 0) b.blocks = (MEMORY_BYTES + b.block_bytes - 1) / b.block_bytes;
    if (b.blocks > BYTES_MAX / b.block_bytes) {
        fprintf(stderr, "superpod: bench kvx: %lld blocks are more than %lld GiB\n",
                (long long)b.blocks, (long long)(BYTES_MAX >> 30));
        return help(stderr);
    }
    sp_err err = {0};
    configure(&b);
    sp_status st = run(&b, &err);
    const bool ended_well = end_exporter(&b);
    if (st != SP_OK) fprintf(stderr, "superpod: bench kvx: %s\n", err.text);
    if (st == SP_OK && ended_well) print_line(&b);
    sp_free(b.read_rate);
    sp_free(b.probe_rate);
    sp_free(b.from);
    sp_free(b.to);
    if (st != SP_OK) return st == SP_E_PEER_LOST ? SP_EXIT_PEER : SP_EXIT_CONFIG;
    return ended_well ? SP_EXIT_OK : SP_EXIT_PEER;
}
