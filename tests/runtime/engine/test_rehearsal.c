/* Covers runtime/engine/rehearsal.c with ranks as threads: any shape gives the tokens of the oracle,
 * and whatever one rank gets wrong shows in the token. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "runtime/engine/rehearsal.h"
#include "tests/fake_group.h"
#include "tests/harness.h"

#include <string.h>

enum {
    VOCAB = 50,
    LO = 10,
    HI = 39,
    B = 4,
    BLOCKS = 8,
    N = 14,
    RANKS = 8
};
static const int32_t TOKENS[N] = {3, 41, 4, 1, 25, 9, 2, 46, 5, 33, 5, 18, 9, 27};
static const int32_t GOOD[] = {0, 5, 2, 3};

typedef struct shape {
    int tp, pp;
    sp_fake_hub *tps[RANKS], *pps[RANKS];
    sp_rehearsal *r[RANKS];
    sp_thread thread[RANKS];
    /* What each is told of the step, and what it says. */
    int32_t ids[RANKS][N];
    int32_t blocks[RANKS][4];
    int32_t from, n;
    sp_status st[RANKS];
    sp_err err[RANKS];
} shape;

typedef struct turn {
    shape *s;
    int rank;
} turn;

static sp_rehearsal_config config_of(const shape *s, int rank) {
    sp_rehearsal_config c = {.hidden = 6,
                             .n_layers = 2,
                             .n_vocab = VOCAB,
                             .token_lo = LO,
                             .token_hi = HI,
                             .n_blocks = BLOCKS,
                             .block_tokens = B,
                             .max_batched_tokens = N,
                             .max_step_rows = 2};
    if (s->tp > 1) c.tp = sp_fake_hub_member(s->tps[rank / s->tp], rank % s->tp);
    if (s->pp > 1) c.pp = sp_fake_hub_member(s->pps[rank % s->tp], rank / s->tp);
    return c;
}

static void shape_init(shape *s, int tp, int pp) {
    memset(s, 0, sizeof *s);
    s->tp = tp;
    s->pp = pp;
    for (int i = 0; i < pp; i++) s->tps[i] = sp_fake_hub_open(tp, 4);
    for (int i = 0; i < tp; i++) s->pps[i] = sp_fake_hub_open(pp, 4);
    for (int i = 0; i < tp * pp; i++) {
        sp_rehearsal_config c = config_of(s, i);
        sp_err err = {0};
        CU_ASSERT_EQUAL_FATAL(sp_rehearsal_create(&s->r[i], &c, &err), SP_OK);
        memcpy(s->ids[i], TOKENS, sizeof TOKENS);
        memcpy(s->blocks[i], GOOD, sizeof GOOD);
    }
}

static void shape_fini(shape *s) {
    for (int i = 0; i < s->tp * s->pp; i++) sp_rehearsal_destroy(s->r[i]);
    for (int i = 0; i < RANKS; i++) {
        sp_fake_hub_close(s->tps[i]);
        sp_fake_hub_close(s->pps[i]);
    }
}

/* As a rank that ends does: its neighbours hear of it. */
static void leave(shape *s, int rank) {
    sp_fake_hub_leave(s->tps[rank / s->tp], rank % s->tp);
    sp_fake_hub_leave(s->pps[rank % s->tp], rank / s->tp);
}

static void *rank_step(void *arg) {
    const turn *t = arg;
    shape *s = t->s;
    int32_t row = s->n - 1;
    sp_seq_rows seq = {.n_rows = s->n, .pos0 = s->from, .blocks = s->blocks[t->rank]};
    sp_batch b = {.ids = s->ids[t->rank] + s->from,
                  .n_tokens = s->n,
                  .seqs = &seq,
                  .n_seqs = 1,
                  .rows = &row,
                  .n_rows = 1};
    sp_stage_model m = sp_rehearsal_callbacks(s->r[t->rank]);
    const float *logits = &(const float){0};
    s->st[t->rank] = m.forward(m.ctx, &b, &logits, &s->err[t->rank]);
    CU_ASSERT(s->st[t->rank] != SP_OK || logits == NULL);
    if (s->st[t->rank] != SP_OK) leave(s, t->rank);
    return NULL;
}

