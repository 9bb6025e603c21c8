/* Expressions. From loosest to tightest: inline if, or, and, not, comparisons, + -, ~, * / // %, **,
 * and then what jinja_parse_primary.c reads. */
#include "runtime/text/jinja_parse.h"

static sp_status parse_or(sp_jparser *p, sp_jnode **out);

/* Left-associative levels of binary operators, loosest first; ~ stands between the first two. */
static int level_of(sp_jtok t) {
    switch (t) {
    case SP_JT_ADD:
    case SP_JT_SUB:
        return 0;
    case SP_JT_MUL:
    case SP_JT_DIV:
    case SP_JT_FLOORDIV:
    case SP_JT_MOD:
        return 1;
    case SP_JT_POW:
        return 2;
    default:
        return -1;
    }
}

static sp_status parse_concat(sp_jparser *p, sp_jnode **out);

static sp_status parse_binary(sp_jparser *p, int level, sp_jnode **out) {
    for (bool first = true;; first = false) {
        sp_jnode *right;
        sp_jtok t = p->at->type;
        int line = p->at->line;
        if (!first) {
            if (level_of(t) != level) return SP_OK;
            p->at++;
        }
        sp_jnode **to = first ? out : &right;
        SP_TRY(level == 0   ? parse_concat(p, to)
               : level == 1 ? parse_binary(p, 2, to)
                            : sp_jparser_unary(p, true, to));
        if (first) continue;
        SP_TRY(sp_jparser_new(p, SP_JN_BINARY, line, *out, right, out));
        (*out)->op = (int)t;
    }
}

static sp_status parse_concat(sp_jparser *p, sp_jnode **out) {
    sp_jnode_list parts = {0};
    sp_jnode *part;
    int line = p->at->line;
    SP_TRY(parse_binary(p, 1, out));
    if (p->at->type != SP_JT_TILDE) return SP_OK;
    sp_status st = sp_jparser_push(p, &parts, *out);
    while (st == SP_OK && sp_jparser_skip(p, SP_JT_TILDE)) {
        st = parse_binary(p, 1, &part);
        if (st == SP_OK) st = sp_jparser_push(p, &parts, part);
    }
    if (st == SP_OK) st = sp_jparser_node(p, SP_JN_CONCAT, line, out);
    if (st != SP_OK) {
        sp_free(parts.at);
        return st;
    }
    SP_TRY(sp_jparser_keep(p, &parts, &(*out)->list));
    return sp_jparser_seal(p, *out);
}

/* A comparison operator at the current token, which it skips; EOF: none. */
static sp_jtok comparison(sp_jparser *p) {
    sp_jtok t = p->at->type;
    if (t == SP_JT_EQ || t == SP_JT_NE || t == SP_JT_LT || t == SP_JT_LE || t == SP_JT_GT ||
        t == SP_JT_GE) {
        p->at++;
        return t;
    }
    if (sp_jparser_skip_name(p, "in")) return SP_JT_IN;
    if (!sp_jparser_is_name(p->at, "not") || !sp_jparser_is_name(p->at + 1, "in")) return SP_JT_EOF;
    p->at += 2;
    return SP_JT_NOTIN;
}

static sp_status operand_list(sp_jparser *p, sp_jnode_list *operands) {
    for (;;) {
        int line = p->at->line;
        sp_jnode *right, *operand;
        sp_jtok op = comparison(p);
        if (op == SP_JT_EOF) return SP_OK;
        SP_TRY(parse_binary(p, 0, &right));
        SP_TRY(sp_jparser_new(p, SP_JN_OPERAND, line, right, NULL, &operand));
        operand->op = (int)op;
        SP_TRY(sp_jparser_push(p, operands, operand));
    }
}

static sp_status parse_compare(sp_jparser *p, sp_jnode **out) {
    sp_jnode_list operands = {0};
    int line = p->at->line;
    SP_TRY(parse_binary(p, 0, out));
    sp_status st = operand_list(p, &operands);
    if (st != SP_OK || operands.n == 0) {
        sp_free(operands.at);
        return st;
    }
    SP_TRY(sp_jparser_new(p, SP_JN_COMPARE, line, *out, NULL, out));
    SP_TRY(sp_jparser_keep(p, &operands, &(*out)->list));
    return sp_jparser_seal(p, *out);
}

