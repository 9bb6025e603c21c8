/* Covers launcher/topology_gpu.c: cards of a made-up plugin on a made-up machine, the emulated
 * device's, and what is said where there is none. */
#include "launcher/topology_gpu.h"

#include "runtime/base/mem.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[64];
static sp_topology *t;
static sp_topology_cards *cards;
static sp_buf text;

static void setup(void) {
    snprintf(root, sizeof root, "/tmp/superpod-cards-XXXXXX");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(root));
    t = sp_alloc(sizeof *t);
    cards = sp_alloc(sizeof *cards);
    sp_buf_init(&text, 1 << 20);
}
static void teardown(void) {
    char command[100];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    CU_ASSERT_EQUAL(system(command), 0);
    sp_free(t);
    sp_free(cards);
    sp_buf_fini(&text);
}

static void make_folders(char *path) {
    for (char *p = path + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = 0;
        mkdir(path, 0700);
        *p = '/';
    }
}
/* A PCI device by its way from the root, "pci0000:3a/0000:3a:00.0/0000:3b:00.0", and a name that the
 * classes know it by. */
static void put_device(const char *way, const char *class_link, const char *numa) {
    char path[400], target[400];
    snprintf(path, sizeof path, "%s/sys/devices/%s/numa_node", root, way);
    make_folders(path);
    FILE *f = fopen(path, "w");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    fprintf(f, "%s\n", numa);
    fclose(f);
    snprintf(target, sizeof target, "%s/sys/devices/%s", root, way);
    snprintf(path, sizeof path, "%s/sys/%s", root, class_link);
    make_folders(path);
    CU_ASSERT_EQUAL(symlink(target, path), 0);
}
static void put_card(const char *way) {
    char link[100];
    snprintf(link, sizeof link, "bus/pci/devices/%s", strrchr(way, '/') + 1);
    put_device(way, link, "1");
}
static void put_nic(const char *name, const char *way, int numa) {
    char link[100], number[16];
    snprintf(link, sizeof link, "class/infiniband/%s/device", name);
    snprintf(number, sizeof number, "%d", numa);
    put_device(way, link, number);
    sp_topology_nic *n = &t->nics[t->n_nics++];
    *n = (sp_topology_nic){.rdma = true, .numa = numa};
    snprintf(n->name, sizeof n->name, "%s", name);
}

/* ---- plugins ---- */

static int n_cards, old_card; /* the index of one that is too old; -1: none */

static sp_status probe(sp_dev_info *out, int index, sp_err *err) {
    if (index >= n_cards)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "GPU %d is wanted, this process sees %d", index,
                       n_cards);
    if (index == old_card) return SP_FAIL(err, SP_E_UNSUPPORTED, "GPU %d is too old", index);
    *out = (sp_dev_info){.n_devices = n_cards,
                         .major = 9,
                         .units = 132,
                         .driver = 13020,
                         .toolkit = 13000,
                         .memory_bytes = (uint64_t)80 << 30,
                         .name = "Made-up card"};
    snprintf(out->address, sizeof out->address, "0000:%02x:00.0", 0x3b + index);
    return SP_OK;
}
/* 0 and 1 are neighbours; from 2 to 0 there is a way that does not go back. */
static sp_status link_of(sp_dev_link *out, int from, int to, sp_err *err) {
    (void)err;
    *out = (sp_dev_link){0};
    if (from + to == 1) *out = (sp_dev_link){.peer = true, .atomics = true};
    if (from == 2 && to == 0) *out = (sp_dev_link){.peer = true, .rank = 3};
    return SP_OK;
}
static const sp_dev_plugin plugin = {.name = "cuda", .probe = probe, .link = link_of};

static void load(int n, int old) {
    const sp_sys machine = {root};
    n_cards = n;
    old_card = old;
    sp_topology_cards_from(cards, &plugin, &machine, t);
    sp_topology_cards_text(cards, &text);
}
static bool says(const char *what) {
    bool found = text.ptr && strstr(text.ptr, what);
    if (!found) fprintf(stderr, "    no '%s' in:\n%s", what, text.ptr ? text.ptr : "");
    return found;
}

/* ---- tests ---- */

static void the_nearest_network_device_is_the_one_behind_the_same_bridge(void) {
    setup();
    put_card("pci0000:3a/0000:3a:00.0/0000:3b:00.0");
    put_card("pci0000:5a/0000:5a:00.0/0000:3c:00.0");
    put_card("pci0000:7a/0000:7a:00.0/0000:3d:00.0");
    put_nic("far", "pci0000:5a/0000:5a:01.0/0000:90:00.0",
            0); /* the host bridge counts for nothing */
    put_nic("node", "pci0000:9a/0000:9a:00.0/0000:91:00.0", 1);
    put_nic("near", "pci0000:3a/0000:3a:00.0/0000:92:00.0", 0);
    load(3, -1);
    CU_ASSERT_EQUAL_FATAL(cards->n, 3);
    CU_ASSERT_STRING_EQUAL(cards->at[0].nic, "near");
    CU_ASSERT(cards->at[0].nic_by_bridge && cards->at[0].numa == 1);
    CU_ASSERT_STRING_EQUAL(cards->at[1].nic, "node");
    CU_ASSERT_FALSE(cards->at[1].nic_by_bridge);
    CU_ASSERT(says("cuda 0   Made-up card: compute capability 9.0, 132 multiprocessors, 80.0 GiB, "
                   "0000:3b:00.0, numa 1, nearest rdma near (behind the same bridge)\n"));
    CU_ASSERT(says("cuda     driver 13.2, built with toolkit 13.0\n"));
    teardown();
}

