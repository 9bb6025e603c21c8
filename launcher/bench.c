#include "launcher/bench.h"

#include "launcher/bench_http.h"
#include "launcher/bench_step.h"
#include "runtime/base/status.h"

#include <stdio.h>
#include <string.h>

static int help(FILE *to) {
    fputs("usage: superpod bench WORD [options]\n\n"
          "  http      load an OpenAI-compatible server: --url http://HOST:PORT\n"
          "  step      time decode steps of one rank, without head and HTTP: --model DIR\n"
          "\n`superpod bench WORD --help` lists the options.\n",
          to);
    return to == stdout ? SP_EXIT_OK : SP_EXIT_USAGE;
}

int sp_bench(int argc, char **argv) {
    if (argc < 2) return help(stderr);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return help(stdout);
    if (strcmp(argv[1], "http") == 0) return sp_bench_http(argc - 1, argv + 1);
    if (strcmp(argv[1], "step") == 0) return sp_bench_step(argc - 1, argv + 1);
    fprintf(stderr, "superpod: bench knows no '%s'; see superpod bench --help\n", argv[1]);
    return SP_EXIT_USAGE;
}
