/* launcher/pod.h - the head's side of a super pod: who joined, what each was told, how it ends.
 *
 *   join    the ranks of the head's own agent are there at once (rings); agents of other processes
 *           and nodes come through the door, are told how many ranks to start, and those come
 *           through the door too
 *   form    FORM to every rank, ADDRESS from each, PEERS to all; what follows (loading, READY) is
 *           the engine's to wait for
 *   watch   later guests are refused with words, agents and their ranks are looked after
 *   end     BYE to the agents with the pod's exit code
 *
 * Every wait has a deadline and says in the log what it is for.
 *
 * Thread: open, end and close by main; watch by ctl; status by any. */
#pragma once

#include "comm/fan.h"
#include "launcher/boot.h"
#include "launcher/config.h"
#include "launcher/form.h"
#include "launcher/kv_share.h"
#include "launcher/model.h"
#include "launcher/roster.h"
#include "runtime/engine/engine.h"

typedef struct sp_pod sp_pod;

/** Joins and forms. `config`, `model`, `share`, `boot` are borrowed until close; `stop_fd` is readable when a
 * signal asks to stop.
 * Owner:  caller, sp_pod_close().
 * Errors: SP_E_CANCELED a signal; SP_E_TIMEOUT who is missing; SP_E_PEER_LOST who was lost;
 *         SP_E_INVALID a rank refused (its words), or slots and shares do not fit. */
SP_NODISCARD sp_status sp_pod_open(sp_pod **out, const sp_config *config, const sp_model *model,
                                   const sp_kv_share *share, const sp_boot *boot, int stop_fd,
                                   sp_err *err);
/** Tells the agents the code and closes everything; NULL is allowed. */
void sp_pod_close(sp_pod *p, int code, const char *why);

sp_fan *sp_pod_fan(const sp_pod *p); /* link i is rank i; borrowed */
const sp_roster *sp_pod_roster(const sp_pod *p);
const char *sp_pod_config_hash(const sp_pod *p);

/** A descriptor for poll loops, readable when sp_pod_look() has something to do; -1: never. */
int sp_pod_watch_fd(const sp_pod *p);
/** Refuses late guests, takes what agents say. */
void sp_pod_look(sp_pod *p);
/** Marks ranks that load as ready, or the pod as lost. */
void sp_pod_set_state(sp_pod *p, sp_rank_state state);

/** Appends the JSON of `superpod status`; `engine` knows what the groups do. */
void sp_pod_status(const sp_pod *p, const sp_engine *engine, sp_buf *out);
/** Appends where the KV blocks of a group's ranks are read, as text for another pod
 * (runtime/engine/kv_source.h). False: no such group, or no other pod may, or that text would be
 * longer than one may be. Any thread. */
bool sp_pod_put_kv_source(const sp_pod *p, int32_t group, sp_buf *out);
/** Appends its list of pools alone, of `superpod pools`. */
void sp_pod_put_pools(const sp_pod *p, const sp_engine *engine, sp_jw *w);
