/* Which names a scope hides before it has set them.
 *
 * Jinja decides at compile time where a name lives. A scope that assigns a name in every way
 * through it, and has not read it before, owns that name from its start, unless a scope around it
 * already knows the name: until the assignment it is undefined, even where the render has a variable
 * of that name. Loops and macros inside, which run before the assignment, see that. A name that is read
 * first, or assigned in some branches only, begins as what it is outside. */
#include "runtime/text/jinja_ast.h"

#include <string.h>

/* Templates that make this product larger are not analysed: nothing is hidden then. */
#define WORK_MAX ((int64_t)1 << 27)

typedef enum load {
    UNKNOWN,
    RESOLVE,
    ALIAS,
    HIDDEN,
    PARAMETER
} load;

typedef struct frame {
    const struct frame *up;
    unsigned char *kind;   /* by name: load */
    unsigned char *stored; /* by name */
} frame;

typedef struct analyser {
    sp_jinja *t;
    int64_t work;
    bool failed; /* out of memory or over WORK_MAX */
} analyser;

static bool known(const frame *f, int name) {
    for (; f; f = f->up)
        if (f->kind[name] != UNKNOWN) return true;
    return false;
}

static void read_name(frame *f, int name) {
    if (!known(f, name)) f->kind[name] = RESOLVE;
}

static void store_name(frame *f, int name) {
    f->stored[name] = 1;
    if (f->kind[name] != UNKNOWN) return;
    f->kind[name] = known(f->up, name) ? ALIAS : HIDDEN;
}

static void declare(frame *f, int name) {
    f->stored[name] = 1;
    f->kind[name] = PARAMETER;
}

static bool frame_init(analyser *a, frame *f, const frame *up) {
    size_t n = (size_t)a->t->n_names;
    a->work += (int64_t)n;
    *f = (frame){.up = up};
    if (a->work < WORK_MAX) f->kind = sp_try_alloc(2 * n);
    f->stored = f->kind ? f->kind + n : NULL;
    a->failed = a->failed || !f->kind;
    return !a->failed;
}

static void frame_fini(frame *f) {
    sp_free(f->kind);
}

static void visit(analyser *a, frame *f, const sp_jnode *n);

static void visit_all(analyser *a, frame *f, const sp_jnodes *l) {
    for (int i = 0; i < l->n && !a->failed; i++) visit(a, f, l->at[i]);
}

static void store_target(frame *f, const sp_jnode *n, bool parameter) {
    if (n->kind == SP_JN_NAME) parameter ? declare(f, n->name) : store_name(f, n->name);
    if (n->kind == SP_JN_NSREF) read_name(f, n->name);
    for (int i = 0; n->kind == SP_JN_TUPLE && i < n->list.n; i++)
        store_target(f, n->list.at[i], parameter);
}

/* What one way through an if does, on a copy of what was known before. */
static void visit_branch(analyser *a, const frame *before, const sp_jnode *const *nodes, int n,
                         frame *out) {
    if (!frame_init(a, out, before->up)) return;
    memcpy(out->kind, before->kind, 2 * (size_t)a->t->n_names);
    for (int i = 0; i < n; i++) {
        visit(a, out, nodes[i]->a);
        visit_all(a, out, &nodes[i]->list);
    }
}

/* Three ways, as Jinja counts them: the if, all its elifs together, the else. */
static void visit_if(analyser *a, frame *f, const sp_jnode *n) {
    frame way[3] = {0};
    const sp_jnode otherwise = {.kind = SP_JN_IF, .list = n->more}, *rest = &otherwise;
    const sp_jnode *const *branches = (const sp_jnode *const *)n->list.at;
    if (n->list.n) visit(a, f, n->list.at[0]->a);
    visit_branch(a, f, branches, n->list.n > 0, &way[0]);
    if (!a->failed)
        visit_branch(a, f, branches + (n->list.n > 0), n->list.n > 0 ? n->list.n - 1 : 0, &way[1]);
    if (!a->failed) visit_branch(a, f, &rest, 1, &way[2]);
    for (int name = 0; name < a->t->n_names && !a->failed; name++) {
        int stores = way[0].stored[name] + way[1].stored[name] + way[2].stored[name];
        for (int w = 0; w < 3; w++)
            if (way[w].kind[name] != UNKNOWN) f->kind[name] = way[w].kind[name];
        if (stores && stores < 3 && !f->stored[name])
            f->kind[name] = known(f->up, name) ? ALIAS : RESOLVE;
        if (stores) f->stored[name] = 1;
    }
    for (int w = 0; w < 3; w++) frame_fini(&way[w]);
}

