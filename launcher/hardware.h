/* launcher/hardware.h - the devices that a plan may be made for, by name: memory, bandwidth, peak.
 *
 *   SPEC  = [NODES "x"] [DEVICES "x"] KIND      "2x8xH100-80G", "4xA100-40G", "CPU-64G"
 *   KIND  = a name of the table, or "CPU-" memory ["@" bandwidth in GB/s]
 *
 * Source: the makers' data sheets (dense bf16, no sparsity); a CPU's figures are assumptions of a
 * two-channel desktop and are said to be.
 * Thread: plain data. */
#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

typedef struct sp_device_kind {
    char name[32];
    uint64_t memory_bytes;
    double bandwidth_gbs; /* of its memory, 10^9 bytes a second */
    double peak_tflops;   /* bf16 multiply-adds count as two */
    double link_gbs;      /* to its neighbours on the node */
    double link_us;       /* of one small all-reduce on the node */
    bool is_cpu;
} sp_device_kind;

typedef struct sp_hardware {
    int32_t n_nodes, n_devices; /* devices of one node */
    double net_gbs, net_us;     /* between nodes */
    sp_device_kind kind;
} sp_hardware;

/** Errors: SP_E_INVALID: the part of `spec` that is not understood and what is. */
SP_NODISCARD sp_status sp_hardware_parse(sp_hardware *out, const char *spec, sp_err *err);
