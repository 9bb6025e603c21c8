/* frontend/api_tokens.h - POST /tokenize and /detokenize.
 *
 * Source: vLLM's routes of the same names. Thread: loop. */
#pragma once

#include "frontend/front.h"

void sp_api_tokenize(sp_front *front, sp_http_call *call);
void sp_api_detokenize(sp_front *front, sp_http_call *call);
