/* runtime/base/chaos.h - fault points: named places where a test makes something go wrong in the real
 * binary.
 *
 *   SUPERPOD_FAULT_POINTS="kvx.corrupt=0.25,kvx.peer_gone=0.1@7"     name=probability,...@seed
 *
 * Not armed, which is what everybody runs, a point costs one load. Each pass of an armed point fires
 * with its probability, drawn from (seed, point, how many passes before): one thread's passes repeat
 * from run to run. Who arms anything is warned at start and told at the end how often each fired.
 *
 * Thread: setup before others start; the rest any. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

typedef enum sp_chaos_point {
    SP_CHAOS_KVX_CORRUPT,   /* kvx.corrupt: a bit of what was copied is flipped */
    SP_CHAOS_KVX_STALE,     /* kvx.stale: the block was freed while it was read */
    SP_CHAOS_KVX_FOREIGN,   /* kvx.foreign: another request's block is asked for */
    SP_CHAOS_KVX_TRUNCATE,  /* kvx.truncate: a transfer ends in its middle */
    SP_CHAOS_KVX_PEER_GONE, /* kvx.peer_gone: the exporter is gone when it is asked */
    SP_CHAOS_KV_LEASE,      /* kv.lease: the lease ends while its blocks are being pulled */
    SP_CHAOS_KV_SLOW,       /* kv.slow: a pull takes 200 ms longer */
    SP_CHAOS_POINT_COUNT
} sp_chaos_point;
const char *sp_chaos_name(sp_chaos_point p); /* "kvx.corrupt" */

/** Arms what `text` says; NULL or "": nothing. Errors: SP_E_INVALID a point, probability or seed, by
 * name; nothing is armed then. */
SP_NODISCARD sp_status sp_chaos_setup(const char *text, sp_err *err);
bool sp_chaos_armed(void);
/** Whether this pass goes wrong. */
bool sp_chaos_hit(sp_chaos_point p);
uint64_t sp_chaos_fired(sp_chaos_point p);
