// The emulated device's streams, events, graphs and memory, in every pace.
#include "tests/kernels/cuda/emu_env.h"

#include <pthread.h>

enum {
    N = 256
};
static const char *const pace_names[] = {"eager", "lazy", "random"};

static float *take(int n) {
    float *p = NULL;
    EMU_OK(cudaMalloc((void **)&p, (size_t)n * sizeof *p));
    return p;
}

static float *pinned(int n) {
    float *p = NULL;
    EMU_OK(cudaMallocHost((void **)&p, (size_t)n * sizeof *p));
    return p;
}

static void paced(int pace, uint64_t seed) {
    cu_emu_config c;
    emu_fresh(CU_EMU_FORWARD, (cu_emu_pace)pace);
    cu_emu_get_config(&c);
    c.seed = seed;
    cu_emu_configure(&c);
}

// y = 2 * 3 * x over two streams; `ordered`: with the event between them.
static float two_streams(bool ordered) {
    cudaStream_t a = NULL, b = NULL;
    cudaEvent_t e = NULL;
    float *x = take(N), *y = take(N), *host = pinned(N);
    EMU_OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    EMU_OK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    EMU_OK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    for (int i = 0; i < N; i++) host[i] = 1;
    EMU_OK(cudaMemcpyAsync(x, host, N * 4, cudaMemcpyHostToDevice, a));
    EMU_OK(emu_scale(a, y, x, 2, N));
    EMU_OK(cudaEventRecord(e, a));
    if (ordered) EMU_OK(cudaStreamWaitEvent(b, e, 0));
    EMU_OK(emu_scale(b, x, y, 3, N));
    EMU_OK(cudaStreamSynchronize(b));
    EMU_OK(cudaDeviceSynchronize());
    EMU_OK(cudaMemcpy(host, x, N * 4, cudaMemcpyDeviceToHost));
    float got = host[N - 1];
    EMU_OK(cudaStreamDestroy(a));
    EMU_OK(cudaStreamDestroy(b));
    EMU_OK(cudaEventDestroy(e));
    return got;
}

static void an_event_orders_two_streams_and_its_absence_shows(void) {
    EMU_NEEDS_FIBRES();
    for (int pace = 0; pace < 3; pace++)
        for (uint64_t seed = 1; seed < 8; seed++) {
            paced(pace, seed);
            CU_ASSERT_EQUAL(two_streams(true), 6.0f);
        }
    paced(CU_EMU_EAGER, 1);
    CU_ASSERT_EQUAL(two_streams(false), 6.0f); // eager hides it: that is why the others exist
    paced(CU_EMU_LAZY, 1);
    CU_ASSERT(!(two_streams(false) == 6.0f));
    int wrong = 0;
    for (uint64_t seed = 1; seed < 12; seed++) {
        paced(CU_EMU_MIXED, seed);
        wrong += !(two_streams(false) == 6.0f);
    }
    CU_ASSERT(wrong > 0);
}

static float staging(bool wait) {
    cudaStream_t s = NULL;
    float *x = take(N), *host = pinned(N), *back = pinned(N);
    EMU_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    for (int i = 0; i < N; i++) host[i] = 1;
    EMU_OK(cudaMemcpyAsync(x, host, N * 4, cudaMemcpyHostToDevice, s));
    if (wait) EMU_OK(cudaStreamSynchronize(s));
    for (int i = 0; i < N; i++) host[i] = 2; // the next step's data
    EMU_OK(cudaMemcpyAsync(back, x, N * 4, cudaMemcpyDeviceToHost, s));
    EMU_OK(cudaStreamSynchronize(s));
    float got = back[0];
    EMU_OK(cudaStreamDestroy(s));
    return got;
}

static void a_staging_buffer_that_is_filled_too_early_shows(void) {
    EMU_NEEDS_FIBRES();
    for (int pace = 0; pace < 3; pace++) {
        paced(pace, 1);
        CU_ASSERT_EQUAL(staging(true), 1.0f);
    }
    paced(CU_EMU_LAZY, 1);
    CU_ASSERT_EQUAL(staging(false), 2.0f);
}