static void no_network_device_is_near_where_nothing_is_known(void) {
    setup();
    load(1, -1); /* no /sys at all */
    CU_ASSERT_EQUAL(cards->at[0].numa, -1);
    CU_ASSERT_STRING_EQUAL(cards->at[0].nic, "");
    CU_ASSERT(says("0000:3b:00.0\n"));
    CU_ASSERT_PTR_NULL(strstr(text.ptr, "link"));
    teardown();
}

static void links_of_a_kind_are_one_line_and_one_way_links_are_told(void) {
    setup();
    load(3, -1);
    CU_ASSERT(says("link     peer access with atomics, performance rank 0: 0-1\n"));
    CU_ASSERT(says("link     peer access, performance rank 3: 2>0\n"));
    CU_ASSERT(says("link     through the host: 0>2 1-2\n"));
    teardown();
}

static void a_card_that_cannot_be_used_is_told_beside_the_others(void) {
    setup();
    load(2, 0);
    CU_ASSERT_EQUAL(cards->n, 2);
    CU_ASSERT(says("cuda 0   GPU 0 is too old\n"));
    CU_ASSERT(says("cuda 1   Made-up card"));
    CU_ASSERT(says("cuda     driver 13.2"));
    sp_buf_fini(&text);
    sp_buf_init(&text, 1 << 20);
    load(1, 0); /* the only one */
    CU_ASSERT_EQUAL(cards->n, 0);
    CU_ASSERT_STRING_EQUAL(text.ptr, "cuda     none: GPU 0 is too old\n");
    teardown();
}

static void json_has_what_the_text_has(void) {
    setup();
    load(2, -1);
    sp_buf_fini(&text);
    sp_buf_init(&text, 1 << 20);
    sp_jw w = sp_jw_on(&text);
    sp_topology_cards_json(cards, &w);
    sp_json *doc = NULL;
    CU_ASSERT_EQUAL_FATAL(sp_json_parse(&doc, sp_slice_of(text.ptr), 0, NULL), SP_OK);
    const sp_json_node *o = sp_json_root(doc), *devices = sp_json_find(o, "devices");
    CU_ASSERT_EQUAL(sp_json_type_of(sp_json_find(o, "why")), SP_JSON_NULL);
    CU_ASSERT_EQUAL_FATAL(sp_json_count(devices), 2);
    CU_ASSERT_EQUAL(sp_json_int(sp_json_find(sp_json_first(devices), "driver")), 13020);
    CU_ASSERT_EQUAL(sp_json_count(sp_json_find(o, "links")), 2);
    CU_ASSERT(sp_json_bool(sp_json_find(sp_json_first(sp_json_find(o, "links")), "peer")));
    sp_json_free(doc);
    teardown();
}

static void the_emulated_device_answers_and_is_on_no_bus_of_ours(void) {
    const sp_dev_plugin *p;
    if (sp_dev_plugin_open(&p, "emu", NULL) != SP_OK) SP_SKIP("no superpod_cuda_emu.so");
    setup();
    sp_topology_cards_load(cards, "emu", t);
    CU_ASSERT_EQUAL_FATAL(cards->n, 1);
    CU_ASSERT_STRING_EQUAL(cards->at[0].info.name, "emulated device sm_80");
    CU_ASSERT_EQUAL(cards->at[0].numa, -1);
    CU_ASSERT(cards->at[0].info.toolkit > 0 && cards->at[0].info.units > 0);
    teardown();
}

static void a_plugin_that_is_not_there_is_one_line(void) {
    const sp_dev_plugin *p;
    if (sp_dev_plugin_open(&p, "cuda", NULL) == SP_OK) SP_SKIP("the plugin is there");
    setup();
    sp_topology_cards_load(cards, "cuda", t);
    sp_topology_cards_text(cards, &text);
    CU_ASSERT_EQUAL(cards->n, 0);
    CU_ASSERT(says("cuda     none: backend 'cuda': superpod_cuda.so"));
    CU_ASSERT(says("make cuda\n"));
    CU_ASSERT_PTR_EQUAL(strchr(text.ptr, '\n'), text.ptr + text.len - 1);
    teardown();
}

SP_TEST_MAIN("launcher/topology_gpu",
             SP_TEST(the_nearest_network_device_is_the_one_behind_the_same_bridge),
             SP_TEST(no_network_device_is_near_where_nothing_is_known),
             SP_TEST(links_of_a_kind_are_one_line_and_one_way_links_are_told),
             SP_TEST(a_card_that_cannot_be_used_is_told_beside_the_others),
             SP_TEST(json_has_what_the_text_has),
             SP_TEST(the_emulated_device_answers_and_is_on_no_bus_of_ours),
             SP_TEST(a_plugin_that_is_not_there_is_one_line))
