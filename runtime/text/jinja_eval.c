#include "runtime/text/jinja_eval.h"

#include <string.h>

#define STEPS_DEFAULT ((int64_t)20 * 1000 * 1000)
#define DEPTH_DEFAULT 200
#define OUTPUT_DEFAULT ((size_t)64 << 20)
#define MEMORY_DEFAULT ((size_t)256 << 20)
/* Expressions, bodies and nested values a call may be deep, on average: bounds the C stack. */
#define LEVELS_PER_CALL 10

/* --- output --- */

static sp_status write_text(sp_jrun *r, sp_slice s) {
    SP_TRY(sp_jtext_put(r, r->out, s));
    if (r->out->len <= r->output_max) return SP_OK;
    return SP_FAIL(r->err, SP_E_TOOLONG, "template line %d: its text takes more than %zu bytes",
                   r->line, r->output_max);
}

static sp_status write_value(sp_jrun *r, sp_jval v) {
    if (v.type == SP_J_STR) return write_text(r, sp_jval_slice(v));
    SP_TRY(sp_jval_put_str(r, v, r->out));
    return write_text(r, (sp_slice){0});
}

sp_status sp_jrun_capture(sp_jrun *r, const sp_jnodes *body, sp_jval *out) {
    sp_jtext text = {0}, *before = r->out;
    r->out = &text;
    SP_TRY(sp_jrun_exec(r, body));
    r->out = before;
    return sp_jtext_done(r, &text, out);
}

/* A body with a scope of its own. */
static sp_status exec_scoped(sp_jrun *r, const sp_jnodes *body, const sp_jnames *hidden,
                             sp_jval *captured) {
    sp_jscope *before = r->scope;
    SP_TRY(sp_jrun_open_scope(r, before, hidden, &r->scope));
    SP_TRY(captured ? sp_jrun_capture(r, body, captured) : sp_jrun_exec(r, body));
    r->scope = before;
    return SP_OK;
}

/* --- loops --- */

typedef struct filtered {
    const sp_jnode *node;
    sp_jscope *scope;
} filtered;

/* The `if` of a for loop is asked item by item, as the loop goes on. */
static sp_status next_filtered(sp_jrun *r, sp_jiter *it, sp_jval *out, bool *done) {
    const filtered *f = it->ctx;
    for (;;) {
        SP_TRY(sp_jiter_next(r, it->up, out, done));
        if (*done) return SP_OK;
        f->scope->n = 0;
        SP_TRY(sp_jrun_assign(r, f->scope, f->node->a, *out));
        sp_jscope *before = r->scope;
        sp_jval wanted;
        r->scope = f->scope;
        SP_TRY(sp_jrun_eval(r, f->node->c, &wanted));
        r->scope = before;
        if (sp_jval_truth(wanted)) return SP_OK;
    }
}

static sp_status open_loop(sp_jrun *r, sp_jloop *loop) {
    SP_TRY(sp_jiter_open(r, loop->over, &loop->it));
    size_t n;
    loop->length = sp_jval_len(loop->over, &n) && !loop->node->c ? (int64_t)n : -1;
    if (!loop->node->c) return SP_OK;
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(filtered), &p));
    filtered *f = p;
    f->node = loop->node;
    SP_TRY(sp_jrun_open_scope(r, loop->scope, NULL, &f->scope));
    sp_jiter *up = loop->it;
    SP_TRY(sp_jiter_create(r, next_filtered, "generator", f, &loop->it));
    loop->it->up = up;
    return SP_OK;
}

static sp_status next_item(sp_jrun *r, sp_jloop *loop, bool *done) {
    sp_jval item = loop->after;
    *done = false;
    if (item.type == SP_J_MISSING) SP_TRY(sp_jiter_next(r, loop->it, &item, done));
    if (*done) return SP_OK;
    loop->after = sp_jval_missing();
    loop->before = loop->current;
    loop->current = item;
    loop->index0++;
    return SP_OK;
}

/* As in Jinja, a loop counts as run once a body came to its end: after nothing but break and
 * continue the else still follows. */
static sp_status run_iterations(sp_jrun *r, sp_jloop *loop, bool *ran) {
    sp_jval self = {.type = SP_J_LOOP, .loop = loop};
    for (;;) {
        bool done;
        SP_TRY(next_item(r, loop, &done));
        if (done) return SP_OK;
        SP_TRY(sp_jrun_reset_scope(r, r->scope, &loop->node->hidden));
        SP_TRY(sp_jrun_bind(r, r->scope, SP_JNAME_LOOP, self));
        SP_TRY(sp_jrun_assign(r, r->scope, loop->node->a, loop->current));
        SP_TRY(sp_jrun_exec(r, &loop->node->list));
        bool stop = r->flow == SP_JFLOW_BREAK;
        if (r->flow == SP_JFLOW_NEXT) *ran = true;
        r->flow = SP_JFLOW_NEXT;
        if (stop) return SP_OK;
    }
}

