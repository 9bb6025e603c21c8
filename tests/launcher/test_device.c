/* Covers launcher/device.c: what is chosen, refused by its option, and told to the plan. What needs a
 * plugin is skipped where none lies beside this program. */
#include "launcher/device.h"

#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void the_cpu_is_chosen_as_asked_and_keeps_the_memory_of_the_host(void) {
    sp_err err = {0};
    sp_device d;
    CU_ASSERT_EQUAL_FATAL(sp_device_choose(&d, "cpu-generic", &err), SP_OK);
    CU_ASSERT_STRING_EQUAL(d.backend, "cpu-generic");
    CU_ASSERT_FALSE(d.own_memory);
    sp_plan_request req = {.ranks_on_node = 3}, before = req;
    sp_device_plan(&d, &req);
    CU_ASSERT_EQUAL(memcmp(&req, &before, sizeof req), 0);
    CU_ASSERT_EQUAL(sp_device_check(&d, &(sp_config){.ranks_on_node = 8}, &err), SP_OK);
    sp_plan plan = {.n_blocks = 9, .blocks_per_seq = 9, .kv.block_bytes = 1};
    const sp_memory none = {0};
    CU_ASSERT_EQUAL(sp_device_plan_mirror(&d, &plan, &req, &none, 1, &err), SP_OK);
    CU_ASSERT_EQUAL(plan.n_blocks, 9);
}

static void auto_is_never_left_open(void) {
    sp_err err = {0};
    sp_device d;
    CU_ASSERT_EQUAL_FATAL(sp_device_choose(&d, "auto", &err), SP_OK);
    CU_ASSERT(strcmp(d.backend, "cpu") == 0 || strcmp(d.backend, "cuda") == 0);
    CU_ASSERT_EQUAL(d.own_memory, strcmp(d.backend, "cuda") == 0);
}

static void a_plugin_that_is_not_there_is_one_line_that_names_the_option(void) {
    static const char *const backends[] = {"cuda", "emu"};
    int missing = 0;
    for (size_t i = 0; i < SP_LEN(backends); i++) {
        sp_err err = {0};
        sp_device d;
        const sp_dev_plugin *p;
        char want[80];
        if (sp_dev_plugin_open(&p, backends[i], &err) == SP_OK) continue;
        missing++;
        CU_ASSERT_EQUAL(sp_device_choose(&d, backends[i], &err), SP_E_NOTFOUND);
        snprintf(want, sizeof want, "option 'device' is %s: backend '%s': superpod_cuda",
                 backends[i], backends[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, want));
        snprintf(want, sizeof want, "; it is built by make %s", backends[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, want));
    }
    if (!missing) SP_SKIP("both plugins are there");
}

static size_t some_bytes(const sp_dev_sizes *sizes) {
    return (size_t)sizes->max_tokens * 1000;
}
static size_t packed(int32_t rows, const sp_segments *seg, sp_dtype dtype) {
    (void)dtype;
    return (size_t)rows * (size_t)seg->edge[seg->n];
}

