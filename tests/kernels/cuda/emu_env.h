/* tests/kernels/cuda/emu_env.h - what the tests of the emulated device share: memory for a case, and
 * a child process for each mistake, because a sanitizer ends the process that it finds one in. */
#pragma once

#include "kernels/cuda/emu/emu.h"
#include "tests/harness.h"
#include "tests/kernels/cuda/emu_kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const emu_case_names[EMU_N_CASES] = {
#define X(name) #name,
    EMU_CASES(X)
#undef X
};
static const char *const emu_order_names[] = {"forward", "backward", "random"};

/* The thread sanitizer knows nothing of fibres, and the emulator has a race checker of its own. */
#if defined(__SANITIZE_THREAD__)
#define EMU_UNDER_TSAN 1
#else
#define EMU_UNDER_TSAN 0
#endif
#define EMU_NEEDS_FIBRES() \
    if (EMU_UNDER_TSAN) SP_SKIP("fibres under the thread sanitizer")

#define EMU_OK(call) \
    do { \
        cudaError_t emu_err_ = (call); \
        if (emu_err_ != cudaSuccess) printf("%s: %s\n", #call, cudaGetErrorName(emu_err_)); \
        CU_ASSERT_EQUAL_FATAL(emu_err_, cudaSuccess); \
    } while (0)

static inline void emu_fresh(cu_emu_order order, cu_emu_pace pace) {
    cu_emu_config c;
    cu_emu_get_config(&c);
    c.order = order;
    c.pace = pace;
    c.protect = 0;
    c.quiet = 1;
    cu_emu_configure(&c);
    cu_emu_reset();
}

/* Caught by: a report's kind; or these. */
enum {
    EMU_NOTHING = 0,
    EMU_VALUES = 60,
    EMU_BROKE = 61,
    EMU_DIED = 62
};

/* Runs one case; `want`: the right version's output, or NULL to fill `got`. */
static inline int emu_once(emu_case which, int broken, const float *want, float *got) {
    float host[EMU_IN]; // on the stack: memory that no kernel may touch
    float *in = NULL, *out = NULL;
    for (int i = 0; i < EMU_IN; i++) host[i] = (float)(i + 1);
    if (cudaMalloc((void **)&in, sizeof host) || cudaMalloc((void **)&out, EMU_OUT * sizeof *out) ||
        cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice) ||
        cudaMemset(out, 0, EMU_OUT * sizeof *out))
        return EMU_BROKE;
    cudaError_t err = emu_run(which, broken, NULL, out, in, host);
    if (!err) err = cudaMemcpy(got, out, EMU_OUT * sizeof *out, cudaMemcpyDeviceToHost);
    for (int kind = CU_EMU_ANY + 1; kind < CU_EMU_KINDS; kind++)
        if (cu_emu_reports((cu_emu_kind)kind)) return err ? kind : EMU_BROKE;
    if (err) return EMU_BROKE;
    // A NaN is a wrong value: compared as "not equal", never as "greater".
    for (int i = 0; want && i < EMU_OUT; i++)
        if (!(got[i] == want[i])) return EMU_VALUES;
    return EMU_NOTHING;
}

/* What finds the mistake of this case: the right version's values are the measure. */
static inline int emu_caught_by(emu_case which, cu_emu_order order) {
    float want[EMU_OUT], got[EMU_OUT];
    emu_fresh(order, CU_EMU_EAGER);
    if (emu_once(which, 0, NULL, want) != EMU_NOTHING) return EMU_BROKE;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(EMU_BROKE);
        cu_emu_reset();
        _exit(emu_once(which, 1, want, got));
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return EMU_BROKE;
    if (!WIFEXITED(status)) return EMU_DIED;
    return WEXITSTATUS(status) <= EMU_BROKE ? WEXITSTATUS(status) : EMU_DIED;
}

static inline void emu_expect(emu_case which, cu_emu_order order, int by) {
    int got = emu_caught_by(which, order);
#if defined(__SANITIZE_ADDRESS__)
    if (got == EMU_DIED || got == 1 || got == 77) got = by; /* a sanitizer was faster */
#endif
    if (got != by)
        printf("'%s' in %s order: caught by %d, wanted %d\n", emu_case_names[which],
               emu_order_names[order], got, by);
    CU_ASSERT_EQUAL(got, by);
}
