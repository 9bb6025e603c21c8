#include "launcher/words.h"

#include "launcher/flat.h"

#include <dirent.h>
#include <linux/capability.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NUMBER_MAX INT64_C(9007199254740991) /* what JSON numbers hold exactly */
#define INDEX_MAX 65535

static const sp_flat_row agent_rows[] = {
    SP_FLAT_TEXT_ROW(sp_agent_words, host),
    SP_FLAT_TEXT_ROW(sp_agent_words, node),
    SP_FLAT_NUMBER_ROW(sp_agent_words, rank, -1, INDEX_MAX),
    SP_FLAT_NUMBER_ROW(sp_agent_words, pid, 1, NUMBER_MAX),
    SP_FLAT_NUMBER_ROW(sp_agent_words, slots, 0, INDEX_MAX),
    SP_FLAT_NUMBER_ROW(sp_agent_words, cores, 1, INDEX_MAX),
    SP_FLAT_NUMBER_ROW(sp_agent_words, memlock_bytes, -1, NUMBER_MAX),
    SP_FLAT_NUMBER_ROW(sp_agent_words, shm_bytes, -1, NUMBER_MAX),
    SP_FLAT_NUMBER_ROW(sp_agent_words, open_files, -1, NUMBER_MAX),
    SP_FLAT_NUMBER_ROW(sp_agent_words, rdma, 0, INDEX_MAX),
    SP_FLAT_TEXT_ROW(sp_agent_words, measure),
};
static const sp_flat_row rank_rows[] = {
    SP_FLAT_NUMBER_ROW(sp_rank_words, agent, 0, INDEX_MAX),
    SP_FLAT_NUMBER_ROW(sp_rank_words, local, 0, INDEX_MAX),
    SP_FLAT_NUMBER_ROW(sp_rank_words, pid, 1, NUMBER_MAX),
};
static const sp_flat_row welcome_rows[] = {
    SP_FLAT_NUMBER_ROW(sp_welcome, agent, 1, INDEX_MAX),
    SP_FLAT_NUMBER_ROW(sp_welcome, ranks, 0, SP_POD_RANKS_MAX),
    SP_FLAT_TEXT_ROW(sp_welcome, log_level),
    SP_FLAT_FLAG_ROW(sp_welcome, log_json),
};
static const sp_flat_row rank_end_rows[] = {
    SP_FLAT_NUMBER_ROW(sp_rank_end, local, 0, INDEX_MAX),
    SP_FLAT_NUMBER_ROW(sp_rank_end, code, -128, 255),
};
static const sp_flat_row pod_end_rows[] = {
    SP_FLAT_NUMBER_ROW(sp_pod_end, code, 0, 255),
    SP_FLAT_TEXT_ROW(sp_pod_end, why),
};

#define WORDS(type, name, table) \
    void name##_write(const type *v, sp_buf *out) { \
        sp_jw w = sp_jw_on(out); \
        sp_flat_write(v, table, SP_LEN(table), &w); \
    } \
    sp_status name##_read(type *out, sp_slice json, sp_err *err) { \
        type v = {0}; \
        SP_TRY(sp_flat_parse(&v, table, SP_LEN(table), json, err)); \
        *out = v; \
        return SP_OK; \
    }
WORDS(sp_agent_words, sp_agent_words, agent_rows)
WORDS(sp_rank_words, sp_rank_words, rank_rows)
WORDS(sp_welcome, sp_welcome, welcome_rows)
WORDS(sp_rank_end, sp_rank_end, rank_end_rows)
WORDS(sp_pod_end, sp_pod_end, pod_end_rows)

/* ---- addresses ---- */

typedef struct address_text { /* as it travels */
    char share[64];
    char ucx[2 * SP_UCX_ADDRESS_MAX + 1];
    char kv[SP_KV_ADDRESS_BYTES];
    char tp_id[2 * SP_DEV_GROUP_ID_BYTES + 1];
    char pp_id[2 * SP_DEV_GROUP_ID_BYTES + 1];
} address_text;
static const sp_flat_row address_rows[] = {
    SP_FLAT_TEXT_ROW(address_text, share), SP_FLAT_TEXT_ROW(address_text, ucx),
    SP_FLAT_TEXT_ROW(address_text, kv),    SP_FLAT_TEXT_ROW(address_text, tp_id),
    SP_FLAT_TEXT_ROW(address_text, pp_id),
};

void sp_address_write(const sp_address *a, sp_buf *out) {
    address_text t = {.share = ""};
    memcpy(t.share, a->share, sizeof t.share);
    memcpy(t.kv, a->kv, sizeof t.kv);
    sp_hex_write(t.ucx, a->ucx, a->ucx_bytes);
    if (a->tp.is) sp_hex_write(t.tp_id, a->tp.id.bytes, sizeof a->tp.id.bytes);
    if (a->pp.is) sp_hex_write(t.pp_id, a->pp.id.bytes, sizeof a->pp.id.bytes);
    sp_jw w = sp_jw_on(out);
    sp_flat_write(&t, address_rows, SP_LEN(address_rows), &w);
}

