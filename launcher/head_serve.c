#include "launcher/head_serve.h"

#include "frontend/server.h"
#include "launcher/pools_set.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/thread.h"
#include "runtime/engine/engine_core.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define SP_LOG "serve"
#define LOOK_MS 10         /* how often the start is looked at */
#define LOOK_FAILED_MS 200 /* and a running engine, for a lost rank */

typedef struct ctl {
    const sp_front *front;
    char host[256]; /* what sp_server_kv borrows */
    char identity[SP_FINGERPRINT_TEXT];
    sp_server_kv kv;
    sp_server *server;
    sp_wake done; /* the loop has ended */
    bool told;    /* that it serves */
    int64_t started_ns;
} ctl;

static const char *first_name(const sp_config *c) {
    return c->served_model_name.n ? c->served_model_name.at[0] : c->model;
}

static void say_ready(const ctl *c) {
    const sp_config *config = c->front->config;
    double ms = (double)(sp_now_ns() - c->started_ns) / 1e6;
    sp_engine_info info = sp_engine_get_info(c->front->engine);
    if (config->quiet) return;
    printf("superpod: serving '%s' at http://%s:%d (%d blocks of %d tokens, context %d, ready in "
           "%.0f ms)\n",
           first_name(config), config->host, sp_server_bound_port(c->server), info.n_blocks,
           info.block_tokens, info.max_model_len, ms);
    fflush(stdout);
}

/* Where others reach us, for people and files: no address that means all of them. */
static void reached_at(const sp_config *config, char *out, size_t n) {
    const bool any = strcmp(config->host, "0.0.0.0") == 0 || strcmp(config->host, "::") == 0;
    out[n - 1] = 0;
    if (!any || gethostname(out, n - 1) != 0) snprintf(out, n, "%s", config->host);
}

/* Written beside its name and renamed: who looks sees all of it or nothing. */
static void write_endpoint(const ctl *c) {
    const sp_config *config = c->front->config;
    if (!config->endpoint_file) return;
    char host[256], path[4200];
    reached_at(config, host, sizeof host);
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    char url[300];
    snprintf(url, sizeof url, "http://%s:%d", host, sp_server_bound_port(c->server));
    const char *job = getenv("SLURM_JOB_ID");
    sp_jw_object(&w);
    sp_jw_key(&w, "url"), sp_jw_str(&w, url);
    sp_jw_key(&w, "model"), sp_jw_str(&w, first_name(config));
    sp_jw_key(&w, "pid"), sp_jw_int(&w, getpid());
    sp_jw_key(&w, "job_id"), sp_jw_str(&w, job ? job : "");
    sp_jw_key(&w, "nodes"), sp_jw_int(&w, sp_pod_roster(c->front->pod)->n_nodes);
    sp_jw_key(&w, "ranks"), sp_jw_int(&w, sp_pod_roster(c->front->pod)->n_ranks);
    sp_jw_object_end(&w);
    sp_buf_putc(&text, '\n');
    snprintf(path, sizeof path, "%s.%d.tmp", config->endpoint_file, (int)getpid());
    FILE *f = fopen(path, "we");
    bool ok = f && fwrite(text.ptr, 1, text.len, f) == text.len;
    if (f && fclose(f) != 0) ok = false;
    if (!ok || rename(path, config->endpoint_file) != 0)
        sp_error("option 'endpoint-file': '%s' cannot be written: %s", config->endpoint_file,
                 strerror(errno));
    sp_buf_fini(&text);
}

static void show_progress(const ctl *c, bool end) {
    uint64_t done, all;
    char a[24], b[24];
    if (c->front->config->quiet || !isatty(STDERR_FILENO)) return;
    sp_engine_progress(c->front->engine, &done, &all);
    if (end || all == 0) {
        if (end) fputs("\r\033[K", stderr);
        return;
    }
    int width = (int)(done * 40 / all);
    fprintf(stderr, "\rloading %s of %s [%.*s%*s]", sp_format_bytes(a, sizeof a, done),
            sp_format_bytes(b, sizeof b, all), width, "########################################",
            40 - width, "");
}

