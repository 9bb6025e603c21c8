/* The operations of a shm group (comm/group.h) over comm/group_shm_sync.h. */
#include "comm/group.h"
#include "comm/group_shm_sync.h"
#include "comm/group_tree.h"
#include "runtime/base/mem.h"

#include <string.h>

/* Small sums: everybody adds all parts by itself, one meeting, but every member reads all of them.
 * Large ones: each adds one slice, and a second meeting hands the slices round. Measured on two
 * cores, 2, 4 and 8 processes: slices win above about 48 KB with 4 members, 16 to 24 KB with 8, and
 * not at all with 2, where they move as many bytes. */
#define AT_ONCE_BYTES ((size_t)192 * 1024) /* of all members together */
#define SLICE_STEP ((size_t)16)            /* floats: slices share no cache line */

enum {
    ALL_REDUCE = 1,
    PICK_ROWS,
    GATHER_COLS
}; /* order of kind_name() in comm/group_shm_sync.c */

typedef struct group_shm {
    sp_group base;
    sp_shm_sync sync;
    uint64_t sent[SP_GROUP_MEMBERS_MAX];  /* to each: the truth, shared memory has a copy */
    uint64_t taken[SP_GROUP_MEMBERS_MAX]; /* from each */
} group_shm;

static group_shm *of(sp_group *g) {
    return (group_shm *)g;
}

static uint64_t mix(uint64_t h, uint64_t v) {
    h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ (h >> 29);
}

static sp_shm_desc begin_collective(group_shm *s, int kind, size_t size) {
    return (sp_shm_desc){.seq = ++s->sync.seq,
                         .what = (uint64_t)kind << 56 | (size & (UINT64_MAX >> 8))};
}

static size_t slot_floats(const group_shm *s) {
    return s->sync.area.sizes.slot / sizeof(float);
}

/* ---- all_reduce ---- */

static void reduce_at_once(group_shm *s, float *buf, size_t n, const sp_shm_desc *desc) {
    sp_shm_sync *sync = &s->sync;
    const float *parts[SP_GROUP_MEMBERS_MAX];
    memcpy(sp_shm_my_slot(&sync->area, sync->phase + 1), buf, n * sizeof *buf);
    sp_shm_publish(sync, desc);
    if (!sp_shm_meet(sync)) return;
    for (int m = 0; m < s->base.n; m++)
        parts[m] = m == s->base.me ? buf : sp_shm_slot(&sync->area, m, sync->phase);
    sp_group_tree(buf, parts, s->base.n, n);
}

/* Slice `m` of `n` floats is [slice(m), slice(m + 1)). */
static size_t slice_from(const group_shm *s, int m, size_t n) {
    size_t members = (size_t)s->base.n;
    size_t each = (n + members - 1) / members;
    size_t at = (each + SLICE_STEP - 1) / SLICE_STEP * SLICE_STEP * (size_t)m;
    return at < n ? at : n;
}

static void reduce_in_slices(group_shm *s, float *buf, size_t n, const sp_shm_desc *desc) {
    sp_shm_sync *sync = &s->sync;
    sp_shm_area *area = &sync->area;
    int me = s->base.me, members = s->base.n;
    size_t from = slice_from(s, me, n), to = slice_from(s, me + 1, n);
    /* Nobody else reads our part of our own slice. */
    float *slot = sp_shm_my_slot(area, sync->phase + 1);
    memcpy(slot, buf, from * sizeof *buf);
    memcpy(slot + to, buf + to, (n - to) * sizeof *buf);
    sp_shm_publish(sync, desc);
    if (!sp_shm_meet(sync)) return;

    const float *parts[SP_GROUP_MEMBERS_MAX];
    for (int m = 0; m < members; m++)
        parts[m] = (m == me ? buf : sp_shm_slot(area, m, sync->phase)) + from;
    float *sum = sp_shm_my_slot(area, sync->phase + 1) + from;
    sp_group_tree(sum, parts, members, to - from);
    sp_shm_publish(sync, desc);
    memcpy(buf + from, sum, (to - from) * sizeof *buf);
    if (!sp_shm_meet(sync)) return;

    for (int k = 1; k < members; k++) {
        int m = (me + k) % members; /* each begins elsewhere */
        size_t at = slice_from(s, m, n), end = slice_from(s, m + 1, n);
        memcpy(buf + at, sp_shm_slot(area, m, sync->phase) + at, (end - at) * sizeof *buf);
    }
}

