/* Covers launcher/topology.c, topology_devices.c and inspect_topology.c: a made-up machine under a
 * root of its own, the real one, and the even split over ranks. */
#include "launcher/topology.h"
#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[64];
static sp_topology t;
static sp_err err;

static void put(const char *text, const char *fmt, ...) SP_PRINTF(2, 3);
static void put(const char *text, const char *fmt, ...) {
    char path[400];
    size_t at = (size_t)snprintf(path, sizeof path, "%s/", root);
    va_list args;
    va_start(args, fmt);
    vsnprintf(path + at, sizeof path - at, fmt, args);
    va_end(args);
    for (char *p = path + at; (p = strchr(p, '/')) != NULL; p++) {
        *p = 0;
        mkdir(path, 0700);
        *p = '/';
    }
    FILE *f = fopen(path, "w");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    fprintf(f, "%s\n", text);
    fclose(f);
}

static void open_machine(void) {
    snprintf(root, sizeof root, "/tmp/superpod-topology-XXXXXX");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(root));
    err = (sp_err){0};
}
static void close_machine(void) {
    char command[100];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    CU_ASSERT_EQUAL(system(command), 0);
}

/* Two packages of one NUMA node with 4 cores each; CPU i+8 is the second thread of CPU i's core.
 * Node 2 has memory alone. */
static void make_server(void) {
    open_machine();
    put("0-2", "sys/devices/system/node/online");
    put("0-3,8-11", "sys/devices/system/node/node0/cpulist");
    put("4-7,12-15", "sys/devices/system/node/node1/cpulist");
    put("", "sys/devices/system/node/node2/cpulist");
    for (int i = 0; i < 3; i++)
        put("Node 0 MemTotal:        1048576 kB\nNode 0 MemFree: 5 kB",
            "sys/devices/system/node/node%d/meminfo", i);
    put("MemTotal:       3145728 kB\nMemFree: 12 kB", "proc/meminfo");
    for (int i = 0; i < 16; i++) {
        char text[32];
        snprintf(text, sizeof text, "%d,%d", i % 8, i % 8 + 8);
        put(text, "sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", i);
        put(i % 8 < 4 ? "0" : "1", "sys/devices/system/cpu/cpu%d/topology/physical_package_id", i);
        put("1", "sys/devices/system/cpu/cpu%d/cache/index0/level", i);
        put("Data", "sys/devices/system/cpu/cpu%d/cache/index0/type", i);
        put("32K", "sys/devices/system/cpu/cpu%d/cache/index0/size", i);
        put(text, "sys/devices/system/cpu/cpu%d/cache/index0/shared_cpu_list", i);
        put("3", "sys/devices/system/cpu/cpu%d/cache/index1/level", i);
        put("Unified", "sys/devices/system/cpu/cpu%d/cache/index1/type", i);
        put("16384K", "sys/devices/system/cpu/cpu%d/cache/index1/size", i);
        put(i % 8 < 4 ? "0-3,8-11" : "4-7,12-15",
            "sys/devices/system/cpu/cpu%d/cache/index1/shared_cpu_list", i);
    }
}

static cpu_set_t cpus(int from, int to) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = from; i <= to; i++) CPU_SET(i, &set);
    return set;
}

static sp_status load(int from, int to, bool devices) {
    cpu_set_t allowed = cpus(from, to);
    return sp_topology_load_from(&t, root, &allowed, devices, &err);
}

static void a_server_is_read_by_node_package_and_core(void) {
    make_server();
    put("processor : 0\nmodel name\t: Made-up CPU 3000\nflags : x", "proc/cpuinfo");
    CU_ASSERT_EQUAL(load(0, 15, true), SP_OK);
    CU_ASSERT_EQUAL(t.n_packages, 2);
    CU_ASSERT_EQUAL(t.n_numa, 3);
    CU_ASSERT_EQUAL(t.n_cores, 8);
    CU_ASSERT_EQUAL(t.n_pus, 16);
    CU_ASSERT_EQUAL(t.memory_bytes, (uint64_t)3 << 30);
    CU_ASSERT_EQUAL(t.numa[1].memory_bytes, (uint64_t)1 << 30);
    CU_ASSERT_EQUAL(t.numa[1].n_cores, 4);
    CU_ASSERT_EQUAL(t.numa[2].n_cores, 0);
    CU_ASSERT_EQUAL(t.cores[5].pus[0], 5);
    CU_ASSERT_EQUAL(t.cores[5].pus[1], 13);
    CU_ASSERT_EQUAL(t.cores[5].package, 1);
    CU_ASSERT_STRING_EQUAL(t.cpu_name, "Made-up CPU 3000");
    CU_ASSERT_EQUAL_FATAL(t.n_caches, 2);
    CU_ASSERT_EQUAL(t.caches[0].count, 8);
    CU_ASSERT_EQUAL(t.caches[1].count, 2);
    CU_ASSERT_EQUAL(t.caches[1].bytes, (uint64_t)16 << 20);
    CU_ASSERT_EQUAL(t.n_nics, 0);
    CU_ASSERT_EQUAL(t.n_gpus, 0);
    close_machine();
}

