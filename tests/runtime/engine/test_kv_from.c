/* Covers runtime/engine/kv_from.c, and of kv_port.c what concerns other pods: their blocks come over
 * real sockets, their groups come and go, and they hear of their leases. No model computes here: the
 * bytes of a block are a function of its name and their place in the model. */
#include "runtime/engine/kv_from.h"

#include "runtime/base/chaos.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/engine/kv_port.h"
#include "runtime/engine/kv_source.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 8
#define N_BLOCKS 12
#define RANKS_MAX 8
#define FIRST SP_KV_SOURCE_FIRST
#define LEASE UINT64_C(0x1122334455667788)

static const uint8_t key[SP_KVX_KEY_BYTES] = "both pods", identity[SP_KVX_IDENTITY_BYTES] = "tiny";

static void must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

typedef struct model {
    sp_model_desc desc;
    const sp_arch *arch;
} model;

/* Eight heads over four KV heads, five layers. */
static void open_model(model *m) {
    sp_err err = {0};
    sp_tiny t = sp_tiny_default();
    t.n_heads = 8;
    t.n_kv_heads = 4;
    t.n_layers = 5;
    char *dir = sp_tiny_create(&t);
    *m = (model){0};
    must(sp_model_desc_load(&m->desc, dir, &err), &err);
    must(sp_arch_find(&m->arch, &m->desc, &err), &err);
    sp_tiny_remove(dir);
}

/* What a rank holds: its part of the model, and the memory that has it. */
typedef struct holding {
    sp_part part;
    sp_kv_layout layout;
    unsigned char *kv;
} holding;

static void hold(holding *h, const model *m, int32_t tp, int32_t pp, int32_t rank) {
    sp_err err = {0};
    must(sp_part_of(&h->part, &m->desc, m->arch, tp, pp, NULL, rank / tp, rank % tp, &err), &err);
    h->layout = sp_kv_layout_of(h->part.stage.n_layers, h->part.slice.n_kv_heads, m->desc.head_dim,
                                BLOCK, SP_DTYPE_F32);
}

/* Calls for each byte of a block with what it should be; stops when `each` says so. */
static bool walk(const holding *h, uint32_t block, uint64_t name,
                 bool (*each)(unsigned char *at, unsigned char want)) {
    const size_t piece = h->layout.layer_bytes / 2 / (size_t)h->layout.n_kv_heads;
    for (int32_t l = 0; l < h->layout.n_layers; l++)
        for (int32_t kv = 0; kv < 2 * h->layout.n_kv_heads; kv++) {
            const int32_t head = h->part.slice.kv_head_first + kv % h->layout.n_kv_heads;
            const bool is_value = kv >= h->layout.n_kv_heads;
            unsigned char *at = h->kv + block * h->layout.block_bytes +
                                (size_t)l * h->layout.layer_bytes + (size_t)kv * piece;
            const uint64_t seed = name * 31 + (uint64_t)(h->part.stage.layer_first + l) * 1009 +
                                  (uint64_t)head * 101 + is_value * 7u;
            for (size_t i = 0; i < piece; i++)
                if (!each(at + i, (unsigned char)(seed + i * (seed | 1)))) return false;
        }
    return true;
}

static bool put_byte(unsigned char *at, unsigned char want) {
    *at = want;
    return true;
}
static bool is_byte(unsigned char *at, unsigned char want) {
    return *at == want;
}

/* ---- the pod that lends ---- */

typedef struct lender {
    int32_t tp, pp;
    holding at[RANKS_MAX];
    sp_kvx_region *regions[RANKS_MAX];
    sp_kv_leases *leases; /* of its first rank */
    char addresses[RANKS_MAX][SP_KVX_ADDRESS_BYTES];
    int32_t pp_layers[RANKS_MAX];
    uint64_t salt; /* of its names */
} lender;

static uint64_t name_of(const lender *l, uint32_t block) {
    return (l->salt + block) * UINT64_C(0x9e3779b97f4a7c15);
}