static void a_result_that_nobody_waited_for_is_not_there(void) {
    EMU_NEEDS_FIBRES();
    paced(CU_EMU_LAZY, 1);
    cudaStream_t s = NULL;
    float *x = take(N), *y = take(N), *host = pinned(N);
    EMU_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    for (int i = 0; i < N; i++) host[i] = 5;
    EMU_OK(cudaMemcpyAsync(x, host, N * 4, cudaMemcpyHostToDevice, s));
    EMU_OK(emu_scale(s, y, x, 2, N));
    EMU_OK(cudaMemcpyAsync(host, y, N * 4, cudaMemcpyDeviceToHost, s));
    CU_ASSERT_EQUAL(host[0], 5.0f);
    int asked = 0;
    cudaError_t err;
    while ((err = cudaStreamQuery(s)) == cudaErrorNotReady && asked < 100) asked++;
    EMU_OK(err);
    CU_ASSERT(asked > 2);
    CU_ASSERT_EQUAL(host[0], 10.0f);
    CU_ASSERT_EQUAL(cudaGetLastError(), cudaErrorNotReady); // asking leaves it behind, as CUDA does
}

// A fork and a join inside a capture; `joined`: the side stream waits for the first kernel.
static cudaError_t capture(cudaStream_t s, cudaStream_t side, float *x, float *y, bool ordered,
                           bool join, cudaGraph_t *graph) {
    cudaEvent_t fork_event = NULL, mid = NULL, end = NULL;
    EMU_OK(cudaEventCreate(&fork_event));
    EMU_OK(cudaEventCreate(&mid));
    EMU_OK(cudaEventCreate(&end));
    EMU_OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    EMU_OK(cudaEventRecord(fork_event, s));
    EMU_OK(cudaStreamWaitEvent(side, fork_event, 0));
    EMU_OK(emu_scale(s, y, x, 2, N));
    EMU_OK(cudaEventRecord(mid, s));
    if (ordered) EMU_OK(cudaStreamWaitEvent(side, mid, 0));
    EMU_OK(emu_scale(side, x, y, 3, N));
    EMU_OK(cudaEventRecord(end, side));
    if (join) EMU_OK(cudaStreamWaitEvent(s, end, 0));
    return cudaStreamEndCapture(s, graph);
}

static float replay(bool ordered) {
    cudaStream_t s = NULL, side = NULL;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    float *x = take(N), *y = take(N), host[N];
    for (int i = 0; i < N; i++) host[i] = 1;
    EMU_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    EMU_OK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    EMU_OK(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    EMU_OK(capture(s, side, x, y, ordered, true, &graph));
    size_t nodes = 0;
    EMU_OK(cudaGraphGetNodes(graph, NULL, &nodes));
    CU_ASSERT_EQUAL(nodes, 2);
    EMU_OK(cudaGraphInstantiate(&exec, graph, 0));
    EMU_OK(cudaGraphDestroy(graph));
    for (int i = 0; i < 2; i++) EMU_OK(cudaGraphLaunch(exec, s));
    EMU_OK(cudaStreamSynchronize(s));
    EMU_OK(cudaGraphExecDestroy(exec));
    EMU_OK(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost));
    return host[7];
}

static void a_graph_replays_what_was_captured_in_any_order_it_allows(void) {
    EMU_NEEDS_FIBRES();
    for (int pace = 0; pace < 3; pace++)
        for (uint64_t seed = 1; seed < 5; seed++) {
            paced(pace, seed);
            CU_ASSERT_EQUAL(replay(true), 36.0f);
            CU_ASSERT_EQUAL(cu_emu_launches(), 4);
        }
    paced(CU_EMU_LAZY, 1);
    CU_ASSERT(!(replay(false) == 36.0f));
}

