/* Covers kernels/cuda/{draw.cu,draw_*.cuh,cuda_draw.c}: every field of every draw has the bits of the
 * host's sampler, in every order of threads, alone and in company. */
#include "tests/kernels/cuda/draw_env.h"

const sp_dev_plugin *superpod_device_plugin(int abi);

/* ---- rows and wishes ---- */

static float normal(void) {
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += (float)rng() / 4294967296.0f - 0.5f;
    return sum * 1.4f;
}

/* Logits as models give them, and as they never do. */
static void fill_row(float *x, int32_t V, int kind) {
    const float scale = (float)PICK(1, 3, 8);
    for (int32_t i = 0; i < V; i++) {
        const float f = normal() * scale;
        switch (kind) {
        case 0: /* ties */
            x[i] = (float)between(-6, 6) * 0.5f;
            break;
        case 1: /* one value */
            x[i] = -1.25f;
            break;
        case 2: /* zeros of both signs, and little else */
            x[i] = rng() % 3 == 0 ? 0.0f : rng() % 2 ? -0.0f : -fabsf(f);
            break;
        case 3: /* all magnitudes */
            x[i] = rng() % 4 ? f : f * (rng() % 2 ? 0x1p100f : 0x1p-130f);
            break;
        case 4: /* masked by the model */
            x[i] = rng() % 3 && i ? -INFINITY : f;
            break;
        case 5: /* one is far ahead */
            x[i] = i == V / 2 ? f + 60 : f;
            break;
        default:
            x[i] = f;
        }
    }
}

static float a_half(int32_t lo, int32_t hi) {
    return (float)between(lo, hi) * 0.5f;
}

static void wish_filters(want *w, int32_t V) {
    sp_gen_params *p = &w->p;
    p->temperature = (float)PICK(0, 1, 10, 10, 50, 70, 100, 150, 1000) * 0.01f;
    if (rng() % 2) p->top_k = PICK(1, 2, 3, 7, 20, V - 1, V, V + 5);
    if (rng() % 2) p->top_p = (float)PICK(1, 100, 300, 500, 800, 900, 950, 990, 999) * 0.001f;
    if (rng() % 3 == 0) p->min_p = (float)PICK(1, 10, 100, 500, 1000) * 0.001f;
    p->seed = (uint64_t)rng() << 32 | rng();
    p->n_logprobs = rng() % 3 ? -1 : PICK(0, 1, 2, 5, 20);
    w->choice = between(0, 5);
    w->position = between(0, 100000);
}

/* A third of the ids come twice or more; some are nobody's. */
static int32_t any_id(int32_t V) {
    if (rng() % 20 == 0) return PICK(-1, -7, V, V + 3, INT32_MAX, INT32_MIN);
    return rng() % 2 ? between(0, V - 1) : between(0, V < 8 ? V - 1 : 7);
}

static void wish_edits(want *w, int32_t V) {
    sp_gen_params *p = &w->p;
    if (rng() % 2) p->repetition_penalty = a_half(1, 4);
    if (rng() % 2) p->presence_penalty = a_half(-4, 4);
    if (rng() % 2) p->frequency_penalty = a_half(-4, 4) * 0.7f;
    w->n_prompt = between(0, HISTORY);
    w->n_output = between(0, HISTORY);
    for (int32_t i = 0; i < w->n_prompt; i++) w->prompt[i] = any_id(V);
    for (int32_t i = 0; i < w->n_output; i++) w->output[i] = any_id(V);
    /* An id has one bias: neighbours from somewhere on. */
    const int32_t n = rng() % 2 ? between(0, V < LISTED ? V : LISTED) : 0, at = between(0, V - 1);
    for (int32_t i = 0; i < n; i++)
        w->bias[i] = (sp_logit_bias){(at + i) % V, rng() % 8 ? normal() * 5 : normal() * 200};
    if (n && rng() % 3 == 0) w->bias[0].id = V;
    if (n && rng() % 3 == 0) w->bias[n - 1].bias = NAN;
    p->n_logit_bias = n;
    const int32_t banned = rng() % 2 ? between(0, 5) : 0;
    for (int32_t i = 0; i < banned; i++) {
        w->banned[2 * i] = 1;
        w->banned[2 * i + 1] = any_id(V);
    }
    p->n_bad_words_ints = 2 * banned;
    if (rng() % 3) return;
    p->allowed_ids = w->allowed;
    p->n_allowed_ids = between(0, rng() % 4 ? LISTED : 2);
    for (int32_t i = 0; i < p->n_allowed_ids; i++) w->allowed[i] = any_id(V);
}

