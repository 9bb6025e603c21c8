#!/bin/bash
# Prefill and decode by different groups of ranks: the same answers at every pair of shapes, with
# the counters that say the blocks did move; roles that change under load; what is refused; how such
# a pod ends.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

tokens() { # count seed
    awk -v n="$1" -v s="$2" 'BEGIN {
        for (i = 0; i < n; i++) { s = (s * 16807 + 11) % 2147483647; printf "%s%d", i ? "," : "", s % 2048 }
    }'
}
# Requests that every shape must answer alike, in $DIR/ask-N.
write_requests() {
    local n=0 length
    for length in 20 33 300 600; do
        ask $((n += 1)) "$length" "$length" '"temperature": 0'
    done
    ask $((n += 1)) 410 5 '"temperature": 1, "seed": 41'
    ask $((n += 1)) 64 6 '"temperature": 0.8, "top_p": 0.9, "seed": 43'
    ask $((n += 1)) 350 7 '"temperature": 1, "seed": 42, "n": 2'
    ask $((n += 1)) 257 8 '"temperature": 1, "seed": 44, "logprobs": 5'
    REQUESTS=$n
}
ask() { # number length seed more
    echo "{\"prompt\": [$(tokens "$2" "$3")], \"max_tokens\": 24, \"ignore_eos\": true, \"return_token_ids\": true, $4}" \
        >"$DIR/ask-$1"
}
send() { # number file: the choices, without what is the server's own
    curl -sS -m $((50 * SLOW)) -o "$2.whole" -H 'Content-Type: application/json' \
        --data-binary "@$DIR/ask-$1" "$URL/v1/completions"
    jq -ce '[.choices[] | {index, token_ids, logprobs, finish_reason}] | if length > 0 then . else error end' \
        "$2.whole" >"$2" || fail "request $1: $(head -c 300 "$2.whole")"
}
# What one rank alone answers, in $DIR/want-N.
write_answers() {
    local i
    write_requests
    start_server --model $PODLING
    for ((i = 1; i <= REQUESTS; i++)); do send $i "$DIR/want-$i"; done
    stop_server
}
expect_answers() {
    local i
    for ((i = 1; i <= REQUESTS; i++)); do
        send $i "$DIR/got-$i"
        expect_same_file "answer $i of $*" "$DIR/got-$i" "$DIR/want-$i"
    done
}
failures() { # of blocks and requests, all causes
    curl -sS -m 10 "$URL/metrics" | awk '/^superpod:kv_failures_total/ { n += $NF } END { print n + 0 }'
}
count() { metric "superpod:$1_total"; }

# ---- the same answers ----------------------------------------------------------------------------

SPLIT=(--prefill-threshold-tokens 24)
at_shape() { # prefill's tp and pp, decode's
    start_server --model $PODLING "${SPLIT[@]}" --pool "name=p,role=prefill,tp=$1,pp=$2" \
        --pool "name=d,role=decode,tp=$3,pp=$4"
    expect_answers "prefill $1 x $2, decode $3 x $4"
    expect_eq "requests prefilled elsewhere" "$(count prefilled_elsewhere)" $((REQUESTS - 1))
    expect_eq "requests prefilled here" "$(count prefilled_here)" 1
    [ "$(count kv_blocks_pulled)" -ge 100 ] || fail "only $(count kv_blocks_pulled) blocks were pulled"
    expect_eq "failures" "$(failures)" 0
    stop_server
}
from_shape() { # prefill's tp and pp: to every shape of decode
    local decode
    write_answers
    for decode in "1 1" "2 1" "1 2" "2 2"; do
        # shellcheck disable=SC2086 # two words
        at_shape "$1" "$2" $decode
    done
}
from_one_rank_to_any_shape_answers_are_the_same() { from_shape 1 1; }
from_tp_2_to_any_shape_answers_are_the_same() { from_shape 2 1; }
from_pp_2_to_any_shape_answers_are_the_same() { from_shape 1 2; }
from_tp_2_pp_2_to_any_shape_answers_are_the_same() { from_shape 2 2; }

