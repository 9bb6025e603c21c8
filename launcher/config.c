#include "launcher/config.h"

#include "launcher/config_yaml.h"
#include "runtime/base/str.h"

#include <stddef.h>
#include <stdlib.h>

typedef enum kind {
    STR,
    LIST,
    INT,
    REAL,
    BOOL,
    BYTES
} kind;

typedef struct row {
    const char *name, *alias; /* alias: a short or second spelling without dashes, or NULL */
    kind kind;
    size_t offset;
    const char *fallback; /* as the user would write it; NULL: unset */
    double min, max;      /* of INT, REAL, BYTES */
    int commands;
    const char *help;
} row;

#define AT(field) offsetof(sp_config, field)
#define ALL (SP_CMD_SERVE | SP_CMD_RUN | SP_CMD_LOGITS | SP_CMD_STEP)
#define HTTP SP_CMD_SERVE
#define GEN (SP_CMD_RUN)
#define FEED (SP_CMD_RUN | SP_CMD_LOGITS)
#define PLAN SP_CMD_PLAN

static const row rows[] = {
    {"model", "m", STR, AT(model), NULL, 0, 0, ALL | PLAN,
     "a model directory, or org/name from the local Hugging Face cache"},
    {"config", NULL, STR, AT(config), NULL, 0, 0, ALL | PLAN,
     "a YAML file of these options (flags and variables win)"},
    {"served-model-name", NULL, LIST, AT(served_model_name), NULL, 0, 0, HTTP,
     "the model's name in the API, and aliases (default: --model as given)"},
    {"max-model-len", "c", INT, AT(max_model_len), "0", 0, 1 << 24, ALL | PLAN,
     "longest prompt and answer together, in tokens; 0: the model's own"},
    {"chat-template", NULL, STR, AT(chat_template), NULL, 0, 0, HTTP | GEN,
     "a Jinja file in place of the model's own template"},
    {"generation-config", NULL, STR, AT(generation_config), "auto", 0, 0, HTTP | GEN,
     "auto: default sampling from the model's generation_config.json; vllm: none"},
    {"trust-special-text", NULL, BOOL, AT(trust_special_text), "false", 0, 0, HTTP | GEN,
     "special-token spellings inside chat messages become those tokens"},

    {"tensor-parallel-size", "tp", INT, AT(tp), "1", 1, 64, ALL, "ranks that share each layer"},
    {"pipeline-parallel-size", "pp", INT, AT(pp), "1", 1, 64, ALL, "stages of layers"},
    {"tensor-parallel-size", "tp", INT, AT(tp), "0", 0, 64, PLAN,
     "ranks that share each layer; 0: the devices of a node"},
    {"pipeline-parallel-size", "pp", INT, AT(pp), "0", 0, 64, PLAN,
     "stages of layers; 0: the nodes"},
    {"nodes", NULL, STR, AT(nodes), NULL, 0, 0, PLAN,
     "NODESxDEVICESxKIND, as 2x8xH100-80G, 4xA100-40G, CPU-64G or CPU-64G@200 (GB/s)"},
    {"json", NULL, BOOL, AT(json), "false", 0, 0, PLAN, "as JSON"},
    {"pp-layers", NULL, STR, AT(pp_layers), NULL, 0, 0, ALL | PLAN,
     "layers of each stage, as 30,32,32,32"},
    {"pool", "pools", LIST, AT(pool), NULL, 0, 0, HTTP | PLAN,
     "a pool of groups, each with the whole model: name=d,role=decode,replicas=2,tp=2,pp=1; role "
     "mixed, prefill or decode; once a pool (in the variable: between ';')"},
    {"prefill-threshold-tokens", NULL, INT, AT(prefill_threshold), "256", 0, 1 << 24, HTTP,
     "more tokens of a prompt than these are computed by a prefill pool, where there is one"},
    {"kv-secret-file", NULL, STR, AT(kv_secret_file), NULL, 0, 0, HTTP,
     "file of a secret, 16 bytes or more, mode 0600: pods with the same one lend one another KV "
     "blocks (kv_transfer_params)"},
    {"kv-load-failure-policy", NULL, STR, AT(kv_load_failure_policy), "recompute", 0, 0, HTTP,
     "when blocks that another pod lent do not come: recompute, or fail the request"},
    {"kv-lease-seconds", NULL, INT, AT(kv_lease_s), "30", 1, 3600, HTTP,
     "blocks stay for so long after the last sign of who pulls them"},
    {"collectives", NULL, STR, AT(collectives), "auto", 0, 0, ALL,
     "auto (on GPUs nccl, else shm inside a node and ucx between nodes), nccl, shm or ucx"},
    {"null-model", NULL, BOOL, AT(null_model), "false", 0, 0, HTTP,
     "a rehearsal: config.json alone, no weights; real control path, collectives and activation "
     "sizes, hashes for tokens"},
    {"backend", "device", STR, AT(backend), "auto", 0, 0, ALL,
     "auto (cuda where there is a GPU, else cpu), cuda, cpu (cpu-avx512, cpu-avx2, cpu-generic), "
     "emu "
     "(a GPU emulated by the CPU, for tests) or ref"},
    {"backend", "device", STR, AT(backend), "auto", 0, 0, PLAN,
     "cuda or emu: bytes as that backend packs, and without --nodes the GPUs of this machine; "
     "auto: "
     "as --nodes says"},
    {"numerics", NULL, STR, AT(numerics), "exact", 0, 0, ALL,
     "exact: the same bits in any batch and partition (on cuda: deterministic); fast: device cuda "
     "only, sums in any order, by cuBLASLt and NCCL"},
    {"threads", "t", INT, AT(threads), "0", 0, 1024, ALL,
     "compute threads of a rank; 0: as many as cores"},
    {"pin-threads", NULL, BOOL, AT(pin), "false", 0, 0, ALL, "bind each compute thread to a core"},
    {"block-size", NULL, INT, AT(block_size), "16", 8, 128, ALL | PLAN, "tokens of a KV block"},
    {"kv-cache-dtype", NULL, STR, AT(kv_cache_dtype), "auto", 0, 0, ALL | PLAN,
     "auto, f32, f16 or bf16"},
    {"max-num-seqs", NULL, INT, AT(max_num_seqs), "64", 1, 4096, ALL | PLAN,
     "sequences that run together"},
    {"max-num-batched-tokens", NULL, INT, AT(max_num_batched_tokens), "512", 1, 65536, ALL | PLAN,
     "tokens of one step: the chunk of a long prompt"},
    {"num-gpu-blocks-override", "num-kv-blocks", INT, AT(num_blocks), "0", 0, 1 << 26, ALL | PLAN,
     "KV blocks; 0: computed from memory"},
    {"enable-prefix-caching", NULL, BOOL, AT(prefix_caching), "true", 0, 0, ALL,
     "keep finished KV blocks and find them again"},

    {"role", NULL, STR, AT(role), "auto", 0, 0, HTTP,
     "auto (as the launcher says), head, or worker (joins --head; needs no model option)"},
    {"head", "master-addr", STR, AT(head), NULL, 0, 0, HTTP,
     "host:port where a worker finds the head"},
    {"head-port", "master-port", INT, AT(head_port), "0", 0, 65535, HTTP,
     "port where the head waits for workers; 0: a free one where the launcher can tell it, else "
     "7000"},
    {"token-file", NULL, STR, AT(token_file), NULL, 0, 0, HTTP,
     "file of the pod token, 64 hexadecimal digits, mode 0600; also SUPERPOD_POD_TOKEN"},
    {"nnodes", NULL, INT, AT(nnodes), "0", 0, 4096, HTTP,
     "agents of the pod, the head's included; 0: as the launcher says, for --role head one a "
     "stage"},
    {"rank", "node-rank", INT, AT(rank), "-1", -1, 4095, HTTP,
     "this agent's number; -1: as the launcher or the head says"},
    {"slots", NULL, INT, AT(slots), "0", 0, 512, HTTP,
     "ranks that this agent may start; 0: as many as its share"},
    {"join-timeout", NULL, INT, AT(join_timeout_s), "300", 1, 86400, HTTP,
     "seconds that head and workers wait for one another at the start"},
    {"preflight", NULL, STR, AT(preflight), "warn", 0, 0, HTTP,
     "what a bad network or a low limit does before loading: warn, strict (exit 10) or off"},
    {"pid-file", NULL, STR, AT(pid_file), NULL, 0, 0, HTTP,
     "holds the process id whose SIGTERM drains the pod; at the end it is removed, or says 'exit "
     "N' when "
     "N is not 0"},
    {"endpoint-file", NULL, STR, AT(endpoint_file), NULL, 0, 0, HTTP,
     "written when ready, removed at the end: JSON with url and model"},

    {"host", NULL, STR, AT(host), NULL, 0, 0, HTTP,
     "address to listen on (127.0.0.1; all addresses where Slurm, LeaderWorkerSet or KServe "
     "started "
     "the pod)"},
    {"port", NULL, INT, AT(port), "8000", 0, 65535, HTTP,
     "port to listen on; 0 takes a free one and says which"},
    {"api-key", NULL, LIST, AT(api_key), NULL, 0, 0, HTTP,
     "keys that clients must send; also SUPERPOD_API_KEY"},
    {"allowed-host", NULL, LIST, AT(allowed_host), NULL, 0, 0, HTTP,
     "further Host names accepted when listening on loopback"},
    {"max-queue", NULL, INT, AT(max_queue), "1024", 1, 1 << 20, HTTP,
     "requests that may wait; more are answered 429"},
    {"max-connections", NULL, INT, AT(max_connections), "4096", 1, 1 << 20, HTTP,
     "open connections; more are refused"},
    {"max-body-bytes", NULL, BYTES, AT(max_body_bytes), "8M", 1024, 1 << 30, HTTP,
     "largest request body"},
    {"max-header-bytes", NULL, BYTES, AT(max_header_bytes), "16K", 1024, 1 << 20, HTTP,
     "largest request header"},
    {"max-json-depth", NULL, INT, AT(max_json_depth), "64", 8, 128, HTTP,
     "deepest nesting of a request body"},
    {"max-logprobs", NULL, INT, AT(max_logprobs), "20", 0, 20, HTTP,
     "most logprobs a request may ask for"},
    {"text-threads", NULL, INT, AT(text_threads), "2", 1, 64, HTTP,
     "threads for templates and tokenising"},
    {"request-timeout", NULL, INT, AT(request_timeout_s), "0", 0, 86400, HTTP,
     "seconds after which a request is ended; 0: never"},
    {"shutdown-timeout", NULL, INT, AT(shutdown_timeout_s), "30", 0, 86400, HTTP,
     "seconds that running requests get to finish on SIGTERM"},
    {"access-log", NULL, BOOL, AT(access_log), "true", 0, 0, HTTP, "a line for each HTTP request"},

    {"prompt", "p", STR, AT(prompt), NULL, 0, 0, FEED, "the prompt; also as plain words"},
    {"system", NULL, STR, AT(system), NULL, 0, 0, GEN, "a system message before the prompt"},
    {"tokens", NULL, STR, AT(tokens), NULL, 0, 0, FEED, "prompt token ids, as 1,2,3"},
    {"raw", NULL, BOOL, AT(raw), "false", 0, 0, GEN,
     "no chat template: complete the prompt as it is"},
    {"ids", NULL, BOOL, AT(ids), "false", 0, 0, GEN, "print the generated ids as a JSON list"},
    {"max-tokens", "n", INT, AT(max_tokens), "0", 0, 1 << 24, GEN,
     "tokens to generate; 0: until the model ends or the context is full"},
    {"temperature", NULL, REAL, AT(temperature), "-1", -1, 2, GEN,
     "0 is greedy; -1: the model's own default, else 1"},
    {"top-p", NULL, REAL, AT(top_p), "-1", -1, 1, GEN, "nucleus; -1: the model's own default"},
    {"top-k", NULL, INT, AT(top_k), "-1", -1, 1 << 24, GEN,
     "most likely tokens kept; 0: all; -1: the model's own default"},
    {"min-p", NULL, REAL, AT(min_p), "-1", -1, 1, GEN,
     "least probability, of the largest one; -1: the model's own default"},
    {"repetition-penalty", NULL, REAL, AT(repetition_penalty), "-1", -1, 100, GEN,
     "above 1 repeats less; -1: the model's own default"},
    {"seed", NULL, INT, AT(seed), "-1", -1, 9e15, GEN,
     "seed of draws; -1: a fresh one for each request"},
    {"ignore-eos", NULL, BOOL, AT(ignore_eos), "false", 0, 0, GEN,
     "go on past the model's end token"},
    {"out", "o", STR, AT(out), NULL, 0, 0, SP_CMD_LOGITS,
     "file for the logits: float32 little-endian [T, V]"},
    {"steps", NULL, INT, AT(steps), "200", 1, 1 << 20, SP_CMD_STEP, "decode steps to time"},
    {"batch", NULL, INT, AT(batch), "1", 1, 4096, SP_CMD_STEP, "sequences of a step"},

    {"log-level", NULL, STR, AT(log_level), "info", 0, 0, HTTP,
     "error, warn, info, debug or trace"},
    {"log-level", NULL, STR, AT(log_level), "warn", 0, 0, FEED | SP_CMD_STEP,
     "error, warn, info, debug or trace"},
    {"log-format", NULL, STR, AT(log_format), "text", 0, 0, ALL, "text or json"},
    {"quiet", "q", BOOL, AT(quiet), "false", 0, 0, ALL, "no progress, no start-up lines"},
};

