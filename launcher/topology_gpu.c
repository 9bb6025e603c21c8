#include "launcher/topology_gpu.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- the nearest network device ---- */

static bool real_path(const sp_sys *s, char out[PATH_MAX], const char *fmt, const char *name) {
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s", s->root);
    if (n < 0 || n >= PATH_MAX) return false;
    snprintf(path + n, sizeof path - (size_t)n, fmt, name);
    return realpath(path, out) != NULL;
}

/* Bridges that two devices share: ".../pci0000:3a/0000:3a:00.0/0000:3b:00.0" is a host bridge, a
 * port, a card; the host bridge itself, and what is above it, count for nothing. */
static int shared_bridges(const char *a, const char *b) {
    int shared = -1;
    const char *at = strstr(a, "/pci");
    size_t same = 0;
    while (a[same] && a[same] == b[same]) same++;
    if (!at || (size_t)(at - a) > same) return 0;
    for (size_t i = (size_t)(at - a) + 1; i <= same; i++)
        if ((a[i] == '/' || !a[i]) && (b[i] == '/' || !b[i])) shared++;
    return shared > 0 ? shared : 0;
}

static void find_nic(sp_topology_card *c, const sp_sys *s, const sp_topology *t) {
    char card[PATH_MAX], nic[PATH_MAX];
    int most = 0;
    bool known = real_path(s, card, "/sys/bus/pci/devices/%s", c->info.address);
    for (int i = 0; i < t->n_nics; i++) {
        const sp_topology_nic *n = &t->nics[i];
        if (!n->rdma) continue;
        const int shared = known && real_path(s, nic, "/sys/class/infiniband/%s/device", n->name)
                               ? shared_bridges(card, nic)
                               : 0;
        const bool same_node = c->numa >= 0 && n->numa == c->numa;
        if (shared <= most && !(same_node && !c->nic[0])) continue;
        most = shared > most ? shared : most;
        c->nic_by_bridge = shared > 0;
        snprintf(c->nic, sizeof c->nic, "%s", n->name);
    }
}

/* ---- cards and links ---- */

/* How many there are is told by the first that can be used; where the first cannot, the second may. */
static void probe_cards(sp_topology_cards *c, const sp_dev_plugin *plugin) {
    bool known = false;
    int n = 2;
    for (int i = 0; i < n && i < SP_TOPOLOGY_CARDS_MAX; i++) {
        sp_topology_card *card = &c->at[i];
        sp_err err = {0};
        card->numa = -1;
        if (plugin->probe(&card->info, i, &err) == SP_OK) {
            known = true;
            n = card->info.n_devices;
        } else if (i == 0 || known) {
            snprintf(card->why, sizeof card->why, "%s", err.text);
        } else {
            break;
        }
        c->n = i + 1;
    }
    if (known) return;
    memcpy(c->why, c->at[0].why, sizeof c->why);
    c->n = 0;
}

void sp_topology_cards_from(sp_topology_cards *out, const sp_dev_plugin *plugin, const sp_sys *s,
                            const sp_topology *t) {
    sp_topology_cards *c = out;
    memset(c, 0, sizeof *c);
    snprintf(c->backend, sizeof c->backend, "%s", plugin->name);
    probe_cards(c, plugin);
    for (int i = 0; i < c->n; i++) {
        sp_topology_card *card = &c->at[i];
        /* The address of an emulated card is nobody's, or some other device's. */
        if (card->why[0] || !card->info.address[0] || strcmp(c->backend, "emu") == 0) continue;
        card->numa =
            (int)sp_sys_number(s, -1, "/sys/bus/pci/devices/%s/numa_node", card->info.address);
        find_nic(card, s, t);
    }
    for (int i = 0; i < c->n && plugin->link; i++)
        for (int k = 0; k < c->n; k++)
            if (i != k && !c->at[i].why[0] && !c->at[k].why[0] &&
                plugin->link(&c->links[i][k], i, k, NULL) != SP_OK)
                c->links[i][k] = (sp_dev_link){0};
}

void sp_topology_cards_load(sp_topology_cards *out, const char *backend, const sp_topology *t) {
    const sp_dev_plugin *plugin;
    const sp_sys machine = {""};
    sp_err err = {0};
    if (sp_dev_plugin_open(&plugin, backend, &err) == SP_OK) {
        sp_topology_cards_from(out, plugin, &machine, t);
        return;
    }
    memset(out, 0, sizeof *out);
    snprintf(out->backend, sizeof out->backend, "%s", backend);
    snprintf(out->why, sizeof out->why, "%s", err.text);
}

/* ---- text ---- */

static void write_version(sp_buf *b, int version) {
    sp_buf_printf(b, "%d.%d", version / 1000, version % 1000 / 10);
}

