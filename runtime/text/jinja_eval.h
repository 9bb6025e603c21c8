/* runtime/text/jinja_eval.h - a render: its state, its scopes, and calling things.
 *
 * The tree is walked as it is; there is no bytecode. A scope is what a loop body, a macro or a
 * block with a body of its own opens ("if" opens none); names are looked up outwards through the
 * scopes that enclose them in the template, then among the variables of the render, then among the
 * global functions. A macro remembers the scope it was defined in and sees later changes there.
 *
 *   jinja_eval.c   statements, and sp_jinja_render()
 *   jinja_expr.c   expressions
 *   jinja_ops.c    arithmetic, attributes, subscripts, slices
 *   jinja_call.c   arguments, macros, loops as values, functions
 *   jinja_filters*.c, jinja_tests.c, jinja_methods*.c   tables of sp_jspec
 *
 * Source: Jinja2 3.1; transformers' ImmutableSandboxedEnvironment.
 * Thread: a render belongs to one thread. */
#pragma once

#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_iter.h"

#define SP_J_PARAMS_MAX 8
#define SP_J_RANGE_MAX 100000 /* as the sandbox of Jinja2 */

typedef struct sp_jbinding {
    int name;
    sp_jval value;
} sp_jbinding;

typedef struct sp_jscope sp_jscope;
struct sp_jscope {
    sp_jscope *up;
    sp_jbinding *at;
    int n, cap;
};

typedef enum sp_jflow {
    SP_JFLOW_NEXT,
    SP_JFLOW_BREAK,
    SP_JFLOW_CONTINUE
} sp_jflow;

struct sp_jrun {
    const sp_jinja *t;
    sp_arena arena;
    sp_err *err;
    int64_t steps_left;
    int levels, levels_max; /* of C recursion */
    int calls, calls_max;   /* of macros and recursive loops */
    size_t memory_max, output_max;
    int line;
    sp_jscope *scope;
    sp_jtext *out;      /* where text goes now */
    sp_jval block_text; /* what the filters of a filter or set block work on */
    sp_jflow flow;
    int64_t now_unix_s;
    bool refused; /* raise_exception() was called; its words are in `refusal` */
    sp_jval refusal;
};

struct sp_jmacro {
    const sp_jnode *node; /* MACRO, CALLBLOCK */
    sp_jscope *scope;
};

struct sp_jloop {
    const sp_jnode *node; /* FOR */
    sp_jscope *scope;     /* the one around the loop */
    sp_jval over;         /* what is iterated */
    sp_jiter *it;
    int64_t index0;
    int64_t length; /* -1: not known */
    int depth0;
    sp_jval before, current, after; /* MISSING: none */
    sp_jlist *changed;              /* arguments of the last changed(), or NULL */
};

/* --- calling --- */

typedef struct sp_jcall {
    const sp_jval *pos;
    int n;
    const sp_slice *names;
    const sp_jval *named;
    int n_named;
} sp_jcall;

/** A filter (self: the value), a test (self: the value; gives a bool), a method (self: the object)
 * or a function (self: MISSING). `v` holds the bound parameters, MISSING where none was given. */
typedef sp_status sp_jfn(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out);

typedef struct sp_jspec {
    const char *name;
    sp_jfn *fn;         /* NULL: known, and refused by name when called */
    const char *params; /* names with blanks between; "*": anything, left in `c` */
    int required;
} sp_jspec;

typedef struct sp_jglobal {
    sp_jspec spec;
} sp_jglobal;

typedef struct sp_jbound {
    sp_jval self;
    const sp_jspec *spec;
} sp_jbound;

const sp_jspec *sp_jspec_find(const sp_jspec *table, size_t n, sp_slice name);
/** Binds `c` to the parameters of `spec` and calls it. */
SP_NODISCARD sp_status sp_jspec_call(sp_jrun *r, const sp_jspec *spec, sp_jval self,
                                     const sp_jcall *c, sp_jval *out);
