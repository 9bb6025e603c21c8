/* Covers runtime/text/jinja.c with lexer and parser: what is accepted, what is refused and how, and
 * whitespace control. */
#include "runtime/text/jinja.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const sp_jinja_options CHAT = {.trim_blocks = true, .lstrip_blocks = true};
static const sp_jinja_options PLAIN = {0};

/* Renders without variables; NULL and the error's words in `err` when it fails. */
static const char *render(const char *source, sp_jinja_options options, sp_buf *out, sp_err *err) {
    sp_jinja *t = NULL;
    sp_buf_clear(out);
    sp_status st = sp_jinja_parse(&t, sp_slice_of(source), options, err);
    if (st == SP_OK) st = sp_jinja_render(t, NULL, 0, NULL, 0, out, NULL, err);
    sp_jinja_free(t);
    return st == SP_OK ? (out->ptr ? out->ptr : "") : NULL;
}

static void gives(const char *source, sp_jinja_options options, const char *want) {
    sp_err err = {0};
    sp_buf out;
    sp_buf_init(&out, 0);
    const char *got = render(source, options, &out, &err);
    if (!got || strcmp(got, want) != 0) {
        fprintf(stderr, "'%s': want '%s', got '%s'\n", source, want, got ? got : err.text);
        CU_FAIL("wrong text");
    }
    sp_buf_fini(&out);
}

static void refuses(const char *source, sp_status want, const char *words) {
    sp_err err = {0};
    sp_jinja *t = NULL;
    sp_status st = sp_jinja_parse(&t, sp_slice_of(source), CHAT, &err);
    CU_ASSERT_EQUAL(st, want);
    CU_ASSERT_PTR_NULL(t);
    if (!strstr(err.text, words)) {
        fprintf(stderr, "'%.60s': want words '%s', got '%s'\n", source, words, err.text);
        CU_FAIL("wrong words");
    }
    sp_jinja_free(t);
}

static void minus_signs_eat_all_whitespace_on_their_side(void) {
    gives("a \n {%- if true -%} \n\t b \n{%- endif -%}\n c", CHAT, "abc");
    gives("a \n{{- 'x' -}}\n b", CHAT, "axb");
    gives("a \n{#- c -#}\n b", CHAT, "ab");
    gives("a\xc2\xa0{{- 1 -}}\xe3\x80\x80"
          "b",
          CHAT, "a1b");
}

static void trim_blocks_takes_one_newline_after_blocks_only(void) {
    gives("{% if true %}\n\nx{% endif %}\n{{ 1 }}\n{# c #}\ny", CHAT, "\nx1\ny");
    gives("{% if true +%}\nx{% endif %}", CHAT, "\nx");
    gives("{% if true %}\nx{% endif %}", PLAIN, "\nx");
}

static void lstrip_blocks_takes_blanks_before_blocks_at_the_start_of_a_line(void) {
    gives("  {% if true %}a\n  {% endif %}b", CHAT, "a\nb");
    gives("x  {% if true %}a{% endif %}", CHAT, "x  a");
    gives("  {%+ if true %}a{% endif %}", CHAT, "  a");
    gives("  {{ 1 }}\n  {# c #}\n", CHAT, "  1\n");
    gives("  {% if true %}a{% endif %}", PLAIN, "  a");
    gives("{% if true %}\n   {% endif %}z", CHAT, "z");
}

static void newlines_are_one_kind_and_the_last_one_goes(void) {
    gives("a\r\nb\rc\n", PLAIN, "a\nb\nc");
    gives("a\n\n", PLAIN, "a\n");
    gives("{{ 'x\r\ny' }}", PLAIN, "x\ny");
    gives("", PLAIN, "");
}

static void raw_blocks_are_text(void) {
    gives("{% raw %}{{ x }}{% if %}{% endraw %}!", PLAIN, "{{ x }}{% if %}!");
    gives("a {%- raw -%} {{ x }} {%- endraw -%} b", PLAIN, "a{{ x }}b");
    gives("  {% raw %}\n{{\n  {% endraw %}\nb", CHAT, "\n{{\nb");
}

