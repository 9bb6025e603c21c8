/* Covers frontend/gen_event.c: how tokens become chunks, and what that costs the loop. */
#include "tests/frontend/site.h"

#define TEXT "/v1/completions"

static void held_back_text_keeps_its_tokens_lists_with_it(void) {
    /* A character of four tokens: its four entries come with the chunk that has the character. */
    sp_fake_engine_config f = {.script = "a\xf0\x9f\x98\x80z"};
    site *s = site_open(NULL, &f);
    reply r = site_post(
        s, TEXT, "{\"prompt\":\"p\",\"stream\":true,\"logprobs\":0,\"return_token_ids\":true}");
    stream *st = stream_of(r.body);
    static const int want[] = {0, 1, 4, 1, 1, 0}; /* first, a, smile, z, EOS, finish */
    CU_ASSERT_EQUAL_FATAL(st->n, (int)SP_LEN(want));
    for (int i = 0; i < st->n; i++) {
        sp_json *doc = site_json(st->data[i]);
        const sp_json_node *c = json_path(sp_json_root(doc), "choices.0");
        CU_ASSERT_EQUAL(sp_json_count(json_path(c, "logprobs.tokens")), want[i]);
        CU_ASSERT_EQUAL(sp_json_count(json_path(c, "token_ids")), want[i]);
        sp_json_free(doc);
    }
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

static void bytes_that_are_no_character_become_one_replacement(void) {
    sp_fake_engine_config f = {.script = "a\xff\xc3"};
    site *s = site_open(NULL, &f);
    for (int streamed = 0; streamed < 2; streamed++) {
        reply r = site_post(s, TEXT,
                            streamed ? "{\"prompt\":\"p\",\"stream\":true}" : "{\"prompt\":\"p\"}");
        CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\xef\xbf\xbd"));
        CU_ASSERT(sp_utf8_valid(sp_slice_of(r.body)));
        reply_fini(&r);
    }
    site_close(s);
}

static void special_tokens_are_shown_only_when_asked(void) {
    site *s = site_open(NULL, NULL);
    reply r = site_post(s, TEXT,
                        "{\"prompt\":\"p\",\"skip_special_tokens\":false,"
                        "\"include_stop_str_in_output\":true}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"text\":\"hello<|eos|>\""));
    reply_fini(&r);
    r = site_post(s, TEXT, "{\"prompt\":\"p\",\"skip_special_tokens\":false}");
    CU_ASSERT_PTR_NOT_NULL(strstr(r.body, "\"text\":\"hello\""));
    reply_fini(&r);
    site_close(s);
}

static void line_ends_and_quotes_never_break_an_event(void) {
    sp_fake_engine_config f = {.script = "a\n\ndata: \"x\"\\\r\t\x01"
                                         "b"};
    site *s = site_open(NULL, &f);
    reply r = site_post(s, TEXT, "{\"prompt\":\"p\",\"stream\":true,\"max_tokens\":99}");
    stream *st = stream_of(r.body);
    char *text = stream_text(st, 0, "text");
    CU_ASSERT_STRING_EQUAL(text, f.script);
    CU_ASSERT(st->done);
    sp_free(text);
    stream_free(st);
    reply_fini(&r);
    site_close(s);
}

static double metric(const site *s, const char *name) {
    reply r = site_get(s, "/metrics");
    char key[200];
    snprintf(key, sizeof key, "\n%s{", name);
    const char *at = r.body ? strstr(r.body, key) : NULL;
    const char *value = at ? strstr(at, "} ") : NULL;
    double v = value ? strtod(value + 2, NULL) : -1;
    reply_fini(&r);
    return v;
}

static void an_event_costs_the_loop_little(void) {
    enum {
        N = 64
    };
    sp_fake_engine_config f = {.script = "The quick brown fox jumps over the lazy dog. "};
    site *s = site_open(NULL, &f);
    int fds[N];
    for (int i = 0; i < N; i++) {
        fds[i] = site_connect(s);
        char *text = site_request("POST", "/v1/chat/completions", "",
                                  "{\"stream\":true,\"ignore_eos\":true,\"max_tokens\":300,"
                                  "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
        site_send(fds[i], text);
        sp_free(text);
    }
    for (int i = 0; i < N; i++) {
        sp_buf raw;
        sp_buf_init(&raw, 0);
        reply r = site_read_reply(fds[i], &raw, false);
        CU_ASSERT(r.whole);
        reply_fini(&r);
        sp_buf_fini(&raw);
        close(fds[i]);
    }
    double events = metric(s, "superpod:http_events_total");
    double cpu = metric(s, "superpod:http_event_cpu_seconds_total");
    printf("%d streams, %.0f events: %.2f us of CPU an event, writes included\n", N, events,
           cpu / events * 1e6);
    CU_ASSERT_EQUAL(events, N * 300.0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    CU_ASSERT(cpu / events < 50e-6); /* generous: other work shares these cores */
#endif
    site_close(s);
}

static void paced_steps_cost_one_write_a_connection(void) {
    enum {
        N = 64,
        STEPS = 50
    };
    sp_fake_engine_config f = {.script = "abcdefghijklmnopqrstuvwxyz", .paused = true};
    site *s = site_open(NULL, &f);
    int fds[N];
    sp_buf raw[N];
    for (int i = 0; i < N; i++) {
        fds[i] = site_connect(s);
        sp_buf_init(&raw[i], 0);
        char *text = site_request(
            "POST", TEXT, "",
            "{\"stream\":true,\"ignore_eos\":true,\"max_tokens\":50,\"prompt\":\"a\"}");
        site_send(fds[i], text);
        sp_free(text);
    }
    CU_ASSERT(sp_fake_engine_wait_inside(s->engine, N));
    for (int step = 0; step < STEPS; step++) {
        char want[32];
        snprintf(want, sizeof want, "\"text\":\"%c\"", 'a' + step % 26);
        sp_fake_engine_allow(s->engine, 1);
        for (int i = 0; i < N; i++) {
            CU_ASSERT_FATAL(site_read_until(fds[i], &raw[i], want));
            sp_buf_clear(&raw[i]);
        }
    }
    double events = metric(s, "superpod:http_events_total");
    double cpu = metric(s, "superpod:http_event_cpu_seconds_total");
    printf("%d streams, step by step: %.2f us of CPU an event, one write each\n", N,
           cpu / events * 1e6);
    CU_ASSERT_EQUAL(events, (double)N * STEPS);
    for (int i = 0; i < N; i++) {
        sp_buf_fini(&raw[i]);
        close(fds[i]);
    }
    site_close(s);
}

SP_TEST_MAIN("frontend/gen_event", SP_TEST(held_back_text_keeps_its_tokens_lists_with_it),
             SP_TEST(bytes_that_are_no_character_become_one_replacement),
             SP_TEST(special_tokens_are_shown_only_when_asked),
             SP_TEST(line_ends_and_quotes_never_break_an_event),
             SP_TEST(an_event_costs_the_loop_little),
             SP_TEST(paced_steps_cost_one_write_a_connection))
