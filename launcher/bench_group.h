/* launcher/bench_group.h - `superpod bench allreduce`: what one sum over a group costs.
 *
 * Starts the members as processes of this node, lets each call all_reduce many times, and prints one
 * line of JSON with member 0's figures. The result is checked: a wrong sum is a failed run.
 *
 * Thread: main; forks, so no other thread may run. */
#pragma once

int sp_bench_group(int argc, char **argv);
