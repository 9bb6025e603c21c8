/* launcher/pod_impl.h - what the two files of sp_pod share: pod.c (join, form, watch, end) and
 * pod_status.c (what is told of it). Nobody else includes it.
 *
 * Thread: as launcher/pod.h says. */
#pragma once

#include "launcher/pod.h"
#include "launcher/preflight.h"

struct sp_pod {
    const sp_config *config;
    const sp_model *model;
    const sp_kv_share *share;
    const sp_boot *boot;
    int stop_fd, watch_fd;
    sp_fan *fan;
    sp_join join; /* door and the agents' links */
    sp_roster roster;
    sp_preflight preflight;
    char hash[SP_CONFIG_HASH_BYTES];
    char **kv; /* [n_ranks]: where each rank's KV blocks are read; written before anybody asks */
    int64_t started_s;
    sp_gauge refused[SP_REFUSE_COUNT]; /* by the door, which is ctl's alone */
};
