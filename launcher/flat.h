/* launcher/flat.h - a flat struct as a JSON object and back, by one table of its fields.
 *
 * For what processes of the pod tell one another at the start: a person can read it in a log, every
 * key must be there and none other may.
 *
 * Thread: any; tables are const. */
#pragma once

#include "runtime/base/json.h"

typedef enum sp_flat_kind {
    SP_FLAT_TEXT,   /* char[size] */
    SP_FLAT_NUMBER, /* int64_t, min..max */
    SP_FLAT_FLAG,   /* bool */
} sp_flat_kind;

typedef struct sp_flat_row {
    const char *key;
    sp_flat_kind kind;
    size_t offset, size;
    int64_t min, max;
} sp_flat_row;

#define SP_FLAT_TEXT_ROW(type, field) \
    { #field, SP_FLAT_TEXT, offsetof(type, field), sizeof(((type *)0)->field), 0, 0 }
#define SP_FLAT_NUMBER_ROW(type, field, min, max) \
    { #field, SP_FLAT_NUMBER, offsetof(type, field), 0, (min), (max) }
#define SP_FLAT_FLAG_ROW(type, field) \
    { #field, SP_FLAT_FLAG, offsetof(type, field), 0, 0, 0 }

/** Writes the object of the struct at `at`. */
void sp_flat_write(const void *at, const sp_flat_row *rows, size_t n, sp_jw *w);

/** Fills the struct at `at`, which must be zeroed.
 * Errors: SP_E_INVALID a key that is missing, unknown, of the wrong type or out of range, by name. */
SP_NODISCARD sp_status sp_flat_read(void *at, const sp_flat_row *rows, size_t n,
                                    const sp_json_node *root, sp_err *err);

/** The same from text. Errors: SP_E_FORMAT not JSON. */
SP_NODISCARD sp_status sp_flat_parse(void *at, const sp_flat_row *rows, size_t n, sp_slice json,
                                     sp_err *err);
