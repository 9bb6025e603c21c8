#include "runtime/format/model_dir.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <dirent.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define INDEX_BYTES_MAX ((size_t)64 << 20)
#define INDEX_DEPTH_MAX 16
#define SHARDS_MAX 4096
#define FILE_NAME_MAX 255

typedef struct shard {
    char *file; /* owned */
    sp_safetensors *tensors;
} shard;

/* One name of the weight_map. */
typedef struct listed {
    const char *name; /* borrowed from the index's tree */
    int shard;
} listed;

struct sp_model_dir {
    shard *shards;
    int n_shards;
    const sp_tensor **tensors; /* sorted by name */
    int n;
    uint64_t bytes;
};

static bool is_dir(const char *path) {
    struct stat sb;
    return stat(path, &sb) == 0 && S_ISDIR(sb.st_mode);
}

static char *join(const char *dir, const char *name) {
    size_t a = strlen(dir), b = strlen(name);
    bool slash = a > 0 && dir[a - 1] != '/';
    char *path = sp_alloc(a + slash + b + 1);
    memcpy(path, dir, a);
    if (slash) path[a] = '/';
    memcpy(path + a + slash, name, b);
    return path;
}

/* [A-Za-z0-9._-]+ without a leading dot: can name nothing outside the directory. */
static bool is_plain_name(sp_slice s) {
    if (s.len == 0 || s.len > FILE_NAME_MAX || s.ptr[0] == '.') return false;
    for (size_t i = 0; i < s.len; i++) {
        char c = s.ptr[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && c != '.' && c != '_' && c != '-') return false;
    }
    return true;
}

/* The Hugging Face cache: the first of the variables that is set, as huggingface_hub does. */
static char *cache_dir(void) {
    static const struct {
        const char *variable, *below;
    } places[] = {{"HF_HUB_CACHE", ""},
                  {"HUGGINGFACE_HUB_CACHE", ""},
                  {"HF_HOME", "hub"},
                  {"XDG_CACHE_HOME", "huggingface/hub"},
                  {"HOME", ".cache/huggingface/hub"}};
    for (size_t i = 0; i < SP_LEN(places); i++) {
        const char *at = getenv(places[i].variable), *home = getenv("HOME");
        if (!at || !at[0]) continue;
        char *base = at[0] == '~' && at[1] == '/' && home ? join(home, at + 2) : sp_strdup(at);
        if (!places[i].below[0]) return base;
        char *full = join(base, places[i].below);
        sp_free(base);
        return full;
    }
    const struct passwd *user = getpwuid(getuid()); /* HOME is unset under some launchers */
    return join(user ? user->pw_dir : "/", ".cache/huggingface/hub");
}

/* models--org--name beneath the cache. NULL: `model` is not org/name or name. */
static char *cache_folder(const char *cache, const char *model) {
    const char *slash = strchr(model, '/');
    size_t org = slash ? (size_t)(slash - model) : 0;
    sp_slice name = sp_slice_of(slash ? slash + 1 : model);
    if (slash && !is_plain_name((sp_slice){model, org})) return NULL;
    if (!is_plain_name(name)) return NULL;
    sp_buf b;
    sp_buf_init(&b, 0);
    sp_buf_puts(&b, "models--");
    sp_buf_put(&b, model, org);
    if (slash) sp_buf_puts(&b, "--");
    sp_buf_put_slice(&b, name);
    char *folder = join(cache, b.ptr);
    sp_buf_fini(&b);
    return folder;
}

/* The snapshot that refs/main names, or NULL. */
static char *main_snapshot(const char *folder) {
    char *ref = join(folder, "refs/main"), *text = NULL, *found = NULL;
    size_t len = 0;
    if (sp_file_read(ref, FILE_NAME_MAX, &text, &len, NULL) == SP_OK) {
        while (len > 0 && (unsigned char)text[len - 1] <= ' ') text[--len] = 0;
        if (is_plain_name((sp_slice){text, len})) {
            char *snapshots = join(folder, "snapshots");
            found = join(snapshots, text);
            sp_free(snapshots);
        }
    }
    if (found && !is_dir(found)) {
        sp_free(found);
        found = NULL;
    }
    sp_free(text);
    sp_free(ref);
    return found;
}

static bool is_newer(const struct stat *a, const struct stat *b) {
    if (a->st_mtim.tv_sec != b->st_mtim.tv_sec) return a->st_mtim.tv_sec > b->st_mtim.tv_sec;
    return a->st_mtim.tv_nsec > b->st_mtim.tv_nsec;
}

