/* Covers comm/group_nccl.c over the emulated NCCL (kernels/cuda/emu/nccl*.cc). */
#include "comm/group_tree.h"
#include "kernels/cuda/kernels.h"
#include "tests/kernels/cuda/nccl_env.h"

#include <math.h>

static float value(int m, size_t i, int r) {
    uint32_t x = (uint32_t)i * 2654435761u ^ (uint32_t)(m + 1) * 0x9e3779b9u ^ (uint32_t)r << 20;
    x ^= x >> 15;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    return ldexpf((float)(x & 0xffff) - 32768.0f, (int)(x >> 16) % 20 - 10);
}

typedef struct dev_floats {
    float *dev, *host;
    size_t n;
} dev_floats;

static dev_floats take(size_t n) {
    dev_floats f = {NULL, malloc((n + 1) * sizeof(float)), n};
    if (cudaMalloc((void **)&f.dev, (n + 1) * sizeof(float)) != cudaSuccess) abort();
    return f;
}
static void drop(dev_floats *f) {
    cudaFree(f->dev);
    free(f->host);
}
static void up(const cast_member *m, dev_floats *f) {
    cudaMemcpyAsync(f->dev, f->host, f->n * sizeof(float), cudaMemcpyHostToDevice, m->stream);
}
static int down(cast_member *m, dev_floats *f) {
    sp_err err = {0};
    if (m->g->ops->poll(m->g, SP_NEVER, &err) != SP_OK) {
        printf("member %d: %s\n", m->config.me, err.text);
        return 100;
    }
    return cudaMemcpyAsync(f->host, f->dev, f->n * sizeof(float), cudaMemcpyDeviceToHost,
                           m->stream) == cudaSuccess
               ? 0
               : 100;
}

static int reduce_once(cast_member *m, size_t n, int r, bool fast) {
    const int members = m->config.n;
    int wrong = 0;
    dev_floats f = take(n);
    float *parts[CAST_MAX], *want = malloc((n + 1) * sizeof *want);
    for (int k = 0; k < members; k++) {
        parts[k] = malloc((n + 1) * sizeof(float));
        for (size_t i = 0; i < n; i++) parts[k][i] = value(k, i, r);
    }
    memcpy(f.host, parts[m->config.me], n * sizeof(float));
    up(m, &f);
    m->g->ops->all_reduce(m->g, f.dev, n);
    wrong += down(m, &f);
    sp_group_tree(want, (const float *const *)parts, members, n);
    size_t other = 0;
    for (size_t i = 0; i < n; i++) {
        other += memcmp(&want[i], &f.host[i], sizeof(float)) != 0;
        if (fast) wrong += !(fabsf(want[i] - f.host[i]) <= 1e-5f * 32768.0f * 1024.0f);
    }
    /* The library's own sum has another order than the tree: that is how a test can tell. */
    if (fast)
        CAST_WANT(members < 4 || n < 100 || other > 0);
    else
        CAST_WANT(other == 0);
    for (int k = 0; k < members; k++) free(parts[k]);
    free(want);
    drop(&f);
    return wrong;
}

static int pick_once(cast_member *m, size_t n_rows, size_t cols, int only) {
    int wrong = 0;
    size_t n = n_rows * cols;
    dev_floats f = take(n);
    int32_t *owner = malloc(n_rows * sizeof *owner);
    for (size_t i = 0; i < n_rows; i++)
        owner[i] = only >= 0 ? only : (int32_t)(i * 7 / 3 % (size_t)m->config.n);
    for (size_t i = 0; i < n; i++) f.host[i] = i % 5 == 0 ? -0.0f : value(m->config.me, i, 3);
    up(m, &f);
    m->g->ops->pick_rows(m->g, f.dev, n_rows, cols, owner);
    memset(owner, 0xff, n_rows * sizeof *owner); /* read during the call only */
    wrong += down(m, &f);
    size_t other = 0;
    for (size_t i = 0; i < n; i++) {
        size_t row = i / cols;
        int who = only >= 0 ? only : (int)(row * 7 / 3 % (size_t)m->config.n);
        float want = i % 5 == 0 ? -0.0f : value(who, i, 3);
        other += memcmp(&want, &f.host[i], sizeof want) != 0;
    }
    CAST_WANT(other == 0);
    free(owner);
    drop(&f);
    return wrong;
}

