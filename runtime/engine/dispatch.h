/* runtime/engine/dispatch.h - which group of ranks gets a request: a pure function over figures.
 *
 * Who decodes: among the groups that may, the one that has most of the prompt cached, unless it is
 * much busier: unless what it is busier by is more than the tokens it saves and than what the least
 * busy one has to do anyway. Who prefills: the same rule among the groups that only do that, when
 * more tokens than a threshold are not cached where the request will be decoded.
 *
 * Thread: any. */
#pragma once

#include "runtime/engine/engine.h"

#define SP_DISPATCH_SLACK 512 /* tokens of load that never matter */

typedef struct sp_dispatch_group {
    sp_pool_role role;
    int64_t load;   /* tokens of all requests it has */
    int32_t cached; /* of this prompt */
} sp_dispatch_group;

typedef struct sp_dispatch_choice {
    int32_t decode;  /* -1: no group may */
    int32_t prefill; /* -1: decode's group does it */
} sp_dispatch_choice;

/** `n_prefill`: tokens of the prompt that could move (0: it is not to be split). */
sp_dispatch_choice sp_dispatch(const sp_dispatch_group *groups, int32_t n_groups, int32_t n_prefill,
                               int32_t threshold);

/** Whether some group may decode. */
bool sp_dispatch_can_decode(const sp_pool_role *roles, int32_t n_groups);
