#include "frontend/api_text.h"

enum {
    TOKENS,
    TOKEN_LOGPROBS,
    TOP_LOGPROBS,
    TEXT_OFFSETS,
    N_LISTS
};

typedef struct text_own {
    const sp_json_node *prompt; /* borrowed from the document */
    bool is_list;               /* of prompts */
    bool wants_prompt_logprobs; /* asked for by name, not only by echo */
} text_own;

/* Reading. */

static void check_ids(sp_gen *g, sp_fields *f, const sp_json_node *ids) {
    if (sp_json_count(ids) == 0) sp_fields_bad(f, NULL, "want at least one token id");
    for (const sp_json_node *v = sp_json_first(ids); v; v = sp_json_next(v)) {
        int64_t id;
        bool is_int = sp_json_as_int(v, &id);
        if (is_int && id >= 0 && id < g->env.n_vocab) continue;
        if (is_int)
            sp_fields_bad(f, NULL, "want token ids from 0 to %d, got %lld", g->env.n_vocab - 1,
                          (long long)id);
        else
            sp_fields_bad(f, NULL, "want token ids, got %s among them",
                          sp_json_type_name(sp_json_type_of(v)));
        return;
    }
}

static bool is_number(const sp_json_node *v) {
    sp_json_type t = sp_json_type_of(v);
    return t == SP_JSON_INT || t == SP_JSON_FLOAT;
}

/* One prompt of a list; all must be of the kind of the first. */
static void check_item(sp_gen *g, sp_fields *f, const sp_json_node *v, sp_json_type kind) {
    sp_json_type t = sp_json_type_of(v);
    if (t != kind || (t != SP_JSON_STRING && t != SP_JSON_ARRAY))
        sp_fields_bad(f, NULL, "want %s, got %s",
                      kind == SP_JSON_ARRAY    ? "an array of token ids"
                      : kind == SP_JSON_STRING ? "a string"
                                               : "a string or an array of token ids",
                      sp_json_type_name(t));
    else if (t == SP_JSON_ARRAY)
        check_ids(g, f, v);
}

static void check_prompt(sp_gen *g, sp_fields *f, text_own *own) {
    const sp_json_node *v = own->prompt;
    sp_json_type t = sp_json_type_of(v);
    size_t mark = sp_fields_enter(f, "prompt", -1);
    if (t == SP_JSON_NULL) {
        sp_fields_bad(f, NULL, "is missing");
    } else if (t != SP_JSON_STRING && t != SP_JSON_ARRAY) {
        sp_fields_bad(f, NULL,
                      "want a string, an array of strings or of token ids, or an array of "
                      "such arrays, got %s",
                      sp_json_type_name(t));
    } else if ((t == SP_JSON_STRING && sp_json_string(v).len == 0) ||
               (t == SP_JSON_ARRAY && !sp_json_first(v))) {
        sp_fields_bad(f, NULL, "must not be empty");
    } else if (t == SP_JSON_ARRAY && is_number(sp_json_first(v))) {
        check_ids(g, f, v);
    } else if (t == SP_JSON_ARRAY) {
        own->is_list = true;
        if (sp_json_count(v) > SP_PROMPTS_MAX)
            sp_fields_bad(f, NULL, "want at most %d prompts, got %d", SP_PROMPTS_MAX,
                          sp_json_count(v));
    }
    sp_fields_leave(f, mark);
    int i = 0;
    sp_json_type kind = sp_json_type_of(sp_json_first(v));
    for (v = own->is_list ? sp_json_first(v) : NULL; v && i < SP_PROMPTS_MAX; v = sp_json_next(v)) {
        mark = sp_fields_enter(f, "prompt", i++);
        check_item(g, f, v, kind);
        sp_fields_leave(f, mark);
    }
}

