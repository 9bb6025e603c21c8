/* Covers runtime/text/jinja_eval.c and what hangs on it: scopes, loops, macros, values, filters,
 * methods, limits, and the renderings that Jinja2 itself gave (third-party vectors). */
#include "runtime/text/jinja.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOON 1752148800 /* 2025-07-10 12:00:00 */

typedef struct result {
    sp_status st;
    sp_buf text, refusal;
    sp_err err;
} result;

static result run(sp_slice source, const sp_json_node *vars, bool chat,
                  const sp_jinja_limits *limits) {
    result r = {.st = SP_OK};
    sp_jinja *t = NULL;
    sp_jinja_var v[64];
    int n = 0;
    sp_buf_init(&r.text, 0);
    sp_buf_init(&r.refusal, 0);
    for (const sp_json_node *m = sp_json_first(vars); m && n < 64; m = sp_json_next(m))
        v[n++] = (sp_jinja_var){.name = sp_json_key(m).ptr, .value = m};
    r.st = sp_jinja_parse(&t, source, (sp_jinja_options){chat, chat}, &r.err);
    if (r.st == SP_OK)
        r.st = sp_jinja_render_full(t, v, n, limits, NOON, &r.text, &r.refusal, NULL, &r.err);
    sp_jinja_free(t);
    return r;
}

static void drop(result *r) {
    sp_buf_fini(&r->text);
    sp_buf_fini(&r->refusal);
}

static sp_json *parse(const char *json) {
    sp_json *doc = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(json), 0, &err), SP_OK);
    return doc;
}

static void gives_with(const char *vars, const char *source, const char *want) {
    sp_json *doc = parse(vars);
    result r = run(sp_slice_of(source), sp_json_root(doc), true, NULL);
    if (r.st != SP_OK || !sp_slice_is(sp_buf_slice(&r.text), want)) {
        fprintf(stderr, "'%s': want '%s', got '%s'\n", source, want,
                r.st == SP_OK ? r.text.ptr : r.err.text);
        CU_FAIL("wrong text");
    }
    drop(&r);
    sp_json_free(doc);
}

static void gives(const char *source, const char *want) {
    gives_with("{}", source, want);
}

static void fails(const char *source, sp_status want, const char *words) {
    result r = run(sp_slice_of(source), NULL, true, NULL);
    if (r.st != want || !strstr(r.err.text, words)) {
        fprintf(stderr, "'%s': want '%s', got '%s'\n", source, words,
                r.st == SP_OK ? "no error" : r.err.text);
        CU_FAIL("wrong error");
    }
    drop(&r);
}

/* --- the language --- */

static void values_print_as_python_prints_them(void) {
    gives("{{ [none, true, 1.0, 'a\\'b', \"\\n\", (1,), {'k': {}}] }}",
          "[None, True, 1.0, \"a'b\", '\\n', (1,), {'k': {}}]");
    gives("{{ 1e16 }} {{ 1e15 }} {{ 0.00001 }} {{ 0.1 + 0.2 }} {{ 1e22 }}",
          "1e+16 1000000000000000.0 1e-05 0.30000000000000004 1e+22");
    gives("{{ x }}|{{ [x] }}|{{ range(3) }}|{{ {'a': 1}.items() }}",
          "|[Undefined]|range(0, 3)|dict_items([('a', 1)])");
}

static void numbers_compute_as_python_does(void) {
    gives("{{ 7 // -2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** -1 }} {{ -7.5 // 2 }} {{ 5.5 % -2 }}",
          "-4 2 3.5 0.5 -4.0 -0.5");
    gives("{{ true + true }} {{ 1 == 1.0 }} {{ '1' == 1 }} {{ 2 < 3 < 3 }}", "2 True False False");
    gives("{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 1234 | round(-2) }}",
          "2.0 4.0 2.67 1200");
    fails("{{ 9223372036854775807 + 1 }}", SP_E_FORMAT, "beyond 64 bits");
    fails("{{ 1 // 0 }}", SP_E_FORMAT, "division by zero");
    fails("{{ 'a' + 1 }}", SP_E_FORMAT, "unsupported operand types for +: 'str' and 'int'");
}

