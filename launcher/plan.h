/* launcher/plan.h - `superpod plan`: what would go where, whether it fits and how fast a step would
 * be, before anything is loaded. Touches no device; config.json alone is enough.
 *
 * The bytes are those of runtime/model/plan.h, which `serve` computes too. The step time is a lower
 * bound from the device's data sheet: per stage max(bytes / bandwidth, operations / peak), two
 * all-reduces a layer, one hop a stage boundary.
 *
 * Thread: main. */
#pragma once

/** "plan --model DIR --nodes SPEC [--tp N] [--pp N] [--json] ...". Exit 10: it does not fit, and
 * what would. */
int sp_plan_command(int argc, char **argv);
