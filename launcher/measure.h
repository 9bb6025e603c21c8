/* launcher/measure.h - how long and how wide the way between two nodes is: one side listens (an
 * agent, while the pod forms), the other knocks, asks and times.
 *
 * Over one TCP connection, after mutual proof of the pod token:
 *
 *   PING, PONG   up to 21 times, as frames of the link (encrypted: what the control path costs);
 *                the median is the round trip
 *   BULK, READY  both sides' links are now empty, and nobody sends a frame before DONE, so the bytes
 *                between may bypass the cipher
 *   1 1 1 ... 0  raw bytes that mean nothing: the time is bounded, not the amount; a 0 ends them
 *   DONE         what the receiver counted once the connection had warmed up
 *
 * So latency is that of the control path, and bandwidth that of plain TCP with one connection on the
 * addresses the pod joins by; RDMA and several connections are faster.
 * Limits: a peer gets SP_MEASURE_PEER_NS of the listener's undivided time; one measurement at most
 * the budget that its asker gives.
 *
 * Thread: the owner's; sp_measure_way() blocks its caller for at most its budget. */
#pragma once

#include "comm/door.h"
#include "launcher/words.h"

#define SP_MEASURE_PEER_NS ((int64_t)1000000000)
#define SP_MEASURE_TO_BYTES 400
#define SP_MEASURE_WHY_BYTES 160

typedef struct sp_measure_figure {
    int64_t rtt_ns;      /* median */
    int64_t bytes_per_s; /* 0: there was no time left for it */
} sp_measure_figure;

/** Knocks at `to` (addresses of a listener) and measures. `node` is the sp_node_id() of who is meant:
 * an address may be of another one that has it too.
 * Errors: those of sp_door_knock(); SP_E_CLOSED, SP_E_TIMEOUT, SP_E_PROTOCOL: it broke off. */
SP_NODISCARD sp_status sp_measure_way(sp_measure_figure *out, const char *to, const char *node,
                                      const sp_token *token, int64_t budget_ns, int64_t bulk_ns,
                                      sp_err *err);

/* ---- the side that listens ---- */

typedef struct sp_measure sp_measure;

/** Listens at a free port; `addresses` gets the list for sp_agent_words.measure.
 * Owner: caller, sp_measure_close(). Errors: SP_E_IO, SP_E_TOOLONG. */
SP_NODISCARD sp_status sp_measure_open(sp_measure **out, const sp_token *token, char *addresses,
                                       size_t n, sp_err *err);
void sp_measure_close(sp_measure *m); /* NULL is allowed */
/** For poll loops: readable when sp_measure_look() has something to do; -1 for NULL. */
int sp_measure_fd(const sp_measure *m);
/** Lets peers in and answers them until they leave. */
void sp_measure_look(sp_measure *m);

/* ---- MEASURE between the head and an agent ---- */

typedef enum sp_measure_op {
    SP_MEASURE_CLOCK = 1, /* say what time it is */
    SP_MEASURE_WAY,       /* measure the way to somebody */
    SP_MEASURE_END,       /* nobody will measure any more: no answer */
} sp_measure_op;

typedef struct sp_measure_ask {
    int64_t op, id; /* the answer says it again */
    int64_t budget_us, bulk_us;
    char to[SP_MEASURE_TO_BYTES], node[SP_NODE_BYTES];
} sp_measure_ask;

typedef struct sp_measure_answer {
    int64_t op, id;
    int64_t unix_us; /* CLOCK */
    int64_t rtt_ns, bytes_per_s;
    char why[SP_MEASURE_WHY_BYTES]; /* "": measured */
} sp_measure_answer;

void sp_measure_ask_write(const sp_measure_ask *a, sp_buf *out);
void sp_measure_answer_write(const sp_measure_answer *a, sp_buf *out);
/** Errors: as sp_agent_words_read(). */
SP_NODISCARD sp_status sp_measure_ask_read(sp_measure_ask *out, sp_slice json, sp_err *err);
SP_NODISCARD sp_status sp_measure_answer_read(sp_measure_answer *out, sp_slice json, sp_err *err);

/** An agent's whole reaction to a MEASURE frame: does it and answers on the same link. END closes
 * `*m` and sets it to NULL. Errors: SP_E_FORMAT, SP_E_INVALID the words; those of sp_link_send(). */
SP_NODISCARD sp_status sp_measure_take(sp_measure **m, sp_link *head, const sp_token *token,
                                       sp_slice words, sp_err *err);

int64_t sp_unix_us(void); /* the wall clock */
