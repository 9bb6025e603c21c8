/* frontend/fields.h - checked reads of a request's JSON that gather every violation.
 *
 * A client learns all that is wrong with its body at once: each read that fails adds a line with
 * the dotted path of the field ("messages.0.role"), the value wanted and the value seen, and reading
 * goes on. Absent and null are the same and never wrong here. Numbers written as strings are refused.
 *
 * Thread: one reader, one thread. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <stdarg.h>

#define SP_FIELDS_SHOWN_MAX 20
#define SP_FIELDS_PATH_MAX 120
#define SP_FIELDS_STRING_MAX 4096 /* names and ids; texts are read elsewhere */

typedef struct sp_fields {
    sp_arena *arena; /* of the request: what is read is copied there */
    sp_buf words;
    int n;                          /* violations */
    char first[SP_FIELDS_PATH_MAX]; /* path of the first one */
    char path[SP_FIELDS_PATH_MAX];  /* put before keys: "" or "messages.0." */
} sp_fields;

void sp_fields_init(sp_fields *f, sp_arena *arena);
void sp_fields_fini(sp_fields *f);
/** Adds a violation of `key` (NULL: of the path itself). */
void sp_fields_bad(sp_fields *f, const char *key, const char *fmt, ...) SP_PRINTF(3, 4);
/** All violations in one message, in the arena; NULL when there are none. */
const char *sp_fields_message(sp_fields *f);

/** Goes one step down ("messages", 0) and back. `mark` of enter is given to leave. */
size_t sp_fields_enter(sp_fields *f, const char *key, int index); /* index < 0: none */
void sp_fields_leave(sp_fields *f, size_t mark);

/* Reads of member `key` of `o`. True: it is there and good, and *out is set. */
bool sp_field_bool(sp_fields *f, const sp_json_node *o, const char *key, bool *out);
/** An integer in [min, max]; 5.0 counts as 5. */
bool sp_field_int(sp_fields *f, const sp_json_node *o, const char *key, int64_t min, int64_t max,
                  int64_t *out);
/** A number in [min, max], or (min, max] with `above_min`. */
bool sp_field_number(sp_fields *f, const sp_json_node *o, const char *key, double min, double max,
                     bool above_min, double *out);
/** A string; `out` is in the arena and NUL-terminated. */
bool sp_field_string(sp_fields *f, const sp_json_node *o, const char *key, sp_slice *out);
/** Borrowed from the document; NULL: absent or wrong. */
const sp_json_node *sp_field_array(sp_fields *f, const sp_json_node *o, const char *key,
                                   int max_items);
const sp_json_node *sp_field_object(sp_fields *f, const sp_json_node *o, const char *key);
/** A list of token ids in [0, n_vocab). */
bool sp_field_ids(sp_fields *f, const sp_json_node *o, const char *key, int max_items,
                  int32_t n_vocab, const int32_t **out, int32_t *n);

/** The items of `array` as token ids, into `out` [count]. False: one is not (said so). */
bool sp_fields_take_ids(sp_fields *f, const char *key, const sp_json_node *array, int32_t n_vocab,
                        int32_t *out);
/** Whether a node is an integer, and which; 5.0 counts as 5. */
bool sp_json_as_int(const sp_json_node *v, int64_t *out);