static void shm_all_reduce(sp_group *g, float *buf, size_t n) {
    group_shm *s = of(g);
    if (!sp_shm_begin(&s->sync, "all_reduce") || g->n == 1) return;
    sp_shm_desc desc = begin_collective(s, ALL_REDUCE, n);
    size_t most = slot_floats(s);
    for (size_t at = 0; at < n && s->sync.fault == SP_OK; at += most) {
        size_t len = n - at < most ? n - at : most;
        if (!sp_shm_meet(&s->sync)) return;
        if (g->n == 2 || len * sizeof *buf <= AT_ONCE_BYTES / (size_t)g->n)
            reduce_at_once(s, buf + at, len, &desc);
        else
            reduce_in_slices(s, buf + at, len, &desc);
    }
}

/* ---- pick_rows ---- */

typedef struct picking {
    float *rows;
    size_t cols;
    const int32_t *owner;
} picking;

/* Copies what this member owns of the flat range [at, at + len) into its slot. */
static void pick_out(group_shm *s, const picking *p, size_t at, size_t len) {
    float *slot = sp_shm_my_slot(&s->sync.area, s->sync.phase + 1);
    for (size_t i = at, end; i < at + len; i = end) {
        size_t row = i / p->cols;
        end = (row + 1) * p->cols;
        if (end > at + len) end = at + len;
        if (p->owner[row] == s->base.me)
            memcpy(slot + (i - at), p->rows + i, (end - i) * sizeof *slot);
    }
}

/* Copies what the others own of it out of their slots. */
static void pick_in(group_shm *s, const picking *p, size_t at, size_t len) {
    for (size_t i = at, end; i < at + len; i = end) {
        size_t row = i / p->cols;
        end = (row + 1) * p->cols;
        if (end > at + len) end = at + len;
        if (p->owner[row] == s->base.me) continue;
        const float *slot = sp_shm_slot(&s->sync.area, p->owner[row], s->sync.phase);
        memcpy(p->rows + i, slot + (i - at), (end - i) * sizeof *slot);
    }
}

static void shm_pick_rows(sp_group *g, float *rows, size_t n_rows, size_t cols,
                          const int32_t *owner) {
    group_shm *s = of(g);
    if (!sp_shm_begin(&s->sync, "pick_rows")) return;
    size_t total;
    if (__builtin_mul_overflow(n_rows, cols, &total)) {
        sp_shm_fail(&s->sync, SP_E_INTERNAL, g->me, "pick_rows of %zu x %zu", n_rows, cols);
        return;
    }
    sp_shm_desc desc = begin_collective(s, PICK_ROWS, total);
    desc.detail = mix(0, n_rows);
    for (size_t i = 0; i < n_rows; i++) {
        desc.detail = mix(desc.detail, (uint64_t)owner[i]);
        if (owner[i] >= 0 && owner[i] < g->n) continue;
        sp_shm_fail(&s->sync, SP_E_INTERNAL, g->me, "pick_rows: row %zu is of member %d of %d", i,
                    owner[i], g->n);
        return;
    }
    if (g->n == 1) return;
    picking p = {.rows = rows, .cols = cols, .owner = owner};
    size_t most = slot_floats(s);
    for (size_t at = 0; at < total; at += most) {
        size_t len = total - at < most ? total - at : most;
        if (!sp_shm_meet(&s->sync)) return;
        pick_out(s, &p, at, len);
        sp_shm_publish(&s->sync, &desc);
        if (!sp_shm_meet(&s->sync)) return;
        pick_in(s, &p, at, len);
    }
}

/* ---- gather_cols ---- */

typedef struct gathering {
    float *out;
    size_t n_rows, width; /* width: sum of cols */
    const int32_t *cols;
} gathering;

