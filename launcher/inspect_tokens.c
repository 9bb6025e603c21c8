#include "launcher/inspect_tokens.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/format/model_dir.h"
#include "runtime/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

#define LINE_BYTES_MAX ((size_t)512 << 20)

typedef struct request {
    const char *model, *text, *ids;
    bool from_stdin, special, bos, help;
} request;

static const char usage[] =
    "usage: superpod inspect tokens --model DIR (--text T | --ids 1,2,3 | --stdin)\n"
    "                               [--special] [--bos]\n\n"
    "  --model DIR   a model directory or org/name; only the tokenizer's files are read\n"
    "  --text T      writes the ids of T as a JSON list\n"
    "  --ids LIST    writes the text of the ids, special tokens included\n"
    "  --stdin       one JSON value a line: a string gives a list of ids, a list gives a string;\n"
    "                a line that is neither gives {\"error\": …}\n"
    "  --special     special tokens spelled in a text become themselves; else they are plain text\n"
    "  --bos         adds what the tokenizer adds around a text (BOS, EOS)\n";

static int refuse(const char *words, const char *subject) {
    fprintf(stderr, "superpod: inspect tokens: %s%s%s\n", words, subject ? " " : "",
            subject ? subject : "");
    return SP_EXIT_USAGE;
}

/* "--name VALUE" or "--name=VALUE"; *i moves over what was used. */
static bool take_value(const char *name, int argc, char **argv, int *i, const char **out) {
    size_t n = strlen(name);
    if (strncmp(argv[*i], name, n) != 0) return false;
    if (argv[*i][n] == '=') {
        *out = argv[*i] + n + 1;
        return true;
    }
    if (argv[*i][n] != 0 || *i + 1 >= argc) return false;
    *out = argv[++*i];
    return true;
}

static bool take_flag(const char *name, const char *arg, bool *out) {
    if (strcmp(name, arg) != 0) return false;
    *out = true;
    return true;
}

static int parse_args(int argc, char **argv, request *r) {
    for (int i = 1; i < argc; i++) {
        bool known = take_value("--model", argc, argv, &i, &r->model) ||
                     take_value("--text", argc, argv, &i, &r->text) ||
                     take_value("--ids", argc, argv, &i, &r->ids) ||
                     take_flag("--stdin", argv[i], &r->from_stdin) ||
                     take_flag("--special", argv[i], &r->special) ||
                     take_flag("--bos", argv[i], &r->bos) ||
                     take_flag("--help", argv[i], &r->help) || take_flag("-h", argv[i], &r->help);
        if (!known) return refuse("unknown option or one without its value:", argv[i]);
    }
    if (r->help) return SP_EXIT_OK;
    if (!r->model) return refuse("--model is missing; see superpod inspect tokens --help", NULL);
    if ((r->text != NULL) + (r->ids != NULL) + r->from_stdin != 1)
        return refuse("want one of --text, --ids and --stdin", NULL);
    return SP_EXIT_OK;
}

/* ---- one answer ---- */

static sp_status encode(const sp_tokenizer *t, const request *r, sp_slice text, sp_buf *out,
                        sp_err *err) {
    sp_ids ids = {0};
    int flags = (r->special ? SP_ENCODE_SPECIAL : 0) | (r->bos ? SP_ENCODE_BOS : 0);
    sp_status st = sp_tokenizer_encode(t, text, flags, (sp_slice){0}, &ids, err);
    if (st == SP_OK) {
        sp_buf_putc(out, '[');
        for (size_t i = 0; i < ids.len; i++) sp_buf_printf(out, i ? ", %d" : "%d", ids.ptr[i]);
        sp_buf_putc(out, ']');
    }
    sp_ids_fini(&ids);
    return st;
}

