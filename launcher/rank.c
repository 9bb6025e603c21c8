#include "launcher/rank.h"

#include "launcher/boot.h"
#include "launcher/build_id.h"
#include "launcher/bytes_text.h"
#include "launcher/device_groups.h"
#include "launcher/faults.h"
#include "launcher/fingerprint.h"
#include "launcher/form.h"
#include "launcher/groups.h"
#include "launcher/rank_kv.h"
#include "launcher/topology.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/engine/rehearsal.h"
#include "runtime/engine/stage.h"
#include "runtime/model/forward_ahead.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SP_LOG "rank"
#define JOIN_TIMEOUT_NS (60 * SP_NS_PER_S)
/* The head waits for slower ranks and other nodes before it says the next word. */
#define WORD_TIMEOUT_NS (600 * SP_NS_PER_S)
#define PROGRESS_NS (50 * SP_NS_PER_MS)
#define LAST_WORD_NS (500 * SP_NS_PER_MS)
#define SEND_TIMEOUT_NS (30 * SP_NS_PER_S)
#define GROUP_TIMEOUT_NS (60 * SP_NS_PER_S)

_Static_assert(sizeof(((sp_wire_ready *)0)->numerics) == SP_NUMERICS_BYTES, "READY has it");

typedef struct rank {
    sp_link *link;
    sp_form form;
    sp_model_desc desc;
    const sp_arch *arch;
    sp_part part;
    sp_model_dir *dir;
    sp_groups *groups;
    sp_group_watch *watch; /* where the groups are the device's */
    sp_rank_kv *kv; /* NULL: there is one group and no secret, nobody else reads its blocks */
    sp_dev dev;
    sp_forward *forward;
    sp_rehearsal *rehearsal; /* in its place, with --null-model */
    sp_stage *stage;
    int32_t threads;
    bool crowded;    /* more compute threads on the node than cores */
    int64_t told_ns; /* when progress was last said */
    bool refused;    /* the model or the options are wrong, not the machine */
} rank;

/* ---- words with the head ---- */

static sp_status open_link(rank *r, const sp_boot *b, sp_err *err) {
    if (b->ring_fd >= 0) {
        SP_TRY(sp_link_open_ring(&r->link, b->ring_fd, 1, err));
        sp_link_set_bells(r->link, -1, b->bell_fd);
        return SP_OK;
    }
    sp_rank_words w = {.agent = b->agent, .local = b->local, .pid = getpid()};
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_rank_words_write(&w, &text);
    sp_status st = sp_door_knock(&r->link, b->addresses, &b->token, sp_build_id(), SP_ROLE_RANK,
                                 text.ptr, sp_now_ns() + JOIN_TIMEOUT_NS, err);
    sp_buf_fini(&text);
    /* A head that is gone or cut off is found by our agent, which takes us along. */
    if (st == SP_OK) sp_link_set_patience(r->link, SP_RANK_PATIENCE_MS);
    return st;
}

/* The payload is borrowed until the next receive. */
static sp_status wait_word(rank *r, sp_frame_type type, sp_slice *out, sp_err *err) {
    sp_frame frame;
    sp_status st = sp_link_recv(r->link, &frame, sp_now_ns() + WORD_TIMEOUT_NS, err);
    if (st == SP_AGAIN) return SP_FAIL(err, SP_E_CLOSED, "the head says nothing");
    if (st != SP_OK) return st;
    if (frame.type == SP_FRAME_BYE) return SP_FAIL(err, SP_E_CLOSED, "the head ends");
    if (frame.type != type)
        return SP_FAIL(err, SP_E_PROTOCOL, "want frame type %d, got %d", type, frame.type);
    *out = (sp_slice){frame.payload, frame.length};
    return SP_OK;
}

static void on_progress(void *ctx, uint64_t done, uint64_t all) {
    rank *r = ctx;
    int64_t now = sp_now_ns();
    if (done < all && now - r->told_ns < PROGRESS_NS) return;
    r->told_ns = now;
    sp_wire_progress p = {done, all};
    sp_piece piece = {&p, sizeof p};
    sp_err err;
    /* A head that is gone shows at READY. */
    sp_status st = sp_link_send(r->link, SP_FRAME_PROGRESS, &piece, 1, now, &err);
    if (st != SP_OK) sp_debug("progress not sent: %s", err.text);
}