static sp_status parse_not(sp_jparser *p, sp_jnode **out) {
    int line = p->at->line, n = 0;
    for (; sp_jparser_skip_name(p, "not"); n++) {
    }
    SP_TRY(parse_compare(p, out));
    for (; n > 0; n--) SP_TRY(sp_jparser_new(p, SP_JN_NOT, line, *out, NULL, out));
    return SP_OK;
}

static sp_status parse_and(sp_jparser *p, sp_jnode **out) {
    SP_TRY(parse_not(p, out));
    for (int line = p->at->line; sp_jparser_skip_name(p, "and"); line = p->at->line) {
        sp_jnode *right;
        SP_TRY(parse_not(p, &right));
        SP_TRY(sp_jparser_new(p, SP_JN_AND, line, *out, right, out));
    }
    return SP_OK;
}

static sp_status parse_or(sp_jparser *p, sp_jnode **out) {
    SP_TRY(parse_and(p, out));
    for (int line = p->at->line; sp_jparser_skip_name(p, "or"); line = p->at->line) {
        sp_jnode *right;
        SP_TRY(parse_and(p, &right));
        SP_TRY(sp_jparser_new(p, SP_JN_OR, line, *out, right, out));
    }
    return SP_OK;
}

sp_status sp_jparser_expression(sp_jparser *p, sp_jnode **out) {
    SP_TRY(sp_jparser_enter(p));
    SP_TRY(parse_or(p, out));
    for (int line = p->at->line; sp_jparser_skip_name(p, "if"); line = p->at->line) {
        sp_jnode *test, *otherwise = NULL;
        SP_TRY(parse_or(p, &test));
        if (sp_jparser_skip_name(p, "else")) SP_TRY(sp_jparser_expression(p, &otherwise));
        SP_TRY(sp_jparser_new(p, SP_JN_COND, line, test, *out, out));
        (*out)->c = otherwise;
        SP_TRY(sp_jparser_seal(p, *out));
    }
    p->nest--;
    return SP_OK;
}

/* --- tuples --- */

static bool tuple_ends(const sp_jparser *p) {
    sp_jtok t = p->at->type;
    return t == SP_JT_VAR_END || t == SP_JT_BLOCK_END || t == SP_JT_RPAREN;
}

static sp_status tuple_item(sp_jparser *p, const sp_jtuple_rules *rules, sp_jnode **out) {
    if (!rules->targets) return rules->no_cond ? parse_or(p, out) : sp_jparser_expression(p, out);
    SP_TRY(sp_jparser_enter(p));
    SP_TRY(sp_jparser_primary(p, rules, out));
    p->nest--;
    return SP_OK;
}

static sp_status tuple_items(sp_jparser *p, const sp_jtuple_rules *rules, sp_jnode_list *items,
                             bool *comma) {
    for (;;) {
        sp_jnode *item;
        if (items->n) SP_TRY(sp_jparser_expect(p, SP_JT_COMMA));
        if (tuple_ends(p)) return SP_OK;
        SP_TRY(tuple_item(p, rules, &item));
        SP_TRY(sp_jparser_push(p, items, item));
        if (p->at->type != SP_JT_COMMA) return SP_OK;
        *comma = true;
    }
}

sp_status sp_jparser_tuple(sp_jparser *p, sp_jtuple_rules rules, sp_jnode **out) {
    sp_jnode_list items = {0};
    bool comma = false;
    int line = p->at->line;
    sp_status st = tuple_items(p, &rules, &items, &comma);
    if (st == SP_OK && !comma && items.n == 1) {
        *out = items.at[0];
        sp_free(items.at);
        return SP_OK;
    }
    if (st == SP_OK && !comma && !rules.parentheses) st = sp_jparser_unexpected(p, "an expression");
    if (st == SP_OK) st = sp_jparser_node(p, SP_JN_TUPLE, line, out);
    if (st != SP_OK) {
        sp_free(items.at);
        return st;
    }
    SP_TRY(sp_jparser_keep(p, &items, &(*out)->list));
    return sp_jparser_seal(p, *out);
}
