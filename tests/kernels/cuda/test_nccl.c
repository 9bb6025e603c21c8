/* Covers kernels/cuda/nccl_api.c and what the emulated NCCL (kernels/cuda/emu/nccl*.cc) is strict
 * about; sums and messages of groups are in test_nccl_group.c. */
#include "tests/kernels/cuda/nccl_env.h"

extern int emu_nccl_checked(void);

static void the_table_is_the_toolkit_s(void) {
    if (emu_nccl_checked() < 0) SP_SKIP("no nccl.h");
    CU_ASSERT_EQUAL(emu_nccl_checked(), 1);
}

static void versions_are_read_by_both_rules(void) {
    char text[24];
    cu_nccl_version_text(22809, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "2.28.9");
    cu_nccl_version_text(2708, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "2.7.8");
}

static void an_old_library_is_refused_by_name(void) {
    static const struct {
        const char *set, *seen;
    } rows[] = {{"21805", "NCCL 2.18.5, want 2.19"}, {"2708", "NCCL 2.7.8, want 2.19"}};
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        cu_nccl n;
        sp_err err = {0};
        setenv("SUPERPOD_EMU_NCCL_VERSION", rows[i].set, 1);
        CU_ASSERT_EQUAL(cu_nccl_open(&n, NULL, &err), SP_E_UNSUPPORTED);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, rows[i].seen));
    }
    cu_nccl n;
    setenv("SUPERPOD_EMU_NCCL_VERSION", "21900", 1);
    CU_ASSERT_EQUAL(cu_nccl_open(&n, NULL, NULL), SP_OK);
    CU_ASSERT_STRING_EQUAL(n.version_text, "2.19.0");
    cu_nccl_close(&n);
    unsetenv("SUPERPOD_EMU_NCCL_VERSION");
}

static void a_library_without_the_functions_is_refused(void) {
    cu_nccl n;
    sp_err err = {0};
    CU_ASSERT_EQUAL(cu_nccl_open(&n, "libno-such-nccl.so.9", &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "libno-such-nccl.so.9"));
    CU_ASSERT_EQUAL(cu_nccl_open(&n, "libm.so.6", &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "'libm.so.6' has no 'ncclGetVersion'"));
}

static void the_real_library_opens_by_the_same_code(void) {
    const char *path = getenv("SUPERPOD_TEST_NCCL");
    cu_nccl n;
    sp_err err = {0};
    sp_status st = cu_nccl_open(&n, path ? path : "libnccl.so.2", &err);
    if (st != SP_OK && !path) SP_SKIP("no libnccl.so.2");
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    CU_ASSERT(n.version >= CU_NCCL_OLDEST);
    CU_ASSERT_STRING_NOT_EQUAL(n.get_error_string(CU_NCCL_INVALID_USAGE), "");
    cu_nccl_close(&n);
}

/* ---- the emulated library alone ---- */

/* Both members in one thread: nothing blocks. */
typedef struct pair {
    const cu_nccl *n;
    cu_nccl_comm comm[2];
    cudaStream_t stream[2];
    float *buf[2]; /* [64] each */
} pair;

static cu_nccl_result settle(const cu_nccl *n, cu_nccl_comm c) {
    cu_nccl_result r = CU_NCCL_IN_PROGRESS;
    for (int i = 0; i < 1000 && r == CU_NCCL_IN_PROGRESS; i++) n->comm_get_async_error(c, &r);
    return r;
}

static void pair_open(pair *p, cu_emu_pace pace) {
    cu_nccl_id id;
    cu_nccl_config config = cu_nccl_config_make();
    cast_pace(pace, 11);
    *p = (pair){.n = cast_nccl()};
    CU_ASSERT_PTR_NOT_NULL_FATAL(p->n);
    CU_ASSERT_EQUAL_FATAL(p->n->get_unique_id(&id), CU_NCCL_OK);
    for (int i = 0; i < 2; i++) {
        cudaSetDevice(0);
        CU_ASSERT_EQUAL_FATAL(cudaMalloc((void **)&p->buf[i], 64 * sizeof(float)), cudaSuccess);
        float host[64];
        for (int k = 0; k < 64; k++) host[k] = (float)(i * 100 + k);
        cudaMemcpy(p->buf[i], host, sizeof host, cudaMemcpyHostToDevice);
        CU_ASSERT_EQUAL_FATAL(cudaStreamCreateWithFlags(&p->stream[i], cudaStreamNonBlocking),
                              cudaSuccess);
        CU_ASSERT_EQUAL_FATAL(p->n->comm_init_rank_config(&p->comm[i], 2, id, i, &config),
                              CU_NCCL_IN_PROGRESS);
    }
}