ids_are_those_of_run() {
    local length
    start_server --model $PODLING "${SPLIT[@]}" --pool name=p,role=prefill --pool name=d,role=decode,tp=2
    for length in 20 130 600; do
        ask 1 "$length" 9 '"temperature": 1, "seed": 5'
        send 1 "$DIR/got"
        superpod run --model $PODLING --raw --ids --ignore-eos --max-tokens 24 --temperature 1 --seed 5 \
            --tokens "$(tokens "$length" 9)"
        expect_ok
        expect_eq "ids of $length tokens" "$(jq -c '.[0].token_ids' "$DIR/got")" "$(jq -c . "$DIR/out")"
    done
    expect_eq "requests prefilled elsewhere" "$(count prefilled_elsewhere)" 2
    stop_server
}
layers_cut_unevenly_fit_together() {
    write_answers
    start_server --model $PODLING "${SPLIT[@]}" --pool name=p,role=prefill,pp=3,pp_layers=3/1/2 \
        --pool name=d,role=decode,tp=4,pp=2,pp_layers=1/5
    expect_answers "uneven layers"
    expect_eq "failures" "$(failures)" 0
    stop_server
    start_server --model $PODLING "${SPLIT[@]}" --block-size 8 --max-num-batched-tokens 40 --kv-cache-dtype f32 \
        --pool name=p,role=prefill,replicas=2,tp=8 --pool name=d,role=decode
    expect_answers "small blocks and chunks, more ranks than KV heads"
    expect_eq "failures" "$(failures)" 0
    stop_server
}
what_was_pulled_is_found_again() {
    local pulled
    start_server --model $PODLING "${SPLIT[@]}" --pool name=p,role=prefill --pool name=d,role=decode,pp=2
    ask 1 400 11 '"temperature": 0'
    send 1 "$DIR/first"
    pulled=$(count kv_blocks_pulled)
    expect_eq "blocks of 400 tokens" "$pulled" 24
    send 1 "$DIR/second"
    expect_same_file "the second answer" "$DIR/second" "$DIR/first"
    expect_eq "blocks pulled for it" "$(count kv_blocks_pulled)" "$pulled"
    expect_eq "cached tokens" "$(jq .usage.prompt_tokens_details.cached_tokens "$DIR/second.whole")" 384
    # Only what is new of a longer prompt moves: the 25th block was computed where it is decoded.
    ask 2 600 11 '"temperature": 0'
    send 2 "$DIR/longer"
    expect_eq "blocks of 600 tokens" "$(count kv_blocks_pulled)" 36
    stop_server
}
replicas_share_the_work() {
    local i pids=()
    write_answers
    start_server --model $PODLING --pool name=a,replicas=3
    for ((i = 1; i <= REQUESTS; i++)); do
        send "$i" "$DIR/got-$i" &
        pids+=($!)
    done
    wait "${pids[@]}"
    for ((i = 1; i <= REQUESTS; i++)); do expect_same_file "answer $i" "$DIR/got-$i" "$DIR/want-$i"; done
    expect_eq "blocks pulled" "$(count kv_blocks_pulled)" 0
    stop_server
}
a_file_of_pools_is_read() {
    write_answers
    cat >"$DIR/split.yaml" <<EOF
model: $PODLING
prefill-threshold-tokens: 24
pools:
  - {name: fill, role: prefill, replicas: 2}
  - name: speak
    role: decode
    pp: 2
    pp_layers: 2,4
EOF
    start_server --config "$DIR/split.yaml"
    expect_answers "a file"
    superpod pools --json --url "$URL"
    expect_ok
    cp "$DIR/out" "$DIR/body"
    expect_jq '[.pools[] | [.name, .role, .replicas, .tp, .pp, (.groups | length)]] ==
        [["fill", "prefill", 2, 1, 1, 2], ["speak", "decode", 1, 1, 2, 1]]'
    superpod status --json --url "$URL"
    cp "$DIR/out" "$DIR/body"
    expect_jq '[.ranks[] | [.rank, .group, .role, .stage, .layers]] == [[0, 0, "prefill", 0, [0, 5]],
        [1, 1, "prefill", 0, [0, 5]], [2, 2, "decode", 0, [0, 1]], [3, 2, "decode", 1, [2, 5]]]'
    stop_server
}

# ---- roles ---------------------------------------------------------------------------------------

set_pools() { superpod pools set "$@" --url "$URL"; }
roles() { superpod pools --json --url "$URL" && jq -r '[.pools[].groups[].role] | join(" ")' "$DIR/out"; }