/** Calls any callable value. Errors: SP_E_FORMAT it is none. */
SP_NODISCARD sp_status sp_jval_call(sp_jrun *r, sp_jval f, const sp_jcall *c, sp_jval *out);
bool sp_jval_callable(sp_jval v);
const sp_jval *sp_jcall_named(const sp_jcall *c, const char *name); /* or NULL */

const sp_jspec *sp_jfilter_find(sp_slice name); /* NULL: unknown */
const sp_jspec *sp_jtest_find(sp_slice name);
/** The method `name` of a value's type, or NULL; `*mutates`: the sandbox refuses it. */
const sp_jspec *sp_jmethod_find(sp_jval self, sp_slice name, bool *mutates);
const sp_jspec *sp_jstr_method_find(sp_slice name);
const sp_jglobal *sp_jglobal_find(sp_slice name);
/* The filters by kind, for sp_jfilter_find(). */
const sp_jspec *sp_jfilter_find_list(sp_slice name);
const sp_jspec *sp_jfilter_find_lazy(sp_slice name);
const sp_jspec *sp_jfilter_find_text(sp_slice name);

/* --- evaluating --- */

SP_NODISCARD sp_status sp_jrun_eval(sp_jrun *r, const sp_jnode *n, sp_jval *out);
SP_NODISCARD sp_status sp_jrun_exec(sp_jrun *r, const sp_jnodes *body);
/** Executes `body` and gives what it wrote as a string. */
SP_NODISCARD sp_status sp_jrun_capture(sp_jrun *r, const sp_jnodes *body, sp_jval *out);
/** The arguments of a CALL, FILTER or TEST; `extra` are added as keyword `caller` when not
 * MISSING. */
SP_NODISCARD sp_status sp_jrun_args(sp_jrun *r, const sp_jnodes *args, sp_jval caller,
                                    sp_jcall *out);
/** A scope inside `up` in which `hidden` (may be NULL) names are undefined. */
SP_NODISCARD sp_status sp_jrun_open_scope(sp_jrun *r, sp_jscope *up, const sp_jnames *hidden,
                                          sp_jscope **out);
/** Empties a scope for the next iteration. */
SP_NODISCARD sp_status sp_jrun_reset_scope(sp_jrun *r, sp_jscope *s, const sp_jnames *hidden);
SP_NODISCARD sp_status sp_jrun_bind(sp_jrun *r, sp_jscope *s, int name, sp_jval v);
/** Assigns to a target: a name, a tuple of targets, an attribute of a namespace. */
SP_NODISCARD sp_status sp_jrun_assign(sp_jrun *r, sp_jscope *s, const sp_jnode *target, sp_jval v);
SP_NODISCARD sp_status sp_jrun_lookup(sp_jrun *r, int name, sp_slice text, sp_jval *out);
/** Runs a loop over `over`; its text goes to r->out. */
SP_NODISCARD sp_status sp_jrun_loop(sp_jrun *r, const sp_jnode *n, sp_jscope *around, sp_jval over,
                                    int depth0);
SP_NODISCARD sp_status sp_jmacro_call(sp_jrun *r, sp_jmacro *m, const sp_jcall *c, sp_jval *out);
sp_slice sp_jmacro_name(const sp_jmacro *m); /* ptr NULL: it has none */

/** obj.name: attribute first, then item. `name` is a string. */
SP_NODISCARD sp_status sp_jval_getattr(sp_jrun *r, sp_jval obj, sp_jval name, sp_jval *out);
/** obj[key]: item first, then attribute. */
SP_NODISCARD sp_status sp_jval_getitem(sp_jrun *r, sp_jval obj, sp_jval key, sp_jval *out);
/** The attribute alone; MISSING when there is none. */
SP_NODISCARD sp_status sp_jval_attr(sp_jrun *r, sp_jval obj, sp_slice name, sp_jval *out);
/** obj[from:to:step]; NONE for what was left out. */
SP_NODISCARD sp_status sp_jval_getslice(sp_jrun *r, sp_jval obj, const sp_jval part[3],
                                        sp_jval *out);