static void open_lender_rank(lender *l, int32_t i, const sp_kvx_config *as, sp_link *link) {
    sp_err err = {0};
    char tcp[40];
    size_t bytes;
    sp_kvx_config c = *as;
    holding *h = &l->at[i];
    c.shape = sp_kv_port_shape(&h->layout, &h->part, N_BLOCKS);
    c.host = "127.0.0.1";
    if (i == 0) {
        must(sp_kv_leases_create(&l->leases, link, &err), &err);
        c.on_lease = sp_kv_leases_put;
        c.lease_ctx = l->leases;
    }
    must(sp_kvx_region_open(&l->regions[i], &c, &err), &err);
    h->kv = sp_kvx_region_memory(l->regions[i], &bytes);
    snprintf(tcp, sizeof tcp, "127.0.0.1:%d", sp_kvx_region_port(l->regions[i]));
    must(sp_kvx_region_address(l->regions[i], c.serve_tcp ? tcp : "", l->addresses[i], &err), &err);
    for (uint32_t b = 0; b < N_BLOCKS; b++) {
        walk(h, b, name_of(l, b), put_byte);
        must(sp_kvx_seal(l->regions[i], b, 100 + b, name_of(l, b), &err), &err);
    }
}

static sp_kvx_config as_usual(void) {
    sp_kvx_config c = {.serve_shm = true, .serve_tcp = true};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, identity, sizeof c.identity);
    return c;
}

static void open_lender_as(lender *l, const model *m, int32_t tp, int32_t pp, uint64_t salt,
                           const sp_kvx_config *as, sp_link *link) {
    *l = (lender){.tp = tp, .pp = pp, .salt = salt};
    for (int32_t i = 0; i < tp * pp; i++) {
        hold(&l->at[i], m, tp, pp, i);
        l->pp_layers[i / tp] = l->at[i].part.stage.n_layers;
        open_lender_rank(l, i, as, link);
    }
}

static void open_lender(lender *l, const model *m, int32_t tp, int32_t pp, uint64_t salt) {
    const sp_kvx_config c = as_usual();
    open_lender_as(l, m, tp, pp, salt, &c, NULL);
}

static void close_lender(lender *l) {
    for (int32_t i = 0; i < l->tp * l->pp; i++) sp_kvx_region_close(l->regions[i]);
    sp_kv_leases_destroy(l->leases);
}

/* ---- a rank of the pod that borrows ---- */

typedef struct borrower {
    holding own;
    sp_kv_port *port;
    const sp_stage_kvx *k;
    sp_link *link, *head;
} borrower;

static void open_borrower(borrower *b, const model *m, int32_t tp, int32_t pp, int32_t rank,
                          int64_t renew_ns) {
    sp_err err = {0};
    int fd;
    *b = (borrower){0};
    hold(&b->own, m, tp, pp, rank);
    b->own.kv = sp_alloc(N_BLOCKS * b->own.layout.block_bytes);
    must(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), &err);
    must(sp_link_open_ring(&b->head, fd, 0, &err), &err);
    must(sp_link_open_ring(&b->link, fd, 1, &err), &err);
    close(fd);
    const sp_kv_group none = {{0}, NULL, NULL};
    sp_kv_port_config c = {.desc = &m->desc,
                           .arch = m->arch,
                           .part = b->own.part,
                           .layout = b->own.layout,
                           .n_blocks = N_BLOCKS,
                           .kv = b->own.kv,
                           .groups = &none,
                           .n_groups = 1,
                           .renew_ns = renew_ns,
                           .link = b->link};
    memcpy(c.key, key, sizeof c.key);
    memcpy(c.identity, identity, sizeof c.identity);
    must(sp_kv_port_open(&b->port, &c, &err), &err);
    b->k = sp_kv_port_callbacks(b->port);
}

static void close_borrower(borrower *b) {
    sp_kv_port_close(b->port);
    sp_link_close(b->link);
    sp_link_close(b->head);
    sp_free(b->own.kv);
}

static void tell_text(borrower *b, uint32_t number, const char *text) {
    sp_err err = {0};
    char *lent = sp_strdup(text); /* for the call alone */
    must(b->k->source(b->k->ctx, number, sp_slice_of(lent), &err), &err);
    memset(lent, 'x', strlen(lent));
    sp_free(lent);
}

static void tell(borrower *b, uint32_t number, const lender *l) {
    const char *ranks[RANKS_MAX];
    sp_buf text;
    for (int32_t i = 0; i < l->tp * l->pp; i++) ranks[i] = l->addresses[i];
    sp_buf_init(&text, 0);
    sp_kv_source_write(&text, l->tp, l->pp, l->pp_layers, ranks);
    tell_text(b, number, text.ptr);
    sp_buf_fini(&text);
}

