#include "launcher/serve.h"

#include "kernels/dev.h"
#include "launcher/agent.h"
#include "launcher/fit.h"
#include "launcher/model.h"
#include "runtime/base/log.h"
#include "runtime/format/model_dir.h"

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
    case SP_CMD_PLAN: /* has its own */
        break;
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
    if (strcmp(c->role, "auto") != 0 && strcmp(c->role, "head") != 0 &&
        strcmp(c->role, "worker") != 0)
        return "option 'role': want auto, head or worker";
    if (strcmp(c->collectives, "auto") != 0 && strcmp(c->collectives, "nccl") != 0 &&
        strcmp(c->collectives, "shm") != 0 && strcmp(c->collectives, "ucx") != 0)
        return "option 'collectives': want auto, nccl, shm or ucx";
    if (strcmp(c->preflight, "warn") != 0 && strcmp(c->preflight, "strict") != 0 &&
        strcmp(c->preflight, "off") != 0)
        return "option 'preflight': want warn, strict or off";
    return NULL;
}

static int print_help(sp_command command) {
    printf("usage: %s\n\n", usage_of(command));
    sp_config_help(command, stdout);
    return SP_EXIT_OK;
}

static int refuse(const sp_err *err) {
    fprintf(stderr, "superpod: %s\n", err->text);
    return SP_EXIT_CONFIG;
}

/* Only `serve` is more than one agent; everything else is alone wherever it is started. */
static sp_status find_place(sp_place *out, const sp_config *c, sp_err *err) {
    if (c->command != SP_CMD_SERVE) {
        *out = (sp_place){.source = "alone", .is_head = true, .rank = 0, .size = 1};
        return SP_OK;
    }
    sp_place_flags flags = {.role = c->role,
                            .head = c->head,
                            .rank = (int)c->rank,
                            .nnodes = (int)c->nnodes,
                            .head_port = (int)c->head_port};
    SP_TRY(sp_place_find(out, &flags, err));
    if (strcmp(out->source, "alone") == 0) return SP_OK;
    if (out->rank < 0)
        sp_info("started by %s: a worker of the head at %s", out->source, out->head);
    else
        sp_info("started by %s: agent %d of %d%s", out->source, out->rank, out->size,
                out->is_head ? ", with the head" : "");
    return SP_OK;
}

/* How many ranks share this node's memory, as far as the launcher tells. */
static int ranks_on_node(const sp_config *c, int n, const sp_place *p) {
    int agents = p->size > 0 ? p->size : c->nnodes > 0 ? (int)c->nnodes : 1;
    int here = p->local_size > 0 ? p->local_size : 1;
    int share = (n + agents - 1) / agents * here;
    return share < 1 ? 1 : share > n ? n : share;
}

#define EMULATED_MOST 8 /* each rank emulates its own: as many as a node of GPUs has */
static int32_t devices_of(const sp_device *d) {
    return strcmp(d->backend, "emu") == 0 ? EMULATED_MOST : d->n_devices;
}

/* A pod of pools that wants more memory than there is: which pools would do; likewise a group on
 * GPUs, where more ranks have more memory. The model was read without a fault a moment ago. */
static void say_what_would_fit(const sp_config *c, sp_err *err) {
    sp_pools pools;
    sp_model_desc desc;
    char *dir = NULL;
    sp_model_dir *tensors = NULL;
    sp_device device;
    if (c->null_model || sp_pools_of(&pools, c, NULL) != SP_OK ||
        sp_model_device(&device, c, &pools, NULL) != SP_OK)
        return;
    const bool gpu = device.own_memory;
    sp_fit fit = {.shared = !gpu, .device = gpu ? &device : NULL, .n_nodes = 1};
    /* Of one group alone on the CPU the plan's own words say all: ranks share what the node has. */
    bool known = (pools.given || gpu) && sp_model_resolve(&dir, c->model, NULL) == SP_OK &&
                 sp_model_desc_load(&desc, dir, NULL) == SP_OK;
    const sp_arch *arch;
    if (known && sp_arch_find(&arch, &desc, NULL) == SP_OK &&
        sp_model_dir_open(&tensors, dir, NULL) == SP_OK &&
        sp_fit_wish(&fit.wish, c, &desc, arch, tensors, NULL) == SP_OK &&
        sp_memory_read(&fit.memory, "", NULL) == SP_OK) {
        int32_t here = c->ranks_on_node ? c->ranks_on_node : sp_pools_ranks(&pools);
        fit.wish.packed = sp_dev_cpu.packed_bytes;
        fit.n_devices = gpu ? devices_of(&device) : here;
        fit.n_nodes = (sp_pools_ranks(&pools) + here - 1) / here;
        sp_fit_say_other(&fit, &pools, err);
    }
    sp_model_dir_close(tensors);
    sp_free(dir);
}

/* Agents of one launcher are given the same words: each refuses a wrong model by itself, so that
 * none waits for a head that does not come. One of them says why. */
static int prove(const sp_config *c, const sp_place *p) {
    sp_err err = {0};
    sp_model model;
    sp_status st = sp_model_prove(&model, c, &err);
    if (st == SP_OK) sp_model_fini(&model);
    if (st == SP_E_LIMIT) say_what_would_fit(c, &err);
    if (st == SP_OK) return SP_EXIT_OK;
    if (p->is_head) return refuse(&err);
    sp_debug("%s", err.text);
    return SP_EXIT_CONFIG;
}

static int start(sp_config *config, int argc, char **argv) {
    if (missing(config)) return usage_error(missing(config));
    sp_log_level level;
    if (sp_log_parse_level(config->log_level, &level) != SP_OK)
        return usage_error("option 'log-level': want error, warn, info, debug or trace");
    sp_log_setup("agent", level, strcmp(config->log_format, "json") == 0);

    sp_err err = {0};
    sp_place place;
    if (find_place(&place, config, &err) != SP_OK) return refuse(&err);
    bool given = place.meeting == SP_MEET_GIVEN;
    if (place.is_head || !given) {
        if (!config->model)
            return usage_error("no model: give --model DIR (the demo model is configs/podling)");
        sp_pools pools;
        if (sp_pools_of(&pools, config, &err) != SP_OK) return refuse(&err);
        config->ranks_on_node = ranks_on_node(config, sp_pools_ranks(&pools), &place);
        config->ranks_here = config->ranks_on_node / (place.local_size > 0 ? place.local_size : 1);
        int code = prove(config, &place);
        if (code != SP_EXIT_OK) return code;
    }
    return place.is_head ? sp_agent_lead(config, &place, argc, argv)
                         : sp_agent_follow(config, &place);
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
