#include "runtime/base/chaos.h"

#include "runtime/base/str.h"

#include <stdatomic.h>

/* The fault points of this process. Relaxed order is enough: who arms does so before the threads
 * that pass start, and nobody reads other data through what is here. */
typedef struct point {
    _Atomic double probability;
    _Atomic uint64_t passes, fired;
} point;

static point points[SP_CHAOS_POINT_COUNT];
static _Atomic uint32_t armed; /* a bit a point: what a pass looks at first, and mostly only */
static _Atomic uint64_t seed;
_Static_assert(SP_CHAOS_POINT_COUNT <= 32, "a bit a point");

typedef struct order { /* what a text asks for */
    double probability[SP_CHAOS_POINT_COUNT];
    uint32_t armed;
    uint64_t seed;
} order;

const char *sp_chaos_name(sp_chaos_point p) {
    static const char *const names[SP_CHAOS_POINT_COUNT] = {
        [SP_CHAOS_KVX_CORRUPT] = "kvx.corrupt",
        [SP_CHAOS_KVX_STALE] = "kvx.stale",
        [SP_CHAOS_KVX_FOREIGN] = "kvx.foreign",
        [SP_CHAOS_KVX_TRUNCATE] = "kvx.truncate",
        [SP_CHAOS_KVX_PEER_GONE] = "kvx.peer_gone",
        [SP_CHAOS_KV_LEASE] = "kv.lease",
        [SP_CHAOS_KV_SLOW] = "kv.slow"};
    return (unsigned)p < SP_CHAOS_POINT_COUNT ? names[p] : "unknown";
}

/* ---- setup ---- */

static int find_point(sp_slice name) {
    for (int p = 0; p < SP_CHAOS_POINT_COUNT; p++)
        if (sp_slice_is(name, sp_chaos_name((sp_chaos_point)p))) return p;
    return -1;
}

/* What is before the first `c`; `*rest` is what is after it. Without one: all, and `*has` is false. */
static sp_slice cut_at(sp_slice s, const char *c, sp_slice *rest, bool *has) {
    ptrdiff_t at = sp_slice_find(s, sp_slice_of(c), 0);
    *has = at >= 0;
    if (at < 0) return s;
    *rest = (sp_slice){s.ptr + at + 1, s.len - (size_t)at - 1};
    return (sp_slice){s.ptr, (size_t)at};
}

static sp_status unknown_point(sp_slice name, sp_err *err) {
    sp_buf known;
    sp_buf_init(&known, 0);
    for (int p = 0; p < SP_CHAOS_POINT_COUNT; p++)
        sp_buf_printf(&known, "%s%s", p ? ", " : "", sp_chaos_name((sp_chaos_point)p));
    sp_status st = SP_FAIL(err, SP_E_INVALID, "'%.*s' is no fault point, want one of %s",
                           (int)(name.len < 60 ? name.len : 60), name.ptr, known.ptr);
    sp_buf_fini(&known);
    return st;
}

static sp_status take_point(order *o, sp_slice item, sp_err *err) {
    sp_slice value = SP_SLICE("");
    bool has;
    double v;
    sp_slice name = cut_at(item, "=", &value, &has);
    int p = find_point(name);
    if (p < 0) return unknown_point(name, err);
    if (!has || sp_parse_f64(value, &v) != SP_OK || !(v >= 0 && v <= 1))
        return SP_FAIL(err, SP_E_INVALID, "fault point '%s' has probability '%.*s', want 0 to 1",
                       sp_chaos_name((sp_chaos_point)p), (int)(value.len < 40 ? value.len : 40),
                       value.ptr);
    if (o->armed & 1u << p)
        return SP_FAIL(err, SP_E_INVALID, "fault point '%s' is there twice",
                       sp_chaos_name((sp_chaos_point)p));
    o->probability[p] = v;
    o->armed |= 1u << p;
    return SP_OK;
}

static sp_status read_order(order *o, const char *text, sp_err *err) {
    sp_slice number = SP_SLICE(""), rest = SP_SLICE("");
    bool has;
    int64_t n = 0;
    sp_slice list = cut_at(sp_slice_of(text), "@", &number, &has);
    if (has && (sp_parse_i64(number, &n) != SP_OK || n < 0))
        return SP_FAIL(err, SP_E_INVALID, "the seed of fault points is '%.*s', want a number",
                       (int)(number.len < 40 ? number.len : 40), number.ptr);
    o->seed = (uint64_t)n;
    for (has = true; has; list = rest) SP_TRY(take_point(o, cut_at(list, ",", &rest, &has), err));
    return SP_OK;
}

sp_status sp_chaos_setup(const char *text, sp_err *err) {
    order o = {.armed = 0};
    atomic_store(&armed, 0);
    if (!text || !text[0]) return SP_OK;
    SP_TRY(read_order(&o, text, err));
    atomic_store(&seed, o.seed);
    for (int p = 0; p < SP_CHAOS_POINT_COUNT; p++) {
        atomic_store(&points[p].probability, o.probability[p]);
        atomic_store(&points[p].passes, 0);
        atomic_store(&points[p].fired, 0);
    }
    atomic_store(&armed, o.armed);
    return SP_OK;
}

/* ---- passing ---- */

/* Steele, Lea, Flood: "Fast splittable pseudorandom number generators": the n-th output for a seed
 * is a function of both, so that a draw needs no state but the number of the pass. */
static uint64_t nth_of(uint64_t from, uint64_t n) {
    uint64_t z = from + (n + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

bool sp_chaos_armed(void) {
    return atomic_load_explicit(&armed, memory_order_relaxed) != 0;
}

bool sp_chaos_hit(sp_chaos_point p) {
    if (!(atomic_load_explicit(&armed, memory_order_relaxed) & 1u << p)) return false;
    point *at = &points[p];
    uint64_t pass = atomic_fetch_add_explicit(&at->passes, 1, memory_order_relaxed);
    uint64_t of_point = nth_of(atomic_load_explicit(&seed, memory_order_relaxed), (uint64_t)p);
    /* 53 bits fill a double's, and are below 1: probability 1 always fires, 0 never. */
    double draw = (double)(nth_of(of_point, pass) >> 11) * 0x1p-53;
    if (draw >= atomic_load_explicit(&at->probability, memory_order_relaxed)) return false;
    atomic_fetch_add_explicit(&at->fired, 1, memory_order_relaxed);
    return true;
}

uint64_t sp_chaos_fired(sp_chaos_point p) {
    return atomic_load_explicit(&points[p].fired, memory_order_relaxed);
}