static want any_want(int32_t row, int32_t slot, int32_t V) {
    want w = {.p = SP_GEN_PARAMS_DEFAULT, .row = row, .slot = slot};
    wish_filters(&w, V);
    if (rng() % 2) wish_edits(&w, V);
    return w;
}

/* ---- draws ---- */

/* `gap`: from row to row. Each row is drawn from up to three times. */
static batch *any_batch(int32_t V, int32_t n) {
    batch *b = batch_new(3, V, PICK(0, 1, 7));
    for (int32_t r = 0; r < b->R; r++) fill_row(batch_row(b, r), V, between(0, 9));
    for (int32_t i = 0; i < n; i++) {
        const want w = any_want(between(0, b->R - 1), rng() % 4 ? 2 * i + 1 : -1, V);
        (void)batch_add(b, &w);
    }
    return b;
}

static void draws_have_the_bits_of_the_hosts_sampler(void) {
    NEEDS_FIBRES();
    int32_t drew = 0;
    rng_state = 51;
    for (int round = 0; round < ROUNDS(120); round++) {
        device_fresh(round);
        batch *b = any_batch(PICK(1, 2, 7, 8, 9, 17, 100, 257, 1000, 1500, 2100), PICK(1, 2, 5));
        drew += batch_check(b);
        batch_free(b);
    }
    CU_ASSERT(drew > ROUNDS(120)); /* most requests leave something */
}

static void the_same_bits_in_company_and_alone(void) {
    NEEDS_FIBRES();
    rng_state = 52;
    device_fresh(2);
    batch *all = any_batch(40, DRAWS - 1); /* more than share the scratch */
    (void)batch_check(all);
    for (int32_t i = 0; i < all->n; i += 23) {
        device_fresh(i);
        batch *one = batch_new(all->R, all->V, all->ld - all->V);
        memcpy(one->logits, all->logits, (size_t)all->R * (size_t)all->ld * sizeof *one->logits);
        (void)batch_add(one, &all->wants[i]);
        (void)batch_check(one);
        CU_ASSERT(memcmp(&one->drawn[0], &all->drawn[i], sizeof one->drawn[0]) == 0);
        batch_free(one);
    }
    batch_free(all);
}

/* Survivors of more than one piece, ties of thousands, a boundary inside a tie. */
static void large_vocabularies_have_the_bits_of_the_hosts_sampler(void) {
    NEEDS_FIBRES();
    rng_state = 53;
    for (int round = 0; round < ROUNDS(8); round++) {
        device_fresh(round);
        batch *b = batch_new(1, (const int32_t[]){12001, 20000, 32768}[round % 3], 0);
        fill_row(batch_row(b, 0), b->V, (const int[]){9, 0, 1, 9}[round % 4]);
        want w = {.p = SP_GEN_PARAMS_DEFAULT, .slot = 3, .position = round};
        w.p.temperature = round % 4 == 3 ? 5.0f : 0.8f;
        w.p.top_p = (const float[]){0.95f, 0.7f, 0.5f}[round % 3];
        w.p.seed = rng();
        w.p.n_logprobs = round == 5 ? 20 : -1;
        (void)batch_add(b, &w);
        w.slot = 4;
        w.p.top_k = PICK(1, 50, 3000);
        (void)batch_add(b, &w);
        CU_ASSERT_EQUAL(batch_check(b), 2);
        batch_free(b);
    }
}

