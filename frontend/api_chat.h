/* frontend/api_chat.h - POST /v1/chat/completions.
 *
 * Source: OpenAI API reference, chat. Thread: loop. */
#pragma once

#include "frontend/generate.h"

void sp_api_chat(sp_front *front, sp_http_call *call);
