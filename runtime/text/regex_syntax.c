#include "runtime/text/regex_syntax.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#define GROUPS_MAX 200 /* nested groups */
#define SETS_MAX 16    /* nested sets */
#define OUTPUT_BYTES_MAX ((size_t)1 << 20)

#define SPACE \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"
#define WORD \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-" \
    "\\x{1f169}\\x{1f170}-\\x{1f189}"
/* Oniguruma's \w outside of [] takes superscript digits and fractions of Latin-1 too. */
#define WORD_ALONE WORD "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
#define HEX "0-9A-Fa-f"
/* Emoji of Unicode 15 and 16: people write them, and a PCRE2 of Unicode 14 takes them for nothing
 * where a pattern asks for symbols. */
#define YOUNG_SYMBOLS \
    "\\x{1f6dc}\\x{1fa75}-\\x{1fa77}\\x{1fa87}-\\x{1fa89}\\x{1fa8f}\\x{1faad}-\\x{1faaf}" \
    "\\x{1fabb}-\\x{1fabf}\\x{1fac6}\\x{1face}-\\x{1facf}\\x{1fada}-\\x{1fadc}\\x{1fadf}" \
    "\\x{1fae8}-\\x{1fae9}\\x{1faf7}-\\x{1faf8}"
#define ITEMS_BYTES 512 /* of a named set */

typedef struct parser {
    const char *s;
    size_t n, at;
    sp_buf *out;
    sp_err *err;
    ptrdiff_t atom; /* where in `out` the last thing that can be repeated begins, or -1 */
    int n_groups, n_sets;
    size_t groups[GROUPS_MAX];
} parser;

/* A named set: how it is written inside [] and whether that is one property (so that \P is its
 * complement). */
typedef struct named_set {
    const char *name, *items;
} named_set;

static const named_set posix_sets[] = {
    {"alnum", "\\p{Alphabetic}\\p{Nd}"},
    {"alpha", "\\p{Alphabetic}"},
    {"ascii", "\\x{0}-\\x{7f}"},
    {"blank", "\\x{9}\\p{Zs}"},
    {"cntrl", "\\p{Cc}"},
    {"digit", "\\p{Nd}"},
    {"graph", "\\p{L}\\p{M}\\p{N}\\p{P}\\p{S}\\p{Cf}\\p{Co}"},
    {"lower", "\\p{Lowercase}"},
    {"print", "\\p{L}\\p{M}\\p{N}\\p{P}\\p{S}\\p{Cf}\\p{Co}\\p{Zs}"},
    {"punct", "\\p{P}\\p{S}" YOUNG_SYMBOLS},
    {"space", SPACE},
    {"upper", "\\p{Uppercase}"},
    {"word", WORD},
    {"xdigit", HEX}};

/* Long names of general categories, and binary properties that PCRE2 knows by name. */
static const named_set properties[] = {
    {"letter", "L"},
    {"casedletter", "L&"},
    {"uppercaseletter", "Lu"},
    {"lowercaseletter", "Ll"},
    {"titlecaseletter", "Lt"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"mark", "M"},
    {"nonspacingmark", "Mn"},
    {"spacingmark", "Mc"},
    {"enclosingmark", "Me"},
    {"number", "N"},
    {"decimalnumber", "Nd"},
    {"letternumber", "Nl"},
    {"othernumber", "No"},
    {"punctuation", "P"},
    {"connectorpunctuation", "Pc"},
    {"dashpunctuation", "Pd"},
    {"openpunctuation", "Ps"},
    {"closepunctuation", "Pe"},
    {"initialpunctuation", "Pi"},
    {"finalpunctuation", "Pf"},
    {"otherpunctuation", "Po"},
    {"symbol", "S"},
    {"mathsymbol", "Sm"},
    {"currencysymbol", "Sc"},
    {"modifiersymbol", "Sk"},
    {"othersymbol", "So"},
    {"separator", "Z"},
    {"spaceseparator", "Zs"},
    {"lineseparator", "Zl"},
    {"paragraphseparator", "Zp"},
    {"other", "C"},
    {"control", "Cc"},
    {"format", "Cf"},
    {"surrogate", "Cs"},
    {"privateuse", "Co"},
    {"unassigned", "Cn"},
    {"any", "Any"},
    {"alphabetic", "Alphabetic"},
    {"lowercase", "Lowercase"},
    {"uppercase", "Uppercase"},
    {"whitespace", "White_Space"},
    {"emoji", "Emoji"},
    {"emojipresentation", "Emoji_Presentation"},
    {"emojimodifier", "Emoji_Modifier"},
    {"extendedpictographic", "Extended_Pictographic"},
    {"ideographic", "Ideographic"},
    {"joincontrol", "Join_Control"},
    {"math", "Math"},
    {"dash", "Dash"},
};

