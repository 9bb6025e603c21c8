#include "kernels/dev.h"

#include "kernels/cpu/isa.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#define SP_LOG "dev"
#include "runtime/base/log.h"

#define PATH_BYTES 4096

/* Ends of one list: what a machine lacks is at its head. */
static const char *const names[] = {"cpu-avx512", "cpu-avx2", "cpu-generic", "ref",
                                    "cpu",        "auto",     NULL};

const char *const *sp_dev_backends(void) {
    const char *fastest = sp_cpu_isas()[0]->name;
    const char *const *list = names;
    while (strcmp(*list + 4, fastest) != 0) list++;
    return list;
}

static bool is_known(const char *name) {
    for (const char *const *n = sp_dev_backends(); *n; n++)
        if (strcmp(*n, name) == 0) return true;
    return false;
}

static void list_backends(char *out, size_t size) {
    size_t n = 0;
    out[0] = 0;
    for (const char *const *name = sp_dev_backends(); *name && n < size; name++)
        n += (size_t)snprintf(out + n, size - n, "%s%s", n ? ", " : "", *name);
}

/* ---- plugins ---- */

typedef struct plugin_file {
    const char *backend, *file;
} plugin_file;
static const plugin_file plugins[] = {{"cuda", "superpod_cuda.so"},
                                      {"emu", "superpod_cuda_emu.so"}};

static const plugin_file *find_plugin(const char *backend) {
    for (size_t i = 0; i < SP_LEN(plugins); i++)
        if (strcmp(plugins[i].backend, backend) == 0) return &plugins[i];
    return NULL;
}

bool sp_dev_is_plugin(const char *backend) {
    return find_plugin(backend) != NULL;
}

/* Where the binary lies, with its last '/': what is installed together is found together. */
static bool own_folder(char out[PATH_BYTES]) {
    const ssize_t n = readlink("/proc/self/exe", out, PATH_BYTES - 1);
    if (n <= 0) return false;
    out[n] = 0;
    char *slash = strrchr(out, '/');
    if (!slash) return false;
    slash[1] = 0;
    return true;
}

/* The path of a plugin that lies with the binary; false: the loader may know. */
static bool place_of(const plugin_file *p, char path[PATH_BYTES]) {
    static const char *const beside[] = {"", "../lib/superpod/"};
    char folder[PATH_BYTES];
    if (!own_folder(folder)) return false;
    for (size_t i = 0; i < SP_LEN(beside); i++) {
        const int n = snprintf(path, PATH_BYTES, "%s%s%s", folder, beside[i], p->file);
        if (n > 0 && n < PATH_BYTES && access(path, R_OK) == 0) return true;
    }
    return false;
}

sp_status sp_dev_plugin_open(const sp_dev_plugin **out, const char *backend, sp_err *err) {
    const plugin_file *p = find_plugin(backend);
    SP_ASSERT(p != NULL);
    char path[PATH_BYTES];
    const bool is_here = place_of(p, path);
    if (!is_here) snprintf(path, sizeof path, "%s", p->file);
    /* Never closed: a driver's threads and handlers outlive what used them. */
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        const char *why = dlerror();
        return SP_FAIL(err, SP_E_NOTFOUND, "backend '%s': %.140s%s%s", backend,
                       why ? why : "not loaded", is_here ? "" : "; it is built by make ",
                       is_here ? "" : p->backend);
    }
    /* POSIX gives functions as data pointers here. */
    sp_dev_plugin_entry *entry;
    *(void **)&entry = dlsym(so, SP_DEV_PLUGIN_ENTRY);
    const sp_dev_plugin *plugin = entry ? entry(SP_DEV_PLUGIN_ABI) : NULL;
    if (!plugin || plugin->abi != SP_DEV_PLUGIN_ABI || strcmp(plugin->name, backend) != 0)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "'%.180s' belongs to another build of superpod",
                       path);
    *out = plugin;
    return SP_OK;
}

/* Without a driver the plugin's libraries (some hundred megabytes) need not be looked at. */
static bool has_driver(void) {
    void *so = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (so) dlclose(so);
    return so != NULL;
}

const char *sp_dev_auto(char *why, size_t size) {
    char path[PATH_BYTES];
    const sp_dev_plugin *plugin;
    sp_dev_info info;
    sp_err err = {0};
    if (size) why[0] = 0;
    if (!place_of(find_plugin("cuda"), path)) return "cpu";
    if (!has_driver()) {
        snprintf(why, size, "cpu: no CUDA driver on this machine");
        return "cpu";
    }
    sp_status st = sp_dev_plugin_open(&plugin, "cuda", &err);
    if (st == SP_OK) st = plugin->probe(&info, 0, &err);
    if (st != SP_OK) {
        snprintf(why, size, "cpu: %s", err.text);
        return "cpu";
    }
    snprintf(why, size, "cuda: %d of '%s', compute capability %d.%d, %llu MiB", info.n_devices,
             info.name, info.major, info.minor, (unsigned long long)(info.memory_bytes >> 20));
    return "cuda";
}

/* ---- open ---- */

sp_status sp_dev_find(const sp_dev_ops **out, const char *backend, sp_err *err) {
    if (sp_dev_is_plugin(backend)) {
        const sp_dev_plugin *plugin;
        SP_TRY(sp_dev_plugin_open(&plugin, backend, err));
        *out = plugin->ops;
        return SP_OK;
    }
    if (!is_known(backend)) {
        char list[128];
        list_backends(list, sizeof list);
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "backend '%.60s' is not on this machine; there are %s, and cuda and emu "
                       "with their plugins",
                       backend, list);
    }
    *out = strcmp(backend, "ref") == 0 ? &sp_dev_ref : &sp_dev_cpu;
    return SP_OK;
}

sp_status sp_dev_open(sp_dev *dev, const sp_dev_config *config, sp_err *err) {
    sp_dev_config c = *config;
    const char *asked = c.backend ? c.backend : "auto";
    char why[256] = "";
    c.backend = strcmp(asked, "auto") == 0 ? sp_dev_auto(why, sizeof why) : asked;
    if (why[0]) sp_info("device auto is %s", why);
    sp_dev d = {0};
    SP_TRY(sp_dev_find(&d.ops, c.backend, err));
    if (c.fast && !sp_dev_is_plugin(c.backend))
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "backend '%s' computes exactly only: numerics fast is of cuda and emu",
                       c.backend);
    SP_TRY(d.ops->open(&d, &c, err));
    sp_debug("backend %s: %s (asked for %s)", d.ops->name, d.detail, asked);
    if (d.note) sp_warn("%s", d.note);
    *dev = d;
    return SP_OK;
}

void sp_dev_close(sp_dev *dev) {
    if (!dev || !dev->ops) return;
    dev->ops->close(dev);
    *dev = (sp_dev){0};
}
