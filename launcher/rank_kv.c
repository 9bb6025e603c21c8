#include "launcher/rank_kv.h"

#include "launcher/fingerprint.h"
#include "launcher/meeting.h"
#include "launcher/words.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

#define SP_LOG "kv"

_Static_assert(SP_KV_ADDRESS_BYTES == SP_KVX_ADDRESS_BYTES, "an address fits its words");
_Static_assert(SP_FORM_KEY_BYTES == SP_KVX_KEY_BYTES, "one key for all that ranks share");
_Static_assert(SP_FINGERPRINT_BYTES == SP_KVX_IDENTITY_BYTES, "an identity is a hash");

struct sp_rank_kv {
    sp_rank_kv_config config;
    sp_kv_layout layout;
    uint8_t key[SP_KVX_KEY_BYTES], identity[SP_KVX_IDENTITY_BYTES];
    int32_t nodes[SP_POD_RANKS_MAX];
    int32_t self; /* rank of the pod */
    sp_kv_leases *leases;
    sp_kvx_region *region;
    sp_kv_port *port;
    sp_kv_mirror *mirror; /* of a device's blocks */
    char address[SP_KVX_ADDRESS_BYTES];
};

static bool is_on_one_node(const sp_rank_kv *k) {
    for (int64_t r = 0; r < k->config.form->ranks; r++)
        if (k->nodes[r] != k->nodes[0]) return false;
    return true;
}

static bool has_other_pods(const sp_rank_kv *k) {
    return k->config.form->kv_key[0] != 0;
}

static bool has_ucx(const sp_rank_kv *k) {
    return strcmp(k->config.form->collectives, "ucx") == 0;
}

static sp_status open_region(sp_rank_kv *k, sp_err *err) {
    const sp_rank_kv_config *c = &k->config;
    sp_kvx_config kc = {.shape = sp_kv_port_shape(&k->layout, &c->part, (int32_t)c->form->n_blocks),
                        .serve_shm = true,
                        .serve_tcp = has_other_pods(k) || !is_on_one_node(k),
                        .serve_ucx = has_ucx(k),
                        .on_lease = sp_kv_leases_put,
                        .lease_ctx = k->leases};
    memcpy(kc.key, k->key, sizeof kc.key);
    memcpy(kc.identity, k->identity, sizeof kc.identity);
    sp_status st = sp_kvx_region_open(&k->region, &kc, err);
    explicit_bzero(kc.key, sizeof kc.key);
    SP_TRY(st);
    char tcp[600] = "";
    if (kc.serve_tcp)
        SP_TRY(sp_local_addresses(tcp, sizeof tcp, sp_kvx_region_port(k->region), err));
    return sp_kvx_region_address(k->region, tcp, k->address, err);
}

sp_status sp_rank_kv_open(sp_rank_kv **out, const sp_rank_kv_config *c, sp_err *err) {
    sp_rank_kv *k = sp_try_alloc(sizeof *k);
    if (!k) return SP_FAIL(err, SP_E_NOMEM, "no memory for the way of KV blocks");
    *k = (sp_rank_kv){.config = *c, .self = (int32_t)(c->form->first + c->form->rank)};
    k->layout = sp_kv_layout_of(c->part.stage.n_layers, c->part.slice.n_kv_heads, c->desc->head_dim,
                                (int32_t)c->form->block_tokens, c->kv_dtype);
    sp_kv_identity(k->identity, c->form->fingerprint, c->numerics);
    k->config.numerics = NULL; /* the caller's */
    sp_status st =
        sp_form_numbers(c->form->nodes, (int)c->form->ranks, 0, SP_POD_RANKS_MAX, k->nodes, err);
    if (st == SP_OK) st = sp_form_kv_key(c->form, k->key, err);
    if (st == SP_OK) st = sp_kv_leases_create(&k->leases, c->link, err);
    if (st == SP_OK) st = open_region(k, err);
    if (st != SP_OK) {
        sp_rank_kv_close(k);
        return st;
    }
    *out = k;
    return SP_OK;
}

void *sp_rank_kv_memory(const sp_rank_kv *k, size_t *bytes) {
    return sp_kvx_region_memory(k->region, bytes);
}
const char *sp_rank_kv_address(const sp_rank_kv *k) {
    return k->address;
}

