/* tests/fake_engine.h - an engine of one thread that says a script; for tests of the front end.
 *
 * Every answer is the bytes of a script, one token id a byte, then EOS. A test can hold it still,
 * let it make single steps, fail it, and see what was cancelled. It lends KV blocks that do not
 * exist, and keeps what it was told of another's; sp_fake_kv() is the pod it stands in.
 * All in a header: an object under tests/ is linked into every test program, where it would stand
 * beside the real engine. Include it from one file of a program.
 *
 * Thread: as engine.h says; the controls from any thread. */
#pragma once

#include "frontend/server.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "runtime/engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAKE_REQUESTS_MAX 4096
#define FAKE_EOS 257
#define FAKE_EVENTS_MAX 8192 /* then it waits for the reader */
#define FAKE_WAIT_NS (20 * SP_NS_PER_S)

typedef struct sp_fake_engine_config {
    const char *script;    /* "hello" when NULL */
    int32_t max_model_len; /* 4096 when 0 */
    int32_t n_vocab;       /* 264 when 0 */
    int queue_max;         /* requests inside; FAKE_REQUESTS_MAX when 0 */
    int n_cached;          /* told with the first event */
    int fail_after;        /* tokens of a choice, then SP_E_PEER_LOST; 0: never */
    bool fail_at_once;     /* the first event is the error */
    bool paused, starting;
    int kv_blocks;                        /* lent with a request that asks for it; 0: none */
    const sp_engine_group_status *groups; /* borrowed; NULL: one that is mixed and called "all" */
    int n_groups;
} sp_fake_engine_config;

typedef struct fake_choice {
    int n_out;
    bool ended;
} fake_choice;

typedef struct fake_request {
    uint64_t id;
    void *user;
    int32_t *prompt;
    int32_t n_prompt;
    sp_gen_params params; /* pointers are not kept */
    int32_t stop_ids[SP_STOP_IDS_MAX];
    fake_choice *choices;
    int64_t deadline_ns;
    int32_t priority;
    char cache_salt[64];
    bool prompt_told, keep_kv;
} fake_request;

typedef struct fake_import { /* of what was submitted last */
    bool there, must;
    char engine[SP_KV_ENGINE_BYTES];
    char source[4096];
    sp_kv_handle *handle;
} fake_import;

struct sp_engine {
    sp_fake_engine_config config;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    sp_thread thread;
    sp_wake wake;
    fake_request *requests[FAKE_REQUESTS_MAX];
    int n_requests;
    fake_request last; /* what was submitted last */
    int32_t last_prompt[4096];
    sp_logit_bias last_bias[16];
    int32_t last_bad[64];
    fake_import last_import;
    uint64_t next_id;
    sp_event *events;
    size_t first_event, n_events, cap_events; /* a ring that grows */
    sp_engine_state state;
    int64_t allowed; /* steps while paused */
    int n_submitted, n_aborted, n_stopped;
    bool ending;
    sp_engine_metrics metrics;
};

sp_engine *sp_fake_engine_create(const sp_fake_engine_config *config);
void sp_fake_engine_destroy(sp_engine *e);
void sp_fake_engine_pause(sp_engine *e, bool paused);
void sp_fake_engine_allow(sp_engine *e,
                          int steps); /* while paused: each gives every choice a token */
void sp_fake_engine_set_state(sp_engine *e, sp_engine_state state);
/* Wait for a condition; false after a long time. */
bool sp_fake_engine_wait_inside(sp_engine *e, int n);    /* exactly n requests inside */
bool sp_fake_engine_wait_submitted(sp_engine *e, int n); /* at least n since the start */
bool sp_fake_engine_wait_aborted(sp_engine *e, int n);   /* at least n choices cancelled */
int sp_fake_engine_count_stopped(sp_engine *e);

static void *fake_main(void *arg);

/** A pod that shares blocks with those of the same secret, which is borrowed. */
sp_server_kv sp_fake_kv(char *secret);

static bool fake_source(void *ctx, int32_t group, sp_buf *out) {
    (void)ctx;
    sp_buf_printf(out, "{\"tp\":2,\"pp\":1,\"pp_layers\":[6],\"ranks\":[\"g%d\",\"b\"]}", group);
    return true;
}

/* Keyed, and every byte counts: all that a test needs of a proof. */
static void fake_mac(void *ctx, sp_slice text, uint8_t out[32]) {
    uint64_t h = sp_hash_bytes(ctx, strlen(ctx)) ^ sp_hash_bytes(text.ptr, text.len);
    for (size_t i = 0; i < 32; i++) {
        h = h * 6364136223846793005u + 1442695040888963407u;
        out[i] = (uint8_t)(h >> 56);
    }
}

