/* tests/runtime/text/tokenizer_help.h - tokenizers for the tests of runtime/text: written into a
 * folder that is removed again, put together from vocab.json and merges.txt, or made out of a
 * SentencePiece model. Included by several test programs, hence static functions. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/text/tokenizer.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define HELP_UNUSED __attribute__((unused))

/* ---- folders and files ---- */

typedef struct help_dir {
    char path[64];
} help_dir;

HELP_UNUSED static help_dir help_dir_make(void) {
    help_dir d = {"/tmp/sp_tokenizer_XXXXXX"};
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(d.path));
    return d;
}

HELP_UNUSED static void help_dir_write(const help_dir *d, const char *name, sp_slice text) {
    char path[160];
    snprintf(path, sizeof path, "%s/%s", d->path, name);
    FILE *f = fopen(path, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    if (text.len) fwrite(text.ptr, 1, text.len, f);
    fclose(f);
}

HELP_UNUSED static void help_dir_remove(const help_dir *d) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json"};
    for (size_t i = 0; i < SP_LEN(names); i++) {
        char path[160];
        snprintf(path, sizeof path, "%s/%s", d->path, names[i]);
        unlink(path);
    }
    rmdir(d->path);
}

/* Loads a tokenizer.json given as text; NULL and words in `err` when it is refused. */
HELP_UNUSED static sp_tokenizer *help_load_text(sp_slice json, sp_err *err) {
    help_dir d = help_dir_make();
    help_dir_write(&d, "tokenizer.json", json);
    sp_tokenizer *t = NULL;
    if (sp_tokenizer_load(&t, d.path, err) != SP_OK) t = NULL;
    help_dir_remove(&d);
    return t;
}

HELP_UNUSED static sp_tokenizer *help_load_ok(const char *json) {
    sp_err err = {0};
    sp_tokenizer *t = help_load_text(sp_slice_of(json), &err);
    if (!t) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL_FATAL(t);
    return t;
}

/* A file of the fixtures; NULL when the fixtures or the file are not there. */
HELP_UNUSED static char *help_fixture(const char *name, size_t *len) {
    char path[512];
    const char *dir = sp_test_fixtures();
    snprintf(path, sizeof path, "%s/%s", dir ? dir : "", name);
    return dir && access(path, R_OK) == 0 ? sp_test_read(path, len) : NULL;
}

HELP_UNUSED static sp_json *help_json(const char *name) {
    size_t len;
    char *text = help_fixture(name, &len);
    sp_json *doc = NULL;
    sp_err err = {0};
    if (text && sp_json_parse(&doc, (sp_slice){text, len}, 0, &err) != SP_OK) {
        fprintf(stderr, "    %s: %s\n", name, err.text);
        CU_FAIL("a fixture is not JSON");
    }
    free(text);
    return doc;
}

/* ---- vocab.json + merges.txt + skeleton ---- */

HELP_UNUSED static void help_put_merges(sp_buf *out, const char *lines) {
    sp_jw w = sp_jw_on(out);
    sp_jw_array(&w);
    for (const char *p = lines; *p;) {
        size_t n = strcspn(p, "\n");
        if (n && strncmp(p, "#version", 8) != 0) sp_jw_string(&w, (sp_slice){p, n});
        p += n + (p[n] == '\n');
    }
    sp_jw_array_end(&w);
}

/* Puts `with` where `what` stands in `text`. */
HELP_UNUSED static void help_replace(sp_buf *text, const char *what, sp_slice with) {
    ptrdiff_t at = sp_slice_find(sp_buf_slice(text), sp_slice_of(what), 0);
    CU_ASSERT_FATAL(at >= 0);
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_buf_put(&out, text->ptr, (size_t)at);
    sp_buf_put_slice(&out, with);
    sp_buf_puts(&out, text->ptr + at + strlen(what));
    sp_buf_fini(text);
    *text = out;
}

/* `added`: a JSON list that takes the place of the skeleton's added tokens, or NULL. */
HELP_UNUSED static sp_tokenizer *help_assemble(const char *skeleton, const char *folder) {
    char name[128];
    size_t n_vocab;
    snprintf(name, sizeof name, "tokenizers/%s/vocab.json", folder);
    char *vocab = help_fixture(name, &n_vocab);
    snprintf(name, sizeof name, "tokenizers/%s/merges.txt", folder);
    char *merges = help_fixture(name, NULL);
    snprintf(name, sizeof name, "tokenizers/%s/tokenizer.skeleton.json", skeleton);
    char *frame = help_fixture(name, NULL);
    sp_tokenizer *t = NULL;
    if (vocab && merges && frame) {
        sp_buf text, list;
        sp_buf_init(&text, 0);
        sp_buf_init(&list, 0);
        sp_buf_puts(&text, frame);
        help_put_merges(&list, merges);
        help_replace(&text, "\"<vocab.json>\"", (sp_slice){vocab, n_vocab});
        help_replace(&text, "\"<merges.txt lines, without a #version line>\"", sp_buf_slice(&list));
        sp_err err = {0};
        t = help_load_text(sp_buf_slice(&text), &err);
        if (!t) fprintf(stderr, "    %s: %s\n", skeleton, err.text);
        CU_ASSERT_PTR_NOT_NULL(t);
        sp_buf_fini(&list);
        sp_buf_fini(&text);
    }
    free(vocab);
    free(merges);
    free(frame);
    return t;
}