static void check(sp_gen *g, sp_fields *f, const sp_json_node *root) {
    text_own *own = sp_arena_alloc(&g->arena, sizeof *own);
    g->own = own;
    own->prompt = sp_json_find(root, "prompt");
    check_prompt(g, f, own);
    /* An answer has one set of blocks to lend, and a request brings one. */
    if (own->is_list && sp_json_count(own->prompt) > 1 && (g->opt.kv.lend || g->opt.kv.borrow))
        sp_fields_bad(f, "prompt", "with kv_transfer_params want one prompt, got %d",
                      sp_json_count(own->prompt));
    const sp_json_node *suffix = sp_json_find(root, "suffix");
    if (sp_json_type_of(suffix) == SP_JSON_STRING && sp_json_string(suffix).len > 0)
        sp_fields_bad(f, "suffix", "is not supported by this model");
    else if (!sp_json_is_null(suffix) && sp_json_type_of(suffix) != SP_JSON_STRING)
        sp_fields_bad(f, "suffix", "want a string, got %s",
                      sp_json_type_name(sp_json_type_of(suffix)));

    sp_gen_params *p = &g->opt.params;
    own->wants_prompt_logprobs = p->n_prompt_logprobs >= 0;
    if (g->opt.echo && p->n_logprobs > p->n_prompt_logprobs) p->n_prompt_logprobs = p->n_logprobs;
}

static sp_status encode_one(sp_gen *g, sp_gen_prompt *p, const sp_json_node *v, sp_err *err) {
    sp_ids ids = {0};
    sp_status st = SP_OK;
    if (sp_json_type_of(v) == SP_JSON_STRING) {
        const sp_slice no_marker = {"", 0};
        int flags = SP_ENCODE_SPECIAL | (g->opt.add_special ? SP_ENCODE_BOS : 0);
        st = sp_tokenizer_encode(g->env.tokenizer, sp_json_string(v), flags, no_marker, &ids, err);
    } else {
        for (v = sp_json_first(v); v && st == SP_OK; v = sp_json_next(v)) {
            int64_t id = 0;
            (void)sp_json_as_int(v, &id);
            st = sp_ids_push(&ids, (int32_t)id);
        }
        if (st != SP_OK) (void)SP_FAIL(err, st, "no memory for the prompt");
    }
    if (st == SP_OK) st = sp_gen_set_ids(g, p, &ids, err);
    sp_ids_fini(&ids);
    return st;
}

/* The prompt as text, to be given back: of ids what they decode to. */
static void take_echo(sp_gen *g, sp_gen_prompt *p, const sp_json_node *v) {
    sp_buf text;
    sp_buf_init(&text, 0);
    if (sp_json_type_of(v) == SP_JSON_STRING)
        sp_buf_put_slice(&text, sp_json_string(v));
    else
        sp_tokenizer_decode(g->env.tokenizer, p->ids, (size_t)p->n_ids, g->opt.skip_special, &text);
    if (text.len) p->echo = (sp_slice){sp_arena_strndup(&g->arena, text.ptr, text.len), text.len};
    sp_buf_fini(&text);
}

static sp_status encode(sp_gen *g, const sp_json_node *root, sp_err *err) {
    (void)root;
    const text_own *own = g->own;
    SP_TRY(sp_gen_set_prompts(g, own->is_list ? sp_json_count(own->prompt) : 1, err));
    const sp_json_node *v = own->is_list ? sp_json_first(own->prompt) : own->prompt;
    for (int i = 0; i < g->n_prompts; i++, v = sp_json_next(v)) {
        SP_TRY(encode_one(g, &g->prompts[i], v, err));
        if (g->opt.echo) take_echo(g, &g->prompts[i], v);
    }
    return SP_OK;
}

/* Writing. */

/* Characters as they are written: a byte that is not UTF-8 becomes one U+FFFD. */
static int64_t count_chars(const sp_buf *text) {
    int64_t n = 0;
    for (size_t i = 0; i < text->len; n++) {
        uint32_t cp;
        int len = sp_utf8_decode(text->ptr + i, text->len - i, &cp);
        i += len ? (size_t)len : 1;
    }
    return n;
}