sp_status sp_jrun_loop(sp_jrun *r, const sp_jnode *n, sp_jscope *around, sp_jval over, int depth0) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jloop), &p));
    sp_jloop *loop = p;
    *loop = (sp_jloop){.node = n, .scope = around, .over = over, .index0 = -1, .depth0 = depth0};
    sp_jscope *before = r->scope;
    SP_TRY(sp_jrun_open_scope(r, around, NULL, &r->scope));
    SP_TRY(open_loop(r, loop));
    bool ran = false;
    SP_TRY(run_iterations(r, loop, &ran));
    r->scope = around;
    if (!ran) SP_TRY(exec_scoped(r, &n->more, NULL, NULL));
    r->scope = before;
    return SP_OK;
}

static sp_status exec_for(sp_jrun *r, const sp_jnode *n) {
    sp_jval over;
    SP_TRY(sp_jrun_eval(r, n->b, &over));
    return sp_jrun_loop(r, n, r->scope, over, 0);
}

/* --- other statements --- */

static sp_status exec_if(sp_jrun *r, const sp_jnode *n) {
    for (int i = 0; i < n->list.n; i++) {
        sp_jval test;
        SP_TRY(sp_jrun_eval(r, n->list.at[i]->a, &test));
        if (sp_jval_truth(test)) return sp_jrun_exec(r, &n->list.at[i]->list);
    }
    return sp_jrun_exec(r, &n->more);
}

/* The text of a block through its filters; without any it stays as it is. */
static sp_status filter_text(sp_jrun *r, const sp_jnode *n, sp_jval *v) {
    SP_TRY(exec_scoped(r, &n->list, &n->hidden, v));
    if (!n->b || r->flow != SP_JFLOW_NEXT) return SP_OK;
    r->block_text = *v;
    return sp_jrun_eval(r, n->b, v);
}

static sp_status make_macro(sp_jrun *r, const sp_jnode *n, sp_jval *out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jmacro), &p));
    *out = (sp_jval){.type = SP_J_MACRO, .macro = p};
    *out->macro = (sp_jmacro){n, r->scope};
    return SP_OK;
}

static sp_status exec_callblock(sp_jrun *r, const sp_jnode *n) {
    sp_jval caller, f, result;
    sp_jcall c;
    SP_TRY(make_macro(r, n, &caller));
    SP_TRY(sp_jrun_eval(r, n->a->a, &f));
    SP_TRY(sp_jrun_args(r, &n->a->args, caller, &c));
    SP_TRY(sp_jval_call(r, f, &c, &result));
    return write_value(r, result);
}

static sp_status exec_with(sp_jrun *r, const sp_jnode *n) {
    sp_jscope *before = r->scope, *inside;
    SP_TRY(sp_jrun_open_scope(r, before, &n->hidden, &inside));
    for (int i = 0; i < n->args.n; i++) {
        sp_jval v;
        SP_TRY(sp_jrun_eval(r, n->args.at[i]->b, &v));
        SP_TRY(sp_jrun_assign(r, inside, n->args.at[i]->a, v));
    }
    r->scope = inside;
    SP_TRY(sp_jrun_exec(r, &n->list));
    r->scope = before;
    return SP_OK;
}

static sp_status exec_node(sp_jrun *r, const sp_jnode *n) {
    sp_jval v;
    switch (n->kind) {
    case SP_JN_DATA:
        return write_text(r, n->text);
    case SP_JN_OUTPUT:
        SP_TRY(sp_jrun_eval(r, n->a, &v));
        return write_value(r, v);
    case SP_JN_IF:
        return exec_if(r, n);
    case SP_JN_FOR:
        return exec_for(r, n);
    case SP_JN_SET:
        SP_TRY(sp_jrun_eval(r, n->b, &v));
        return sp_jrun_assign(r, r->scope, n->a, v);
    case SP_JN_SETBLOCK:
        /* A break inside leaves the block, and its text is lost. */
        SP_TRY(filter_text(r, n, &v));
        return r->flow == SP_JFLOW_NEXT ? sp_jrun_assign(r, r->scope, n->a, v) : SP_OK;
    case SP_JN_FILTERBLOCK:
        SP_TRY(filter_text(r, n, &v));
        return r->flow == SP_JFLOW_NEXT ? write_value(r, v) : SP_OK;
    case SP_JN_MACRO:
        SP_TRY(make_macro(r, n, &v));
        return sp_jrun_bind(r, r->scope, n->name, v);
    case SP_JN_CALLBLOCK:
        return exec_callblock(r, n);
    case SP_JN_WITH:
        return exec_with(r, n);
    case SP_JN_GENERATION:
        return exec_scoped(r, &n->list, &n->hidden, NULL);
    case SP_JN_BREAK:
        r->flow = SP_JFLOW_BREAK;
        return SP_OK;
    case SP_JN_CONTINUE:
        r->flow = SP_JFLOW_CONTINUE;
        return SP_OK;
    default:
        return sp_jrun_fail(r, "a statement of kind %d", (int)n->kind);
    }
}

