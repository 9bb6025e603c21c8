/* launcher/model.h - the model that the options name, proven and planned, before anything is loaded.
 *
 * Reads config.json, chooses the device and computes the plan; opens no tensor and no device. The agent proves it
 * first, so that a wrong model is one line and exit 10; the head does it again for its own use.
 * Thread: main. */
#pragma once

#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/fingerprint.h"
#include "launcher/pools.h"
#include "runtime/format/model_desc.h"
#include "runtime/model/arch.h"
#include "runtime/model/plan.h"

/** How the groups of a pool hold the model. */
typedef struct sp_model_pool {
    sp_plan plan;
    int32_t pp_layers[SP_PLAN_PP_MAX]; /* [pp], as planned */
} sp_model_pool;

typedef struct sp_model {
    char *dir; /* owned */
    sp_model_desc desc;
    const sp_arch *arch;
    sp_pools pools;
    sp_device device;
    sp_model_pool *pool; /* owned [pools.n] */
    int32_t max_model_len;
    uint8_t fingerprint[SP_FINGERPRINT_BYTES];
    sp_plan_rank *ranks; /* owned [all of the pod]: the bytes of each rank */
} sp_model;

/** Errors: as sp_model_resolve(), sp_model_desc_load(), sp_arch_find(), sp_plan_make(); and
 * SP_E_INVALID naming an option that does not fit the model; as sp_device_choose(),
 * sp_device_check(). */
SP_NODISCARD sp_status sp_model_prove(sp_model *out, const sp_config *config, sp_err *err);
void sp_model_fini(sp_model *m);

/** The device that the pod computes with: sp_device_choose(), and where "auto" found a GPU that
 * cannot do what the other options want, the CPU. Errors: as sp_device_choose(), sp_device_check(). */
SP_NODISCARD sp_status sp_model_device(sp_device *out, const sp_config *config,
                                       const sp_pools *pools, sp_err *err);
