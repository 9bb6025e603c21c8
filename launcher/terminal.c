#include "launcher/terminal.h"

#include "launcher/prompt.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/text/detok.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define STDIN_PROMPT_MAX ((size_t)8 << 20)
#define EVENTS_AT_ONCE 16

/* One answer on its way to the terminal. */
typedef struct answer {
    sp_detok *detok;
    sp_buf text; /* all of it: the history of a chat */
    sp_ids ids;
    bool interrupted; /* by Ctrl-C */
    sp_finish finish;
    sp_status error;
    char error_text[120];
} answer;

static void answer_fini(answer *a) {
    sp_detok_destroy(a->detok);
    sp_buf_fini(&a->text);
    sp_ids_fini(&a->ids);
}

static void print_new(const sp_front *f, const answer *a, size_t from) {
    if (f->config->ids || a->text.len == from) return;
    fwrite(a->text.ptr + from, 1, a->text.len - from, stdout);
    fflush(stdout);
}

static sp_status take_event(const sp_front *f, answer *a, const sp_event *ev, sp_err *err) {
    size_t from = a->text.len;
    for (int i = 0; i < ev->n_tokens; i++) {
        if (sp_ids_push(&a->ids, ev->tokens[i]) != SP_OK)
            return SP_FAIL(err, SP_E_NOMEM, "no memory for the answer");
        sp_detok_push(a->detok, ev->tokens[i], true, &a->text);
    }
    if (ev->finish != SP_FINISH_NONE) sp_detok_flush(a->detok, &a->text);
    print_new(f, a, from);
    a->finish = ev->finish;
    a->error = ev->error;
    memcpy(a->error_text, ev->error_text, sizeof a->error_text);
    return SP_OK;
}

/* Drains the signal descriptor; true when a stop was asked for. */
static bool stop_asked(int fd) {
    struct signalfd_siginfo info;
    bool asked = false;
    while (read(fd, &info, sizeof info) == sizeof info) asked = true;
    return asked;
}

static sp_status wait_answer(const sp_front *f, uint64_t id, answer *a, sp_err *err) {
    sp_event ev[EVENTS_AT_ONCE];
    struct pollfd p[2] = {{.fd = sp_engine_event_fd(f->engine), .events = POLLIN},
                          {.fd = f->stop_fd, .events = POLLIN}};
    while (a->finish == SP_FINISH_NONE) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return SP_FAIL(err, SP_E_IO, "poll: %s", strerror(errno));
        if (p[1].revents && stop_asked(f->stop_fd)) {
            sp_engine_cancel(f->engine, id, -1, SP_FINISH_ABORT);
            a->interrupted = true;
            a->finish = SP_FINISH_ABORT;
        }
        int n;
        while ((n = sp_engine_events(f->engine, ev, EVENTS_AT_ONCE)) > 0)
            for (int i = 0; i < n; i++) {
                sp_status st = SP_OK;
                if (ev[i].id == id && a->finish == SP_FINISH_NONE)
                    st = take_event(f, a, &ev[i], err);
                sp_event_release(&ev[i]);
                if (st != SP_OK) return st;
            }
    }
    return SP_OK;
}

static uint64_t fresh_seed(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) seed = (uint64_t)sp_now_ns();
    return seed;
}

/* Flags first, then the model's own generation_config.json, then the neutral value. */
static float pick(double flag, double model, double neutral) {
    return (float)(flag >= 0 ? flag : isnan(model) ? neutral : model);
}

static sp_gen_params params_of(const sp_front *f) {
    const sp_config *c = f->config;
    const sp_model_desc *d = &f->model->desc;
    bool own = strcmp(c->generation_config, "vllm") != 0;
    sp_gen_params p = SP_GEN_PARAMS_DEFAULT;
    p.temperature = pick(c->temperature, own ? d->gen_temperature : NAN, 1);
    p.top_p = pick(c->top_p, own ? d->gen_top_p : NAN, 1);
    p.min_p = pick(c->min_p, own ? d->gen_min_p : NAN, 0);
    p.repetition_penalty = pick(c->repetition_penalty, own ? d->gen_repetition_penalty : NAN, 1);
    p.top_k = c->top_k >= 0 ? (int32_t)c->top_k : own && d->gen_top_k > 0 ? d->gen_top_k : 0;
    p.seed = c->seed >= 0 ? (uint64_t)c->seed : fresh_seed();
    p.max_tokens = c->max_tokens > 0                  ? (int32_t)c->max_tokens
                   : own && d->gen_max_new_tokens > 0 ? d->gen_max_new_tokens
                                                      : f->model->max_model_len;
    p.ignore_eos = c->ignore_eos;
    return p;
}