static int gather_once(cast_member *m, int root, size_t n_rows, const int32_t *cols) {
    int wrong = 0;
    const int me = m->config.me;
    size_t all = 0, own = n_rows * (size_t)cols[me];
    for (int k = 0; k < m->config.n; k++) all += (size_t)cols[k];
    dev_floats f = take(own), out = take(me == root ? n_rows * all : 0);
    for (size_t i = 0; i < own; i++) f.host[i] = value(me, i, 4);
    up(m, &f);
    m->g->ops->gather_cols(m->g, root, f.dev, me == root ? out.dev : NULL, n_rows, cols);
    wrong += down(m, &out);
    size_t other = 0, first = 0;
    for (int k = 0; k < m->config.n && me == root; k++) {
        for (size_t i = 0; i < n_rows * (size_t)cols[k]; i++) {
            float want = value(k, i, 4);
            size_t at = i / (size_t)cols[k] * all + first + i % (size_t)cols[k];
            other += memcmp(&want, &out.host[at], sizeof want) != 0;
        }
        first += (size_t)cols[k];
    }
    CAST_WANT(other == 0);
    drop(&f);
    drop(&out);
    return wrong;
}

/* Down the pipeline and nothing back, as hops go; then up. */
static int hops(cast_member *m, size_t bytes) {
    int wrong = 0;
    const int me = m->config.me, n = m->config.n;
    unsigned char *dev = NULL, *host = malloc(bytes + 1);
    if (cudaMalloc((void **)&dev, bytes + 1) != cudaSuccess) return 1000;
    cudaMemsetAsync(dev, me == 0 ? 77 : 0, bytes, m->stream);
    if (me > 0) CAST_WANT(m->g->ops->can_recv(m->g, me - 1));
    if (me > 0) m->g->ops->recv(m->g, me - 1, dev, bytes);
    if (me < n - 1) m->g->ops->send(m->g, me + 1, dev, bytes);
    cudaMemsetAsync(dev, 5, 1, m->stream); /* the bytes are ours again, in the stream's order */
    CAST_WANT(m->g->ops->poll(m->g, SP_NEVER, NULL) == SP_OK);
    cudaMemcpyAsync(host, dev, bytes, cudaMemcpyDeviceToHost, m->stream);
    CAST_WANT(host[0] == 5);
    for (size_t i = 1; i < bytes; i++) wrong += host[i] != 77;
    cudaFree(dev);
    free(host);
    return wrong;
}

static int everything(cast_member *m) {
    int wrong = 0;
    static const size_t sizes[] = {0, 1, 2, 63, 64, 1000, 4096, 4097, 9001};
    for (size_t i = 0; i < SP_LEN(sizes); i++) wrong += reduce_once(m, sizes[i], (int)i, false);
    wrong += pick_once(m, 1, 1, 0);
    wrong += pick_once(m, 70, 129, -1);
    wrong += pick_once(m, 9, 33, m->config.n - 1);
    wrong += pick_once(m, 3, 6000, -1);
    int32_t cols[CAST_MAX], odd[CAST_MAX], wide[CAST_MAX];
    for (int k = 0; k < CAST_MAX; k++) {
        cols[k] = 40;
        odd[k] = k == 1 ? 0 : 17 * k + 3;
        wide[k] = 4500 + k;
    }
    wrong += gather_once(m, 0, 1, cols);
    wrong += gather_once(m, m->config.n - 1, 120, odd);
    wrong += gather_once(m, 0, 2, wide);
    wrong += hops(m, 1);
    wrong += hops(m, 200001);
    return wrong;
}

