#!/bin/bash
# The bits of a request depend on nothing but the request: not on chunking, block size, threads,
# instruction set, batch, cache, preemption or the way it came in.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
case_limit_s=120

# Token ids to feed: `count` of them, below `vocabulary`, spread by a multiplicative hash.
tokens() { # count vocabulary seed
    awk -v n="$1" -v v="$2" -v s="$3" 'BEGIN {
        for (i = 0; i < n; i++) { s = (s * 16807 + 11) % 2147483647; printf "%s%d", i ? "," : "", s % v }
    }'
}
logits_sum() { # model tokens option...
    local model=$1 ids=$2
    shift 2
    superpod inspect logits --model "$model" --tokens "$ids" --out "$DIR/logits" "$@"
    expect_ok
    sha256sum <"$DIR/logits" | cut -d' ' -f1
}
expect_logits() { # want model tokens option...
    local want=$1 got
    shift
    got=$(logits_sum "$@")
    expect_eq "logits with ${*:3}" "$got" "$want"
}

# A small random model whose sizes divide by nothing comfortable.
tiny_model() { # KEY=VALUE...
    "$BUILD/tests/e2e/make_tiny_model" "$DIR/tiny" n_heads=14 n_kv_heads=2 intermediate=344 vocab=317 "$@"
}

check_every_way() { # model tokens
    local base n_tokens backend flag
    n_tokens=$(awk -F, '{ print NF }' <<<"$2")
    base=$(logits_sum "$1" "$2" --backend ref --threads 1 --max-num-batched-tokens "$n_tokens")
    for flag in 1 7 64 "$n_tokens"; do expect_logits "$base" "$1" "$2" --max-num-batched-tokens "$flag"; done
    for flag in 8 16 32; do expect_logits "$base" "$1" "$2" --block-size $flag; done
    for flag in 1 2 3; do expect_logits "$base" "$1" "$2" --threads $flag; done
    for backend in cpu-generic cpu-avx2 cpu-avx512; do
        backend_is_here $backend || continue
        expect_logits "$base" "$1" "$2" --backend $backend
        expect_logits "$base" "$1" "$2" --backend $backend --threads 2 --max-num-batched-tokens 7 --block-size 8
    done
}
backend_is_here() {
    case $1 in
    cpu-avx2) grep -qw avx2 /proc/cpuinfo && grep -qw f16c /proc/cpuinfo ;;
    cpu-avx512) grep -qw avx512bw /proc/cpuinfo && grep -qw avx512dq /proc/cpuinfo ;;
    esac
}

logits_of_podling_are_the_same_every_way() { check_every_way $PODLING "$(tokens 150 2048 5)"; }
logits_of_an_awkward_model_are_the_same_every_way() {
    tiny_model
    check_every_way "$DIR/tiny" "$(tokens 150 317 9)"
}
logits_of_an_awkward_model_in_f16_shards_are_the_same_every_way() {
    tiny_model dtype=f16 n_shards=3 rope=llama3 attention_bias=1 mlp_bias=1 unaligned=1 seed=2
    check_every_way "$DIR/tiny" "$(tokens 90 317 4)"
}
logits_beyond_one_attention_split_are_the_same() { # 256 positions a split
    local ids base
    ids=$(tokens 600 2048 3)
    base=$(logits_sum $PODLING "$ids" --threads 1)
    expect_logits "$base" $PODLING "$ids" --max-num-batched-tokens 100
    expect_logits "$base" $PODLING "$ids" --block-size 128 --threads 2
    backend_is_here cpu-avx2 && expect_logits "$base" $PODLING "$ids" --backend cpu-avx2
    return 0
}
another_instruction_set_is_skipped_by_name() {
    backend_is_here cpu-avx512 || skip "this processor has no AVX-512: cpu-avx512 was not compared"
    backend_is_here cpu-avx2 || skip "this processor has no AVX2: cpu-avx2 was not compared"
}
an_unknown_backend_is_refused_by_name() {
    superpod inspect logits --model $PODLING --tokens 1,2 --out "$DIR/logits" --backend abacus
    expect_refused 10 abacus
}

# ---- sampled tokens ------------------------------------------------------------------------------

# The sampled ids of request `seed`: a prompt and parameters of its own.
sampled_body() { # seed extra-json
    jq -nc --argjson ids "[$(tokens $((5 + $1 % 40)) 2048 $((100 + $1)))]" --argjson seed "$1" --argjson extra "${2:-{\}}" \
        '{prompt: $ids, seed: $seed, temperature: 0.9, top_p: 0.95, max_tokens: 40, ignore_eos: true,
          return_token_ids: true} + $extra'
}
sampled() { # seed extra: the ids, one JSON list
    call POST /v1/completions "$(sampled_body "$@")"
    expect_code 200
    expect_jq '.choices[0].token_ids | length == 40'
    answer '.choices[0].token_ids | @json'
}

sampled_tokens_of_the_command_line_and_http_are_equal() {
    local seed ids
    start_server --model $PODLING
    for seed in 1 2 3 77; do
        superpod run --model $PODLING --raw --ids --temperature 0.9 --top-p 0.95 --seed $seed --ignore-eos \
            --max-tokens 40 --tokens "$(tokens $((5 + seed % 40)) 2048 $((100 + seed)))"
        expect_ok
        ids=$(sampled $seed)
        expect_eq "the ids of seed $seed" "$ids" "$(jq -c . "$DIR/out")"
    done
    [ "$(sampled 1)" != "$(sampled 1 '{"seed": 2}')" ] || fail "two seeds draw the same"
    stop_server
}

