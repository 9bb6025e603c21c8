/* frontend/export.h - the figures as Prometheus text, under vLLM's names.
 *
 * Dashboards, autoscalers and routers already know these names, so they are kept to the letter;
 * what vLLM has no name for is superpod:*. A family is written once: HELP, TYPE, then its series.
 *
 * Source: metric names of vLLM; Prometheus text format 0.0.4. Thread: loop. */
#pragma once

#include "frontend/front.h"

void sp_export_metrics(sp_front *front, sp_buf *out);

/** The load as a reply header line, for routers that ask with "endpoint-load-metrics-format: TEXT" or
 * "JSON" (ORCA); "" for any other format. */
void sp_export_load_header(const sp_front *front, sp_slice format, char *out, size_t n);
