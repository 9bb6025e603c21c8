/* launcher/logits.h - `superpod inspect logits`: every position's logits into a file.
 *
 * The file is float32 little-endian [T, V], row t being the logits after token t. It is written
 * under a temporary name and renamed when it is whole.
 * Thread: main of the head. */
#pragma once

#include "launcher/head.h"

/** Returns the exit code of the process. */
int sp_logits_run(const sp_front *f);