/* Its blocks 0.. into ours, the other way round. */
static sp_status ask(borrower *b, uint64_t transfer, uint32_t number, const lender *l, int32_t n,
                     uint64_t lease) {
    sp_wire_kv_move moves[N_BLOCKS];
    sp_err err = {0};
    for (int32_t i = 0; i < n; i++)
        moves[i] = (sp_wire_kv_move){.name = name_of(l, (uint32_t)i),
                                     .src_block = (uint32_t)i,
                                     .generation = 100 + (uint32_t)i,
                                     .dst_block = (uint32_t)(n - 1 - i)};
    const sp_wire_kv_pull p = {
        .transfer = transfer, .lease = lease, .source = number, .n = n, .moves = moves};
    return b->k->pull(b->k->ctx, &p, &err);
}

static void wait_woken(borrower *b) {
    sp_frame f;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_link_recv(b->link, &f, sp_now_ns() + 30 * SP_NS_PER_S, &err),
                          SP_AGAIN);
}

static sp_wire_kv_pulled wait_done(borrower *b) {
    sp_wire_kv_pulled done;
    sp_err err = {0};
    for (;; wait_woken(b)) {
        must(b->k->settle(b->k->ctx, &err), &err);
        if (b->k->poll_done(b->k->ctx, &done)) return done;
    }
}

static void expect_all(borrower *b, uint64_t transfer, int32_t n, sp_kvx_fault want) {
    const sp_wire_kv_pulled done = wait_done(b);
    CU_ASSERT(done.transfer == transfer && done.n == n);
    for (int32_t i = 0; i < done.n; i++) {
        if (done.outcomes[i] != want)
            fprintf(stderr, "    block %d: %s\n", i,
                    sp_kvx_fault_name((sp_kvx_fault)done.outcomes[i]));
        CU_ASSERT_EQUAL(done.outcomes[i], want);
    }
}

static bool holds(const borrower *b, const lender *l, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        if (!walk(&b->own, (uint32_t)(n - 1 - i), name_of(l, (uint32_t)i), is_byte)) return false;
    return true;
}

/* ---- tests ---- */

static void blocks_of_any_shape_come_from_another_pod_to_every_rank(void) {
    static const int32_t shapes[][2] = {{1, 1}, {2, 2}, {4, 1}, {1, 3}};
    model m;
    open_model(&m);
    for (size_t a = 0; a < SP_LEN(shapes); a++) {
        lender l;
        open_lender(&l, &m, shapes[a][0], shapes[a][1], 1000);
        for (size_t i = 0; i < SP_LEN(shapes); i++)
            for (int32_t r = 0; r < shapes[i][0] * shapes[i][1]; r++) {
                borrower b;
                open_borrower(&b, &m, shapes[i][0], shapes[i][1], r, 0);
                tell(&b, FIRST + 5, &l);
                CU_ASSERT_EQUAL(ask(&b, 9, FIRST + 5, &l, N_BLOCKS, LEASE), SP_OK);
                expect_all(&b, 9, N_BLOCKS, SP_KVX_OK);
                CU_ASSERT(holds(&b, &l, N_BLOCKS));
                CU_ASSERT_EQUAL(sp_kv_port_failed_notices(b.port), 0);
                close_borrower(&b);
            }
        close_lender(&l);
    }
}

