/* comm/backoff.h - how long to wait before the next try: twice as long each time, with jitter.
 *
 * A step grows 100 ms, 200 ms, ... to 2 s; the wait is drawn evenly between half of it and all of it,
 * so that a thousand agents that lost their head together do not come back together. Every wait is
 * thus between 50 ms and 2 s.
 *
 * Thread: the owner's. Pure: no clock, no sleep. */
#pragma once

#include <stdint.h>

#define SP_BACKOFF_MIN_NS ((int64_t)50 * 1000 * 1000)
#define SP_BACKOFF_MAX_NS ((int64_t)2000 * 1000 * 1000)

typedef struct sp_backoff {
    int64_t step_ns; /* the longest that the next wait can be */
    uint64_t random;
} sp_backoff;

/** `seed`: something that differs between those who wait (random, or a process id and a time). */
void sp_backoff_init(sp_backoff *b, uint64_t seed);
int64_t sp_backoff_next(sp_backoff *b); /* nanoseconds to wait before the next try */
void sp_backoff_reset(sp_backoff *b);   /* it worked: the next failure starts from the shortest */
