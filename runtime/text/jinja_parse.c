/* Statements: what stands between {% and %}, and the text around it. */
#include "runtime/text/jinja_parse.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* --- services --- */

sp_status sp_jparser_fail(sp_jparser *p, const char *fmt, ...) {
    char words[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    return SP_FAIL(p->err, SP_E_FORMAT, "template line %d: %s", p->at->line, words);
}

sp_status sp_jparser_unexpected(sp_jparser *p, const char *wanted) {
    const sp_jtoken *t = p->at;
    int n = t->text.len < 40 ? (int)t->text.len : 40;
    if (t->type == SP_JT_NAME || t->type == SP_JT_INT || t->type == SP_JT_FLOAT)
        return sp_jparser_fail(p, "expected %s, got '%.*s'", wanted, n, t->text.ptr);
    return sp_jparser_fail(p, "expected %s, got %s", wanted, sp_jtok_text(t->type));
}

sp_status sp_jparser_expect(sp_jparser *p, sp_jtok type) {
    if (!sp_jparser_skip(p, type)) return sp_jparser_unexpected(p, sp_jtok_text(type));
    return SP_OK;
}

bool sp_jparser_skip(sp_jparser *p, sp_jtok type) {
    if (p->at->type != type) return false;
    p->at++;
    return true;
}

bool sp_jparser_is_name(const sp_jtoken *t, const char *word) {
    return t->type == SP_JT_NAME && sp_slice_is(t->text, word);
}

bool sp_jparser_skip_name(sp_jparser *p, const char *word) {
    if (!sp_jparser_is_name(p->at, word)) return false;
    p->at++;
    return true;
}

sp_status sp_jparser_enter(sp_jparser *p) {
    if (++p->nest <= SP_JINJA_NEST_MAX) return SP_OK;
    return SP_FAIL(p->err, SP_E_TOOLONG, "template line %d: nested deeper than %d", p->at->line,
                   SP_JINJA_NEST_MAX);
}

static sp_status no_memory(sp_jparser *p) {
    return SP_FAIL(p->err, SP_E_NOMEM, "no memory for the tree of a template");
}

sp_status sp_jparser_node(sp_jparser *p, sp_jkind kind, int line, sp_jnode **out) {
    sp_jnode *n = sp_arena_try(&p->t->arena, sizeof *n);
    if (!n) return no_memory(p);
    n->kind = kind;
    n->line = line;
    n->depth = 1;
    *out = n;
    return SP_OK;
}

static int deepest(const sp_jnodes *l, int depth) {
    for (int i = 0; i < l->n; i++)
        if (l->at[i]->depth >= depth) depth = l->at[i]->depth + 1;
    return depth;
}

sp_status sp_jparser_seal(sp_jparser *p, sp_jnode *n) {
    int depth = deepest(&n->list, deepest(&n->more, deepest(&n->args, 1)));
    const sp_jnode *parts[] = {n->a, n->b, n->c};
    for (int i = 0; i < 3; i++)
        if (parts[i] && parts[i]->depth >= depth) depth = parts[i]->depth + 1;
    n->depth = depth;
    if (depth <= SP_JINJA_TREE_MAX) return SP_OK;
    return SP_FAIL(p->err, SP_E_TOOLONG, "template line %d: an expression of more than %d steps",
                   n->line, SP_JINJA_TREE_MAX);
}

sp_status sp_jparser_push(sp_jparser *p, sp_jnode_list *l, sp_jnode *n) {
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 8;
        sp_jnode **at = sp_try_realloc(l->at, (size_t)cap * sizeof *at);
        if (!at) return no_memory(p);
        l->at = at;
        l->cap = cap;
    }
    l->at[l->n++] = n;
    return SP_OK;
}

sp_status sp_jparser_keep(sp_jparser *p, sp_jnode_list *l, sp_jnodes *out) {
    size_t bytes = (size_t)l->n * sizeof *l->at;
    sp_jnode **at = bytes ? sp_arena_try(&p->t->arena, bytes) : NULL;
    sp_status st = bytes && !at ? no_memory(p) : SP_OK;
    if (at) memcpy(at, l->at, bytes);
    if (st == SP_OK) *out = (sp_jnodes){at, l->n};
    sp_free(l->at);
    *l = (sp_jnode_list){0};
    return st;
}

