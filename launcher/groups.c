#include "launcher/groups.h"

#include "comm/share.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SP_LOG "groups"

enum {
    TP,
    PP,
    FEEDBACK,
    N_GROUPS
};
static const char *const names[N_GROUPS] = {"tp", "pp", "feedback"};

typedef struct member_list {
    int32_t rank[SP_GROUP_MEMBERS_MAX]; /* of the pod */
    int n, me;                          /* me -1: not in it */
} member_list;

struct sp_groups {
    int32_t tp, pp, rank, first; /* rank in its group, whose 0 is `first` of the pod */
    int32_t nodes[SP_POD_RANKS_MAX];
    uint8_t key[SP_SHARE_KEY_BYTES];
    bool force_ucx;
    sp_groups_config of;
    sp_dev_comms *comms; /* of the device; NULL: no group is the device's */
    member_list members[N_GROUPS];
    sp_group_config config[N_GROUPS];
    int own_fd[N_GROUPS]; /* memory made by this rank; -1: none */
    sp_group *group[N_GROUPS];
    sp_share *share;
    sp_ucx *ucx;
};

static void add(const sp_groups *g, member_list *l, int32_t rank) {
    if (rank == g->rank) l->me = l->n;
    l->rank[l->n++] = g->first + rank;
}

/* Rank r of its group is stage r / tp, tensor-parallel rank r % tp. */
static void list_members(sp_groups *g) {
    for (int i = 0; i < N_GROUPS; i++) g->members[i].me = -1;
    int32_t stage = g->rank / g->tp, slice = g->rank % g->tp, sampler = (g->pp - 1) * g->tp;
    for (int32_t t = 0; t < g->tp; t++) add(g, &g->members[TP], stage * g->tp + t);
    for (int32_t s = 0; s < g->pp; s++) add(g, &g->members[PP], s * g->tp + slice);
    add(g, &g->members[FEEDBACK], sampler);
    for (int32_t t = 0; t < g->tp; t++)
        if (t != sampler) add(g, &g->members[FEEDBACK], t);
}

static bool is_mine(const sp_groups *g, int i) {
    return g->members[i].me >= 0 && g->members[i].n > 1;
}

static bool is_device(const sp_groups *g, int i) {
    return g->of.dev && i != FEEDBACK;
}

static bool is_shared(const sp_groups *g, int i) {
    const member_list *l = &g->members[i];
    for (int k = 1; k < l->n; k++)
        if (g->nodes[l->rank[k]] != g->nodes[l->rank[0]]) return false;
    return !g->force_ucx;
}

static size_t largest_sum(int32_t tp, int32_t hidden, int32_t vocab, size_t tokens, size_t rows) {
    size_t step = tokens * (size_t)hidden, logits = rows * ((size_t)vocab / (size_t)tp + 1);
    return step > logits ? step : logits;
}

/* Each member's part is in every member's memory while it is summed: larger sums go in pieces, which
 * costs nothing where a piece fills the links for long. */
#define DEVICE_PIECE_MAX ((size_t)4 << 20) /* floats */

sp_group_config sp_groups_tp_sizes(int32_t tp, int32_t hidden, int32_t vocab, int32_t max_tokens,
                                   int32_t max_rows) {
    size_t most = largest_sum(tp, hidden, vocab, (size_t)max_tokens, (size_t)max_rows);
    return (sp_group_config){.n = tp,
                             .max_reduce = most < DEVICE_PIECE_MAX ? most : DEVICE_PIECE_MAX};
}

static void size_groups(sp_groups *g, const sp_form *f) {
    const int32_t hidden = g->of.hidden, vocab = g->of.vocab;
    size_t step = (size_t)f->max_batched_tokens * (size_t)hidden;
    size_t ids = (size_t)f->max_num_seqs * sizeof(int32_t);
    for (int i = 0; i < N_GROUPS; i++)
        g->config[i] = (sp_group_config){.n = g->members[i].n,
                                         .me = g->members[i].me,
                                         .timeout_ns = f->timeout_ms * SP_NS_PER_MS,
                                         .crowded = g->of.crowded,
                                         .max_message = 64};
    g->config[TP].max_reduce =
        largest_sum(g->tp, hidden, vocab, (size_t)f->max_batched_tokens, (size_t)f->max_step_rows);
    if (g->of.dev)
        g->config[TP].max_reduce =
            sp_groups_tp_sizes(g->tp, hidden, vocab, (int32_t)f->max_batched_tokens,
                               (int32_t)f->max_step_rows)
                .max_reduce;
    g->config[PP].max_message = step * sizeof(float);
    g->config[FEEDBACK].max_message = ids;
    g->config[FEEDBACK].sends = (int)f->pp + 2;
}

