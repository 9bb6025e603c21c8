/* launcher/bench.h - `superpod bench WORD`: measurements.
 * Thread: main. */
#pragma once

int sp_bench(int argc, char **argv);
