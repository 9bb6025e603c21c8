/* Covers frontend/export.c: the text format to the letter, and vLLM's names. */
#include "tests/frontend/site.h"

static bool is_name_char(char c, bool first) {
    bool letter = (c | 32) >= 'a' && (c | 32) <= 'z';
    return letter || c == '_' || c == ':' || (!first && c >= '0' && c <= '9');
}

/* One `name{label="value",…} number` line; false: it is not. */
static bool is_series(const char *line, char *name, size_t n_name) {
    size_t n = 0;
    while (is_name_char(line[n], n == 0)) n++;
    snprintf(name, n_name, "%.*s", (int)n, line);
    const char *p = line + n;
    if (*p == '{') {
        for (p++; *p && *p != '}';) {
            size_t k = 0;
            while (is_name_char(p[k], k == 0)) k++;
            p += k;
            if (k == 0 || p[0] != '=' || p[1] != '"') return false;
            for (p += 2; *p && *p != '"'; p++)
                if (*p == '\\') p++;
            if (*p++ != '"') return false;
            if (*p == ',') p++;
        }
        if (*p++ != '}') return false;
    }
    if (n == 0 || *p != ' ') return false;
    char *end;
    (void)strtod(p + 1, &end);
    return end > p + 1 && *end == 0;
}

static void every_line_is_of_the_format_and_no_family_comes_twice(void) {
    static const char *const odd[] = {"my \"odd\" \\ model\nname"};
    sp_server_config c = site_config();
    c.model_names = odd;
    c.n_model_names = 1;
    site *s = site_open(&c, NULL);
    for (int i = 0; i < 3; i++) {
        reply warm = site_post(s, "/v1/completions", "{\"prompt\":\"a\"}");
        CU_ASSERT_EQUAL(warm.status, 200);
        reply_fini(&warm);
    }
    reply r = site_get(s, "/metrics");
    CU_ASSERT_EQUAL(r.status, 200);
    CU_ASSERT_STRING_EQUAL(reply_header(&r, "Content-Type"),
                           "text/plain; version=1.0.0; charset=utf-8");
    CU_ASSERT(r.n_body > 2 && r.body[r.n_body - 1] == '\n' && r.body[r.n_body - 2] != '\n');
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "model_name=\"my \\\"odd\\\" \\\\ model\\nname\""));
    char family[128] = "", name[128], *types[256];
    int n_types = 0;
    char *save = NULL;
    for (char *line = strtok_r(r.body, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, "# TYPE ", 7) == 0) {
            snprintf(family, sizeof family, "%.*s", (int)strcspn(line + 7, " "), line + 7);
            for (int i = 0; i < n_types; i++) CU_ASSERT_NOT_EQUAL(strcmp(types[i], family), 0);
            types[n_types++] = sp_strdup(family);
        } else if (strncmp(line, "# HELP ", 7) != 0) {
            bool good = is_series(line, name, sizeof name);
            if (!good) fprintf(stderr, "not a series: %s\n", line);
            CU_ASSERT(good);
            /* Series stand under their family. */
            CU_ASSERT_EQUAL(strncmp(name, family, strlen(family)), 0);
        }
    }
    CU_ASSERT(n_types > 30);
    for (int i = 0; i < n_types; i++) sp_free(types[i]);
    reply_fini(&r);
    site_close(s);
}

static void the_families_that_dashboards_ask_for_are_there(void) {
    const char *dir = sp_test_fixtures();
    if (!dir) SP_SKIP("no fixtures beside the checkout");
    char path[500];
    snprintf(path, sizeof path, "%s/openai/vllm_metric_families_v0.26.0.txt", dir);
    char *text = sp_test_read(path, NULL), *save = NULL;
    site *s = site_open(NULL, NULL);
    reply r = site_get(s, "/metrics");
    int n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        /* Estimates of a GPU's work are not ours to make. */
        if (line[0] == '#' || strstr(line, "estimated_")) continue;
        char want[200];
        snprintf(want, sizeof want, "# TYPE %s\n", line);
        if (!strstr(r.body, want)) fprintf(stderr, "missing: %s", want);
        CU_ASSERT_PTR_NOT_NULL(strstr(r.body, want));
        n++;
    }
    CU_ASSERT(n >= 30);
    free(text);
    reply_fini(&r);
    site_close(s);
}

