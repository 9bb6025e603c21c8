/* runtime/text/jinja_ast.h - tokens and the tree of a parsed template.
 *
 * One node type for all: what `a`, `b`, `c`, `list`, `more` and `args` hold is said at each kind.
 * So a walk that does not care about kinds (checks, content detection) needs no table. Nodes, names
 * and constants live in the arena of the template; a tree is at most SP_JINJA_TREE_MAX deep, which
 * bounds every recursion over it.
 *
 * Thread: const after parsing. */
#pragma once

#include "runtime/text/jinja.h"
#include "runtime/text/jinja_value.h"

#define SP_JINJA_SOURCE_MAX ((size_t)1 << 20)
#define SP_JINJA_NEST_MAX 150 /* brackets, blocks and operands inside one another while parsing */
#define SP_JINJA_TREE_MAX 600

typedef enum sp_jtok {
    SP_JT_EOF,
    SP_JT_DATA,
    SP_JT_VAR_BEGIN,
    SP_JT_VAR_END,
    SP_JT_BLOCK_BEGIN,
    SP_JT_BLOCK_END,
    SP_JT_NAME,
    SP_JT_STRING,
    SP_JT_INT,
    SP_JT_FLOAT,
    /* Operators, as in the table of jinja_lex.c. */
    SP_JT_FLOORDIV,
    SP_JT_POW,
    SP_JT_EQ,
    SP_JT_NE,
    SP_JT_GE,
    SP_JT_LE,
    SP_JT_ADD,
    SP_JT_SUB,
    SP_JT_DIV,
    SP_JT_MUL,
    SP_JT_MOD,
    SP_JT_TILDE,
    SP_JT_LBRACKET,
    SP_JT_RBRACKET,
    SP_JT_LPAREN,
    SP_JT_RPAREN,
    SP_JT_LBRACE,
    SP_JT_RBRACE,
    SP_JT_GT,
    SP_JT_LT,
    SP_JT_ASSIGN,
    SP_JT_DOT,
    SP_JT_COLON,
    SP_JT_PIPE,
    SP_JT_COMMA,
    SP_JT_SEMICOLON,
    /* Only in trees: comparisons spelled with names. */
    SP_JT_IN,
    SP_JT_NOTIN,
} sp_jtok;

typedef struct sp_jtoken {
    sp_jtok type;
    int line;
    sp_slice text; /* STRING: unescaped; INT, FLOAT: without underscores */
} sp_jtoken;

typedef struct sp_jtokens {
    sp_jtoken *at; /* sp_free(); the texts live in the arena */
    size_t n, cap;
} sp_jtokens;

/** Cuts a template into tokens; whitespace control is done here. Errors: SP_E_FORMAT, SP_E_TOOLONG,
 * SP_E_NOMEM; `*out` then still needs sp_free(out->at). */
SP_NODISCARD sp_status sp_jinja_lex(sp_arena *arena, sp_slice source, sp_jinja_options options,
                                    sp_jtokens *out, sp_err *err);
const char *sp_jtok_text(sp_jtok t); /* "'}}'", "a name": for messages */

typedef enum sp_jkind {
    /* Expressions. */
    SP_JN_CONST,   /* value */
    SP_JN_NAME,    /* text, name */
    SP_JN_TUPLE,   /* list */
    SP_JN_LIST,    /* list */
    SP_JN_DICT,    /* list of PAIR */
    SP_JN_PAIR,    /* a: b */
    SP_JN_GETATTR, /* a.text; value: text as a string */
    SP_JN_GETITEM, /* a[b] */
    SP_JN_SLICE,   /* a:b:c, each may be NULL; only as b of GETITEM */
    SP_JN_CALL,    /* a(args) */
    SP_JN_FILTER,  /* a | text(args); a NULL: of a block */
    SP_JN_TEST,    /* a is text(args) */
    SP_JN_ARG,     /* a; op 0: positional, '=': keyword text, '*', '2': double star */
    SP_JN_NOT,     /* not a */
    SP_JN_NEG,     /* -a */
    SP_JN_POS,     /* +a */
    SP_JN_BINARY,  /* a op b */
    SP_JN_CONCAT,  /* list, joined by ~ */
    SP_JN_AND,     /* a and b */
    SP_JN_OR,      /* a or b */
    SP_JN_COND,    /* b if a else c; c may be NULL */
    SP_JN_COMPARE, /* a, then list of OPERAND */
    SP_JN_OPERAND, /* op a */
    SP_JN_NSREF,   /* name.text as a target; value: text as a string */
    /* Statements. */
    SP_JN_DATA,      /* text */
    SP_JN_OUTPUT,    /* a */
    SP_JN_IF,        /* list of BRANCH, more: else */
    SP_JN_BRANCH,    /* a: test, list: body */
    SP_JN_FOR,       /* a: target, b: over what, c: test or NULL, list, more: else, op: recursive */
    SP_JN_SET,       /* a: target, b: value */
    SP_JN_SETBLOCK,  /* a: target, b: FILTER chain or NULL, list */
    SP_JN_MACRO,     /* text, name, args: PARAM, list; op: SP_JM_* */
    SP_JN_PARAM,     /* text, name, a: default or NULL */
    SP_JN_CALLBLOCK, /* a: CALL, args: PARAM, list; op: SP_JM_* */
    SP_JN_FILTERBLOCK, /* b: FILTER chain, list */
    SP_JN_WITH,        /* args: SET, list */
    SP_JN_GENERATION,  /* list */
    SP_JN_BREAK,
    SP_JN_CONTINUE,
} sp_jkind;

/* What a macro's body mentions, which decides what it may be given. */
enum {
    SP_JM_CALLER = 1,
    SP_JM_KWARGS = 2,
    SP_JM_VARARGS = 4
};

/* Names every template has, by number. */
enum {
    SP_JNAME_LOOP,
    SP_JNAME_CALLER,
    SP_JNAME_KWARGS,
    SP_JNAME_VARARGS
};

typedef struct sp_jnode sp_jnode;
typedef struct sp_jnodes {
    sp_jnode **at;
    int n;
} sp_jnodes;

typedef struct sp_jnames {
    int *at;
    int n;
} sp_jnames;

struct sp_jnode {
    sp_jkind kind;
    int op;
    int line, depth;
    int name; /* number of the name in the template */
    sp_slice text;
    sp_jval value;
    const void *fn; /* FILTER, TEST: the function, NULL: unknown */
    sp_jnode *a, *b, *c;
    sp_jnodes list, more, args;
    sp_jnames hidden; /* of a node that opens a scope: names that are undefined until set */
};

struct sp_jinja {
    sp_arena arena;
    sp_jnodes body;
    sp_slice *names; /* by number */
    int n_names;
    sp_jnames hidden;
    bool wants_parts;
};

/** Builds the tree of `tokens` into `t`. Errors: SP_E_FORMAT, SP_E_UNSUPPORTED, SP_E_TOOLONG. */
SP_NODISCARD sp_status sp_jinja_build(sp_jinja *t, const sp_jtokens *tokens, sp_err *err);
/** Refuses unknown filters and tests where Jinja does so before rendering. */
SP_NODISCARD sp_status sp_jinja_check(const sp_jinja *t, sp_err *err);
/** Fills in the hidden names of all scopes. */
void sp_jinja_find_hidden(sp_jinja *t);
/** See sp_jinja_wants_parts(). */
bool sp_jinja_find_parts(const sp_jinja *t);
