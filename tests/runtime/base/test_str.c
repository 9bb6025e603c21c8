/* Covers runtime/base/str.c: slices, buffers, numbers with units, UTF-8. */
#include "runtime/base/str.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void slices_compare_by_bytes(void) {
    sp_slice none = {0}, hello = SP_SLICE("hello"), nul = SP_SLICE("a\0b");
    CU_ASSERT(sp_slice_eq(none, SP_SLICE("")));
    CU_ASSERT(sp_slice_is(hello, "hello") && !sp_slice_is(hello, "hell"));
    CU_ASSERT(!sp_slice_is(nul, "a"));
    CU_ASSERT(sp_slice_eq(nul, SP_SLICE("a\0b")) && !sp_slice_eq(nul, SP_SLICE("a\0c")));
    CU_ASSERT(sp_slice_starts(hello, SP_SLICE("he")) && sp_slice_starts(hello, none));
    CU_ASSERT(!sp_slice_starts(hello, SP_SLICE("hello!")) && !sp_slice_starts(none, hello));
    CU_ASSERT(sp_slice_ends(hello, SP_SLICE("lo")) && sp_slice_ends(hello, none));
    CU_ASSERT(!sp_slice_ends(hello, SP_SLICE("hell")) && sp_slice_ends(hello, hello));
    CU_ASSERT_EQUAL(sp_slice_of(NULL).len, 0);
}

static void a_needle_is_found_from_where_it_is_looked_for(void) {
    sp_slice hay = SP_SLICE("abcabc\0abc");
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE("abc"), 0), 0);
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE("abc"), 1), 3);
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE("abc"), 4), 7);
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE("abc"), 8), -1);
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE("\0"), 0), 6);
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE(""), 5), 5);
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE(""), hay.len), (ptrdiff_t)hay.len);
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE(""), hay.len + 1), -1);
    CU_ASSERT_EQUAL(sp_slice_find(hay, SP_SLICE("abcabc\0abcd"), 0), -1);
}

static void the_hash_is_fnv(void) {
    CU_ASSERT_EQUAL(sp_hash_bytes("", 0), 0xcbf29ce484222325u);
    CU_ASSERT_EQUAL(sp_hash_bytes("a", 1), 0xaf63dc4c8601ec8cu);
    CU_ASSERT_EQUAL(sp_hash_bytes("foobar", 6), 0x85944171f73967e8u);
}

static void a_buffer_holds_what_was_put_and_ends_with_nul(void) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_put(&b, NULL, 0);
    CU_ASSERT_EQUAL(b.len, 0);
    for (int i = 0; i < 3000; i++) {
        sp_buf_putc(&b, (char)('a' + i % 26));
        CU_ASSERT_EQUAL(b.ptr[b.len], 0);
    }
    sp_buf_puts(&b, "-x-");
    sp_buf_put_slice(&b, SP_SLICE("\0y"));
    sp_buf_printf(&b, "%d|%s", -5, "z");
    CU_ASSERT(!b.failed);
    CU_ASSERT_EQUAL(b.len, 3000 + 3 + 2 + 4);
    CU_ASSERT_EQUAL(memcmp(b.ptr + 3000, "-x-\0y-5|z", 10), 0);
    for (int i = 0; i < 3000; i++) CU_ASSERT(b.ptr[i] == 'a' + i % 26);
    sp_buf_clear(&b);
    CU_ASSERT(b.len == 0 && b.ptr[0] == 0);
    sp_buf_fini(&b);
    CU_ASSERT_PTR_NULL(b.ptr);
}

static void a_buffer_never_grows_past_its_limit(void) {
    for (size_t limit = 1; limit < 200; limit += 13) {
        sp_buf b;
        sp_buf_init(&b, limit);
        for (size_t i = 0; i < limit; i++) sp_buf_putc(&b, 'x');
        CU_ASSERT(!b.failed && b.len == limit);
        sp_buf_putc(&b, 'y');
        CU_ASSERT(b.failed && b.len == limit);
        sp_buf_clear(&b);
        sp_buf_printf(&b, "%*s", (int)limit + 1, "");
        CU_ASSERT(b.failed && b.len == 0);
        sp_buf_puts(&b, "x"); /* after a failure nothing more is taken */
        CU_ASSERT(b.failed && b.len == 0);
        sp_buf_clear(&b);
        sp_buf_puts(&b, "x");
        CU_ASSERT(!b.failed && b.len == 1);
        sp_buf_put(&b, "", SIZE_MAX); /* refused before a byte is read */
        CU_ASSERT(b.failed && b.len == 1);
        sp_buf_fini(&b);
    }
}

static void a_buffer_without_memory_fails_and_keeps_what_it_had(void) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_mem_fail_at(1);
    sp_buf_puts(&b, "x");
    CU_ASSERT(b.failed && b.len == 0);
    sp_mem_fail_at(0);
    sp_buf_clear(&b);
    sp_buf_puts(&b, "kept");
    sp_mem_fail_at(1);
    for (int i = 0; i < 100; i++) sp_buf_putc(&b, 'x');
    sp_mem_fail_at(0);
    CU_ASSERT(b.failed);
    CU_ASSERT_EQUAL(strncmp(b.ptr, "kept", 4), 0);
    sp_buf_fini(&b);
}

