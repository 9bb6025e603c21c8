#!/bin/bash
# Two pods and a sidecar between them, as llm-d runs vLLM: one computes the prompt, the other takes
# its KV blocks over and answers. The answers are those of a pod alone, at other shapes on either
# side; what may not be taken is refused, or computed, as the pod was told to.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
case_limit_s=120

TEXT=/v1/completions
CHAT=/v1/chat/completions

# ---- pods ----------------------------------------------------------------------------------------

declare -A POD_SERVER POD_PORT
start_pod() { # name option...
    local name=$1
    shift
    [ -f "$DIR/secret" ] || head -c 32 /dev/urandom | base64 >"$DIR/secret"
    chmod 600 "$DIR/secret"
    start_server --model "${POD_MODEL:-$PODLING}" --kv-secret-file "$DIR/secret" "$@"
    POD_SERVER[$name]=$SERVER
    POD_PORT[$name]=$PORT
}
at() { # name: what follows is about that pod
    SERVER=${POD_SERVER[$1]}
    PORT=${POD_PORT[$1]}
    URL=http://127.0.0.1:$PORT
    LOG=$DIR/server-$PORT
    export SERVER PORT URL LOG
}
stop_pods() { # name...
    local name
    for name in "$@"; do
        at "$name"
        stop_server
    done
}
figure() { # pod regex: 0 when there is no such line
    at "$1"
    local value
    value=$(metric "$2")
    echo "${value:-0}"
}
lent_is() { [ "$(figure "$1" superpod:kv_lent_blocks)" = "$2" ]; }
expect_figure() { # pod regex awk-condition of v
    local v
    v=$(figure "$1" "$2")
    awk -v v="$v" "BEGIN { exit !(v $3) }" || fail "$2 of pod $1 is $v, want $3"
}
refused() { # pod reason
    figure "$1" "superpod:kv_handles_refused_total.reason=\"$2\""
}
failures() { # pod: blocks and requests, all causes
    at "$1"
    curl -sS -m 10 "$URL/metrics" | awk '/^superpod:kv_failures_total/ { n += $NF } END { print n + 0 }'
}

# ---- requests ------------------------------------------------------------------------------------

