/* launcher/join.h - agents and ranks of other processes come in, one by one, until all are there.
 *
 * Thread: the head's main thread. */
#pragma once

#include "comm/door.h"
#include "launcher/config.h"
#include "launcher/roster.h"

typedef struct sp_join {
    const sp_config *config;
    sp_door *door;
    int stop_fd;
    int64_t deadline_ns;
    sp_roster *roster;
    sp_link *agents[SP_POD_AGENTS_MAX]; /* in order of the roster; [0] is NULL: the head's own */
    sp_link *ranks[SP_POD_RANKS_MAX];   /* of other agents */
} sp_join;

/** Waits for roster->n_agents agents, puts them in order, welcomes them, and waits for their ranks.
 * roster: tp, pp, n_ranks, n_agents and agents[0] are set. Links belong to the caller, also after
 * an error.
 * Errors: SP_E_CANCELED, SP_E_TIMEOUT, SP_E_PEER_LOST, SP_E_INVALID: as sp_pod_open(). */
SP_NODISCARD sp_status sp_join_all(sp_join *j, sp_err *err);

/** Says BYE with words to a guest that has no place here, and closes its link. */
void sp_join_refuse(sp_guest *g, int code, const char *why);
