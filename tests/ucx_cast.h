/* tests/ucx_cast.h - members of a ucx group as threads (a worker each) and as processes.
 *
 * CUnit's assertions are for one thread: members count what was wrong, the test looks at the sum.
 * Thread: a member is its thread's. */
#pragma once

#include "comm/group.h"
#include "comm/ucx_api.h"
#include "tests/harness.h"

#include <pthread.h>
#include <sys/types.h>

#define MEMBERS_MAX 8
#define ADDRESS_MAX 4096

typedef struct member member;

typedef struct cast {
    sp_group_config config;
    pthread_barrier_t barrier;
    sp_ucx_peer peers[MEMBERS_MAX];
    void (*play)(member *m);
} cast;

struct member {
    cast *cast; /* NULL: a process */
    int me, bad;
    sp_ucx *ucx;
    sp_group *g;
    sp_ucx_peer *peers;
    sp_group_config config;
};

typedef struct packet {
    size_t bytes;
    unsigned char address[ADDRESS_MAX];
} packet;

typedef struct troupe {
    int n;
    pid_t pids[MEMBERS_MAX];
    int to[MEMBERS_MAX], from[MEMBERS_MAX];
} troupe;

#define WANT(m, cond) sp_cast_want(m, cond, __LINE__)
#define WANT_POLL(m, wanted, words) sp_cast_want_poll(m, wanted, words, __LINE__)
#define NEEDS_UCX \
    if (!sp_cast_has_ucx()) SP_SKIP("no ucx on this machine")

/* Nothing to find there between threads, and the fork handlers of libraries that tsan has not seen
 * lock what they unlock look like faults. */
#ifdef __SANITIZE_THREAD__
#define NEEDS_PROCESSES SP_SKIP("processes are not for tsan")
#else
#define NEEDS_PROCESSES NEEDS_UCX
#endif

void sp_cast_want(member *m, bool cond, int line);
void sp_cast_want_poll(member *m, sp_status wanted, const char *words, int line);
bool sp_cast_has_ucx(void);
sp_group_config sp_cast_config_of(int n);
void sp_cast_open_group(member *m, uint32_t id);
int sp_cast_play_threads(const sp_group_config *config, void (*play)(member *m));
void sp_cast_meet(member *m);
bool sp_cast_start_children(troupe *t, const sp_group_config *config, void (*play)(member *m));
int sp_cast_end_children(troupe *t, int killed);
int sp_cast_play_processes(const sp_group_config *config, void (*play)(member *m));
float sp_cast_value(int member_no, size_t i);
void sp_cast_reduce_and_check(member *m, size_t n);
void sp_cast_pick_and_check(member *m, size_t n_rows, size_t cols, int pattern);
void sp_cast_gather_and_check(member *m, int root, size_t n_rows, const int32_t *cols);
