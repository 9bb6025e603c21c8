#include "runtime/engine/kv_from.h"

#include "runtime/base/mem.h"
#include "runtime/engine/kv_source.h"

#include <string.h>

_Static_assert(SP_KV_SOURCE_TP_MAX <= SP_PLAN_TP_MAX, "as many as a model can be cut into");
_Static_assert(SP_KV_SOURCE_STAGES_MAX <= SP_PLAN_PP_MAX, "as many as a model can be cut into");

static size_t layer_bytes(const sp_kv_own *own, const sp_kv_piece *piece) {
    return 2 * (size_t)piece->n_heads * sp_kvx_piece_bytes(&own->shape);
}

size_t sp_kv_giver_bytes(const sp_kv_own *own, const sp_kv_giver *g) {
    return (size_t)g->piece.n_layers * layer_bytes(own, &g->piece);
}

static int32_t layers_at_once(const sp_kv_own *own, const sp_kv_piece *piece) {
    const size_t n = SP_KV_READ_BYTES / layer_bytes(own, piece);
    return n < 1 ? 1 : n < (size_t)piece->n_layers ? (int32_t)n : piece->n_layers;
}

/* Whole rectangles in, their parts out; every part has the reader of its rectangle. */
static sp_status cut_parts(sp_kv_from *f, const sp_kv_own *own, const sp_kv_piece *pieces,
                           sp_err *err) {
    size_t n = 0;
    for (int32_t i = 0; i < f->n_readers; i++) {
        const int32_t step = layers_at_once(own, &pieces[i]);
        n += (size_t)((pieces[i].n_layers + step - 1) / step);
    }
    f->givers = sp_try_alloc_array(n, sizeof *f->givers);
    if (!f->givers) return SP_FAIL(err, SP_E_NOMEM, "no memory for %zu parts of a block", n);
    for (int32_t i = 0; i < f->n_readers; i++) {
        const int32_t step = layers_at_once(own, &pieces[i]);
        for (int32_t at = 0; at < pieces[i].n_layers; at += step) {
            const int32_t left = pieces[i].n_layers - at;
            sp_kv_giver *g = &f->givers[f->n_givers++];
            *g = (sp_kv_giver){pieces[i], f->readers[i]};
            g->piece.layer_first += at;
            g->piece.n_layers = left < step ? left : step;
        }
    }
    return SP_OK;
}

static sp_status open_readers(sp_kv_from *f, const sp_kv_own *own, const sp_kv_piece *pieces,
                              int32_t n, int32_t tp, const char *const *addresses,
                              const bool *same_node, sp_err *err) {
    sp_kvx_reader_config rc = {.shape = own->shape, .ucx = own->ucx};
    sp_status st = SP_OK;
    memcpy(rc.key, own->key, sizeof rc.key);
    memcpy(rc.identity, own->identity, sizeof rc.identity);
    for (int32_t i = 0; st == SP_OK && i < n; i++) {
        const int32_t rank = pieces[i].stage * tp + pieces[i].tp_rank;
        rc.same_node = same_node && same_node[rank];
        st = sp_kvx_open(&f->readers[i], addresses[rank], &rc, err);
        if (st == SP_OK) f->n_readers = i + 1;
    }
    explicit_bzero(rc.key, sizeof rc.key);
    return st;
}

sp_status sp_kv_from_open(sp_kv_from *out, const sp_kv_own *own, const sp_kv_source *cut,
                          const char *const *addresses, const bool *same_node, sp_err *err) {
    sp_kv_from f = {0};
    int32_t n = 0;
    sp_kv_piece *pieces = sp_try_alloc_array(SP_KV_PIECES_MAX, sizeof *pieces);
    if (!pieces) return SP_FAIL(err, SP_E_NOMEM, "no memory for the ranks of a group");
    sp_status st =
        sp_kv_pieces(pieces, SP_KV_PIECES_MAX, &n, &own->part, cut, own->desc, own->arch, err);
    if (st == SP_OK) {
        f.readers = sp_try_alloc_array((size_t)n, sizeof *f.readers);
        if (!f.readers) st = SP_FAIL(err, SP_E_NOMEM, "no memory for %d readers", n);
    }
    if (st == SP_OK) st = open_readers(&f, own, pieces, n, cut->tp, addresses, same_node, err);
    if (st == SP_OK) st = cut_parts(&f, own, pieces, err);
    sp_free(pieces);
    if (st != SP_OK) {
        sp_kv_from_close(&f);
        return st;
    }
    *out = f;
    return SP_OK;
}

sp_status sp_kv_from_open_text(sp_kv_from *out, const sp_kv_own *own, sp_slice text, sp_err *err) {
    sp_kv_source_words *w = sp_try_alloc(sizeof *w);
    if (!w) return SP_FAIL(err, SP_E_NOMEM, "no memory for the ranks of a group");
    sp_status st = sp_kv_source_read(w, text, err);
    if (st == SP_OK) {
        const sp_kv_source cut = {w->tp, w->pp, w->pp_layers};
        st = sp_kv_from_open(out, own, &cut, (const char *const *)w->ranks, NULL, err);
        sp_kv_source_words_fini(w);
    }
    sp_free(w);
    return st;
}

void sp_kv_from_cancel(sp_kv_from *f) {
    for (int32_t i = 0; i < f->n_readers; i++) sp_kvx_cancel(f->readers[i]);
}

void sp_kv_from_close(sp_kv_from *f) {
    for (int32_t i = 0; i < f->n_readers; i++) sp_kvx_close(f->readers[i]);
    sp_free(f->readers);
    sp_free(f->givers);
    *f = (sp_kv_from){0};
}