static cast_member like(int n, cast_play play) {
    return (cast_member){.play = play,
                         .config = {.n = n,
                                    .max_reduce = 1000, /* below the least piece of 4096 */
                                    .max_message = 300000,
                                    .timeout_ns = 20 * SP_NS_PER_S,
                                    .crowded = true}};
}

static void in_all_paces(bool processes, int n, cast_play play) {
    int before = cast_open_memory(); /* ids made here for processes stay: nobody here joined */
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_MIXED; pace++) {
        cast_pace((cu_emu_pace)pace, (uint64_t)n * 10 + (uint64_t)pace);
        CU_ASSERT_EQUAL(cast_run(cast_nccl(), processes, like(n, play)), 0);
        CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ANY), 0);
        CU_ASSERT_EQUAL(cast_open_memory(), before);
    }
}

static void one_member_alone(void) {
    in_all_paces(false, 1, everything);
}
static void two_threads_get_the_bits_of_the_tree(void) {
    in_all_paces(false, 2, everything);
}
static void three_and_four_threads_get_the_bits_of_the_tree(void) {
    in_all_paces(false, 3, everything);
    in_all_paces(false, 4, everything);
}
/* The maker of an id keeps its memory until it has seen all join, and here it is none of them. */
static void processes_get_the_bits_of_the_tree(void) {
    for (int n = 2; n <= 4; n += 2)
        for (int pace = CU_EMU_EAGER; pace <= CU_EMU_MIXED; pace++) {
            cast_pace((cu_emu_pace)pace, (uint64_t)n * 10 + (uint64_t)pace);
            CU_ASSERT_EQUAL(cast_run(cast_nccl(), true, like(n, everything)), 0);
        }
}

static int large(cast_member *m) {
    return reduce_once(m, 70001, 1, false) + reduce_once(m, 210007, 2, false);
}
static void large_sums_go_in_slices(void) {
    for (int n = 2; n <= 4; n++) {
        cast_member c = like(n, large);
        c.config.max_reduce = 100000;
        cast_pace(CU_EMU_EAGER, 1);
        CU_ASSERT_EQUAL(cast_run(cast_nccl(), false, c), 0);
    }
}

static int fast_sum(cast_member *m) {
    return reduce_once(m, 5000, 1, true);
}
static void the_library_s_own_sum_is_another_one(void) {
    cast_member c = like(4, fast_sum);
    c.fast = true;
    cast_pace(CU_EMU_MIXED, 3);
    CU_ASSERT_EQUAL(cast_run(cast_nccl(), false, c), 0);
}

/* ---- what goes wrong ---- */

static void *abort_later(void *arg) {
    sp_group *g = arg;
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL); /* mostly waiting by then */
    g->ops->abort(g);
    return NULL;
}

/* Member 0 sums with nobody; another thread gives up. */
static int waits_and_is_aborted(cast_member *m) {
    int wrong = 0;
    sp_err err = {0};
    dev_floats f = take(100);
    pthread_t t;
    bool waits = m->config.me == 0;
    if (waits) m->g->ops->all_reduce(m->g, f.dev, 100);
    CAST_WANT(pthread_create(&t, NULL, abort_later, m->g) == 0);
    /* The stream becomes free though this thread asks the group nothing. */
    int64_t late = sp_now_ns() + 2 * SP_NS_PER_S;
    while (waits && cudaStreamQuery(m->stream) == cudaErrorNotReady && sp_now_ns() < late) {
    }
    CAST_WANT(cudaStreamQuery(m->stream) == cudaSuccess);
    sp_status st = SP_AGAIN;
    while (st == SP_AGAIN || st == SP_OK) st = m->g->ops->poll(m->g, sp_now_ns() + 1000000, &err);
    CAST_WANT(st == SP_E_CANCELED);
    m->g->ops->all_reduce(m->g, f.dev, 100); /* does nothing */
    CAST_WANT(m->g->ops->poll(m->g, 0, &err) == SP_E_CANCELED);
    pthread_join(t, NULL);
    drop(&f);
    return wrong;
}
static void an_abort_ends_what_waits(void) {
    in_all_paces(false, 2, waits_and_is_aborted);
    cast_pace(CU_EMU_EAGER, 1);
    CU_ASSERT_EQUAL(cast_run(cast_nccl(), true, like(2, waits_and_is_aborted)), 0);
}

