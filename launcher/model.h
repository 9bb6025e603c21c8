/* launcher/model.h - the model that the options name, proven and planned, before anything is loaded.
 *
 * Reads config.json and computes the plan; opens no tensor and no device. The agent proves it
 * first, so that a wrong model is one line and exit 10; the head does it again for its own use.
 * Thread: main. */
#pragma once

#include "launcher/config.h"
#include "launcher/fingerprint.h"
#include "runtime/format/model_desc.h"
#include "runtime/model/arch.h"
#include "runtime/model/plan.h"

typedef struct sp_model {
    char *dir; /* owned */
    sp_model_desc desc;
    const sp_arch *arch;
    sp_plan plan;
    int32_t max_model_len;
    int32_t pp_layers[SP_PLAN_PP_MAX]; /* [pp], as planned */
    uint8_t fingerprint[SP_FINGERPRINT_BYTES];
    sp_plan_rank *ranks; /* owned [tp * pp]: the bytes of each rank */
} sp_model;

/** Errors: as sp_model_resolve(), sp_model_desc_load(), sp_arch_find(), sp_plan_make(); and
 * SP_E_INVALID naming an option that does not fit the model. */
SP_NODISCARD sp_status sp_model_prove(sp_model *out, const sp_config *config, sp_err *err);
void sp_model_fini(sp_model *m);
