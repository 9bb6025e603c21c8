/* Covers frontend/kv_transfer.c: what travels comes back the same, and nothing else is taken. */
#include "frontend/kv_transfer.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>

#define NOW_MS 1763865905123
#define POD "00112233445566778899aabbccddeeff"
#define SOURCE "{\"tp\":2,\"pp\":1,\"pp_layers\":[6],\"ranks\":[\"kvx1 \\\"a\\\"\",\"kvx1 b\"]}"

/* Keyed, and every byte counts: all that a test needs of a proof. */
static void mac(void *ctx, sp_slice text, uint8_t out[32]) {
    uint64_t h = sp_hash_bytes(ctx, strlen(ctx));
    for (int i = 0; i < 4; i++) {
        h = (h ^ sp_hash_bytes(text.ptr, text.len)) * 0x9e3779b97f4a7c15u + (uint64_t)i;
        memcpy(out + (size_t)8 * (size_t)i, &h, 8);
    }
}

static bool source(void *ctx, int32_t group, sp_buf *out) {
    (void)ctx;
    if (group > 7) return false;
    sp_buf_puts(out, SOURCE);
    return true;
}

static char secret[] = "one", other_secret[] = "two";

static sp_server_kv pod(void) {
    return (sp_server_kv){.pod = POD,
                          .identity = "c0ffee",
                          .host = "prefill-0",
                          .block_tokens = 16,
                          .source = source,
                          .mac = mac,
                          .ctx = secret};
}

static sp_kv_handle *handle_of(int n) {
    sp_kv_handle *h = sp_alloc(sizeof *h + (size_t)n * sizeof h->blocks[0]);
    h->lease = 0xfedcba9876543210u;
    h->group = 3;
    h->n_blocks = n;
    h->n_tokens = 16 * n;
    h->expires_unix_ms = NOW_MS + 30000;
    for (int i = 0; i < n; i++)
        h->blocks[i] =
            (sp_kv_lent){(uint32_t)(7 * i), UINT32_MAX - (uint32_t)i, UINT64_MAX - (uint64_t)i};
    return h;
}

/* The object as text. Owner: caller, sp_free(). */
static char *lend(const sp_server_kv *kv, const sp_kv_handle *h) {
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_jw w = sp_jw_on(&b);
    sp_kv_offer offer = {.handle = h, .request_id = "cmpl-7", .port = 8123, .now_unix_ms = NOW_MS};
    sp_kv_transfer_put(&w, &offer, kv);
    CU_ASSERT_FALSE_FATAL(b.failed);
    return b.ptr;
}
static char *lend_three(const sp_server_kv *kv) {
    sp_kv_handle *h = handle_of(3);
    char *text = lend(kv, h);
    sp_free(h);
    return text;
}

/* What a body with this member asks for. */
typedef struct desk {
    sp_arena arena;
    sp_fields f;
    sp_kv_transfer t;
    const char *message;
    bool parsed;
} desk;

static void desk_close(desk *d) {
    sp_arena_fini(&d->arena);
}

static void take(desk *d, const sp_server_kv *kv, const char *object) {
    sp_buf body;
    sp_buf_init(&body, 0);
    sp_buf_printf(&body, "{\"prompt\":\"a\",\"kv_transfer_params\":%s}", object);
    sp_json *doc = NULL;
    *d = (desk){0};
    sp_arena_init(&d->arena, 0);
    sp_fields_init(&d->f, &d->arena);
    d->parsed = sp_json_parse(&doc, sp_buf_slice(&body), 64, NULL) == SP_OK;
    if (d->parsed) sp_kv_transfer_read(&d->f, sp_json_root(doc), kv, NOW_MS, &d->t);
    d->message = sp_fields_message(&d->f);
    sp_fields_fini(&d->f);
    sp_json_free(doc);
    sp_buf_fini(&body);
}

