/* Covers launcher/groups.c: which ranks are in which group, by what, under which id. The devices'
 * groups are fakes (tests/fake_dev_groups.h), the host's are real. */
#include "launcher/groups.h"

#include "runtime/base/clock.h"
#include "tests/fake_dev_groups.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static sp_err err;
static sp_dev device;
static sp_address peers[8]; /* large */
static sp_groups *ranks[8];

static sp_form form_of(int rank, int tp, int pp) {
    sp_form f = {.collectives = "auto",
                 .nodes = "0",
                 .ranks = tp * pp,
                 .tp = tp,
                 .pp = pp,
                 .rank = rank,
                 .max_num_seqs = 4,
                 .max_batched_tokens = 100,
                 .max_step_rows = 4,
                 .timeout_ms = 5000};
    for (int i = 1; i < tp * pp; i++) strcat(f.nodes, ",0");
    memset(f.group_key, 'a', 64);
    return f;
}

static const sp_groups_config CONFIG = {.hidden = 64,
                                        .vocab = 1000,
                                        .dev = &device,
                                        .dev_groups = &sp_fake_dev_groups_table,
                                        .fast = true};

/* All ranks of a pod prepare; what each says travels as text. */
static void prepare_all(int tp, int pp, const sp_groups_config *config) {
    sp_slice slices[8];
    sp_buf text[8], all;
    sp_fake_dev_groups_reset();
    for (int r = 0; r < tp * pp; r++) {
        sp_form f = form_of(r, tp, pp);
        sp_address own;
        CU_ASSERT_EQUAL_FATAL(sp_groups_prepare(&ranks[r], &f, config, &own, &err), SP_OK);
        sp_buf_init(&text[r], 0);
        sp_address_write(&own, &text[r]);
        slices[r] = sp_buf_slice(&text[r]);
    }
    sp_buf_init(&all, 0);
    sp_peers_write(slices, tp * pp, &all);
    CU_ASSERT_EQUAL_FATAL(sp_peers_read(peers, tp * pp, sp_buf_slice(&all), &err), SP_OK);
    for (int r = 0; r < tp * pp; r++) sp_buf_fini(&text[r]);
    sp_buf_fini(&all);
}

static void connect_all(int n) {
    const sp_group_wait wait = {.deadline_ns = sp_now_ns() + 5 * SP_NS_PER_S};
    for (int r = 0; r < n; r++)
        CU_ASSERT_EQUAL_FATAL(sp_groups_connect(ranks[r], peers, &wait, &err), SP_OK);
}

static void close_all(int n) {
    for (int r = 0; r < n; r++) sp_groups_close(ranks[r]);
}

static void stages_and_chains_of_a_device_are_joined_by_their_own_ids(void) {
    prepare_all(2, 2, &CONFIG);
    /* Two stages and two chains, each by its member 0: ranks 0 and 2; 0 and 1. */
    CU_ASSERT_EQUAL(sp_fake_dev.ids, 4);
    const bool tp[4] = {true, false, true, false}, pp[4] = {true, true, false, false};
    for (int r = 0; r < 4; r++) CU_ASSERT(peers[r].tp.is == tp[r] && peers[r].pp.is == pp[r]);
    connect_all(4);
    CU_ASSERT_EQUAL_FATAL(sp_fake_dev.joins, 8);
    for (int r = 0; r < 4; r++) {
        const sp_fake_join *in_tp = &sp_fake_dev.join[2 * r], *in_pp = in_tp + 1;
        const int stage = r / 2, slice = r % 2;
        CU_ASSERT(in_tp->config.n == 2 && in_tp->config.me == slice);
        CU_ASSERT(in_pp->config.n == 2 && in_pp->config.me == stage);
        CU_ASSERT_EQUAL(memcmp(&in_tp->id, &peers[2 * stage].tp.id, sizeof in_tp->id), 0);
        CU_ASSERT_EQUAL(memcmp(&in_pp->id, &peers[slice].pp.id, sizeof in_pp->id), 0);
        CU_ASSERT(in_tp->fast && in_tp->dev == &device);
        CU_ASSERT_EQUAL(in_tp->config.max_reduce, 6400);
        CU_ASSERT_STRING_EQUAL(sp_groups_tp(ranks[r])->ops->name, "fake");
        CU_ASSERT_STRING_EQUAL(sp_groups_pp(ranks[r])->ops->name, "fake");
        CU_ASSERT_STRING_EQUAL(sp_groups_device_words(ranks[r]), "FAKE 1.0");
    }
    close_all(4);
    CU_ASSERT(sp_fake_dev.left == 8 && sp_fake_dev.opened == 4 && sp_fake_dev.closed == 4);
}

