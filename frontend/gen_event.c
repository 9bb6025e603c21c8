/* frontend/gen_event.c - engine events of one request to text, chunks and answers. */
#include "frontend/export.h"
#include "frontend/generate.h"

#include "runtime/base/clock.h"

#include <stdio.h>

void sp_gen_put_chunk_head(sp_gen *g, const sp_gen_choice *c, sp_buf *out) {
    char index[16];
    int n = snprintf(index, sizeof index, "%d", c->index);
    sp_buf_put_slice(out, sp_buf_slice(&g->chunk_head));
    sp_buf_put(out, index, (size_t)n);
}

static sp_usage usage_of(const sp_gen *g, const sp_gen_choice *only) {
    sp_usage u = {0};
    for (int i = 0; i < g->n_prompts; i++) {
        if (only && only->prompt != &g->prompts[i]) continue;
        u.prompt += g->prompts[i].n_ids;
        u.cached += g->prompts[i].n_cached;
    }
    for (int i = 0; i < g->n_choices; i++)
        if (!only || only == &g->choices[i]) u.completion += g->choices[i].n_tokens;
    return u;
}

void sp_gen_put_chunk_tail_open(sp_gen *g, const sp_gen_choice *c, sp_buf *out) {
    if (g->opt.include_usage) {
        sp_buf_puts(out, ",\"usage\":");
        sp_jw w = sp_jw_on(out);
        if (g->opt.continuous_usage)
            sp_put_usage(&w, usage_of(g, c));
        else
            sp_jw_null(&w);
    }
    sp_buf_put(out, "}\n\n", 3);
}

void sp_gen_put_chunk_tail(sp_gen *g, const sp_gen_choice *c, sp_buf *out) {
    sp_buf_putc(out, ']');
    sp_gen_put_chunk_tail_open(g, c, out);
}

/* What another pod needs to take the prompt's blocks over. */
static void put_kv(const sp_gen *g, sp_jw *w) {
    sp_kv_offer offer = {.handle = g->kv,
                         .request_id = g->id,
                         .port = sp_http_port(g->front->http),
                         .now_unix_ms = sp_kv_transfer_now_ms()};
    sp_jw_key(w, "kv_transfer_params");
    sp_kv_transfer_put(w, &offer, g->front->config.kv);
}

void sp_gen_put_last_tail(sp_gen *g, const sp_gen_choice *c, sp_buf *out) {
    sp_buf_putc(out, ']');
    /* The engine lends them with its very last event: only then it is known what. */
    if (g->opt.kv.lend && g->n_live == 0 && !g->kv_told) {
        sp_jw w = {.out = out, .comma = true};
        put_kv(g, &w);
        g->kv_told = true;
    }
    sp_gen_put_chunk_tail_open(g, c, out);
}

sp_token_style sp_gen_token_style(const sp_gen *g) {
    return (sp_token_style){g->env.tokenizer, g->opt.return_tokens_as_ids};
}

void sp_gen_put_finish(const sp_gen *g, const sp_gen_choice *c, sp_jw *w) {
    const char *name = sp_finish_name(c->finish);
    sp_jw_key(w, "finish_reason");
    if (name)
        sp_jw_str(w, name);
    else
        sp_jw_null(w);
    sp_jw_key(w, "stop_reason");
    if (c->finish == SP_FINISH_STOP && c->stop_index >= 0)
        sp_jw_string(w, g->opt.stops[c->stop_index]);
    else if (c->finish == SP_FINISH_STOP && c->stop_id >= 0)
        sp_jw_int(w, c->stop_id);
    else
        sp_jw_null(w);
}

void sp_gen_put_ids(sp_jw *w, const int32_t *ids, size_t n) {
    sp_jw_array(w);
    for (size_t i = 0; i < n; i++) sp_jw_int(w, ids[i]);
    sp_jw_array_end(w);
}

/* The prompt's own log probabilities are part of an echo, and come with choice 0 only. */
static bool waits_for_prompt(const sp_gen *g, const sp_gen_choice *c) {
    bool wanted = g->opt.echo && !g->api->chat && g->opt.params.n_prompt_logprobs >= 0;
    return wanted && !c->prompt->logprobs;
}

