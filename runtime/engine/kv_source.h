/* runtime/engine/kv_source.h - a group of ranks of another pod, as text: what KV_SOURCE carries.
 *
 *   {"tp":2,"pp":2,"pp_layers":[3,3],"ranks":["kvx1 ...", ... tp * pp, stage by stage]}
 *
 * Limits: tp 1..64, pp 1..SP_KV_SOURCE_STAGES_MAX, at most SP_KV_SOURCE_TEXT_MAX bytes.
 * Thread: plain data. */
#pragma once

#include "runtime/base/str.h"

#define SP_KV_SOURCE_STAGES_MAX 128
#define SP_KV_SOURCE_TP_MAX 64

typedef struct sp_kv_source_words {
    int32_t tp, pp;
    int32_t pp_layers[SP_KV_SOURCE_STAGES_MAX];
    char **ranks; /* [tp * pp]; owned */
} sp_kv_source_words;

/** Owner:  caller, sp_kv_source_words_fini().
 * Errors: SP_E_FORMAT no such JSON; SP_E_INVALID a key, degree, layer count or address, by name. */
SP_NODISCARD sp_status sp_kv_source_read(sp_kv_source_words *out, sp_slice text, sp_err *err);
void sp_kv_source_words_fini(sp_kv_source_words *w);
/** Appends the text. */
void sp_kv_source_write(sp_buf *out, int32_t tp, int32_t pp, const int32_t *pp_layers,
                        const char *const *ranks);