static void captures_refuse_what_cuda_refuses(void) {
    EMU_NEEDS_FIBRES();
    paced(CU_EMU_EAGER, 1);
    cudaStream_t s = NULL, side = NULL;
    cudaGraph_t graph = NULL;
    cudaEvent_t e = NULL;
    enum cudaStreamCaptureStatus status;
    void *p = NULL;
    float *x = take(N), *y = take(N), host[N];
    EMU_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    EMU_OK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    EMU_OK(cudaEventCreate(&e));
    CU_ASSERT_EQUAL(capture(s, side, x, y, true, false, &graph), cudaErrorStreamCaptureUnjoined);
    EMU_OK(cudaStreamSynchronize(side));

    EMU_OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CU_ASSERT_EQUAL(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
    EMU_OK(cudaStreamIsCapturing(s, &status));
    CU_ASSERT_EQUAL(status, cudaStreamCaptureStatusInvalidated);
    CU_ASSERT_EQUAL(cudaStreamEndCapture(s, &graph), cudaErrorStreamCaptureInvalidated);

    EMU_OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CU_ASSERT_EQUAL(cudaMalloc(&p, 64), cudaErrorStreamCaptureUnsupported);
    CU_ASSERT_EQUAL(cudaStreamEndCapture(s, &graph), cudaErrorStreamCaptureInvalidated);

    EMU_OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CU_ASSERT_EQUAL(cudaMemcpyAsync(x, host, 64, cudaMemcpyHostToDevice, s),
                    cudaErrorStreamCaptureUnsupported);
    CU_ASSERT_EQUAL(cudaStreamEndCapture(s, &graph), cudaErrorStreamCaptureInvalidated);

    EMU_OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    EMU_OK(cudaEventRecord(e, s));
    CU_ASSERT_EQUAL(cudaEventQuery(e), cudaErrorCapturedEvent);
    CU_ASSERT_EQUAL(cudaStreamEndCapture(s, &graph), cudaErrorStreamCaptureInvalidated);
    CU_ASSERT_EQUAL(cudaStreamEndCapture(s, &graph), cudaErrorIllegalState);
    CU_ASSERT_EQUAL(cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal),
                    cudaErrorStreamCaptureUnsupported);
}