_Static_assert(SP_SHARE_KEY_BYTES == SP_FORM_KEY_BYTES, "one key for all that ranks share");

static sp_status read_form(sp_groups *g, const sp_form *f, sp_err *err) {
    g->tp = (int32_t)f->tp;
    g->pp = (int32_t)f->pp;
    g->rank = (int32_t)f->rank;
    g->first = (int32_t)f->first;
    int32_t n = (int32_t)f->ranks;
    /* With several stages the feedback group has one member more than a stage. */
    if (n > SP_POD_RANKS_MAX || g->tp + (g->pp > 1) > SP_GROUP_MEMBERS_MAX ||
        g->pp > SP_GROUP_MEMBERS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "%d ranks, %d x %d here; at most %d, %d in a group", n,
                       g->tp, g->pp, SP_POD_RANKS_MAX, SP_GROUP_MEMBERS_MAX);
    SP_TRY(sp_form_numbers(f->nodes, n, 0, SP_POD_RANKS_MAX, g->nodes, err));
    SP_TRY(sp_form_key(f, g->key, err));
    g->force_ucx = strcmp(f->collectives, "ucx") == 0;
    list_members(g);
    if (strcmp(f->collectives, "shm") == 0)
        for (int i = 0; i < N_GROUPS; i++)
            if (is_mine(g, i) && !is_shared(g, i))
                return SP_FAIL(err, SP_E_INVALID,
                               "option 'collectives' is shm, but the %s group spans nodes: want "
                               "auto or ucx",
                               names[i]);
    return SP_OK;
}

static sp_status make_memory(sp_groups *g, int i, sp_err *err) {
    if (!g->share) SP_TRY(sp_share_open(&g->share, g->key, err));
    SP_TRY(sp_group_shm_create(&g->own_fd[i], &g->config[i], err));
    return sp_share_add(g->share, (uint32_t)i, g->own_fd[i], err);
}

static sp_status make_id(sp_groups *g, int i, sp_address *a, sp_err *err) {
    sp_device_group *of = i == TP ? &a->tp : &a->pp;
    if (!g->comms) SP_TRY(g->of.dev_groups->open(&g->comms, err));
    if (g->members[i].me != 0) return SP_OK;
    of->is = true;
    return g->of.dev_groups->make_id(g->comms, &of->id, err);
}

static sp_status make_host(sp_groups *g, int i, sp_err *err) {
    if (!is_shared(g, i)) return g->ucx ? SP_OK : sp_ucx_open(&g->ucx, err);
    return g->members[i].me == 0 ? make_memory(g, i, err) : SP_OK;
}

static sp_status prepare(sp_groups *g, sp_address *address, sp_err *err) {
    sp_address a = {.ucx_bytes = 0};
    for (int i = 0; i < N_GROUPS; i++)
        if (is_mine(g, i)) SP_TRY(is_device(g, i) ? make_id(g, i, &a, err) : make_host(g, i, err));
    if (g->share) snprintf(a.share, sizeof a.share, "%s", sp_share_name(g->share));
    if (g->ucx) {
        const void *ucx = sp_ucx_address(g->ucx, &a.ucx_bytes);
        if (a.ucx_bytes > sizeof a.ucx)
            return SP_FAIL(err, SP_E_TOOLONG, "a UCX address of %zu bytes, at most %zu",
                           a.ucx_bytes, sizeof a.ucx);
        memcpy(a.ucx, ucx, a.ucx_bytes);
    }
    *address = a;
    return SP_OK;
}