static sp_status push_id(sp_ids *ids, int64_t id, sp_err *err) {
    if (id < 0 || id > INT32_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%lld is not a token id", (long long)id);
    if (sp_ids_push(ids, (int32_t)id) == SP_OK) return SP_OK;
    return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu ids", ids->len);
}

static sp_status parse_ids(const char *list, sp_ids *ids, sp_err *err) {
    for (const char *p = list; *p;) {
        size_t n = strcspn(p, ",");
        sp_slice word = {p, n};
        while (word.len && word.ptr[0] == ' ') word = (sp_slice){word.ptr + 1, word.len - 1};
        int64_t id;
        if (sp_parse_i64(word, &id) != SP_OK)
            return SP_FAIL(err, SP_E_INVALID, "'%.*s' is not a token id", (int)n, p);
        SP_TRY(push_id(ids, id, err));
        p += n;
        if (*p == ',' && *++p == 0)
            return SP_FAIL(err, SP_E_INVALID, "the list of ids ends with a comma");
    }
    return SP_OK;
}

static sp_status decode_json(const sp_tokenizer *t, const sp_json_node *list, sp_buf *out,
                             sp_err *err) {
    sp_ids ids = {0};
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_status st = SP_OK;
    for (const sp_json_node *v = sp_json_first(list); v && st == SP_OK; v = sp_json_next(v))
        st = sp_json_type_of(v) == SP_JSON_INT
                 ? push_id(&ids, sp_json_int(v), err)
                 : SP_FAIL(err, SP_E_INVALID, "want a list of integers, got %s in it",
                           sp_json_type_name(sp_json_type_of(v)));
    if (st == SP_OK) {
        sp_tokenizer_decode(t, ids.ptr, ids.len, false, &text);
        sp_jw w = sp_jw_on(out);
        sp_jw_string(&w, sp_buf_slice(&text));
        if (text.failed) out->failed = true;
    }
    sp_buf_fini(&text);
    sp_ids_fini(&ids);
    return st;
}

static sp_status answer_line(const sp_tokenizer *t, const request *r, sp_slice line, sp_buf *out,
                             sp_err *err) {
    sp_json *doc;
    SP_TRY(sp_json_parse(&doc, line, 0, err));
    const sp_json_node *v = sp_json_root(doc);
    sp_json_type type = sp_json_type_of(v);
    sp_status st;
    if (type == SP_JSON_STRING)
        st = encode(t, r, sp_json_string(v), out, err);
    else if (type == SP_JSON_ARRAY)
        st = decode_json(t, v, out, err);
    else
        st = SP_FAIL(err, SP_E_INVALID, "want a string or a list, got %s", sp_json_type_name(type));
    sp_json_free(doc);
    return st;
}

static void put_error(sp_buf *out, const sp_err *err) {
    sp_buf_clear(out);
    sp_jw w = sp_jw_on(out);
    sp_jw_object(&w);
    sp_jw_key(&w, "error");
    sp_jw_str(&w, err->text);
    sp_jw_object_end(&w);
}

/* ---- the three ways in ---- */

static void print(const sp_buf *out) {
    if (out->len) fwrite(out->ptr, 1, out->len, stdout);
    putchar('\n');
    fflush(stdout); /* whoever feeds us lines may wait for this one */
}

static int answer_stdin(const sp_tokenizer *t, const request *r) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    sp_buf out;
    sp_buf_init(&out, 0);
    while ((n = getline(&line, &cap, stdin)) >= 0) {
        size_t len = (size_t)n;
        while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
        if (len == 0) continue;
        sp_err err = {0};
        sp_buf_clear(&out);
        sp_status st = len > LINE_BYTES_MAX ? SP_FAIL(&err, SP_E_TOOLONG, "line of %zu bytes", len)
                                            : answer_line(t, r, (sp_slice){line, len}, &out, &err);
        if (st == SP_OK && out.failed) st = SP_FAIL(&err, SP_E_NOMEM, "no memory for the answer");
        if (st != SP_OK) put_error(&out, &err);
        print(&out);
    }
    sp_buf_fini(&out);
    free(line);
    return SP_EXIT_OK;
}

static int answer_args(const sp_tokenizer *t, const request *r) {
    sp_err err = {0};
    sp_buf out;
    sp_ids ids = {0};
    sp_buf_init(&out, 0);
    int code = SP_EXIT_OK;
    sp_status st =
        r->text ? encode(t, r, sp_slice_of(r->text), &out, &err) : parse_ids(r->ids, &ids, &err);
    if (st == SP_OK && r->ids) sp_tokenizer_decode(t, ids.ptr, ids.len, false, &out);
    if (st == SP_OK && out.failed) st = SP_FAIL(&err, SP_E_NOMEM, "no memory for the answer");
    if (st == SP_OK) {
        print(&out);
    } else {
        fprintf(stderr, "superpod: inspect tokens: %s\n", err.text);
        code = r->ids ? SP_EXIT_USAGE : SP_EXIT_CONFIG;
    }
    sp_ids_fini(&ids);
    sp_buf_fini(&out);
    return code;
}

int sp_inspect_tokens(int argc, char **argv) {
    request r = {0};
    int code = parse_args(argc, argv, &r);
    if (code != SP_EXIT_OK) return code;
    if (r.help) {
        fputs(usage, stdout);
        return SP_EXIT_OK;
    }
    sp_err err = {0};
    char *dir = NULL;
    sp_tokenizer *t = NULL;
    sp_status st = sp_model_resolve(&dir, r.model, &err);
    if (st == SP_OK) st = sp_tokenizer_load(&t, dir, &err);
    sp_free(dir);
    if (st != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        return SP_EXIT_CONFIG;
    }
    code = r.from_stdin ? answer_stdin(t, &r) : answer_args(t, &r);
    sp_tokenizer_free(t);
    return code;
}
