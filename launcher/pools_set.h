/* launcher/pools_set.h - roles of groups while they run, as POST /superpod/pools asks for them.
 *
 *   {"groups": [{"group": 0, "role": "decode"}]}    these groups
 *   {"pools": {"name": "decode"}}                   all groups of these pools
 *   {"prefill": 1, "decode": 2}                     so many of each, as few changes as it takes
 * All of it is done or nothing: what was asked for is proven first. A group goes on with what it has;
 * only what comes from now on goes elsewhere.
 *
 * Thread: one at a time (the server's loop). */
#pragma once

#include "runtime/base/json.h"
#include "runtime/engine/engine.h"

/** Errors: SP_E_INVALID a key, group, pool or role by name, counts that are not those of all groups,
 * or none would be left that decodes. */
SP_NODISCARD sp_status sp_pools_set(sp_engine *e, const sp_json_node *body, sp_err *err);

/** Reads "mixed", "prefill" or "decode"; false: none of them. */
bool sp_pools_role(sp_slice word, sp_pool_role *out);
