/* runtime/format/safetensors.h - one safetensors file, its header proven before any pointer is
 * given out.
 *
 *   0         8                    8+n                       end
 *   | n (LE)  | n bytes of JSON    | tensor bytes, no gaps    |
 *
 * Refused: n above 100 MB or beyond the file, bytes that are not one JSON object, duplicate names,
 * unknown dtypes, shapes whose product overflows or does not match the bytes, holes, overlaps,
 * bytes after the last tensor. Tensors point into the map; nothing is copied.
 *
 * Source: safetensors format page.
 * Thread: const after open. */
#pragma once

#include "runtime/base/dtype.h"
#include "runtime/base/file.h"

#define SP_TENSOR_DIMS_MAX 8

typedef struct sp_tensor {
    const char *name; /* owned by the file */
    sp_dtype dtype;
    int n_dims;
    int64_t shape[SP_TENSOR_DIMS_MAX];
    const void *data; /* NULL when it has no elements; may be unaligned */
    size_t bytes;
} sp_tensor;

typedef struct sp_safetensors sp_safetensors;

/** Errors: SP_E_NOTFOUND, SP_E_IO, SP_E_FORMAT or SP_E_UNSUPPORTED: "'path': tensor 'x': what was
 * seen, what is wanted". */
SP_NODISCARD sp_status sp_safetensors_open(sp_safetensors **out, const char *path, sp_err *err);
void sp_safetensors_close(sp_safetensors *s);
int sp_safetensors_count(const sp_safetensors *s);
const sp_tensor *sp_safetensors_at(const sp_safetensors *s, int i); /* in order of offset */
const sp_tensor *sp_safetensors_find(const sp_safetensors *s, const char *name); /* or NULL */