/* `text` with its first `from` replaced. Owner: caller, sp_free(). */
static char *replaced(const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    if (!at) fprintf(stderr, "no %s in %s\n", from, text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(at);
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_put(&b, text, (size_t)(at - text));
    sp_buf_puts(&b, to);
    sp_buf_puts(&b, at + strlen(from));
    return b.ptr;
}

static void expect_same_handle(const sp_kv_import *from, const sp_kv_handle *want) {
    CU_ASSERT_PTR_NOT_NULL_FATAL(from);
    const sp_kv_handle *got = from->handle;
    CU_ASSERT_STRING_EQUAL(from->engine, POD "-3");
    CU_ASSERT(sp_slice_is(from->source, SOURCE));
    CU_ASSERT(got->lease == want->lease && got->group == want->group);
    CU_ASSERT(got->n_blocks == want->n_blocks && got->n_tokens == want->n_tokens);
    CU_ASSERT_EQUAL(got->expires_unix_ms, want->expires_unix_ms);
    for (int i = 0; i < want->n_blocks && i < got->n_blocks; i++)
        CU_ASSERT(got->blocks[i].block == want->blocks[i].block &&
                  got->blocks[i].generation == want->blocks[i].generation &&
                  got->blocks[i].name == want->blocks[i].name);
}

static void what_one_pod_lends_another_takes(void) {
    sp_server_kv p = pod(), d = pod();
    d.pod = "ffeeddccbbaa99887766554433221100";
    d.host = "decode-0";
    for (int n = 1; n <= 20000; n = n * 7 + 1)
        for (int recompute = 0; recompute < 2; recompute++) {
            d.recompute = recompute;
            sp_kv_handle *h = handle_of(n);
            char *text = lend(&p, h);
            desk k;
            take(&k, &d, text);
            CU_ASSERT(k.parsed && k.f.n == 0);
            CU_ASSERT(k.t.borrow && !k.t.lend && k.t.refusal == SP_KV_REFUSED_NOT);
            expect_same_handle(k.t.from, h);
            CU_ASSERT_EQUAL(k.t.from->must, !recompute);
            desk_close(&k);
            sp_free(text);
            sp_free(h);
        }
}

static void the_object_has_the_members_that_routers_know(void) {
    sp_server_kv p = pod();
    char *text = lend_three(&p);
    static const char want[] =
        "{\"do_remote_prefill\":true,\"do_remote_decode\":false,"
        "\"remote_engine_id\":\"" POD "-3\",\"remote_request_id\":\"cmpl-7\","
        "\"remote_block_ids\":[0,7,14],\"remote_host\":\"prefill-0\",\"remote_port\":8123,"
        "\"tp_size\":2,\"remote_num_tokens\":48,\"remote_blocks_expiry_time\":1763865935.123,"
        "\"transfer_mode\":\"pull\",\"superpod\":{\"version\":1,\"identity\":\"c0ffee\","
        "\"block_size\":16,\"lease\":\"fedcba9876543210\","
        "\"generations\":[4294967295,4294967294,4294967293],"
        "\"names\":[\"ffffffffffffffff\",\"fffffffffffffffe\",\"fffffffffffffffd\"],\"source\":\"";
    if (strncmp(text, want, sizeof want - 1) != 0) fprintf(stderr, "%s\n", text);
    CU_ASSERT_EQUAL(strncmp(text, want, sizeof want - 1), 0);
    sp_free(text);
}

static void a_pod_that_kept_nothing_says_so_and_nothing_is_wanted_of_it(void) {
    sp_server_kv p = pod();
    sp_kv_handle *gone = handle_of(3), *none = handle_of(0);
    gone->group = 8; /* no such group any more */
    const sp_kv_handle *handles[] = {NULL, gone, none};
    for (size_t i = 0; i < SP_LEN(handles); i++) {
        char *text = lend(&p, handles[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "\"do_remote_prefill\":true"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "\"remote_block_ids\":[]"));
        CU_ASSERT_PTR_NOT_NULL(strstr(text, "\"remote_blocks_expiry_time\":1763865905.123"));
        desk k;
        take(&k, &p, text);
        CU_ASSERT(k.f.n == 0 && k.t.borrow && !k.t.from && k.t.refusal == SP_KV_REFUSED_NOT);
        desk_close(&k);
        char *blocks = replaced(text, "\"remote_block_ids\":[]", "\"remote_block_ids\":[1]");
        take(&k, &p, blocks);
        CU_ASSERT(k.f.n > 0 && !k.t.from);
        desk_close(&k);
        sp_free(blocks);
        sp_free(text);
    }
    sp_free(gone);
    sp_free(none);
}

static void flags_that_are_off_are_no_wish(void) {
    static const char *const rows[] = {
        "null",
        "{}",
        "{\"do_remote_decode\":null,\"do_remote_prefill\":null}",
        "{\"do_remote_decode\":false,\"do_remote_prefill\":false,\"remote_port\":\"x\"}",
        "{\"do_remote_prefill\":false,\"superpod\":7}",
        "{\"nonsense\":[1,2,3]}"};
    sp_server_kv p = pod();
    for (size_t i = 0; i < SP_LEN(rows); i++)
        for (int with = 0; with < 2; with++) {
            desk k;
            take(&k, with ? &p : NULL, rows[i]);
            CU_ASSERT(k.parsed && k.f.n == 0);
            CU_ASSERT(!k.t.lend && !k.t.borrow && !k.t.from && !k.t.refusal);
            desk_close(&k);
        }
}

static void a_sidecar_s_first_leg_asks_to_lend(void) {
    sp_server_kv p = pod();
    desk k;
    take(&k, &p,
         "{\"do_remote_decode\":true,\"do_remote_prefill\":false,\"remote_engine_id\":null,"
         "\"remote_block_ids\":null,\"remote_host\":null,\"remote_port\":null,\"more\":{\"a\":1}}");
    CU_ASSERT(k.f.n == 0 && k.t.lend && !k.t.borrow && !k.t.from);
    desk_close(&k);
}

static void flags_that_cannot_be_are_refused_by_name(void) {
    sp_server_kv p = pod();
    const struct {
        const sp_server_kv *kv;
        const char *object, *param, *words;
    } rows[] = {
        {&p, "7", "kv_transfer_params", "want an object, got an integer"},
        {&p, "[]", "kv_transfer_params", "want an object, got an array"},
        {&p, "\"x\"", "kv_transfer_params", "want an object"},
        {&p, "{\"do_remote_decode\":1}", "kv_transfer_params.do_remote_decode", "want a boolean"},
        {&p, "{\"do_remote_prefill\":\"true\"}", "kv_transfer_params.do_remote_prefill",
         "want a boolean"},
        {&p, "{\"do_remote_prefill\":true,\"do_remote_decode\":true}", "kv_transfer_params",
         "both true"},
        {NULL, "{\"do_remote_prefill\":true}", "kv_transfer_params", "--kv-secret-file"},
        {NULL, "{\"do_remote_decode\":true}", "kv_transfer_params", "--kv-secret-file"},
        {NULL, "{\"do_remote_decode\":[]}", "kv_transfer_params.do_remote_decode",
         "want a boolean"}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        desk k;
        take(&k, rows[i].kv, rows[i].object);
        CU_ASSERT_EQUAL(k.f.n, 1);
        CU_ASSERT_STRING_EQUAL(k.f.first, rows[i].param);
        CU_ASSERT_PTR_NOT_NULL_FATAL(k.message);
        CU_ASSERT_PTR_NOT_NULL(strstr(k.message, rows[i].words));
        desk_close(&k);
    }
}

/* ---- turned away ---- */

static void expect_refused(const sp_server_kv *reader, const char *object, sp_kv_refusal why,
                           const char *words) {
    sp_server_kv kv = *reader;
    for (int recompute = 0; recompute < 2; recompute++) {
        desk k;
        kv.recompute = recompute;
        take(&k, &kv, object);
        if (k.t.refusal != why || k.f.n != !recompute)
            fprintf(stderr, "%s, %d violations: %s: %.300s\n", sp_kv_refusal_name(k.t.refusal),
                    k.f.n, k.message ? k.message : "", object);
        CU_ASSERT(k.t.refusal == why && !k.t.from && k.t.borrow);
        CU_ASSERT_EQUAL(k.f.n, !recompute);
        if (!recompute) {
            CU_ASSERT_STRING_EQUAL(k.f.first, "kv_transfer_params");
            CU_ASSERT_PTR_NOT_NULL(strstr(k.message, words));
            CU_ASSERT_PTR_NOT_NULL(strstr(k.message, "--kv-load-failure-policy"));
            CU_ASSERT_PTR_NULL(strchr(k.message, '\n'));
            CU_ASSERT(k.message[strlen(k.message) - 1] == ')'); /* not cut short */
        }
        desk_close(&k);
    }
}

static void strangers_are_turned_away_or_computed_as_configured(void) {
    sp_server_kv p = pod();
    static const char *const rows[] = {
        "{\"do_remote_prefill\":true}", "{\"do_remote_prefill\":true,\"superpod\":null}",
        "{\"do_remote_prefill\":true,\"superpod\":{\"version\":2}}",
        "{\"do_remote_prefill\":true,\"superpod\":{\"version\":-1,\"mac\":5}}",
        "{\"do_remote_prefill\":true,\"remote_block_ids\":[[1],[3]],\"remote_port\":\"5600\"}"};
    for (size_t i = 0; i < SP_LEN(rows); i++)
        expect_refused(&p, rows[i], SP_KV_REFUSED_FOREIGN, "another kind or version of server");
}

static void another_secret_model_or_time_is_turned_away(void) {
    sp_server_kv p = pod(), d = pod();
    char *text = lend_three(&p);
    d.ctx = other_secret;
    expect_refused(&d, text, SP_KV_REFUSED_MAC, "the proof is wrong");
    d = pod();
    d.identity = "c0ffed";
    expect_refused(&d, text, SP_KV_REFUSED_IDENTITY, "another model");
    d = pod();
    d.block_tokens = 32;
    expect_refused(&d, text, SP_KV_REFUSED_IDENTITY, "block size");
    sp_free(text);

    sp_kv_handle *h = handle_of(3);
    h->expires_unix_ms = NOW_MS;
    text = lend(&p, h);
    desk k;
    expect_refused(&p, text, SP_KV_REFUSED_EXPIRED, "lease has ended");
    sp_free(text);
    h->expires_unix_ms = INT64_MAX; /* never */
    text = lend(&p, h);
    take(&k, &p, text);
    CU_ASSERT_FATAL(k.f.n == 0 && k.t.from);
    CU_ASSERT(k.t.from->handle->expires_unix_ms > NOW_MS * INT64_C(100));
    desk_close(&k);
    sp_free(text);
    h->expires_unix_ms = NOW_MS + 1;
    text = lend(&p, h);
    take(&k, &p, text);
    CU_ASSERT(k.f.n == 0 && k.t.from);
    desk_close(&k);
    sp_free(text);
    sp_free(h);
}

static void whatever_is_changed_on_the_way_has_no_proof(void) {
    static const struct {
        const char *from, *to;
    } rows[] = {
        {POD "-3", POD "-2"},
        {POD "-3", "ffeeddccbbaa99887766554433221100-3"},
        {"cmpl-7", "cmpl-8"},
        {"[0,7,14]", "[0,14,7]"},
        {"[0,7,14]", "[0,7,7]"},
        {"\"prefill-0\"", "\"prefill-1\""},
        {"8123", "8124"},
        {"\"tp_size\":2", "\"tp_size\":1"},
        {"\"remote_num_tokens\":48", "\"remote_num_tokens\":47"},
        {"1763865935.123", "1763865935.124"},
        {"1763865935.123", "1763869999"},
        {"\"pull\"", "\"push\""},
        {"c0ffee", "c0ffed"},
        {"\"block_size\":16", "\"block_size\":8"},
        {"fedcba9876543210", "fedcba9876543211"},
        {"4294967294", "4294967293"},
        {"fffffffffffffffe", "fffffffffffffffc"},
        {"kvx1 b", "kvx1 c"},
        {"kvx1 b", "kvx1 b "},
    };
    sp_server_kv p = pod();
    char *text = lend_three(&p);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        char *changed = replaced(text, rows[i].from, rows[i].to);
        expect_refused(&p, changed, SP_KV_REFUSED_MAC, "the proof is wrong");
        sp_free(changed);
    }
    /* And each digit of the proof itself. */
    char *at = strstr(text, "\"mac\":\"");
    CU_ASSERT_PTR_NOT_NULL_FATAL(at);
    for (int i = 0; i < 64; i++) {
        char *digit = at + 7 + i, was = *digit;
        *digit = was == '0' ? '1' : '0';
        expect_refused(&p, text, SP_KV_REFUSED_MAC, "the proof is wrong");
        *digit = was;
    }
    sp_free(text);
}