static void strings_are_counted_in_characters(void) {
    gives_with("{\"s\": \"na\\u00efve \\ud83d\\ude00!\"}",
               "{{ s | length }} {{ s[2] }} {{ s[-2:] }} {{ s[::-1] }} {{ s.find('!') }}",
               "8 \xc3\xaf \xf0\x9f\x98\x80! !\xf0\x9f\x98\x80 ev\xc3\xaf"
               "an 7");
    gives_with("{\"s\": \"Stra\\u00dfe \\u039f\\u0394\\u039f\\u03a3\"}",
               "{{ s | upper }} {{ s | lower }} {{ s.title() }}",
               "STRASSE \xce\x9f\xce\x94\xce\x9f\xce\xa3 stra\xc3\x9f"
               "e "
               "\xce\xbf\xce\xb4\xce\xbf\xcf\x82 Stra\xc3\x9f"
               "e \xce\x9f\xce\xb4\xce\xbf\xcf\x82");
}

static void attributes_fall_back_to_items_and_back(void) {
    gives_with("{\"d\": {\"items\": 1, \"a\": 2}}",
               "{{ d.a }}{{ d['a'] }}{{ d['items'] }}{{ d.items() | length }}{{ d['get']('a') }}",
               "22122");
    gives("{{ {}.x is defined }} {{ ''.x }}{{ {'a': 1}.b }} {{ [1].5 is undefined }}",
          "False  True");
    fails("{{ x.y }}", SP_E_FORMAT, "'x' is undefined");
    fails("{{ {}.a.b }}", SP_E_FORMAT, "'dict' object has no attribute 'a'");
}

static void the_sandbox_refuses_what_changes_or_looks_inside(void) {
    fails("{{ [1].append(2) }}", SP_E_FORMAT, "unsafe");
    fails("{{ {}.update({}) }}", SP_E_FORMAT, "unsafe");
    gives("{{ [].append is defined }}{{ ''.__class__ }}", "False");
    fails("{{ ''.__class__.__mro__ }}", SP_E_FORMAT, "unsafe");
    fails("{{ range(100001) }}", SP_E_FORMAT, "range too big");
}

static void scopes_open_where_jinja_opens_them(void) {
    gives("{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}",
          "15151");
    gives("{% if true %}{% set x = 1 %}{% endif %}{{ x }}", "1");
    gives("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}"
          "{{ ns.n }}",
          "3");
    gives("{% set x = 1 %}{% with x = 2, y = x %}{{ x }}{{ y }}{% endwith %}{{ x }}", "211");
    gives("{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}", "1");
    gives("{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}", "1");
}

static void a_name_set_later_hides_the_variable_of_the_render(void) {
    gives_with("{\"x\": 1}", "{% for i in [1] %}<{{ x }}>{% endfor %}{% set x = 2 %}{{ x }}",
               "<>2");
    gives_with("{\"x\": 1}", "{{ x }}{% for i in [1] %}<{{ x }}>{% endfor %}{% set x = 2 %}",
               "1<1>");
    gives_with("{\"x\": 1}",
               "{% for i in [1] %}<{{ x }}>{% endfor %}{% if i %}{% set x = 2 %}{% endif %}",
               "<1>");
}

static void loops_know_where_they_are(void) {
    gives("{% for i in 'abc' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}"
          "{{ loop.revindex0 }}{{ loop.length }}{{ loop.first }}{{ loop.last }} {% endfor %}",
          "10323TrueFalse 21213FalseFalse 32103FalseTrue ");
    gives("{% for i in [1, 2] %}{{ loop.previtem }}/{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}"
          "{{ loop.changed(1) }} {% endfor %}",
          "/2aTrue 1/bFalse ");
    gives("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1");
    gives("{% for i in [] %}x{% else %}none{% endfor %}", "none");
    gives("{% for i in range(9) if i % 2 %}{% if i == 5 %}{% break %}{% endif %}{{ i }}"
          "{{ loop.index }},{% endfor %}",
          "11,32,");
    gives("{% for i in [1, 2] %}{% continue %}{% else %}never came to its end{% endfor %}",
          "never came to its end");
    gives("{% for i in [1, [2, [3]]] recursive %}{{ loop.depth }}{% if i is iterable %}"
          "({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}",
          "111(222(33))");
    fails("{% for a, b in [[1]] %}{% endfor %}", SP_E_FORMAT, "not enough values");
}