static void the_largest_vocabulary_is_drawn_from(void) {
    NEEDS_FIBRES();
    rng_state = 54;
    device_fresh(0);
    batch *b = batch_new(1, 262144, 0);
    fill_row(batch_row(b, 0), b->V, 9);
    want w = {.p = SP_GEN_PARAMS_DEFAULT, .slot = 0};
    w.p.n_logprobs = 3;
    w.p.top_p = 0.3f;
    w.p.temperature = 0.4f;
    (void)batch_add(b, &w);
    CU_ASSERT_EQUAL(batch_check(b), 1);
    batch_free(b);
}

/* Many seeds on one row: the lowest id of equal scores is rare, the last survivor is not. */
static void every_seed_gives_the_token_of_the_host(void) {
    NEEDS_FIBRES();
    rng_state = 55;
    for (int round = 0; round < 3; round++) {
        device_fresh(round);
        batch *b = batch_new(1, 60, 0);
        fill_row(batch_row(b, 0), b->V, (const int[]){9, 0, 1}[round]);
        for (int i = 0; i < 40; i++) {
            want w = {.p = SP_GEN_PARAMS_DEFAULT, .slot = -1, .choice = i % 3, .position = i};
            w.p.seed = (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15);
            w.p.top_k = round == 1 ? 5 : 0;
            w.p.top_p = round == 2 ? 0.4f : 1.0f;
            (void)batch_add(b, &w);
        }
        CU_ASSERT_EQUAL(batch_check(b), 40);
        batch_free(b);
    }
}

/* Logits that hardly differ: the noise alone chooses. What it chooses out of all stands at a place of
 * the order; top_p is put just before it, at it and behind it, so that a boundary that is one off
 * gives another token. */
static int32_t place_in_order(const float *x, int32_t V, int32_t id) {
    int32_t place = 0;
    for (int32_t i = 0; i < V; i++) place += x[i] > x[id] || (x[i] == x[id] && i < id);
    return place;
}

static void fill_flat(float *x, int32_t V, int kind) {
    for (int32_t i = 0; i < V; i++) {
        const int32_t mixed =
            (int32_t)((int64_t)i * 1789 % V); /* every number once: V is no multiple */
        x[i] = 1.0f + (kind == 0   ? 0.0f
                       : kind == 1 ? (float)mixed * 0x1p-23f
                                   : (float)(mixed / 700) * 0x1p-20f);
    }
}

static void the_last_survivor_of_top_p_is_that_of_the_host(void) {
    NEEDS_FIBRES();
    rng_state = 59;
    for (int round = 0; round < ROUNDS(18); round++) {
        device_fresh(round);
        const int32_t V = (const int32_t[]){4, 64, 2048, 4096, 3000, 1024}[round % 6];
        batch *b = batch_new(1, V, 0);
        fill_flat(batch_row(b, 0), V, round / 6);
        want w = {.p = SP_GEN_PARAMS_DEFAULT, .slot = -1};
        w.p.seed = rng();
        w.p.top_k = V == 3000 ? 2500 : 0;
        const sp_drawn free_one = host_says(b, &w);
        const int32_t place = place_in_order(b->logits, V, free_one.id);
        const float of = (float)(w.p.top_k ? w.p.top_k : V);
        for (int i = -2; i <= 3; i++) {
            w.p.top_p = ((float)place + (float)i * 0.5f) / of;
            if (w.p.top_p > 0) (void)batch_add(b, &w);
        }
        (void)batch_check(b);
        batch_free(b);
    }
}