/* One token into the four lists. `lp` NULL: of the first token of an echo there is none. */
static void put_entry(const sp_gen *g, sp_buf *lists, int32_t id, const sp_token_logprobs *lp,
                      int64_t *chars) {
    sp_token_style style = sp_gen_token_style(g);
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_token_text(&style, id, &text);
    sp_jw w[N_LISTS];
    for (int i = 0; i < N_LISTS; i++) w[i] = (sp_jw){.out = &lists[i], .comma = lists[i].len > 0};
    sp_jw_string(&w[TOKENS], sp_buf_slice(&text));
    sp_jw_int(&w[TEXT_OFFSETS], *chars);
    if (lp) {
        sp_put_logprob(&w[TOKEN_LOGPROBS], lp->logprob);
        sp_put_text_top_logprobs(&w[TOP_LOGPROBS], &style, lp, g->opt.params.n_logprobs);
    } else {
        sp_jw_null(&w[TOKEN_LOGPROBS]);
        sp_jw_null(&w[TOP_LOGPROBS]);
    }
    *chars += count_chars(&text);
    sp_buf_fini(&text);
}

/* Characters before the answer: those of an echo, token by token. */
static int64_t echo_chars(const sp_gen *g, const sp_gen_prompt *p) {
    sp_token_style style = sp_gen_token_style(g);
    sp_buf text;
    sp_buf_init(&text, 0);
    int64_t n = 0;
    for (int32_t i = 0; g->opt.echo && i < p->n_ids; i++) {
        sp_token_text(&style, p->ids[i], &text);
        n += count_chars(&text);
    }
    sp_buf_fini(&text);
    return n;
}

static void put_logprob(sp_gen *g, sp_gen_choice *c, const sp_token_logprobs *lp) {
    if (c->n_tokens == 1) c->text_chars = echo_chars(g, c->prompt);
    put_entry(g, c->logprobs, lp->id, lp, &c->text_chars);
}

static void put_echo_entries(const sp_gen *g, const sp_gen_prompt *p, sp_buf *lists) {
    int64_t chars = 0;
    for (int32_t i = 0; i < p->n_ids && i < p->n_logprobs; i++)
        put_entry(g, lists, p->ids[i], p->logprobs[i], &chars);
}

/* {"tokens":[…],…} of an echo's lists (may be NULL) followed by the answer's. */
static void put_lists(sp_jw *w, const sp_buf *before, const sp_buf *after) {
    static const char *const names[N_LISTS] = {"tokens", "token_logprobs", "top_logprobs",
                                               "text_offset"};
    sp_jw_object(w);
    for (int i = 0; i < N_LISTS; i++) {
        bool both = before && before[i].len && after && after[i].len;
        sp_jw_key(w, names[i]);
        sp_jw_array(w);
        if (before) sp_buf_put_slice(w->out, sp_buf_slice(&before[i]));
        if (both) sp_buf_putc(w->out, ',');
        if (after) sp_buf_put_slice(w->out, sp_buf_slice(&after[i]));
        sp_jw_array_end(w);
    }
    sp_jw_object_end(w);
}

/* Member "logprobs". `with_echo`: the prompt's entries come first; `with_answer`: c's entries. */
static void put_logprobs(const sp_gen *g, const sp_gen_choice *c, bool with_echo, bool with_answer,
                         sp_jw *w) {
    sp_jw_key(w, "logprobs");
    if (g->opt.params.n_logprobs < 0 || (!with_echo && !with_answer)) {
        sp_jw_null(w);
        return;
    }
    sp_buf echo[N_LISTS];
    for (int i = 0; i < N_LISTS; i++) sp_buf_init(&echo[i], 0);
    if (with_echo) put_echo_entries(g, c->prompt, echo);
    put_lists(w, with_echo ? echo : NULL, with_answer ? c->logprobs : NULL);
    for (int i = 0; i < N_LISTS; i++) sp_buf_fini(&echo[i]);
}