static int polls_with_a_deadline(cast_member *m) {
    int wrong = 0;
    unsigned char *dev = NULL;
    sp_err err = {0};
    if (cudaMalloc((void **)&dev, 8) != cudaSuccess) return 1000;
    if (m->config.me == 1) m->g->ops->recv(m->g, 0, dev, 8);
    if (m->config.me == 1) CAST_WANT(m->g->ops->poll(m->g, sp_now_ns(), &err) == SP_AGAIN);
    if (m->config.me == 1) {
        sp_status st = m->g->ops->poll(m->g, SP_NEVER, &err);
        CAST_WANT(st == SP_E_PEER_LOST && strstr(err.text, "did not come within 50 ms"));
        CAST_WANT(m->g->ops->poll(m->g, SP_NEVER, &err) == SP_E_PEER_LOST);
    }
    return wrong;
}
static void a_member_that_does_not_come_is_a_fault_by_the_timeout(void) {
    cast_member c = like(2, polls_with_a_deadline);
    c.config.timeout_ns = 50 * SP_NS_PER_MS;
    for (int processes = 0; processes < 2; processes++) {
        cast_pace(CU_EMU_LAZY, 1);
        /* 0 leaves first: its end waits for 1 at most a second, and then aborts. */
        CU_ASSERT_EQUAL(cast_run(cast_nccl(), processes, c), 0);
    }
}

static int says_that_something_came(cast_member *m) {
    int wrong = 0;
    unsigned char *dev = NULL;
    sp_err err = {0};
    if (cudaMalloc((void **)&dev, 8) != cudaSuccess) return 1000;
    if (m->config.me == 0) return 0;
    m->g->ops->recv(m->g, 0, dev, 8);
    const int64_t until = sp_now_ns() + 3 * m->config.timeout_ns;
    while (sp_now_ns() < until) {
        m->g->ops->came(m->g);
        CAST_WANT(m->g->ops->poll(m->g, 0, &err) == SP_AGAIN);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    CAST_WANT(m->g->ops->poll(m->g, SP_NEVER, &err) == SP_E_PEER_LOST);
    return wrong;
}
static void a_wait_is_counted_from_what_came_last(void) {
    cast_member c = like(2, says_that_something_came);
    c.config.timeout_ns = 50 * SP_NS_PER_MS;
    cast_pace(CU_EMU_LAZY, 1);
    CU_ASSERT_EQUAL(cast_run(cast_nccl(), false, c), 0);
}

static int is_killed(cast_member *m) {
    int wrong = 0;
    sp_err err = {0};
    dev_floats f = take(100);
    if (m->config.me == 1) raise(SIGKILL);
    m->g->ops->all_reduce(m->g, f.dev, 100);
    CAST_WANT(m->g->ops->poll(m->g, SP_NEVER, &err) == SP_E_PEER_LOST);
    const char *mode = getenv("SUPERPOD_EMU_NCCL_LOST");
    CAST_WANT(strstr(err.text, mode ? "member 1 is gone" : "did not come within 400 ms"));
    drop(&f);
    return wrong;
}
static void a_killed_member_is_silence_or_an_error(void) {
    cast_member c = like(3, is_killed);
    for (int error = 0; error < 2; error++) {
        c.config.timeout_ns = error ? 20 * SP_NS_PER_S : 400 * SP_NS_PER_MS;
        if (error) setenv("SUPERPOD_EMU_NCCL_LOST", "error", 1);
        cast_pace(CU_EMU_EAGER, 1);
        CU_ASSERT_EQUAL(cast_run(cast_nccl(), true, c), 0);
    }
    unsetenv("SUPERPOD_EMU_NCCL_LOST");
}

static int disagrees(cast_member *m) {
    int wrong = 0;
    sp_err err = {0};
    dev_floats f = take(1000);
    m->g->ops->all_reduce(m->g, f.dev, m->config.me == 0 ? 100 : 101);
    CAST_WANT(m->g->ops->poll(m->g, SP_NEVER, &err) == SP_E_INTERNAL);
    CAST_WANT(strstr(err.text, "member 0") && strstr(err.text, "member 1"));
    CAST_WANT(strstr(err.text, "all-gather of 100 f32") && strstr(err.text, "of 101 f32"));
    drop(&f);
    return wrong;
}
static void sizes_that_disagree_are_named(void) {
    int before = cast_open_memory();
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_MIXED; pace++) {
        cast_pace((cu_emu_pace)pace, 7);
        CU_ASSERT_EQUAL(cast_run(cast_nccl(), false, like(2, disagrees)), 0);
        CU_ASSERT(cu_emu_reports(CU_EMU_MISUSE) > 0);
        CU_ASSERT_EQUAL(cast_open_memory(), before);
    }
}