static void pair_ready(pair *p) {
    for (int i = 0; i < 2; i++) CU_ASSERT_EQUAL_FATAL(settle(p->n, p->comm[i]), CU_NCCL_OK);
}

static bool idle(const pair *p, int64_t ns) {
    int64_t until = sp_now_ns() + ns;
    do
        if (cudaStreamQuery(p->stream[0]) == cudaSuccess &&
            cudaStreamQuery(p->stream[1]) == cudaSuccess)
            return true;
    while (sp_now_ns() < until);
    return false;
}

static void pair_close(pair *p) {
    for (int i = 0; i < 2; i++)
        if (p->comm[i]) CU_ASSERT_EQUAL(p->n->comm_abort(p->comm[i]), CU_NCCL_OK);
    CU_ASSERT(idle(p, SP_NS_PER_S));
    for (int i = 0; i < 2; i++) {
        cudaStreamDestroy(p->stream[i]);
        cudaFree(p->buf[i]);
    }
    CU_ASSERT_EQUAL(cast_open_memory(), 0);
}

static cu_nccl_result sum(const pair *p, int i, size_t n) {
    return p->n->all_reduce(p->buf[i], p->buf[i], n, CU_NCCL_F32, CU_NCCL_SUM, p->comm[i],
                            p->stream[i]);
}

static float first(const pair *p, int i) {
    float f = -1;
    cudaMemcpy(&f, p->buf[i], sizeof f, cudaMemcpyDeviceToHost);
    return f;
}

static void an_operation_in_progress_is_refused_and_comes_late(void) {
    for (int pace = CU_EMU_EAGER; pace <= CU_EMU_MIXED; pace++) {
        pair p;
        pair_open(&p, (cu_emu_pace)pace);
        CU_ASSERT_EQUAL(sum(&p, 0, 64), CU_NCCL_INVALID_ARGUMENT); /* not yet ready */
        pair_ready(&p);
        /* The first group is queued only when the state is asked for: the stream looks done. */
        CU_ASSERT_EQUAL(sum(&p, 0, 64), CU_NCCL_IN_PROGRESS);
        CU_ASSERT_EQUAL(cudaStreamQuery(p.stream[0]), cudaSuccess);
        CU_ASSERT_EQUAL(sum(&p, 0, 64), CU_NCCL_INVALID_ARGUMENT);
        CU_ASSERT_EQUAL(sum(&p, 1, 64), CU_NCCL_IN_PROGRESS);
        pair_ready(&p);
        CU_ASSERT(idle(&p, SP_NS_PER_S));
        CU_ASSERT_EQUAL(first(&p, 0), 100);
        CU_ASSERT_EQUAL(first(&p, 1), 100);
        pair_close(&p);
    }
}

static void a_send_ends_when_it_was_received(void) {
    pair p;
    pair_open(&p, CU_EMU_EAGER);
    pair_ready(&p);
    p.n->send(p.buf[0], 4, CU_NCCL_F32, 1, p.comm[0], p.stream[0]);
    pair_ready(&p);
    CU_ASSERT_FALSE(idle(&p, 5 * SP_NS_PER_MS));
    p.n->recv(p.buf[1], 4, CU_NCCL_F32, 0, p.comm[1], p.stream[1]);
    pair_ready(&p);
    CU_ASSERT(idle(&p, SP_NS_PER_S));
    CU_ASSERT_EQUAL(first(&p, 1), 0);
    pair_close(&p);
}