static void macros_take_arguments_as_functions_do(void) {
    gives("{% macro m(a, b=a ~ '!', c='z') %}{{ a }}{{ b }}{{ c }}{% endmacro %}"
          "{{ m(1) }} {{ m(1, c=3) }} {{ m(*[1, 2]) }} {{ m(**{'a': 5}) }}",
          "11!z 11!3 12z 55!z");
    gives("{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
          "1(2,){'x': 3}");
    gives("{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(n) m() %}{{ n }}{% endcall %}",
          "[1]");
    fails("{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", SP_E_FORMAT, "not more than 1");
    fails("{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", SP_E_FORMAT, "no keyword argument 'b'");
}

static void blocks_are_captured_and_filtered(void) {
    gives("{% set x %}a{{ 1 }}{% endset %}{{ x }}{% set y | upper | trim %} b {% endset %}{{ y }}",
          "a1B");
    gives("{% filter replace('a', 'b') | upper %}aXa{% endfilter %}", "BXB");
}

static void filters_do_what_jinja_documents(void) {
    gives("{{ [3, 1, 2] | sort | join(',') }} {{ ['b', 'A'] | sort }} {{ {'b': 1, 'A': 2} | "
          "dictsort }}",
          "1,2,3 ['A', 'b'] [('A', 2), ('b', 1)]");
    gives("{{ 'a\nb\n' | indent(2) }}|{{ 'hello big world' | truncate(11, leeway=0) }}",
          "a\n  b\n|hello...");
    gives("{{ [1, 2, 3, 4, 5] | batch(2, 'x') | list }} {{ [1, 2, 3] | slice(2) | list }}",
          "[[1, 2], [3, 4], [5, 'x']] [[1, 2], [3]]");
    gives("{{ [{'a': 1}, {'a': 2}] | selectattr('a', 'gt', 1) | map(attribute='a') | list }}",
          "[2]");
    gives("{{ '<a>' | e }} {{ ('<' | safe) + '<' }} {{ ' x ' | trim }} {{ x | default('d') }}",
          "&lt;a&gt; <&lt; x d");
    gives("{{ '12' | int + 1 }} {{ 'x' | int(7) }} {{ '1.5' | float }} {{ '0x1f' | int(base=16) }}",
          "13 7 1.5 31");
    gives("{% if [] | select %}a generator is true{% endif %}", "a generator is true");
}

static void tojson_is_json_dumps(void) {
    gives_with("{\"v\": {\"b\": [1, 2.0, null, true], \"a\": \"<\\u00e9\\\"'\\n>\"}}",
               "{{ v | tojson }}", "{\"b\": [1, 2.0, null, true], \"a\": \"<\xc3\xa9\\\"'\\n>\"}");
    gives_with("{\"v\": {\"b\": [1], \"a\": {}}}", "{{ v | tojson(indent=2, sort_keys=true) }}",
               "{\n  \"a\": {},\n  \"b\": [\n    1\n  ]\n}");
    gives("{{ {'a': '\xc3\xa9'} | tojson(ensure_ascii=true, separators=(',', ':')) }}",
          "{\"a\":\"\\u00e9\"}");
    gives_with("{\"v\": [18446744073709551615, -1e400, 1e5]}", "{{ v | tojson }}",
               "[18446744073709551615, -Infinity, 100000.0]");
    fails("{{ x | tojson }}", SP_E_FORMAT, "not JSON serializable");
}

static void methods_of_strings_do_what_python_documents(void) {
    gives("{{ ' a b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b'.rsplit(',', 1) }}",
          "['a', 'b'] ['a', 'b,c'] ['a', 'b']");
    gives("{{ 'xxabcxx'.strip('x') }} {{ 'abc'.startswith(('z', 'a')) }} {{ 'aXbX'.replace('X', "
          "'-', 1) }}",
          "abc True a-bX");
    gives("{{ 'a-b'.partition('-') }} {{ '7'.zfill(3) }} {{ 'ab'.center(5, '*') }} {{ "
          "'abc'.rfind('z') }}",
          "('a', '-', 'b') 007 **ab* -1");
}

