#include "launcher/topology_read.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- small files ---- */

static bool read_path(const char *path, char *out, size_t n) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t k = read(fd, out, n - 1);
    close(fd);
    if (k < 0) return false;
    out[k] = 0;
    if (k > 0 && out[k - 1] == '\n') out[k - 1] = 0;
    return true;
}

static bool read_under(const sp_sys *s, char *out, size_t n, const char *fmt, va_list args) {
    char path[PATH_MAX];
    size_t at = strlen(s->root);
    if (at >= sizeof path) return false;
    memcpy(path, s->root, at);
    int k = vsnprintf(path + at, sizeof path - at, fmt, args);
    return k > 0 && (size_t)k < sizeof path - at && read_path(path, out, n);
}

bool sp_sys_text(const sp_sys *s, char *out, size_t n, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    bool got = read_under(s, out, n, fmt, args);
    va_end(args);
    return got;
}

int64_t sp_sys_number(const sp_sys *s, int64_t none, const char *fmt, ...) {
    char text[64], *end;
    va_list args;
    va_start(args, fmt);
    bool got = read_under(s, text, sizeof text, fmt, args);
    va_end(args);
    if (!got) return none;
    int64_t v = strtoll(text, &end, 0); /* PCI identities are written 0x10de */
    return end == text || *end ? none : v;
}

static bool parse_cpus(const char *text, cpu_set_t *out) {
    CPU_ZERO(out);
    while (*text) {
        char *end;
        if (*text < '0' || *text > '9') return false;
        unsigned long from = strtoul(text, &end, 10), to = from;
        if (*end == '-') {
            text = end + 1;
            if (*text < '0' || *text > '9') return false;
            to = strtoul(text, &end, 10);
        }
        if (to < from || (*end && *end != ',')) return false;
        for (unsigned long i = from; i <= to && i < CPU_SETSIZE; i++) CPU_SET(i, out);
        text = *end == ',' ? end + 1 : end;
    }
    return true;
}

bool sp_sys_cpus(const sp_sys *s, cpu_set_t *out, const char *fmt, ...) {
    char text[8192];
    va_list args;
    va_start(args, fmt);
    bool got = read_under(s, text, sizeof text, fmt, args);
    va_end(args);
    return got && parse_cpus(text, out);
}

/* ---- control groups ---- */

/* The smallest value of `file` from our group up to the root; a group that we cannot see (its path
 * is the host's) counts as its nearest visible parent. */
static double least_up(const sp_sys *s, const char *mount, const char *group,
                       double (*value)(const sp_sys *s, const char *dir)) {
    char dir[PATH_MAX];
    double least = 0;
    int n = snprintf(dir, sizeof dir, "/sys/fs/cgroup%s%s", mount, group);
    if (n < 0 || (size_t)n >= sizeof dir) return 0;
    size_t top = strlen("/sys/fs/cgroup") + strlen(mount);
    for (;;) {
        double v = value(s, dir);
        if (v > 0 && (least == 0 || v < least)) least = v;
        if (strlen(dir) <= top) return least;
        char *slash = strrchr(dir, '/');
        if ((size_t)(slash - dir) < top) return least;
        *slash = 0;
    }
}

static double cpu_max_v2(const sp_sys *s, const char *dir) {
    char text[64];
    double quota, period;
    if (!sp_sys_text(s, text, sizeof text, "%s/cpu.max", dir)) return 0;
    return sscanf(text, "%lf %lf", &quota, &period) == 2 && period > 0 ? quota / period : 0;
}

static double cpu_max_v1(const sp_sys *s, const char *dir) {
    int64_t quota = sp_sys_number(s, -1, "%s/cpu.cfs_quota_us", dir);
    int64_t period = sp_sys_number(s, -1, "%s/cpu.cfs_period_us", dir);
    return quota > 0 && period > 0 ? (double)quota / (double)period : 0;
}

static double memory_max_v2(const sp_sys *s, const char *dir) {
    return (double)sp_sys_number(s, 0, "%s/memory.max", dir);
}

