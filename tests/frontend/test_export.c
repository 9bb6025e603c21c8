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

SP_TEST_MAIN("frontend/export", SP_TEST(a_router_that_asks_gets_the_load_in_a_header),
             SP_TEST(every_line_is_of_the_format_and_no_family_comes_twice),
             SP_TEST(the_families_that_dashboards_ask_for_are_there),
             SP_TEST(figures_move_with_the_work))
