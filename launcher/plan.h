/* launcher/plan.h - `superpod plan`: what would go where, whether it fits and how fast a step would
 * be, before anything is loaded. Opens no device; config.json alone is enough. With --device and no
 * --nodes the GPUs of this machine are asked what they are.
 *
 * The bytes are those of runtime/model/plan.h, which `serve` computes too; pools lie on the nodes
 * as launcher/fit.h says. The step time is a lower bound from the device's data sheet: per stage
 * max(bytes / bandwidth, operations / peak), two all-reduces a layer, one hop a stage boundary.
 * From it comes the ratio of prompts to answers at which prefill and decode pools are equally busy;
 * how fast blocks move between them is not in it.
 *
 * Thread: main. */
#pragma once

/** "plan --model DIR --nodes SPEC [--tp N] [--pp N] [--pool ...] [--json] ...". Exit 10: it does not
 * fit, and what would. */
int sp_plan_command(int argc, char **argv);
