/* runtime/engine/wire.h - the payloads of the frames between head and rank, byte by byte.
 *
 * All fields are little-endian and of fixed width; every record is a multiple of 4 bytes, payloads
 * begin 8-byte aligned, so records are read where they lie. Fields called zero must be 0. A
 * sequence is named by (slot, generation): a slot is used again, a generation of it never, so that
 * what is late is seen to be late. Decoders check every count against the length before a loop,
 * and answer with words; what they give out is borrowed from the payload.
 *
 *   SEQ_ADD   0 slot u32 | 4 generation u32 | 8 part u16 | 10 zero u16 | 12 offset u32
 *             16 count u32 | 20 zero u32 | 24 data: `count` items of the part, from item `offset` on
 *             part 0 params (88 bytes, first of all) | 1 prompt i32 | 2 output i32 | 3 stop ids i32
 *             4 logit bias (i32, f32) | 5 allowed ids i32 | 6 bad words i32
 *   params    0 seed u64 | 8 temperature, top_p, min_p, repetition, presence, frequency f32
 *             32 top_k, min_tokens, max_tokens, n_logprobs, n_prompt_logprobs, choice i32
 *             56 tokens_max, n_prompt, n_output, n_stop_ids, n_logit_bias, n_allowed_ids,
 *             n_bad_words i32 | 84 flags u32: 1 ignore eos, 2 only allowed ids
 *   SEQ_DROP  0 count u32 | 4 zero u32 | 8 count x (slot u32, generation u32)
 *   STEP      0 number u64 | 8 n_entries u32 | 12 n_deltas u32 | 16 n_blocks u32 | 20 n_tokens u32
 *             24 entries | deltas | blocks i32
 *   entry     0 slot u32 | 4 generation u32 | 8 start i32 | 12 n i32 | 16 flags u32: 1 sample the
 *             token after the last, 2 prompt log-probabilities, 4 every row of logits | 20 zero u32
 *   delta     0 entry u32 | 4 cache group u16 | 6 zero u16 | 8 first i32 | 12 count i32: the next
 *             `count` of `blocks` are places first.. of the entry's block table of that group
 *   TOKENS    0 number u64 | 8 n_records u32 | 12 flags u32: 1 more frames of this step follow
 *             16 records
 *   record    0 slot u32 | 4 generation u32 | 8 position i32 | 12 token i32 | 16 kind u16:
 *             0 sampled, 1 sampled with log-probabilities, 2 of a prompt token,
 *             3 failed (token: sp_status)
 *             18 n_top u16 | 20 rank i32 | 24 logprob f32 | 28 zero u32 | 32 n_top x (id i32, f32)
 *   ROW       0 number u64 | 8 slot u32 | 12 generation u32 | 16 position i32 | 20 offset u32
 *             24 count u32 | 28 total u32 | 32 count x f32
 *   READY     0 n_vocab, max_model_len, max_num_seqs, max_batched_tokens, max_step_rows,
 *             block_tokens, n_blocks, n_groups i32 | 32 kv type 16 bytes, NUL-padded
 *             48 numerics id 32 bytes
 *   PROGRESS  0 done bytes u64 | 8 all bytes u64
 *   FAULT     0 reason u32 | 4 text bytes u32 | 8 text
 *   KV_SEAL   0 ticket u64 | 8 n u32 | 12 zero u32 | 16 n x (name u64, block u32, generation u32)
 *             these are full and stay as they are; the rank makes them readable, then answers
 *   KV_SEALED 0 ticket u64
 *   KV_PULL   0 transfer u64 | 8 source u32 | 12 n u32 | 16 lease u64
 *             24 n x (name u64, source block u32, generation u32, own block u32, zero u32)
 *             source: a group of the pod, or a number of KV_SOURCE. Sealed at every rank of it; no step
 *             names the own blocks before the answer. lease: not 0, the rank renews it there while it
 *             reads
 *   KV_PULLED 0 transfer u64 | 8 n u32 | 12 zero u32 | 16 n x outcome u32 (comm/kvx.h; 0: proven)
 *   KV_RENEW  0 transfer u64      it is still being pulled; at least every SP_KV_RENEW_NS
 *   KV_FREE   as KV_SEAL, ticket and names 0: unreadable before any later step may write to them
 *   KV_SOURCE 0 source u32 | 4 text bytes u32 | 8 text    a group of another pod that KV_PULL may name
 *             from now on, SP_KV_SOURCE_FIRST.. (runtime/engine/kv_source.h); no text: not any more
 *   KV_LEAVE  0 lease u64 | 8 source u32 | 12 zero u32    the first rank gives the lease back there
 *   KV_LEASE  0 lease u64 | 8 verb u32 (0 given back, 1 renewed) | 12 zero u32    said by a reader of
 *             another pod
 *   TIMES     0 busy ns u64 | 8 idle ns u64    of the rank's device, since it last said so
 *
 * Thread: any. */
