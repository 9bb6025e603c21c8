# shellcheck shell=bash
# tests/bench_split.sh - sourced by tests/bench.sh: prefill and decode by different groups.
#
#   tests/bench.sh split                        all of it, about eight minutes
#   tests/bench.sh split_kvx split_ttft         parts: split_kvx split_ttft split_itl split_trace
#   TRACE=FILE tests/bench.sh split_trace       another trace of Mooncake's format
#
# Both sides have two cores. Split: a prefill rank bound to core 0 and a decode rank bound to core 1,
# a thread each. Heads and clients are bound to core 1, so that whoever prefills has a core for
# itself on either side.
# shellcheck disable=SC2154,SC2030,SC2031 # superpod, model, dir, url, port: of tests/bench.sh

# A Llama of 85M parameters in its layers, as models called 160M with a larger vocabulary have them.
LAYERS_85M="hidden=768 n_layers=12 n_heads=12 n_kv_heads=12 intermediate=2048 vocab=2048 max_positions=4096 tied=1"
IDS=16-2047
# One token, always: of random weights others would be halves of characters, which show no text.
ONE_TOKEN='{"logit_bias": {"300": 100}}'
SPLIT=(--threads 1 --prefill-threshold-tokens 64 --pool "name=p,role=prefill" --pool "name=d,role=decode")
MIXED=(--threads 2 --max-num-batched-tokens 256)
PROMPT=1500
trace=${TRACE:-${SUPERPOD_FIXTURES:-../shared/fixtures}/traces/mooncake/conversation_trace.jsonl}

