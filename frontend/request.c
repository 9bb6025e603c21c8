#include "frontend/request.h"

#include <stdio.h>
#include <sys/random.h>

#define GREEDY_BELOW 1e-5    /* a temperature below this means "the most likely token" */
#define TEMPERATURE_LOW 0.01 /* smaller ones overflow the division; raised to this, as vLLM does */
#define LOGIT_BIAS_LIMIT 100.0

/* Upper bound of the values in a text: what separates them, outside strings. */
static size_t count_values(sp_slice text) {
    size_t n = 1;
    bool in_string = false;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string)
            n += c == ',' || c == '[' || c == '{';
    }
    return n;
}

sp_status sp_request_parse(sp_json **out, sp_slice body, int depth_max, sp_err *err) {
    size_t n = count_values(body);
    if (n > SP_JSON_NODES_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "the body has more than %d JSON values",
                       SP_JSON_NODES_MAX);
    return sp_json_parse(out, body, depth_max, err);
}

bool sp_request_model_is_served(const sp_request_env *env, const char *name) {
    for (int i = 0; i < env->config->n_model_names; i++)
        if (strcmp(env->config->model_names[i], name) == 0) return true;
    return false;
}

static double or_default(double from_config, double otherwise) {
    return isnan(from_config) ? otherwise : from_config;
}

static void read_sampling(sp_fields *f, const sp_json_node *root, const sp_request_env *env,
                          sp_gen_params *p) {
    const sp_sampling_defaults *d = &env->config->defaults;
    double temperature = or_default(d->temperature, 1), top_p = or_default(d->top_p, 1),
           min_p = or_default(d->min_p, 0), repetition = or_default(d->repetition_penalty, 1),
           presence = 0, frequency = 0;
    int64_t top_k = d->top_k > 0 ? d->top_k : 0;
    sp_field_number(f, root, "temperature", 0, 2, false, &temperature);
    sp_field_number(f, root, "top_p", 0, 1, true, &top_p);
    sp_field_number(f, root, "min_p", 0, 1, false, &min_p);
    sp_field_number(f, root, "repetition_penalty", 0, INFINITY, true, &repetition);
    sp_field_number(f, root, "presence_penalty", -2, 2, false, &presence);
    sp_field_number(f, root, "frequency_penalty", -2, 2, false, &frequency);
    sp_field_int(f, root, "top_k", -1, INT32_MAX, &top_k);

    bool greedy = temperature < GREEDY_BELOW;
    if (!greedy && temperature < TEMPERATURE_LOW) temperature = TEMPERATURE_LOW;
    p->temperature = greedy ? 0 : (float)temperature;
    p->top_p = greedy ? 1 : (float)top_p;
    p->min_p = greedy ? 0 : (float)min_p;
    p->top_k = greedy || top_k < 0 ? 0 : (int32_t)top_k;
    p->repetition_penalty = (float)repetition;
    p->presence_penalty = (float)presence;
    p->frequency_penalty = (float)frequency;
}

static uint64_t random_seed(void) {
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) seed ^= (uintptr_t)&seed;
    return seed;
}

static void read_seed_and_count(sp_fields *f, const sp_json_node *root, sp_gen_params *p) {
    int64_t seed = -1, n = 1, best_of;
    bool beam = false;
    p->seed = sp_field_int(f, root, "seed", INT64_MIN, INT64_MAX, &seed) && seed != -1
                  ? (uint64_t)seed
                  : random_seed();
    sp_field_int(f, root, "n", 1, SP_N_MAX, &n);
    p->n = (int32_t)n;
    if (sp_field_int(f, root, "best_of", 0, SP_N_MAX, &best_of) && best_of != n)
        sp_fields_bad(f, "best_of",
                      "choosing the best of several is not supported: leave it out or "
                      "give the value of n (%lld), got %lld",
                      (long long)n, (long long)best_of);
    sp_field_bool(f, root, "use_beam_search", &beam);
    if (beam) sp_fields_bad(f, "use_beam_search", "beam search is not supported");
}

static void read_lengths(sp_fields *f, const sp_json_node *root, bool chat, sp_gen_options *o) {
    sp_gen_params *p = &o->params;
    int64_t max_tokens = 0, min_tokens = 0, alone = 0;
    bool has = sp_field_int(f, root, "max_tokens", chat ? 1 : 0, INT32_MAX, &max_tokens);
    if (chat && sp_field_int(f, root, "max_completion_tokens", 1, INT32_MAX, &alone)) {
        has = true;
        max_tokens = alone;
    }
    o->has_max_tokens = has;
    if (!has && !chat) max_tokens = 16; /* a default: cut to what fits, never refused */
    if (!chat && max_tokens == 0 && !o->echo)
        sp_fields_bad(f, "max_tokens", "want at least 1 (0 only with echo), got 0");
    if (sp_field_int(f, root, "min_tokens", 0, INT32_MAX, &min_tokens) && has &&
        min_tokens > max_tokens)
        sp_fields_bad(f, "min_tokens", "want at most max_tokens (%lld), got %lld",
                      (long long)max_tokens, (long long)min_tokens);
    p->max_tokens = (int32_t)max_tokens;
    p->min_tokens = (int32_t)min_tokens;
    sp_field_bool(f, root, "ignore_eos", &p->ignore_eos);
}

