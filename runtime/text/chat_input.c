#include "runtime/text/chat_input.h"

/* --- spellings --- */

typedef struct sp_spelling_node {
    uint32_t child, sibling; /* 0: none */
    unsigned char byte;
    bool end;
} sp_spelling_node;

#define MARKERS 32
/* U+FDD0 .. U+FDEF */
static const char marker_bytes[] = "\xef\xb7\x90\xef\xb7\x91\xef\xb7\x92\xef\xb7\x93\xef\xb7\x94"
                                   "\xef\xb7\x95\xef\xb7\x96\xef\xb7\x97"
                                   "\xef\xb7\x98\xef\xb7\x99\xef\xb7\x9a\xef\xb7\x9b\xef\xb7\x9c"
                                   "\xef\xb7\x9d\xef\xb7\x9e\xef\xb7\x9f"
                                   "\xef\xb7\xa0\xef\xb7\xa1\xef\xb7\xa2\xef\xb7\xa3\xef\xb7\xa4"
                                   "\xef\xb7\xa5\xef\xb7\xa6\xef\xb7\xa7"
                                   "\xef\xb7\xa8\xef\xb7\xa9\xef\xb7\xaa\xef\xb7\xab\xef\xb7\xac"
                                   "\xef\xb7\xad\xef\xb7\xae\xef\xb7\xaf";

static size_t first_char(sp_slice s) {
    uint32_t cp;
    int n = sp_utf8_decode(s.ptr, s.len, &cp);
    return n ? (size_t)n : 1;
}

static uint32_t child_of(const sp_spellings *s, uint32_t node, unsigned char byte) {
    uint32_t c = s->at[node].child;
    while (c && s->at[c].byte != byte) c = s->at[c].sibling;
    return c;
}

static sp_status new_node(sp_spellings *s, sp_spelling_node node, sp_err *err) {
    if (s->n == s->cap) {
        uint32_t cap = s->cap ? 2 * s->cap : 256;
        sp_spelling_node *at = sp_try_realloc(s->at, cap * sizeof *at);
        if (!at) return SP_FAIL(err, SP_E_NOMEM, "no memory for the spellings of special tokens");
        s->at = at;
        s->cap = cap;
    }
    s->at[s->n++] = node;
    return SP_OK;
}

sp_status sp_spellings_add(sp_spellings *s, sp_slice spelling, sp_err *err) {
    if (spelling.len == 0 || first_char(spelling) == spelling.len) return SP_OK;
    if (s->n == 0) SP_TRY(new_node(s, (sp_spelling_node){0}, err));
    uint32_t at = 0;
    for (size_t i = 0; i < spelling.len; i++) {
        unsigned char byte = (unsigned char)spelling.ptr[i];
        uint32_t next = child_of(s, at, byte);
        if (!next) {
            SP_TRY(new_node(s, (sp_spelling_node){.byte = byte, .sibling = s->at[at].child}, err));
            next = s->at[at].child = s->n - 1;
        }
        at = next;
    }
    s->at[at].end = true;
    return SP_OK;
}

void sp_spellings_fini(sp_spellings *s) {
    sp_free(s->at);
    *s = (sp_spellings){0};
}

/* Whether a spelling begins at s, or s is all of the beginning of one. */
static bool begins(const sp_spellings *s, sp_slice text) {
    uint32_t at = 0;
    for (size_t i = 0; i < text.len; i++) {
        at = child_of(s, at, (unsigned char)text.ptr[i]);
        if (!at) return false;
        if (s->at[at].end) return true;
    }
    return true;
}

void sp_spellings_break(const sp_spellings *s, sp_slice text, sp_slice marker, sp_buf *out) {
    size_t plain = 0;
    for (size_t i = 0; s->n && i < text.len; i++) {
        sp_slice rest = {text.ptr + i, text.len - i};
        if (!begins(s, rest)) continue;
        size_t behind = i + first_char(rest);
        sp_buf_put(out, text.ptr + plain, behind - plain);
        sp_buf_put_slice(out, marker);
        plain = behind;
    }
    sp_buf_put(out, text.ptr + plain, text.len - plain);
}

/* What a walk over all strings of a document finds. */
typedef struct survey {
    const sp_spellings *s;
    uint32_t used; /* markers that are in the texts, by bit */
    bool needed;
} survey;

