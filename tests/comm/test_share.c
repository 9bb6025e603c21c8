/* Covers comm/share.c: who gets a descriptor, who does not, and what stays behind. */
#include "comm/share.h"

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "tests/harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint8_t key[SP_SHARE_KEY_BYTES] = "a key that all of this pod know";
static const uint8_t wrong_key[SP_SHARE_KEY_BYTES] = "a key that all of that pod know";

static int64_t soon(void) {
    return sp_now_ns() + 5 * SP_NS_PER_S;
}

static int open_descriptors(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    if (!d) return -1;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

/* A memory file that holds one letter. */
static int file_with(char letter) {
    int fd;
    CU_ASSERT_EQUAL_FATAL(sp_memfd_create(&fd, "t", 16, false, NULL), SP_OK);
    CU_ASSERT_EQUAL(pwrite(fd, &letter, 1, 0), 1);
    return fd;
}

static char letter_in(int fd) {
    char letter = 0;
    return pread(fd, &letter, 1, 0) == 1 ? letter : '?';
}

static sp_share *open_share(void) {
    sp_share *s = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_share_open(&s, key, NULL), SP_OK);
    return s;
}

static void add_file(sp_share *s, uint32_t number, char letter) {
    int fd = file_with(letter);
    CU_ASSERT_EQUAL(sp_share_add(s, number, fd, NULL), SP_OK);
    close(fd); /* it was duplicated */
}

static void a_descriptor_is_taken_by_its_number(void) {
    sp_share *s = open_share();
    add_file(s, 7, 'a');
    add_file(s, UINT32_MAX, 'b');
    int a = -1, b = -1;
    CU_ASSERT_EQUAL_FATAL(sp_share_take(&a, sp_share_name(s), key, 7, soon(), NULL), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_share_take(&b, sp_share_name(s), key, UINT32_MAX, SP_NEVER, NULL),
                          SP_OK);
    CU_ASSERT_EQUAL(letter_in(a), 'a');
    CU_ASSERT_EQUAL(letter_in(b), 'b');
    CU_ASSERT(fcntl(a, F_GETFD) & FD_CLOEXEC);
    CU_ASSERT_EQUAL(sp_share_refused(s), 0);
    close(a);
    close(b);
    sp_share_close(s);
}

static void another_process_takes_it(void) {
    sp_share *s = open_share();
    add_file(s, 1, 'x');
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int fd;
        if (sp_share_take(&fd, sp_share_name(s), key, 1, soon(), NULL) != SP_OK) _exit(1);
        _exit(letter_in(fd) == 'x' ? 0 : 2);
    }
    int how = -1;
    CU_ASSERT_EQUAL(waitpid(pid, &how, 0), pid);
    CU_ASSERT_EQUAL(how, 0);
    sp_share_close(s);
}

static void names_are_fresh_and_nobody_listens_after_closing(void) {
    sp_share *s = open_share(), *t = open_share();
    char name[SP_SHARE_NAME_BYTES];
    int fd = -7;
    CU_ASSERT(strcmp(sp_share_name(s), sp_share_name(t)) != 0);
    snprintf(name, sizeof name, "%s", sp_share_name(s));
    sp_share_close(s);
    sp_share_close(t);
    CU_ASSERT_EQUAL(sp_share_take(&fd, name, key, 1, soon(), NULL), SP_E_NOTFOUND);
    CU_ASSERT_EQUAL(sp_share_take(&fd, "", key, 1, soon(), NULL), SP_E_NOTFOUND);
    char longer[200];
    memset(longer, 'n', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    CU_ASSERT_EQUAL(sp_share_take(&fd, longer, key, 1, soon(), NULL), SP_E_NOTFOUND);
    CU_ASSERT_EQUAL(fd, -7);
}

static void an_unknown_number_is_not_found(void) {
    sp_share *s = open_share();
    sp_err err = {0};
    int fd = -7;
    CU_ASSERT_EQUAL(sp_share_take(&fd, sp_share_name(s), key, 3, soon(), &err), SP_E_NOTFOUND);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "number 3"));
    CU_ASSERT_EQUAL(fd, -7);
    add_file(s, 3, 'c'); /* added while it serves */
    CU_ASSERT_EQUAL_FATAL(sp_share_take(&fd, sp_share_name(s), key, 3, soon(), NULL), SP_OK);
    CU_ASSERT_EQUAL(letter_in(fd), 'c');
    CU_ASSERT_EQUAL(sp_share_refused(s), 0);
    close(fd);
    sp_share_close(s);
}

