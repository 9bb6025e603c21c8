#include "comm/backoff.h"
#include "launcher/agent.h"
#include "launcher/build_id.h"
#include "launcher/children.h"
#include "launcher/measure.h"
#include "launcher/meeting.h"
#include "launcher/words.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define SP_LOG "agent"
#define KNOCK_NS (10 * SP_NS_PER_S)
#define SAY_NS (10 * SP_NS_PER_S)
#define SEND_NS (2 * SP_NS_PER_S)
/* timeout(1) and launchers signal a process and then its group: one request that comes twice. */
#define SAME_REQUEST_NS (500 * SP_NS_PER_MS)
#define GRACE_NS (5 * SP_NS_PER_S) /* for the head's last words once a rank is gone */

typedef struct follower {
    const sp_config *config;
    const sp_place *place;
    sp_contact contact;
    sp_link *link;
    sp_measure *measure; /* NULL: nobody measures the way to us (any more) */
    int signal_fd, launcher_fd;
    sp_welcome welcome;
    sp_child ranks[SP_BOOT_RINGS_MAX];
    int64_t deadline_ns, kill_at_ns;
    int stop_signals;
    int64_t asked_ns; /* to stop, when last */
    bool over;        /* the head said how the pod ended */
    bool killed;      /* by us: ends by a signal say nothing any more */
    int code;
} follower;

/* ---- to the head ---- */

static sp_status open_signals(follower *f, sp_err *err) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    f->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (f->signal_fd < 0) return SP_FAIL(err, SP_E_IO, "signalfd: %s", strerror(errno));
    return SP_OK;
}

static sp_status find_contact(follower *f, sp_err *err) {
    if (f->place->meeting != SP_MEET_GIVEN)
        return sp_meeting_get(f->place, &f->contact, f->deadline_ns, err);
    bool found;
    snprintf(f->contact.addresses, sizeof f->contact.addresses, "%s", f->place->head);
    SP_TRY(sp_token_load(&f->contact.token, &found, f->config->token_file, err));
    if (found) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID,
                   "no pod token: give --token-file or SUPERPOD_POD_TOKEN, as to the head");
}

/* True: asked to stop, or nobody is there who could ask. */
static bool sleep_until(const follower *f, int64_t until_ns) {
    int64_t left = until_ns - sp_now_ns();
    struct pollfd p[2] = {{.fd = f->signal_fd, .events = POLLIN},
                          {.fd = f->launcher_fd, .events = POLLIN}};
    return poll(p, SP_LEN(p), left > 0 ? (int)(left / SP_NS_PER_MS) + 1 : 0) > 0;
}

static sp_status knock(follower *f, sp_err *err) {
    sp_agent_words w;
    sp_buf text;
    sp_agent_words_here(&w);
    w.rank = f->place->rank;
    w.slots = f->config->slots;
    /* Where others measure the way here; a head that finds nothing there says so. */
    if (sp_measure_open(&f->measure, &f->contact.token, w.measure, sizeof w.measure, err) != SP_OK)
        sp_warn("nobody can measure the way to this node: %s", err->text);
    sp_buf_init(&text, 0);
    sp_agent_words_write(&w, &text);
    sp_backoff wait;
    sp_backoff_init(&wait, (uint64_t)getpid());
    int64_t said = 0;
    sp_status st;
    for (;;) {
        int64_t now = sp_now_ns(), until = now + KNOCK_NS;
        st = sp_door_knock(&f->link, f->contact.addresses, &f->contact.token, sp_build_id(),
                           SP_ROLE_AGENT, text.ptr, until < f->deadline_ns ? until : f->deadline_ns,
                           err);
        if (st != SP_E_UNAVAILABLE && st != SP_E_TIMEOUT) break;
        now = sp_now_ns();
        if (now >= f->deadline_ns) {
            st = SP_FAIL(err, SP_E_TIMEOUT, "no head at %.100s within %lld s", f->contact.addresses,
                         (long long)f->config->join_timeout_s);
            break;
        }
        if (now - said > SAY_NS) {
            sp_info("waiting for the head at %s: %s", f->contact.addresses, err->text);
            said = now;
        }
        if (sleep_until(f, now + sp_backoff_next(&wait))) {
            st = SP_FAIL(err, SP_E_CANCELED, "stopped by a signal");
            break;
        }
    }
    sp_buf_fini(&text);
    return st;
}