/* Flags spell '-' and '_' alike. */
static bool same_name(sp_slice a, const char *b) {
    if (!b || a.len != strlen(b)) return false;
    for (size_t i = 0; i < a.len; i++)
        if (a.ptr[i] != b[i] && !((a.ptr[i] == '_' || a.ptr[i] == '-') && b[i] == '-'))
            return false;
    return true;
}

static const row *find_row(sp_slice name, int command) {
    for (size_t i = 0; i < SP_LEN(rows); i++)
        if ((rows[i].commands & command) &&
            (same_name(name, rows[i].name) || same_name(name, rows[i].alias)))
            return &rows[i];
    return NULL;
}

static void *field(sp_config *c, const row *r) {
    return (char *)c + r->offset;
}

static sp_status parse_bool(const char *text, bool *out) {
    static const char *const yes[] = {"true", "1", "yes", "on"};
    static const char *const no[] = {"false", "0", "no", "off"};
    for (size_t i = 0; i < SP_LEN(yes); i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            *out = strcmp(text, yes[i]) == 0;
            return SP_OK;
        }
    }
    return SP_E_INVALID;
}

static sp_status want(const row *r, const char *what, const char *text, sp_err *err) {
    return SP_FAIL(err, SP_E_INVALID, "option '%s': want %s, got '%.60s'", r->name, what, text);
}

