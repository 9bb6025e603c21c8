/* Expressions to values. */
#include "runtime/text/jinja_eval.h"

static sp_status eval_list(sp_jrun *r, const sp_jnodes *nodes, sp_jlist **out) {
    sp_jlist *l;
    SP_TRY(sp_jlist_create(r, (size_t)nodes->n, &l));
    for (int i = 0; i < nodes->n; i++) {
        sp_jval v;
        SP_TRY(sp_jrun_eval(r, nodes->at[i], &v));
        SP_TRY(sp_jlist_push(r, l, v));
    }
    *out = l;
    return SP_OK;
}

static sp_status eval_dict(sp_jrun *r, const sp_jnodes *pairs, sp_jval *out) {
    sp_jdict *d;
    SP_TRY(sp_jdict_create(r, (size_t)pairs->n, &d));
    for (int i = 0; i < pairs->n; i++) {
        sp_jval k, v;
        SP_TRY(sp_jrun_eval(r, pairs->at[i]->a, &k));
        SP_TRY(sp_jrun_eval(r, pairs->at[i]->b, &v));
        SP_TRY(sp_jdict_put(r, d, k, v));
    }
    *out = (sp_jval){.type = SP_J_DICT, .dict = d};
    return SP_OK;
}

static sp_status eval_getitem(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    sp_jval obj, key, part[3];
    SP_TRY(sp_jrun_eval(r, n->a, &obj));
    if (n->b->kind != SP_JN_SLICE) {
        SP_TRY(sp_jrun_eval(r, n->b, &key));
        return sp_jval_getitem(r, obj, key, out);
    }
    const sp_jnode *parts[] = {n->b->a, n->b->b, n->b->c};
    for (int i = 0; i < 3; i++) {
        part[i] = sp_jval_none();
        if (parts[i]) SP_TRY(sp_jrun_eval(r, parts[i], &part[i]));
    }
    return sp_jval_getslice(r, obj, part, out);
}

static sp_status eval_call(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    sp_jval f;
    sp_jcall c;
    SP_TRY(sp_jrun_eval(r, n->a, &f));
    SP_TRY(sp_jrun_args(r, &n->args, sp_jval_missing(), &c));
    int line = r->line;
    SP_TRY(sp_jval_call(r, f, &c, out));
    r->line = line;
    return SP_OK;
}

static sp_status eval_filter(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    sp_jval v = r->block_text;
    sp_jcall c;
    bool test = n->kind == SP_JN_TEST;
    if (n->a) SP_TRY(sp_jrun_eval(r, n->a, &v));
    if (!n->fn)
        return sp_jrun_fail(r, "no %s named '%.*s'", test ? "test" : "filter", (int)n->text.len,
                            n->text.ptr);
    SP_TRY(sp_jrun_args(r, &n->args, sp_jval_missing(), &c));
    return sp_jspec_call(r, n->fn, v, &c, out);
}

static sp_status eval_concat(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    for (int i = 0; i < n->list.n; i++) {
        sp_jval v;
        SP_TRY(sp_jrun_eval(r, n->list.at[i], &v));
        SP_TRY(sp_jval_to_str(r, v, &v));
        if (i)
            SP_TRY(sp_jval_concat(r, *out, sp_jval_slice(v), out));
        else
            *out = v;
    }
    out->mark = false; /* without autoescape ~ gives a plain string */
    return SP_OK;
}

static sp_status compare(sp_jrun *r, sp_jtok op, sp_jval a, sp_jval b, bool *out) {
    switch (op) {
    case SP_JT_EQ:
        return sp_jval_eq(r, a, b, out);
    case SP_JT_LT:
        return sp_jval_less(r, a, b, out);
    case SP_JT_GT:
        return sp_jval_less(r, b, a, out);
    case SP_JT_IN:
        return sp_jval_in(r, a, b, out);
    case SP_JT_NE:
        SP_TRY(sp_jval_eq(r, a, b, out));
        break;
    case SP_JT_NOTIN:
        SP_TRY(sp_jval_in(r, a, b, out));
        break;
    default:
        return sp_jval_less_equal(r, op == SP_JT_LE ? a : b, op == SP_JT_LE ? b : a, out);
    }
    *out = !*out;
    return SP_OK;
}