#pragma once

#include "comm/link.h"
#include "runtime/base/str.h"
#include "runtime/gen/params.h"

#define SP_STEP_ENTRIES_MAX 8192
#define SP_STEP_BLOCKS_MAX (128 * 1024)

typedef enum sp_wire_part {
    SP_PART_PARAMS,
    SP_PART_PROMPT,
    SP_PART_OUTPUT,
    SP_PART_STOP_IDS,
    SP_PART_LOGIT_BIAS,
    SP_PART_ALLOWED,
    SP_PART_BAD_WORDS,
    SP_PART_COUNT
} sp_wire_part;

typedef struct sp_wire_add_head {
    uint32_t slot, generation;
    uint16_t part, zero;
    uint32_t offset, count, zero2;
} sp_wire_add_head;
_Static_assert(sizeof(sp_wire_add_head) == 24, "wire layout");

enum {
    SP_PARAMS_IGNORE_EOS = 1,
    SP_PARAMS_ALLOWED = 2,
    SP_PARAMS_FLAGS = 3
};
typedef struct sp_wire_params {
    uint64_t seed;
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, min_tokens, max_tokens, n_logprobs, n_prompt_logprobs, choice;
    int32_t tokens_max; /* prompt and all output that may come */
    int32_t n_prompt, n_output, n_stop_ids, n_logit_bias, n_allowed_ids, n_bad_words;
    uint32_t flags;
} sp_wire_params;
_Static_assert(sizeof(sp_wire_params) == 88, "wire layout");

typedef struct sp_wire_seq { /* a sequence on a rank */
    uint32_t slot, generation;
} sp_wire_seq;
_Static_assert(sizeof(sp_wire_seq) == 8, "wire layout");

typedef struct sp_wire_drop_head {
    uint32_t count, zero;
} sp_wire_drop_head;
_Static_assert(sizeof(sp_wire_drop_head) == 8, "wire layout");

enum {
    SP_ENTRY_SAMPLE = 1,
    SP_ENTRY_PROMPT_LOGPROBS = 2,
    SP_ENTRY_ROWS = 4,
    SP_ENTRY_FLAGS = 7
};
typedef struct sp_wire_entry {
    uint32_t slot, generation;
    int32_t start, n;
    uint32_t flags, zero;
} sp_wire_entry;
_Static_assert(sizeof(sp_wire_entry) == 24, "wire layout");

typedef struct sp_wire_delta {
    uint32_t entry;
    uint16_t group, zero;
    int32_t first, count;
} sp_wire_delta;
_Static_assert(sizeof(sp_wire_delta) == 16, "wire layout");

typedef struct sp_wire_step_head {
    uint64_t number;
    uint32_t n_entries, n_deltas, n_blocks, n_tokens;
} sp_wire_step_head;
_Static_assert(sizeof(sp_wire_step_head) == 24, "wire layout");

