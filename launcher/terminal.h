/* launcher/terminal.h - `superpod run`: one prompt to standard output, or a chat with history.
 *
 * Ctrl-C ends the running answer (a second one, or one at the prompt, ends the chat); Ctrl-D ends
 * the chat. Results go to standard output, everything else to standard error.
 * Thread: main of the head. */
#pragma once

#include "launcher/head.h"

/** Returns the exit code of the process. */
int sp_terminal_run(const sp_front *f);
