# shellcheck shell=bash
# tests/e2e/emulated_lib.sh - sourced by emulated.sh and emulated_hang.sh: small pods of emulated
# devices, their answers, and how they end.

PLUGIN=$BUILD/superpod_cuda_emu.so
[ -e "$PLUGIN" ] || make -s NVCC= "MODE=$(basename "$BUILD")" emu >/dev/null || true
# An emulated device fills what is taken of it: so little, or the cases wait for that.
EMULATED=(--model "$PODLING" --device emu --max-model-len 1024 --num-gpu-blocks-override 128 --max-num-batched-tokens 64)
FOUR=(--tp 2 --pp 2)
need_plugin() { [ -e "$PLUGIN" ] || skip "no $PLUGIN: make emu"; }

# What may outlive processes: files in shared memory, System V segments.
traces() {
    # Not those of scripts beside this one.
    find /dev/shm -mindepth 1 \( -iname "*superpod*" -o -iname "*nccl*" \) | sort
    ipcs -m -q -s | awk '/^0x/'
}

# ---- answers -------------------------------------------------------------------------------------

paris() { # option...
    superpod run "${EMULATED[@]}" --max-tokens 12 "$@" "What is the capital of France?"
    expect_ok
    expect_eq "the answer with ${*:-one rank}" "$OUT" "The capital of France is Paris."
}
one_rank_and_four_know_the_capital_of_france() {
    paris
    ! grep -q 'groups by' "$DIR/err" || fail "one rank alone has groups: $ERR"
    paris "${FOUR[@]}" --log-level info
    expect_eq "lines about groups" "$(grep -c 'groups by NCCL [0-9.]* (emulated)' "$DIR/err")" 1
}

logits() { # file option...
    superpod inspect logits "${EMULATED[@]}" --tokens 5,77,1203,9,9,640,31,2000,12,7,81 --out "$1" "${@:2}"
    expect_ok
}
same_bits_at_every_shape() {
    local shape
    logits "$DIR/alone"
    for shape in "2 1" "4 1" "1 2" "2 2"; do
        # shellcheck disable=SC2086 # two words
        set -- $shape
        logits "$DIR/logits" --tp "$1" --pp "$2"
        expect_same_file "logits at tp $1 pp $2" "$DIR/logits" "$DIR/alone"
    done
    logits "$DIR/logits" "${FOUR[@]}" --max-num-batched-tokens 4 --collectives nccl
    expect_same_file "logits of a prompt in pieces" "$DIR/logits" "$DIR/alone"
}

# ---- ends ----------------------------------------------------------------------------------------

pid_of_rank() { ps -o pid=,args= --sid "$SERVER" | awk -v t="superpod: rank $1" 'index($0, t) { print $1; exit }'; }
# A long answer in the background; goes on when its first text has come.
begin_stream() {
    curl -sS -N -m $((50 * SLOW)) -o "$DIR/stream" -H 'Content-Type: application/json' "$URL/v1/completions" \
        -d '{"prompt": [5, 6], "max_tokens": 900, "ignore_eos": true, "stream": true}' &
    CLIENT=$!
    wait_for 15 grep -qs '"text":"[^"]' "$DIR/stream" || fail "no text came: $(tail -n 3 "$LOG.err")"
}
# The pod has ended with this status, and the client was told.
expect_told() { # status
    expect_end
    expect_eq "exit status, after $(tail -n 3 "$LOG.err")" "$EXIT" "$1"
    wait "$CLIENT" || true
    split_events "$DIR/stream"
    jq -se 'last.error.message | length > 0' "$DIR/events" >/dev/null || fail "no error event: $(tail -n 1 "$DIR/events")"
}
# So it has, and nothing is left but what was.
expect_broken() { # status
    expect_told "$1"
    traces >"$DIR/after"
    expect_same_file "traces: $(diff "$DIR/after" "$DIR/before")" "$DIR/after" "$DIR/before"
}
expect_within() { # ms since
    [ $(($(now_ms) - $2)) -lt $(($1 * SLOW)) ] || fail "took $(($(now_ms) - $2)) ms to end"
}
