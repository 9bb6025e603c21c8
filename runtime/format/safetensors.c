#include "runtime/format/safetensors.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <stdlib.h>

#define LENGTH_BYTES 8
#define HEADER_BYTES_MAX ((uint64_t)100 * 1000 * 1000) /* the format's own limit */
/* A JSON value costs some 80 bytes as a tree; so many commas bound the tree at 700 MB. A tensor
 * takes about six: a million tensors fit. */
#define HEADER_COMMAS_MAX ((size_t)8 * 1000 * 1000)
#define HEADER_DEPTH_MAX 8 /* object, tensor, list; what lies deeper is no tensor */

typedef struct entry {
    sp_tensor t;         /* first: what callers see */
    uint64_t begin, end; /* from the end of the header */
} entry;

struct sp_safetensors {
    sp_map map;
    entry *entries;            /* in order of offset */
    const sp_tensor **by_name; /* sorted */
    char *names;               /* all names, each with its NUL */
    int n;
};

/* A name for a message: cut at a whole character, control characters shown as '?', so that an error
 * stays one line whatever the file says. */
typedef struct shown {
    char text[84];
} shown;

static shown show(sp_slice name) {
    shown s = {{0}};
    size_t n = 0;
    while (n < name.len && n < sizeof s.text - 4) {
        uint32_t cp;
        int len = sp_utf8_decode(name.ptr + n, name.len - n, &cp);
        bool plain = len > 0 && cp >= 0x20 && (cp < 0x7f || cp >= 0xa0);
        if (len == 0) len = 1;
        memcpy(s.text + n, plain ? name.ptr + n : "????", (size_t)len);
        n += (size_t)len;
    }
    s.text[n] = 0;
    return s;
}

/* Common files that are not safetensors but are given as such. */
static sp_status refuse_other_formats(const sp_map *m, sp_err *err) {
    sp_slice file = {(const char *)m->ptr, m->len};
    if (sp_slice_starts(file, SP_SLICE("version https://git-lfs")))
        return SP_FAIL(err, SP_E_FORMAT, "is a Git LFS pointer, not the file: run 'git lfs pull'");
    if (sp_slice_starts(file, SP_SLICE("GGUF")))
        return SP_FAIL(err, SP_E_UNSUPPORTED, "is a GGUF file, want safetensors");
    if (sp_slice_starts(file, SP_SLICE("PK\x03\x04")))
        return SP_FAIL(err, SP_E_UNSUPPORTED, "is a PyTorch (zip) file, want safetensors");
    return SP_OK;
}

static sp_status find_header(const sp_map *m, sp_slice *header, sp_err *err) {
    if (m->len < LENGTH_BYTES)
        return SP_FAIL(err, SP_E_FORMAT, "is %zu bytes, want at least %d", m->len, LENGTH_BYTES);
    uint64_t n = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) n = n << 8 | m->ptr[i];
    if (n > HEADER_BYTES_MAX || n > m->len - LENGTH_BYTES) SP_TRY(refuse_other_formats(m, err));
    if (n > HEADER_BYTES_MAX)
        return SP_FAIL(err, SP_E_FORMAT, "header length is %llu bytes, want at most %llu",
                       (unsigned long long)n, (unsigned long long)HEADER_BYTES_MAX);
    if (n > m->len - LENGTH_BYTES)
        return SP_FAIL(err, SP_E_FORMAT, "header of %llu bytes ends beyond the file of %zu",
                       (unsigned long long)n, m->len);
    sp_slice h = {(const char *)m->ptr + LENGTH_BYTES, (size_t)n};
    if (n == 0) return SP_FAIL(err, SP_E_FORMAT, "header is empty, want a JSON object");
    if (h.ptr[0] != '{')
        return SP_FAIL(err, SP_E_FORMAT, "header begins with 0x%02x, want '{'",
                       (unsigned char)h.ptr[0]);
    size_t commas = 0;
    for (size_t i = 0; i < h.len; i++) commas += h.ptr[i] == ',';
    if (commas > HEADER_COMMAS_MAX)
        return SP_FAIL(err, SP_E_FORMAT, "header holds %zu commas, want at most %zu", commas,
                       HEADER_COMMAS_MAX);
    *header = h;
    return SP_OK;
}

/* "__metadata__" is an object of strings; null is seen in the wild and read as none. */
static sp_status check_metadata(const sp_json_node *v, sp_err *err) {
    if (sp_json_is_null(v)) return SP_OK;
    if (sp_json_type_of(v) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, "__metadata__ is %s, want an object of strings",
                       sp_json_type_name(sp_json_type_of(v)));
    for (const sp_json_node *m = sp_json_first(v); m; m = sp_json_next(m))
        if (sp_json_type_of(m) != SP_JSON_STRING)
            return SP_FAIL(err, SP_E_FORMAT, "__metadata__ value '%s' is %s, want a string",
                           show(sp_json_key(m)).text, sp_json_type_name(sp_json_type_of(m)));
    return SP_OK;
}