roles_change_under_load_and_no_request_fails() {
    local i round pids=() flips=0
    write_answers
    start_server --model $PODLING "${SPLIT[@]}" --pool name=a,role=prefill --pool name=b,role=decode,tp=2 \
        --pool name=c,role=mixed
    for round in 1 2 3 4 5 6; do
        for ((i = 1; i <= REQUESTS; i++)); do
            send "$i" "$DIR/got-$i-$round" &
            pids+=($!)
        done
        case $((round % 3)) in
        0) set_pools a=prefill b=decode c=decode ;;
        1) set_pools a=decode b=prefill c=mixed ;;
        2) set_pools prefill=2 decode=1 ;;
        esac
        expect_ok
        flips=$((flips + 1))
    done
    wait "${pids[@]}"
    for round in 1 2 3 4 5 6; do
        for ((i = 1; i <= REQUESTS; i++)); do
            expect_same_file "answer $i of round $round" "$DIR/got-$i-$round" "$DIR/want-$i"
        done
    done
    expect_eq "flips" "$flips" 6
    [ "$(count prefilled_elsewhere)" -ge 6 ] || fail "$(count prefilled_elsewhere) were split: the case proves nothing"
    expect_eq "roles" "$(roles)" "prefill decode decode"
    stop_server
}
roles_are_told_and_wrong_ones_refused() {
    start_server --model $PODLING --pool name=p,role=prefill --pool name=d,role=decode,replicas=2
    expect_eq "roles" "$(roles)" "prefill decode decode"
    set_pools prefill=2 decode=1
    expect_ok
    expect_match "roles" "$(roles)" '^prefill (prefill decode|decode prefill)$'
    set_pools p=mixed
    expect_ok
    set_pools prefill=3
    expect_refused 10 'decodes'
    set_pools p=prefill d=prefill
    expect_refused 10 'decodes'
    set_pools q=decode
    expect_refused 10 "'q'"
    set_pools p=deocde
    expect_refused 10 "'deocde'"
    set_pools prefill=1
    expect_refused 10 '3 groups, got 1'
    set_pools
    expect_eq "status of no words" "$STATUS" 2
    set_pools p=decode prefill=1
    expect_eq "status of mixed words" "$STATUS" 2
    call POST /superpod/pools '{"groups": [{"group": 3, "role": "decode"}]}'
    expect_error 400 '0 to 2'
    call POST /superpod/pools '{"groups": [{"group": 0, "role": "decode"}, {"group": 1, "role": "x"}]}'
    expect_error 400 "'x'"
    call POST /superpod/pools '[]'
    expect_error 400 'object'
    call POST /superpod/pools '{'
    expect_code 400
    expect_eq "nothing was changed: the first role" "$(roles | cut -d' ' -f1)" mixed
    call POST /superpod/pools '{"groups": [{"group": 0, "role": "decode"}]}'
    expect_code 200
    expect_jq '.pools[0].role == "decode"'
    stop_server
}

# ---- what is refused -----------------------------------------------------------------------------

serve() { superpod serve --port "$(free_port)" --model $PODLING "$@"; }
pools_that_cannot_be_are_refused_by_name() {
    serve --pool name=a,role=prefil
    expect_refused 10 "role: want mixed, prefill or decode, got 'prefil'"
    serve --pool name=a,role=prefill
    expect_refused 10 'no pool decodes'
    serve --pool name=a --pool name=a
    expect_refused 10 "two pools are called 'a'"
    serve --pool name=a,tp=64,pp=9
    expect_refused 10 '576 ranks'
    serve --pool name=a,replicas=64 --pool name=b
    expect_refused 10 '65 groups'
    serve --pool name=a,replicas=0
    expect_refused 10 "replicas: want 1 to 64, got '0'"
    serve --pool name=a,size=3
    expect_refused 10 "unknown key 'size'"
    serve --pool a
    expect_refused 10 "want key=value, got 'a'"
    serve --pool name=a --pool name=b,tp=3
    expect_refused 10 "pool 'b'" 'does not divide'
    serve --pool name=a,pp=2,pp_layers=3/4
    expect_refused 10 "pool 'a'" '7 layers'
    serve --pool name=a,replicas=2 --null-model
    expect_refused 10 null-model
    superpod run --model $PODLING --pool name=a hello
    expect_refused 2 "unknown option '--pool'"
}
a_wrong_file_of_pools_is_refused_with_its_line() {
    printf 'pools:\n  - {name: a, tp: [1]}\n' >"$DIR/wrong.yaml"
    serve --config "$DIR/wrong.yaml"
    expect_refused 2 "wrong.yaml' line 2" 'plain values'
    printf 'pools:\n  - {}\n' >"$DIR/wrong.yaml"
    serve --config "$DIR/wrong.yaml"
    expect_refused 2 'line 2'
    printf 'pools:\n  - {name: a, role: decod}\n' >"$DIR/wrong.yaml"
    serve --config "$DIR/wrong.yaml"
    expect_refused 10 "'decod'"
}