static void only_allowed_cpus_count(void) {
    make_server();
    CU_ASSERT_EQUAL(load(6, 9, true), SP_OK); /* cores 6 and 7, and the second threads of 0 and 1 */
    CU_ASSERT_EQUAL(t.n_cores, 4);
    CU_ASSERT_EQUAL(t.n_pus, 4);
    CU_ASSERT_EQUAL(t.cores[0].pus[0], 8);
    CU_ASSERT_EQUAL(t.cores[0].n_pus, 1);
    CU_ASSERT_EQUAL(t.numa[0].n_cores, 2);
    CU_ASSERT_EQUAL(t.cores[3].pus[0], 7);
    CU_ASSERT_EQUAL(t.caches[0].count, 4);
    cpu_set_t none = cpus(1, 0);
    CU_ASSERT_EQUAL(sp_topology_load_from(&t, root, &none, false, &err), SP_E_INVALID);
    close_machine();
}

static void a_machine_without_sysfs_has_a_core_for_each_cpu(void) {
    open_machine();
    CU_ASSERT_EQUAL(load(0, 4, true), SP_OK);
    CU_ASSERT_EQUAL(t.n_cores, 5);
    CU_ASSERT_EQUAL(t.n_numa, 1);
    CU_ASSERT_EQUAL(t.n_packages, 1);
    CU_ASSERT_EQUAL(t.memory_bytes, 0);
    /* Garbage in the files is as good as none. */
    put("a-b", "sys/devices/system/node/online");
    put("3-1", "sys/devices/system/cpu/cpu0/topology/thread_siblings_list");
    put("0,", "sys/devices/system/cpu/cpu1/topology/thread_siblings_list");
    put("x", "sys/devices/system/cpu/cpu1/topology/physical_package_id");
    put("0::no slash\n:::\nmemory", "proc/self/cgroup");
    CU_ASSERT_EQUAL(load(0, 4, true), SP_OK);
    CU_ASSERT_EQUAL(t.n_numa, 1);
    CU_ASSERT(t.n_cores >= 4);
    close_machine();
}

static void too_many_nodes_are_refused(void) {
    open_machine();
    put("0-64", "sys/devices/system/node/online");
    CU_ASSERT_EQUAL(load(0, 1, false), SP_E_LIMIT);
    close_machine();
}

