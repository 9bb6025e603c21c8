/* runtime/text/jinja.h - a Jinja engine for chat templates: parse once, render often.
 *
 * The language of Jinja2 as chat templates use it: expressions, filters, tests, macros, namespaces,
 * loops with else/break/continue, call blocks, set blocks, filters blocks, generation blocks,
 * whitespace control. A template is data: rendering has limits on steps, depth, output bytes and
 * time, touches no file, and fails with words.
 * jinja_lex.c and jinja_parse*.c make the tree, jinja_value.c and its neighbours are the values,
 * jinja_eval.h lists the evaluator's files; the filters, tests and methods are tables.
 *
 * Source: Jinja2 3.1 documentation; transformers' chat-template environment.
 * Thread: a parsed template is const; each render has its own state. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

typedef struct sp_jinja sp_jinja;

typedef struct sp_jinja_options {
    bool trim_blocks, lstrip_blocks; /* both set for chat templates */
} sp_jinja_options;

/** Parses `source` (copied). Errors: SP_E_FORMAT with line and what was seen; SP_E_TOOLONG;
 * SP_E_UNSUPPORTED names a statement we do not have (import, include, extends, …). */
SP_NODISCARD sp_status sp_jinja_parse(sp_jinja **out, sp_slice source, sp_jinja_options options,
                                      sp_err *err);
void sp_jinja_free(sp_jinja *t);

typedef struct sp_jinja_limits { /* 0: the default */
    int64_t steps;               /* evaluated nodes; default 20 million */
    int depth;                   /* nested calls and expressions; default 200 */
    size_t output_bytes;         /* default 64 MiB */
    size_t memory_bytes;         /* of values; default 256 MiB */
} sp_jinja_limits;

/** A variable of a render: a name and a JSON value. */
typedef struct sp_jinja_var {
    const char *name;
    const sp_json_node *value; /* NULL: None */
    sp_slice text;             /* used as a string when text.ptr is not NULL */
    int flag;                  /* 1 true, 2 false, 0: use value or text */
} sp_jinja_var;

/** Renders into `out`. `now_unix_s` is what strftime_now() formats (UTC broken down as it is).
 * Errors: SP_E_INVALID the template called raise_exception: err->text is its message alone (as long
 *         as fits) and `*refused` (may be NULL) is set; SP_E_FORMAT the template fails on this
 *         data, with words; SP_E_UNSUPPORTED a filter or method we refuse by name; SP_E_TOOLONG a
 *         limit was hit (named). */
SP_NODISCARD sp_status sp_jinja_render(const sp_jinja *t, const sp_jinja_var *vars, int n_vars,
                                       const sp_jinja_limits *limits, int64_t now_unix_s,
                                       sp_buf *out, bool *refused, sp_err *err);

/** The same, and `refusal` (may be NULL) receives the whole message of raise_exception, which may
 * be longer than err->text. */
SP_NODISCARD sp_status sp_jinja_render_full(const sp_jinja *t, const sp_jinja_var *vars, int n_vars,
                                            const sp_jinja_limits *limits, int64_t now_unix_s,
                                            sp_buf *out, sp_buf *refusal, bool *refused,
                                            sp_err *err);

/** True when the template iterates over or subscripts a message's content as a list of parts
 * ("openai" content format), so that parts are passed as they are; false: joined to one string. */
bool sp_jinja_wants_parts(const sp_jinja *t);