/* "No limit" is the largest multiple of a page there. */
static double memory_max_v1(const sp_sys *s, const char *dir) {
    int64_t v = sp_sys_number(s, 0, "%s/memory.limit_in_bytes", dir);
    return v < INT64_C(1) << 60 ? (double)v : 0;
}

static void lower(double *limit, double v) {
    if (v > 0 && (*limit == 0 || v < *limit)) *limit = v;
}

static bool has_word(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *p = list; (p = strstr(p, word)) != NULL; p += n)
        if ((p == list || p[-1] == ',') && (p[n] == 0 || p[n] == ',')) return true;
    return false;
}

void sp_topology_read_limits(sp_topology *t, const sp_sys *s) {
    char text[8192], *save;
    double cpus = 0, bytes = 0;
    if (!sp_sys_text(s, text, sizeof text, "/proc/self/cgroup")) return;
    /* "4:memory:/path" of version 1, "0::/path" of version 2; both may be there. */
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        list++;
        if (strcmp(group, "/") == 0) group++;
        if (!*list) {
            lower(&cpus, least_up(s, "", group, cpu_max_v2));
            lower(&bytes, least_up(s, "", group, memory_max_v2));
        }
        if (has_word(list, "cpu")) lower(&cpus, least_up(s, "/cpu", group, cpu_max_v1));
        if (has_word(list, "memory")) lower(&bytes, least_up(s, "/memory", group, memory_max_v1));
    }
    t->cpu_limit = cpus;
    t->memory_limit_bytes = (uint64_t)bytes;
}

/* ---- CPU name and caches ---- */

static void read_cpu_name(sp_topology *t, const sp_sys *s) {
    char text[4096];
    const char *at =
        sp_sys_text(s, text, sizeof text, "/proc/cpuinfo") ? strstr(text, "model name") : NULL;
    if (!at || !(at = strchr(at, ':'))) return;
    at += strspn(at, ": \t");
    snprintf(t->cpu_name, sizeof t->cpu_name, "%.*s", (int)strcspn(at, "\n"), at);
}

static void add_cache(sp_topology *t, const sp_topology_cache *c) {
    for (int i = 0; i < t->n_caches; i++) {
        sp_topology_cache *x = &t->caches[i];
        if (x->level != c->level || x->bytes != c->bytes || strcmp(x->kind, c->kind) != 0) continue;
        x->count++;
        return;
    }
    if (t->n_caches < SP_TOPOLOGY_CACHES_MAX) t->caches[t->n_caches++] = *c;
}

static void read_caches(sp_topology *t, const sp_sys *s, const cpu_set_t *allowed, int pu) {
    static const char where[] = "/sys/devices/system/cpu/cpu%d/cache/index%d/%s";
    for (int i = 0; i < 8; i++) {
        sp_topology_cache c = {.count = 1};
        cpu_set_t shared;
        char size[32];
        c.level = (int)sp_sys_number(s, 0, where, pu, i, "level");
        if (c.level == 0 || !sp_sys_text(s, size, sizeof size, where, pu, i, "size") ||
            sp_parse_bytes(sp_slice_of(size), &c.bytes) != SP_OK ||
            !sp_sys_text(s, c.kind, sizeof c.kind, where, pu, i, "type"))
            continue;
        /* Counted once, at the first of our CPUs that has it. */
        bool counted = false;
        if (sp_sys_cpus(s, &shared, where, pu, i, "shared_cpu_list"))
            for (int k = 0; k < pu && !counted; k++)
                counted = CPU_ISSET(k, &shared) && CPU_ISSET(k, allowed);
        if (!counted) add_cache(t, &c);
    }
}

/* ---- network and GPUs ---- */

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}
static int is_visible(const struct dirent *e) {
    return e->d_name[0] != '.';
}

/* Calls `each` with every name in a folder, in order. */
static void for_each_name(sp_topology *t, const sp_sys *s, const char *folder,
                          void (*each)(sp_topology *t, const sp_sys *s, const char *name)) {
    char path[PATH_MAX];
    struct dirent **list;
    snprintf(path, sizeof path, "%s%s", s->root, folder);
    int n = scandir(path, &list, is_visible, by_name);
    if (n < 0) return;
    for (int i = 0; i < n; i++) {
        each(t, s, list[i]->d_name);
        free(list[i]);
    }
    free(list);
}

