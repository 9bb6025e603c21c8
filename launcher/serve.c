#include "launcher/serve.h"

#include "launcher/agent.h"
#include "launcher/model.h"
#include "runtime/base/log.h"

#include <stdio.h>
#include <string.h>

#define SP_LOG "serve"

static const char *usage_of(sp_command command) {
    switch (command) {
    case SP_CMD_SERVE:
        return "superpod serve --model DIR [options]";
    case SP_CMD_RUN:
        return "superpod run --model DIR [options] [\"prompt\"]";
    case SP_CMD_LOGITS:
        return "superpod inspect logits --model DIR --tokens 1,2,3 --out FILE";
    case SP_CMD_STEP:
        return "superpod bench step --model DIR [options]";
    }
    return "";
}

static int usage_error(const char *what) {
    fprintf(stderr, "superpod: %s\n", what);
    return SP_EXIT_USAGE;
}

/* What one command wants and the table cannot say. */
static const char *missing(const sp_config *c) {
    if (c->command == SP_CMD_LOGITS && !c->tokens && !c->prompt)
        return "inspect logits wants --tokens 1,2,3 or --prompt TEXT";
    if (c->command == SP_CMD_LOGITS && !c->out) return "inspect logits wants --out FILE";
    if (strcmp(c->generation_config, "auto") != 0 && strcmp(c->generation_config, "vllm") != 0)
        return "option 'generation-config': want auto or vllm";
    if (strcmp(c->log_format, "text") != 0 && strcmp(c->log_format, "json") != 0)
        return "option 'log-format': want text or json";
    return NULL;
}

static int print_help(sp_command command) {
    printf("usage: %s\n\n", usage_of(command));
    sp_config_help(command, stdout);
    return SP_EXIT_OK;
}

static int start(const sp_config *config, int argc, char **argv) {
    if (missing(config)) return usage_error(missing(config));
    sp_log_level level;
    if (sp_log_parse_level(config->log_level, &level) != SP_OK)
        return usage_error("option 'log-level': want error, warn, info, debug or trace");
    sp_log_setup("agent", level, strcmp(config->log_format, "json") == 0);

    sp_err err = {0};
    sp_model model;
    if (sp_model_prove(&model, config, &err) != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        return SP_EXIT_CONFIG;
    }
    sp_model_fini(&model);
    return sp_agent_run(config, argc, argv);
}

int sp_serve_command(sp_command command, int argc, char **argv) {
    if (command == SP_CMD_SERVE && argc == 2 && strcmp(argv[1], "--print-reference") == 0) {
        sp_config_reference(stdout);
        return SP_EXIT_OK;
    }
    sp_config config;
    sp_err err = {0};
    bool help;
    if (sp_config_parse(&config, command, argc, argv, &help, &err) != SP_OK)
        return usage_error(err.text);
    int code = help ? print_help(command) : start(&config, argc, argv);
    sp_config_fini(&config);
    return code;
}
int sp_serve(int argc, char **argv) {
    return sp_serve_command(SP_CMD_SERVE, argc, argv);
}
int sp_run(int argc, char **argv) {
    return sp_serve_command(SP_CMD_RUN, argc, argv);
}