/* Of text that fits into `out`. */
static sp_status get_hex(const char *key, const char *text, unsigned char *out, sp_err *err) {
    if (strlen(text) % 2 != 0)
        return SP_FAIL(err, SP_E_INVALID, "%s: an odd number of digits", key);
    if (sp_hex_read(out, strlen(text) / 2, text) == SP_OK) return SP_OK;
    return SP_FAIL(err, SP_E_INVALID, "%s: want hexadecimal digits, got '%.8s...'", key, text);
}

static sp_status get_id(const char *key, const char *text, sp_device_group *out, sp_err *err) {
    const size_t n = strlen(text);
    out->is = n > 0;
    if (n != 0 && n != 2 * SP_DEV_GROUP_ID_BYTES)
        return SP_FAIL(err, SP_E_INVALID, "%s: want %d digits or none, got %zu", key,
                       2 * SP_DEV_GROUP_ID_BYTES, n);
    return get_hex(key, text, out->id.bytes, err);
}

static sp_status address_of(sp_address *out, const address_text *t, sp_err *err) {
    sp_address a = {.ucx_bytes = strlen(t->ucx) / 2};
    memcpy(a.share, t->share, sizeof a.share);
    memcpy(a.kv, t->kv, sizeof a.kv);
    SP_TRY(get_hex("ucx", t->ucx, a.ucx, err));
    SP_TRY(get_id("tp_id", t->tp_id, &a.tp, err));
    SP_TRY(get_id("pp_id", t->pp_id, &a.pp, err));
    *out = a;
    return SP_OK;
}

sp_status sp_address_read(sp_address *out, sp_slice json, sp_err *err) {
    address_text t = {.share = ""};
    SP_TRY(sp_flat_parse(&t, address_rows, SP_LEN(address_rows), json, err));
    return address_of(out, &t, err);
}

void sp_peers_write(const sp_slice *addresses, int n, sp_buf *out) {
    sp_jw w = sp_jw_on(out);
    sp_jw_array(&w);
    for (int i = 0; i < n; i++) sp_jw_raw(&w, addresses[i]);
    sp_jw_array_end(&w);
}

static sp_status read_peers(sp_address *out, int n, const sp_json_node *root, sp_err *err) {
    if (sp_json_type_of(root) != SP_JSON_ARRAY || sp_json_count(root) != n)
        return SP_FAIL(err, SP_E_INVALID, "want %d addresses, got %d", n, sp_json_count(root));
    const sp_json_node *at = sp_json_first(root);
    for (int i = 0; i < n; i++, at = sp_json_next(at)) {
        address_text t = {.share = ""};
        SP_TRY(sp_flat_read(&t, address_rows, SP_LEN(address_rows), at, err));
        SP_TRY(address_of(&out[i], &t, err));
    }
    return SP_OK;
}

sp_status sp_peers_read(sp_address *out, int n, sp_slice json, sp_err *err) {
    sp_json *doc;
    SP_TRY(sp_json_parse(&doc, json, 4, err));
    sp_status st = read_peers(out, n, sp_json_root(doc), err);
    sp_json_free(doc);
    return st;
}

/* ---- what is here ---- */

static int64_t limit_of(int which) {
    struct rlimit r;
    if (getrlimit((__rlimit_resource_t)which, &r) != 0 || r.rlim_cur == RLIM_INFINITY) return -1;
    return r.rlim_cur > (rlim_t)NUMBER_MAX ? -1 : (int64_t)r.rlim_cur;
}

static int64_t shm_bytes(void) {
    struct statvfs v;
    if (statvfs("/dev/shm", &v) != 0) return -1;
    uint64_t bytes = (uint64_t)v.f_frsize * v.f_blocks;
    return bytes > (uint64_t)NUMBER_MAX ? -1 : (int64_t)bytes;
}

/* With CAP_IPC_LOCK the limit of locked memory does not bind. */
static bool may_lock_all(void) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {{0}};
    return syscall(SYS_capget, &head, sets) == 0 && (sets[0].effective & 1u << CAP_IPC_LOCK);
}

static int64_t count_rdma(void) {
    DIR *d = opendir("/sys/class/infiniband");
    if (!d) return 0;
    int64_t n = 0;
    for (const struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n < INDEX_MAX ? n : INDEX_MAX;
}

void sp_node_id(char out[SP_NODE_BYTES]) {
    char boot[40] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f) {
        if (!fgets(boot, sizeof boot, f)) boot[0] = 0;
        fclose(f);
    }
    boot[strcspn(boot, "\n")] = 0;
    struct stat net = {0};
    if (stat("/proc/self/ns/net", &net) != 0) net.st_ino = 0;
    snprintf(out, SP_NODE_BYTES, "%s-%llu-%u", boot, (unsigned long long)net.st_ino,
             (unsigned)geteuid());
}

void sp_agent_words_here(sp_agent_words *out) {
    sp_agent_words w = {.rank = -1, .pid = getpid()};
    if (gethostname(w.host, sizeof w.host - 1) != 0) snprintf(w.host, sizeof w.host, "unknown");
    sp_node_id(w.node);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    w.cores = cores > 0 ? cores : 1;
    w.memlock_bytes = may_lock_all() ? -1 : limit_of(RLIMIT_MEMLOCK);
    w.open_files = limit_of(RLIMIT_NOFILE);
    w.shm_bytes = shm_bytes();
    w.rdma = count_rdma();
    *out = w;
}