static void integers_are_read_strictly(void) {
    static const struct {
        const char *text;
        int64_t want;
    } good[] = {{"0", 0},
                {"-0", 0},
                {"7", 7},
                {"-7", -7},
                {"9223372036854775807", INT64_MAX},
                {"-9223372036854775808", INT64_MIN},
                {"007", 7}};
    static const char *const bad[] = {"",
                                      "-",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1.0",
                                      "1e3",
                                      "0x1",
                                      "--1",
                                      "1-",
                                      "9223372036854775808",
                                      "-9223372036854775809",
                                      "99999999999999999999999999"};
    for (size_t i = 0; i < SP_LEN(good); i++) {
        int64_t v = 42;
        CU_ASSERT_EQUAL(sp_parse_i64(sp_slice_of(good[i].text), &v), SP_OK);
        CU_ASSERT_EQUAL(v, good[i].want);
    }
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        int64_t v = 42;
        CU_ASSERT_EQUAL(sp_parse_i64(sp_slice_of(bad[i]), &v), SP_E_INVALID);
        CU_ASSERT_EQUAL(v, 42);
    }
    int64_t v;
    CU_ASSERT_EQUAL(sp_parse_i64(SP_SLICE("1\0"), &v), SP_E_INVALID);
}

static void numbers_are_read_strictly(void) {
    static const struct {
        const char *text;
        double want;
    } good[] = {{"0", 0},         {"-1.5", -1.5}, {"1e3", 1000},
                {"2.5E-1", 0.25}, {"1e-400", 0},  {"0.1", 0.1}};
    static const char *const bad[] = {"",     "nan", "inf", "-inf",  "0x1p3",
                                      "1.5 ", " 1",  "1e",  "1e400", "-1e400",
                                      "1,5",  "e5",  ".",   "-",     "1.2.3"};
    for (size_t i = 0; i < SP_LEN(good); i++) {
        double v = 42;
        CU_ASSERT_EQUAL(sp_parse_f64(sp_slice_of(good[i].text), &v), SP_OK);
        CU_ASSERT_EQUAL(v, good[i].want);
    }
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        double v = 42;
        CU_ASSERT_EQUAL(sp_parse_f64(sp_slice_of(bad[i]), &v), SP_E_INVALID);
        CU_ASSERT_EQUAL(v, 42);
    }
    double v;
    CU_ASSERT_EQUAL(sp_parse_f64(SP_SLICE("1\0"), &v), SP_E_INVALID);
}

static void sizes_have_units_of_1024(void) {
    static const struct {
        const char *text;
        uint64_t want;
    } good[] = {{"0", 0},
                {"17", 17},
                {"17B", 17},
                {"1k", 1024},
                {"2K", 2048},
                {"512MiB", 512u << 20},
                {"4G", (uint64_t)4 << 30},
                {"4GB", (uint64_t)4 << 30},
                {"1.5k", 1536},
                {"1t", (uint64_t)1 << 40},
                {"1TiB", (uint64_t)1 << 40}};
    static const char *const bad[] = {"",      "k",      "-1",        "1x",  "1kk",  "1 k",
                                      "1kiB ", "1.2.3k", "99999999T", "1ib", "1Kib", "0x10"};
    for (size_t i = 0; i < SP_LEN(good); i++) {
        uint64_t v = 42;
        CU_ASSERT_EQUAL(sp_parse_bytes(sp_slice_of(good[i].text), &v), SP_OK);
        CU_ASSERT_EQUAL(v, good[i].want);
    }
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        uint64_t v = 42;
        CU_ASSERT_EQUAL(sp_parse_bytes(sp_slice_of(bad[i]), &v), SP_E_INVALID);
        CU_ASSERT_EQUAL(v, 42);
    }
}

static void sizes_are_written_for_people(void) {
    char out[32], tiny[4];
    CU_ASSERT_STRING_EQUAL(sp_format_bytes(out, sizeof out, 0), "0 B");
    CU_ASSERT_STRING_EQUAL(sp_format_bytes(out, sizeof out, 1023), "1023 B");
    CU_ASSERT_STRING_EQUAL(sp_format_bytes(out, sizeof out, 1024), "1.0 KiB");
    CU_ASSERT_STRING_EQUAL(sp_format_bytes(out, sizeof out, 9332327), "8.9 MiB");
    CU_ASSERT_PTR_NOT_NULL(strstr(sp_format_bytes(out, sizeof out, UINT64_MAX), "TiB"));
    CU_ASSERT_STRING_EQUAL(sp_format_bytes(tiny, sizeof tiny, 1023), "102");
}

/* Every scalar value there and back; every two bytes and a rim of longer ones against a definition
 * by intervals (table 3-7). */
