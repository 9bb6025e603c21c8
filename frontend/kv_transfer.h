/* frontend/kv_transfer.h - kv_transfer_params: a prompt's KV blocks, lent from pod to pod as JSON.
 *
 *   do_remote_decode    this pod computes the prompt for another: its answer carries the object below
 *   do_remote_prefill   the object came back, from the pod that computed the prompt
 *
 * The object has vLLM's members, which routers look at, and `superpod` with what our own pull needs:
 * lease, generations, names and where the ranks are. All of it stands under one proof that only pods
 * with the same secret can make; who changes a letter has no proof, and nothing unproven reaches the
 * engine. Numbers of 64 bits travel as hexadecimal text, since JSON's are doubles to many a reader.
 *
 * Limits: SP_KV_TRANSFER_BLOCKS_MAX blocks, SP_KV_TRANSFER_SOURCE_MAX bytes of source.
 * Source: vLLM's NixlConnector and llm-d's sidecar for the flow and the members' names.
 * Thread: any; both call back into sp_server_kv, `read` from text threads. */
#pragma once

#include "frontend/fields.h"
#include "frontend/server.h"

#define SP_KV_TRANSFER_VERSION 1
#define SP_KV_TRANSFER_BLOCKS_MAX (1 << 17)
#define SP_KV_TRANSFER_SOURCE_MAX (64 * 1024)

/** Why lent blocks were turned away at the door; what fails later is sp_kv_cause. */
typedef enum sp_kv_refusal {
    SP_KV_REFUSED_NOT,
    SP_KV_REFUSED_FOREIGN,   /* made by another kind of server, or another version of it */
    SP_KV_REFUSED_MAC,       /* of a pod with another secret, or changed on its way */
    SP_KV_REFUSED_EXPIRED,   /* by this machine's clock */
    SP_KV_REFUSED_IDENTITY,  /* of another model, numerics, KV type or block size */
    SP_KV_REFUSED_MALFORMED, /* ours by its looks, but not of the right shape */
    SP_KV_REFUSAL_COUNT
} sp_kv_refusal;
const char *sp_kv_refusal_name(sp_kv_refusal r); /* "foreign" */

/** What a request asks for. */
typedef struct sp_kv_transfer {
    bool lend;                /* do_remote_decode */
    bool borrow;              /* do_remote_prefill, whatever became of it */
    const sp_kv_import *from; /* in the arena; NULL: nothing to be had, all is computed here */
    sp_kv_refusal refusal;
} sp_kv_transfer;

/** Reads member kv_transfer_params of a body. `kv` NULL: either flag is a violation. What is refused
 * is a violation too, unless kv->recompute; a wrong type always is. */
void sp_kv_transfer_read(sp_fields *f, const sp_json_node *root, const sp_server_kv *kv,
                         int64_t now_unix_ms, sp_kv_transfer *out);

typedef struct sp_kv_offer {
    const sp_kv_handle *handle; /* NULL: nothing was kept, and the lists are empty */
    const char *request_id;
    int port; /* of this server */
    int64_t now_unix_ms;
} sp_kv_offer;
/** Writes the object that the other pod is to be given. */
void sp_kv_transfer_put(sp_jw *w, const sp_kv_offer *offer, const sp_server_kv *kv);

int64_t sp_kv_transfer_now_ms(void); /* wall clock, milliseconds since 1970 */
