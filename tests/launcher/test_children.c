/* Covers launcher/children.c: what a child is given, how its end is told, and that it does not
 * outlive who started it. The children are this program: see child_main(). */
#include "launcher/children.h"
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static sp_err err;

/* ---- the child ---- */

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

/* Bits of what is wrong with what it was given. */
static int look(int argc, char **argv) {
    sp_boot b;
    sigset_t set;
    int wrong = 0;
    if (sp_boot_read(&b, argv[2], &err) != SP_OK) return 1;
    if (b.agent != 42) wrong |= 2;
    if (!is_open(b.ring_fd) || is_open(b.bell_fd)) wrong |= 4;
    if (argc != 5 || strcmp(argv[3], "serve") != 0 || strcmp(argv[4], "") != 0) wrong |= 8;
    if (strcmp(argv[0], "superpod: rank 7") != 0) wrong |= 16;
    sigprocmask(SIG_BLOCK, NULL, &set);
    if (sigismember(&set, SIGCHLD) || !sigismember(&set, SIGTERM)) wrong |= 32;
    return wrong;
}

static int child_main(int argc, char **argv) {
    if (strcmp(argv[1], "child-look") == 0) return look(argc, argv);
    if (strcmp(argv[1], "child-exit") == 0) return atoi(argv[3]);
    for (;;) pause(); /* "child-wait" */
}

/* ---- its parent ---- */

static sp_child fresh(void) {
    sp_child c = {.ring_fd = -1};
    snprintf(c.name, sizeof c.name, "rank 7");
    return c;
}
static bool reaped_within_10_s(sp_child *c) {
    for (int i = 0; i < 1000; i++) {
        if (sp_child_reap(c)) return true;
        poll(NULL, 0, 10);
    }
    return false;
}
static sp_child started(const char *word, const sp_boot *boot, const int *keep, int n_keep,
                        char *const *args) {
    sp_child c = fresh();
    CU_ASSERT_EQUAL_FATAL(sp_child_start(&c, word, boot, keep, n_keep, args, &err), SP_OK);
    CU_ASSERT(c.pid > 0 && c.was_started);
    return c;
}

static void a_child_is_given_its_block_its_words_and_no_other_descriptor(void) {
    int kept = open("/dev/null", O_RDONLY | O_CLOEXEC), other = open("/dev/null", O_CLOEXEC);
    sp_boot b = {.agent = 42, .ring_fd = kept, .bell_fd = other};
    char word[] = "serve", empty[] = "";
    char *args[] = {word, empty, NULL};
    const int keep[] = {kept, -1};
    sigset_t set, before;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, &before);
    sp_child c = started("child-look", &b, keep, 2, args);
    sigprocmask(SIG_SETMASK, &before, NULL);
    CU_ASSERT_FATAL(reaped_within_10_s(&c));
    CU_ASSERT_EQUAL(c.code, 0);
    CU_ASSERT(fcntl(kept, F_GETFD) & FD_CLOEXEC); /* here it is as it was */
    close(kept);
    close(other);
}

static int ends_with(const char *code) {
    char *args[] = {strdup(code), NULL};
    sp_boot b = {.agent = 1};
    sp_child c = started("child-exit", &b, NULL, 0, args);
    free(args[0]);
    CU_ASSERT_FATAL(reaped_within_10_s(&c));
    CU_ASSERT_EQUAL(c.pid, 0);
    CU_ASSERT_FALSE(sp_child_reap(&c)); /* once */
    return c.code;
}
static void its_exit_code_is_told(void) {
    CU_ASSERT_EQUAL(ends_with("0"), 0);
    CU_ASSERT_EQUAL(ends_with("20"), 20);
    CU_ASSERT_EQUAL(ends_with("255"), 255);
}
static void its_signal_is_told_as_a_negative_number(void) {
    sp_boot b = {.agent = 1};
    sp_child c = started("child-wait", &b, NULL, 0, NULL);
    CU_ASSERT_FALSE(sp_child_reap(&c));
    sp_child_kill(&c, SIGKILL);
    CU_ASSERT_FATAL(reaped_within_10_s(&c));
    CU_ASSERT_EQUAL(c.code, -SIGKILL);
}
static void what_does_not_run_is_neither_reaped_nor_killed(void) {
    sp_child c = fresh();
    CU_ASSERT_FALSE(sp_child_reap(&c));
    sp_child_kill(&c, SIGKILL); /* process 0 would be ourselves and all our group */
    CU_ASSERT_FALSE(c.was_started);
}

/* The child keeps the end of a pipe open; its parent dies at once. */
static void a_child_dies_with_its_parent(void) {
    int ends[2];
    CU_ASSERT_EQUAL_FATAL(pipe2(ends, O_CLOEXEC), 0);
    fflush(NULL);
    pid_t parent = fork();
    CU_ASSERT_FATAL(parent >= 0);
    if (parent == 0) {
        sp_boot b = {.agent = 1};
        sp_child c = fresh();
        if (sp_child_start(&c, "child-wait", &b, &ends[1], 1, NULL, &err) != SP_OK) _exit(1);
        _exit(0);
    }
    close(ends[1]);
    int status = -1;
    CU_ASSERT_EQUAL(waitpid(parent, &status, 0), parent);
    CU_ASSERT_EQUAL(status, 0);
    struct pollfd p = {.fd = ends[0], .events = POLLIN};
    CU_ASSERT_EQUAL(poll(&p, 1, 10000), 1);
    CU_ASSERT(p.revents & POLLHUP);
    close(ends[0]);
}

int main(int argc, char **argv) {
    if (argc >= 3 && strncmp(argv[1], "child-", 6) == 0) return child_main(argc, argv);
    static const sp_test tests[] = {
        SP_TEST(a_child_is_given_its_block_its_words_and_no_other_descriptor),
        SP_TEST(its_exit_code_is_told),
        SP_TEST(its_signal_is_told_as_a_negative_number),
        SP_TEST(what_does_not_run_is_neither_reaped_nor_killed),
        SP_TEST(a_child_dies_with_its_parent),
    };
    return sp_test_main("launcher/children", tests, (int)(sizeof tests / sizeof tests[0]), argc,
                        argv);
}
