/* launcher/agent.h - the process that a launcher or a user starts: it starts a head and a rank,
 * reaps them, and ends with the exit code that tells what happened.
 *
 * Both children are this binary again (exec of itself), joined by a shared-memory ring that they
 * inherit. They die with the agent (parent-death signal). The agent computes nothing, opens no
 * device and sleeps in poll().
 *
 *   superpod serve ...            agent
 *     superpod: head ...          HTTP or terminal, engine
 *     superpod: rank 0            device, weights, KV
 *
 * Thread: main; the process has no other. */
#pragma once

#include "launcher/config.h"

/** Runs head and rank until both ended. argv is the user's command line from the command's word on
 * ("serve", "--model", ...); the head parses it again. Returns the exit code of the process. */
int sp_agent_run(const sp_config *config, int argc, char **argv);
