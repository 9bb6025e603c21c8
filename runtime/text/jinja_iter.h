/* runtime/text/jinja_iter.h - going over values one by one, lazily.
 *
 * A for loop, a filter and Python's iter() all go through here. Filters such as map and select give
 * generators (SP_J_ITER): what they compute happens when an item is asked for, and only once, as in
 * Python; a template that breaks out of a loop does not pay for the rest.
 *
 * Source: Python's iterator protocol.
 * Thread: a render's own. */
#pragma once

#include "runtime/text/jinja_value.h"

/** Gives the next item or sets `*done`. */
typedef sp_status sp_jiter_fn(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done);

struct sp_jiter {
    sp_jiter_fn *next;
    const char *name; /* for printing and messages: "generator", "list_iterator" */
    sp_jval src;      /* what is gone over */
    size_t at;        /* position in it; what it counts is next()'s business */
    sp_jiter *up;     /* a filter's source */
    void *ctx;
    bool ended; /* set by sp_jiter_next(): a generator that ended stays so */
};

/** An iterator over `v`. A generator is given as it is, so two loops share it.
 * Errors: SP_E_FORMAT not iterable. */
SP_NODISCARD sp_status sp_jiter_open(sp_jrun *r, sp_jval v, sp_jiter **out);
/** From the last to the first. Errors: SP_E_FORMAT not reversible. */
SP_NODISCARD sp_status sp_jiter_open_reversed(sp_jrun *r, sp_jval v, sp_jiter **out);
/** A generator of the caller's own. */
SP_NODISCARD sp_status sp_jiter_create(sp_jrun *r, sp_jiter_fn *next, const char *name, void *ctx,
                                       sp_jiter **out);
SP_NODISCARD sp_status sp_jiter_next(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done);

bool sp_jval_iterable(sp_jval v);
bool sp_jval_reversible(sp_jval v);
/** list(v): always a new list. */
SP_NODISCARD sp_status sp_jiter_collect(sp_jrun *r, sp_jval v, sp_jlist **out);
/** Item `i` of a LIST, TUPLE, STR, RANGE, DICT (key) or VIEW; `i` is in range. */
SP_NODISCARD sp_status sp_jval_at(sp_jrun *r, sp_jval v, size_t i, sp_jval *out);
static inline sp_jval sp_jval_iter(sp_jiter *it) {
    return (sp_jval){.type = SP_J_ITER, .iter = it};
}