static sp_status read_dtype(sp_tensor *t, const sp_json_node *v, sp_err *err) {
    if (sp_json_type_of(v) != SP_JSON_STRING)
        return SP_FAIL(err, SP_E_FORMAT, "dtype is %s, want a string",
                       sp_json_type_name(sp_json_type_of(v)));
    if (sp_dtype_parse(sp_json_string(v), &t->dtype) != SP_OK)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "dtype '%s' is not known",
                       show(sp_json_string(v)).text);
    return SP_OK;
}

static sp_status read_shape(sp_tensor *t, const sp_json_node *v, sp_err *err) {
    if (sp_json_type_of(v) != SP_JSON_ARRAY)
        return SP_FAIL(err, SP_E_FORMAT, "shape is %s, want an array",
                       sp_json_type_name(sp_json_type_of(v)));
    for (const sp_json_node *d = sp_json_first(v); d; d = sp_json_next(d)) {
        if (t->n_dims == SP_TENSOR_DIMS_MAX)
            return SP_FAIL(err, SP_E_UNSUPPORTED, "shape has %d dimensions, want at most %d",
                           sp_json_count(v), SP_TENSOR_DIMS_MAX);
        if (sp_json_type_of(d) != SP_JSON_INT || sp_json_int(d) < 0)
            return SP_FAIL(err, SP_E_FORMAT, "dimension %d of the shape is not an integer >= 0",
                           t->n_dims);
        t->shape[t->n_dims++] = sp_json_int(d);
    }
    return SP_OK;
}

static sp_status read_offsets(entry *e, const sp_json_node *v, sp_err *err) {
    if (sp_json_type_of(v) != SP_JSON_ARRAY || sp_json_count(v) != 2)
        return SP_FAIL(err, SP_E_FORMAT, "data_offsets is not an array of two integers");
    const sp_json_node *b = sp_json_at(v, 0), *f = sp_json_at(v, 1);
    if (sp_json_type_of(b) != SP_JSON_INT || sp_json_type_of(f) != SP_JSON_INT ||
        sp_json_int(b) < 0 || sp_json_int(f) < sp_json_int(b))
        return SP_FAIL(err, SP_E_FORMAT, "data_offsets are not two integers 0 <= begin <= end");
    e->begin = (uint64_t)sp_json_int(b);
    e->end = (uint64_t)sp_json_int(f);
    return SP_OK;
}

/* Bytes that dtype and shape ask for. */
static sp_status shape_bytes(const sp_tensor *t, uint64_t *out, sp_err *err) {
    uint64_t bits = 1;
    bool over = false;
    for (int i = 0; i < t->n_dims; i++)
        over |= __builtin_mul_overflow(bits, (uint64_t)t->shape[i], &bits);
    over |= __builtin_mul_overflow(bits, (uint64_t)sp_dtype_bits(t->dtype), &bits);
    if (over) return SP_FAIL(err, SP_E_FORMAT, "shape is too large for 64 bits");
    if (bits % 8)
        return SP_FAIL(err, SP_E_FORMAT, "%llu bits of %s are not whole bytes",
                       (unsigned long long)bits, sp_dtype_name(t->dtype));
    *out = bits / 8;
    return SP_OK;
}

static sp_status read_entry(entry *e, const sp_json_node *v, sp_err *err) {
    if (sp_json_type_of(v) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, "is %s, want an object",
                       sp_json_type_name(sp_json_type_of(v)));
    uint64_t want = 0;
    SP_TRY(read_dtype(&e->t, sp_json_find(v, "dtype"), err));
    SP_TRY(read_shape(&e->t, sp_json_find(v, "shape"), err));
    SP_TRY(read_offsets(e, sp_json_find(v, "data_offsets"), err));
    SP_TRY(shape_bytes(&e->t, &want, err));
    if (want != e->end - e->begin)
        return SP_FAIL(err, SP_E_FORMAT, "dtype and shape take %llu bytes, data_offsets span %llu",
                       (unsigned long long)want, (unsigned long long)(e->end - e->begin));
    e->t.bytes = (size_t)want;
    return SP_OK;
}

static int by_offset(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    /* Empty tensors at one offset stay in the order of the header: names lie in that order. */
    return x->t.name < y->t.name ? -1 : x->t.name > y->t.name;
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const sp_tensor *const *)a)->name, (*(const sp_tensor *const *)b)->name);
}

static int name_of(const void *key, const void *b) {
    return strcmp(key, (*(const sp_tensor *const *)b)->name);
}

