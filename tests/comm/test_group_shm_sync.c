/* Covers comm/group_shm_sync.c: what ends a wait when a member is late, dead, aborted, closed, does
 * something else, or stores nonsense. */
#include "comm/group_shm_sync.h"

#include "runtime/base/clock.h"
#include "runtime/base/thread.h"
#include "tests/harness.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MEMBERS 3

typedef struct bed {
    int fd;
    sp_group_config config;
    sp_group *g[MEMBERS];
} bed;

static bed make_bed(int n, int64_t timeout_ns) {
    bed b = {.config = {.n = n,
                        .max_reduce = 5000,
                        .max_message = 100,
                        .sends = 2,
                        .timeout_ns = timeout_ns,
                        .crowded = true}};
    CU_ASSERT_EQUAL_FATAL(sp_group_shm_create(&b.fd, &b.config, NULL), SP_OK);
    return b;
}

static sp_group *join(bed *b, int me) {
    sp_group_config c = b->config;
    c.me = me;
    CU_ASSERT_EQUAL_FATAL(sp_group_open_shm(&b->g[me], b->fd, &c, NULL), SP_OK);
    return b->g[me];
}

static void drop_bed(bed *b) {
    for (int m = 0; m < b->config.n; m++)
        if (b->g[m]) b->g[m]->ops->close(b->g[m]);
    close(b->fd);
}

static void reduce(sp_group *g, size_t n) {
    float buf[1000] = {0};
    g->ops->all_reduce(g, buf, n);
}

static void *reduce_nine(void *arg) {
    reduce(arg, 9);
    return NULL;
}
static void *pick_nine(void *arg) {
    sp_group *g = arg;
    float buf[9] = {0};
    int32_t owner = 0;
    g->ops->pick_rows(g, buf, 1, 9, &owner);
    return NULL;
}
static void *pick_of_one(void *arg) {
    sp_group *g = arg;
    float buf[9] = {0};
    int32_t owner = 1;
    g->ops->pick_rows(g, buf, 1, 9, &owner);
    return NULL;
}

static bool says(sp_group *g, sp_status want, const char *words) {
    sp_err err = {0};
    sp_status st = g->ops->poll(g, 0, &err);
    bool good = st == want && strstr(err.text, words) != NULL;
    if (!good)
        printf("%s: %s, want %s: %s\n", sp_status_name(st), err.text, sp_status_name(want), words);
    return good && g->ops->poll(g, 0, NULL) == want; /* it sticks */
}

/* Runs `theirs` at member 1 and `ours` here at member 0. */
static void side_by_side(bed *b, void *(*ours)(void *), void *(*theirs)(void *)) {
    sp_thread t = {0};
    CU_ASSERT_EQUAL_FATAL(sp_thread_start(&t, "member1", theirs, b->g[1], NULL), SP_OK);
    ours(b->g[0]);
    sp_thread_join(&t);
}

static void *reduce_eight(void *arg) {
    reduce(arg, 8);
    return NULL;
}

static void members_that_disagree_are_told_at_all_of_them(void) {
    static const struct {
        void *(*ours)(void *), *(*theirs)(void *);
        const char *words;
    } cases[] = {{reduce_eight, reduce_nine, "all_reduce of 9"},
                 {reduce_nine, pick_nine, "pick_rows of 9"},
                 {pick_nine, pick_of_one, "other arguments"}};
    for (size_t i = 0; i < SP_LEN(cases); i++) {
        bed b = make_bed(2, 5 * SP_NS_PER_S);
        join(&b, 0), join(&b, 1);
        side_by_side(&b, cases[i].ours, cases[i].theirs);
        CU_ASSERT(says(b.g[0], SP_E_INTERNAL, cases[i].words));
        CU_ASSERT(says(b.g[1], SP_E_INTERNAL, "disagree"));
        drop_bed(&b);
    }
}

