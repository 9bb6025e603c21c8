/* launcher/inspect.h - `superpod inspect WORD`: what is in a model, without serving it.
 *
 * Results on standard output, everything else on standard error.
 * Thread: main. */
#pragma once

int sp_inspect(int argc, char **argv);
