#include "tests/fake_group.h"

#include "runtime/base/mem.h"

#include <pthread.h>
#include <string.h>

typedef struct message {
    struct message *next;
    size_t bytes;
    unsigned char data[];
} message;

typedef struct mailbox {
    message *head, *tail;
    int n;
} mailbox;

typedef enum op {
    OP_REDUCE,
    OP_PICK,
    OP_GATHER,
} op;

typedef struct member {
    sp_group group;
    sp_fake_hub *hub;
    /* Of the operation at hand. */
    op what;
    float *buf, *out;
    size_t n_rows, cols;
    const int32_t *ints; /* owners, or columns */
} member;

struct sp_fake_hub {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n, sends, arrived, left, most_waiting;
    uint64_t round;
    sp_status fault;
    member members[SP_GROUP_MEMBERS_MAX];
    mailbox boxes[SP_GROUP_MEMBERS_MAX][SP_GROUP_MEMBERS_MAX]; /* from, to */
};

static member *member_of(sp_group *g) {
    return (member *)g;
}

/* ---- what all do together, done by the last to arrive ---- */

static float tree(sp_fake_hub *h, size_t i, int first, int n) {
    if (n == 1) return h->members[first].buf[i];
    float a = tree(h, i, first, n / 2);
    return first + n / 2 < h->n ? a + tree(h, i, first + n / 2, n / 2) : a;
}

static void reduce(sp_fake_hub *h) {
    int wide = 1;
    while (wide < h->n) wide *= 2;
    for (size_t i = 0; i < h->members[0].n_rows; i++) {
        float sum = tree(h, i, 0, wide);
        for (int m = 0; m < h->n; m++) h->members[m].buf[i] = sum;
    }
}

static void pick(sp_fake_hub *h, const member *mine) {
    size_t row = mine->cols;
    for (size_t i = 0; i < mine->n_rows; i++)
        for (int m = 0; m < h->n; m++) {
            int owner = h->members[m].ints[i]; /* what this one thinks */
            if (owner == m || owner < 0 || owner >= h->n) continue;
            memcpy(h->members[m].buf + i * row, h->members[owner].buf + i * row,
                   row * sizeof(float));
        }
}

static void gather(sp_fake_hub *h, const member *mine) {
    const int32_t *cols = mine->ints;
    for (int root = 0; root < h->n; root++) {
        float *out = h->members[root].out;
        for (size_t i = 0; out && i < mine->n_rows; i++)
            for (int m = 0; m < h->n; m++) {
                memcpy(out, h->members[m].buf + i * (size_t)cols[m],
                       (size_t)cols[m] * sizeof(float));
                out += cols[m];
            }
    }
}

static void together(member *m) {
    sp_fake_hub *h = m->hub;
    pthread_mutex_lock(&h->lock);
    uint64_t round = h->round;
    if (h->fault == SP_OK && ++h->arrived == h->n) {
        for (int i = 0; i < h->n; i++)
            if (h->members[i].what != m->what || h->members[i].n_rows != m->n_rows ||
                h->members[i].cols != m->cols)
                h->fault = SP_E_INTERNAL;
        if (h->fault == SP_OK && m->what == OP_REDUCE) reduce(h);
        if (h->fault == SP_OK && m->what == OP_PICK) pick(h, m);
        if (h->fault == SP_OK && m->what == OP_GATHER) gather(h, m);
        h->arrived = 0;
        h->round++;
        pthread_cond_broadcast(&h->changed);
    }
    while (h->fault == SP_OK && h->round == round) pthread_cond_wait(&h->changed, &h->lock);
    pthread_mutex_unlock(&h->lock);
}

/* ---- the operations ---- */

static void group_close(sp_group *g) {
    (void)g;
}

static void all_reduce(sp_group *g, float *buf, size_t n) {
    member *m = member_of(g);
    m->what = OP_REDUCE;
    m->buf = buf;
    m->n_rows = n;
    m->cols = 1;
    together(m);
}

static void pick_rows(sp_group *g, float *rows, size_t n_rows, size_t cols, const int32_t *owner) {
    member *m = member_of(g);
    m->what = OP_PICK;
    m->buf = rows;
    m->n_rows = n_rows;
    m->cols = cols;
    m->ints = owner;
    together(m);
}

