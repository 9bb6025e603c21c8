/* frontend/api_text.h - POST /v1/completions.
 *
 * Source: OpenAI API reference, completions. Thread: loop. */
#pragma once

#include "frontend/generate.h"

void sp_api_text(sp_front *front, sp_http_call *call);