static char *newest_snapshot(const char *folder) {
    char *snapshots = join(folder, "snapshots"), *best = NULL;
    struct stat best_sb = {0}, sb;
    DIR *d = opendir(snapshots);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!is_plain_name(sp_slice_of(e->d_name))) continue;
        char *path = join(snapshots, e->d_name);
        if (stat(path, &sb) == 0 && S_ISDIR(sb.st_mode) && (!best || is_newer(&sb, &best_sb))) {
            sp_free(best);
            best = path;
            best_sb = sb;
        } else {
            sp_free(path);
        }
    }
    if (d) closedir(d);
    sp_free(snapshots);
    return best;
}

sp_status sp_model_resolve(char **out, const char *model, sp_err *err) {
    if (is_dir(model)) {
        *out = sp_strdup(model);
        return SP_OK;
    }
    if (!model[0])
        return SP_FAIL(err, SP_E_NOTFOUND, "model is empty, want a directory or org/name");
    if (sp_file_exists(model))
        return SP_FAIL(err, SP_E_NOTFOUND,
                       "model '%.120s' is a file, want a directory with config.json", model);
    char *cache = cache_dir(), *folder = cache_folder(cache, model), *found = NULL;
    if (folder) {
        found = main_snapshot(folder);
        if (!found) found = newest_snapshot(folder);
    }
    sp_status st = SP_OK;
    if (found)
        *out = found;
    else if (folder)
        st = SP_FAIL(err, SP_E_NOTFOUND,
                     "model '%.80s' is no directory and not in the cache '%.80s': get it with "
                     "'hf download %.50s'",
                     model, cache, model);
    else
        st = SP_FAIL(err, SP_E_NOTFOUND, "model '%.120s': no such directory", model);
    sp_free(folder);
    sp_free(cache);
    return st;
}

/* ---- shards ---- */

static sp_status open_shard(sp_model_dir *d, const char *dir, const char *file, sp_err *err) {
    char *path = join(dir, file);
    shard *s = &d->shards[d->n_shards];
    sp_status st = sp_safetensors_open(&s->tensors, path, err);
    sp_free(path);
    if (st != SP_OK) return st;
    s->file = sp_strdup(file);
    d->n_shards++;
    return SP_OK;
}

static int tensor_by_name(const void *a, const void *b) {
    return strcmp((*(const sp_tensor *const *)a)->name, (*(const sp_tensor *const *)b)->name);
}
static int name_of(const void *key, const void *b) {
    return strcmp(key, (*(const sp_tensor *const *)b)->name);
}

/* One sorted table over all shards; compare() has proven that no name is in two of them. */
static sp_status merge(sp_model_dir *d, sp_err *err) {
    size_t n = 0;
    for (int i = 0; i < d->n_shards; i++) n += (size_t)sp_safetensors_count(d->shards[i].tensors);
    d->tensors = sp_try_alloc_array(n, sizeof *d->tensors);
    if (!d->tensors) return SP_FAIL(err, SP_E_NOMEM, "no memory for the table of %zu tensors", n);
    for (int i = 0; i < d->n_shards; i++)
        for (int k = 0; k < sp_safetensors_count(d->shards[i].tensors); k++) {
            const sp_tensor *t = sp_safetensors_at(d->shards[i].tensors, k);
            d->tensors[d->n++] = t;
            d->bytes += t->bytes;
        }
    qsort(d->tensors, n, sizeof *d->tensors, tensor_by_name);
    return SP_OK;
}

/* ---- the index ---- */

static int shard_of(const sp_model_dir *d, sp_slice file) {
    for (int i = d->n_shards - 1; i >= 0; i--) /* lists run shard by shard: the last is likely */
        if (sp_slice_is(file, d->shards[i].file)) return i;
    return -1;
}

static sp_status read_listed(sp_model_dir *d, const char *dir, const sp_json_node *v, listed *out,
                             sp_err *err) {
    sp_slice file = sp_json_string(v), name = sp_json_key(v);
    if (sp_json_type_of(v) != SP_JSON_STRING)
        return SP_FAIL(err, SP_E_FORMAT, INDEX ": weight_map '%.80s' is %s, want a file name",
                       name.ptr, sp_json_type_name(sp_json_type_of(v)));
    if (!is_plain_name(file) || !sp_slice_ends(file, SP_SLICE(".safetensors")))
        return SP_FAIL(err, SP_E_FORMAT,
                       INDEX ": weight_map '%.60s' names '%.*s', want a plain file name that ends "
                             "in .safetensors",
                       name.ptr, (int)(file.len < 60 ? file.len : 60), file.ptr);
    int at = shard_of(d, file);
    if (at < 0) {
        if (d->n_shards == SHARDS_MAX)
            return SP_FAIL(err, SP_E_FORMAT, INDEX ": names more than %d shards", SHARDS_MAX);
        char text[FILE_NAME_MAX + 1] = {0};
        memcpy(text, file.ptr, file.len);
        SP_TRY(open_shard(d, dir, text, err));
        at = d->n_shards - 1;
    }
    *out = (listed){name.ptr, at};
    return SP_OK;
}

