#include "runtime/text/detok.h"

#include "runtime/base/mem.h"
#include "runtime/text/tokenizer_impl.h"

#define STOPS_MAX 1024
#define STOP_BYTES_MAX ((size_t)1 << 20)

/* A stop string is followed byte by byte (Knuth, Morris, Pratt): `matched` bytes of it are the end
 * of the text so far, and fall[k] says how much still matches when byte k does not. */
typedef struct stop {
    sp_slice text; /* owned */
    uint32_t *fall;
    size_t matched;
} stop;

struct sp_detok {
    const sp_tokenizer *t;
    bool skip_special, include_stop, stopped;
    bool stops_off; /* as the last push said */
    sp_decode_stream *stream;
    sp_buf fresh; /* decoded, not yet searched */
    sp_buf held;  /* searched, held back */
    int n_stops;
    stop stops[];
};

void sp_detok_destroy(sp_detok *d) {
    if (!d) return;
    for (int i = 0; i < d->n_stops; i++) {
        sp_free((char *)(uintptr_t)d->stops[i].text.ptr);
        sp_free(d->stops[i].fall);
    }
    sp_buf_fini(&d->fresh);
    sp_buf_fini(&d->held);
    sp_decode_close(d->stream);
    sp_free(d);
}

static sp_status init_stop(stop *s, int index, sp_slice text, sp_err *err) {
    if (text.len == 0) return SP_FAIL(err, SP_E_INVALID, "stop string %d is empty", index);
    if (text.len > STOP_BYTES_MAX)
        return SP_FAIL(err, SP_E_INVALID, "stop string %d has %zu bytes, at most %zu are allowed",
                       index, text.len, STOP_BYTES_MAX);
    /* Text comes in whole characters, so a stop string must end with one. */
    if (!sp_utf8_valid(text))
        return SP_FAIL(err, SP_E_INVALID, "stop string %d is not UTF-8", index);
    char *copy = sp_try_alloc(text.len);
    s->text = (sp_slice){copy, text.len};
    s->fall = sp_try_alloc_array(text.len, sizeof *s->fall);
    if (!copy || !s->fall) return SP_FAIL(err, SP_E_NOMEM, "no memory for stop string %d", index);
    memcpy(copy, text.ptr, text.len);
    for (size_t i = 1, k = 0; i < text.len; i++) {
        while (k > 0 && copy[i] != copy[k]) k = s->fall[k - 1];
        if (copy[i] == copy[k]) k++;
        s->fall[i] = (uint32_t)k;
    }
    return SP_OK;
}

sp_status sp_detok_create(sp_detok **out, const sp_tokenizer *t, const sp_detok_config *config,
                          sp_err *err) {
    if (config->n_stops < 0 || config->n_stops > STOPS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%d stop strings, at most %d are allowed",
                       config->n_stops, STOPS_MAX);
    sp_detok *d = sp_try_alloc(sizeof *d + (size_t)config->n_stops * sizeof d->stops[0]);
    if (!d) return SP_FAIL(err, SP_E_NOMEM, "no memory for a detokeniser");
    d->t = t;
    d->skip_special = config->skip_special;
    d->include_stop = config->include_stop;
    d->n_stops = config->n_stops;
    sp_status st = sp_decode_open(&d->stream, t->decoder, false);
    if (st != SP_OK) SP_FAIL(err, st, "no memory for a detokeniser");
    for (int i = 0; i < d->n_stops && st == SP_OK; i++)
        st = init_stop(&d->stops[i], i, config->stops[i], err);
    if (st != SP_OK) {
        sp_detok_destroy(d);
        return st;
    }
    *out = d;
    return SP_OK;
}

static void decode(sp_detok *d, int32_t id) {
    sp_slice written = sp_tokenizer_written(d->t, id);
    if (!written.ptr || (d->skip_special && sp_tokenizer_is_special(d->t, id))) return;
    sp_decode_token(d->stream, written, &d->fresh);
}

void sp_detok_prime(sp_detok *d, const int32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) decode(d, ids[i]);
    sp_decode_settle(d->stream);
    sp_buf_clear(&d->fresh);
}

static void follow(stop *s, char c) {
    if (s->matched == s->text.len) s->matched = s->fall[s->matched - 1]; /* passed over before */
    while (s->matched > 0 && s->text.ptr[s->matched] != c) s->matched = s->fall[s->matched - 1];
    if (s->text.ptr[s->matched] == c) s->matched++;
}

/* Follows all stop strings one byte on. Returns the longest that ends here (of equals the first in
 * the list), or -1. */
static int follow_all(sp_detok *d, char c) {
    int found = -1;
    for (int i = 0; i < d->n_stops; i++) {
        stop *s = &d->stops[i];
        follow(s, c);
        if (s->matched < s->text.len) continue;
        if (found < 0 || s->text.len > d->stops[found].text.len) found = i;
    }
    return found;
}

static size_t longest_open(const sp_detok *d) {
    size_t longest = 0;
    for (int i = 0; i < d->n_stops; i++) {
        const stop *s = &d->stops[i];
        size_t open = s->matched == s->text.len ? s->fall[s->matched - 1] : s->matched;
        if (open > longest) longest = open;
    }
    return longest;
}

static void end_with(sp_detok *d, const stop *s, sp_buf *out) {
    size_t keep = d->include_stop ? d->held.len : d->held.len - s->text.len;
    sp_buf_put(out, d->held.ptr, keep);
    sp_buf_clear(&d->held);
    d->stopped = true;
}

static void give(sp_detok *d, size_t n, sp_buf *out) {
    if (n == 0) return;
    sp_buf_put(out, d->held.ptr, n);
    memmove(d->held.ptr, d->held.ptr + n, d->held.len - n);
    d->held.len -= n;
}

/* Searches the fresh text and gives what cannot belong to a stop string any more. */
static int search(sp_detok *d, bool stops_off, sp_buf *out) {
    int found = -1;
    if (d->n_stops == 0) {
        sp_buf_put(out, d->fresh.ptr, d->fresh.len);
    } else {
        for (size_t i = 0; i < d->fresh.len && found < 0; i++) {
            sp_buf_putc(&d->held, d->fresh.ptr[i]);
            found = follow_all(d, d->fresh.ptr[i]);
            if (stops_off) found = -1;
        }
        if (d->held.failed) out->failed = true;
        if (found >= 0)
            end_with(d, &d->stops[found], out);
        else
            give(d, d->held.len - longest_open(d), out);
    }
    if (d->fresh.failed) out->failed = true;
    sp_buf_clear(&d->fresh);
    return found;
}

int sp_detok_push(sp_detok *d, int32_t id, bool stops_off, sp_buf *out) {
    if (d->stopped) return -1;
    d->stops_off = stops_off;
    decode(d, id);
    return search(d, stops_off, out);
}

void sp_detok_flush(sp_detok *d, sp_buf *out) {
    if (d->stopped) return;
    sp_decode_end(d->stream, &d->fresh);
    (void)search(d, d->stops_off, out); /* what the end set free may hold a stop string */
    give(d, d->held.len, out);
    d->stopped = true;
}
