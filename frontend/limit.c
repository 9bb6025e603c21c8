#include "frontend/limit.h"

void sp_limit_init(sp_limit *l, int requests_max, size_t bytes_max) {
    *l = (sp_limit){.requests_max = requests_max, .bytes_max = bytes_max};
}

sp_status sp_limit_take(sp_limit *l, size_t body_bytes, sp_err *err) {
    if (l->requests >= l->requests_max) {
        l->refused++;
        return SP_FAIL(err, SP_E_LIMIT,
                       "the server is busy: %d requests are in work, which is "
                       "the most it takes",
                       l->requests);
    }
    if (body_bytes > l->bytes_max - l->bytes) {
        l->refused++;
        return SP_FAIL(err, SP_E_LIMIT, "the server is busy: the requests in work hold %zu bytes",
                       l->bytes);
    }
    l->requests++;
    l->bytes += body_bytes;
    return SP_OK;
}

void sp_limit_drop(sp_limit *l, size_t body_bytes) {
    SP_ASSERT(l->requests > 0 && l->bytes >= body_bytes);
    l->requests--;
    l->bytes -= body_bytes;
}

int sp_limit_retry_after_s(const sp_limit *l) {
    /* A long line moves slowly: one second a thousand requests in work, ten at most. */
    int s = 1 + l->requests / 1000;
    return s > 10 ? 10 : s;
}
