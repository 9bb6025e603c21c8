#include "runtime/gen/sampler.h"

#include "kernels/math.h"
#include "runtime/base/mem.h"
#include "runtime/gen/filter.h"
#include "runtime/gen/philox.h"
#include "runtime/gen/row.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define GREEDY_BELOW 1e-5f
#define BIAS_MAX 100.0f

struct sp_sampler {
    int32_t n_vocab;
    float *edited;         /* the row after masks, bias and penalties */
    float *raw_max;        /* block maxima of the untouched row */
    float *edited_max;     /* the same of `edited` */
    int32_t *counts;       /* of output tokens; all 0 between draws */
    bool *penalised;       /* all false between draws */
    sp_filter_entry *heap; /* of the filter */
};

sp_sampler *sp_sampler_create(int32_t n_vocab) {
    SP_ASSERT(n_vocab > 0);
    size_t n = (size_t)n_vocab, blocks = (size_t)SP_ROW_BLOCKS(n_vocab);
    sp_sampler *s = sp_alloc(sizeof *s);
    s->n_vocab = n_vocab;
    s->edited = sp_alloc(n * sizeof *s->edited);
    s->raw_max = sp_alloc(blocks * sizeof *s->raw_max);
    s->edited_max = sp_alloc(blocks * sizeof *s->edited_max);
    s->counts = sp_alloc(n * sizeof *s->counts);
    s->penalised = sp_alloc(n * sizeof *s->penalised);
    s->heap = sp_alloc(n * sizeof *s->heap);
    return s;
}

void sp_sampler_destroy(sp_sampler *s) {
    if (!s) return;
    sp_free(s->heap);
    sp_free(s->penalised);
    sp_free(s->counts);
    sp_free(s->edited_max);
    sp_free(s->raw_max);
    sp_free(s->edited);
    sp_free(s);
}

/* Ids come from requests and from prompts (placeholders of other vocabularies): outside is no id. */
static bool is_id(const sp_sample_input *in, int32_t id) {
    return id >= 0 && id < in->n_vocab;
}

static void mask(const sp_sample_input *in, float *row, int32_t id) {
    if (is_id(in, id)) row[id] = -INFINITY;
}

static void start_row(const sp_sample_input *in, float *row) {
    const sp_gen_params *p = in->params;
    if (!p->allowed_ids) {
        memcpy(row, in->logits, (size_t)in->n_vocab * sizeof *row);
        return;
    }
    for (int32_t i = 0; i < in->n_vocab; i++) row[i] = -INFINITY;
    for (int32_t i = 0; i < p->n_allowed_ids; i++)
        if (is_id(in, p->allowed_ids[i])) row[p->allowed_ids[i]] = in->logits[p->allowed_ids[i]];
}

/* A run bans its last id when the output ends with the ids before it; a run of one always does. */
static void ban_words(const sp_sample_input *in, float *row) {
    const int32_t *w = in->params->bad_words, *end = w + in->params->n_bad_words_ints;
    while (w < end && w[0] > 0 && w[0] <= end - w - 1) {
        int32_t n_before = w[0] - 1;
        const int32_t *run = w + 1;
        if (n_before <= in->n_output &&
            (n_before == 0 || memcmp(run, in->output + in->n_output - n_before,
                                     (size_t)n_before * sizeof *run) == 0))
            mask(in, row, run[n_before]);
        w += 1 + w[0];
    }
}

static void hold_back_stops(const sp_sample_input *in, float *row) {
    if (in->n_output >= in->params->min_tokens) return;
    for (int32_t i = 0; i < in->n_eos_ids; i++) mask(in, row, in->eos_ids[i]);
    for (int32_t i = 0; i < in->params->n_stop_ids; i++) mask(in, row, in->params->stop_ids[i]);
}