static void a_message_of_another_size_is_a_fault(void) {
    bed b = make_bed(2, 5 * SP_NS_PER_S);
    sp_group *from = join(&b, 0), *to = join(&b, 1);
    char data[100] = "0123456789";
    CU_ASSERT_FALSE(to->ops->can_recv(to, 0));
    from->ops->send(from, 1, data, 10);
    CU_ASSERT_TRUE(to->ops->can_recv(to, 0));
    to->ops->recv(to, 0, data + 20, 11);
    CU_ASSERT(says(to, SP_E_INTERNAL, "10 bytes"));
    CU_ASSERT_EQUAL(data[20], 0);
    from->ops->send(from, 1, data, 101);
    CU_ASSERT(says(from, SP_E_INTERNAL, "at most 100"));
    drop_bed(&b);
}

static void a_member_that_does_not_exist_is_a_fault(void) {
    static const int wrong[] = {-1, 2, 1 << 30};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        bed b = make_bed(2, SP_NS_PER_S);
        sp_group *g = join(&b, 0), *h = join(&b, 1);
        char data[4] = {0};
        int32_t owner = wrong[i], cols[2] = {1, 1};
        float row[2] = {0};
        g->ops->send(g, wrong[i], data, 4);
        CU_ASSERT(says(g, SP_E_INTERNAL, "no member"));
        CU_ASSERT(g->ops->can_recv(g, wrong[i]));
        if (i == 0) h->ops->pick_rows(h, row, 1, 1, &owner);
        if (i == 1) h->ops->gather_cols(h, wrong[i], row, row, 1, cols);
        if (i == 2) h->ops->recv(h, wrong[i], data, 4);
        CU_ASSERT_EQUAL(h->ops->poll(h, 0, NULL), SP_E_INTERNAL);
        drop_bed(&b);
    }
}

static void a_full_mailbox_times_out_and_names_the_receiver(void) {
    bed b = make_bed(2, 30 * SP_NS_PER_MS);
    sp_group *g = join(&b, 0);
    int64_t word = 1, begin = sp_now_ns();
    g->ops->send(g, 1, &word, 8);
    g->ops->send(g, 1, &word, 8);
    CU_ASSERT_EQUAL(g->ops->poll(g, 0, NULL), SP_OK);
    g->ops->send(g, 1, &word, 8);
    CU_ASSERT(sp_now_ns() - begin >= 30 * SP_NS_PER_MS);
    CU_ASSERT(says(g, SP_E_PEER_LOST, "member 1 of 2 has not joined"));
    drop_bed(&b);
}

static void a_late_member_is_named(void) {
    bed b = make_bed(3, 30 * SP_NS_PER_MS);
    sp_group *g = join(&b, 0);
    join(&b, 1);
    int64_t begin = sp_now_ns();
    reduce(g, 8);
    CU_ASSERT(sp_now_ns() - begin >= 30 * SP_NS_PER_MS);
    CU_ASSERT(says(g, SP_E_PEER_LOST, "member 1 of 3 has not come within 0.030 s, in all_reduce"));
    drop_bed(&b);
}

static void a_killed_member_is_named(void) {
    bed b = make_bed(2, 150 * SP_NS_PER_MS);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        sp_group *child = join(&b, 1);
        reduce(child, 8);
        kill(getpid(), SIGKILL);
    }
    sp_group *g = join(&b, 0);
    int how = 0;
    reduce(g, 8);
    CU_ASSERT_EQUAL(g->ops->poll(g, 0, NULL), SP_OK);
    reduce(g, 8);
    CU_ASSERT(says(g, SP_E_PEER_LOST, "member 1 of 2 has not come"));
    CU_ASSERT_EQUAL(waitpid(pid, &how, 0), pid);
    CU_ASSERT(WIFSIGNALED(how));
    drop_bed(&b);
}

static void *abort_it(void *arg) {
    sp_group *g = arg;
    g->ops->abort(g);
    return NULL;
}

