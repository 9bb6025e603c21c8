#include "launcher/topology.h"

#include "launcher/topology_read.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading ---- */

/* "Node 0 MemTotal:  24613644 kB", or "MemTotal: ..." of the whole machine. */
static uint64_t memory_total(const sp_sys *s, int node) {
    char text[512];
    bool got = node >= 0 ? sp_sys_text(s, text, sizeof text,
                                       "/sys/devices/system/node/node%d/meminfo", node)
                         : sp_sys_text(s, text, sizeof text, "/proc/meminfo");
    const char *at = got ? strstr(text, "MemTotal:") : NULL;
    return at ? strtoull(at + strlen("MemTotal:"), NULL, 10) * 1024 : 0;
}

static sp_status read_nodes(sp_topology *t, const sp_sys *s, cpu_set_t cpus[SP_TOPOLOGY_NUMA_MAX],
                            sp_err *err) {
    cpu_set_t online; /* node numbers have the grammar of CPU numbers */
    if (!sp_sys_cpus(s, &online, "/sys/devices/system/node/online")) CPU_ZERO(&online);
    for (int id = 0; id < CPU_SETSIZE; id++) {
        if (!CPU_ISSET(id, &online)) continue;
        if (t->n_numa == SP_TOPOLOGY_NUMA_MAX)
            return SP_FAIL(err, SP_E_LIMIT, "this machine has more than %d NUMA nodes",
                           SP_TOPOLOGY_NUMA_MAX);
        if (!sp_sys_cpus(s, &cpus[t->n_numa], "/sys/devices/system/node/node%d/cpulist", id))
            CPU_ZERO(&cpus[t->n_numa]);
        t->numa[t->n_numa++] = (sp_topology_numa){.id = id, .memory_bytes = memory_total(s, id)};
    }
    if (t->n_numa) return SP_OK;
    /* A kernel or a container without them: one node that has everything. */
    t->numa[t->n_numa++] = (sp_topology_numa){.memory_bytes = memory_total(s, -1)};
    memset(&cpus[0], 0xff, sizeof cpus[0]);
    return SP_OK;
}

static int node_of(const cpu_set_t *cpus, int n, int pu) {
    for (int i = 0; i < n; i++)
        if (CPU_ISSET(pu, &cpus[i])) return i;
    return 0;
}

/* The core that `pu` is the first allowed thread of. Without a topology each CPU is a core. */
static void read_core(sp_topology *t, const sp_sys *s, const cpu_set_t *allowed,
                      const cpu_set_t *cpus, cpu_set_t *seen, int pu) {
    cpu_set_t threads;
    static const char where[] = "/sys/devices/system/cpu/cpu%d/topology/%s";
    if (!sp_sys_cpus(s, &threads, where, pu, "thread_siblings_list")) CPU_ZERO(&threads);
    CPU_SET(pu, &threads);
    CPU_AND(&threads, &threads, allowed);
    sp_topology_core *c = &t->cores[t->n_cores++];
    int64_t package = sp_sys_number(s, 0, where, pu, "physical_package_id");
    *c = (sp_topology_core){.numa = node_of(cpus, t->n_numa, pu), .package = (int)package};
    for (int i = pu; i < CPU_SETSIZE && c->n_pus < SP_TOPOLOGY_SMT_MAX; i++) {
        if (!CPU_ISSET(i, &threads) || CPU_ISSET(i, seen)) continue;
        CPU_SET(i, seen);
        c->pus[c->n_pus++] = (int16_t)i;
    }
    t->numa[c->numa].n_cores++;
    t->numa[c->numa].n_pus += c->n_pus;
}

static int by_place(const void *a, const void *b) {
    const sp_topology_core *x = a, *y = b;
    if (x->numa != y->numa) return x->numa < y->numa ? -1 : 1;
    if (x->package != y->package) return x->package < y->package ? -1 : 1;
    return x->pus[0] - y->pus[0];
}

static int count_packages(const sp_topology *t) {
    int n = 0;
    for (int i = 0; i < t->n_cores; i++) {
        bool is_new = true;
        for (int j = 0; j < i && is_new; j++) is_new = t->cores[j].package != t->cores[i].package;
        n += is_new;
    }
    return n;
}