void sp_gen_begin_stream(sp_gen *g) {
    sp_http_stream_begin(g->call, "text/event-stream; charset=utf-8",
                         "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n");
    g->started = true;
}

static void forget_sent(sp_gen_choice *c) {
    sp_buf_clear(&c->text);
    for (size_t i = 0; i < SP_LEN(c->logprobs); i++) sp_buf_clear(&c->logprobs[i]);
    c->ids.len = 0;
    c->n_unsent = 0;
}

static void open_choices(sp_gen *g, sp_buf *out) {
    for (int i = 0; i < g->n_choices; i++) {
        sp_gen_choice *c = &g->choices[i];
        if (c->opened || waits_for_prompt(g, c)) continue;
        c->opened = true;
        g->api->put_first(g, c, out);
    }
}

/* Writes what a choice has for its client. Text that is held back waits, and its tokens' ids and
 * log probabilities wait with it. */
static void write_choice(sp_gen *g, sp_gen_choice *c, sp_buf *out) {
    bool last = c->finish != SP_FINISH_NONE;
    bool due = c->text.len > 0 && (c->n_unsent >= g->opt.stream_interval || c->n_tokens == 1);
    if (!c->opened || !(last || due)) return;
    if (c->text.len || c->logprobs[0].len || c->ids.len) g->api->put_delta(g, c, out);
    forget_sent(c);
    if (last) g->api->put_last(g, c, out);
}

static void put_usage_chunk(sp_gen *g, sp_buf *out) {
    /* The head ends in `[{"index":`, which an empty list of choices does not have. */
    static const char choice_begin[] = "{\"index\":";
    sp_buf_put(out, g->chunk_head.ptr, g->chunk_head.len - (sizeof choice_begin - 1));
    sp_buf_puts(out, "],\"usage\":");
    sp_jw w = sp_jw_on(out);
    sp_put_usage(&w, usage_of(g, NULL));
    sp_buf_puts(out, "}\n\n");
}

static void reply_whole(sp_gen *g) {
    sp_buf b;
    sp_buf_init(&b, (size_t)256 << 20);
    sp_jw w = sp_jw_on(&b);
    sp_jw_object(&w);
    sp_jw_key(&w, "id"), sp_jw_str(&w, g->id);
    sp_jw_key(&w, "object"), sp_jw_str(&w, g->api->object);
    sp_jw_key(&w, "created"), sp_jw_int(&w, g->created_s);
    sp_jw_key(&w, "model"), sp_jw_str(&w, g->opt.model);
    g->api->put_answer(g, &w);
    sp_jw_key(&w, "usage"), sp_put_usage(&w, usage_of(g, NULL));
    sp_jw_key(&w, "system_fingerprint"), sp_jw_null(&w);
    sp_jw_key(&w, "service_tier"), sp_jw_null(&w);
    if (g->opt.kv.lend) put_kv(g, &w);
    sp_jw_object_end(&w);
    sp_http_call *call = g->call;
    g->call = NULL;
    char load[200];
    sp_slice format = sp_http_header_get(sp_http_call_head(call), "endpoint-load-metrics-format");
    sp_export_load_header(g->front, format, load, sizeof load);
    sp_reply_json(call, load, &b);
    sp_buf_fini(&b);
}

static void complete(sp_gen *g) {
    if (g->opt.stream) {
        sp_buf *out = sp_http_stream_buf(g->call);
        if (g->opt.include_usage) put_usage_chunk(g, out);
        sp_buf_puts(out, "data: [DONE]\n\n");
        sp_http_call *call = g->call;
        g->call = NULL;
        sp_http_stream_end(call);
    } else {
        reply_whole(g);
    }
    sp_gen_end(g);
}

/* Turns one token into text and lists. True: a stop string is complete. */
static bool take_token(sp_gen *g, sp_gen_choice *c, const sp_event *ev, int i) {
    int32_t id = ev->tokens[i];
    c->n_tokens++;
    c->n_unsent++;
    if (g->opt.return_token_ids && sp_ids_push(&c->ids, id) != SP_OK) c->text.failed = true;
    if (ev->logprobs[i] && g->opt.params.n_logprobs >= 0)
        g->api->put_logprob(g, c, ev->logprobs[i]);
    /* The token that stopped it is no part of the text, unless asked for. */
    bool hidden = ev->finish == SP_FINISH_STOP && i == ev->n_tokens - 1 && !g->opt.include_stop;
    if (hidden) return false;
    c->stop_index = sp_detok_push(c->detok, id, c->n_tokens < g->opt.params.min_tokens, &c->text);
    return c->stop_index >= 0;
}