static void a_text_or_shape_that_cannot_be_gives_identity_for_every_block(void) {
    static const char *const texts[] = {
        "{}",
        "no JSON",
        "{\"tp\":1,\"pp\":1,\"pp_layers\":[5],\"ranks\":[\"no address\"]}",
        "{\"tp\":1,\"pp\":1,\"pp_layers\":[6],\"ranks\":[\"x\"]}", /* a layer too many */
        "{\"tp\":3,\"pp\":1,\"pp_layers\":[5],\"ranks\":[\"x\",\"x\",\"x\"]}", /* 8 heads by 3 */
        "{\"tp\":1,\"pp\":2,\"pp_layers\":[5,5],\"ranks\":[\"x\",\"x\"]}",
    };
    model m;
    lender good, near;
    borrower b;
    sp_kvx_config shm = as_usual(), other = as_usual();
    open_model(&m);
    open_lender(&good, &m, 2, 1, 7);
    shm.serve_tcp = false;
    open_lender_as(&near, &m, 1, 1, 8, &shm, NULL);
    open_borrower(&b, &m, 1, 2, 1, 0);
    for (size_t i = 0; i < SP_LEN(texts); i++) {
        tell_text(&b, FIRST, texts[i]);
        CU_ASSERT_EQUAL(ask(&b, i, FIRST, &good, 3, LEASE), SP_OK);
        expect_all(&b, i, 3, SP_KVX_IDENTITY);
    }
    /* Memory of this very machine is not looked into: another pod is reached over the network. */
    tell(&b, FIRST, &near);
    CU_ASSERT_EQUAL(ask(&b, 50, FIRST, &near, 2, LEASE), SP_OK);
    expect_all(&b, 50, 2, SP_KVX_IDENTITY);
    other.identity[0] ^= 1;
    lender stranger;
    open_lender_as(&stranger, &m, 1, 1, 9, &other, NULL);
    tell(&b, FIRST + 1, &stranger);
    CU_ASSERT_EQUAL(ask(&b, 51, FIRST + 1, &stranger, 2, LEASE), SP_OK);
    expect_all(&b, 51, 2, SP_KVX_IDENTITY);
    /* And the rank goes on. */
    tell(&b, FIRST, &good);
    CU_ASSERT_EQUAL(ask(&b, 52, FIRST, &good, 4, LEASE), SP_OK);
    expect_all(&b, 52, 4, SP_KVX_OK);
    CU_ASSERT(holds(&b, &good, 4));
    close_borrower(&b);
    close_lender(&stranger);
    close_lender(&near);
    close_lender(&good);
}

static void a_pod_with_another_key_is_no_peer(void) {
    model m;
    lender l;
    borrower b;
    sp_kvx_config c = as_usual();
    open_model(&m);
    c.key[3] ^= 1;
    open_lender_as(&l, &m, 1, 1, 9, &c, NULL);
    open_borrower(&b, &m, 1, 1, 0, 0);
    tell(&b, FIRST, &l);
    CU_ASSERT_EQUAL(ask(&b, 1, FIRST, &l, 2, LEASE), SP_OK);
    expect_all(&b, 1, 2, SP_KVX_PEER);
    close_borrower(&b);
    close_lender(&l);
}

static void a_block_of_other_tokens_or_another_time_is_not_taken(void) {
    model m;
    lender l;
    borrower b;
    sp_err err = {0};
    open_model(&m);
    open_lender(&l, &m, 2, 2, 3);
    open_borrower(&b, &m, 1, 1, 0, 0);
    tell(&b, FIRST, &l);
    must(sp_kvx_free(l.regions[3], 2, 102, &err), &err);
    sp_wire_kv_move moves[4];
    for (uint32_t i = 0; i < 4; i++)
        moves[i] = (sp_wire_kv_move){
            .name = name_of(&l, i), .src_block = i, .generation = 100 + i, .dst_block = i};
    moves[1].name ^= 1;
    moves[3].src_block = N_BLOCKS; /* there is none */
    const sp_wire_kv_pull p = {
        .transfer = 4, .lease = LEASE, .source = FIRST, .n = 4, .moves = moves};
    CU_ASSERT_EQUAL(b.k->pull(b.k->ctx, &p, &err), SP_OK);
    const sp_wire_kv_pulled done = wait_done(&b);
    const uint32_t want[4] = {SP_KVX_OK, SP_KVX_FOREIGN, SP_KVX_STALE, SP_KVX_RANGE};
    for (int i = 0; i < 4; i++) CU_ASSERT_EQUAL(done.outcomes[i], want[i]);
    close_borrower(&b);
    close_lender(&l);
}

