/* launcher/topology_read.h - for topology*.c: small files of /sys and /proc under a root that tests
 * replace, and the devices that `inspect topology` shows beside the CPUs.
 *
 * Thread: any. */
#pragma once

#include "launcher/topology.h"
#include "runtime/base/str.h"

typedef struct sp_sys {
    const char *root; /* "" or a folder that holds sys/ and proc/ */
} sp_sys;

/** The first `n` - 1 bytes of a file, without the last newline; false: it cannot be read. */
bool sp_sys_text(const sp_sys *s, char *out, size_t n, const char *fmt, ...) SP_PRINTF(4, 5);
/** A number; `none` where there is none. */
int64_t sp_sys_number(const sp_sys *s, int64_t none, const char *fmt, ...) SP_PRINTF(3, 4);
/** "0-3,8": false where the file is not there or is something else; CPUs from 1024 are left out. */
bool sp_sys_cpus(const sp_sys *s, cpu_set_t *out, const char *fmt, ...) SP_PRINTF(3, 4);

/** Fills cpu_name, caches, nics and gpus. */
void sp_topology_read_devices(sp_topology *t, const sp_sys *s, const cpu_set_t *allowed);
/** Fills memory_limit_bytes and cpu_limit. */
void sp_topology_read_limits(sp_topology *t, const sp_sys *s);
