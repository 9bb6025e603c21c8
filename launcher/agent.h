/* launcher/agent.h - the process that a launcher or a user starts: it starts ranks (the first agent
 * of a pod also the head), reaps them, and ends with the exit code that tells what happened.
 *
 *   superpod serve ...            the first agent          another agent (mpirun, srun, a worker)
 *     superpod: head                HTTP, engine             superpod: rank 2 ...   joins over TCP
 *     superpod: rank 0, 1 ...       rings to the head
 *
 * Children are this binary again (exec of itself) and die with the agent. The agent computes
 * nothing, opens no device and sleeps in poll(). It never calls MPI or PMIx itself.
 *
 * Thread: main; the process has no other. */
#pragma once

#include "launcher/config.h"
#include "launcher/place.h"

/** Runs the head and its share of the ranks until all ended. argv is the user's command line from
 * the command's word on ("serve", "--model", ...); the head parses it again. Returns the exit code
 * of the process. */
int sp_agent_lead(const sp_config *config, const sp_place *place, int argc, char **argv);

/** Finds the head, joins it, and runs the ranks that it is told to until the pod ends. Returns the
 * exit code that the head tells; 20 when the head is lost, 10 when it refuses us. */
int sp_agent_follow(const sp_config *config, const sp_place *place);