sp_status sp_jparser_string(sp_jparser *p, sp_slice s, sp_jval *out) {
    sp_jstr *str = sp_arena_try(&p->t->arena, sizeof *str);
    if (!str) return no_memory(p);
    *str = (sp_jstr){.ptr = s.ptr ? s.ptr : "", .len = s.len, .n_chars = SIZE_MAX};
    sp_jstr_chars(str); /* now: renders on other threads must find it counted */
    *out = (sp_jval){.type = SP_J_STR, .s = str};
    return SP_OK;
}

/* --- names --- */

static sp_status grow_names(sp_jparser *p) {
    int size = p->name_index_size ? 2 * p->name_index_size : 128;
    int *index = sp_try_alloc_array((size_t)size, sizeof *index);
    sp_slice *names = sp_try_realloc(p->t->names, (size_t)size * sizeof *names);
    if (names) p->t->names = names;
    if (!index || !names) {
        sp_free(index);
        return no_memory(p);
    }
    for (int i = 0; i < p->t->n_names; i++) {
        size_t slot = sp_hash_bytes(names[i].ptr, names[i].len) & (size_t)(size - 1);
        while (index[slot]) slot = (slot + 1) & (size_t)(size - 1);
        index[slot] = i + 1;
    }
    sp_free(p->name_index);
    p->name_index = index;
    p->name_index_size = size;
    return SP_OK;
}

sp_status sp_jparser_name(sp_jparser *p, sp_slice name, int *out) {
    if (2 * (p->t->n_names + 1) > p->name_index_size) SP_TRY(grow_names(p));
    size_t mask = (size_t)p->name_index_size - 1, slot = sp_hash_bytes(name.ptr, name.len) & mask;
    for (; p->name_index[slot]; slot = (slot + 1) & mask) {
        *out = p->name_index[slot] - 1;
        if (sp_slice_eq(p->t->names[*out], name)) return SP_OK;
    }
    *out = p->t->n_names++;
    p->t->names[*out] = name;
    p->name_index[slot] = *out + 1;
    return SP_OK;
}

/* --- bodies --- */

static sp_status parse_statement(sp_jparser *p, sp_jnode **out);

static bool ends_body(const sp_jtoken *t, const char *const *ends) {
    for (; ends && *ends; ends++)
        if (sp_jparser_is_name(t, *ends)) return true;
    return false;
}

static sp_status parse_output(sp_jparser *p, sp_jnode **out) {
    sp_jnode *value;
    int line = (p->at++)->line;
    SP_TRY(sp_jparser_tuple(p, (sp_jtuple_rules){0}, &value));
    SP_TRY(sp_jparser_expect(p, SP_JT_VAR_END));
    SP_TRY(sp_jparser_node(p, SP_JN_OUTPUT, line, out));
    (*out)->a = value;
    return sp_jparser_seal(p, *out);
}

/* Statements and text until {% and one of `ends`, whose token becomes the current one. */
static sp_status body_list(sp_jparser *p, const char *const *ends, sp_jnode_list *body) {
    for (;;) {
        sp_jnode *n = NULL;
        const sp_jtoken *t = p->at;
        switch (t->type) {
        case SP_JT_EOF:
            if (ends) return sp_jparser_fail(p, "the template ends before '%s'", ends[0]);
            return SP_OK;
        case SP_JT_DATA:
            p->at++;
            SP_TRY(sp_jparser_node(p, SP_JN_DATA, t->line, &n));
            n->text = t->text;
            break;
        case SP_JT_VAR_BEGIN:
            SP_TRY(parse_output(p, &n));
            break;
        default:
            SP_TRY(sp_jparser_expect(p, SP_JT_BLOCK_BEGIN));
            if (ends_body(p->at, ends)) return SP_OK;
            SP_TRY(parse_statement(p, &n));
            SP_TRY(sp_jparser_expect(p, SP_JT_BLOCK_END));
        }
        SP_TRY(sp_jparser_push(p, body, n));
    }
}

static sp_status parse_nodes(sp_jparser *p, const char *const *ends, sp_jnodes *out) {
    sp_jnode_list body = {0};
    sp_status st = sp_jparser_enter(p);
    if (st == SP_OK) st = body_list(p, ends, &body);
    if (st != SP_OK) {
        sp_free(body.at);
        return st;
    }
    p->nest--;
    return sp_jparser_keep(p, &body, out);
}

/* The rest of an opening tag, then its body. `*ended_by` (may be NULL) is the word that ended it;
 * the current token is behind that word. */
