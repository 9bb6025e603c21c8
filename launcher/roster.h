/* launcher/roster.h - who is in the pod: agents, their nodes, the ranks and what each is.
 *
 * Ranks are numbered group by group (launcher/pools.h), in a group stage by stage: its rank r is
 * tensor-parallel rank r % tp of stage r / tp. Agents get neighbouring ranks, and agents of one node
 * follow each other, so that a stage lies on one node where it can; where an even share cuts one,
 * `superpod plan` says so. The head's own agent comes first.
 *
 * Thread: built by main; then read by any, states are written by ctl. */
#pragma once

#include "launcher/words.h"
#include "runtime/base/metric.h"

#define SP_POD_AGENTS_MAX SP_POD_RANKS_MAX

typedef enum sp_rank_state {
    SP_RANK_JOINING,
    SP_RANK_LOADING,
    SP_RANK_ACTIVE,
    SP_RANK_LOST,
} sp_rank_state;

typedef struct sp_pod_agent {
    sp_agent_words words;
    char address[64]; /* as it came in; "" for the head's own */
    int32_t node;     /* 0.. in order of appearance */
    int32_t first, n; /* its ranks */
    sp_gauge gone;    /* 1: its link has ended */
} sp_pod_agent;

typedef struct sp_pod_rank {
    int32_t agent, local;                  /* whose child it is, and which */
    int32_t node, local_rank, local_ranks; /* among those of its node, over all its agents */
    int64_t pid;
    sp_gauge state; /* sp_rank_state */
} sp_pod_rank;

typedef struct sp_roster {
    int32_t n_ranks, n_agents, n_nodes;
    char shape[160]; /* "tp 2 x pp 1": for messages */
    sp_pod_agent agents[SP_POD_AGENTS_MAX];
    sp_pod_rank ranks[SP_POD_RANKS_MAX];
} sp_roster;

/** How many ranks agent `index` of `n_agents` starts when `n_ranks` are shared out evenly. */
int32_t sp_roster_share(int32_t n_ranks, int32_t n_agents, int32_t index);

/** Sets up agents[0..n_agents) (words and address filled in, the head's first): puts them in order,
 * gives nodes and ranks. `order[i]` tells where the i-th of the input went.
 * Errors: SP_E_INVALID an agent with fewer slots than its share, two agents that say the same
 * launcher rank: seen and wanted. */
SP_NODISCARD sp_status sp_roster_assign(sp_roster *r, int32_t *order, sp_err *err);

/** "0,0,1,1": the node of each rank. */
void sp_roster_nodes(const sp_roster *r, char *out, size_t n);

const char *sp_rank_state_name(sp_rank_state s); /* "active" */