static void formatting_follows_python(void) {
    gives("{{ '%05.1f|%-4d|%x|%s|%r|%%' % (3.14159, 7, 255, none, 'a') }}",
          "003.1|7   |ff|None|'a'|%");
    gives("{{ '{:>5}|{:,}|{:.2f}|{x!r}'.format('a', 1234567, 2.5, x='q') }}",
          "    a|1,234,567|2.50|'q'");
    gives("{{ '%(a)s' | format(a=1) }}{{ 'x'.format() }}", "1x");
    fails("{{ '%d' % 'a' }}", SP_E_FORMAT, "number is required");
    fails("{{ '%s' % (1, 2) }}", SP_E_FORMAT, "not all arguments");
}

static void time_is_what_the_caller_says(void) {
    gives("{{ strftime_now('%d %b %Y %H:%M:%S %A %j%%') }}", "10 Jul 2025 12:00:00 Thursday 191%");
    gives("{{ strftime_now('') }}{{ strftime_now('%z%f') }}", "000000");
}

static void raise_exception_gives_its_words_alone(void) {
    result r = run(SP_SLICE("a{{ raise_exception('no ' ~ 'system') }}"), NULL, true, NULL);
    CU_ASSERT_EQUAL(r.st, SP_E_INVALID);
    CU_ASSERT_STRING_EQUAL(r.err.text, "no system");
    CU_ASSERT(sp_slice_is(sp_buf_slice(&r.refusal), "no system"));
    drop(&r);
    r = run(SP_SLICE("{{ raise_exception('x' * 1000) }}"), NULL, true, NULL);
    CU_ASSERT_EQUAL(r.refusal.len, 1000);
    CU_ASSERT_EQUAL(strlen(r.err.text), sizeof r.err.text - 1);
    drop(&r);
}

/* --- limits --- */

static void hits(const char *source, sp_jinja_limits limits, const char *words) {
    result r = run(sp_slice_of(source), NULL, true, &limits);
    CU_ASSERT_EQUAL(r.st, SP_E_TOOLONG);
    if (!strstr(r.err.text, words)) {
        fprintf(stderr, "'%s': want '%s', got '%s'\n", source, words, r.err.text);
        CU_FAIL("wrong limit");
    }
    drop(&r);
}

static void every_limit_is_kept_and_named(void) {
    hits("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
         (sp_jinja_limits){.steps = 100000}, "more steps");
    hits("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", (sp_jinja_limits){0}, "calls nested");
    hits("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", (sp_jinja_limits){0},
         "loops nested");
    hits("{{ 'x' * 1000000 }}", (sp_jinja_limits){.output_bytes = 1000},
         "its text takes more than 1000");
    hits("{{ 'x' * 1000000 }}", (sp_jinja_limits){.memory_bytes = 10000},
         "its values take more than");
    hits("{% set n = namespace(l=[1]) %}{% for i in range(300) %}{% set n.l = [n.l] %}{% endfor %}"
         "{{ n.l }}",
         (sp_jinja_limits){.depth = 20}, "nested deeper");
    hits("{% set n = namespace(t=(1,)) %}{% for i in range(60) %}{% set n.t = (n.t, n.t) %}"
         "{% endfor %}{{ {n.t: 1} }}",
         (sp_jinja_limits){.steps = 100000}, "more steps");
}

static void adding_to_a_string_in_a_loop_costs_linear_memory(void) {
    sp_jinja_limits limits = {.memory_bytes = (size_t)16 << 20};
    result r = run(SP_SLICE("{% set n = namespace(s='') %}{% for i in range(20000) %}"
                            "{% set n.s = n.s + 'some text that is added ' %}{% endfor %}"
                            "{{ n.s | length }}"),
                   NULL, true, &limits);
    CU_ASSERT_EQUAL(r.st, SP_OK);
    CU_ASSERT(sp_slice_is(sp_buf_slice(&r.text), "480000"));
    drop(&r);
}

static void a_grown_string_does_not_change_those_it_grew_from(void) {
    gives("{% set a = 'x' * 300 %}{% set b = a + '1' %}{% set c = b + '2' %}{% set d = b + '3' %}"
          "{{ b[-2:] }} {{ c[-3:] }} {{ d[-3:] }} {{ a | length }}",
          "x1 x12 x13 300");
}