/* Waits for a signal or for the loop's end; true when the loop has ended. */
static bool wait_some(ctl *c, int timeout_ms) {
    struct pollfd p[3] = {{.fd = c->front->stop_fd, .events = POLLIN},
                          {.fd = c->done.fd, .events = POLLIN},
                          {.fd = sp_pod_watch_fd(c->front->pod), .events = POLLIN}};
    if (poll(p, 3, timeout_ms) <= 0) return false;
    if (p[2].revents) sp_pod_look(c->front->pod);
    if (p[0].revents) {
        struct signalfd_siginfo info;
        while (read(c->front->stop_fd, &info, sizeof info) == sizeof info)
            sp_info("signal %u: draining", info.ssi_signo);
        /* The server refuses new work; the engine goes on for what was accepted. */
        sp_server_drain(c->server, -1);
    }
    return p[1].revents != 0;
}

static void *ctl_main(void *arg) {
    ctl *c = arg;
    bool failed = false;
    for (;;) {
        sp_engine_state state = sp_engine_get_state(c->front->engine);
        if (state == SP_ENGINE_STARTING) show_progress(c, false);
        if (state == SP_ENGINE_READY && !c->told) {
            show_progress(c, true);
            sp_pod_set_state(c->front->pod, SP_RANK_ACTIVE);
            say_ready(c);
            write_endpoint(c);
            c->told = true;
        }
        if (state == SP_ENGINE_FAILED && !failed) {
            failed = true; /* running requests have been told; a moment to write it, then out */
            sp_server_drain(c->server, c->told ? 2000 : 0);
        }
        if (wait_some(c, state == SP_ENGINE_STARTING ? LOOK_MS : LOOK_FAILED_MS)) return NULL;
    }
}

static void put_status(void *ctx, sp_buf *out) {
    const sp_front *f = ctx;
    /* /health may have said so before ctl looked. */
    if (sp_engine_get_state(f->engine) == SP_ENGINE_READY) sp_pod_set_state(f->pod, SP_RANK_ACTIVE);
    sp_pod_status(f->pod, f->engine, out);
}

static void put_pools(void *ctx, sp_buf *out) {
    const sp_front *f = ctx;
    sp_jw w = sp_jw_on(out);
    sp_jw_object(&w);
    sp_jw_key(&w, "pools"), sp_pod_put_pools(f->pod, f->engine, &w);
    sp_jw_object_end(&w);
}

static sp_status set_pools(void *ctx, const sp_json_node *body, sp_err *err) {
    const sp_front *f = ctx;
    SP_TRY(sp_pools_set(f->engine, body, err));
    sp_info("roles of groups were changed");
    return SP_OK;
}

/* ---- blocks that pods lend one another ---- */

static bool put_kv_source(void *ctx, int32_t group, sp_buf *out) {
    const sp_front *f = ctx;
    return sp_pod_put_kv_source(f->pod, group, out);
}

static void prove_kv(void *ctx, sp_slice text, uint8_t out[32]) {
    const sp_front *f = ctx;
    sp_kv_share_mac(f->share, text, out);
}

static sp_status make_kv(ctl *c, sp_err *err) {
    const sp_front *f = c->front;
    char fingerprint[SP_FINGERPRINT_TEXT], numerics[SP_NUMERICS_BYTES];
    sp_dtype kv_dtype = SP_DTYPE_F32;
    SP_TRY(sp_kv_dtype_parse(f->config->kv_cache_dtype, &kv_dtype, err));
    sp_fingerprint_text(f->model->fingerprint, fingerprint);
    const sp_numerics_of of = {.fast = f->model->device.fast,
                               .kv_dtype = kv_dtype,
                               .backend = f->model->device.backend,
                               .tp = f->model->pools.at[0].tp}; /* equal in all */
    sp_numerics(numerics, &of);
    sp_kv_pod_identity(c->identity, fingerprint, numerics, (int32_t)f->config->block_size);
    reached_at(f->config, c->host, sizeof c->host);
    c->kv = (sp_server_kv){.pod = f->share->pod,
                           .identity = c->identity,
                           .host = c->host,
                           .block_tokens = (int32_t)f->config->block_size,
                           .recompute = strcmp(f->config->kv_load_failure_policy, "fail") != 0,
                           .source = put_kv_source,
                           .mac = prove_kv,
                           .ctx = (void *)(uintptr_t)f};
    return SP_OK;
}

