/* launcher/main.c - the subcommand table. */
#include "launcher/bench.h"
#include "launcher/faults.h"
#include "launcher/head.h"
#include "launcher/inspect.h"
#include "launcher/plan.h"
#include "launcher/rank.h"
#include "launcher/remote.h"
#include "launcher/serve.h"
#include "runtime/base/status.h"

#include <stdio.h>
#include <string.h>

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv); /* argv[0] is the name */
    const char *help;                  /* NULL: internal */
} command;

static const command commands[] = {
    {"serve", sp_serve, "serve a model over HTTP (OpenAI-compatible)"},
    {"run", sp_run, "answer one prompt, or chat in the terminal"},
    {"inspect", sp_inspect, "tokens, template, tensors, logits, model, config: what is in a model"},
    {"bench", sp_bench,
     "http, step, allreduce, wireup: what a server, a rank, a group and a pod take"},
    {"plan", sp_plan_command, "what would go where, whether it fits, how fast: before loading"},
    {"status", sp_status_command, "who computes: nodes, ranks, stages of a running pod"},
    {"pools", sp_pools_command,
     "groups of ranks, their roles and loads; `pools set` changes roles"},
    {"probe", sp_probe_command, "--startup, --live or --ready: for Kubernetes"},
    {"internal-head", sp_head, NULL},
    {"internal-rank", sp_rank, NULL},
};

/* Words of the command set that are not here yet; refused by name. */
static const char *const later[] = {"key"};

static int help(FILE *to) {
    fputs("superpod " SP_VERSION ": serves large language models from many machines\n\n"
          "usage: superpod COMMAND [options]\n\n",
          to);
    for (size_t i = 0; i < SP_LEN(commands); i++)
        if (commands[i].help) fprintf(to, "  %-9s %s\n", commands[i].name, commands[i].help);
    fputs("\n`superpod COMMAND --help` lists a command's options.\n"
          "Try: superpod run --model configs/podling \"What is the capital of France?\"\n",
          to);
    return to == stdout ? SP_EXIT_OK : SP_EXIT_USAGE;
}

int main(int argc, char **argv) {
    sp_err err = {0};
    if (argc < 2) return help(stderr);
    const char *word = argv[1];
    if (sp_faults_arm(&err) != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        return SP_EXIT_USAGE;
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0)
        return help(stdout);
    if (strcmp(word, "--version") == 0 || strcmp(word, "version") == 0) {
        puts("superpod " SP_VERSION);
        return SP_EXIT_OK;
    }
    for (size_t i = 0; i < SP_LEN(commands); i++)
        if (strcmp(word, commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    for (size_t i = 0; i < SP_LEN(later); i++)
        if (strcmp(word, later[i]) == 0) {
            fprintf(stderr, "superpod: '%s' is not in this version (" SP_VERSION ")\n", word);
            return SP_EXIT_USAGE;
        }
    fprintf(stderr, "superpod: unknown command '%s'; see superpod --help\n", word);
    return SP_EXIT_USAGE;
}