/* a < b < c: each operand once, and none after the first that fails. */
static sp_status eval_compare(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    sp_jval left, right;
    bool holds = true;
    SP_TRY(sp_jrun_eval(r, n->a, &left));
    for (int i = 0; i < n->list.n && holds; i++, left = right) {
        SP_TRY(sp_jrun_eval(r, n->list.at[i]->a, &right));
        SP_TRY(compare(r, (sp_jtok)n->list.at[i]->op, left, right, &holds));
    }
    *out = sp_jval_bool(holds);
    return SP_OK;
}

static sp_status eval_cond(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    sp_jval test;
    SP_TRY(sp_jrun_eval(r, n->a, &test));
    if (sp_jval_truth(test)) return sp_jrun_eval(r, n->b, out);
    if (n->c) return sp_jrun_eval(r, n->c, out);
    return sp_jval_undefined(
        r, "the inline if-expression evaluated to false and no else section was defined", NULL,
        sp_jval_none(), out);
}

static sp_status eval_operator(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    sp_jval a, b;
    SP_TRY(sp_jrun_eval(r, n->a, &a));
    switch (n->kind) {
    case SP_JN_AND:
    case SP_JN_OR:
        *out = a;
        return sp_jval_truth(a) == (n->kind == SP_JN_AND) ? sp_jrun_eval(r, n->b, out) : SP_OK;
    case SP_JN_NOT:
        *out = sp_jval_bool(!sp_jval_truth(a));
        return SP_OK;
    case SP_JN_NEG:
        return sp_jval_negate(r, a, out);
    case SP_JN_POS:
        if (a.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, a);
        if (!sp_jval_is_number(a))
            return sp_jrun_fail(r, "bad operand type for unary +: '%s'", sp_jval_type_name(a));
        *out = a.type == SP_J_BOOL ? sp_jval_int(a.b) : a;
        return SP_OK;
    default:
        SP_TRY(sp_jrun_eval(r, n->b, &b));
        return sp_jval_binary(r, (sp_jtok)n->op, a, b, out);
    }
}

static sp_status eval_node(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    sp_jval a;
    sp_jlist *l;
    switch (n->kind) {
    case SP_JN_CONST:
        *out = n->value;
        return SP_OK;
    case SP_JN_NAME:
        return sp_jrun_lookup(r, n->name, n->text, out);
    case SP_JN_TUPLE:
        SP_TRY(eval_list(r, &n->list, &l));
        *out = sp_jval_tuple(l);
        return SP_OK;
    case SP_JN_LIST:
        SP_TRY(eval_list(r, &n->list, &l));
        *out = sp_jval_list(l);
        return SP_OK;
    case SP_JN_DICT:
        return eval_dict(r, &n->list, out);
    case SP_JN_GETATTR:
        SP_TRY(sp_jrun_eval(r, n->a, &a));
        return sp_jval_getattr(r, a, n->value, out);
    case SP_JN_GETITEM:
        return eval_getitem(r, n, out);
    case SP_JN_CALL:
        return eval_call(r, n, out);
    case SP_JN_FILTER:
    case SP_JN_TEST:
        return eval_filter(r, n, out);
    case SP_JN_CONCAT:
        return eval_concat(r, n, out);
    case SP_JN_COND:
        return eval_cond(r, n, out);
    case SP_JN_COMPARE:
        return eval_compare(r, n, out);
    case SP_JN_AND:
    case SP_JN_OR:
    case SP_JN_NOT:
    case SP_JN_NEG:
    case SP_JN_POS:
    case SP_JN_BINARY:
        return eval_operator(r, n, out);
    default:
        return sp_jrun_fail(r, "a slice stands where only a value can");
    }
}

sp_status sp_jrun_eval(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    SP_TRY(sp_jrun_charge(r, 1));
    SP_TRY(sp_jrun_enter(r));
    r->line = n->line;
    SP_TRY(eval_node(r, n, out));
    sp_jrun_leave(r);
    return SP_OK;
}
