#include "launcher/bench_body.h"

#include "runtime/base/json.h"

static const char *const words[] = {
    "time",  "water", "house", "light", "paper", "green", "river", "stone", "music", "table",
    "night", "cloud", "horse", "bread", "glass", "plant", "storm", "field", "voice", "north",
    "metal", "ocean", "story", "wheel", "floor", "apple", "tower", "chair", "smoke", "grain"};

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Starts with the number of the request, so that no prefix is shared unless that is asked for. */
static void put_words(sp_buf *b, const sp_load_config *config, int64_t index) {
    uint64_t s = (uint64_t)(config->same_prompt ? 0 : index) * 0x9e3779b97f4a7c15u + 1;
    if (config->seed) s ^= mix(config->seed);
    for (int i = 0; i < config->prompt_tokens; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        if (i) sp_buf_putc(b, ' ');
        sp_buf_puts(b, words[(s >> 33) % SP_LEN(words)]);
    }
}

/* Token `at` of what `source` stands for: nothing else decides it. */
static int64_t id_of(const sp_load_config *config, uint64_t source, int32_t at) {
    const uint64_t range = (uint64_t)(config->ids_last - config->ids_first) + 1;
    uint64_t s = mix(config->seed + 0x9e3779b97f4a7c15u) ^ mix(source * 0xd1342543de82ef95u + 1);
    return config->ids_first + (int64_t)(mix(s + (uint64_t)at * 0x9e3779b97f4a7c15u) % range);
}

static void put_ids(sp_jw *w, const sp_load_config *config, int64_t index) {
    const sp_trace *t = config->trace;
    const sp_trace_row *row = t ? &t->rows[index] : NULL;
    const int32_t n = row ? row->n_prompt : config->prompt_tokens;
    sp_jw_array(w);
    for (int32_t i = 0; i < n; i++) {
        if (row)
            sp_jw_int(w, id_of(config, (uint64_t)sp_trace_id(t, row, i), i % t->block_tokens));
        else
            sp_jw_int(w, id_of(config, (uint64_t)(config->same_prompt ? 0 : index), i));
    }
    sp_jw_array_end(w);
}

static void put_text(sp_jw *w, const sp_load_config *config, int64_t index) {
    sp_buf prompt;
    sp_buf_init(&prompt, 0);
    if (!config->prompt) put_words(&prompt, config, index);
    sp_jw_string(w, config->prompt ? sp_slice_of(config->prompt) : sp_buf_slice(&prompt));
    sp_buf_fini(&prompt);
}

static void put_prompt(sp_jw *w, const sp_load_config *config, int64_t index) {
    if (config->is_chat) {
        sp_jw_key(w, "messages"), sp_jw_array(w), sp_jw_object(w);
        sp_jw_key(w, "role"), sp_jw_str(w, "user");
        sp_jw_key(w, "content"), put_text(w, config, index);
        sp_jw_object_end(w), sp_jw_array_end(w);
    } else if (config->ids_last > 0) {
        sp_jw_key(w, "prompt"), put_ids(w, config, index);
    } else {
        sp_jw_key(w, "prompt"), put_text(w, config, index);
    }
}

void sp_load_put_body(sp_buf *b, const sp_load_config *config, const char *model, int64_t index) {
    const int64_t n_out = config->trace ? config->trace->rows[index].n_output : config->max_tokens;
    sp_jw jw = sp_jw_on(b), *w = &jw;
    sp_jw_object(w);
    sp_jw_key(w, "model"), sp_jw_str(w, model);
    put_prompt(w, config, index);
    sp_jw_key(w, "max_tokens"), sp_jw_int(w, n_out);
    sp_jw_key(w, "temperature"), sp_jw_number(w, config->temperature);
    if (config->ignores_eos) sp_jw_key(w, "ignore_eos"), sp_jw_bool(w, true);
    sp_jw_key(w, "stream"), sp_jw_bool(w, config->streams);
    if (config->streams) {
        sp_jw_key(w, "stream_options"), sp_jw_object(w);
        sp_jw_key(w, "include_usage"), sp_jw_bool(w, true), sp_jw_object_end(w);
    }
    if (config->extra) sp_buf_putc(b, ','), sp_buf_puts(b, config->extra);
    sp_jw_object_end(w);
}
