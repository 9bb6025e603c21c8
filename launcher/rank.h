/* launcher/rank.h - the rank process: one device, its weights, its KV memory; it obeys frames.
 *
 * Nothing configures a rank but the FORM frame. It ignores SIGINT and SIGTERM: its head tells it
 * when to end, and it dies with its agent.
 * Thread: engine (main), and the device's own. */
#pragma once

/** "internal-rank RINGFD": started by the agent only. Exit codes: 0 told to end (or the head left),
 * 10 the model is refused (one line says why), 20 the link broke, 30 the device failed. */
int sp_rank(int argc, char **argv);