/* Before the stage runs, nobody else says why this rank ends. */
static void tell_refusal(rank *r, sp_status st, const sp_err *why) {
    sp_wire_fault_head head = {.reason = st == SP_E_DEVICE  ? SP_FAULT_DEVICE
                                         : st == SP_E_NOMEM ? SP_FAULT_MEMORY
                                         : r->refused       ? SP_FAULT_MODEL
                                                            : SP_FAULT_INTERNAL,
                               .text_bytes = (uint32_t)strnlen(why->text, SP_FAULT_TEXT_MAX)};
    sp_piece pieces[] = {{&head, sizeof head}, {why->text, head.text_bytes}};
    sp_err err = {0};
    if (sp_link_send(r->link, SP_FRAME_FAULT, pieces, 2, sp_now_ns() + SP_NS_PER_S, &err) != SP_OK)
        sp_debug("the head was not told: %s", err.text);
}

/* ---- what it is to become ---- */

/* Its share of the node's cores. Bound to them where memory has a near and a far side, or where
 * asked: elsewhere the kernel knows better which core is free of head and clients. */
static void settle_cores(rank *r) {
    const sp_form *f = &r->form;
    sp_topology *t = sp_alloc(sizeof *t);
    sp_err err = {0};
    cpu_set_t set;
    int n_cores = 1;
    bool own = false;
    if (sp_topology_load(t, false, &err) == SP_OK)
        own = sp_topology_bind(t, (int)f->local_rank, (int)f->local_ranks, &set, &n_cores);
    else
        sp_warn("%s: one compute thread", err.text);
    r->threads = f->threads ? (int32_t)f->threads : (int32_t)n_cores;
    r->crowded = f->local_ranks * r->threads > t->n_cores;
    if (own && f->local_ranks > 1 && (t->n_numa > 1 || f->pin)) {
        if (sched_setaffinity(0, sizeof set, &set) == 0)
            sp_debug("bound to %d of %d cores", n_cores, t->n_cores);
        else
            sp_warn("not bound to %d cores: %s", n_cores, strerror(errno));
    }
    sp_free(t);
}

static void setup_log(const sp_form *f) {
    char title[24];
    sp_log_level level = SP_LOG_INFO;
    if (sp_log_parse_level(f->log_level, &level) != SP_OK) level = SP_LOG_INFO;
    int number = (int)(f->first + f->rank);
    snprintf(title, sizeof title, "rank %d", number);
    sp_log_setup(title, level, f->log_json);
    snprintf(title, sizeof title, "superpod-rank%d", number);
    prctl(PR_SET_NAME, title);
}

static sp_status prove_same_model(rank *r, sp_err *err) {
    const sp_form *f = &r->form;
    uint8_t id[SP_FINGERPRINT_BYTES];
    char text[SP_FINGERPRINT_TEXT];
    SP_TRY(sp_fingerprint_of(id, f->model_dir, r->dir, err));
    sp_fingerprint_text(id, text);
    if (strcmp(text, f->fingerprint) == 0) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID,
                   "'%.80s' is another model than the head's: fingerprint %.12s, want %.12s",
                   f->model_dir, text, f->fingerprint);
}

static sp_status read_model(rank *r, sp_err *err) {
    const sp_form *f = &r->form;
    int32_t pp = (int32_t)f->pp, tp = (int32_t)f->tp, n;
    sp_form_group groups[SP_FORM_GROUPS_MAX];
    SP_TRY(sp_form_groups(f, groups, &n, err));
    if (f->group >= n || groups[f->group].first != f->first || groups[f->group].tp != tp ||
        groups[f->group].pp != pp)
        return SP_FAIL(err, SP_E_INVALID, "group %d is not among '%.100s'", (int)f->group,
                       f->shapes);
    SP_TRY(sp_model_desc_load(&r->desc, f->model_dir, err));
    SP_TRY(sp_arch_find(&r->arch, &r->desc, err));
    if (!f->null_model) SP_TRY(sp_model_dir_open(&r->dir, f->model_dir, err));
    SP_TRY(prove_same_model(r, err));
    return sp_part_of(&r->part, &r->desc, r->arch, tp, pp, groups[f->group].pp_layers,
                      (int32_t)f->rank / tp, (int32_t)f->rank % tp, err);
}

static void say_numerics(char out[SP_NUMERICS_BYTES], const sp_form *f, sp_dtype kv_dtype) {
    const sp_numerics_of of = {.null_model = f->null_model,
                               .fast = f->fast,
                               .kv_dtype = kv_dtype,
                               .backend = f->backend,
                               .tp = (int32_t)f->tp};
    sp_numerics(out, &of);
}

