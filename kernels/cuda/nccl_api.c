#include "kernels/cuda/nccl_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "libnccl.so.2"

_Static_assert(sizeof(cu_nccl_config) ==
                   2 * sizeof(size_t) + 4 * sizeof(int) + sizeof(char *) + 2 * sizeof(int),
               "the configuration has no holes that a newer library would read as fields");

void cu_nccl_version_text(int version, char *out, size_t size) {
    const int major = version >= 10000 ? 10000 : 1000;
    snprintf(out, size, "%d.%d.%d", version / major, version % major / 100, version % 100);
}

cu_nccl_config cu_nccl_config_make(void) {
    return (cu_nccl_config){.size = sizeof(cu_nccl_config),
                            .magic = CU_NCCL_MAGIC,
                            .version = CU_NCCL_OLDEST,
                            .blocking = 0,
                            .cga_cluster_size = CU_NCCL_UNSET,
                            .min_ctas = CU_NCCL_UNSET,
                            .max_ctas = CU_NCCL_UNSET,
                            .split_share = CU_NCCL_UNSET,
                            .traffic_class = CU_NCCL_UNSET};
}

/* The object of this code: a shared one by its path, or the program. NULL: no NCCL in it. */
static void *own_object(void) {
    static const char here;
    Dl_info info;
    void *h = NULL;
    if (dladdr(&here, &info) && info.dli_fname)
        h = dlopen(info.dli_fname, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (!h) h = dlopen(NULL, RTLD_NOW | RTLD_LOCAL);
    if (h && dlsym(h, "ncclGetVersion")) return h;
    if (h) dlclose(h);
    return NULL;
}

/* POSIX promises that a function fits into what dlsym() gives; C has no cast for it. */
static bool find(void *library, const char *name, void *fn) {
    void *p = dlsym(library, name);
    memcpy(fn, &p, sizeof p);
    return p != NULL;
}

static sp_status find_all(cu_nccl *n, const char *library, sp_err *err) {
    const struct {
        const char *name;
        void *fn;
    } calls[] = {
#define X(field, name, arguments) {"nccl" #name, &n->field},
        CU_NCCL_CALLS(X)
#undef X
            {"ncclGetErrorString", &n->get_error_string},
    };
    for (size_t i = 0; i < SP_LEN(calls); i++)
        if (!find(n->library, calls[i].name, calls[i].fn))
            return SP_FAIL(err, SP_E_UNSUPPORTED, "'%s' has no '%s': want NCCL 2.19 or newer",
                           library, calls[i].name);
    if (!find(n->library, "ncclGetLastError", &n->get_last_error)) n->get_last_error = NULL;
    return SP_OK;
}

static sp_status check_version(cu_nccl *n, const char *library, sp_err *err) {
    cu_nccl_result r = n->get_version(&n->version);
    if (r != CU_NCCL_OK)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "'%s' does not say its version: %s", library,
                       n->get_error_string(r));
    cu_nccl_version_text(n->version, n->version_text, sizeof n->version_text);
    if (n->version < CU_NCCL_OLDEST)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "'%s' is NCCL %s, want 2.19 or newer: older ones may hang when a "
                       "communicator is aborted",
                       library, n->version_text);
    return SP_OK;
}

sp_status cu_nccl_open(cu_nccl *out, const char *library, sp_err *err) {
    cu_nccl n = {.library = library ? NULL : own_object()};
    const char *name = library ? library : n.library ? "the emulated NCCL" : LIBRARY;
    /* Never unloaded: the library has threads of its own that may outlive a communicator. */
    if (!n.library) n.library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!n.library) {
        const char *why = dlerror();
        return SP_FAIL(err, SP_E_UNSUPPORTED, "no NCCL: %s", why ? why : name);
    }
    sp_status st = find_all(&n, name, err);
    if (st == SP_OK) st = check_version(&n, name, err);
    if (st != SP_OK) {
        dlclose(n.library);
        return st;
    }
    *out = n;
    return SP_OK;
}

void cu_nccl_close(cu_nccl *n) {
    if (n->library) dlclose(n->library);
    *n = (cu_nccl){.library = NULL};
}
