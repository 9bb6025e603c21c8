#include "tests/fake_draw.h"

#include "runtime/base/mem.h"

#include <math.h>
#include <string.h>

/* A ban is a run of one bad word, whose only id it is: no bias of the sampler's is as strong. */
static void split_bias(const sp_draw_args *a, const sp_draw *d, sp_gen_params *p,
                       sp_logit_bias *bias, int32_t *words) {
    for (int32_t i = 0; i < d->n_bias; i++) {
        const sp_draw_bias *b = &a->bias[d->bias0 + i];
        if (b->value == -INFINITY) {
            words[p->n_bad_words_ints++] = 1;
            words[p->n_bad_words_ints++] = b->id;
        } else {
            bias[p->n_logit_bias++] = (sp_logit_bias){b->id, b->value};
        }
    }
    p->logit_bias = bias;
    p->bad_words = words;
}

static sp_gen_params params_of(const sp_draw_args *a, const sp_draw *d) {
    sp_gen_params p = SP_GEN_PARAMS_DEFAULT;
    p.temperature = d->temperature;
    p.top_p = d->top_p;
    p.min_p = d->min_p;
    p.top_k = d->top_k;
    p.repetition_penalty = d->repetition_penalty;
    p.presence_penalty = d->presence_penalty;
    p.frequency_penalty = d->frequency_penalty;
    p.seed = d->seed;
    p.n_logprobs = d->n_logprobs;
    if (d->n_allowed >= 0) {
        p.allowed_ids = a->tokens + d->allowed0;
        p.n_allowed_ids = d->n_allowed;
    }
    return p;
}

static void draw_one(sp_sampler *sampler, const sp_draw_args *a, const sp_draw *d, sp_drawn *out) {
    sp_gen_params p = params_of(a, d);
    sp_logit_bias *bias = sp_alloc(((size_t)d->n_bias + 1) * sizeof *bias);
    int32_t *words = sp_alloc((2 * (size_t)d->n_bias + 1) * sizeof *words);
    split_bias(a, d, &p, bias, words);
    const sp_sample_input in = {.logits = a->logits + (size_t)d->row * (size_t)a->ld,
                                .n_vocab = a->V,
                                .params = &p,
                                .prompt = a->tokens + d->prompt0,
                                .n_prompt = d->n_prompt,
                                .output = a->tokens + d->output0,
                                .n_output = d->n_output,
                                .choice = d->choice,
                                .position = d->position};
    sp_sample got = {.id = -1};
    const sp_status st = sp_sampler_draw(sampler, &in, &got);
    if (st != SP_OK) got = (sp_sample){.id = -1, .rank = st == SP_E_INVALID};
    *out = (sp_drawn){.id = got.id, .logprob = got.logprob, .rank = got.rank, .n_top = got.n_top};
    for (int32_t i = 0; i < got.n_top; i++) {
        out->top_id[i] = got.top[i].id;
        out->top_logprob[i] = got.top[i].logprob;
    }
    a->last[d->slot] = got.id < 0 ? 0 : got.id;
    sp_free(words);
    sp_free(bias);
}

void sp_fake_draw(sp_sampler *sampler, const sp_draw_args *a) {
    for (int32_t i = 0; i < a->n; i++) draw_one(sampler, a, &a->draws[i], &a->drawn[i]);
}