static void survey_text(survey *v, sp_slice text) {
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        sp_slice rest = {text.ptr + i, text.len - i};
        if (c == 0xef && rest.len >= 3 && (unsigned char)rest.ptr[1] == 0xb7) {
            unsigned last = (unsigned char)rest.ptr[2];
            if (last >= 0x90 && last < 0x90 + MARKERS) v->used |= 1u << (last - 0x90);
        }
        if (!v->needed && v->s->n) v->needed = begins(v->s, rest);
    }
}

static void survey_node(survey *v, const sp_json_node *node) {
    sp_json_type type = sp_json_type_of(node);
    if (type == SP_JSON_STRING) survey_text(v, sp_json_string(node));
    if (type != SP_JSON_ARRAY && type != SP_JSON_OBJECT) return;
    for (const sp_json_node *c = sp_json_first(node); c; c = sp_json_next(c)) {
        if (type == SP_JSON_OBJECT) survey_text(v, sp_json_key(c));
        survey_node(v, c);
    }
}

sp_status sp_spellings_choose(const sp_spellings *s, const sp_json_node *node, sp_slice *marker,
                              sp_err *err) {
    survey v = {.s = s};
    survey_node(&v, node);
    if (!v.needed) {
        *marker = (sp_slice){0};
        return SP_OK;
    }
    for (size_t i = 0; i < MARKERS; i++) {
        if (v.used >> i & 1) continue;
        *marker = (sp_slice){marker_bytes + 3 * i, 3};
        return SP_OK;
    }
    return SP_FAIL(err, SP_E_INVALID,
                   "the messages hold all of U+FDD0 to U+FDEF, which no text may");
}

typedef struct writer {
    const sp_spellings *s;
    sp_slice marker;
    sp_jw w;
    sp_buf scratch;
} writer;

/* Where a value stands: what the roles of messages are is the front end's business, and a template
 * compares them. */
typedef enum place {
    AT_ROOT,
    AT_MESSAGES,
    AT_MESSAGE,
    ELSEWHERE
} place;

static place place_inside(place at, sp_slice key) {
    if (at == AT_ROOT && sp_slice_is(key, "messages")) return AT_MESSAGES;
    return at == AT_MESSAGES ? AT_MESSAGE : ELSEWHERE;
}

static void write_key(writer *k, sp_slice key) {
    sp_buf_clear(&k->scratch);
    sp_spellings_break(k->s, key, k->marker, &k->scratch);
    sp_jw_key(&k->w, k->scratch.ptr ? k->scratch.ptr : "");
}

static void write_broken(writer *k, const sp_json_node *node, place at) {
    sp_json_type type = sp_json_type_of(node);
    if (type == SP_JSON_STRING) {
        sp_buf_clear(&k->scratch);
        sp_spellings_break(k->s, sp_json_string(node), k->marker, &k->scratch);
        sp_jw_string(&k->w, sp_buf_slice(&k->scratch));
        return;
    }
    if (type != SP_JSON_ARRAY && type != SP_JSON_OBJECT) {
        sp_jw_node(&k->w, node);
        return;
    }
    bool object = type == SP_JSON_OBJECT;
    object ? sp_jw_object(&k->w) : sp_jw_array(&k->w);
    for (const sp_json_node *c = sp_json_first(node); c; c = sp_json_next(c)) {
        sp_slice key = object ? sp_json_key(c) : (sp_slice){0};
        if (object) write_key(k, key);
        if (at == AT_MESSAGE && sp_slice_is(key, "role"))
            sp_jw_node(&k->w, c);
        else
            write_broken(k, c, place_inside(at, key));
    }
    object ? sp_jw_object_end(&k->w) : sp_jw_array_end(&k->w);
}

void sp_spellings_write(const sp_spellings *s, const sp_json_node *node, sp_slice marker,
                        sp_buf *out) {
    writer k = {.s = s, .marker = marker, .w = sp_jw_on(out)};
    sp_buf_init(&k.scratch, 0);
    write_broken(&k, node, AT_ROOT);
    if (k.scratch.failed) out->failed = true;
    sp_buf_fini(&k.scratch);
}

/* --- messages --- */

typedef struct normalizer {
    sp_jw w;
    bool parts;
    int message; /* number of the one being written */
    sp_err *err;
} normalizer;

/* The text of a part: {"type": "text", "text": …} and its kin, or a bare string. False: it is
 * something else. */