static int opens_with_other_sizes(cast_member *m) {
    int wrong = 0;
    sp_err err = {0};
    m->config.max_reduce = 5000 + (size_t)m->config.me;
    sp_status st =
        sp_group_open_nccl(&m->g, m->nccl, &m->id, m->stream, false, &m->config, NULL, &err);
    CAST_WANT(st == SP_E_INVALID && strstr(err.text, "5000") && strstr(err.text, "5001"));
    return wrong;
}
static void other_sizes_are_refused_at_opening(void) {
    cast_member c = like(2, opens_with_other_sizes);
    c.plain = true;
    cast_pace(CU_EMU_LAZY, 1);
    CU_ASSERT_EQUAL(cast_run(cast_nccl(), false, c), 0);
}

static void a_group_whose_members_do_not_come_is_not_opened(void) {
    int before = cast_open_memory();
    cast_member c = like(2, NULL);
    sp_err err = {0};
    cudaStream_t stream;
    cast_pace(CU_EMU_EAGER, 1);
    c.config.timeout_ns = 30 * SP_NS_PER_MS;
    CU_ASSERT_EQUAL_FATAL(cudaStreamCreate(&stream), cudaSuccess);
    CU_ASSERT_EQUAL_FATAL(sp_group_nccl_id(&c.id, cast_nccl(), &err), SP_OK);
    CU_ASSERT_EQUAL(
        sp_group_open_nccl(&c.g, cast_nccl(), &c.id, stream, false, &c.config, NULL, &err),
        SP_E_PEER_LOST);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "not all 2 members came within 30 ms"));
    CU_ASSERT_EQUAL(cast_open_memory(), before);
}

static bool given_up(void *ctx) {
    return --*(int *)ctx <= 0;
}
/* As long as the caller says, whatever config.timeout_ns is; or until it gives up. */
static void an_opening_ends_when_its_caller_says(void) {
    int before = cast_open_memory(), questions = 5;
    cast_member c = like(2, NULL);
    sp_err err = {0};
    cudaStream_t stream;
    cast_pace(CU_EMU_EAGER, 1);
    CU_ASSERT_EQUAL_FATAL(cudaStreamCreate(&stream), cudaSuccess);
    for (int given = 0; given < 2; given++) {
        const sp_group_wait wait = {.deadline_ns = sp_now_ns() +
                                                   (given ? 20 * SP_NS_PER_S : 40 * SP_NS_PER_MS),
                                    .gave_up = given ? given_up : NULL,
                                    .ctx = &questions};
        c.config.timeout_ns = 20 * SP_NS_PER_S;
        CU_ASSERT_EQUAL_FATAL(sp_group_nccl_id(&c.id, cast_nccl(), &err), SP_OK);
        CU_ASSERT_EQUAL(
            sp_group_open_nccl(&c.g, cast_nccl(), &c.id, stream, false, &c.config, &wait, &err),
            given ? SP_E_CANCELED : SP_E_PEER_LOST);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, given ? "open: given up" : "not all 2 members"));
        CU_ASSERT_PTR_NULL(strstr(err.text, "20000 ms"));
        CU_ASSERT_EQUAL(cast_open_memory(), before);
    }
    CU_ASSERT_EQUAL(questions, 0);
}

