/* runtime/engine/sources.h - groups of other pods that lend us blocks, by number; and what a handle
 * of theirs is worth to a request.
 *
 * Ranks are told a group's addresses once (KV_SOURCE) and then hear of it by a number. A number
 * belongs to one pair of engine and text: what somebody else says of the same engine is another
 * source, so that one wrong text spoils no other. When all numbers are taken, the one that was not
 * used for longest and that nobody pulls from is used anew.
 *
 * Limits: SP_KV_SOURCES_MAX numbers. Thread: engine; pure but for memory. */
#pragma once

#include "runtime/engine/kv_handle.h"
#include "runtime/engine/sched.h"

typedef struct sp_sources sp_sources;

/** Owner: caller, sp_sources_destroy(). Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_sources_create(sp_sources **out, sp_err *err);
void sp_sources_destroy(sp_sources *s);

/** The number of a group, SP_KV_SOURCE_FIRST.., which stays its number until sp_sources_give().
 * Errors: those of sp_kv_source_read(), SP_E_TOOLONG; SP_E_LIMIT all numbers are in use;
 *         SP_E_NOMEM. */
SP_NODISCARD sp_status sp_sources_take(sp_sources *s, const char *engine, sp_slice text,
                                       int32_t *number, sp_err *err);
void sp_sources_give(sp_sources *s, int32_t number);

/** What the ranks of one of our groups must be told before they can use the number. */
typedef struct sp_source_news {
    bool forget; /* first, that it is no longer what they know */
    bool tell;
    sp_slice text;
} sp_source_news;
/** Asked once: the caller tells. `group` < 64. */
sp_source_news sp_sources_news(sp_sources *s, int32_t number, int32_t group);

int32_t sp_sources_users(const sp_sources *s); /* taken and not given back */

/** Blocks of the handle, from the first on, that are those of the prompt as we name them; at most
 * `most`. Fewer than the handle has of them: `*cause` says why. */
int32_t sp_import_blocks(sp_sched *sched, sp_request *r, int32_t most, int64_t unix_ms,
                         sp_kv_cause *cause);
int64_t sp_unix_ms(void);
