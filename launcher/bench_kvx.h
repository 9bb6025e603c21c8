/* launcher/bench_kvx.h - `superpod bench kvx`: how fast KV blocks are read, and how fast the way is.
 *
 * A process exports sealed blocks as a rank does, this one reads them as the rank of another group
 * does, proofs and all; in turns with that, the same bytes go over the same way without us: memcpy
 * for shared memory, a plain socket for TCP. Prints one line of JSON. What came is compared: a block
 * that fails or holds other bytes is a failed run.
 *
 * Thread: main; forks, so no other thread may run. */
#pragma once

/** `argv[0]` is the word "kvx". Exit code: 0, 2 wrong command line, 10 it cannot be set up, 20 the
 * other process was lost or a block was not what was exported. */
int sp_bench_kvx(int argc, char **argv);
