/* launcher/words.h - what agents and ranks say of themselves when they join, and what they are told:
 * the JSON of HELLO, WELCOME, ADDRESS, PEERS, STATUS and BYE.
 *
 * Fixed keys; every one must be there and in range. Written and read here only.
 *
 * Thread: plain data. */
#pragma once

#include "comm/group_dev.h"
#include "runtime/base/json.h"

#define SP_POD_RANKS_MAX 512
#define SP_HOST_BYTES 64
#define SP_NODE_BYTES 96
#define SP_UCX_ADDRESS_MAX 2048
#define SP_KV_ADDRESS_BYTES 768 /* as comm/kvx.h has it; rank_kv.c proves that */

/** An agent's HELLO. */
typedef struct sp_agent_words {
    char host[SP_HOST_BYTES]; /* name, for people */
    char node[SP_NODE_BYTES]; /* equal: they can share memory (sp_node_id()) */
    int64_t rank;             /* of the launcher; -1: none */
    int64_t pid, slots, cores;
    int64_t memlock_bytes, shm_bytes, open_files; /* limits; -1: none */
    int64_t rdma;                                 /* RDMA devices of the node */
    char measure[256]; /* where other agents may measure the way here; "": nowhere */
} sp_agent_words;

/** A rank's HELLO. */
typedef struct sp_rank_words {
    int64_t agent, local, pid;
} sp_rank_words;

/** The head's answer to an agent. */
typedef struct sp_welcome {
    int64_t agent, ranks; /* its index, ranks to start; 0: a spare */
    char log_level[16];
    bool log_json;
} sp_welcome;

/** The name of a group of devices, which its member 0 made. */
typedef struct sp_device_group {
    bool is; /* false: it made none */
    sp_dev_group_id id;
} sp_device_group;

/** Where a rank's neighbours reach it. */
typedef struct sp_address {
    char share[64]; /* sp_share_name(), "": it shares nothing */
    size_t ucx_bytes;
    unsigned char ucx[SP_UCX_ADDRESS_MAX];
    char kv[SP_KV_ADDRESS_BYTES]; /* where its KV blocks can be read; "": nowhere */
    sp_device_group tp, pp;       /* of which it is member 0 */
} sp_address;

/** An agent's STATUS: how one of its ranks ended. */
typedef struct sp_rank_end {
    int64_t local, code; /* exit code, or -signal */
} sp_rank_end;

/** The head's BYE to an agent: how the pod ended. */
typedef struct sp_pod_end {
    int64_t code; /* of the process */
    char why[200];
} sp_pod_end;

void sp_agent_words_write(const sp_agent_words *w, sp_buf *out);
void sp_rank_words_write(const sp_rank_words *w, sp_buf *out);
void sp_welcome_write(const sp_welcome *w, sp_buf *out);
void sp_rank_end_write(const sp_rank_end *w, sp_buf *out);
void sp_pod_end_write(const sp_pod_end *w, sp_buf *out);
void sp_address_write(const sp_address *a, sp_buf *out);
/** `addresses` of all ranks in order, each as sp_address_write() wrote it. */
void sp_peers_write(const sp_slice *addresses, int n, sp_buf *out);

/** Errors: SP_E_FORMAT, SP_E_INVALID: a key that is missing, unknown, of another type or out of
 * range, by name. */
SP_NODISCARD sp_status sp_agent_words_read(sp_agent_words *out, sp_slice json, sp_err *err);
SP_NODISCARD sp_status sp_rank_words_read(sp_rank_words *out, sp_slice json, sp_err *err);
SP_NODISCARD sp_status sp_welcome_read(sp_welcome *out, sp_slice json, sp_err *err);
SP_NODISCARD sp_status sp_rank_end_read(sp_rank_end *out, sp_slice json, sp_err *err);
SP_NODISCARD sp_status sp_pod_end_read(sp_pod_end *out, sp_slice json, sp_err *err);
SP_NODISCARD sp_status sp_address_read(sp_address *out, sp_slice json, sp_err *err);
/** Reads the `n` addresses of PEERS. */
SP_NODISCARD sp_status sp_peers_read(sp_address *out, int n, sp_slice json, sp_err *err);

/** Fills what can be known of this process: host, node, pid, cores, limits. */
void sp_agent_words_here(sp_agent_words *out);
/** The same text for all processes that can hand one another descriptors: same kernel, network
 * namespace and user. */
void sp_node_id(char out[SP_NODE_BYTES]);
