/* Covers frontend/loop.c: readiness, timers, closing from within a callback. */
#include "frontend/loop.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

typedef struct probe {
    sp_loop *loop;
    sp_loop_io *io;
    sp_loop_timer *timer;
    sp_wake wake;
    int n_ready, n_ticks, n_after;
} probe;

static void on_ready(void *ctx, unsigned ready) {
    probe *p = ctx;
    CU_ASSERT_EQUAL(ready, SP_LOOP_READ);
    p->n_ready++;
    sp_wake_drain(&p->wake);
    /* Closing oneself is allowed. */
    sp_loop_io_close(p->io);
    p->io = NULL;
}

static void on_tick(void *ctx) {
    probe *p = ctx;
    if (++p->n_ticks == 1) sp_wake_signal(&p->wake);
    if (p->n_ticks < 3) return;
    sp_loop_timer_close(p->timer);
    p->timer = NULL;
    sp_loop_stop(p->loop);
}

static void after(void *ctx) {
    ((probe *)ctx)->n_after++;
}

static void a_loop_tells_readiness_and_time_and_runs_the_hook_after_each(void) {
    probe p = {0};
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_loop_create(&p.loop, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_wake_open(&p.wake, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_loop_io_open(&p.io, p.loop, p.wake.fd, on_ready, &p), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_loop_every(&p.timer, p.loop, 5, on_tick, &p), SP_OK);
    sp_loop_set_after(p.loop, after, &p);
    sp_loop_io_want(p.io, SP_LOOP_READ | SP_LOOP_WRITE);
    sp_loop_io_want(p.io, SP_LOOP_READ);
    sp_loop_run(p.loop);
    CU_ASSERT_EQUAL(p.n_ready, 1);
    CU_ASSERT_EQUAL(p.n_ticks, 3);
    CU_ASSERT_EQUAL(p.n_after, 4);
    sp_loop_io_close(NULL);
    sp_loop_timer_close(NULL);
    sp_wake_close(&p.wake);
    sp_loop_destroy(p.loop);
    sp_loop_destroy(NULL);
}

SP_TEST_MAIN("frontend/loop", SP_TEST(a_loop_tells_readiness_and_time_and_runs_the_hook_after_each))