/* One step of all ranks but `missing`; the sampler's token. */
static int32_t step_without(shape *s, int32_t from, int32_t n, int missing) {
    turn turns[RANKS];
    sp_err err = {0};
    s->from = from;
    s->n = n;
    for (int i = 0; i < s->tp * s->pp; i++) {
        turns[i] = (turn){s, i};
        if (i == missing) continue;
        CU_ASSERT_EQUAL_FATAL(sp_thread_start(&s->thread[i], "rank", rank_step, &turns[i], &err),
                              SP_OK);
    }
    if (missing >= 0) leave(s, missing);
    for (int i = 0; i < s->tp * s->pp; i++)
        if (i != missing) sp_thread_join(&s->thread[i]), s->thread[i].started = false;
    sp_stage_model m = sp_rehearsal_callbacks(s->r[(s->pp - 1) * s->tp]);
    return m.token(m.ctx, 0);
}

static int32_t step(shape *s, int32_t from, int32_t n) {
    int32_t token = step_without(s, from, n, -1);
    for (int i = 0; i < s->tp * s->pp; i++) CU_ASSERT_EQUAL(s->st[i], SP_OK);
    return token;
}

static const int SHAPES[][2] = {{1, 1}, {2, 1}, {3, 1}, {1, 2}, {2, 2}, {4, 2}, {1, 4}};

static void any_shape_and_any_chunks_give_the_tokens_of_the_oracle(void) {
    for (size_t i = 0; i < SP_LEN(SHAPES); i++)
        for (int32_t chunk = 1; chunk <= N; chunk += 3) {
            static shape s;
            shape_init(&s, SHAPES[i][0], SHAPES[i][1]);
            for (int32_t at = 0; at < N; at += chunk) {
                int32_t n = chunk < N - at ? chunk : N - at;
                int32_t got = step(&s, at, n);
                CU_ASSERT_EQUAL(got, sp_rehearsal_token(TOKENS, at + n, LO, HI));
                CU_ASSERT(got >= LO && got <= HI);
            }
            shape_fini(&s);
        }
}

/* The token after TOKENS when rank `bad` has another table; a wrong one may hit one in 30 by luck,
 * so several are tried. */
static int n_hidden(int tp, int pp, int bad, bool stale) {
    int hidden = 0;
    for (int32_t k = stale; k < 3 + stale; k++) { /* block 0 would get what it has */
        static shape s;
        shape_init(&s, tp, pp);
        (void)step(&s, 0, N - 1);
        if (stale) {
            /* Somebody else writes into a block of this rank's sequence. */
            int32_t mine = s.blocks[bad][k];
            memset(s.blocks[bad], 0, sizeof s.blocks[bad]);
            s.blocks[bad][0] = mine;
            for (int i = 0; i < tp * pp; i++)
                if (i != bad) s.blocks[i][0] = 7;
            (void)step(&s, 0, 2);
            for (int i = 0; i < tp * pp; i++) memcpy(s.blocks[i], GOOD, sizeof GOOD);
        } else {
            s.blocks[bad][k] = 6;
        }
        hidden += step(&s, N - 1, 1) == sp_rehearsal_token(TOKENS, N, LO, HI);
        shape_fini(&s);
    }
    return hidden;
}

static void a_wrong_table_or_a_stale_block_of_any_rank_shows(void) {
    for (size_t i = 0; i < SP_LEN(SHAPES); i++)
        for (int bad = 0; bad < SHAPES[i][0] * SHAPES[i][1]; bad++) {
            CU_ASSERT(n_hidden(SHAPES[i][0], SHAPES[i][1], bad, false) < 2);
            CU_ASSERT(n_hidden(SHAPES[i][0], SHAPES[i][1], bad, true) < 2);
        }
}

static void a_token_that_an_embedding_rank_has_wrong_shows(void) {
    for (size_t i = 0; i < SP_LEN(SHAPES); i++)
        for (int bad = 0; bad < SHAPES[i][0]; bad++) {
            int hidden = 0, tried = 0;
            for (int32_t at = 0; at < N; at++) {
                static shape s;
                shape_init(&s, SHAPES[i][0], SHAPES[i][1]);
                /* Its own row of the embedding, or one that it takes for its own. */
                int32_t part = (VOCAB + s.tp - 1) / s.tp;
                bool own = TOKENS[at] / part == bad;
                s.ids[bad][at] = own ? (TOKENS[at] + 1) % VOCAB : bad * part;
                tried++;
                /* A group may see it too, by owners that are not the same at all members. */
                int32_t got = step_without(&s, 0, N, -1);
                for (int r = 0; r < s.tp * s.pp; r++)
                    if (s.st[r] != SP_OK) got = -1;
                hidden += got == sp_rehearsal_token(TOKENS, N, LO, HI);
                shape_fini(&s);
            }
            CU_ASSERT(hidden <= tried / 4);
        }
}