static void abort_ends_a_wait_here_and_at_the_others(void) {
    for (int k = 0; k < 50; k++) { /* before, while and after member 0 begins to wait */
        bed b = make_bed(2, 0);
        sp_group *g = join(&b, 0), *other = join(&b, 1);
        sp_thread t = {0};
        CU_ASSERT_EQUAL_FATAL(sp_thread_start(&t, "abort", abort_it, g, NULL), SP_OK);
        if (k % 2)
            reduce(g, 8);
        else
            g->ops->recv(g, 1, &k, sizeof k);
        sp_thread_join(&t);
        CU_ASSERT(says(g, SP_E_CANCELED, "aborted"));
        reduce(g, 8); /* does nothing */
        char data[4];
        other->ops->recv(other, 0, data, 4);
        CU_ASSERT(says(other, SP_E_PEER_LOST, "member 0 of 2 has left"));
        drop_bed(&b);
    }
}

static void *recv_from_0(void *arg) {
    sp_group *g = arg;
    char data[4];
    g->ops->recv(g, 0, data, 4);
    return NULL;
}

static void abort_wakes_a_sleeper_elsewhere_long_before_the_timeout(void) {
    for (int k = 0; k < 20; k++) {
        bed b = make_bed(2, 0);
        join(&b, 0), join(&b, 1);
        int64_t begin = sp_now_ns();
        side_by_side(&b, abort_it, recv_from_0);
        CU_ASSERT(says(b.g[1], SP_E_PEER_LOST, "member 0 of 2 has left"));
        CU_ASSERT(sp_now_ns() - begin < 5 * SP_NS_PER_S);
        drop_bed(&b);
    }
}

static void what_was_sent_before_closing_still_arrives(void) {
    bed b = make_bed(2, 0);
    sp_group *g = join(&b, 0), *to = join(&b, 1);
    int word = 41, got = 0;
    g->ops->send(g, 1, &word, sizeof word);
    g->ops->close(g);
    b.g[0] = NULL;
    to->ops->recv(to, 0, &got, sizeof got);
    CU_ASSERT_EQUAL(got, 41);
    CU_ASSERT_EQUAL(to->ops->poll(to, 0, NULL), SP_OK);
    to->ops->recv(to, 0, &got, sizeof got);
    CU_ASSERT(says(to, SP_E_PEER_LOST, "member 0 of 2 has left"));
    drop_bed(&b);
}

static void a_fault_names_the_member_that_was_blamed_first(void) {
    bed b = make_bed(3, 30 * SP_NS_PER_MS);
    sp_group *g = join(&b, 0);
    b.config.timeout_ns = 0;
    sp_group *patient = join(&b, 1);
    char data[4] = {0};
    g->ops->recv(g, 2, data, 4); /* gives member 2 up */
    patient->ops->recv(patient, 0, data, 4);
    CU_ASSERT(says(patient, SP_E_PEER_LOST, "member 2 of 3 is lost, says member 0"));
    drop_bed(&b);
}

static void a_member_that_was_given_up_learns_it(void) {
    bed b = make_bed(2, 30 * SP_NS_PER_MS);
    sp_group *g = join(&b, 0);
    b.config.timeout_ns = 0;
    sp_group *late = join(&b, 1);
    char data[4] = {0};
    g->ops->recv(g, 1, data, 4);
    late->ops->recv(late, 0, data, 4);
    CU_ASSERT(says(late, SP_E_PEER_LOST, "given this member 1 up"));
    drop_bed(&b);
}