static void put_first(sp_gen *g, sp_gen_choice *c, sp_buf *out) {
    if (!g->opt.echo && !g->opt.return_token_ids) return;
    sp_gen_put_chunk_head(g, c, out);
    sp_jw w = {.out = out, .comma = true};
    sp_jw_key(&w, "text"), sp_jw_string(&w, c->prompt->echo);
    put_logprobs(g, c, g->opt.echo, false, &w);
    sp_jw_key(&w, "finish_reason"), sp_jw_null(&w);
    if (g->opt.return_token_ids) {
        sp_jw_key(&w, "prompt_token_ids");
        sp_gen_put_ids(&w, c->prompt->ids, (size_t)c->prompt->n_ids);
    }
    sp_buf_putc(out, '}');
    sp_gen_put_chunk_tail(g, c, out);
}

static void put_delta(sp_gen *g, sp_gen_choice *c, sp_buf *out) {
    sp_gen_put_chunk_head(g, c, out);
    sp_buf_puts(out, ",\"text\":");
    sp_jw w = sp_jw_on(out);
    sp_jw_string(&w, sp_buf_slice(&c->text));
    put_logprobs(g, c, false, true, &w);
    sp_buf_puts(out, ",\"finish_reason\":null");
    if (g->opt.return_token_ids) {
        sp_jw_key(&w, "token_ids");
        sp_gen_put_ids(&w, c->ids.ptr, c->ids.len);
    }
    sp_buf_putc(out, '}');
    sp_gen_put_chunk_tail(g, c, out);
}

static void put_last(sp_gen *g, sp_gen_choice *c, sp_buf *out) {
    sp_gen_put_chunk_head(g, c, out);
    sp_buf_puts(out, ",\"text\":\"\",\"logprobs\":null");
    sp_jw w = {.out = out, .comma = true};
    sp_gen_put_finish(g, c, &w);
    sp_buf_putc(out, '}');
    sp_gen_put_last_tail(g, c, out);
}

static void put_choice(sp_gen *g, const sp_gen_choice *c, sp_jw *w) {
    const text_own *own = g->own;
    const sp_gen_prompt *p = c->prompt;
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_buf_put_slice(&text, p->echo);
    sp_buf_put_slice(&text, sp_buf_slice(&c->text));
    if (text.failed) w->out->failed = true;
    sp_jw_object(w);
    sp_jw_key(w, "index"), sp_jw_int(w, c->index);
    sp_jw_key(w, "text"), sp_jw_string(w, sp_buf_slice(&text));
    sp_buf_fini(&text);
    put_logprobs(g, c, g->opt.echo, true, w);
    sp_gen_put_finish(g, c, w);
    if (own->wants_prompt_logprobs) {
        sp_token_style style = sp_gen_token_style(g);
        sp_jw_key(w, "prompt_logprobs");
        sp_put_prompt_logprobs(w, &style, p->logprobs, p->n_logprobs,
                               g->opt.params.n_prompt_logprobs);
    }
    if (g->opt.return_token_ids) {
        sp_jw_key(w, "token_ids"), sp_gen_put_ids(w, c->ids.ptr, c->ids.len);
        sp_jw_key(w, "prompt_token_ids"), sp_gen_put_ids(w, p->ids, (size_t)p->n_ids);
    }
    sp_jw_object_end(w);
}

static void put_answer(sp_gen *g, sp_jw *w) {
    sp_jw_key(w, "choices");
    sp_jw_array(w);
    for (int i = 0; i < g->n_choices; i++) put_choice(g, &g->choices[i], w);
    sp_jw_array_end(w);
}

void sp_api_text(sp_front *front, sp_http_call *call) {
    static const sp_gen_api api = {.id_prefix = "cmpl-",
                                   .object = "text_completion",
                                   .chunk_object = "text_completion",
                                   .chat = false,
                                   .check = check,
                                   .encode = encode,
                                   .put_logprob = put_logprob,
                                   .put_first = put_first,
                                   .put_delta = put_delta,
                                   .put_last = put_last,
                                   .put_answer = put_answer};
    sp_gen_start(front, call, &api);
}
