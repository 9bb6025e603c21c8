/* frontend/front.h - what the front end's parts see of one another.
 *
 * A plain struct: made by server.c, borrowed by everything that answers a request. Text threads get
 * what they need copied into their job (sp_request_env); nothing here is theirs to read, save what
 * is const after create.
 *
 * Thread: loop. */
#pragma once

#include "frontend/auth.h"
#include "frontend/http.h"
#include "frontend/kv_transfer.h"
#include "frontend/limit.h"
#include "frontend/request.h"
#include "frontend/server.h"
#include "frontend/text_pool.h"

typedef struct sp_route_stats sp_route_stats;
typedef struct sp_gens sp_gens;

typedef struct sp_front {
    sp_server_config config; /* strings in `arena` */
    sp_arena arena;
    sp_engine *engine;
    const sp_tokenizer *tokenizer;
    const sp_chat *chat; /* NULL: no template */
    sp_loop *loop;
    sp_http *http;
    sp_auth *auth;
    sp_text_pool *text;
    sp_limit limit;
    sp_gens *gens;          /* requests in work, generate.c */
    sp_route_stats *routes; /* figures by route, route.c */
    bool draining;
    uint64_t n_events, event_cpu_ns; /* engine events handled, and the loop's CPU time for them */
    uint64_t kv_refused[SP_KV_REFUSAL_COUNT]; /* lent blocks turned away, by why */
} sp_front;

/** Whether new work is taken; if not, `why` says so in words. */
bool sp_front_is_ready(const sp_front *f, const char **why);
/** What a text thread needs to know; only while ready. */
sp_request_env sp_front_env(const sp_front *f);
