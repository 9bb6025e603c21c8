#include "launcher/head.h"

#include "launcher/boot.h"
#include "launcher/bytes_text.h"
#include "launcher/faults.h"
#include "launcher/head_serve.h"
#include "launcher/logits.h"
#include "launcher/terminal.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/engine_core.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define SP_LOG "head"

typedef struct head {
    sp_config config;
    sp_model model;
    sp_boot boot;
    sp_kv_share share;
    sp_pod *pod;
    sp_engine *engine;
    sp_tokenizer *tokenizer;
    sp_chat *chat;
    int stop_fd;
} head;

static int command_of(const char *word) {
    return strcmp(word, "serve") == 0    ? SP_CMD_SERVE
           : strcmp(word, "run") == 0    ? SP_CMD_RUN
           : strcmp(word, "logits") == 0 ? SP_CMD_LOGITS
                                         : 0;
}

/* Blocked before any thread starts, so that all inherit it and only the descriptor sees them. */
static sp_status open_signals(head *h, sp_err *err) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    h->stop_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (h->stop_fd < 0) return SP_FAIL(err, SP_E_IO, "signalfd: %s", strerror(errno));
    return SP_OK;
}

/* Every connection is a descriptor; what the hard limit gives is ours to take. */
static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) sp_debug("open files stay at their limit");
}

/* A rank that has not answered for so long is hung, not busy: no CPU is below 2 GFLOP/s. */
static int64_t step_timeout_ns(const sp_model *m) {
    double most = 0;
    for (int32_t i = 0; i < m->pools.n; i++) {
        const sp_plan *p = &m->pool[i].plan;
        double flops = 2.0 * (double)p->n_params * (double)p->max_num_batched_tokens;
        if (flops > most) most = flops;
    }
    return (int64_t)((30.0 + most / 2e9) * (double)SP_NS_PER_S);
}

/* Links are ranks, in order. */
static void list_groups(const sp_model *m, sp_engine_group *out) {
    for (int32_t i = 0; i < sp_pools_groups(&m->pools); i++) {
        int32_t first;
        const sp_pool_spec *s = sp_pools_group(&m->pools, i, &first);
        out[i] = (sp_engine_group){.first_link = first,
                                   .n_links = s->tp * s->pp,
                                   .n_stages = s->pp,
                                   .sampler = first + (s->pp - 1) * s->tp,
                                   .n_blocks = m->pool[s - m->pools.at].plan.n_blocks,
                                   .role = s->role};
        snprintf(out[i].pool, sizeof out[i].pool, "%s", s->name);
    }
}

/* Of all ranks of a group: the groups hold the same model, so the first tells. */
static int64_t block_bytes(const sp_model *m) {
    int64_t bytes = 0;
    for (int32_t r = 0; r < m->pools.at[0].tp * m->pools.at[0].pp; r++)
        bytes += (int64_t)m->ranks[r].kv.block_bytes;
    return bytes;
}

/* One pod, one life: a fresh secret keeps the chains of others out. Pods that lend one another blocks
 * name them alike. */
static sp_status make_cache_key(const head *h, uint8_t out[32], sp_err *err) {
    if (h->share.on) {
        memcpy(out, h->share.chain_key, sizeof h->share.chain_key);
        return SP_OK;
    }
    if (getrandom(out, 32, 0) != 32)
        return SP_FAIL(err, SP_E_IO, "no random bytes: %s", strerror(errno));
    return SP_OK;
}