static const struct {
    const char *from, *to, *param;
} MALFORMED[] = {
    {"[0,7,14]", "null", "remote_block_ids"},
    {"[0,7,14]", "7", "remote_block_ids"},
    {"[0,7,14]", "{\"0\":7}", "remote_block_ids"},
    {"[0,7,14]", "\"0,7,14\"", "remote_block_ids"},
    {"[0,7,14]", "[0,7]", "superpod.generations"},
    {"[0,7,14]", "[]", "superpod.generations"},
    {"[0,7,14]", "[0,7,14,21]", "superpod.generations"},
    {"[0,7,14]", "[0,7,-1]", "remote_block_ids.2"},
    {"[0,7,14]", "[0,7,2147483648]", "remote_block_ids.2"},
    {"[0,7,14]", "[0,7,18446744073709551616]", "remote_block_ids.2"},
    {"[0,7,14]", "[0,7,1e400]", "remote_block_ids.2"},
    {"[0,7,14]", "[0,7.5,14]", "remote_block_ids.1"},
    {"[0,7,14]", "[\"0\",7,14]", "remote_block_ids.0"},
    {"[0,7,14]", "[[0],[7],[14]]", "remote_block_ids.0"},
    {"[0,7,14]", "[null,7,14]", "remote_block_ids.0"},
    {"[0,7,14]", "[true,7,14]", "remote_block_ids.0"},
    {"[4294967295,", "[0,", "superpod.generations.0"},
    {"[4294967295,", "[-1,", "superpod.generations.0"},
    {"[4294967295,", "[4294967296,", "superpod.generations.0"},
    {"[4294967295,", "[\"1\",", "superpod.generations.0"},
    {"[4294967295,", "[1,2,3,", "superpod.generations"},
    {"\"generations\"", "\"generation\"", "superpod.generations"},
    {"[\"ffffffffffffffff\"", "[18446744073709551615", "superpod.names.0"},
    {"[\"ffffffffffffffff\"", "[\"fffffffffffffff\"", "superpod.names.0"},
    {"[\"ffffffffffffffff\"", "[\"ffffffffffffffff0\"", "superpod.names.0"},
    {"[\"ffffffffffffffff\"", "[\"FFFFFFFFFFFFFFFF\"", "superpod.names.0"},
    {"[\"ffffffffffffffff\"", "[\"0xffffffffffffff\"", "superpod.names.0"},
    {"[\"ffffffffffffffff\"", "[\"\\u0000\\u0000ffffffffffffff\"", "superpod.names.0"},
    {"[\"ffffffffffffffff\"", "[null", "superpod.names.0"},
    {"\"names\":", "\"names\":7,\"nomes\":", "superpod.names"},
    {"\"fedcba9876543210\"", "18364758544493064720", "superpod.lease"},
    {"\"fedcba9876543210\"", "-1", "superpod.lease"},
    {"\"fedcba9876543210\"", "\"\"", "superpod.lease"},
    {"\"fedcba9876543210\"", "\"0000000000000000\"", "superpod.lease"},
    {"\"fedcba9876543210\"", "{}", "superpod.lease"},
    {"\"c0ffee\"", "12648430", "superpod.identity"},
    {"\"c0ffee\"", "null", "superpod.identity"},
    {"\"block_size\":16", "\"block_size\":0", "superpod.block_size"},
    {"\"block_size\":16", "\"block_size\":-16", "superpod.block_size"},
    {"\"block_size\":16", "\"block_size\":\"16\"", "superpod.block_size"},
    {"\"block_size\":16", "\"block_size\":1e300", "superpod.block_size"},
    {"\"version\":1", "\"version\":\"1\"", "superpod.version"},
    {"\"version\":1", "\"version\":1.5", "superpod.version"},
    {"\"version\":1", "\"version\":null", "superpod.version"},
    {"\"version\":1", "\"version\":99999999999999999999", "superpod.version"},
    {"\"superpod\":{", "\"superpod\":7,\"other\":{", "superpod"},
    {"\"superpod\":{", "\"superpod\":[],\"other\":{", "superpod"},
    {"\"superpod\":{", "\"superpod\":true,\"other\":{", "superpod"},
    {"\"" POD "-3\"", "null", "remote_engine_id"},
    {"\"" POD "-3\"", "3", "remote_engine_id"},
    {"\"" POD "-3\"", "\"\"", "remote_engine_id"},
    {"\"" POD "-3\"", "\"" POD "\"", "remote_engine_id"},
    {"\"" POD "-3\"", "\"" POD "-\"", "remote_engine_id"},
    {"\"" POD "-3\"", "\"" POD "-x\"", "remote_engine_id"},
    {"\"" POD "-3\"", "\"-3\"", "remote_engine_id"},
    {"\"" POD "-3\"", "\"" POD "-4294967299\"", "remote_engine_id"},
    {"\"" POD "-3\"", "\"a\\u0000b-3\"", "remote_engine_id"},
    {"\"" POD "-3\"", "\"" POD POD POD "-3\"", "remote_engine_id"},
    {"\"cmpl-7\"", "7", "remote_request_id"},
    {"\"cmpl-7\"", "null", "remote_request_id"},
    {"\"prefill-0\"", "[\"prefill-0\"]", "remote_host"},
    {"8123", "\"8123\"", "remote_port"},
    {"8123", "65536", "remote_port"},
    {"8123", "-1", "remote_port"},
    {"\"tp_size\":2", "\"tp_size\":-2", "tp_size"},
    {"\"tp_size\":2", "\"tp_size\":\"2\"", "tp_size"},
    {"\"remote_num_tokens\":48", "\"remote_num_tokens\":-1", "remote_num_tokens"},
    {"\"remote_num_tokens\":48", "\"remote_num_tokens\":2147483648", "remote_num_tokens"},
    {"1763865935.123", "\"1763865935.123\"", "remote_blocks_expiry_time"},
    {"1763865935.123", "-1", "remote_blocks_expiry_time"},
    {"1763865935.123", "1e308", "remote_blocks_expiry_time"},
    {"1763865935.123", "1e999", "remote_blocks_expiry_time"},
    {"1763865935.123", "null", "remote_blocks_expiry_time"},
    {"\"pull\"", "1", "transfer_mode"},
    {"\"mac\":\"", "\"mac\":\"0", "superpod.mac"},
    {"\"mac\":\"", "\"mac\":\"\",\"mic\":\"", "superpod.mac"},
    {"\"mac\":\"", "\"mac\":null,\"mic\":\"", "superpod.mac"},
    {"\"mac\":\"", "\"mac\":5,\"mic\":\"", "superpod.mac"},
    {"\"source\":\"", "\"source\":{},\"sauce\":\"", "superpod.source"},
    {"\"source\":\"", "\"source\":null,\"sauce\":\"", "superpod.source"},
};

