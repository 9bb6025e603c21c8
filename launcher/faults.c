#include "launcher/faults.h"

#include "runtime/base/chaos.h"
#include "runtime/base/log.h"
#include "runtime/base/str.h"

#include <stdlib.h>

#define SP_LOG "faults"

sp_status sp_faults_arm(sp_err *err) {
    sp_status st = sp_chaos_setup(getenv(SP_FAULTS_VARIABLE), err);
    if (st != SP_OK) sp_err_context(err, "variable %s", SP_FAULTS_VARIABLE);
    return st;
}

void sp_faults_warn(void) {
    const char *text = getenv(SP_FAULTS_VARIABLE);
    if (sp_chaos_armed())
        sp_warn("%s is set: things go wrong on purpose (%.120s)", SP_FAULTS_VARIABLE,
                text ? text : "");
}

void sp_faults_tell(void) {
    if (!sp_chaos_armed()) return;
    sp_buf text;
    sp_buf_init(&text, 512);
    for (int p = 0; p < SP_CHAOS_POINT_COUNT; p++) {
        const unsigned long long n = sp_chaos_fired((sp_chaos_point)p);
        if (n) sp_buf_printf(&text, " %s %llu", sp_chaos_name((sp_chaos_point)p), n);
    }
    sp_warn("what went wrong on purpose:%s", text.len ? text.ptr : " nothing");
    sp_buf_fini(&text);
}
