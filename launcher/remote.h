/* launcher/remote.h - commands that ask a running pod over its HTTP port: status, pools and probe.
 *
 * Thread: main. */
#pragma once

/** "status [--url U] [--json] [--api-key K]": who computes. Exit 0, or 20 when nobody answers. */
int sp_status_command(int argc, char **argv);

/** "pools [--url U] [--json]": groups, roles and loads. "pools set NAME=ROLE..." changes the roles of
 * pools, "pools set prefill=1 decode=2" by how many groups there are to be of each. Exit 0; 10 the
 * pod refuses; 20 nobody answers. */
int sp_pools_command(int argc, char **argv);

/** "probe --startup|--live|--ready [--url U] [--timeout S]": for Kubernetes; 0 or 1, one line.
 * startup and ready: /health answers 200. live: something answers HTTP at all, since a pod that
 * recovers or loads must not be restarted. */
int sp_probe_command(int argc, char **argv);