static sp_status parse_body(sp_jparser *p, const char *const *ends, sp_jnodes *out,
                            sp_slice *ended_by) {
    sp_jparser_skip(p, SP_JT_COLON);
    SP_TRY(sp_jparser_expect(p, SP_JT_BLOCK_END));
    SP_TRY(parse_nodes(p, ends, out));
    if (ended_by) *ended_by = p->at->text;
    p->at++;
    return SP_OK;
}

/* --- targets --- */

static sp_status check_target(sp_jparser *p, const sp_jnode *n) {
    if (n->kind == SP_JN_NSREF) return SP_OK;
    if (n->kind == SP_JN_NAME) {
        if (p->in_for && sp_slice_is(n->text, "loop"))
            return sp_jparser_fail(p, "cannot assign to the special variable 'loop' in a for loop");
        return SP_OK;
    }
    if (n->kind != SP_JN_TUPLE) return sp_jparser_fail(p, "cannot assign to this expression");
    for (int i = 0; i < n->list.n; i++) SP_TRY(check_target(p, n->list.at[i]));
    return SP_OK;
}

static sp_status parse_target(sp_jparser *p, bool namespaces, sp_jnode **out) {
    sp_jtuple_rules rules = {.targets = true, .namespaces = namespaces};
    SP_TRY(sp_jparser_tuple(p, rules, out));
    return check_target(p, *out);
}

/* A plain name that may be assigned to. */
static sp_status parse_plain_name(sp_jparser *p, sp_jnode *n) {
    static const char *const fixed[] = {"true", "True", "false", "False", "none", "None"};
    if (p->at->type != SP_JT_NAME) return sp_jparser_unexpected(p, "a name");
    for (size_t i = 0; i < SP_LEN(fixed); i++)
        if (sp_slice_is(p->at->text, fixed[i]))
            return sp_jparser_fail(p, "cannot assign to '%s'", fixed[i]);
    n->text = p->at->text;
    return sp_jparser_name(p, (p->at++)->text, &n->name);
}

/* --- statements --- */

static sp_status parse_set(sp_jparser *p, sp_jnode *n) {
    static const char *const ends[] = {"endset", NULL};
    SP_TRY(parse_target(p, true, &n->a));
    if (sp_jparser_skip(p, SP_JT_ASSIGN)) return sp_jparser_tuple(p, (sp_jtuple_rules){0}, &n->b);
    n->kind = SP_JN_SETBLOCK;
    SP_TRY(sp_jparser_filters(p, NULL, false, &n->b));
    return parse_body(p, ends, &n->list, NULL);
}

static sp_status parse_for(sp_jparser *p, sp_jnode *n) {
    static const char *const body_ends[] = {"endfor", "else", NULL}, *const ends[] = {"endfor",
                                                                                      NULL};
    sp_slice by;
    p->in_for++;
    SP_TRY(parse_target(p, false, &n->a));
    if (!sp_jparser_skip_name(p, "in")) return sp_jparser_unexpected(p, "'in'");
    SP_TRY(sp_jparser_tuple(p, (sp_jtuple_rules){.no_cond = true}, &n->b));
    if (sp_jparser_skip_name(p, "if")) SP_TRY(sp_jparser_expression(p, &n->c));
    n->op = sp_jparser_skip_name(p, "recursive");
    p->loops++;
    SP_TRY(parse_body(p, body_ends, &n->list, &by));
    p->loops--;
    if (sp_slice_is(by, "else")) SP_TRY(parse_body(p, ends, &n->more, NULL));
    p->in_for--;
    return SP_OK;
}

static sp_status branch_list(sp_jparser *p, sp_jnode *n, sp_jnode_list *branches) {
    static const char *const body_ends[] = {"elif", "else", "endif", NULL}, *const ends[] = {
                                                                                "endif", NULL};
    for (;;) {
        sp_jnode *b;
        sp_slice by;
        SP_TRY(sp_jparser_node(p, SP_JN_BRANCH, p->at->line, &b));
        SP_TRY(sp_jparser_tuple(p, (sp_jtuple_rules){.no_cond = true}, &b->a));
        SP_TRY(parse_body(p, body_ends, &b->list, &by));
        SP_TRY(sp_jparser_seal(p, b));
        SP_TRY(sp_jparser_push(p, branches, b));
        if (sp_slice_is(by, "else")) return parse_body(p, ends, &n->more, NULL);
        if (sp_slice_is(by, "endif")) return SP_OK;
    }
}

