/* Calling: arguments, their binding to parameters, macros, methods and functions. */
#include "runtime/text/jinja_eval.h"

#include <string.h>

/* --- arguments --- */

typedef struct gathered {
    sp_jlist pos, named;
    sp_jlist names; /* strings */
} gathered;

static sp_status add_named(sp_jrun *r, gathered *g, sp_jval name, sp_jval v) {
    if (name.type != SP_J_STR) return sp_jrun_fail(r, "keywords must be strings");
    for (size_t i = 0; i < g->names.n; i++)
        if (sp_slice_eq(sp_jval_slice(g->names.at[i]), sp_jval_slice(name)))
            return sp_jrun_fail(r, "keyword argument '%.*s' comes twice", (int)name.s->len,
                                name.s->ptr);
    SP_TRY(sp_jlist_push(r, &g->names, name));
    return sp_jlist_push(r, &g->named, v);
}

static sp_status add_stars(sp_jrun *r, gathered *g, int stars, sp_jval v) {
    sp_jlist *l;
    if (stars == '*') {
        SP_TRY(sp_jiter_collect(r, v, &l));
        for (size_t i = 0; i < l->n; i++) SP_TRY(sp_jlist_push(r, &g->pos, l->at[i]));
        return SP_OK;
    }
    if (v.type != SP_J_DICT)
        return sp_jrun_fail(r, "argument after ** must be a mapping, not %s", sp_jval_type_name(v));
    SP_TRY(sp_jrun_charge(r, v.dict->n));
    for (size_t i = 0; i < v.dict->n; i++)
        SP_TRY(add_named(r, g, v.dict->at[i].key, v.dict->at[i].value));
    return SP_OK;
}

static sp_status gather(sp_jrun *r, const sp_jnodes *args, gathered *g) {
    for (int i = 0; i < args->n; i++) {
        const sp_jnode *arg = args->at[i];
        sp_jval v, name;
        SP_TRY(sp_jrun_eval(r, arg->a, &v));
        if (arg->op == 0) {
            SP_TRY(sp_jlist_push(r, &g->pos, v));
        } else if (arg->op == '=') {
            SP_TRY(sp_jval_str(r, arg->text, &name));
            SP_TRY(add_named(r, g, name, v));
        } else {
            SP_TRY(add_stars(r, g, arg->op, v));
        }
    }
    return SP_OK;
}

sp_status sp_jrun_args(sp_jrun *r, const sp_jnodes *args, sp_jval caller, sp_jcall *out) {
    gathered g = {0};
    *out = (sp_jcall){0};
    SP_TRY(gather(r, args, &g));
    if (caller.type != SP_J_MISSING) {
        sp_jval name;
        SP_TRY(sp_jval_str(r, SP_SLICE("caller"), &name));
        SP_TRY(add_named(r, &g, name, caller));
    }
    out->pos = g.pos.at;
    out->n = (int)g.pos.n;
    out->named = g.named.at;
    out->n_named = (int)g.named.n;
    if (!g.names.n) return SP_OK;
    void *p;
    SP_TRY(sp_jrun_take(r, g.names.n * sizeof(sp_slice), &p));
    sp_slice *names = p;
    for (size_t i = 0; i < g.names.n; i++) names[i] = sp_jval_slice(g.names.at[i]);
    out->names = names;
    return SP_OK;
}

const sp_jval *sp_jcall_named(const sp_jcall *c, const char *name) {
    for (int i = 0; i < c->n_named; i++)
        if (sp_slice_is(c->names[i], name)) return &c->named[i];
    return NULL;
}

sp_status sp_jarg_int(sp_jrun *r, sp_jval v, int64_t otherwise, int64_t *out) {
    *out = otherwise;
    if (v.type == SP_J_MISSING) return SP_OK;
    if (v.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, v);
    if (!sp_jval_is_int(v))
        return sp_jrun_fail(r, "want an integer argument, got %s", sp_jval_type_name(v));
    *out = sp_jval_as_int(v);
    return SP_OK;
}

sp_status sp_jarg_str(sp_jrun *r, sp_jval v, const char *otherwise, sp_slice *out) {
    *out = sp_slice_of(otherwise);
    if (v.type == SP_J_MISSING) return SP_OK;
    if (v.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, v);
    if (v.type != SP_J_STR)
        return sp_jrun_fail(r, "want a string argument, got %s", sp_jval_type_name(v));
    *out = sp_jval_slice(v);
    return SP_OK;
}