static void take_stop(sp_fields *f, const char *key, int index, const sp_json_node *v,
                      sp_gen_options *o) {
    size_t mark = strlen(f->path);
    if (index >= 0) mark = sp_fields_enter(f, key, index);
    const char *at = index >= 0 ? NULL : key;
    sp_slice s = sp_json_string(v);
    if (sp_json_type_of(v) != SP_JSON_STRING)
        sp_fields_bad(f, at, "want a string, got %s", sp_json_type_name(sp_json_type_of(v)));
    else if (s.len == 0)
        sp_fields_bad(f, at, "a stop string must not be empty");
    else if (s.len > SP_STOP_BYTES_MAX)
        sp_fields_bad(f, at, "want at most %d bytes, got %zu", SP_STOP_BYTES_MAX, s.len);
    else
        o->stops[o->n_stops++] = (sp_slice){sp_arena_strndup(f->arena, s.ptr, s.len), s.len};
    sp_fields_leave(f, mark);
}

static void read_stops(sp_fields *f, const sp_json_node *root, const sp_request_env *env,
                       sp_gen_options *o) {
    const sp_json_node *v = sp_json_find(root, "stop");
    o->stops = sp_arena_alloc(f->arena, SP_STOPS_MAX * sizeof *o->stops);
    if (sp_json_type_of(v) == SP_JSON_STRING) {
        take_stop(f, "stop", -1, v, o);
    } else if (!sp_json_is_null(v) && sp_json_type_of(v) != SP_JSON_ARRAY) {
        sp_fields_bad(f, "stop", "want a string or an array of strings, got %s",
                      sp_json_type_name(sp_json_type_of(v)));
    } else if (sp_field_array(f, root, "stop", SP_STOPS_MAX)) {
        int i = 0;
        for (v = sp_json_first(v); v; v = sp_json_next(v)) take_stop(f, "stop", i++, v, o);
    }
    sp_gen_params *p = &o->params;
    sp_field_ids(f, root, "stop_token_ids", SP_STOP_IDS_MAX, env->n_vocab, &p->stop_ids,
                 &p->n_stop_ids);
    sp_field_bool(f, root, "include_stop_str_in_output", &o->include_stop);
}

static void read_logit_bias(sp_fields *f, const sp_json_node *root, int32_t n_vocab,
                            sp_gen_params *p) {
    const sp_json_node *o = sp_field_object(f, root, "logit_bias");
    int n = sp_json_count(o);
    if (n == 0) return;
    if (n > SP_LOGIT_BIAS_MAX) {
        sp_fields_bad(f, "logit_bias", "want at most %d entries, got %d", SP_LOGIT_BIAS_MAX, n);
        return;
    }
    sp_logit_bias *list = sp_arena_alloc(f->arena, (size_t)n * sizeof *list);
    size_t mark = sp_fields_enter(f, "logit_bias", -1);
    int32_t used = 0;
    for (const sp_json_node *v = sp_json_first(o); v; v = sp_json_next(v)) {
        char key[40];
        int64_t id;
        double bias;
        sp_slice name = sp_json_key(v);
        snprintf(key, sizeof key, "%.*s", (int)(name.len < 32 ? name.len : 32), name.ptr);
        if (sp_parse_i64(name, &id) != SP_OK || id < 0 || id >= n_vocab)
            sp_fields_bad(f, key, "want a token id from 0 to %d as the key", n_vocab - 1);
        else if (sp_json_is_null(v))
            sp_fields_bad(f, key, "want a number, got null");
        else if (sp_field_number(f, o, name.ptr, -INFINITY, INFINITY, false, &bias))
            list[used++] = (sp_logit_bias){
                (int32_t)id, (float)fmin(fmax(bias, -LOGIT_BIAS_LIMIT), LOGIT_BIAS_LIMIT)};
    }
    sp_fields_leave(f, mark);
    p->logit_bias = list;
    p->n_logit_bias = used;
}

/* Appends one run: its length, then its ids. */
static bool push_run(sp_ids *runs, const sp_ids *word) {
    if (runs->len + word->len + 1 > SP_BAD_WORDS_TOKENS_MAX) return false;
    if (sp_ids_push(runs, (int32_t)word->len) != SP_OK) return false;
    for (size_t i = 0; i < word->len; i++)
        if (sp_ids_push(runs, word->ptr[i]) != SP_OK) return false;
    return true;
}