static int listed_by_name(const void *a, const void *b) {
    return strcmp(((const listed *)a)->name, ((const listed *)b)->name);
}
static int listed_name_of(const void *key, const void *b) {
    return strcmp(key, ((const listed *)b)->name);
}

/* Both ways: what is listed is there, and what is there is listed there. */
static sp_status compare(const sp_model_dir *d, listed *list, size_t n, sp_err *err) {
    for (size_t i = 0; i < n; i++)
        if (!sp_safetensors_find(d->shards[list[i].shard].tensors, list[i].name))
            return SP_FAIL(err, SP_E_FORMAT,
                           INDEX ": tensor '%.80s' is listed in '%.80s' but is not there",
                           list[i].name, d->shards[list[i].shard].file);
    qsort(list, n, sizeof *list, listed_by_name);
    for (int s = 0; s < d->n_shards; s++)
        for (int k = 0; k < sp_safetensors_count(d->shards[s].tensors); k++) {
            const char *name = sp_safetensors_at(d->shards[s].tensors, k)->name;
            const listed *hit = bsearch(name, list, n, sizeof *list, listed_name_of);
            if (hit && hit->shard == s) continue;
            return SP_FAIL(err, SP_E_FORMAT,
                           INDEX ": tensor '%.80s' is in '%.60s' but is listed %s%.60s", name,
                           d->shards[s].file, hit ? "in " : "nowhere",
                           hit ? d->shards[hit->shard].file : "");
        }
    return SP_OK;
}

static sp_status read_weight_map(sp_model_dir *d, const char *dir, const sp_json_node *root,
                                 sp_err *err) {
    const sp_json_node *map = sp_json_find(root, "weight_map");
    if (sp_json_type_of(map) != SP_JSON_OBJECT)
        return SP_FAIL(err, SP_E_FORMAT, INDEX ": weight_map is %s, want an object",
                       sp_json_type_name(sp_json_type_of(map)));
    size_t n = (size_t)sp_json_count(map), i = 0;
    d->shards = sp_try_alloc_array(n < SHARDS_MAX ? n : SHARDS_MAX, sizeof *d->shards);
    listed *list = sp_try_alloc_array(n, sizeof *list);
    sp_status st = SP_OK;
    if (!d->shards || !list) st = SP_FAIL(err, SP_E_NOMEM, INDEX ": no memory for %zu names", n);
    for (const sp_json_node *v = sp_json_first(map); v && st == SP_OK; v = sp_json_next(v))
        st = read_listed(d, dir, v, &list[i++], err);
    if (st == SP_OK) st = compare(d, list, n, err);
    sp_free(list);
    return st;
}

static sp_status open_indexed(sp_model_dir *d, const char *dir, sp_err *err) {
    char *path = join(dir, INDEX), *text = NULL;
    size_t len = 0;
    sp_json *doc = NULL;
    sp_status st = sp_file_read(path, INDEX_BYTES_MAX, &text, &len, err);
    sp_free(path);
    if (st != SP_OK) return st;
    st = sp_json_parse(&doc, (sp_slice){text, len}, INDEX_DEPTH_MAX, err);
    sp_free(text);
    if (st != SP_OK) {
        sp_err_context(err, INDEX);
        return st == SP_E_NOMEM ? st : SP_E_FORMAT;
    }
    st = read_weight_map(d, dir, sp_json_root(doc), err);
    sp_json_free(doc);
    return st;
}

static sp_status open_single(sp_model_dir *d, const char *dir, sp_err *err) {
    d->shards = sp_try_alloc(sizeof *d->shards);
    if (!d->shards) return SP_FAIL(err, SP_E_NOMEM, "no memory for the table of shards");
    return open_shard(d, dir, SINGLE, err);
}

/* What is there instead of safetensors, in the words of its kind. NULL: nothing known. */
static const char *other_kind(const char *file) {
    sp_slice f = sp_slice_of(file);
    if (sp_slice_starts(f, SP_SLICE("consolidated"))) return "native (consolidated) weights";
    if (sp_slice_ends(f, SP_SLICE(".gguf"))) return "GGUF";
    if (sp_slice_ends(f, SP_SLICE(".safetensors"))) return "safetensors without their index";
    if (sp_slice_starts(f, SP_SLICE("pytorch_model"))) return "PyTorch weights";
    if (sp_slice_ends(f, SP_SLICE(".pth")) || sp_slice_ends(f, SP_SLICE(".pt")))
        return "PyTorch weights";
    if (sp_slice_ends(f, SP_SLICE(".h5"))) return "TensorFlow weights";
    if (sp_slice_ends(f, SP_SLICE(".msgpack"))) return "Flax weights";
    if (sp_slice_ends(f, SP_SLICE(".onnx"))) return "an ONNX model";
    return NULL;
}

