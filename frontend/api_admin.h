/* frontend/api_admin.h - what tells about the server: health, models, figures.
 *
 * Source: vLLM's routes. Thread: loop. */
#pragma once

#include "frontend/front.h"

void sp_api_health(sp_front *front, sp_http_call *call);
void sp_api_load(sp_front *front, sp_http_call *call);
void sp_api_version(sp_front *front, sp_http_call *call);
void sp_api_models(sp_front *front, sp_http_call *call);
void sp_api_model(sp_front *front, sp_http_call *call); /* /v1/models/{id} */
/** Who computes: nodes, ranks, states. */
void sp_api_status(sp_front *front, sp_http_call *call);
/** The pools of groups; with POST their roles change first. */
void sp_api_pools(sp_front *front, sp_http_call *call);
void sp_api_metrics(sp_front *front, sp_http_call *call);
/** A route of the API that this server does not have: 501 that names it. */
void sp_api_absent(sp_front *front, sp_http_call *call);
