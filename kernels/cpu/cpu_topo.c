#include "kernels/cpu/cpu_topo.h"

#include "runtime/base/mem.h"

#include <hwloc.h>
#include <sched.h>

struct sp_cpu_topo {
    hwloc_topology_t topology;
    hwloc_bitmap_t allowed; /* read before any thread is bound: binding the caller narrows it */
};

int sp_cpu_allowed(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    const int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

sp_cpu_topo *sp_cpu_topo_open(void) {
    sp_cpu_topo *t = sp_alloc(sizeof *t);
    if (hwloc_topology_init(&t->topology) != 0) {
        sp_free(t);
        return NULL;
    }
    t->allowed = hwloc_bitmap_alloc();
    if (!t->allowed || hwloc_topology_load(t->topology) != 0 ||
        hwloc_get_cpubind(t->topology, t->allowed, HWLOC_CPUBIND_THREAD) != 0) {
        sp_cpu_topo_close(t);
        return NULL;
    }
    return t;
}

void sp_cpu_topo_close(sp_cpu_topo *t) {
    if (!t) return;
    hwloc_bitmap_free(t->allowed);
    hwloc_topology_destroy(t->topology);
    sp_free(t);
}

/* The i-th allowed hardware thread, first threads of all cores before second ones. */
static int pick(const sp_cpu_topo *t, int i) {
    const int n_cores = hwloc_get_nbobjs_by_type(t->topology, HWLOC_OBJ_CORE);
    for (unsigned nth = 0; nth < 8; nth++)
        for (int c = 0; c < n_cores; c++) {
            hwloc_obj_t core = hwloc_get_obj_by_type(t->topology, HWLOC_OBJ_CORE, (unsigned)c);
            int pu = hwloc_bitmap_first(core->cpuset);
            for (unsigned k = 0; k < nth && pu >= 0; k++) pu = hwloc_bitmap_next(core->cpuset, pu);
            if (pu >= 0 && hwloc_bitmap_isset(t->allowed, (unsigned)pu) && i-- == 0) return pu;
        }
    return -1;
}

bool sp_cpu_topo_bind(const sp_cpu_topo *t, int i) {
    const int n = hwloc_bitmap_weight(t->allowed);
    const int pu = n > 0 ? pick(t, i % n) : -1;
    hwloc_bitmap_t set = pu >= 0 ? hwloc_bitmap_alloc() : NULL;
    if (!set) return false;
    hwloc_bitmap_only(set, (unsigned)pu);
    const bool done = hwloc_set_cpubind(t->topology, set, HWLOC_CPUBIND_THREAD) == 0;
    hwloc_bitmap_free(set);
    return done;
}
