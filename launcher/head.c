#include "launcher/head.h"

#include "comm/link.h"
#include "launcher/form.h"
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
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define SP_LOG "head"
#define FORM_TIMEOUT_NS (10 * SP_NS_PER_S)

typedef struct head {
    sp_config config;
    sp_model model;
    sp_link *link;
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

static void copy_text(char *to, size_t n, const char *from) {
    snprintf(to, n, "%s", from);
}

static sp_status send_form(head *h, sp_err *err) {
    const sp_config *c = &h->config;
    const sp_plan *p = &h->model.plan;
    sp_form form = {.threads = c->threads,
                    .pin = c->pin,
                    .block_tokens = c->block_size,
                    .n_blocks = p->n_blocks,
                    .max_model_len = p->max_model_len,
                    .max_num_seqs = p->max_num_seqs,
                    .max_batched_tokens = p->max_num_batched_tokens,
                    .max_step_rows = p->max_rows,
                    .log_json = strcmp(c->log_format, "json") == 0};
    copy_text(form.model_dir, sizeof form.model_dir, h->model.dir);
    copy_text(form.backend, sizeof form.backend, c->backend);
    copy_text(form.kv_dtype, sizeof form.kv_dtype, c->kv_cache_dtype);
    copy_text(form.log_level, sizeof form.log_level, c->log_level);
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_form_write(&form, &text);
    sp_piece piece = {text.ptr, (uint32_t)text.len};
    sp_status st =
        sp_link_send(h->link, SP_FRAME_FORM, &piece, 1, sp_now_ns() + FORM_TIMEOUT_NS, err);
    sp_buf_fini(&text);
    return st;
}

/* A rank that has not answered for so long is hung, not busy: no CPU is below 2 GFLOP/s. */
static int64_t step_timeout_ns(const sp_plan *p) {
    double flops = 2.0 * (double)p->n_params * (double)p->max_num_batched_tokens;
    return (int64_t)((30.0 + flops / 2e9) * (double)SP_NS_PER_S);
}

static sp_status make_engine(head *h, sp_err *err) {
    const sp_plan *p = &h->model.plan;
    sp_engine_config ec = SP_ENGINE_CONFIG_DEFAULT;
    ec.max_num_seqs = p->max_num_seqs;
    ec.max_batched_tokens = p->max_num_batched_tokens;
    ec.max_step_rows = p->max_rows;
    ec.block_tokens = p->kv.block_tokens;
    ec.n_blocks = p->n_blocks;
    ec.max_model_len = p->max_model_len;
    ec.n_vocab = h->model.desc.vocab;
    ec.eos_ids = h->model.desc.eos;
    ec.n_eos_ids = h->model.desc.n_eos;
    ec.queue_max = (int32_t)h->config.max_queue;
    ec.step_timeout_ns = step_timeout_ns(p);
    ec.enable_prefix_cache = h->config.prefix_caching;
    /* One pod, one model, one life: a fresh secret keeps the chain of others out. The model's own
     * fingerprint comes with caches that outlive a process. */
    if (getrandom(ec.cache_key, sizeof ec.cache_key, 0) != sizeof ec.cache_key)
        return SP_FAIL(err, SP_E_IO, "no random bytes: %s", strerror(errno));
    SP_TRY(sp_engine_create(&h->engine, &ec, h->link, err));
    return sp_engine_start(h->engine, err);
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
    SP_TRY(sp_tokenizer_load(&h->tokenizer, h->model.dir, err));
    if (h->config.command == SP_CMD_LOGITS) return SP_OK;
    return load_chat(h, err);
}

/* The rank loads while the head reads the tokenizer, so FORM goes first. */
static sp_status open_head(head *h, int ring_fd, sp_err *err) {
    raise_file_limit();
    SP_TRY(open_signals(h, err));
    SP_TRY(sp_link_open_ring(&h->link, ring_fd, 0, err));
    SP_TRY(sp_model_prove(&h->model, &h->config, err));
    SP_TRY(send_form(h, err));
    SP_TRY(make_engine(h, err));
    return load_text(h, err);
}

static void close_head(head *h) {
    sp_engine_destroy(h->engine);
    sp_chat_free(h->chat);
    sp_tokenizer_free(h->tokenizer);
    if (h->link) sp_link_close(h->link);
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
                  .stop_fd = h->stop_fd};
    switch (h->config.command) {
    case SP_CMD_SERVE:
        return sp_head_serve(&f);
    case SP_CMD_RUN:
        return sp_terminal_run(&f);
    case SP_CMD_LOGITS:
        return sp_logits_run(&f);
    case SP_CMD_STEP:
        break;
    }
    return SP_EXIT_USAGE;
}

int sp_head(int argc, char **argv) {
    int64_t fd;
    int command = argc >= 3 ? command_of(argv[2]) : 0;
    if (!command || sp_parse_i64(sp_slice_of(argv[1]), &fd) != SP_OK) {
        fprintf(stderr, "superpod: internal-head is started by superpod itself\n");
        return SP_EXIT_USAGE;
    }
    prctl(PR_SET_NAME, "superpod-head");
    head h = {.stop_fd = -1};
    sp_err err = {0};
    bool help;
    sp_log_level level = SP_LOG_INFO;
    sp_status st = sp_config_parse(&h.config, (sp_command)command, argc - 2, argv + 2, &help, &err);
    if (st == SP_OK) st = sp_log_parse_level(h.config.log_level, &level);
    if (h.config.quiet && level > SP_LOG_WARN) level = SP_LOG_WARN;
    sp_log_setup("head", level, st == SP_OK && strcmp(h.config.log_format, "json") == 0);
    if (st == SP_OK) st = open_head(&h, (int)fd, &err);
    if (st == SP_OK && command != SP_CMD_SERVE) st = wait_ready(&h, &err);
    int code;
    if (st == SP_E_CLOSED) {
        code = SP_EXIT_PEER; /* the rank has said why it ended */
    } else if (st == SP_E_CANCELED) {
        code = 128 + SIGINT; /* as a shell would say it */
    } else if (st != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        code = SP_EXIT_CONFIG;
    } else {
        code = run_front(&h);
    }
    close_head(&h);
    return code;
}
