#include "launcher/rank.h"

#include "comm/link.h"
#include "launcher/form.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/engine/stage.h"
#include "runtime/model/forward.h"
#include "runtime/model/plan.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#define SP_LOG "rank"
#define FORM_TIMEOUT_NS (60 * SP_NS_PER_S)
#define PROGRESS_NS (50 * SP_NS_PER_MS)
#define SEND_TIMEOUT_NS (30 * SP_NS_PER_S)

typedef struct rank {
    sp_link *link;
    sp_form form;
    sp_model_desc desc;
    const sp_arch *arch;
    sp_model_dir *dir;
    sp_dev dev;
    sp_forward *forward;
    sp_stage *stage;
    int64_t told_ns; /* when progress was last said */
    bool refused;    /* the model or the options are wrong, not the machine */
} rank;

static sp_status wait_form(rank *r, sp_err *err) {
    sp_frame frame;
    sp_status st = sp_link_recv(r->link, &frame, sp_now_ns() + FORM_TIMEOUT_NS, err);
    if (st == SP_AGAIN) return SP_FAIL(err, SP_E_CLOSED, "no FORM came from the head");
    if (st != SP_OK) return st;
    if (frame.type != SP_FRAME_FORM)
        return SP_FAIL(err, SP_E_PROTOCOL, "want FORM first, got frame type %d", frame.type);
    return sp_form_read(&r->form, (sp_slice){frame.payload, frame.length}, err);
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

static sp_status load(rank *r, sp_err *err) {
    const sp_form *f = &r->form;
    sp_dtype kv_dtype;
    SP_TRY(sp_kv_dtype_parse(f->kv_dtype, &kv_dtype, err));
    SP_TRY(sp_model_desc_load(&r->desc, f->model_dir, err));
    SP_TRY(sp_arch_find(&r->arch, &r->desc, err));
    SP_TRY(sp_model_dir_open(&r->dir, f->model_dir, err));
    sp_dev_config dc = {.backend = f->backend, .n_threads = (int)f->threads, .pin_threads = f->pin};
    SP_TRY(sp_dev_open(&r->dev, &dc, err));
    sp_forward_config fc = {
        .max_tokens = (int32_t)f->max_batched_tokens,
        .max_rows = (int32_t)f->max_step_rows,
        .max_model_len = (int32_t)f->max_model_len,
        .block_tokens = (int32_t)f->block_tokens,
        .n_blocks = (int32_t)f->n_blocks,
        .kv_dtype = kv_dtype,
    };
    return sp_forward_open(&r->forward, &r->dev, r->dir, &r->desc, r->arch, &fc, on_progress, r,
                           err);
}

static sp_status forward_step(void *ctx, const sp_batch *b, const float **logits, sp_err *err) {
    return sp_forward_run(ctx, b, logits, err);
}

/* What changes the bits of a KV block: contract version, mode, KV type, backend class. */
static void put_numerics(sp_wire_ready *offer) {
    snprintf((char *)offer->numerics, sizeof offer->numerics, "1 exact %s cpu", offer->kv_dtype);
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
    };
    snprintf(sc.offer.kv_dtype, sizeof sc.offer.kv_dtype, "%s",
             sp_dtype_name(r->forward->config.kv_dtype));
    put_numerics(&sc.offer);
    sp_stage_model model = {.forward = forward_step, .ctx = r->forward};
    return sp_stage_create(&r->stage, &sc, r->link, &model, err);
}

static void close_rank(rank *r) {
    sp_stage_destroy(r->stage);
    sp_forward_close(r->forward);
    if (r->dev.ops) sp_dev_close(&r->dev);
    sp_model_dir_close(r->dir);
    if (r->link) sp_link_close(r->link);
}

static int exit_code(const rank *r, sp_status st) {
    if (st == SP_OK || st == SP_E_CLOSED) return SP_EXIT_OK;
    if (r->refused) return SP_EXIT_CONFIG;
    return st == SP_E_DEVICE ? SP_EXIT_HARDWARE : SP_EXIT_PEER;
}

int sp_rank(int argc, char **argv) {
    int64_t fd;
    if (argc != 2 || sp_parse_i64(sp_slice_of(argv[1]), &fd) != SP_OK) {
        fprintf(stderr, "superpod: internal-rank is started by superpod itself\n");
        return SP_EXIT_USAGE;
    }
    prctl(PR_SET_NAME, "superpod-rank0");
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    rank r = {0};
    sp_err err = {0};
    sp_status st = sp_link_open_ring(&r.link, (int)fd, 1, &err);
    if (st == SP_OK) st = wait_form(&r, &err);
    if (st == SP_OK) {
        sp_log_level level = SP_LOG_INFO;
        if (sp_log_parse_level(r.form.log_level, &level) != SP_OK) level = SP_LOG_INFO;
        sp_log_setup("rank 0", level, r.form.log_json);
        st = load(&r, &err);
        r.refused = st != SP_OK && st != SP_E_DEVICE;
    }
    if (st == SP_OK) {
        sp_debug("loaded on %s", r.dev.detail);
        st = make_stage(&r, &err);
    }
    if (st == SP_OK) st = sp_stage_run(r.stage, &err);
    if (st != SP_OK && st != SP_E_CLOSED) fprintf(stderr, "superpod: %s\n", err.text);
    close_rank(&r);
    return exit_code(&r, st);
}
