/* tests/kvx_side.h - both sides of comm/kvx.h for tests: a region whose bytes anybody can foretell, and
 * readers of it by each way.
 *
 * Thread: as comm/kvx.h. */
#pragma once

#include "comm/kvx.h"

/** A region that serves both ways on 127.0.0.1. */
typedef struct sp_side {
    sp_kvx_shape shape;
    sp_kvx_region *region;
    unsigned char *kv;
    char address[SP_KVX_ADDRESS_BYTES];
    int port;
} sp_side;

enum {
    SP_SIDE_SHM,
    SP_SIDE_TCP,
    SP_SIDE_WAYS
};

extern const uint8_t sp_side_key[SP_KVX_KEY_BYTES], sp_side_model[SP_KVX_IDENTITY_BYTES];

/** 24 layers 3.., 4 heads 2..; pieces of 8 x 6 floats; blocks with something after the pieces. */
sp_kvx_shape sp_side_small(void);
void sp_side_must(sp_status st, const sp_err *err); /* ends the test when it is not SP_OK */

void sp_side_open(sp_side *s, sp_kvx_shape shape); /* then: sp_kvx_region_close(s->region) */
/** The address with another port; 0: without TCP. */
void sp_side_address(const sp_side *s, int port, char out[SP_KVX_ADDRESS_BYTES]);
void sp_side_fill(const sp_side *s, uint32_t block, uint32_t version);
/** Fills with version `generation` and seals as sp_side_name(). */
void sp_side_seal(const sp_side *s, uint32_t block, uint32_t generation);
uint64_t sp_side_name(uint32_t block, uint32_t generation); /* another one for each content */

sp_kvx *sp_side_reader(const char *address, sp_kvx_shape shape, int way);
/** An ask for a rectangle of a block into memory of its own layout: heads of this reader only. */
sp_kvx_ask sp_side_ask(const sp_kvx_shape *s, unsigned char *to, uint32_t block,
                       uint32_t generation, int32_t layer, int32_t layers, int32_t head,
                       int32_t heads);
sp_kvx_ask sp_side_whole(const sp_side *s, unsigned char *to, uint32_t block, uint32_t generation);
sp_kvx_fault sp_side_read(sp_kvx *k, const sp_kvx_ask *a);
/** Whether `a` was filled with what sp_side_fill() wrote. */
bool sp_side_came(const sp_side *s, const sp_kvx_ask *a, uint32_t version);
