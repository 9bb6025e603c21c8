#include "launcher/topology.h"

#include "launcher/topology_gpu.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

static const char usage[] =
    "usage: superpod inspect topology [--device cuda|emu] [--json]\n\n"
    "What this node offers this process: cores and memory by NUMA node, limits of its control\n"
    "groups, caches, network devices and GPUs; what a backend for GPUs sees of them, how they "
    "reach\n"
    "one another, and which RDMA device is nearest to each.\n\n"
    "  --device D  cuda, or emu (the emulated GPU) (cuda)\n"
    "  --json      one JSON object\n";

/* ---- text ---- */

static void bytes_or(sp_buf *b, uint64_t bytes, const char *none) {
    char text[32];
    sp_buf_puts(b, bytes ? sp_format_bytes(text, sizeof text, bytes) : none);
}

static void write_cpus(const sp_topology *t, sp_buf *b) {
    sp_buf_printf(b, "cpu      %s\n", t->cpu_name[0] ? t->cpu_name : "(no name)");
    sp_buf_printf(b, "allowed  %d packages, %d NUMA nodes, %d cores, %d hardware threads\n",
                  t->n_packages, t->n_numa, t->n_cores, t->n_pus);
    sp_buf_puts(b, "memory   ");
    bytes_or(b, t->memory_bytes, "not told");
    sp_buf_puts(b, "\nlimits   ");
    if (t->cpu_limit > 0)
        sp_buf_printf(b, "%.2f CPUs' time, ", t->cpu_limit);
    else
        sp_buf_puts(b, "no CPU time limit, ");
    bytes_or(b, t->memory_limit_bytes, "no");
    sp_buf_puts(b, " memory limit\n");
    for (int i = 0; i < t->n_numa; i++) {
        const sp_topology_numa *n = &t->numa[i];
        sp_buf_printf(b, "numa %-3d %d cores, %d hardware threads, ", n->id, n->n_cores, n->n_pus);
        bytes_or(b, n->memory_bytes, "no");
        sp_buf_puts(b, " memory\n");
    }
    for (int i = 0; i < t->n_caches; i++) {
        const sp_topology_cache *c = &t->caches[i];
        sp_buf_printf(b, "cache L%d %d x ", c->level, c->count);
        bytes_or(b, c->bytes, "0");
        sp_buf_printf(b, " %s\n", c->kind);
    }
}

static void write_numa(sp_buf *b, int numa) {
    if (numa >= 0) sp_buf_printf(b, ", numa %d", numa);
    sp_buf_putc(b, '\n');
}

static void write_devices(const sp_topology *t, sp_buf *b) {
    for (int i = 0; i < t->n_nics; i++) {
        const sp_topology_nic *n = &t->nics[i];
        sp_buf_printf(b, "%s     %s: %s", n->rdma ? "rdma" : "net ", n->name,
                      n->up ? "up" : "down");
        if (n->mbit_s > 0) sp_buf_printf(b, ", %.1f Gbit/s", (double)n->mbit_s / 1000);
        write_numa(b, n->numa);
    }
    if (!t->n_nics) sp_buf_puts(b, "net      none but loopback\n");
    for (int i = 0; i < t->n_gpus; i++) {
        const sp_topology_gpu *g = &t->gpus[i];
        sp_buf_printf(b, "gpu      %s: %s %04x:%04x, %s", g->address, g->vendor, g->vendor_id,
                      g->device_id, g->computes ? "compute" : "display");
        write_numa(b, g->numa);
    }
    if (!t->n_gpus) sp_buf_puts(b, "gpu      none\n");
}

/* ---- JSON ---- */

static void field_int(sp_jw *w, const char *key, int64_t v) {
    sp_jw_key(w, key);
    sp_jw_int(w, v);
}
static void field_known(sp_jw *w, const char *key, int64_t v, bool known) {
    sp_jw_key(w, key);
    if (known)
        sp_jw_int(w, v);
    else
        sp_jw_null(w);
}
static void field_str(sp_jw *w, const char *key, const char *v) {
    sp_jw_key(w, key);
    sp_jw_str(w, v);
}
static void field_bool(sp_jw *w, const char *key, bool v) {
    sp_jw_key(w, key);
    sp_jw_bool(w, v);
}