/* --- specs --- */

const sp_jspec *sp_jspec_find(const sp_jspec *table, size_t n, sp_slice name) {
    for (size_t i = 0; i < n; i++)
        if (sp_slice_is(name, table[i].name)) return &table[i];
    return NULL;
}

/* The words of "width first blank". */
static int split_params(const char *params, sp_slice out[SP_J_PARAMS_MAX]) {
    int n = 0;
    for (const char *p = params; *p;) {
        size_t len = strcspn(p, " ");
        SP_ASSERT(n < SP_J_PARAMS_MAX);
        out[n++] = (sp_slice){p, len};
        p += len + (p[len] == ' ');
    }
    return n;
}

static sp_status bind(sp_jrun *r, const sp_jspec *spec, const sp_jcall *c,
                      sp_jval v[SP_J_PARAMS_MAX]) {
    sp_slice params[SP_J_PARAMS_MAX];
    int n = split_params(spec->params, params);
    if (c->n > n)
        return sp_jrun_fail(r, "%s() takes at most %d arguments, got %d", spec->name, n, c->n);
    for (int i = 0; i < c->n; i++) v[i] = c->pos[i];
    for (int k = 0; k < c->n_named; k++) {
        int i = 0;
        while (i < n && !sp_slice_eq(params[i], c->names[k])) i++;
        if (i == n || v[i].type != SP_J_MISSING)
            return sp_jrun_fail(r, "%s() got an unexpected keyword argument '%.*s'", spec->name,
                                (int)c->names[k].len, c->names[k].ptr);
        v[i] = c->named[k];
    }
    for (int i = 0; i < spec->required; i++)
        if (v[i].type == SP_J_MISSING)
            return sp_jrun_fail(r, "%s() lacks the argument '%.*s'", spec->name, (int)params[i].len,
                                params[i].ptr);
    return SP_OK;
}

sp_status sp_jspec_call(sp_jrun *r, const sp_jspec *spec, sp_jval self, const sp_jcall *c,
                        sp_jval *out) {
    sp_jval v[SP_J_PARAMS_MAX] = {0}; /* MISSING */
    SP_TRY(sp_jrun_charge(r, 1));
    if (!spec->fn)
        return SP_FAIL(r->err, SP_E_UNSUPPORTED, "template line %d: '%s' is not supported", r->line,
                       spec->name);
    if (spec->params[0] != '*') SP_TRY(bind(r, spec, c, v));
    return spec->fn(r, self, v, c, out);
}

/* --- macros --- */

sp_slice sp_jmacro_name(const sp_jmacro *m) {
    return m->node->kind == SP_JN_MACRO ? m->node->text : (sp_slice){0};
}

static sp_status check_arguments(sp_jrun *r, const sp_jnode *n, const sp_jcall *c,
                                 const bool *used) {
    if (c->n > n->args.n && !(n->op & SP_JM_VARARGS))
        return sp_jrun_fail(r, "macro '%.*s' takes not more than %d arguments, got %d",
                            (int)n->text.len, n->text.ptr, n->args.n, c->n);
    for (int i = 0; i < c->n_named; i++)
        if (!used[i] && !(n->op & SP_JM_KWARGS))
            return sp_jrun_fail(r, "macro '%.*s' takes no keyword argument '%.*s'",
                                (int)n->text.len, n->text.ptr, (int)c->names[i].len,
                                c->names[i].ptr);
    return SP_OK;
}

static sp_status bind_rest(sp_jrun *r, const sp_jnode *n, const sp_jcall *c, const bool *used,
                           sp_jscope *s) {
    if (n->op & SP_JM_KWARGS) {
        sp_jdict *d;
        SP_TRY(sp_jdict_create(r, 0, &d));
        for (int i = 0; i < c->n_named; i++) {
            sp_jval name;
            if (used[i]) continue;
            SP_TRY(sp_jval_str(r, c->names[i], &name));
            SP_TRY(sp_jdict_put(r, d, name, c->named[i]));
        }
        SP_TRY(sp_jrun_bind(r, s, SP_JNAME_KWARGS, (sp_jval){.type = SP_J_DICT, .dict = d}));
    }
    if (!(n->op & SP_JM_VARARGS)) return SP_OK;
    sp_jlist *l;
    SP_TRY(sp_jlist_create(r, 0, &l));
    for (int i = n->args.n; i < c->n; i++) SP_TRY(sp_jlist_push(r, l, c->pos[i]));
    return sp_jrun_bind(r, s, SP_JNAME_VARARGS, sp_jval_tuple(l));
}