/* A lost device says so at whatever is asked next: in the words of the device, with its number. */
static int loses_its_device(cast_member *m) {
    int wrong = 0;
    sp_err err = {0};
    if (sp_group_open_nccl(&m->g, m->nccl, &m->id, m->stream, false, &m->config, NULL, &err))
        return 1000;
    dev_floats f = take(100);
    if (m->config.me == 0) cu_emu_fail_launch(1, cudaErrorIllegalAddress);
    /* Somebody else's kernel; whoever comes next is told. */
    if (m->config.me == 0) (void)cu_tree_sum(m->stream, f.dev, f.dev, 1, 100);
    m->g->ops->all_reduce(m->g, f.dev, 100);
    sp_status st = m->g->ops->poll(m->g, SP_NEVER, &err);
    CAST_WANT(m->config.me == 0 ? st == SP_E_DEVICE : st == SP_E_PEER_LOST);
    if (m->config.me == 0)
        CAST_WANT(strstr(err.text, "GPU 0: 'all_reduce' failed: cudaErrorIllegalAddress (illegal"));
    m->g->ops->close(m->g);
    drop(&f);
    return wrong;
}
static void a_lost_device_is_named_as_the_device_names_it(void) {
    cast_member c = like(2, loses_its_device);
    c.plain = true; /* its stream can no longer be destroyed */
    c.config.timeout_ns = 300 * SP_NS_PER_MS;
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_LAZY; pace++) {
        cast_pace((cu_emu_pace)pace, 3);
        CU_ASSERT_EQUAL(cast_run(cast_nccl(), true, c), 0);
    }
}

static void a_group_says_what_it_takes(void) {
    const sp_group_config small = {.n = 2}, large = {.n = 8, .max_reduce = 1 << 20};
    CU_ASSERT(sp_group_nccl_bytes(&small) >= 3 * 4096 * sizeof(float));
    CU_ASSERT(sp_group_nccl_bytes(&large) >= 9 * ((size_t)4 << 20));
    CU_ASSERT(sp_group_nccl_bytes(&large) < 10 * ((size_t)4 << 20));
}

static int wrong_calls(cast_member *m) {
    int wrong = 0;
    sp_err err = {0};
    m->g->ops->send(m->g, m->config.me, NULL, 4);
    CAST_WANT(m->g->ops->poll(m->g, 0, &err) == SP_E_INTERNAL);
    CAST_WANT(strstr(err.text, "send: member"));
    return wrong;
}
static void a_message_to_oneself_is_a_fault(void) {
    cast_pace(CU_EMU_EAGER, 1);
    CU_ASSERT_EQUAL(cast_run(cast_nccl(), false, like(2, wrong_calls)), 0);
}

SP_TEST_MAIN("group_nccl", SP_TEST(processes_get_the_bits_of_the_tree),
             SP_TEST(a_killed_member_is_silence_or_an_error), SP_TEST(one_member_alone),
             SP_TEST(two_threads_get_the_bits_of_the_tree),
             SP_TEST(three_and_four_threads_get_the_bits_of_the_tree),
             SP_TEST(large_sums_go_in_slices), SP_TEST(the_library_s_own_sum_is_another_one),
             SP_TEST(an_abort_ends_what_waits),
             SP_TEST(a_member_that_does_not_come_is_a_fault_by_the_timeout),
             SP_TEST(a_wait_is_counted_from_what_came_last), SP_TEST(sizes_that_disagree_are_named),
             SP_TEST(other_sizes_are_refused_at_opening),
             SP_TEST(a_group_whose_members_do_not_come_is_not_opened),
             SP_TEST(an_opening_ends_when_its_caller_says),
             SP_TEST(a_lost_device_is_named_as_the_device_names_it),
             SP_TEST(a_group_says_what_it_takes), SP_TEST(a_message_to_oneself_is_a_fault))
