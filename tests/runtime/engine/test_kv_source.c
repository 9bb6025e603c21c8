/* Covers runtime/engine/kv_source.c: what is written is read, and what another pod cannot have meant
 * is refused by the key that is wrong. */
#include "runtime/engine/kv_source.h"
#include "runtime/engine/wire.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static sp_status read_text(sp_kv_source_words *out, const char *text, sp_err *err) {
    *err = (sp_err){0};
    return sp_kv_source_read(out, sp_slice_of(text), err);
}

static void a_group_goes_round(void) {
    const char *const ranks[] = {"kvx1 a", "kvx1 b \"q\" \\", "kvx1 c", "kvx1 d", "e", "~"};
    sp_kv_source_words w;
    sp_err err = {0};
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_kv_source_write(&text, 2, 3, (const int32_t[]){1, 5, 80}, ranks);
    CU_ASSERT_EQUAL_FATAL(sp_kv_source_read(&w, sp_buf_slice(&text), &err), SP_OK);
    CU_ASSERT(w.tp == 2 && w.pp == 3);
    CU_ASSERT(w.pp_layers[0] == 1 && w.pp_layers[1] == 5 && w.pp_layers[2] == 80);
    for (int i = 0; i < 6; i++) CU_ASSERT_STRING_EQUAL(w.ranks[i], ranks[i]);
    sp_kv_source_words_fini(&w);
    CU_ASSERT_PTR_NULL(w.ranks);
    sp_buf_fini(&text);
}

static void the_text_is_that_of_the_header(void) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_kv_source_write(&text, 2, 1, (const int32_t[]){6}, (const char *const[]){"kvx1 x", "y"});
    CU_ASSERT_STRING_EQUAL(text.ptr,
                           "{\"tp\":2,\"pp\":1,\"pp_layers\":[6],\"ranks\":[\"kvx1 x\",\"y\"]}");
    sp_buf_fini(&text);
}

static void keys_may_stand_in_any_order(void) {
    sp_kv_source_words w;
    sp_err err;
    CU_ASSERT_EQUAL_FATAL(
        read_text(&w, " {\"ranks\":[\"a\"], \"pp_layers\":[3], \"pp\":1, \"tp\":1} ", &err), SP_OK);
    CU_ASSERT(w.tp == 1 && w.pp == 1 && w.pp_layers[0] == 3);
    sp_kv_source_words_fini(&w);
}

static void what_is_wrong_is_named(void) {
    static const struct {
        const char *text, *words;
        sp_status st;
    } rows[] = {
        {"", "JSON", SP_E_FORMAT},
        {"{\"tp\":1", "JSON", SP_E_FORMAT},
        {"[[[[[[1]]]]]]", "deeper", SP_E_FORMAT},
        {"[1]", "want an object", SP_E_INVALID},
        {"{}", "tp: missing", SP_E_INVALID},
        {"{\"tp\":1}", "pp: missing", SP_E_INVALID},
        {"{\"tp\":0,\"pp\":1}", "tp: want", SP_E_INVALID},
        {"{\"tp\":65,\"pp\":1}", "tp: want", SP_E_INVALID},
        {"{\"tp\":\"1\",\"pp\":1}", "tp: want", SP_E_INVALID},
        {"{\"tp\":1.0,\"pp\":1}", "tp: want", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":129}", "pp: want", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":-1}", "pp: want", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1}", "pp_layers: missing", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":3}", "pp_layers: want", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[]}", "pp_layers: want 1", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[3,3]}", "pp_layers: want 1", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[0]}", "pp_layers: want integers", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[-1]}", "pp_layers: want integers", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[9999999999]}", "pp_layers: want integers",
         SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[\"3\"]}", "pp_layers: want integers", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[3]}", "ranks: missing", SP_E_INVALID},
        {"{\"tp\":2,\"pp\":1,\"pp_layers\":[3],\"ranks\":[\"a\"]}", "ranks: want 2", SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[3],\"ranks\":[\"\"]}", "ranks: number 0", SP_E_INVALID},
        {"{\"tp\":2,\"pp\":1,\"pp_layers\":[3],\"ranks\":[\"a\",7]}", "ranks: number 1",
         SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[3],\"ranks\":[\"a\\nb\"]}", "ranks: number 0",
         SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[3],\"ranks\":[\"a\\u0000b\"]}", "ranks: number 0",
         SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[3],\"ranks\":[\"\\u00e4\"]}", "ranks: number 0",
         SP_E_INVALID},
        {"{\"tp\":1,\"pp\":1,\"pp_layers\":[3],\"ranks\":[\"a\"],\"x\":1}", "alone", SP_E_INVALID},
    };
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        sp_kv_source_words w = {.tp = 99};
        sp_err err;
        const sp_status st = read_text(&w, rows[i].text, &err);
        if (st != rows[i].st || !strstr(err.text, rows[i].words))
            fprintf(stderr, "    '%s': %d '%s'\n", rows[i].text, (int)st, err.text);
        CU_ASSERT_EQUAL(st, rows[i].st);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].words));
        CU_ASSERT(w.tp == 99 && !w.ranks); /* untouched */
    }
}

static void a_text_that_no_frame_could_carry_is_refused(void) {
    sp_kv_source_words w = {0};
    sp_err err = {0};
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_buf_puts(&text, "{\"tp\":1,\"pp\":1,\"pp_layers\":[3],\"ranks\":[\"a\"]}");
    while (text.len <= SP_KV_SOURCE_TEXT_MAX) sp_buf_putc(&text, ' ');
    CU_ASSERT_EQUAL(sp_kv_source_read(&w, sp_buf_slice(&text), &err), SP_E_INVALID);
    text.len--;
    CU_ASSERT_EQUAL(sp_kv_source_read(&w, sp_buf_slice(&text), &err), SP_OK);
    sp_kv_source_words_fini(&w);
    sp_buf_fini(&text);
}

/* Every text that is a good one cut short, or with one byte changed, is read or refused: no more. */
static void no_text_does_harm(void) {
    static const char good[] =
        "{\"tp\":2,\"pp\":2,\"pp_layers\":[3,3],\"ranks\":[\"kvx1 a\",\"b\",\"c\",\"d\"]}";
    char text[sizeof good];
    int n_read = 0;
    for (size_t n = 0; n < sizeof good; n++) {
        sp_kv_source_words w;
        sp_err err = {0};
        if (sp_kv_source_read(&w, (sp_slice){good, n}, &err) != SP_OK) continue;
        CU_ASSERT_EQUAL(n, sizeof good - 1);
        sp_kv_source_words_fini(&w);
    }
    for (size_t at = 0; at < sizeof good - 1; at++)
        for (int to = 0; to < 256; to += 5) {
            sp_kv_source_words w;
            sp_err err = {0};
            memcpy(text, good, sizeof good);
            text[at] = (char)to;
            if (sp_kv_source_read(&w, (sp_slice){text, sizeof good - 1}, &err) != SP_OK) continue;
            n_read++;
            CU_ASSERT(w.tp * w.pp == 4 && w.ranks[3] && w.ranks[0][0]);
            sp_kv_source_words_fini(&w);
        }
    CU_ASSERT(n_read > 0);
}

SP_TEST_MAIN("runtime/engine/kv_source", SP_TEST(a_group_goes_round),
             SP_TEST(the_text_is_that_of_the_header), SP_TEST(keys_may_stand_in_any_order),
             SP_TEST(what_is_wrong_is_named), SP_TEST(a_text_that_no_frame_could_carry_is_refused),
             SP_TEST(no_text_does_harm))