static void add_bias(const sp_sample_input *in, float *row) {
    const sp_logit_bias *b = in->params->logit_bias;
    for (int32_t i = 0; i < in->params->n_logit_bias; i++) {
        if (!is_id(in, b[i].id) || b[i].bias != b[i].bias) continue;
        row[b[i].id] += b[i].bias < -BIAS_MAX  ? -BIAS_MAX
                        : b[i].bias > BIAS_MAX ? BIAS_MAX
                                               : b[i].bias;
    }
}

/* A finite logit stays finite: an overflow must neither win for ever nor look like a mask. */
static float penalise(const sp_gen_params *p, float x, int32_t count) {
    if (x == -INFINITY) return x;
    x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
    x -= p->frequency_penalty * (float)count;
    if (count > 0) x -= p->presence_penalty;
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

static void penalise_ids(sp_sampler *s, const sp_sample_input *in, const int32_t *ids, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        if (!is_id(in, ids[i]) || s->penalised[ids[i]]) continue;
        s->penalised[ids[i]] = true;
        s->edited[ids[i]] = penalise(in->params, s->edited[ids[i]], s->counts[ids[i]]);
    }
}

static void forget_ids(sp_sampler *s, const sp_sample_input *in, const int32_t *ids, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        if (!is_id(in, ids[i])) continue;
        s->counts[ids[i]] = 0;
        s->penalised[ids[i]] = false;
    }
}

/* The tables are cleared by walking the tokens again, so that a draw costs nothing per vocabulary. */
static void apply_penalties(sp_sampler *s, const sp_sample_input *in) {
    /* Without a repetition penalty the prompt does not matter, and it may be long. */
    int32_t n_prompt = in->params->repetition_penalty != 1.0f ? in->n_prompt : 0;
    for (int32_t i = 0; i < in->n_output; i++)
        if (is_id(in, in->output[i])) s->counts[in->output[i]]++;
    penalise_ids(s, in, in->output, in->n_output);
    penalise_ids(s, in, in->prompt, n_prompt);
    forget_ids(s, in, in->output, in->n_output);
    forget_ids(s, in, in->prompt, n_prompt);
}

static bool has_penalties(const sp_gen_params *p) {
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f ||
           p->frequency_penalty != 0.0f;
}

static bool has_edits(const sp_sample_input *in) {
    const sp_gen_params *p = in->params;
    return p->allowed_ids || p->n_bad_words_ints > 0 || p->n_logit_bias > 0 ||
           in->n_output < p->min_tokens || has_penalties(p);
}

static sp_row edit(sp_sampler *s, const sp_sample_input *in) {
    start_row(in, s->edited);
    ban_words(in, s->edited);
    hold_back_stops(in, s->edited);
    add_bias(in, s->edited);
    if (has_penalties(in->params)) apply_penalties(s, in);
    return sp_row_scan(s->edited, in->n_vocab, s->edited_max);
}

/* u = (x + 1/2) / 2^32 is exact in a double and never 0 or 1; a float would round up to 1 and give
 * an infinite value to one token in 2^25. */
static double gumbel(uint32_t x) {
    return -sp_log(-sp_log(((double)x + 0.5) * 0x1p-32));
}

#define LIMITS 33
#define LN2_ABOVE 0.69315

typedef struct winner {
    const sp_sample_input *in;
    const sp_row *row;
    double score;
    int32_t id;
    float limit[LIMITS]; /* by leading ones of the word: a logit below it cannot win */
} winner;

/* -log u >= 1 - u, so a word with n leading ones gives at most (n + 1) log 2. Whatever is below the
 * bound by that alone need not be computed; the slack is far above all rounding errors, and the
 * result has the same bits as with everything computed. */
static void set_limits(winner *w) {
    const double t = (double)w->in->params->temperature;
    const double slack = (fabs(w->score) + 64) * t * 1e-12;
    for (int n = 0; n < LIMITS; n++) {
        double x = (w->score - (n + 1) * LN2_ABOVE) * t - slack;
        float f = x < -(double)FLT_MAX ? -INFINITY : (float)x;
        w->limit[n] = (double)f > x ? nextafterf(f, -INFINITY) : f;
    }
}

