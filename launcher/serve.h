/* launcher/serve.h - `superpod serve` and `superpod run`: what the agent does before it forks.
 *
 * The options and the model's description are proven here, so that a mistake is one line and an exit
 * code before any process is started.
 * Thread: main. */
#pragma once

#include "launcher/config.h"

int sp_serve(int argc, char **argv);
int sp_run(int argc, char **argv);

/** Parses options, proves the model's description and starts head and rank. Returns the exit code.
 * For every command that runs a model through the engine. */
int sp_serve_command(sp_command command, int argc, char **argv);
