/* Covers comm/group_shm_area.c: what may be joined, by whom, and what stays behind. */
#include "comm/group_shm_area.h"

#include "runtime/base/file.h"
#include "tests/harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static sp_group_config config_of(int n, int me) {
    return (sp_group_config){.n = n, .me = me, .max_reduce = 5000, .max_message = 100, .sends = 2};
}

static int open_descriptors(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    if (!d) return -1;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static void a_member_joins_once(void) {
    sp_group_config c = config_of(2, 1);
    int fd;
    sp_group *g = NULL, *again = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_group_shm_create(&fd, &c, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_group_open_shm(&g, fd, &c, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_group_open_shm(&again, fd, &c, &err), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "joined before"));
    g->ops->close(g);
    CU_ASSERT_EQUAL(sp_group_open_shm(&again, fd, &c, NULL), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NULL(again);
    close(fd);
}

static void other_sizes_than_at_making_are_refused(void) {
    sp_group_config c = config_of(4, 0), other;
    int fd;
    sp_group *g = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_group_shm_create(&fd, &c, NULL), SP_OK);
    other = c, other.n = 3;
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, fd, &other, NULL), SP_E_PROTOCOL);
    other = c, other.max_reduce = 9000;
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, fd, &other, NULL), SP_E_PROTOCOL);
    other = c, other.max_message = 101; /* the same file size, rounded up */
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, fd, &other, NULL), SP_E_PROTOCOL);
    other = c, other.sends = 0; /* 4, as SP_GROUP_SENDS says */
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, fd, &other, NULL), SP_E_PROTOCOL);
    CU_ASSERT_PTR_NULL(g);
    other = c, other.timeout_ns = 5, other.crowded = true; /* each member's own affair */
    CU_ASSERT_EQUAL_FATAL(sp_group_open_shm(&g, fd, &other, NULL), SP_OK);
    g->ops->close(g);
    close(fd);
}

static void a_configuration_that_makes_no_sense_is_refused(void) {
    int fd = -7;
    sp_group *g = NULL;
    sp_group_config c = config_of(0, 0);
    CU_ASSERT_EQUAL(sp_group_shm_create(&fd, &c, NULL), SP_E_INVALID);
    c = config_of(SP_GROUP_MEMBERS_MAX + 1, 0);
    CU_ASSERT_EQUAL(sp_group_shm_create(&fd, &c, NULL), SP_E_INVALID);
    c = config_of(2, 0), c.sends = -1;
    CU_ASSERT_EQUAL(sp_group_shm_create(&fd, &c, NULL), SP_E_INVALID);
    static const size_t huge[] = {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2, (size_t)1 << 44};
    for (size_t i = 0; i < SP_LEN(huge); i++) {
        c = config_of(8, 0), c.max_message = huge[i];
        CU_ASSERT_EQUAL(sp_group_shm_create(&fd, &c, NULL), SP_E_INVALID);
    }
    CU_ASSERT_EQUAL(fd, -7);
    c = config_of(2, 0), c.max_reduce = SIZE_MAX; /* goes in pieces */
    CU_ASSERT_EQUAL_FATAL(sp_group_shm_create(&fd, &c, NULL), SP_OK);
    c.me = 2;
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, fd, &c, NULL), SP_E_INVALID);
    c.me = -1;
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, fd, &c, NULL), SP_E_INVALID);
    CU_ASSERT_PTR_NULL(g);
    close(fd);
}

static void a_descriptor_that_is_not_such_memory_is_refused(void) {
    sp_group_config c = config_of(2, 0);
    sp_group *g = NULL;
    int fd, same, ends[2];
    struct stat sb;
    CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
    CU_ASSERT_EQUAL_FATAL(sp_group_shm_create(&fd, &c, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(fstat(fd, &sb), 0);
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, -1, &c, NULL), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, ends[0], &c, NULL), SP_E_PROTOCOL);
    CU_ASSERT_EQUAL_FATAL(sp_memfd_create(&same, "t", (size_t)sb.st_size, false, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, same, &c, NULL), SP_E_PROTOCOL); /* may shrink */
    CU_ASSERT_EQUAL_FATAL(fcntl(same, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    CU_ASSERT_EQUAL(sp_group_open_shm(&g, same, &c, NULL), SP_E_PROTOCOL); /* no magic */
    CU_ASSERT_PTR_NULL(g);
    CU_ASSERT_NOT_EQUAL(ftruncate(fd, 4096), 0); /* ours cannot shrink */
    close(same);
    close(fd);
    close(ends[0]);
    close(ends[1]);
}

static void untouched_memory_costs_nothing(void) {
    sp_group_config c = config_of(64, 0);
    int fd;
    struct stat sb;
    sp_group *g = NULL;
    c.max_reduce = 1 << 20, c.max_message = (size_t)64 << 20;
    CU_ASSERT_EQUAL_FATAL(sp_group_shm_create(&fd, &c, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_group_open_shm(&g, fd, &c, NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(fstat(fd, &sb), 0);
    CU_ASSERT((uint64_t)sb.st_size > (uint64_t)1 << 38);
    CU_ASSERT(sb.st_blocks * 512 <= 1 << 20);
    g->ops->close(g);
    close(fd);
}

static void no_descriptor_is_left(void) {
    sp_group_config c = config_of(2, 0);
    int before = open_descriptors(), fd;
    for (int k = 0; k < 20; k++) {
        sp_group *g = NULL, *again = NULL;
        CU_ASSERT_EQUAL_FATAL(sp_group_shm_create(&fd, &c, NULL), SP_OK);
        CU_ASSERT_EQUAL_FATAL(sp_group_open_shm(&g, fd, &c, NULL), SP_OK);
        CU_ASSERT_EQUAL(sp_group_open_shm(&again, fd, &c, NULL), SP_E_PROTOCOL);
        close(fd); /* may be closed before the group */
        g->ops->close(g);
    }
    CU_ASSERT_EQUAL(open_descriptors(), before);
}

SP_TEST_MAIN("comm/group_shm_area", SP_TEST(a_member_joins_once),
             SP_TEST(other_sizes_than_at_making_are_refused),
             SP_TEST(a_configuration_that_makes_no_sense_is_refused),
             SP_TEST(a_descriptor_that_is_not_such_memory_is_refused),
             SP_TEST(untouched_memory_costs_nothing), SP_TEST(no_descriptor_is_left))