static void blocks_that_others_read_are_as_many_as_the_host_has_room_for(void) {
    static const sp_dev_ops ops = {.reserve_bytes = some_bytes, .packed_bytes = packed};
    const sp_device d = {.backend = "emu", .ops = &ops, .own_memory = true};
    sp_model_desc desc;
    const sp_arch *arch;
    sp_err err = {0};
    CU_ASSERT_EQUAL_FATAL(sp_model_desc_load(&desc, "configs/podling", &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_arch_find(&arch, &desc, &err), SP_OK);
    const sp_plan_request wish = {.desc = &desc,
                                  .arch = arch,
                                  .block_tokens = 16,
                                  .max_model_len = 256,
                                  .max_num_seqs = 8,
                                  .max_num_batched_tokens = 64,
                                  .memory = {UINT64_MAX, UINT64_MAX, UINT64_MAX}};
    sp_plan_request req = wish;
    sp_plan p;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &req, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(p.n_blocks, 128);
    const uint64_t block = p.kv.block_bytes;
    sp_memory host = {block * 1000, UINT64_MAX, UINT64_MAX};
    CU_ASSERT_EQUAL(sp_device_plan_mirror(&d, &p, &req, &host, 2, &err), SP_OK);
    CU_ASSERT_EQUAL(p.n_blocks, 128);
    host.cgroup_left_bytes = block * 100; /* the lesser of both, by ranks, less a reserve */
    CU_ASSERT_EQUAL(sp_device_plan_mirror(&d, &p, &req, &host, 2, &err), SP_OK);
    CU_ASSERT_EQUAL(p.n_blocks, 48);
    CU_ASSERT_EQUAL(p.kv_bytes, 48 * block);
    /* Less than one sequence; and a number that somebody asked for. */
    req = wish;
    CU_ASSERT_EQUAL_FATAL(sp_plan_make(&p, &req, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_device_plan_mirror(&d, &p, &req, &host, 8, &err), SP_E_LIMIT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "at most 12 blocks"));
    CU_ASSERT_EQUAL(p.n_blocks, 128);
    req.n_blocks = 128;
    err = (sp_err){0};
    CU_ASSERT_EQUAL(sp_device_plan_mirror(&d, &p, &req, &host, 1, &err), SP_E_LIMIT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "for 128 blocks"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "at most 96 blocks"));
}

static void a_plan_for_a_gpu_counts_its_memory_less_what_it_takes_for_itself(void) {
    static const sp_dev_ops ops = {.reserve_bytes = some_bytes, .packed_bytes = packed};
    sp_device d = {.backend = "emu", .ops = &ops, .own_memory = true, .memory_bytes = 5000000};
    sp_model_desc desc = {.hidden = 8,
                          .n_heads = 2,
                          .n_kv_heads = 1,
                          .head_dim = 4,
                          .intermediate = 16,
                          .max_positions = 32};
    sp_plan_request req = {.desc = &desc, .max_num_batched_tokens = 1000, .ranks_on_node = 4};
    sp_device_plan(&d, &req);
    CU_ASSERT_EQUAL(req.memory.available_bytes, 5000000 / 100 * 92 - 1000000);
    CU_ASSERT_EQUAL(req.memory.cgroup_left_bytes, UINT64_MAX);
    CU_ASSERT_EQUAL(req.ranks_on_node, 1); /* each has a card to itself */
    CU_ASSERT_PTR_EQUAL((void *)req.packed, (void *)packed);
    d.memory_bytes = 10; /* never wraps */
    sp_device_plan(&d, &req);
    CU_ASSERT_EQUAL(req.memory.available_bytes, 0);
}

static void fast_is_refused_where_a_device_has_none(void) {
    sp_err err = {0};
    sp_device cpu = {.backend = "cpu-avx2"}, gpu = {.backend = "emu", .own_memory = true};
    CU_ASSERT_EQUAL(sp_device_settle_numerics(&cpu, "exact", &err), SP_OK);
    CU_ASSERT_EQUAL(sp_device_settle_numerics(&gpu, "exact", &err), SP_OK);
    CU_ASSERT_FALSE(cpu.fast || gpu.fast);
    CU_ASSERT_EQUAL(sp_device_settle_numerics(&gpu, "fast", &err), SP_OK);
    CU_ASSERT_TRUE(gpu.fast);
    CU_ASSERT_EQUAL(sp_device_settle_numerics(&cpu, "fast", &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "option 'numerics' is fast: device 'cpu-avx2'"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "--device cuda"));
}

static size_t told_mode(const sp_dev_sizes *sizes) {
    return sizes->fast ? 1000000 : 0;
}

static void a_plan_counts_what_mode_fast_takes(void) {
    static const sp_dev_ops ops = {.reserve_bytes = told_mode, .packed_bytes = packed};
    sp_device d = {.backend = "emu", .ops = &ops, .own_memory = true, .memory_bytes = 5000000};
    sp_model_desc desc = {.hidden = 8, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4};
    sp_plan_request req = {.desc = &desc, .max_num_batched_tokens = 1000};
    sp_device_plan(&d, &req);
    CU_ASSERT_EQUAL(req.memory.available_bytes, 4600000);
    d.fast = true;
    sp_device_plan(&d, &req);
    CU_ASSERT_EQUAL(req.memory.available_bytes, 3600000);
}

