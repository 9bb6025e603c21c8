#include "runtime/engine/kv_leases.h"

#include "runtime/base/mem.h"
#include "runtime/base/metric.h"

#include <pthread.h>
#include <string.h>

typedef struct word {
    uint64_t lease;
    bool renewed;
} word;

struct sp_kv_leases {
    sp_link *link;
    pthread_mutex_t lock;
    int n;
    word words[SP_KV_LEASES_MAX]; /* oldest first */
    sp_counter dropped;
};

sp_status sp_kv_leases_create(sp_kv_leases **out, sp_link *link, sp_err *err) {
    sp_kv_leases *l = sp_try_alloc(sizeof *l);
    if (!l) return SP_FAIL(err, SP_E_NOMEM, "no memory for words about leases");
    l->link = link;
    pthread_mutex_init(&l->lock, NULL);
    *out = l;
    return SP_OK;
}

void sp_kv_leases_destroy(sp_kv_leases *l) {
    if (!l) return;
    pthread_mutex_destroy(&l->lock);
    sp_free(l);
}

/* The lock is held. */
static void remove_at(sp_kv_leases *l, int i) {
    l->n--;
    memmove(&l->words[i], &l->words[i + 1], (size_t)(l->n - i) * sizeof l->words[0]);
}

/* The lock is held. Whether there is a place for one more. */
static bool make_room(sp_kv_leases *l) {
    if (l->n < SP_KV_LEASES_MAX) return true;
    for (int i = 0; i < l->n; i++)
        if (l->words[i].renewed) {
            remove_at(l, i);
            return true;
        }
    return false;
}

void sp_kv_leases_put(void *leases, uint64_t lease, bool renewed) {
    sp_kv_leases *l = leases;
    int i = 0;
    if (lease == 0) return;
    pthread_mutex_lock(&l->lock);
    while (i < l->n && l->words[i].lease != lease) i++;
    if (i < l->n) {
        /* After a return there is nothing left to renew. */
        l->words[i].renewed = l->words[i].renewed && renewed;
    } else {
        const bool was_full = l->n == SP_KV_LEASES_MAX, room = make_room(l);
        if (was_full) sp_counter_add(&l->dropped, 1);
        if (room) l->words[l->n++] = (word){lease, renewed};
    }
    pthread_mutex_unlock(&l->lock);
    if (l->link) sp_link_wake(l->link);
}

bool sp_kv_leases_take(sp_kv_leases *l, uint64_t *lease, bool *renewed) {
    pthread_mutex_lock(&l->lock);
    const bool is = l->n > 0;
    if (is) {
        *lease = l->words[0].lease;
        *renewed = l->words[0].renewed;
        remove_at(l, 0);
    }
    pthread_mutex_unlock(&l->lock);
    return is;
}

uint64_t sp_kv_leases_dropped(const sp_kv_leases *l) {
    return sp_counter_get(&l->dropped);
}