HELP_UNUSED static sp_tokenizer *help_load_folder(const char *folder) {
    char path[512];
    const char *dir = sp_test_fixtures();
    snprintf(path, sizeof path, "%s/tokenizers/%s", dir ? dir : "", folder);
    sp_tokenizer *t = NULL;
    sp_err err = {0};
    if (!dir || access(path, R_OK) != 0) return NULL;
    if (sp_tokenizer_load(&t, path, &err) != SP_OK) fprintf(stderr, "    %s\n", err.text);
    CU_ASSERT_PTR_NOT_NULL(t);
    return t;
}

/* The demo model's folder, or NULL: in the tree, else beside the fixtures. */
HELP_UNUSED static const char *help_podling(char *path, size_t size) {
    if (access("configs/podling/tokenizer.json", R_OK) == 0) return "configs/podling";
    const char *dir = sp_test_fixtures();
    snprintf(path, size, "%s/../podling/model", dir ? dir : "");
    return dir && access(path, R_OK) == 0 ? path : NULL;
}

/* ---- SentencePiece (BPE) to tokenizer.json ----
 * The file is a protobuf message: field 1, many times, {1: piece, 2: score (f32), 3: type}. */

typedef struct help_piece {
    sp_slice text;
    float score;
    int type; /* 1 normal, 2 unknown, 3 control, 6 byte */
} help_piece;

typedef struct help_spm {
    help_piece *pieces;
    int n;
    int *sorted; /* by text, of normal pieces only */
    int n_sorted;
} help_spm;

HELP_UNUSED static uint64_t help_varint(const char **p, const char *end) {
    uint64_t v = 0;
    for (int shift = 0; *p < end && shift < 64; shift += 7) {
        unsigned char b = (unsigned char)*(*p)++;
        v |= (uint64_t)(b & 127) << shift;
        if (b < 128) break;
    }
    return v;
}

HELP_UNUSED static help_piece help_read_piece(const char *p, const char *end) {
    help_piece out = {.type = 1};
    while (p < end) {
        uint64_t tag = help_varint(&p, end);
        if (tag == 0x0a) {
            size_t n = (size_t)help_varint(&p, end);
            out.text = (sp_slice){p, n};
            p += n;
        } else if (tag == 0x15) {
            memcpy(&out.score, p, 4);
            p += 4;
        } else {
            out.type = (int)help_varint(&p, end);
        }
    }
    return out;
}

static const help_spm *help_sorting; /* qsort has no argument for it */

HELP_UNUSED static int help_compare(sp_slice a, sp_slice b) {
    int c = memcmp(a.ptr, b.ptr, a.len < b.len ? a.len : b.len);
    return c ? c : (a.len > b.len) - (a.len < b.len);
}

HELP_UNUSED static int help_by_text(const void *a, const void *b) {
    return help_compare(help_sorting->pieces[*(const int *)a].text,
                        help_sorting->pieces[*(const int *)b].text);
}

HELP_UNUSED static int help_find_piece(const help_spm *m, sp_slice text) {
    int low = 0, high = m->n_sorted - 1;
    while (low <= high) {
        int mid = (low + high) / 2;
        int c = help_compare(m->pieces[m->sorted[mid]].text, text);
        if (c == 0) return m->sorted[mid];
        if (c < 0)
            low = mid + 1;
        else
            high = mid - 1;
    }
    return -1;
}

HELP_UNUSED static void help_read_spm(help_spm *m, const char *bytes, size_t len) {
    *m = (help_spm){.pieces = malloc(200000 * sizeof(help_piece))};
    for (const char *p = bytes, *end = bytes + len; p < end;) {
        uint64_t tag = help_varint(&p, end);
        if ((tag & 7) != 2) break;
        size_t n = (size_t)help_varint(&p, end);
        if (tag == 0x0a) m->pieces[m->n++] = help_read_piece(p, p + n);
        p += n;
    }
    m->sorted = malloc((size_t)m->n * sizeof *m->sorted);
    for (int i = 0; i < m->n; i++)
        if (m->pieces[i].type == 1) m->sorted[m->n_sorted++] = i;
    help_sorting = m;
    qsort(m->sorted, (size_t)m->n_sorted, sizeof *m->sorted, help_by_text);
}

typedef struct help_merge {
    float score;
    int left, right;
} help_merge;

