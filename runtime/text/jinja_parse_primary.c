/* The innermost of an expression: literals and names, then attributes, subscripts and calls behind
 * them, then filters and tests. */
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_parse.h"

#include <stdlib.h>
#include <string.h>

sp_status sp_jparser_new(sp_jparser *p, sp_jkind kind, int line, sp_jnode *a, sp_jnode *b,
                         sp_jnode **out) {
    SP_TRY(sp_jparser_node(p, kind, line, out));
    (*out)->a = a;
    (*out)->b = b;
    return sp_jparser_seal(p, *out);
}

/* --- literals and names --- */

static sp_status parse_integer(sp_jparser *p, sp_jval *out) {
    sp_slice s = p->at->text;
    char c = s.len > 1 ? (char)(s.ptr[1] | 32) : 0;
    int base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
    int64_t v = 0;
    bool fits = true;
    for (size_t i = base == 10 ? 0 : 2; i < s.len && fits; i++) {
        int d = s.ptr[i] <= '9' ? s.ptr[i] - '0' : (s.ptr[i] | 32) - 'a' + 10;
        fits = !__builtin_mul_overflow(v, base, &v) && !__builtin_add_overflow(v, d, &v);
    }
    *out = sp_jval_int(v);
    if (fits) return SP_OK;
    if (base != 10)
        return sp_jparser_fail(p, "the integer '%.*s' is beyond 64 bits", (int)s.len, s.ptr);
    SP_TRY(sp_jparser_string(p, s, out));
    out->type = SP_J_BIG;
    return SP_OK;
}

/* Python reads 1e999 as infinity; so does strtod(). */
static sp_status parse_float(sp_jparser *p, sp_jval *out) {
    sp_slice s = p->at->text;
    char *text = sp_try_alloc(s.len + 1);
    if (!text) return SP_FAIL(p->err, SP_E_NOMEM, "no memory for a number of the template");
    memcpy(text, s.ptr, s.len);
    *out = sp_jval_float(strtod(text, NULL));
    sp_free(text);
    return SP_OK;
}

/* Strings that follow one another are one. */
static sp_status parse_strings(sp_jparser *p, sp_jval *out) {
    const sp_jtoken *first = p->at;
    size_t n = 0;
    for (; p->at->type == SP_JT_STRING; p->at++) n += p->at->text.len;
    if (p->at == first + 1) return sp_jparser_string(p, first->text, out);
    char *text = sp_arena_try(&p->t->arena, n + 1);
    if (!text) return SP_FAIL(p->err, SP_E_NOMEM, "no memory for a string of the template");
    size_t at = 0;
    for (const sp_jtoken *t = first; t < p->at; t++) {
        if (t->text.len) memcpy(text + at, t->text.ptr, t->text.len);
        at += t->text.len;
    }
    return sp_jparser_string(p, (sp_slice){text, n}, out);
}

static sp_status parse_literal(sp_jparser *p, sp_jnode **out) {
    SP_TRY(sp_jparser_node(p, SP_JN_CONST, p->at->line, out));
    sp_jval *v = &(*out)->value;
    if (p->at->type == SP_JT_STRING) return parse_strings(p, v);
    SP_TRY(p->at->type == SP_JT_INT ? parse_integer(p, v) : parse_float(p, v));
    p->at++;
    return SP_OK;
}

static bool constant_name(sp_slice s, sp_jval *out) {
    if (sp_slice_is(s, "true") || sp_slice_is(s, "True"))
        *out = sp_jval_bool(true);
    else if (sp_slice_is(s, "false") || sp_slice_is(s, "False"))
        *out = sp_jval_bool(false);
    else if (sp_slice_is(s, "none") || sp_slice_is(s, "None"))
        *out = sp_jval_none();
    else
        return false;
    return true;
}

static void note_mention(sp_jparser *p, sp_slice name) {
    if (sp_slice_is(name, "caller")) p->mentions |= SP_JM_CALLER;
    if (sp_slice_is(name, "kwargs")) p->mentions |= SP_JM_KWARGS;
    if (sp_slice_is(name, "varargs")) p->mentions |= SP_JM_VARARGS;
}

static sp_status parse_name(sp_jparser *p, const sp_jtuple_rules *rules, sp_jnode **out) {
    const sp_jtoken *t = p->at++;
    sp_jval constant;
    if (constant_name(t->text, &constant)) {
        SP_TRY(sp_jparser_node(p, SP_JN_CONST, t->line, out));
        (*out)->value = constant;
        return SP_OK;
    }
    bool attribute = rules && rules->namespaces && p->at->type == SP_JT_DOT;
    SP_TRY(sp_jparser_node(p, attribute ? SP_JN_NSREF : SP_JN_NAME, t->line, out));
    sp_jnode *n = *out;
    n->text = t->text;
    SP_TRY(sp_jparser_name(p, t->text, &n->name));
    if (!rules || !rules->targets) note_mention(p, t->text);
    if (!attribute) return SP_OK;
    p->at++;
    if (p->at->type != SP_JT_NAME) return sp_jparser_unexpected(p, "an attribute name");
    n->text = p->at->text;
    return sp_jparser_string(p, (p->at++)->text, &n->value);
}