static void add_nic(sp_topology *t, const sp_topology_nic *nic) {
    if (t->n_nics < SP_TOPOLOGY_DEVICES_MAX) t->nics[t->n_nics++] = *nic;
}

static void read_net(sp_topology *t, const sp_sys *s, const char *name) {
    sp_topology_nic nic = {.mbit_s = -1};
    char state[32] = "";
    if (strcmp(name, "lo") == 0) return;
    snprintf(nic.name, sizeof nic.name, "%s", name);
    nic.up = sp_sys_text(s, state, sizeof state, "/sys/class/net/%s/operstate", name) &&
             strcmp(state, "up") == 0;
    nic.mbit_s = sp_sys_number(s, -1, "/sys/class/net/%s/speed", name);
    nic.numa = (int)sp_sys_number(s, -1, "/sys/class/net/%s/device/numa_node", name);
    add_nic(t, &nic);
}

/* "400 Gb/sec (4X NDR)" and "4: ACTIVE" of the device's first port. */
static void read_rdma(sp_topology *t, const sp_sys *s, const char *name) {
    sp_topology_nic nic = {.rdma = true, .mbit_s = -1};
    char text[64];
    double gbit;
    static const char where[] = "/sys/class/infiniband/%s/ports/1/%s";
    snprintf(nic.name, sizeof nic.name, "%s", name);
    nic.up = sp_sys_text(s, text, sizeof text, where, name, "state") && strstr(text, "ACTIVE");
    if (sp_sys_text(s, text, sizeof text, where, name, "rate") && sscanf(text, "%lf", &gbit) == 1)
        nic.mbit_s = (int64_t)(gbit * 1000);
    nic.numa = (int)sp_sys_number(s, -1, "/sys/class/infiniband/%s/device/numa_node", name);
    add_nic(t, &nic);
}

static void name_vendor(sp_topology_gpu *g) {
    static const struct {
        unsigned id;
        const char *name;
    } known[] = {{0x10de, "NVIDIA"}, {0x1002, "AMD"},    {0x8086, "Intel"},
                 {0x1da3, "Habana"}, {0x1a03, "ASPEED"}, {0x1af4, "virtio"},
                 {0x102b, "Matrox"}, {0x1234, "QEMU"},   {0x15ad, "VMware"}};
    snprintf(g->vendor, sizeof g->vendor, "0x%04x", g->vendor_id);
    for (size_t i = 0; i < SP_LEN(known); i++)
        if (known[i].id == g->vendor_id) snprintf(g->vendor, sizeof g->vendor, "%s", known[i].name);
}

/* PCI class 03 is a display controller (0302: 3D, without a screen), 12 a processing accelerator. */
static void read_pci(sp_topology *t, const sp_sys *s, const char *name) {
    static const char where[] = "/sys/bus/pci/devices/%s/%s";
    int64_t class_code = sp_sys_number(s, 0, where, name, "class");
    if (class_code >> 16 != 0x03 && class_code >> 16 != 0x12) return;
    if (t->n_gpus == SP_TOPOLOGY_DEVICES_MAX) return;
    sp_topology_gpu g = {.computes = class_code >> 8 == 0x0302 || class_code >> 16 == 0x12};
    snprintf(g.address, sizeof g.address, "%s", name);
    g.vendor_id = (unsigned)sp_sys_number(s, 0, where, name, "vendor");
    g.device_id = (unsigned)sp_sys_number(s, 0, where, name, "device");
    g.numa = (int)sp_sys_number(s, -1, where, name, "numa_node");
    name_vendor(&g);
    t->gpus[t->n_gpus++] = g;
}

void sp_topology_read_devices(sp_topology *t, const sp_sys *s, const cpu_set_t *allowed) {
    read_cpu_name(t, s);
    for (int pu = 0; pu < CPU_SETSIZE; pu++)
        if (CPU_ISSET(pu, allowed)) read_caches(t, s, allowed, pu);
    for_each_name(t, s, "/sys/class/net", read_net);
    for_each_name(t, s, "/sys/class/infiniband", read_rdma);
    for_each_name(t, s, "/sys/bus/pci/devices", read_pci);
}
