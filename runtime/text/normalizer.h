/* runtime/text/normalizer.h - the normalizers of tokenizer.json: text to text.
 *
 * A chain of steps, nested Sequences made flat. Steps that need a table we do not carry
 * (Precompiled, BertNormalizer, Nmt) are refused by name.
 *
 * Source: huggingface tokenizers, normalizers. Thread: a loaded normalizer is const. */
#pragma once

#include "runtime/text/pretok.h"

typedef struct sp_normalizer sp_normalizer;
#define SP_NORMALIZER_STEPS_MAX 64

/** `node` is the "normalizer" of the file; null gives one without steps.
 * Errors: SP_E_UNSUPPORTED names a type we do not have; SP_E_FORMAT, SP_E_TOOLONG, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_normalizer_load(sp_normalizer **out, const sp_json_node *node,
                                          sp_err *err);
void sp_normalizer_free(sp_normalizer *n);
bool sp_normalizer_is_empty(const sp_normalizer *n);

/** Two buffers and a regex scratch that a caller keeps for many runs; zeroed is empty. */
typedef struct sp_normalizer_scratch {
    sp_buf bufs[2];
    sp_regex_scratch *regex; /* borrowed */
} sp_normalizer_scratch;
void sp_normalizer_scratch_fini(sp_normalizer_scratch *s);

/** Runs all steps. *out borrows from `text` or from the scratch, until the next run.
 * *cut tells that the beginning of the text was removed (the result then begins further on).
 * Errors: SP_E_TOOLONG a regex hit a limit, or the text grew past 16 times its size; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_normalizer_run(const sp_normalizer *n, sp_slice text,
                                         sp_normalizer_scratch *s, sp_slice *out, bool *cut,
                                         sp_err *err);