static void a_logit_at_the_bound_of_min_p_is_rounded_as_on_the_host(void) {
    NEEDS_FIBRES();
    for (int round = 0; round < ROUNDS(8); round++) {
        device_fresh(round);
        batch *b = batch_new(1, 4, 0);
        want w = {.p = SP_GEN_PARAMS_DEFAULT, .slot = -1};
        w.p.min_p = 0.8f + 0.01f * (float)round;
        const float bound = (float)(3.0 + log((double)w.p.min_p));
        memcpy(b->logits, (const float[]){3, nextafterf(bound, 0), bound, nextafterf(bound, 9)},
               16);
        for (int i = 0; i < 16; i++) {
            w.p.seed = (uint64_t)i;
            (void)batch_add(b, &w);
        }
        CU_ASSERT_EQUAL(batch_check(b), 16);
        batch_free(b);
    }
}

/* Two logits whose scores differ by a few last bits of f64 at most: the middle of an interval, the
 * logarithm and the division decide. One logit makes up for the noise, the other for its rounding. */
static double noise(uint64_t seed, int32_t id) {
    uint32_t word;
    sp_philox_words(seed, 0, 0, id, 1, &word);
    return -sp_log(-sp_log(((double)word + 0.5) * 0x1p-32));
}

static void the_closest_calls_go_as_on_the_host(void) {
    NEEDS_FIBRES();
    device_fresh(0);
    batch *b = batch_new(40, 2, 0);
    for (int32_t r = 0; r < b->R; r++) {
        const uint64_t seed = (uint64_t)r * UINT64_C(0x9e3779b97f4a7c15);
        const double by = noise(seed, 0) - noise(seed, 1);
        float *x = batch_row(b, r);
        want w = {.p = SP_GEN_PARAMS_DEFAULT, .slot = -1, .row = r};
        w.p.seed = seed;
        x[1] = (float)by;
        x[0] = (float)((double)x[1] - by);
        for (int i = r % 3; i > 0; i--) x[0] = nextafterf(x[0], r % 2 ? 1.0f : -1.0f);
        (void)batch_add(b, &w);
    }
    CU_ASSERT_EQUAL(batch_check(b), b->R);
    batch_free(b);
}

static void equal_logits_go_by_id_and_zeros_are_equal(void) {
    NEEDS_FIBRES();
    device_fresh(1);
    batch *b = batch_new(2, 40, 0);
    for (int i = 0; i < 40; i++) {
        batch_row(b, 0)[i] = i == 9 || i == 30 ? 2.0f : 1.0f;
        batch_row(b, 1)[i] = i % 2 ? 0.0f : -0.0f;
    }
    for (int32_t r = 0; r < 2; r++) {
        want w = want_greedy(r);
        w.p.n_logprobs = 4;
        w.slot = r;
        (void)batch_add(b, &w);
    }
    CU_ASSERT_EQUAL(batch_check(b), 2);
    CU_ASSERT_EQUAL(b->drawn[0].id, 9);
    CU_ASSERT_EQUAL(b->drawn[0].rank, 1);
    CU_ASSERT_EQUAL(b->drawn[0].top_id[1], 30);
    CU_ASSERT_EQUAL(b->drawn[0].top_id[2], 0);
    CU_ASSERT_EQUAL(b->drawn[1].id, 0);
    CU_ASSERT_EQUAL(b->drawn[1].top_id[3], 3);
    batch_free(b);
}

/* ---- rows without a token ---- */