# 32 requests at once, by one client: their ids, in order, in FOLDER/ids.
batch_sampled() { # folder [extra-json]
    local seed
    mkdir -p "$1"
    for seed in $(seq 32); do
        sampled_body "$seed" "${2:-{\}}" >"$1/request-$seed"
        [ "$seed" = 1 ] || echo next
        printf '%s\n' "url = $URL/v1/completions" "data-binary = @$1/request-$seed" "output = $1/answer-$seed" \
            'header = "Content-Type: application/json"' silent show-error "max-time = $((100 * SLOW))"
    done >"$1/config"
    curl --parallel --parallel-immediate --parallel-max 32 --config "$1/config"
    for seed in $(seq 32); do jq -c '.choices[0].token_ids' "$1/answer-$seed"; done >"$1/ids"
}
singles_sampled() { # file
    local seed
    for seed in $(seq 32); do sampled "$seed"; done >"$1"
}
sampled_tokens_alone_and_in_a_batch_of_32_are_equal() {
    local before after
    start_server --model $PODLING
    singles_sampled "$DIR/alone"
    before=$(metric superpod:engine_steps_total)
    batch_sampled "$DIR/together"
    expect_same_file "alone and together" "$DIR/together/ids" "$DIR/alone"
    after=$(metric superpod:engine_steps_total)
    # 1,280 tokens were made: four or more of them in the average step.
    awk -v n=$((after - before)) 'BEGIN { exit !(n <= 320) }' ||
        fail "$((after - before)) steps: they hardly ran together, the case proves nothing"
    stop_server
    # Without the cache, with another chunk, block and thread count.
    start_server --model $PODLING --no-enable-prefix-caching --max-num-batched-tokens 24 --block-size 32 --threads 1
    batch_sampled "$DIR/other"
    expect_same_file "alone and with other options" "$DIR/other/ids" "$DIR/alone"
    stop_server
}

sampled_tokens_of_a_prefix_hit_and_miss_are_equal() {
    local body miss hit
    start_server --model $PODLING
    body=$(sampled_body 4 "{\"prompt\": [$(tokens 200 2048 44)]}")
    call POST /v1/completions "$body"
    expect_code 200
    expect_jq '(.usage.prompt_tokens_details.cached_tokens // 0) == 0'
    miss=$(answer '.choices[0].token_ids | @json')
    call POST /v1/completions "$body"
    expect_code 200
    expect_jq '.usage.prompt_tokens_details.cached_tokens >= 176'
    hit=$(answer '.choices[0].token_ids | @json')
    expect_eq "the ids of the hit" "$hit" "$miss"
    stop_server
}

sampled_tokens_survive_preemption() {
    local preemptions
    start_server --model $PODLING
    batch_sampled "$DIR/roomy" '{"max_tokens": 150}'
    metric_is 'vllm:num_preemptions_total' 0 || fail "preempted where there is room"
    stop_server
    # Room for about a fifth of what 32 sequences of up to 195 tokens want at once.
    start_server --model $PODLING --num-gpu-blocks-override 64 --max-model-len 512
    batch_sampled "$DIR/tight" '{"max_tokens": 150}'
    expect_same_file "with room and preempted" "$DIR/tight/ids" "$DIR/roomy/ids"
    preemptions=$(metric 'vllm:num_preemptions_total')
    awk -v n="${preemptions:-0}" 'BEGIN { exit !(n > 0) }' || fail "nothing was preempted: the case proves nothing"
    stop_server
}

choices_are_the_same_again_and_differ_from_each_other() {
    local first
    start_server --model $PODLING
    first=$(sampled 6)
    call POST /v1/completions "$(sampled_body 6 '{"n": 4}')"
    expect_code 200
    expect_jq '[.choices[].index] == [0, 1, 2, 3]'
    expect_jq '[.choices[].token_ids] | unique | length == 4'
    expect_eq "choice 0 of 4 and the only choice" "$(answer '.choices[0].token_ids | @json')" "$first"
    cp "$DIR/body" "$DIR/four"
    call POST /v1/completions "$(sampled_body 6 '{"n": 4}')"
    expect_eq "the same again" "$(answer '[.choices[].token_ids] | @json')" "$(jq -c '[.choices[].token_ids]' "$DIR/four")"
    stop_server
}

greedy_ties_and_n_are_equal_copies() {
    start_server --model $PODLING
    call POST /v1/completions "$(sampled_body 6 '{"n": 3, "temperature": 0}')"
    expect_code 200
    expect_jq '[.choices[].token_ids] | length == 3 and (unique | length == 1)'
    stop_server
}

run_cases same_bits logits_of_podling_are_the_same_every_way \
    logits_of_an_awkward_model_are_the_same_every_way \
    logits_of_an_awkward_model_in_f16_shards_are_the_same_every_way \
    logits_beyond_one_attention_split_are_the_same \
    another_instruction_set_is_skipped_by_name an_unknown_backend_is_refused_by_name \
    sampled_tokens_of_the_command_line_and_http_are_equal \
    sampled_tokens_alone_and_in_a_batch_of_32_are_equal \
    sampled_tokens_of_a_prefix_hit_and_miss_are_equal sampled_tokens_survive_preemption \
    choices_are_the_same_again_and_differ_from_each_other greedy_ties_and_n_are_equal_copies
