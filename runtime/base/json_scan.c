#include "runtime/base/json_scan.h"

#include "runtime/base/json.h"

typedef struct scan {
    const char *s;
    size_t n, at;
    int depth_max;
    sp_json_facts *facts;
    sp_err *err;
} scan;

static sp_status bad(scan *c, const char *wanted) {
    if (c->at >= c->n)
        return SP_FAIL(c->err, SP_E_FORMAT, "JSON ends at byte %zu, want %s", c->at, wanted);
    unsigned char ch = (unsigned char)c->s[c->at];
    if (ch > 32 && ch < 127)
        return SP_FAIL(c->err, SP_E_FORMAT, "JSON byte %zu is '%c', want %s", c->at, ch, wanted);
    return SP_FAIL(c->err, SP_E_FORMAT, "JSON byte %zu is 0x%02x, want %s", c->at, ch, wanted);
}

static void skip_space(scan *c) {
    while (c->at < c->n && c->s[c->at] && strchr(" \t\r\n", c->s[c->at])) c->at++;
}

static size_t digits(const char *s, size_t n) {
    size_t i = 0;
    while (i < n && s[i] >= '0' && s[i] <= '9') i++;
    return i;
}

/* 15 digits always survive a double; longer integers, fractions and exponents keep their text. */
size_t sp_json_scan_number(const char *s, size_t n, bool *keep_text) {
    size_t i = n && s[0] == '-';
    size_t whole = digits(s + i, n - i);
    if (whole == 0 || (whole > 1 && s[i] == '0')) return 0;
    /* -0 is an integer to JSON and a float to a double. */
    *keep_text = whole > 15 || (i == 1 && whole == 1 && s[1] == '0');
    i += whole;
    if (i < n && s[i] == '.') {
        size_t frac = digits(s + i + 1, n - i - 1);
        if (frac == 0) return 0;
        i += 1 + frac;
        *keep_text = true;
    }
    if (i < n && (s[i] == 'e' || s[i] == 'E')) {
        i++;
        if (i < n && (s[i] == '+' || s[i] == '-')) i++;
        size_t exp = digits(s + i, n - i);
        if (exp == 0) return 0;
        i += exp;
        *keep_text = true;
    }
    return i;
}

/* The four digits after \u, or -1. */
static int hex4(const char *s, size_t n) {
    if (n < 4) return -1;
    int v = 0;
    for (int i = 0; i < 4; i++) {
        char ch = s[i];
        int d = ch >= '0' && ch <= '9'                 ? ch - '0'
                : (ch | 32) >= 'a' && (ch | 32) <= 'f' ? (ch | 32) - 'a' + 10
                                                       : -1;
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    return v;
}

/* After the backslash of \uXXXX; a lone surrogate is refused: it has no UTF-8. */
static sp_status scan_unicode(scan *c) {
    int v = hex4(c->s + c->at + 1, c->n - c->at - 1);
    if (v < 0) return bad(c, "\\u and four hex digits");
    if (v == 0) c->facts->n_nul++;
    if (v >= 0xdc00 && v < 0xe000) return bad(c, "no lone low surrogate");
    c->at += 5;
    if (v < 0xd800 || v >= 0xdc00) return SP_OK;
    int low = -1;
    if (c->n - c->at >= 6 && c->s[c->at] == '\\' && c->s[c->at + 1] == 'u')
        low = hex4(c->s + c->at + 2, c->n - c->at - 2);
    if (low < 0xdc00 || low >= 0xe000) return bad(c, "a low surrogate after a high one");
    c->at += 6;
    return SP_OK;
}

static sp_status scan_string(scan *c) {
    if (c->at >= c->n || c->s[c->at] != '"') return bad(c, "a string");
    c->at++;
    while (c->at < c->n && c->s[c->at] != '"') {
        unsigned char ch = (unsigned char)c->s[c->at];
        if (ch < 0x20) return bad(c, "no bare control character in a string");
        if (ch == '\\') {
            c->at++;
            if (c->at >= c->n || !c->s[c->at] || !strchr("\"\\/bfnrtu", c->s[c->at]))
                return bad(c, "an escape character");
            if (c->s[c->at] == 'u')
                SP_TRY(scan_unicode(c));
            else
                c->at++;
        } else if (ch < 0x80) {
            c->at++;
        } else {
            uint32_t cp;
            int len = sp_utf8_decode(c->s + c->at, c->n - c->at, &cp);
            if (!len) return bad(c, "valid UTF-8");
            c->at += (size_t)len;
        }
    }
    if (c->at >= c->n) return bad(c, "the end of a string");
    c->at++;
    return SP_OK;
}

static sp_status scan_word(scan *c, const char *word) {
    size_t len = strlen(word);
    if (c->n - c->at < len || memcmp(c->s + c->at, word, len) != 0) return bad(c, "a value");
    c->at += len;
    return SP_OK;
}

static sp_status scan_value(scan *c, int depth);

static sp_status scan_members(scan *c, int depth, char close, bool keys) {
    if (depth >= c->depth_max)
        return SP_FAIL(c->err, SP_E_TOOLONG, "JSON is nested deeper than %d", c->depth_max);
    c->at++;
    skip_space(c);
    if (c->at < c->n && c->s[c->at] == close) {
        c->at++;
        return SP_OK;
    }
    for (;;) {
        if (keys) {
            skip_space(c);
            SP_TRY(scan_string(c));
            skip_space(c);
            if (c->at >= c->n || c->s[c->at] != ':') return bad(c, "':'");
            c->at++;
        }
        SP_TRY(scan_value(c, depth + 1));
        skip_space(c);
        if (c->at < c->n && c->s[c->at] == close) break;
        if (c->at >= c->n || c->s[c->at] != ',') return bad(c, keys ? "',' or '}'" : "',' or ']'");
        c->at++;
    }
    c->at++;
    return SP_OK;
}

static sp_status scan_value(scan *c, int depth) {
    skip_space(c);
    if (c->at >= c->n) return bad(c, "a value");
    switch (c->s[c->at]) {
    case '{':
        return scan_members(c, depth, '}', true);
    case '[':
        return scan_members(c, depth, ']', false);
    case '"':
        return scan_string(c);
    case 't':
        return scan_word(c, "true");
    case 'f':
        return scan_word(c, "false");
    case 'n':
        return scan_word(c, "null");
    default:
        break;
    }
    bool keep = false;
    size_t len = sp_json_scan_number(c->s + c->at, c->n - c->at, &keep);
    if (len == 0) return bad(c, "a value");
    c->facts->n_lexemes += keep;
    c->at += len;
    return SP_OK;
}

sp_status sp_json_scan(sp_slice text, int depth_max, sp_json_facts *facts, sp_err *err) {
    *facts = (sp_json_facts){0};
    scan c = {text.ptr, text.len, 0, depth_max, facts, err};
    SP_TRY(scan_value(&c, 0));
    skip_space(&c);
    if (c.at < c.n) return bad(&c, "the end of the JSON text");
    return SP_OK;
}
