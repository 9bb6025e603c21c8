/* comm/handshake.h - the handshake of comm/door.h as bytes: what either side says, what it takes,
 * and why it refuses. No socket, no clock, no randomness of its own: a fuzzer or a simulator drives
 * it as the door does.
 *
 * Little-endian; every message is a 16-byte header and a body of fixed or checked length:
 *
 *   header     magic 'SPD1' 4 | version 2 | type 2 | body length 4 | 0 4
 *   1 HELLO      build id 64, padded with 0 | role 4 | length of words 4 | nonce g 32 | words
 *   2 CHALLENGE  nonce h 32 | HMAC(token, "head" | all bytes so far)
 *   3 PROOF      HMAC(token, "guest" | all bytes so far)
 *   4 ACCEPT     HMAC(token, "accept" | all bytes so far)
 *   5 REFUSE     reason 4 | 0 4 | build id 64 of who refuses
 *
 * "All bytes so far" are those of both sides from the first of HELLO, headers and nonces included, up
 * to the HMAC itself; the words differ, so that nothing we say can be sent back to us as an answer.
 * REFUSE is in the clear and proves nothing: it only tells an honest peer what to print. Its layout
 * and the header's are the same in all versions. The guest says REFUSE too, when the head fails to
 * prove itself, so that the head can count and name it. Garbage gets no answer at all.
 *
 * One side speaks at a time, and sp_shake_wants() never asks for a byte beyond the message: who reads
 * no more than that leaves the first bytes of the link in the socket.
 *
 * Limits: one fixed buffer, below 8 KiB; nothing is allocated.
 * Source: RELIABILITY 3.9, 5.3; RFC 5869 for the session keys.
 * Thread: the owner's. */
#pragma once

#include "comm/door.h"
#include "runtime/base/str.h"

#define SP_SHAKE_VERSION 1
#define SP_SHAKE_HEADER 16
#define SP_SHAKE_NONCE 32
#define SP_SHAKE_BUILD 64 /* with at least one 0 at its end */
#define SP_SHAKE_HELLO_MAX \
    (SP_SHAKE_HEADER + SP_SHAKE_BUILD + 8 + SP_SHAKE_NONCE + SP_DOOR_WORDS_MAX)
/* HELLO, CHALLENGE, PROOF, a forged ACCEPT and the REFUSE that answers it. */
#define SP_SHAKE_BYTES (SP_SHAKE_HELLO_MAX + 80 + 48 + 48 + 88)
_Static_assert(SP_SHAKE_BYTES <= 8192, "a handshake is at most 8 KiB");

typedef enum sp_shake_state {
    SP_SHAKE_TALKING,
    SP_SHAKE_DONE,    /* each has proven the token to the other; something may be left to send */
    SP_SHAKE_REFUSED, /* so may a REFUSE */
} sp_shake_state;

typedef struct sp_shake { /* written by handshake.c only; a driver may read state to greeted */
    const sp_token *token;
    bool is_head;
    bool met;       /* a header of the peer had our magic */
    uint32_t await; /* type of the message that the peer is to send */
    char build[SP_SHAKE_BUILD];
    uint8_t nonce[SP_SHAKE_NONCE];

    uint8_t bytes[SP_SHAKE_BYTES]; /* all that both said so far, in order */
    size_t len;                    /* of it */
    size_t sent;                   /* what is above was said by us and has still to go out */
    size_t start, want;            /* the incoming message, and where what we know of it ends */

    sp_shake_state state;
    sp_refusal reason;
    bool by_peer;    /* the peer refused us */
    size_t received; /* bytes */
    bool greeted;    /* HELLO was taken and answered */

    const char *rule;            /* garbage: what was wrong */
    uint32_t seen, wanted;       /* garbage, version and role */
    char theirs[SP_SHAKE_BUILD]; /* their build id, once it is known */
} sp_shake;

/** The guest's side, with HELLO to send. `token` is borrowed; the rest is copied.
 * Errors: SP_E_INVALID build empty, longer than 63 or not printable ASCII; role none of the list;
 * words longer than SP_DOOR_WORDS_MAX or not UTF-8. */
SP_NODISCARD sp_status sp_shake_begin_guest(sp_shake *s, const sp_token *token, const char *build,
                                            sp_role role, const char *words,
                                            const uint8_t nonce[SP_SHAKE_NONCE], sp_err *err);
/** The head's side, waiting for HELLO. Errors: SP_E_INVALID as above. */
SP_NODISCARD sp_status sp_shake_begin_head(sp_shake *s, const sp_token *token, const char *build,
                                           const uint8_t nonce[SP_SHAKE_NONCE], sp_err *err);

/** Bytes to send now; `*n` is 0 when there are none. Send them before looking at the state. */
const uint8_t *sp_shake_outgoing(const sp_shake *s, size_t *n);
void sp_shake_sent(sp_shake *s, size_t n);

/** How many bytes of the peer can be used now: read no more. 0: something is to be sent first, or
 * the handshake is over. */
size_t sp_shake_wants(const sp_shake *s);
void sp_shake_take(sp_shake *s, const uint8_t *p, size_t n); /* n <= sp_shake_wants() */

/** Refuses from outside: too slow, too many. An answer is ready to send when the peer speaks our
 * protocol and nothing else of ours waits to go out. Not after REFUSED. */
void sp_shake_refuse(sp_shake *s, sp_refusal reason);

/** After REFUSED: seen and wanted, in words. Returns `out`. */
const char *sp_shake_explain(const sp_shake *s, char *out, size_t n);

/** After DONE: the keys of the link. Owner: caller, sp_wipe(). */
void sp_shake_keys(const sp_shake *s, sp_link_keys *out);

/** The head's, after DONE: what the guest said of itself; the words are not terminated. */
sp_role sp_shake_role(const sp_shake *s);
sp_slice sp_shake_words(const sp_shake *s);

void sp_shake_wipe(sp_shake *s); /* leaves nothing of nonces, proofs and words behind */