/* A parameter's argument, and which keyword it used; MISSING when there is none. */
static sp_jval argument(const sp_jcall *c, int i, sp_slice name, bool *used) {
    if (i < c->n) return c->pos[i];
    for (int k = 0; k < c->n_named; k++) {
        if (used[k] || !sp_slice_eq(c->names[k], name)) continue;
        used[k] = true;
        return c->named[k];
    }
    return sp_jval_missing();
}

static bool takes(const sp_jnode *n, const char *param) {
    for (int i = 0; i < n->args.n; i++)
        if (sp_slice_is(n->args.at[i]->text, param)) return true;
    return false;
}

/* `caller` is a hidden parameter of a macro that mentions it. */
static sp_status bind_caller(sp_jrun *r, const sp_jnode *n, const sp_jcall *c, bool *used,
                             sp_jscope *s) {
    if (!(n->op & SP_JM_CALLER) || takes(n, "caller")) return SP_OK;
    sp_jval caller = argument(c, c->n, SP_SLICE("caller"), used), word;
    if (caller.type == SP_J_MISSING || caller.type == SP_J_NONE) {
        SP_TRY(sp_jval_str(r, SP_SLICE("caller"), &word));
        SP_TRY(sp_jval_undefined(r, "no caller defined", NULL, word, &caller));
    }
    return sp_jrun_bind(r, s, SP_JNAME_CALLER, caller);
}

/* Defaults are evaluated in the macro's own scope, so that they see the parameters before them. */
static sp_status bind_params(sp_jrun *r, const sp_jnode *n, const sp_jcall *c, bool *used,
                             sp_jscope *s) {
    sp_jval v[2];
    for (int i = 0; i < n->args.n; i++) {
        const sp_jnode *param = n->args.at[i];
        SP_TRY(sp_jrun_bind(r, s, param->name, argument(c, i, param->text, used)));
    }
    SP_TRY(bind_caller(r, n, c, used, s));
    SP_TRY(check_arguments(r, n, c, used));
    SP_TRY(bind_rest(r, n, c, used, s));
    for (int i = 0; i < n->args.n; i++) {
        const sp_jnode *param = n->args.at[i];
        int at = 0;
        while (s->at[at].name != param->name) at++;
        if (s->at[at].value.type != SP_J_MISSING) continue;
        if (param->a) {
            SP_TRY(sp_jrun_eval(r, param->a, &v[0]));
        } else {
            SP_TRY(sp_jval_str(r, param->text, &v[1]));
            SP_TRY(
                sp_jval_undefined(r, "a parameter of a macro was not provided", NULL, v[1], &v[0]));
        }
        SP_TRY(sp_jrun_bind(r, s, param->name, v[0]));
    }
    return SP_OK;
}

sp_status sp_jmacro_call(sp_jrun *r, sp_jmacro *m, const sp_jcall *c, sp_jval *out) {
    const sp_jnode *n = m->node;
    sp_jscope *before = r->scope, *s;
    void *used = NULL;
    if (++r->calls > r->calls_max)
        return SP_FAIL(r->err, SP_E_TOOLONG, "template line %d: calls nested deeper than %d",
                       r->line, r->calls_max);
    if (c->n_named) SP_TRY(sp_jrun_take(r, (size_t)c->n_named * sizeof(bool), &used));
    SP_TRY(sp_jrun_open_scope(r, m->scope, &n->hidden, &s));
    r->scope = s;
    SP_TRY(bind_params(r, n, c, used, s));
    SP_TRY(sp_jrun_capture(r, &n->list, out));
    r->scope = before;
    r->calls--;
    return SP_OK;
}

/* --- loops as functions --- */

static sp_status call_loop(sp_jrun *r, sp_jloop *loop, const sp_jcall *c, sp_jval *out) {
    if (!loop->node->op)
        return sp_jrun_fail(r,
                            "the loop must have the 'recursive' marker to be called recursively");
    if (c->n + c->n_named != 1)
        return sp_jrun_fail(r, "a recursive loop wants one argument, got %d", c->n + c->n_named);
    if (++r->calls > r->calls_max)
        return SP_FAIL(r->err, SP_E_TOOLONG, "template line %d: loops nested deeper than %d",
                       r->line, r->calls_max);
    sp_jtext text = {0}, *before = r->out;
    r->out = &text;
    SP_TRY(
        sp_jrun_loop(r, loop->node, loop->scope, c->n ? c->pos[0] : c->named[0], loop->depth0 + 1));
    r->out = before;
    r->calls--;
    return sp_jtext_done(r, &text, out);
}