SP_NODISCARD sp_status sp_jval_binary(sp_jrun *r, sp_jtok op, sp_jval a, sp_jval b, sp_jval *out);
SP_NODISCARD sp_status sp_jval_negate(sp_jrun *r, sp_jval v, sp_jval *out);
/** What `loop.name` is; MISSING when there is none. */
SP_NODISCARD sp_status sp_jloop_attr(sp_jrun *r, sp_jloop *loop, sp_slice name, sp_jval *out);

/* --- shared by the tables --- */

/** An integer argument, or `otherwise` when MISSING. Errors: SP_E_FORMAT another type. */
SP_NODISCARD sp_status sp_jarg_int(sp_jrun *r, sp_jval v, int64_t otherwise, int64_t *out);
/** A string argument. */
SP_NODISCARD sp_status sp_jarg_str(sp_jrun *r, sp_jval v, const char *otherwise, sp_slice *out);
static inline bool sp_jarg_given(sp_jval v) {
    return v.type != SP_J_MISSING;
}
static inline bool sp_jarg_given_some(sp_jval v) {
    return v.type != SP_J_MISSING && v.type != SP_J_NONE;
}

/** The `attribute=` of filters: "a.b.0" is a path of items. */
typedef struct sp_jgetter {
    sp_jlist *parts;
    sp_jval otherwise; /* for what is undefined; NONE or MISSING: leave it */
    bool ignore_case;
} sp_jgetter;
SP_NODISCARD sp_status sp_jgetter_init(sp_jrun *r, sp_jgetter *g, sp_jval attribute);
SP_NODISCARD sp_status sp_jgetter_get(sp_jrun *r, const sp_jgetter *g, sp_jval item, sp_jval *out);

/** markupsafe.escape(v): Markup is given back as it is. */
SP_NODISCARD sp_status sp_jval_escape(sp_jrun *r, sp_jval v, sp_jval *out);
/** format % value, as Python's str does. */
SP_NODISCARD sp_status sp_jval_percent(sp_jrun *r, sp_jval format, sp_jval value, sp_jval *out);
/** format.format(...), without the attributes that a sandbox refuses. */
SP_NODISCARD sp_status sp_jval_format(sp_jrun *r, sp_jval format, const sp_jcall *c, sp_jval *out);
/** format(v, spec) for strings and numbers. */
SP_NODISCARD sp_status sp_jval_put_format(sp_jrun *r, sp_jval v, sp_slice spec, sp_jtext *t);
/** Cuts at `sep` (NULL: runs of whitespace) at most `max` times (< 0: always), from the left or the
 * right; gives a list of strings. */
SP_NODISCARD sp_status sp_jval_split(sp_jrun *r, sp_jval s, const sp_slice *sep, int64_t max,
                                     bool from_right, sp_jlist **out);
SP_NODISCARD sp_status sp_jval_splitlines(sp_jrun *r, sp_jval s, bool keep_ends, sp_jlist **out);
/** `s` with the first `max` (< 0: all) of `old` replaced. */
SP_NODISCARD sp_status sp_jval_replace(sp_jrun *r, sp_jval s, sp_slice old, sp_slice with,
                                       int64_t max, sp_jval *out);
/** Pads to `width` characters with `fill` (one character) on the left, right or both sides. */
SP_NODISCARD sp_status sp_jval_pad(sp_jrun *r, sp_jval s, int64_t width, sp_slice fill, int sides,
                                   sp_jval *out);
/** int(v) and float(v) of Python; `*ok` false: it would raise ValueError or TypeError. */
SP_NODISCARD sp_status sp_jval_parse_int(sp_jrun *r, sp_jval v, int64_t base, sp_jval *out,
                                         bool *ok);
bool sp_jval_parse_float(sp_jval v, double *out);
/** strftime() of a UTC time. */
SP_NODISCARD sp_status sp_jrun_strftime(sp_jrun *r, sp_slice format, sp_jval *out);