/* Names as they are read and assigned in this scope; scopes inside are not entered. */
static void visit(analyser *a, frame *f, const sp_jnode *n) {
    if (!n || a->failed) return;
    switch (n->kind) {
    case SP_JN_NAME:
        read_name(f, n->name);
        return;
    case SP_JN_IF:
        visit_if(a, f, n);
        return;
    case SP_JN_FOR:
        visit(a, f, n->b);
        return;
    case SP_JN_MACRO:
        store_name(f, n->name);
        return;
    case SP_JN_CALLBLOCK:
        visit(a, f, n->a);
        return;
    case SP_JN_FILTERBLOCK:
        visit(a, f, n->b);
        return;
    case SP_JN_GENERATION:
        return;
    case SP_JN_SETBLOCK:
        store_target(f, n->a, false);
        return;
    case SP_JN_SET:
        visit(a, f, n->b);
        store_target(f, n->a, false);
        return;
    case SP_JN_WITH:
        for (int i = 0; i < n->args.n; i++) visit(a, f, n->args.at[i]->b);
        return;
    default:
        break;
    }
    visit(a, f, n->a);
    visit(a, f, n->b);
    visit(a, f, n->c);
    visit_all(a, f, &n->list);
    visit_all(a, f, &n->args);
    visit_all(a, f, &n->more);
}

/* --- scopes inside --- */

static void find_scopes(analyser *a, const frame *f, sp_jnode *n);

static void find_all_scopes(analyser *a, const frame *f, const sp_jnodes *l) {
    for (int i = 0; i < l->n && !a->failed; i++) find_scopes(a, f, l->at[i]);
}

static void keep_hidden(analyser *a, const frame *f, sp_jnames *out) {
    int n = 0;
    for (int i = 0; i < a->t->n_names; i++) n += f->kind[i] == HIDDEN;
    out->at = n ? sp_arena_try(&a->t->arena, (size_t)n * sizeof *out->at) : NULL;
    a->failed = a->failed || (n && !out->at);
    for (int i = 0; i < a->t->n_names && out->at; i++)
        if (f->kind[i] == HIDDEN) out->at[out->n++] = i;
}

/* What a scope declares before its body. */
static void declare_own(analyser *a, frame *f, const sp_jnode *n) {
    if (n->kind == SP_JN_FOR) {
        declare(f, SP_JNAME_LOOP);
        store_target(f, n->a, true);
    }
    for (int i = 0; i < n->args.n; i++) {
        const sp_jnode *arg = n->args.at[i];
        if (arg->kind == SP_JN_PARAM) declare(f, arg->name);
        if (arg->kind == SP_JN_SET) store_target(f, arg->a, true);
    }
    if (n->kind != SP_JN_MACRO && n->kind != SP_JN_CALLBLOCK) return;
    if (n->op & SP_JM_CALLER) declare(f, SP_JNAME_CALLER);
    if (n->op & SP_JM_KWARGS) declare(f, SP_JNAME_KWARGS);
    if (n->op & SP_JM_VARARGS) declare(f, SP_JNAME_VARARGS);
    for (int i = 0; i < n->args.n; i++) visit(a, f, n->args.at[i]->a);
}

static void analyse_scope(analyser *a, const frame *up, sp_jnode *n, const sp_jnodes *body,
                          sp_jnames *hidden) {
    frame f;
    if (!frame_init(a, &f, up)) return;
    declare_own(a, &f, n);
    visit_all(a, &f, body);
    keep_hidden(a, &f, hidden);
    find_all_scopes(a, &f, body);
    frame_fini(&f);
}

static void find_scopes(analyser *a, const frame *f, sp_jnode *n) {
    sp_jnode plain = {0};
    sp_jnames unused = {0};
    switch (n->kind) {
    case SP_JN_IF:
    case SP_JN_BRANCH:
        find_all_scopes(a, f, &n->list);
        find_all_scopes(a, f, &n->more);
        return;
    case SP_JN_FOR:
        analyse_scope(a, f, n, &n->list, &n->hidden);
        analyse_scope(a, f, &plain, &n->more, &unused);
        return;
    case SP_JN_MACRO:
    case SP_JN_CALLBLOCK:
    case SP_JN_SETBLOCK:
    case SP_JN_FILTERBLOCK:
    case SP_JN_GENERATION:
    case SP_JN_WITH:
        analyse_scope(a, f, n, &n->list, &n->hidden);
        return;
    default:
        return;
    }
}

void sp_jinja_find_hidden(sp_jinja *t) {
    analyser a = {.t = t};
    sp_jnode root = {0};
    analyse_scope(&a, NULL, &root, &t->body, &t->hidden);
}