/* ---- its words ---- */

static void take_bye(follower *f, const sp_frame *frame) {
    sp_pod_end end;
    sp_err err = {0};
    f->over = true;
    f->code = SP_EXIT_PEER;
    if (sp_pod_end_read(&end, (sp_slice){frame->payload, frame->length}, &err) != SP_OK) return;
    f->code = (int)end.code;
    if (end.code)
        fprintf(stderr, "superpod: the head %s: %s\n",
                f->welcome.agent ? "ended the pod" : "refuses us", end.why);
}

static sp_status start_rank(follower *f, int i, sp_err *err) {
    sp_child *c = &f->ranks[i];
    sp_boot b = {.ring_fd = -1,
                 .bell_fd = -1,
                 .listen_fd = -1,
                 .joined_fd = -1,
                 .agent = f->welcome.agent,
                 .local = i};
    snprintf(b.addresses, sizeof b.addresses, "%s", f->contact.addresses);
    b.token = f->contact.token;
    snprintf(c->name, sizeof c->name, "rank %d.%d", (int)f->welcome.agent, i);
    sp_status st = sp_child_start(c, "internal-rank", &b, NULL, 0, NULL, err);
    sp_token_wipe(&b.token);
    return st;
}

static sp_status take_welcome(follower *f, const sp_frame *frame, sp_err *err) {
    if (f->welcome.agent) return SP_FAIL(err, SP_E_PROTOCOL, "the head welcomes us a second time");
    SP_TRY(sp_welcome_read(&f->welcome, (sp_slice){frame->payload, frame->length}, err));
    for (int i = 0; i < f->welcome.ranks; i++) SP_TRY(start_rank(f, i, err));
    return SP_OK;
}

static sp_status take_words(follower *f, sp_err *err) {
    while (!f->over) {
        sp_frame frame;
        sp_status st = sp_link_recv(f->link, &frame, 0, err);
        if (st == SP_AGAIN) return SP_OK;
        if (st != SP_OK) return SP_FAIL(err, SP_E_PEER_LOST, "the head is lost");
        if (frame.type == SP_FRAME_BYE)
            take_bye(f, &frame);
        else if (frame.type == SP_FRAME_WELCOME)
            SP_TRY(take_welcome(f, &frame, err));
        else if (frame.type == SP_FRAME_MEASURE)
            SP_TRY(sp_measure_take(&f->measure, f->link, &f->contact.token,
                                   (sp_slice){frame.payload, frame.length}, err));
        else
            return SP_FAIL(err, SP_E_PROTOCOL, "frame of type %d to an agent", (int)frame.type);
    }
    return SP_OK;
}

/* ---- its children ---- */

static void kill_ranks(follower *f) {
    f->killed = true;
    for (int i = 0; i < f->welcome.ranks; i++) sp_child_kill(&f->ranks[i], SIGKILL);
}

static bool any_runs(const follower *f) {
    bool runs = false;
    for (int i = 0; i < f->welcome.ranks; i++) runs = runs || f->ranks[i].pid;
    return runs;
}

static void tell_end(follower *f, int i) {
    sp_rank_end end = {.local = i, .code = f->ranks[i].code};
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_rank_end_write(&end, &text);
    sp_piece piece = {text.ptr, (uint32_t)text.len};
    sp_err err = {0};
    if (sp_link_send(f->link, SP_FRAME_STATUS, &piece, 1, sp_now_ns() + SEND_NS, &err) != SP_OK)
        sp_debug("the head was not told: %s", err.text);
    sp_buf_fini(&text);
}

static void reap(follower *f) {
    for (int i = 0; i < f->welcome.ranks; i++) {
        if (!sp_child_reap(&f->ranks[i])) continue;
        if (f->ranks[i].code < 0 && !f->killed)
            sp_error("%s was killed by signal %d", f->ranks[i].name, -f->ranks[i].code);
        if (!f->over) tell_end(f, i);
        if (f->kill_at_ns == SP_NEVER) f->kill_at_ns = sp_now_ns() + GRACE_NS;
    }
}

