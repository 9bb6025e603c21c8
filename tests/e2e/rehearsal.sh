#!/bin/bash
# Pods without weights (--null-model): a 405B model's shape on one small machine, the same tokens at
# every shape, and the benchmarks that start processes of their own.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

BIG=${SUPERPOD_FIXTURES:-../shared/fixtures}/configs/llama-3.1-405b

traces() { # what may outlive processes
    find /dev/shm -mindepth 1 | sort
    ipcs -m -q -s | awk '/^0x/'
}
session_mib() { # proportional, so that shared pages count once
    local pid
    for pid in $(ps -o pid= --sid "$SERVER"); do cat "/proc/$pid/smaps_rollup" 2>/dev/null; done |
        awk '/^Pss:/ { sum += $2 } END { printf "%d", sum / 1024 }'
}
readable() { # text bytes: so many visible ones
    expect_eq "the length of '$1'" "${#1}" "$2"
    expect_match "the text" "$1" '^[!-~]+$'
}
# The same words asked for in the four ways; texts in CHAT and COMPLETION.
ask_all_ways() { # max_tokens
    local chat completion
    chat=$(jq -nc --argjson n "$1" '{messages: [{role: "user", content: "What is 6 times 7?"}], max_tokens: $n}')
    completion=$(jq -nc --argjson n "$1" '{prompt: "once upon", max_tokens: $n}')
    call POST /v1/chat/completions "$chat"
    expect_code 200
    CHAT=$(answer '.choices[0].message.content')
    expect_jq --argjson n "$1" '.usage.completion_tokens == $n and .choices[0].finish_reason == "length"'
    stream /v1/chat/completions "$(jq -c '.stream = true' <<<"$chat")"
    expect_eq "the streamed chat" "$(jq -rj '.choices[0].delta.content // ""' "$DIR/events")" "$CHAT"
    call POST /v1/completions "$completion"
    expect_code 200
    COMPLETION=$(answer '.choices[0].text')
    stream /v1/completions "$(jq -c '.stream = true' <<<"$completion")"
    expect_eq "the streamed completion" "$(jq -rj '.choices[0].text' "$DIR/events")" "$COMPLETION"
    readable "$CHAT" "$1"
    readable "$COMPLETION" "$1"
    [ "$CHAT" != "$COMPLETION" ] || fail "two prompts, one answer: '$CHAT'"
}

a_405b_pod_of_16_ranks_answers_in_small_memory_and_leaves_nothing() {
    [ -f "$BIG/config.json" ] || skip "no config at '$BIG'"
    traces >"$DIR/before"
    start_server --null-model --model "$BIG" --tp 8 --pp 2
    ask_all_ways 12
    superpod status --json --url "$URL"
    expect_ok
    cp "$DIR/out" "$DIR/body"
    expect_jq '.tp == 8 and .pp == 2 and (.ranks | length == 16) and ([.ranks[].state] | unique == ["active"])'
    expect_jq '[.ranks[].layers] | unique | (.[0][0] == 0 and .[1][1] == 125 and .[0][1] + 1 == .[1][0])'
    [ "$(session_mib)" -lt 1024 ] || fail "$(session_mib) MiB for 16 ranks without weights"
    stop_server
    traces >"$DIR/after"
    expect_same_file "traces: $(diff "$DIR/after" "$DIR/before")" "$DIR/after" "$DIR/before"
}
a_405b_pod_that_is_stopped_while_it_answers_finishes_its_answers() {
    [ -f "$BIG/config.json" ] || skip "no config at '$BIG'"
    start_server --null-model --model "$BIG" --tp 8 --pp 2
    curl -sS -N -m $((50 * SLOW)) -o "$DIR/stream" -H 'Content-Type: application/json' "$URL/v1/completions" \
        -d '{"prompt": "a", "max_tokens": 60, "stream": true}' &
    local client=$!
    wait_for 20 grep -qs '"text":"[^"]' "$DIR/stream" || fail "no text came"
    stop_server
    wait "$client" || fail "the client was cut off"
    split_events "$DIR/stream"
    readable "$(jq -rj '.choices[0].text' "$DIR/events")" 60
}

