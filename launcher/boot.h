/* launcher/boot.h - what an agent hands to a child that it starts: descriptors, and secrets that
 * must be neither in a command line nor in an environment.
 *
 * One struct in a sealed memfd that the child inherits and closes after reading. Agent and child are
 * the same binary (exec of itself), so the struct is its own format; magic and size prove it.
 *
 * Thread: main, at start. */
#pragma once

#include "comm/door.h"
#include "comm/fan.h"

#define SP_BOOT_RINGS_MAX 512

typedef struct sp_boot {
    uint64_t magic, size; /* set by sp_boot_write() */
    int bell_fd;          /* rings the head; -1: there are no rings */
    char source[16];      /* which launcher was found: for words */
    /* the head's */
    int n_agents;                          /* this one included */
    int n_rings, rings[SP_BOOT_RINGS_MAX]; /* of the ranks that the same agent has started */
    int64_t rank_pids[SP_BOOT_RINGS_MAX];
    int joined_fd; /* eventfd: the head says that everybody is there; -1: nobody asks */
    int ranks_on_node;
    int listen_fd, port; /* -1: nobody joins */
    int64_t end_time_s;
    bool outward;
    /* a rank's */
    int ring_fd; /* -1: it joins over TCP */
    char addresses[1024];
    int64_t agent, local; /* for its HELLO */
    /* whose token it is when somebody joins */
    sp_token token;
} sp_boot;

/** Writes `b` to a fresh memfd (close-on-exec: whoever starts the child lifts that).
 * Owner: caller, close(). Errors: SP_E_IO, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_boot_write(int *fd, const sp_boot *b, sp_err *err);

/** Reads and closes the descriptor that `text` names. Errors: SP_E_INVALID no number; SP_E_PROTOCOL
 * not written by this build. */
SP_NODISCARD sp_status sp_boot_read(sp_boot *out, const char *text, sp_err *err);