static void every_scalar_value_goes_there_and_back(void) {
    int wrong = 0;
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        if (cp >= 0xd800 && cp < 0xe000) continue;
        char s[4];
        uint32_t back = 0;
        int n = sp_utf8_encode(cp, s), want = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
        wrong += n != want || sp_utf8_decode(s, (size_t)n, &back) != n || back != cp;
        for (int cut = 0; cut < n; cut++) wrong += sp_utf8_decode(s, (size_t)cut, &back) != 0;
    }
    CU_ASSERT_EQUAL(wrong, 0);
}

static int table_3_7(const unsigned char *s, size_t n) {
    static const unsigned char rows[][9] = {{0x00, 0x7f, 1},
                                            {0xc2, 0xdf, 2, 0x80, 0xbf},
                                            {0xe0, 0xe0, 3, 0xa0, 0xbf, 0x80, 0xbf},
                                            {0xe1, 0xec, 3, 0x80, 0xbf, 0x80, 0xbf},
                                            {0xed, 0xed, 3, 0x80, 0x9f, 0x80, 0xbf},
                                            {0xee, 0xef, 3, 0x80, 0xbf, 0x80, 0xbf},
                                            {0xf0, 0xf0, 4, 0x90, 0xbf, 0x80, 0xbf, 0x80, 0xbf},
                                            {0xf1, 0xf3, 4, 0x80, 0xbf, 0x80, 0xbf, 0x80, 0xbf},
                                            {0xf4, 0xf4, 4, 0x80, 0x8f, 0x80, 0xbf, 0x80, 0xbf}};
    for (size_t r = 0; n > 0 && r < SP_LEN(rows); r++) {
        if (s[0] < rows[r][0] || s[0] > rows[r][1]) continue;
        int len = rows[r][2];
        if ((size_t)len > n) return 0;
        for (int i = 1; i < len; i++) {
            unsigned char low = i == 1 ? rows[r][3] : 0x80, high = i == 1 ? rows[r][4] : 0xbf;
            if (s[i] < low || s[i] > high) return 0;
        }
        return len;
    }
    return 0;
}

static void what_is_not_utf8_is_refused(void) {
    static const unsigned char rim[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf,
                                        0xc0, 0xc2, 0xe0, 0xed, 0xf0, 0xf4, 0xff};
    int wrong = 0;
    for (int a = 0; a < 256; a++)
        for (int b = 0; b < 256; b++)
            for (size_t c = 0; c < SP_LEN(rim); c++)
                for (size_t d = 0; d < SP_LEN(rim); d++) {
                    unsigned char s[4] = {(unsigned char)a, (unsigned char)b, rim[c], rim[d]};
                    uint32_t cp;
                    wrong += sp_utf8_decode((char *)s, 4, &cp) != table_3_7(s, 4);
                }
    CU_ASSERT_EQUAL(wrong, 0);
    CU_ASSERT(sp_utf8_valid(SP_SLICE("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\0b")));
    CU_ASSERT(sp_utf8_valid((sp_slice){0}));
    CU_ASSERT(!sp_utf8_valid(SP_SLICE("ab\xc3")));
    CU_ASSERT(!sp_utf8_valid(SP_SLICE("\xc0\x80")));
    CU_ASSERT(!sp_utf8_valid(SP_SLICE("\xed\xa0\x80")));
}

static void hexadecimal_goes_round_and_refuses_what_is_none(void) {
    const unsigned char bytes[3] = {0, 0x9a, 0xff};
    unsigned char got[3];
    char text[7];
    sp_hex_write(text, bytes, sizeof bytes);
    CU_ASSERT_STRING_EQUAL(text, "009aff");
    CU_ASSERT_EQUAL(sp_hex_read(got, sizeof got, "009AfF"), SP_OK);
    CU_ASSERT_EQUAL(memcmp(got, bytes, sizeof got), 0);
    static const char *const bad[] = {"", "009af", "009aff0", "009afg", " 09aff", "0x9aff"};
    for (size_t i = 0; i < SP_LEN(bad); i++)
        CU_ASSERT_EQUAL(sp_hex_read(got, sizeof got, bad[i]), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_hex_read(got, 0, ""), SP_OK);
}

SP_TEST_MAIN("runtime/base/str", SP_TEST(hexadecimal_goes_round_and_refuses_what_is_none),
             SP_TEST(slices_compare_by_bytes),
             SP_TEST(a_needle_is_found_from_where_it_is_looked_for), SP_TEST(the_hash_is_fnv),
             SP_TEST(a_buffer_holds_what_was_put_and_ends_with_nul),
             SP_TEST(a_buffer_never_grows_past_its_limit),
             SP_TEST(a_buffer_without_memory_fails_and_keeps_what_it_had),
             SP_TEST(integers_are_read_strictly), SP_TEST(numbers_are_read_strictly),
             SP_TEST(sizes_have_units_of_1024), SP_TEST(sizes_are_written_for_people),
             SP_TEST(every_scalar_value_goes_there_and_back), SP_TEST(what_is_not_utf8_is_refused))