static void wrong_shapes_are_always_a_violation_with_their_path(void) {
    sp_server_kv p = pod();
    char *text = lend_three(&p);
    for (size_t i = 0; i < SP_LEN(MALFORMED); i++)
        for (int recompute = 0; recompute < 2; recompute++) {
            char *changed = replaced(text, MALFORMED[i].from, MALFORMED[i].to);
            char want[100];
            desk k;
            p.recompute = recompute;
            take(&k, &p, changed);
            snprintf(want, sizeof want, "kv_transfer_params.%s", MALFORMED[i].param);
            if (!k.parsed || k.f.n == 0 || strcmp(k.f.first, want) != 0)
                fprintf(stderr, "%s -> %s: first '%s': %s\n", MALFORMED[i].from, MALFORMED[i].to,
                        k.f.first, k.message ? k.message : "(none)");
            CU_ASSERT(k.parsed && k.f.n > 0 && !k.t.from);
            CU_ASSERT_STRING_EQUAL(k.f.first, want);
            CU_ASSERT_EQUAL(k.t.refusal, SP_KV_REFUSED_MALFORMED);
            desk_close(&k);
            sp_free(changed);
        }
    sp_free(text);
}

static void numbers_as_a_proxy_may_rewrite_them_are_the_same(void) {
    static const struct {
        const char *from, *to;
    } rows[] = {
        {"[0,7,14]", "[ 0.0 , 7e0 ,14]"},
        {"1763865935.123", "1763865935.1229999"},
        {"1763865935.123", "1.763865935123e9"},
        {"[4294967295,", "[4294967295.0,"},
        {"\"version\":1", "\"version\":1.0"},
        {"{\"do_remote_prefill\":true", "{\"added\":{\"by\":[\"a\"]},\"do_remote_prefill\":true"},
        {"\"version\":1", "\"why\":null,\"version\":1"},
        {"\"cmpl-7\"", "\"\\u0063mpl-7\""}};
    sp_server_kv p = pod();
    char *text = lend_three(&p);
    sp_kv_handle *h = handle_of(3);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        char *changed = replaced(text, rows[i].from, rows[i].to);
        desk k;
        take(&k, &p, changed);
        if (k.message) fprintf(stderr, "%s: %s\n", rows[i].to, k.message);
        CU_ASSERT_EQUAL(k.f.n, 0);
        expect_same_handle(k.t.from, h);
        desk_close(&k);
        sp_free(changed);
    }
    sp_free(h);
    sp_free(text);
}