static sp_status set_number(sp_config *c, const row *r, const char *text, sp_err *err) {
    double v = 0;
    int64_t i = 0;
    uint64_t bytes = 0;
    sp_slice s = sp_slice_of(text);
    if (r->kind == REAL) {
        if (sp_parse_f64(s, &v) != SP_OK) return want(r, "a number", text, err);
    } else if (r->kind == BYTES) {
        if (sp_parse_bytes(s, &bytes) != SP_OK) return want(r, "bytes, as 512K or 8M", text, err);
        i = (int64_t)bytes;
        v = (double)bytes;
    } else {
        if (sp_parse_i64(s, &i) != SP_OK) return want(r, "an integer", text, err);
        v = (double)i;
    }
    if (v < r->min || v > r->max)
        return SP_FAIL(err, SP_E_INVALID, "option '%s': want %.15g to %.15g, got %.60s", r->name,
                       r->min, r->max, text);
    if (r->kind == REAL)
        *(double *)field(c, r) = v;
    else
        *(int64_t *)field(c, r) = i;
    return SP_OK;
}

/* `text` lives as long as the process, or is copied by the caller. */
static sp_status set_value(sp_config *c, const row *r, const char *text, sp_err *err) {
    switch (r->kind) {
    case STR:
        *(const char **)field(c, r) = text;
        return SP_OK;
    case BOOL:
        if (parse_bool(text, field(c, r)) != SP_OK) return want(r, "true or false", text, err);
        return SP_OK;
    case LIST: {
        sp_list *l = field(c, r);
        if (l->n == SP_LIST_MAX)
            return SP_FAIL(err, SP_E_INVALID, "option '%s': at most %d values", r->name,
                           SP_LIST_MAX);
        l->at[l->n++] = text;
        return SP_OK;
    }
    case INT:
    case REAL:
    case BYTES:
        return set_number(c, r, text, err);
    }
    return SP_E_INTERNAL;
}

