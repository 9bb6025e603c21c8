#include "tests/kvx_side.h"

#include "comm/kvx_part.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

const uint8_t sp_side_key[SP_KVX_KEY_BYTES] = "a key that all of the pod know";
const uint8_t sp_side_model[SP_KVX_IDENTITY_BYTES] = "model a";

sp_kvx_shape sp_side_small(void) {
    sp_kvx_shape s = {.n_blocks = 9,
                      .block_tokens = 8,
                      .head_dim = 6,
                      .dtype = SP_DTYPE_F32,
                      .layer_first = 3,
                      .n_layers = 24,
                      .head_first = 2,
                      .n_heads = 4};
    s.block_bytes = sp_kvx_piece_bytes(&s) * 24 * 2 * 4 + 64;
    return s;
}

void sp_side_must(sp_status st, const sp_err *err) {
    if (st != SP_OK) fprintf(stderr, "%s\n", err->text);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
}

void sp_side_address(const sp_side *s, int port, char out[SP_KVX_ADDRESS_BYTES]) {
    char tcp[40] = "";
    sp_err err = {0};
    if (port) snprintf(tcp, sizeof tcp, "127.0.0.1:%d", port);
    sp_side_must(sp_kvx_region_address(s->region, tcp, out, &err), &err);
}

void sp_side_open(sp_side *s, sp_kvx_shape shape) {
    sp_err err = {0};
    sp_kvx_config c = {.shape = shape, .serve_shm = true, .serve_tcp = true, .host = "127.0.0.1"};
    memcpy(c.key, sp_side_key, sizeof c.key);
    memcpy(c.identity, sp_side_model, sizeof c.identity);
    size_t bytes;
    *s = (sp_side){.shape = shape};
    sp_side_must(sp_kvx_region_open(&s->region, &c, &err), &err);
    s->kv = sp_kvx_region_memory(s->region, &bytes);
    CU_ASSERT_EQUAL(bytes, shape.block_bytes * (size_t)shape.n_blocks);
    s->port = sp_kvx_region_port(s->region);
    sp_side_address(s, s->port, s->address);
}

static unsigned char byte_at(uint32_t block, uint32_t version, size_t i) {
    uint64_t h = (i + 1) * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)block * 77 + version * 1009u;
    return (unsigned char)(h >> 29);
}

void sp_side_fill(const sp_side *s, uint32_t block, uint32_t version) {
    unsigned char *p = s->kv + (size_t)block * s->shape.block_bytes;
    for (size_t i = 0; i < s->shape.block_bytes; i++) p[i] = byte_at(block, version, i);
}

uint64_t sp_side_name(uint32_t block, uint32_t generation) {
    return ((uint64_t)generation << 32 | block) * UINT64_C(0x9e3779b97f4a7c15);
}

void sp_side_seal(const sp_side *s, uint32_t block, uint32_t generation) {
    sp_err err = {0};
    sp_side_fill(s, block, generation);
    sp_side_must(sp_kvx_seal(s->region, block, generation, sp_side_name(block, generation), &err),
                 &err);
}

sp_kvx *sp_side_reader(const char *address, sp_kvx_shape shape, int way) {
    sp_err err = {0};
    sp_kvx_reader_config c = {.shape = shape, .same_node = way == SP_SIDE_SHM};
    memcpy(c.key, sp_side_key, sizeof c.key);
    memcpy(c.identity, sp_side_model, sizeof c.identity);
    sp_kvx *k = NULL;
    sp_side_must(sp_kvx_open(&k, address, &c, &err), &err);
    CU_ASSERT_STRING_EQUAL(sp_kvx_way(k), way == SP_SIDE_SHM ? "shm" : "tcp");
    return k;
}

sp_kvx_ask sp_side_ask(const sp_kvx_shape *s, unsigned char *to, uint32_t block,
                       uint32_t generation, int32_t layer, int32_t layers, int32_t head,
                       int32_t heads) {
    size_t run = (size_t)heads * sp_kvx_piece_bytes(s);
    return (sp_kvx_ask){.block = block,
                        .generation = generation,
                        .name = sp_side_name(block, generation),
                        .layer_first = layer,
                        .n_layers = layers,
                        .head_first = head,
                        .n_heads = heads,
                        .to = to,
                        .layer_stride = 2 * run,
                        .value_offset = run};
}

sp_kvx_ask sp_side_whole(const sp_side *s, unsigned char *to, uint32_t block, uint32_t generation) {
    return sp_side_ask(&s->shape, to, block, generation, s->shape.layer_first, s->shape.n_layers,
                       s->shape.head_first, s->shape.n_heads);
}

sp_kvx_fault sp_side_read(sp_kvx *k, const sp_kvx_ask *a) {
    sp_kvx_fault f = SP_KVX_FAULT_COUNT;
    sp_kvx_read(k, a, 1, &f);
    return f;
}

bool sp_side_came(const sp_side *s, const sp_kvx_ask *a, uint32_t version) {
    const size_t n = sp_kvx_piece_bytes(&s->shape);
    for (int32_t l = 0; l < a->n_layers; l++)
        for (int v = 0; v < 2; v++)
            for (int32_t h = 0; h < a->n_heads; h++) {
                size_t at = sp_kvx_piece_index(&s->shape, a->layer_first + l, v, a->head_first + h);
                const unsigned char *p =
                    a->to + (size_t)l * a->layer_stride + (v ? a->value_offset : 0) + (size_t)h * n;
                for (size_t i = 0; i < n; i++)
                    if (p[i] != byte_at(a->block, version, at * n + i)) return false;
            }
    return true;
}
