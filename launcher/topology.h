/* launcher/topology.h - what this node has for us: cores and memory by NUMA node, caches, network
 * devices, GPUs; and an even split of the cores over the ranks of the node.
 *
 * Everything is read from /sys and /proc, only for the CPUs that this process may run on. That was
 * measured against hwloc: 11 ms for its first load, most of it for plugins, against well below 1 ms;
 * an agent reads it at each start, and the table then shows exactly what the split has seen.
 *
 * Limits: CPUs 0 to 1023 (a cpu_set_t), 64 NUMA nodes with CPUs or memory, 8 CPUs a core, 64 network
 * devices, 64 GPUs; what is beyond is not shown, except CPUs: those are an error.
 * Source: Documentation/ABI/{stable,testing}/sysfs-devices-system-cpu, -node, sysfs-class-net,
 * sysfs-bus-pci; Documentation/admin-guide/cgroup-v2.rst of Linux.
 * Thread: any; plain data. */
#pragma once

#include "runtime/base/status.h"

#include <sched.h>
#include <stdint.h>

#define SP_TOPOLOGY_CORES_MAX 1024
#define SP_TOPOLOGY_NUMA_MAX 64
#define SP_TOPOLOGY_SMT_MAX 8
#define SP_TOPOLOGY_CACHES_MAX 16
#define SP_TOPOLOGY_DEVICES_MAX 64

typedef struct sp_topology_core {
    int numa;    /* index into numa[] */
    int package; /* as the kernel numbers them */
    int n_pus;
    int16_t pus[SP_TOPOLOGY_SMT_MAX]; /* hardware threads that we may use, ascending */
} sp_topology_core;

typedef struct sp_topology_numa {
    int id;                /* as the kernel numbers them */
    uint64_t memory_bytes; /* of the node, whoever uses it */
    int n_cores, n_pus;    /* that we may use */
} sp_topology_numa;

typedef struct sp_topology_cache {
    int level;
    char kind[16]; /* "Data", "Instruction", "Unified" */
    uint64_t bytes;
    int count; /* how many of them our CPUs have */
} sp_topology_cache;

typedef struct sp_topology_nic {
    char name[32];
    bool up, rdma;
    int64_t mbit_s; /* -1: not told */
    int numa;       /* as the kernel numbers them; -1: not told */
} sp_topology_nic;

typedef struct sp_topology_gpu {
    char address[24]; /* "0000:3b:00.0" */
    char vendor[24];  /* "NVIDIA", or its number */
    unsigned vendor_id, device_id;
    bool computes; /* 3D or accelerator class; false: a display adapter */
    int numa;
} sp_topology_gpu;

typedef struct sp_topology {
    int n_packages, n_numa, n_cores, n_pus;
    uint64_t memory_bytes;       /* of the machine */
    uint64_t memory_limit_bytes; /* of our control groups; 0: none */
    double cpu_limit;            /* CPUs' worth of time that our control groups give; 0: no limit */
    sp_topology_numa numa[SP_TOPOLOGY_NUMA_MAX];
    sp_topology_core cores[SP_TOPOLOGY_CORES_MAX]; /* by NUMA node, package, first CPU */
    /* only with devices */
    char cpu_name[96];
    int n_caches, n_nics, n_gpus;
    sp_topology_cache caches[SP_TOPOLOGY_CACHES_MAX];
    sp_topology_nic nics[SP_TOPOLOGY_DEVICES_MAX];
    sp_topology_gpu gpus[SP_TOPOLOGY_DEVICES_MAX];
} sp_topology;

/** Reads the node; caches and devices only when asked for: the split needs none.
 * Errors: SP_E_LIMIT a CPU or a NUMA node beyond the limits; SP_E_IO. */
SP_NODISCARD sp_status sp_topology_load(sp_topology *out, bool devices, sp_err *err);

/** The same from the files under `root` ("" is the machine itself), for a process that may use the
 * CPUs of `allowed`. Errors: the same; SP_E_INVALID `allowed` is empty. */
SP_NODISCARD sp_status sp_topology_load_from(sp_topology *out, const char *root,
                                             const cpu_set_t *allowed, bool devices, sp_err *err);

/** The cores of rank `local_rank` of the `local_ranks` on this node: as many for each (they differ
 * by one at most), none in two sets, all hardware threads of a core together, and none across NUMA
 * nodes where that costs no rank a core. With more ranks than cores all share all: false, and one
 * thread a rank is what fits. Every rank works it out alone, from the same table.
 * A rank outside 0..local_ranks-1 shares as well. */
bool sp_topology_bind(const sp_topology *t, int local_rank, int local_ranks, cpu_set_t *out,
                      int *n_cores);

/** `superpod inspect topology [--json]`: exit code. */
int sp_inspect_topology(int argc, char **argv);