/* With other groups in the pod, or a secret that other pods have too, the KV memory is one that they
 * may read. */
static sp_status open_kv(rank *r, sp_address *own, sp_err *err) {
    const sp_form *f = &r->form;
    char numerics[SP_NUMERICS_BYTES];
    if ((f->ranks == f->tp * f->pp && !f->kv_key[0]) || f->null_model) return SP_OK;
    sp_rank_kv_config kc = {.form = f,
                            .desc = &r->desc,
                            .arch = r->arch,
                            .part = r->part,
                            .numerics = numerics,
                            .link = r->link};
    SP_TRY(sp_kv_dtype_parse(f->kv_dtype, &kc.kv_dtype, err));
    say_numerics(numerics, f, kc.kv_dtype);
    SP_TRY(sp_rank_kv_open(&r->kv, &kc, err));
    snprintf(own->kv, sizeof own->kv, "%s", sp_rank_kv_address(r->kv));
    return SP_OK;
}

static sp_status connect_kv(rank *r, const sp_address *peers, sp_err *err) {
    const char *addresses[SP_POD_RANKS_MAX];
    if (!r->kv) return SP_OK;
    for (int64_t i = 0; i < r->form.ranks; i++) addresses[i] = peers[i].kv;
    return sp_rank_kv_connect(r->kv, addresses, err);
}

/* Groups of a device are opened on its stream. */
static sp_status open_device(rank *r, sp_err *err) {
    const sp_form *f = &r->form;
    sp_dev_config dc = {.backend = f->backend,
                        .index = sp_device_index(f->backend, (int)f->local_rank),
                        .n_threads = r->threads,
                        .pin_threads = f->pin,
                        .fast = f->fast};
    return f->null_model ? SP_OK : sp_dev_open(&r->dev, &dc, err);
}

static sp_status prepare_groups(rank *r, sp_address *own, sp_err *err) {
    sp_groups_config gc = {.hidden = r->desc.hidden,
                           .vocab = r->desc.vocab,
                           .crowded = r->crowded,
                           .fast = r->form.fast};
    if (r->dev.ops && !r->dev.ops->host_memory) {
        const sp_dev_plugin *p;
        SP_TRY(sp_dev_plugin_open(&p, r->form.backend, err));
        gc.dev = &r->dev;
        gc.dev_groups = p->groups;
    }
    return sp_groups_prepare(&r->groups, &r->form, &gc, own, err);
}

static bool head_is_gone(void *ctx) {
    const rank *r = ctx;
    return sp_link_is_over(r->link);
}

static sp_status connect_groups(rank *r, const sp_address *peers, sp_err *err) {
    const sp_group_wait wait = {
        .deadline_ns = sp_now_ns() + GROUP_TIMEOUT_NS, .gave_up = head_is_gone, .ctx = r};
    sp_status st = sp_groups_connect(r->groups, peers, &wait, err);
    if (st == SP_E_CANCELED) return SP_FAIL(err, SP_E_CLOSED, "the head is gone");
    SP_TRY(st);
    const char *words = sp_groups_device_words(r->groups);
    if (!words) return SP_OK;
    if (r->form.first + r->form.rank == 0) sp_info("groups by %s", words);
    return sp_group_watch_start(&r->watch, r->link, r->groups, err);
}

static sp_status join_groups(rank *r, sp_err *err) {
    sp_address own;
    SP_TRY(prepare_groups(r, &own, err));
    SP_TRY(open_kv(r, &own, err));
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_address_write(&own, &text);
    sp_piece piece = {text.ptr, (uint32_t)text.len};
    sp_status st =
        sp_link_send(r->link, SP_FRAME_ADDRESS, &piece, 1, sp_now_ns() + SEND_TIMEOUT_NS, err);
    sp_buf_fini(&text);
    sp_slice word = {0};
    if (st == SP_OK) st = wait_word(r, SP_FRAME_PEERS, &word, err);
    if (st != SP_OK) return st;
    int n = (int)r->form.ranks;
    sp_address *peers = sp_try_alloc_array((size_t)n, sizeof *peers);
    if (!peers) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d addresses", n);
    st = sp_peers_read(peers, n, word, err);
    if (st == SP_OK) st = connect_groups(r, peers, err);
    if (st == SP_OK) st = connect_kv(r, peers, err);
    sp_free(peers);
    return st;
}

/* ---- loading ---- */