enum {
    SP_TOKENS_MORE = 1
};
typedef struct sp_wire_tokens_head {
    uint64_t number;
    uint32_t n_records, flags;
} sp_wire_tokens_head;
_Static_assert(sizeof(sp_wire_tokens_head) == 16, "wire layout");

typedef enum sp_record_kind {
    SP_RECORD_SAMPLED,
    SP_RECORD_SAMPLED_LOGPROBS,
    SP_RECORD_PROMPT,
    SP_RECORD_FAILED,
    SP_RECORD_KIND_COUNT
} sp_record_kind;

typedef struct sp_wire_top {
    int32_t id;
    float logprob;
} sp_wire_top;
_Static_assert(sizeof(sp_wire_top) == 8, "wire layout");

typedef struct sp_wire_record {
    uint32_t slot, generation;
    int32_t position, token;
    uint16_t kind, n_top;
    int32_t rank;
    float logprob;
    uint32_t zero;
    sp_wire_top top[];
} sp_wire_record;
_Static_assert(sizeof(sp_wire_record) == 32, "wire layout");
#define SP_WIRE_RECORD_MAX (sizeof(sp_wire_record) + SP_LOGPROBS_MAX * sizeof(sp_wire_top))

typedef struct sp_wire_row_head {
    uint64_t number;
    uint32_t slot, generation;
    int32_t position;
    uint32_t offset, count, total;
} sp_wire_row_head;
_Static_assert(sizeof(sp_wire_row_head) == 32, "wire layout");

typedef struct sp_wire_ready {
    int32_t n_vocab, max_model_len, max_num_seqs, max_batched_tokens, max_step_rows;
    int32_t block_tokens, n_blocks, n_groups;
    char kv_dtype[16];
    uint8_t numerics[32];
} sp_wire_ready;
_Static_assert(sizeof(sp_wire_ready) == 80, "wire layout");

typedef struct sp_wire_progress {
    uint64_t done_bytes, all_bytes;
} sp_wire_progress;
_Static_assert(sizeof(sp_wire_progress) == 16, "wire layout");

typedef enum sp_fault {
    SP_FAULT_PROTOCOL, /* the head said something that cannot be */
    SP_FAULT_DEVICE,
    SP_FAULT_MEMORY,
    SP_FAULT_MODEL, /* refused while loading */
    SP_FAULT_INTERNAL,
    SP_FAULT_PEER, /* a neighbour of the rank is gone: it knows no more than that */
    SP_FAULT_COUNT
} sp_fault;
#define SP_FAULT_TEXT_MAX 240

typedef struct sp_wire_fault_head {
    uint32_t reason, text_bytes;
} sp_wire_fault_head;
_Static_assert(sizeof(sp_wire_fault_head) == 8, "wire layout");

#define SP_KV_FRAME_BLOCKS_MAX 4096 /* of a KV_SEAL, KV_PULL or KV_FREE */

typedef struct sp_wire_kv_head { /* KV_SEAL, KV_FREE */
    uint64_t ticket;
    uint32_t n, zero;
} sp_wire_kv_head;
_Static_assert(sizeof(sp_wire_kv_head) == 16, "wire layout");

typedef struct sp_wire_kv_block {
    uint64_t name;
    uint32_t block, generation;
} sp_wire_kv_block;
_Static_assert(sizeof(sp_wire_kv_block) == 16, "wire layout");

typedef struct sp_wire_kv_sealed {
    uint64_t ticket;
} sp_wire_kv_sealed;
_Static_assert(sizeof(sp_wire_kv_sealed) == 8, "wire layout");

typedef struct sp_wire_kv_pull_head {
    uint64_t transfer;
    uint32_t source, n;
    uint64_t lease;
} sp_wire_kv_pull_head;
_Static_assert(sizeof(sp_wire_kv_pull_head) == 24, "wire layout");