static void take_tokens(sp_gen *g, sp_gen_prompt *p, sp_gen_choice *c, const sp_event *ev) {
    for (int i = 0; i < ev->n_tokens; i++) {
        if (!take_token(g, c, ev, i)) continue;
        c->finish = SP_FINISH_STOP;
        if (ev->finish == SP_FINISH_NONE)
            sp_engine_cancel(g->front->engine, p->engine_id, ev->choice, SP_FINISH_STOP);
        return;
    }
    if (ev->finish == SP_FINISH_NONE) return;
    sp_detok_flush(c->detok, &c->text);
    c->finish = ev->finish;
    c->stop_id = ev->stop_id;
}

static void write_out(sp_gen *g, sp_gen_prompt *p, sp_gen_choice *c, bool prompt_came) {
    if (!g->started) sp_gen_begin_stream(g);
    sp_buf *out = sp_http_stream_buf(g->call);
    open_choices(g, out);
    write_choice(g, c, out);
    /* What another choice of the prompt had to hold until now. */
    for (int i = 0; prompt_came && i < g->n_choices; i++)
        if (g->choices[i].prompt == p && &g->choices[i] != c && g->choices[i].n_tokens > 0)
            write_choice(g, &g->choices[i], out);
    g->written_ns = sp_now_ns();
}

static void fail_by_event(sp_gen *g, const sp_event *ev) {
    char words[200];
    int http = ev->finish == SP_FINISH_ABORT ? 503 : sp_status_http(ev->error);
    if (http < 500) http = 500;
    if (ev->finish == SP_FINISH_ABORT)
        snprintf(words, sizeof words, "the request was ended by the server");
    else
        snprintf(words, sizeof words, "generation failed: %.*s", (int)sizeof ev->error_text - 1,
                 ev->error_text);
    sp_gen_fail(g, &(sp_fault){http, words, NULL, NULL, http == 503 ? 1 : 0});
}

/* Memory was short for something of the answer, which would then be cut in the middle. */
static bool has_failed(const sp_gen *g, const sp_gen_choice *c) {
    bool failed = c->text.failed || g->chunk_head.failed;
    for (size_t i = 0; i < SP_LEN(c->logprobs); i++) failed |= c->logprobs[i].failed;
    return failed;
}

/* Before anything else: the event may be of a choice that a stop string ended here already. */
static void take_kv(sp_gen *g, sp_event *ev) {
    if (!ev->kv || !g->opt.kv.lend || g->kv) return;
    g->kv = ev->kv;
    ev->kv = NULL;
}

void sp_gen_take_event(sp_gen *g, sp_gen_prompt *p, sp_event *ev) {
    if (ev->choice < 0 || ev->choice >= g->opt.params.n) return;
    take_kv(g, ev);
    sp_gen_choice *c = &g->choices[(p - g->prompts) * g->opt.params.n + ev->choice];
    if (c->finish != SP_FINISH_NONE) return;
    if (ev->finish == SP_FINISH_ERROR || ev->finish == SP_FINISH_ABORT) {
        fail_by_event(g, ev);
        return;
    }
    if (c->n_tokens == 0 && ev->n_cached > p->n_cached) p->n_cached = ev->n_cached;
    bool prompt_came = ev->prompt_logprobs && !p->logprobs;
    if (prompt_came) {
        p->logprobs = ev->prompt_logprobs;
        p->n_logprobs = ev->n_prompt_logprobs;
        ev->prompt_logprobs = NULL;
        ev->n_prompt_logprobs = 0;
    }
    take_tokens(g, p, c, ev);
    if (c->finish != SP_FINISH_NONE) g->n_live--;
    if (has_failed(g, c)) {
        sp_gen_fail(g, &(sp_fault){500, "out of memory for the answer", NULL, NULL, 0});
        return;
    }
    if (g->opt.stream) write_out(g, p, c, prompt_came);
    if (g->n_live == 0) complete(g);
}