static void on_stop(follower *f, int sig) {
    int64_t now = sp_now_ns();
    if (f->stop_signals > 0 && now - f->asked_ns < SAME_REQUEST_NS) return;
    f->asked_ns = now;
    if (++f->stop_signals == 1) {
        /* The launcher has told the head too; what runs here belongs to its requests. */
        sp_info("asked to stop: waiting for the head to drain; once more to leave at once");
        return;
    }
    kill_ranks(f);
    f->over = true;
    f->code = 128 + sig;
}

static void take_signals(follower *f) {
    struct signalfd_siginfo info;
    while (read(f->signal_fd, &info, sizeof info) == sizeof info)
        if (info.ssi_signo == SIGCHLD)
            reap(f);
        else
            on_stop(f, (int)info.ssi_signo);
}

static sp_status run(follower *f, sp_err *err) {
    sp_status st = SP_OK;
    while (st == SP_OK && (!f->over || any_runs(f))) {
        struct pollfd p[4] = {{.fd = f->signal_fd, .events = POLLIN},
                              {.fd = f->over ? -1 : sp_link_fd(f->link), .events = POLLIN},
                              {.fd = sp_measure_fd(f->measure), .events = POLLIN},
                              {.fd = f->launcher_fd, .events = POLLIN}};
        int64_t left = f->kill_at_ns - sp_now_ns();
        int ms = f->kill_at_ns == SP_NEVER ? -1 : left <= 0 ? 0 : (int)(left / SP_NS_PER_MS) + 1;
        poll(p, SP_LEN(p), ms);
        take_signals(f);
        sp_measure_look(f->measure);
        st = take_words(f, err);
        if (p[3].revents && st == SP_OK)
            st = SP_FAIL(err, SP_E_PEER_LOST, "the launcher is gone: ending at once");
        if (f->over && f->kill_at_ns == SP_NEVER) f->kill_at_ns = sp_now_ns() + GRACE_NS;
        if (f->kill_at_ns == SP_NEVER || sp_now_ns() < f->kill_at_ns) continue;
        kill_ranks(f);
        f->kill_at_ns = f->over ? SP_NEVER : sp_now_ns() + GRACE_NS;
    }
    f->over = true;
    kill_ranks(f);
    while (any_runs(f)) {
        struct pollfd p = {.fd = f->signal_fd, .events = POLLIN};
        poll(&p, 1, -1);
        take_signals(f);
    }
    return st;
}

static bool is_refusal(sp_status st) {
    return st == SP_E_DENIED || st == SP_E_INVALID || st == SP_E_UNSUPPORTED ||
           st == SP_E_NOTFOUND || st == SP_E_IO;
}

int sp_agent_follow(const sp_config *config, const sp_place *place) {
    follower *f = sp_alloc(sizeof *f);
    *f = (follower){.config = config,
                    .place = place,
                    .signal_fd = -1,
                    .launcher_fd = sp_launcher_watch(place->source),
                    .deadline_ns = sp_now_ns() + config->join_timeout_s * SP_NS_PER_S,
                    .kill_at_ns = SP_NEVER};
    for (int i = 0; i < SP_BOOT_RINGS_MAX; i++) f->ranks[i].ring_fd = -1;
    sp_err err = {0};
    sp_status st = find_contact(f, &err);
    if (st == SP_OK) st = open_signals(f, &err);
    if (st == SP_OK) st = knock(f, &err);
    if (st == SP_OK) st = run(f, &err);
    if (st != SP_OK) fprintf(stderr, "superpod: %s\n", err.text);
    int code = st == SP_OK           ? f->code
               : st == SP_E_CANCELED ? 128 + SIGTERM
               : is_refusal(st)      ? SP_EXIT_CONFIG
                                     : SP_EXIT_PEER;
    sp_link_close(f->link);
    sp_measure_close(f->measure);
    if (f->signal_fd >= 0) close(f->signal_fd);
    if (f->launcher_fd >= 0) close(f->launcher_fd);
    sp_token_wipe(&f->contact.token);
    sp_free(f);
    return code;
}
