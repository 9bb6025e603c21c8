/* launcher/preflight.h - before anything is loaded: the network between the nodes, their clocks and
 * the limits of each, as a table and a verdict in plain words.
 *
 *   clocks   every agent says what time it is, up to four times; the quickest answer counts
 *   links    one agent a node. Up to 8 nodes every pair, in rounds of disjoint pairs, so that no
 *            measurement disturbs another; beyond that a ring and up to four rounds of pairs
 *            further apart, at most 7 rounds in all
 *   limits   what the agents said when they joined
 *
 * All of it takes SP_PREFLIGHT_NS at most, however many nodes there are; what did not fit is said to
 * be not measured. The head process is the first node's end of its links; of a pair, the one that
 * comes first knocks. The figures are of plain TCP (launcher/measure.h): UCX opens ways of its own on
 * the same network, so a pair that cannot connect here will most likely not there.
 *
 * Thread: the head's main thread, before the engine runs. The results are then read by any. */
#pragma once

#include "launcher/join.h"

#define SP_PREFLIGHT_NS ((int64_t)1000000000)
#define SP_PREFLIGHT_PAIRS_NODES_MAX 8 /* every pair up to here */
#define SP_PREFLIGHT_ROUNDS_MAX 7
#define SP_PREFLIGHT_WHY_BYTES 160
#define SP_PREFLIGHT_CLOCK_NONE INT64_MIN

typedef struct sp_preflight_link {
    int32_t from, to, round; /* nodes; from < to */
    bool measured;
    int64_t rtt_ns;
    int64_t bytes_per_s;              /* 0: not measured */
    char why[SP_PREFLIGHT_WHY_BYTES]; /* not measured: why */
} sp_preflight_link;

typedef struct sp_preflight {
    int32_t n_nodes, n_agents, n_links;
    sp_preflight_link *links;
    int64_t *clock_us; /* of each agent: how much later it is there; SP_PREFLIGHT_CLOCK_NONE */
    int64_t took_ns;
} sp_preflight;

typedef enum sp_preflight_mode {
    SP_PREFLIGHT_OFF,
    SP_PREFLIGHT_WARN,
    SP_PREFLIGHT_STRICT
} sp_preflight_mode;
/** Anything but "off" and "strict" warns. */
sp_preflight_mode sp_preflight_mode_of(const char *word);

/** Measures, says the table and the verdict. With one node only limits are looked at, and nothing is
 * said unless there is a remark. Agents stop listening for one another in any case.
 * Owner:  `*out` is the caller's, sp_preflight_fini(); also after an error.
 * Errors: SP_E_INVALID strict, and there is a remark: its words; SP_E_PEER_LOST an agent left. */
SP_NODISCARD sp_status sp_preflight_run(sp_preflight *out, sp_join *j, const sp_token *token,
                                        sp_preflight_mode mode, sp_err *err);
void sp_preflight_fini(sp_preflight *p);

/* ---- its parts, pure ---- */

/** Who is measured with whom, and in which round: no node twice in a round. Fills at most `max` and
 * answers how many there are; `*n_rounds` <= SP_PREFLIGHT_ROUNDS_MAX. */
int32_t sp_preflight_pairs(int32_t n_nodes, sp_preflight_link *out, int32_t max, int32_t *n_rounds);

/** Where another node finds the listener of `a`: the host that it came from first, then the others
 * of its list, loopback left out, three at most. False: nowhere. */
bool sp_preflight_where(const sp_pod_agent *a, char *out, size_t n);

typedef struct sp_preflight_remarks {
    int32_t n; /* all of them, also those beyond the array */
    char at[16][240];
} sp_preflight_remarks;
/** What is to be said of these figures and of the agents' limits. */
void sp_preflight_judge(const sp_preflight *p, const sp_roster *r, sp_preflight_remarks *out);
