/* Covers launcher/place.c: what each launcher's variables mean, flags over them, nonsense. */
#include "launcher/place.h"
#include "tests/harness.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define VARS 24
typedef struct vars {
    const char *at[VARS]; /* "NAME=value" */
} vars;

static const char *get(void *ctx, const char *name) {
    const vars *v = ctx;
    size_t n = strlen(name);
    for (int i = 0; i < VARS && v->at[i]; i++)
        if (strncmp(v->at[i], name, n) == 0 && v->at[i][n] == '=') return v->at[i] + n + 1;
    return NULL;
}

static const sp_place_flags none = {.rank = -1};
static sp_err err;
static sp_place p;

static sp_status find(const sp_place_flags *flags, vars v) {
    err = (sp_err){0};
    p = (sp_place){0};
    return sp_place_find_in(&p, flags, get, &v, &err);
}
#define FIND(flags, ...) find(flags, (vars){{__VA_ARGS__}})

static void expect(int line, sp_status st, const char *source, int rank, int size,
                   sp_meeting meeting, const char *head, bool outward) {
    bool ok = st == SP_OK && strcmp(p.source, source) == 0 && p.rank == rank && p.size == size &&
              p.meeting == meeting && strcmp(p.head, head) == 0 && p.outward == outward &&
              p.is_head == (rank == 0);
    if (!ok)
        fprintf(stderr, "    line %d: %s; %s rank %d of %d, meeting %d, head '%s', outward %d\n",
                line, err.text, p.source ? p.source : "-", p.rank, p.size, (int)p.meeting, p.head,
                p.outward);
    CU_ASSERT(ok);
}
#define EXPECT(st, source, rank, size, meeting, head, outward) \
    expect(__LINE__, st, source, rank, size, meeting, head, outward)

static void expect_refused(int line, sp_status st, const char *word) {
    bool ok = st == SP_E_INVALID && strstr(err.text, word) && p.source == NULL;
    if (!ok) fprintf(stderr, "    line %d: status %d, '%s'\n", line, (int)st, err.text);
    CU_ASSERT(ok);
}
#define REFUSED(st, word) expect_refused(__LINE__, st, word)

static void nothing_said_is_alone(void) {
    EXPECT(FIND(&none, NULL), "alone", 0, 1, SP_MEET_NOBODY, "", false);
    CU_ASSERT_EQUAL(p.local_rank, 0);
    CU_ASSERT_EQUAL(p.local_size, 1);
    /* Names that anybody may have set, and empty ones, say nothing. */
    EXPECT(FIND(&none, "RANK=3", "MODEL_NAME=m", "LWS_GROUP_SIZE=4", "HEAD_SVC=h", "PMIX_RANK=1",
                "WORLD_SIZE="),
           "alone", 0, 1, SP_MEET_NOBODY, "", false);
    EXPECT(FIND(&none, "PIPELINE_PARALLEL_SIZE=2", "TENSOR_PARALLEL_SIZE=2"), "alone", 0, 1,
           SP_MEET_NOBODY, "", false);
    EXPECT(FIND(&none, "MODEL_NAME=m", "INFERENCE_SERVICE_NAME=m"), "alone", 0, 1, SP_MEET_NOBODY,
           "", false);
}

