#include "tests/fake_dev_groups.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

sp_fake_dev_groups sp_fake_dev = {.lock = PTHREAD_MUTEX_INITIALIZER,
                                  .changed = PTHREAD_COND_INITIALIZER};

void sp_fake_dev_groups_reset(void) {
    sp_fake_dev = (sp_fake_dev_groups){.lock = PTHREAD_MUTEX_INITIALIZER,
                                       .changed = PTHREAD_COND_INITIALIZER};
}

bool sp_fake_dev_groups_wait_aborted(int n) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 5;
    int late = 0;
    pthread_mutex_lock(&sp_fake_dev.lock);
    while (sp_fake_dev.aborted < n && !late)
        late = pthread_cond_timedwait(&sp_fake_dev.changed, &sp_fake_dev.lock, &until);
    bool came = sp_fake_dev.aborted >= n;
    pthread_mutex_unlock(&sp_fake_dev.lock);
    return came;
}

static void fake_abort(sp_group *g) {
    (void)g;
    pthread_mutex_lock(&sp_fake_dev.lock);
    sp_fake_dev.aborted++;
    pthread_cond_broadcast(&sp_fake_dev.changed);
    pthread_mutex_unlock(&sp_fake_dev.lock);
}

static void fake_leave(sp_group *g) {
    sp_fake_dev.left++;
    free(g);
}

static const sp_group_ops ops = {.name = "fake", .close = fake_leave, .abort = fake_abort};

static sp_status fake_open(sp_dev_comms **out, sp_err *err) {
    if (sp_fake_dev.open_says != SP_OK)
        return SP_FAIL(err, sp_fake_dev.open_says, "no fake library");
    sp_fake_dev.opened++;
    *out = (sp_dev_comms *)(void *)&sp_fake_dev;
    return SP_OK;
}

static void fake_close(sp_dev_comms *c) {
    (void)c;
    sp_fake_dev.closed++;
}

static const char *fake_version(const sp_dev_comms *c) {
    (void)c;
    return "FAKE 1.0";
}

static size_t fake_bytes(const sp_group_config *config) {
    return (size_t)config->n * config->max_reduce + 1;
}

static sp_status fake_make_id(const sp_dev_comms *c, sp_dev_group_id *out, sp_err *err) {
    (void)c, (void)err;
    memset(out->bytes, ++sp_fake_dev.ids, sizeof out->bytes);
    return SP_OK;
}

static sp_status fake_join(sp_group **out, const sp_dev_comms *c, sp_dev *dev,
                           const sp_dev_group_id *id, bool fast, const sp_group_config *config,
                           const sp_group_wait *wait, sp_err *err) {
    (void)c;
    if (sp_fake_dev.joins == FAKE_JOINS_MAX) return SP_FAIL(err, SP_E_LIMIT, "too many joins");
    sp_fake_join *j = &sp_fake_dev.join[sp_fake_dev.joins++];
    *j = (sp_fake_join){.id = *id,
                        .config = *config,
                        .dev = dev,
                        .fast = fast,
                        .gave_up = wait->gave_up && wait->gave_up(wait->ctx),
                        .deadline_ns = wait->deadline_ns};
    if (j->gave_up) return SP_FAIL(err, SP_E_CANCELED, "given up");
    sp_group *g = calloc(1, sizeof *g);
    if (!g) abort();
    *g = (sp_group){.ops = &ops, .n = config->n, .me = config->me};
    *out = g;
    return SP_OK;
}

const struct sp_dev_groups sp_fake_dev_groups_table = {
    .name = "fake",
    .open = fake_open,
    .close = fake_close,
    .version = fake_version,
    .bytes = fake_bytes,
    .make_id = fake_make_id,
    .join = fake_join,
};