static const char *find_set(const named_set *sets, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(sets[i].name, name) == 0) return sets[i].items;
    return NULL;
}

static int peek(const parser *p, size_t ahead) {
    return p->at + ahead < p->n ? (unsigned char)p->s[p->at + ahead] : -1;
}

static bool looking_at(const parser *p, const char *what) {
    size_t n = strlen(what);
    return p->at <= p->n && p->n - p->at >= n && memcmp(p->s + p->at, what, n) == 0;
}

/* One expression that matches one character of the set (or not of it). */
static void put_set(sp_buf *out, bool negated, const char *items) {
    sp_buf_printf(out, negated ? "[^%s]" : "[%s]", items);
}

/* Copies one character that stands for itself. */
static void put_literal(parser *p, sp_buf *out) {
    char c = p->s[p->at++];
    if (c == 0) {
        sp_buf_puts(out, "\\x{0}"); /* sets are put together as C strings */
        return;
    }
    if (strchr("\\^$.[]|()?*+{}-#&", c)) sp_buf_putc(out, '\\');
    sp_buf_putc(out, c);
    while (p->at < p->n && ((unsigned char)p->s[p->at] & 0xc0) == 0x80)
        sp_buf_putc(out, p->s[p->at++]);
}

/* ---- properties ---- */

/* "Script=Han", "^Lu", "Uppercase_Letter": what PCRE2 wants between the braces. */
static void property_name(sp_slice raw, bool *negated, char *out, size_t size) {
    char name[64] = "";
    size_t n = 0;
    if (raw.len && raw.ptr[0] == '^') {
        *negated = !*negated;
        raw.ptr++;
        raw.len--;
    }
    const char *prefix = "";
    for (size_t i = 0; i < raw.len && n + 1 < sizeof name; i++) {
        char c = raw.ptr[i];
        if (c == '=' || c == ':') {
            name[n] = 0;
            bool wide = strcmp(name, "scx") == 0 || strcmp(name, "scriptextensions") == 0;
            prefix = wide ? "scx:" : "";
            n = 0;
        } else if (c != ' ' && c != '_' && c != '-') {
            name[n++] = (char)tolower((unsigned char)c);
        }
        name[n] = 0;
    }
    const char *known = find_set(properties, SP_LEN(properties), name);
    if (known)
        snprintf(out, size, "%s", known);
    else if (n <= 2 && n > 0) /* categories are written Lu, l or L */
        snprintf(out, size, "%c%s", toupper((unsigned char)name[0]), name + 1);
    else /* a script: without "sc:" newer PCRE2 would match its extensions too */
        snprintf(out, size, "%s%s", *prefix ? prefix : "sc:", name);
}

