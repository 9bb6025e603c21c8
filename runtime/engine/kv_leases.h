/* runtime/engine/kv_leases.h - what readers of other pods say of what they were lent, on its way from
 * the threads that serve a region (comm/kvx.h) to the rank's engine thread, which alone may send.
 *
 * What is said again while it waits is kept once, and a return replaces a renewal of its lease.
 *
 * Limits: SP_KV_LEASES_MAX that wait. Beyond them the oldest renewal makes room, never a return: who
 * renews does so again, who returns says it once. With nothing but returns waiting (more than a head
 * lends) the newest is dropped; its blocks are then let go when the lease ends.
 * Thread: put from any; the rest from the engine thread. */
#pragma once

#include "comm/link.h"

#define SP_KV_LEASES_MAX 1024

typedef struct sp_kv_leases sp_kv_leases;

/** `link` is borrowed, and woken when something was put; NULL: nobody is.
 * Owner:  caller, sp_kv_leases_destroy(), after the region. Errors: SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kv_leases_create(sp_kv_leases **out, sp_link *link, sp_err *err);
void sp_kv_leases_destroy(sp_kv_leases *l);

/** As sp_kvx_config.on_lease wants it; `leases` is the sp_kv_leases. Never waits. A lease 0 is none. */
void sp_kv_leases_put(void *leases, uint64_t lease, bool renewed);
/** The oldest that waits. False: none. */
bool sp_kv_leases_take(sp_kv_leases *l, uint64_t *lease, bool *renewed);
uint64_t sp_kv_leases_dropped(const sp_kv_leases *l); /* any thread */
