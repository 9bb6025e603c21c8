/* launcher/rank.h - the rank process: one device, its part of the weights, its KV memory; it obeys
 * frames.
 *
 *   FORM      what to become            ADDRESS   where its neighbours reach it
 *   PEERS     everybody's address       READY     loaded: steps may come
 *
 * Nothing configures a rank but the FORM frame. It ignores SIGINT and SIGTERM: its head tells it
 * when to end, and it dies with its agent.
 * Thread: engine (main), and the device's own. */
#pragma once

/** "internal-rank BOOTFD": started by an agent only. Exit codes: 0 told to end (or the head left),
 * 10 the model is refused (one line says why), 20 a link or a neighbour was lost, 30 the device
 * failed. */
int sp_rank(int argc, char **argv);
