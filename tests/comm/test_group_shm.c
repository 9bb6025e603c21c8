/* Covers comm/group_shm.c: the operations, by members that are threads and that are processes. What
 * goes wrong is in test_group_shm_sync.c. */
#include "comm/group.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef int (*work_fn)(sp_group *g, const sp_group_config *c); /* answers how much was wrong */

typedef struct member {
    int fd, wrong;
    sp_group_config config;
    work_fn work;
    sp_thread thread;
} member;

static int be_member(const member *m) {
    sp_group *g = NULL;
    sp_err err = {0};
    if (sp_group_open_shm(&g, m->fd, &m->config, &err) != SP_OK) return 1000;
    int wrong = m->work(g, &m->config);
    if (g->ops->poll(g, sp_now_ns(), &err) != SP_OK) {
        printf("member %d: %s\n", g->me, err.text);
        wrong += 100;
    }
    g->ops->close(g);
    return wrong;
}

static void *member_thread(void *arg) {
    member *m = arg;
    m->wrong = be_member(m);
    return NULL;
}

static sp_group_config config_for(int n, size_t max_reduce) {
    return (sp_group_config){.n = n,
                             .max_reduce = max_reduce,
                             .max_message = 1000,
                             .sends = 3,
                             .timeout_ns = 20 * SP_NS_PER_S,
                             .crowded = n % 2 == 0};
}

/* All members do `work`; answers how much was wrong at all of them. */
static int together(bool as_processes, const sp_group_config *c, work_fn work) {
    member all[SP_GROUP_MEMBERS_MAX] = {0};
    int fd, wrong = 0;
    CU_ASSERT_EQUAL_FATAL(sp_group_shm_create(&fd, c, NULL), SP_OK);
    pid_t pids[SP_GROUP_MEMBERS_MAX] = {0};
    fflush(NULL);
    for (int m = 0; m < c->n; m++) {
        all[m] = (member){.fd = fd, .config = *c, .work = work};
        all[m].config.me = m;
        if (!as_processes) {
            CU_ASSERT_EQUAL_FATAL(
                sp_thread_start(&all[m].thread, "m", member_thread, &all[m], NULL), SP_OK);
        } else if ((pids[m] = fork()) == 0) {
            wrong = be_member(&all[m]);
            fflush(NULL);
            _exit(wrong > 255 ? 255 : wrong);
        }
    }
    for (int m = 0; m < c->n; m++) {
        int how = 0;
        sp_thread_join(&all[m].thread);
        if (as_processes && (waitpid(pids[m], &how, 0) != pids[m] || how != 0)) wrong++;
        wrong += all[m].wrong;
    }
    close(fd);
    return wrong;
}

static void both_ways(const sp_group_config *c, work_fn work) {
    CU_ASSERT_EQUAL(together(false, c, work), 0);
    CU_ASSERT_EQUAL(together(true, c, work), 0);
}

/* ---- sums ---- */

/* What member m brings in round r: sizes so different that another order gives other bits. */
static float value(int m, size_t i, int r) {
    uint32_t x = (uint32_t)i * 2654435761u ^ (uint32_t)(m + 1) * 0x9e3779b9u ^ (uint32_t)r << 20;
    x ^= x >> 15;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    return ldexpf((float)(x & 0xffff) - 32768.0f, (int)(x >> 16) % 20 - 10);
}

static float by_the_rule(int n, size_t i, int r, int from, int span) {
    if (span == 1) return value(from, i, r);
    float left = by_the_rule(n, i, r, from, span / 2);
    if (from + span / 2 >= n) return left;
    return left + by_the_rule(n, i, r, from + span / 2, span / 2);
}

static int reduce_once(sp_group *g, size_t n, int r) {
    int wrong = 0, span = 1;
    while (span < g->n) span *= 2;
    float *buf = malloc((n + 1) * sizeof *buf);
    if (!buf) return 1;
    for (size_t i = 0; i < n; i++) buf[i] = value(g->me, i, r);
    buf[n] = 12345;
    g->ops->all_reduce(g, buf, n);
    /* All of a small one, and samples of a large one: the plain sum is slow. */
    for (size_t i = 0; i<n; i += n> 5000 ? 7 : 1) {
        float want = by_the_rule(g->n, i, r, 0, span);
        wrong += memcmp(&want, &buf[i], sizeof want) != 0;
    }
    wrong += buf[n] != 12345;
    free(buf);
    return wrong;
}

static int reduce_all_sizes(sp_group *g, const sp_group_config *c) {
    static const size_t sizes[] = {1,     2,     7,     15,    16,   17,     63,
                                   1023,  1024,  1025,  4096,  8191, 16385,  32769,
                                   65536, 65537, 81920, 90001, 0,    300003, 3};
    size_t n = SP_LEN(sizes);
    int wrong = 0;
    (void)c;
    for (size_t k = 0; k < n; k++) wrong += reduce_once(g, sizes[k], (int)k);
    return wrong;
}

