/* launcher/bench_step.h - `superpod bench step`: a rank's own decode speed.
 *
 * Runs the stage and the sampler in this process, without head, ring or HTTP: what a rank could do
 * if nothing else cost anything. What HTTP gives is measured against it.
 * Thread: main. */
#pragma once

#include "launcher/config.h"

int sp_bench_step(int argc, char **argv);

typedef struct sp_bench_step_figures {
    char device[128]; /* in its own words */
    int32_t batch;
    int64_t steps;
    double step_ms_p50, step_ms_min, tok_per_s, tok_per_s_p50;
} sp_bench_step_figures;

/** The same without words: loads, warms, times `steps` steps of `batch` sequences.
 * Errors: what the options, the model or the device say. */
SP_NODISCARD sp_status sp_bench_step_run(sp_bench_step_figures *out, const sp_config *config,
                                         sp_err *err);