static void drawn_tokens_come_back_by_the_host(void) {
    prepare_all(2, 1, &CONFIG);
    connect_all(2);
    for (int r = 0; r < 2; r++) {
        CU_ASSERT_STRING_EQUAL(sp_groups_feedback(ranks[r])->ops->name, "shm");
        CU_ASSERT_PTR_NULL(sp_groups_pp(ranks[r]));
    }
    int32_t token = 77, got = 0;
    sp_group *from = sp_groups_feedback(ranks[0]), *to = sp_groups_feedback(ranks[1]);
    from->ops->send(from, 1, &token, sizeof token);
    to->ops->recv(to, 0, &got, sizeof got);
    CU_ASSERT_EQUAL(to->ops->poll(to, SP_NEVER, &err), SP_OK);
    CU_ASSERT_EQUAL(got, 77);
    close_all(2);
}

static void without_a_device_all_groups_are_the_host_s(void) {
    const sp_groups_config host = {.hidden = 64, .vocab = 1000};
    prepare_all(2, 1, &host);
    connect_all(2);
    CU_ASSERT_EQUAL(sp_fake_dev.opened, 0);
    CU_ASSERT_PTR_NULL(sp_groups_device_words(ranks[0]));
    CU_ASSERT_STRING_EQUAL(sp_groups_tp(ranks[1])->ops->name, "shm");
    close_all(2);
}

static void one_rank_alone_opens_no_library(void) {
    prepare_all(1, 1, &CONFIG);
    connect_all(1);
    CU_ASSERT(sp_fake_dev.opened == 0 && sp_fake_dev.joins == 0);
    CU_ASSERT_PTR_NULL(sp_groups_tp(ranks[0]));
    close_all(1);
}

static void an_id_that_nobody_said_is_refused_by_the_rank_that_owes_it(void) {
    const sp_group_wait wait = {.deadline_ns = SP_NEVER};
    prepare_all(1, 2, &CONFIG);
    peers[0].pp.is = false;
    CU_ASSERT_EQUAL(sp_groups_connect(ranks[1], peers, &wait, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "joining the pp group: rank 0 did not say its id"));
    close_all(2);
}

static void a_library_that_is_not_there_is_no_group(void) {
    sp_form f = form_of(0, 2, 1);
    sp_address own;
    sp_fake_dev_groups_reset();
    sp_fake_dev.open_says = SP_E_UNSUPPORTED;
    CU_ASSERT_EQUAL(sp_groups_prepare(&ranks[0], &f, &CONFIG, &own, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "no fake library"));
    CU_ASSERT_EQUAL(sp_fake_dev.closed, 0);
}

static bool yes(void *ctx) {
    return *(bool *)ctx;
}
static void joining_is_given_up_and_bounded_as_the_caller_says(void) {
    bool gone = true;
    const sp_group_wait wait = {.deadline_ns = 12345, .gave_up = yes, .ctx = &gone};
    prepare_all(1, 2, &CONFIG);
    CU_ASSERT_EQUAL(sp_groups_connect(ranks[0], peers, &wait, &err), SP_E_CANCELED);
    CU_ASSERT_EQUAL(sp_fake_dev.join[0].deadline_ns, 12345);
    close_all(2);
}

static void an_abort_is_for_every_group_of_the_rank(void) {
    prepare_all(2, 2, &CONFIG);
    connect_all(4);
    sp_groups_abort(ranks[0]);
    CU_ASSERT_EQUAL(sp_fake_dev.aborted, 2);
    int32_t got;
    sp_group *feedback = sp_groups_feedback(ranks[0]);
    feedback->ops->recv(feedback, 0, &got, sizeof got);
    CU_ASSERT_EQUAL(feedback->ops->poll(feedback, SP_NEVER, &err), SP_E_CANCELED);
    close_all(4);
}

static void large_sums_of_a_device_go_in_pieces(void) {
    sp_group_config small = sp_groups_tp_sizes(2, 64, 1000, 100, 4);
    CU_ASSERT(small.n == 2 && small.max_reduce == 6400);
    small = sp_groups_tp_sizes(2, 64, 1000, 1, 100); /* the head's, of a few tokens */
    CU_ASSERT_EQUAL(small.max_reduce, 50100);
    CU_ASSERT_EQUAL(sp_groups_tp_sizes(8, 16384, 128256, 8192, 256).max_reduce, (size_t)4 << 20);
}

SP_TEST_MAIN("launcher/groups", SP_TEST(stages_and_chains_of_a_device_are_joined_by_their_own_ids),
             SP_TEST(drawn_tokens_come_back_by_the_host),
             SP_TEST(without_a_device_all_groups_are_the_host_s),
             SP_TEST(one_rank_alone_opens_no_library),
             SP_TEST(an_id_that_nobody_said_is_refused_by_the_rank_that_owes_it),
             SP_TEST(a_library_that_is_not_there_is_no_group),
             SP_TEST(joining_is_given_up_and_bounded_as_the_caller_says),
             SP_TEST(an_abort_is_for_every_group_of_the_rank),
             SP_TEST(large_sums_of_a_device_go_in_pieces))
