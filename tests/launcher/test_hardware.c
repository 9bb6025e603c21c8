/* Covers launcher/hardware.c: what --nodes may say, and what it may not. */
#include "launcher/hardware.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static sp_err err;
static sp_hardware h;

static sp_status parse(const char *spec) {
    err = (sp_err){0};
    return sp_hardware_parse(&h, spec, &err);
}
static void expect(int line, const char *spec, int nodes, int devices, const char *name,
                   uint64_t gib) {
    bool ok = parse(spec) == SP_OK && h.n_nodes == nodes && h.n_devices == devices &&
              strcmp(h.kind.name, name) == 0 && h.kind.memory_bytes == gib << 30;
    if (!ok)
        fprintf(stderr, "    line %d: %s; %d x %d %s\n", line, err.text, h.n_nodes, h.n_devices,
                h.kind.name);
    CU_ASSERT(ok);
}
#define EXPECT(...) expect(__LINE__, __VA_ARGS__)

static void nodes_and_devices_are_counted(void) {
    EXPECT("H100-80G", 1, 1, "H100-80G", 80);
    EXPECT("4xA100-40G", 1, 4, "A100-40G", 40);
    EXPECT("2x8xH100-80G", 2, 8, "H100-80G", 80);
    EXPECT("16X8Xh200-141g", 16, 8, "H200-141G", 141);
    EXPECT("2x1xL4-24G", 2, 1, "L4-24G", 24);
    CU_ASSERT_FALSE(h.kind.is_cpu);
    CU_ASSERT(h.net_gbs > 0 && h.net_us > 0 && h.kind.bandwidth_gbs > 0 && h.kind.peak_tflops > 0);
}
static void a_cpu_says_its_own_memory_and_bandwidth(void) {
    EXPECT("CPU-64G", 1, 1, "CPU-64G", 64);
    CU_ASSERT(h.kind.is_cpu);
    double usual = h.kind.bandwidth_gbs;
    EXPECT("3x2xcpu-1T@204.8", 3, 2, "cpu-1T@204.8", 1024);
    CU_ASSERT_DOUBLE_EQUAL(h.kind.bandwidth_gbs, 204.8, 1e-9);
    CU_ASSERT(usual > 0 && usual < 204);
}
static void what_is_no_device_is_refused_by_name(void) {
    static const char *const wrong[][2] = {
        {"", "H100-80G"},
        {"2x", "H100-80G"},
        {"H100", "'H100' is no device"},
        {"2x8x", "no device"},
        {"0xH100-80G", "0xH100"},
        {"-2xH100-80G", "no device"},
        {"+2xH100-80G", "+2x"},
        {" 2xH100-80G", " 2x"},
        {"4097xH100-80G", "4097x"},
        {"1x2x3xL4-24G", "3xL4"},
        {"CPU-", "CPU-"},
        {"CPU-64Q", "CPU-64Q"},
        {"CPU-1M", "CPU-1M"},
        {"CPU--1G", "CPU--1G"},
        {"CPU-64G@", "bandwidth"},
        {"CPU-64G@0", "bandwidth"},
        {"CPU-64G@nan", "bandwidth"},
        {"CPU-64G@fast", "bandwidth"},
        {"CPU-64G@1e9", "bandwidth"},
        {"99999999999999999999xCPU-1G", "9999"},
    };
    for (size_t i = 0; i < SP_LEN(wrong); i++) {
        h = (sp_hardware){.n_nodes = -7};
        sp_status st = parse(wrong[i][0]);
        bool ok = st == SP_E_INVALID && strstr(err.text, wrong[i][1]) &&
                  strstr(err.text, "option 'nodes'") && h.n_nodes == -7;
        if (!ok) fprintf(stderr, "    '%s': status %d, '%s'\n", wrong[i][0], (int)st, err.text);
        CU_ASSERT(ok);
    }
}

SP_TEST_MAIN("launcher/hardware", SP_TEST(nodes_and_devices_are_counted),
             SP_TEST(a_cpu_says_its_own_memory_and_bandwidth),
             SP_TEST(what_is_no_device_is_refused_by_name))
