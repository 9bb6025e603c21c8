/* runtime/text/jinja_parse.h - what the two halves of the parser share.
 *
 * jinja_parse.c reads statements, jinja_parse_expr.c the operators of expressions,
 * jinja_parse_primary.c what they work on; recursive descent, one function a rule of the grammar,
 * and no rule nests deeper than SP_JINJA_NEST_MAX.
 *
 * Source: Jinja2 3.1 template designer documentation.
 * Thread: any; a parser belongs to one call. */
#pragma once

#include "runtime/text/jinja_ast.h"

typedef struct sp_jparser {
    sp_jinja *t;
    const sp_jtoken *at; /* current token */
    sp_err *err;
    int nest;
    int loops;    /* for loops around, inside the innermost macro */
    int mentions; /* SP_JM_* of the innermost macro */
    int in_for;   /* for loops around at all: their "loop" is not assigned to */
    int *name_index, name_index_size;
} sp_jparser;

typedef struct sp_jnode_list {
    sp_jnode **at; /* sp_free() */
    int n, cap;
} sp_jnode_list;

SP_NODISCARD sp_status sp_jparser_node(sp_jparser *p, sp_jkind kind, int line, sp_jnode **out);
/** A node over `a` and `b`, either of which may be NULL. */
SP_NODISCARD sp_status sp_jparser_new(sp_jparser *p, sp_jkind kind, int line, sp_jnode *a,
                                      sp_jnode *b, sp_jnode **out);
/** Sets the depth of `n` from its children. Errors: SP_E_TOOLONG. */
SP_NODISCARD sp_status sp_jparser_seal(sp_jparser *p, sp_jnode *n);
SP_NODISCARD sp_status sp_jparser_push(sp_jparser *p, sp_jnode_list *l, sp_jnode *n);
/** Moves a list into the template; frees it also on failure. */
SP_NODISCARD sp_status sp_jparser_keep(sp_jparser *p, sp_jnode_list *l, sp_jnodes *out);
/** The number of a name. */
SP_NODISCARD sp_status sp_jparser_name(sp_jparser *p, sp_slice name, int *out);
/** A string constant for `value`. */
SP_NODISCARD sp_status sp_jparser_string(sp_jparser *p, sp_slice s, sp_jval *out);

SP_NODISCARD sp_status sp_jparser_enter(sp_jparser *p);
sp_status sp_jparser_fail(sp_jparser *p, const char *fmt, ...) SP_PRINTF(2, 3);
/** "expected X, got Y" at the current token. */
sp_status sp_jparser_unexpected(sp_jparser *p, const char *wanted);
SP_NODISCARD sp_status sp_jparser_expect(sp_jparser *p, sp_jtok type);
bool sp_jparser_skip(sp_jparser *p, sp_jtok type);
bool sp_jparser_is_name(const sp_jtoken *t, const char *word);
bool sp_jparser_skip_name(sp_jparser *p, const char *word);

typedef struct sp_jtuple_rules {
    bool targets;     /* names and literals only, as on the left of an assignment */
    bool no_cond;     /* no inline if */
    bool parentheses; /* () is a tuple */
    bool namespaces;  /* targets: ns.attr too */
} sp_jtuple_rules;

SP_NODISCARD sp_status sp_jparser_expression(sp_jparser *p, sp_jnode **out);
SP_NODISCARD sp_status sp_jparser_tuple(sp_jparser *p, sp_jtuple_rules rules, sp_jnode **out);
/** A literal, a name or something in brackets; `rules` (may be NULL): of the tuple around. */
SP_NODISCARD sp_status sp_jparser_primary(sp_jparser *p, const sp_jtuple_rules *rules,
                                          sp_jnode **out);
/** That with signs, attributes, subscripts, calls and, when `filters`, filters and tests. */
SP_NODISCARD sp_status sp_jparser_unary(sp_jparser *p, bool filters, sp_jnode **out);
/** A chain of filters over `node` (NULL: over a block's text); `named`: the current token is the
 * first filter's name, otherwise '|' comes first. `*out` is `node` when there is none. */
SP_NODISCARD sp_status sp_jparser_filters(sp_jparser *p, sp_jnode *node, bool named,
                                          sp_jnode **out);