static sp_status parse_if(sp_jparser *p, sp_jnode *n) {
    sp_jnode_list branches = {0};
    sp_status st = branch_list(p, n, &branches);
    if (st != SP_OK) {
        sp_free(branches.at);
        return st;
    }
    return sp_jparser_keep(p, &branches, &n->list);
}

static sp_status param_list(sp_jparser *p, sp_jnode_list *params) {
    bool defaults = false;
    while (p->at->type != SP_JT_RPAREN) {
        sp_jnode *param;
        if (params->n) SP_TRY(sp_jparser_expect(p, SP_JT_COMMA));
        SP_TRY(sp_jparser_node(p, SP_JN_PARAM, p->at->line, &param));
        SP_TRY(parse_plain_name(p, param));
        if (sp_jparser_skip(p, SP_JT_ASSIGN)) {
            SP_TRY(sp_jparser_expression(p, &param->a));
            defaults = true;
        } else if (defaults) {
            return sp_jparser_fail(p, "a parameter without a default follows one with");
        }
        SP_TRY(sp_jparser_seal(p, param));
        SP_TRY(sp_jparser_push(p, params, param));
    }
    return sp_jparser_expect(p, SP_JT_RPAREN);
}

static sp_status parse_params(sp_jparser *p, sp_jnode *n) {
    sp_jnode_list params = {0};
    SP_TRY(sp_jparser_expect(p, SP_JT_LPAREN));
    sp_status st = param_list(p, &params);
    if (st != SP_OK) {
        sp_free(params.at);
        return st;
    }
    return sp_jparser_keep(p, &params, &n->args);
}

/* The body of something that is called: loops and mentions are its own. What it mentions, what is
 * around it mentions too. */
static sp_status parse_called_body(sp_jparser *p, const char *const *ends, sp_jnode *n) {
    int loops = p->loops, mentions = p->mentions;
    p->loops = p->mentions = 0;
    SP_TRY(parse_body(p, ends, &n->list, NULL));
    n->op = p->mentions;
    p->loops = loops;
    p->mentions |= mentions;
    for (int i = 0; i < n->args.n; i++) {
        const sp_jnode *param = n->args.at[i];
        if (sp_slice_is(param->text, "kwargs")) n->op &= ~SP_JM_KWARGS;
        if (sp_slice_is(param->text, "varargs")) n->op &= ~SP_JM_VARARGS;
        if (!sp_slice_is(param->text, "caller") || param->a || !(n->op & SP_JM_CALLER)) continue;
        return sp_jparser_fail(p, "the parameter 'caller' needs a default");
    }
    return SP_OK;
}

static sp_status parse_macro(sp_jparser *p, sp_jnode *n) {
    static const char *const ends[] = {"endmacro", NULL};
    SP_TRY(parse_plain_name(p, n));
    SP_TRY(parse_params(p, n));
    return parse_called_body(p, ends, n);
}

static sp_status parse_callblock(sp_jparser *p, sp_jnode *n) {
    static const char *const ends[] = {"endcall", NULL};
    if (p->at->type == SP_JT_LPAREN) SP_TRY(parse_params(p, n));
    SP_TRY(sp_jparser_expression(p, &n->a));
    if (n->a->kind != SP_JN_CALL) return sp_jparser_fail(p, "'call' wants a call");
    return parse_called_body(p, ends, n);
}

/* transformers makes this a call block, so that what is set inside stays inside. */
static sp_status parse_generation(sp_jparser *p, sp_jnode *n) {
    static const char *const ends[] = {"endgeneration", NULL};
    return parse_called_body(p, ends, n);
}

static sp_status parse_filterblock(sp_jparser *p, sp_jnode *n) {
    static const char *const ends[] = {"endfilter", NULL};
    SP_TRY(sp_jparser_filters(p, NULL, true, &n->b));
    return parse_body(p, ends, &n->list, NULL);
}

static sp_status assignment_list(sp_jparser *p, sp_jnode_list *sets) {
    while (p->at->type != SP_JT_BLOCK_END) {
        sp_jnode *set;
        if (sets->n) SP_TRY(sp_jparser_expect(p, SP_JT_COMMA));
        SP_TRY(sp_jparser_node(p, SP_JN_SET, p->at->line, &set));
        /* `a, b = pair` is one assignment; the target takes the commas it sees. */
        SP_TRY(parse_target(p, false, &set->a));
        SP_TRY(sp_jparser_expect(p, SP_JT_ASSIGN));
        SP_TRY(sp_jparser_expression(p, &set->b));
        SP_TRY(sp_jparser_seal(p, set));
        SP_TRY(sp_jparser_push(p, sets, set));
    }
    return SP_OK;
}