static void sums_have_the_bits_of_the_tree_for_every_size_and_number_of_members(void) {
    static const int members[] = {1, 2, 3, 4, 5, 8};
    for (size_t k = 0; k < SP_LEN(members); k++) {
        sp_group_config c = config_for(members[k], 1 << 20);
        both_ways(&c, reduce_all_sizes);
    }
}

static int reduce_in_small_pieces(sp_group *g, const sp_group_config *c) {
    (void)c;
    return reduce_once(g, 1024 * 5 + 3, 1) + reduce_once(g, 999, 2) + reduce_once(g, 2048, 3);
}

static void tensors_above_what_was_expected_go_in_pieces(void) {
    static const size_t expected[] = {0, 1, 1000};
    for (size_t k = 0; k < SP_LEN(expected); k++) {
        sp_group_config c = config_for(3, expected[k]);
        both_ways(&c, reduce_in_small_pieces);
    }
}

static int reduce_often(sp_group *g, const sp_group_config *c) {
    int wrong = 0;
    (void)c;
    for (int r = 0; r < 400; r++) wrong += reduce_once(g, 1 + (size_t)(r * 37 % 300), r);
    return wrong;
}

static void many_sums_in_a_row_do_not_mix(void) {
    for (int n = 2; n <= 5; n++) {
        sp_group_config c = config_for(n, 300);
        both_ways(&c, reduce_often);
    }
}

/* ---- rows ---- */

/* Bits that arithmetic would change: -0, signalling NaN, payloads, denormals. */
static uint32_t pattern(int m, size_t i) {
    static const uint32_t odd[] = {0x80000000u, 0x7fa00001u, 0xffc54321u, 1, 0x7f800000u};
    return i % 3 == 0 ? odd[(i / 3 + (size_t)m) % SP_LEN(odd)]
                      : (uint32_t)i * 2654435761u + (uint32_t)m;
}

static int pick_once(sp_group *g, size_t n_rows, size_t cols, int shift) {
    uint32_t *rows = malloc((n_rows * cols + 1) * sizeof *rows);
    int32_t *owner = malloc((n_rows + 1) * sizeof *owner);
    int wrong = 0;
    if (!rows || !owner) abort();
    for (size_t i = 0; i < n_rows * cols; i++) rows[i] = pattern(g->me, i);
    for (size_t i = 0; i < n_rows; i++)
        owner[i] = (int32_t)((i * i + (size_t)shift) % (size_t)g->n);
    g->ops->pick_rows(g, (float *)(void *)rows, n_rows, cols, owner);
    for (size_t i = 0; i < n_rows * cols; i++) wrong += rows[i] != pattern(owner[i / cols], i);
    free(rows);
    free(owner);
    return wrong;
}

static int pick_sizes(sp_group *g, const sp_group_config *c) {
    (void)c;
    return pick_once(g, 1, 1, 0) + pick_once(g, 37, 33, 1) + pick_once(g, 5, 3000, 2) +
           pick_once(g, 0, 8, 0) + pick_once(g, 8, 0, 0) + pick_once(g, 300, 7, 3);
}

static void picked_rows_keep_every_bit(void) {
    static const int members[] = {1, 2, 3, 5};
    for (size_t k = 0; k < SP_LEN(members); k++) {
        sp_group_config c = config_for(members[k], 1024);
        both_ways(&c, pick_sizes);
    }
}

/* ---- columns ---- */

static int gather_once(sp_group *g, int root, size_t n_rows, const int32_t *cols) {
    size_t width = 0, mine = (size_t)cols[g->me];
    for (int m = 0; m < g->n; m++) width += (size_t)cols[m];
    uint32_t *in = malloc((n_rows * mine + 1) * sizeof *in), *out = NULL;
    int wrong = 0;
    if (!in) abort();
    for (size_t i = 0; i < n_rows * mine; i++) in[i] = pattern(g->me + root, i);
    if (g->me == root) {
        out = malloc((n_rows * width + 1) * sizeof *out);
        if (!out) abort();
    }
    g->ops->gather_cols(g, root, (float *)(void *)in, (float *)(void *)out, n_rows, cols);
    for (size_t r = 0; out && r < n_rows; r++) {
        size_t at = r * width;
        for (int m = 0; m < g->n; m++)
            for (size_t i = 0; i < (size_t)cols[m]; i++)
                wrong += out[at++] != pattern(m + root, r * (size_t)cols[m] + i);
    }
    free(in);
    free(out);
    return wrong;
}

static int gather_all_roots(sp_group *g, const sp_group_config *c) {
    static const int32_t uneven[8] = {3, 0, 1500, 16, 1, 7, 2047, 64};
    static const int32_t even[8] = {32, 32, 32, 32, 32, 32, 32, 32};
    int wrong = 0;
    (void)c;
    for (int root = 0; root < g->n; root++) {
        wrong += gather_once(g, root, 3, uneven) + gather_once(g, root, 1, even);
        wrong += gather_once(g, root, 50, even) + reduce_once(g, 40, root);
        wrong += gather_once(g, root, 0, even) + gather_once(g, root, 7, uneven);
    }
    return wrong;
}

