/* A render's services: failing with words, memory, limits, scopes and names. */
#include "runtime/text/jinja_eval.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

sp_status sp_jrun_fail(sp_jrun *r, const char *fmt, ...) {
    char words[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    return SP_FAIL(r->err, SP_E_FORMAT, "template line %d: %s", r->line, words);
}

sp_status sp_jrun_take(sp_jrun *r, size_t size, void **out) {
    void *p = sp_arena_try(&r->arena, size);
    if (p) {
        *out = p;
        return SP_OK;
    }
    if (size >= r->memory_max || size + 16 > r->memory_max - r->arena.used_bytes)
        return SP_FAIL(r->err, SP_E_TOOLONG,
                       "template line %d: its values take more than %zu bytes", r->line,
                       r->memory_max);
    return SP_FAIL(r->err, SP_E_NOMEM, "no memory for the values of a template");
}

sp_status sp_jrun_charge(sp_jrun *r, uint64_t steps) {
    if (steps <= (uint64_t)r->steps_left) {
        r->steps_left -= (int64_t)steps;
        return SP_OK;
    }
    return SP_FAIL(r->err, SP_E_TOOLONG,
                   "template line %d: rendering takes more steps than allowed", r->line);
}

sp_status sp_jrun_enter(sp_jrun *r) {
    if (++r->levels <= r->levels_max) return SP_OK;
    return SP_FAIL(r->err, SP_E_TOOLONG, "template line %d: nested deeper than %d levels", r->line,
                   r->levels_max);
}

void sp_jrun_leave(sp_jrun *r) {
    r->levels--;
}

/* --- scopes --- */

sp_status sp_jrun_open_scope(sp_jrun *r, sp_jscope *up, const sp_jnames *hidden, sp_jscope **out) {
    void *p = NULL;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jscope), &p));
    *out = p;
    (*out)->up = up;
    return sp_jrun_reset_scope(r, *out, hidden);
}

sp_status sp_jrun_reset_scope(sp_jrun *r, sp_jscope *s, const sp_jnames *hidden) {
    s->n = 0;
    for (int i = 0; hidden && i < hidden->n; i++)
        SP_TRY(sp_jrun_bind(r, s, hidden->at[i], sp_jval_missing()));
    return SP_OK;
}

sp_status sp_jrun_bind(sp_jrun *r, sp_jscope *s, int name, sp_jval v) {
    for (int i = 0; i < s->n; i++)
        if (s->at[i].name == name) {
            s->at[i].value = v;
            return SP_OK;
        }
    if (s->n == s->cap) {
        int cap = s->cap ? 2 * s->cap : 4;
        void *p = NULL;
        SP_TRY(sp_jrun_take(r, (size_t)cap * sizeof *s->at, &p));
        if (s->n) memcpy(p, s->at, (size_t)s->n * sizeof *s->at);
        s->at = p;
        s->cap = cap;
    }
    s->at[s->n++] = (sp_jbinding){name, v};
    return SP_OK;
}

static const sp_jval *find_binding(const sp_jscope *s, int name) {
    for (; s; s = s->up)
        for (int i = 0; i < s->n; i++)
            if (s->at[i].name == name) return &s->at[i].value;
    return NULL;
}

sp_status sp_jrun_lookup(sp_jrun *r, int name, sp_slice text, sp_jval *out) {
    const sp_jval *v = find_binding(r->scope, name);
    if (v && v->type != SP_J_MISSING) {
        *out = *v;
        return SP_OK;
    }
    const sp_jglobal *g = v ? NULL : sp_jglobal_find(text);
    if (g) {
        *out = (sp_jval){.type = SP_J_FN, .fn = g};
        return SP_OK;
    }
    sp_jval word;
    SP_TRY(sp_jval_str(r, text, &word));
    return sp_jval_undefined(r, NULL, NULL, word, out);
}

static sp_status assign_tuple(sp_jrun *r, sp_jscope *s, const sp_jnodes *targets, sp_jval v) {
    sp_jiter *it;
    SP_TRY(sp_jiter_open(r, v, &it));
    for (int i = 0;; i++) {
        sp_jval item;
        bool done;
        SP_TRY(sp_jiter_next(r, it, &item, &done));
        if (done && i < targets->n)
            return sp_jrun_fail(r, "not enough values to unpack (expected %d, got %d)", targets->n,
                                i);
        if (done) return SP_OK;
        if (i == targets->n)
            return sp_jrun_fail(r, "too many values to unpack (expected %d)", targets->n);
        SP_TRY(sp_jrun_assign(r, s, targets->at[i], item));
    }
}

sp_status sp_jrun_assign(sp_jrun *r, sp_jscope *s, const sp_jnode *target, sp_jval v) {
    if (target->kind == SP_JN_NAME) return sp_jrun_bind(r, s, target->name, v);
    if (target->kind == SP_JN_TUPLE) return assign_tuple(r, s, &target->list, v);
    const sp_jval *ns = find_binding(s, target->name);
    if (!ns || ns->type != SP_J_NAMESPACE)
        return sp_jrun_fail(r, "cannot assign attribute '%.*s' on non-namespace object",
                            (int)target->text.len, target->text.ptr);
    return sp_jdict_put(r, ns->dict, target->value, v);
}
