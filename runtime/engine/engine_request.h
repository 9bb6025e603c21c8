/* runtime/engine/engine_request.h - what a request must be before it is let in: what would break
 * something later if nobody looked.
 *
 * Thread: any. */
#pragma once

#include "runtime/engine/engine.h"

typedef struct sp_request_world {
    int32_t max_model_len, n_vocab;
    bool kv_shared; /* with other pods, and blocks have names */
} sp_request_world;

/** Errors: those of sp_engine_submit(). */
SP_NODISCARD sp_status sp_request_fits(const sp_engine_request *req, const sp_request_world *w,
                                       sp_err *err);