tokens() { # count seed
    awk -v n="$1" -v s="$2" 'BEGIN {
        for (i = 0; i < n; i++) { s = (s * 16807 + 11) % 2147483647; printf "%s%d", i ? "," : "", s % 2048 }
    }'
}
words() { # count seed
    awk -v n="$1" -v s="$2" 'BEGIN {
        split("river stone quiet green seven walk under light paper north", w, " ")
        for (i = 0; i < n; i++) { s = (s * 16807 + 11) % 2147483647; printf "%s%s", i ? " " : "", w[1 + s % 10] }
    }'
}
ask() { # name length seed more: a completion, in $DIR/NAME.ask
    echo "{\"prompt\": [$(tokens "$2" "$3")], \"max_tokens\": 24, \"ignore_eos\": true, \"return_token_ids\": true, $4}" \
        >"$DIR/$1.ask"
    echo $TEXT >"$DIR/$1.path"
}
chat() { # name length seed more
    echo "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"},
        {\"role\": \"user\", \"content\": \"$(words "$2" "$3")\"}], \"max_completion_tokens\": 24, $4}" >"$DIR/$1.ask"
    echo $CHAT >"$DIR/$1.path"
}
REQUESTS=(short two long longest seeded cut several likely chat talk stream said)
write_requests() {
    ask short 9 1 '"temperature": 0' # no whole block
    ask two 33 2 '"temperature": 0, "min_tokens": 3'
    ask long 300 3 '"temperature": 0'
    ask longest 600 4 '"temperature": 0'
    ask seeded 410 5 '"temperature": 1, "seed": 41'
    ask cut 64 6 '"temperature": 0.8, "top_p": 0.9, "seed": 43'
    ask several 350 7 '"temperature": 1, "seed": 42, "n": 2'
    ask likely 257 8 '"temperature": 1, "seed": 44, "logprobs": 5'
    chat chat 120 9 '"temperature": 0'
    chat talk 90 10 '"temperature": 1, "seed": 45'
    chat stream 80 11 '"temperature": 1, "seed": 46, "stream": true, "stream_options": {"include_usage": true}'
    ask said 200 12 '"temperature": 0, "stream": true'
}
post() { # path file out [curl option...]: CODE
    local path=$1 file=$2 out=$3
    shift 3
    CODE=$(curl -sS -m $((50 * SLOW)) -o "$out" -D "$DIR/headers" -w '%{http_code}' \
        -H 'Content-Type: application/json' --data-binary "@$file" "$@" "$URL$path" 2>"$DIR/curl") ||
        fail "no answer of $URL$path: $(cat "$DIR/curl")"
}
# What a client sees of an answer, whole or streamed, without what is the server's own.
seen() { # answer
    if grep -q '^data: ' "$1"; then
        grep -q '^data: \[DONE\]' "$1" || fail "a stream without its end: $(tail -c 200 "$1")"
        sed -n 's/^data: {/{/p' "$1" | jq -sce '[.[] | .choices[]] | group_by(.index) | map({index: .[0].index,
            text: (map(.text // .delta.content // "") | join("")), ids: (map(.token_ids // []) | add),
            why: (map(.finish_reason // empty) | last)})'
    else
        jq -ce '[.choices[] | {index, text: (.text // .message.content), ids: (.token_ids // []),
            logprobs, why: .finish_reason}] | if length > 0 then . else error end' "$1"
    fi || fail "not an answer: $(head -c 300 "$1")"
}

# ---- the sidecar ---------------------------------------------------------------------------------

# The first leg, for the pod that prefills: answer in $DIR/NAME.first, the object in $DIR/NAME.kv.
first_leg() { # name pod
    jq -c '.stream = false | del(.stream_options) | .max_tokens = 1
        | if has("max_completion_tokens") then .max_completion_tokens = 1 else . end
        | if has("min_tokens") then .min_tokens = 1 else . end
        | .kv_transfer_params = {do_remote_decode: true, do_remote_prefill: false, remote_engine_id: null,
            remote_block_ids: null, remote_host: null, remote_port: null}' "$DIR/$1.ask" >"$DIR/$1.leg"
    at "$2"
    post "$(cat "$DIR/$1.path")" "$DIR/$1.leg" "$DIR/$1.first" -H "x-request-id: id-$1"
    [ "$CODE" = 200 ] || fail "status $CODE of the first leg of $1: $(head -c 300 "$DIR/$1.first")"
    jq -ce .kv_transfer_params "$DIR/$1.first" >"$DIR/$1.kv" || fail "nothing for the second leg: $(head -c 300 "$DIR/$1.first")"
}
# The second, for the pod that decodes: what the client gets, in $DIR/NAME.second and CODE.
second_leg() { # name pod
    jq -c --slurpfile kv "$DIR/$1.kv" '.kv_transfer_params = $kv[0]' "$DIR/$1.ask" >"$DIR/$1.leg"
    at "$2"
    post "$(cat "$DIR/$1.path")" "$DIR/$1.leg" "$DIR/$1.second" -H "x-request-id: id-$1"
}
sidecar() { # name prefill decode
    first_leg "$1" "$2"
    second_leg "$1" "$3"
    [ "$CODE" = 200 ] || fail "status $CODE of the second leg of $1: $(head -c 300 "$DIR/$1.second")"
}
expect_answer() { # name: the second leg's, as the pod alone gives it
    seen "$DIR/$1.second" >"$DIR/$1.got"
    expect_same_file "answer $1" "$DIR/$1.got" "$DIR/$1.want"
}
expect_second() { # name pod code regex
    second_leg "$1" "$2"
    [ "$CODE" = "$3" ] || fail "status $CODE, want $3: $(head -c 400 "$DIR/$1.second")"
    [ "$3" = 200 ] || expect_match "the message" "$(jq -r .error.message "$DIR/$1.second")" "$4"
    [ "$3" != 200 ] || expect_answer "$1"
}
# What one rank alone answers, in $DIR/NAME.want.
write_answers() { # name...
    local name
    write_requests
    start_server --model $PODLING
    for name in "$@"; do
        post "$(cat "$DIR/$name.path")" "$DIR/$name.ask" "$DIR/$name.alone"
        seen "$DIR/$name.alone" >"$DIR/$name.want"
    done
    stop_server
}

# ---- the same answers ----------------------------------------------------------------------------

at_shapes() { # options of the pod that prefills -- of the pod that decodes
    local name prefill=()
    while [ "$1" != -- ]; do
        prefill+=("$1")
        shift
    done
    shift
    local before
    before=$(find /dev/shm -maxdepth 1 -user "$(id -u)" | sort)
    write_answers "${REQUESTS[@]}"
    # Nothing may come in another way than by the blocks that were lent.
    start_pod p "${prefill[@]}"
    start_pod d --kv-load-failure-policy fail "$@"
    for name in "${REQUESTS[@]}"; do
        sidecar "$name" p d
        expect_answer "$name"
    done
    expect_figure d 'vllm:external_prefix_cache_hits_total' '>= 1600'
    expect_figure d 'vllm:prompt_tokens_by_source_total.source="external_kv_transfer"' '>= 1600'
    expect_figure d 'vllm:nixl_xfer_time_seconds_count' '>= 10'
    expect_figure d 'vllm:nixl_num_descriptors_sum' '>= 100'
    expect_figure d 'vllm:nixl_bytes_transferred_sum' '> 0'
    expect_figure d 'vllm:nixl_num_failed_transfers_total' '== 0'
    expect_figure p 'vllm:nixl_num_kv_expired_reqs_total' '== 0'
    expect_eq "failures" "$(failures d)" 0
    wait_for 5 lent_is p 0 || fail "pod p still lends $(figure p superpod:kv_lent_blocks) blocks"
    stop_pods p d
    expect_eq "files of shared memory" "$(find /dev/shm -maxdepth 1 -user "$(id -u)" | sort)" "$before"
}
from_tp_2_to_pp_2_answers_are_the_same() { at_shapes --tp 2 -- --pp 2; }
from_pp_2_to_one_rank_answers_are_the_same() { at_shapes --pp 2 --; }
from_one_rank_to_tp_2_answers_are_the_same() { at_shapes -- --tp 2; }
from_pools_to_a_pod_answers_are_the_same() {
    at_shapes --prefill-threshold-tokens 24 --pool name=a,role=prefill,tp=2 --pool name=b,role=decode -- \
        --tp 2 --pp 2
}

many_at_once_are_answered_alike() {
    local name round pids=()
    write_answers "${REQUESTS[@]}"
    start_pod p --tp 2
    start_pod d --kv-load-failure-policy fail --pp 2
    # Two clients ask the same at the same time: blocks are lent twice, and found by who comes later.
    for name in "${REQUESTS[@]}"; do
        for round in a b; do
            cp "$DIR/$name.ask" "$DIR/$name-$round.ask"
            cp "$DIR/$name.path" "$DIR/$name-$round.path"
            cp "$DIR/$name.want" "$DIR/$name-$round.want"
            sidecar "$name-$round" p d &
            pids+=($!)
        done
    done
    wait_for_all "${pids[@]}"
    for name in "${REQUESTS[@]}"; do
        expect_answer "$name-a"
        expect_answer "$name-b"
    done
    expect_eq "failures" "$(failures d)" 0
    wait_for 5 lent_is p 0 || fail "pod p still lends $(figure p superpod:kv_lent_blocks) blocks"
    stop_pods p d
}
wait_for_all() { # pid...
    local pid
    for pid in "$@"; do wait "$pid" || fail "a client was not served"; done
}
a_pod_may_be_its_own_prefiller() {
    write_answers long seeded
    start_pod p --tp 2 --kv-load-failure-policy fail
    for name in long seeded; do
        sidecar $name p p
        expect_answer $name
    done
    wait_for 5 lent_is p 0 || fail "it still lends $(figure p superpod:kv_lent_blocks) blocks"
    stop_pods p
}

what_is_told_between_the_legs_is_what_routers_know() {
    write_requests
    start_pod p --tp 2
    start_pod d
    first_leg long p
    jq -e --argjson port "${POD_PORT[p]}" '.do_remote_prefill == true and .do_remote_decode == false
        and (.remote_engine_id | test("^[0-9a-f]{32}-[0-9]+$")) and .remote_request_id == "cmpl-id-long"
        and (.remote_block_ids | length == 18 and all(type == "number")) and (.remote_host | type == "string")
        and .remote_port == $port and .tp_size == 2 and .remote_num_tokens == 288
        and (.remote_blocks_expiry_time - now | . > 10 and . < 60) and .transfer_mode == "pull"' \
        "$DIR/long.kv" >/dev/null || fail "not the object of routers: $(head -c 600 "$DIR/long.kv")"
    expect_eq "id of the first leg" "$(jq -r .id "$DIR/long.first")" cmpl-id-long
    lent_is p 18 || fail "pod p lends $(figure p superpod:kv_lent_blocks) blocks, want 18"
    second_leg long d
    expect_eq "id of the second leg" "$(jq -r .id "$DIR/long.second")" cmpl-id-long
    jq -e 'has("kv_transfer_params") | not' "$DIR/long.second" >/dev/null || fail "the client was told too"
    # What is there already is not fetched again, and its lease is given back all the same.
    first_leg long p
    second_leg long d
    expect_figure d 'vllm:nixl_num_descriptors_sum' '== 18'
    wait_for 5 lent_is p 0 || fail "pod p still lends $(figure p superpod:kv_lent_blocks) blocks"
    # A prompt without a whole block has nothing to lend.
    first_leg short p
    jq -e '.remote_block_ids == [] and .superpod.names == []' "$DIR/short.kv" >/dev/null || fail "$(cat "$DIR/short.kv")"
    stop_pods p d
}
a_stream_tells_it_in_the_chunk_that_ends_it() {
    start_pod p
    ask lend 100 3 '"temperature": 0, "stream": true, "kv_transfer_params": {"do_remote_decode": true}'
    stream $TEXT "$(cat "$DIR/lend.ask")"
    expect_eq "chunks with it" "$(grep -c kv_transfer_params "$DIR/events")" 1
    tail -n 1 "$DIR/events" | jq -e '.choices[0].finish_reason == "length"
        and (.kv_transfer_params.remote_block_ids | length == 6)' >/dev/null || fail "$(tail -n 1 "$DIR/events")"
    stop_pods p
}

# ---- what may not be taken -----------------------------------------------------------------------

# Whatever stands in NAME.kv: refused by one pod in words, computed by another.
expect_refused_or_computed() { # name reason regex
    local before
    before=$(refused strict "$2")
    expect_second "$1" strict 400 "$3"
    expect_eq "refusals for $2" "$(refused strict "$2")" $((before + 1))
    before=$(refused mild "$2")
    expect_second "$1" mild 200
    expect_eq "refusals for $2 by the other" "$(refused mild "$2")" $((before + 1))
}
start_readers() {
    start_pod strict --kv-load-failure-policy fail
    start_pod mild --kv-load-failure-policy recompute
}
tampered() { # jq filter
    jq -c "$1" "$DIR/long.good" >"$DIR/long.kv"
    expect_refused_or_computed long mac 'the proof is wrong'
}
what_was_changed_on_its_way_is_not_taken() {
    write_answers long
    start_pod p
    start_readers
    first_leg long p
    cp "$DIR/long.kv" "$DIR/long.good"
    tampered '.remote_block_ids[3] += 1'
    tampered '.remote_block_ids |= reverse'
    tampered '.remote_blocks_expiry_time += 3600'
    tampered '.remote_request_id = "cmpl-other"'
    tampered '.remote_engine_id |= (if startswith("0") then "1" else "0" end) + .[1:]'
    tampered '.superpod.names[0] = "0123456789abcdef"'
    tampered '.superpod.source |= sub("[0-9]"; "9")'
    tampered '.superpod.lease = "0000000000000001"'
    echo '{"do_remote_prefill": true, "remote_engine_id": "e", "remote_block_ids": [1], "remote_port": 5600}' >"$DIR/long.kv"
    expect_refused_or_computed long foreign 'another kind or version of server'
    jq -c '.superpod.lease = 7' "$DIR/long.good" >"$DIR/long.kv"
    expect_second long strict 400 'kv_transfer_params.superpod.lease: want a string'
    expect_second long mild 400 'kv_transfer_params.superpod.lease: want a string'
    # It was not used up by all that.
    cp "$DIR/long.good" "$DIR/long.kv"
    expect_second long strict 200
    expect_figure strict 'vllm:external_prefix_cache_hits_total' '>= 256'
    stop_pods p strict mild
}
blocks_of_another_secret_model_or_time_are_not_taken() {
    write_answers long
    start_readers
    mv "$DIR/secret" "$DIR/secret.kept"
    start_pod stranger
    mv "$DIR/secret.kept" "$DIR/secret"
    first_leg long stranger
    expect_refused_or_computed long mac '--kv-secret-file'
    stop_pods stranger

    cp -rL $PODLING "$DIR/other"
    chmod -R u+w "$DIR/other"
    flip_a_weight "$DIR/other/model.safetensors"
    POD_MODEL=$DIR/other start_pod other
    first_leg long other
    expect_refused_or_computed long identity 'another model'
    stop_pods other

    start_pod brief --kv-lease-seconds 1
    first_leg long brief
    lent_is brief 18 || fail "pod brief lends $(figure brief superpod:kv_lent_blocks) blocks, want 18"
    wait_for 5 lent_is brief 0 || fail "the lease of a second does not end"
    expect_figure brief 'vllm:nixl_num_kv_expired_reqs_total' '== 1'
    expect_refused_or_computed long expired 'lease has ended'
    stop_pods brief strict mild
}
# One bit of the first weight: who is a model is told by how each of its tensors begins.
flip_a_weight() { # safetensors file
    local at byte
    at=$((8 + $(od -An -tu8 -N8 "$1")))
    byte=$(od -An -tu1 -j "$at" -N 1 "$1")
    # shellcheck disable=SC2059 # an escape is what is wanted
    printf "\\$(printf '%03o' $((byte ^ 1)))" | dd of="$1" bs=1 seek="$at" conv=notrunc status=none
}
a_pod_that_is_killed_between_the_legs_costs_no_wrong_answer() {
    write_answers long seeded
    start_pod p --tp 2
    start_readers
    first_leg long p
    first_leg seeded p
    at p
    kill -KILL "$SERVER"
    expect_end
    expect_second long strict 503 'did not come from the other pod'
    expect_second long mild 200
    expect_second seeded mild 200
    expect_figure mild 'vllm:external_prefix_cache_hits_total' '== 0'
    [ "$(failures mild)" -gt 0 ] || fail "nobody counted what did not come"
    # Both serve on.
    for name in strict mild; do
        at $name
        post $TEXT "$DIR/seeded.ask" "$DIR/seeded.second"
        expect_answer seeded
    done
    stop_pods strict mild
}
what_cannot_be_asked_is_refused_by_name() {
    start_server --model $PODLING
    call POST $TEXT '{"prompt": "a", "kv_transfer_params": {"do_remote_decode": true}}'
    expect_error 400 '--kv-secret-file'
    call POST $CHAT '{"messages": [{"role": "user", "content": "a"}], "kv_transfer_params": {"do_remote_prefill": true}}'
    expect_error 400 '--kv-secret-file'
    call POST $TEXT '{"prompt": "a", "max_tokens": 2, "kv_transfer_params": {"do_remote_prefill": false}}'
    expect_code 200
    stop_server
    start_pod p
    call POST $TEXT '{"prompt": ["a", "b"], "kv_transfer_params": {"do_remote_decode": true}}'
    expect_error 400 'want one prompt, got 2'
    call POST $TEXT '{"prompt": "a", "kv_transfer_params": {"do_remote_decode": true, "do_remote_prefill": true}}'
    expect_error 400 'both true'
    call POST $TEXT '{"prompt": "a", "kv_transfer_params": {"do_remote_decode": "yes"}}'
    expect_error 400 'do_remote_decode: want a boolean'
    stop_pods p
}

run_cases llmd from_tp_2_to_pp_2_answers_are_the_same from_pp_2_to_one_rank_answers_are_the_same \
    from_one_rank_to_tp_2_answers_are_the_same from_pools_to_a_pod_answers_are_the_same \
    many_at_once_are_answered_alike a_pod_may_be_its_own_prefiller \
    what_is_told_between_the_legs_is_what_routers_know a_stream_tells_it_in_the_chunk_that_ends_it \
    what_was_changed_on_its_way_is_not_taken blocks_of_another_secret_model_or_time_are_not_taken \
    a_pod_that_is_killed_between_the_legs_costs_no_wrong_answer what_cannot_be_asked_is_refused_by_name
