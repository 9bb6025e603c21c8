/* launcher/children.h - the processes that an agent starts and reaps: this binary again.
 *
 * A child inherits nothing but the descriptors it is given, dies with the agent (parent-death
 * signal), and has the signals that ask to stop blocked until it listens for them.
 *
 * Thread: main of the agent; the process has no other (the parent-death signal follows the thread
 * that forked). */
#pragma once

#include "launcher/boot.h"

#include <sys/types.h>

typedef struct sp_child {
    pid_t pid; /* 0: not running */
    int code;  /* as ended: exit code, or -signal */
    bool was_started;
    int ring_fd;   /* to the head; -1: none */
    char name[24]; /* "rank 0" */
} sp_child;

/** Starts "superpod: NAME" as `word BOOTFD args...`; `boot` is written to a memfd that it alone
 * inherits, with the descriptors `keep` [n_keep]. `args` is NULL-terminated or NULL.
 * Errors: SP_E_NOMEM, SP_E_IO. */
SP_NODISCARD sp_status sp_child_start(sp_child *c, const char *word, const sp_boot *boot,
                                      const int *keep, int n_keep, char *const *args, sp_err *err);
/** Takes note of the child's end. True: it ended just now. */
bool sp_child_reap(sp_child *c);
/** A descriptor that is readable once the launcher that started this process is gone; -1 when
 * `source` (sp_place.source) is none that stays beside its processes. mpirun and slurmstepd may be
 * killed without a word to what they started, which nobody would ever end then. (The parent-death
 * signal would follow a thread of theirs.) Owner: caller, close(). */
int sp_launcher_watch(const char *source);
void sp_child_kill(const sp_child *c, int sig); /* does nothing when it does not run */