sp_status sp_jrun_exec(sp_jrun *r, const sp_jnodes *body) {
    SP_TRY(sp_jrun_enter(r));
    for (int i = 0; i < body->n && r->flow == SP_JFLOW_NEXT; i++) {
        r->line = body->at[i]->line;
        SP_TRY(sp_jrun_charge(r, 1));
        SP_TRY(exec_node(r, body->at[i]));
    }
    sp_jrun_leave(r);
    return SP_OK;
}

/* --- rendering --- */

static sp_status variable(sp_jrun *r, const sp_jinja_var *v, sp_jval *out) {
    *out = sp_jval_bool(v->flag == 1);
    if (v->flag) return SP_OK;
    if (v->text.ptr) return sp_jval_str(r, v->text, out);
    return sp_jval_of_json(r, v->value, out);
}

/* Only what the template names is converted. */
static sp_status bind_variables(sp_jrun *r, const sp_jinja_var *vars, int n_vars) {
    for (int i = 0; i < n_vars; i++) {
        int name = 0;
        while (name < r->t->n_names && !sp_slice_is(r->t->names[name], vars[i].name)) name++;
        if (name == r->t->n_names) continue;
        sp_jval v;
        SP_TRY(variable(r, &vars[i], &v));
        SP_TRY(sp_jrun_bind(r, r->scope, name, v));
    }
    return SP_OK;
}

static sp_status render(sp_jrun *r, const sp_jinja_var *vars, int n_vars, sp_buf *out) {
    sp_jtext text = {0};
    sp_jscope *top;
    SP_TRY(sp_jrun_open_scope(r, NULL, NULL, &r->scope));
    SP_TRY(bind_variables(r, vars, n_vars));
    SP_TRY(sp_jrun_open_scope(r, r->scope, &r->t->hidden, &top));
    r->scope = top;
    r->out = &text;
    SP_TRY(sp_jrun_exec(r, &r->t->body));
    if (!sp_utf8_valid((sp_slice){text.ptr, text.len}))
        return sp_jrun_fail(r, "the text is not UTF-8");
    sp_buf_put(out, text.ptr, text.len);
    if (!out->failed) return SP_OK;
    return SP_FAIL(r->err, SP_E_TOOLONG, "a rendered prompt of %zu bytes does not fit", text.len);
}

sp_status sp_jinja_render_full(const sp_jinja *t, const sp_jinja_var *vars, int n_vars,
                               const sp_jinja_limits *limits, int64_t now_unix_s, sp_buf *out,
                               sp_buf *refusal, bool *refused, sp_err *err) {
    sp_jinja_limits l = limits ? *limits : (sp_jinja_limits){0};
    int depth = l.depth > 0 ? l.depth : DEPTH_DEFAULT;
    sp_jrun r = {.t = t,
                 .err = err,
                 .steps_left = l.steps > 0 ? l.steps : STEPS_DEFAULT,
                 .levels_max =
                     depth < INT32_MAX / LEVELS_PER_CALL ? depth * LEVELS_PER_CALL : depth,
                 .calls_max = depth,
                 .memory_max = l.memory_bytes ? l.memory_bytes : MEMORY_DEFAULT,
                 .output_max = l.output_bytes ? l.output_bytes : OUTPUT_DEFAULT,
                 .now_unix_s = now_unix_s};
    sp_arena_init(&r.arena, r.memory_max);
    sp_status st = render(&r, vars, n_vars, out);
    if (r.refused && refusal) sp_buf_put_slice(refusal, sp_jval_slice(r.refusal));
    if (refused) *refused = r.refused;
    sp_arena_fini(&r.arena);
    return st;
}

sp_status sp_jinja_render(const sp_jinja *t, const sp_jinja_var *vars, int n_vars,
                          const sp_jinja_limits *limits, int64_t now_unix_s, sp_buf *out,
                          bool *refused, sp_err *err) {
    return sp_jinja_render_full(t, vars, n_vars, limits, now_unix_s, out, NULL, refused, err);
}
