#!/bin/bash
# Prefill and decode by different devices, each with memory that no other process reads: the answers
# are those of one rank with such a device; so they are between two pods; blocks that are spoilt on
# their way are computed again; a rank that is killed ends the pod and is named.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/split_lib.sh
source tests/e2e/split_lib.sh

# The emulated device computes at a thousandth of a GPU's speed: few tokens, one sequence's memory.
SMALL=(--device emu --model "$PODLING" --max-model-len 192 --max-num-seqs 2 --max-num-batched-tokens 64)
POOLS=(--prefill-threshold-tokens 8 --pool "name=p,role=prefill" --pool "name=d,role=decode")

need_emulator() { [ -f "$BUILD/superpod_cuda_emu.so" ] || skip "no superpod_cuda_emu.so: make emu"; }
shared_files() { find /dev/shm -maxdepth 1 -iname "*superpod*" -user "$(id -u)" | sort; }
failures() { # all causes, or one
    curl -sS -m 10 "$URL/metrics" |
        awk -v c="${1:-}" '/^superpod:kv_failures_total/ && (c == "" || index($0, "cause=\"" c "\"")) { n += $NF } END { print n + 0 }'
}

# ---- requests ------------------------------------------------------------------------------------

# A question of more than a block, and a longer prompt that is drawn from.
write_requests() {
    echo '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0,
        "max_completion_tokens": 16, "return_token_ids": true}' >"$DIR/france.ask"
    echo "{\"prompt\": [$(tokens 36 3)], \"max_tokens\": 4, \"ignore_eos\": true, \"return_token_ids\": true,
        \"temperature\": 1, \"seed\": 7, \"logprobs\": 2}" >"$DIR/drawn.ask"
}
post() { # name file out
    local path=/v1/completions
    [ "$1" != france ] || path=/v1/chat/completions
    CODE=$(curl -sS -m $((50 * SLOW)) -o "$3" -w '%{http_code}' -H 'Content-Type: application/json' \
        --data-binary "@$2" "$URL$path") || fail "no answer of $URL$path"
    [ "$CODE" = 200 ] || fail "status $CODE of $1: $(head -c 300 "$3")"
}
seen() { # answer: what does not change from server to server
    jq -ce '[.choices[] | {text: (.text // .message.content), token_ids, logprobs, finish_reason}]' "$1"
}
ask_one() { # name, name of the answer
    post "$1" "$DIR/$1.ask" "$DIR/$1.$2.whole"
    seen "$DIR/$1.$2.whole" >"$DIR/$1.$2"
}
ask_both() { # name of the answers
    ask_one france "$1"
    ask_one drawn "$1"
}
expect_both() { # name of the answers
    local name
    for name in france drawn; do expect_same_file "$name of $1" "$DIR/$name.$1" "$DIR/$name.want"; done
}
# What one rank alone answers with its device; the first case that asks keeps it for the others.
write_answers() {
    local kept=$DIR/../answers
    need_emulator
    write_requests
    if [ ! -d "$kept" ]; then
        start_server "${SMALL[@]}"
        ask_both want
        stop_server
        expect_eq "the answer" "$(jq -r '.[0].text' "$DIR/france.want")" "The capital of France is Paris."
        mkdir "$kept" && cp "$DIR"/*.want "$kept"
    fi
    cp "$kept"/*.want "$DIR"
}

# ---- cases ---------------------------------------------------------------------------------------

two_pools_answer_as_one_rank() {
    local before
    write_answers
    before=$(shared_files)
    start_server "${SMALL[@]}" "${POOLS[@]}"
    ask_both pools
    expect_both pools
    expect_eq "requests prefilled elsewhere" "$(count prefilled_elsewhere)" 2
    expect_eq "blocks pulled" "$(count kv_blocks_pulled)" 3 # of 16: 1 of 23 tokens, 2 of 36
    expect_eq "failures" "$(failures)" 0
    ask_one drawn again # from what was pulled, and what was computed beside it
    expect_same_file "drawn again" "$DIR/drawn.again" "$DIR/drawn.want"
    expect_eq "blocks pulled for it again" "$(count kv_blocks_pulled)" 3
    stop_server
    expect_eq "ranks that copy by way of the host" "$(grep -c 'copied by way of .* MiB of the host' "$LOG.err")" 2
    expect_eq "files of shared memory" "$(shared_files)" "$before"
}

spoilt_blocks_are_computed_again() {
    grep -q 'kvx\.corrupt' "$SUPERPOD" || skip "this build has no fault points"
    write_answers
    SUPERPOD_FAULT_POINTS=kvx.corrupt=1 start_server "${SMALL[@]}" "${POOLS[@]}"
    ask_one france spoilt
    expect_same_file "france with spoilt blocks" "$DIR/france.spoilt" "$DIR/france.want"
    expect_eq "blocks pulled" "$(count kv_blocks_pulled)" 0
    [ "$(failures checksum)" -ge 1 ] || fail "nothing is counted as checksum"
    stop_server
}

# As llm-d does it: two pods that share a secret, and a sidecar's two legs.
blocks_are_lent_from_pod_to_pod() {
    local name p d p_url
    write_answers
    head -c 32 /dev/urandom | base64 >"$DIR/secret"
    chmod 600 "$DIR/secret"
    spawn_server "${SMALL[@]}" --kv-secret-file "$DIR/secret"
    p=$SERVER:$PORT p_url=$URL
    start_server "${SMALL[@]}" --kv-secret-file "$DIR/secret" --kv-load-failure-policy fail
    d=$SERVER:$PORT
    wait_for 20 healthy "$p_url" || fail "the first pod is not healthy"
    for name in france drawn; do
        jq -c 'if has("max_completion_tokens") then .max_completion_tokens = 1 else .max_tokens = 1 end
            | .kv_transfer_params = {do_remote_decode: true, do_remote_prefill: false, remote_engine_id: null,
                remote_block_ids: null, remote_host: null, remote_port: null}' "$DIR/$name.ask" >"$DIR/$name.leg"
        at "$p"
        post "$name" "$DIR/$name.leg" "$DIR/$name.first"
        jq -c --slurpfile first "$DIR/$name.first" '.kv_transfer_params = $first[0].kv_transfer_params' \
            "$DIR/$name.ask" >"$DIR/$name.leg"
        at "$d"
        post "$name" "$DIR/$name.leg" "$DIR/$name.lent.whole"
        seen "$DIR/$name.lent.whole" >"$DIR/$name.lent"
    done
    expect_both lent
    expect_eq "failures" "$(failures)" 0
    expect_eq "tokens of other pods" "$(metric 'vllm:prompt_tokens_by_source_total.source="external_kv_transfer"')" 48
    stop_server
    at "$p"
    stop_server
}
at() { # pid:port
    SERVER=${1%:*} PORT=${1#*:}
    URL=http://127.0.0.1:$PORT LOG=$DIR/server-$PORT
}

moving() { [ "$(count kv_blocks_pulled)" -gt 0 ]; }
a_prefill_rank_killed_while_it_computes_ends_the_pod_with_20() {
    local i before
    need_emulator
    write_requests
    before=$(shared_files)
    start_server "${SMALL[@]}" "${POOLS[@]}"
    call GET /superpod/status
    for i in 1 2 3; do
        curl -sS -N -m $((50 * SLOW)) -o "$DIR/stream-$i" -H 'Content-Type: application/json' "$URL/v1/completions" \
            -d "{\"prompt\": [$(tokens 150 "$i")], \"max_tokens\": 30, \"ignore_eos\": true, \"stream\": true}" &
    done
    wait_for 20 moving || fail "no blocks move"
    kill -KILL "$(answer '.ranks[0].pid')"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    grep -q "rank 0 of pool 'p' was killed by signal 9" "$LOG.err" || fail "it is not named: $(tail -n 3 "$LOG.err")"
    for i in 1 2 3; do
        wait_for 5 grep -qs '"error"' "$DIR/stream-$i" || fail "stream $i was not told: $(tail -c 200 "$DIR/stream-$i")"
    done
    expect_eq "files of shared memory" "$(shared_files)" "$before"
}

a_device_that_fails_ends_the_pod_and_is_named() {
    need_emulator
    write_requests
    jq '.max_tokens = 60' "$DIR/drawn.ask" >"$DIR/long.ask" # whatever a step's launches are
    SUPERPOD_EMU_FAIL_LAUNCH=300 start_server "${SMALL[@]}" "${POOLS[@]}"
    curl -sS -m $((50 * SLOW)) -o "$DIR/body" -H 'Content-Type: application/json' \
        --data-binary "@$DIR/long.ask" "$URL/v1/completions" || true
    expect_end
    expect_eq "exit status" "$EXIT" 30
    grep -q 'cudaErrorIllegalAddress' "$LOG.err" || fail "the device's error is not named: $(tail -n 3 "$LOG.err")"
}

blocks_that_the_host_has_no_room_for_are_refused() {
    need_emulator
    # A device far larger than any host: the plan of its own memory would let them pass.
    export SUPERPOD_EMU_MEMORY_MB=100000000
    superpod serve --port "$(free_port)" "${SMALL[@]}" "${POOLS[@]}" --num-gpu-blocks-override 60000000
    expect_refused 10 "pool 'p'" 'KV blocks that others may read need memory of the host as well' 'at most [0-9]+ blocks'
}

run_cases emulated_split two_pools_answer_as_one_rank spoilt_blocks_are_computed_again \
    blocks_are_lent_from_pod_to_pod a_prefill_rank_killed_while_it_computes_ends_the_pod_with_20 \
    a_device_that_fails_ends_the_pod_and_is_named blocks_that_the_host_has_no_room_for_are_refused