static void every_failing_allocation_of_rendering_is_reported(void) {
    static const char source[] = "{% macro m(a) %}{{ [a, {'k': a}] | tojson }}{% endmacro %}"
                                 "{% for x in 'abc' %}{{ m(x ~ 'y') | upper }}{% endfor %}";
    sp_err err = {0};
    sp_jinja *t = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_jinja_parse(&t, SP_SLICE(source), (sp_jinja_options){0}, &err), SP_OK);
    sp_status st = SP_E_NOMEM;
    for (int n = 1; st != SP_OK; n++) {
        sp_buf out;
        sp_buf_init(&out, 0);
        sp_mem_fail_at(n);
        st = sp_jinja_render(t, NULL, 0, NULL, 0, &out, NULL, &err);
        sp_mem_fail_at(0);
        CU_ASSERT(st == SP_OK || st == SP_E_NOMEM || st == SP_E_TOOLONG);
        CU_ASSERT(st == SP_OK || out.len == 0);
        sp_buf_fini(&out);
        CU_ASSERT_FATAL(n < 1000);
    }
    sp_jinja_free(t);
}

/* --- what Jinja2 itself gave --- */

static int n_checked;

static void check(const char *what, sp_slice source, const sp_json_node *vars, bool chat,
                  const sp_json_node *want) {
    result r = run(source, vars, chat, NULL);
    const sp_json_node *output = sp_json_find(want, "output");
    sp_slice kind = sp_json_string(sp_json_find(want, "error"));
    bool right = output
                     ? r.st == SP_OK && sp_slice_eq(sp_buf_slice(&r.text), sp_json_string(output))
                     : r.st != SP_OK;
    if (!output && sp_slice_is(kind, "TemplateError"))
        right =
            sp_slice_eq(sp_buf_slice(&r.refusal), sp_json_string(sp_json_find(want, "message")));
    if (!right) {
        fprintf(stderr, "%s: got '%.400s'\n", what, r.st == SP_OK ? r.text.ptr : r.err.text);
        CU_FAIL("not what Jinja2 gave");
    }
    n_checked++;
    drop(&r);
}

/* A vector file, or NULL when there are none here. */
static sp_json *vectors(const char *name) {
    char path[512];
    size_t len;
    if (!sp_test_fixtures()) return NULL;
    snprintf(path, sizeof path, "%s/chat_templates/%s", sp_test_fixtures(), name);
    char *text = sp_test_read(path, &len);
    sp_json *doc = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, (sp_slice){text, len}, 0, &err), SP_OK);
    free(text);
    return doc;
}

static char *template_text(const char *name, size_t *len) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", sp_test_fixtures(), name);
    return sp_test_read(path, len);
}

static void real_templates_render_as_jinja2_renders_them(void) {
    sp_json *doc = vectors("golden_dev.json");
    if (!doc) SP_SKIP("no third-party vectors here");
    const sp_json_node *contexts = sp_json_find(sp_json_root(doc), "contexts");
    const sp_json_node *templates = sp_json_find(sp_json_root(doc), "templates");
    n_checked = 0;
    for (const sp_json_node *t = sp_json_first(templates); t; t = sp_json_next(t)) {
        size_t len;
        char *source = template_text(sp_json_key(t).ptr, &len);
        for (const sp_json_node *w = sp_json_first(t); w; w = sp_json_next(w))
            check(sp_json_key(t).ptr, (sp_slice){source, len},
                  sp_json_find(contexts, sp_json_key(w).ptr), true, w);
        free(source);
    }
    CU_ASSERT(n_checked > 300);
    sp_json_free(doc);
}

static void rerank_templates_render_as_jinja2_renders_them(void) {
    sp_json *doc = vectors("golden_score_dev.json");
    if (!doc) SP_SKIP("no third-party vectors here");
    for (const sp_json_node *t = sp_json_first(sp_json_root(doc)); t; t = sp_json_next(t)) {
        size_t len;
        char *source = template_text(sp_json_key(t).ptr, &len);
        for (const sp_json_node *w = sp_json_first(t); w; w = sp_json_next(w)) {
            sp_buf vars;
            sp_buf_init(&vars, 0);
            sp_jw j = sp_jw_on(&vars);
            sp_buf_puts(&vars, "{\"messages\":[{\"role\":\"query\",\"content\":");
            sp_jw_node(&j, sp_json_find(w, "query"));
            j = sp_jw_on(&vars);
            sp_buf_puts(&vars, "},{\"role\":\"document\",\"content\":");
            sp_jw_node(&j, sp_json_find(w, "document"));
            sp_buf_puts(&vars, "}]}");
            sp_json *given = parse(vars.ptr);
            check(sp_json_key(t).ptr, (sp_slice){source, len}, sp_json_root(given), true, w);
            sp_json_free(given);
            sp_buf_fini(&vars);
        }
        free(source);
    }
    sp_json_free(doc);
}