sp_status sp_topology_load_from(sp_topology *out, const char *root, const cpu_set_t *allowed,
                                bool devices, sp_err *err) {
    sp_sys s = {root};
    cpu_set_t seen, cpus[SP_TOPOLOGY_NUMA_MAX];
    CPU_ZERO(&seen);
    if (CPU_COUNT(allowed) == 0) return SP_FAIL(err, SP_E_INVALID, "no CPU is allowed");
    memset(out, 0, sizeof *out);
    SP_TRY(read_nodes(out, &s, cpus, err));
    for (int pu = 0; pu < CPU_SETSIZE; pu++)
        if (CPU_ISSET(pu, allowed) && !CPU_ISSET(pu, &seen))
            read_core(out, &s, allowed, cpus, &seen, pu);
    qsort(out->cores, (size_t)out->n_cores, sizeof out->cores[0], by_place);
    out->n_pus = CPU_COUNT(allowed);
    out->n_packages = count_packages(out);
    out->memory_bytes = memory_total(&s, -1);
    sp_topology_read_limits(out, &s);
    if (devices) sp_topology_read_devices(out, &s, allowed);
    return SP_OK;
}

sp_status sp_topology_load(sp_topology *out, bool devices, sp_err *err) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return errno == EINVAL
                   ? SP_FAIL(err, SP_E_LIMIT, "this machine has CPUs above number %d",
                             CPU_SETSIZE - 1)
                   : SP_FAIL(err, SP_E_IO, "asking which CPUs are allowed: %s", strerror(errno));
    return sp_topology_load_from(out, "", &allowed, devices, err);
}

/* ---- splitting ---- */

static void take_cores(const sp_topology *t, int from, int n, cpu_set_t *out, int *n_cores) {
    CPU_ZERO(out);
    for (int i = from; i < from + n; i++)
        for (int k = 0; k < t->cores[i].n_pus; k++) CPU_SET(t->cores[i].pus[k], out);
    *n_cores = n;
}

/* Ranks for each NUMA node so that each rank gets at least `each` cores of one node: the next rank
 * goes where it leaves the most cores a rank. False: they do not fit so. */
static bool ranks_by_node(const sp_topology *t, int ranks, int each,
                          int on_node[SP_TOPOLOGY_NUMA_MAX]) {
    memset(on_node, 0, sizeof(int) * SP_TOPOLOGY_NUMA_MAX);
    for (int r = 0; r < ranks; r++) {
        int best = -1;
        double best_share = 0;
        for (int i = 0; i < t->n_numa; i++) {
            double share = (double)t->numa[i].n_cores / (on_node[i] + 1);
            if (share < each || share <= best_share) continue;
            best = i;
            best_share = share;
        }
        if (best < 0) return false;
        on_node[best]++;
    }
    return true;
}

bool sp_topology_bind(const sp_topology *t, int local_rank, int local_ranks, cpu_set_t *out,
                      int *n_cores) {
    if (local_rank < 0 || local_rank >= local_ranks || local_ranks > t->n_cores) {
        take_cores(t, 0, t->n_cores, out, n_cores);
        *n_cores = 1;
        return false;
    }
    int on_node[SP_TOPOLOGY_NUMA_MAX];
    int each = t->n_cores / local_ranks, most = each + (t->n_cores % local_ranks != 0);
    if (!ranks_by_node(t, local_ranks, each, on_node)) {
        int64_t from = (int64_t)local_rank * t->n_cores / local_ranks;
        int64_t to = (int64_t)(local_rank + 1) * t->n_cores / local_ranks;
        take_cores(t, (int)from, (int)(to - from), out, n_cores);
        return true;
    }
    int first = 0, r = local_rank;
    for (int i = 0; i < t->n_numa; i++) {
        int cores = t->numa[i].n_cores, ranks = on_node[i];
        if (r < ranks) {
            int from = r * cores / ranks, n = (r + 1) * cores / ranks - from;
            take_cores(t, first + from, n < most ? n : most, out, n_cores);
            return true;
        }
        r -= ranks;
        first += cores;
    }
    return false; /* not reached: on_node adds up to local_ranks */
}
