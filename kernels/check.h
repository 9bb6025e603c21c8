/* kernels/check.h - what every backend refuses, said once.
 *
 * Operations return nothing, so a refusal is kept as the device's first fault and comes out of
 * poll(). Shapes are our own and asserted; what reaches here from outside (token ids, positions,
 * a model's head size, a tensor's type) is a status.
 *
 * Thread: the device's. */
#pragma once

#include "kernels/args.h"

/** Keeps the first fault; later ones change nothing. A device's `fault` starts zeroed. */
void sp_fault_keep(sp_err *fault, const sp_err *err);
/** SP_OK, or the kept fault copied to `err`. */
SP_NODISCARD sp_status sp_fault_status(const sp_err *fault, sp_err *err);

/* Each is true when the operation may go on; else the reason was kept in `fault`. */
bool sp_check_ids(sp_err *fault, const int32_t *ids, int32_t n, int32_t n_rows);
bool sp_check_rope(sp_err *fault, const sp_rope_store_args *a);
bool sp_check_attn(sp_err *fault, const sp_attn_args *a);

/** Rows of all parts together; columns, types and segments agree.
 * Errors: SP_E_UNSUPPORTED  not F32, F16 or BF16 */
SP_NODISCARD sp_status sp_check_parts(const sp_weight_part *parts, int n_parts,
                                      const sp_segments *seg, int32_t *rows, sp_err *err);
bool sp_is_float_weight(sp_dtype t);