/* All rows, so that no field is unset; then the command's own, whose defaults win. */
static sp_status set_defaults(sp_config *c, sp_err *err) {
    for (int own = 0; own < 2; own++)
        for (size_t i = 0; i < SP_LEN(rows); i++) {
            const row *r = &rows[i];
            if (r->fallback && (!own || (r->commands & (int)c->command)))
                SP_TRY(set_value(c, r, r->fallback, err));
        }
    return SP_OK;
}

static sp_status set_list(sp_config *c, const row *r, char *text, sp_err *err) {
    /* A pool's own text has commas. */
    const char *between = r->offset == AT(pool) ? ";" : ",";
    for (char *save = NULL, *item = strtok_r(text, between, &save); item;
         item = strtok_r(NULL, between, &save))
        SP_TRY(set_value(c, r, item, err));
    return SP_OK;
}

static sp_status set_from_env(sp_config *c, sp_err *err) {
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        const row *r = &rows[i];
        if (!(r->commands & c->command)) continue;
        char name[80] = "SUPERPOD_";
        size_t n = strlen(name);
        for (const char *s = r->name; *s && n + 1 < sizeof name; s++)
            name[n++] = (char)(*s == '-' ? '_' : *s >= 'a' && *s <= 'z' ? *s - 32 : *s);
        name[n] = 0;
        const char *text = getenv(name);
        if (!text || !*text) continue;
        sp_status st;
        if (r->kind == LIST) {
            *(sp_list *)field(c, r) = (sp_list){0};
            st = set_list(c, r, sp_arena_strndup(&c->strings, text, strlen(text)), err);
        } else {
            st = set_value(c, r, text, err);
        }
        if (st != SP_OK) {
            sp_err_context(err, "variable %s", name);
            return st;
        }
    }
    return SP_OK;
}

