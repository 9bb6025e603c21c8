#include "runtime/engine/sources.h"

#include "runtime/base/mem.h"
#include "runtime/engine/engine_core.h"
#include "runtime/engine/kv_source.h"
#include "runtime/engine/seals.h"

#include <string.h>
#include <time.h>

typedef struct source {
    char engine[SP_KV_ENGINE_BYTES];
    char *text; /* NULL: free */
    size_t text_bytes;
    int32_t n_users;
    uint64_t used;      /* when, in takes */
    uint64_t told, old; /* sets of our groups: that know it; that know what the number was before */
} source;

struct sp_sources {
    source items[SP_KV_SOURCES_MAX];
    uint64_t n_takes;
};
_Static_assert(SP_ENGINE_GROUPS_MAX <= 64, "a set of groups is one word");

sp_status sp_sources_create(sp_sources **out, sp_err *err) {
    sp_sources *s = sp_try_alloc(sizeof *s);
    if (!s) return SP_FAIL(err, SP_E_NOMEM, "no memory for %d sources", SP_KV_SOURCES_MAX);
    *out = s;
    return SP_OK;
}

void sp_sources_destroy(sp_sources *s) {
    if (!s) return;
    for (int32_t i = 0; i < SP_KV_SOURCES_MAX; i++) sp_free(s->items[i].text);
    sp_free(s);
}

static bool is_same(const source *t, const char *engine, sp_slice text) {
    return t->text && strcmp(t->engine, engine) == 0 && t->text_bytes == text.len &&
           memcmp(t->text, text.ptr, text.len) == 0;
}

/* A free number, else the one that lay idle for longest; NULL: all are in use. */
static source *room(sp_sources *s) {
    source *idle = NULL;
    for (int32_t i = 0; i < SP_KV_SOURCES_MAX; i++) {
        source *t = &s->items[i];
        if (!t->text) return t;
        if (t->n_users == 0 && (!idle || t->used < idle->used)) idle = t;
    }
    return idle;
}

static sp_status settle(sp_sources *s, source **out, const char *engine, sp_slice text,
                        sp_err *err) {
    /* Checked here, once: what a rank cannot read would be the end of the rank. */
    if (text.len > SP_KV_SOURCE_TEXT_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "a source of %zu bytes, want at most %d", text.len,
                       SP_KV_SOURCE_TEXT_MAX);
    sp_kv_source_words words;
    SP_TRY(sp_kv_source_read(&words, text, err));
    sp_kv_source_words_fini(&words);
    source *t = room(s);
    if (!t) return SP_FAIL(err, SP_E_LIMIT, "%d sources are in use", SP_KV_SOURCES_MAX);
    char *copy = sp_try_alloc(text.len);
    if (!copy) return SP_FAIL(err, SP_E_NOMEM, "no memory for a source of %zu bytes", text.len);
    memcpy(copy, text.ptr, text.len);
    sp_free(t->text);
    *t = (source){.text = copy, .text_bytes = text.len, .old = t->old | t->told};
    memcpy(t->engine, engine, strlen(engine) + 1);
    *out = t;
    return SP_OK;
}

sp_status sp_sources_take(sp_sources *s, const char *engine, sp_slice text, int32_t *number,
                          sp_err *err) {
    SP_ASSERT(strlen(engine) < SP_KV_ENGINE_BYTES);
    source *t = NULL;
    for (int32_t i = 0; i < SP_KV_SOURCES_MAX && !t; i++)
        if (is_same(&s->items[i], engine, text)) t = &s->items[i];
    if (!t) SP_TRY(settle(s, &t, engine, text, err));
    t->n_users++;
    t->used = ++s->n_takes;
    *number = SP_KV_SOURCE_FIRST + (int32_t)(t - s->items);
    return SP_OK;
}

static source *find(sp_sources *s, int32_t number) {
    SP_ASSERT(number >= SP_KV_SOURCE_FIRST && number < SP_KV_SOURCE_FIRST + SP_KV_SOURCES_MAX);
    return &s->items[number - SP_KV_SOURCE_FIRST];
}

void sp_sources_give(sp_sources *s, int32_t number) {
    source *t = find(s, number);
    SP_ASSERT(t->n_users > 0);
    t->n_users--;
}

sp_source_news sp_sources_news(sp_sources *s, int32_t number, int32_t group) {
    source *t = find(s, number);
    uint64_t bit = UINT64_C(1) << group;
    sp_source_news news = {.forget = (t->old & bit) != 0,
                           .tell = (t->told & bit) == 0,
                           .text = {t->text, t->text_bytes}};
    t->old &= ~bit;
    t->told |= bit;
    return news;
}

int32_t sp_sources_users(const sp_sources *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < SP_KV_SOURCES_MAX; i++) n += s->items[i].n_users;
    return n;
}

/* ---- what a handle is worth ---- */

int64_t sp_unix_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int32_t sp_import_blocks(sp_sched *sched, sp_request *r, int32_t most, int64_t unix_ms,
                         sp_kv_cause *cause) {
    const sp_kv_handle *h = r->import->handle;
    int32_t n = h->n_blocks < most ? h->n_blocks : most;
    *cause = SP_KV_OK;
    if (h->expires_unix_ms <= unix_ms) {
        *cause = SP_KV_EXPIRED;
        return 0;
    }
    for (int32_t i = 0; i < n; i++) {
        const sp_kv_lent *b = &h->blocks[i];
        if (b->generation == 0 || b->block > INT32_MAX)
            *cause = SP_KV_RANGE;
        else if (b->name != sp_seals_name(sp_sched_prompt_name(sched, r, i)))
            *cause = SP_KV_FOREIGN;
        if (*cause != SP_KV_OK) return i;
    }
    return n;
}