/* The first pull lingers, so that the others wait while their number changes its meaning twice. */
static void a_source_may_be_replaced_while_pulls_of_it_wait(void) {
    model m;
    lender one, two;
    borrower b;
    sp_err err = {0};
    open_model(&m);
    open_lender(&one, &m, 2, 1, 100);
    open_lender(&two, &m, 1, 2, 200);
    open_borrower(&b, &m, 1, 1, 0, 0);
    must(sp_chaos_setup("kv.slow=1", &err), &err);
    tell(&b, FIRST, &one);
    CU_ASSERT_EQUAL(ask(&b, 1, FIRST, &one, 5, LEASE), SP_OK);
    CU_ASSERT_EQUAL(ask(&b, 2, FIRST, &one, 4, LEASE), SP_OK);
    tell(&b, FIRST, &two);
    CU_ASSERT_EQUAL(ask(&b, 3, FIRST, &two, 6, LEASE), SP_OK);
    tell_text(&b, FIRST, "");
    CU_ASSERT_EQUAL(ask(&b, 4, FIRST, &two, 1, LEASE), SP_E_PROTOCOL);
    tell_text(&b, FIRST, ""); /* no news, no harm */
    expect_all(&b, 1, 5, SP_KVX_OK);
    expect_all(&b, 2, 4, SP_KVX_OK);
    expect_all(&b, 3, 6, SP_KVX_OK);
    CU_ASSERT(holds(&b, &two, 6));
    CU_ASSERT(sp_chaos_fired(SP_CHAOS_KV_SLOW) >= 3);
    must(sp_chaos_setup(NULL, &err), &err);
    close_borrower(&b);
    close_lender(&two);
    close_lender(&one);
}