/* After "\p" or "\P": writes items for inside []; *negated tells that their complement is meant. */
static void parse_property(parser *p, bool *negated, char *items, size_t size) {
    sp_slice raw = {p->s + p->at, 1};
    if (peek(p, 0) == '{') {
        const char *end = memchr(p->s + p->at, '}', p->n - p->at);
        size_t len = end ? (size_t)(end - (p->s + p->at)) : p->n - p->at;
        raw = (sp_slice){p->s + p->at + 1, len - 1};
        p->at += len + (end ? 1 : 0);
    } else if (p->at < p->n) {
        p->at++;
    } else {
        raw.len = 0;
    }
    char name[80], plain[32];
    snprintf(plain, sizeof plain, "%.*s", (int)(raw.len < 31 ? raw.len : 31), raw.ptr);
    for (char *c = plain; *c; c++) *c = (char)tolower((unsigned char)*c);
    const char *posix = find_set(posix_sets, SP_LEN(posix_sets), plain);
    if (posix) {
        snprintf(items, size, "%s", posix);
        return;
    }
    property_name(raw, negated, name, sizeof name);
    bool symbols = strcmp(name, "S") == 0 || strcmp(name, "So") == 0;
    snprintf(items, size, "\\p{%s}%s", name, symbols ? YOUNG_SYMBOLS : "");
}

/* ---- escapes ---- */

/* After '\': a set written as items (returns true), or nothing consumed (false). */
static bool parse_set_escape(parser *p, bool *negated, char *items, size_t size) {
    int c = peek(p, 0);
    const char *set = c == 's' || c == 'S'   ? SPACE
                      : c == 'w' || c == 'W' ? WORD
                      : c == 'h' || c == 'H' ? HEX
                      : c == 'd' || c == 'D' ? "\\p{Nd}"
                                             : NULL;
    *negated = c == 'S' || c == 'W' || c == 'H' || c == 'D' || c == 'P';
    if (set) {
        p->at++;
        snprintf(items, size, "%s", set);
        return true;
    }
    if (c != 'p' && c != 'P') return false;
    p->at++;
    parse_property(p, negated, items, size);
    return true;
}

/* "\u4e00", "\u{1F600}", "\x{..}", "\xHH" after the backslash: one code point. */
static bool parse_code_point(parser *p, sp_buf *out) {
    int kind = peek(p, 0);
    if (kind != 'u' && kind != 'x') return false;
    bool braces = peek(p, 1) == '{';
    size_t from = p->at + (braces ? 2 : 1), i = from;
    size_t max = braces ? 8 : kind == 'u' ? 4 : 2;
    while (i < p->n && i - from < max && isxdigit((unsigned char)p->s[i])) i++;
    if (i == from || (kind == 'u' && !braces && i - from != 4)) return false;
    if (braces && (i >= p->n || p->s[i] != '}')) return false;
    sp_buf_printf(out, "\\x{%.*s}", (int)(i - from), p->s + from);
    p->at = i + (braces ? 1 : 0);
    return true;
}

/* An escape that means one character, the same inside and outside of []. */
static bool parse_char_escape(parser *p, sp_buf *out) {
    int c = peek(p, 0);
    if (parse_code_point(p, out)) return true;
    if (c == 'v') {
        sp_buf_puts(out, "\\x{b}");
    } else if (c != -1 && strchr("aefnrt", c)) {
        sp_buf_printf(out, "\\%c", c);
    } else if (isdigit(c)) {
        return false;
    } else if (c != -1) {
        put_literal(p, out);
        return true;
    } else {
        sp_buf_putc(out, '\\'); /* the pattern ends here: the compiler says so */
        return true;
    }
    p->at++;
    return true;
}

static void put_boundary(sp_buf *out, bool negated) {
    const char *format = negated ? "(?:(?<=[%s])(?=[%s])|(?<![%s])(?![%s]))"
                                 : "(?:(?<=[%s])(?![%s])|(?<![%s])(?=[%s]))";
    sp_buf_printf(out, format, WORD_ALONE, WORD_ALONE, WORD_ALONE, WORD_ALONE);
}