/* Items between brackets; a comma may be the last thing. */
static sp_status parse_items(sp_jparser *p, sp_jtok end, sp_jnode_list *items) {
    while (p->at->type != end) {
        sp_jnode *item;
        if (items->n) {
            SP_TRY(sp_jparser_expect(p, SP_JT_COMMA));
            if (p->at->type == end) break;
        }
        int line = p->at->line;
        SP_TRY(sp_jparser_expression(p, &item));
        if (end == SP_JT_RBRACE) {
            sp_jnode *value;
            SP_TRY(sp_jparser_expect(p, SP_JT_COLON));
            SP_TRY(sp_jparser_expression(p, &value));
            SP_TRY(sp_jparser_new(p, SP_JN_PAIR, line, item, value, &item));
        }
        SP_TRY(sp_jparser_push(p, items, item));
    }
    return sp_jparser_expect(p, end);
}

static sp_status parse_display(sp_jparser *p, sp_jnode **out) {
    bool dict = p->at->type == SP_JT_LBRACE;
    sp_jnode_list items = {0};
    SP_TRY(sp_jparser_node(p, dict ? SP_JN_DICT : SP_JN_LIST, p->at->line, out));
    p->at++;
    sp_status st = parse_items(p, dict ? SP_JT_RBRACE : SP_JT_RBRACKET, &items);
    if (st != SP_OK) {
        sp_free(items.at);
        return st;
    }
    SP_TRY(sp_jparser_keep(p, &items, &(*out)->list));
    return sp_jparser_seal(p, *out);
}

sp_status sp_jparser_primary(sp_jparser *p, const sp_jtuple_rules *rules, sp_jnode **out) {
    switch (p->at->type) {
    case SP_JT_NAME:
        return parse_name(p, rules, out);
    case SP_JT_STRING:
    case SP_JT_INT:
    case SP_JT_FLOAT:
        return parse_literal(p, out);
    case SP_JT_LBRACKET:
    case SP_JT_LBRACE:
        return parse_display(p, out);
    case SP_JT_LPAREN:
        p->at++;
        SP_TRY(sp_jparser_tuple(p, (sp_jtuple_rules){.parentheses = true}, out));
        return sp_jparser_expect(p, SP_JT_RPAREN);
    default:
        return sp_jparser_unexpected(p, "an expression");
    }
}

/* --- attributes, subscripts, calls --- */

static sp_status parse_subscribed(sp_jparser *p, sp_jnode **out) {
    sp_jnode *part[3] = {0};
    int line = p->at->line, i = 0;
    if (p->at->type != SP_JT_COLON) {
        SP_TRY(sp_jparser_expression(p, &part[0]));
        *out = part[0];
        if (p->at->type != SP_JT_COLON) return SP_OK;
    }
    while (i < 2 && sp_jparser_skip(p, SP_JT_COLON)) {
        i++;
        sp_jtok t = p->at->type;
        if (t != SP_JT_COLON && t != SP_JT_RBRACKET && t != SP_JT_COMMA)
            SP_TRY(sp_jparser_expression(p, &part[i]));
    }
    SP_TRY(sp_jparser_node(p, SP_JN_SLICE, line, out));
    (*out)->a = part[0];
    (*out)->b = part[1];
    (*out)->c = part[2];
    return sp_jparser_seal(p, *out);
}

static sp_status parse_dot(sp_jparser *p, sp_jnode *node, sp_jnode **out) {
    const sp_jtoken *t = ++p->at;
    if (t->type == SP_JT_INT) {
        sp_jnode *index;
        SP_TRY(parse_literal(p, &index));
        return sp_jparser_new(p, SP_JN_GETITEM, t->line, node, index, out);
    }
    if (t->type != SP_JT_NAME) return sp_jparser_unexpected(p, "a name or an integer");
    p->at++;
    SP_TRY(sp_jparser_new(p, SP_JN_GETATTR, t->line, node, NULL, out));
    (*out)->text = t->text;
    return sp_jparser_string(p, t->text, &(*out)->value);
}