static sp_status make_engine(head *h, sp_err *err) {
    const sp_plan *p = &h->model.pool[0].plan; /* what is not of a group is equal in all */
    sp_engine_group groups[SP_GROUPS_MAX];
    list_groups(&h->model, groups);
    sp_engine_config ec = SP_ENGINE_CONFIG_DEFAULT;
    ec.max_num_seqs = p->max_num_seqs;
    ec.max_batched_tokens = p->max_num_batched_tokens;
    ec.max_step_rows = p->max_rows;
    ec.block_tokens = p->kv.block_tokens;
    ec.max_model_len = p->max_model_len;
    ec.groups = groups;
    ec.n_groups = sp_pools_groups(&h->model.pools);
    ec.prefill_threshold_tokens = (int32_t)h->config.prefill_threshold;
    ec.kv_block_bytes = block_bytes(&h->model);
    ec.kv_shared = h->share.on;
    ec.kv_lease_ns = h->config.kv_lease_s * SP_NS_PER_S;
    ec.n_vocab = h->model.desc.vocab;
    ec.eos_ids = h->model.desc.eos;
    ec.n_eos_ids = h->model.desc.n_eos;
    ec.queue_max = (int32_t)h->config.max_queue;
    ec.step_timeout_ns = step_timeout_ns(&h->model);
    ec.enable_prefix_cache = h->config.prefix_caching;
    memcpy(ec.fingerprint, h->model.fingerprint, sizeof ec.fingerprint);
    SP_TRY(make_cache_key(h, ec.cache_key, err));
    sp_status st = sp_engine_create(&h->engine, &ec, sp_pod_fan(h->pod), err);
    explicit_bzero(ec.cache_key, sizeof ec.cache_key);
    return st == SP_OK ? sp_engine_start(h->engine, err) : st;
}

/* A model without a template serves completions; chat requests are then refused with words. */
static sp_status load_chat(head *h, sp_err *err) {
    if (h->config.chat_template)
        return sp_chat_load_file(&h->chat, h->config.chat_template, h->tokenizer, err);
    sp_status st = sp_chat_load(&h->chat, h->model.dir, h->tokenizer, err);
    if (st != SP_E_NOTFOUND) return st;
    sp_debug("'%s' has no chat template: chat requests are refused", h->config.model);
    return SP_OK;
}

static sp_status load_text(head *h, sp_err *err) {
    if (h->config.command == SP_CMD_LOGITS && h->config.tokens) return SP_OK;
    if (h->config.null_model) {
        SP_TRY(sp_bytes_tokenizer(&h->tokenizer, err));
        return sp_bytes_chat(&h->chat, h->tokenizer, err);
    }
    SP_TRY(sp_tokenizer_load(&h->tokenizer, h->model.dir, err));
    if (h->config.command == SP_CMD_LOGITS) return SP_OK;
    return load_chat(h, err);
}

/* Agents wait for this: their part of the meeting is over. */
static void say_joined(const head *h) {
    if (h->boot.joined_fd < 0) return;
    eventfd_write(h->boot.joined_fd, 1);
    close(h->boot.joined_fd);
}

/* The ranks load while the head reads the tokenizer, so FORM goes first. */
static sp_status open_head(head *h, sp_err *err) {
    raise_file_limit();
    SP_TRY(open_signals(h, err));
    h->config.ranks_on_node = h->boot.ranks_on_node;
    if (!h->config.host) h->config.host = h->boot.outward ? "0.0.0.0" : "127.0.0.1";
    SP_TRY(sp_model_prove(&h->model, &h->config, err));
    if (h->model.device.why[0]) sp_info("device auto is %s", h->model.device.why);
    SP_TRY(sp_kv_share_load(&h->share, h->config.kv_secret_file, err));
    SP_TRY(sp_pod_open(&h->pod, &h->config, &h->model, &h->share, &h->boot, h->stop_fd, err));
    say_joined(h);
    SP_TRY(make_engine(h, err));
    return load_text(h, err);
}

/* What the agents are told when the pod ends with a code. */
static const char *why_it_ends(const head *h, sp_status st, const sp_err *err, char *out,
                               size_t n) {
    if (st != SP_OK && st != SP_E_CLOSED) return err->text;
    if (h->engine && sp_engine_get_state(h->engine) == SP_ENGINE_FAILED)
        return sp_engine_why(h->engine, out, n);
    return "its own command failed";
}

static void close_head(head *h, int code, const char *why) {
    sp_engine_destroy(h->engine);
    sp_chat_free(h->chat);
    sp_tokenizer_free(h->tokenizer);
    sp_pod_close(h->pod, code, why);
    explicit_bzero(&h->boot.token, sizeof h->boot.token);
    sp_kv_share_wipe(&h->share);
    sp_model_fini(&h->model);
    if (h->stop_fd >= 0) close(h->stop_fd);
    sp_config_fini(&h->config);
}

