/* kernels/cpu/cpu_topo.h - which cores this process may use, and binding a thread to one.
 * Thread: any. */
#pragma once

#include "runtime/base/status.h"

/** Hardware threads in this process's affinity mask, at least 1. */
int sp_cpu_allowed(void);

/** A map of cores for binding: thread i takes the i-th allowed core (a core's further hardware
 * threads come after all cores; wraps around). NULL when the machine cannot be read.
 * Owner: caller, sp_cpu_topo_close(). */
typedef struct sp_cpu_topo sp_cpu_topo;
sp_cpu_topo *sp_cpu_topo_open(void);
void sp_cpu_topo_close(sp_cpu_topo *topo);
/** Binds the calling thread; true when it took effect. */
bool sp_cpu_topo_bind(const sp_cpu_topo *topo, int i);
