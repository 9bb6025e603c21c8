/* runtime/text/jinja_value.h - the values of a render: Python's, as far as templates see them.
 *
 * Small values are held in place, the rest lies in the arena of the render and is never freed
 * before its end; nothing is counted. Lists, tuples and dicts never change once a template can see
 * them (the sandbox of transformers forbids it), so they are shared freely.
 * A string is UTF-8 and is indexed by code points; one that is plain ASCII is indexed at once.
 * A string made by joining two keeps spare room behind it, so that a template that adds to a
 * string in a loop costs linear time and memory.
 *
 * Every function that can fail takes the render, which holds the error, the arena and the limits.
 *
 * Source: Python 3 data model; Jinja2 3.1 Undefined.
 * Thread: a render's own. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

typedef struct sp_jrun sp_jrun;     /* a render: jinja_eval.h */
typedef struct sp_jiter sp_jiter;   /* jinja_iter.h */
typedef struct sp_jmacro sp_jmacro; /* jinja_eval.h */
typedef struct sp_jloop sp_jloop;   /* jinja_eval.h */

typedef enum sp_jtype {
    SP_J_MISSING, /* no value at all: an argument that was not given */
    SP_J_UNDEFINED,
    SP_J_NONE,
    SP_J_BOOL,
    SP_J_INT,
    SP_J_BIG, /* an integer beyond 64 bits: printed and compared, never computed with */
    SP_J_FLOAT,
    SP_J_STR,
    SP_J_LIST,
    SP_J_TUPLE,
    SP_J_DICT,
    SP_J_VIEW, /* keys(), values() or items() of a dict */
    SP_J_RANGE,
    SP_J_NAMESPACE,
    SP_J_ITER,   /* a generator: lazy, consumed once */
    SP_J_FN,     /* a global function */
    SP_J_METHOD, /* a method with its object */
    SP_J_MACRO,
    SP_J_LOOP,
    SP_J_CYCLER,
    SP_J_JOINER,
} sp_jtype;

typedef struct sp_jstr {
    const char *ptr;
    size_t len;
    size_t n_chars;        /* code points; SIZE_MAX: not counted yet */
    struct sp_jtext *tail; /* the text this string ends in and may grow into, or NULL */
} sp_jstr;

typedef struct sp_jundef {
    const char *hint;     /* whole message, or NULL */
    const char *owner;    /* type that lacks the attribute, or NULL: a variable */
    struct sp_jval *name; /* what was looked for, or NULL */
} sp_jundef;

typedef struct sp_jval {
    uint8_t type;
    bool mark; /* STR: Markup, escapes what is added to it; TUPLE: (grouper, list) of groupby */
    union {
        bool b;
        int64_t i;
        double f;
        sp_jstr *s; /* STR, BIG */
        struct sp_jlist *list;
        struct sp_jdict *dict; /* DICT, NAMESPACE */
        struct sp_jview *view;
        struct sp_jrange *range;
        sp_jundef *undef;
        sp_jiter *iter;
        const struct sp_jglobal *fn;
        struct sp_jbound *bound;
        sp_jmacro *macro;
        sp_jloop *loop;
        struct sp_jcycler *cycler; /* CYCLER, JOINER */
    };
} sp_jval;

typedef struct sp_jlist {
    sp_jval *at;
    size_t n, cap;
} sp_jlist;

typedef struct sp_jentry {
    sp_jval key, value;
    uint64_t hash;
} sp_jentry;

/* Insertion order; `index` (open addressing, entry number + 1) exists from 9 entries on. */
typedef struct sp_jdict {
    sp_jentry *at;
    size_t n, cap;
    uint32_t *index;
    size_t index_size; /* a power of two, or 0 */
} sp_jdict;

typedef enum sp_jview_kind {
    SP_J_KEYS,
    SP_J_VALUES,
    SP_J_ITEMS
} sp_jview_kind;
typedef struct sp_jview {
    sp_jdict *dict;
    sp_jview_kind kind;
} sp_jview;

typedef struct sp_jrange {
    int64_t start, step, n;
    int64_t stop; /* as given, for printing */
} sp_jrange;

