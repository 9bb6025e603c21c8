/* launcher/topology_gpu.h - the GPUs that a device plugin sees, how they reach one another, and which
 * network device is nearest to each: the last part of `superpod inspect topology`.
 *
 * What is not there (the plugin, the driver, a card) is one line of `why`, no error. "Nearest" is by
 * the PCI tree that /sys shows: the RDMA device that shares most of the way to the root with the
 * card; where none shares a bridge, one of the same NUMA node.
 *
 * Limits: 32 GPUs; what is beyond is not shown.
 * Source: the plugin's words (kernels/dev.h); sysfs-bus-pci, sysfs-class-infiniband of Linux.
 * Thread: any; plain data. */
#pragma once

#include "kernels/dev.h"
#include "launcher/topology_read.h"
#include "runtime/base/json.h"

#define SP_TOPOLOGY_CARDS_MAX 32

typedef struct sp_topology_card {
    sp_dev_info info;
    char why[240]; /* it cannot be used; then there is no info */
    int numa;      /* -1: not told */
    char nic[32];  /* nearest RDMA device; "": none is near */
    bool nic_by_bridge;
} sp_topology_card;

typedef struct sp_topology_cards {
    char backend[8];
    char why[240]; /* there is none; else "" */
    int n;
    sp_topology_card at[SP_TOPOLOGY_CARDS_MAX];
    sp_dev_link links[SP_TOPOLOGY_CARDS_MAX][SP_TOPOLOGY_CARDS_MAX]; /* [from][to] */
} sp_topology_cards;

/** Asks the plugin of `backend`, "cuda" or "emu"; opens no device. */
void sp_topology_cards_load(sp_topology_cards *out, const char *backend, const sp_topology *t);
/** The same of a plugin and a machine that tests make up. */
void sp_topology_cards_from(sp_topology_cards *out, const sp_dev_plugin *plugin, const sp_sys *s,
                            const sp_topology *t);

void sp_topology_cards_text(const sp_topology_cards *c, sp_buf *out);
/** The value of one key. */
void sp_topology_cards_json(const sp_topology_cards *c, sp_jw *w);