static sp_server_config server_config(const sp_front *f) {
    const sp_config *c = f->config;
    const sp_model_desc *d = &f->model->desc;
    sp_server_config sc = SP_SERVER_CONFIG_DEFAULT;
    sc.host = c->host;
    sc.port = (int)c->port;
    sc.n_text_threads = (int)c->text_threads;
    sc.max_connections = (int)c->max_connections;
    sc.max_body_bytes = (size_t)c->max_body_bytes;
    sc.max_header_bytes = (size_t)c->max_header_bytes;
    sc.json_depth = (int)c->max_json_depth;
    sc.api_keys = c->api_key.at;
    sc.n_api_keys = c->api_key.n;
    sc.allowed_hosts = c->allowed_host.at;
    sc.n_allowed_hosts = c->allowed_host.n;
    sc.model_names = c->served_model_name.n ? c->served_model_name.at : &c->model;
    sc.n_model_names = c->served_model_name.n ? c->served_model_name.n : 1;
    sc.model_root = c->model;
    sc.version = SP_VERSION;
    sc.max_logprobs = (int)c->max_logprobs;
    sc.trust_special_text = c->trust_special_text;
    sc.prefix_caching = c->prefix_caching;
    sc.request_timeout_ms = (int)(c->request_timeout_s * 1000);
    sc.shutdown_timeout_ms = (int)(c->shutdown_timeout_s * 1000);
    sc.access_log = c->access_log;
    sc.status = put_status;
    sc.pools = put_pools;
    sc.set_pools = set_pools;
    sc.status_ctx = (void *)f;
    if (strcmp(c->generation_config, "auto") == 0)
        sc.defaults =
            (sp_sampling_defaults){d->gen_temperature,        d->gen_top_p, d->gen_min_p,
                                   d->gen_repetition_penalty, d->gen_top_k, d->gen_max_new_tokens};
    return sc;
}

int sp_head_serve(const sp_front *f) {
    sp_err err = {0};
    ctl c = {.front = f, .done = {.fd = -1}, .started_ns = sp_now_ns()};
    sp_thread thread = {0};
    sp_server_config sc = server_config(f);
    sp_status st = f->share->on ? make_kv(&c, &err) : SP_OK;
    if (f->share->on) sc.kv = &c.kv;
    if (st == SP_OK) st = sp_server_create(&c.server, &sc, f->engine, f->tokenizer, f->chat, &err);
    if (st == SP_OK) st = sp_wake_open(&c.done, &err);
    if (st == SP_OK) st = sp_thread_start(&thread, "ctl", ctl_main, &c, &err);
    if (st != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
    } else {
        if (sc.n_api_keys == 0 && strcmp(sc.host, "127.0.0.1") != 0 &&
            strcmp(sc.host, "localhost") != 0 && strcmp(sc.host, "::1") != 0)
            sp_warn("listening on %s without --api-key: whoever reaches the port may use it",
                    sc.host);
        sp_server_run(c.server);
        sp_wake_signal(&c.done);
        sp_thread_join(&thread);
    }
    if (c.told && f->config->endpoint_file && unlink(f->config->endpoint_file) != 0)
        sp_debug("the endpoint file is gone already");
    sp_wake_close(&c.done);
    sp_server_destroy(c.server);
    if (st != SP_OK) return SP_EXIT_CONFIG;
    bool lost = sp_engine_get_state(f->engine) == SP_ENGINE_FAILED;
    char why[200];
    /* Before it served, the rank itself (or the agent) has said why. */
    if (lost && c.told) sp_error("%s", sp_engine_why(f->engine, why, sizeof why));
    return lost ? SP_EXIT_PEER : SP_EXIT_OK;
}
