#include "frontend/api_chat.h"

#include "frontend/messages.h"

static void check(sp_gen *g, sp_fields *f, const sp_json_node *root) {
    sp_conversation *c = sp_arena_alloc(&g->arena, sizeof *c);
    sp_messages_check(f, root, &g->env, c);
    sp_messages_check_tool_choice(f, root);
    g->own = c;
}

/* With echo the answer begins with the message that it goes on from. */
static void take_echo(sp_gen *g, const sp_conversation *c) {
    if (!g->opt.echo ||
        !sp_slice_is(sp_json_string(sp_json_find(c->last_message, "role")), "assistant"))
        return;
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_messages_text(c->last_message, &text);
    if (text.ptr)
        g->prompts[0].echo = (sp_slice){sp_arena_strndup(&g->arena, text.ptr, text.len), text.len};
    sp_buf_fini(&text);
}

static sp_status encode(sp_gen *g, const sp_json_node *root, sp_err *err) {
    (void)root;
    const sp_conversation *c = g->own;
    sp_ids ids = {0};
    sp_status st = sp_gen_set_prompts(g, 1, err);
    if (st == SP_OK) st = sp_messages_encode(c, &g->env, g->opt.add_special, &ids, err);
    if (st == SP_OK) st = sp_gen_set_ids(g, &g->prompts[0], &ids, err);
    if (st == SP_OK) take_echo(g, c);
    sp_ids_fini(&ids);
    return st;
}

static void put_logprob(sp_gen *g, sp_gen_choice *c, const sp_token_logprobs *lp) {
    sp_token_style style = sp_gen_token_style(g);
    sp_jw w = sp_jw_on(&c->logprobs[0]);
    w.comma = c->logprobs[0].len > 0;
    sp_put_chat_logprob(&w, &style, lp, g->opt.params.n_logprobs);
}

/* "logprobs" of the tokens that c holds. */
static void put_logprobs(const sp_gen *g, const sp_gen_choice *c, sp_buf *out) {
    if (g->opt.params.n_logprobs < 0) {
        sp_buf_puts(out, ",\"logprobs\":null");
        return;
    }
    sp_buf_puts(out, ",\"logprobs\":{\"content\":[");
    sp_buf_put_slice(out, sp_buf_slice(&c->logprobs[0]));
    sp_buf_puts(out, "],\"refusal\":null}");
}

static void put_text_chunk(sp_gen *g, sp_gen_choice *c, sp_slice text, bool is_answer,
                           sp_buf *out) {
    sp_gen_put_chunk_head(g, c, out);
    sp_buf_puts(out, ",\"delta\":{\"content\":");
    sp_jw w = sp_jw_on(out);
    sp_jw_string(&w, text);
    sp_buf_putc(out, '}');
    if (is_answer)
        put_logprobs(g, c, out);
    else
        sp_buf_puts(out, ",\"logprobs\":null");
    sp_buf_puts(out, ",\"finish_reason\":null");
    if (is_answer && g->opt.return_token_ids) {
        w.comma = true;
        sp_jw_key(&w, "token_ids"), sp_gen_put_ids(&w, c->ids.ptr, c->ids.len);
    }
    sp_buf_putc(out, '}');
    sp_gen_put_chunk_tail(g, c, out);
}

static void put_first(sp_gen *g, sp_gen_choice *c, sp_buf *out) {
    sp_gen_put_chunk_head(g, c, out);
    sp_buf_puts(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                     "\"finish_reason\":null");
    sp_buf_putc(out, '}');
    if (g->opt.return_token_ids) {
        /* A member of the chunk, not of its choice: the list of choices is closed before it. */
        sp_buf_puts(out, "],\"prompt_token_ids\":");
        sp_jw w = sp_jw_on(out);
        sp_gen_put_ids(&w, c->prompt->ids, (size_t)c->prompt->n_ids);
        sp_gen_put_chunk_tail_open(g, c, out);
    } else {
        sp_gen_put_chunk_tail(g, c, out);
    }
    if (c->prompt->echo.len) put_text_chunk(g, c, c->prompt->echo, false, out);
}

static void put_delta(sp_gen *g, sp_gen_choice *c, sp_buf *out) {
    put_text_chunk(g, c, sp_buf_slice(&c->text), true, out);
}

static void put_last(sp_gen *g, sp_gen_choice *c, sp_buf *out) {
    sp_gen_put_chunk_head(g, c, out);
    sp_buf_puts(out, ",\"delta\":{},\"logprobs\":null");
    sp_jw w = {.out = out, .comma = true};
    sp_gen_put_finish(g, c, &w);
    sp_buf_putc(out, '}');
    sp_gen_put_last_tail(g, c, out);
}

static void put_message(const sp_gen_choice *c, sp_jw *w) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_buf_put_slice(&text, c->prompt->echo);
    sp_buf_put_slice(&text, sp_buf_slice(&c->text));
    sp_jw_object(w);
    sp_jw_key(w, "role"), sp_jw_str(w, "assistant");
    sp_jw_key(w, "content"), sp_jw_string(w, sp_buf_slice(&text));
    sp_jw_key(w, "refusal"), sp_jw_null(w);
    sp_jw_key(w, "reasoning"), sp_jw_null(w);
    sp_jw_object_end(w);
    if (text.failed) w->out->failed = true;
    sp_buf_fini(&text);
}

static void put_choice(sp_gen *g, const sp_gen_choice *c, sp_jw *w) {
    sp_jw_object(w);
    sp_jw_key(w, "index"), sp_jw_int(w, c->index);
    sp_jw_key(w, "message"), put_message(c, w);
    put_logprobs(g, c, w->out);
    sp_gen_put_finish(g, c, w);
    if (g->opt.return_token_ids) {
        sp_jw_key(w, "token_ids");
        sp_gen_put_ids(w, c->ids.ptr, c->ids.len);
    }
    sp_jw_object_end(w);
}

static void put_answer(sp_gen *g, sp_jw *w) {
    const sp_gen_prompt *p = &g->prompts[0];
    sp_jw_key(w, "choices");
    sp_jw_array(w);
    for (int i = 0; i < g->n_choices; i++) put_choice(g, &g->choices[i], w);
    sp_jw_array_end(w);
    if (g->opt.params.n_prompt_logprobs >= 0) {
        sp_token_style style = sp_gen_token_style(g);
        sp_jw_key(w, "prompt_logprobs");
        sp_put_prompt_logprobs(w, &style, p->logprobs, p->n_logprobs,
                               g->opt.params.n_prompt_logprobs);
    }
    if (g->opt.return_token_ids) {
        sp_jw_key(w, "prompt_token_ids");
        sp_gen_put_ids(w, p->ids, (size_t)p->n_ids);
    }
}

void sp_api_chat(sp_front *front, sp_http_call *call) {
    static const sp_gen_api api = {.id_prefix = "chatcmpl-",
                                   .object = "chat.completion",
                                   .chunk_object = "chat.completion.chunk",
                                   .chat = true,
                                   .check = check,
                                   .encode = encode,
                                   .put_logprob = put_logprob,
                                   .put_first = put_first,
                                   .put_delta = put_delta,
                                   .put_last = put_last,
                                   .put_answer = put_answer};
    sp_gen_start(front, call, &api);
}
