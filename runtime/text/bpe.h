/* runtime/text/bpe.h - the BPE model of tokenizer.json: a word to ids by ranked merges.
 *
 * A word starts as one symbol a character; the pair of neighbours with the lowest rank is merged
 * (the leftmost of equals) until none is left. Pairs wait in a heap, so that a word of n characters
 * costs O(n log n) whatever it holds. Symbols are a linked list inside an array:
 *
 *   index   0    1    2    3          heap: (rank, index of the left symbol, id it becomes)
 *   id      h    e    l    l          an entry whose pair has changed meanwhile is dropped
 *   next    1    2    3   -1          when it comes out
 *
 * Limits: ids below SP_BPE_IDS_MAX; holes between ids are allowed.
 * Source: Sennrich et al. 2016; huggingface tokenizers, models/bpe.
 * Thread: a loaded model is const; a scratch belongs to one call. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/base/str.h"
#include "runtime/text/tokenizer.h"

#define SP_BPE_IDS_MAX (16 << 20)
#define SP_BPE_AFFIX_BYTES_MAX 64 /* of continuing_subword_prefix and end_of_word_suffix */

typedef struct sp_bpe sp_bpe;

typedef struct sp_bpe_scratch {
    void *symbols, *heap;
    size_t symbols_cap, heap_cap, heap_len;
} sp_bpe_scratch;
void sp_bpe_scratch_fini(sp_bpe_scratch *s);

/** `model` is the "model" of the file.
 * Errors: SP_E_UNSUPPORTED another type; SP_E_FORMAT what is wrong with which entry; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_bpe_load(sp_bpe **out, const sp_json_node *model, sp_err *err);
void sp_bpe_free(sp_bpe *m);

/** Appends the ids of one word (valid UTF-8). A character without a token is dropped when the file
 * names no unk_token.
 * Errors: SP_E_INVALID the file's unk_token is needed and not in its vocabulary; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_bpe_encode(const sp_bpe *m, sp_slice word, sp_bpe_scratch *s, sp_ids *out,
                                     sp_err *err);

int32_t sp_bpe_size(const sp_bpe *m);                 /* highest id + 1 */
sp_slice sp_bpe_piece(const sp_bpe *m, int32_t id);   /* ptr NULL: no such id */
int32_t sp_bpe_find(const sp_bpe *m, sp_slice piece); /* -1: none */