/* Puts elements [at, at + len) of member m's flat [n_rows, cols[m]] into its columns of `out`. */
static void place_cols(const gathering *q, int m, const float *from, size_t at, size_t len) {
    size_t cols = (size_t)q->cols[m], first = 0;
    for (int k = 0; k < m; k++) first += (size_t)q->cols[k];
    for (size_t i = at, end; i < at + len; i = end) {
        size_t row = i / cols;
        end = (row + 1) * cols;
        if (end > at + len) end = at + len;
        memcpy(q->out + row * q->width + first + (i - row * cols), from + (i - at),
               (end - i) * sizeof *from);
    }
}

static size_t piece(size_t total, size_t at, size_t most) {
    if (at >= total) return 0;
    return total - at < most ? total - at : most;
}

static void gather_at_root(group_shm *s, const gathering *q, size_t at, size_t most) {
    for (int m = 0; m < s->base.n; m++) {
        size_t len = piece(q->n_rows * (size_t)q->cols[m], at, most);
        if (m != s->base.me && len > 0)
            place_cols(q, m, sp_shm_slot(&s->sync.area, m, s->sync.phase), at, len);
    }
}

/* Sums and checks the widths. `widest`: elements of the member that has most. */
static bool measure(group_shm *s, gathering *q, size_t *widest, sp_shm_desc *desc, int root) {
    size_t most = 0, total;
    uint64_t detail = mix(mix(0, (uint64_t)root), q->n_rows);
    for (int m = 0; m < s->base.n; m++) {
        if (q->cols[m] < 0) goto nonsense;
        size_t cols = (size_t)q->cols[m];
        q->width += cols;
        if (cols > most) most = cols;
        detail = mix(detail, cols);
    }
    if (root < 0 || root >= s->base.n || __builtin_mul_overflow(q->n_rows, q->width, &total))
        goto nonsense;
    *desc = begin_collective(s, GATHER_COLS, total);
    desc->detail = detail;
    *widest = q->n_rows * most;
    return true;

nonsense:
    sp_shm_fail(&s->sync, SP_E_INTERNAL, s->base.me, "gather_cols at root %d: no such root or size",
                root);
    return false;
}

static void shm_gather_cols(sp_group *g, int root, const float *mine, float *out, size_t n_rows,
                            const int32_t *cols) {
    group_shm *s = of(g);
    gathering q = {.out = out, .n_rows = n_rows, .cols = cols};
    sp_shm_desc desc;
    size_t widest, most = slot_floats(s);
    if (!sp_shm_begin(&s->sync, "gather_cols") || !measure(s, &q, &widest, &desc, root)) return;
    size_t own = n_rows * (size_t)cols[g->me];
    if (root == g->me && own > 0) place_cols(&q, g->me, mine, 0, own);
    if (g->n == 1) return;
    for (size_t at = 0; at < widest; at += most) {
        if (!sp_shm_meet(&s->sync)) return;
        size_t len = piece(own, at, most);
        if (root != g->me && len > 0)
            memcpy(sp_shm_my_slot(&s->sync.area, s->sync.phase + 1), mine + at, len * sizeof *mine);
        sp_shm_publish(&s->sync, &desc);
        /* Only the root needs the others now; they meet when they begin the next phase. */
        if (root != g->me) continue;
        if (!sp_shm_meet(&s->sync)) return;
        gather_at_root(s, &q, at, most);
    }
}

/* ---- messages ---- */

static bool mail_fits(group_shm *s, int peer, size_t bytes) {
    if (peer < 0 || peer >= s->base.n)
        sp_shm_fail(&s->sync, SP_E_INTERNAL, s->base.me, "%s: no member %d of %d", s->sync.op, peer,
                    s->base.n);
    else if (bytes > s->sync.area.sizes.message)
        sp_shm_fail(&s->sync, SP_E_INTERNAL, s->base.me, "%s: %zu bytes, at most %zu", s->sync.op,
                    bytes, s->sync.area.sizes.message);
    return s->sync.fault == SP_OK;
}