static bool part_text(const sp_json_node *part, sp_slice *out) {
    static const char *const types[][2] = {
        {"text", "text"}, {"input_text", "text"}, {"output_text", "text"}, {"refusal", "refusal"}};
    if (sp_json_type_of(part) == SP_JSON_STRING) {
        *out = sp_json_string(part);
        return true;
    }
    sp_slice type = sp_json_string(sp_json_find(part, "type"));
    for (size_t i = 0; i < SP_LEN(types); i++) {
        const sp_json_node *text = sp_json_find(part, types[i][1]);
        if (!sp_slice_is(type, types[i][0]) || sp_json_type_of(text) != SP_JSON_STRING) continue;
        *out = sp_json_string(text);
        return true;
    }
    return false;
}

static void write_text_part(sp_jw *w, sp_slice text) {
    sp_jw_object(w);
    sp_jw_key(w, "type");
    sp_jw_str(w, "text");
    sp_jw_key(w, "text");
    sp_jw_string(w, text);
    sp_jw_object_end(w);
}

static void write_parts(normalizer *k, const sp_json_node *content) {
    sp_slice text;
    sp_jw_array(&k->w);
    if (sp_json_type_of(content) == SP_JSON_STRING)
        write_text_part(&k->w, sp_json_string(content));
    else
        for (const sp_json_node *p = sp_json_first(content); p; p = sp_json_next(p))
            if (part_text(p, &text))
                write_text_part(&k->w, text);
            else
                sp_jw_node(&k->w, p);
    sp_jw_array_end(&k->w);
}

static sp_status write_joined(normalizer *k, const sp_json_node *content) {
    sp_buf joined;
    sp_buf_init(&joined, 0);
    sp_status st = SP_OK;
    int i = 0;
    for (const sp_json_node *p = sp_json_first(content); p && st == SP_OK;
         p = sp_json_next(p), i++) {
        sp_slice text, type = sp_json_string(sp_json_find(p, "type"));
        if (!part_text(p, &text))
            st = SP_FAIL(k->err, SP_E_INVALID,
                         "messages[%d].content[%d]: want a part of type 'text', got '%.*s'",
                         k->message, i, type.len < 40 ? (int)type.len : 40,
                         type.ptr ? type.ptr : "");
        if (i) sp_buf_putc(&joined, '\n');
        if (st == SP_OK) sp_buf_put_slice(&joined, text);
    }
    if (st == SP_OK && joined.failed)
        st = SP_FAIL(k->err, SP_E_NOMEM, "no memory for the messages");
    if (st == SP_OK) sp_jw_string(&k->w, sp_buf_slice(&joined));
    sp_buf_fini(&joined);
    return st;
}

/* Content that is absent or null is empty, never null. */
static sp_status write_content(normalizer *k, const sp_json_node *content) {
    sp_json_type type = sp_json_type_of(content);
    if (type != SP_JSON_NULL && type != SP_JSON_STRING && type != SP_JSON_ARRAY)
        return SP_FAIL(k->err, SP_E_INVALID,
                       "messages[%d].content: want a string or an array, got %s", k->message,
                       sp_json_type_name(type));
    sp_jw_key(&k->w, "content");
    if (k->parts) {
        write_parts(k, content);
        return SP_OK;
    }
    if (type == SP_JSON_ARRAY) return write_joined(k, content);
    sp_jw_string(&k->w, sp_json_string(content));
    return SP_OK;
}

/* A string is JSON and becomes what it says; nothing becomes {}. */
static sp_status write_arguments(normalizer *k, const sp_json_node *arguments, int call) {
    sp_json_type type = sp_json_type_of(arguments);
    sp_slice text = sp_json_string(arguments);
    if (type == SP_JSON_NULL || (type == SP_JSON_STRING && text.len == 0)) {
        sp_jw_object(&k->w);
        sp_jw_object_end(&k->w);
        return SP_OK;
    }
    if (type != SP_JSON_STRING) {
        sp_jw_node(&k->w, arguments);
        return SP_OK;
    }
    sp_json *doc;
    sp_status st = sp_json_parse(&doc, text, 0, k->err);
    if (st != SP_OK) {
        sp_err_context(k->err, "messages[%d].tool_calls[%d].function.arguments", k->message, call);
        return st == SP_E_NOMEM ? st : SP_E_INVALID;
    }
    sp_jw_node(&k->w, sp_json_root(doc));
    sp_json_free(doc);
    return SP_OK;
}

