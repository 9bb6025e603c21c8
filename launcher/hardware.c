#include "launcher/hardware.h"

#include "runtime/base/str.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define GIB ((uint64_t)1 << 30)
#define NET_GBS 50.0 /* 400 Gbit/s a node */
#define NET_US 12.0
#define CPU_GBS 50.0
#define CPU_TFLOPS 1.0
#define CPU_LINK_GBS 10.0
#define CPU_LINK_US 10.0
#define CPU_NET_GBS 1.2 /* 10 Gbit/s Ethernet */
#define CPU_NET_US 60.0

static const sp_device_kind kinds[] = {
    {"H100-80G", 80 * GIB, 3350, 989, 450, 8, false},
    {"H100-94G", 94 * GIB, 3900, 835, 300, 8, false},
    {"H200-141G", 141 * GIB, 4800, 989, 450, 8, false},
    {"GH200-96G", 96 * GIB, 4000, 989, 450, 8, false},
    {"B200-180G", 180 * GIB, 8000, 2250, 900, 8, false},
    {"A100-40G", 40 * GIB, 1555, 312, 300, 10, false},
    {"A100-80G", 80 * GIB, 2039, 312, 300, 10, false},
    {"L40S-48G", 48 * GIB, 864, 362, 32, 20, false},
    {"L4-24G", 24 * GIB, 300, 121, 32, 20, false},
    {"A10G-24G", 24 * GIB, 600, 125, 32, 20, false},
};

static sp_status unknown_kind(const char *word, sp_err *err) {
    char names[200];
    size_t at = 0;
    for (size_t i = 0; i < SP_LEN(kinds); i++)
        at += (size_t)snprintf(names + at, sizeof names - at, "%s, ", kinds[i].name);
    return SP_FAIL(err, SP_E_INVALID, "'%.40s' is no device: want one of %sor CPU-64G[@GB/s]", word,
                   names);
}

/* "CPU-64G" or "CPU-64G@200" */
static sp_status parse_cpu(sp_device_kind *out, const char *word, sp_err *err) {
    const char *memory = word + 4, *at = strchr(memory, '@');
    sp_slice text = {memory, at ? (size_t)(at - memory) : strlen(memory)};
    sp_device_kind k = {.bandwidth_gbs = CPU_GBS,
                        .peak_tflops = CPU_TFLOPS,
                        .link_gbs = CPU_LINK_GBS,
                        .link_us = CPU_LINK_US,
                        .is_cpu = true};
    snprintf(k.name, sizeof k.name, "%s", word);
    if (sp_parse_bytes(text, &k.memory_bytes) != SP_OK || k.memory_bytes < GIB / 4)
        return SP_FAIL(err, SP_E_INVALID, "'%.40s': want CPU-<memory>, as CPU-64G", word);
    if (at && (sp_parse_f64(sp_slice_of(at + 1), &k.bandwidth_gbs) != SP_OK ||
               k.bandwidth_gbs < 0.1 || k.bandwidth_gbs > 1e6))
        return SP_FAIL(err, SP_E_INVALID, "'%.40s': want a bandwidth in GB/s after '@'", word);
    *out = k;
    return SP_OK;
}

static sp_status parse_kind(sp_device_kind *out, const char *word, sp_err *err) {
    if (strncasecmp(word, "CPU-", 4) == 0) return parse_cpu(out, word, err);
    for (size_t i = 0; i < SP_LEN(kinds); i++)
        if (strcasecmp(word, kinds[i].name) == 0) {
            *out = kinds[i];
            return SP_OK;
        }
    return unknown_kind(word, err);
}

/* Takes "12x" off the front. */
static bool take_count(const char **at, int32_t *out) {
    char *end;
    long v = strtol(*at, &end, 10);
    if (!isdigit((unsigned char)**at) || (*end != 'x' && *end != 'X') || v < 1 || v > 4096)
        return false;
    *out = (int32_t)v;
    *at = end + 1;
    return true;
}

sp_status sp_hardware_parse(sp_hardware *out, const char *spec, sp_err *err) {
    sp_hardware h = {.n_nodes = 1, .n_devices = 1};
    const char *at = spec;
    int32_t first, second;
    if (take_count(&at, &first)) {
        bool both = take_count(&at, &second);
        h.n_nodes = both ? first : 1;
        h.n_devices = both ? second : first;
    }
    sp_status st = parse_kind(&h.kind, at, err);
    if (st != SP_OK) {
        sp_err_context(err, "option 'nodes' is '%.60s'", spec);
        return st;
    }
    h.net_gbs = h.kind.is_cpu ? CPU_NET_GBS : NET_GBS;
    h.net_us = h.kind.is_cpu ? CPU_NET_US : NET_US;
    *out = h;
    return SP_OK;
}
