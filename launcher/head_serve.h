/* launcher/head_serve.h - the head's HTTP front end: server, start-up lines, drain.
 * Thread: main of the head becomes the loop; a thread `ctl` waits for signals and failures. */
#pragma once

#include "launcher/head.h"

/** Serves until a signal drains it or the rank is lost. Returns the exit code of the process. */
int sp_head_serve(const sp_front *f);