typedef struct sp_jcycler {
    sp_jlist *items; /* JOINER: one, the separator */
    size_t at;       /* JOINER: 0 until first used */
} sp_jcycler;

/** Bytes being written, in the arena. */
typedef struct sp_jtext {
    char *ptr;
    size_t len, cap;
} sp_jtext;

/* The render's services. */

/** Fails with words; puts the line in front. Answers SP_E_FORMAT. */
sp_status sp_jrun_fail(sp_jrun *r, const char *fmt, ...) SP_PRINTF(2, 3);
/** Zeroed memory until the end of the render. Errors: SP_E_TOOLONG the limit, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_jrun_take(sp_jrun *r, size_t size, void **out);
/** Counts work. Errors: SP_E_TOOLONG the limit on steps is reached. */
SP_NODISCARD sp_status sp_jrun_charge(sp_jrun *r, uint64_t steps);
/** One level deeper, for whatever recurses; pair with sp_jrun_leave() on success. */
SP_NODISCARD sp_status sp_jrun_enter(sp_jrun *r);
void sp_jrun_leave(sp_jrun *r);

static inline sp_jval sp_jval_missing(void) {
    return (sp_jval){.type = SP_J_MISSING};
}
static inline sp_jval sp_jval_none(void) {
    return (sp_jval){.type = SP_J_NONE};
}
static inline sp_jval sp_jval_bool(bool b) {
    return (sp_jval){.type = SP_J_BOOL, .b = b};
}
static inline sp_jval sp_jval_int(int64_t i) {
    return (sp_jval){.type = SP_J_INT, .i = i};
}
static inline sp_jval sp_jval_float(double f) {
    return (sp_jval){.type = SP_J_FLOAT, .f = f};
}
static inline sp_jval sp_jval_list(sp_jlist *l) {
    return (sp_jval){.type = SP_J_LIST, .list = l};
}
static inline sp_jval sp_jval_tuple(sp_jlist *l) {
    return (sp_jval){.type = SP_J_TUPLE, .list = l};
}
static inline bool sp_jval_is_int(sp_jval v) {
    return v.type == SP_J_INT || v.type == SP_J_BOOL;
}
static inline int64_t sp_jval_as_int(sp_jval v) {
    return v.type == SP_J_BOOL ? v.b : v.i;
}
static inline bool sp_jval_is_number(sp_jval v) {
    return sp_jval_is_int(v) || v.type == SP_J_FLOAT || v.type == SP_J_BIG;
}
static inline sp_slice sp_jval_slice(sp_jval str) {
    return (sp_slice){str.s->ptr, str.s->len};
}
/** INT, BOOL, BIG or FLOAT as a double. */
double sp_jval_as_float(sp_jval v);

/** A string that borrows `s` until the end of the render. */
SP_NODISCARD sp_status sp_jval_str(sp_jrun *r, sp_slice s, sp_jval *out);
SP_NODISCARD sp_status sp_jval_str_copy(sp_jrun *r, sp_slice s, sp_jval *out);
SP_NODISCARD sp_status sp_jval_undefined(sp_jrun *r, const char *hint, const char *owner,
                                         sp_jval name, sp_jval *out);
/** Fails with what an undefined value says when it is used. */
sp_status sp_jval_fail_undefined(sp_jrun *r, sp_jval undefined);
/** The value of parsed JSON; strings are borrowed from it. */
SP_NODISCARD sp_status sp_jval_of_json(sp_jrun *r, const sp_json_node *node, sp_jval *out);

/** The code points of a string; remembered. */
size_t sp_jstr_chars(sp_jstr *s);
/** The byte at which code point `index` (0..n_chars) begins. */
size_t sp_jstr_byte(sp_jstr *s, size_t index);
/** `a` + `b` as text: in place when `a` ends in a text with room. */
SP_NODISCARD sp_status sp_jval_concat(sp_jrun *r, sp_jval a, sp_slice b, sp_jval *out);

