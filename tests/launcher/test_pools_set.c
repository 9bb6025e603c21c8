/* Covers launcher/pools_set.c: what a body asks of the roles of groups, all of it or nothing. The
 * engine here is a list of roles that checks what an engine checks. */
#include "launcher/pools_set.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

struct sp_engine {
    int n;
    sp_pool_role role[8];
    const char *pool[8];
    int changes;
};

const char *sp_pool_role_name(sp_pool_role role) {
    static const char *const names[] = {"mixed", "prefill", "decode"};
    return names[role];
}
int sp_engine_group_count(const sp_engine *e) {
    return e->n;
}
bool sp_engine_group_info(const sp_engine *e, int at, sp_engine_group_status *out) {
    if (at < 0 || at >= e->n) return false;
    *out = (sp_engine_group_status){.role = e->role[at]};
    snprintf(out->pool, sizeof out->pool, "%s", e->pool[at]);
    return true;
}
sp_status sp_engine_set_role(sp_engine *e, int at, sp_pool_role role, sp_err *err) {
    sp_pool_role before = e->role[at];
    int decode = 0;
    e->role[at] = role;
    for (int i = 0; i < e->n; i++) decode += e->role[i] != SP_POOL_PREFILL;
    if (decode == 0) {
        e->role[at] = before;
        return SP_FAIL(err, SP_E_INVALID, "the last one");
    }
    e->changes++;
    return SP_OK;
}

static sp_err err;
static sp_engine e;

/* Groups "pmd": their roles; pools a, a, b, c. */
static sp_status ask(const char *before, const char *json) {
    static const char *const pools[] = {"a", "a", "b", "c"};
    e = (sp_engine){.n = (int)strlen(before)};
    for (int i = 0; i < e.n; i++) {
        e.role[i] = before[i] == 'p'   ? SP_POOL_PREFILL
                    : before[i] == 'd' ? SP_POOL_DECODE
                                       : SP_POOL_MIXED;
        e.pool[i] = pools[i];
    }
    sp_json *doc;
    err = (sp_err){0};
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(json), 8, &err), SP_OK);
    sp_status st = sp_pools_set(&e, sp_json_root(doc), &err);
    sp_json_free(doc);
    return st;
}
static void expect(int line, sp_status st, const char *after, int changes) {
    char got[9] = "";
    for (int i = 0; i < e.n; i++) got[i] = "mpd"[e.role[i]];
    bool ok = st == SP_OK && strcmp(got, after) == 0 && e.changes == changes;
    if (!ok) fprintf(stderr, "    line %d: %s, %d changes: %s\n", line, got, e.changes, err.text);
    CU_ASSERT(ok);
}
#define EXPECT(before, json, after, changes) expect(__LINE__, ask(before, json), after, changes)
static void refused(int line, const char *before, const char *json, const char *why) {
    sp_status st = ask(before, json);
    bool ok = st == SP_E_INVALID && e.changes == 0 && strstr(err.text, why);
    if (!ok)
        fprintf(stderr, "    line %d: status %d, %d changes: %s\n", line, st, e.changes, err.text);
    CU_ASSERT(ok);
}
#define REFUSED(before, json, why) refused(__LINE__, before, json, why)

static void groups_and_pools_get_the_roles_they_are_given(void) {
    EXPECT("pd", "{\"groups\":[{\"group\":0,\"role\":\"mixed\"}]}", "md", 1);
    EXPECT("pd", "{\"groups\":[{\"group\":1,\"role\":\"decode\"}]}", "pd", 0);
    EXPECT("pmd", "{\"pools\":{\"a\":\"decode\",\"b\":\"prefill\"}}", "ddp", 3);
}
static void the_only_one_that_decodes_may_change_places(void) {
    EXPECT("dp",
           "{\"groups\":[{\"group\":0,\"role\":\"prefill\"},{\"group\":1,\"role\":\"decode\"}]}",
           "pd", 2);
    EXPECT("ppd", "{\"pools\":{\"b\":\"prefill\",\"a\":\"decode\"}}", "ddp", 3);
}
static void counts_take_as_few_changes_as_they_can(void) {
    EXPECT("pdd", "{\"prefill\":1,\"decode\":2}", "pdd", 0);
    EXPECT("pdd", "{\"prefill\":2,\"decode\":1}", "pdp", 1);
    EXPECT("mmmm", "{\"prefill\":1,\"decode\":3}", "dddp", 4);
    EXPECT("pppd", "{\"mixed\":4}", "mmmm", 4);
    EXPECT("pppd", "{\"prefill\":1,\"mixed\":1,\"decode\":2}", "pdmd", 2);
}
static void nothing_is_done_of_what_cannot_be(void) {
    REFUSED("pd", "[]", "object");
    REFUSED("pd", "{}", "object");
    REFUSED("pd", "7", "object");
    REFUSED("pd", "{\"groups\":[]}", "groups");
    REFUSED("pd", "{\"groups\":{}}", "groups");
    REFUSED("pd", "{\"groups\":[{\"group\":2,\"role\":\"decode\"}]}", "0 to 1");
    REFUSED("pd", "{\"groups\":[{\"group\":-1,\"role\":\"decode\"}]}", "0 to 1");
    REFUSED("pd", "{\"groups\":[{\"group\":0.5,\"role\":\"decode\"}]}", "0 to 1");
    REFUSED("pd", "{\"groups\":[{\"group\":0,\"role\":\"mixed\"},{\"group\":1}]}", "role");
    REFUSED("pd", "{\"groups\":[{\"group\":0,\"role\":\"mixed\"},{\"group\":1,\"role\":\"x\"}]}",
            "'x'");
    REFUSED("pd", "{\"groups\":[3]}", "groups");
    REFUSED("pd", "{\"groups\":[{\"group\":1,\"role\":\"prefill\"}]}", "decodes");
    REFUSED("pmd", "{\"pools\":{\"a\":\"mixed\",\"z\":\"decode\"}}", "'z'");
    REFUSED("pmd", "{\"pools\":{\"a\":7}}", "role");
    REFUSED("pmd", "{\"pools\":{}}", "pools");
    REFUSED("pd", "{\"pools\":{\"a\":\"mixed\"},\"decode\":2}", "one of them");
    REFUSED("pd", "{\"decode\":1}", "2 groups, got 1");
    REFUSED("pd", "{\"decode\":3}", "0 to 2");
    REFUSED("pd", "{\"decode\":-1,\"mixed\":3}", "0 to 2");
    REFUSED("pd", "{\"decode\":\"2\"}", "0 to 2");
    REFUSED("pd", "{\"prefill\":2}", "decodes");
    REFUSED("pd", "{\"decode\":2,\"mixed\":2}", "got 4");
    REFUSED("pd", "{\"decoder\":2}", "'decoder'");
}

SP_TEST_MAIN("launcher/pools_set", SP_TEST(groups_and_pools_get_the_roles_they_are_given),
             SP_TEST(the_only_one_that_decodes_may_change_places),
             SP_TEST(counts_take_as_few_changes_as_they_can),
             SP_TEST(nothing_is_done_of_what_cannot_be))