static sp_status subscript_list(sp_jparser *p, sp_jnode_list *items) {
    while (p->at->type != SP_JT_RBRACKET) {
        sp_jnode *item;
        if (items->n) SP_TRY(sp_jparser_expect(p, SP_JT_COMMA));
        SP_TRY(parse_subscribed(p, &item));
        SP_TRY(sp_jparser_push(p, items, item));
    }
    return sp_jparser_expect(p, SP_JT_RBRACKET);
}

static sp_status parse_subscript(sp_jparser *p, sp_jnode *node, sp_jnode **out) {
    int line = p->at->line;
    if (p->at->type == SP_JT_DOT) return parse_dot(p, node, out);
    p->at++;
    sp_jnode_list items = {0};
    sp_jnode *arg = NULL;
    sp_status st = subscript_list(p, &items);
    if (st == SP_OK && items.n == 1) {
        arg = items.at[0];
    } else if (st == SP_OK) {
        st = sp_jparser_node(p, SP_JN_TUPLE, line, &arg);
        if (st == SP_OK) st = sp_jparser_keep(p, &items, &arg->list);
        if (st == SP_OK) st = sp_jparser_seal(p, arg);
    }
    sp_free(items.at);
    if (st != SP_OK) return st;
    return sp_jparser_new(p, SP_JN_GETITEM, line, node, arg, out);
}

/* One argument; `stage` grows from positional over keywords and * to **, and never shrinks. */
static sp_status parse_arg(sp_jparser *p, int *stage, sp_jnode **out) {
    enum {
        POSITIONAL,
        KEYWORD,
        STAR,
        TWO_STARS
    };
    const sp_jtoken *t = p->at;
    SP_TRY(sp_jparser_node(p, SP_JN_ARG, t->line, out));
    sp_jnode *arg = *out;
    bool keyword = t->type == SP_JT_NAME && t[1].type == SP_JT_ASSIGN;
    int now = t->type == SP_JT_MUL ? STAR : t->type == SP_JT_POW ? TWO_STARS : keyword;
    bool allowed = now == TWO_STARS ? *stage != TWO_STARS
                   : now == STAR    ? *stage < STAR
                   : now == KEYWORD ? *stage != TWO_STARS
                                    : *stage == POSITIONAL;
    if (!allowed) return sp_jparser_fail(p, "invalid syntax for function call expression");
    if (now > *stage) *stage = now;
    if (now == KEYWORD) arg->text = t->text;
    arg->op = "\0=*2"[now];
    p->at += now == KEYWORD ? 2 : now == POSITIONAL ? 0 : 1;
    SP_TRY(sp_jparser_expression(p, &arg->a));
    return sp_jparser_seal(p, arg);
}

static sp_status arg_list(sp_jparser *p, sp_jnode_list *args) {
    int stage = 0;
    while (p->at->type != SP_JT_RPAREN) {
        sp_jnode *arg;
        if (args->n) {
            SP_TRY(sp_jparser_expect(p, SP_JT_COMMA));
            if (p->at->type == SP_JT_RPAREN) break;
        }
        SP_TRY(parse_arg(p, &stage, &arg));
        SP_TRY(sp_jparser_push(p, args, arg));
    }
    return sp_jparser_expect(p, SP_JT_RPAREN);
}

/* (args) into `n`. */
static sp_status parse_args(sp_jparser *p, sp_jnode *n) {
    sp_jnode_list args = {0};
    SP_TRY(sp_jparser_expect(p, SP_JT_LPAREN));
    sp_status st = arg_list(p, &args);
    if (st != SP_OK) {
        sp_free(args.at);
        return st;
    }
    SP_TRY(sp_jparser_keep(p, &args, &n->args));
    return sp_jparser_seal(p, n);
}

static sp_status parse_call(sp_jparser *p, sp_jnode *node, sp_jnode **out) {
    SP_TRY(sp_jparser_new(p, SP_JN_CALL, p->at->line, node, NULL, out));
    return parse_args(p, *out);
}

static sp_status parse_postfix(sp_jparser *p, sp_jnode *node, sp_jnode **out) {
    *out = node;
    for (;;) {
        sp_jtok t = p->at->type;
        if (t == SP_JT_DOT || t == SP_JT_LBRACKET)
            SP_TRY(parse_subscript(p, *out, out));
        else if (t == SP_JT_LPAREN)
            SP_TRY(parse_call(p, *out, out));
        else
            return SP_OK;
    }
}

/* --- filters and tests --- */

/* "a.b" is one name; it is a slice of the source only when written without blanks, so that it is
 * put together anew. */
