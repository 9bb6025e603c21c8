/* runtime/text/detok.h - tokens of a running answer to text that never cuts a character.
 *
 * Each push gives the bytes that became certain: text is held back while it ends in an incomplete
 * UTF-8 sequence, or in what may be the beginning of a stop string. A token may be given several
 * pushes later; flush gives what is left (an incomplete sequence then becomes U+FFFD).
 * What all pushes gave together equals sp_tokenizer_decode() of all ids.
 *
 * Thread: one detok belongs to one thread at a time. */
#pragma once

#include "runtime/text/tokenizer.h"

typedef struct sp_detok sp_detok;

typedef struct sp_detok_config {
    bool skip_special;
    const sp_slice *stops; /* copied */
    int n_stops;
    bool include_stop; /* the stop string itself is given out too */
} sp_detok_config;

SP_NODISCARD sp_status sp_detok_create(sp_detok **out, const sp_tokenizer *t,
                                       const sp_detok_config *config, sp_err *err);
void sp_detok_destroy(sp_detok *d);

/** Tells the tokens that come before the answer (the last few are enough), for decoders that treat
 * the first piece of a text differently. The answer itself starts empty. */
void sp_detok_prime(sp_detok *d, const int32_t *ids, size_t n);

/** Appends to `out` what is certain after `id`. Returns the index of the stop string that was
 * completed, or -1. After a stop nothing more is given. `stops_off`: look for no stop string yet
 * (min_tokens). */
int sp_detok_push(sp_detok *d, int32_t id, bool stops_off, sp_buf *out);
/** Appends what was held back. */
void sp_detok_flush(sp_detok *d, sp_buf *out);
