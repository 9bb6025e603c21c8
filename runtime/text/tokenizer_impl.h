/* runtime/text/tokenizer_impl.h - what tokenizer.c, tokenizer_load.c and detok.c share.
 *
 * Thread: const after load. */
#pragma once

#include "runtime/text/added.h"
#include "runtime/text/bpe.h"
#include "runtime/text/decoder.h"
#include "runtime/text/normalizer.h"
#include "runtime/text/pretok.h"
#include "runtime/text/tokenizer.h"

enum {
    SP_TOKENIZER_BOS,
    SP_TOKENIZER_EOS,
    SP_TOKENIZER_PAD,
    SP_TOKENIZER_UNK,
    SP_TOKENIZER_NAMES
};

struct sp_tokenizer {
    sp_added *added;
    sp_normalizer *normalizer;
    sp_pretok *pretok;
    sp_bpe *bpe;
    sp_decoder *decoder;
    sp_ids before, after; /* what the post-processor puts around a text */
    int32_t n_ids;        /* highest id + 1 */
    int32_t *specials;    /* indexes of special tokens among the added ones */
    int n_specials;
    sp_json *config, *special_map;      /* NULL: no such file */
    sp_slice names[SP_TOKENIZER_NAMES]; /* borrowed from the two above */
};

/** The string that decoders are given for an id; ptr NULL: no such id. */
sp_slice sp_tokenizer_written(const sp_tokenizer *t, int32_t id);