null_podling() { # its config.json and nothing else: NULL
    NULL=$DIR/null
    mkdir -p "$NULL"
    cp $PODLING/config.json "$NULL/"
}
small_pods_say_the_same_at_every_shape() {
    local shape chat completion
    null_podling
    start_server --null-model --model "$NULL"
    ask_all_ways 50
    stop_server
    chat=$CHAT completion=$COMPLETION
    for shape in "2 2" "4 1" "1 3"; do
        # shellcheck disable=SC2086 # two words
        set -- $shape
        start_server --null-model --model "$NULL" --tp "$1" --pp "$2" --max-num-batched-tokens 7
        ask_all_ways 50
        expect_eq "the chat at tp $1 pp $2" "$CHAT" "$chat"
        expect_eq "the completion at tp $1 pp $2" "$COMPLETION" "$completion"
        stop_server
    done
}
many_requests_at_once_are_answered_as_alone() {
    local i pids=()
    null_podling
    start_server --null-model --model "$NULL" --tp 2 --pp 2
    body() { printf '{"prompt": "%0*d", "max_tokens": 100}' $(($1 * 13)) "$1"; }
    for i in 1 2 3 4 5 6 7 8; do
        call POST /v1/completions "$(body "$i")"
        expect_code 200
        answer '.choices[0].text' >"$DIR/alone-$i"
    done
    for i in 1 2 3 4 5 6 7 8; do
        curl -sS -m $((30 * SLOW)) -o "$DIR/answer-$i" -H 'Content-Type: application/json' \
            -d "$(body "$i")" "$URL/v1/completions" &
        pids+=($!)
    done
    wait "${pids[@]}"
    for i in 1 2 3 4 5 6 7 8; do
        expect_eq "text $i" "$(jq -r '.choices[0].text' "$DIR/answer-$i")" "$(cat "$DIR/alone-$i")"
    done
    stop_server
}
a_killed_rank_ends_a_rehearsal_with_20() {
    null_podling
    start_server --null-model --model "$NULL" --tp 2 --pp 2
    superpod status --json --url "$URL"
    expect_ok
    kill -KILL "$(jq '.ranks[3].pid' "$DIR/out")"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    expect_eq "lines about rank 3" "$(grep -c "rank 3 was killed by signal 9" "$LOG.err")" 1
}
shapes_that_no_pod_can_have_are_refused() {
    null_podling
    sed -i 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 64/; s/_heads": [0-9]*/_heads": 64/' "$NULL/config.json"
    superpod serve --null-model --model "$NULL" --pp 64 --log-level error
    expect_refused 10 'pipeline-parallel-size.*want 1 to [0-9]+, got 64'
    superpod serve --null-model --model "$NULL" --tp 64 --pp 2 --log-level error
    expect_refused 10 'tensor-parallel-size.*want 1 to [0-9]+ with 2 stages, got 64'
    superpod serve --null-model --model "$DIR/nothing" --log-level error
    expect_refused 10 nothing
}

# ---- benchmarks ----------------------------------------------------------------------------------

