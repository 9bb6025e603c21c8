#include "launcher/bench.h"

#include "launcher/bench_gpu.h"
#include "launcher/bench_group.h"
#include "launcher/bench_http.h"
#include "launcher/bench_kvx.h"
#include "launcher/bench_step.h"
#include "launcher/bench_wireup.h"
#include "runtime/base/status.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} words[] = {
    {"http", sp_bench_http, "load an OpenAI-compatible server: --url http://HOST:PORT"},
    {"step", sp_bench_step, "time decode steps of one rank, without head and HTTP: --model DIR"},
    {"gpu", sp_bench_gpu, "time a GPU's operations and decode steps against what it can give"},
    {"allreduce", sp_bench_group, "time one sum over the ranks of this node"},
    {"kvx", sp_bench_kvx, "time KV blocks from process to process against the bare way"},
    {"wireup", sp_bench_wireup, "time the start of a pod of N ranks until it is ready"},
};

static int help(FILE *to) {
    fputs("usage: superpod bench WORD [options]\n\n", to);
    for (size_t i = 0; i < SP_LEN(words); i++)
        fprintf(to, "  %-9s %s\n", words[i].name, words[i].help);
    fputs("\n`superpod bench WORD --help` lists the options.\n", to);
    return to == stdout ? SP_EXIT_OK : SP_EXIT_USAGE;
}

int sp_bench(int argc, char **argv) {
    if (argc < 2) return help(stderr);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return help(stdout);
    for (size_t i = 0; i < SP_LEN(words); i++)
        if (strcmp(argv[1], words[i].name) == 0) return words[i].run(argc - 1, argv + 1);
    fprintf(stderr, "superpod: bench knows no '%s'; see superpod bench --help\n", argv[1]);
    return SP_EXIT_USAGE;
}