static void gathered_columns_lie_side_by_side_at_the_root(void) {
    static const int members[] = {1, 2, 3, 5, 8};
    for (size_t k = 0; k < SP_LEN(members); k++) {
        sp_group_config c = config_for(members[k], 1024);
        both_ways(&c, gather_all_roots);
    }
}

/* ---- messages ---- */

#define MESSAGES 200
static size_t message_bytes(int from, int k) {
    return k % 10 == 0 ? 0 : (size_t)((k * 131 + from * 17) % 1001);
}

static int hop_round(sp_group *g, const sp_group_config *c) {
    unsigned char out[1000], in[1001];
    int wrong = 0, to = (g->me + 1) % g->n, from = (g->me + g->n - 1) % g->n;
    (void)c;
    for (int k = 0; k < MESSAGES; k++) {
        size_t bytes = message_bytes(g->me, k), coming = message_bytes(from, k);
        memset(out, g->me * 31 + k, bytes);
        g->ops->send(g, to, out, bytes);
        memset(out, 0xee, sizeof out); /* data may be used again */
        memset(in, 0x77, sizeof in);
        if (k % 2) continue; /* up to two of three are on their way */
        for (int late = k > 0 ? k - 1 : 0; late <= k; late++) {
            coming = message_bytes(from, late);
            g->ops->recv(g, from, in, coming);
            for (size_t i = 0; i < coming; i++) wrong += in[i] != (unsigned char)(from * 31 + late);
        }
    }
    return wrong;
}

static void messages_arrive_whole_and_in_order(void) {
    for (int n = 1; n <= 5; n += 2) {
        sp_group_config c = config_for(n, 8);
        both_ways(&c, hop_round);
    }
}

/* Member 0 sends far more than may be on their way; member 1 sums between taking them. */
static int flood(sp_group *g, const sp_group_config *c) {
    int wrong = 0;
    (void)c;
    for (int k = 0; k < 500; k++) {
        int64_t word = k * 3;
        if (g->me == 0) g->ops->send(g, 1, &word, sizeof word);
        if (g->me == 1) {
            word = -1;
            g->ops->recv(g, 0, &word, sizeof word);
            wrong += word != k * 3;
        }
    }
    return wrong + reduce_once(g, 100, 1);
}

static void a_fast_sender_waits_for_the_receiver(void) {
    sp_group_config c = config_for(2, 100);
    both_ways(&c, flood);
    c.crowded = false;
    both_ways(&c, flood);
}

/* ---- all of it ---- */

static int mixed(sp_group *g, const sp_group_config *c) {
    static const int32_t cols[8] = {5, 9, 1, 700, 3, 2, 8, 4};
    int wrong = 0;
    uint32_t state = 99;
    (void)c;
    for (int k = 0; k < 150; k++) {
        state = state * 1664525u + 1013904223u;
        size_t size = state >> 16 & 4095;
        switch (state >> 28 & 3) {
        case 0:
            wrong += reduce_once(g, size, k);
            break;
        case 1:
            wrong += pick_once(g, size % 20, size % 90, k);
            break;
        case 2:
            wrong += gather_once(g, k % g->n, size % 9, cols);
            break;
        default:
            wrong += reduce_once(g, size * 8, k);
            break;
        }
    }
    return wrong;
}

static void operations_of_all_kinds_follow_one_another(void) {
    for (int n = 2; n <= 8; n *= 2) {
        sp_group_config c = config_for(n, 2000);
        both_ways(&c, mixed);
    }
}

static int count_allocations(sp_group *g, const sp_group_config *c) {
    static float buf[2][5000];
    int32_t owner[2] = {0, 1}, cols[2] = {10, 20};
    float out[30];
    (void)c;
    uint64_t before = sp_mem_count();
    for (int k = 0; k < 3; k++) {
        g->ops->all_reduce(g, buf[g->me], 5000);
        g->ops->pick_rows(g, buf[g->me], 2, 10, owner);
        g->ops->gather_cols(g, 0, buf[g->me], g->me ? NULL : out, 1, cols);
    }
    return sp_mem_count() != before;
}

static void operations_allocate_nothing(void) {
    sp_group_config c = config_for(2, 1000);
    CU_ASSERT_EQUAL(together(true, &c, count_allocations), 0);
}

SP_TEST_MAIN(
    "comm/group_shm", SP_TEST(sums_have_the_bits_of_the_tree_for_every_size_and_number_of_members),
    SP_TEST(tensors_above_what_was_expected_go_in_pieces), SP_TEST(many_sums_in_a_row_do_not_mix),
    SP_TEST(picked_rows_keep_every_bit), SP_TEST(gathered_columns_lie_side_by_side_at_the_root),
    SP_TEST(messages_arrive_whole_and_in_order), SP_TEST(a_fast_sender_waits_for_the_receiver),
    SP_TEST(operations_of_all_kinds_follow_one_another), SP_TEST(operations_allocate_nothing))
