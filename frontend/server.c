#define SP_LOG "http"

#include "frontend/server.h"

#include "frontend/front.h"
#include "frontend/generate.h"
#include "frontend/reply.h"
#include "frontend/route.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/thread.h"

#include <stdio.h>
#include <sys/random.h>

#define TICK_MS 100
#define FLUSH_MS 2000 /* after the last request: for readers to take what was written */
#define NO_DRAIN INT64_MAX

struct sp_server {
    sp_front front;
    sp_loop_io *engine_io, *wake_io;
    sp_loop_timer *tick;
    sp_wake wake;
    sp_gauge grace_ms; /* asked for by sp_server_drain(), from any thread */
    int64_t grace_end_ns, flush_end_ns;
};

bool sp_front_is_ready(const sp_front *f, const char **why) {
    *why = NULL;
    if (f->draining)
        *why = "the server is draining: it takes no new requests";
    else if (f->config.is_ready && !f->config.is_ready(f->config.ready_ctx))
        *why = "the server is not ready yet";
    if (*why) return false;
    switch (sp_engine_get_state(f->engine)) {
    case SP_ENGINE_READY:
        return true;
    case SP_ENGINE_STARTING:
        *why = "the server is not ready yet: the model is being loaded";
        break;
    case SP_ENGINE_DRAINING:
    case SP_ENGINE_DRAINED:
        *why = "the server is draining: it takes no new requests";
        break;
    case SP_ENGINE_FAILED:
        *why = "the server has lost a rank and cannot serve";
        break;
    }
    return false;
}

sp_request_env sp_front_env(const sp_front *f) {
    sp_engine_info info = sp_engine_get_info(f->engine);
    return (sp_request_env){.config = &f->config,
                            .tokenizer = f->tokenizer,
                            .chat = f->chat,
                            .n_vocab = info.n_vocab,
                            .max_model_len = info.max_model_len};
}

/* What http.c calls. */

static void give_id(sp_http_call *call) {
    char clean[SP_HTTP_ID_MAX + 1], made[33];
    if (sp_http_clean_id(sp_http_header_get(sp_http_call_head(call), "x-request-id"), clean)) {
        sp_http_call_set_id(call, sp_slice_of(clean));
        return;
    }
    unsigned char r[16] = {0};
    /* 16 bytes never fail once the kernel's pool is seeded, which it is before any network. */
    if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r) return;
    for (int i = 0; i < 16; i++) snprintf(made + 2 * i, 3, "%02x", r[i]);
    sp_http_call_set_id(call, sp_slice_of(made));
}

static void on_head(void *ctx, sp_http_call *call) {
    give_id(call);
    sp_route_head(ctx, call);
}

static void on_request(void *ctx, sp_http_call *call) {
    sp_route_request(ctx, call);
}

static void on_refuse(void *ctx, sp_http_call *call, sp_http_fault fault) {
    (void)ctx;
    sp_reply_fault(call, &(sp_fault){fault.http, fault.text, NULL, NULL, 0});
}

static void on_done(void *ctx, sp_http_call *call, int status, int64_t took_ns) {
    sp_front *f = ctx;
    sp_route_done(f, call, status, (double)took_ns / 1e9);
    if (!f->config.access_log) return;
    char peer[64];
    const sp_http_head *head = sp_http_call_head(call);
    sp_http_call_peer(call, peer, sizeof peer);
    sp_log_request(sp_http_call_id(call)[0] ? sp_http_call_id(call) : NULL);
    /* The path only: a query may hold what is nobody's business. */
    sp_info("%s \"%s %.*s\" %d %.3f s", peer, head ? sp_http_method_name(head->method) : "-",
            head ? (int)(head->path.len < 200 ? head->path.len : 200) : 1,
            head ? head->path.ptr : "-", status, (double)took_ns / 1e9);
    sp_log_request(NULL);
}

/* What the loop calls. */

static void on_engine(void *ctx, unsigned ready) {
    sp_server *s = ctx;
    (void)ready;
    int64_t before = sp_cpu_thread_ns();
    sp_gens_take_events(s->front.gens);
    sp_http_flush(s->front.http);
    s->front.event_cpu_ns += (uint64_t)(sp_cpu_thread_ns() - before);
}