static sp_status parse_with(sp_jparser *p, sp_jnode *n) {
    static const char *const ends[] = {"endwith", NULL};
    sp_jnode_list sets = {0};
    sp_status st = assignment_list(p, &sets);
    if (st != SP_OK) {
        sp_free(sets.at);
        return st;
    }
    SP_TRY(sp_jparser_keep(p, &sets, &n->args));
    return parse_body(p, ends, &n->list, NULL);
}

/* {% print a, b %}: as an if without condition, so that several values fit one node. */
static sp_status parse_print(sp_jparser *p, sp_jnode *n) {
    sp_jnode_list parts = {0};
    sp_status st = SP_OK;
    while (st == SP_OK && p->at->type != SP_JT_BLOCK_END) {
        sp_jnode *part = NULL;
        if (parts.n) st = sp_jparser_expect(p, SP_JT_COMMA);
        if (st == SP_OK) st = sp_jparser_node(p, SP_JN_OUTPUT, p->at->line, &part);
        if (st == SP_OK) st = sp_jparser_expression(p, &part->a);
        if (st == SP_OK) st = sp_jparser_seal(p, part);
        if (st == SP_OK) st = sp_jparser_push(p, &parts, part);
    }
    if (st == SP_OK) return sp_jparser_keep(p, &parts, &n->more);
    sp_free(parts.at);
    return st;
}

static sp_status parse_jump(sp_jparser *p, sp_jnode *n) {
    if (p->loops > 0) return SP_OK;
    return sp_jparser_fail(p, "'%s' outside a loop", n->kind == SP_JN_BREAK ? "break" : "continue");
}

typedef struct statement {
    const char *word;
    sp_jkind kind;
    sp_status (*parse)(sp_jparser *p, sp_jnode *n);
} statement;

static const statement STATEMENTS[] = {
    {"set", SP_JN_SET, parse_set},
    {"if", SP_JN_IF, parse_if},
    {"for", SP_JN_FOR, parse_for},
    {"macro", SP_JN_MACRO, parse_macro},
    {"call", SP_JN_CALLBLOCK, parse_callblock},
    {"filter", SP_JN_FILTERBLOCK, parse_filterblock},
    {"with", SP_JN_WITH, parse_with},
    {"generation", SP_JN_GENERATION, parse_generation},
    {"print", SP_JN_IF, parse_print},
    {"break", SP_JN_BREAK, parse_jump},
    {"continue", SP_JN_CONTINUE, parse_jump},
};

static sp_status refuse_statement(sp_jparser *p) {
    static const char *const known[] = {"import", "from",       "include", "extends",
                                        "block",  "autoescape", "do",      "trans"};
    sp_slice word = p->at->text;
    for (size_t i = 0; i < SP_LEN(known); i++)
        if (sp_slice_is(word, known[i]))
            return SP_FAIL(p->err, SP_E_UNSUPPORTED,
                           "template line %d: the statement '%s' is not supported", p->at->line,
                           known[i]);
    return sp_jparser_fail(p, "unknown statement '%.*s'", word.len < 40 ? (int)word.len : 40,
                           word.ptr);
}

static sp_status parse_statement(sp_jparser *p, sp_jnode **out) {
    if (p->at->type != SP_JT_NAME) return sp_jparser_unexpected(p, "the name of a statement");
    for (size_t i = 0; i < SP_LEN(STATEMENTS); i++) {
        if (!sp_slice_is(p->at->text, STATEMENTS[i].word)) continue;
        SP_TRY(sp_jparser_node(p, STATEMENTS[i].kind, p->at->line, out));
        p->at++;
        SP_TRY(STATEMENTS[i].parse(p, *out));
        return sp_jparser_seal(p, *out);
    }
    return refuse_statement(p);
}

sp_status sp_jinja_build(sp_jinja *t, const sp_jtokens *tokens, sp_err *err) {
    sp_jparser p = {.t = t, .at = tokens->at, .err = err};
    static const char *const fixed[] = {"loop", "caller", "kwargs", "varargs"}; /* SP_JNAME_* */
    sp_status st = SP_OK;
    for (int i = 0, number; i < (int)SP_LEN(fixed) && st == SP_OK; i++)
        st = sp_jparser_name(&p, sp_slice_of(fixed[i]), &number);
    if (st == SP_OK) st = parse_nodes(&p, NULL, &t->body);
    sp_free(p.name_index);
    return st;
}
