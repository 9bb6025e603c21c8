/* Covers runtime/model/kv_pieces.c: against the plain reading, one layer and head at a time. */
#include "runtime/model/kv_pieces.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <stdio.h>

typedef struct world {
    sp_model_desc desc;
    const sp_arch *arch;
} world;

static void make_world(world *w, int32_t layers, int32_t heads, int32_t kv_heads) {
    sp_err err = {0};
    *w = (world){0};
    CU_ASSERT_EQUAL_FATAL(sp_model_desc_load(&w->desc, "tests/data/goldens/llama2", &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_arch_find(&w->arch, &w->desc, &err), SP_OK);
    w->desc.n_layers = layers;
    w->desc.n_heads = heads;
    w->desc.n_kv_heads = kv_heads;
}

static bool has(const sp_part *p, int32_t layer, int32_t head) {
    return layer >= p->stage.layer_first && layer < p->stage.layer_first + p->stage.n_layers &&
           head >= p->slice.kv_head_first && head < p->slice.kv_head_first + p->slice.n_kv_heads;
}

/* The first rank that has it, by stage and then by rank. */
static int32_t lowest(const world *w, const sp_kv_source *from, int32_t layer, int32_t head) {
    for (int32_t i = 0; i < from->tp * from->pp; i++) {
        sp_part p;
        sp_err err = {0};
        CU_ASSERT_EQUAL_FATAL(sp_part_of(&p, &w->desc, w->arch, from->tp, from->pp, from->pp_layers,
                                         i / from->tp, i % from->tp, &err),
                              SP_OK);
        if (has(&p, layer, head)) return i;
    }
    return -1;
}

static void check_rank(const world *w, const sp_part *mine, const sp_kv_source *from) {
    sp_kv_piece list[64];
    sp_err err = {0};
    int32_t n = 0;
    CU_ASSERT_EQUAL_FATAL(sp_kv_pieces(list, 64, &n, mine, from, &w->desc, w->arch, &err), SP_OK);
    CU_ASSERT(n >= 1);
    for (int32_t layer = 0; layer < w->desc.n_layers; layer++)
        for (int32_t head = 0; head < w->desc.n_kv_heads; head++) {
            int32_t times = 0, by = -1;
            for (int32_t i = 0; i < n; i++) {
                const sp_kv_piece *p = &list[i];
                if (layer < p->layer_first || layer >= p->layer_first + p->n_layers ||
                    head < p->head_first || head >= p->head_first + p->n_heads)
                    continue;
                times++;
                by = p->stage * from->tp + p->tp_rank;
            }
            CU_ASSERT_EQUAL(times, has(mine, layer, head));
            if (times) CU_ASSERT_EQUAL(by, lowest(w, from, layer, head));
        }
    for (int32_t cap = 0; cap < n; cap++)
        CU_ASSERT_EQUAL(sp_kv_pieces(list, cap, &n, mine, from, &w->desc, w->arch, &err),
                        SP_E_LIMIT);
}

static void check_pair(const world *w, const sp_kv_source *to, const sp_kv_source *from) {
    for (int32_t i = 0; i < to->tp * to->pp; i++) {
        sp_part mine;
        sp_err err = {0};
        CU_ASSERT_EQUAL_FATAL(sp_part_of(&mine, &w->desc, w->arch, to->tp, to->pp, to->pp_layers,
                                         i / to->tp, i % to->tp, &err),
                              SP_OK);
        check_rank(w, &mine, from);
    }
}

static void check_all(int32_t layers, int32_t kv_heads) {
    world w;
    make_world(&w, layers, 8, kv_heads);
    int32_t uneven[4][3] = {{0}};
    for (int32_t pp = 1; pp <= 3; pp++) {
        for (int32_t s = 0; s < pp; s++) uneven[pp][s] = 1;
        uneven[pp][pp / 2] += layers - pp;
    }
    for (int32_t a = 0; a < 24; a++)
        for (int32_t b = 0; b < 24; b++) {
            const sp_kv_source to = {1 << a % 4, 1 + a / 4 % 3,
                                     a / 12 ? uneven[1 + a / 4 % 3] : NULL};
            const sp_kv_source from = {1 << b % 4, 1 + b / 4 % 3,
                                       b / 12 ? uneven[1 + b / 4 % 3] : NULL};
            check_pair(&w, &to, &from);
        }
}

static void every_layer_and_head_comes_once_from_the_lowest_rank_that_has_it(void) {
    check_all(5, 8);
    check_all(7, 4);
}

static void heads_that_are_replicated_come_from_the_lowest_rank(void) {
    check_all(5, 2);
    check_all(3, 1);
}

static void degrees_that_do_not_fit_the_model_are_refused(void) {
    world w;
    sp_part mine;
    sp_err err = {0};
    sp_kv_piece list[8];
    int32_t n = -1;
    make_world(&w, 4, 8, 4);
    CU_ASSERT_EQUAL_FATAL(sp_part_of(&mine, &w.desc, w.arch, 1, 1, NULL, 0, 0, &err), SP_OK);
    const int32_t bad_layers[] = {3, 2};
    const sp_kv_source bad[] = {
        {3, 1, NULL}, {0, 1, NULL}, {1, 5, NULL}, {1, 0, NULL}, {1, 2, bad_layers}};
    for (size_t i = 0; i < SP_LEN(bad); i++)
        CU_ASSERT_EQUAL(sp_kv_pieces(list, 8, &n, &mine, &bad[i], &w.desc, w.arch, &err),
                        SP_E_INVALID);
    CU_ASSERT_EQUAL(n, -1);
}

SP_TEST_MAIN("runtime/model/kv_pieces",
             SP_TEST(every_layer_and_head_comes_once_from_the_lowest_rank_that_has_it),
             SP_TEST(heads_that_are_replicated_come_from_the_lowest_rank),
             SP_TEST(degrees_that_do_not_fit_the_model_are_refused))