static void inline_templates_render_as_jinja2_renders_them(void) {
    sp_json *doc = vectors("legacy_inline_dev.json");
    if (!doc) SP_SKIP("no third-party vectors here");
    const sp_json_node *contexts = sp_json_find(sp_json_root(doc), "contexts");
    for (const sp_json_node *c = sp_json_first(sp_json_find(sp_json_root(doc), "cases")); c;
         c = sp_json_next(c))
        for (const sp_json_node *w = sp_json_first(sp_json_find(c, "results")); w;
             w = sp_json_next(w))
            check(sp_json_string(sp_json_find(c, "kind")).ptr,
                  sp_json_string(sp_json_find(c, "template")),
                  sp_json_find(contexts, sp_json_key(w).ptr), true, w);
    sp_json_free(doc);
}

static void language_cases_give_what_jinja2_gives(void) {
    sp_json *doc = vectors("jinja_syntax_dev.json");
    if (!doc) SP_SKIP("no third-party vectors here");
    for (const sp_json_node *c = sp_json_first(sp_json_find(sp_json_root(doc), "cases")); c;
         c = sp_json_next(c))
        check(sp_json_string(sp_json_find(c, "name")).ptr,
              sp_json_string(sp_json_find(c, "template")), sp_json_find(c, "context"), false, c);
    sp_json_free(doc);
}

static void end_to_end_cases_give_what_jinja2_gives(void) {
    sp_json *doc = vectors("huggingface_js_e2e_dev.json");
    if (!doc) SP_SKIP("no third-party vectors here");
    for (const sp_json_node *c = sp_json_first(sp_json_find(sp_json_root(doc), "cases")); c;
         c = sp_json_next(c)) {
        if (!sp_json_bool(sp_json_find(c, "jinja2_3_1_6_agrees"))) continue;
        result r = run(sp_json_string(sp_json_find(c, "chat_template")), sp_json_find(c, "data"),
                       true, NULL);
        sp_slice want = sp_json_string(sp_json_find(c, "target"));
        CU_ASSERT(r.st == SP_OK && sp_slice_eq(sp_buf_slice(&r.text), want));
        drop(&r);
    }
    sp_json_free(doc);
}

SP_TEST_MAIN("runtime/text/jinja_eval", SP_TEST(values_print_as_python_prints_them),
             SP_TEST(numbers_compute_as_python_does), SP_TEST(strings_are_counted_in_characters),
             SP_TEST(attributes_fall_back_to_items_and_back),
             SP_TEST(the_sandbox_refuses_what_changes_or_looks_inside),
             SP_TEST(scopes_open_where_jinja_opens_them),
             SP_TEST(a_name_set_later_hides_the_variable_of_the_render),
             SP_TEST(loops_know_where_they_are), SP_TEST(macros_take_arguments_as_functions_do),
             SP_TEST(blocks_are_captured_and_filtered), SP_TEST(filters_do_what_jinja_documents),
             SP_TEST(tojson_is_json_dumps), SP_TEST(methods_of_strings_do_what_python_documents),
             SP_TEST(formatting_follows_python), SP_TEST(time_is_what_the_caller_says),
             SP_TEST(raise_exception_gives_its_words_alone), SP_TEST(every_limit_is_kept_and_named),
             SP_TEST(adding_to_a_string_in_a_loop_costs_linear_memory),
             SP_TEST(a_grown_string_does_not_change_those_it_grew_from),
             SP_TEST(every_failing_allocation_of_rendering_is_reported),
             SP_TEST(real_templates_render_as_jinja2_renders_them),
             SP_TEST(rerank_templates_render_as_jinja2_renders_them),
             SP_TEST(inline_templates_render_as_jinja2_renders_them),
             SP_TEST(language_cases_give_what_jinja2_gives),
             SP_TEST(end_to_end_cases_give_what_jinja2_gives))
