/* launcher/bench_http.h - `superpod bench http`: loads a server and reports times.
 *
 * Options and report; the load itself is bench_load.h. Thread: main. */
#pragma once

/** `argv[0]` is the word "http". Exit code: 0 all requests completed, 2 wrong command line, 20 some
 * failed or the server could not be reached, 10 a trace that cannot be read. */
int sp_bench_http(int argc, char **argv);
