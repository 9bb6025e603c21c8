/* runtime/text/pretok.h - the pre-tokenizers of tokenizer.json, and the regexes they use.
 *
 * A text on its way to tokens is a list of pieces: an added token already found (id >= 0) or text
 * (id -1). Each step replaces every text piece by smaller ones; empty pieces vanish. Pieces borrow
 * from the caller's text or from the arena of the encode call.
 * Regexes are compiled once (JIT where the machine allows) and matched with limits on steps, heap
 * and stack, so that no text makes one run for minutes. Only pretok.c knows PCRE2.
 *
 * Source: huggingface tokenizers, pre_tokenizers. Thread: loaded objects are const; a scratch
 * belongs to one call. */
#pragma once

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

/* ---- regex ---- */

typedef struct sp_regex sp_regex;

/** What a match needs besides the pattern; zeroed is empty, filled by the first match. */
typedef struct sp_regex_scratch {
    void *match, *limits, *stack;
} sp_regex_scratch;
void sp_regex_scratch_fini(sp_regex_scratch *s);

/** Compiles a pattern in tokenizer.json's syntax (regex_syntax.h).
 * Errors: SP_E_FORMAT what is wrong at which byte; SP_E_TOOLONG, SP_E_UNSUPPORTED, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_regex_compile(sp_regex **out, sp_slice pattern, sp_err *err);
void sp_regex_free(sp_regex *r);

typedef struct sp_regex_walk {
    size_t from;     /* where the next search begins */
    size_t last_end; /* end of the last match, SIZE_MAX before the first */
} sp_regex_walk;
static inline sp_regex_walk sp_regex_walk_begin(void) {
    return (sp_regex_walk){0, SIZE_MAX};
}

/** The next match in `text` (valid UTF-8); an empty match directly behind the last one is passed
 * over. *found is false when there is no more.
 * Errors: SP_E_TOOLONG a limit was hit; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_regex_next(const sp_regex *r, sp_regex_scratch *s, sp_slice text,
                                     sp_regex_walk *walk, size_t *start, size_t *end, bool *found,
                                     sp_err *err);

/** A pattern of the file: {"String": …} or {"Regex": …}. Exactly one of the two is set. */
typedef struct sp_pattern {
    sp_regex *regex;
    sp_slice text; /* owned */
} sp_pattern;
SP_NODISCARD sp_status sp_pattern_load(sp_pattern *out, const sp_json_node *node, sp_err *err);
void sp_pattern_fini(sp_pattern *p);
/** As sp_regex_next(). */
SP_NODISCARD sp_status sp_pattern_next(const sp_pattern *p, sp_regex_scratch *s, sp_slice text,
                                       sp_regex_walk *walk, size_t *start, size_t *end, bool *found,
                                       sp_err *err);

/* ---- pieces ---- */

typedef struct sp_piece {
    const char *ptr;
    size_t len;
    int32_t id; /* of an added token; -1: text */
    bool first; /* begins where the whole text begins */
} sp_piece;

typedef struct sp_pieces {
    sp_piece *ptr;
    size_t len, cap;
} sp_pieces;
SP_NODISCARD sp_status sp_pieces_push(sp_pieces *p, sp_piece piece); /* Errors: SP_E_NOMEM */
void sp_pieces_fini(sp_pieces *p);

/* ---- pre-tokenizer ---- */

typedef struct sp_pretok sp_pretok;
#define SP_PRETOK_STEPS_MAX 64

/** `node` is the "pre_tokenizer" of the file; null gives one without steps.
 * Errors: SP_E_UNSUPPORTED names a type we do not have; SP_E_FORMAT, SP_E_TOOLONG, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_pretok_load(sp_pretok **out, const sp_json_node *node, sp_err *err);
void sp_pretok_free(sp_pretok *p);

/** Runs all steps over `pieces`. `spare` is another list, for the steps to write to; `arena` holds
 * text that a step had to change.
 * Errors: SP_E_TOOLONG a regex hit a limit; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_pretok_run(const sp_pretok *p, sp_pieces *pieces, sp_pieces *spare,
                                     sp_arena *arena, sp_regex_scratch *scratch, sp_err *err);
