/* runtime/base/clock.h - monotonic nanoseconds, and a clock that tests can set.
 * Thread: any. */
#pragma once

#include <stdint.h>

#define SP_NS_PER_US ((int64_t)1000)
#define SP_NS_PER_MS ((int64_t)1000000)
#define SP_NS_PER_S ((int64_t)1000000000)
#define SP_NEVER INT64_MAX /* a deadline that does not come */

int64_t sp_now_ns(void);        /* monotonic */
int64_t sp_unix_s(void);        /* wall clock, seconds since 1970 */
int64_t sp_cpu_thread_ns(void); /* CPU time of the calling thread */

/** Tests: replaces sp_now_ns() by `fn` (NULL restores the real clock). */
void sp_clock_set(int64_t (*fn)(void));
