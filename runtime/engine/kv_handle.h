/* runtime/engine/kv_handle.h - blocks of a prompt that one pod lends to another.
 *
 * The pod that prefills answers a request with a handle: which blocks of which group hold the prompt,
 * under which generations and names (comm/kvx.h), and until when. The pod that decodes is given the
 * handle with the same prompt; it compares the names with those that it makes of the prompt itself
 * (both make them with one key, so that equal names mean equal tokens, model and numerics), pulls,
 * and gives the lease back. How a handle travels is the front end's (frontend/kv_transfer.h).
 *
 * Thread: plain data. */
#pragma once

#include "runtime/base/str.h"

typedef struct sp_kv_lent {
    uint32_t block, generation;
    uint64_t name;
} sp_kv_lent;

typedef struct sp_kv_handle {
    uint64_t lease; /* not 0; names it at the exporter */
    int32_t group;  /* of the exporter */
    int32_t n_tokens, n_blocks;
    int64_t expires_unix_ms; /* unless it is renewed */
    sp_kv_lent blocks[];     /* the prompt's, from its first on */
} sp_kv_handle;

#define SP_KV_ENGINE_BYTES 72 /* text, NUL included */

/** What a request brings from another pod. */
typedef struct sp_kv_import {
    char engine[SP_KV_ENGINE_BYTES]; /* pod, its life and group: equal texts are the same memory */
    sp_slice source; /* that group's ranks, as runtime/engine/kv_source.h reads it */
    const sp_kv_handle *handle;
    bool must; /* the request fails when a block does not come; else its tokens are computed */
} sp_kv_import;