static void strings_read_their_escapes_as_python_does(void) {
    gives("{{ '\\n\\t\\\\\\'\\\"\\x41\\u00e9\\U0001f600\\101\\q' }}", PLAIN,
          "\n\t\\'\"A\xc3\xa9\xf0\x9f\x98\x80"
          "A\\q");
    gives("{{ 'a' \"b\" 'c' }}", PLAIN, "abc");
    gives("{{ '\\\xc3\xa9' }}", PLAIN, "\\xe9");
    gives("{{ 'a\\\nb' }}", PLAIN, "ab");
    refuses("{{ '\\x4' }}", SP_E_FORMAT, "cut short");
    refuses("{{ '\\ud800' }}", SP_E_FORMAT, "no character");
    refuses("{{ 'abc }}", SP_E_FORMAT, "does not end");
}

static void numbers_are_read_in_every_spelling(void) {
    gives("{{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1e3 }} {{ 1.5e-3 }} {{ 00 }}", PLAIN,
          "1000 31 5 15 1000.0 0.0015 0");
    gives("{{ [[1, 2]].0.1 }}", PLAIN, "2");
    gives("{{ 18446744073709551615 }}", PLAIN, "18446744073709551615");
    refuses("{{ 01 }}", SP_E_FORMAT, "got '1'");
}

static void operators_bind_as_in_jinja(void) {
    gives("{{ 1 + 2 * 3 ** 2 // 4 % 3 }}", PLAIN, "2");
    gives("{{ -2 | abs }} {{ 2 ** 3 ** 2 }} {{ 1 ~ 2 * 3 }}", PLAIN, "2 64 16");
    gives("{{ not 1 == 2 and 3 > 2 >= 2 }} {{ 1 if false }}|{{ 1 if 0 else 2 if 0 else 3 }}", PLAIN,
          "True |3");
    gives("{{ 'a' not in 'bc' }} {{ 1 is not none and 2 is divisibleby 2 }}", PLAIN, "True True");
    gives("{{ (1,) }}{{ () }}{{ 1, 2 }}{{ {'a': {}} }}", PLAIN, "(1,)()(1, 2){'a': {}}");
}

static void broken_templates_say_line_and_what_was_seen(void) {
    refuses("a\nb{{ 1 + }}", SP_E_FORMAT, "line 2: expected an expression, got '}}'");
    refuses("{% if x %}", SP_E_FORMAT, "ends before 'elif'");
    refuses("{% endif %}", SP_E_FORMAT, "unknown statement 'endif'");
    refuses("{{ (1] }}", SP_E_FORMAT, "unexpected ']'");
    refuses("{{ 1", SP_E_FORMAT, "'{{' is not closed");
    refuses("{# c", SP_E_FORMAT, "comment does not end");
    refuses("{{ x | nosuch }}", SP_E_FORMAT, "no filter named 'nosuch'");
    refuses("{{ x is nosuch }}", SP_E_FORMAT, "no test named 'nosuch'");
    refuses("{% set true = 1 %}", SP_E_FORMAT, "cannot assign");
    refuses("{% for loop in x %}{% endfor %}", SP_E_FORMAT, "special variable 'loop'");
    refuses("{% break %}", SP_E_FORMAT, "'break' outside a loop");
    refuses("{% macro m(a=1, b) %}{% endmacro %}", SP_E_FORMAT, "without a default");
    refuses("{{ f(a=1, 2) }}", SP_E_FORMAT, "function call");
    refuses("\xff{{ 1 }}", SP_E_FORMAT, "not UTF-8");
}

static void an_unknown_filter_inside_an_if_fails_only_when_used(void) {
    gives("{% if 'nosuch' is filter %}{{ 1 | nosuch }}{% else %}ok{% endif %}", PLAIN, "ok");
    gives("{{ 1 if true else (2 | nosuch) }}", PLAIN, "1");
}

static void statements_we_do_not_have_are_refused_by_name(void) {
    refuses("{% import 'x' as y %}", SP_E_UNSUPPORTED, "'import'");
    refuses("{% include 'x' %}", SP_E_UNSUPPORTED, "'include'");
    refuses("{% extends 'x' %}", SP_E_UNSUPPORTED, "'extends'");
    refuses("{% block a %}{% endblock %}", SP_E_UNSUPPORTED, "'block'");
}

/* `head` n times, `middle`, `tail` n times. Owner: caller, free(). */
static char *nested(const char *head, const char *middle, const char *tail, int n) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_puts(&b, "{{ ");
    for (int i = 0; i < n; i++) sp_buf_puts(&b, head);
    sp_buf_puts(&b, middle);
    for (int i = 0; i < n; i++) sp_buf_puts(&b, tail);
    sp_buf_puts(&b, " }}");
    return b.ptr;
}