static sp_status ask(const sp_front *f, const sp_ids *prompt, answer *a, sp_err *err) {
    sp_gen_params params = params_of(f);
    sp_detok_config dc = {.skip_special = !f->config->raw || !f->config->ids};
    sp_buf_init(&a->text, 0);
    SP_TRY(sp_detok_create(&a->detok, f->tokenizer, &dc, err));
    sp_detok_prime(a->detok, prompt->ptr, prompt->len);
    sp_engine_request req = {.prompt = prompt->ptr,
                             .n_prompt = (int32_t)prompt->len,
                             .params = &params,
                             .deadline_ns = SP_NEVER};
    uint64_t id;
    SP_TRY(sp_engine_submit(f->engine, &req, &id, err));
    SP_TRY(wait_answer(f, id, a, err));
    if (a->finish == SP_FINISH_ERROR) return SP_FAIL(err, a->error, "%s", a->error_text);
    return SP_OK;
}

static void print_ids(const sp_ids *ids) {
    putchar('[');
    for (size_t i = 0; i < ids->len; i++) printf("%s%d", i ? ", " : "", ids->ptr[i]);
    puts("]");
}

static int failed(const sp_err *err) {
    fprintf(stderr, "superpod: %s\n", err->text);
    bool lost = err->code == SP_E_PEER_LOST || err->code == SP_E_UNAVAILABLE;
    return lost ? SP_EXIT_PEER : SP_EXIT_CONFIG;
}

static int run_once(const sp_front *f, const char *prompt) {
    sp_err err = {0};
    sp_ids ids = {0};
    answer a = {0};
    sp_status st = sp_prompt_ids(f, prompt, &ids, &err);
    if (st == SP_OK) st = ask(f, &ids, &a, &err);
    if (st == SP_OK && f->config->ids) print_ids(&a.ids);
    if (st == SP_OK && !f->config->ids && !f->config->raw) putchar('\n');
    fflush(stdout);
    sp_ids_fini(&ids);
    answer_fini(&a);
    return st == SP_OK ? SP_EXIT_OK : failed(&err);
}

/* A line of the user, without its newline; false at the end of input or when asked to stop. */
static bool read_line(const sp_front *f, char **line, size_t *cap) {
    fputs("> ", stderr);
    struct pollfd p[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                          {.fd = f->stop_fd, .events = POLLIN}};
    do {
        if (poll(p, 2, -1) < 0 && errno != EINTR) return false;
        if (p[1].revents && stop_asked(f->stop_fd)) return false;
    } while (!p[0].revents);
    ssize_t n = getline(line, cap, stdin);
    if (n <= 0) return false;
    while (n > 0 && ((*line)[n - 1] == '\n' || (*line)[n - 1] == '\r')) (*line)[--n] = 0;
    return true;
}

static int chat(const sp_front *f) {
    fprintf(stderr, "chatting with %s; Ctrl-C stops an answer, Ctrl-D ends\n", f->config->model);
    sp_history h;
    sp_history_init(&h, f->config->system);
    char *line = NULL;
    size_t cap = 0;
    int code = SP_EXIT_OK;
    while (code == SP_EXIT_OK && read_line(f, &line, &cap)) {
        if (!*line) continue;
        sp_err err = {0};
        sp_ids ids = {0};
        answer a = {0};
        sp_history_add(&h, "user", sp_slice_of(line));
        sp_status st = sp_history_ids(f, &h, &ids, &err);
        if (st == SP_OK) st = ask(f, &ids, &a, &err);
        putchar('\n');
        sp_history_add(&h, "assistant", sp_buf_slice(&a.text));
        if (st != SP_OK) code = failed(&err);
        sp_ids_fini(&ids);
        answer_fini(&a);
    }
    fputc('\n', stderr);
    free(line);
    sp_history_fini(&h);
    return code;
}

static char *read_stdin(void) {
    sp_buf b;
    sp_buf_init(&b, STDIN_PROMPT_MAX);
    char chunk[4096];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, stdin)) > 0) sp_buf_put(&b, chunk, n);
    if (b.failed || !b.ptr) {
        sp_buf_fini(&b);
        return NULL;
    }
    return b.ptr; /* moved; lives as long as the process */
}

int sp_terminal_run(const sp_front *f) {
    const sp_config *c = f->config;
    if (c->prompt || c->tokens) return run_once(f, c->prompt);
    if (!isatty(STDIN_FILENO)) {
        char *text = read_stdin();
        if (!text) {
            fprintf(stderr,
                    "superpod: no prompt: give one as a word, by --prompt or on standard "
                    "input (at most %zu bytes)\n",
                    STDIN_PROMPT_MAX);
            return SP_EXIT_USAGE;
        }
        return run_once(f, text);
    }
    if (c->raw) {
        fprintf(stderr, "superpod: --raw wants a prompt\n");
        return SP_EXIT_USAGE;
    }
    return chat(f);
}