static void a_rank_that_is_gone_is_a_lost_peer_to_all_others(void) {
    for (int gone = 0; gone < 4; gone++) {
        static shape s;
        shape_init(&s, 2, 2);
        (void)step(&s, 0, 5);
        (void)step_without(&s, 5, 5, gone);
        int lost = 0;
        for (int i = 0; i < 4; i++)
            if (i != gone) lost += s.st[i] == SP_E_PEER_LOST;
        /* The first stage may have done its step before the last one broke. */
        CU_ASSERT(lost >= (gone < 2 ? 3 : 1));
        shape_fini(&s);
    }
}

static void settings_that_cannot_work_are_refused_by_name(void) {
    static const struct {
        size_t offset;
        int32_t value;
        const char *word;
    } rows[] = {
        {offsetof(sp_rehearsal_config, hidden), 3, "'hidden' is 3"},
        {offsetof(sp_rehearsal_config, n_layers), -1, "'n_layers' is -1"},
        {offsetof(sp_rehearsal_config, token_hi), LO - 1, "'token_hi' is 9, want 10..49"},
        {offsetof(sp_rehearsal_config, token_lo), VOCAB, "'token_lo' is 50"},
        {offsetof(sp_rehearsal_config, max_step_rows), 0, "'max_step_rows' is 0"},
    };
    shape alone = {.tp = 1, .pp = 1};
    sp_rehearsal *r = NULL;
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_rehearsal_config c = config_of(&alone, 0);
        sp_err err = {0};
        memcpy((char *)&c + rows[i].offset, &rows[i].value, sizeof rows[i].value);
        CU_ASSERT_EQUAL(sp_rehearsal_create(&r, &c, &err), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].word));
    }
    for (int64_t n = 1; n <= 8; n++) {
        sp_rehearsal_config c = config_of(&alone, 0);
        sp_err err = {0};
        sp_mem_fail_at(n);
        CU_ASSERT_EQUAL(sp_rehearsal_create(&r, &c, &err), SP_E_NOMEM);
    }
    sp_mem_fail_at(0);
    CU_ASSERT_PTR_NULL(r);
}

static void a_step_allocates_nothing_and_takes_the_time_it_is_told(void) {
    shape alone = {.tp = 1, .pp = 1};
    sp_rehearsal_config c = config_of(&alone, 0);
    sp_err err = {0};
    c.step_ns = 2 * SP_NS_PER_MS;
    CU_ASSERT_EQUAL_FATAL(sp_rehearsal_create(&alone.r[0], &c, &err), SP_OK);
    memcpy(alone.ids[0], TOKENS, sizeof TOKENS);
    memcpy(alone.blocks[0], GOOD, sizeof GOOD);
    alone.n = N;
    turn t = {&alone, 0};
    uint64_t before = sp_mem_count();
    int64_t from = sp_now_ns();
    (void)rank_step(&t);
    CU_ASSERT_EQUAL(alone.st[0], SP_OK);
    CU_ASSERT(sp_now_ns() - from >= 2 * SP_NS_PER_MS);
    CU_ASSERT_EQUAL(sp_mem_count(), before);
    sp_rehearsal_destroy(alone.r[0]);
}

SP_TEST_MAIN("runtime/engine/rehearsal",
             SP_TEST(any_shape_and_any_chunks_give_the_tokens_of_the_oracle),
             SP_TEST(a_wrong_table_or_a_stale_block_of_any_rank_shows),
             SP_TEST(a_token_that_an_embedding_rank_has_wrong_shows),
             SP_TEST(a_rank_that_is_gone_is_a_lost_peer_to_all_others),
             SP_TEST(settings_that_cannot_work_are_refused_by_name),
             SP_TEST(a_step_allocates_nothing_and_takes_the_time_it_is_told))