/* The engine wakes its consumer when its state changes. */
static sp_status wait_ready(head *h, sp_err *err) {
    struct pollfd p[2] = {{.fd = sp_engine_event_fd(h->engine), .events = POLLIN},
                          {.fd = h->stop_fd, .events = POLLIN}};
    while (sp_engine_get_state(h->engine) == SP_ENGINE_STARTING) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return SP_FAIL(err, SP_E_IO, "poll: %s", strerror(errno));
        if (p[1].revents) return SP_FAIL(err, SP_E_CANCELED, "stopped by a signal");
        sp_event none;
        if (p[0].revents && sp_engine_events(h->engine, &none, 1) > 0) sp_event_release(&none);
    }
    return sp_engine_get_state(h->engine) == SP_ENGINE_FAILED ? SP_E_CLOSED : SP_OK;
}

static int run_front(head *h) {
    sp_front f = {.config = &h->config,
                  .model = &h->model,
                  .engine = h->engine,
                  .tokenizer = h->tokenizer,
                  .chat = h->chat,
                  .stop_fd = h->stop_fd,
                  .pod = h->pod,
                  .share = &h->share};
    switch (h->config.command) {
    case SP_CMD_SERVE:
        return sp_head_serve(&f);
    case SP_CMD_RUN:
        return sp_terminal_run(&f);
    case SP_CMD_LOGITS:
        return sp_logits_run(&f);
    case SP_CMD_STEP:
    case SP_CMD_PLAN:
        break;
    }
    return SP_EXIT_USAGE;
}

static int exit_of(sp_status st) {
    switch (st) {
    case SP_E_CLOSED: /* a rank has said why it ended */
    case SP_E_PEER_LOST:
    case SP_E_TIMEOUT:
        return SP_EXIT_PEER;
    case SP_E_CANCELED:
        return 128 + SIGINT; /* as a shell would say it */
    default:
        return SP_EXIT_CONFIG;
    }
}

static sp_status parse(head *h, sp_command command, int argc, char **argv, sp_err *err) {
    bool help;
    sp_log_level level = SP_LOG_INFO;
    sp_status st = sp_config_parse(&h->config, command, argc, argv, &help, err);
    if (st == SP_OK) st = sp_log_parse_level(h->config.log_level, &level);
    if (h->config.quiet && level > SP_LOG_WARN) level = SP_LOG_WARN;
    sp_log_setup("head", level, st == SP_OK && strcmp(h->config.log_format, "json") == 0);
    return st;
}

int sp_head(int argc, char **argv) {
    head *h = sp_alloc(sizeof *h);
    h->stop_fd = -1;
    sp_err err = {0};
    int command = argc >= 3 ? command_of(argv[2]) : 0;
    if (!command || sp_boot_read(&h->boot, argv[1], &err) != SP_OK) {
        fprintf(stderr, "superpod: internal-head is started by superpod itself\n");
        sp_free(h);
        return SP_EXIT_USAGE;
    }
    prctl(PR_SET_NAME, "superpod-head");
    sp_status st = parse(h, (sp_command)command, argc - 2, argv + 2, &err);
    sp_faults_warn();
    if (st == SP_OK) st = open_head(h, &err);
    if (st == SP_OK && command != SP_CMD_SERVE) st = wait_ready(h, &err);
    if (st != SP_OK && st != SP_E_CLOSED && st != SP_E_CANCELED)
        fprintf(stderr, "superpod: %s\n", err.text);
    int code = st == SP_OK ? run_front(h) : exit_of(st);
    if (st == SP_E_CANCELED && command == SP_CMD_SERVE) code = SP_EXIT_OK; /* drained of nothing */
    char why[200] = "";
    const char *words = why_it_ends(h, st, &err, why, sizeof why);
    close_head(h, code, words);
    sp_faults_tell();
    sp_free(h);
    return code;
}
