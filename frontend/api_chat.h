/* frontend/api_chat.h - POST /v1/chat/completions.
 *
 * Source: OpenAI API reference, chat; CONTRACTS 2a.4 and 2a.5. Thread: loop. */
#pragma once

#include "frontend/generate.h"

void sp_api_chat(sp_front *front, sp_http_call *call);