static void huge_and_deep_members_are_refused(void) {
    sp_server_kv p = pod();
    char *text = lend_three(&p);
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_putc(&b, '[');
    for (int i = 0; i <= SP_KV_TRANSFER_BLOCKS_MAX; i++) sp_buf_puts(&b, i ? ",1" : "1");
    sp_buf_putc(&b, ']');
    const char *lists[] = {"[0,7,14]", "[4294967295,4294967294,4294967293]"};
    for (size_t i = 0; i < SP_LEN(lists); i++) {
        char *changed = replaced(text, lists[i], b.ptr);
        desk k;
        take(&k, &p, changed);
        CU_ASSERT(k.parsed && k.f.n > 0 && !k.t.from);
        CU_ASSERT_EQUAL(k.t.refusal, SP_KV_REFUSED_MALFORMED);
        desk_close(&k);
        sp_free(changed);
    }
    sp_buf_clear(&b);
    sp_buf_puts(&b, "\"source\":\"");
    for (int i = 0; i <= SP_KV_TRANSFER_SOURCE_MAX; i++) sp_buf_putc(&b, 'x');
    char *changed = replaced(text, "\"source\":\"", b.ptr);
    desk k;
    take(&k, &p, changed);
    CU_ASSERT_STRING_EQUAL(k.f.first, "kv_transfer_params.superpod.source");
    desk_close(&k);
    sp_free(changed);
    for (int depth = 50; depth < 80; depth++) {
        sp_buf_clear(&b);
        for (int i = 0; i < depth; i++) sp_buf_putc(&b, '[');
        for (int i = 0; i < depth; i++) sp_buf_putc(&b, ']');
        changed = replaced(text, "\"c0ffee\"", b.ptr);
        take(&k, &p, changed);
        CU_ASSERT(!k.t.from && (!k.parsed || k.f.n > 0));
        desk_close(&k);
        sp_free(changed);
    }
    sp_buf_fini(&b);
    sp_free(text);
}

