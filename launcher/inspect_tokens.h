/* launcher/inspect_tokens.h - `superpod inspect tokens`: text to token ids and back.
 *
 * Needs only the tokenizer's files. Results on standard output, everything else on standard error.
 * Thread: main. */
#pragma once

/** argv[0] is "tokens". Returns the process's exit code: 0, 2 (usage) or 10 (model refused). */
int sp_inspect_tokens(int argc, char **argv);
