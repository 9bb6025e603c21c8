/* launcher/bench_step.h - `superpod bench step`: a rank's own decode speed.
 *
 * Runs the stage and the sampler in this process, without head, ring or HTTP: what a rank could do
 * if nothing else cost anything. What HTTP gives is measured against it.
 * Thread: main. */
#pragma once

int sp_bench_step(int argc, char **argv);
