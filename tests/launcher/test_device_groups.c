/* Covers launcher/device_groups.c: what cannot be grouped is refused by its option; the watch frees a
 * rank that waits for a neighbour when its head is gone, and only then. */
#include "launcher/device_groups.h"

#include "runtime/base/clock.h"
#include "tests/fake_dev_groups.h"
#include "tests/harness.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static sp_err err;

static void refused(const sp_device *d, const char *collectives, const char *words) {
    CU_ASSERT_EQUAL(sp_device_check_groups(d, collectives, 2, 1, &err), SP_E_UNSUPPORTED);
    if (!strstr(err.text, words)) printf("    got: %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, words));
}

static void nccl_is_for_devices_with_memory_of_their_own(void) {
    const sp_device cpu = {.backend = "cpu"};
    refused(&cpu, "nccl", "option 'collectives' is nccl: device 'cpu'");
    CU_ASSERT_EQUAL(sp_device_check_groups(&cpu, "nccl", 1, 1, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_EQUAL(sp_device_check_groups(&cpu, "shm", 2, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_device_check_groups(&cpu, "auto", 8, 2, &err), SP_OK);
}

static void who_shares_no_layer_needs_no_library(void) {
    const sp_device gone = {.backend = "emu", .own_memory = true};
    CU_ASSERT_EQUAL(sp_device_check_groups(&gone, "auto", 1, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_device_check_groups(&gone, "auto", 3, 3, &err), SP_OK);
}

static void groups_of_the_host_take_nothing_of_a_device(void) {
    const sp_model_desc desc = {.hidden = 64, .vocab = 100};
    const sp_plan_request req = {.desc = &desc, .tp = 4, .pp = 2, .max_num_batched_tokens = 10};
    const sp_device cpu = {.backend = "cpu"}, unknown = {.backend = "fake", .own_memory = true};
    CU_ASSERT_EQUAL(sp_device_group_bytes(&cpu, &req), 0);
    CU_ASSERT_EQUAL(sp_device_group_bytes(&unknown, &req), 0);
}

/* ---- the watch ---- */

static sp_dev device;

/* A pipeline of two by fakes: rank 0's groups. */
static sp_groups *open_groups(sp_groups **other) {
    const sp_groups_config config = {
        .hidden = 8, .vocab = 10, .dev = &device, .dev_groups = &sp_fake_dev_groups_table};
    const sp_group_wait wait = {.deadline_ns = sp_now_ns() + 5 * SP_NS_PER_S};
    static sp_address peers[2];
    sp_groups *g[2];
    sp_fake_dev_groups_reset();
    for (int r = 0; r < 2; r++) {
        sp_form f = {.collectives = "auto",
                     .nodes = "0,0",
                     .ranks = 2,
                     .tp = 1,
                     .pp = 2,
                     .rank = r,
                     .max_num_seqs = 1,
                     .max_batched_tokens = 1,
                     .max_step_rows = 1,
                     .timeout_ms = 5000};
        memset(f.group_key, '0', 64);
        CU_ASSERT_EQUAL_FATAL(sp_groups_prepare(&g[r], &f, &config, &peers[r], &err), SP_OK);
    }
    for (int r = 0; r < 2; r++)
        CU_ASSERT_EQUAL_FATAL(sp_groups_connect(g[r], peers, &wait, &err), SP_OK);
    *other = g[1];
    return g[0];
}

static void a_head_that_is_gone_frees_who_waits(void) {
    int fd;
    sp_link *head, *rank;
    sp_groups *other, *g = open_groups(&other);
    sp_group_watch *w;
    CU_ASSERT_EQUAL_FATAL(sp_ring_create(&fd, 4 * SP_FRAME_MAX, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&head, fd, 0, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_ring(&rank, fd, 1, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_group_watch_start(&w, rank, g, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_fake_dev.aborted, 0);
    sp_link_close(head);
    CU_ASSERT(sp_fake_dev_groups_wait_aborted(1));
    sp_group_watch_stop(w);
    sp_groups_close(g);
    sp_groups_close(other);
    sp_link_close(rank);
    close(fd);
}

static void a_rank_that_ends_by_itself_is_not_disturbed(void) {
    int fds[2];
    sp_link *rank;
    sp_groups *other, *g = open_groups(&other);
    sp_group_watch *w;
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CU_ASSERT_EQUAL_FATAL(sp_link_open_stream(&rank, fds[0], NULL, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_group_watch_start(&w, rank, g, &err), SP_OK);
    close(fds[1]);
    sp_group_watch_stop(w); /* sooner than the watch would act */
    CU_ASSERT_EQUAL(sp_fake_dev.aborted, 0);
    sp_group_watch_stop(NULL);
    sp_groups_close(g);
    sp_groups_close(other);
    sp_link_close(rank);
}

SP_TEST_MAIN("launcher/device_groups", SP_TEST(nccl_is_for_devices_with_memory_of_their_own),
             SP_TEST(who_shares_no_layer_needs_no_library),
             SP_TEST(groups_of_the_host_take_nothing_of_a_device),
             SP_TEST(a_head_that_is_gone_frees_who_waits),
             SP_TEST(a_rank_that_ends_by_itself_is_not_disturbed))