/* The listener counts on its own thread: give it time to. */
static void wait_refused(sp_share *s, uint64_t n) {
    int64_t end = soon();
    while (sp_share_refused(s) < n && sp_now_ns() < end) poll(NULL, 0, 1);
    CU_ASSERT_EQUAL(sp_share_refused(s), n);
}

static void another_key_is_denied_and_counted(void) {
    sp_share *s = open_share();
    sp_err err = {0};
    int fd = -7;
    add_file(s, 1, 'x');
    CU_ASSERT_EQUAL(sp_share_take(&fd, sp_share_name(s), wrong_key, 1, soon(), &err), SP_E_DENIED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "not of our pod"));
    CU_ASSERT_EQUAL(fd, -7);
    wait_refused(s, 1);
    sp_share_close(s);
}

static int dial(const char *name) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    memcpy(a.sun_path + 1, name, strlen(name));
    socklen_t n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
    CU_ASSERT_EQUAL_FATAL(connect(fd, (struct sockaddr *)&a, n), 0);
    return fd;
}

/* Waits until the listener hangs up; true when it never passed a descriptor on the way. */
static bool hangs_up(int fd) {
    char bytes[256], control[256];
    for (;;) {
        struct iovec io = {.iov_base = bytes, .iov_len = sizeof bytes};
        struct msghdr m = {.msg_iov = &io,
                           .msg_iovlen = 1,
                           .msg_control = control,
                           .msg_controllen = sizeof control};
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 5000) != 1) return false;
        ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
        if (n <= 0) return true;
        if (CMSG_FIRSTHDR(&m)) return false;
    }
}

static void garbage_is_hung_up_on_and_counted(void) {
    static const size_t sizes[] = {1, 47, 48, 49, 128, 129, 4000};
    sp_share *s = open_share();
    char bytes[4000];
    add_file(s, 0x5a5a5a5au, 'x');
    memset(bytes, 0x5a, sizeof bytes);
    for (size_t i = 0; i < SP_LEN(sizes); i++) {
        int fd = dial(sp_share_name(s));
        CU_ASSERT_EQUAL(send(fd, bytes, sizes[i], MSG_NOSIGNAL), (ssize_t)sizes[i]);
        CU_ASSERT(hangs_up(fd));
        close(fd);
    }
    wait_refused(s, SP_LEN(sizes));
    sp_share_close(s);
}

/* A taker that knows how to ask, but not the key. */
static void a_guessed_proof_gets_nothing(void) {
    sp_share *s = open_share();
    add_file(s, 1, 'x');
    unsigned char hello[48] = "SPSHARE1", challenge[64], answer[64];
    uint32_t number = 1;
    memcpy(hello + 8, &number, sizeof number);
    int fd = dial(sp_share_name(s));
    CU_ASSERT_EQUAL(send(fd, hello, sizeof hello, MSG_NOSIGNAL), (ssize_t)sizeof hello);
    CU_ASSERT_EQUAL(recv(fd, challenge, sizeof challenge, 0), (ssize_t)sizeof challenge);
    /* What the listener proved itself with, sent back. */
    CU_ASSERT_EQUAL(send(fd, challenge + 32, 32, MSG_NOSIGNAL), 32);
    CU_ASSERT(recv(fd, answer, sizeof answer, MSG_PEEK) > 0);
    CU_ASSERT(hangs_up(fd));
    close(fd);
    wait_refused(s, 1);
    sp_share_close(s);
}

