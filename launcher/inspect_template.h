/* launcher/inspect_template.h - `superpod inspect template`: the prompt that a template makes.
 *
 * Shows what a model would be given, byte for byte, and lets a test feed a template many sets of
 * variables. Reads the template's files only; breaks no spelling of special tokens.
 *
 * Thread: main. */
#pragma once

/** Runs the command; argv[0] is "template". Returns the exit code: 0, 2 (usage), 10 (bad template,
 * model or messages). */
int sp_inspect_template(int argc, char **argv);