static void limits_come_from_the_tightest_control_group(void) {
    make_server();
    put("0::/a/b", "proc/self/cgroup");
    put("max 100000", "sys/fs/cgroup/a/b/cpu.max");
    put("250000 100000", "sys/fs/cgroup/a/cpu.max");
    put("1073741824", "sys/fs/cgroup/a/b/memory.max");
    put("max", "sys/fs/cgroup/a/memory.max");
    CU_ASSERT_EQUAL(load(0, 15, false), SP_OK);
    CU_ASSERT_DOUBLE_EQUAL(t.cpu_limit, 2.5, 1e-9);
    CU_ASSERT_EQUAL(t.memory_limit_bytes, (uint64_t)1 << 30);
    /* Version 1, whose "none" is a large number; our own path is not visible in a container. */
    put("3:cpu,cpuacct:/host/path\n2:memory:/host/path\n1:cpuset:/\n0::/", "proc/self/cgroup");
    put("150000", "sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    put("100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us");
    put("9223372036854771712", "sys/fs/cgroup/memory/memory.limit_in_bytes");
    CU_ASSERT_EQUAL(load(0, 15, false), SP_OK);
    CU_ASSERT_DOUBLE_EQUAL(t.cpu_limit, 1.5, 1e-9);
    CU_ASSERT_EQUAL(t.memory_limit_bytes, 0);
    close_machine();
}

static void network_devices_and_gpus_are_named(void) {
    make_server();
    put("unknown", "sys/class/net/lo/operstate");
    put("up", "sys/class/net/eth0/operstate");
    put("100000", "sys/class/net/eth0/speed");
    put("1", "sys/class/net/eth0/device/numa_node");
    put("down", "sys/class/net/eth1/operstate");
    put("4: ACTIVE", "sys/class/infiniband/mlx5_0/ports/1/state");
    put("400 Gb/sec (4X NDR)", "sys/class/infiniband/mlx5_0/ports/1/rate");
    put("0x030200", "sys/bus/pci/devices/0000:3b:00.0/class");
    put("0x10de", "sys/bus/pci/devices/0000:3b:00.0/vendor");
    put("0x2330", "sys/bus/pci/devices/0000:3b:00.0/device");
    put("0", "sys/bus/pci/devices/0000:3b:00.0/numa_node");
    put("0x030000", "sys/bus/pci/devices/0000:05:00.0/class");
    put("0x1a03", "sys/bus/pci/devices/0000:05:00.0/vendor");
    put("0x020000", "sys/bus/pci/devices/0000:06:00.0/class");
    CU_ASSERT_EQUAL(load(0, 15, true), SP_OK);
    CU_ASSERT_EQUAL_FATAL(t.n_nics, 3);
    CU_ASSERT_STRING_EQUAL(t.nics[0].name, "eth0");
    CU_ASSERT(t.nics[0].up && t.nics[0].mbit_s == 100000 && t.nics[0].numa == 1);
    CU_ASSERT(!t.nics[1].up && t.nics[1].mbit_s == -1 && t.nics[1].numa == -1);
    CU_ASSERT(t.nics[2].rdma && t.nics[2].up && t.nics[2].mbit_s == 400000);
    CU_ASSERT_EQUAL_FATAL(t.n_gpus, 2);
    CU_ASSERT_STRING_EQUAL(t.gpus[0].vendor, "ASPEED");
    CU_ASSERT_FALSE(t.gpus[0].computes);
    CU_ASSERT_STRING_EQUAL(t.gpus[1].vendor, "NVIDIA");
    CU_ASSERT(t.gpus[1].computes && t.gpus[1].device_id == 0x2330);
    close_machine();
}

/* ---- the split ---- */

static void make_nodes(const int *cores_of, int n) {
    t = (sp_topology){.n_numa = n};
    for (int i = 0; i < n; i++)
        for (int k = 0; k < cores_of[i]; k++) {
            int pu = t.n_cores;
            t.cores[t.n_cores++] = (sp_topology_core){
                .numa = i, .n_pus = 2, .pus = {(int16_t)pu, (int16_t)(pu + 512)}};
            t.numa[i].n_cores++;
        }
}

static int nodes_of(const cpu_set_t *set) {
    unsigned seen = 0;
    for (int i = 0; i < t.n_cores; i++)
        if (CPU_ISSET(t.cores[i].pus[0], set)) seen |= 1u << t.cores[i].numa;
    return __builtin_popcount(seen);
}

/* Whatever the machine and the ranks: disjoint, even, whole cores. */
static void check_split(int ranks, int *crossing) {
    cpu_set_t all, out;
    CPU_ZERO(&all);
    int least = INT32_MAX, most = 0, n;
    *crossing = 0;
    for (int r = 0; r < ranks; r++) {
        CU_ASSERT(sp_topology_bind(&t, r, ranks, &out, &n));
        CU_ASSERT_EQUAL(CPU_COUNT(&out), 2 * n);
        cpu_set_t both;
        CPU_AND(&both, &all, &out);
        CU_ASSERT_EQUAL(CPU_COUNT(&both), 0);
        CPU_OR(&all, &all, &out);
        least = n < least ? n : least;
        most = n > most ? n : most;
        *crossing += nodes_of(&out) > 1;
    }
    CU_ASSERT(least == t.n_cores / ranks && most - least <= 1);
}

static void cores_are_split_evenly_for_every_number_of_ranks(void) {
    static const int machines[][4] = {{8, 0, 0, 0}, {4, 4, 0, 0}, {5, 5, 0, 0},
                                      {6, 2, 0, 0}, {3, 0, 4, 1}, {16, 16, 16, 16}};
    for (size_t m = 0; m < SP_LEN(machines); m++) {
        make_nodes(machines[m], 4);
        int crossing;
        for (int ranks = 1; ranks <= t.n_cores; ranks++) check_split(ranks, &crossing);
    }
}

static void no_rank_crosses_nodes_where_that_costs_nothing(void) {
    int crossing;
    make_nodes((const int[]){4, 4}, 2);
    for (int ranks = 2; ranks <= 8; ranks++) {
        check_split(ranks, &crossing);
        CU_ASSERT_EQUAL(crossing, 0);
    }
    check_split(1, &crossing);
    CU_ASSERT_EQUAL(crossing, 1);
    make_nodes((const int[]){5, 5}, 2);
    check_split(4, &crossing);
    CU_ASSERT_EQUAL(crossing, 0);
    /* 6 and 2 cores for 2 ranks: staying inside would leave one rank 2 cores instead of 4. */
    make_nodes((const int[]){6, 2}, 2);
    check_split(2, &crossing);
    CU_ASSERT_EQUAL(crossing, 1);
}

static void more_ranks_than_cores_share(void) {
    cpu_set_t out;
    int n = 0;
    make_nodes((const int[]){2, 1}, 2);
    CU_ASSERT_FALSE(sp_topology_bind(&t, 3, 4, &out, &n));
    CU_ASSERT_EQUAL(CPU_COUNT(&out), 6);
    CU_ASSERT_EQUAL(n, 1);
    CU_ASSERT_FALSE(sp_topology_bind(&t, 2, 2, &out, &n));
    CU_ASSERT_FALSE(sp_topology_bind(&t, -1, 2, &out, &n));
    CU_ASSERT_FALSE(sp_topology_bind(&t, 0, 0, &out, &n));
}

/* ---- this machine ---- */

static void this_machine_is_read_quickly_and_fits_our_affinity(void) {
    cpu_set_t allowed;
    CU_ASSERT_EQUAL(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    int64_t start = sp_now_ns();
    CU_ASSERT_EQUAL(sp_topology_load(&t, false, &err), SP_OK);
    int64_t took = sp_now_ns() - start;
    if (getenv("SUPERPOD_TEST_TIMES")) fprintf(stderr, "load %.3f ms\n", (double)took / 1e6);
    CU_ASSERT_EQUAL(t.n_pus, CPU_COUNT(&allowed));
    CU_ASSERT(t.n_cores >= 1 && t.n_cores <= t.n_pus);
    int sum = 0;
    for (int i = 0; i < t.n_numa; i++) sum += t.numa[i].n_pus;
    CU_ASSERT_EQUAL(sum, t.n_pus);
    /* Far above what it takes, so that a busy machine does not fail it. */
    CU_ASSERT(took < 100 * SP_NS_PER_MS);
}

static void inspect_prints_a_table_and_one_json_object(void) {
    open_machine();
    char path[100], *text;
    snprintf(path, sizeof path, "%s/out", root);
    char name[] = "topology", json[] = "--json", odd[] = "--yaml";
    int codes[2];
    for (int i = 0; i < 2; i++) {
        fflush(stdout);
        int kept = dup(STDOUT_FILENO);
        CU_ASSERT_PTR_NOT_NULL_FATAL(freopen(path, "w", stdout));
        codes[i] = sp_inspect_topology(i ? 2 : 1, (char *[]){name, json, NULL});
        fflush(stdout);
        dup2(kept, STDOUT_FILENO);
        close(kept);
        size_t n;
        text = sp_test_read(path, &n);
        if (i == 0) {
            CU_ASSERT_PTR_NOT_NULL(strstr(text, "hardware threads"));
            CU_ASSERT_PTR_NOT_NULL(strstr(text, "gpu "));
        } else {
            sp_json *doc = NULL;
            int64_t cores = 0;
            CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, (sp_slice){text, n}, 0, &err), SP_OK);
            CU_ASSERT_EQUAL(sp_json_get_int(sp_json_root(doc), "cores", 1, 1024, &cores, &err),
                            SP_OK);
            CU_ASSERT(cores >= 1);
            CU_ASSERT(sp_json_count(sp_json_find(sp_json_root(doc), "numa")) >= 1);
            CU_ASSERT_PTR_NOT_NULL(sp_json_find(sp_json_root(doc), "gpus"));
            sp_json_free(doc);
        }
        free(text);
        CU_ASSERT_EQUAL(codes[i], SP_EXIT_OK);
    }
    CU_ASSERT_EQUAL(sp_inspect_topology(2, (char *[]){name, odd, NULL}), SP_EXIT_USAGE);
    close_machine();
}

SP_TEST_MAIN("launcher/topology", SP_TEST(a_server_is_read_by_node_package_and_core),
             SP_TEST(only_allowed_cpus_count),
             SP_TEST(a_machine_without_sysfs_has_a_core_for_each_cpu),
             SP_TEST(too_many_nodes_are_refused),
             SP_TEST(limits_come_from_the_tightest_control_group),
             SP_TEST(network_devices_and_gpus_are_named),
             SP_TEST(cores_are_split_evenly_for_every_number_of_ranks),
             SP_TEST(no_rank_crosses_nodes_where_that_costs_nothing),
             SP_TEST(more_ranks_than_cores_share),
             SP_TEST(this_machine_is_read_quickly_and_fits_our_affinity),
             SP_TEST(inspect_prints_a_table_and_one_json_object))