static sp_status from_yaml(void *ctx, const char *key, const char *const *values, int n_values,
                           sp_err *err) {
    sp_config *c = ctx;
    const row *r = find_row(sp_slice_of(key), ALL);
    if (!r) return SP_FAIL(err, SP_E_INVALID, "unknown option '%.60s'", key);
    if (n_values != 1 && r->kind != LIST)
        return SP_FAIL(err, SP_E_INVALID, "option '%s': want one value, got a list", r->name);
    if (r->kind == LIST) *(sp_list *)field(c, r) = (sp_list){0};
    for (int i = 0; i < n_values; i++)
        SP_TRY(set_value(c, r, sp_arena_strndup(&c->strings, values[i], strlen(values[i])), err));
    return SP_OK;
}

/* Distance for "did you mean": common letters in order, cheap and good enough for one line. */
static const char *nearest(sp_slice name, int command) {
    const char *best = NULL;
    size_t best_score = 0;
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        if (!(rows[i].commands & command)) continue;
        size_t score = 0, at = 0, len = strlen(rows[i].name);
        for (size_t k = 0; k < name.len && at < len; k++) {
            const char *hit = memchr(rows[i].name + at, name.ptr[k], len - at);
            if (hit) {
                score++;
                at = (size_t)(hit - rows[i].name) + 1;
            }
        }
        if (score * 2 > len + 1 && score * 2 > name.len && score > best_score) {
            best_score = score;
            best = rows[i].name;
        }
    }
    return best;
}

