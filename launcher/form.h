/* launcher/form.h - what the head tells a rank to become: the FORM frame.
 *
 * One JSON object, so that a person can read it in a log; every key must be there, none other may.
 * It is the only thing that configures a rank.
 *
 * Thread: plain data. */
#pragma once

#include "runtime/base/json.h"

typedef struct sp_form {
    char model_dir[4096];
    char backend[32], kv_dtype[16], log_level[16];
    int64_t threads, block_tokens, n_blocks, max_model_len, max_num_seqs, max_batched_tokens;
    int64_t max_step_rows; /* logits rows of one step */
    bool pin, log_json;
} sp_form;

/** Appends the JSON text of `form`. */
void sp_form_write(const sp_form *form, sp_buf *out);

/** Errors: SP_E_FORMAT not JSON; SP_E_INVALID a key that is missing, unknown, of the wrong type or
 * out of range, by name. */
SP_NODISCARD sp_status sp_form_read(sp_form *out, sp_slice json, sp_err *err);
