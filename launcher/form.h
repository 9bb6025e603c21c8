/* launcher/form.h - what the head tells a rank to become: the FORM frame.
 *
 * One JSON object, so that a person can read it in a log; every key must be there, none other may.
 * It is the only thing that configures a rank. All ranks get the same but for their own place
 * (the last lines of the struct); the hash of what comes before kv_key is the pod's configuration,
 * which every rank computes and says again, so that no two ranks can run by different words.
 *
 * Thread: plain data. */
#pragma once

#include "runtime/base/json.h"

typedef struct sp_form {
    char model_dir[4096];
    char backend[32], kv_dtype[16], log_level[16], collectives[16];
    /* The groups, by pools: "replicas,tp,pp,layers of each stage" separated by ";". */
    char shapes[2048];
    char nodes[4096];     /* "0,0,1,1": the node of each rank, so that neighbours are known */
    char group_key[72];   /* hexadecimal: those who share memory prove it */
    char fingerprint[72]; /* hexadecimal, of the model the head has seen */
    int64_t ranks;        /* of the pod */
    int64_t threads, block_tokens, max_model_len, max_num_seqs, max_batched_tokens;
    int64_t max_step_rows; /* logits rows of one step */
    int64_t timeout_ms;    /* of waiting for a neighbour inside a step */
    bool pin, log_json, null_model;
    bool fast; /* numerics */
    /* Hexadecimal: what readers of KV blocks prove, in this pod and in others; "": no other pod may,
     * and here it is group_key. All get the same, but the hash is shown to people and leaves it out. */
    char kv_key[72];
    /* Its own place: */
    int64_t group, first;            /* its group, and the rank of the pod that is that group's 0 */
    int64_t tp, pp, n_blocks;        /* of its group */
    int64_t rank;                    /* 0..tp*pp-1: stage rank/tp, tensor-parallel rank rank%tp */
    int64_t local_rank, local_ranks; /* among the ranks of its node */
} sp_form;

/* Of a link between the head and a rank of another agent: as long as the longest step. A cut is found
 * by the agents' links. */
#define SP_RANK_PATIENCE_MS 120000
#define SP_FORM_STAGES_MAX 128
#define SP_FORM_GROUPS_MAX 64
#define SP_CONFIG_HASH_BYTES 65 /* text, NUL included */

/** Appends the JSON text of `form`. */
void sp_form_write(const sp_form *form, sp_buf *out);

/** Errors: SP_E_FORMAT not JSON; SP_E_INVALID a key that is missing, unknown, of the wrong type or
 * out of range, by name. */
SP_NODISCARD sp_status sp_form_read(sp_form *out, sp_slice json, sp_err *err);

/** SHA-256, in hexadecimal, of what all ranks share. */
void sp_form_hash(const sp_form *form, char out[SP_CONFIG_HASH_BYTES]);

/** One group as `shapes` tells it. */
typedef struct sp_form_group {
    int32_t first, tp, pp; /* rank of the pod */
    int32_t pp_layers[SP_FORM_STAGES_MAX];
} sp_form_group;
/** Appends a pool to `shapes`. */
void sp_form_put_pool(sp_form *form, int32_t replicas, int32_t tp, int32_t pp,
                      const int32_t *pp_layers);
/** How many groups there are; `out` [SP_FORM_GROUPS_MAX].
 * Errors: SP_E_INVALID `shapes` is no list of pools, or its ranks are not `ranks`. */
SP_NODISCARD sp_status sp_form_groups(const sp_form *form, sp_form_group *out, int32_t *n,
                                      sp_err *err);

#define SP_FORM_KEY_BYTES 32
/** Errors: SP_E_INVALID `group_key` is not that many bytes in hexadecimal. */
SP_NODISCARD sp_status sp_form_key(const sp_form *form, uint8_t out[SP_FORM_KEY_BYTES],
                                   sp_err *err);
/** `kv_key`, or `group_key` where it is "". Errors: likewise. */
SP_NODISCARD sp_status sp_form_kv_key(const sp_form *form, uint8_t out[SP_FORM_KEY_BYTES],
                                      sp_err *err);

/** Parses `nodes` or a list of layers. Errors: SP_E_INVALID not `n` plain numbers of min..max
 * (0 at least). */
SP_NODISCARD sp_status sp_form_numbers(const char *text, int n, int32_t min, int32_t max,
                                       int32_t *out, sp_err *err);