static void nesting_without_end_is_an_error_not_a_crash(void) {
    static const char *const shapes[][3] = {
        {"(", "1", ")"},   {"[", "1", "]"},          {"{1:", "1", "}"},    {"-", "1", ""},
        {"not ", "1", ""}, {"1 + ", "1", ""},        {"", "x", "|string"}, {"", "x", ".a"},
        {"f(", "1", ")"},  {"1 if 1 else ", "1", ""}};
    for (size_t i = 0; i < SP_LEN(shapes); i++) {
        char *source = nested(shapes[i][0], shapes[i][1], shapes[i][2], 10000);
        sp_err err = {0};
        sp_jinja *t = NULL;
        CU_ASSERT_EQUAL(sp_jinja_parse(&t, sp_slice_of(source), CHAT, &err), SP_E_TOOLONG);
        CU_ASSERT(strstr(err.text, "more than") || strstr(err.text, "deeper than"));
        sp_free(source);
    }
}

static void a_template_too_large_is_refused(void) {
    size_t n = (size_t)2 << 20;
    char *big = calloc(1, n);
    memset(big, 'a', n);
    sp_err err = {0};
    sp_jinja *t = NULL;
    CU_ASSERT_EQUAL(sp_jinja_parse(&t, (sp_slice){big, n}, CHAT, &err), SP_E_TOOLONG);
    free(big);
}

static void every_failing_allocation_of_parsing_is_reported(void) {
    static const char source[] = "{% macro m(a, b=[1]) %}{{ a ~ 'x' 'y' | upper }}{% endmacro %}"
                                 "{% for x, y in [(1, 2)] if x %}{{ m(x) }}{% endfor %}";
    sp_status st = SP_E_NOMEM;
    for (int n = 1; st == SP_E_NOMEM; n++) {
        sp_err err = {0};
        sp_jinja *t = NULL;
        sp_mem_fail_at(n);
        st = sp_jinja_parse(&t, SP_SLICE(source), CHAT, &err);
        sp_mem_fail_at(0);
        CU_ASSERT(st == SP_OK || (st == SP_E_NOMEM && !t));
        sp_jinja_free(t);
        CU_ASSERT_FATAL(n < 1000);
    }
    CU_ASSERT_EQUAL(st, SP_OK);
}

static bool wants_parts(const char *source) {
    sp_err err = {0};
    sp_jinja *t = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_jinja_parse(&t, sp_slice_of(source), CHAT, &err), SP_OK);
    bool wants = sp_jinja_wants_parts(t);
    sp_jinja_free(t);
    return wants;
}

static void a_loop_over_a_messages_content_wants_parts(void) {
    CU_ASSERT(wants_parts("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}"
                          "{% endfor %}"));
    CU_ASSERT(
        wants_parts("{% set l = messages[1:] %}{% for m in l %}{% if m['content'] is string %}"
                    "{% else %}{% for p in m['content'] | list %}{% endfor %}{% endif %}"
                    "{% endfor %}"));
    CU_ASSERT(wants_parts("{% for m in messages %}{% set c = m.content %}{% for p in c %}"
                          "{% endfor %}{% endfor %}"));
    CU_ASSERT_FALSE(wants_parts("{% for m in messages %}{{ m.content }}{% endfor %}"));
    CU_ASSERT_FALSE(wants_parts("{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}"
                                "{% endfor %}"));
    CU_ASSERT_FALSE(wants_parts("{% for p in tools.content %}{% endfor %}"));
}

SP_TEST_MAIN("runtime/text/jinja", SP_TEST(minus_signs_eat_all_whitespace_on_their_side),
             SP_TEST(trim_blocks_takes_one_newline_after_blocks_only),
             SP_TEST(lstrip_blocks_takes_blanks_before_blocks_at_the_start_of_a_line),
             SP_TEST(newlines_are_one_kind_and_the_last_one_goes), SP_TEST(raw_blocks_are_text),
             SP_TEST(strings_read_their_escapes_as_python_does),
             SP_TEST(numbers_are_read_in_every_spelling), SP_TEST(operators_bind_as_in_jinja),
             SP_TEST(broken_templates_say_line_and_what_was_seen),
             SP_TEST(an_unknown_filter_inside_an_if_fails_only_when_used),
             SP_TEST(statements_we_do_not_have_are_refused_by_name),
             SP_TEST(nesting_without_end_is_an_error_not_a_crash),
             SP_TEST(a_template_too_large_is_refused),
             SP_TEST(every_failing_allocation_of_parsing_is_reported),
             SP_TEST(a_loop_over_a_messages_content_wants_parts))