static void the_default_stream_waits_for_blocking_ones_only(void) {
    EMU_NEEDS_FIBRES();
    for (int blocking = 0; blocking < 2; blocking++) {
        paced(CU_EMU_LAZY, 1);
        cudaStream_t s = NULL;
        float *x = take(N), *y = take(N), host[N];
        EMU_OK(cudaMemset(x, 0, N * 4));
        EMU_OK(cudaMemset(y, 0, N * 4));
        for (int i = 0; i < N; i++) host[i] = 1;
        EMU_OK(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
        EMU_OK(cudaStreamCreateWithFlags(&s, blocking ? cudaStreamDefault : cudaStreamNonBlocking));
        EMU_OK(emu_scale(s, y, x, 2, N));
        EMU_OK(cudaMemcpy(host, y, sizeof host, cudaMemcpyDeviceToHost));
        CU_ASSERT_EQUAL(host[0], blocking ? 2.0f : 0.0f);
    }
}

static void copies_refuse_wrong_sides_and_wrong_sizes(void) {
    paced(CU_EMU_EAGER, 1);
    float *x = take(N), host[2 * N] = {0};
    CU_ASSERT_EQUAL(cudaMemcpy(x, host, 2 * N * 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cudaMemcpy(x, host, 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cudaMemcpy(host, host, 4, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cudaMemset(host, 0, 4), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cudaMemcpy2DAsync(x, 8, host, 4, 8, 2, cudaMemcpyHostToDevice, NULL),
                    cudaErrorInvalidPitchValue);
    for (int i = 0; i < 2 * N; i++) host[i] = (float)i;
    EMU_OK(cudaMemcpy2DAsync(x, 16, host, 32, 16, 8, cudaMemcpyHostToDevice, NULL));
    EMU_OK(cudaMemcpy(host, x, 8 * 16, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(host[4], 8.0f);
    CU_ASSERT_EQUAL(host[31], 59.0f);
    CU_ASSERT_EQUAL(cudaFree(host), cudaErrorInvalidValue);
    EMU_OK(cudaFree(x));
    CU_ASSERT_EQUAL(cudaFree(x), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_MISUSE), 1);
}

static void freed_and_foreign_memory_is_an_illegal_address(void) {
    EMU_NEEDS_FIBRES();
    paced(CU_EMU_LAZY, 1);
    cudaStream_t s = NULL;
    float *x = NULL, *y = take(N);
    EMU_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    EMU_OK(cudaMallocAsync((void **)&x, N * 4, s));
    EMU_OK(cudaFreeAsync(x, s));
    EMU_OK(emu_scale(s, y, x, 2, N)); // queued behind its own free
    CU_ASSERT_EQUAL(cudaStreamSynchronize(s), cudaErrorIllegalAddress);
    CU_ASSERT_PTR_NOT_NULL(strstr(cu_emu_last_report(), "in a freed allocation of 1024 bytes"));
    CU_ASSERT_EQUAL(cudaStreamQuery(s), cudaErrorIllegalAddress);
    cu_emu_reset();
}

static void memory_is_counted_and_can_run_out(void) {
    cu_emu_config c, before;
    paced(CU_EMU_EAGER, 1);
    cu_emu_get_config(&before);
    c = before;
    c.memory_bytes = 1 << 20;
    cu_emu_configure(&c);
    size_t left = 0, total = 0;
    void *p = NULL, *q = NULL;
    EMU_OK(cudaMalloc(&p, 600 << 10));
    EMU_OK(cudaMemGetInfo(&left, &total));
    CU_ASSERT_EQUAL(total, (size_t)1 << 20);
    CU_ASSERT_EQUAL(left, (size_t)424 << 10);
    CU_ASSERT_EQUAL(cudaMalloc(&q, 500 << 10), cudaErrorMemoryAllocation);
    CU_ASSERT_EQUAL(cudaGetLastError(), cudaErrorMemoryAllocation);
    EMU_OK(cudaFree(p));
    EMU_OK(cudaMalloc(&q, 500 << 10));
    cu_emu_fail_malloc(2);
    EMU_OK(cudaMalloc(&p, 16));
    CU_ASSERT_EQUAL(cudaMalloc(&p, 16), cudaErrorMemoryAllocation);
    EMU_OK(cudaMalloc(&p, 16));
    cu_emu_configure(&before);
    cu_emu_reset();
}

static void device_memory_begins_as_nan(void) {
    paced(CU_EMU_EAGER, 1);
    float *x = take(3), host[3];
    EMU_OK(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost));
    CU_ASSERT(isnan(host[0]) && isnan(host[2]));
}

static void the_nth_launch_can_be_made_to_fail_for_good(void) {
    EMU_NEEDS_FIBRES();
    paced(CU_EMU_LAZY, 1);
    float *x = take(N), *y = take(N);
    EMU_OK(cudaMemset(x, 0, N * 4));
    cu_emu_fail_launch(2, cudaErrorECCUncorrectable);
    EMU_OK(emu_scale(NULL, y, x, 2, N));
    EMU_OK(emu_scale(NULL, x, y, 2, N));
    EMU_OK(emu_scale(NULL, y, x, 2, N)); // asynchronous: the call knows nothing yet
    CU_ASSERT_EQUAL(cudaDeviceSynchronize(), cudaErrorECCUncorrectable);
    CU_ASSERT_EQUAL(cu_emu_launches(), 2);
    CU_ASSERT_EQUAL(emu_scale(NULL, y, x, 2, N), cudaErrorECCUncorrectable);
    CU_ASSERT_EQUAL(cudaGetLastError(), cudaErrorECCUncorrectable);
    CU_ASSERT_STRING_EQUAL(cudaGetErrorName(cudaErrorECCUncorrectable),
                           "cudaErrorECCUncorrectable");
    EMU_OK(cudaDeviceReset());
    x = take(N);
}

typedef struct slow {
    int asked, wanted;
} slow;
static int slow_run(void *arg) {
    slow *s = arg;
    return ++s->asked < s->wanted ? CU_EMU_AGAIN : 0;
}
static void on_host(void *arg) {
    ++*(int *)arg;
}

static void closures_may_need_more_than_one_question(void) {
    EMU_NEEDS_FIBRES();
    for (int pace = 0; pace < 3; pace++) {
        paced(pace, 1);
        cudaStream_t s = NULL;
        slow work = {0, 5};
        int called = 0;
        EMU_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
        EMU_OK(cu_emu_enqueue(s, "slow", slow_run, &work, NULL));
        EMU_OK(cudaLaunchHostFunc(s, on_host, &called));
        EMU_OK(cudaStreamSynchronize(s));
        CU_ASSERT_EQUAL(work.asked, 5);
        CU_ASSERT_EQUAL(called, 1);
    }
}

static void events_tell_the_time_and_whether_it_has_come(void) {
    EMU_NEEDS_FIBRES();
    paced(CU_EMU_LAZY, 1);
    cudaStream_t s = NULL;
    cudaEvent_t a = NULL, b = NULL;
    float ms = -1, *x = take(N);
    EMU_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    EMU_OK(cudaEventCreate(&a));
    EMU_OK(cudaEventCreate(&b));
    CU_ASSERT_EQUAL(cudaEventQuery(a), cudaSuccess); // never recorded
    CU_ASSERT_EQUAL(cudaEventElapsedTime(&ms, a, b), cudaErrorInvalidResourceHandle);
    EMU_OK(cudaEventRecord(a, s));
    EMU_OK(emu_scale(s, x, x, 1, N));
    EMU_OK(cudaEventRecord(b, s));
    CU_ASSERT_EQUAL(cudaEventElapsedTime(&ms, a, b), cudaErrorNotReady);
    EMU_OK(cudaEventSynchronize(a));
    CU_ASSERT_EQUAL(cu_emu_launches(), 0); // only as far as the event
    EMU_OK(cudaEventSynchronize(b));
    EMU_OK(cudaEventElapsedTime(&ms, a, b));
    CU_ASSERT(ms >= 0);
    EMU_OK(cudaEventDestroy(a));
    CU_ASSERT_EQUAL(cudaEventRecord(a, s), cudaErrorInvalidResourceHandle);
}

static void pointers_say_whose_memory_they_are(void) {
    paced(CU_EMU_EAGER, 1);
    struct cudaPointerAttributes a;
    float *x = take(N), *h = pinned(N), plain[4];
    EMU_OK(cudaPointerGetAttributes(&a, x + 3));
    CU_ASSERT_EQUAL(a.type, cudaMemoryTypeDevice);
    EMU_OK(cudaPointerGetAttributes(&a, h + 3));
    CU_ASSERT_EQUAL(a.type, cudaMemoryTypeHost);
    EMU_OK(cudaPointerGetAttributes(&a, plain));
    CU_ASSERT_EQUAL(a.type, cudaMemoryTypeUnregistered);
    EMU_OK(cudaHostRegister(plain, sizeof plain, 0));
    CU_ASSERT_EQUAL(cudaHostRegister(plain, 4, 0), cudaErrorHostMemoryAlreadyRegistered);
    EMU_OK(cudaPointerGetAttributes(&a, plain));
    CU_ASSERT_EQUAL(a.type, cudaMemoryTypeHost);
    EMU_OK(cudaHostUnregister(plain));
    CU_ASSERT_EQUAL(cudaHostUnregister(plain), cudaErrorHostMemoryNotRegistered);
}

static void the_host_may_not_touch_device_memory(void) {
    EMU_NEEDS_FIBRES();
    cu_emu_config c;
    paced(CU_EMU_EAGER, 1);
    cu_emu_get_config(&c);
    c.protect = 1;
    cu_emu_configure(&c);
    float *x = take(N), *y = take(N), host[N];
    EMU_OK(cudaMemset(x, 0, N * 4));
    EMU_OK(emu_scale(NULL, y, x, 2, N)); // a kernel may, and copies
    EMU_OK(cudaMemcpy(host, y, sizeof host, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(host[0], 0.0f);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(3);
        volatile float seen = x[0];
        (void)seen;
        _exit(0);
    }
    int status = 0;
    CU_ASSERT_EQUAL_FATAL(waitpid(child, &status, 0), child);
    CU_ASSERT(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
    emu_fresh(CU_EMU_FORWARD, CU_EMU_EAGER);
}

static void bad_launches_and_handles_are_refused(void) {
    EMU_NEEDS_FIBRES();
    paced(CU_EMU_EAGER, 1);
    float *x = take(N);
    cudaStream_t gone = NULL;
    EMU_OK(cudaStreamCreate(&gone));
    EMU_OK(cudaStreamDestroy(gone));
    CU_ASSERT_EQUAL(emu_scale(gone, x, x, 1, N), cudaErrorInvalidResourceHandle);
    CU_ASSERT_EQUAL(emu_scale(NULL, x, x, 1, 0), cudaErrorInvalidConfiguration);
    CU_ASSERT_EQUAL(cudaSetDevice(99), cudaErrorInvalidDevice);
    cudaLaunchConfig_t config = {{1, 1, 1}, {1, 1, 1}, 0, NULL, NULL, 0};
    CU_ASSERT_EQUAL(cudaLaunchKernelExC(&config, &config, NULL), cudaErrorInvalidDeviceFunction);
    struct cudaDeviceProp p;
    EMU_OK(cudaGetDeviceProperties(&p, 0));
    CU_ASSERT_EQUAL(p.warpSize, 32);
    CU_ASSERT_EQUAL(cu_emu_reports(CU_EMU_ANY), 0);
}

// One rank a thread, each with its own stream and, for two of them, another device.
static void *rank_thread(void *arg) {
    const int rank = *(int *)arg;
    cudaStream_t s = NULL;
    float *x = NULL, *y = NULL, host[N];
    int bad = cudaSetDevice(rank / 2) != cudaSuccess;
    bad |= cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) != cudaSuccess;
    bad |= cudaMalloc((void **)&x, sizeof host) || cudaMalloc((void **)&y, sizeof host);
    for (int round = 0; round < 40 && !bad; round++) {
        for (int i = 0; i < N; i++) host[i] = (float)(rank + round + i);
        bad |= cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, s) != cudaSuccess;
        bad |= emu_scale(s, y, x, 2, N) != cudaSuccess || emu_scale(s, x, y, 3, N) != cudaSuccess;
        bad |= cudaMemcpyAsync(host, x, sizeof host, cudaMemcpyDeviceToHost, s) != cudaSuccess;
        bad |= cudaStreamSynchronize(s) != cudaSuccess;
        for (int i = 0; i < N; i++) bad |= host[i] != (float)(6 * (rank + round + i));
    }
    bad |= cudaStreamDestroy(s) != cudaSuccess;
    return bad ? arg : NULL;
}

static void host_threads_drive_their_own_streams_and_devices(void) {
    EMU_NEEDS_FIBRES();
    for (int pace = 0; pace < 3; pace++) {
        pthread_t threads[4];
        int ranks[4] = {0, 1, 2, 3};
        cu_emu_config c, before;
        paced(pace, 3);
        cu_emu_get_config(&before);
        c = before;
        c.devices = 2;
        cu_emu_configure(&c);
        for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, rank_thread, &ranks[i]);
        for (int i = 0; i < 4; i++) {
            void *bad = NULL;
            pthread_join(threads[i], &bad);
            CU_ASSERT_PTR_NULL(bad);
        }
        CU_ASSERT_EQUAL(cu_emu_launches(), 4 * 40 * 2);
        cu_emu_configure(&before);
        cu_emu_reset();
    }
}

static void every_pace_is_named(void) {
    // The words that the environment takes; a wrong one ends a program instead of meaning "eager".
    for (int i = 0; i < 3; i++) CU_ASSERT(strlen(pace_names[i]) > 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        setenv("SUPERPOD_EMU_STREAMS", "sometimes", 1);
        execl("/proc/self/exe", "again", "pointers_say", (char *)NULL);
        _exit(0);
    }
    int status = 0;
    CU_ASSERT_EQUAL_FATAL(waitpid(child, &status, 0), child);
    CU_ASSERT(WIFEXITED(status) && WEXITSTATUS(status) == 2);
}

SP_TEST_MAIN("emu_runtime", SP_TEST(an_event_orders_two_streams_and_its_absence_shows),
             SP_TEST(a_staging_buffer_that_is_filled_too_early_shows),
             SP_TEST(a_result_that_nobody_waited_for_is_not_there),
             SP_TEST(a_graph_replays_what_was_captured_in_any_order_it_allows),
             SP_TEST(captures_refuse_what_cuda_refuses),
             SP_TEST(the_default_stream_waits_for_blocking_ones_only),
             SP_TEST(copies_refuse_wrong_sides_and_wrong_sizes),
             SP_TEST(freed_and_foreign_memory_is_an_illegal_address),
             SP_TEST(memory_is_counted_and_can_run_out), SP_TEST(device_memory_begins_as_nan),
             SP_TEST(the_nth_launch_can_be_made_to_fail_for_good),
             SP_TEST(closures_may_need_more_than_one_question),
             SP_TEST(events_tell_the_time_and_whether_it_has_come),
             SP_TEST(pointers_say_whose_memory_they_are),
             SP_TEST(the_host_may_not_touch_device_memory),
             SP_TEST(bad_launches_and_handles_are_refused),
             SP_TEST(host_threads_drive_their_own_streams_and_devices),
             SP_TEST(every_pace_is_named))