static void on_wake(void *ctx, unsigned ready) {
    sp_server *s = ctx;
    (void)ready;
    sp_wake_drain(&s->wake);
    int64_t grace_ms = sp_gauge_get(&s->grace_ms);
    if (grace_ms == NO_DRAIN) return;
    int64_t end = sp_now_ns() + grace_ms * SP_NS_PER_MS;
    if (!s->front.draining) {
        int n = sp_gens_count(s->front.gens);
        sp_log_at(n ? SP_LOG_INFO : SP_LOG_DEBUG,
                  "draining: %d requests in work, %lld ms to end them", n, (long long)grace_ms);
        s->grace_end_ns = end;
    }
    if (end < s->grace_end_ns) s->grace_end_ns = end;
    s->front.draining = true;
    sp_http_set_closing(s->front.http);
}

static void drain_step(sp_server *s, int64_t now) {
    sp_front *f = &s->front;
    if (now >= s->grace_end_ns && sp_gens_count(f->gens) > 0)
        sp_gens_end_all(f->gens, "the server is shutting down");
    sp_http_flush(f->http);
    if (sp_gens_count(f->gens) > 0 || sp_text_pool_count(f->text) > 0) return;
    /* A reader that does not take its last bytes must not hold the process for ever. */
    if (s->flush_end_ns == 0) s->flush_end_ns = now + FLUSH_MS * SP_NS_PER_MS;
    if (sp_http_count_busy(f->http) == 0 || now >= s->flush_end_ns) sp_loop_stop(f->loop);
}

static void on_tick(void *ctx) {
    sp_server *s = ctx;
    int64_t now = sp_now_ns();
    sp_gens_tick(s->front.gens, now);
    if (s->front.draining) drain_step(s, now);
}

/* Create and destroy. */

static const char *copy(sp_arena *a, const char *s) {
    return s ? sp_arena_strndup(a, s, strlen(s)) : NULL;
}

static void copy_config(sp_front *f, const sp_server_config *c) {
    f->config = *c;
    sp_arena *a = &f->arena;
    const char **names = sp_arena_alloc(a, (size_t)c->n_model_names * sizeof *names);
    for (int i = 0; i < c->n_model_names; i++) names[i] = copy(a, c->model_names[i]);
    f->config.model_names = names;
    f->config.model_root = copy(a, c->model_root);
    f->config.owned_by = copy(a, c->owned_by ? c->owned_by : "superpod");
    f->config.version = copy(a, c->version ? c->version : "0");
    if (!f->config.created_s) f->config.created_s = sp_unix_s();
    /* Keys live on as digests only, hosts in auth.c. */
    f->config.host = NULL;
    f->config.api_keys = f->config.allowed_hosts = NULL;
}

static sp_status check_config(const sp_server_config *c, sp_err *err) {
    const struct {
        const char *name;
        int64_t v, min, max;
    } rows[] = {{"port", c->port, 0, 65535},
                {"backlog", c->backlog, 1, 65535},
                {"max connections", c->max_connections, 1, 1 << 20},
                {"max requests", c->max_requests, 1, 1 << 19},
                {"max text queue", c->max_text_queue, 1, 1 << 20},
                {"max body bytes", (int64_t)c->max_body_bytes, 1024, (int64_t)1 << 30},
                {"max bodies bytes", (int64_t)c->max_bodies_bytes, 1024, INT64_MAX},
                {"max header bytes", (int64_t)c->max_header_bytes, 1024, 65536},
                {"max unsent bytes", (int64_t)c->max_unsent_bytes, 1024, (int64_t)1 << 30},
                {"json depth", c->json_depth, 4, SP_JSON_DEPTH_MAX},
                {"max logprobs", c->max_logprobs, 0, SP_LOGPROBS_MAX},
                {"model names", c->n_model_names, 1, 1024},
                {"header timeout ms", c->header_timeout_ms, 1, INT32_MAX},
                {"idle timeout ms", c->idle_timeout_ms, 1, INT32_MAX},
                {"stall timeout ms", c->stall_timeout_ms, 1, INT32_MAX},
                {"request timeout ms", c->request_timeout_ms, 0, INT32_MAX},
                {"shutdown timeout ms", c->shutdown_timeout_ms, 0, INT32_MAX},
                {"ping ms", c->ping_ms, 1, INT32_MAX}};
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if (rows[i].v < rows[i].min || rows[i].v > rows[i].max)
            return SP_FAIL(err, SP_E_INVALID, "server: %s: want %lld to %lld, got %lld",
                           rows[i].name, (long long)rows[i].min, (long long)rows[i].max,
                           (long long)rows[i].v);
    const sp_server_kv *kv = c->kv;
    if (kv &&
        !(kv->pod && kv->identity && kv->host && kv->source && kv->mac && kv->block_tokens > 0))
        return SP_FAIL(err, SP_E_INVALID, "server: kv: a field is not set");
    return SP_OK;
}