static sp_status unknown(sp_slice name, int command, sp_err *err) {
    const char *near = nearest(name, command);
    return SP_FAIL(err, SP_E_INVALID, "unknown option '--%.*s'%s%s%s", (int)name.len, name.ptr,
                   near ? "; did you mean '--" : "", near ? near : "", near ? "'?" : "");
}

typedef struct args {
    int argc, at;
    char **argv;
    bool flag_seen[SP_LEN(rows)]; /* a list given by flags replaces the weaker ones */
} args;

static sp_status take_flag(sp_config *c, args *a, sp_err *err) {
    const char *arg = a->argv[a->at];
    const char *word = arg + (arg[1] == '-' ? 2 : 1);
    const char *eq = strchr(word, '=');
    sp_slice name = {word, eq ? (size_t)(eq - word) : strlen(word)};
    const row *r = find_row(name, (int)c->command);
    bool negated = false;
    if (!r && sp_slice_starts(name, SP_SLICE("no-"))) {
        r = find_row((sp_slice){name.ptr + 3, name.len - 3}, (int)c->command);
        negated = r && r->kind == BOOL;
        if (!negated) r = NULL;
    }
    if (!r) return unknown(name, (int)c->command, err);
    a->at++;
    if (r->kind == BOOL && !eq) {
        *(bool *)field(c, r) = !negated;
        return SP_OK;
    }
    const char *text = eq ? eq + 1 : a->at < a->argc ? a->argv[a->at++] : NULL;
    if (!text) return SP_FAIL(err, SP_E_INVALID, "option '--%s' wants a value", r->name);
    if (r->kind != LIST) return set_value(c, r, text, err);
    if (!a->flag_seen[r - rows]) *(sp_list *)field(c, r) = (sp_list){0};
    a->flag_seen[r - rows] = true;
    SP_TRY(set_value(c, r, text, err));
    /* `--served-model-name a b c` as vLLM takes it. */
    while (!eq && a->at < a->argc && a->argv[a->at][0] != '-')
        SP_TRY(set_value(c, r, a->argv[a->at++], err));
    return SP_OK;
}

/* Plain words: the model of `serve`, the prompt of `run`. */
static sp_status take_word(sp_config *c, const char *word, sp_err *err) {
    const char **slot = c->command == SP_CMD_RUN     ? &c->prompt
                        : c->command == SP_CMD_SERVE ? &c->model
                                                     : NULL;
    if (!slot || *slot)
        return SP_FAIL(err, SP_E_INVALID, "'%.60s' is not an option%s", word,
                       slot ? "; quote a prompt of several words" : "");
    *slot = word;
    return SP_OK;
}

static bool is_flag(const char *arg) {
    /* "-1" is a value, "-" and "--" are words. */
    return arg[0] == '-' && arg[1] && !(arg[1] >= '0' && arg[1] <= '9') && strcmp(arg, "--") != 0;
}

