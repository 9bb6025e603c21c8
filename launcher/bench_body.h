/* launcher/bench_body.h - what a request of a load asks for.
 *
 * Prompts are words, or token ids where their number must be exact; equal settings give equal
 * prompts. Of a trace, the tokens of a prompt follow from its hash ids alone, so that prompts share
 * as much as they did when they were recorded.
 *
 * Thread: any. */
#pragma once

#include "launcher/bench_load.h"

/** The JSON body of request `index` of the load. */
void sp_load_put_body(sp_buf *b, const sp_load_config *config, const char *model, int64_t index);