sp_status sp_groups_prepare(sp_groups **out, const sp_form *form, const sp_groups_config *config,
                            sp_address *address, sp_err *err) {
    sp_groups *g = sp_alloc(sizeof *g);
    g->of = *config;
    for (int i = 0; i < N_GROUPS; i++) g->own_fd[i] = -1;
    sp_status st = read_form(g, form, err);
    if (st == SP_OK) {
        size_groups(g, form);
        st = prepare(g, address, err);
    }
    if (st != SP_OK) {
        sp_groups_close(g);
        return st;
    }
    *out = g;
    return SP_OK;
}

static sp_status join_memory(sp_groups *g, int i, const sp_address *peers, int64_t deadline_ns,
                             sp_err *err) {
    int fd = g->own_fd[i];
    if (fd < 0)
        SP_TRY(sp_share_take(&fd, peers[g->members[i].rank[0]].share, g->key, (uint32_t)i,
                             deadline_ns, err));
    sp_status st = sp_group_open_shm(&g->group[i], fd, &g->config[i], err);
    if (fd != g->own_fd[i]) close(fd);
    return st;
}

static sp_status join_ucx(sp_groups *g, int i, const sp_address *peers, sp_err *err) {
    sp_ucx_peer list[SP_GROUP_MEMBERS_MAX];
    const member_list *l = &g->members[i];
    for (int k = 0; k < l->n; k++)
        list[k] = (sp_ucx_peer){peers[l->rank[k]].ucx, peers[l->rank[k]].ucx_bytes};
    /* The same at all members and no other group's: which kind, and its first member. */
    uint32_t id = (uint32_t)i * SP_POD_RANKS_MAX + (uint32_t)l->rank[0];
    return sp_group_open_ucx(&g->group[i], g->ucx, list, id, &g->config[i], err);
}

static sp_status join_device(sp_groups *g, int i, const sp_address *peers,
                             const sp_group_wait *wait, sp_err *err) {
    const int32_t first = g->members[i].rank[0];
    const sp_device_group *of = i == TP ? &peers[first].tp : &peers[first].pp;
    if (!of->is) return SP_FAIL(err, SP_E_PROTOCOL, "rank %d did not say its id", (int)first);
    return g->of.dev_groups->join(&g->group[i], g->comms, g->of.dev, &of->id, g->of.fast,
                                  &g->config[i], wait, err);
}

sp_status sp_groups_connect(sp_groups *g, const sp_address *peers, const sp_group_wait *wait,
                            sp_err *err) {
    for (int i = 0; i < N_GROUPS; i++) {
        if (!is_mine(g, i)) continue;
        sp_status st = is_device(g, i)   ? join_device(g, i, peers, wait, err)
                       : is_shared(g, i) ? join_memory(g, i, peers, wait->deadline_ns, err)
                                         : join_ucx(g, i, peers, err);
        if (st != SP_OK) {
            sp_err_context(err, "joining the %s group", names[i]);
            return st;
        }
        sp_debug("%s group: member %d of %d by %s", names[i], g->members[i].me, g->members[i].n,
                 g->group[i]->ops->name);
    }
    return SP_OK;
}

void sp_groups_abort(sp_groups *g) {
    for (int i = 0; i < N_GROUPS; i++)
        if (g->group[i]) g->group[i]->ops->abort(g->group[i]);
}

void sp_groups_close(sp_groups *g) {
    if (!g) return;
    for (int i = 0; i < N_GROUPS; i++)
        if (g->group[i]) g->group[i]->ops->close(g->group[i]);
    if (g->comms) g->of.dev_groups->close(g->comms);
    sp_share_close(g->share);
    sp_ucx_close(g->ucx);
    for (int i = 0; i < N_GROUPS; i++)
        if (g->own_fd[i] >= 0) close(g->own_fd[i]);
    explicit_bzero(g->key, sizeof g->key);
    sp_free(g);
}

const char *sp_groups_device_words(const sp_groups *g) {
    return g->comms ? g->of.dev_groups->version(g->comms) : NULL;
}

sp_group *sp_groups_tp(const sp_groups *g) {
    return g->group[TP];
}
sp_group *sp_groups_pp(const sp_groups *g) {
    return g->group[PP];
}
sp_group *sp_groups_feedback(const sp_groups *g) {
    return g->group[FEEDBACK];
}
