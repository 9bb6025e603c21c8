/* launcher/bench_wireup.h - `superpod bench wireup`: how long a pod of N ranks takes from its start
 * until it is ready.
 *
 * Starts `superpod serve --null-model` (this binary again, alone, on a free port) several times in
 * turn and drains it as soon as it serves. Without --model it rehearses a small Llama whose
 * config.json is written to a temporary folder and removed. Figures are of the start, told by what
 * the server says: "formed" when the head has introduced the ranks to one another, "ready" when it
 * serves, "ended" from the signal to the end of the last process.
 *
 * Thread: main; forks, so no other thread may run. */
#pragma once

int sp_bench_wireup(int argc, char **argv);
