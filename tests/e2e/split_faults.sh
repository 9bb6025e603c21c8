#!/bin/bash
# Prefill and decode pools where blocks of KV are lost, torn, stale, late or another's on their way: the
# answers are those of a pod where nothing goes wrong, whatever goes wrong is counted by its name, and
# the pod lives to its end.
#
#     tests/e2e/split_faults.sh             10 seeds
#     SEEDS=50 tests/e2e/split_faults.sh    as many as that; --all: 50
if [ "${1:-}" = --all ]; then
    export SEEDS=50
    shift
fi
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/split_lib.sh
source tests/e2e/split_lib.sh
SEEDS=${SEEDS:-10}
# shellcheck disable=SC2034 # read by lib.sh
case_limit_s=$((60 + 4 * SEEDS))

[ "${E2E_CASE:-}" ] || exec 3>&1
say() { echo "    $*" >&3; }

# ---- requests ------------------------------------------------------------------------------------

REQUESTS=6
write_requests() {
    local i length
    for ((i = 1; i <= REQUESTS; i++)); do
        length=$((70 + i * 47))
        echo "{\"prompt\": [$(tokens $length $i)], \"max_tokens\": 8, \"ignore_eos\": true, \"return_token_ids\": true,
            \"temperature\": 1, \"seed\": $i, \"logprobs\": 2, \"n\": $((i == 3 ? 2 : 1))}" >"$DIR/ask-$i"
    done
}
# All at once, into $DIR/NAME-N.
send_all() { # name
    local i args=()
    for ((i = 1; i <= REQUESTS; i++)); do
        [ $i = 1 ] || args+=(--next)
        args+=(-sS -m $((50 * SLOW)) -o "$DIR/$1-$i.whole" -H 'Content-Type: application/json'
            --data-binary "@$DIR/ask-$i" "$URL/v1/completions")
    done
    curl --parallel --parallel-immediate "${args[@]}" 2>"$DIR/curl" || fail "requests of $1: $(cat "$DIR/curl")"
    for ((i = 1; i <= REQUESTS; i++)); do
        jq -ce '[.choices[] | {index, text, token_ids, logprobs, finish_reason}]
            | if length > 0 then . else error end' "$DIR/$1-$i.whole" >"$DIR/$1-$i" ||
            fail "request $i of $1: $(head -c 300 "$DIR/$1-$i.whole")"
    done
}
write_answers() {
    write_requests
    start_server --model $PODLING --prefill-threshold-tokens 24
    send_all want
    stop_server
}
expect_answers() { # name
    local i
    for ((i = 1; i <= REQUESTS; i++)); do expect_same_file "answer $i of $1" "$DIR/$1-$i" "$DIR/want-$i"; done
}

# ---- faults --------------------------------------------------------------------------------------

need_faults() { grep -q 'kvx\.corrupt' "$SUPERPOD" || skip "this build has no fault points"; }
# A pod of two pools with these faults; its shape by the number, so that seeds see all kinds.
start_faulty() { # faults number
    local shapes=("tp=1 tp=1" "tp=2 tp=1" "tp=1 pp=2" "replicas=2 tp=1" "pp=2 tp=2") p d
    read -r p d <<<"${shapes[$2 % ${#shapes[@]}]}"
    export SUPERPOD_FAULT_POINTS=$1
    start_server --model $PODLING --threads 1 --prefill-threshold-tokens 24 --pool "name=p,role=prefill,$p" --pool "name=d,role=decode,$d"
    unset SUPERPOD_FAULT_POINTS
}
causes() { # "cause count", of those that are not 0
    curl -sS -m 10 "$URL/metrics" |
        sed -n 's/^superpod:kv_failures_total{.*cause="\([a-z_]*\)".*} \([0-9.e+]*\)$/\1 \2/p' | awk '$2 > 0'
}
shared_files() { find /dev/shm -maxdepth 1 -user "$(id -u)" | sort; }