/* Either it is refused, or it says the very same: there is nothing between. */
static void no_mutated_object_is_taken_for_another(void) {
    sp_server_kv p = pod();
    char *text = lend_three(&p);
    sp_kv_handle *h = handle_of(3);
    size_t n = strlen(text);
    uint64_t seed = 7;
    int taken = 0, refused = 0, unparsed = 0;
    for (int i = 0; i < 6000; i++) {
        char *copy = sp_strdup(text);
        for (int k = 0; k <= i % 3; k++) {
            static const char pieces[] = "0123456789abcdef\"{}[],:.-eE+ntf\\u \x01\xff";
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            copy[(seed >> 33) % n] = pieces[(seed >> 20) % (sizeof pieces - 1)];
        }
        desk k;
        take(&k, &p, copy);
        if (k.t.from) expect_same_handle(k.t.from, h);
        *(k.t.from ? &taken : !k.parsed ? &unparsed : &refused) += 1;
        desk_close(&k);
        sp_free(copy);
    }
    CU_ASSERT(refused > 500 && unparsed > 500 && taken < 600);
    for (size_t cut = 0; cut < n; cut++) {
        desk k;
        char *copy = sp_strndup(text, cut);
        take(&k, &p, copy);
        CU_ASSERT(!k.parsed && !k.t.from);
        desk_close(&k);
        sp_free(copy);
    }
    sp_free(h);
    sp_free(text);
}