sp_server_kv sp_fake_kv(char *secret) {
    return (sp_server_kv){.pod = "00112233445566778899aabbccddeeff",
                          .identity = "c0ffee",
                          .host = "pod-0",
                          .block_tokens = 16,
                          .source = fake_source,
                          .mac = fake_mac,
                          .ctx = secret};
}

sp_engine *sp_fake_engine_create(const sp_fake_engine_config *config) {
    static const double seconds[] = {0.5, 1, 2}, tokens[] = {1, 10, 100};
    sp_engine *e = sp_alloc(sizeof *e);
    e->config = *config;
    if (!e->config.script) e->config.script = "hello";
    if (!e->config.max_model_len) e->config.max_model_len = 4096;
    if (!e->config.n_vocab) e->config.n_vocab = 264;
    if (!e->config.queue_max) e->config.queue_max = FAKE_REQUESTS_MAX;
    e->state = config->starting ? SP_ENGINE_STARTING : SP_ENGINE_READY;
    pthread_mutex_init(&e->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->changed, &attr);
    pthread_condattr_destroy(&attr);
    sp_engine_metrics *m = &e->metrics;
    sp_histogram *in_seconds[] = {&m->ttft_s,      &m->itl_s,     &m->e2e_s,    &m->queue_s,
                                  &m->inference_s, &m->prefill_s, &m->decode_s, &m->tpot_s,
                                  &m->kv_xfer_s,   &m->kv_post_s, &m->handoff_s};
    sp_histogram *in_tokens[] = {&m->req_prompt_tokens,
                                 &m->req_generation_tokens,
                                 &m->req_max_tokens,
                                 &m->req_n,
                                 &m->iteration_tokens,
                                 &m->req_max_generation_tokens,
                                 &m->req_prefill_computed_tokens,
                                 &m->kv_xfer_bytes,
                                 &m->kv_xfer_blocks};
    for (size_t i = 0; i < SP_LEN(in_seconds); i++) sp_histogram_init(in_seconds[i], seconds, 3);
    for (size_t i = 0; i < SP_LEN(in_tokens); i++) sp_histogram_init(in_tokens[i], tokens, 3);
    sp_err err = {0};
    if (sp_wake_open(&e->wake, &err) != SP_OK ||
        sp_thread_start(&e->thread, "fake", fake_main, e, &err) != SP_OK) {
        fprintf(stderr, "fake engine: %s\n", err.text);
        abort();
    }
    return e;
}

static void fake_free(fake_request *r) {
    sp_free(r->prompt);
    sp_free(r->choices);
    sp_free(r);
}

void sp_fake_engine_destroy(sp_engine *e) {
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->ending = true;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    sp_thread_join(&e->thread);
    for (int i = 0; i < e->n_requests; i++) fake_free(e->requests[i]);
    for (size_t i = 0; i < e->n_events; i++)
        sp_event_release(&e->events[(e->first_event + i) % e->cap_events]);
    sp_free(e->events);
    sp_free(e->last_import.handle);
    sp_wake_close(&e->wake);
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->lock);
    sp_free(e);
}

