#include "launcher/inspect.h"

#include "launcher/inspect_model.h"
#include "launcher/inspect_template.h"
#include "launcher/inspect_tokens.h"
#include "launcher/serve.h"
#include "launcher/topology.h"
#include "runtime/base/status.h"

#include <stdio.h>
#include <string.h>

static int inspect_logits(int argc, char **argv) {
    return sp_serve_command(SP_CMD_LOGITS, argc, argv);
}

typedef struct word {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} word;

static const word words[] = {
    {"tokens", sp_inspect_tokens, "text to token ids and back"},
    {"template", sp_inspect_template, "messages to the prompt text"},
    {"tensors", sp_inspect_tensors, "the tensors of a safetensors file"},
    {"logits", inspect_logits, "the logits of every position of a prompt"},
    {"model", sp_inspect_model, "sizes, bytes and limits of a model"},
    {"topology", sp_inspect_topology, "cores, memory, network and devices of this machine"},
    {"config", sp_inspect_config, "config.json as it was understood, and what is refused"},
};

static int help(FILE *to) {
    fputs("usage: superpod inspect WORD [options]\n\n", to);
    for (size_t i = 0; i < SP_LEN(words); i++)
        fprintf(to, "  %-9s %s\n", words[i].name, words[i].help);
    fputs("\n`superpod inspect WORD --help` lists the options.\n", to);
    return to == stdout ? SP_EXIT_OK : SP_EXIT_USAGE;
}

int sp_inspect(int argc, char **argv) {
    if (argc < 2) return help(stderr);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return help(stdout);
    for (size_t i = 0; i < SP_LEN(words); i++)
        if (strcmp(argv[1], words[i].name) == 0) return words[i].run(argc - 1, argv + 1);
    fprintf(stderr, "superpod: inspect knows no '%s'; see superpod inspect --help\n", argv[1]);
    return SP_EXIT_USAGE;
}
