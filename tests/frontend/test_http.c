/* Covers frontend/http.c: listening, the caps on connections, what an idle one costs. */
#include "tests/frontend/site.h"

#include <sys/resource.h>

static void a_port_in_use_is_one_clear_line(void) {
    site *s = site_open(NULL, NULL);
    sp_server_config c = site_config();
    c.port = s->port;
    sp_err err = {0};
    sp_server *second = NULL;
    CU_ASSERT_EQUAL(sp_server_create(&second, &c, s->engine, s->tokenizer, s->chat, &err), SP_E_IO);
    CU_ASSERT_PTR_NULL(second);
    char port[16];
    snprintf(port, sizeof port, "port %d", s->port);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, port));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "in use"));
    site_close(s);
}

static void a_host_without_an_address_is_refused_by_name(void) {
    sp_server_config c = site_config();
    sp_fake_engine_config f = {0};
    sp_engine *e = sp_fake_engine_create(&f);
    sp_tokenizer *t = NULL;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_tokenizer_load(&t, SITE_DATA, &err), SP_OK);
    sp_server *server = NULL;
    c.host = "no such host.invalid";
    CU_ASSERT_EQUAL(sp_server_create(&server, &c, e, t, NULL, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'no such host.invalid'"));
    c.host = "127.0.0.1";
    c.json_depth = 1000;
    CU_ASSERT_EQUAL(sp_server_create(&server, &c, e, t, NULL, &err), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "json depth"));
    sp_tokenizer_free(t);
    sp_fake_engine_destroy(e);
}

static void connections_over_the_cap_get_503_and_room_comes_back(void) {
    sp_server_config c = site_config();
    c.max_connections = 3;
    site *s = site_open(&c, NULL);
    int fds[3];
    sp_buf raw;
    sp_buf_init(&raw, 0);
    for (int i = 0; i < 3; i++) {
        fds[i] = site_connect(s);
        site_send(fds[i], "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n");
        reply r = site_read_reply(fds[i], &raw, false);
        CU_ASSERT_EQUAL(r.status, 200);
        reply_fini(&r);
    }
    reply r = site_get(s, "/version");
    CU_ASSERT_EQUAL(r.status, 503);
    CU_ASSERT_PTR_NOT_NULL(reply_header(&r, "Retry-After"));
    reply_fini(&r);
    close(fds[0]);
    do {
        reply_fini(&r);
        r = site_get(s, "/version");
    } while (r.status == 503);
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    close(fds[1]);
    close(fds[2]);
    sp_buf_fini(&raw);
    site_close(s);
}

static long resident_kib(void) {
    long pages = 0, skip = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &skip, &pages) != 2) pages = 0;
    if (f) fclose(f);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void a_thousand_idle_connections_cost_little(void) {
    enum {
        N = 1000
    };
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_max < 2 * N + 100) SP_SKIP("fewer than 2100 descriptors allowed");
    rlim_t before_limit = files.rlim_cur;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    site *s = site_open(NULL, NULL);
    int *fds = sp_alloc(N * sizeof *fds);
    sp_buf raw;
    sp_buf_init(&raw, 0);
    reply r = site_get(s, "/version");
    reply_fini(&r);
    long before = resident_kib();
    for (int i = 0; i < N; i++) {
        fds[i] = site_connect(s);
        site_send(fds[i], "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    for (int i = 0; i < N; i++) {
        r = site_read_reply(fds[i], &raw, false);
        CU_ASSERT_EQUAL(r.status, 200);
        reply_fini(&r);
    }
    long cost = resident_kib() - before;
    printf("%d idle connections: %ld KiB, %.2f KiB each\n", N, cost, (double)cost / N);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    CU_ASSERT(cost < 4 * N);
#endif
    for (int i = 0; i < N; i++) close(fds[i]);
    sp_free(fds);
    sp_buf_fini(&raw);
    site_close(s);
    files.rlim_cur = before_limit;
    setrlimit(RLIMIT_NOFILE, &files);
}

static void running_out_of_descriptors_sheds_connections_and_does_not_spin(void) {
    struct rlimit files, small;
    site *s = site_open(NULL, NULL);
    getrlimit(RLIMIT_NOFILE, &files);
    int fds[64], n = 0;
    /* Client ends first; their server ends then find no number left. */
    for (; n < 32; n++) fds[n] = socket(AF_INET, SOCK_STREAM, 0);
    int next = dup(0);
    close(next);
    small = files;
    small.rlim_cur = (rlim_t)next + 8;
    setrlimit(RLIMIT_NOFILE, &small);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)s->port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < n; i++)
        CU_ASSERT_EQUAL(connect(fds[i], (struct sockaddr *)&a, sizeof a), 0);
    /* The last one is closed by the server without a word. */
    struct pollfd p = {.fd = fds[n - 1], .events = POLLIN};
    CU_ASSERT_EQUAL(poll(&p, 1, 20000), 1);
    for (int i = 0; i < n; i++) close(fds[i]);
    setrlimit(RLIMIT_NOFILE, &files);
    reply r = site_get(s, "/health");
    CU_ASSERT_EQUAL(r.status, 200);
    reply_fini(&r);
    site_close(s);
}

SP_TEST_MAIN("frontend/http", SP_TEST(a_port_in_use_is_one_clear_line),
             SP_TEST(a_host_without_an_address_is_refused_by_name),
             SP_TEST(connections_over_the_cap_get_503_and_room_comes_back),
             SP_TEST(a_thousand_idle_connections_cost_little),
             SP_TEST(running_out_of_descriptors_sheds_connections_and_does_not_spin))
