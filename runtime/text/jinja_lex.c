/* Template text to tokens. The rules for whitespace are Jinja's, to the byte:
 *   -%} and -}} eat all whitespace after them, {%- and friends all before them;
 *   trim_blocks: the newline right after %} or #} goes, unless it is +%};
 *   lstrip_blocks: blanks between the start of a line and {% or {# go, unless it is {%+;
 *   one newline at the end of the template goes; \r\n and \r are \n. */
#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_text.h"

#include <string.h>

#define BRACKETS_MAX 512

typedef struct lexer {
    sp_arena *arena;
    sp_jtokens *out;
    sp_err *err;
    sp_jinja_options options;
    const char *s;
    size_t n, at;
    int line;
    size_t line_at; /* up to here newlines are counted */
    char brackets[BRACKETS_MAX];
    int n_brackets;
} lexer;

typedef struct op {
    char text[3];
    sp_jtok type;
} op;

/* Longer ones first. */
static const op OPS[] = {
    {"//", SP_JT_FLOORDIV}, {"**", SP_JT_POW},      {"==", SP_JT_EQ},    {"!=", SP_JT_NE},
    {">=", SP_JT_GE},       {"<=", SP_JT_LE},       {"+", SP_JT_ADD},    {"-", SP_JT_SUB},
    {"/", SP_JT_DIV},       {"*", SP_JT_MUL},       {"%", SP_JT_MOD},    {"~", SP_JT_TILDE},
    {"[", SP_JT_LBRACKET},  {"]", SP_JT_RBRACKET},  {"(", SP_JT_LPAREN}, {")", SP_JT_RPAREN},
    {"{", SP_JT_LBRACE},    {"}", SP_JT_RBRACE},    {">", SP_JT_GT},     {"<", SP_JT_LT},
    {"=", SP_JT_ASSIGN},    {".", SP_JT_DOT},       {":", SP_JT_COLON},  {"|", SP_JT_PIPE},
    {",", SP_JT_COMMA},     {";", SP_JT_SEMICOLON},
};

const char *sp_jtok_text(sp_jtok t) {
    static const char *const words[] = {"the end of the template",
                                        "text",
                                        "'{{'",
                                        "'}}'",
                                        "'{%'",
                                        "'%}'",
                                        "a name",
                                        "a string",
                                        "an integer",
                                        "a float"};
    if ((size_t)t < SP_LEN(words)) return words[t];
    for (size_t i = 0; i < SP_LEN(OPS); i++)
        if (OPS[i].type == t) return OPS[i].text;
    return "?";
}

static bool sees(const lexer *x, size_t at, const char *word) {
    size_t n = strlen(word);
    return x->n - at >= n && memcmp(x->s + at, word, n) == 0;
}

static size_t skip_space(const lexer *x, size_t at) {
    uint32_t cp;
    int n;
    while ((n = sp_utf8_first((sp_slice){x->s + at, x->n - at}, &cp)) && sp_char_space(cp))
        at += (size_t)n;
    return at;
}

/* The line of `at`; positions only grow. */
static int line_of(lexer *x, size_t at) {
    for (; x->line_at < at; x->line_at++) x->line += x->s[x->line_at] == '\n';
    return x->line;
}

static sp_status fail(lexer *x, const char *what) {
    return SP_FAIL(x->err, SP_E_FORMAT, "template line %d: %s", line_of(x, x->at), what);
}

static sp_status push(lexer *x, sp_jtok type, sp_slice text) {
    if (type == SP_JT_DATA && text.len == 0) return SP_OK;
    sp_jtokens *o = x->out;
    if (o->n == o->cap) {
        size_t cap = o->cap ? 2 * o->cap : 256;
        sp_jtoken *at = sp_try_realloc(o->at, cap * sizeof *at);
        if (!at) return SP_FAIL(x->err, SP_E_NOMEM, "no memory for %zu template tokens", cap);
        o->at = at;
        o->cap = cap;
    }
    o->at[o->n++] = (sp_jtoken){type, line_of(x, x->at), text};
    return SP_OK;
}