static sp_status parse_escape(parser *p) {
    p->at++; /* the backslash */
    p->atom = (ptrdiff_t)p->out->len;
    int c = peek(p, 0);
    char items[ITEMS_BYTES];
    bool negated;
    if (parse_set_escape(p, &negated, items, sizeof items)) {
        put_set(p->out, negated, c == 'w' || c == 'W' ? WORD_ALONE : items);
        return SP_OK;
    }
    switch (c) {
    case 'y':
    case 'Y':
        return SP_FAIL(p->err, SP_E_UNSUPPORTED,
                       "regex: '\\%c' (text segment boundary) is not "
                       "supported",
                       c);
    case 'b':
    case 'B':
        put_boundary(p->out, c == 'B');
        break;
    case 'O':
        sp_buf_puts(p->out, "(?s:.)");
        break;
    case 'A':
    case 'Z':
    case 'z':
    case 'G':
    case 'K':
    case 'N':
    case 'R':
    case 'X':
    case 'k':
    case 'g':
    case 'c':
        sp_buf_printf(p->out, "\\%c", c);
        break;
    default:
        if (isdigit(c)) {
            sp_buf_printf(p->out, "\\%c", c);
            break;
        }
        parse_char_escape(p, p->out);
        return SP_OK;
    }
    p->at++;
    return SP_OK;
}

/* ---- sets ---- */

/* One operand of &&: characters written inside [], and expressions that match one character. */
typedef struct operand {
    sp_buf items, others;
} operand;

static sp_status parse_set(parser *p, sp_buf *out);

static void add_other(operand *o, bool negated, const char *items) {
    if (o->others.len) sp_buf_putc(&o->others, '|');
    put_set(&o->others, negated, items);
}

static void put_operand(sp_buf *out, const operand *o) {
    if (!o->others.len && !o->items.len)
        sp_buf_puts(out, "(?!)");
    else if (!o->others.len)
        sp_buf_printf(out, "[%s]", o->items.ptr);
    else if (!o->items.len)
        sp_buf_printf(out, "(?:%s)", o->others.ptr);
    else
        sp_buf_printf(out, "(?:[%s]|%s)", o->items.ptr, o->others.ptr);
}

/* "[:alpha:]" and "[:^alpha:]"; false when it is not one. */
static bool parse_posix(parser *p, operand *o) {
    if (!looking_at(p, "[:")) return false;
    size_t from = p->at + 2;
    bool negated = from < p->n && p->s[from] == '^';
    from += negated;
    size_t i = from;
    char name[16];
    while (i < p->n && i - from + 1 < sizeof name && isalpha((unsigned char)p->s[i])) i++;
    if (p->n - i < 2 || memcmp(p->s + i, ":]", 2) != 0) return false;
    memcpy(name, p->s + from, i - from);
    name[i - from] = 0;
    const char *items = find_set(posix_sets, SP_LEN(posix_sets), name);
    if (!items) return false;
    if (negated)
        add_other(o, true, items);
    else
        sp_buf_puts(&o->items, items);
    p->at = i + 2;
    return true;
}

static void parse_set_char(parser *p, operand *o) {
    char items[ITEMS_BYTES];
    bool negated;
    if (peek(p, 0) == '-') {
        sp_buf_putc(&o->items, '-');
        p->at++;
        return;
    }
    if (peek(p, 0) != '\\') {
        put_literal(p, &o->items);
        return;
    }
    p->at++;
    if (parse_set_escape(p, &negated, items, sizeof items)) {
        if (!negated)
            sp_buf_puts(&o->items, items);
        else if (strncmp(items, "\\p{", 3) == 0 && !strchr(items + 3, '\\'))
            sp_buf_printf(&o->items, "\\P%s", items + 2);
        else
            add_other(o, true, items);
        if (peek(p, 0) == '-') { /* a set cannot begin a range */
            sp_buf_puts(&o->items, "\\-");
            p->at++;
        }
    } else if (peek(p, 0) == 'b') {
        sp_buf_puts(&o->items, "\\x{8}");
        p->at++;
    } else if (!parse_char_escape(p, &o->items)) {
        sp_buf_printf(&o->items, "\\%c", p->s[p->at++]); /* octal */
    }
}

