/* launcher/meeting.h - how agents learn where the head is and the pod token: the short meeting
 * before anything is connected.
 *
 * PMIx (mpirun, srun --mpi=pmix): a forked child does Init, Put, Commit, Fence, Get, Finalize by a
 * libpmix found at run time, so that the agent itself is no PMIx client whose death the launcher
 * would answer by ending the job. Plain srun: task 0 writes a 0600 file made with O_EXCL in the
 * submit directory, named by job and step; the others wait for it with a bounded, logged back-off;
 * it is removed after the join. Given: nothing to exchange.
 * A file that a run left which died before its join: another run of a requeued job is told apart by a
 * mark in the file and not believed; the same run's is replaced in one move. A file of another owner
 * or mode, or a link, is refused on both sides. Who cannot connect with what he got asks again.
 *
 * The token is 32 random bytes, as 64 hexadecimal digits in a file or a variable; made fresh where
 * the launcher can carry it. It is wiped from the environment and from the stack after reading.
 *
 * Thread: main, at start. */
#pragma once

#include "comm/door.h"
#include "launcher/place.h"

typedef struct sp_contact {
    char addresses[1024]; /* comma-separated host:port of the head, best first */
    sp_token token;
} sp_contact;

/** The token of --token-file (which must be ours alone: mode 0600 or stricter, or a Kubernetes
 * secret's 0440), else of SUPERPOD_POD_TOKEN, which is scrubbed. *found false: neither is there.
 * Errors: SP_E_INVALID not 64 hex digits; SP_E_DENIED others may read the file; SP_E_IO. */
SP_NODISCARD sp_status sp_token_load(sp_token *out, bool *found, const char *token_file,
                                     sp_err *err);
SP_NODISCARD sp_status sp_token_make(sp_token *out, sp_err *err);
void sp_token_wipe(sp_token *t);

/** Every address of this node that others may reach it by, with `port`: "10.0.0.1:7000,...";
 * loopback last, link-local and down interfaces left out. Errors: SP_E_IO, SP_E_TOOLONG. */
SP_NODISCARD sp_status sp_local_addresses(char *out, size_t n, int port, sp_err *err);

/** The first agent tells the others. Errors: SP_E_UNSUPPORTED there is no way to (names
 * --token-file); SP_E_IO; SP_E_TIMEOUT the others did not come to the fence; SP_E_DENIED the file's
 * name is taken by somebody else; SP_E_CANCELED a signal to stop is pending. Without a way to meet
 * (given, nobody) there is nothing to do: SP_OK. */
SP_NODISCARD sp_status sp_meeting_put(const sp_place *place, const sp_contact *contact,
                                      int64_t deadline_ns, sp_err *err);
/** Another agent asks. Errors: as put; SP_E_TIMEOUT names what was waited for; SP_E_UNSUPPORTED also
 * where the address is given, for then only --token-file knows the token. */
SP_NODISCARD sp_status sp_meeting_get(const sp_place *place, sp_contact *out, int64_t deadline_ns,
                                      sp_err *err);
/** After the join, by the first agent: removes what was left for the others. */
void sp_meeting_end(const sp_place *place);