static void json_numa(const sp_topology *t, sp_jw *w) {
    sp_jw_key(w, "numa");
    sp_jw_array(w);
    for (int i = 0; i < t->n_numa; i++) {
        sp_jw_object(w);
        field_int(w, "id", t->numa[i].id);
        field_int(w, "memory_bytes", (int64_t)t->numa[i].memory_bytes);
        field_int(w, "cores", t->numa[i].n_cores);
        field_int(w, "hardware_threads", t->numa[i].n_pus);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}

static void json_caches(const sp_topology *t, sp_jw *w) {
    sp_jw_key(w, "caches");
    sp_jw_array(w);
    for (int i = 0; i < t->n_caches; i++) {
        sp_jw_object(w);
        field_int(w, "level", t->caches[i].level);
        field_str(w, "kind", t->caches[i].kind);
        field_int(w, "bytes", (int64_t)t->caches[i].bytes);
        field_int(w, "count", t->caches[i].count);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}

static void json_devices(const sp_topology *t, sp_jw *w) {
    sp_jw_key(w, "nics");
    sp_jw_array(w);
    for (int i = 0; i < t->n_nics; i++) {
        const sp_topology_nic *n = &t->nics[i];
        sp_jw_object(w);
        field_str(w, "name", n->name);
        field_bool(w, "rdma", n->rdma);
        field_bool(w, "up", n->up);
        field_known(w, "mbit_s", n->mbit_s, n->mbit_s > 0);
        field_known(w, "numa", n->numa, n->numa >= 0);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
    sp_jw_key(w, "gpus");
    sp_jw_array(w);
    for (int i = 0; i < t->n_gpus; i++) {
        const sp_topology_gpu *g = &t->gpus[i];
        sp_jw_object(w);
        field_str(w, "address", g->address);
        field_str(w, "vendor", g->vendor);
        field_int(w, "vendor_id", g->vendor_id);
        field_int(w, "device_id", g->device_id);
        field_bool(w, "computes", g->computes);
        field_known(w, "numa", g->numa, g->numa >= 0);
        sp_jw_object_end(w);
    }
    sp_jw_array_end(w);
}

static void write_json(const sp_topology *t, const sp_topology_cards *cards, sp_buf *b) {
    sp_jw w = sp_jw_on(b);
    sp_jw_object(&w);
    field_str(&w, "cpu", t->cpu_name);
    field_int(&w, "packages", t->n_packages);
    field_int(&w, "cores", t->n_cores);
    field_int(&w, "hardware_threads", t->n_pus);
    field_int(&w, "memory_bytes", (int64_t)t->memory_bytes);
    field_known(&w, "memory_limit_bytes", (int64_t)t->memory_limit_bytes, t->memory_limit_bytes);
    sp_jw_key(&w, "cpu_limit");
    if (t->cpu_limit > 0)
        sp_jw_number(&w, t->cpu_limit);
    else
        sp_jw_null(&w);
    json_numa(t, &w);
    json_caches(t, &w);
    json_devices(t, &w);
    sp_jw_key(&w, "backend");
    sp_topology_cards_json(cards, &w);
    sp_jw_object_end(&w);
    sp_buf_putc(b, '\n');
}

/* False: told on stderr. */
static bool read_options(int argc, char **argv, bool *json, const char **device) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            *json = true;
        } else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc) {
            *device = argv[++i];
        } else {
            fprintf(stderr, "superpod: inspect topology: cannot take '%s'\n", argv[i]);
            return false;
        }
    }
    if (sp_dev_is_plugin(*device)) return true;
    fprintf(stderr, "superpod: inspect topology: option 'device': want cuda or emu, got '%.60s'\n",
            *device);
    return false;
}

int sp_inspect_topology(int argc, char **argv) {
    bool json = false;
    const char *device = "cuda";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") != 0 && strcmp(argv[i], "-h") != 0) continue;
        fputs(usage, stdout);
        return SP_EXIT_OK;
    }
    if (!read_options(argc, argv, &json, &device)) return SP_EXIT_USAGE;
    sp_err err = {0};
    sp_topology *t = sp_alloc(sizeof *t);
    sp_topology_cards *cards = sp_alloc(sizeof *cards);
    sp_buf out;
    sp_buf_init(&out, (size_t)1 << 20);
    sp_status st = sp_topology_load(t, true, &err);
    if (st == SP_OK) sp_topology_cards_load(cards, device, t);
    if (st != SP_OK) {
        fprintf(stderr, "superpod: inspect topology: %s\n", err.text);
    } else if (json) {
        write_json(t, cards, &out);
    } else {
        write_cpus(t, &out);
        write_devices(t, &out);
        sp_topology_cards_text(cards, &out);
    }
    if (out.len) fwrite(out.ptr, 1, out.len, stdout);
    bool wrote = fflush(stdout) == 0 && !out.failed;
    sp_buf_fini(&out);
    sp_free(cards);
    sp_free(t);
    return st == SP_OK && wrote ? SP_EXIT_OK : SP_EXIT_CONFIG;
}