/* A word is banned as it stands and as it follows a space, since the two have different tokens;
 * the second only where the space belongs to the word's first token. */
static bool push_bad_word(const sp_request_env *env, sp_slice word, sp_ids *runs) {
    sp_ids plain = {0}, spaced = {0};
    sp_buf text;
    sp_buf_init(&text, 0);
    while (word.len && word.ptr[0] == ' ') word.ptr++, word.len--;
    sp_buf_putc(&text, ' ');
    sp_buf_put_slice(&text, word);
    const sp_slice none = {"", 0};
    bool good =
        sp_tokenizer_encode(env->tokenizer, word, 0, none, &plain, NULL) == SP_OK &&
        sp_tokenizer_encode(env->tokenizer, sp_buf_slice(&text), 0, none, &spaced, NULL) == SP_OK;
    if (good && plain.len) good = push_run(runs, &plain);
    if (good && spaced.len && spaced.len == plain.len && spaced.ptr[0] != plain.ptr[0])
        good = push_run(runs, &spaced);
    sp_buf_fini(&text);
    sp_ids_fini(&plain);
    sp_ids_fini(&spaced);
    return good;
}

static void read_bad_words(sp_fields *f, const sp_json_node *root, const sp_request_env *env,
                           sp_gen_params *p) {
    const sp_json_node *list = sp_field_array(f, root, "bad_words", SP_BAD_WORDS_MAX);
    sp_ids runs = {0};
    int i = 0;
    for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v), i++) {
        size_t mark = sp_fields_enter(f, "bad_words", i);
        if (sp_json_type_of(v) != SP_JSON_STRING || sp_json_string(v).len == 0)
            sp_fields_bad(f, NULL, "want a string that is not empty");
        else if (!push_bad_word(env, sp_json_string(v), &runs))
            sp_fields_bad(f, NULL, "the bad words have more than %d tokens in all",
                          SP_BAD_WORDS_TOKENS_MAX);
        sp_fields_leave(f, mark);
    }
    if (runs.len) {
        int32_t *copy = sp_arena_alloc(f->arena, runs.len * sizeof *copy);
        memcpy(copy, runs.ptr, runs.len * sizeof *copy);
        p->bad_words = copy;
        p->n_bad_words_ints = (int32_t)runs.len;
    }
    sp_ids_fini(&runs);
}

static void read_token_rules(sp_fields *f, const sp_json_node *root, const sp_request_env *env,
                             sp_gen_params *p) {
    read_logit_bias(f, root, env->n_vocab, p);
    if (sp_field_ids(f, root, "allowed_token_ids", SP_ALLOWED_IDS_MAX, env->n_vocab,
                     &p->allowed_ids, &p->n_allowed_ids) &&
        p->n_allowed_ids == 0)
        sp_fields_bad(f, "allowed_token_ids", "want at least one token id");
    read_bad_words(f, root, env, p);
}

static void read_logprobs(sp_fields *f, const sp_json_node *root, int max, bool chat,
                          sp_gen_options *o) {
    sp_gen_params *p = &o->params;
    int64_t n = 0;
    if (chat) {
        bool wanted = false;
        sp_field_bool(f, root, "logprobs", &wanted);
        bool has = sp_field_int(f, root, "top_logprobs", 0, max, &n);
        if (has && n > 0 && !wanted) sp_fields_bad(f, "top_logprobs", "needs logprobs to be true");
        p->n_logprobs = wanted ? (int32_t)n : -1;
    } else if (sp_field_int(f, root, "logprobs", 0, max, &n)) {
        p->n_logprobs = (int32_t)n;
    }
    if (sp_field_int(f, root, "prompt_logprobs", 0, max, &n)) {
        p->n_prompt_logprobs = (int32_t)n;
        if (o->stream) sp_fields_bad(f, "prompt_logprobs", "not available when stream is true");
    }
}

static void read_stream(sp_fields *f, const sp_json_node *root, sp_gen_options *o) {
    int64_t interval = 1;
    sp_field_bool(f, root, "stream", &o->stream);
    sp_field_int(f, root, "stream_interval", 1, INT32_MAX, &interval);
    o->stream_interval = (int)interval;
    const sp_json_node *so = sp_field_object(f, root, "stream_options");
    if (!so) return;
    if (!o->stream) sp_fields_bad(f, "stream_options", "only allowed when stream is true");
    size_t mark = sp_fields_enter(f, "stream_options", -1);
    sp_field_bool(f, so, "include_usage", &o->include_usage);
    sp_field_bool(f, so, "continuous_usage_stats", &o->continuous_usage);
    sp_fields_leave(f, mark);
    o->continuous_usage = o->continuous_usage && o->include_usage;
}

