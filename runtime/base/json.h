/* runtime/base/json.h - strict JSON in, JSON out.
 *
 * Reading: our own scan proves the text first (RFC 8259 to the letter, valid UTF-8, bounded depth,
 * no duplicate keys), then cJSON builds the tree. Two things that cJSON alone loses are kept: how a
 * number was written (1 or 1.0 or 2^63-1), and a NUL inside a string.
 * Reads are checked: sp_json_get_* say in words which path was wrong and what was wanted.
 * Writing: a streaming writer into an sp_buf; it puts the commas.
 *
 * Source: RFC 8259. Thread: any; a tree belongs to one thread at a time. */
#pragma once

#include "runtime/base/str.h"

#include <stdint.h>

typedef struct sp_json sp_json;    /* a whole document */
typedef struct cJSON sp_json_node; /* a value inside it; borrowed from the document */

typedef enum sp_json_type {
    SP_JSON_NULL,
    SP_JSON_BOOL,
    SP_JSON_INT,   /* written without '.', 'e' and fits int64 */
    SP_JSON_FLOAT, /* any other number */
    SP_JSON_STRING,
    SP_JSON_ARRAY,
    SP_JSON_OBJECT,
} sp_json_type;

#define SP_JSON_DEPTH_MAX 128

/** Parses one JSON text. `depth_max` 0 means SP_JSON_DEPTH_MAX. The bytes are not kept.
 * Owner:  caller; ends with sp_json_free().
 * Errors: SP_E_FORMAT   not JSON; says what was seen at which byte, or which key came twice
 *         SP_E_TOOLONG  nested deeper than depth_max
 *         SP_E_NOMEM */
SP_NODISCARD sp_status sp_json_parse(sp_json **out, sp_slice text, int depth_max, sp_err *err);
void sp_json_free(sp_json *doc);
const sp_json_node *sp_json_root(const sp_json *doc);

sp_json_type sp_json_type_of(const sp_json_node *v);
const char *sp_json_type_name(sp_json_type t); /* "a string", "an object", … for messages */

/* Walking. All take NULL and then answer NULL, 0 or an empty slice. */
const sp_json_node *sp_json_find(const sp_json_node *object, const char *key); /* NULL: absent */
const sp_json_node *sp_json_at(const sp_json_node *array, int index);          /* O(index) */
const sp_json_node *sp_json_first(const sp_json_node *container);
const sp_json_node *sp_json_next(const sp_json_node *v);
int sp_json_count(const sp_json_node *container);
sp_slice sp_json_key(const sp_json_node *v); /* of a member of an object */
bool sp_json_is_null(const sp_json_node *v); /* true also for NULL: absent and null are the same */

/* Values; the type must have been looked at. */
sp_slice sp_json_string(const sp_json_node *v); /* borrowed from the document; may hold NULs */
int64_t sp_json_int(const sp_json_node *v);
double sp_json_number(const sp_json_node *v); /* of INT or FLOAT */
bool sp_json_bool(const sp_json_node *v);

/* Checked reads of an object's member. Absent or null leaves *out alone and answers SP_OK.
 * Errors: SP_E_INVALID "key: want an integer, got a string". */
SP_NODISCARD sp_status sp_json_get_bool(const sp_json_node *o, const char *key, bool *out,
                                        sp_err *err);
SP_NODISCARD sp_status sp_json_get_int(const sp_json_node *o, const char *key, int64_t min,
                                       int64_t max, int64_t *out, sp_err *err);
SP_NODISCARD sp_status sp_json_get_number(const sp_json_node *o, const char *key, double *out,
                                          sp_err *err);
SP_NODISCARD sp_status sp_json_get_string(const sp_json_node *o, const char *key, sp_slice *out,
                                          sp_err *err);
SP_NODISCARD sp_status sp_json_get_object(const sp_json_node *o, const char *key,
                                          const sp_json_node **out, sp_err *err);
SP_NODISCARD sp_status sp_json_get_array(const sp_json_node *o, const char *key,
                                         const sp_json_node **out, sp_err *err);

/* Writing. Call key then a value inside objects; values alone inside arrays. */
typedef struct sp_jw {
    sp_buf *out;
    bool comma; /* the next value or key needs one before it */
} sp_jw;

static inline sp_jw sp_jw_on(sp_buf *out) {
    return (sp_jw){.out = out};
}
void sp_jw_object(sp_jw *w);
void sp_jw_object_end(sp_jw *w);
void sp_jw_array(sp_jw *w);
void sp_jw_array_end(sp_jw *w);
void sp_jw_key(sp_jw *w, const char *key);
void sp_jw_null(sp_jw *w);
void sp_jw_bool(sp_jw *w, bool v);
void sp_jw_int(sp_jw *w, int64_t v);
void sp_jw_number(sp_jw *w,
                  double v); /* shortest text that reads back the same; not finite: null */
void sp_jw_string(sp_jw *w, sp_slice s);          /* bytes that are not UTF-8 become U+FFFD */
void sp_jw_raw(sp_jw *w, sp_slice json);          /* a value already written as JSON */
void sp_jw_node(sp_jw *w, const sp_json_node *v); /* a parsed value, as it was read */
static inline void sp_jw_str(sp_jw *w, const char *s) {
    sp_jw_string(w, sp_slice_of(s));
}
