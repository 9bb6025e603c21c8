/* The parsed template: its making, what is refused before any rendering, and whether it reads a
 * message's content as a list of parts. */
#include "runtime/text/jinja.h"

#include "runtime/text/jinja_ast.h"

#include <string.h>

sp_status sp_jinja_parse(sp_jinja **out, sp_slice source, sp_jinja_options options, sp_err *err) {
    sp_jinja *t = sp_try_alloc(sizeof *t);
    if (!t) return SP_FAIL(err, SP_E_NOMEM, "no memory for a template");
    sp_arena_init(&t->arena, 0);
    sp_jtokens tokens;
    sp_status st = sp_jinja_lex(&t->arena, source, options, &tokens, err);
    if (st == SP_OK) st = sp_jinja_build(t, &tokens, err);
    if (st == SP_OK) st = sp_jinja_check(t, err);
    sp_free(tokens.at);
    if (st != SP_OK) {
        sp_jinja_free(t);
        return st;
    }
    sp_jinja_find_hidden(t);
    t->wants_parts = sp_jinja_find_parts(t);
    *out = t;
    return SP_OK;
}

void sp_jinja_free(sp_jinja *t) {
    if (!t) return;
    sp_free(t->names);
    sp_arena_fini(&t->arena);
    sp_free(t);
}

bool sp_jinja_wants_parts(const sp_jinja *t) {
    return t->wants_parts;
}

/* --- unknown filters and tests --- */

/* Jinja looks filters and tests up before it renders, but leaves those inside an if or an inline if
 * ("soft") to the moment they are used, so that a template can ask "is filter" first. What opens a
 * scope of its own inside is looked up again. */
typedef struct checker {
    const sp_jnode *bad; /* the first one found */
} checker;

static void check(checker *k, const sp_jnode *n, bool soft);

static void check_all(checker *k, const sp_jnodes *l, bool soft) {
    for (int i = 0; i < l->n; i++) check(k, l->at[i], soft);
}

static void check(checker *k, const sp_jnode *n, bool soft) {
    if (!n || k->bad) return;
    if ((n->kind == SP_JN_FILTER || n->kind == SP_JN_TEST) && !n->fn && !soft) {
        k->bad = n;
        return;
    }
    bool opens = n->kind == SP_JN_SETBLOCK || n->kind == SP_JN_FILTERBLOCK ||
                 n->kind == SP_JN_MACRO || n->kind == SP_JN_GENERATION;
    bool branch = n->kind == SP_JN_IF || n->kind == SP_JN_COND;
    bool inside = branch || (soft && !opens);
    bool body = n->kind == SP_JN_FOR || n->kind == SP_JN_CALLBLOCK || n->kind == SP_JN_WITH
                    ? false
                    : inside;
    check(k, n->a, inside);
    check(k, n->b, inside);
    check(k, n->c, n->kind == SP_JN_FOR ? false : inside);
    check_all(k, &n->args, n->kind == SP_JN_CALLBLOCK ? false : inside);
    check_all(k, &n->list, body);
    check_all(k, &n->more, body);
}

sp_status sp_jinja_check(const sp_jinja *t, sp_err *err) {
    checker k = {0};
    check_all(&k, &t->body, false);
    if (!k.bad) return SP_OK;
    return SP_FAIL(err, SP_E_FORMAT, "template line %d: no %s named '%.*s'", k.bad->line,
                   k.bad->kind == SP_JN_TEST ? "test" : "filter", (int)k.bad->text.len,
                   k.bad->text.ptr);
}

/* --- content as parts --- */

/* The question vLLM asks of a template: is there a loop over the content of something that a loop
 * over the messages gave? Names are followed through assignments, without regard to scopes. The
 * sets only grow, so repeating until nothing is added ends. */
typedef struct name_sets {
    unsigned char *is; /* by name: bits below */
    bool grew, found;
} name_sets;
enum {
    IS_MESSAGES = 1,
    IS_MESSAGE = 2,
    IS_CONTENT = 4
};

/* What an expression gives, as far as filters, tests and slices leave it recognisable. */
static int meaning(const name_sets *k, const sp_jnode *n) {
    while (n->a && (n->kind == SP_JN_FILTER || n->kind == SP_JN_TEST ||
                    (n->kind == SP_JN_GETITEM && n->b->kind == SP_JN_SLICE)))
        n = n->a;
    if (n->kind == SP_JN_NAME) return k->is[n->name];
    sp_slice key = n->text;
    if (n->kind == SP_JN_GETITEM && n->b->kind == SP_JN_CONST && n->b->value.type == SP_J_STR)
        key = sp_jval_slice(n->b->value);
    else if (n->kind != SP_JN_GETATTR)
        return 0;
    bool of_message = n->a->kind == SP_JN_NAME && (k->is[n->a->name] & IS_MESSAGE);
    return of_message && sp_slice_is(key, "content") ? IS_CONTENT : 0;
}

static void add(name_sets *k, const sp_jnode *target, int bits) {
    if (target->kind != SP_JN_NAME || (k->is[target->name] & bits) == bits) return;
    k->is[target->name] |= (unsigned char)bits;
    k->grew = true;
}

static void follow(name_sets *k, const sp_jnode *n) {
    if (!n) return;
    if (n->kind == SP_JN_SET) add(k, n->a, meaning(k, n->b));
    if (n->kind == SP_JN_FOR) {
        int over = meaning(k, n->b);
        if (over & IS_MESSAGES) add(k, n->a, IS_MESSAGE);
        if (over & IS_CONTENT) k->found = true;
    }
    const sp_jnodes *lists[] = {&n->list, &n->more, &n->args};
    for (int l = 0; l < 3; l++)
        for (int i = 0; i < lists[l]->n; i++) follow(k, lists[l]->at[i]);
}

bool sp_jinja_find_parts(const sp_jinja *t) {
    name_sets k = {.is = sp_alloc((size_t)t->n_names), .grew = true};
    for (int i = 0; i < t->n_names; i++)
        if (sp_slice_is(t->names[i], "messages")) k.is[i] = IS_MESSAGES;
    /* A chain of assignments written backwards grows by one name a round. */
    for (int round = 0; k.grew && !k.found && round < 64; round++) {
        k.grew = false;
        for (int i = 0; i < t->body.n; i++) follow(&k, t->body.at[i]);
    }
    sp_free(k.is);
    return k.found;
}