static sp_status call_joiner(sp_jrun *r, struct sp_jcycler *j, sp_jval *out) {
    if (j->at) {
        *out = j->items->at[0];
        return SP_OK;
    }
    j->at = 1;
    return sp_jval_str(r, (sp_slice){0}, out);
}

bool sp_jval_callable(sp_jval v) {
    switch ((sp_jtype)v.type) {
    case SP_J_UNDEFINED: /* it has a __call__, which raises */
    case SP_J_FN:
    case SP_J_METHOD:
    case SP_J_MACRO:
    case SP_J_LOOP:
    case SP_J_JOINER:
        return true;
    default:
        return false;
    }
}

sp_status sp_jval_call(sp_jrun *r, sp_jval f, const sp_jcall *c, sp_jval *out) {
    switch ((sp_jtype)f.type) {
    case SP_J_UNDEFINED:
        return sp_jval_fail_undefined(r, f);
    case SP_J_FN:
        return sp_jspec_call(r, &f.fn->spec, sp_jval_missing(), c, out);
    case SP_J_METHOD:
        return sp_jspec_call(r, f.bound->spec, f.bound->self, c, out);
    case SP_J_MACRO:
        return sp_jmacro_call(r, f.macro, c, out);
    case SP_J_LOOP:
        return call_loop(r, f.loop, c, out);
    case SP_J_JOINER:
        return call_joiner(r, f.cycler, out);
    default:
        return sp_jrun_fail(r, "'%s' object is not callable", sp_jval_type_name(f));
    }
}

/* --- what loop.x is --- */

static sp_status loop_length(sp_jrun *r, sp_jloop *loop, int64_t *out) {
    if (loop->length < 0) {
        /* A generator has no length until it is drained. */
        sp_jlist *rest;
        SP_TRY(sp_jiter_collect(r, sp_jval_iter(loop->it), &rest));
        SP_TRY(sp_jiter_open(r, sp_jval_list(rest), &loop->it));
        loop->length = (int64_t)rest->n + loop->index0 + 1 + (loop->after.type != SP_J_MISSING);
    }
    *out = loop->length;
    return SP_OK;
}

static sp_status peek(sp_jrun *r, sp_jloop *loop, bool *last) {
    *last = false;
    if (loop->after.type != SP_J_MISSING) return SP_OK;
    sp_jval v;
    SP_TRY(sp_jiter_next(r, loop->it, &v, last));
    if (!*last) loop->after = v;
    return SP_OK;
}

static sp_status neighbour(sp_jrun *r, sp_jloop *loop, bool next, sp_jval *out) {
    bool none = loop->index0 == 0;
    if (next) SP_TRY(peek(r, loop, &none));
    *out = next ? loop->after : loop->before;
    if (!none) return SP_OK;
    return sp_jval_undefined(r, next ? "there is no next item" : "there is no previous item", NULL,
                             sp_jval_none(), out);
}

sp_status sp_jloop_attr(sp_jrun *r, sp_jloop *loop, sp_slice name, sp_jval *out) {
    int64_t n = 0;
    bool last = false;
    if (sp_slice_is(name, "index")) *out = sp_jval_int(loop->index0 + 1);
    if (sp_slice_is(name, "index0")) *out = sp_jval_int(loop->index0);
    if (sp_slice_is(name, "first")) *out = sp_jval_bool(loop->index0 == 0);
    if (sp_slice_is(name, "depth")) *out = sp_jval_int(loop->depth0 + 1);
    if (sp_slice_is(name, "depth0")) *out = sp_jval_int(loop->depth0);
    if (sp_slice_is(name, "previtem")) return neighbour(r, loop, false, out);
    if (sp_slice_is(name, "nextitem")) return neighbour(r, loop, true, out);
    if (sp_slice_is(name, "last")) {
        SP_TRY(peek(r, loop, &last));
        *out = sp_jval_bool(last);
    }
    bool rev = sp_slice_is(name, "revindex"), rev0 = sp_slice_is(name, "revindex0");
    if (!rev && !rev0 && !sp_slice_is(name, "length")) return SP_OK;
    SP_TRY(loop_length(r, loop, &n));
    *out = sp_jval_int(n - (rev ? loop->index0 : rev0 ? loop->index0 + 1 : 0));
    return SP_OK;
}