static void consider(winner *w, int32_t id, uint32_t word) {
    double score = (double)w->row->logits[id] / (double)w->in->params->temperature + gumbel(word);
    if (score < w->score || (score == w->score && id > w->id)) return;
    w->score = score;
    w->id = id;
    set_limits(w);
}

static int32_t draw(const sp_row *row, const sp_sample_input *in, sp_cut cut) {
    uint32_t words[SP_ROW_BLOCK];
    winner w = {.in = in, .row = row, .score = -INFINITY, .id = sp_row_argmax(row)};
    const uint64_t seed = in->params->seed;
    /* The most likely token first: its score rules most others out unseen. */
    sp_philox_words(seed, in->choice, in->position, w.id, 1, words);
    consider(&w, w.id, words[0]);
    for (int32_t b = 0, at = 0; at < row->n; b++, at += SP_ROW_BLOCK) {
        if (row->block_max[b] < cut.logit || row->block_max[b] < w.limit[LIMITS - 1]) continue;
        int32_t n = row->n - at < SP_ROW_BLOCK ? row->n - at : SP_ROW_BLOCK;
        sp_philox_words(seed, in->choice, in->position, at, n, words);
        for (int32_t i = 0; i < n; i++) {
            float x = row->logits[at + i];
            int ones = words[i] == UINT32_MAX ? 32 : __builtin_clz(~words[i]);
            if (x < w.limit[ones] || !sp_cut_keeps(cut, x, at + i)) continue;
            consider(&w, at + i, words[i]);
        }
    }
    return w.id;
}

static void report(const sp_row *raw, int32_t id, int32_t n_top, sp_sample *out) {
    const float log_sum = sp_logf(sp_row_mass(raw, 1.0f, -INFINITY));
    out->logprob = raw->logits[id] - raw->max - log_sum;
    out->rank = sp_row_rank(raw, id);
    out->n_top = sp_row_top(raw, n_top < SP_LOGPROBS_MAX ? n_top : SP_LOGPROBS_MAX, out->top);
    for (int32_t i = 0; i < out->n_top; i++)
        out->top[i].logprob = out->top[i].logprob - raw->max - log_sum;
}

sp_status sp_sampler_draw(sp_sampler *s, const sp_sample_input *in, sp_sample *out) {
    SP_ASSERT(in->n_vocab > 0 && in->n_vocab <= s->n_vocab);
    const sp_gen_params *p = in->params;
    const sp_row raw = sp_row_scan(in->logits, in->n_vocab, s->raw_max);
    if (!sp_row_is_sound(&raw)) return SP_E_INTERNAL;
    const sp_row row = has_edits(in) ? edit(s, in) : raw;
    /* The forward pass is sound; the request's own masks leave nothing. That ends the request only. */
    if (!sp_row_is_sound(&row)) return SP_E_INVALID;

    sp_sample sample = {.rank = 0};
    sample.id = p->temperature < GREEDY_BELOW ? sp_row_argmax(&row)
                                              : draw(&row, in, sp_filter(&row, p, s->heap));
    if (p->n_logprobs >= 0) report(&raw, sample.id, p->n_logprobs, &sample);
    *out = sample;
    return SP_OK;
}

void sp_sampler_logprobs(sp_sampler *s, const float *logits, int32_t n_vocab, int32_t id,
                         int32_t n_top, sp_sample *out) {
    SP_ASSERT(n_vocab > 0 && n_vocab <= s->n_vocab);
    const sp_row raw = sp_row_scan(logits, n_vocab, s->raw_max);
    *out = (sp_sample){.id = id, .logprob = -INFINITY, .rank = n_vocab};
    if (sp_row_is_sound(&raw) && id >= 0 && id < n_vocab) report(&raw, id, n_top, out);
}
