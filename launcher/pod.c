#include "launcher/pod.h"

#include "launcher/build_id.h"
#include "launcher/pod_impl.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/kv_source.h"
#include "runtime/engine/wire.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define SP_LOG "pod"
#define FORM_TIMEOUT_NS (60 * SP_NS_PER_S)
#define SEND_NS (10 * SP_NS_PER_S)
#define BYE_NS (SP_NS_PER_S / 2)
#define LOOK_NS (50 * SP_NS_PER_MS) /* a signal is looked for so often */

/* ---- FORM ---- */

static void put_hex(char *out, const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static sp_status make_form(const sp_pod *p, sp_form *f, sp_err *err) {
    const sp_config *c = p->config;
    const sp_plan *plan = &p->model->pool[0].plan; /* what follows is equal in all */
    uint8_t key[32];
    if (getrandom(key, sizeof key, 0) != sizeof key)
        return SP_FAIL(err, SP_E_IO, "no random bytes: %s", strerror(errno));
    *f = (sp_form){.ranks = p->roster.n_ranks,
                   .threads = c->threads,
                   .block_tokens = c->block_size,
                   .max_model_len = plan->max_model_len,
                   .max_num_seqs = plan->max_num_seqs,
                   .max_batched_tokens = plan->max_num_batched_tokens,
                   .max_step_rows = plan->max_rows,
                   .timeout_ms = 60000,
                   .pin = c->pin,
                   .log_json = strcmp(c->log_format, "json") == 0,
                   .null_model = c->null_model,
                   .fast = p->model->device.fast};
    snprintf(f->model_dir, sizeof f->model_dir, "%s", p->model->dir);
    snprintf(f->backend, sizeof f->backend, "%s", p->model->device.backend);
    snprintf(f->kv_dtype, sizeof f->kv_dtype, "%s", c->kv_cache_dtype);
    snprintf(f->log_level, sizeof f->log_level, "%s", c->log_level);
    snprintf(f->collectives, sizeof f->collectives, "%s", c->collectives);
    for (int32_t i = 0; i < p->model->pools.n; i++) {
        const sp_pool_spec *s = &p->model->pools.at[i];
        sp_form_put_pool(f, s->replicas, s->tp, s->pp, p->model->pool[i].pp_layers);
    }
    sp_roster_nodes(&p->roster, f->nodes, sizeof f->nodes);
    put_hex(f->group_key, key, sizeof key);
    put_hex(f->fingerprint, p->model->fingerprint, sizeof p->model->fingerprint);
    if (p->share->on) put_hex(f->kv_key, p->share->region_key, sizeof p->share->region_key);
    explicit_bzero(key, sizeof key);
    return SP_OK;
}

static sp_status send_text(sp_pod *p, int to, sp_frame_type type, const sp_buf *text, sp_err *err) {
    if (text->failed) return SP_FAIL(err, SP_E_NOMEM, "no memory for words to the ranks");
    sp_piece piece = {text->ptr, (uint32_t)text->len};
    return sp_fan_send(p->fan, to, type, &piece, 1, sp_now_ns() + SEND_NS, err);
}

static sp_status send_forms(sp_pod *p, sp_err *err) {
    sp_form f;
    SP_TRY(make_form(p, &f, err));
    sp_form_hash(&f, p->hash);
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_status st = SP_OK;
    for (int32_t r = 0; r < p->roster.n_ranks && st == SP_OK; r++) {
        sp_pools_place at = sp_pools_place_of(&p->model->pools, r);
        const sp_plan *plan = &p->model->pool[at.pool].plan;
        f.group = at.group;
        f.first = at.first;
        f.tp = plan->tp;
        f.pp = plan->pp;
        f.n_blocks = plan->n_blocks;
        f.rank = r - at.first;
        f.local_rank = p->roster.ranks[r].local_rank;
        f.local_ranks = p->roster.ranks[r].local_ranks;
        sp_buf_clear(&text);
        sp_form_write(&f, &text);
        st = send_text(p, r, SP_FRAME_FORM, &text, err);
    }
    if (text.ptr) explicit_bzero(text.ptr, text.len); /* keys */
    explicit_bzero(&f, sizeof f);
    sp_buf_fini(&text);
    return st;
}

/* ---- ADDRESS and PEERS ---- */

static sp_status fault_words(int rank, const sp_frame *f, sp_err *err) {
    sp_fault reason;
    char text[SP_FAULT_TEXT_MAX + 1];
    SP_TRY(sp_wire_fault_decode(f->payload, f->length, &reason, text, err));
    return SP_FAIL(err, reason == SP_FAULT_MODEL ? SP_E_INVALID : SP_E_PEER_LOST, "rank %d: %s",
                   rank, text);
}

/* The next ADDRESS, while nobody asks us to stop. */
static sp_status next_address(sp_pod *p, int64_t deadline_ns, sp_frame *f, int *from, sp_err *err) {
    for (;;) {
        sp_status st = sp_fan_recv(p->fan, f, from, sp_now_ns() + LOOK_NS, err);
        if (st == SP_OK && f->type == SP_FRAME_ADDRESS) return SP_OK;
        if (st == SP_OK && f->type == SP_FRAME_FAULT) return fault_words(*from, f, err);
        if (st == SP_OK)
            return SP_FAIL(err, SP_E_PROTOCOL, "rank %d: frame of type %d instead of its address",
                           *from, (int)f->type);
        if (st != SP_AGAIN)
            return SP_FAIL(err, SP_E_PEER_LOST, "rank %d left during the join", *from);
        struct pollfd stop = {.fd = p->stop_fd, .events = POLLIN};
        if (poll(&stop, 1, 0) > 0) return SP_FAIL(err, SP_E_CANCELED, "stopped by a signal");
        if (sp_now_ns() >= deadline_ns)
            return SP_FAIL(err, SP_E_TIMEOUT, "ranks did not say their addresses within %d s",
                           (int)(FORM_TIMEOUT_NS / SP_NS_PER_S));
    }
}

static sp_status collect(sp_pod *p, sp_buf *texts, sp_slice *slices, sp_err *err) {
    int64_t deadline = sp_now_ns() + FORM_TIMEOUT_NS;
    for (int32_t left = p->roster.n_ranks; left > 0; left--) {
        sp_frame f;
        int from;
        SP_TRY(next_address(p, deadline, &f, &from, err));
        if (texts[from].len)
            return SP_FAIL(err, SP_E_PROTOCOL, "rank %d said its address twice", from);
        sp_address a; /* proven before others get it */
        sp_slice text = {f.payload, f.length};
        SP_TRY(sp_address_read(&a, text, err));
        p->kv[from] = sp_strdup(a.kv);
        sp_buf_put_slice(&texts[from], text);
        slices[from] = sp_buf_slice(&texts[from]);
        sp_gauge_set(&p->roster.ranks[from].state, SP_RANK_LOADING);
    }
    return SP_OK;
}

static sp_status introduce(sp_pod *p, sp_err *err) {
    size_t n = (size_t)p->roster.n_ranks;
    sp_buf *texts = sp_alloc(n * sizeof *texts), all;
    sp_slice *slices = sp_alloc(n * sizeof *slices);
    sp_buf_init(&all, 0);
    for (size_t i = 0; i < n; i++) sp_buf_init(&texts[i], SP_FRAME_MAX);
    sp_status st = collect(p, texts, slices, err);
    if (st == SP_OK) {
        sp_peers_write(slices, (int)n, &all);
        st = send_text(p, SP_FAN_ALL, SP_FRAME_PEERS, &all, err);
    }
    sp_buf_fini(&all);
    for (size_t i = 0; i < n; i++) sp_buf_fini(&texts[i]);
    sp_free(slices);
    sp_free(texts);
    return st;
}

/* ---- joining ---- */

static sp_status open_rings(sp_pod *p, sp_link **links, sp_err *err) {
    for (int i = 0; i < p->boot->n_rings; i++) {
        SP_TRY(sp_link_open_ring(&links[i], p->boot->rings[i], 0, err));
        close(p->boot->rings[i]);
        p->roster.ranks[i].pid = p->boot->rank_pids[i];
    }
    return SP_OK;
}

static sp_status join(sp_pod *p, sp_err *err) {
    SP_TRY(sp_fan_open(&p->fan, p->boot->bell_fd, err));
    SP_TRY(open_rings(p, p->join.ranks, err));
    int32_t order[1];
    if (p->roster.n_agents == 1) {
        SP_TRY(sp_roster_assign(&p->roster, order, err));
    } else {
        SP_TRY(
            sp_door_open(&p->join.door, p->boot->listen_fd, &p->boot->token, sp_build_id(), err));
        SP_TRY(sp_join_all(&p->join, err));
    }
    SP_TRY(sp_preflight_run(&p->preflight, &p->join, &p->boot->token,
                            sp_preflight_mode_of(p->config->preflight), err));
    for (int32_t r = 0; r < p->roster.n_ranks; r++) {
        sp_link *l = p->join.ranks[r];
        p->join.ranks[r] = NULL;
        SP_TRY(sp_fan_add(p->fan, l, err));
    }
    return SP_OK;
}

/* From now on ranks load and compute; until now each had only to answer. */
static void be_patient(const sp_pod *p) {
    for (int32_t r = 0; r < p->roster.n_ranks; r++)
        sp_link_set_patience(sp_fan_link(p->fan, r), SP_RANK_PATIENCE_MS);
}

static sp_status watch(sp_pod *p, int fd, sp_err *err) {
    struct epoll_event ev = {.events = EPOLLIN};
    if (fd < 0 || epoll_ctl(p->watch_fd, EPOLL_CTL_ADD, fd, &ev) == 0) return SP_OK;
    return SP_FAIL(err, SP_E_IO, "epoll_ctl: %s", strerror(errno));
}

static sp_status open_watch(sp_pod *p, sp_err *err) {
    if (p->roster.n_agents == 1) return SP_OK;
    p->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    if (p->watch_fd < 0) return SP_FAIL(err, SP_E_IO, "epoll_create1: %s", strerror(errno));
    SP_TRY(watch(p, sp_door_fd(p->join.door), err));
    for (int32_t i = 1; i < p->roster.n_agents; i++)
        SP_TRY(watch(p, sp_link_fd(p->join.agents[i]), err));
    return SP_OK;
}

sp_status sp_pod_open(sp_pod **out, const sp_config *config, const sp_model *model,
                      const sp_kv_share *share, const sp_boot *boot, int stop_fd, sp_err *err) {
    sp_pod *p = sp_alloc(sizeof *p);
    p->config = config;
    p->model = model;
    p->share = share;
    p->boot = boot;
    p->stop_fd = stop_fd;
    p->watch_fd = -1;
    p->started_s = sp_unix_s();
    p->roster.n_ranks = sp_pools_ranks(&model->pools);
    p->kv = sp_alloc((size_t)p->roster.n_ranks * sizeof *p->kv);
    sp_pools_text(&model->pools, p->roster.shape);
    p->roster.n_agents = boot->n_agents;
    sp_agent_words_here(&p->roster.agents[0].words);
    p->roster.agents[0].words.slots = config->slots;
    p->roster.agents[0].words.rank = boot->n_agents > 1 ? 0 : -1;
    p->join = (sp_join){.config = config,
                        .stop_fd = stop_fd,
                        .deadline_ns = sp_now_ns() + config->join_timeout_s * SP_NS_PER_S,
                        .roster = &p->roster};
    sp_status st = join(p, err);
    if (st == SP_OK) st = open_watch(p, err);
    if (st == SP_OK) st = send_forms(p, err);
    if (st == SP_OK) st = introduce(p, err);
    if (st == SP_OK) be_patient(p);
    if (st != SP_OK) {
        int code = st == SP_E_CANCELED  ? SP_EXIT_OK /* drained of nothing */
                   : st == SP_E_INVALID ? SP_EXIT_CONFIG
                                        : SP_EXIT_PEER;
        sp_pod_close(p, code, err ? err->text : "");
        return st;
    }
    if (p->roster.n_ranks > 1)
        sp_info("pod of %d ranks (%s) on %d nodes, configuration %.12s", (int)p->roster.n_ranks,
                p->roster.shape, (int)p->roster.n_nodes, p->hash);
    *out = p;
    return SP_OK;
}

/* ---- the end ---- */

static void say_bye(sp_pod *p, int code, const char *why) {
    sp_pod_end end = {.code = code};
    snprintf(end.why, sizeof end.why, "%s", why);
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_pod_end_write(&end, &text);
    sp_piece piece = {text.ptr, (uint32_t)text.len};
    sp_err err = {0};
    for (int32_t i = 1; i < p->roster.n_agents; i++)
        if (p->join.agents[i] && sp_link_send(p->join.agents[i], SP_FRAME_BYE, &piece, 1,
                                              sp_now_ns() + BYE_NS, &err) != SP_OK)
            sp_debug("no goodbye to agent %d: %s", (int)i, err.text);
    sp_buf_fini(&text);
}

void sp_pod_close(sp_pod *p, int code, const char *why) {
    if (!p) return;
    say_bye(p, code, why);
    for (int32_t i = 1; i < p->roster.n_agents; i++) sp_link_close(p->join.agents[i]);
    for (int32_t i = 0; i < p->roster.n_ranks; i++) {
        sp_link_close(p->join.ranks[i]);
        sp_free(p->kv[i]);
    }
    sp_free(p->kv);
    sp_door_close(p->join.door);
    sp_fan_close(p->fan);
    sp_preflight_fini(&p->preflight);
    if (p->watch_fd >= 0) close(p->watch_fd);
    sp_free(p);
}

/* ---- while it runs ---- */

int sp_pod_watch_fd(const sp_pod *p) {
    return p->watch_fd;
}

static void lose_agent(sp_pod *p, int32_t i, const char *why) {
    sp_pod_agent *a = &p->roster.agents[i];
    if (sp_gauge_get(&a->gone)) return;
    sp_gauge_set(&a->gone, 1);
    sp_error("agent %d on '%s' is lost: %s", (int)i, a->words.host, why);
    for (int32_t r = a->first; r < a->first + a->n; r++) {
        sp_gauge_set(&p->roster.ranks[r].state, SP_RANK_LOST);
        /* Its ranks' links are patient: the engine is to see at once that they lead nowhere. */
        int fd = sp_link_fd(sp_fan_link(p->fan, r));
        if (fd >= 0) shutdown(fd, SHUT_RDWR);
    }
    epoll_ctl(p->watch_fd, EPOLL_CTL_DEL, sp_link_fd(p->join.agents[i]), NULL);
}

static void take_end(sp_pod *p, int32_t i, const sp_frame *f) {
    sp_rank_end end;
    sp_err err = {0};
    sp_pod_agent *a = &p->roster.agents[i];
    if (f->type == SP_FRAME_MEASURE) return; /* an answer that came after its time */
    if (f->type != SP_FRAME_STATUS ||
        sp_rank_end_read(&end, (sp_slice){f->payload, f->length}, &err) != SP_OK ||
        end.local >= a->n) {
        lose_agent(p, i, "it says what makes no sense");
        return;
    }
    int32_t rank = a->first + (int32_t)end.local;
    sp_gauge_set(&p->roster.ranks[rank].state, SP_RANK_LOST);
    if (end.code)
        sp_error("rank %d on '%s' ended with %d", (int)rank, a->words.host, (int)end.code);
}

static void look_at_agent(sp_pod *p, int32_t i) {
    if (sp_gauge_get(&p->roster.agents[i].gone)) return;
    for (;;) {
        sp_frame f;
        sp_err err = {0};
        sp_status st = sp_link_recv(p->join.agents[i], &f, 0, &err);
        if (st == SP_AGAIN) return;
        if (st != SP_OK) {
            lose_agent(p, i, err.text);
            return;
        }
        take_end(p, i, &f);
        if (sp_gauge_get(&p->roster.agents[i].gone)) return;
    }
}

void sp_pod_look(sp_pod *p) {
    if (p->watch_fd < 0) return;
    sp_guest g;
    sp_err err = {0};
    while (sp_door_next(p->join.door, &g, sp_now_ns(), &err) == SP_OK)
        sp_join_refuse(&g, SP_EXIT_CONFIG, "the pod is complete");
    for (int r = 1; r < SP_REFUSE_COUNT; r++)
        sp_gauge_set(&p->refused[r], (int64_t)sp_door_refused(p->join.door, (sp_refusal)r));
    for (int32_t i = 1; i < p->roster.n_agents; i++) look_at_agent(p, i);
}

void sp_pod_set_state(sp_pod *p, sp_rank_state state) {
    for (int32_t r = 0; r < p->roster.n_ranks; r++) {
        sp_gauge *now = &p->roster.ranks[r].state;
        if (state == SP_RANK_LOST || sp_gauge_get(now) == SP_RANK_LOADING) sp_gauge_set(now, state);
    }
}

bool sp_pod_put_kv_source(const sp_pod *p, int32_t group, sp_buf *out) {
    int32_t first;
    if (!p->share->on || group < 0 || group >= sp_pools_groups(&p->model->pools)) return false;
    const sp_pool_spec *s = sp_pools_group(&p->model->pools, group, &first);
    const sp_model_pool *pool = &p->model->pool[s - p->model->pools.at];
    for (int32_t i = first; i < first + s->tp * s->pp; i++)
        if (!p->kv[i] || !p->kv[i][0]) return false;
    sp_buf text;
    sp_buf_init(&text, SP_KV_SOURCE_TEXT_MAX);
    sp_kv_source_write(&text, s->tp, s->pp, pool->pp_layers, (const char *const *)&p->kv[first]);
    const bool fits = !text.failed;
    if (fits) sp_buf_put_slice(out, sp_buf_slice(&text));
    sp_buf_fini(&text);
    return fits && !out->failed;
}

sp_fan *sp_pod_fan(const sp_pod *p) {
    return p->fan;
}
const sp_roster *sp_pod_roster(const sp_pod *p) {
    return &p->roster;
}
const char *sp_pod_config_hash(const sp_pod *p) {
    return p->hash;
}