/* Both send, then both receive: stuck alone, done inside of a group. */
static void crossing_messages_need_a_group(void) {
    for (int grouped = 0; grouped < 2; grouped++) {
        pair p;
        pair_open(&p, CU_EMU_EAGER);
        pair_ready(&p);
        for (int i = 0; i < 2; i++) {
            if (grouped) p.n->group_start();
            p.n->send(p.buf[i], 8, CU_NCCL_F32, 1 - i, p.comm[i], p.stream[i]);
            if (!grouped) CU_ASSERT_EQUAL(settle(p.n, p.comm[i]), CU_NCCL_OK);
            p.n->recv(p.buf[i] + 8, 8, CU_NCCL_F32, 1 - i, p.comm[i], p.stream[i]);
            if (grouped) p.n->group_end();
            CU_ASSERT_EQUAL(settle(p.n, p.comm[i]), CU_NCCL_OK);
        }
        CU_ASSERT_EQUAL(idle(&p, grouped ? SP_NS_PER_S : 5 * SP_NS_PER_MS), grouped != 0);
        pair_close(&p);
    }
}

static void a_mismatch_names_both(void) {
    pair p;
    cu_nccl_result r = CU_NCCL_OK;
    pair_open(&p, CU_EMU_EAGER);
    pair_ready(&p);
    sum(&p, 0, 64);
    p.n->broadcast(p.buf[1], p.buf[1], 64, CU_NCCL_F32, 1, p.comm[1], p.stream[1]);
    for (int i = 0; i < 2; i++) settle(p.n, p.comm[i]);
    CU_ASSERT_FALSE(idle(&p, 5 * SP_NS_PER_MS)); /* nobody goes on */
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL(p.n->comm_get_async_error(p.comm[i], &r), CU_NCCL_OK);
        CU_ASSERT_EQUAL(r, CU_NCCL_INVALID_USAGE);
        const char *words = p.n->get_last_error(p.comm[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(words, "all-reduce of 64 f32"));
        CU_ASSERT_PTR_NOT_NULL(strstr(words, "broadcast of 64 f32 from 1"));
    }
    CU_ASSERT(cu_emu_reports(CU_EMU_MISUSE) > 0);
    CU_ASSERT_EQUAL(p.n->comm_destroy(p.comm[0]),
                    CU_NCCL_INVALID_USAGE); /* only an abort ends it */
    pair_close(&p);
}

static void a_replayed_graph_sums_each_time(void) {
    pair p;
    cudaGraph_t graph[2];
    cudaGraphExec_t exec[2];
    pair_open(&p, CU_EMU_LAZY);
    pair_ready(&p);
    for (int i = 0; i < 2; i++) sum(&p, i, 64);
    pair_ready(&p);
    CU_ASSERT(idle(&p, SP_NS_PER_S));
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL_FATAL(cudaStreamBeginCapture(p.stream[i], cudaStreamCaptureModeThreadLocal),
                              cudaSuccess);
        CU_ASSERT_EQUAL(sum(&p, i, 64), CU_NCCL_OK);
        CU_ASSERT_EQUAL_FATAL(cudaStreamEndCapture(p.stream[i], &graph[i]), cudaSuccess);
        CU_ASSERT_EQUAL_FATAL(cudaGraphInstantiate(&exec[i], graph[i], 0), cudaSuccess);
    }
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 2; i++)
            CU_ASSERT_EQUAL(cudaGraphLaunch(exec[i], p.stream[i]), cudaSuccess);
        CU_ASSERT(idle(&p, SP_NS_PER_S));
    }
    CU_ASSERT_EQUAL(first(&p, 1), 100.0f * 8);
    for (int i = 0; i < 2; i++) {
        cudaGraphExecDestroy(exec[i]);
        cudaGraphDestroy(graph[i]);
    }
    pair_close(&p);
}

static void a_clean_end_is_a_meeting(void) {
    pair p;
    cu_nccl_result r = CU_NCCL_OK;
    pair_open(&p, CU_EMU_EAGER);
    pair_ready(&p);
    CU_ASSERT_EQUAL(p.n->comm_finalize(p.comm[0]), CU_NCCL_IN_PROGRESS);
    CU_ASSERT_EQUAL(settle(p.n, p.comm[0]), CU_NCCL_IN_PROGRESS);
    CU_ASSERT_EQUAL(p.n->comm_finalize(p.comm[1]), CU_NCCL_IN_PROGRESS);
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL(settle(p.n, p.comm[i]), CU_NCCL_OK);
        cu_nccl_comm gone = p.comm[i];
        CU_ASSERT_EQUAL(p.n->comm_destroy(gone), CU_NCCL_OK);
        CU_ASSERT_EQUAL(p.n->comm_get_async_error(gone, &r), CU_NCCL_INVALID_ARGUMENT);
        p.comm[i] = NULL;
    }
    pair_close(&p);
}