wireup_tells_the_start_of_pods_and_leaves_nothing() {
    traces >"$DIR/before"
    mkdir "$DIR/tmp"
    TMPDIR=$DIR/tmp superpod bench wireup --ranks 8 --runs 3 --json
    expect_ok
    cp "$DIR/out" "$DIR/body"
    expect_jq '.ranks == 8 and .tp == 8 and .pp == 1 and .runs == 3'
    expect_jq '.formed_ms > 0 and .formed_ms <= .ready_ms and .ready_ms_min <= .ready_ms and .ready_ms <= .ready_ms_max'
    TMPDIR=$DIR/tmp superpod bench wireup --ranks 20 --pp 5 --runs 1
    expect_ok
    expect_match "what it says" "$OUT" '20 ranks \(tp 4 x pp 5\)'
    TMPDIR=$DIR/tmp superpod bench wireup --ranks 1 --runs 1 --model $PODLING
    expect_ok
    expect_eq "files left" "$(ls -A "$DIR/tmp")" ""
    traces >"$DIR/after"
    expect_same_file "traces: $(diff "$DIR/after" "$DIR/before")" "$DIR/after" "$DIR/before"
}
wireup_stopped_by_a_signal_leaves_nothing() {
    local pid
    mkdir "$DIR/tmp"
    TMPDIR=$DIR/tmp env --default-signal=INT,TERM setsid "$SUPERPOD" bench wireup --ranks 8 --runs 1000 >"$DIR/out" 2>"$DIR/err" &
    pid=$!
    echo "$pid" >>"$DIR/servers"
    # shellcheck disable=SC2016 # the other shell's
    wait_for 10 bash -c 'ps -o args= --sid "$0" | grep -q "rank 7"' "$pid" || fail "no pod was started"
    kill -TERM "$pid"
    wait_for 10 ended "$pid" || fail "still there"
    STATUS=0
    wait "$pid" || STATUS=$?
    expect_eq "exit status" "$STATUS" 130
    wait_for 2 session_is_empty "$pid" || fail "left behind: $(session "$pid")"
    expect_eq "files left" "$(ls -A "$DIR/tmp")" ""
}
sixty_four_ranks_are_ready_in_5_seconds() {
    superpod bench wireup --ranks 64 --runs 1 --json
    expect_ok
    cp "$DIR/out" "$DIR/body"
    expect_jq --argjson ms $((5000 * SLOW)) '.ranks == 64 and .ready_ms < $ms'
}
wireup_refuses_what_cannot_be() {
    mkdir "$DIR/tmp"
    TMPDIR=$DIR/tmp superpod bench wireup --ranks 3 --runs 1 # no heads to share among 3
    expect_refused 10 'tensor-parallel-size 3 does not divide'
    expect_eq "files left" "$(ls -A "$DIR/tmp")" ""
    TMPDIR=$DIR/nowhere superpod bench wireup --ranks 1 --runs 1
    expect_refused 10 nowhere
    superpod bench wireup --ranks 5 --tp 2
    expect_refused 2 'tp 2 x pp 2 is not 5 ranks'
    superpod bench wireup --ranks 0
    expect_eq "exit status" "$STATUS" 2
    superpod bench wireup --ranks
    expect_eq "exit status" "$STATUS" 2
    superpod bench pigeon
    expect_refused 2 pigeon
}
sums_are_timed_on_each_transport() {
    local ranks transport
    for transport in shm ucx; do
        for ranks in 1 2 5; do
            superpod bench allreduce --ranks $ranks --bytes 4KiB --iterations 200 --transport $transport
            if [ "$transport" = ucx ] && [ "$STATUS" != 0 ] && [[ $ERR == *libucp* || $ERR == *"no ucx"* ]]; then
                skip "no UCX here: shm was timed, ucx was not"
            fi
            expect_ok
            cp "$DIR/out" "$DIR/body"
            expect_jq --arg t $transport --argjson n $ranks \
                '.ranks == $n and .transport == $t and .bytes == 4096 and .min_us <= .median_us and .median_us <= .p99_us'
        done
    done
    superpod bench allreduce --transport pigeon
    expect_eq "exit status" "$STATUS" 2
    superpod bench allreduce --bytes 6
    expect_eq "exit status" "$STATUS" 2
}

run_cases rehearsal a_405b_pod_of_16_ranks_answers_in_small_memory_and_leaves_nothing \
    a_405b_pod_that_is_stopped_while_it_answers_finishes_its_answers \
    small_pods_say_the_same_at_every_shape many_requests_at_once_are_answered_as_alone \
    a_killed_rank_ends_a_rehearsal_with_20 shapes_that_no_pod_can_have_are_refused \
    wireup_tells_the_start_of_pods_and_leaves_nothing wireup_stopped_by_a_signal_leaves_nothing \
    sixty_four_ranks_are_ready_in_5_seconds \
    wireup_refuses_what_cannot_be sums_are_timed_on_each_transport
