/* tests/e2e/make_tiny_model.c - tests/tiny_model.h for scripts.
 *
 *   make_tiny_model DIR [KEY=VALUE...]
 *
 * Makes DIR and writes a small random model into it; keys are the fields of sp_tiny that are
 * numbers or switches (n_heads=14 n_shards=3 tied=1), and dtype=f32|f16|bf16,
 * rope=default|linear|llama3. */
#include "tests/tiny_model.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct key {
    const char *name;
    size_t offset;
    bool is_switch;
} key;

#define NUMBER(field) \
    { #field, offsetof(sp_tiny, field), false }
#define SWITCH(field) \
    { #field, offsetof(sp_tiny, field), true }

static const key keys[] = {
    NUMBER(hidden),    NUMBER(n_layers),      NUMBER(intermediate),   NUMBER(vocab),
    NUMBER(n_heads),   NUMBER(head_dim),      NUMBER(max_positions),  NUMBER(n_kv_heads),
    NUMBER(n_shards),  SWITCH(tied),          SWITCH(attention_bias), SWITCH(mlp_bias),
    SWITCH(unaligned), SWITCH(transformers5),
};

static bool set_word(sp_tiny *t, const char *name, const char *value) {
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    static const sp_dtype dtype_of[] = {SP_DTYPE_F32, SP_DTYPE_F16, SP_DTYPE_BF16};
    static const char *const ropes[] = {"default", "linear", "llama3"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, "dtype") == 0 && strcmp(value, dtypes[i]) == 0) {
            t->dtype = dtype_of[i];
            return true;
        }
        if (strcmp(name, "rope") == 0 && strcmp(value, ropes[i]) == 0) {
            t->rope = (sp_tiny_rope)i;
            return true;
        }
    }
    return false;
}

static bool set_key(sp_tiny *t, const char *name, const char *value) {
    char *end;
    const long number = strtol(value, &end, 10);
    if (*value == 0 || *end != 0) return set_word(t, name, value);
    if (strcmp(name, "seed") == 0) {
        t->seed = (uint64_t)number;
        return true;
    }
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strcmp(keys[i].name, name) != 0) continue;
        void *field = (char *)t + keys[i].offset;
        if (keys[i].is_switch)
            *(bool *)field = number != 0;
        else
            *(int32_t *)field = (int32_t)number;
        return true;
    }
    return false;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fputs("usage: make_tiny_model DIR [KEY=VALUE...]\n", stderr);
        return 2;
    }
    sp_tiny t = sp_tiny_default();
    for (int i = 2; i < argc; i++) {
        char *eq = strchr(argv[i], '=');
        if (eq) *eq = 0;
        if (!eq || !set_key(&t, argv[i], eq + 1)) {
            fprintf(stderr, "make_tiny_model: cannot set '%s'\n", argv[i]);
            return 2;
        }
    }
    if (mkdir(argv[1], 0755) != 0) {
        perror(argv[1]);
        return 1;
    }
    sp_tiny_write(argv[1], &t);
    return 0;
}