static sp_status dotted_name(sp_jparser *p, sp_slice *out) {
    if (p->at->type != SP_JT_NAME) return sp_jparser_unexpected(p, "a name");
    *out = (p->at++)->text;
    while (sp_jparser_skip(p, SP_JT_DOT)) {
        if (p->at->type != SP_JT_NAME) return sp_jparser_unexpected(p, "a name");
        sp_slice part = (p->at++)->text;
        char *both = sp_arena_try(&p->t->arena, out->len + part.len + 1);
        if (!both) return SP_FAIL(p->err, SP_E_NOMEM, "no memory for a name of the template");
        memcpy(both, out->ptr, out->len);
        both[out->len] = '.';
        memcpy(both + out->len + 1, part.ptr, part.len);
        *out = (sp_slice){both, out->len + part.len + 1};
    }
    return SP_OK;
}

sp_status sp_jparser_filters(sp_jparser *p, sp_jnode *node, bool named, sp_jnode **out) {
    *out = node;
    for (; named || p->at->type == SP_JT_PIPE; named = false) {
        if (!named) p->at++;
        SP_TRY(sp_jparser_new(p, SP_JN_FILTER, p->at->line, *out, NULL, out));
        SP_TRY(dotted_name(p, &(*out)->text));
        (*out)->fn = sp_jfilter_find((*out)->text);
        if (p->at->type == SP_JT_LPAREN) SP_TRY(parse_args(p, *out));
    }
    return SP_OK;
}

/* The argument of a test may stand without brackets. */
static bool begins_test_argument(const sp_jtoken *t) {
    switch (t->type) {
    case SP_JT_NAME:
        return !sp_jparser_is_name(t, "else") && !sp_jparser_is_name(t, "or") &&
               !sp_jparser_is_name(t, "and");
    case SP_JT_STRING:
    case SP_JT_INT:
    case SP_JT_FLOAT:
    case SP_JT_LBRACKET:
    case SP_JT_LBRACE:
        return true;
    default:
        return false;
    }
}

static sp_status bare_test_argument(sp_jparser *p, sp_jnode *test) {
    sp_jnode *arg, *value;
    sp_jnode_list args = {0};
    if (sp_jparser_is_name(p->at, "is"))
        return sp_jparser_fail(p, "tests with 'is' cannot be chained");
    SP_TRY(sp_jparser_node(p, SP_JN_ARG, p->at->line, &arg));
    SP_TRY(sp_jparser_primary(p, NULL, &value));
    SP_TRY(parse_postfix(p, value, &arg->a));
    SP_TRY(sp_jparser_seal(p, arg));
    SP_TRY(sp_jparser_push(p, &args, arg));
    SP_TRY(sp_jparser_keep(p, &args, &test->args));
    return sp_jparser_seal(p, test);
}

static sp_status parse_test(sp_jparser *p, sp_jnode *node, sp_jnode **out) {
    int line = (p->at++)->line;
    bool negated = sp_jparser_skip_name(p, "not");
    SP_TRY(sp_jparser_new(p, SP_JN_TEST, line, node, NULL, out));
    SP_TRY(dotted_name(p, &(*out)->text));
    (*out)->fn = sp_jtest_find((*out)->text);
    if (p->at->type == SP_JT_LPAREN)
        SP_TRY(parse_args(p, *out));
    else if (begins_test_argument(p->at))
        SP_TRY(bare_test_argument(p, *out));
    return negated ? sp_jparser_new(p, SP_JN_NOT, line, *out, NULL, out) : SP_OK;
}

static sp_status parse_filter_expr(sp_jparser *p, sp_jnode *node, sp_jnode **out) {
    *out = node;
    for (;;) {
        if (p->at->type == SP_JT_PIPE)
            SP_TRY(sp_jparser_filters(p, *out, false, out));
        else if (sp_jparser_is_name(p->at, "is"))
            SP_TRY(parse_test(p, *out, out));
        else if (p->at->type == SP_JT_LPAREN)
            SP_TRY(parse_call(p, *out, out));
        else
            return SP_OK;
    }
}

/* --- signs --- */

sp_status sp_jparser_unary(sp_jparser *p, bool filters, sp_jnode **out) {
    sp_jtok t = p->at->type;
    int line = p->at->line;
    SP_TRY(sp_jparser_enter(p));
    if (t == SP_JT_SUB || t == SP_JT_ADD) {
        p->at++;
        SP_TRY(sp_jparser_unary(p, false, out));
        SP_TRY(sp_jparser_new(p, t == SP_JT_SUB ? SP_JN_NEG : SP_JN_POS, line, *out, NULL, out));
    } else {
        SP_TRY(sp_jparser_primary(p, NULL, out));
    }
    SP_TRY(parse_postfix(p, *out, out));
    if (filters) SP_TRY(parse_filter_expr(p, *out, out));
    p->nest--;
    return SP_OK;
}