static sp_status write_function(normalizer *k, const sp_json_node *function, int call) {
    sp_jw_object(&k->w);
    for (const sp_json_node *c = sp_json_first(function); c; c = sp_json_next(c)) {
        if (sp_slice_is(sp_json_key(c), "arguments")) continue;
        sp_jw_key(&k->w, sp_json_key(c).ptr);
        sp_jw_node(&k->w, c);
    }
    sp_jw_key(&k->w, "arguments");
    SP_TRY(write_arguments(k, sp_json_find(function, "arguments"), call));
    sp_jw_object_end(&k->w);
    return SP_OK;
}

static sp_status write_tool_calls(normalizer *k, const sp_json_node *calls) {
    int i = 0;
    sp_jw_key(&k->w, "tool_calls");
    sp_jw_array(&k->w);
    for (const sp_json_node *call = sp_json_first(calls); call; call = sp_json_next(call), i++) {
        if (sp_json_type_of(sp_json_find(call, "function")) != SP_JSON_OBJECT)
            return SP_FAIL(k->err, SP_E_INVALID,
                           "messages[%d].tool_calls[%d]: want a 'function' object", k->message, i);
        sp_jw_object(&k->w);
        for (const sp_json_node *c = sp_json_first(call); c; c = sp_json_next(c)) {
            bool function = sp_slice_is(sp_json_key(c), "function");
            sp_jw_key(&k->w, sp_json_key(c).ptr);
            if (function)
                SP_TRY(write_function(k, c, i));
            else
                sp_jw_node(&k->w, c);
        }
        sp_jw_object_end(&k->w);
    }
    sp_jw_array_end(&k->w);
    return SP_OK;
}

static const sp_json_node *reasoning_of(const sp_json_node *message) {
    const sp_json_node *v = sp_json_find(message, "reasoning");
    bool there = sp_json_type_of(v) == SP_JSON_STRING && sp_json_string(v).len > 0;
    return there ? v : sp_json_find(message, "reasoning_content");
}

static bool written_apart(sp_slice key, bool assistant) {
    if (sp_slice_is(key, "role") || sp_slice_is(key, "content")) return true;
    return assistant && (sp_slice_is(key, "tool_calls") || sp_slice_is(key, "reasoning") ||
                         sp_slice_is(key, "reasoning_content"));
}

static sp_status write_message(normalizer *k, const sp_json_node *m) {
    if (sp_json_type_of(m) != SP_JSON_OBJECT)
        return SP_FAIL(k->err, SP_E_INVALID, "messages[%d]: want an object, got %s", k->message,
                       sp_json_type_name(sp_json_type_of(m)));
    const sp_json_node *role = sp_json_find(m, "role"), *calls = sp_json_find(m, "tool_calls");
    bool assistant = sp_slice_is(sp_json_string(role), "assistant");
    sp_jw_object(&k->w);
    if (role) {
        sp_jw_key(&k->w, "role");
        sp_jw_node(&k->w, role);
    }
    SP_TRY(write_content(k, sp_json_find(m, "content")));
    if (assistant && sp_json_type_of(calls) == SP_JSON_ARRAY && sp_json_count(calls) > 0)
        SP_TRY(write_tool_calls(k, calls));
    const sp_json_node *reasoning = assistant ? reasoning_of(m) : NULL;
    if (!sp_json_is_null(reasoning)) {
        sp_jw_key(&k->w, "reasoning");
        sp_jw_node(&k->w, reasoning);
        sp_jw_key(&k->w, "reasoning_content");
        sp_jw_node(&k->w, reasoning);
    }
    for (const sp_json_node *c = sp_json_first(m); c; c = sp_json_next(c)) {
        if (written_apart(sp_json_key(c), assistant)) continue;
        sp_jw_key(&k->w, sp_json_key(c).ptr);
        sp_jw_node(&k->w, c);
    }
    sp_jw_object_end(&k->w);
    return SP_OK;
}

sp_status sp_chat_normalize(const sp_json_node *messages, bool parts, sp_buf *out, sp_err *err) {
    normalizer k = {.w = sp_jw_on(out), .parts = parts, .err = err};
    if (sp_json_type_of(messages) != SP_JSON_ARRAY)
        return SP_FAIL(err, SP_E_INVALID, "messages: want an array, got %s",
                       sp_json_type_name(sp_json_type_of(messages)));
    sp_jw_array(&k.w);
    for (const sp_json_node *m = sp_json_first(messages); m; m = sp_json_next(m), k.message++)
        SP_TRY(write_message(&k, m));
    sp_jw_array_end(&k.w);
    if (!out->failed) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM, "no memory for the messages");
}
