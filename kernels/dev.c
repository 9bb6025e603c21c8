#include "kernels/dev.h"

#include "kernels/cpu/isa.h"

#include <stdio.h>
#include <string.h>
#define SP_LOG "dev"
#include "runtime/base/log.h"

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

sp_status sp_dev_open(sp_dev *dev, const sp_dev_config *config, sp_err *err) {
    sp_dev_config c = *config;
    if (!c.backend) c.backend = "auto";
    if (!is_known(c.backend)) {
        char list[128];
        list_backends(list, sizeof list);
        return SP_FAIL(err, SP_E_UNSUPPORTED, "backend '%s' is not on this machine; there are %s",
                       c.backend, list);
    }
    sp_dev d = {.ops = strcmp(c.backend, "ref") == 0 ? &sp_dev_ref : &sp_dev_cpu};
    SP_TRY(d.ops->open(&d, &c, err));
    sp_debug("backend %s: %s (asked for %s)", d.ops->name, d.detail, c.backend);
    *dev = d;
    return SP_OK;
}

void sp_dev_close(sp_dev *dev) {
    if (!dev || !dev->ops) return;
    dev->ops->close(dev);
    *dev = (sp_dev){0};
}
