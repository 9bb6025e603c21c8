#include "launcher/inspect_template.h"

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/format/model_dir.h"
#include "runtime/text/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define FILE_BYTES_MAX ((size_t)256 << 20)
#define LINE_BYTES_MAX ((size_t)512 << 20)
#define VARS_MAX 256

typedef struct request {
    const char *model, *template, *messages, *tools, *now;
    bool from_stdin, help;
    int64_t now_unix_s;
} request;

static const char usage[] =
    "usage: superpod inspect template (--model DIR | --template FILE)\n"
    "                                 (--messages FILE [--tools FILE] | --stdin) [--now TIME]\n\n"
    "  --model DIR      a model directory or org/name; only the template's files are read\n"
    "  --template FILE  a Jinja template\n"
    "  --messages FILE  a JSON list of messages; writes the prompt that asks for an answer\n"
    "  --tools FILE     a JSON list of tools\n"
    "  --stdin          one JSON object of template variables a line, passed as they are; gives\n"
    "                   {\"text\": …} or {\"error\": …} a line\n"
    "  --now TIME       what strftime_now() tells, as 2025-07-10T12:00:00; else the local time\n";

static int refuse(const char *words, const char *subject) {
    fprintf(stderr, "superpod: inspect template: %s%s%s\n", words, subject ? " " : "",
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

/* The wall time, as if it were UTC: a template prints what a clock here shows. */
static int64_t local_now(void) {
    time_t now = (time_t)sp_unix_s();
    struct tm tm;
    return localtime_r(&now, &tm) ? (int64_t)timegm(&tm) : (int64_t)now;
}

static bool parse_now(const char *text, int64_t *out) {
    struct tm tm = {0};
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    if (!end || *end) return false;
    *out = (int64_t)timegm(&tm);
    return true;
}

static int parse_args(int argc, char **argv, request *r) {
    for (int i = 1; i < argc; i++) {
        bool known = take_value("--model", argc, argv, &i, &r->model) ||
                     take_value("--template", argc, argv, &i, &r->template) ||
                     take_value("--messages", argc, argv, &i, &r->messages) ||
                     take_value("--tools", argc, argv, &i, &r->tools) ||
                     take_value("--now", argc, argv, &i, &r->now) ||
                     take_flag("--stdin", argv[i], &r->from_stdin) ||
                     take_flag("--help", argv[i], &r->help) || take_flag("-h", argv[i], &r->help);
        if (!known) return refuse("unknown option or one without its value:", argv[i]);
    }
    if (r->help) return SP_EXIT_OK;
    if ((r->model != NULL) + (r->template != NULL) != 1)
        return refuse("want one of --model and --template", NULL);
    if ((r->messages != NULL) + r->from_stdin != 1)
        return refuse("want one of --messages and --stdin", NULL);
    if (r->tools && !r->messages) return refuse("--tools goes with --messages", NULL);
    r->now_unix_s = local_now();
    if (r->now && !parse_now(r->now, &r->now_unix_s))
        return refuse("--now wants a time as 2025-07-10T12:00:00, got", r->now);
    return SP_EXIT_OK;
}

/* --- the variables of one render --- */

typedef struct variables {
    sp_jinja_var at[VARS_MAX];
    int n;
} variables;

static sp_status add_members(variables *v, const sp_json_node *object, sp_err *err) {
    if (sp_json_type_of(object) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_INVALID, "want an object of variables, got %s",
                       sp_json_type_name(sp_json_type_of(object)));
    for (const sp_json_node *m = sp_json_first(object); m; m = sp_json_next(m)) {
        if (v->n == VARS_MAX) return SP_FAIL(err, SP_E_TOOLONG, "more than %d variables", VARS_MAX);
        v->at[v->n++] = (sp_jinja_var){.name = sp_json_key(m).ptr, .value = m};
    }
    return SP_OK;
}

/* The whole message of a template that refuses goes to `refusal`. */
static sp_status render_object(const sp_chat *c, const request *r, const sp_json_node *object,
                               sp_buf *out, sp_buf *refusal, sp_err *err) {
    variables *v = sp_alloc(sizeof *v);
    v->n = sp_chat_special_vars(c, v->at);
    bool tools = !sp_json_is_null(sp_json_find(object, "tools"));
    sp_status st = add_members(v, object, err);
    if (st == SP_OK)
        st = sp_jinja_render_full(sp_chat_template(c, tools), v->at, v->n, NULL, r->now_unix_s, out,
                                  refusal, NULL, err);
    sp_free(v);
    return st;
}

/* --- lines --- */

static void put_member(sp_buf *out, const char *key, sp_slice text) {
    sp_jw w = sp_jw_on(out);
    sp_jw_object(&w);
    sp_jw_key(&w, key);
    sp_jw_string(&w, text);
    sp_jw_object_end(&w);
}

static void answer_line(const sp_chat *c, const request *r, sp_slice line, sp_buf *out) {
    sp_err err = {0};
    sp_json *doc = NULL;
    sp_buf text, refusal;
    sp_buf_init(&text, 0);
    sp_buf_init(&refusal, 0);
    sp_status st = line.len > LINE_BYTES_MAX
                       ? SP_FAIL(&err, SP_E_TOOLONG, "a line of %zu bytes", line.len)
                       : sp_json_parse(&doc, line, 0, &err);
    if (st == SP_OK) st = render_object(c, r, sp_json_root(doc), &text, &refusal, &err);
    if (st == SP_OK)
        put_member(out, "text", sp_buf_slice(&text));
    else
        put_member(out, "error", refusal.len ? sp_buf_slice(&refusal) : sp_slice_of(err.text));
    sp_json_free(doc);
    sp_buf_fini(&refusal);
    sp_buf_fini(&text);
}

static int answer_stdin(const sp_chat *c, const request *r) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    sp_buf out;
    sp_buf_init(&out, 0);
    while ((n = getline(&line, &cap, stdin)) >= 0) {
        size_t len = (size_t)n;
        while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
        if (len == 0) continue;
        sp_buf_clear(&out);
        answer_line(c, r, (sp_slice){line, len}, &out);
        if (out.failed) {
            sp_buf_clear(&out);
            sp_buf_puts(&out, "{\"error\":\"no memory for the answer\"}");
        }
        sp_buf_putc(&out, '\n');
        fwrite(out.ptr, 1, out.len, stdout);
        fflush(stdout); /* whoever feeds us lines may wait for this one */
    }
    sp_buf_fini(&out);
    free(line);
    return SP_EXIT_OK;
}

/* --- files --- */

static sp_status read_json(const char *path, sp_json **out, sp_err *err) {
    char *text;
    size_t len;
    SP_TRY(sp_file_read(path, FILE_BYTES_MAX, &text, &len, err));
    sp_status st = sp_json_parse(out, (sp_slice){text, len}, 0, err);
    sp_free(text);
    if (st != SP_OK) sp_err_context(err, "'%s'", path);
    return st;
}

/* A list of messages, or an object that holds one. */
static const sp_json_node *list_in(const sp_json *doc, const char *key) {
    const sp_json_node *root = sp_json_root(doc), *inside = sp_json_find(root, key);
    return inside ? inside : root;
}

static sp_status render_files(const sp_chat *c, const request *r, sp_buf *out, sp_err *err) {
    sp_json *messages = NULL, *tools = NULL;
    sp_slice marker;
    sp_status st = read_json(r->messages, &messages, err);
    if (st == SP_OK && r->tools) st = read_json(r->tools, &tools, err);
    if (st == SP_OK) {
        sp_chat_request q = {.messages = list_in(messages, "messages"),
                             .tools = tools ? list_in(tools, "tools")
                                            : sp_json_find(sp_json_root(messages), "tools"),
                             .add_generation_prompt = true,
                             .trust_special_text = true,
                             .now_unix_s = r->now_unix_s};
        st = sp_chat_render(c, &q, out, &marker, err);
    }
    sp_json_free(messages);
    sp_json_free(tools);
    return st;
}

static int answer_files(const sp_chat *c, const request *r) {
    sp_err err = {0};
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_status st = render_files(c, r, &out, &err);
    if (st == SP_OK && out.len) fwrite(out.ptr, 1, out.len, stdout);
    if (st != SP_OK) fprintf(stderr, "superpod: inspect template: %s\n", err.text);
    sp_buf_fini(&out);
    return st == SP_OK ? SP_EXIT_OK : SP_EXIT_CONFIG;
}

int sp_inspect_template(int argc, char **argv) {
    request r = {0};
    int code = parse_args(argc, argv, &r);
    if (code != SP_EXIT_OK) return code;
    if (r.help) {
        fputs(usage, stdout);
        return SP_EXIT_OK;
    }
    sp_err err = {0};
    char *dir = NULL;
    sp_chat *c = NULL;
    sp_status st = r.model ? sp_model_resolve(&dir, r.model, &err) : SP_OK;
    if (st == SP_OK)
        st = r.model ? sp_chat_load(&c, dir, NULL, &err)
                     : sp_chat_load_file(&c, r.template, NULL, &err);
    sp_free(dir);
    if (st != SP_OK) {
        fprintf(stderr, "superpod: %s\n", err.text);
        return SP_EXIT_CONFIG;
    }
    code = r.from_stdin ? answer_stdin(c, &r) : answer_files(c, &r);
    sp_chat_free(c);
    return code;
}
