#include "frontend/loop.h"

#include "runtime/base/mem.h"

#include <event2/event.h>
#include <event2/event_struct.h>

struct sp_loop {
    struct event_base *base;
    void (*after)(void *ctx);
    void *after_ctx;
};

struct sp_loop_io {
    sp_loop *loop;
    int fd;
    unsigned wanted;
    void (*fn)(void *ctx, unsigned ready);
    void *ctx;
    struct event ev;
};

struct sp_loop_timer {
    sp_loop *loop;
    void (*fn)(void *ctx);
    void *ctx;
    struct event ev;
};

static void run_after(sp_loop *l) {
    if (l->after) l->after(l->after_ctx);
}

sp_status sp_loop_create(sp_loop **out, sp_err *err) {
    sp_loop *l = sp_alloc(sizeof *l);
    struct event_config *c = event_config_new();
    /* The loop is one thread's and woken by descriptors, so no locks. */
    if (c) event_config_set_flag(c, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_IGNORE_ENV);
    l->base = c ? event_base_new_with_config(c) : NULL;
    if (c) event_config_free(c);
    if (!l->base) {
        sp_free(l);
        return SP_FAIL(err, SP_E_IO, "the system gives no event loop (epoll)");
    }
    *out = l;
    return SP_OK;
}

void sp_loop_destroy(sp_loop *l) {
    if (!l) return;
    event_base_free(l->base);
    sp_free(l);
}

void sp_loop_run(sp_loop *l) {
    event_base_loop(l->base, EVLOOP_NO_EXIT_ON_EMPTY);
}
void sp_loop_stop(sp_loop *l) {
    event_base_loopbreak(l->base);
}

void sp_loop_set_after(sp_loop *l, void (*fn)(void *ctx), void *ctx) {
    l->after = fn;
    l->after_ctx = ctx;
}

static void on_io(evutil_socket_t fd, short what, void *arg) {
    (void)fd;
    sp_loop_io *io = arg;
    sp_loop *l = io->loop;
    unsigned ready = (what & EV_READ ? SP_LOOP_READ : 0u) | (what & EV_WRITE ? SP_LOOP_WRITE : 0u);
    io->fn(io->ctx, ready); /* may close io */
    run_after(l);
}

sp_status sp_loop_io_open(sp_loop_io **out, sp_loop *l, int fd,
                          void (*fn)(void *ctx, unsigned ready), void *ctx) {
    sp_loop_io *io = sp_try_alloc(sizeof *io);
    if (!io) return SP_E_NOMEM;
    *io = (sp_loop_io){.loop = l, .fd = fd, .fn = fn, .ctx = ctx};
    *out = io;
    return SP_OK;
}

void sp_loop_io_want(sp_loop_io *io, unsigned what) {
    if (io->wanted == what) return;
    if (io->wanted) event_del(&io->ev);
    io->wanted = what;
    if (!what) return;
    int flags =
        EV_PERSIST | (what & SP_LOOP_READ ? EV_READ : 0) | (what & SP_LOOP_WRITE ? EV_WRITE : 0);
    event_assign(&io->ev, io->loop->base, io->fd, (short)flags, on_io, io);
    event_add(&io->ev, NULL);
}

void sp_loop_io_close(sp_loop_io *io) {
    if (!io) return;
    if (io->wanted) event_del(&io->ev);
    sp_free(io);
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    (void)fd;
    (void)what;
    sp_loop_timer *t = arg;
    sp_loop *l = t->loop;
    t->fn(t->ctx); /* may close t */
    run_after(l);
}

sp_status sp_loop_every(sp_loop_timer **out, sp_loop *l, int period_ms, void (*fn)(void *ctx),
                        void *ctx) {
    sp_loop_timer *t = sp_try_alloc(sizeof *t);
    if (!t) return SP_E_NOMEM;
    *t = (sp_loop_timer){.loop = l, .fn = fn, .ctx = ctx};
    struct timeval tv = {.tv_sec = period_ms / 1000, .tv_usec = period_ms % 1000 * 1000};
    event_assign(&t->ev, l->base, -1, EV_PERSIST, on_timer, t);
    event_add(&t->ev, &tv);
    *out = t;
    return SP_OK;
}

void sp_loop_timer_close(sp_loop_timer *t) {
    if (!t) return;
    event_del(&t->ev);
    sp_free(t);
}