static void figures_move_with_the_work(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, "/v1/completions", "{\"prompt\":\"a\",\"n\":3}");
    reply_fini(&r);
    r = site_post(s, "/v1/completions", "{\"prompt\":5}");
    reply_fini(&r);
    sp_histogram_observe(&s->engine->metrics.ttft_s, 0.75);
    r = site_get(s, "/metrics");
    static const char *const want[] = {
        "vllm:request_success_total{finished_reason=\"stop\",engine=\"0\",model_name=\"tiny\"} 3\n",
        "vllm:generation_tokens_total{engine=\"0\",model_name=\"tiny\"} 18\n",
        "vllm:time_to_first_token_seconds_bucket{le=\"0.5\",engine=\"0\",model_name=\"tiny\"} 0\n",
        "vllm:time_to_first_token_seconds_bucket{le=\"1.0\",engine=\"0\",model_name=\"tiny\"} 1\n",
        "vllm:time_to_first_token_seconds_bucket{le=\"+Inf\",engine=\"0\",model_name=\"tiny\"} 1\n",
        "vllm:time_to_first_token_seconds_sum{engine=\"0\",model_name=\"tiny\"} 0.75\n",
        "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"tiny\"} 1\n",
        "superpod:http_events_total{engine=\"0\",model_name=\"tiny\"} 18\n",
        "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"} 1\n",
        "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"4xx\"} 1\n",
        "http_request_duration_seconds_count{handler=\"/v1/completions\",method=\"POST\"} 2\n",
        "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"128\"",
    };
    for (size_t i = 0; i < SP_LEN(want); i++) {
        if (!strstr(r.body, want[i])) fprintf(stderr, "missing: %s\n", want[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(r.body, want[i]));
    }
    const char *info = strstr(r.body, "\nvllm:cache_config_info{");
    CU_ASSERT_PTR_NOT_NULL_FATAL(info);
    const char *model = strstr(info, "model_name"), *end = strchr(info + 1, '\n');
    CU_ASSERT(!model || model > end);
    reply_fini(&r);
    site_close(s);
}

static void expect_lines(const char *text, const char *const *want, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!strstr(text, want[i])) fprintf(stderr, "missing: %s\n", want[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(text, want[i]));
    }
}

static void transfers_have_the_names_of_the_nixl_connector(void) {
    site *s = site_open(NULL, NULL);
    sp_engine_metrics *m = &s->engine->metrics;
    sp_histogram_observe(&m->kv_xfer_s, 0.75);
    sp_histogram_observe(&m->kv_post_s, 1.5);
    sp_histogram_observe(&m->kv_xfer_bytes, 5);
    sp_histogram_observe(&m->kv_xfer_blocks, 7);
    sp_counter_add(&m->kv_failed_xfers, 2);
    sp_counter_add(&m->kv_failed_notices, 3);
    sp_counter_add(&m->kv_expired, 4);
    sp_gauge_set(&m->kv_lent, 5);
    sp_counter_add(&m->kv_queries, 96);
    sp_counter_add(&m->kv_hits, 64);
    sp_counter_add(&m->prompt_tokens, 100);
    sp_counter_add(&m->prompt_tokens_cached, 16);
    sp_counter_add(&m->kv_prompt_tokens, 64);
#define L "{engine=\"0\",model_name=\"tiny\"} "
#define BY "vllm:prompt_tokens_by_source_total{source="
    static const char *const want[] = {
        "# TYPE vllm:nixl_xfer_time_seconds histogram\n",
        "vllm:nixl_xfer_time_seconds_bucket{le=\"1.0\",engine=\"0\",model_name=\"tiny\"} 1\n",
        "vllm:nixl_xfer_time_seconds_sum" L "0.75\n",
        "# TYPE vllm:nixl_post_time_seconds histogram\n",
        "vllm:nixl_post_time_seconds_sum" L "1.5\n",
        "# TYPE vllm:nixl_bytes_transferred histogram\n",
        "vllm:nixl_bytes_transferred_sum" L "5\n",
        "# TYPE vllm:nixl_num_descriptors histogram\n",
        "vllm:nixl_num_descriptors_sum" L "7\n",
        "# TYPE vllm:nixl_num_failed_transfers_total counter\n",
        "vllm:nixl_num_failed_transfers_total" L "2\n",
        "vllm:nixl_num_failed_notifications_total" L "3\n",
        "vllm:nixl_num_kv_expired_reqs_total" L "4\n",
        "superpod:kv_lent_blocks" L "5\n",
        "vllm:external_prefix_cache_queries_total" L "96\n",
        "vllm:external_prefix_cache_hits_total" L "64\n",
        BY "\"local_compute\",engine=\"0\",model_name=\"tiny\"} 20\n",
        BY "\"local_cache_hit\",engine=\"0\",model_name=\"tiny\"} 16\n",
        BY "\"external_kv_transfer\",engine=\"0\",model_name=\"tiny\"} 64\n"};
    reply r = site_get(s, "/metrics");
    expect_lines(r.body, want, SP_LEN(want));
    reply_fini(&r);
    /* Read while they move, the parts may be ahead of the whole. */
    sp_counter_add(&m->kv_prompt_tokens, 1000);
    static const char *const none[] = {BY
                                       "\"local_compute\",engine=\"0\",model_name=\"tiny\"} 0\n"};
    r = site_get(s, "/metrics");
    expect_lines(r.body, none, 1);
    reply_fini(&r);
    site_close(s);
}