static sp_status parse_operand(parser *p, operand *o) {
    size_t from = p->at;
    while (p->at < p->n && !looking_at(p, "&&")) {
        int c = peek(p, 0);
        if (c == ']' && p->at > from) break;
        if (c == ']' && p->s[p->at - 1] == '&') break; /* "[a&&]" */
        if (c != '[') {
            parse_set_char(p, o);
        } else if (!parse_posix(p, o)) {
            if (o->others.len) sp_buf_putc(&o->others, '|');
            SP_TRY(parse_set(p, &o->others));
        }
    }
    return SP_OK;
}

/* At '[': writes an expression that matches one character. */
static sp_status parse_set(parser *p, sp_buf *out) {
    if (++p->n_sets > SETS_MAX)
        return SP_FAIL(p->err, SP_E_TOOLONG, "regex: more than %d sets inside sets", SETS_MAX);
    p->at++;
    bool negated = peek(p, 0) == '^';
    if (negated) p->at++;
    sp_buf all;
    sp_buf_init(&all, OUTPUT_BYTES_MAX);
    int n_operands = 0;
    bool more = true, plain = true;
    sp_status st = SP_OK;
    while (more && st == SP_OK) {
        operand o = {0};
        o.items.limit = o.others.limit = OUTPUT_BYTES_MAX;
        st = parse_operand(p, &o);
        more = looking_at(p, "&&");
        if (more) p->at += 2;
        plain = plain && !more && n_operands == 0 && !o.others.len && o.items.len;
        if (plain && st == SP_OK)
            put_set(&all, negated, o.items.ptr);
        else if (more)
            sp_buf_puts(&all, "(?=");
        if (!plain) put_operand(&all, &o);
        if (more) sp_buf_putc(&all, ')');
        n_operands++;
        all.failed |= o.items.failed | o.others.failed;
        sp_buf_fini(&o.items);
        sp_buf_fini(&o.others);
    }
    if (st == SP_OK && peek(p, 0) != ']')
        st = SP_FAIL(p->err, SP_E_FORMAT, "regex: a set has no ']'");
    p->at++;
    p->n_sets--;
    if (st == SP_OK && all.failed) st = SP_FAIL(p->err, SP_E_TOOLONG, "regex: a set is too long");
    if (st == SP_OK && all.len)
        sp_buf_printf(out, plain ? "%s" : negated ? "(?:(?!%s)(?s:.))" : "(?:%s)", all.ptr);
    sp_buf_fini(&all);
    return st;
}

/* ---- repetition and groups ---- */

/* Puts "(?:" before the last atom, so that what follows repeats all of it. */
static void wrap_atom(parser *p) {
    size_t at = (size_t)p->atom;
    sp_buf_puts(p->out, "(?:");
    if (p->out->failed) return;
    memmove(p->out->ptr + at + 3, p->out->ptr + at, p->out->len - 3 - at);
    memcpy(p->out->ptr + at, "(?:", 3);
}

/* At '{': "{n}", "{n,}", "{n,m}" or "{,m}"; false when it is a plain brace. */
static bool parse_interval(parser *p) {
    size_t i = p->at + 1, low = i, n_low = 0, n_high = 0, high;
    while (i < p->n && isdigit((unsigned char)p->s[i])) i++, n_low++;
    bool comma = i < p->n && p->s[i] == ',';
    if (comma) i++;
    high = i;
    while (comma && i < p->n && isdigit((unsigned char)p->s[i])) i++, n_high++;
    if (i >= p->n || p->s[i] != '}' || n_low + n_high == 0 || p->atom < 0) return false;
    p->at = i + 1;
    int next = peek(p, 0);
    bool wraps = next == '+' || (next == '?' && !comma);
    if (wraps) wrap_atom(p);
    sp_buf_printf(p->out, "{%.*s%s%.*s}", n_low ? (int)n_low : 1, n_low ? p->s + low : "0",
                  comma ? "," : "", (int)n_high, p->s + high);
    if (wraps) sp_buf_putc(p->out, ')');
    if (next == '+' || next == '?') {
        sp_buf_putc(p->out, (char)next);
        p->at++;
    }
    return true;
}