static sp_status load_weights(rank *r, sp_dtype kv_dtype, sp_err *err) {
    const sp_form *f = &r->form;
    sp_forward_config fc = {
        .max_tokens = (int32_t)f->max_batched_tokens,
        .max_rows = (int32_t)f->max_step_rows,
        .max_model_len = (int32_t)f->max_model_len,
        .block_tokens = (int32_t)f->block_tokens,
        .n_blocks = (int32_t)f->n_blocks,
        .kv_dtype = kv_dtype,
        .n_slots = (int32_t)f->max_num_seqs,
        .part = r->part,
        .tp = sp_groups_tp(r->groups),
        .pp = sp_groups_pp(r->groups),
    };
    if (r->kv && r->dev.ops->host_memory)
        fc.kv_memory = sp_rank_kv_memory(r->kv, &fc.kv_memory_bytes);
    SP_TRY(
        sp_forward_open(&r->forward, &r->dev, r->dir, &r->desc, r->arch, &fc, on_progress, r, err));
    if (!r->kv || r->dev.ops->host_memory) return SP_OK;
    return sp_rank_kv_mirror(r->kv, &r->dev, r->forward->kv, err);
}

static sp_status load(rank *r, sp_err *err) {
    sp_dtype kv_dtype;
    SP_TRY(sp_kv_dtype_parse(r->form.kv_dtype, &kv_dtype, err));
    if (!r->form.null_model) return load_weights(r, kv_dtype, err);
    sp_rehearsal_config rc = {.hidden = r->desc.hidden,
                              .n_layers = r->part.stage.n_layers,
                              .tp = sp_groups_tp(r->groups),
                              .pp = sp_groups_pp(r->groups),
                              .n_vocab = r->desc.vocab,
                              .token_lo = SP_BYTES_TOKEN_LO,
                              .token_hi = SP_BYTES_TOKEN_HI,
                              .n_blocks = (int32_t)r->form.n_blocks,
                              .block_tokens = (int32_t)r->form.block_tokens,
                              .max_batched_tokens = (int32_t)r->form.max_batched_tokens,
                              .max_step_rows = (int32_t)r->form.max_step_rows};
    return sp_rehearsal_create(&r->rehearsal, &rc, err);
}

static sp_status forward_step(void *ctx, const sp_batch *b, const float **logits, sp_err *err) {
    return sp_forward_run(ctx, b, logits, err);
}

static sp_status submit_step(void *ctx, const sp_batch *b, const sp_draw_args *draws, sp_err *err) {
    return sp_forward_submit(ctx, b, draws, err);
}
static sp_status finish_step(void *ctx, int64_t deadline_ns, const sp_drawn **drawn, sp_err *err) {
    return sp_forward_finish(ctx, deadline_ns, drawn, err);
}
static void rest(void *ctx) {
    const sp_forward *f = ctx;
    if (f->dev->ops->rest) f->dev->ops->rest(f->dev);
}

static void times(void *ctx, sp_wire_times *out) {
    const sp_forward *f = ctx;
    sp_dev_times t;
    f->dev->ops->times(f->dev, &t);
    *out = (sp_wire_times){t.busy_ns, t.idle_ns};
}

/* A device that draws for itself is given steps before it has ended others; what waits for the host or
 * for other stages is run one by one (runtime/model/forward_ahead.h). */
static sp_stage_model model_of(rank *r) {
    if (r->form.null_model) return sp_rehearsal_callbacks(r->rehearsal);
    sp_stage_model m = {.forward = forward_step, .rest = rest, .ctx = r->forward};
    if (r->dev.ops->times) m.times = times;
    if (!sp_forward_runs_ahead(r->forward)) return m;
    m.submit = submit_step;
    m.finish = finish_step;
    return m;
}

static sp_status make_stage(rank *r, sp_err *err) {
    const sp_form *f = &r->form;
    sp_stage_config sc = {
        .offer = {.n_vocab = r->desc.vocab,
                  .max_model_len = (int32_t)f->max_model_len,
                  .max_num_seqs = (int32_t)f->max_num_seqs,
                  .max_batched_tokens = (int32_t)f->max_batched_tokens,
                  .max_step_rows = (int32_t)f->max_step_rows,
                  .block_tokens = (int32_t)f->block_tokens,
                  .n_blocks = (int32_t)f->n_blocks,
                  .n_groups = 1},
        .eos_ids = r->desc.eos,
        .n_eos_ids = r->desc.n_eos,
        .role = {.embeds = r->part.stage_index == 0,
                 .samples = r->part.stage_index == r->part.pp - 1 && r->part.tp_rank == 0,
                 .feedback = sp_groups_feedback(r->groups),
                 .steps_in_flight = r->part.pp + 1},
    };
    sp_dtype kv_dtype = SP_DTYPE_F32;
    SP_TRY(sp_kv_dtype_parse(f->kv_dtype, &kv_dtype, err));
    snprintf(sc.offer.kv_dtype, sizeof sc.offer.kv_dtype, "%s", sp_dtype_name(kv_dtype));
    say_numerics((char *)sc.offer.numerics, f, kv_dtype);
    if (r->kv) sc.kvx = sp_rank_kv_callbacks(r->kv);
    const sp_stage_model model = model_of(r);
    return sp_stage_create(&r->stage, &sc, r->link, &model, err);
}