void sp_fake_engine_pause(sp_engine *e, bool paused) {
    pthread_mutex_lock(&e->lock);
    e->config.paused = paused;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

void sp_fake_engine_allow(sp_engine *e, int steps) {
    pthread_mutex_lock(&e->lock);
    e->allowed += steps;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

void sp_fake_engine_set_state(sp_engine *e, sp_engine_state state) {
    pthread_mutex_lock(&e->lock);
    e->state = state;
    pthread_mutex_unlock(&e->lock);
}

static bool fake_wait(sp_engine *e, const int *what, int n, bool exactly) {
    int64_t end = sp_now_ns() + FAKE_WAIT_NS;
    struct timespec ts = {.tv_sec = end / SP_NS_PER_S, .tv_nsec = end % SP_NS_PER_S};
    int rc = 0;
    pthread_mutex_lock(&e->lock);
    while ((exactly ? *what != n : *what < n) && rc == 0)
        rc = pthread_cond_timedwait(&e->changed, &e->lock, &ts);
    pthread_mutex_unlock(&e->lock);
    return rc == 0;
}

bool sp_fake_engine_wait_inside(sp_engine *e, int n) {
    return fake_wait(e, &e->n_requests, n, true);
}
bool sp_fake_engine_wait_submitted(sp_engine *e, int n) {
    return fake_wait(e, &e->n_submitted, n, false);
}
bool sp_fake_engine_wait_aborted(sp_engine *e, int n) {
    return fake_wait(e, &e->n_aborted, n, false);
}
int sp_fake_engine_count_stopped(sp_engine *e) {
    pthread_mutex_lock(&e->lock);
    int n = e->n_stopped;
    pthread_mutex_unlock(&e->lock);
    return n;
}

/* engine.h */

const char *sp_kv_cause_name(sp_kv_cause cause) {
    static const char *const names[SP_KV_CAUSE_COUNT] = {[SP_KV_STALE] = "stale"};
    return names[cause] ? names[cause] : "other";
}

void sp_event_release(sp_event *ev) {
    for (int i = 0; i < SP_EVENT_TOKENS_MAX; i++) sp_free(ev->logprobs[i]);
    for (int i = 0; ev->prompt_logprobs && i < ev->n_prompt_logprobs; i++)
        sp_free(ev->prompt_logprobs[i]);
    sp_free(ev->prompt_logprobs);
    sp_free(ev->logits);
    sp_free(ev->kv);
    ev->kv = NULL;
    memset(ev->logprobs, 0, sizeof ev->logprobs);
    ev->prompt_logprobs = NULL;
    ev->logits = NULL;
}

static void fake_keep_last(sp_engine *e, const fake_request *r, const sp_gen_params *p) {
    e->last = *r;
    for (int32_t i = 0; i < r->n_prompt && i < (int32_t)SP_LEN(e->last_prompt); i++)
        e->last_prompt[i] = r->prompt[i];
    for (int32_t i = 0; i < p->n_logit_bias && i < (int32_t)SP_LEN(e->last_bias); i++)
        e->last_bias[i] = p->logit_bias[i];
    for (int32_t i = 0; i < p->n_bad_words_ints && i < (int32_t)SP_LEN(e->last_bad); i++)
        e->last_bad[i] = p->bad_words[i];
}

static void fake_keep_import(fake_import *to, const sp_kv_import *from) {
    sp_free(to->handle);
    *to = (fake_import){.there = from != NULL};
    if (!from) return;
    size_t n =
        sizeof *from->handle + (size_t)from->handle->n_blocks * sizeof from->handle->blocks[0];
    to->must = from->must;
    memcpy(to->engine, from->engine, sizeof to->engine);
    snprintf(to->source, sizeof to->source, "%.*s", (int)from->source.len, from->source.ptr);
    to->handle = sp_alloc(n);
    memcpy(to->handle, from->handle, n);
}

sp_status sp_engine_submit(sp_engine *e, const sp_engine_request *req, uint64_t *id, sp_err *err) {
    sp_status st = SP_OK;
    pthread_mutex_lock(&e->lock);
    if (e->state != SP_ENGINE_READY)
        st = SP_FAIL(err, SP_E_UNAVAILABLE, "the engine is not ready");
    else if (e->n_requests >= e->config.queue_max)
        st = SP_FAIL(err, SP_E_LIMIT, "the queue is full: %d requests wait", e->n_requests);
    else if (req->n_prompt < 1)
        st = SP_FAIL(err, SP_E_INVALID, "the prompt is empty");
    if (st != SP_OK) {
        pthread_mutex_unlock(&e->lock);
        return st;
    }
    fake_request *r = sp_alloc(sizeof *r);
    r->id = ++e->next_id;
    r->user = req->user;
    r->n_prompt = req->n_prompt;
    r->prompt = sp_alloc((size_t)req->n_prompt * sizeof *r->prompt);
    memcpy(r->prompt, req->prompt, (size_t)req->n_prompt * sizeof *r->prompt);
    r->params = *req->params;
    for (int32_t i = 0; i < req->params->n_stop_ids; i++) r->stop_ids[i] = req->params->stop_ids[i];
    r->choices = sp_alloc((size_t)r->params.n * sizeof *r->choices);
    r->deadline_ns = req->deadline_ns;
    r->priority = req->priority;
    snprintf(r->cache_salt, sizeof r->cache_salt, "%s", req->cache_salt ? req->cache_salt : "");
    r->keep_kv = req->keep_kv;
    fake_keep_import(&e->last_import, req->kv_from);
    e->requests[e->n_requests++] = r;
    e->n_submitted++;
    fake_keep_last(e, r, req->params);
    *id = r->id;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    return SP_OK;
}

static bool fake_is_over(const fake_request *r) {
    for (int i = 0; i < r->params.n; i++)
        if (!r->choices[i].ended) return false;
    return true;
}

static void fake_remove(sp_engine *e, int i) {
    fake_free(e->requests[i]);
    e->requests[i] = e->requests[--e->n_requests];
}

void sp_engine_cancel(sp_engine *e, uint64_t id, int32_t choice, sp_finish as) {
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < e->n_requests; i++) {
        fake_request *r = e->requests[i];
        if (r->id != id) continue;
        for (int k = 0; k < r->params.n; k++) {
            if ((choice >= 0 && choice != k) || r->choices[k].ended) continue;
            r->choices[k].ended = true;
            *(as == SP_FINISH_STOP ? &e->n_stopped : &e->n_aborted) += 1;
            sp_counter_add(&e->metrics.finished[as], 1);
        }
        if (fake_is_over(r)) fake_remove(e, i);
        break;
    }
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

int sp_engine_event_fd(const sp_engine *e) {
    return e->wake.fd;
}

int sp_engine_events(sp_engine *e, sp_event *out, int max) {
    pthread_mutex_lock(&e->lock);
    int n = e->n_events < (size_t)max ? (int)e->n_events : max;
    for (int i = 0; i < n; i++) {
        out[i] = e->events[e->first_event];
        e->first_event = (e->first_event + 1) % e->cap_events;
    }
    e->n_events -= (size_t)n;
    if (n == 0) sp_wake_drain(&e->wake);
    pthread_mutex_unlock(&e->lock);
    return n;
}

sp_engine_state sp_engine_get_state(const sp_engine *e) {
    sp_engine *mine = (sp_engine *)e;
    pthread_mutex_lock(&mine->lock);
    sp_engine_state s = e->state;
    pthread_mutex_unlock(&mine->lock);
    return s;
}

void sp_engine_drain(sp_engine *e) {
    sp_fake_engine_set_state(e, SP_ENGINE_DRAINING);
}

sp_engine_info sp_engine_get_info(const sp_engine *e) {
    return (sp_engine_info){.max_model_len = e->config.max_model_len,
                            .n_vocab = e->config.n_vocab,
                            .block_tokens = 16,
                            .n_blocks = 128,
                            .max_num_seqs = 64,
                            .max_batched_tokens = 512,
                            .kv_dtype = "auto"};
}

const char *sp_pool_role_name(sp_pool_role role) {
    static const char *const names[] = {"mixed", "prefill", "decode"};
    return names[role];
}

int sp_engine_group_count(const sp_engine *e) {
    return e->config.groups ? e->config.n_groups : 1;
}

bool sp_engine_group_info(const sp_engine *e, int at, sp_engine_group_status *out) {
    static const sp_engine_group_status all = {.pool = "all", .n_links = 1, .n_stages = 1};
    if (at < 0 || at >= sp_engine_group_count(e)) return false;
    *out = e->config.groups ? e->config.groups[at] : all;
    return true;
}

const sp_engine_metrics *sp_engine_get_metrics(const sp_engine *e) {
    return &e->metrics;
}

/* The thread. */

static sp_token_logprobs *fake_logprobs(int32_t id, int n_top) {
    sp_token_logprobs *lp = sp_alloc(sizeof *lp + (size_t)n_top * sizeof lp->top[0]);
    lp->id = id;
    lp->logprob = -0.25f;
    lp->rank = 1;
    lp->n_top = n_top;
    for (int i = 0; i < n_top; i++) {
        lp->top[i].id = (id + i) % 256;
        lp->top[i].logprob = -0.25f - (float)i;
    }
    return lp;
}

static void fake_tell_prompt(fake_request *r, sp_event *ev) {
    if (r->prompt_told || r->params.n_prompt_logprobs < 0) return;
    r->prompt_told = true;
    ev->n_prompt_logprobs = r->n_prompt;
    ev->prompt_logprobs = sp_alloc((size_t)r->n_prompt * sizeof *ev->prompt_logprobs);
    for (int i = 1; i < r->n_prompt; i++)
        ev->prompt_logprobs[i] = fake_logprobs(r->prompt[i], r->params.n_prompt_logprobs);
}

static int32_t fake_next_token(const sp_engine *e, const fake_request *r, const fake_choice *c) {
    int len = (int)strlen(e->config.script);
    bool goes_on = r->params.ignore_eos || c->n_out < r->params.min_tokens;
    if (c->n_out >= len && !goes_on) return FAKE_EOS;
    return (unsigned char)e->config.script[c->n_out % len];
}

/* Blocks 0, 1, …, whose generations and names say which they are. */
static sp_kv_handle *fake_handle(const sp_engine *e, const fake_request *r) {
    int n = e->config.kv_blocks;
    if (!r->keep_kv || n == 0 || !fake_is_over(r)) return NULL;
    sp_kv_handle *h = sp_alloc(sizeof *h + (size_t)n * sizeof h->blocks[0]);
    h->lease = 0xfedcba9876543210u;
    h->group = 1;
    h->n_blocks = n;
    h->n_tokens = 16 * n;
    h->expires_unix_ms = (int64_t)sp_unix_s() * 1000 + 30000;
    for (int i = 0; i < n; i++)
        h->blocks[i] =
            (sp_kv_lent){(uint32_t)i, (uint32_t)(1000 + i), 0x8000000000000001u + (uint64_t)i};
    return h;
}

static sp_event fake_step(sp_engine *e, fake_request *r, int k) {
    fake_choice *c = &r->choices[k];
    sp_event ev = {.user = r->user, .id = r->id, .choice = k, .stop_id = -1};
    if (c->n_out == 0) ev.n_cached = e->config.n_cached;
    bool fails =
        e->config.fail_at_once || (e->config.fail_after && c->n_out >= e->config.fail_after);
    if (fails) {
        ev.finish = SP_FINISH_ERROR;
        ev.error = SP_E_PEER_LOST;
        snprintf(ev.error_text, sizeof ev.error_text, "rank 1 was lost");
        c->ended = true;
        return ev;
    }
    if (k == 0) fake_tell_prompt(r, &ev);
    if (r->params.max_tokens == 0) {
        ev.finish = SP_FINISH_LENGTH;
        c->ended = true;
        ev.kv = fake_handle(e, r);
        return ev;
    }
    int32_t id = fake_next_token(e, r, c);
    ev.tokens[0] = id;
    ev.n_tokens = 1;
    if (r->params.n_logprobs >= 0) ev.logprobs[0] = fake_logprobs(id, r->params.n_logprobs);
    c->n_out++;
    if (id == FAKE_EOS && !r->params.ignore_eos)
        ev.finish = SP_FINISH_STOP;
    else if (c->n_out >= r->params.max_tokens)
        ev.finish = SP_FINISH_LENGTH;
    for (int i = 0; i < r->params.n_stop_ids && c->n_out > r->params.min_tokens; i++)
        if (r->stop_ids[i] == id) {
            ev.finish = SP_FINISH_STOP;
            ev.stop_id = id;
        }
    c->ended = ev.finish != SP_FINISH_NONE;
    ev.kv = fake_handle(e, r);
    if (c->ended) sp_counter_add(&e->metrics.finished[ev.finish], 1);
    sp_counter_add(&e->metrics.generation_tokens, 1);
    return ev;
}

static void fake_push(sp_engine *e, const sp_event *ev) {
    if (e->n_events == e->cap_events) {
        size_t cap = e->cap_events ? e->cap_events * 2 : 64;
        sp_event *grown = sp_alloc(cap * sizeof *grown);
        for (size_t i = 0; i < e->n_events; i++)
            grown[i] = e->events[(e->first_event + i) % e->cap_events];
        sp_free(e->events);
        e->events = grown;
        e->first_event = 0;
        e->cap_events = cap;
    }
    e->events[(e->first_event + e->n_events++) % e->cap_events] = *ev;
}

static void fake_turn(sp_engine *e) {
    for (int i = 0; i < e->n_requests;) {
        fake_request *r = e->requests[i];
        for (int k = 0; k < r->params.n; k++) {
            if (r->choices[k].ended) continue;
            sp_event ev = fake_step(e, r, k);
            fake_push(e, &ev);
        }
        if (fake_is_over(r))
            fake_remove(e, i);
        else
            i++;
    }
    sp_counter_add(&e->metrics.steps, 1);
    sp_wake_signal(&e->wake);
    pthread_cond_broadcast(&e->changed);
}

static void *fake_main(void *arg) {
    sp_engine *e = arg;
    pthread_mutex_lock(&e->lock);
    while (!e->ending) {
        bool may = e->n_requests > 0 && e->n_events < FAKE_EVENTS_MAX &&
                   (!e->config.paused || e->allowed > 0);
        if (!may) {
            /* Events taken wake nobody here, so a full list is looked at again. */
            struct timespec ts;
            clock_gettime(CLOCK_MONOTONIC, &ts);
            ts.tv_nsec += 5000000;
            if (ts.tv_nsec >= 1000000000) ts.tv_sec++, ts.tv_nsec -= 1000000000;
            pthread_cond_timedwait(&e->changed, &e->lock, &ts);
            continue;
        }
        if (e->config.paused) e->allowed--;
        fake_turn(e);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}