static void wrong_calls_are_refused(void) {
    pair p;
    cu_nccl_id id = {{0}};
    cu_nccl_comm c;
    cu_nccl_config config = cu_nccl_config_make(), blocking = config, raw = {0};
    pair_open(&p, CU_EMU_EAGER);
    pair_ready(&p);
    CU_ASSERT_EQUAL(p.n->comm_init_rank_config(&c, 2, id, 0, &config), CU_NCCL_INVALID_ARGUMENT);
    CU_ASSERT_EQUAL(p.n->get_unique_id(&id), CU_NCCL_OK);
    CU_ASSERT_EQUAL(p.n->comm_init_rank_config(&c, 2, id, 2, &config), CU_NCCL_INVALID_ARGUMENT);
    CU_ASSERT_EQUAL(p.n->comm_init_rank_config(&c, 2, id, 0, &raw), CU_NCCL_INVALID_ARGUMENT);
    blocking.blocking = 1;
    CU_ASSERT_EQUAL(p.n->comm_init_rank_config(&c, 2, id, 0, &blocking), CU_NCCL_INVALID_USAGE);
    CU_ASSERT_EQUAL(p.n->comm_init_rank_config(&c, 2, id, 0, &config), CU_NCCL_IN_PROGRESS);
    cu_nccl_comm again;
    CU_ASSERT_EQUAL(p.n->comm_init_rank_config(&again, 2, id, 0, &config), CU_NCCL_INVALID_USAGE);
    CU_ASSERT_EQUAL(p.n->comm_init_rank_config(&again, 3, id, 1, &config),
                    CU_NCCL_INVALID_ARGUMENT);
    CU_ASSERT_EQUAL(p.n->comm_abort(c), CU_NCCL_OK);
    CU_ASSERT_EQUAL(p.n->group_end(), CU_NCCL_INVALID_USAGE);
    p.n->group_start();
    sum(&p, 0, 64);
    CU_ASSERT_EQUAL(
        p.n->all_reduce(p.buf[0], p.buf[0], 1, CU_NCCL_F32, CU_NCCL_SUM, p.comm[0], p.stream[1]),
        CU_NCCL_OK);
    CU_ASSERT_EQUAL(p.n->group_end(), CU_NCCL_INVALID_USAGE); /* two streams */
    CU_ASSERT_EQUAL(p.n->send(p.buf[0], 1, CU_NCCL_F32, 2, p.comm[0], p.stream[0]),
                    CU_NCCL_INVALID_ARGUMENT);
    pair_close(&p);
}

static void host_memory_is_reported(void) {
    pair p;
    float host[64] = {0};
    pair_open(&p, CU_EMU_EAGER);
    pair_ready(&p);
    p.n->all_reduce(host, host, 64, CU_NCCL_F32, CU_NCCL_SUM, p.comm[0], p.stream[0]);
    settle(p.n, p.comm[0]);
    cudaStreamQuery(p.stream[0]);
    CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ADDRESS), 1);
    for (int i = 0; i < 2; i++) p.n->comm_abort(p.comm[i]);
    cu_emu_reset();
}

SP_TEST_MAIN("nccl", SP_TEST(the_table_is_the_toolkit_s), SP_TEST(versions_are_read_by_both_rules),
             SP_TEST(an_old_library_is_refused_by_name),
             SP_TEST(a_library_without_the_functions_is_refused),
             SP_TEST(the_real_library_opens_by_the_same_code),
             SP_TEST(an_operation_in_progress_is_refused_and_comes_late),
             SP_TEST(a_send_ends_when_it_was_received), SP_TEST(crossing_messages_need_a_group),
             SP_TEST(a_mismatch_names_both), SP_TEST(a_replayed_graph_sums_each_time),
             SP_TEST(a_clean_end_is_a_meeting), SP_TEST(wrong_calls_are_refused),
             SP_TEST(host_memory_is_reported))
