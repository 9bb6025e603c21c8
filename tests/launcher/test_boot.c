/* Covers launcher/boot.c: what an agent hands over is what the child gets, once; nothing else is
 * believed. */
#include "launcher/boot.h"
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static sp_boot in, got; /* large */
static sp_err err;

static int written(void) {
    int fd = -1;
    in = (sp_boot){.bell_fd = 7, .n_rings = 2, .rings = {3, 4}, .listen_fd = -1, .agent = 5};
    snprintf(in.source, sizeof in.source, "flags");
    memset(in.token.bytes, 0xab, sizeof in.token.bytes);
    CU_ASSERT_EQUAL_FATAL(sp_boot_write(&fd, &in, &err), SP_OK);
    return fd;
}
static sp_status read_fd(int fd) {
    char text[16];
    snprintf(text, sizeof text, "%d", fd);
    got = (sp_boot){.bell_fd = -77};
    return sp_boot_read(&got, text, &err);
}
static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0 || errno != EBADF;
}

static void a_block_goes_round_and_its_descriptor_is_closed(void) {
    int fd = written();
    CU_ASSERT(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CU_ASSERT_EQUAL_FATAL(read_fd(fd), SP_OK);
    CU_ASSERT_FALSE(is_open(fd));
    CU_ASSERT(got.bell_fd == 7 && got.n_rings == 2 && got.rings[1] == 4 && got.agent == 5);
    CU_ASSERT_STRING_EQUAL(got.source, "flags");
    CU_ASSERT_EQUAL(memcmp(&got.token, &in.token, sizeof got.token), 0);
}
static void nobody_can_change_a_block_afterwards(void) {
    int fd = written();
    CU_ASSERT_EQUAL(pwrite(fd, "x", 1, 0), -1);
    CU_ASSERT_EQUAL(ftruncate(fd, 0), -1);
    CU_ASSERT_EQUAL(read_fd(fd), SP_OK);
}

static void what_is_no_descriptor_is_refused(void) {
    static const char *const wrong[] = {"", "x", "-1", "1.0", "99999999999", " 3", "3 "};
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        got = (sp_boot){.bell_fd = -77};
        CU_ASSERT_EQUAL(sp_boot_read(&got, wrong[i], &err), SP_E_INVALID);
        CU_ASSERT_EQUAL(got.bell_fd, -77);
    }
    CU_ASSERT_EQUAL(sp_boot_read(&got, "987654", &err), SP_E_PROTOCOL); /* not open */
}

/* A block of `n` bytes, with `change` bytes at `at`, in a file that stays open after a refusal. */
static void refused(size_t n, size_t at, uint64_t change) {
    int fd = memfd_create("test", 0);
    CU_ASSERT_FATAL(fd >= 0);
    sp_boot b = {.magic = 0};
    int good = written();
    CU_ASSERT_EQUAL_FATAL(pread(good, &b, sizeof b, 0), (ssize_t)sizeof b);
    close(good);
    memcpy((char *)&b + at, &change, sizeof change);
    CU_ASSERT_EQUAL_FATAL(write(fd, &b, n), (ssize_t)n);
    CU_ASSERT_EQUAL(read_fd(fd), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(got.bell_fd, -77);
    CU_ASSERT(is_open(fd));
    close(fd);
}
static void another_builds_block_is_refused(void) {
    sp_boot b = {.agent = 1};
    refused(sizeof b, offsetof(sp_boot, magic), 1);
    refused(sizeof b, offsetof(sp_boot, size), sizeof b - 8);
    refused(sizeof b - 1, offsetof(sp_boot, agent), 1);
    refused(16, offsetof(sp_boot, agent), 1);
    refused(0, offsetof(sp_boot, agent), 1);
}

SP_TEST_MAIN("launcher/boot", SP_TEST(a_block_goes_round_and_its_descriptor_is_closed),
             SP_TEST(nobody_can_change_a_block_afterwards),
             SP_TEST(what_is_no_descriptor_is_refused), SP_TEST(another_builds_block_is_refused))
