/* launcher/place.h - which agent of the pod this process is: asked of flags and of the variables
 * that launchers set; the first source that says anything wins and is named.
 *
 *   1 flags --rank, --nnodes, --head, --role (or SUPERPOD_RANK, _NNODES, _HEAD, _ROLE)
 *   2 LeaderWorkerSet   LWS_LEADER_ADDRESS, LWS_GROUP_SIZE, LWS_WORKER_INDEX
 *   3 KServe workerSpec HEAD_SVC + POD_NAMESPACE (worker); ISVC variables without HEAD_SVC (head)
 *   4 Open MPI          OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
 *   5 PMIx              PMIX_RANK, PMIX_NAMESPACE (size by PMIx, or SLURM_NTASKS)
 *   6 plain srun        SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_STEP_ID
 *   7 torchrun          RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
 *   8 alone
 * A variable of a source that is there but makes no sense is an error, not a reason to look on; an
 * empty one is not there. The shell of sbatch or salloc (SLURM_JOB_ID without a step) is alone.
 * --nnodes, --head and --role alone say no rank: with a launcher they complete or check what it
 * says, so that all agents may be started by the same line. One agent without a --role is alone.
 *
 * Thread: main, at start. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

#define SP_AGENTS_MAX 65536
#define SP_HEAD_PORT 7000 /* where the head is looked for when nothing says it */

typedef enum sp_meeting { /* how agents other than the first learn address and token */
    SP_MEET_NOBODY,       /* alone */
    SP_MEET_GIVEN,        /* the head's address is known; the token by file or variable */
    SP_MEET_PMIX,
    SP_MEET_FILE, /* plain srun: a 0600 file in the submit directory */
} sp_meeting;

typedef struct sp_place {
    const char
        *source;  /* "flags", "LWS", "KServe", "Open MPI", "PMIx", "Slurm", "torchrun", "alone" */
    bool is_head; /* its agent starts the head */
    int rank;     /* of the agents; -1: the head gives one */
    int size;     /* agents; 0: not told */
    int local_rank, local_size; /* on this node; -1, 0: not told */
    sp_meeting meeting;
    char head[600];     /* host:port of the head, "" when it is learned at the meeting or is us */
    int head_port;      /* where the head must listen to be found; 0: any, the meeting tells it */
    bool outward;       /* clients are expected from other hosts (Slurm, LWS, KServe) */
    int64_t end_time_s; /* when the job ends (SLURM_JOB_END_TIME), unix seconds; 0: not told */
} sp_place;

typedef struct sp_place_flags {
    const char *role; /* "auto", "head", "worker" */
    const char *head; /* "host:port" or NULL */
    int rank, nnodes; /* -1, 0: not given */
    int head_port; /* where the head listens for agents; 0: not said (7000 where it must be known) */
} sp_place_flags;

/** Errors: SP_E_INVALID says the variable or flag, what was seen and what was wanted (two heads: a
 * rank above 0 with --role head; a worker without a head's address; a rank outside the size). */
SP_NODISCARD sp_status sp_place_find(sp_place *out, const sp_place_flags *flags, sp_err *err);

/** The value of a variable, or NULL. */
typedef const char *(*sp_env_get)(void *ctx, const char *name);
/** As sp_place_find(), with the variables that `get` tells. Errors: the same. */
SP_NODISCARD sp_status sp_place_find_in(sp_place *out, const sp_place_flags *flags, sp_env_get get,
                                        void *ctx, sp_err *err);
