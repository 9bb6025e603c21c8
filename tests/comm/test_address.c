/* Covers comm/address.c: lists of addresses, what is none, and how one is printed. Listening is
 * covered by test_door.c. */
#include "comm/address.h"

#include "tests/harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

static void a_list_is_taken_item_by_item(void) {
    static const char *const want[][2] = {
        {"10.0.0.1", "7000"}, {"fe80::1%eth0", "1"}, {"head.pod.svc", "65535"}, {"a", "7"}};
    sp_slice list = SP_SLICE("10.0.0.1:7000, [fe80::1%eth0]:1 ,head.pod.svc:65535,a:007");
    int n = 0;
    CU_ASSERT_EQUAL(sp_address_count(list, &n, NULL), SP_OK);
    CU_ASSERT_EQUAL(n, 4);
    for (size_t i = 0; i < SP_LEN(want); i++) {
        sp_address a = {0};
        CU_ASSERT_EQUAL_FATAL(sp_address_next(&list, &a, NULL), SP_OK);
        CU_ASSERT_STRING_EQUAL(a.host, want[i][0]);
        CU_ASSERT_STRING_EQUAL(a.port, want[i][1]);
    }
    sp_address a;
    CU_ASSERT_EQUAL(sp_address_next(&list, &a, NULL), SP_AGAIN);
    CU_ASSERT_EQUAL(sp_address_next(&list, &a, NULL), SP_AGAIN);
}

static void what_is_no_address_is_refused_by_name(void) {
    static const char *const bad[] = {"",       " ",      "a",        "a:",   ":1",      "[]:1",
                                      "[::1:1", "::1]:1", "::1:1",    "a:0",  "a:65536", "a:-1",
                                      "a:+1",   "a:1x",   "a:000001", "a:1,", ",a:1",    "a:1,,b:2",
                                      "a b:1",  "a\n:1",  "[:1",      "]:1",  "a:1 2",   "[a]b:1"};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        int n = -1;
        sp_err err = {0};
        CU_ASSERT_EQUAL(sp_address_count(sp_slice_of(bad[i]), &n, &err), SP_E_INVALID);
        CU_ASSERT_EQUAL(n, -1);
        CU_ASSERT(err.text[0] != 0);
    }
}

/* Each in memory of its own length, so that a sanitizer sees a byte read behind it. */
static void no_cut_address_is_read_past_its_end(void) {
    static const char whole[] = " [fe80::1%eth0]:7000 ,10.0.0.1:65535";
    for (size_t len = 0; len < sizeof whole; len++) {
        char *p = malloc(len ? len : 1);
        int n = 0;
        memcpy(p, whole, len);
        sp_status st = sp_address_count((sp_slice){p, len}, &n, NULL);
        CU_ASSERT(st == SP_OK || st == SP_E_INVALID);
        free(p);
    }
}

static void hosts_up_to_255_bytes_fit(void) {
    char text[300];
    sp_address a;
    memset(text, 'h', sizeof text);
    memcpy(text + SP_HOST_NAME_MAX, ":1", 3);
    sp_slice list = sp_slice_of(text);
    CU_ASSERT_EQUAL(sp_address_next(&list, &a, NULL), SP_OK);
    CU_ASSERT_EQUAL(strlen(a.host), SP_HOST_NAME_MAX);
    memset(text, 'h', sizeof text);
    memcpy(text + SP_HOST_NAME_MAX + 1, ":1", 3);
    list = sp_slice_of(text);
    CU_ASSERT_EQUAL(sp_address_next(&list, &a, NULL), SP_E_INVALID);
}

static void expect_print(int family, const char *host, const char *want) {
    char text[SP_ADDRESS_MAX];
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(7000)};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(7000)};
    void *where = family == AF_INET6 ? (void *)&six.sin6_addr : (void *)&four.sin_addr;
    CU_ASSERT_EQUAL_FATAL(inet_pton(family, host, where), 1);
    sp_address_print(text, sizeof text,
                     family == AF_INET6 ? (struct sockaddr *)&six : (struct sockaddr *)&four);
    CU_ASSERT_STRING_EQUAL(text, want);
}

static void addresses_are_printed_so_that_they_can_be_read_again(void) {
    expect_print(AF_INET, "10.0.0.1", "10.0.0.1:7000");
    expect_print(AF_INET6, "::1", "[::1]:7000");
    expect_print(AF_INET6, "::ffff:10.0.0.1", "10.0.0.1:7000");
    expect_print(AF_INET6, "2001:db8:1111:2222:3333:4444:5555:6666",
                 "[2001:db8:1111:2222:3333:4444:5555:6666]:7000");
    struct sockaddr other = {.sa_family = AF_UNIX};
    char text[SP_ADDRESS_MAX];
    sp_address_print(text, sizeof text, &other);
    CU_ASSERT(strstr(text, "family") != NULL);
}

SP_TEST_MAIN("comm/address", SP_TEST(a_list_is_taken_item_by_item),
             SP_TEST(what_is_no_address_is_refused_by_name),
             SP_TEST(no_cut_address_is_read_past_its_end), SP_TEST(hosts_up_to_255_bytes_fit),
             SP_TEST(addresses_are_printed_so_that_they_can_be_read_again))