static sp_status listen_on(sp_server *s, const sp_server_config *c, sp_err *err) {
    sp_http_config http = {.host = c->host ? c->host : "127.0.0.1",
                           .port = c->port,
                           .backlog = c->backlog,
                           .max_connections = c->max_connections,
                           .max_head_bytes = c->max_header_bytes,
                           .max_body_bytes = c->max_body_bytes,
                           .max_unsent_bytes = c->max_unsent_bytes,
                           .head_ms = c->header_timeout_ms,
                           .idle_ms = c->idle_timeout_ms,
                           .stall_ms = c->stall_timeout_ms,
                           .linger_ms = 2000};
    sp_http_handler handler = {.ctx = &s->front,
                               .on_head = on_head,
                               .on_request = on_request,
                               .on_refuse = on_refuse,
                               .on_done = on_done};
    return sp_http_create(&s->front.http, s->front.loop, &http, &handler, err);
}

static sp_status watch(sp_server *s, sp_err *err) {
    sp_front *f = &s->front;
    sp_status st = sp_wake_open(&s->wake, err);
    if (st == SP_OK) st = sp_loop_io_open(&s->wake_io, f->loop, s->wake.fd, on_wake, s);
    if (st == SP_OK)
        st = sp_loop_io_open(&s->engine_io, f->loop, sp_engine_event_fd(f->engine), on_engine, s);
    if (st == SP_OK) st = sp_loop_every(&s->tick, f->loop, TICK_MS, on_tick, s);
    if (st != SP_OK) return SP_FAIL(err, st, "the server's loop could not be set up");
    sp_loop_io_want(s->wake_io, SP_LOOP_READ);
    sp_loop_io_want(s->engine_io, SP_LOOP_READ);
    return SP_OK;
}

sp_status sp_server_create(sp_server **out, const sp_server_config *config, sp_engine *engine,
                           const sp_tokenizer *tokenizer, const sp_chat *chat, sp_err *err) {
    SP_ASSERT(out && config && engine && tokenizer);
    SP_TRY(check_config(config, err));
    sp_server *s = sp_alloc(sizeof *s);
    sp_front *f = &s->front;
    s->wake.fd = -1;
    sp_gauge_set(&s->grace_ms, NO_DRAIN);
    f->engine = engine;
    f->tokenizer = tokenizer;
    f->chat = chat;
    sp_arena_init(&f->arena, 0);
    copy_config(f, config);
    sp_limit_init(&f->limit, config->max_requests, config->max_bodies_bytes);
    f->routes = sp_alloc(sizeof *f->routes);
    f->gens = sp_gens_create(f);

    sp_status st = sp_auth_create(&f->auth, config->api_keys, config->n_api_keys,
                                  config->allowed_hosts, config->n_allowed_hosts, err);
    if (st == SP_OK) st = sp_loop_create(&f->loop, err);
    if (st == SP_OK) st = listen_on(s, config, err);
    if (st == SP_OK)
        st = sp_text_pool_create(&f->text, f->loop, config->n_text_threads, config->max_text_queue,
                                 err);
    if (st == SP_OK) st = watch(s, err);
    if (st != SP_OK) {
        sp_server_destroy(s);
        return st;
    }
    *out = s;
    return SP_OK;
}

void sp_server_destroy(sp_server *s) {
    if (!s) return;
    sp_front *f = &s->front;
    /* Connections first: their requests are cancelled; then the text threads give back what they
     * have; then nothing names the engine any more. */
    sp_http_destroy(f->http);
    sp_text_pool_destroy(f->text);
    sp_gens_destroy(f->gens);
    sp_loop_timer_close(s->tick);
    sp_loop_io_close(s->engine_io);
    sp_loop_io_close(s->wake_io);
    sp_wake_close(&s->wake);
    sp_loop_destroy(f->loop);
    sp_auth_destroy(f->auth);
    sp_free(f->routes);
    sp_arena_fini(&f->arena);
    sp_free(s);
}

int sp_server_bound_port(const sp_server *s) {
    return sp_http_port(s->front.http);
}

void sp_server_run(sp_server *s) {
    sp_loop_run(s->front.loop);
}

void sp_server_drain(sp_server *s, int grace_ms) {
    /* Two plain steps that a signal handler may take: an atomic store and a write. */
    sp_gauge_set(&s->grace_ms, grace_ms < 0 ? s->front.config.shutdown_timeout_ms : grace_ms);
    sp_wake_signal(&s->wake);
}