SP_NODISCARD sp_status sp_jtext_put(sp_jrun *r, sp_jtext *t, sp_slice s);
SP_NODISCARD sp_status sp_jtext_puts(sp_jrun *r, sp_jtext *t, const char *s);
SP_NODISCARD sp_status sp_jtext_char(sp_jrun *r, sp_jtext *t, uint32_t cp);
/** `n` times `s`. */
SP_NODISCARD sp_status sp_jtext_fill(sp_jrun *r, sp_jtext *t, sp_slice s, int64_t n);
SP_NODISCARD sp_status sp_jtext_done(sp_jrun *r, const sp_jtext *t, sp_jval *out);

SP_NODISCARD sp_status sp_jlist_create(sp_jrun *r, size_t cap, sp_jlist **out);
SP_NODISCARD sp_status sp_jlist_push(sp_jrun *r, sp_jlist *l, sp_jval v);
/** A tuple of two. */
SP_NODISCARD sp_status sp_jval_pair(sp_jrun *r, sp_jval a, sp_jval b, sp_jval *out);

SP_NODISCARD sp_status sp_jdict_create(sp_jrun *r, size_t cap, sp_jdict **out);
SP_NODISCARD sp_status sp_jdict_put(sp_jrun *r, sp_jdict *d, sp_jval key, sp_jval value);
/** `*out` is MISSING when there is no such key. Errors: SP_E_FORMAT the key cannot be hashed. */
SP_NODISCARD sp_status sp_jdict_get(sp_jrun *r, const sp_jdict *d, sp_jval key, sp_jval *out);
/** The value under a string key, or NULL. */
const sp_jval *sp_jdict_find(const sp_jdict *d, sp_slice key);

const char *sp_jval_type_name(sp_jval v); /* "str", "NoneType", … */
/** Whether v can be a key; a tuple only when all in it can. */
SP_NODISCARD sp_status sp_jval_hashable(sp_jrun *r, sp_jval v, bool *out);
bool sp_jval_truth(sp_jval v);
SP_NODISCARD sp_status sp_jval_eq(sp_jrun *r, sp_jval a, sp_jval b, bool *out);
/** a < b. Errors: SP_E_FORMAT for types without an order. */
SP_NODISCARD sp_status sp_jval_less(sp_jrun *r, sp_jval a, sp_jval b, bool *out);
/** a <= b, which NaN and nested lists make more than "not b < a". */
SP_NODISCARD sp_status sp_jval_less_equal(sp_jrun *r, sp_jval a, sp_jval b, bool *out);
/** len(v); false for what has none. */
bool sp_jval_len(sp_jval v, size_t *out);
/** `needle in hay`. */
SP_NODISCARD sp_status sp_jval_in(sp_jrun *r, sp_jval needle, sp_jval hay, bool *out);

/** Sorts `items` by `keys`, stable also when reversed, as sorted() does; both have the same length.
 * Errors: SP_E_FORMAT keys that have no order. */
SP_NODISCARD sp_status sp_jlist_sort(sp_jrun *r, sp_jlist *items, const sp_jlist *keys,
                                     bool reverse);

/* Text of values (jinja_print.c). */
SP_NODISCARD sp_status sp_jval_put_str(sp_jrun *r, sp_jval v, sp_jtext *t);  /* str(v) */
SP_NODISCARD sp_status sp_jval_put_repr(sp_jrun *r, sp_jval v, sp_jtext *t); /* repr(v) */
/** str(v) as a value; a string is given back as it is. */
SP_NODISCARD sp_status sp_jval_to_str(sp_jrun *r, sp_jval v, sp_jval *out);
/** Python's repr of a double; at least 32 bytes. */
void sp_jfloat_repr(double v, char out[32]);

typedef struct sp_jjson_options {
    bool ascii;  /* escape all but ASCII */
    bool pretty; /* one item a line, indented by `indent` */
    bool sort_keys;
    sp_slice indent;
    sp_slice item, colon; /* separators */
} sp_jjson_options;
/** json.dumps(v). */
SP_NODISCARD sp_status sp_jval_put_json(sp_jrun *r, sp_jval v, const sp_jjson_options *o,
                                        sp_jtext *t);