/* The memory as a broken member 1 sees it. */
static void nonsense_in_shared_memory_is_a_fault(void) {
    static const uint64_t wild[] = {UINT64_MAX, 5, (uint64_t)1 << 40, INT64_MAX};
    for (size_t i = 0; i < SP_LEN(wild); i++) {
        for (int what = 0; what < 5; what++) {
            bed b = make_bed(2, 20 * SP_NS_PER_MS);
            sp_group *g = join(&b, 0);
            sp_shm_area bad;
            sp_group_config c = b.config;
            c.me = 1;
            CU_ASSERT_EQUAL_FATAL(sp_shm_area_open(&bad, b.fd, &c, NULL), SP_OK);
            char data[8] = {0};
            sp_shm_mail mail = {.number = what == 3 ? wild[i] : 0, .bytes = wild[i]};
            memcpy(bad.mine + sp_shm_place(&bad, 0, 0), &mail, sizeof mail);
            if (what == 0) atomic_store(&bad.lines[1].published, wild[i]), reduce(g, 8);
            if (what == 1) atomic_store(&sp_shm_post_of(&bad, 0, 1)->taken, wild[i]);
            if (what == 1) g->ops->send(g, 1, data, 8);
            if (what >= 2) atomic_store(&sp_shm_post_of(&bad, 1, 0)->sent, what == 2 ? wild[i] : 1);
            if (what == 4) atomic_store(&bad.lines[1].gone, (uint32_t)wild[i]);
            if (what >= 2) g->ops->recv(g, 1, data, 8);
            sp_status st = g->ops->poll(g, 0, NULL);
            CU_ASSERT(st == SP_E_INTERNAL || st == SP_E_PEER_LOST);
            CU_ASSERT_EQUAL(memcmp(data, "\0\0\0\0\0\0\0", 8), 0);
            sp_shm_area_close(&bad);
            drop_bed(&b);
        }
    }
}

static void a_wild_bell_only_costs_time(void) {
    bed b = make_bed(2, 20 * SP_NS_PER_MS);
    sp_group *g = join(&b, 0);
    sp_shm_area bad;
    sp_group_config c = b.config;
    c.me = 1;
    CU_ASSERT_EQUAL_FATAL(sp_shm_area_open(&bad, b.fd, &c, NULL), SP_OK);
    for (int m = 0; m < 2; m++) {
        atomic_store(&bad.lines[m].bell, UINT32_MAX);
        atomic_store(&bad.lines[m].asleep, 0xdeadbeef);
        atomic_store(&bad.lines[m].gone, UINT32_MAX);
    }
    reduce(g, 8);
    CU_ASSERT(says(g, SP_E_PEER_LOST, "member 1 of 2 has left"));
    sp_shm_area_close(&bad);
    drop_bed(&b);
}

static void waiting_costs_little_processor_time(void) {
    bed b = make_bed(2, 200 * SP_NS_PER_MS);
    sp_group *g = join(&b, 0);
    int64_t cpu = sp_cpu_thread_ns();
    reduce(g, 8);
    cpu = sp_cpu_thread_ns() - cpu;
    CU_ASSERT(says(g, SP_E_PEER_LOST, "member 1"));
    CU_ASSERT(cpu < 50 * SP_NS_PER_MS);
    drop_bed(&b);
}

SP_TEST_MAIN("comm/group_shm_sync", SP_TEST(members_that_disagree_are_told_at_all_of_them),
             SP_TEST(a_message_of_another_size_is_a_fault),
             SP_TEST(a_member_that_does_not_exist_is_a_fault),
             SP_TEST(a_full_mailbox_times_out_and_names_the_receiver),
             SP_TEST(a_late_member_is_named), SP_TEST(a_killed_member_is_named),
             SP_TEST(abort_ends_a_wait_here_and_at_the_others),
             SP_TEST(abort_wakes_a_sleeper_elsewhere_long_before_the_timeout),
             SP_TEST(what_was_sent_before_closing_still_arrives),
             SP_TEST(a_fault_names_the_member_that_was_blamed_first),
             SP_TEST(a_member_that_was_given_up_learns_it),
             SP_TEST(nonsense_in_shared_memory_is_a_fault), SP_TEST(a_wild_bell_only_costs_time),
             SP_TEST(waiting_costs_little_processor_time))