static void a_broken_row_is_told_from_one_that_was_masked(void) {
    NEEDS_FIBRES();
    device_fresh(2);
    batch *b = batch_new(4, 30, 1);
    for (int i = 0; i < 30; i++) {
        batch_row(b, 0)[i] = i == 29 ? NAN : (float)i;
        batch_row(b, 1)[i] = i == 3 ? INFINITY : (float)i;
        batch_row(b, 2)[i] = -INFINITY;
        batch_row(b, 3)[i] = (float)i;
    }
    for (int32_t r = 0; r < 4; r++)
        for (int edits = 0; edits < 2; edits++) {
            want w = want_greedy(r);
            w.slot = 2 * r + edits;
            w.p.temperature = (float)(r % 2);
            w.p.n_logprobs = 2;
            w.p.top_p = 0.5f;
            w.p.allowed_ids = edits ? w.allowed : NULL;
            w.p.n_allowed_ids = 0;
            (void)batch_add(b, &w);
        }
    CU_ASSERT_EQUAL(batch_check(b), 1);
    for (int i = 0; i < 6; i++) {
        CU_ASSERT_EQUAL(b->drawn[i].id, -1);
        CU_ASSERT_EQUAL(b->drawn[i].rank, 0);
        CU_ASSERT_EQUAL(b->last[i], 0);
    }
    CU_ASSERT(b->drawn[6].id >= 0);
    CU_ASSERT_EQUAL(b->drawn[7].id, -1);
    CU_ASSERT_EQUAL(b->drawn[7].rank, 1);
    batch_free(b);
}

static void a_ban_beside_a_bias_and_a_second_ban_is_a_ban(void) {
    NEEDS_FIBRES();
    device_fresh(1);
    batch *b = batch_new(1, 20, 0);
    for (int i = 0; i < 20; i++) batch_row(b, 0)[i] = (float)i;
    want w = want_greedy(0);
    w.bias[0] = (sp_logit_bias){19, 50};
    w.bias[1] = (sp_logit_bias){5, 1000}; /* as much as 100 */
    w.p.n_logit_bias = 2;
    memcpy(w.banned, (const int32_t[]){1, 19, 1, 19}, 4 * sizeof(int32_t));
    w.p.n_bad_words_ints = 4;
    (void)batch_add(b, &w);
    CU_ASSERT_EQUAL(batch_check(b), 1);
    CU_ASSERT_EQUAL(b->drawn[0].id, 5);
    batch_free(b);
}

/* ---- what is reported ---- */

static void logprobs_are_those_of_the_untouched_row(void) {
    NEEDS_FIBRES();
    rng_state = 57;
    for (int round = 0; round < 6; round++) {
        device_fresh(round);
        batch *b = batch_new(1, PICK(1, 3, 19, 20, 21, 300), 0);
        fill_row(batch_row(b, 0), b->V, round);
        want w = want_greedy(0);
        w.p.n_logprobs = 20;
        w.bias[0] = (sp_logit_bias){b->V - 1, 100};
        w.p.n_logit_bias = 1;
        (void)batch_add(b, &w);
        if (batch_check(b) == 1) {
            sp_sample host;
            sp_sampler *s = sp_sampler_create(b->V);
            const sp_drawn *d = &b->drawn[0];
            sp_sampler_logprobs(s, b->logits, b->V, d->id, 20, &host);
            sp_sampler_destroy(s);
            CU_ASSERT_EQUAL(d->rank, host.rank);
            CU_ASSERT_EQUAL(d->n_top, host.n_top);
            CU_ASSERT(memcmp(&d->logprob, &host.logprob, sizeof host.logprob) == 0);
            for (int32_t i = 0; i < host.n_top; i++) CU_ASSERT_EQUAL(d->top_id[i], host.top[i].id);
        }
        batch_free(b);
    }
}

/* ---- shapes and the device's operation ---- */

static void wrong_shapes_are_refused_before_anything_is_queued(void) {
    NEEDS_FIBRES();
    device_fresh(0);
    const int64_t before = cu_emu_launches();
    float x[4];
    sp_draw_args a = {.logits = x, .ld = 4, .V = 4};
    CUDA_OK(cu_draw(NULL, &a, NULL));
    a.n = 1;
    CU_ASSERT_EQUAL(cu_draw(NULL, &a, NULL), cudaErrorInvalidValue);
    a.ld = 3;
    CU_ASSERT_EQUAL(cu_draw(NULL, &a, x), cudaErrorInvalidValue);
    a.ld = a.V = 0;
    CU_ASSERT_EQUAL(cu_draw(NULL, &a, x), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_emu_launches(), before);
    CU_ASSERT_EQUAL(cu_draw_scratch(0, 100), 0);
    CU_ASSERT(cu_draw_scratch(1000, 100) == cu_draw_scratch(128, 100));
}