/* Every byte behind the header belongs to exactly one tensor: the entries, sorted, must tile it. */
static sp_status place(sp_safetensors *s, sp_slice header, sp_err *err) {
    const unsigned char *data = (const unsigned char *)header.ptr + header.len;
    uint64_t size = s->map.len - LENGTH_BYTES - header.len, at = 0;
    qsort(s->entries, (size_t)s->n, sizeof *s->entries, by_offset);
    for (int i = 0; i < s->n; i++) {
        entry *e = &s->entries[i];
        if (e->begin != at)
            return SP_FAIL(err, SP_E_FORMAT, "tensor '%s' begins at byte %llu, want %llu: %s",
                           show(sp_slice_of(e->t.name)).text, (unsigned long long)e->begin,
                           (unsigned long long)at, e->begin < at ? "tensors overlap" : "a hole");
        if (e->end > size)
            return SP_FAIL(err, SP_E_FORMAT, "tensor '%s' ends at byte %llu of %llu",
                           show(sp_slice_of(e->t.name)).text, (unsigned long long)e->end,
                           (unsigned long long)size);
        e->t.data = e->t.bytes ? data + at : NULL;
        at = e->end;
    }
    if (at != size)
        return SP_FAIL(err, SP_E_FORMAT, "%llu bytes follow the last tensor, want none",
                       (unsigned long long)(size - at));
    for (int i = 0; i < s->n; i++) s->by_name[i] = &s->entries[i].t;
    qsort(s->by_name, (size_t)s->n, sizeof *s->by_name, by_name);
    return SP_OK;
}

static bool is_metadata(const sp_json_node *v) {
    return sp_slice_is(sp_json_key(v), "__metadata__");
}

static sp_status take_tables(sp_safetensors *s, const sp_json_node *root, sp_err *err) {
    size_t n = 0, name_bytes = 0;
    for (const sp_json_node *v = sp_json_first(root); v; v = sp_json_next(v)) {
        if (is_metadata(v)) continue;
        n++;
        name_bytes += sp_json_key(v).len + 1;
    }
    s->entries = sp_try_alloc_array(n, sizeof *s->entries);
    s->by_name = sp_try_alloc_array(n, sizeof *s->by_name);
    s->names = sp_try_alloc(name_bytes);
    if (!s->entries || !s->by_name || !s->names)
        return SP_FAIL(err, SP_E_NOMEM, "no memory for the table of %zu tensors", n);
    return SP_OK;
}

static sp_status read_tensors(sp_safetensors *s, const sp_json_node *root, sp_err *err) {
    SP_TRY(take_tables(s, root, err));
    char *name = s->names;
    for (const sp_json_node *v = sp_json_first(root); v; v = sp_json_next(v)) {
        if (is_metadata(v)) {
            SP_TRY(check_metadata(v, err));
            continue;
        }
        sp_slice key = sp_json_key(v);
        /* json.c keeps an escaped NUL as bytes that are no UTF-8. */
        if (!sp_utf8_valid(key)) return SP_FAIL(err, SP_E_FORMAT, "a tensor's name holds a NUL");
        entry *e = &s->entries[s->n];
        sp_status st = read_entry(e, v, err);
        if (st != SP_OK) {
            sp_err_context(err, "tensor '%s'", show(key).text);
            return st;
        }
        e->t.name = memcpy(name, key.ptr, key.len);
        name += key.len + 1;
        s->n++;
    }
    return SP_OK;
}

static sp_status read_file(sp_safetensors *s, sp_err *err) {
    sp_slice header;
    sp_json *doc = NULL;
    SP_TRY(find_header(&s->map, &header, err));
    sp_status st = sp_json_parse(&doc, header, HEADER_DEPTH_MAX, err);
    if (st != SP_OK) {
        sp_err_context(err, "header");
        return st == SP_E_TOOLONG ? SP_E_FORMAT : st;
    }
    st = read_tensors(s, sp_json_root(doc), err);
    if (st == SP_OK) st = place(s, header, err);
    sp_json_free(doc);
    return st;
}

sp_status sp_safetensors_open(sp_safetensors **out, const char *path, sp_err *err) {
    sp_map map;
    SP_TRY(sp_map_open(&map, path, err));
    sp_status st = SP_E_NOMEM;
    sp_safetensors *s = sp_try_alloc(sizeof *s);
    if (!s) {
        sp_map_close(&map);
        return SP_FAIL(err, st, "'%s': no memory for its table", path);
    }
    s->map = map;
    st = read_file(s, err);
    if (st != SP_OK) {
        /* The end of a long path tells more than its beginning, and leaves room for the reason. */
        size_t len = strlen(path), cut = len > 100 ? len - 97 : 0;
        sp_err_context(err, "'%s%s'", cut ? "..." : "", path + cut);
        if (err) err->code = st;
        sp_safetensors_close(s);
        return st;
    }
    *out = s;
    return SP_OK;
}

void sp_safetensors_close(sp_safetensors *s) {
    if (!s) return;
    sp_map_close(&s->map);
    sp_free(s->entries);
    sp_free(s->by_name);
    sp_free(s->names);
    sp_free(s);
}

int sp_safetensors_count(const sp_safetensors *s) {
    return s->n;
}

const sp_tensor *sp_safetensors_at(const sp_safetensors *s, int i) {
    SP_ASSERT(i >= 0 && i < s->n);
    return &s->entries[i].t;
}

const sp_tensor *sp_safetensors_find(const sp_safetensors *s, const char *name) {
    const sp_tensor *const *hit =
        bsearch(name, s->by_name, (size_t)s->n, sizeof *s->by_name, name_of);
    return hit ? *hit : NULL;
}