static void every_group_is_shown_in_its_pool(void) {
    static const sp_engine_group_status groups[] = {
        {.role = SP_POOL_PREFILL,
         .pool = "p\"1",
         .running = 1,
         .waiting = 2,
         .blocks_used = 3,
         .blocks_total = 40,
         .load_tokens = 5000000000},
        {.role = SP_POOL_DECODE, .pool = "d", .blocks_total = 80},
        {.role = SP_POOL_PREFILL, .pool = "p\"1", .running = 7, .blocks_total = 40},
        {.role = SP_POOL_MIXED, .pool = "d"}};
    sp_fake_engine_config f = {.groups = groups, .n_groups = (int)SP_LEN(groups)};
    site *s = site_open(NULL, &f);
#define G "engine=\"0\",model_name=\"tiny\"} "
    static const char *const want[] = {
        "# TYPE superpod:pool_groups gauge\n"
        "superpod:pool_groups{pool=\"p\\\"1\",role=\"prefill\"," G "2\n"
        "superpod:pool_groups{pool=\"d\",role=\"decode\"," G "1\n"
        "superpod:pool_groups{pool=\"d\",role=\"mixed\"," G "1\n#",
        "superpod:pool_running{group=\"0\",pool=\"p\\\"1\",role=\"prefill\"," G "1\n"
        "superpod:pool_running{group=\"1\",pool=\"d\",role=\"decode\"," G "0\n"
        "superpod:pool_running{group=\"2\",pool=\"p\\\"1\",role=\"prefill\"," G "7\n",
        "superpod:pool_waiting{group=\"0\",pool=\"p\\\"1\",role=\"prefill\"," G "2\n",
        "superpod:pool_blocks_used{group=\"0\",pool=\"p\\\"1\",role=\"prefill\"," G "3\n",
        "superpod:pool_blocks_total{group=\"1\",pool=\"d\",role=\"decode\"," G "80\n",
        "superpod:pool_load_tokens{group=\"0\",pool=\"p\\\"1\",role=\"prefill\"," G "5e+09\n"};
    reply r = site_get(s, "/metrics");
    expect_lines(r.body, want, SP_LEN(want));
    reply_fini(&r);
    site_close(s);
}

static void a_router_that_asks_gets_the_load_in_a_header(void) {
    site *s = site_open(NULL, NULL);
    sp_gauge_set(&s->engine->metrics.blocks_total, 8);
    sp_gauge_set(&s->engine->metrics.blocks_used, 2);
    sp_gauge_set(&s->engine->metrics.waiting, 3);
    static const struct {
        const char *header, *want;
    } rows[] = {
        {"endpoint-load-metrics-format: TEXT\r\n",
         "TEXT named_metrics.kv_cache_usage_perc=0.25,named_metrics.num_requests_waiting=3"},
        {"Endpoint-Load-Metrics-Format: json\r\n",
         "JSON {\"named_metrics\":{\"kv_cache_usage_perc\":0.25,\"num_requests_waiting\":3}}"},
        {"endpoint-load-metrics-format: BIN\r\n", NULL},
        {"", NULL}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        reply r = site_ask(s, "POST", "/v1/completions", rows[i].header, "{\"prompt\":\"a\"}");
        const char *got = reply_header(&r, "endpoint-load-metrics");
        CU_ASSERT_EQUAL(got != NULL, rows[i].want != NULL);
        if (got && rows[i].want) CU_ASSERT_STRING_EQUAL(got, rows[i].want);
        reply_fini(&r);
    }
    site_close(s);
}

SP_TEST_MAIN("frontend/export", SP_TEST(transfers_have_the_names_of_the_nixl_connector),
             SP_TEST(every_group_is_shown_in_its_pool),
             SP_TEST(a_router_that_asks_gets_the_load_in_a_header),
             SP_TEST(every_line_is_of_the_format_and_no_family_comes_twice),
             SP_TEST(the_families_that_dashboards_ask_for_are_there),
             SP_TEST(figures_move_with_the_work))
