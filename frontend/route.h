/* frontend/route.h - the table of what is served: method, path, guards, handler.
 *
 * A path is looked up as it is, and without a leading "/openai" (KServe's prefix). HEAD goes where
 * GET goes; OPTIONS is answered for every known path. Figures by route are kept here, since only the
 * table knows the routes.
 *
 * Thread: loop. */
#pragma once

#include "frontend/front.h"

#define SP_ROUTES_MAX 64
#define SP_STATUS_CLASSES 5 /* 1xx never; 2xx 3xx 4xx 5xx */

/** Seconds; the bounds that vLLM's exporter has for HTTP. */
extern const double sp_route_bounds[3];

struct sp_route_stats {
    /* By route (the last one: no route), method and status class. */
    uint64_t requests[SP_ROUTES_MAX + 1][SP_HTTP_METHOD_COUNT][SP_STATUS_CLASSES];
    uint64_t buckets[SP_ROUTES_MAX + 1][SP_HTTP_METHOD_COUNT][4];
    double seconds[SP_ROUTES_MAX + 1][SP_HTTP_METHOD_COUNT];
};

/** The path of the i-th route; "none" after the last; NULL beyond. */
const char *sp_route_path(int i);

/** What of `path` follows `prefix`, with or without "/openai" before it; empty when it does not. */
sp_slice sp_route_rest(sp_slice path, const char *prefix);

/** Guards that need the head only: Host, key. May reply. */
void sp_route_head(sp_front *front, sp_http_call *call);
/** Finds the row and calls its handler; 404, 405 and 400 are answered here. */
void sp_route_request(sp_front *front, sp_http_call *call);
/** Counts a call that ended. */
void sp_route_done(sp_front *front, const sp_http_call *call, int status, double seconds);
