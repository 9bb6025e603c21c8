/* frontend/limit.h - how much work may be in the house at once.
 *
 * Two caps: requests in work, and the bytes of their bodies. At a cap a request is turned away with
 * 429 and a time to come back, never queued: the engine's own queue is the only queue.
 *
 * Thread: loop. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

typedef struct sp_limit {
    int requests_max, requests;
    size_t bytes_max, bytes;
    uint64_t refused;
} sp_limit;

void sp_limit_init(sp_limit *l, int requests_max, size_t bytes_max);
/** Errors: SP_E_LIMIT which cap is reached. */
SP_NODISCARD sp_status sp_limit_take(sp_limit *l, size_t body_bytes, sp_err *err);
void sp_limit_drop(sp_limit *l, size_t body_bytes);
/** Seconds after which a refused client may try again. */
int sp_limit_retry_after_s(const sp_limit *l);
