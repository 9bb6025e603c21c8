#!/bin/bash
# Prefill and decode by different groups of ranks: the same answers at every pair of shapes, with
# the counters that say the blocks did move; roles that change under load; what is refused; how such
# a pod ends.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/split_lib.sh
source tests/e2e/split_lib.sh

# What a case measured and nobody asserts goes past its log, to who runs this.
[ "${E2E_CASE:-}" ] || exec 3>&1
say() { echo "    $*" >&3; }

# Requests that every shape must answer alike, in $DIR/ask-N: short and long, greedy and drawn, with
# everything that looks at what came before. Their order counts: later ones find earlier ones' blocks.
write_requests() {
    local n=0 length shared
    for length in 20 33 300 600; do
        ask $((n += 1)) "$(tokens $length $length)" '"temperature": 0'
    done
    ask $((n += 1)) "$(tokens 410 5)" '"temperature": 1, "seed": 41'
    ask $((n += 1)) "$(tokens 64 6)" '"temperature": 0.8, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 43'
    ask $((n += 1)) "$(tokens 350 7)" '"temperature": 1, "seed": 42, "n": 3, "logprobs": 2'
    ask $((n += 1)) "$(tokens 257 8)" '"temperature": 1, "seed": 44, "logprobs": 5'
    ask $((n += 1)) "$(tokens 130 9)" '"temperature": 1, "seed": 45, "logprobs": 1, "presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.3'
    ask $((n += 1)) "$(tokens 99 10)" '"temperature": 1, "seed": 46, "stop": ["e", "the"], "logprobs": 3'
    ask $((n += 1)) "$(tokens 200 12)" '"temperature": 0, "logit_bias": {"300": 4, "17": -100}, "stop_token_ids": [300], "min_tokens": 5'
    # Blocks of other requests lead these: half of it, all of it, all of it and more.
    shared=$(tokens 300 300)
    ask $((n += 1)) "$(cut -d, -f1-160 <<<"$shared"),$(tokens 180 13)" '"temperature": 1, "seed": 47, "logprobs": 2, "n": 2'
    ask $((n += 1)) "$shared" '"temperature": 0, "logprobs": 4'
    ask $((n += 1)) "$shared,$(tokens 70 14)" '"temperature": 0.7, "seed": 48, "repetition_penalty": 1.1'
    REQUESTS=$n
    LOCAL=2 # request 1, and the one whose blocks are all there
}
ask() { # number prompt more
    echo "{\"prompt\": [$2], \"max_tokens\": 24, \"ignore_eos\": true, \"return_token_ids\": true, $3}" >"$DIR/ask-$1"
}
send() { # number file: the choices, without what is the server's own
    curl -sS -m $((50 * SLOW)) -o "$2.whole" -H 'Content-Type: application/json' \
        --data-binary "@$DIR/ask-$1" "$URL/v1/completions"
    jq -ce '[.choices[] | {index, text, token_ids, logprobs, finish_reason, stop_reason}]
        | if length > 0 then . else error end' "$2.whole" >"$2" || fail "request $1: $(head -c 300 "$2.whole")"
}
# What one rank alone answers, in $DIR/want-N; the first case that asks keeps it for the others.
write_answers() {
    local i kept=$DIR/../answers
    write_requests
    if [ -d "$kept" ]; then
        cp "$kept"/want-* "$DIR"
        return
    fi
    start_server --model $PODLING
    for ((i = 1; i <= REQUESTS; i++)); do send $i "$DIR/want-$i"; done
    stop_server
    # What is asked for happens: otherwise it would prove nothing.
    jq -e '.[0].finish_reason == "stop" and (.[0].token_ids | length) < 24' "$DIR/want-10" >/dev/null || fail "no stop: $(cat "$DIR/want-10")"
    jq -e 'length == 3 and ([.[].token_ids] | unique | length) == 3' "$DIR/want-7" >/dev/null || fail "no three answers: $(cat "$DIR/want-7")"
    jq -e '[.[].logprobs.token_logprobs[]] | length == 24 and all(. <= 0)' "$DIR/want-8" >/dev/null || fail "no logprobs: $(cat "$DIR/want-8")"
    mkdir "$kept" && cp "$DIR"/want-? "$DIR"/want-?? "$kept"
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

# ---- the same answers ----------------------------------------------------------------------------

SPLIT=(--prefill-threshold-tokens 24)
at_shape() { # prefill's tp and pp, decode's
    start_server --model $PODLING "${SPLIT[@]}" --pool "name=p,role=prefill,tp=$1,pp=$2" \
        --pool "name=d,role=decode,tp=$3,pp=$4"
    expect_answers "prefill $1 x $2, decode $3 x $4"
    expect_eq "requests prefilled elsewhere" "$(count prefilled_elsewhere)" $((REQUESTS - LOCAL))
    expect_eq "requests prefilled here" "$(count prefilled_here)" $LOCAL
    [ "$(count kv_blocks_pulled)" -ge 100 ] || fail "only $(count kv_blocks_pulled) blocks were pulled"
    expect_eq "failures" "$(failures)" 0
    stop_server
}
# Every shape on either side; that any two fit together bit by bit is tests/runtime/engine/test_kv_port.
from_shape() { # prefill's tp and pp: "tp pp" of decode...
    local decode tp=$1 pp=$2
    shift 2
    write_answers
    for decode in "$@"; do
        # shellcheck disable=SC2086 # two words
        at_shape "$tp" "$pp" $decode
    done
}
from_tp_1_to_other_shapes_answers_are_the_same() { from_shape 1 1 "1 1" "2 1" "4 2"; }
from_tp_2_to_other_shapes_answers_are_the_same() { from_shape 2 1 "2 1" "4 1" "1 2"; }
from_tp_4_to_other_shapes_answers_are_the_same() { from_shape 4 1 "4 1" "1 2" "2 2"; }
from_pp_2_to_other_shapes_answers_are_the_same() { from_shape 1 2 "1 2" "2 2" "1 1"; }
from_tp_2_pp_2_to_other_shapes_answers_are_the_same() { from_shape 2 2 "1 1" "2 1" "4 2"; }
from_tp_4_pp_2_to_other_shapes_answers_are_the_same() { from_shape 4 2 "4 2" "1 1" "2 2"; }
two_prefill_groups_of_tp_2_feed_one_of_pp_2() {
    write_answers
    start_server --config configs/split.yaml "${SPLIT[@]}" --pool name=fill,role=prefill,replicas=2,tp=2 \
        --pool name=speak,role=decode,tp=1,pp=2
    expect_answers "2 of tp 2, 1 of pp 2"
    expect_eq "requests prefilled elsewhere" "$(count prefilled_elsewhere)" $((REQUESTS - LOCAL))
    expect_eq "failures" "$(failures)" 0
    stop_server
}
the_example_is_served() {
    write_answers
    start_server --config configs/split.yaml
    expect_answers "configs/split.yaml"
    [ "$(count prefilled_elsewhere)" -ge 5 ] || fail "only $(count prefilled_elsewhere) were split"
    stop_server
    superpod plan --config configs/split.yaml --nodes 4xCPU-8G --json
    expect_ok
    expect_eq "its pools, as planned" "$(jq -c '[.pools[] | [.name, .role, .replicas, .tp, .pp]]' "$DIR/out")" \
        '[["fill","prefill",1,1,1],["speak","decode",1,2,1]]'
}

ids_are_those_of_run() {
    local length
    start_server --model $PODLING "${SPLIT[@]}" --pool name=p,role=prefill --pool name=d,role=decode,tp=2
    for length in 20 130 600; do
        ask 1 "$(tokens "$length" 9)" '"temperature": 1, "seed": 5'
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
    ask 1 "$(tokens 400 11)" '"temperature": 0'
    send 1 "$DIR/first"
    pulled=$(count kv_blocks_pulled)
    expect_eq "blocks of 400 tokens" "$pulled" 24
    send 1 "$DIR/second"
    expect_same_file "the second answer" "$DIR/second" "$DIR/first"
    expect_eq "blocks pulled for it" "$(count kv_blocks_pulled)" "$pulled"
    expect_eq "cached tokens" "$(jq .usage.prompt_tokens_details.cached_tokens "$DIR/second.whole")" 384
    # Only what is new of a longer prompt moves: the 25th block was computed where it is decoded.
    ask 2 "$(tokens 600 11)" '"temperature": 0'
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

# One change of roles, by itself: the seconds go to $DIR/flips.
flip() { # body
    expect_match "the change of roles" "$(curl -sS -m 30 -o "$DIR/body" -w '%{http_code} %{time_total}\n' \
        -H 'Content-Type: application/json' -d "$1" "$URL/superpod/pools" | tee -a "$DIR/flips")" '^200 '
}
roles_change_under_load_and_no_request_fails() {
    local i round pids=()
    write_answers
    start_server --model $PODLING "${SPLIT[@]}" --pool name=a,role=prefill --pool name=b,role=decode,tp=2 \
        --pool name=c,role=mixed
    for round in 1 2 3 4 5 6; do
        for ((i = 1; i <= REQUESTS; i++)); do
            send "$i" "$DIR/got-$i-$round" &
            pids+=($!)
        done
        case $((round % 3)) in
        0) flip '{"pools": {"a": "prefill", "b": "decode", "c": "decode"}}' ;;
        1) flip '{"pools": {"a": "decode", "b": "prefill", "c": "mixed"}}' ;;
        2) flip '{"prefill": 2, "decode": 1}' ;;
        esac
    done
    wait "${pids[@]}"
    for round in 1 2 3 4 5 6; do
        for ((i = 1; i <= REQUESTS; i++)); do
            expect_same_file "answer $i of round $round" "$DIR/got-$i-$round" "$DIR/want-$i"
        done
    done
    expect_eq "changes of roles" "$(wc -l <"$DIR/flips")" 6
    say "roles changed 6 times under load, in $(awk '{ print $2 * 1000 }' "$DIR/flips" | sort -n | tail -n 1) ms at most (want below 1000)"
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
    serve --pool name=b,tp=3
    expect_refused 10 "pool 'b'" 'does not divide' 'works with 1, 2, 4, 8'
    serve --pool name=a,pp=2,pp_layers=3/4
    expect_refused 10 "pool 'a'" '7 layers'
    serve --pool name=a,replicas=2 --null-model
    expect_refused 10 null-model
    superpod run --model $PODLING --pool name=a hello
    expect_refused 2 "unknown option '--pool'"
}
pools_that_do_not_fit_are_refused_with_what_would() {
    local two=(--pool "name=p,role=prefill,replicas=2,tp=2" --pool "name=d,role=decode,pp=2")
    serve --slots 3 "${two[@]}"
    expect_refused 10 '6 ranks' 'p: 1 of tp 1 x pp 1, d: 1 of tp 1 x pp 2 would fit: there are 3 slots'
    serve --max-num-batched-tokens 65536 --num-gpu-blocks-override 60000000 "${two[@]}"
    expect_refused 10 "pool 'p'"
    superpod plan --model $PODLING --nodes 4xCPU-8G "${two[@]}"
    expect_refused 10 '6 ranks, 1 nodes of 4 devices have 4' 'would fit: p: 1 of tp 2 x pp 1, d: 1 of tp 1 x pp 2'
    superpod plan --model $PODLING --nodes 6xCPU-300M --max-num-batched-tokens 8192 --max-num-seqs 512 "${two[@]}"
    expect_refused 10 "pool 'p': weights need" 'would fit: p: 1 of tp 1 x pp 1, d: 1 of tp 1 x pp 1'
    superpod plan --model $PODLING --nodes 6xCPU-8G --pool name=p,role=fill
    expect_refused 10 "want mixed, prefill or decode, got 'fill'"
    superpod plan --model $PODLING --nodes 6xCPU-8G --pool name=p,role=prefill
    expect_refused 10 'no pool decodes'
    superpod plan --model $PODLING --nodes 6xCPU-8G --pool name=p --pool name=q,tp=3
    expect_refused 10 "pool 'q'" 'does not divide the 8' 'works with 1, 2, 4, 8'
    superpod plan --model $PODLING --nodes 6xCPU-8G --json "${two[@]}"
    expect_ok
    expect_eq "the planned ranks" "$(jq -c '[.ranks[] | [.pool, .group, .stage]]' "$DIR/out")" \
        '[["p",0,0],["p",0,0],["p",1,0],["p",1,0],["d",2,0],["d",2,1]]'
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
killed() { # rank pool
    start_server --model $PODLING "${TWO[@]}"
    call GET /superpod/status
    kill -KILL "$(answer ".ranks[$1].pid")"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    grep -q "rank $1 of pool '$2' was killed by signal 9" "$LOG.err" || fail "it is not named: $(tail -n 3 "$LOG.err")"
}
a_killed_rank_of_either_pool_ends_the_pod_with_20() {
    killed 0 p
    killed 2 d
}
a_prefill_rank_killed_while_it_computes_ends_all_with_20() {
    local i pids=()
    start_server --model $PODLING "${SPLIT[@]}" "${TWO[@]}" --backend ref --threads 1 --max-num-batched-tokens 16
    call GET /superpod/status
    for i in 1 2 3 4; do
        ask "$i" "$(tokens 1500 "$i")" '"temperature": 0, "stream": true'
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
    ask 1 "$(tokens 500 3)" '"temperature": 0'
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

run_cases split from_tp_1_to_other_shapes_answers_are_the_same \
    from_tp_2_to_other_shapes_answers_are_the_same from_tp_4_to_other_shapes_answers_are_the_same \
    from_pp_2_to_other_shapes_answers_are_the_same from_tp_2_pp_2_to_other_shapes_answers_are_the_same \
    from_tp_4_pp_2_to_other_shapes_answers_are_the_same two_prefill_groups_of_tp_2_feed_one_of_pp_2 \
    the_example_is_served pools_that_do_not_fit_are_refused_with_what_would ids_are_those_of_run \
    layers_cut_unevenly_fit_together what_was_pulled_is_found_again replicas_share_the_work \
    a_file_of_pools_is_read roles_change_under_load_and_no_request_fails \
    roles_are_told_and_wrong_ones_refused pools_that_cannot_be_are_refused_by_name \
    a_wrong_file_of_pools_is_refused_with_its_line a_killed_rank_of_either_pool_ends_the_pod_with_20 \
    a_prefill_rank_killed_while_it_computes_ends_all_with_20 a_split_pod_drains_and_leaves_nothing