# ---- how it ends ---------------------------------------------------------------------------------

TWO=(--pool "name=p,role=prefill" --pool "name=d,role=decode,tp=2")
killed() { # rank
    start_server --model $PODLING "${TWO[@]}"
    call GET /superpod/status
    kill -KILL "$(answer ".ranks[$1].pid")"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    grep -q "rank $1 was killed by signal 9" "$LOG.err" || fail "it is not named: $(tail -n 3 "$LOG.err")"
}
a_killed_rank_of_either_pool_ends_the_pod_with_20() {
    killed 0
    killed 2
}
a_prefill_rank_killed_while_it_computes_ends_all_with_20() {
    local i pids=()
    start_server --model $PODLING "${SPLIT[@]}" "${TWO[@]}" --backend ref --threads 1 --max-num-batched-tokens 16
    call GET /superpod/status
    for i in 1 2 3 4; do
        ask "$i" 1500 "$i" '"temperature": 0, "stream": true'
        curl -sS -N -m $((50 * SLOW)) -o "$DIR/stream-$i" -H 'Content-Type: application/json' \
            --data-binary "@$DIR/ask-$i" "$URL/v1/completions" &
        pids+=($!)
    done
    wait_for 10 moving || fail "no blocks move"
    kill -KILL "$(answer '.ranks[0].pid')"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    wait "${pids[@]}" || true
    for i in 1 2 3 4; do
        grep -q '"error"' "$DIR/stream-$i" || fail "stream $i was not told: $(tail -c 200 "$DIR/stream-$i")"
    done
}
moving() { [ "$(count kv_blocks_pulled)" -gt 0 ]; }
runs() { [ "$(metric 'vllm:num_requests_running')" = 1 ]; }
a_split_pod_drains_and_leaves_nothing() {
    local before after
    before=$(find /dev/shm -maxdepth 1 -user "$(id -u)" | sort)
    start_server --model $PODLING "${SPLIT[@]}" "${TWO[@]}"
    ask 1 500 3 '"temperature": 0'
    jq -c '.max_tokens = 200' "$DIR/ask-1" >"$DIR/ask-2"
    send 2 "$DIR/last" &
    local client=$!
    wait_for 10 runs || fail "the request does not run"
    stop_server
    wait "$client" || fail "the last request was not answered"
    expect_eq "ids of the last request" "$(jq '.[0].token_ids | length' "$DIR/last")" 200
    after=$(find /dev/shm -maxdepth 1 -user "$(id -u)" | sort)
    expect_eq "files of shared memory" "$after" "$before"
}

run_cases split from_one_rank_to_any_shape_answers_are_the_same \
    from_tp_2_to_any_shape_answers_are_the_same from_pp_2_to_any_shape_answers_are_the_same \
    from_tp_2_pp_2_to_any_shape_answers_are_the_same ids_are_those_of_run \
    layers_cut_unevenly_fit_together what_was_pulled_is_found_again replicas_share_the_work \
    a_file_of_pools_is_read roles_change_under_load_and_no_request_fails \
    roles_are_told_and_wrong_ones_refused pools_that_cannot_be_are_refused_by_name \
    a_wrong_file_of_pools_is_refused_with_its_line a_killed_rank_of_either_pool_ends_the_pod_with_20 \
    a_prefill_rank_killed_while_it_computes_ends_all_with_20 a_split_pod_drains_and_leaves_nothing
