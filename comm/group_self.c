/* A group of one (comm/group.h): sums and picks are what they were, a gather is a copy, and there is
 * nobody to send to. */
#include "comm/group.h"
#include "runtime/base/mem.h"

#include <stdatomic.h>
#include <string.h>

typedef struct group_self {
    sp_group base;
    _Atomic bool aborted;
    sp_status fault; /* sticks */
    sp_err why;
} group_self;

static group_self *of(sp_group *g) {
    return (group_self *)g;
}

static void self_close(sp_group *g) {
    sp_free(g);
}

static void self_all_reduce(sp_group *g, float *buf, size_t n) {
    (void)g;
    (void)buf;
    (void)n;
}

static void fail(group_self *s, const char *op, int member) {
    if (s->fault == SP_OK)
        s->fault = SP_FAIL(&s->why, SP_E_INTERNAL,
                           "%s: there is no other in a group of one, got %d", op, member);
}

/* Whether an operation has anything to do: a fault sticks. */
static bool begin(group_self *s) {
    if (s->fault == SP_OK && atomic_load(&s->aborted))
        s->fault = SP_FAIL(&s->why, SP_E_CANCELED, "the group was aborted");
    return s->fault == SP_OK;
}

static void self_pick_rows(sp_group *g, float *rows, size_t n_rows, size_t cols,
                           const int32_t *owner) {
    (void)rows;
    (void)cols;
    for (size_t i = 0; begin(of(g)) && i < n_rows; i++)
        if (owner[i] != 0) fail(of(g), "pick_rows", owner[i]);
}

static void self_gather_cols(sp_group *g, int root, const float *mine, float *out, size_t n_rows,
                             const int32_t *cols) {
    if (!begin(of(g))) return;
    if (root != 0 || cols[0] < 0) {
        fail(of(g), "gather_cols", root);
        return;
    }
    size_t n = n_rows * (size_t)cols[0];
    if (n) memcpy(out, mine, n * sizeof *out);
}

static void self_send(sp_group *g, int to, const void *data, size_t bytes) {
    (void)data;
    (void)bytes;
    if (begin(of(g))) fail(of(g), "send", to);
}

static void self_recv(sp_group *g, int from, void *data, size_t bytes) {
    (void)data;
    (void)bytes;
    if (begin(of(g))) fail(of(g), "recv", from);
}

static bool self_can_recv(sp_group *g, int from) {
    (void)g;
    (void)from;
    return true; /* it fails at once */
}

static sp_status self_poll(sp_group *g, int64_t deadline_ns, sp_err *err) {
    (void)deadline_ns;
    group_self *s = of(g);
    if (begin(s)) return SP_OK;
    if (err) *err = s->why;
    return s->fault;
}

static void self_abort(sp_group *g) {
    atomic_store(&of(g)->aborted, true);
}

static const sp_group_ops self_ops = {
    .name = "self",
    .close = self_close,
    .all_reduce = self_all_reduce,
    .pick_rows = self_pick_rows,
    .gather_cols = self_gather_cols,
    .send = self_send,
    .recv = self_recv,
    .can_recv = self_can_recv,
    .poll = self_poll,
    .abort = self_abort,
};

sp_status sp_group_open_self(sp_group **out, sp_err *err) {
    group_self *s = sp_try_alloc(sizeof *s);
    if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory for a group of one");
    s->base = (sp_group){.ops = &self_ops, .n = 1, .me = 0};
    *out = &s->base;
    return SP_OK;
}