static void shm_send(sp_group *g, int to, const void *data, size_t bytes) {
    group_shm *s = of(g);
    sp_shm_sync *sync = &s->sync;
    if (!sp_shm_begin(sync, "send") || !mail_fits(s, to, bytes)) return;
    sp_shm_post *post = sp_shm_post_of(&sync->area, g->me, to);
    uint64_t sends = (uint64_t)sync->area.sizes.sends, number = s->sent[to];
    if (!sp_shm_wait_word(sync, to, &post->taken, number - sends)) return;
    uint64_t taken = atomic_load(&post->taken);
    if (taken > number || number - taken >= sends) {
        sp_shm_fail(sync, SP_E_INTERNAL, to, "member %d says it took messages that were never sent",
                    to);
        return;
    }
    unsigned char *place = sync->area.mine + sp_shm_place(&sync->area, to, number);
    sp_shm_mail head = {.number = number, .bytes = bytes};
    memcpy(place, &head, sizeof head);
    if (bytes) memcpy(place + sizeof head, data, bytes);
    s->sent[to] = number + 1;
    atomic_store(&post->sent, number + 1);
    sp_shm_wake(sync, to);
}

static void shm_recv(sp_group *g, int from, void *data, size_t bytes) {
    group_shm *s = of(g);
    sp_shm_sync *sync = &s->sync;
    if (!sp_shm_begin(sync, "recv") || !mail_fits(s, from, bytes)) return;
    const sp_shm_area *area = &sync->area;
    sp_shm_post *post = sp_shm_post_of(area, from, g->me);
    uint64_t number = s->taken[from];
    if (!sp_shm_wait_word(sync, from, &post->sent, number)) return;
    const unsigned char *place =
        area->every + (size_t)from * area->sizes.member + sp_shm_place(area, g->me, number);
    sp_shm_mail head;
    memcpy(&head, place, sizeof head);
    uint64_t waiting = atomic_load(&post->sent) - number;
    if (waiting > (uint64_t)area->sizes.sends || head.number != number || head.bytes != bytes) {
        sp_shm_fail(sync, SP_E_INTERNAL, from,
                    "message %llu from member %d has %llu bytes and number %llu, want %zu bytes",
                    (unsigned long long)number, from, (unsigned long long)head.bytes,
                    (unsigned long long)head.number, bytes);
        return;
    }
    if (bytes) memcpy(data, place + sizeof head, bytes);
    s->taken[from] = number + 1;
    atomic_store(&post->taken, number + 1);
    sp_shm_wake(sync, from);
}

static bool shm_can_recv(sp_group *g, int from) {
    group_shm *s = of(g);
    if (s->sync.fault != SP_OK || from < 0 || from >= g->n) return true; /* it fails at once */
    return atomic_load(&sp_shm_post_of(&s->sync.area, from, g->me)->sent) != s->taken[from];
}

/* ---- the group ---- */

static sp_status shm_poll(sp_group *g, int64_t deadline_ns, sp_err *err) {
    (void)deadline_ns; /* all work is done within the operations */
    group_shm *s = of(g);
    sp_shm_begin(&s->sync, "poll");
    if (s->sync.fault != SP_OK && err) *err = s->sync.why;
    return s->sync.fault;
}

static void shm_abort(sp_group *g) {
    sp_shm_abort(&of(g)->sync);
}

static void shm_close(sp_group *g) {
    if (!g) return;
    group_shm *s = of(g);
    sp_shm_leave(&s->sync);
    sp_shm_area_close(&s->sync.area);
    sp_free(s);
}

static const sp_group_ops shm_ops = {
    .name = "shm",
    .close = shm_close,
    .all_reduce = shm_all_reduce,
    .pick_rows = shm_pick_rows,
    .gather_cols = shm_gather_cols,
    .send = shm_send,
    .recv = shm_recv,
    .can_recv = shm_can_recv,
    .poll = shm_poll,
    .abort = shm_abort,
};

sp_status sp_group_open_shm(sp_group **out, int fd, const sp_group_config *config, sp_err *err) {
    sp_shm_area area;
    SP_TRY(sp_shm_area_open(&area, fd, config, err));
    group_shm *s = sp_alloc(sizeof *s);
    s->base = (sp_group){.ops = &shm_ops, .n = config->n, .me = config->me};
    s->sync.area = area;
    sp_shm_sync_init(&s->sync, config);
    *out = &s->base;
    return SP_OK;
}