KINDS=(stale checksum foreign peer expired)
answers_are_the_same_whatever_goes_wrong() {
    local seed before kind faults=kvx.corrupt=0.2,kvx.stale=0.1,kvx.foreign=0.1,kvx.truncate=0.05,kvx.peer_gone=0.05,kv.lease=0.1,kv.slow=0.05
    need_faults
    write_answers
    before=$(shared_files)
    for ((seed = 1; seed <= SEEDS; seed++)); do
        start_faulty "$faults@$seed" "$seed"
        send_all "seed-$seed"
        expect_answers "seed-$seed"
        causes >>"$DIR/causes"
        echo "pulled $(count kv_blocks_pulled)" >>"$DIR/causes"
        stop_server
    done
    awk '{ n[$1] += $2 } END { for (c in n) print c, n[c] }' "$DIR/causes" | sort >"$DIR/sums"
    say "$SEEDS seeds: $(paste -sd, "$DIR/sums" | sed 's/,/, /g')"
    for kind in "${KINDS[@]}" pulled; do
        grep -q "^$kind " "$DIR/sums" || fail "nothing was ever '$kind': $(paste -sd, "$DIR/sums")"
    done
    expect_eq "files of shared memory" "$(shared_files)" "$before"
}

# Every time: the reason is the one, and no block comes by it (of a lease that ends under way: not all).
always() { # fault cause
    start_faulty "$1=1" 0
    send_all "$1"
    expect_answers "$1"
    [ "$(causes | awk -v c="$2" '$1 == c { print $2 }')" ] || fail "$1 is not counted as $2 but as: $(causes | paste -sd,)"
    [ "$1" = kv.lease ] || expect_eq "blocks pulled with $1" "$(count kv_blocks_pulled)" 0
    stop_server
    grep -q "$1" "$LOG.err" || fail "the log does not say that $1 was armed"
}
each_fault_has_its_name() {
    need_faults
    write_answers
    always kvx.corrupt checksum
    always kvx.stale stale
    always kvx.foreign foreign
    always kvx.truncate peer
    always kvx.peer_gone peer
    always kv.lease expired
}
transfers_that_are_slow_are_only_slow() {
    need_faults
    write_answers
    start_faulty kv.slow=1 0
    send_all slow
    expect_answers slow
    [ "$(count kv_blocks_pulled)" -gt 0 ] || fail "no block was pulled"
    expect_eq "failures" "$(causes)" ""
    stop_server
}
wrong_fault_points_are_refused_by_name() {
    need_faults
    local word
    for word in no.such.point=1 kvx.corrupt kvx.corrupt=2 kvx.corrupt=-1 kvx.corrupt=x kvx.corrupt=0.5@x; do
        SUPERPOD_FAULT_POINTS=$word superpod serve --model $PODLING --port "$(free_port)"
        [ "$STATUS" = 10 ] || [ "$STATUS" = 2 ] || fail "'$word': exit status $STATUS; it said: $ERR"
        [ -n "$ERR" ] || fail "'$word' is refused without a word"
    done
}

# ---- a rank that dies ----------------------------------------------------------------------------

moving() { [ "$(count kv_blocks_pulled)" -gt 0 ]; }
# Today that ends the pod, within seconds and with its name.
a_prefill_rank_killed_during_transfers_ends_the_pod_and_is_named() {
    local i before pid rank
    before=$(shared_files)
    for rank in 0 2; do
        start_server --model $PODLING --prefill-threshold-tokens 24 --backend ref --threads 1 --max-num-batched-tokens 16 \
            --pool name=p,role=prefill,replicas=2 --pool name=d,role=decode
        call GET /superpod/status
        pid=$(answer ".ranks[$rank].pid")
        for i in 1 2 3 4; do
            curl -sS -N -m $((50 * SLOW)) -o "$DIR/stream-$i" -H 'Content-Type: application/json' "$URL/v1/completions" \
                -d "{\"prompt\": [$(tokens 1500 $i)], \"max_tokens\": 24, \"temperature\": 0, \"stream\": true}" &
        done
        wait_for 10 moving || fail "no blocks move"
        kill -KILL "$pid"
        expect_end
        expect_eq "exit status" "$EXIT" 20
        grep -q "rank $rank of pool '$([ $rank = 0 ] && echo p || echo d)' was killed by signal 9" "$LOG.err" ||
            fail "it is not named: $(tail -n 3 "$LOG.err")"
        for i in 1 2 3 4; do
            wait_for 5 grep -qs '"error"' "$DIR/stream-$i" || fail "stream $i was not told: $(tail -c 200 "$DIR/stream-$i")"
        done
        rm "$DIR"/stream-*
    done
    expect_eq "files of shared memory" "$(shared_files)" "$before"
}

run_cases split_faults answers_are_the_same_whatever_goes_wrong each_fault_has_its_name \
    transfers_that_are_slow_are_only_slow wrong_fault_points_are_refused_by_name \
    a_prefill_rank_killed_during_transfers_ends_the_pod_and_is_named
