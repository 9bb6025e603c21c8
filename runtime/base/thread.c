#include "runtime/base/thread.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static _Thread_local char thread_name[16] = "main";

typedef struct starter {
    void *(*fn)(void *);
    void *arg;
    char name[16];
} starter;

static void *thread_main(void *p) {
    starter s = *(starter *)p;
    sp_free(p);
    memcpy(thread_name, s.name, sizeof thread_name);
    pthread_setname_np(pthread_self(), s.name);
    return s.fn(s.arg);
}

sp_status sp_thread_start(sp_thread *t, const char *name, void *(*fn)(void *), void *arg,
                          sp_err *err) {
    starter *s = sp_alloc(sizeof *s);
    s->fn = fn;
    s->arg = arg;
    snprintf(s->name, sizeof s->name, "%s", name);
    int rc = pthread_create(&t->id, NULL, thread_main, s);
    if (rc != 0) {
        sp_free(s);
        return SP_FAIL(err, SP_E_NOMEM, "thread '%s' did not start: %s", name, strerror(rc));
    }
    t->started = true;
    return SP_OK;
}

void sp_thread_join(sp_thread *t) {
    if (!t->started) return;
    pthread_join(t->id, NULL);
    t->started = false;
}

const char *sp_thread_name(void) {
    return thread_name;
}
bool sp_thread_is(const char *name) {
    return strcmp(thread_name, name) == 0;
}

struct sp_queue {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    int capacity, count, head;
    bool closed;
    void *items[];
};

sp_queue *sp_queue_create(int capacity) {
    SP_ASSERT(capacity > 0);
    sp_queue *q = sp_alloc(sizeof *q + (size_t)capacity * sizeof q->items[0]);
    q->capacity = capacity;
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&q->filled, &attr);
    pthread_condattr_destroy(&attr);
    return q;
}

void sp_queue_destroy(sp_queue *q) {
    if (!q) return;
    pthread_cond_destroy(&q->filled);
    pthread_mutex_destroy(&q->lock);
    sp_free(q);
}

sp_status sp_queue_push(sp_queue *q, void *item) {
    SP_ASSERT(item);
    pthread_mutex_lock(&q->lock);
    sp_status st = q->closed ? SP_E_CLOSED : q->count == q->capacity ? SP_E_LIMIT : SP_OK;
    if (st == SP_OK) {
        q->items[(q->head + q->count++) % q->capacity] = item;
        pthread_cond_signal(&q->filled);
    }
    pthread_mutex_unlock(&q->lock);
    return st;
}

/* The lock is held. */
static void *take(sp_queue *q) {
    if (q->count == 0) return NULL;
    void *item = q->items[q->head];
    q->head = (q->head + 1) % q->capacity;
    q->count--;
    return item;
}

void *sp_queue_try_pop(sp_queue *q) {
    pthread_mutex_lock(&q->lock);
    void *item = take(q);
    pthread_mutex_unlock(&q->lock);
    return item;
}

void *sp_queue_pop(sp_queue *q, int64_t deadline_ns) {
    if (deadline_ns < 0) deadline_ns = 0; /* long past */
    struct timespec ts = {.tv_sec = deadline_ns / SP_NS_PER_S,
                          .tv_nsec = deadline_ns % SP_NS_PER_S};
    pthread_mutex_lock(&q->lock);
    int rc = 0;
    while (q->count == 0 && !q->closed && rc == 0) {
        if (deadline_ns == SP_NEVER)
            pthread_cond_wait(&q->filled, &q->lock);
        else
            rc = pthread_cond_timedwait(&q->filled, &q->lock, &ts);
    }
    void *item = take(q);
    pthread_mutex_unlock(&q->lock);
    return item;
}

void sp_queue_close(sp_queue *q) {
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->filled);
    pthread_mutex_unlock(&q->lock);
}

int sp_queue_count(sp_queue *q) {
    pthread_mutex_lock(&q->lock);
    int n = q->count;
    pthread_mutex_unlock(&q->lock);
    return n;
}

sp_status sp_wake_open(sp_wake *w, sp_err *err) {
    w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->fd < 0) return SP_FAIL(err, SP_E_IO, "eventfd: %s", strerror(errno));
    return SP_OK;
}

void sp_wake_close(sp_wake *w) {
    if (w->fd >= 0) close(w->fd);
    w->fd = -1;
}

void sp_wake_signal(sp_wake *w) {
    uint64_t one = 1;
    ssize_t n;
    do n = write(w->fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so the descriptor is readable already. */
}

void sp_wake_drain(sp_wake *w) {
    uint64_t count;
    ssize_t n;
    do n = read(w->fd, &count, sizeof count);
    while (n < 0 && errno == EINTR);
}