typedef struct sp_wire_kv_move {
    uint64_t name;
    uint32_t src_block, generation, dst_block, zero;
} sp_wire_kv_move;
_Static_assert(sizeof(sp_wire_kv_move) == 24, "wire layout");

typedef struct sp_wire_kv_pulled_head {
    uint64_t transfer;
    uint32_t n, zero;
} sp_wire_kv_pulled_head;
_Static_assert(sizeof(sp_wire_kv_pulled_head) == 16, "wire layout");

#define SP_KV_RENEW_NS ((int64_t)2 * 1000 * 1000 * 1000) /* a rank that pulls says so as often */

typedef struct sp_wire_kv_renew {
    uint64_t transfer;
} sp_wire_kv_renew;
_Static_assert(sizeof(sp_wire_kv_renew) == 8, "wire layout");

#define SP_KV_SOURCE_FIRST 64 /* below: groups of the pod */
#define SP_KV_SOURCES_MAX 64  /* of other pods, at a time */
#define SP_KV_SOURCE_TEXT_MAX (64 * 1024)
typedef struct sp_wire_kv_source_head {
    uint32_t source, text_bytes;
} sp_wire_kv_source_head;
_Static_assert(sizeof(sp_wire_kv_source_head) == 8, "wire layout");

typedef struct sp_wire_kv_leave {
    uint64_t lease;
    uint32_t source, zero;
} sp_wire_kv_leave;
_Static_assert(sizeof(sp_wire_kv_leave) == 16, "wire layout");

typedef struct sp_wire_kv_lease {
    uint64_t lease;
    uint32_t renewed, zero;
} sp_wire_kv_lease;
_Static_assert(sizeof(sp_wire_kv_lease) == 16, "wire layout");

typedef struct sp_wire_times {
    uint64_t busy_ns, idle_ns;
} sp_wire_times;
_Static_assert(sizeof(sp_wire_times) == 16, "wire layout");

/* ---- what decoders give out; pointers are borrowed from the payload ---- */

typedef struct sp_wire_add {
    sp_wire_seq seq;
    sp_wire_part part;
    uint32_t offset, count;
    const void *data;
} sp_wire_add;

typedef struct sp_wire_step {
    uint64_t number;
    int32_t n_entries, n_deltas, n_blocks, n_tokens;
    const sp_wire_entry *entries;
    const sp_wire_delta *deltas;
    const int32_t *blocks;
} sp_wire_step;

typedef struct sp_wire_tokens { /* walk it with sp_wire_tokens_next() */
    uint64_t number;
    int32_t n_records;
    bool more;
    const unsigned char *at;
} sp_wire_tokens;

typedef struct sp_wire_row {
    uint64_t number;
    sp_wire_seq seq;
    int32_t position;
    uint32_t offset, count, total;
    const float *values;
} sp_wire_row;

typedef struct sp_wire_kv_list { /* KV_SEAL; KV_FREE has ticket 0 */
    uint64_t ticket;
    int32_t n;
    const sp_wire_kv_block *blocks;
} sp_wire_kv_list;

typedef struct sp_wire_kv_pull {
    uint64_t transfer, lease;
    uint32_t source;
    int32_t n;
    const sp_wire_kv_move *moves;
} sp_wire_kv_pull;

typedef struct sp_wire_kv_pulled {
    uint64_t transfer;
    int32_t n;
    const uint32_t *outcomes;
} sp_wire_kv_pulled;

/** Bytes of one item of a part; its most items. */
uint32_t sp_wire_part_item(sp_wire_part part);
const char *sp_fault_name(sp_fault reason); /* "device" */

/** Decoders. Errors: SP_E_PROTOCOL says what is wrong, with the value seen and wanted. */
SP_NODISCARD sp_status sp_wire_add_decode(const void *payload, uint32_t length, sp_wire_add *out,
                                          sp_err *err);
SP_NODISCARD sp_status sp_wire_drop_decode(const void *payload, uint32_t length,
                                           const sp_wire_seq **out, int32_t *n, sp_err *err);