HELP_UNUSED static int help_by_score(const void *a, const void *b) {
    const help_merge *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

HELP_UNUSED static help_merge *help_spm_merges(const help_spm *m, size_t *n) {
    help_merge *list = malloc(2000000 * sizeof *list);
    *n = 0;
    for (int i = 0; i < m->n_sorted; i++) {
        const help_piece *p = &m->pieces[m->sorted[i]];
        for (size_t k = 1; k < p->text.len; k++) {
            int left = help_find_piece(m, (sp_slice){p->text.ptr, k});
            int right = help_find_piece(m, (sp_slice){p->text.ptr + k, p->text.len - k});
            if (left >= 0 && right >= 0) list[(*n)++] = (help_merge){p->score, left, right};
        }
    }
    qsort(list, *n, sizeof *list, help_by_score);
    return list;
}

/* The tokenizer.json that Llama 2's SentencePiece model became. */
HELP_UNUSED static sp_tokenizer *help_load_spm(const char *fixture) {
    size_t len;
    char *bytes = help_fixture(fixture, &len);
    if (!bytes) return NULL;
    help_spm m;
    help_read_spm(&m, bytes, len);
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_buf_puts(&out,
                "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
                "\"prepend\":\"\xe2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" "
                "\"},\"content\":\"\xe2\x96\x81\"}]},\"decoder\":{\"type\":\"Sequence\","
                "\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},"
                "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":"
                "\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},\"model\":{\"type\":\"BPE\","
                "\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":");
    sp_jw w = sp_jw_on(&out);
    sp_jw_object(&w);
    for (int i = 0; i < m.n; i++) {
        char *key = sp_strndup(m.pieces[i].text.ptr, m.pieces[i].text.len);
        sp_jw_key(&w, key);
        sp_jw_int(&w, i);
        sp_free(key);
    }
    sp_jw_object_end(&w);
    sp_buf_puts(&out, ",\"merges\":");
    size_t n;
    help_merge *merges = help_spm_merges(&m, &n);
    w = sp_jw_on(&out);
    sp_jw_array(&w);
    for (size_t i = 0; i < n; i++) {
        sp_jw_array(&w);
        sp_jw_string(&w, m.pieces[merges[i].left].text);
        sp_jw_string(&w, m.pieces[merges[i].right].text);
        sp_jw_array_end(&w);
    }
    sp_jw_array_end(&w);
    sp_buf_puts(&out, "}}");
    sp_err err = {0};
    sp_tokenizer *t = help_load_text(sp_buf_slice(&out), &err);
    if (!t) fprintf(stderr, "    %s: %s\n", fixture, err.text);
    CU_ASSERT_PTR_NOT_NULL(t);
    sp_buf_fini(&out);
    free(merges);
    free(m.pieces);
    free(m.sorted);
    free(bytes);
    return t;
}

/* ---- comparing ---- */

HELP_UNUSED static void help_print_ids(const char *what, const int32_t *ids, size_t n) {
    fprintf(stderr, "    %s", what);
    for (size_t i = 0; i < n && i < 40; i++) fprintf(stderr, " %d", ids[i]);
    fprintf(stderr, "\n");
}

/* Encodes and compares; says what differs. */
HELP_UNUSED static bool help_encodes(const sp_tokenizer *t, sp_slice text, int flags,
                                     const int32_t *want, size_t n) {
    sp_ids got = {0};
    sp_err err = {0};
    sp_status st = sp_tokenizer_encode(t, text, flags, (sp_slice){0}, &got, &err);
    bool same = st == SP_OK && got.len == n && (n == 0 || memcmp(got.ptr, want, n * 4) == 0);
    if (!same) {
        fprintf(stderr, "    text '%.*s' %s\n", (int)(text.len < 100 ? text.len : 100), text.ptr,
                err.text);
        help_print_ids("want", want, n);
        help_print_ids("got ", got.ptr, got.len);
    }
    sp_ids_fini(&got);
    return same;
}

HELP_UNUSED static sp_ids help_ids(const sp_json_node *list) {
    sp_ids ids = {0};
    for (const sp_json_node *v = sp_json_first(list); v; v = sp_json_next(v))
        CU_ASSERT_EQUAL_FATAL(sp_ids_push(&ids, (int32_t)sp_json_int(v)), SP_OK);
    return ids;
}

HELP_UNUSED static bool help_encodes_json(const sp_tokenizer *t, sp_slice text, int flags,
                                          const sp_json_node *want) {
    sp_ids ids = help_ids(want);
    bool same = help_encodes(t, text, flags, ids.ptr, ids.len);
    sp_ids_fini(&ids);
    return same;
}

HELP_UNUSED static bool help_decodes(const sp_tokenizer *t, const int32_t *ids, size_t n,
                                     bool skip_special, sp_slice want) {
    sp_buf out;
    sp_buf_init(&out, 0);
    sp_tokenizer_decode(t, ids, n, skip_special, &out);
    bool same = sp_slice_eq(sp_buf_slice(&out), want);
    if (!same)
        fprintf(stderr, "    want '%.*s'\n    got  '%.*s'\n",
                (int)(want.len < 200 ? want.len : 200), want.ptr,
                (int)(out.len < 200 ? out.len : 200), out.ptr ? out.ptr : "");
    sp_buf_fini(&out);
    return same;
}

HELP_UNUSED static bool help_decodes_json(const sp_tokenizer *t, const sp_json_node *list,
                                          bool skip_special, sp_slice want) {
    sp_ids ids = help_ids(list);
    bool same = help_decodes(t, ids.ptr, ids.len, skip_special, want);
    sp_ids_fini(&ids);
    return same;
}