static void a_gpu_that_is_not_here_is_planned_by_whichever_plugin_there_is(void) {
    const sp_dev_plugin *p;
    const bool here = sp_dev_plugin_open(&p, "emu", NULL) == SP_OK ||
                      sp_dev_plugin_open(&p, "cuda", NULL) == SP_OK;
    sp_model_desc desc = {.hidden = 64,
                          .n_heads = 2,
                          .n_kv_heads = 1,
                          .head_dim = 32,
                          .intermediate = 16,
                          .max_positions = 32};
    sp_plan_request req = {.desc = &desc, .max_num_batched_tokens = 8};
    sp_device d;
    sp_device_imagine(&d, NULL, (uint64_t)80 << 30);
    CU_ASSERT(d.own_memory);
    CU_ASSERT_EQUAL(d.ops != NULL, here);
    sp_device_plan(&d, &req);
    const uint64_t most = ((uint64_t)80 << 30) / 100 * 92;
    CU_ASSERT(here ? req.memory.available_bytes < most : req.memory.available_bytes == most);
    CU_ASSERT_EQUAL(req.packed != NULL, here);
}

static void more_ranks_than_gpus_are_refused_with_both_numbers(void) {
    static const sp_dev_ops ops = {.reserve_bytes = some_bytes, .packed_bytes = packed};
    sp_device d = {.backend = "cuda", .ops = &ops, .own_memory = true, .n_devices = 2};
    const char *was = getenv("CUDA_VISIBLE_DEVICES");
    sp_err err = {0};
    unsetenv("CUDA_VISIBLE_DEVICES");
    sp_config config = {.ranks_on_node = 3, .ranks_here = 1, .collectives = "auto"};
    CU_ASSERT_EQUAL(sp_device_check(&d, &config, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(
        strstr(err.text, "3 ranks on this node want a GPU each, there are 2; want fewer"));
    /* What the launcher shared out is this agent's alone. */
    setenv("CUDA_VISIBLE_DEVICES", "2,3", 1);
    CU_ASSERT_EQUAL(sp_device_check(&d, &config, &err), SP_OK);
    config.ranks_here = 3;
    CU_ASSERT_EQUAL(sp_device_check(&d, &config, &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "3 ranks of this agent"));
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "CUDA_VISIBLE_DEVICES"));
    /* Each process that emulates a device has one to itself. */
    memcpy(d.backend, "emu", sizeof "emu");
    d.n_devices = 1;
    CU_ASSERT(sp_device_check(&d, &config, &err) == SP_OK);
    unsetenv("CUDA_VISIBLE_DEVICES");
    if (was) setenv("CUDA_VISIBLE_DEVICES", was, 1);
}

static void an_emulated_device_is_its_process_s_own(void) {
    CU_ASSERT_EQUAL(sp_device_index("emu", 5), 0);
    CU_ASSERT_EQUAL(sp_device_index("cpu", 5), 0);
}

SP_TEST_MAIN("launcher/device",
             SP_TEST(the_cpu_is_chosen_as_asked_and_keeps_the_memory_of_the_host),
             SP_TEST(auto_is_never_left_open),
             SP_TEST(a_plugin_that_is_not_there_is_one_line_that_names_the_option),
             SP_TEST(blocks_that_others_read_are_as_many_as_the_host_has_room_for),
             SP_TEST(a_plan_for_a_gpu_counts_its_memory_less_what_it_takes_for_itself),
             SP_TEST(fast_is_refused_where_a_device_has_none),
             SP_TEST(a_plan_counts_what_mode_fast_takes),
             SP_TEST(a_gpu_that_is_not_here_is_planned_by_whichever_plugin_there_is),
             SP_TEST(more_ranks_than_gpus_are_refused_with_both_numbers),
             SP_TEST(an_emulated_device_is_its_process_s_own))