SP_NODISCARD sp_status sp_wire_step_decode(const void *payload, uint32_t length, sp_wire_step *out,
                                           sp_err *err);
SP_NODISCARD sp_status sp_wire_tokens_decode(const void *payload, uint32_t length,
                                             sp_wire_tokens *out, sp_err *err);
SP_NODISCARD sp_status sp_wire_row_decode(const void *payload, uint32_t length, sp_wire_row *out,
                                          sp_err *err);
SP_NODISCARD sp_status sp_wire_ready_decode(const void *payload, uint32_t length,
                                            sp_wire_ready *out, sp_err *err);
SP_NODISCARD sp_status sp_wire_progress_decode(const void *payload, uint32_t length,
                                               sp_wire_progress *out, sp_err *err);
SP_NODISCARD sp_status sp_wire_times_decode(const void *payload, uint32_t length,
                                            sp_wire_times *out, sp_err *err);
/** `text` is [SP_FAULT_TEXT_MAX + 1], NUL-terminated, control characters replaced. */
SP_NODISCARD sp_status sp_wire_fault_decode(const void *payload, uint32_t length, sp_fault *reason,
                                            char *text, sp_err *err);

/** KV_SEAL, or KV_FREE (`freed`: the ticket must be 0, else it must not). */
SP_NODISCARD sp_status sp_wire_kv_list_decode(const void *payload, uint32_t length, bool freed,
                                              sp_wire_kv_list *out, sp_err *err);
SP_NODISCARD sp_status sp_wire_kv_sealed_decode(const void *payload, uint32_t length,
                                                uint64_t *ticket, sp_err *err);
SP_NODISCARD sp_status sp_wire_kv_pull_decode(const void *payload, uint32_t length,
                                              sp_wire_kv_pull *out, sp_err *err);
SP_NODISCARD sp_status sp_wire_kv_renew_decode(const void *payload, uint32_t length,
                                               uint64_t *transfer, sp_err *err);
/** `text` is borrowed; its length 0: the source is no more. */
SP_NODISCARD sp_status sp_wire_kv_source_decode(const void *payload, uint32_t length,
                                                uint32_t *source, sp_slice *text, sp_err *err);
SP_NODISCARD sp_status sp_wire_kv_leave_decode(const void *payload, uint32_t length,
                                               sp_wire_kv_leave *out, sp_err *err);
SP_NODISCARD sp_status sp_wire_kv_lease_decode(const void *payload, uint32_t length,
                                               sp_wire_kv_lease *out, sp_err *err);
SP_NODISCARD sp_status sp_wire_kv_pulled_decode(const void *payload, uint32_t length,
                                                sp_wire_kv_pulled *out, sp_err *err);

/** Pieces of a KV frame to send; `head` must live until they are. Returns how many (2). */
int sp_wire_kv_list_pieces(const sp_wire_kv_list *list, sp_wire_kv_head *head, sp_piece out[2]);
int sp_wire_kv_pull_pieces(const sp_wire_kv_pull *pull, sp_wire_kv_pull_head *head,
                           sp_piece out[2]);
int sp_wire_kv_pulled_pieces(const sp_wire_kv_pulled *pulled, sp_wire_kv_pulled_head *head,
                             sp_piece out[2]);

/** The next of a decoded frame's records, or NULL after the last. */
const sp_wire_record *sp_wire_tokens_next(sp_wire_tokens *t);

/** Pieces of a STEP to send; `head` must live until they are. Returns how many (at most 4). */
int sp_wire_step_pieces(const sp_wire_step *step, sp_wire_step_head *head, sp_piece out[4]);

/** The parameters of one choice as they go over the wire, and back (arrays are not set). */
sp_wire_params sp_wire_params_of(const sp_gen_params *params, int32_t choice);
sp_gen_params sp_wire_params_to(const sp_wire_params *w);