/* --- literals --- */

static int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* \xhh, \uhhhh, \Uhhhhhhhh: as many digits as `digits`. */
static sp_status unescape_hex(lexer *x, sp_slice s, size_t *i, int digits, sp_buf *out) {
    uint32_t cp = 0;
    for (int k = 0; k < digits; k++) {
        int v = *i < s.len ? hex_value(s.ptr[*i]) : -1;
        if (v < 0) return fail(x, "a \\x, \\u or \\U escape is cut short");
        cp = cp << 4 | (uint32_t)v;
        ++*i;
    }
    if (cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000))
        return fail(x, "an escape names no character");
    char bytes[4];
    sp_buf_put(out, bytes, (size_t)sp_utf8_encode(cp, bytes));
    return SP_OK;
}

static void unescape_octal(sp_slice s, size_t *i, sp_buf *out) {
    uint32_t cp = 0;
    for (int k = 0; k < 3 && *i < s.len && s.ptr[*i] >= '0' && s.ptr[*i] <= '7'; k++)
        cp = cp * 8 + (uint32_t)(s.ptr[(*i)++] - '0');
    char bytes[4];
    sp_buf_put(out, bytes, (size_t)sp_utf8_encode(cp, bytes));
}

/* Jinja turns what is not ASCII into escapes before it reads escapes, so a backslash before such a
 * character shows the escape itself. */
static void unescape_wide(sp_slice s, size_t *i, sp_buf *out) {
    uint32_t cp;
    *i += (size_t)sp_utf8_first((sp_slice){s.ptr + *i, s.len - *i}, &cp);
    const char *fmt = cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x";
    sp_buf_printf(out, fmt, (unsigned)cp);
}

/* What follows a backslash; *i is behind it. */
static sp_status unescape_one(lexer *x, sp_slice s, size_t *i, sp_buf *out) {
    char c = s.ptr[*i];
    if (c >= '0' && c <= '7') {
        unescape_octal(s, i, out);
        return SP_OK;
    }
    if ((unsigned char)c >= 0x80) {
        unescape_wide(s, i, out);
        return SP_OK;
    }
    ++*i;
    static const char letters[] = "\\'\"abfnrtv", meanings[] = "\\'\"\a\b\f\n\r\t\v";
    const char *plain = c ? strchr(letters, c) : NULL;
    if (plain)
        sp_buf_putc(out, meanings[plain - letters]);
    else if (c == 'x' || c == 'u' || c == 'U')
        return unescape_hex(x, s, i, c == 'x' ? 2 : c == 'u' ? 4 : 8, out);
    else if (c == 'N')
        return fail(x, "a \\N{...} escape is not supported");
    else if (c != '\n')
        sp_buf_put(out, s.ptr + *i - 2, 2);
    return SP_OK;
}

static sp_status keep(lexer *x, const sp_buf *b, sp_slice *out) {
    if (b->failed) return SP_FAIL(x->err, SP_E_NOMEM, "no memory for a string of the template");
    char *p = sp_arena_try(x->arena, b->len + 1);
    if (!p) return SP_FAIL(x->err, SP_E_NOMEM, "no memory for a string of the template");
    if (b->len) memcpy(p, b->ptr, b->len);
    *out = (sp_slice){p, b->len};
    return SP_OK;
}

static sp_status lex_string(lexer *x) {
    size_t from = x->at + 1, to = from;
    while (to < x->n && x->s[to] != x->s[x->at]) to += x->s[to] == '\\' ? 2 : 1;
    if (to >= x->n) return fail(x, "a string does not end");
    sp_slice s = {x->s + from, to - from};
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_status st = SP_OK;
    for (size_t i = 0; i < s.len && st == SP_OK;) {
        if (s.ptr[i] != '\\') {
            sp_buf_putc(&b, s.ptr[i++]);
            continue;
        }
        i++;
        st = unescape_one(x, s, &i, &b);
    }
    if (st == SP_OK) st = keep(x, &b, &s);
    sp_buf_fini(&b);
    if (st == SP_OK) st = push(x, SP_JT_STRING, s);
    x->at = to + 1;
    return st;
}

