#!/bin/bash
# A pod whose ranks compute on devices with memory of their own, here emulated ones (each process has
# one to itself): groups by NCCL, the same bits at every shape, and the ends of a pod that loses a rank,
# a device or a neighbour's answer.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/emulated_lib.sh
source tests/e2e/emulated_lib.sh

a_chat_streams_over_http_and_nothing_stays() {
    need_plugin
    traces >"$DIR/before"
    start_server "${EMULATED[@]}" "${FOUR[@]}"
    stream /v1/chat/completions '{"stream": true, "temperature": 0, "max_tokens": 12,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    expect_eq "the answer" "$(jq -sr '[.[].choices[0].delta.content // ""] | add' "$DIR/events")" \
        "The capital of France is Paris."
    stop_server
    traces >"$DIR/after"
    expect_same_file "traces: $(diff "$DIR/after" "$DIR/before")" "$DIR/after" "$DIR/before"
}

# ---- ends ----------------------------------------------------------------------------------------

a_rank_killed_in_a_stream_ends_the_pod_with_20() {
    local before
    need_plugin
    traces >"$DIR/before"
    start_server "${EMULATED[@]}" "${FOUR[@]}"
    begin_stream
    before=$(now_ms)
    kill -KILL "$(pid_of_rank 3)"
    expect_broken 20
    expect_within 8000 "$before"
    expect_eq "lines about it" "$(grep -c 'rank 3 was killed by signal 9' "$LOG.err")" 1
    ! grep -q 'rank [012]:' "$LOG.err" || fail "others are blamed: $(cat "$LOG.err")"
}

# Whatever the others wait for then: who waits for its members is not blamed, and nothing stays.
rank_is_there() { [ -n "$(pid_of_rank "$1")" ]; }
a_rank_killed_while_groups_are_joined_is_named() {
    local delay_ms
    need_plugin
    traces >"$DIR/before"
    for delay_ms in 000 020 060; do
        spawn_server "${EMULATED[@]}" "${FOUR[@]}"
        wait_for 5 rank_is_there 2 || fail "no rank 2"
        sleep "0.$delay_ms"
        kill -KILL "$(pid_of_rank 2)"
        expect_end
        expect_eq "exit status ${delay_ms} ms after its start" "$EXIT" 20
        grep -q 'rank 2 was killed by signal 9' "$LOG.err" || fail "it is not named: $(cat "$LOG.err")"
        ! grep -q 'rank [013]: joining the [tp]p group' "$LOG.err" || fail "others are blamed: $(cat "$LOG.err")"
    done
    traces >"$DIR/after"
    expect_same_file "traces: $(diff "$DIR/after" "$DIR/before")" "$DIR/after" "$DIR/before"
}

a_device_that_fails_ends_the_pod_with_30_and_is_named() {
    need_plugin
    traces >"$DIR/before"
    # Some 40 launches a step: the device is lost in the middle of the answer.
    export SUPERPOD_EMU_FAIL_IN=superpod-rank1 SUPERPOD_EMU_FAIL_LAUNCH=600
    start_server "${EMULATED[@]}" "${FOUR[@]}"
    begin_stream
    expect_broken 30
    grep -q "rank 1: .*GPU 0: '[a-z_]*' failed: cudaErrorIllegalAddress (illegal address)" "$LOG.err" ||
        fail "it is not named: $(cat "$LOG.err")"
    ! grep -q 'rank [023]:' "$LOG.err" || fail "others are blamed: $(cat "$LOG.err")"
}

# One stage of two ranks, whose steps run ahead of the host.
steps_ahead_end_with_their_ranks() {
    need_plugin
    traces >"$DIR/before"
    start_server "${EMULATED[@]}" --tp 2
    begin_stream
    kill -KILL "$(pid_of_rank 1)"
    expect_broken 20
    export SUPERPOD_EMU_FAIL_IN=superpod-rank1 SUPERPOD_EMU_FAIL_LAUNCH=700
    start_server "${EMULATED[@]}" --tp 2
    begin_stream
    expect_broken 30
    grep -q "rank 1: .*GPU 0: .* failed: cudaErrorIllegalAddress (illegal address)" "$LOG.err" ||
        fail "it is not named: $(cat "$LOG.err")"
}

# ---- what is not there ---------------------------------------------------------------------------

refused() { # regex variable=value... -- option...
    local regex=$1 set=()
    shift
    while [ "$1" != -- ]; do
        set+=("$1")
        shift
    done
    STATUS=0
    env "${set[@]}" timeout $((20 * SLOW)) "$SUPERPOD" run --model $PODLING --tokens 1,2 --raw "${@:2}" \
        >"$DIR/out" 2>"$DIR/err" </dev/null || STATUS=$?
    OUT=$(cat "$DIR/out")
    ERR=$(cat "$DIR/err")
    expect_refused 10 "$regex"
}
what_is_missing_is_said_in_one_line() {
    need_plugin
    refused 'device.* is emu: no GPU on this machine' SUPERPOD_EMU_DEVICES=0 -- --device emu
    refused 'device.* is emu: no CUDA driver' SUPERPOD_EMU_DRIVER=0 -- --device emu
    refused 'driver is of version 12\.4, older than the toolkit 1[0-9]\.' SUPERPOD_EMU_DRIVER=12040 -- --device emu
    refused 'capability 7\.0, want 8\.0' SUPERPOD_EMU_ARCH=70 -- --device emu
    refused 'NCCL 2\.18\.5, want 2\.19' SUPERPOD_EMU_NCCL_VERSION=21805 -- --device emu --tp 2
    refused 'collectives.* is shm: .*want auto or nccl' -- --device emu --tp 2 --collectives shm
    refused 'collectives.* is ucx: .*want auto or nccl' -- --device emu --pp 2 --collectives ucx
    refused 'collectives.* is nccl: .*want auto, shm or ucx' -- --device cpu --tp 2 --collectives nccl
}
without_a_plugin_or_a_driver_the_cpu_serves() {
    mkdir -p "$DIR/bin"
    cp "$SUPERPOD" "$DIR/bin/superpod"
    SUPERPOD=$DIR/bin/superpod
    refused "device.* is emu: backend 'emu': .*superpod_cuda_emu.so" -- --device emu
    superpod run --model $PODLING --raw --tokens 5,6 --max-tokens 2 --log-level info
    expect_ok
    ! grep -q 'device auto' "$DIR/err" || fail "where nobody would ask, it speaks: $ERR"
    : >"$DIR/bin/superpod_cuda.so" # a GPU's plugin is here, and perhaps a driver; not one that works
    superpod run --model $PODLING --raw --tokens 5,6 --max-tokens 2 --log-level info --tp 2
    expect_ok
    expect_eq "lines about the device" "$(grep -c 'device auto is cpu: ' "$DIR/err")" 1
}

run_cases emulated a_chat_streams_over_http_and_nothing_stays a_rank_killed_in_a_stream_ends_the_pod_with_20 \
    a_rank_killed_while_groups_are_joined_is_named a_device_that_fails_ends_the_pod_with_30_and_is_named \
    steps_ahead_end_with_their_ranks \
    one_rank_and_four_know_the_capital_of_france same_bits_at_every_shape what_is_missing_is_said_in_one_line \
    without_a_plugin_or_a_driver_the_cpu_serves