/* After "(?": letters of options, where Ruby's m is PCRE2's s. */
static void parse_options(parser *p) {
    size_t i = p->at;
    while (i < p->n && (isalpha((unsigned char)p->s[i]) || p->s[i] == '-')) i++;
    if (i >= p->n || (p->s[i] != ':' && p->s[i] != ')')) return;
    for (; p->at < i; p->at++) sp_buf_putc(p->out, p->s[p->at] == 'm' ? 's' : p->s[p->at]);
}

static sp_status open_group(parser *p) {
    if (looking_at(p, "(?#")) {
        const char *end = memchr(p->s + p->at, ')', p->n - p->at);
        p->at = end ? (size_t)(end - p->s) + 1 : p->n;
        return SP_OK;
    }
    if (looking_at(p, "(?~"))
        return SP_FAIL(p->err, SP_E_UNSUPPORTED, "regex: '(?~' (absence) is not supported");
    if (p->n_groups == GROUPS_MAX)
        return SP_FAIL(p->err, SP_E_TOOLONG, "regex: more than %d groups inside groups",
                       GROUPS_MAX);
    p->groups[p->n_groups++] = p->out->len;
    p->atom = -1;
    p->at++;
    sp_buf_putc(p->out, '(');
    if (peek(p, 0) != '?') return SP_OK;
    sp_buf_putc(p->out, '?');
    p->at++;
    parse_options(p);
    return SP_OK;
}

static void close_group(parser *p) {
    p->at++;
    sp_buf_putc(p->out, ')');
    p->atom = p->n_groups ? (ptrdiff_t)p->groups[--p->n_groups] : -1;
}

static sp_status parse_one(parser *p) {
    switch (peek(p, 0)) {
    case '\\':
        return parse_escape(p);
    case '[':
        p->atom = (ptrdiff_t)p->out->len;
        return parse_set(p, p->out);
    case '(':
        return open_group(p);
    case ')':
        close_group(p);
        return SP_OK;
    case '{':
        if (parse_interval(p)) return SP_OK;
        break;
    case '|':
        p->atom = -1; /* fall through */
    case '*':
    case '+':
    case '?':
    case '^':
    case '$':
        sp_buf_putc(p->out, p->s[p->at++]);
        return SP_OK;
    case '.':
        p->atom = (ptrdiff_t)p->out->len;
        sp_buf_putc(p->out, p->s[p->at++]);
        return SP_OK;
    case '#': /* a comment under (?x), which both sides read alike */
    case '}':
    case '-':
    case '&':
        p->atom = (ptrdiff_t)p->out->len;
        sp_buf_putc(p->out, p->s[p->at++]);
        return SP_OK;
    default:
        break;
    }
    p->atom = (ptrdiff_t)p->out->len;
    put_literal(p, p->out);
    return SP_OK;
}

sp_status sp_regex_rewrite(sp_slice pattern, sp_buf *out, sp_err *err) {
    if (pattern.len > SP_REGEX_PATTERN_BYTES_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "regex of %zu bytes, at most %zu are allowed",
                       pattern.len, SP_REGEX_PATTERN_BYTES_MAX);
    parser p = {.s = pattern.ptr, .n = pattern.len, .out = out, .err = err, .atom = -1};
    while (p.at < p.n) SP_TRY(parse_one(&p));
    if (out->failed) return SP_FAIL(err, SP_E_TOOLONG, "regex is too long once rewritten");
    return SP_OK;
}