static sp_status refuse_empty(const char *dir, sp_err *err) {
    DIR *d = opendir(dir);
    if (!d) return SP_FAIL(err, SP_E_NOTFOUND, "'%.120s': no such directory", dir);
    /* The least name, so that the words do not depend on the order of the directory. */
    char found[FILE_NAME_MAX + 1] = {0};
    for (struct dirent *e; (e = readdir(d));)
        if (other_kind(e->d_name) && (!found[0] || strcmp(e->d_name, found) < 0))
            snprintf(found, sizeof found, "%s", e->d_name);
    closedir(d);
    if (found[0])
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "'%.80s' holds %s ('%.60s'), want " SINGLE " or " INDEX, dir,
                       other_kind(found), found);
    return SP_FAIL(err, SP_E_NOTFOUND, "'%.100s' holds neither " SINGLE " nor " INDEX, dir);
}

sp_status sp_model_dir_open(sp_model_dir **out, const char *dir, sp_err *err) {
    sp_model_dir *d = sp_try_alloc(sizeof *d);
    if (!d) return SP_FAIL(err, SP_E_NOMEM, "no memory for a model directory");
    char *single = join(dir, SINGLE), *index = join(dir, INDEX);
    /* transformers prefers the single file when both are there, and so do we. */
    sp_status st = sp_file_exists(single)  ? open_single(d, dir, err)
                   : sp_file_exists(index) ? open_indexed(d, dir, err)
                                           : refuse_empty(dir, err);
    sp_free(single);
    sp_free(index);
    if (st == SP_OK) st = merge(d, err);
    if (st != SP_OK) {
        if (err) err->code = st;
        sp_model_dir_close(d);
        return st;
    }
    *out = d;
    return SP_OK;
}

void sp_model_dir_close(sp_model_dir *d) {
    if (!d) return;
    for (int i = 0; i < d->n_shards; i++) {
        sp_safetensors_close(d->shards[i].tensors);
        sp_free(d->shards[i].file);
    }
    sp_free(d->shards);
    sp_free(d->tensors);
    sp_free(d);
}

int sp_model_dir_count(const sp_model_dir *d) {
    return d->n;
}
uint64_t sp_model_dir_bytes(const sp_model_dir *d) {
    return d->bytes;
}

const sp_tensor *sp_model_dir_at(const sp_model_dir *d, int i) {
    SP_ASSERT(i >= 0 && i < d->n);
    return d->tensors[i];
}

const sp_tensor *sp_model_dir_find(const sp_model_dir *d, const char *name) {
    const sp_tensor *const *hit =
        bsearch(name, d->tensors, (size_t)d->n, sizeof *d->tensors, name_of);
    return hit ? *hit : NULL;
}

static const char *shape_text(char *out, size_t n, int n_dims, const int64_t *shape) {
    size_t at = (size_t)snprintf(out, n, "[");
    for (int i = 0; i < n_dims && at < n; i++)
        at += (size_t)snprintf(out + at, n - at, "%s%lld", i ? "," : "", (long long)shape[i]);
    if (at < n) snprintf(out + at, n - at, "]");
    return out;
}

sp_status sp_model_dir_get(const sp_model_dir *d, const char *name, int n_dims,
                           const int64_t *shape, const sp_tensor **out, sp_err *err) {
    const sp_tensor *t = sp_model_dir_find(d, name);
    if (!t) return SP_FAIL(err, SP_E_NOTFOUND, "tensor '%.160s' is not in the model", name);
    if (t->dtype != SP_DTYPE_F32 && t->dtype != SP_DTYPE_F16 && t->dtype != SP_DTYPE_BF16)
        return SP_FAIL(err, SP_E_FORMAT, "'%.160s' is %s, want F32, F16 or BF16", name,
                       sp_dtype_name(t->dtype));
    bool same = t->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++) same = t->shape[i] == shape[i];
    char seen[100], want[100];
    if (!same)
        return SP_FAIL(err, SP_E_FORMAT, "'%.100s' is %s %s, want %s", name,
                       sp_dtype_name(t->dtype), shape_text(seen, sizeof seen, t->n_dims, t->shape),
                       shape_text(want, sizeof want, n_dims, shape));
    *out = t;
    return SP_OK;
}
