#include "runtime/text/jinja_text.h"

#include <utf8proc.h>

typedef struct span {
    uint32_t first, last;
} span;

static bool in_spans(uint32_t cp, const span *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (cp >= s[i].first && cp <= s[i].last) return true;
    return false;
}

static utf8proc_category_t category(uint32_t cp) {
    return utf8proc_category((utf8proc_int32_t)cp);
}

bool sp_char_space(uint32_t cp) {
    if (cp < 0x80) return (cp >= 9 && cp <= 13) || (cp >= 0x1c && cp <= 0x20);
    static const span s[] = {{0x85, 0x85},     {0xa0, 0xa0},     {0x1680, 0x1680},
                             {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f},
                             {0x205f, 0x205f}, {0x3000, 0x3000}};
    return in_spans(cp, s, SP_LEN(s));
}

bool sp_char_newline(uint32_t cp) {
    return (cp >= 10 && cp <= 13) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 ||
           cp == 0x2029;
}

bool sp_char_printable(uint32_t cp) {
    if (cp < 0x7f) return cp >= 0x20;
    switch (category(cp)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    default:
        return true;
    }
}

bool sp_char_alpha(uint32_t cp) {
    if (cp < 0x80) return (cp | 32) >= 'a' && (cp | 32) <= 'z';
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

bool sp_char_decimal(uint32_t cp) {
    return cp < 0x80 ? cp >= '0' && cp <= '9' : category(cp) == UTF8PROC_CATEGORY_ND;
}

bool sp_char_digit(uint32_t cp) {
    static const span s[] = {
        {0xb2, 0xb3},     {0xb9, 0xb9},     {0x1369, 0x1371}, {0x19da, 0x19da},
        {0x2070, 0x2070}, {0x2074, 0x2079}, {0x2080, 0x2089}, {0x2460, 0x2468},
        {0x2474, 0x247c}, {0x2488, 0x2490}, {0x24ea, 0x24ea}, {0x24f5, 0x24fd},
        {0x24ff, 0x24ff}, {0x2776, 0x277e}, {0x2780, 0x2788}, {0x278a, 0x2792}};
    return sp_char_decimal(cp) || in_spans(cp, s, SP_LEN(s));
}

bool sp_char_numeric(uint32_t cp) {
    if (cp < 0x80) return sp_char_decimal(cp);
    utf8proc_category_t c = category(cp);
    if (c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO) return true;
    /* The ideographs that are numbers. */
    static const uint16_t han[] = {0x4e00, 0x4e8c, 0x4e09, 0x56db, 0x4e94, 0x516d, 0x4e03,
                                   0x516b, 0x4e5d, 0x5341, 0x767e, 0x5343, 0x4e07, 0x5104};
    for (size_t i = 0; i < SP_LEN(han); i++)
        if (cp == han[i]) return true;
    return false;
}

bool sp_char_alnum(uint32_t cp) {
    return sp_char_alpha(cp) || sp_char_numeric(cp) || sp_char_digit(cp);
}

bool sp_char_lower(uint32_t cp) {
    if (cp < 0x80) return cp >= 'a' && cp <= 'z';
    static const span s[] = {
        {0xaa, 0xaa},     {0xba, 0xba},     {0x2b0, 0x2b8},   {0x2c0, 0x2c1},   {0x2e0, 0x2e4},
        {0x345, 0x345},   {0x37a, 0x37a},   {0x1d2c, 0x1d6a}, {0x1d78, 0x1d78}, {0x1d9b, 0x1dbf},
        {0x2071, 0x2071}, {0x207f, 0x207f}, {0x2090, 0x209c}, {0x2170, 0x217f}, {0x24d0, 0x24e9},
        {0x2c7c, 0x2c7d}, {0xa69c, 0xa69d}, {0xa770, 0xa770}, {0xa7f8, 0xa7f9}, {0xab5c, 0xab5f}};
    return category(cp) == UTF8PROC_CATEGORY_LL || in_spans(cp, s, SP_LEN(s));
}

bool sp_char_upper(uint32_t cp) {
    if (cp < 0x80) return cp >= 'A' && cp <= 'Z';
    static const span s[] = {{0x2160, 0x216f},
                             {0x24b6, 0x24cf},
                             {0x1f130, 0x1f149},
                             {0x1f150, 0x1f169},
                             {0x1f170, 0x1f189}};
    return category(cp) == UTF8PROC_CATEGORY_LU || in_spans(cp, s, SP_LEN(s));
}

bool sp_char_title(uint32_t cp) {
    return cp >= 0x80 && category(cp) == UTF8PROC_CATEGORY_LT;
}

static bool cased(uint32_t cp) {
    return sp_char_lower(cp) || sp_char_upper(cp) || sp_char_title(cp);
}

static bool case_ignorable(uint32_t cp) {
    static const uint16_t marks[] = {0x27,   0x2e,   0x3a,   0xb7,   0x387,  0x55f,
                                     0x5f4,  0x2018, 0x2019, 0x2024, 0x2027, 0xfe13,
                                     0xfe52, 0xfe55, 0xff07, 0xff0e, 0xff1a};
    for (size_t i = 0; i < SP_LEN(marks); i++)
        if (cp == marks[i]) return true;
    switch (category(cp)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
        return true;
    default:
        return false;
    }
}

bool sp_char_name_start(uint32_t cp) {
    return cp == '_' || sp_char_alpha(cp) || (cp >= 0x80 && category(cp) == UTF8PROC_CATEGORY_NL);
}

bool sp_char_name(uint32_t cp) {
    if (sp_char_name_start(cp) || sp_char_decimal(cp)) return true;
    if (cp < 0x80) return false;
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_PC;
}

int sp_utf8_first(sp_slice s, uint32_t *cp) {
    *cp = 0xfffd;
    if (s.len == 0) return 0;
    int n = sp_utf8_decode(s.ptr, s.len, cp);
    return n ? n : 1;
}

int sp_utf8_last(sp_slice s, uint32_t *cp) {
    *cp = 0xfffd;
    if (s.len == 0) return 0;
    size_t from = s.len - 1;
    while (from > 0 && s.len - from < 4 && ((unsigned char)s.ptr[from] & 0xc0) == 0x80) from--;
    int n = sp_utf8_decode(s.ptr + from, s.len - from, cp);
    return n && from + (size_t)n == s.len ? n : 1;
}

/* A capital sigma is final when a cased letter stands before it and none after it; marks between
 * do not count. */
static bool final_sigma(sp_slice s, size_t at, size_t after) {
    uint32_t cp = 0;
    sp_slice before = {s.ptr, at}, rest = {s.ptr + after, s.len - after};
    do {
        before.len -= (size_t)sp_utf8_last(before, &cp);
    } while (before.len && case_ignorable(cp));
    if (at == 0 || case_ignorable(cp) || !cased(cp)) return false;
    do {
        int n = sp_utf8_first(rest, &cp);
        if (n == 0) return true;
        rest = (sp_slice){rest.ptr + n, rest.len - (size_t)n};
    } while (case_ignorable(cp));
    return !cased(cp);
}

static sp_status put_upper(sp_jrun *r, sp_jtext *t, uint32_t cp, bool title) {
    const char *special = title ? sp_char_special_title(cp) : sp_char_special_upper(cp);
    if (special) return sp_jtext_puts(r, t, special);
    utf8proc_int32_t c = (utf8proc_int32_t)cp;
    return sp_jtext_char(r, t, (uint32_t)(title ? utf8proc_totitle(c) : utf8proc_toupper(c)));
}

static sp_status put_lower(sp_jrun *r, sp_jtext *t, sp_slice s, size_t at, size_t after) {
    uint32_t cp;
    sp_utf8_first((sp_slice){s.ptr + at, s.len - at}, &cp);
    if (cp == 0x3a3) return sp_jtext_char(r, t, final_sigma(s, at, after) ? 0x3c2 : 0x3c3);
    if (cp == 0x130) return sp_jtext_puts(r, t, "i\xcc\x87");
    return sp_jtext_char(r, t, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
}

static sp_status put_folded(sp_jrun *r, sp_jtext *t, uint32_t cp) {
    utf8proc_int32_t to[8];
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char(
        (utf8proc_int32_t)cp, to, (utf8proc_ssize_t)SP_LEN(to), UTF8PROC_CASEFOLD, &boundary);
    if (n < 1 || n > (utf8proc_ssize_t)SP_LEN(to)) return sp_jtext_char(r, t, cp);
    for (utf8proc_ssize_t i = 0; i < n; i++) SP_TRY(sp_jtext_char(r, t, (uint32_t)to[i]));
    return SP_OK;
}

sp_status sp_jtext_case(sp_jrun *r, sp_jtext *t, sp_slice s, sp_case how) {
    SP_TRY(sp_jrun_charge(r, s.len / 32));
    bool in_word = false;
    for (size_t i = 0, next; i < s.len; i = next) {
        uint32_t cp;
        next = i + (size_t)sp_utf8_first((sp_slice){s.ptr + i, s.len - i}, &cp);
        bool up = how == SP_CASE_UPPER || (how == SP_CASE_TITLE && !in_word) ||
                  (how == SP_CASE_CAPITALIZE && i == 0) ||
                  (how == SP_CASE_SWAP && sp_char_lower(cp));
        bool keep = how == SP_CASE_SWAP && !up && !sp_char_upper(cp);
        in_word = cased(cp);
        if (keep)
            SP_TRY(sp_jtext_char(r, t, cp));
        else if (how == SP_CASE_FOLD)
            SP_TRY(put_folded(r, t, cp));
        else if (up)
            SP_TRY(put_upper(r, t, cp, how == SP_CASE_TITLE || how == SP_CASE_CAPITALIZE));
        else
            SP_TRY(put_lower(r, t, s, i, next));
    }
    return SP_OK;
}

static bool strips(uint32_t cp, const sp_slice *chars) {
    if (!chars) return sp_char_space(cp);
    for (size_t i = 0; i < chars->len;) {
        uint32_t c;
        i += (size_t)sp_utf8_first((sp_slice){chars->ptr + i, chars->len - i}, &c);
        if (c == cp) return true;
    }
    return false;
}

sp_status sp_jrun_charge_strip(sp_jrun *r, sp_slice s, sp_slice chars) {
    return sp_jrun_charge(r, (uint64_t)(s.len / 32) * (chars.len / 32));
}

sp_slice sp_slice_strip(sp_slice s, const sp_slice *chars, int sides) {
    uint32_t cp;
    int n;
    while ((sides & SP_STRIP_LEFT) && (n = sp_utf8_first(s, &cp)) && strips(cp, chars))
        s = (sp_slice){s.ptr + n, s.len - (size_t)n};
    while ((sides & SP_STRIP_RIGHT) && (n = sp_utf8_last(s, &cp)) && strips(cp, chars))
        s.len -= (size_t)n;
    return s;
}