static sp_status open_port(sp_rank_kv *k, const sp_form_group *groups, int32_t n,
                           const char *const *addresses, sp_err *err) {
    const sp_rank_kv_config *c = &k->config;
    sp_kv_group from[SP_FORM_GROUPS_MAX] = {0};
    bool near[SP_POD_RANKS_MAX];
    size_t bytes;
    for (int64_t r = 0; r < c->form->ranks; r++) near[r] = k->nodes[r] == k->nodes[k->self];
    for (int32_t i = 0; i < n; i++)
        if (i != c->form->group)
            from[i] = (sp_kv_group){{groups[i].tp, groups[i].pp, groups[i].pp_layers},
                                    addresses + groups[i].first,
                                    near + groups[i].first};
    sp_kv_port_config pc = {.region = k->region,
                            .leases = k->leases,
                            .desc = c->desc,
                            .arch = c->arch,
                            .part = c->part,
                            .layout = k->layout,
                            .n_blocks = (int32_t)c->form->n_blocks,
                            .kv = sp_kvx_region_memory(k->region, &bytes),
                            .ucx = has_ucx(k),
                            .groups = from,
                            .n_groups = n,
                            .link = c->link};
    memcpy(pc.key, k->key, sizeof pc.key);
    memcpy(pc.identity, k->identity, sizeof pc.identity);
    sp_status st = sp_kv_port_open(&k->port, &pc, err);
    explicit_bzero(pc.key, sizeof pc.key);
    return st;
}

sp_status sp_rank_kv_connect(sp_rank_kv *k, const char *const *addresses, sp_err *err) {
    sp_form_group *groups = sp_try_alloc_array(SP_FORM_GROUPS_MAX, sizeof *groups);
    if (!groups) return SP_FAIL(err, SP_E_NOMEM, "no memory for the groups of the pod");
    int32_t n;
    sp_status st = sp_form_groups(k->config.form, groups, &n, err);
    if (st == SP_OK) st = open_port(k, groups, n, addresses, err);
    sp_free(groups);
    return st;
}

sp_status sp_rank_kv_mirror(sp_rank_kv *k, sp_dev *dev, unsigned char *blocks, sp_err *err) {
    sp_kv_mirror_config c = {.dev = dev,
                             .there = blocks,
                             .block_bytes = k->layout.block_bytes,
                             .n_blocks = (int32_t)k->config.form->n_blocks};
    c.here = sp_kvx_region_memory(k->region, &c.here_bytes);
    SP_TRY(sp_kv_mirror_open(&k->mirror, &c, err));
    sp_kv_port_set_mirror(k->port, k->mirror);
    sp_info("KV blocks that others read are copied by way of %zu MiB of the host%s",
            (size_t)c.n_blocks * c.block_bytes >> 20,
            sp_kv_mirror_is_locked(k->mirror) ? "" : ", whose pages cannot be locked: slower");
    return SP_OK;
}

const sp_stage_kvx *sp_rank_kv_callbacks(const sp_rank_kv *k) {
    return k->port ? sp_kv_port_callbacks(k->port) : NULL;
}

static void end_port(sp_rank_kv *k) {
    if (!k->port) return;
    if (sp_kv_port_failed_notices(k->port))
        sp_info("%llu renewals and returns of leases did not reach the other pod",
                (unsigned long long)sp_kv_port_failed_notices(k->port));
    sp_kv_port_close(k->port);
    k->port = NULL;
}

void sp_rank_kv_end_pulls(sp_rank_kv *k) {
    if (!k) return;
    end_port(k);
    sp_kv_mirror_close(k->mirror);
    k->mirror = NULL;
}

void sp_rank_kv_close(sp_rank_kv *k) {
    if (!k) return;
    sp_rank_kv_end_pulls(k);
    if (k->region && sp_kvx_region_refused(k->region))
        sp_warn("%llu strangers asked for KV blocks and were refused",
                (unsigned long long)sp_kvx_region_refused(k->region));
    sp_kvx_region_close(k->region);
    sp_kv_leases_destroy(k->leases);
    explicit_bzero(k->key, sizeof k->key);
    sp_free(k);
}