static void a_key_that_comes_twice_is_no_json_here(void) {
    sp_server_kv p = pod();
    char *text = lend_three(&p);
    char *twice = replaced(text, "\"version\":1", "\"version\":1,\"version\":1");
    desk k;
    take(&k, &p, twice);
    CU_ASSERT_FALSE(k.parsed);
    desk_close(&k);
    sp_free(twice);
    sp_free(text);
}

static void without_memory_for_the_proof_nothing_is_taken_or_lent(void) {
    sp_server_kv p = pod();
    sp_kv_handle *h = handle_of(500);
    char *text = lend(&p, h);
    int failed = 0;
    for (int at = 1; at < 40; at++) {
        sp_buf b;
        sp_buf_init(&b, 0);
        sp_jw w = sp_jw_on(&b);
        sp_kv_offer offer = {
            .handle = h, .request_id = "cmpl-7", .port = 8123, .now_unix_ms = NOW_MS};
        sp_mem_fail_at(at);
        sp_kv_transfer_put(&w, &offer, &p);
        sp_mem_fail_at(0);
        failed += b.failed;
        /* What could be written has a proof that holds. */
        desk k;
        if (!b.failed) {
            take(&k, &p, b.ptr);
            CU_ASSERT_EQUAL(k.f.n, 0);
            desk_close(&k);
        }
        sp_buf_fini(&b);
    }
    CU_ASSERT(failed > 5);
    sp_free(text);
    sp_free(h);
}

SP_TEST_MAIN("frontend/kv_transfer", SP_TEST(what_one_pod_lends_another_takes),
             SP_TEST(the_object_has_the_members_that_routers_know),
             SP_TEST(a_pod_that_kept_nothing_says_so_and_nothing_is_wanted_of_it),
             SP_TEST(flags_that_are_off_are_no_wish), SP_TEST(a_sidecar_s_first_leg_asks_to_lend),
             SP_TEST(flags_that_cannot_be_are_refused_by_name),
             SP_TEST(strangers_are_turned_away_or_computed_as_configured),
             SP_TEST(another_secret_model_or_time_is_turned_away),
             SP_TEST(whatever_is_changed_on_the_way_has_no_proof),
             SP_TEST(wrong_shapes_are_always_a_violation_with_their_path),
             SP_TEST(numbers_as_a_proxy_may_rewrite_them_are_the_same),
             SP_TEST(huge_and_deep_members_are_refused),
             SP_TEST(no_mutated_object_is_taken_for_another),
             SP_TEST(a_key_that_comes_twice_is_no_json_here),
             SP_TEST(without_memory_for_the_proof_nothing_is_taken_or_lent))
