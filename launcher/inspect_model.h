/* launcher/inspect_model.h - `superpod inspect tensors | model | config`: what a model's files say.
 *
 * Reads headers and configurations alone: no weight is read, no device is opened, no tokenizer is
 * needed. Results on standard output, everything else on standard error: one line that says why.
 * A model that could not be served is described all the same, with the reasons; files that are
 * broken are refused.
 * Thread: main. */
#pragma once

/* argv[0] is the word after "inspect". They return the process's exit code: 0, 2 (usage) or 10
 * (file or model refused). */

/** `tensors FILE`: {"name": …, "dtype": …, "shape": […]}, one line a tensor, in order of offset. */
int sp_inspect_tensors(int argc, char **argv);

/** `model --model DIR [--json]`: architecture, sizes, parameters, bytes; a table or one object. */
int sp_inspect_model(int argc, char **argv);

/** `config --model DIR`: config.json and its neighbours as they were understood, one JSON object,
 * with what would be refused under "refused". */
int sp_inspect_config(int argc, char **argv);