static void write_card(const sp_topology_card *c, const char *backend, int index, sp_buf *b) {
    const sp_dev_info *i = &c->info;
    char memory[32];
    sp_buf_printf(b, "%-4s %-3d ", backend, index);
    if (c->why[0]) {
        sp_buf_printf(b, "%s\n", c->why);
        return;
    }
    sp_buf_printf(b, "%s: compute capability %d.%d, %d multiprocessors, %s", i->name, i->major,
                  i->minor, i->units, sp_format_bytes(memory, sizeof memory, i->memory_bytes));
    if (i->address[0]) sp_buf_printf(b, ", %s", i->address);
    if (c->numa >= 0) sp_buf_printf(b, ", numa %d", c->numa);
    if (c->nic[0])
        sp_buf_printf(b, ", nearest rdma %s (%s)", c->nic,
                      c->nic_by_bridge ? "behind the same bridge" : "of the same NUMA node");
    sp_buf_putc(b, '\n');
}

static bool same_link(const sp_dev_link *a, const sp_dev_link *b) {
    return a->peer == b->peer && a->atomics == b->atomics && a->rank == b->rank;
}

static const char *words_of(const sp_dev_link *l) {
    return !l->peer ? "through the host" : l->atomics ? "peer access with atomics" : "peer access";
}

/* Pairs of one kind on one line: "0-1", or "0>1" where the way back is another. */
static void write_kind(const sp_topology_cards *c, const sp_dev_link *kind, sp_buf *b) {
    sp_buf_printf(b, "link     %s", words_of(kind));
    if (kind->peer) sp_buf_printf(b, ", performance rank %d", kind->rank);
    sp_buf_putc(b, ':');
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->n; k++) {
            const bool both = same_link(&c->links[i][k], &c->links[k][i]);
            if (i == k || (both && i > k) || !same_link(&c->links[i][k], kind)) continue;
            sp_buf_printf(b, " %d%c%d", i, both ? '-' : '>', k);
        }
    sp_buf_putc(b, '\n');
}

/* Whether a pair before this one, in order, has the same kind of link. */
static bool is_told(const sp_topology_cards *c, int from, int to) {
    for (int i = 0; i <= from; i++)
        for (int k = 0; k < (i == from ? to : c->n); k++)
            if (i != k && same_link(&c->links[i][k], &c->links[from][to])) return true;
    return false;
}

void sp_topology_cards_text(const sp_topology_cards *c, sp_buf *out) {
    if (c->why[0]) {
        sp_buf_printf(out, "%-8s none: %s\n", c->backend, c->why);
        return;
    }
    const sp_dev_info *first = &c->at[0].info;
    for (int i = 0; i < c->n && !first->toolkit; i++) first = &c->at[i].info;
    sp_buf_printf(out, "%-8s driver ", c->backend);
    write_version(out, first->driver);
    sp_buf_puts(out, ", built with toolkit ");
    write_version(out, first->toolkit);
    sp_buf_putc(out, '\n');
    for (int i = 0; i < c->n; i++) write_card(&c->at[i], c->backend, i, out);
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->n; k++)
            if (i != k && !is_told(c, i, k)) write_kind(c, &c->links[i][k], out);
}

/* ---- JSON ---- */

static void put_str(sp_jw *w, const char *key, const char *v) {
    sp_jw_key(w, key);
    if (v && *v)
        sp_jw_str(w, v);
    else
        sp_jw_null(w);
}
static void put_int(sp_jw *w, const char *key, int64_t v) {
    sp_jw_key(w, key);
    sp_jw_int(w, v);
}
static void put_bool(sp_jw *w, const char *key, bool v) {
    sp_jw_key(w, key);
    sp_jw_bool(w, v);
}

static void put_card(const sp_topology_card *c, int index, sp_jw *w) {
    const sp_dev_info *i = &c->info;
    sp_jw_object(w);
    put_int(w, "index", index);
    put_str(w, "why", c->why);
    if (!c->why[0]) {
        put_str(w, "name", i->name);
        put_int(w, "compute_major", i->major);
        put_int(w, "compute_minor", i->minor);
        put_int(w, "multiprocessors", i->units);
        put_int(w, "memory_bytes", (int64_t)i->memory_bytes);
        put_int(w, "cache_bytes", (int64_t)i->cache_bytes);
        put_int(w, "driver", i->driver);
        put_int(w, "toolkit", i->toolkit);
        put_str(w, "address", i->address);
        sp_jw_key(w, "numa");
        if (c->numa >= 0)
            sp_jw_int(w, c->numa);
        else
            sp_jw_null(w);
        put_str(w, "nearest_rdma", c->nic);
        put_bool(w, "nearest_by_bridge", c->nic_by_bridge);
    }
    sp_jw_object_end(w);
}

void sp_topology_cards_json(const sp_topology_cards *c, sp_jw *w) {
    sp_jw_object(w);
    put_str(w, "backend", c->backend);
    put_str(w, "why", c->why);
    sp_jw_key(w, "devices"), sp_jw_array(w);
    for (int i = 0; i < c->n; i++) put_card(&c->at[i], i, w);
    sp_jw_array_end(w);
    sp_jw_key(w, "links"), sp_jw_array(w);
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->n; k++) {
            const sp_dev_link *l = &c->links[i][k];
            if (i == k) continue;
            sp_jw_object(w);
            put_int(w, "from", i);
            put_int(w, "to", k);
            put_bool(w, "peer", l->peer);
            put_bool(w, "atomics", l->atomics);
            put_int(w, "rank", l->rank);
            sp_jw_object_end(w);
        }
    sp_jw_array_end(w);
    sp_jw_object_end(w);
}