static void read_output(sp_fields *f, const sp_json_node *root, bool chat, sp_gen_options *o) {
    bool ignored;
    o->skip_special = true;
    o->add_special = !chat;
    sp_field_bool(f, root, "skip_special_tokens", &o->skip_special);
    /* Checked only: the tokenizers of today put no space there. */
    sp_field_bool(f, root, "spaces_between_special_tokens", &ignored);
    sp_field_bool(f, root, "add_special_tokens", &o->add_special);
    sp_field_bool(f, root, "echo", &o->echo);
    sp_field_bool(f, root, "return_token_ids", &o->return_token_ids);
    sp_field_bool(f, root, "return_tokens_as_token_ids", &o->return_tokens_as_ids);
}

static void read_prompt_rules(sp_fields *f, const sp_json_node *root, int32_t max_model_len,
                              sp_gen_options *o) {
    int64_t n;
    sp_slice side;
    if (sp_field_int(f, root, "truncate_prompt_tokens", -1, max_model_len, &n))
        o->truncate_prompt = (int32_t)n;
    if (sp_field_string(f, root, "truncation_side", &side)) {
        o->truncate_right = sp_slice_is(side, "right");
        if (!o->truncate_right && !sp_slice_is(side, "left"))
            sp_fields_bad(f, "truncation_side", "want 'left' or 'right'");
    }
    if (sp_field_int(f, root, "priority", INT32_MIN, INT32_MAX - 1, &n)) {
        o->priority = (int32_t)n;
        o->has_priority = true;
    }
    sp_slice text;
    if (sp_field_string(f, root, "cache_salt", &text)) {
        if (text.len == 0) sp_fields_bad(f, "cache_salt", "must not be empty");
        o->cache_salt = text.ptr;
    }
    if (sp_field_string(f, root, "request_id", &text)) o->request_id = text.ptr;
}

/* Where only free text can be had, anything else is refused rather than ignored. */
static void refuse_formats(sp_fields *f, const sp_json_node *root) {
    static const char *const names[] = {"structured_outputs", "guided_json",    "guided_regex",
                                        "guided_choice",      "guided_grammar", "structural_tag"};
    const sp_json_node *rf = sp_field_object(f, root, "response_format");
    if (rf) {
        size_t mark = sp_fields_enter(f, "response_format", -1);
        sp_slice type = {0};
        bool has = sp_field_string(f, rf, "type", &type);
        if (!has && sp_json_is_null(sp_json_find(rf, "type")))
            sp_fields_bad(f, "type", "is missing");
        else if (has && !sp_slice_is(type, "text"))
            sp_fields_bad(f, "type", "'%.40s' is not supported: only 'text' is", type.ptr);
        sp_fields_leave(f, mark);
    }
    for (size_t i = 0; i < SP_LEN(names); i++)
        if (!sp_json_is_null(sp_json_find(root, names[i])))
            sp_fields_bad(f, names[i], "structured output is not supported");
}

static void refuse_others(sp_fields *f, const sp_json_node *root) {
    static const char *const names[] = {"ec_transfer_params", "repetition_detection",
                                        "logprob_token_ids",  "prompt_embeds",
                                        "logits_processors",  "return_prompt_text"};
    for (size_t i = 0; i < SP_LEN(names); i++) {
        const sp_json_node *v = sp_json_find(root, names[i]);
        bool off = sp_json_is_null(v) || (sp_json_type_of(v) == SP_JSON_BOOL && !sp_json_bool(v));
        if (!off) sp_fields_bad(f, names[i], "is not supported");
    }
    int64_t budget = -1;
    if (sp_field_int(f, root, "thinking_token_budget", -1, INT32_MAX, &budget) && budget >= 0)
        sp_fields_bad(f, "thinking_token_budget", "is not supported");
}

void sp_request_options(sp_fields *f, const sp_json_node *root, const sp_request_env *env,
                        bool chat, sp_gen_options *o) {
    *o = (sp_gen_options){.params = SP_GEN_PARAMS_DEFAULT, .model = env->config->model_names[0]};
    sp_slice model;
    if (sp_field_string(f, root, "model", &model)) o->model = model.ptr;
    read_stream(f, root, o);
    read_output(f, root, chat, o);
    read_sampling(f, root, env, &o->params);
    read_seed_and_count(f, root, &o->params);
    read_lengths(f, root, chat, o);
    read_stops(f, root, env, o);
    read_token_rules(f, root, env, &o->params);
    read_logprobs(f, root, env->config->max_logprobs, chat, o);
    read_prompt_rules(f, root, env->max_model_len, o);
    sp_kv_transfer_read(f, root, env->config->kv, sp_kv_transfer_now_ms(), &o->kv);
    refuse_formats(f, root);
    refuse_others(f, root);
}