make_model() {
    local make=${superpod%/*}/tests/e2e/make_tiny_model
    [ -d "$dir/160m" ] && return
    [ -x "$make" ] || make -s "B=${superpod%/*}" "$make" || exit 1
    # shellcheck disable=SC2086 # several settings
    "$make" "$dir/160m" $LAYERS_85M || exit 1
    cp "$model"/tokenizer*.json "$dir/160m/"
}

# start_pinned MODEL OPTION...: a server whose ranks have a core each, in the order of their numbers.
start_pinned() {
    local pid core=0
    model=$1 start_superpod "${@:2}"
    taskset -acp 1 "$server" >/dev/null
    for pid in $(ps -o pid= --sid "$server"); do taskset -acp 1 "$pid" >/dev/null; done
    for pid in $(curl -sS "$url/superpod/status" | jq '.ranks | sort_by(.rank)[].pid'); do
        taskset -acp $core "$pid" >/dev/null
        core=$((1 - core))
    done
}
CLIENT=(taskset -c 1 "$superpod" bench http --ids "$IDS" --extra-body "$ONE_TOKEN" --json)
client() { "${CLIENT[@]}" "$@"; }
# The ratio of two figures; the second may be 0.
over() { calc "$1" "$3 > 0 ? $2 / $3 : 0"; }

# ---- the way ---------------------------------------------------------------------------------------
bench_split_kvx() {
    local way
    for way in shm tcp ucx; do
        if ! "$superpod" bench kvx --way $way >"$dir/kvx" 2>/dev/null; then
            row "KV blocks of 1 MiB by $way" "not here" - -
            continue
        fi
        row "KV blocks of 1 MiB by $way" "$(calc %.2f "$(jq .gb_per_s "$dir/kvx")") GB/s" - -
        row "  of $(jq -r .probe "$dir/kvx") alone" "$(calc %.2f "$(jq .ratio "$dir/kvx")")" 0.7 0.9
    done
}

# ---- what the way adds to the first token ----------------------------------------------------------
first_token() { # url seed: ms
    client --url "$1" --streams 1 --requests 1 --prompt-tokens $PROMPT --seed "$2" --max-tokens 2 |
        jq .ttft_ms.max
}
# 256 blocks are two prompts and a half: after three, all memory has been touched once, and none of
# what is measured waits for a page that the kernel (or who lends it memory) has to make first.
bench_split_ttft() {
    local i one two alone=() split=() added=()
    make_model
    start_pinned "$dir/160m" --threads 1 --num-kv-blocks 256
    one=$url
    start_pinned "$dir/160m" "${SPLIT[@]}" --num-kv-blocks 256
    two=$url
    for i in $(seq 0 12); do
        alone[i]=$(first_token "$one" $((i + 1)))
        split[i]=$(first_token "$two" $((i + 1)))
        added[i]=$(calc %.3f "${split[i]} / ${alone[i]} * 100 - 100")
    done
    local a s
    a=$(median_of "${alone[@]:3}")
    s=$(median_of "${split[@]:3}")
    row "$PROMPT tokens, 85M: first token, prefill group alone" "$(calc %.0f "$a") ms" - -
    row "  split into prefill and decode" "$(calc %.0f "$s") ms" - -
    row "  added, by medians" "$(calc %.1f "$s / $a * 100 - 100") %" "10 %" "4 %"
    row "  added, median of the turns" "$(calc %.1f "$(median_of "${added[@]:3}")") %" - -
    expect_moved 13
    stop_all
}
# Without this a pod that moves nothing would look best.
expect_moved() {
    local n
    n=$(metric superpod:prefilled_elsewhere_total)
    [ "${n%.*}" -ge "$1" ] || row "  WRONG: prompts prefilled elsewhere, want $1" "${n%.*}" - -
}

# ---- 8 streams that decode while long prompts arrive ------------------------------------------------
# gaps SEED: fills $dir/gaps; two long prompts are always there, so that one is always computed.
gaps() {
    local feeder
    # No function: what is killed must be the client itself.
    "${CLIENT[@]}" --url "$url" --streams 2 --requests 100000 --prompt-tokens $PROMPT --seed "$1" \
        --max-tokens 1 >/dev/null &
    feeder=$!
    client --url "$url" --streams 8 --requests 8 --prompt-tokens 32 --seed "$1" \
        --max-tokens "$2" >"$dir/gaps"
    kill "$feeder"
    wait "$feeder" 2>/dev/null
    jq .itl_ms.p99 "$dir/gaps"
}
bench_split_itl() {
    local i one two mixed=() split=()
    make_model
    start_pinned "$dir/160m" "${MIXED[@]}" --num-kv-blocks 768
    # Two threads on two cores: bound to one they would be half.
    for i in $(curl -sS "$url/superpod/status" | jq '.ranks[].pid'); do
        taskset -acp 0,1 "$i" >/dev/null
    done
    one=$url
    start_pinned "$dir/160m" "${SPLIT[@]}" --num-kv-blocks 768
    two=$url
    for i in 0 1 2; do
        mixed[i]=$(url=$one && gaps $((i + 1)) 40)
        split[i]=$(url=$two && gaps $((i + 1)) 400)
    done
    local m s
    m=$(median_of "${mixed[@]}")
    s=$(median_of "${split[@]}")
    row "8 streams beside $PROMPT-token prompts: p99 gap, mixed" "$(calc %.1f "$m") ms" - -
    row "  split into prefill and decode" "$(calc %.1f "$s") ms" - -
    row "  split / mixed" "$(over %.2f "$s" "$m")" 0.7 0.5
    expect_moved 3
    stop_all
}

# ---- a recorded load --------------------------------------------------------------------------------
# 200 conversations with 32 tokens for each 512 of theirs, which is 870 a prompt, at a rate that two
# cores can just serve. Limits are multiples of what one request alone takes.
replay() { # rate limits...: $dir/replay
    local rate=$1
    shift
    client --url "$url" --trace "$trace" --requests 200 --trace-block 32 --trace-output 0.25 \
        --max-model-len 2048 --rate "$rate" "$@" >"$dir/replay"
}
bench_split_trace() {
    local i first=() gap=() limits=() f g good_one good_two
    if [ ! -r "$trace" ]; then
        row "trace replay" "no trace" - -
        return
    fi
    start_pinned "$model" "${MIXED[@]}"
    for i in $(curl -sS "$url/superpod/status" | jq '.ranks[].pid'); do
        taskset -acp 0,1 "$i" >/dev/null
    done
    for i in 1 2 3 4 5; do
        client --url "$url" --streams 1 --requests 1 --prompt-tokens $PROMPT --seed "$i" \
            --max-tokens 30 >"$dir/one"
        first+=("$(jq .ttft_ms.max "$dir/one")")
        gap+=("$(jq .itl_ms.p50 "$dir/one")")
    done
    f=$(median_of "${first[@]}") g=$(median_of "${gap[@]}")
    for i in 1 2 4; do
        limits+=(--goodput "ttft:$(calc %.1f "$f * 3 * $i"),tpot:$(calc %.2f "$g * 8 * $i")")
    done
    replay "$(calc %.3f "1000 / $f")" "${limits[@]}"
    cp "$dir/replay" "$dir/mixed"
    stop_all
    start_pinned "$model" "${SPLIT[@]}"
    replay "$(calc %.3f "1000 / $f")" "${limits[@]}"
    expect_moved 100
    stop_all
    row "200 requests of a trace, $(calc %.1f "1000 / $f")/s: complete, mixed" "$(jq .completed "$dir/mixed")" 200 -
    row "  split into prefill and decode" "$(jq .completed "$dir/replay")" 200 -
    for i in 0 1 2; do
        good_one=$(jq ".goodput[$i].good" "$dir/mixed")
        good_two=$(jq ".goodput[$i].good" "$dir/replay")
        row "  in $(jq -r ".goodput[$i] | \"\(.ttft_ms | round) ms, then \(.tpot_ms | round) ms a token\"" "$dir/replay"): split, mixed" \
            "$good_two, $good_one" - -
        row "    goodput split / mixed" "$(over %.2f "$(jq ".goodput[$i].request_goodput" "$dir/replay")" \
            "$(jq ".goodput[$i].request_goodput" "$dir/mixed")")" 1.0 1.4
    done
}

bench_split() {
    bench_split_kvx
    bench_split_ttft
    bench_split_itl
    bench_split_trace
}
