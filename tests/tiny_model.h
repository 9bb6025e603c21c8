/* tests/tiny_model.h - small random model directories, written to disk for tests.
 *
 * Complete Hugging Face folders of the Llama family: config.json, generation_config.json,
 * tokenizer.json (byte-level BPE), tokenizer_config.json with a chat template, and weights. Equal
 * settings give equal bytes. Weights are scaled so that logits spread over tens and the best one
 * leads by a wide margin: tokens are the same in any arithmetic, bits only in ours.
 *
 * Thread: any. */
#pragma once

#include "runtime/base/dtype.h"

#include <stdint.h>

typedef enum sp_tiny_rope {
    SP_TINY_ROPE_DEFAULT,
    SP_TINY_ROPE_LINEAR, /* factor 2 */
    SP_TINY_ROPE_LLAMA3, /* factor 8, low 1, high 4, original 64 */
} sp_tiny_rope;

typedef struct sp_tiny {
    uint64_t seed;
    int32_t hidden, n_layers, intermediate, vocab; /* vocab >= SP_TINY_VOCAB_MIN */
    int32_t n_heads, n_kv_heads, head_dim;         /* head_dim 0: hidden / n_heads, key left out */
    int32_t max_positions;
    sp_dtype dtype;   /* F32, F16 or BF16 */
    int32_t n_shards; /* above 1: with an index */
    bool tied, attention_bias, mlp_bias;
    sp_tiny_rope rope;
    double rope_theta;
    bool transformers5; /* rope_parameters and dtype instead of the older keys */
    bool unaligned;     /* tensor data begin at odd addresses */
} sp_tiny;

/* Ids of the tokenizer: specials, then 256 bytes, then merges; later ids are padding. */
enum {
    SP_TINY_BOS,       /* <s> */
    SP_TINY_EOS,       /* </s> */
    SP_TINY_PAD,       /* <pad> */
    SP_TINY_USER,      /* <|user|> */
    SP_TINY_ASSISTANT, /* <|assistant|> */
    SP_TINY_SYSTEM,    /* <|system|> */
    SP_TINY_BYTES,     /* first of the 256 bytes */
    SP_TINY_VOCAB_MIN = SP_TINY_BYTES + 256,
};

/** 3 layers, 14 heads over 2 KV heads of 8, hidden 112, FFN 344, vocabulary 317, BF16, untied. */
sp_tiny sp_tiny_default(void);

/** A new empty folder beneath TMPDIR; sp_tiny_remove() deletes it with all that is in it.
 * Owner: caller, of the path too. */
char *sp_tiny_folder(void);
void sp_tiny_remove(char *dir);

/** Writes the model into `dir`. Aborts the test program when the disk refuses. */
void sp_tiny_write(const char *dir, const sp_tiny *t);
/** Both in one: a new folder with the model in it. */
char *sp_tiny_create(const sp_tiny *t);

/** Writes one file of `dir`: for tests that break something. */
void sp_tiny_put(const char *dir, const char *name, const void *bytes, size_t n);