static void gather_cols(sp_group *g, int root, const float *mine, float *out, size_t n_rows,
                        const int32_t *cols) {
    member *m = member_of(g);
    m->what = OP_GATHER;
    m->buf = (float *)mine;
    m->out = g->me == root ? out : NULL;
    m->n_rows = n_rows;
    m->cols = 0;
    m->ints = cols;
    together(m);
}

static void group_send(sp_group *g, int to, const void *data, size_t bytes) {
    sp_fake_hub *h = member_of(g)->hub;
    message *msg = sp_alloc(sizeof *msg + bytes);
    msg->bytes = bytes;
    memcpy(msg->data, data, bytes);
    pthread_mutex_lock(&h->lock);
    mailbox *b = &h->boxes[g->me][to];
    while (h->fault == SP_OK && b->n >= h->sends) pthread_cond_wait(&h->changed, &h->lock);
    if (b->tail)
        b->tail->next = msg;
    else
        b->head = msg;
    b->tail = msg;
    if (++b->n > h->most_waiting) h->most_waiting = b->n;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

static void group_recv(sp_group *g, int from, void *data, size_t bytes) {
    sp_fake_hub *h = member_of(g)->hub;
    pthread_mutex_lock(&h->lock);
    mailbox *b = &h->boxes[from][g->me];
    while (h->fault == SP_OK && !b->head) pthread_cond_wait(&h->changed, &h->lock);
    message *msg = h->fault == SP_OK ? b->head : NULL;
    if (msg) {
        b->head = msg->next;
        if (!b->head) b->tail = NULL;
        b->n--;
        if (msg->bytes == bytes)
            memcpy(data, msg->data, bytes);
        else
            h->fault = SP_E_INTERNAL;
        pthread_cond_broadcast(&h->changed);
    }
    pthread_mutex_unlock(&h->lock);
    sp_free(msg);
}

static bool can_recv(sp_group *g, int from) {
    sp_fake_hub *h = member_of(g)->hub;
    pthread_mutex_lock(&h->lock);
    bool any = h->boxes[from][g->me].head || h->fault != SP_OK;
    pthread_mutex_unlock(&h->lock);
    return any;
}

static sp_status group_poll(sp_group *g, int64_t deadline_ns, sp_err *err) {
    (void)deadline_ns;
    sp_fake_hub *h = member_of(g)->hub;
    pthread_mutex_lock(&h->lock);
    sp_status st = h->fault;
    int left = h->left;
    pthread_mutex_unlock(&h->lock);
    if (st == SP_OK) return st;
    return SP_FAIL(err, st, st == SP_E_PEER_LOST ? "member %d is gone" : "sizes disagree (%d)",
                   left);
}

static void group_abort(sp_group *g) {
    sp_fake_hub_leave(member_of(g)->hub, g->me);
}

static const sp_group_ops ops = {.name = "fake",
                                 .close = group_close,
                                 .all_reduce = all_reduce,
                                 .pick_rows = pick_rows,
                                 .gather_cols = gather_cols,
                                 .send = group_send,
                                 .recv = group_recv,
                                 .can_recv = can_recv,
                                 .poll = group_poll,
                                 .abort = group_abort};

/* ---- the hub ---- */

sp_fake_hub *sp_fake_hub_open(int n, int sends) {
    sp_fake_hub *h = sp_alloc(sizeof *h);
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->changed, NULL);
    h->n = n;
    h->sends = sends;
    for (int i = 0; i < n; i++)
        h->members[i] = (member){.group = {.ops = &ops, .n = n, .me = i}, .hub = h};
    return h;
}

sp_group *sp_fake_hub_member(sp_fake_hub *h, int me) {
    return &h->members[me].group;
}

void sp_fake_hub_leave(sp_fake_hub *h, int me) {
    pthread_mutex_lock(&h->lock);
    if (h->fault == SP_OK) {
        h->fault = SP_E_PEER_LOST;
        h->left = me;
    }
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

void sp_fake_hub_close(sp_fake_hub *h) {
    if (!h) return;
    for (int i = 0; i < h->n; i++)
        for (int k = 0; k < h->n; k++)
            for (message *msg = h->boxes[i][k].head, *next; msg; msg = next) {
                next = msg->next;
                sp_free(msg);
            }
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    sp_free(h);
}

int sp_fake_hub_most_waiting(const sp_fake_hub *h) {
    return h->most_waiting;
}
