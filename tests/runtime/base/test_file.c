/* Covers runtime/base/file.c: maps, bounded reads, memory files. */
#include "runtime/base/file.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];

static const char *path_of(const char *name) {
    static char path[256];
    if (!dir[0]) {
        snprintf(dir, sizeof dir, "/tmp/sp_test_file_XXXXXX");
        CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
    }
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static const char *make_file(const char *name, const void *bytes, size_t n) {
    const char *path = path_of(name);
    FILE *f = fopen(path, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    CU_ASSERT_EQUAL(fwrite(bytes, 1, n, f), n);
    fclose(f);
    return path;
}

static void a_map_shows_the_bytes_of_the_file(void) {
    char *bytes = malloc(100000);
    for (int i = 0; i < 100000; i++) bytes[i] = (char)(i * 7);
    sp_map m = {0};
    CU_ASSERT_EQUAL_FATAL(sp_map_open(&m, make_file("a", bytes, 100000), NULL), SP_OK);
    CU_ASSERT_EQUAL(m.len, 100000);
    CU_ASSERT_EQUAL(memcmp(m.ptr, bytes, m.len), 0);
    unlink(path_of("a")); /* the map outlives the name */
    CU_ASSERT_EQUAL(m.ptr[99999], (unsigned char)bytes[99999]);
    sp_map_close(&m);
    CU_ASSERT(m.ptr == NULL && m.len == 0);
    sp_map_close(&m);
    free(bytes);
}

static void an_empty_file_is_an_empty_map(void) {
    sp_map m = {.len = 7};
    CU_ASSERT_EQUAL(sp_map_open(&m, make_file("empty", "", 0), NULL), SP_OK);
    CU_ASSERT(m.ptr == NULL && m.len == 0);
    sp_map_close(&m);
    unlink(path_of("empty"));
}

static void what_is_no_regular_file_is_refused_by_name(void) {
    sp_map m = {0};
    char *bytes = NULL;
    size_t n;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_map_open(&m, path_of("none"), &err), SP_E_NOTFOUND);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "none"));
    CU_ASSERT_EQUAL(sp_file_read(path_of("none/below"), 10, &bytes, &n, &err), SP_E_NOTFOUND);
    CU_ASSERT_EQUAL(sp_map_open(&m, "/tmp", &err), SP_E_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "regular"));
    CU_ASSERT_EQUAL(sp_map_open(&m, "/dev/zero", &err), SP_E_IO);
    CU_ASSERT_EQUAL(mkfifo(path_of("fifo"), 0600), 0);
    CU_ASSERT_EQUAL(sp_map_open(&m, path_of("fifo"), &err), SP_E_IO); /* and does not wait */
    unlink(path_of("fifo"));
    CU_ASSERT_PTR_NULL(m.ptr);
    CU_ASSERT_PTR_NULL(bytes);
}

static void a_file_is_read_whole_and_ends_with_nul(void) {
    char *bytes = NULL;
    size_t n = 0;
    CU_ASSERT_EQUAL_FATAL(sp_file_read(make_file("b", "ab\0cd", 5), 5, &bytes, &n, NULL), SP_OK);
    CU_ASSERT_EQUAL(n, 5);
    CU_ASSERT_EQUAL(memcmp(bytes, "ab\0cd", 6), 0);
    sp_free(bytes);
    CU_ASSERT_EQUAL_FATAL(sp_file_read(make_file("b", "", 0), 0, &bytes, &n, NULL), SP_OK);
    CU_ASSERT(n == 0 && bytes[0] == 0);
    sp_free(bytes);
    unlink(path_of("b"));
}

static void a_file_above_the_bound_is_too_long(void) {
    char *bytes = NULL;
    size_t n = 3;
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_file_read(make_file("c", "123456", 6), 5, &bytes, &n, &err), SP_E_TOOLONG);
    CU_ASSERT(strstr(err.text, "6 bytes") && strstr(err.text, "at most 5"));
    sp_mem_fail_at(1);
    CU_ASSERT_EQUAL(sp_file_read(path_of("c"), 6, &bytes, &n, &err), SP_E_NOMEM);
    sp_mem_fail_at(0);
    CU_ASSERT(bytes == NULL && n == 3);
    unlink(path_of("c"));
}

static void failures_leave_no_descriptor_open(void) {
    int before = dup(0), after;
    close(before);
    for (int i = 0; i < 50; i++) {
        sp_map m;
        char *bytes;
        size_t n;
        CU_ASSERT_NOT_EQUAL(sp_map_open(&m, "/tmp", NULL), SP_OK);
        CU_ASSERT_NOT_EQUAL(sp_file_read("/tmp", 10, &bytes, &n, NULL), SP_OK);
    }
    after = dup(0);
    close(after);
    CU_ASSERT_EQUAL(before, after);
}

static void files_exist_or_not(void) {
    make_file("d", "x", 1);
    CU_ASSERT(sp_file_exists(path_of("d")));
    unlink(path_of("d"));
    CU_ASSERT(!sp_file_exists(path_of("d")));
    CU_ASSERT(sp_file_exists("/tmp"));
}

static void a_memory_file_has_its_size_and_is_inherited_when_asked(void) {
    for (int inherit = 0; inherit < 2; inherit++) {
        int fd = -1;
        struct stat sb;
        CU_ASSERT_EQUAL_FATAL(sp_memfd_create(&fd, "t", 12345, inherit, NULL), SP_OK);
        CU_ASSERT(fstat(fd, &sb) == 0 && sb.st_size == 12345);
        CU_ASSERT_EQUAL((fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0, (bool)inherit);
        CU_ASSERT_EQUAL(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0); /* it may be sealed */
        CU_ASSERT_NOT_EQUAL(ftruncate(fd, 1), 0);
        close(fd);
    }
    int fd = -1;
    sp_err err = {0};
    CU_ASSERT_NOT_EQUAL(sp_memfd_create(&fd, "t", SIZE_MAX, false, &err), SP_OK);
    CU_ASSERT_EQUAL(fd, -1);
    if (dir[0]) rmdir(dir);
}

SP_TEST_MAIN("runtime/base/file", SP_TEST(a_map_shows_the_bytes_of_the_file),
             SP_TEST(an_empty_file_is_an_empty_map),
             SP_TEST(what_is_no_regular_file_is_refused_by_name),
             SP_TEST(a_file_is_read_whole_and_ends_with_nul),
             SP_TEST(a_file_above_the_bound_is_too_long),
             SP_TEST(failures_leave_no_descriptor_open), SP_TEST(files_exist_or_not),
             SP_TEST(a_memory_file_has_its_size_and_is_inherited_when_asked))
