#include "comm/backoff.h"

/* splitmix64, Steele, Lea and Flood 2014: any seed will do, 0 too. */
static uint64_t draw(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void sp_backoff_init(sp_backoff *b, uint64_t seed) {
    *b = (sp_backoff){.random = seed};
    sp_backoff_reset(b);
}

int64_t sp_backoff_next(sp_backoff *b) {
    int64_t half = b->step_ns / 2;
    int64_t wait = half + (int64_t)(draw(&b->random) % (uint64_t)(b->step_ns - half + 1));
    b->step_ns = b->step_ns > SP_BACKOFF_MAX_NS / 2 ? SP_BACKOFF_MAX_NS : b->step_ns * 2;
    return wait;
}

void sp_backoff_reset(sp_backoff *b) {
    b->step_ns = 2 * SP_BACKOFF_MIN_NS;
}
