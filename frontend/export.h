/* frontend/export.h - the figures as Prometheus text, under vLLM's names.
 *
 * Dashboards, autoscalers and routers already know these names, so they are kept to the letter;
 * what vLLM has no name for is superpod:*. A family is written once: HELP, TYPE, then its series.
 *
 * Source: CONTRACTS 2b.1; Prometheus text format 0.0.4. Thread: loop. */
#pragma once

#include "frontend/front.h"

void sp_export_metrics(sp_front *front, sp_buf *out);