/* ---- the whole ---- */

static sp_status become_what_is_formed(rank *r, sp_err *err) {
    sp_slice word;
    SP_TRY(wait_word(r, SP_FRAME_FORM, &word, err));
    SP_TRY(sp_form_read(&r->form, word, err));
    setup_log(&r->form);
    sp_faults_warn();
    settle_cores(r);
    sp_status st = read_model(r, err);
    r->refused = st != SP_OK;
    if (st == SP_OK) {
        st = open_device(r, err);
        r->refused = st != SP_OK && st != SP_E_DEVICE;
    }
    if (st == SP_OK) {
        st = join_groups(r, err);
        r->refused = st == SP_E_INVALID || st == SP_E_UNSUPPORTED;
    }
    if (st == SP_OK) {
        st = load(r, err);
        r->refused = st != SP_OK && st != SP_E_DEVICE && st != SP_E_CLOSED;
    }
    if (st == SP_OK) st = make_stage(r, err);
    if (st != SP_OK && st != SP_E_CLOSED) tell_refusal(r, st, err);
    return st;
}

/* A neighbour that heard the head's BYE first is gone while we still work for it: not a fault. */
static bool is_over(rank *r) {
    sp_frame frame;
    sp_err err;
    int64_t until = sp_now_ns() + LAST_WORD_NS;
    for (;;) {
        sp_status st = sp_link_recv(r->link, &frame, until, &err);
        if (st != SP_OK) return st == SP_E_CLOSED;
        if (frame.type == SP_FRAME_BYE) return true;
    }
}

/* After a fault a device may wait for a neighbour, and who frees its memory would wait for it: its
 * groups are aborted before, and closed before the device is. */
static void close_rank(rank *r, bool failed) {
    sp_group_watch_stop(r->watch);
    sp_stage_destroy(r->stage);
    sp_rank_kv_end_pulls(r->kv);
    if (r->groups && failed) sp_groups_abort(r->groups);
    sp_groups_close(r->groups);
    sp_forward_close(r->forward);
    sp_rehearsal_destroy(r->rehearsal);
    if (r->dev.ops) sp_dev_close(&r->dev);
    sp_rank_kv_close(r->kv);
    sp_model_dir_close(r->dir);
    if (r->link) sp_link_close(r->link);
}

static int exit_code(const rank *r, sp_status st) {
    if (st == SP_OK || st == SP_E_CLOSED) return SP_EXIT_OK;
    if (r->refused) return SP_EXIT_CONFIG;
    return st == SP_E_DEVICE ? SP_EXIT_HARDWARE : SP_EXIT_PEER;
}

int sp_rank(int argc, char **argv) {
    sp_boot boot = {0};
    sp_err err = {0};
    if (argc != 2 || sp_boot_read(&boot, argv[1], &err) != SP_OK) {
        fprintf(stderr, "superpod: internal-rank is started by superpod itself\n");
        return SP_EXIT_USAGE;
    }
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    rank r = {0};
    sp_status st = open_link(&r, &boot, &err);
    explicit_bzero(&boot.token, sizeof boot.token);
    if (st == SP_OK) st = become_what_is_formed(&r, &err);
    if (st == SP_OK) st = sp_stage_run(r.stage, &err);
    const bool failed = st != SP_OK && st != SP_E_CLOSED;
    if ((st == SP_E_PEER_LOST || st == SP_E_CANCELED) && r.stage && is_over(&r)) st = SP_OK;
    if (st != SP_OK && st != SP_E_CLOSED)
        fprintf(stderr, "superpod: rank %d: %s\n", (int)(r.form.first + r.form.rank), err.text);
    close_rank(&r, failed);
    sp_faults_tell();
    return exit_code(&r, st);
}