/* Digits with single underscores between them; where they end. */
static size_t digits_end(const lexer *x, size_t at, int base) {
    size_t end = at;
    while (at < x->n) {
        if (x->s[at] == '_' && at > end) break;
        int v = hex_value(x->s[at]);
        if (x->s[at] != '_' && (v < 0 || v >= base)) break;
        if (x->s[at++] != '_') end = at;
    }
    return end;
}

/* The fraction and exponent behind `at`, or `at` when there are none. */
static size_t float_end(const lexer *x, size_t at) {
    size_t end = at;
    if (end + 1 < x->n && x->s[end] == '.' && x->s[end + 1] != '_') {
        size_t d = digits_end(x, end + 1, 10);
        if (d > end + 1) end = d;
    }
    size_t e = end;
    if (e < x->n && (x->s[e] | 32) == 'e') {
        e++;
        if (e < x->n && (x->s[e] == '+' || x->s[e] == '-')) e++;
        size_t d = e < x->n && x->s[e] != '_' ? digits_end(x, e, 10) : e;
        if (d > e) end = d;
    }
    return end;
}

/* 0x, 0o, 0b with digits behind; an underscore may stand right behind the letter. */
static size_t based_end(const lexer *x, size_t at) {
    if (x->s[at] != '0' || x->n - at < 3) return at;
    char c = (char)(x->s[at + 1] | 32);
    int base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
    if (!base) return at;
    size_t from = at + 2 + (x->s[at + 2] == '_');
    size_t end = digits_end(x, from, base);
    return end > from ? end : at;
}

static sp_status lex_number(lexer *x) {
    size_t from = x->at, end = digits_end(x, from, 10);
    size_t based = based_end(x, from);
    bool after_dot = from > 0 && x->s[from - 1] == '.';
    size_t real = after_dot ? end : float_end(x, end);
    sp_jtok type = SP_JT_INT;
    if (real > end) {
        type = SP_JT_FLOAT;
        end = real;
    } else if (based > from) {
        end = based;
    } else if (x->s[from] == '0') {
        /* "01" is 0 and then 1, which the parser refuses. */
        for (end = from; end < x->n && (x->s[end] == '0' || x->s[end] == '_'); end++) {
        }
        while (x->s[end - 1] == '_') end--;
    }
    sp_buf b;
    sp_buf_init(&b, 0);
    for (size_t i = from; i < end; i++)
        if (x->s[i] != '_') sp_buf_putc(&b, x->s[i]);
    sp_slice text;
    sp_status st = keep(x, &b, &text);
    sp_buf_fini(&b);
    if (st == SP_OK) st = push(x, type, text);
    x->at = end;
    return st;
}

static sp_status lex_name(lexer *x) {
    size_t end = x->at;
    uint32_t cp;
    int n;
    while ((n = sp_utf8_first((sp_slice){x->s + end, x->n - end}, &cp)) && sp_char_name(cp))
        end += (size_t)n;
    sp_status st = push(x, SP_JT_NAME, (sp_slice){x->s + x->at, end - x->at});
    x->at = end;
    return st;
}

/* --- operators and tags --- */

static sp_status balance(lexer *x, char c) {
    const char *pair = strchr("{}()[]", c);
    if (!pair) return SP_OK;
    if (c == '{' || c == '(' || c == '[') {
        if (x->n_brackets == BRACKETS_MAX)
            return SP_FAIL(x->err, SP_E_TOOLONG, "template line %d: more than %d open brackets",
                           line_of(x, x->at), BRACKETS_MAX);
        x->brackets[x->n_brackets++] = pair[1];
        return SP_OK;
    }
    if (x->n_brackets > 0 && x->brackets[x->n_brackets - 1] == c) {
        x->n_brackets--;
        return SP_OK;
    }
    return SP_FAIL(x->err, SP_E_FORMAT, "template line %d: unexpected '%c'", line_of(x, x->at), c);
}