static void lws_gives_numbers_and_the_leaders_address(void) {
    EXPECT(FIND(&none, "LWS_LEADER_ADDRESS=a-0.a.ns", "LWS_GROUP_SIZE=3", "LWS_WORKER_INDEX=0"),
           "LWS", 0, 3, SP_MEET_GIVEN, "", true);
    CU_ASSERT_EQUAL(p.head_port, 7000);
    EXPECT(FIND(&none, "LWS_LEADER_ADDRESS=a-0.a.ns", "LWS_GROUP_SIZE=3", "LWS_WORKER_INDEX=2"),
           "LWS", 2, 3, SP_MEET_GIVEN, "a-0.a.ns:7000", true);
    sp_place_flags port = {.rank = -1, .head_port = 7123};
    EXPECT(FIND(&port, "LWS_LEADER_ADDRESS=a-0.a", "LWS_GROUP_SIZE=3", "LWS_WORKER_INDEX=2"), "LWS",
           2, 3, SP_MEET_GIVEN, "a-0.a:7123", true);
    EXPECT(FIND(&none, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=1", "LWS_WORKER_INDEX=0"), "LWS", 0,
           1, SP_MEET_NOBODY, "", true);
    /* LWS inside a KServe pod, or with mpirun in the container: LWS is asked first. */
    EXPECT(FIND(&none, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=1",
                "HEAD_SVC=x", "POD_NAMESPACE=n", "RAY_NODE_COUNT=9"),
           "LWS", 1, 2, SP_MEET_GIVEN, "a:7000", true);
    REFUSED(FIND(&none, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=2"),
            "LWS_WORKER_INDEX is 2");
    REFUSED(FIND(&none, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=two", "LWS_WORKER_INDEX=0"),
            "LWS_GROUP_SIZE is 'two'");
    REFUSED(FIND(&none, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=-1"),
            "LWS_WORKER_INDEX is '-1'");
    REFUSED(FIND(&none, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=2"), "LWS_WORKER_INDEX is not set");
    REFUSED(FIND(&none, "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=1"), "LWS_LEADER_ADDRESS");
    REFUSED(FIND(&none, "LWS_LEADER_ADDRESS=a b", "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=1"),
            "LWS_LEADER_ADDRESS is 'a b'");
    REFUSED(FIND(&none, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=0", "LWS_WORKER_INDEX=0"),
            "LWS_GROUP_SIZE is '0'");
    REFUSED(FIND(&none, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=99999999999999999999",
                 "LWS_WORKER_INDEX=0"),
            "LWS_GROUP_SIZE");
}

static void every_version_of_kserve_is_understood(void) {
    const char *const dns = "m-head-1.ns.svc.cluster.local:7000";
    /* v0.15.0 */
    EXPECT(FIND(&none, "PIPELINE_PARALLEL_SIZE=2", "TENSOR_PARALLEL_SIZE=4", "MODEL_NAME=m",
                "MODEL_DIR=/mnt/models"),
           "KServe", 0, 2, SP_MEET_GIVEN, "", true);
    CU_ASSERT_EQUAL(p.head_port, 7000);
    EXPECT(FIND(&none, "PIPELINE_PARALLEL_SIZE=2", "ISVC_NAME=m", "HEAD_SVC=m-head-1",
                "POD_NAMESPACE=ns"),
           "KServe", -1, 2, SP_MEET_GIVEN, dns, true);
    CU_ASSERT_FALSE(p.is_head);
    /* v0.15.1: the node count is not the number of stages */
    EXPECT(FIND(&none, "PIPELINE_PARALLEL_SIZE=2", "TENSOR_PARALLEL_SIZE=4", "MODEL_NAME=m",
                "RAY_NODE_COUNT=4", "REQUEST_GPU_COUNT=2"),
           "KServe", 0, 4, SP_MEET_GIVEN, "", true);
    EXPECT(FIND(&none, "ISVC_NAME=m", "HEAD_SVC=m-head-1", "RAY_NODE_COUNT=4",
                "REQUEST_GPU_COUNT=2", "POD_NAMESPACE=ns"),
           "KServe", -1, 4, SP_MEET_GIVEN, dns, true);
    /* v0.18 */
    EXPECT(FIND(&none, "INFERENCE_SERVICE_NAME=m", "RAY_NODE_COUNT=3"), "KServe", 0, 3,
           SP_MEET_GIVEN, "", true);
    EXPECT(FIND(&none, "HEAD_SVC=m-head-1", "WORKER_SVC=m-workers-1", "POD_NAMESPACE=ns",
                "PIPELINE_PARALLEL_SIZE=2", "TENSOR_PARALLEL_SIZE=1", "RAY_NODE_COUNT=2"),
           "KServe", -1, 2, SP_MEET_GIVEN, dns, true);
    /* without the downward API, and with nothing but the service */
    EXPECT(FIND(&none, "ISVC_NAME=m", "HEAD_SVC=m-head-1"), "KServe", -1, 0, SP_MEET_GIVEN,
           "m-head-1:7000", true);
    sp_place_flags six = {.rank = -1, .nnodes = 6};
    EXPECT(FIND(&six, "ISVC_NAME=m", "HEAD_SVC=h", "RAY_NODE_COUNT=4"), "KServe", -1, 6,
           SP_MEET_GIVEN, "h:7000", true);
    sp_place_flags worker = {.rank = -1, .role = "worker"}, head = {.rank = -1, .role = "head"};
    EXPECT(FIND(&worker, "HEAD_SVC=m-head-1", "POD_NAMESPACE=ns"), "KServe", -1, 0, SP_MEET_GIVEN,
           dns, true);
    REFUSED(FIND(&head, "HEAD_SVC=m-head-1", "POD_NAMESPACE=ns"), "--role is head");
    REFUSED(FIND(&worker, "MODEL_NAME=m", "RAY_NODE_COUNT=2"), "--role is worker");
    REFUSED(FIND(&none, "MODEL_NAME=m", "RAY_NODE_COUNT=many"), "RAY_NODE_COUNT is 'many'");
    REFUSED(FIND(&none, "HEAD_SVC=h", "POD_NAMESPACE=n", "RAY_NODE_COUNT=1"), "pod of 1 agent");
    EXPECT(FIND(&none, "MODEL_NAME=m", "RAY_NODE_COUNT=1"), "KServe", 0, 1, SP_MEET_NOBODY, "",
           true);
}

static void mpirun_meets_by_pmix(void) {
    EXPECT(FIND(&none, "OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=8",
                "OMPI_COMM_WORLD_LOCAL_RANK=1", "OMPI_COMM_WORLD_LOCAL_SIZE=4", "PMIX_RANK=3",
                "PMIX_NAMESPACE=123", "PMIX_SERVER_URI2=x"),
           "Open MPI", 3, 8, SP_MEET_PMIX, "", false);
    CU_ASSERT_EQUAL(p.local_rank, 1);
    CU_ASSERT_EQUAL(p.local_size, 4);
    CU_ASSERT_EQUAL(p.head_port, 0);
    /* In a Slurm allocation clients come from elsewhere; the step's numbers are orted's. */
    EXPECT(FIND(&none, "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=8", "PMIX_RANK=0",
                "PMIX_NAMESPACE=1", "SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_PROCID=1",
                "SLURM_NTASKS=2", "SLURM_JOB_END_TIME=1900000000"),
           "Open MPI", 0, 8, SP_MEET_PMIX, "", true);
    CU_ASSERT_EQUAL(p.end_time_s, 1900000000);
    CU_ASSERT_EQUAL(p.local_rank, -1);
    CU_ASSERT_EQUAL(p.local_size, 0);
    EXPECT(FIND(&none, "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=1"), "Open MPI", 0, 1,
           SP_MEET_NOBODY, "", false);
    /* A service's variables of the user's own do not make every process a head. */
    EXPECT(FIND(&none, "OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "PMIX_RANK=1",
                "PMIX_SERVER_URI21=x", "MODEL_NAME=m", "PIPELINE_PARALLEL_SIZE=2"),
           "Open MPI", 1, 2, SP_MEET_PMIX, "", false);
    REFUSED(FIND(&none, "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2"), "no PMIx server");
    REFUSED(FIND(&none, "OMPI_COMM_WORLD_RANK=2", "OMPI_COMM_WORLD_SIZE=2"), "is 2");
    REFUSED(FIND(&none, "OMPI_COMM_WORLD_RANK=1"), "OMPI_COMM_WORLD_SIZE is not set");
    REFUSED(FIND(&none, "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2",
                 "OMPI_COMM_WORLD_LOCAL_RANK=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2", "PMIX_RANK=0",
                 "PMIX_NAMESPACE=1"),
            "local agent 2 of 2");
    REFUSED(FIND(&none, "OMPI_COMM_WORLD_RANK=0x1", "OMPI_COMM_WORLD_SIZE=2"), "'0x1'");
}

static void slurm_steps_meet_by_pmix_or_by_a_file(void) {
    EXPECT(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_PROCID=3", "SLURM_NTASKS=4",
                "SLURM_LOCALID=1", "SLURM_GTIDS=2,3"),
           "Slurm", 3, 4, SP_MEET_FILE, "", true);
    CU_ASSERT_EQUAL(p.local_rank, 1);
    CU_ASSERT_EQUAL(p.local_size, 2);
    /* The step is smaller than the job. */
    EXPECT(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=2", "SLURM_PROCID=0", "SLURM_NTASKS=9",
                "SLURM_STEP_NUM_TASKS=2"),
           "Slurm", 0, 2, SP_MEET_FILE, "", true);
    EXPECT(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_PROCID=3", "SLURM_NTASKS=4",
                "SLURM_LOCALID=1", "SLURM_GTIDS=2,3", "PMIX_RANK=3",
                "PMIX_NAMESPACE=slurm.pmix.7.0"),
           "PMIx", 3, 4, SP_MEET_PMIX, "", true);
    CU_ASSERT_EQUAL(p.local_size, 2);
    /* prun in an allocation: SLURM_NTASKS is not its number. */
    EXPECT(FIND(&none, "SLURM_JOB_ID=7", "SLURM_NTASKS=8", "PMIX_RANK=1", "PMIX_NAMESPACE=prte.1"),
           "PMIx", 1, 0, SP_MEET_PMIX, "", true);
    /* sbatch's shell, in three spellings of "no step". */
    EXPECT(FIND(&none, "SLURM_JOB_ID=7", "SLURM_PROCID=0", "SLURM_NTASKS=4"), "alone", 0, 1,
           SP_MEET_NOBODY, "", false);
    EXPECT(FIND(&none, "SLURM_JOB_ID=7", "SLURM_PROCID=0", "SLURM_NTASKS=4",
                "SLURM_STEP_ID=4294967291", "SLURM_JOB_END_TIME=4294967295"),
           "alone", 0, 1, SP_MEET_NOBODY, "", false);
    CU_ASSERT_EQUAL(p.end_time_s, 0);
    EXPECT(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=0"), "alone", 0, 1, SP_MEET_NOBODY, "",
           false);
    EXPECT(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_PROCID=0", "SLURM_NTASKS=1"),
           "Slurm", 0, 1, SP_MEET_NOBODY, "", true);
    REFUSED(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_PROCID=0"),
            "SLURM_STEP_NUM_TASKS is not set");
    REFUSED(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_PROCID=4", "SLURM_NTASKS=4"),
            "SLURM_PROCID is 4");
    REFUSED(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_PROCID=0", "SLURM_NTASKS=4",
                 "SLURM_JOB_END_TIME=soon"),
            "SLURM_JOB_END_TIME is 'soon'");
    REFUSED(FIND(&none, "SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_PROCID=0", "SLURM_NTASKS=1",
                 "SLURM_GTIDS=0,1"),
            "local agent");
}

static void torchrun_variables_count_when_both_are_there(void) {
    EXPECT(FIND(&none, "RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=h0", "MASTER_PORT=29500",
                "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=1"),
           "torchrun", 1, 2, SP_MEET_GIVEN, "h0:29500", false);
    EXPECT(FIND(&none, "RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=h0", "MASTER_PORT=29500"), "torchrun",
           0, 2, SP_MEET_GIVEN, "", false);
    CU_ASSERT_EQUAL(p.head_port, 29500);
    EXPECT(FIND(&none, "RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=fd00::1", "MASTER_PORT=29500",
                "TORCHELASTIC_USE_AGENT_STORE=True"),
           "torchrun", 1, 2, SP_MEET_GIVEN, "[fd00::1]:7000", false);
    EXPECT(FIND(&none, "RANK=0", "WORLD_SIZE=1"), "torchrun", 0, 1, SP_MEET_NOBODY, "", false);
    REFUSED(FIND(&none, "RANK=1", "WORLD_SIZE=2"), "MASTER_ADDR");
    REFUSED(FIND(&none, "RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=h", "MASTER_PORT=99999"),
            "MASTER_PORT is '99999'");
}

static void flags_win_over_all(void) {
    sp_place_flags f = {.rank = 2, .nnodes = 4, .head = "h0"};
    EXPECT(FIND(&f, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=1",
                "SUPERPOD_RANK=1"),
           "flags", 2, 4, SP_MEET_GIVEN, "h0:7000", true);
    sp_place_flags worker = {.rank = -1, .role = "worker", .head = "[fd00::2]:7100"};
    EXPECT(FIND(&worker, "SLURM_JOB_ID=7", "SLURM_STEP_ID=1", "SLURM_PROCID=0", "SLURM_NTASKS=1"),
           "flags", -1, 0, SP_MEET_GIVEN, "[fd00::2]:7100", true);
    sp_place_flags head = {.rank = -1, .role = "head"};
    EXPECT(FIND(&head, NULL), "flags", 0, 0, SP_MEET_GIVEN, "", false);
    CU_ASSERT_EQUAL(p.head_port, 7000);
    sp_place_flags first = {.rank = 0, .nnodes = 2, .head = "10.0.0.1:7200"};
    EXPECT(FIND(&first, NULL), "flags", 0, 2, SP_MEET_GIVEN, "", false);
    CU_ASSERT_EQUAL(p.head_port, 7200);
    sp_place_flags one = {.rank = 0, .nnodes = 1}, just_one = {.rank = -1, .nnodes = 1};
    EXPECT(FIND(&one, NULL), "flags", 0, 1, SP_MEET_NOBODY, "", false);
    EXPECT(FIND(&just_one, NULL), "flags", 0, 1, SP_MEET_NOBODY, "", false);
    sp_place_flags lone_head = {.rank = -1, .nnodes = 1, .role = "head"};
    EXPECT(FIND(&lone_head, NULL), "flags", 0, 1, SP_MEET_GIVEN, "", false);
    sp_place_flags there = {.rank = -1, .head = "h0:7300"};
    EXPECT(FIND(&there, NULL), "flags", -1, 0, SP_MEET_GIVEN, "h0:7300", false);
}

static void variables_of_our_own_stand_for_flags(void) {
    EXPECT(FIND(&none, "SUPERPOD_RANK=1", "SUPERPOD_NNODES=2", "SUPERPOD_HEAD=h0:7100"), "flags", 1,
           2, SP_MEET_GIVEN, "h0:7100", false);
    sp_place_flags autos = {.rank = -1, .role = "auto"};
    EXPECT(FIND(&autos, "SUPERPOD_ROLE=worker", "SUPERPOD_HEAD=h0"), "flags", -1, 0, SP_MEET_GIVEN,
           "h0:7000", false);
    REFUSED(FIND(&none, "SUPERPOD_RANK=first"), "SUPERPOD_RANK is 'first'");
    REFUSED(FIND(&none, "SUPERPOD_ROLE=boss"), "'boss'");
}

static void flags_complete_and_check_what_a_launcher_says(void) {
    const vars mpi = {
        {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "PMIX_RANK=1", "PMIX_NAMESPACE=1"}};
    sp_place_flags head = {.rank = -1, .head = "h0:7300"};
    EXPECT(find(&head, mpi), "Open MPI", 1, 2, SP_MEET_GIVEN, "h0:7300", false);
    sp_place_flags two = {.rank = -1, .nnodes = 2}, three = {.rank = -1, .nnodes = 3};
    EXPECT(find(&two, mpi), "Open MPI", 1, 2, SP_MEET_PMIX, "", false);
    REFUSED(find(&three, mpi), "--nnodes is 3");
    sp_place_flags as_head = {.rank = -1, .role = "head"};
    REFUSED(find(&as_head, mpi), "agent 1");
    sp_place_flags worker = {.rank = -1, .role = "worker"};
    EXPECT(find(&worker, mpi), "Open MPI", 1, 2, SP_MEET_PMIX, "", false);
    REFUSED(FIND(&worker, "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=0"),
            "which starts the head");
    /* prun tells no size. */
    EXPECT(FIND(&two, "PMIX_RANK=1", "PMIX_NAMESPACE=x"), "PMIx", 1, 2, SP_MEET_PMIX, "", false);
    REFUSED(FIND(&two, "PMIX_RANK=2", "PMIX_NAMESPACE=x"), "agent 2");
}

static void senseless_flags_are_refused_by_name(void) {
    const sp_place_flags bad[] = {
        {.rank = -1, .role = "boss"},
        {.rank = -1, .role = "worker"},
        {.rank = 1, .nnodes = 2},
        {.rank = 2, .nnodes = 2, .head = "h"},
        {.rank = 1, .nnodes = 2, .head = "h", .role = "head"},
        {.rank = 0, .nnodes = 2, .role = "worker"},
        {.rank = -1, .nnodes = 4},
        {.rank = 1, .head = "h:port"},
        {.rank = 1, .head = "h:0"},
        {.rank = 1, .head = "h:70000"},
        {.rank = 1, .head = ":7000"},
        {.rank = 1, .head = "[fd00::1"},
        {.rank = 1, .head = "[fd00::1]x"},
        {.rank = 1, .head = "http://h:1"},
        {.rank = SP_AGENTS_MAX, .head = "h"},
        {.rank = -1, .nnodes = SP_AGENTS_MAX + 1},
        {.rank = -1, .head_port = 65536},
    };
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        CU_ASSERT_EQUAL(FIND(&bad[i], NULL), SP_E_INVALID);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "--"));
    }
    char host[800];
    memset(host, 'a', sizeof host);
    host[sizeof host - 1] = 0;
    sp_place_flags longest = {.rank = 1, .head = host};
    CU_ASSERT_EQUAL(FIND(&longest, NULL), SP_E_INVALID);
}

SP_TEST_MAIN("launcher/place", SP_TEST(nothing_said_is_alone),
             SP_TEST(lws_gives_numbers_and_the_leaders_address),
             SP_TEST(every_version_of_kserve_is_understood), SP_TEST(mpirun_meets_by_pmix),
             SP_TEST(slurm_steps_meet_by_pmix_or_by_a_file),
             SP_TEST(torchrun_variables_count_when_both_are_there), SP_TEST(flags_win_over_all),
             SP_TEST(variables_of_our_own_stand_for_flags),
             SP_TEST(flags_complete_and_check_what_a_launcher_says),
             SP_TEST(senseless_flags_are_refused_by_name))
