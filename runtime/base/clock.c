#include "runtime/base/clock.h"

#include <stddef.h>
#include <time.h>

static int64_t (*fake)(void);

static int64_t read_clock(clockid_t id) {
    struct timespec ts;
    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * SP_NS_PER_S + ts.tv_nsec;
}

int64_t sp_now_ns(void) {
    return fake ? fake() : read_clock(CLOCK_MONOTONIC);
}
int64_t sp_unix_s(void) {
    return (int64_t)time(NULL);
}
int64_t sp_cpu_thread_ns(void) {
    return read_clock(CLOCK_THREAD_CPUTIME_ID);
}
void sp_clock_set(int64_t (*fn)(void)) {
    fake = fn;
}