static sp_status take_args(sp_config *c, int argc, char **argv, bool *help, sp_err *err) {
    args a = {.argc = argc, .argv = argv, .at = 1};
    while (a.at < argc) {
        const char *arg = argv[a.at];
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            *help = true;
            return SP_OK;
        }
        if (is_flag(arg)) {
            SP_TRY(take_flag(c, &a, err));
        } else {
            if (strcmp(arg, "--") != 0) SP_TRY(take_word(c, arg, err));
            a.at++;
        }
    }
    return SP_OK;
}

/* --config must be known before the file is read, and the file before the flags win over it. */
static const char *config_path(int argc, char **argv) {
    const char *path = getenv("SUPERPOD_CONFIG");
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--config") == 0 && i + 1 < argc) path = argv[i + 1];
        if (strncmp(argv[i], "--config=", 9) == 0) path = argv[i] + 9;
    }
    return path && *path ? path : NULL;
}

sp_status sp_config_parse(sp_config *out, sp_command command, int argc, char **argv, bool *help,
                          sp_err *err) {
    sp_config c = {.command = command};
    *help = false;
    const char *path = config_path(argc, argv);
    sp_status st = set_defaults(&c, err);
    if (st == SP_OK && path) st = sp_yaml_read(path, from_yaml, &c, err);
    if (st == SP_OK) st = set_from_env(&c, err);
    if (st == SP_OK) st = take_args(&c, argc, argv, help, err);
    if (st == SP_OK && !*help && !c.model && strcmp(c.role, "worker") != 0)
        st = SP_FAIL(err, SP_E_INVALID,
                     "no model: give --model DIR (the demo model is configs/podling)");
    if (st == SP_OK && strcmp(c.numerics, "exact") != 0 && strcmp(c.numerics, "fast") != 0)
        st = SP_FAIL(err, SP_E_INVALID, "option 'numerics': want exact or fast, got '%.60s'",
                     c.numerics);
    if (st == SP_OK && strcmp(c.kv_load_failure_policy, "recompute") != 0 &&
        strcmp(c.kv_load_failure_policy, "fail") != 0)
        st = SP_FAIL(err, SP_E_INVALID,
                     "option 'kv-load-failure-policy': want recompute or fail, got '%.60s'",
                     c.kv_load_failure_policy);
    if (st != SP_OK) {
        sp_config_fini(&c);
        return st;
    }
    *out = c;
    return SP_OK;
}

void sp_config_fini(sp_config *c) {
    sp_arena_fini(&c->strings);
}

void sp_config_help(sp_command command, FILE *to) {
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        const row *r = &rows[i];
        if (!(r->commands & (int)command)) continue;
        char flag[80];
        const char *dash = r->alias && !r->alias[1] ? "-" : "--";
        snprintf(flag, sizeof flag, "--%s%s%s%s", r->name, r->alias ? ", " : "",
                 r->alias ? dash : "", r->alias ? r->alias : "");
        fprintf(to, "  %-34s %s", flag, r->help);
        if (r->fallback && r->kind != BOOL && strcmp(r->fallback, "-1") != 0)
            fprintf(to, " (%s)", r->fallback);
        if (r->kind == BOOL) fprintf(to, " (%s; --no-%s)", r->fallback, r->name);
        fputc('\n', to);
    }
}

void sp_config_reference(FILE *to) {
    fputs(
        "# Every option of `superpod serve`, with its default. Generated by\n"
        "# `superpod serve --print-reference`; a key here is the flag without its dashes and the\n"
        "# variable SUPERPOD_<KEY>. Flags win over variables, variables over this file.\n",
        to);
    for (size_t i = 0; i < SP_LEN(rows); i++) {
        const row *r = &rows[i];
        if (!(r->commands & SP_CMD_SERVE) || strcmp(r->name, "config") == 0) continue;
        fprintf(to, "\n# %s\n", r->help);
        if (r->fallback)
            fprintf(to, "%s: %s\n", r->name, r->fallback);
        else
            fprintf(to, "# %s: %s\n", r->name, r->kind == LIST ? "[]" : "");
    }
}