static void others_are_served_while_one_says_nothing(void) {
    sp_share *s = open_share();
    int quiet[40], fd = -1;
    add_file(s, 1, 'x');
    for (size_t i = 0; i < 3; i++) quiet[i] = dial(sp_share_name(s));
    int64_t begin = sp_now_ns();
    CU_ASSERT_EQUAL_FATAL(sp_share_take(&fd, sp_share_name(s), key, 1, soon(), NULL), SP_OK);
    CU_ASSERT(sp_now_ns() - begin < SP_NS_PER_S);
    close(fd);
    /* More silent ones than are heard at a time: they are dropped, then it goes on. */
    for (size_t i = 3; i < SP_LEN(quiet); i++) quiet[i] = dial(sp_share_name(s));
    CU_ASSERT_EQUAL_FATAL(sp_share_take(&fd, sp_share_name(s), key, 1, soon(), NULL), SP_OK);
    CU_ASSERT(sp_share_refused(s) >= 3);
    CU_ASSERT(hangs_up(quiet[0]));
    close(fd);
    for (size_t i = 0; i < SP_LEN(quiet); i++) close(quiet[i]);
    sp_share_close(s);
}

static void a_listener_that_does_not_answer_is_a_timeout(void) {
    int mute = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), fd = -7;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char name[SP_SHARE_NAME_BYTES];
    int len = snprintf(name, sizeof name, "superpod-test-%d", (int)getpid());
    memcpy(a.sun_path + 1, name, (size_t)len);
    socklen_t n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
    CU_ASSERT_EQUAL_FATAL(bind(mute, (struct sockaddr *)&a, n), 0);
    CU_ASSERT_EQUAL_FATAL(listen(mute, 4), 0);
    int64_t until = sp_now_ns() + 30 * SP_NS_PER_MS;
    CU_ASSERT_EQUAL(sp_share_take(&fd, name, key, 1, until, NULL), SP_E_TIMEOUT);
    CU_ASSERT(sp_now_ns() >= until);
    CU_ASSERT_EQUAL(sp_share_take(&fd, name, key, 1, 0, NULL), SP_E_TIMEOUT);
    CU_ASSERT_EQUAL(fd, -7);
    close(mute);
}

static void the_table_has_an_end_and_no_number_twice(void) {
    sp_share *s = open_share();
    int fd = file_with('x'), got = -1;
    for (uint32_t i = 0; i < SP_SHARE_FDS_MAX; i++)
        CU_ASSERT_EQUAL(sp_share_add(s, i * 3, fd, NULL), SP_OK);
    CU_ASSERT_EQUAL(sp_share_add(s, 3, fd, NULL), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_share_add(s, 1, fd, NULL), SP_E_LIMIT);
    CU_ASSERT_EQUAL_FATAL(
        sp_share_take(&got, sp_share_name(s), key, 3 * (SP_SHARE_FDS_MAX - 1), soon(), NULL),
        SP_OK);
    close(got);
    sp_share_close(s);
    s = open_share();
    CU_ASSERT_EQUAL(sp_share_add(s, 1, -1, NULL), SP_E_INVALID);
    sp_share_close(s);
    close(fd);
}

static void no_descriptor_is_left(void) {
    int before = open_descriptors();
    for (int k = 0; k < 10; k++) {
        sp_share *s = open_share();
        int fd;
        add_file(s, 1, 'x');
        CU_ASSERT_EQUAL_FATAL(sp_share_take(&fd, sp_share_name(s), key, 1, soon(), NULL), SP_OK);
        close(fd);
        CU_ASSERT_EQUAL(sp_share_take(&fd, sp_share_name(s), wrong_key, 1, soon(), NULL),
                        SP_E_DENIED);
        CU_ASSERT_EQUAL(sp_share_take(&fd, sp_share_name(s), key, 2, soon(), NULL), SP_E_NOTFOUND);
        sp_share_close(s);
    }
    CU_ASSERT_EQUAL(open_descriptors(), before);
}

SP_TEST_MAIN("comm/share", SP_TEST(a_descriptor_is_taken_by_its_number),
             SP_TEST(another_process_takes_it),
             SP_TEST(names_are_fresh_and_nobody_listens_after_closing),
             SP_TEST(an_unknown_number_is_not_found), SP_TEST(another_key_is_denied_and_counted),
             SP_TEST(garbage_is_hung_up_on_and_counted), SP_TEST(a_guessed_proof_gets_nothing),
             SP_TEST(others_are_served_while_one_says_nothing),
             SP_TEST(a_listener_that_does_not_answer_is_a_timeout),
             SP_TEST(the_table_has_an_end_and_no_number_twice), SP_TEST(no_descriptor_is_left))
