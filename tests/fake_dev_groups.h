/* tests/fake_dev_groups.h - the groups of a device that are none: who joins what is written down.
 *
 * Thread: the test's; a group's abort() any. */
#pragma once

#include "comm/group_dev.h"

#include <pthread.h>

#define FAKE_JOINS_MAX 16

typedef struct sp_fake_join {
    sp_dev_group_id id;
    sp_group_config config;
    const sp_dev *dev;
    bool fast, gave_up; /* what wait->gave_up() said */
    int64_t deadline_ns;
} sp_fake_join;

typedef struct sp_fake_dev_groups {
    int opened, closed, ids, joins, left;
    sp_fake_join join[FAKE_JOINS_MAX];
    sp_status open_says; /* SP_OK; else open() fails so */
    int aborted;         /* under `lock` */
    pthread_mutex_t lock;
    pthread_cond_t changed;
} sp_fake_dev_groups;

/** One for the whole program. */
extern sp_fake_dev_groups sp_fake_dev;
extern const struct sp_dev_groups sp_fake_dev_groups_table;
void sp_fake_dev_groups_reset(void);
/** Waits until so many groups were aborted; false: not within 5 s. */
bool sp_fake_dev_groups_wait_aborted(int n);
