/* comm/kvx_ucx.h - the bytes of KV blocks by UCX, beside the TCP connection that asks for them.
 *
 * An upgrade of a conversation of comm/kvx.h, not another one: key, identity, asks, faults, checksums
 * and generations stay on TCP. After HELLO and MEET, where both have said that they would:
 *
 *   reader    OFFER    sp_kvx_ucx_offer | its worker's address    0 bytes: it cannot after all
 *   exporter  OFFER    the same
 *   exporter  two messages by UCX, a short one and one of many parts
 *   reader    VERDICT  sp_kvx_ucx_verdict                         whether they came
 *
 * Whoever cannot, another release of UCX, or a verdict of no: all goes over TCP, as if nobody had
 * asked. Then a reader posts receives straight into its destination, says where their tags begin and
 * how many runs a message has (sp_kvx_want), and the exporter sends. GIVE follows on TCP when the
 * messages have left the exporter's memory, so that the generation it ends with was read after the
 * data was.
 *
 * Messages are eager and copied into UCX's own buffers (comm/ucx_api.h says why), then put in place by
 * the reader's side of UCX. So no remote key ever leaves a process, which a rendezvous would need and
 * which on verbs would let its holder write as well; and what is sent is mapped read-only: no such key
 * could be made by mistake. Who trusts a fabric and its drivers more says so by UCX_RNDV_THRESH and
 * UCX_ZCOPY_THRESH; the greeting then finds out whether read-only memory can be sent from.
 *
 * One end of one connection is one object with a worker of its own. Its messages are a ring: posted at
 * one end, looked at and taken off at the other. Closing ends what is open: nothing of UCX reads or
 * writes the caller's memory afterwards.
 *
 * Limits: the defines; release of UCX equal on both sides.
 * Source: OpenUCX 1.13 ucp.h; RELIABILITY 3.2 (no remote key with write access).
 * Thread: an end is one thread's. */
#pragma once

#include "comm/kvx_io.h"
#include "comm/ucx_api.h"

#define SP_KVX_UCX_MESSAGES 512 /* open at once */
#define SP_KVX_UCX_PLACES 32    /* of one message */

typedef struct sp_kvx_ucx_offer {
    uint32_t magic, bytes;
    char version[24]; /* of UCX, NUL included */
} sp_kvx_ucx_offer;

typedef struct sp_kvx_ucx_verdict {
    uint32_t magic, works;
} sp_kvx_ucx_verdict;

#define SP_KVX_OFFER_MAGIC 0x5246464fu
#define SP_KVX_VERDICT_MAGIC 0x44524556u

typedef struct sp_kvx_ucx sp_kvx_ucx;

/** An end with a worker of `home`.
 * Owner: caller, sp_kvx_ucx_close(), before the home. Errors: SP_E_UNSUPPORTED, SP_E_DEVICE,
 * SP_E_NOMEM. */
SP_NODISCARD sp_status sp_kvx_ucx_open(sp_kvx_ucx **out, sp_ucx_home *home, bool exporter,
                                       sp_err *err);
void sp_kvx_ucx_close(sp_kvx_ucx *x);

/** OFFER to VERDICT. `*x`: this side's end, or NULL when it cannot. Afterwards it is NULL (closed, and
 * `why` says what was in the way) or both sides use it.
 * Errors: those of the TCP connection, which is of no more use; `*x` is then NULL. */
SP_NODISCARD sp_status sp_kvx_ucx_greet(sp_kvx_ucx **x, const sp_kvx_io *io, bool exporter,
                                        sp_err *why);

/** How many runs of an ask one message carries. `joined`: they lie side by side at both ends. Never
 * more than SP_KVX_UCX_PLACES unless joined. */
int32_t sp_kvx_ucx_at_once(size_t run_bytes, int32_t runs, bool joined);

/* ---- the ring ---- */

int sp_kvx_ucx_room(const sp_kvx_ucx *x); /* messages that can be posted now */
int sp_kvx_ucx_count(const sp_kvx_ucx *x);
/** Posts a message of `n` places (copied; 1 to SP_KVX_UCX_PLACES): an exporter sends, a reader
 * receives. There must be room. */
void sp_kvx_ucx_post(sp_kvx_ucx *x, uint64_t tag, const struct iovec *v, int n);
/** How the oldest message stands. SP_OK: all of it; SP_AGAIN: it is open. Errors: SP_E_CLOSED the peer
 * is lost; SP_E_PROTOCOL it was of another size. */
SP_NODISCARD sp_status sp_kvx_ucx_oldest(const sp_kvx_ucx *x);
void sp_kvx_ucx_pop(sp_kvx_ucx *x); /* the oldest, which is not open */
/** Takes back the oldest `n`, which nobody will send. Errors: SP_E_CLOSED one has begun to come: the
 * end must be closed. */
SP_NODISCARD sp_status sp_kvx_ucx_withdraw(sp_kvx_ucx *x, int n);

/** Moves what can be moved; when nothing can, sleeps until something comes by UCX or `events` of the
 * connection do (`came`; 0 when it was not looked at).
 * Errors: SP_E_CANCELED, SP_E_TIMEOUT by `io`; SP_E_CLOSED the peer is lost. */
SP_NODISCARD sp_status sp_kvx_ucx_step(sp_kvx_ucx *x, const sp_kvx_io *io, short events,
                                       short *came);
/** Bytes over TCP, without leaving UCX alone meanwhile: the peer may read them only when it has what
 * is still on its way by UCX. Errors: as of a step. */
SP_NODISCARD sp_status sp_kvx_ucx_tell(sp_kvx_ucx *x, const sp_kvx_io *io, const void *p, size_t n);
