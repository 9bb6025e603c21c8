/* comm/door.h - how a process on another node (or of another agent) becomes one of the pod: mutual
 * proof of the pod token over TCP, then an encrypted link.
 *
 *   guest -> head   HELLO      version, build id, role, nonce g (32), words (JSON, <= 4 KiB)
 *   head  -> guest  CHALLENGE  nonce h (32), HMAC(token, "head" | everything so far)
 *   guest -> head   PROOF      HMAC(token, "guest" | everything so far)
 *   head  -> guest  ACCEPT     HMAC(token, "accept" | everything so far); or, instead of any of
 *                              these, REFUSE in the clear: a reason of the closed list below and
 *                              the build id of who refuses, no secret
 *   head  -> guest  WELCOME    the first frame of the link, under the session keys; its caller's
 *
 * Session keys: HKDF-SHA256(token, nonces, direction) -> AES-256-GCM, one key a direction, the
 * frame's sequence as nonce, the header as additional data. A replayed handshake fails since the
 * head's nonce is fresh; a recorded frame fails since the sequence is. The handshake, not the port,
 * proves that it is our pod: whoever fails is counted, logged with one line, and closed; the pod is
 * unharmed. At most SP_DOOR_PENDING handshakes at a time, each 5 s and 8 KiB. When all places are
 * taken, a newcomer waits in the listening socket's queue until somebody has had time to speak
 * (250 ms, after HELLO 1 s), and then takes that one's place (counted as full): first of those who
 * have not said HELLO, the oldest first. The bytes of each message: comm/handshake.h.
 *
 * Source: RFC 2104 (HMAC), RFC 5869 (HKDF), SP 800-38D (GCM), all by OpenSSL.
 * Thread: a door is one thread's; a knock blocks its caller. */
#pragma once

#include "comm/link.h"

#define SP_TOKEN_BYTES 32
#define SP_DOOR_PENDING 64
#define SP_DOOR_WORDS_MAX 4096

typedef struct sp_token { /* never printed, never in an environment of a child */
    uint8_t bytes[SP_TOKEN_BYTES];
} sp_token;

typedef enum sp_role {
    SP_ROLE_AGENT = 1,
    SP_ROLE_RANK = 2,
    SP_ROLE_PEER = 3, /* an agent that measures the way to another agent */
} sp_role;

typedef enum sp_refusal {
    SP_REFUSE_NONE,
    SP_REFUSE_GARBAGE, /* not our protocol: bad magic, length, type, order */
    SP_REFUSE_VERSION,
    SP_REFUSE_BUILD, /* another build of superpod */
    SP_REFUSE_TOKEN,
    SP_REFUSE_ROLE,
    SP_REFUSE_FULL, /* too many at a time */
    SP_REFUSE_SLOW,
    SP_REFUSE_COUNT
} sp_refusal;
const char *sp_refusal_name(sp_refusal r);

typedef struct sp_door sp_door;

/** Listens on all addresses of `host` ("" : any) at `port` (0: a free one). Owner: close().
 * Errors: SP_E_IO names the address and why. */
SP_NODISCARD sp_status sp_door_listen(int *fd, int *port, const char *host, int port_wanted,
                                      sp_err *err);

/** A door over a listening socket (borrowed). `build` is copied. */
SP_NODISCARD sp_status sp_door_open(sp_door **out, int listen_fd, const sp_token *token,
                                    const char *build, sp_err *err);
void sp_door_close(sp_door *d);   /* pending ones are dropped */
int sp_door_fd(const sp_door *d); /* readable when sp_door_next() has something to do */

typedef struct sp_guest {
    sp_role role;
    sp_link *link; /* the receiver of the guest owns it */
    char words[SP_DOOR_WORDS_MAX + 1];
    char address[64]; /* numeric, with the port, of its end of the connection */
} sp_guest;

/** Drives handshakes until the deadline or until one guest has proven itself.
 * SP_OK: `*out` is one. SP_AGAIN: none yet. Errors: SP_E_IO of the listening socket. */
SP_NODISCARD sp_status sp_door_next(sp_door *d, sp_guest *out, int64_t deadline_ns, sp_err *err);
uint64_t sp_door_refused(const sp_door *d, sp_refusal reason);

/** Connects to the first of `addresses` ("10.0.0.1:7000", "[fe80::1%eth0]:7000", "host:7000";
 * comma-separated) that proves to be our pod. One try, in which each address has a fair share of
 * the time (the resolver has its own): the caller backs off (comm/backoff.h) and tries again. After a
 * stranger, a closed door or silence comes the next address; a refusal by reason ends the try.
 * Errors: SP_E_DENIED refused, with the reason (do not retry); SP_E_UNAVAILABLE nobody answered
 * (retry); SP_E_TIMEOUT; SP_E_INVALID an address that is none. */
SP_NODISCARD sp_status sp_door_knock(sp_link **out, const char *addresses, const sp_token *token,
                                     const char *build, sp_role role, const char *words,
                                     int64_t deadline_ns, sp_err *err);
