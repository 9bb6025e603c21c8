#include "kernels/cuda/cublas_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define OWN "the emulated cuBLASLt"

_Static_assert(sizeof(cu_lt_found) == sizeof(cu_lt_algo) + sizeof(size_t) + 6 * 4,
               "a result has no holes of ours");

void cu_cublas_version_text(size_t version, char *out, size_t size) {
    snprintf(out, size, "%zu.%zu.%zu", version / 10000, version % 10000 / 100, version % 100);
}

/* The object of this code: a shared one by its path, or the program. NULL: no cuBLASLt in it. */
static void *own_object(void) {
    static const char here;
    Dl_info info;
    void *h = NULL;
    if (dladdr(&here, &info) && info.dli_fname)
        h = dlopen(info.dli_fname, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (!h) h = dlopen(NULL, RTLD_NOW | RTLD_LOCAL);
    if (h && dlsym(h, "cublasLtMatmul")) return h;
    if (h) dlclose(h);
    return NULL;
}

/* `name` becomes that of what was opened, or tried last. Never unloaded: as NCCL, it keeps what it
 * loaded onto the device. */
static void *find_library(const char **name) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    void *h = own_object();
    *name = OWN;
    for (size_t i = 0; i < SP_LEN(names) && !h; i++) {
        *name = names[i];
        h = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    }
    return h;
}

/* POSIX promises that a function fits into what dlsym() gives; C has no cast for it. */
static bool find(void *library, const char *name, void *fn) {
    void *p = dlsym(library, name);
    memcpy(fn, &p, sizeof p);
    return p != NULL;
}

static sp_status find_all(cu_cublas *c, const char *library, sp_err *err) {
    const struct {
        const char *name;
        void *fn;
    } calls[] = {
#define X(field, name, arguments) {"cublasLt" #name, &c->field},
        CU_LT_CALLS(X)
#undef X
            {"cublasLtGetVersion", &c->get_version},
        {"cublasLtGetStatusName", &c->status_name},
    };
    for (size_t i = 0; i < SP_LEN(calls); i++)
        if (!find(c->library, calls[i].name, calls[i].fn))
            return SP_FAIL(err, SP_E_UNSUPPORTED, "'%s' has no '%s': want cuBLASLt 12.0 or newer",
                           library, calls[i].name);
    return SP_OK;
}

static sp_status check_version(cu_cublas *c, const char *library, sp_err *err) {
    c->version = c->get_version();
    cu_cublas_version_text(c->version, c->version_text, sizeof c->version_text);
    if (c->version < CU_LT_OLDEST)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "'%s' is cuBLASLt %s, want 12.0 or newer", library,
                       c->version_text);
    return SP_OK;
}

sp_status cu_cublas_open(cu_cublas *out, const char *library, sp_err *err) {
    cu_cublas c = {.library = NULL};
    const char *name = library;
    c.library = library ? dlopen(library, RTLD_NOW | RTLD_LOCAL) : find_library(&name);
    if (!c.library) {
        const char *why = dlerror();
        return SP_FAIL(err, SP_E_UNSUPPORTED, "no cuBLASLt: %s", why ? why : name);
    }
    sp_status st = find_all(&c, name, err);
    if (st == SP_OK) st = check_version(&c, name, err);
    if (st != SP_OK) {
        dlclose(c.library);
        return st;
    }
    *out = c;
    return SP_OK;
}

void cu_cublas_close(cu_cublas *c) {
    if (c->library) dlclose(c->library);
    *c = (cu_cublas){.library = NULL};
}