/* The host's arrays are sent: they may change as soon as the step was submitted. */
static void the_operation_draws_from_logits_of_the_device(void) {
    NEEDS_FIBRES();
    rng_state = 58;
    sp_err err = {0};
    cu_emu_config c;
    device_fresh(2);
    cu_emu_get_config(&c);
    c.pace = CU_EMU_LAZY;
    c.protect = 1;
    cu_emu_configure(&c);
    sp_dev dev = {.ops = superpod_device_plugin(SP_DEV_PLUGIN_ABI)->ops};
    const sp_dev_config config = {.backend = "emu"};
    CU_ASSERT_EQUAL_FATAL(dev.ops->open(&dev, &config, &err), SP_OK);
    batch *b = any_batch(50, 6);
    const size_t n_logits = (size_t)b->R * (size_t)b->ld * sizeof(float);
    float *logits = dev.ops->alloc(&dev, n_logits);
    int32_t *last = dev.ops->alloc(&dev, sizeof b->last);
    sp_drawn *drawn = dev.ops->alloc(&dev, sizeof b->drawn);
    sp_drawn *there = dev.ops->host_alloc(&dev, sizeof b->drawn);
    batch *sent = malloc(sizeof *sent);
    *sent = *b;
    dev.ops->upload(&dev, logits, b->logits, n_logits);
    const sp_draw_args a = {logits,      b->ld,      b->V,      b->n, sent->draws, sent->tokens,
                            b->n_tokens, sent->bias, b->n_bias, last, drawn};
    dev.ops->draw(&dev, &a);
    dev.ops->download(&dev, there, drawn, sizeof b->drawn);
    const sp_ticket ticket = dev.ops->submit(&dev);
    memset(sent, 0x55, sizeof *sent);
    CU_ASSERT_EQUAL(dev.ops->poll(&dev, ticket, SP_NEVER, &err), SP_OK);
    for (int32_t i = 0; i < b->n; i++) {
        const sp_drawn host = host_says(b, &b->wants[i]);
        CU_ASSERT(memcmp(&there[i], &host, sizeof host) == 0);
    }
    free(sent);
    dev.ops->host_free(&dev, there, sizeof b->drawn);
    dev.ops->free(&dev, drawn, sizeof b->drawn);
    dev.ops->free(&dev, last, sizeof b->last);
    dev.ops->free(&dev, logits, n_logits);
    dev.ops->close(&dev);
    batch_free(b);
}

SP_TEST_MAIN("cuda draw", SP_TEST(draws_have_the_bits_of_the_hosts_sampler),
             SP_TEST(the_same_bits_in_company_and_alone),
             SP_TEST(large_vocabularies_have_the_bits_of_the_hosts_sampler),
             SP_TEST(the_largest_vocabulary_is_drawn_from),
             SP_TEST(every_seed_gives_the_token_of_the_host),
             SP_TEST(the_last_survivor_of_top_p_is_that_of_the_host),
             SP_TEST(a_logit_at_the_bound_of_min_p_is_rounded_as_on_the_host),
             SP_TEST(the_closest_calls_go_as_on_the_host),
             SP_TEST(equal_logits_go_by_id_and_zeros_are_equal),
             SP_TEST(a_broken_row_is_told_from_one_that_was_masked),
             SP_TEST(a_ban_beside_a_bias_and_a_second_ban_is_a_ban),
             SP_TEST(logprobs_are_those_of_the_untouched_row),
             SP_TEST(wrong_shapes_are_refused_before_anything_is_queued),
             SP_TEST(the_operation_draws_from_logits_of_the_device))