static sp_status lex_operator(lexer *x) {
    for (size_t i = 0; i < SP_LEN(OPS); i++) {
        if (!sees(x, x->at, OPS[i].text)) continue;
        SP_TRY(balance(x, x->s[x->at]));
        SP_TRY(push(x, OPS[i].type, sp_slice_of(OPS[i].text)));
        x->at += strlen(OPS[i].text);
        return SP_OK;
    }
    uint32_t cp;
    int n = sp_utf8_first((sp_slice){x->s + x->at, x->n - x->at}, &cp);
    return SP_FAIL(x->err, SP_E_FORMAT, "template line %d: unexpected character '%.*s'",
                   line_of(x, x->at), n, x->s + x->at);
}

/* The end of a tag at x->at, with its whitespace: where text goes on, or 0 when none is here. */
static size_t tag_end(const lexer *x, size_t at, char closer, bool plus, bool trim) {
    char end[3] = {closer, '}', 0};
    if (x->s[at] == '-' && sees(x, at + 1, end)) return skip_space(x, at + 3);
    if (plus && x->s[at] == '+' && sees(x, at + 1, end)) return at + 3;
    if (!sees(x, at, end)) return 0;
    at += 2;
    return trim && at < x->n && x->s[at] == '\n' ? at + 1 : at;
}

/* Everything inside {{ }} or {% %}. */
static sp_status lex_tag(lexer *x, bool block) {
    sp_jtok end_type = block ? SP_JT_BLOCK_END : SP_JT_VAR_END;
    for (;;) {
        x->at = skip_space(x, x->at);
        if (x->at >= x->n) return fail(x, block ? "'{%' is not closed" : "'{{' is not closed");
        size_t end = x->n_brackets ? 0
                                   : tag_end(x, x->at, block ? '%' : '}', block,
                                             block && x->options.trim_blocks);
        if (end) {
            SP_TRY(push(x, end_type, (sp_slice){0}));
            x->at = end;
            return SP_OK;
        }
        uint32_t cp;
        sp_utf8_first((sp_slice){x->s + x->at, x->n - x->at}, &cp);
        if (cp >= '0' && cp <= '9')
            SP_TRY(lex_number(x));
        else if (sp_char_name_start(cp))
            SP_TRY(lex_name(x));
        else if (cp == '"' || cp == '\'')
            SP_TRY(lex_string(x));
        else
            SP_TRY(lex_operator(x));
    }
}

/* Text in front of a tag, [from, to), less what the tag's sign and lstrip_blocks take away. */
static sp_slice before_tag(const lexer *x, size_t from, size_t to, char sign, bool variable) {
    sp_slice s = {x->s + from, to - from};
    if (sign == '-') return sp_slice_strip(s, NULL, SP_STRIP_RIGHT);
    if (sign == '+' || variable || !x->options.lstrip_blocks) return s;
    size_t line = s.len;
    while (line > 0 && s.ptr[line - 1] != '\n') line--;
    bool at_start = line > 0 || from == 0 || x->s[from - 1] == '\n';
    sp_slice blank = {s.ptr + line, s.len - line};
    if (at_start && sp_slice_strip(blank, NULL, SP_STRIP_LEFT).len == 0) s.len = line;
    return s;
}

static char sign_at(const lexer *x, size_t at) {
    return at < x->n && (x->s[at] == '-' || x->s[at] == '+') ? x->s[at] : 0;
}

static sp_status lex_comment(lexer *x) {
    if (x->at >= x->n) return SP_OK; /* Jinja lets a comment or raw with nothing behind it pass */
    ptrdiff_t at = sp_slice_find((sp_slice){x->s, x->n}, SP_SLICE("#}"), x->at);
    if (at < 0) return fail(x, "a comment does not end");
    size_t end = (size_t)at;
    /* A sign belongs to the end only when it stands inside the comment. */
    if (end > x->at && (x->s[end - 1] == '-' || x->s[end - 1] == '+')) end--;
    x->at = tag_end(x, end, '#', true, x->options.trim_blocks);
    return SP_OK;
}

