#include "launcher/logits.h"

#include "launcher/prompt.h"
#include "runtime/base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define EVENTS_AT_ONCE 8

static sp_status write_row(int fd, const sp_event *ev, sp_err *err) {
    size_t bytes = (size_t)ev->n_vocab * sizeof(float);
    off_t at = (off_t)ev->logits_position * (off_t)bytes;
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, (const char *)ev->logits + done, bytes - done, at + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return SP_FAIL(err, SP_E_IO, "writing logits: %s", strerror(errno));
        done += (size_t)n;
    }
    return SP_OK;
}

static sp_status take_events(const sp_front *f, int fd, int *n_rows, bool *done, sp_err *err) {
    sp_event ev[EVENTS_AT_ONCE];
    sp_status st = SP_OK;
    for (int n; (n = sp_engine_events(f->engine, ev, EVENTS_AT_ONCE)) > 0;)
        for (int i = 0; i < n; i++) {
            if (ev[i].logits && st == SP_OK) {
                st = write_row(fd, &ev[i], err);
                ++*n_rows;
            }
            if (ev[i].finish != SP_FINISH_NONE) *done = true;
            if (ev[i].finish == SP_FINISH_ERROR && st == SP_OK)
                st = SP_FAIL(err, ev[i].error, "%s", ev[i].error_text);
            sp_event_release(&ev[i]);
        }
    return st;
}

static sp_status collect(const sp_front *f, const sp_ids *prompt, int fd, sp_err *err) {
    sp_gen_params params = SP_GEN_PARAMS_DEFAULT;
    params.max_tokens = 0;
    params.all_logits = true;
    params.temperature = 0;
    sp_engine_request req = {.prompt = prompt->ptr,
                             .n_prompt = (int32_t)prompt->len,
                             .params = &params,
                             .deadline_ns = SP_NEVER};
    uint64_t id;
    SP_TRY(sp_engine_submit(f->engine, &req, &id, err));
    int n_rows = 0;
    bool done = false;
    struct pollfd p[2] = {{.fd = sp_engine_event_fd(f->engine), .events = POLLIN},
                          {.fd = f->stop_fd, .events = POLLIN}};
    while (!done) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return SP_FAIL(err, SP_E_IO, "poll: %s", strerror(errno));
        if (p[1].revents) return SP_FAIL(err, SP_E_CANCELED, "stopped by a signal");
        SP_TRY(take_events(f, fd, &n_rows, &done, err));
    }
    if (n_rows != (int)prompt->len)
        return SP_FAIL(err, SP_E_INTERNAL, "got %d rows of logits for %zu tokens", n_rows,
                       prompt->len);
    return SP_OK;
}

static sp_status write_file(const sp_front *f, const sp_ids *prompt, sp_err *err) {
    char temporary[4096];
    const char *path = f->config->out;
    int n = snprintf(temporary, sizeof temporary, "%s.%d.tmp", path, (int)getpid());
    if (n < 0 || (size_t)n >= sizeof temporary)
        return SP_FAIL(err, SP_E_TOOLONG, "'%.60s...' is too long a path", path);
    int fd = open(temporary, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0) return SP_FAIL(err, SP_E_IO, "'%s': %s", temporary, strerror(errno));
    sp_status st = collect(f, prompt, fd, err);
    if (close(fd) != 0 && st == SP_OK)
        st = SP_FAIL(err, SP_E_IO, "'%s': %s", temporary, strerror(errno));
    if (st == SP_OK && rename(temporary, path) != 0)
        st = SP_FAIL(err, SP_E_IO, "'%s': %s", path, strerror(errno));
    if (st != SP_OK) unlink(temporary);
    return st;
}

int sp_logits_run(const sp_front *f) {
    sp_err err = {0};
    sp_ids ids = {0};
    sp_status st =
        f->config->tokens
            ? sp_prompt_parse_ids(f->config->tokens, &ids, &err)
            : sp_tokenizer_encode(f->tokenizer, sp_slice_of(f->config->prompt),
                                  SP_ENCODE_SPECIAL | SP_ENCODE_BOS, (sp_slice){0}, &ids, &err);
    if (st == SP_OK) st = write_file(f, &ids, &err);
    if (st != SP_OK) fprintf(stderr, "superpod: %s\n", err.text);
    sp_ids_fini(&ids);
    return st == SP_OK                                      ? SP_EXIT_OK
           : st == SP_E_PEER_LOST || st == SP_E_UNAVAILABLE ? SP_EXIT_PEER
                                                            : SP_EXIT_CONFIG;
}