static void numbers_outside_are_refused_and_all_inside_may_be_used(void) {
    model m;
    lender l;
    borrower b;
    sp_err err = {0};
    open_model(&m);
    open_lender(&l, &m, 1, 1, 5);
    open_borrower(&b, &m, 1, 1, 0, 0);
    CU_ASSERT_EQUAL(b.k->source(b.k->ctx, FIRST - 1, SP_SLICE("x"), &err), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(b.k->source(b.k->ctx, FIRST + SP_KV_SOURCES_MAX, SP_SLICE("x"), &err),
                    SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(ask(&b, 1, 0, &l, 1, LEASE), SP_E_PROTOCOL); /* our own group */
    CU_ASSERT_EQUAL(ask(&b, 1, 17, &l, 1, LEASE), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(ask(&b, 1, FIRST + SP_KV_SOURCES_MAX, &l, 1, LEASE), SP_E_PROTOCOL);
    for (uint32_t i = 0; i < SP_KV_SOURCES_MAX; i++) tell(&b, FIRST + i, &l);
    for (uint32_t i = 0; i < SP_KV_SOURCES_MAX; i += 21) {
        CU_ASSERT_EQUAL(ask(&b, i, FIRST + i, &l, 2, LEASE), SP_OK);
        expect_all(&b, i, 2, SP_KVX_OK);
    }
    close_borrower(&b);
    close_lender(&l);
}

/* Both are alive: one is read, the other waits its turn or is done, and neither has been told of. */
static void while_bytes_come_in_every_open_pull_is_said_to_be_alive(void) {
    model m;
    lender l;
    borrower b;
    bool seen[3] = {false};
    sp_stage_kv_note note;
    open_model(&m);
    open_lender(&l, &m, 1, 1, 5);
    open_borrower(&b, &m, 1, 1, 0, 1); /* renewals every nanosecond */
    tell(&b, FIRST, &l);
    CU_ASSERT_EQUAL(ask(&b, 1, FIRST, &l, N_BLOCKS, 0), SP_OK);
    CU_ASSERT_EQUAL(ask(&b, 2, FIRST, &l, N_BLOCKS, 0), SP_OK);
    while (!seen[1] || !seen[2]) {
        if (!b.k->poll_note(b.k->ctx, &note)) {
            wait_woken(&b);
            continue;
        }
        CU_ASSERT(!note.of_lease && (note.id == 1 || note.id == 2));
        if (note.id == 1 || note.id == 2) seen[note.id] = true;
    }
    expect_all(&b, 1, N_BLOCKS, SP_KVX_OK);
    expect_all(&b, 2, N_BLOCKS, SP_KVX_OK);
    while (b.k->poll_note(b.k->ctx, &note)) CU_ASSERT(false); /* nothing is open any more */
    close_borrower(&b);
    close_lender(&l);
}

static void a_pull_of_which_nothing_comes_is_not_said_to_be_alive(void) {
    model m;
    lender l;
    borrower b;
    sp_stage_kv_note note;
    open_model(&m);
    open_lender(&l, &m, 1, 1, 5);
    open_borrower(&b, &m, 1, 1, 0, 1);
    tell(&b, FIRST, &l);
    close_lender(&l);
    CU_ASSERT_EQUAL(ask(&b, 1, FIRST, &l, N_BLOCKS, LEASE), SP_OK);
    expect_all(&b, 1, N_BLOCKS, SP_KVX_PEER);
    CU_ASSERT_FALSE(b.k->poll_note(b.k->ctx, &note));
    CU_ASSERT(sp_kv_port_failed_notices(b.port) >= 1); /* nor could the lease be renewed */
    close_borrower(&b);
}

/* What the lender's first rank says to its own head: the frames of real threads and sockets. */
static sp_wire_kv_lease next_lease(sp_link *head, sp_link *rank, const sp_stage_kvx *k) {
    sp_err err = {0};
    sp_frame f;
    sp_wire_kv_lease lease = {0};
    while (sp_link_recv(head, &f, 0, &err) == SP_AGAIN) {
        sp_frame none;
        CU_ASSERT_EQUAL_FATAL(sp_link_recv(rank, &none, sp_now_ns() + 30 * SP_NS_PER_S, &err),
                              SP_AGAIN);
        must(sp_stage_kv_tell(k, rank, &err), &err);
    }
    CU_ASSERT_EQUAL(f.type, SP_FRAME_KV_LEASE);
    must(sp_wire_kv_lease_decode(f.payload, f.length, &lease, &err), &err);
    return lease;
}

static void the_lender_hears_of_its_lease_from_the_first_rank_alone(void) {
    model m;
    lender l;
    borrower ranks[2];
    sp_link *head, *link;
    sp_kv_port *port;
    sp_err err = {0};
    int fd;
    open_model(&m);
    must(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), &err);
    must(sp_link_open_ring(&head, fd, 0, &err), &err);
    must(sp_link_open_ring(&link, fd, 1, &err), &err);
    close(fd);
    const sp_kvx_config as = as_usual();
    open_lender_as(&l, &m, 2, 1, 5, &as, link);
    const sp_kv_port_config pc = {.region = l.regions[0],
                                  .leases = l.leases,
                                  .layout = l.at[0].layout,
                                  .part = l.at[0].part,
                                  .n_blocks = N_BLOCKS,
                                  .link = link};
    must(sp_kv_port_open(&port, &pc, &err), &err);
    const sp_stage_kvx *k = sp_kv_port_callbacks(port);
    for (int32_t r = 1; r >= 0; r--) { /* the second first: what it said would come first */
        open_borrower(&ranks[r], &m, 2, 1, r, 1);
        tell(&ranks[r], FIRST, &l);
        CU_ASSERT_EQUAL(ask(&ranks[r], 1, FIRST, &l, 6, LEASE + (uint64_t)r), SP_OK);
        expect_all(&ranks[r], 1, 6, SP_KVX_OK);
        const sp_wire_kv_leave leave = {.lease = LEASE + (uint64_t)r, .source = FIRST};
        must(ranks[r].k->leave(ranks[r].k->ctx, &leave, &err), &err);
    }
    /* A renewal that still waited is replaced by the return: one of both may be all that comes. */
    sp_wire_kv_lease said = next_lease(head, link, k);
    CU_ASSERT_EQUAL(said.lease, LEASE);
    while (said.renewed) {
        said = next_lease(head, link, k);
        CU_ASSERT_EQUAL(said.lease, LEASE);
    }
    CU_ASSERT_EQUAL(sp_kv_port_failed_notices(ranks[0].port), 0);
    CU_ASSERT_EQUAL(sp_kv_port_failed_notices(ranks[1].port), 0);
    for (int i = 0; i < 2; i++) close_borrower(&ranks[i]);
    sp_kv_port_close(port);
    close_lender(&l);
    sp_link_close(head);
    sp_link_close(link);
}

static void a_lease_is_renewed_there_while_its_blocks_are_read(void) {
    model m;
    lender l;
    borrower b;
    uint64_t lease = 0;
    bool renewed = false;
    open_model(&m);
    open_lender(&l, &m, 2, 1, 5);
    open_borrower(&b, &m, 1, 1, 0, 1);
    tell(&b, FIRST, &l);
    CU_ASSERT_EQUAL(ask(&b, 1, FIRST, &l, N_BLOCKS, LEASE), SP_OK);
    expect_all(&b, 1, N_BLOCKS, SP_KVX_OK);
    CU_ASSERT(sp_kv_leases_take(l.leases, &lease, &renewed)); /* it was answered: it is there */
    CU_ASSERT(lease == LEASE && renewed);
    CU_ASSERT_FALSE(sp_kv_leases_take(l.leases, &lease, &renewed));
    close_borrower(&b);
    open_borrower(&b, &m, 1, 1, 0, 3600 * SP_NS_PER_S);
    tell(&b, FIRST, &l);
    CU_ASSERT_EQUAL(ask(&b, 1, FIRST, &l, N_BLOCKS, LEASE), SP_OK);
    expect_all(&b, 1, N_BLOCKS, SP_KVX_OK);
    CU_ASSERT_FALSE(sp_kv_leases_take(l.leases, &lease, &renewed)); /* not due */
    close_borrower(&b);
    close_lender(&l);
}

/* The thread does things in order, so a pull that has ended after it proves that it was tried. */
static void a_lease_that_cannot_be_given_back_is_counted(void) {
    model m;
    lender l, gone;
    borrower b;
    sp_err err = {0};
    open_model(&m);
    open_lender(&l, &m, 1, 1, 5);
    open_lender(&gone, &m, 1, 1, 6);
    open_borrower(&b, &m, 1, 1, 0, 0);
    tell(&b, FIRST, &l);
    tell(&b, FIRST + 1, &gone);
    tell_text(&b, FIRST + 2, "no JSON");
    close_lender(&gone);
    for (uint32_t i = 1; i <= 3; i++) { /* gone, unreadable, unknown */
        const sp_wire_kv_leave leave = {.lease = LEASE, .source = FIRST + i};
        must(b.k->leave(b.k->ctx, &leave, &err), &err);
    }
    CU_ASSERT_EQUAL(ask(&b, 1, FIRST, &l, 1, LEASE), SP_OK);
    expect_all(&b, 1, 1, SP_KVX_OK);
    CU_ASSERT_EQUAL(sp_kv_port_failed_notices(b.port), 3);
    close_borrower(&b);
    close_lender(&l);
}

static void closing_ends_pulls_that_linger_and_those_that_wait(void) {
    model m;
    lender l;
    borrower b;
    sp_err err = {0};
    open_model(&m);
    open_lender(&l, &m, 1, 1, 5);
    open_borrower(&b, &m, 1, 1, 0, 0);
    tell(&b, FIRST, &l);
    must(sp_chaos_setup("kv.slow=1", &err), &err);
    for (uint64_t i = 0; i < 200; i++) CU_ASSERT_EQUAL(ask(&b, i, FIRST, &l, 3, LEASE), SP_OK);
    const int64_t before = sp_now_ns();
    close_borrower(&b);
    CU_ASSERT(sp_now_ns() - before < 10 * SP_NS_PER_S); /* they would take 40 s */
    must(sp_chaos_setup(NULL, &err), &err);
    close_lender(&l);
}

static void more_pulls_than_may_be_open_are_the_heads_mistake(void) {
    model m;
    lender l;
    borrower b;
    open_model(&m);
    open_lender(&l, &m, 1, 1, 5);
    open_borrower(&b, &m, 1, 1, 0, 0);
    tell_text(&b, FIRST, "no JSON"); /* which is quick */
    for (uint64_t i = 0; i < SP_KV_PULLS_MAX; i++)
        CU_ASSERT_EQUAL(ask(&b, i, FIRST, &l, 1, LEASE), SP_OK);
    CU_ASSERT_EQUAL(ask(&b, 5000, FIRST, &l, 1, LEASE), SP_E_PROTOCOL);
    for (uint64_t i = 0; i < SP_KV_PULLS_MAX; i++) expect_all(&b, i, 1, SP_KVX_IDENTITY);
    CU_ASSERT_EQUAL(ask(&b, 5000, FIRST, &l, 1, LEASE), SP_OK);
    expect_all(&b, 5000, 1, SP_KVX_IDENTITY);
    close_borrower(&b);
    close_lender(&l);
}

/* A part of a large block is cut by layers, so that one read of it is no large one. */
static void no_part_is_larger_than_a_read(void) {
    model m;
    lender l;
    sp_kv_from f;
    sp_err err = {0};
    const int32_t layers[2] = {120, 80};
    open_model(&m);
    open_lender(&l, &m, 1, 1, 5); /* for an address */
    m.desc.n_layers = 200;
    m.desc.head_dim = 128;
    sp_kv_own own = {.desc = &m.desc, .arch = m.arch};
    must(sp_part_of(&own.part, &m.desc, m.arch, 1, 1, NULL, 0, 0, &err), &err);
    own.layout = sp_kv_layout_of(200, 4, 128, 128, SP_DTYPE_F32); /* half a MiB a layer */
    own.shape = sp_kv_port_shape(&own.layout, &own.part, 4);
    const sp_kv_source cut = {2, 2, layers};
    const char *const at[4] = {l.addresses[0], l.addresses[0], l.addresses[0], l.addresses[0]};
    must(sp_kv_from_open(&f, &own, &cut, at, NULL, &err), &err);
    CU_ASSERT_EQUAL(f.n_readers, 4);
    CU_ASSERT(f.n_givers > 4);
    int32_t layer_heads = 0;
    for (int32_t i = 0; i < f.n_givers; i++) {
        const sp_kv_piece *p = &f.givers[i].piece;
        CU_ASSERT(sp_kv_giver_bytes(&own, &f.givers[i]) <= SP_KV_READ_BYTES);
        layer_heads += p->n_layers * p->n_heads;
        for (int32_t k = 0; k < i; k++) { /* none overlaps another */
            const sp_kv_piece *q = &f.givers[k].piece;
            CU_ASSERT(p->layer_first >= q->layer_first + q->n_layers ||
                      q->layer_first >= p->layer_first + p->n_layers ||
                      p->head_first >= q->head_first + q->n_heads ||
                      q->head_first >= p->head_first + p->n_heads);
        }
    }
    CU_ASSERT_EQUAL(layer_heads, 200 * 4);
    sp_kv_from_close(&f);
    close_lender(&l);
}

static void every_failed_allocation_is_told(void) {
    model m;
    lender l;
    sp_err err = {0};
    open_model(&m);
    open_lender(&l, &m, 2, 1, 5);
    sp_kv_own own = {.desc = &m.desc, .arch = m.arch};
    must(sp_part_of(&own.part, &m.desc, m.arch, 1, 1, NULL, 0, 0, &err), &err);
    own.layout = sp_kv_layout_of(5, 4, m.desc.head_dim, BLOCK, SP_DTYPE_F32);
    own.shape = sp_kv_port_shape(&own.layout, &own.part, N_BLOCKS);
    const char *ranks[2] = {l.addresses[0], l.addresses[1]};
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_kv_source_write(&text, 2, 1, l.pp_layers, ranks);
    sp_status st = SP_E_NOMEM;
    int64_t n = 1;
    for (; st == SP_E_NOMEM && n < 100; n++) {
        sp_kv_from f = {.n_givers = 77};
        sp_mem_fail_at(n);
        st = sp_kv_from_open_text(&f, &own, sp_buf_slice(&text), &err);
        sp_mem_fail_at(0);
        if (st == SP_OK)
            sp_kv_from_close(&f);
        else
            CU_ASSERT_EQUAL(f.n_givers, 77);
    }
    CU_ASSERT_EQUAL(st, SP_OK);
    CU_ASSERT(n > 5);
    sp_buf_fini(&text);
    close_lender(&l);
}

SP_TEST_MAIN("runtime/engine/kv_from",
             SP_TEST(blocks_of_any_shape_come_from_another_pod_to_every_rank),
             SP_TEST(a_text_or_shape_that_cannot_be_gives_identity_for_every_block),
             SP_TEST(a_pod_with_another_key_is_no_peer),
             SP_TEST(a_block_of_other_tokens_or_another_time_is_not_taken),
             SP_TEST(a_source_may_be_replaced_while_pulls_of_it_wait),
             SP_TEST(numbers_outside_are_refused_and_all_inside_may_be_used),
             SP_TEST(while_bytes_come_in_every_open_pull_is_said_to_be_alive),
             SP_TEST(a_pull_of_which_nothing_comes_is_not_said_to_be_alive),
             SP_TEST(the_lender_hears_of_its_lease_from_the_first_rank_alone),
             SP_TEST(a_lease_is_renewed_there_while_its_blocks_are_read),
             SP_TEST(a_lease_that_cannot_be_given_back_is_counted),
             SP_TEST(closing_ends_pulls_that_linger_and_those_that_wait),
             SP_TEST(more_pulls_than_may_be_open_are_the_heads_mistake),
             SP_TEST(no_part_is_larger_than_a_read), SP_TEST(every_failed_allocation_is_told))