/* At "{%": whether this is {% word %}, with any signs; *sign the first one, *end what follows. */
static bool is_word_tag(const lexer *x, size_t at, const char *word, bool plus, bool trim,
                        char *sign, size_t *end) {
    *sign = sign_at(x, at + 2);
    at = skip_space(x, at + 2 + (*sign != 0));
    if (!sees(x, at, word)) return false;
    at = skip_space(x, at + strlen(word));
    if (at >= x->n) return false;
    *end = tag_end(x, at, '%', plus, trim);
    return *end != 0;
}

/* x->at is behind {% raw %}. */
static sp_status lex_raw(lexer *x) {
    if (x->at >= x->n) return SP_OK;
    sp_slice all = {x->s, x->n};
    char sign;
    size_t end;
    for (ptrdiff_t at = sp_slice_find(all, SP_SLICE("{%"), x->at); at >= 0;
         at = sp_slice_find(all, SP_SLICE("{%"), (size_t)at + 1)) {
        if (!is_word_tag(x, (size_t)at, "endraw", true, x->options.trim_blocks, &sign, &end))
            continue;
        SP_TRY(push(x, SP_JT_DATA, before_tag(x, x->at, (size_t)at, sign, false)));
        x->at = end;
        return SP_OK;
    }
    return fail(x, "'{% raw %}' is not closed");
}

/* Text up to the next tag, and the tag. */
static sp_status lex_root(lexer *x) {
    size_t from = x->at, at = from;
    while (at + 1 < x->n && !(x->s[at] == '{' && strchr("{%#", x->s[at + 1]) && x->s[at + 1])) at++;
    if (at + 1 >= x->n) {
        SP_TRY(push(x, SP_JT_DATA, (sp_slice){x->s + from, x->n - from}));
        x->at = x->n;
        return SP_OK;
    }
    char kind = x->s[at + 1], sign = sign_at(x, at + 2);
    size_t raw_end;
    bool raw = kind == '%' && is_word_tag(x, at, "raw", false, false, &sign, &raw_end);
    SP_TRY(push(x, SP_JT_DATA, before_tag(x, from, at, sign, kind == '{')));
    x->at = at + 2 + (sign != 0);
    if (raw) {
        x->at = raw_end;
        return lex_raw(x);
    }
    if (kind == '#') return lex_comment(x);
    SP_TRY(push(x, kind == '%' ? SP_JT_BLOCK_BEGIN : SP_JT_VAR_BEGIN, (sp_slice){0}));
    return lex_tag(x, kind == '%');
}

/* One kind of newline, and none at the very end. */
static sp_status normalize(lexer *x, sp_slice source) {
    char *p = sp_arena_try(x->arena, source.len + 1);
    if (!p) return SP_FAIL(x->err, SP_E_NOMEM, "no memory for a template of %zu bytes", source.len);
    size_t n = 0;
    for (size_t i = 0; i < source.len; i++) {
        bool cr = source.ptr[i] == '\r';
        if (cr && i + 1 < source.len && source.ptr[i + 1] == '\n') i++;
        p[n++] = cr ? '\n' : source.ptr[i];
    }
    if (n && p[n - 1] == '\n') n--;
    x->s = p;
    x->n = n;
    return SP_OK;
}

sp_status sp_jinja_lex(sp_arena *arena, sp_slice source, sp_jinja_options options, sp_jtokens *out,
                       sp_err *err) {
    lexer x = {.arena = arena, .out = out, .err = err, .options = options, .line = 1};
    *out = (sp_jtokens){0};
    if (source.len > SP_JINJA_SOURCE_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "the template has %zu bytes, at most %zu are read",
                       source.len, SP_JINJA_SOURCE_MAX);
    if (!sp_utf8_valid(source)) return SP_FAIL(err, SP_E_FORMAT, "the template is not UTF-8");
    SP_TRY(normalize(&x, source));
    while (x.at < x.n) SP_TRY(lex_root(&x));
    return push(&x, SP_JT_EOF, (sp_slice){0});
}
