/* Covers launcher/inspect_tokens.c: what it writes where, and its exit codes. */
#include "launcher/inspect_tokens.h"

#include "runtime/base/status.h"
#include "tests/runtime/text/tokenizer_help.h"

#include <fcntl.h>

static const char model[] =
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<s>\",\"special\":true}],\"post_processor\":{"
    "\"type\":\"BertProcessing\",\"cls\":[\"<s>\",9],\"sep\":[\"<s>\",9]},\"decoder\":{\"type\":"
    "\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"<\":3,\"s\":"
    "4,"
    "\">\":5,\"\\u00c3\":6,\"\\u00a9\":7,\"\\u00c3\\u00a9\":8},\"merges\":[\"a b\"]}}";

/* Runs the command with `input` as standard input; what it writes comes back. */
typedef struct result {
    int code;
    char out[1024], err[1024];
} result;

static int swap_file(int fd, const char *path, int flags) {
    int saved = dup(fd), file = open(path, flags, 0600);
    CU_ASSERT_FATAL(saved >= 0 && file >= 0);
    dup2(file, fd);
    close(file);
    return saved;
}

static void swap_back(int fd, int saved) {
    dup2(saved, fd);
    close(saved);
}

static void slurp(const char *path, char *out, size_t size) {
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(out, 1, size - 1, f) : 0;
    out[n] = 0;
    if (f) fclose(f);
    unlink(path);
}

static result run(const char *input, int argc, const char *const *args) {
    help_dir d = help_dir_make();
    char paths[3][100], *argv[16];
    static const char *const names[] = {"in", "out", "err"};
    for (int i = 0; i < 3; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", d.path, names[i]);
    FILE *f = fopen(paths[0], "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    fputs(input, f);
    fclose(f);
    for (int i = 0; i < argc; i++) argv[i] = (char *)(uintptr_t)args[i];
    fflush(stdout);
    int in = swap_file(0, paths[0], O_RDONLY);
    int out = swap_file(1, paths[1], O_WRONLY | O_CREAT | O_TRUNC);
    int err = swap_file(2, paths[2], O_WRONLY | O_CREAT | O_TRUNC);
    clearerr(stdin);
    rewind(stdin);
    result r = {.code = sp_inspect_tokens(argc, argv)};
    fflush(stdout);
    swap_back(0, in);
    swap_back(1, out);
    swap_back(2, err);
    slurp(paths[1], r.out, sizeof r.out);
    slurp(paths[2], r.err, sizeof r.err);
    unlink(paths[0]);
    help_dir_remove(&d);
    return r;
}

#define RUN(input, ...) \
    run((input), (int)SP_LEN(((const char *const[]){"tokens", __VA_ARGS__})), \
        (const char *const[]){"tokens", __VA_ARGS__})

static help_dir make_model(void) {
    help_dir d = help_dir_make();
    help_dir_write(&d, "tokenizer.json", sp_slice_of(model));
    return d;
}

static void a_text_gives_a_list_of_ids(void) {
    help_dir d = make_model();
    result r = RUN("", "--model", d.path, "--text", "ab<s>a");
    CU_ASSERT_EQUAL(r.code, SP_EXIT_OK);
    CU_ASSERT_STRING_EQUAL(r.out, "[2, 3, 4, 5, 0]\n");
    CU_ASSERT_STRING_EQUAL(r.err, "");
    r = RUN("", "--model", d.path, "--text=ab<s>a", "--special");
    CU_ASSERT_STRING_EQUAL(r.out, "[2, 9, 0]\n");
    r = RUN("", "--model", d.path, "--bos", "--text", "ab");
    CU_ASSERT_STRING_EQUAL(r.out, "[9, 2, 9]\n");
    r = RUN("", "--model", d.path, "--text", "");
    CU_ASSERT_STRING_EQUAL(r.out, "[]\n");
    help_dir_remove(&d);
}

static void ids_give_their_text(void) {
    help_dir d = make_model();
    result r = RUN("", "--model", d.path, "--ids", "2, 9,8,77");
    CU_ASSERT_EQUAL(r.code, SP_EXIT_OK);
    CU_ASSERT_STRING_EQUAL(r.out, "ab<s>\xc3\xa9\n");
    r = RUN("", "--model", d.path, "--ids", "");
    CU_ASSERT_STRING_EQUAL(r.out, "\n");
    static const char *const bad[] = {"1,x", "1,,2", "1,", "-1", "99999999999", "1 2"};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        r = RUN("", "--model", d.path, "--ids", bad[i]);
        CU_ASSERT_EQUAL(r.code, SP_EXIT_USAGE);
        CU_ASSERT_STRING_EQUAL(r.out, "");
        CU_ASSERT(strlen(r.err) > 10);
    }
    help_dir_remove(&d);
}

static void standard_input_is_answered_line_by_line(void) {
    help_dir d = make_model();
    result r = RUN("\"ab\\n\"\n[2,6,7]\n\n\"\"\r\n[]\n{}\nnonsense\n[1.5]\n\"\\u00e9\"", "--model",
                   d.path, "--stdin");
    CU_ASSERT_EQUAL(r.code, SP_EXIT_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.out, "[2]\n\"ab\xc3\xa9\"\n[]\n\"\"\n{\"error\":"));
    int lines = 0;
    for (const char *p = r.out; (p = strchr(p, '\n')); p++) lines++;
    CU_ASSERT_EQUAL(lines, 8);
    help_dir_remove(&d);
}

static void a_wrong_command_line_is_2_and_a_bad_model_10(void) {
    help_dir d = make_model();
    CU_ASSERT_EQUAL(RUN("", "--text", "a").code, SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN("", "--model", d.path).code, SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN("", "--model", d.path, "--text", "a", "--stdin").code, SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN("", "--model", d.path, "--text").code, SP_EXIT_USAGE);
    CU_ASSERT_EQUAL(RUN("", "--model", d.path, "--nothing").code, SP_EXIT_USAGE);
    help_dir_write(&d, "tokenizer.json", SP_SLICE("{\"model\":{\"type\":\"WordPiece\"}}"));
    result r = RUN("", "--model", d.path, "--text", "a");
    CU_ASSERT_EQUAL(r.code, SP_EXIT_CONFIG);
    CU_ASSERT_PTR_NOT_NULL(strstr(r.err, "model type 'WordPiece' is not supported"));
    CU_ASSERT_STRING_EQUAL(r.out, "");
    r = RUN("", "--model", "/nonexistent/model", "--text", "a");
    CU_ASSERT_EQUAL(r.code, SP_EXIT_CONFIG);
    r = RUN("", "--help");
    CU_ASSERT(r.code == SP_EXIT_OK && strstr(r.out, "--special"));
    help_dir_remove(&d);
}

SP_TEST_MAIN("launcher/inspect_tokens", SP_TEST(a_text_gives_a_list_of_ids),
             SP_TEST(ids_give_their_text), SP_TEST(standard_input_is_answered_line_by_line),
             SP_TEST(a_wrong_command_line_is_2_and_a_bad_model_10))
