#!/bin/bash
# A super pod on one machine: the same bits at every shape, who is in it, what it does when a member
# is lost or wrong, and that strangers at its join port do it no harm.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

# ---- the same bits -------------------------------------------------------------------------------

tokens() { # count vocabulary seed
    awk -v n="$1" -v v="$2" -v s="$3" 'BEGIN {
        for (i = 0; i < n; i++) { s = (s * 16807 + 11) % 2147483647; printf "%s%d", i ? "," : "", s % v }
    }'
}
logits() { # file model tokens option...
    superpod inspect logits --model "$2" --tokens "$3" --out "$1" "${@:4}"
    expect_ok
}
expect_logits() { # model tokens option...: as $DIR/alone
    logits "$DIR/logits" "$@"
    expect_same_file "logits with ${*:3}" "$DIR/logits" "$DIR/alone"
}

logits_of_podling_are_the_same_at_every_shape() {
    local ids shape
    ids=$(tokens 70 2048 5)
    logits "$DIR/alone" $PODLING "$ids"
    for shape in "2 1" "4 1" "8 1" "1 2" "1 3" "1 4" "2 2" "2 3" "4 2" "8 4" "2 6"; do
        # shellcheck disable=SC2086 # two words
        set -- $shape
        expect_logits $PODLING "$ids" --tp "$1" --pp "$2"
    done
}
logits_are_the_same_however_the_layers_and_the_prompt_are_cut() {
    local ids
    ids=$(tokens 70 2048 6)
    logits "$DIR/alone" $PODLING "$ids"
    expect_logits $PODLING "$ids" --tp 2 --pp 2 --pp-layers 1,5
    expect_logits $PODLING "$ids" --pp 3 --pp-layers 3,1,2
    expect_logits $PODLING "$ids" --tp 2 --pp 2 --max-num-batched-tokens 7
    expect_logits $PODLING "$ids" --tp 4 --pp 2 --max-num-batched-tokens 7 --pp-layers 4,2
    expect_logits $PODLING "$ids" --tp 2 --pp 3 --max-num-batched-tokens 512
    expect_logits $PODLING "$ids" --tp 2 --pp 2 --block-size 8 --threads 2 --backend ref
}
logits_are_the_same_by_each_kind_of_collectives() {
    local ids
    ids=$(tokens 40 2048 7)
    logits "$DIR/alone" $PODLING "$ids"
    expect_logits $PODLING "$ids" --tp 2 --pp 2 --collectives shm
    superpod inspect logits --model $PODLING --tokens "$ids" --out "$DIR/logits" --tp 2 --pp 2 --collectives ucx
    if [ "$STATUS" != 0 ] && [[ $ERR == *libucp* ]]; then
        skip "no UCX here: shm was compared, ucx was not"
    fi
    expect_ok
    expect_same_file "logits with ucx" "$DIR/logits" "$DIR/alone"
    expect_logits $PODLING "$ids" --tp 4 --collectives ucx
    expect_logits $PODLING "$ids" --pp 3 --collectives ucx --max-num-batched-tokens 7
}
logits_of_the_goldens_are_the_same() {
    local family ids
    for family in llama2 llama3.1 llama-bias; do
        ids=$(jq -r '.sequences[0] | join(",")' "$GOLDENS/$family/golden.json")
        logits "$DIR/alone" "$GOLDENS/$family" "$ids"
        expect_logits "$GOLDENS/$family" "$ids" --tp 2 --pp 2
        expect_logits "$GOLDENS/$family" "$ids" --tp 4 --pp 3 --max-num-batched-tokens 7
        expect_logits "$GOLDENS/$family" "$ids" --pp 4
        # More ranks than KV heads: some hold the same one.
        expect_logits "$GOLDENS/$family" "$ids" --tp 8
    done
}

run_ids() { # option...
    superpod run --model $PODLING --raw --ids --ignore-eos --max-tokens 30 --tokens "$(tokens 11 2048 8)" "$@"
    expect_ok
    jq -e 'length == 30' "$DIR/out" >/dev/null || fail "not 30 ids: ${OUT:0:300}"
    jq -c . "$DIR/out"
}
ids_are_the_same_greedy_and_drawn() {
    local greedy drawn shape
    greedy=$(run_ids --temperature 0)
    drawn=$(run_ids --temperature 1 --seed 41)
    [ "$drawn" != "$(run_ids --temperature 1 --seed 42)" ] || fail "two seeds draw the same"
    for shape in "2 1" "1 3" "2 2" "4 3"; do
        # shellcheck disable=SC2086 # two words
        set -- $shape
        expect_eq "greedy ids at tp $1 pp $2" "$(run_ids --temperature 0 --tp "$1" --pp "$2")" "$greedy"
        expect_eq "drawn ids at tp $1 pp $2" "$(run_ids --temperature 1 --seed 41 --tp "$1" --pp "$2")" "$drawn"
    done
}
requests_at_once_are_answered_as_alone() {
    local i pids=() steps
    for i in 1 2 3 4 5 6 7 8; do
        superpod run --model $PODLING --raw --ids --ignore-eos --max-tokens 200 --temperature 1 --seed "$i" \
            --tokens "$(tokens $((i * 9)) 2048 "$i")"
        expect_ok
        jq -c . "$DIR/out" >"$DIR/alone-$i"
        jq -nc --argjson ids "[$(tokens $((i * 9)) 2048 "$i")]" --argjson seed "$i" '{prompt: $ids, seed: $seed,
            temperature: 1, max_tokens: 200, ignore_eos: true, return_token_ids: true}' >"$DIR/request-$i"
    done
    start_server --model $PODLING --tp 2 --pp 2 --max-num-batched-tokens 32
    for i in 1 2 3 4 5 6 7 8; do
        curl -sS -m $((50 * SLOW)) -o "$DIR/answer-$i" -H 'Content-Type: application/json' \
            --data-binary "@$DIR/request-$i" "$URL/v1/completions" &
        pids+=($!)
    done
    wait "${pids[@]}"
    for i in 1 2 3 4 5 6 7 8; do
        expect_eq "the ids of request $i" "$(jq -c '.choices[0].token_ids' "$DIR/answer-$i")" "$(cat "$DIR/alone-$i")"
    done
    steps=$(metric superpod:engine_steps_total)
    [ "$steps" -le 1400 ] || fail "$steps steps for 1600 tokens: they hardly ran together, the case proves nothing"
    stop_server
}

# ---- who is in it --------------------------------------------------------------------------------

FOUR=(--tp 2 --pp 2)
pod_status() { # the JSON, in $DIR/body and BODY
    superpod status --json --url "$URL"
    expect_ok
    cp "$DIR/out" "$DIR/body"
    BODY=$OUT
}
probe() { # --ready|--live|--startup: its exit status
    local status=0
    timeout $((5 * SLOW)) "$SUPERPOD" probe "$1" --url "$URL" --timeout 1 >"$DIR/probe" 2>&1 || status=$?
    echo $status
}
probes() { echo "$(probe --startup) $(probe --ready) $(probe --live)"; }

four_ranks_are_listed() {
    local pid
    start_server --model $PODLING "${FOUR[@]}"
    pod_status
    expect_jq '[.ranks[] | [.rank, .stage, .tp_rank, .layers, .state]] == [
        [0, 0, 0, [0, 2], "active"], [1, 0, 1, [0, 2], "active"],
        [2, 1, 0, [3, 5], "active"], [3, 1, 1, [3, 5], "active"]]'
    expect_jq '.tp == 2 and .pp == 2 and (.nodes | length == 1) and .nodes[0].ranks == 4'
    expect_jq '[.ranks[].pid] | unique | length == 4'
    for pid in $(answer '.ranks[].pid, .head.pid'); do
        session "$SERVER" | awk -v p="$pid" '$1 == p { f = 1 } END { exit !f }' ||
            fail "process $pid of the status is not in the session: $(session "$SERVER")"
    done
    superpod status --url "$URL"
    expect_ok
    expect_eq "ranks of the table" "$(grep -c ' active$' "$DIR/out")" 5 # and one agent
    stop_server
    superpod status --url "$URL"
    expect_refused 20 "$PORT"
}
held() { [ "$(metric 'vllm:num_requests_running')" = "${1:-1}" ]; }
probes_say_before_during_draining_and_after() {
    spawn_server --model $PODLING "${FOUR[@]}" --backend ref --threads 1
    expect_match "probes while it starts" "$(probes)" '^[01] [01] [01]$'
    wait_for 20 ready_or_ended || fail "not healthy"
    expect_eq "startup, ready, live while it serves" "$(probes)" "0 0 0"
    curl -sS -m $((50 * SLOW)) -o /dev/null -H 'Content-Type: application/json' "$URL/v1/completions" \
        -d '{"prompt": [5, 6], "max_tokens": 60, "ignore_eos": true}' &
    wait_for 5 held || fail "the request does not run"
    kill -TERM "$SERVER"
    wait_for 5 not_healthy || fail "ready while draining"
    expect_eq "startup, ready, live while draining" "$(probes)" "1 1 0"
    expect_end
    expect_eq "exit status" "$EXIT" 0
    expect_eq "startup, ready, live after the end" "$(probes)" "1 1 1"
    wait
}
not_healthy() { ! healthy "$URL"; }
a_head_that_hangs_is_not_alive() {
    local head
    start_server --model $PODLING "${FOUR[@]}"
    pod_status
    head=$(answer .head.pid)
    kill -STOP "$head"
    expect_eq "startup, ready, live" "$(probes)" "1 1 1"
    kill -CONT "$head"
    expect_eq "startup, ready, live, awake again" "$(probes)" "0 0 0"
    stop_server
}
probes_and_status_want_sensible_words() {
    superpod probe
    expect_eq "status of a bare probe" "$STATUS" 2
    superpod probe --ready --live
    expect_eq "status of two probes" "$STATUS" 2
    superpod status --url
    expect_eq "status of an option without a value" "$STATUS" 2
    superpod status --url ftp://somewhere
    expect_refused 20 ftp
    superpod probe --live --url http://127.0.0.1:1
    expect_refused 1 127.0.0.1
}

# ---- who is lost ---------------------------------------------------------------------------------

killed_rank() { # rank
    local before
    start_server --model $PODLING "${FOUR[@]}"
    pod_status
    before=$(now_ms)
    kill -KILL "$(answer ".ranks[$1].pid")"
    expect_end
    [ $(($(now_ms) - before)) -lt $((10000 * SLOW)) ] || fail "took $(($(now_ms) - before)) ms to end"
    expect_eq "exit status" "$EXIT" 20
    expect_eq "lines of the agent about rank $1" "$(grep -c "rank $1 was killed by signal 9" "$LOG.err")" 1
    ! grep -E 'error' "$LOG.err" | grep -vq "rank $1\b" || fail "others are blamed: $(grep error "$LOG.err")"
}
any_killed_rank_ends_the_pod_with_20_and_is_named() {
    local rank
    for rank in 0 1 2 3; do killed_rank $rank; done
}
a_rank_killed_in_the_middle_of_a_stream_is_told_to_the_client() {
    start_server --model $PODLING "${FOUR[@]}" --backend ref --threads 1
    pod_status
    curl -sS -N -m $((50 * SLOW)) -o "$DIR/stream" -H 'Content-Type: application/json' "$URL/v1/completions" \
        -d '{"prompt": [5, 6], "max_tokens": 1800, "ignore_eos": true, "stream": true}' &
    local client=$!
    wait_for 10 grep -qs '"text":"[^"]' "$DIR/stream" || fail "no text came"
    kill -KILL "$(answer '.ranks[3].pid')"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    wait "$client" || true
    split_events "$DIR/stream"
    jq -se 'last.error.message | length > 0' "$DIR/events" >/dev/null || fail "no error event: $(tail -n 1 "$DIR/events")"
}
a_killed_head_ends_the_pod_with_20() {
    start_server --model $PODLING "${FOUR[@]}"
    pod_status
    kill -KILL "$(answer .head.pid)"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    grep -q 'head was killed by signal 9' "$LOG.err" || fail "the log does not name the head: $(tail -n 3 "$LOG.err")"
}
a_killed_agent_takes_all_along() {
    start_server --model $PODLING "${FOUR[@]}"
    kill -KILL "$SERVER"
    expect_end # nothing of its session is left
    expect_eq "exit status" "$EXIT" 137
}

a_pod_stopped_while_it_starts_leaves_nothing() {
    local delay_ms
    for delay_ms in 000 010 020 030 040 060 080; do
        spawn_server --model $PODLING "${FOUR[@]}"
        sleep "0.$delay_ms"
        # The shell's child may not be the server yet; a signal then ends it before it began.
        kill -TERM "$SERVER"
        expect_end
        expect_match "exit status ${delay_ms} ms after the start" "$EXIT" '^(0|143)$'
    done
}
rank_2_is_there() {
    RANK=$(ps -o pid=,args= --sid "$SERVER" | awk '/superpod: rank 2/ { print $1; exit }')
    [ -n "$RANK" ]
}
a_rank_killed_while_it_starts_is_named() {
    local delay_ms RANK
    for delay_ms in 000 010 020 030; do
        spawn_server --model $PODLING "${FOUR[@]}"
        wait_for 5 rank_2_is_there || fail "no rank 2"
        sleep "0.$delay_ms"
        kill -KILL "$RANK"
        expect_end
        expect_eq "exit status ${delay_ms} ms after its start" "$EXIT" 20
        grep -q 'rank 2 was killed by signal 9' "$LOG.err" || fail "it is not named: $(cat "$LOG.err")"
    done
}

# What may outlive processes: files in shared memory, System V segments, and our own processes.
traces() {
    find /dev/shm -mindepth 1 | sort
    ipcs -m -q -s | awk '/^0x/'
}
nothing_stays_whatever_ended_it() {
    local signal how
    traces >"$DIR/before"
    for how in "TERM auto" "KILL auto" "TERM ucx" "KILL ucx"; do
        signal=${how% *}
        start_server --model $PODLING "${FOUR[@]}" --collectives "${how#* }"
        call POST /v1/completions '{"prompt": [5, 6], "max_tokens": 4}'
        expect_code 200
        kill -"$signal" "$SERVER"
        expect_end
        traces >"$DIR/after"
        expect_same_file "traces after SIG$how: $(diff "$DIR/after" "$DIR/before")" "$DIR/after" "$DIR/before"
    done
    superpod run --model $PODLING "${FOUR[@]}" --raw --tokens 1,2 --max-tokens 2 --collectives ucx
    superpod run --model $PODLING "${FOUR[@]}" --raw --tokens 1,2 --max-tokens 2
    expect_ok
    traces >"$DIR/after"
    expect_same_file "traces after runs" "$DIR/after" "$DIR/before"
}
memory_files() { # pid...: how many memfds each has open
    local pid
    for pid in "$@"; do find "/proc/$pid/fd" -lname '/memfd:*' | wc -l; done | paste -sd' '
}
requests_leave_no_memory_files() {
    local before i pids
    start_server --model $PODLING "${FOUR[@]}"
    pod_status
    mapfile -t pids < <(answer '.head.pid, .nodes[0].pid, .ranks[].pid')
    expect_eq "processes" "${#pids[@]}" 6
    call POST /v1/completions '{"prompt": [5, 6], "max_tokens": 4}'
    before=$(memory_files "${pids[@]}")
    for i in 1 2 3 4 5; do call POST /v1/completions "{\"prompt\": [$i, 6], \"max_tokens\": 4}"; done
    expect_eq "memory files of each process" "$(memory_files "${pids[@]}")" "$before"
    stop_server
}

# ---- what does not fit ---------------------------------------------------------------------------

refused_serve() { # status regex -- option...
    local status=$1 regex=$2
    shift 3
    superpod serve --port "$(free_port)" --log-level error "$@"
    expect_refused "$status" "$regex"
}
shapes_that_do_not_fit_are_refused() {
    refused_serve 10 '3 does not divide the 8 .*heads.* 1, 2, 4, 8' -- --model $PODLING --tp 3
    refused_serve 10 '16 does not divide the 8 .*heads' -- --model $PODLING --tp 16
    refused_serve 10 'is 7, want 1 to 6' -- --model $PODLING --pp 7
    refused_serve 10 'add up to 5 layers, the model has 6' -- --model $PODLING --pp 2 --pp-layers 2,3
    refused_serve 10 "pp-layers is '6', want 2" -- --model $PODLING --pp 2 --pp-layers 6
    refused_serve 10 "pp-layers is '0,6'" -- --model $PODLING --pp 2 --pp-layers 0,6
    refused_serve 10 '4 ranks .*there is 1 slot$' -- --model $PODLING --tp 2 --pp 2 --slots 1
    refused_serve 2 'tensor-parallel-size.*want 1 to 64, got 0' -- --model $PODLING --tp 0
    refused_serve 2 'collectives.*want auto, nccl, shm or ucx' -- --model $PODLING --collectives pigeon
    superpod inspect logits --model $PODLING --tokens 1 --out "$DIR/logits" --tp 3
    expect_refused 10 'does not divide'
    superpod run --model $PODLING --raw --tokens 1 --pp 9
    expect_refused 10 'is 9, want 1 to 6'
}

# A head at $JOIN that waits for workers, in the background as SERVER.
TOKEN=
make_token() { # name
    openssl rand -hex 32 >"$DIR/${1:-token}"
    chmod 600 "$DIR/${1:-token}"
}
spawn_head() { # option...
    [ -n "$TOKEN" ] || { TOKEN=$DIR/token && make_token; }
    JOIN=$(free_port)
    spawn_server --model $PODLING --role head --head-port "$JOIN" --token-file "$TOKEN" "$@"
    wait_for 5 listening_or_ended || fail "no head at port $JOIN"
}
listening_or_ended() { listening "$JOIN" || ended "$SERVER"; }
# A worker in the background: WORKER; what it says in $DIR/worker.err.
spawn_worker() { # option...
    env --default-signal=INT,QUIT,TERM setsid "${BINARY:-$SUPERPOD}" serve --role worker --log-level error \
        --head "127.0.0.1:$JOIN" --token-file "$TOKEN" --join-timeout 10 "$@" >"$DIR/worker.out" 2>"$DIR/worker.err" </dev/null &
    WORKER=$!
    echo "$WORKER" >>"$DIR/servers"
}
expect_worker() { # status [regex]: it ends so, in one line
    local status=0
    wait_for 20 ended "$WORKER" || fail "the worker is still there"
    wait "$WORKER" || status=$?
    expect_eq "exit status of the worker ($(cat "$DIR/worker.err"))" "$status" "$1"
    wait_for 2 session_is_empty "$WORKER" || fail "left behind: $(session "$WORKER")"
    [ $# = 1 ] || expect_match "the worker's words" "$(cat "$DIR/worker.err")" "$2"
    [ $# = 1 ] || expect_eq "lines of the worker: $(cat "$DIR/worker.err")" "$(wc -l <"$DIR/worker.err")" 1
}
start_pair() { # a pod of a head and one worker, two ranks each
    spawn_head "${FOUR[@]}" --nnodes 2 --join-timeout 10
    spawn_worker
    wait_for 20 ready_or_ended || fail "not healthy: $(tail -n 3 "$LOG.err" "$DIR/worker.err")"
    ! ended "$SERVER" || fail "the head ended: $(tail -n 3 "$LOG.err")"
}

a_worker_joins_and_leaves_with_the_head() {
    local want
    want=$(run_ids --temperature 0)
    start_pair
    pod_status
    expect_jq '[.nodes[] | [.agent, .ranks]] == [[0, 2], [1, 2]] and ([.ranks[].agent] == [0, 0, 1, 1])'
    call POST /v1/completions "{\"prompt\": [$(tokens 11 2048 8)], \"temperature\": 0, \"max_tokens\": 30,
        \"ignore_eos\": true, \"return_token_ids\": true}"
    expect_eq "the ids" "$(answer '.choices[0].token_ids | @json')" "$want"
    stop_server
    expect_worker 0
    ! listening "$JOIN" || fail "the join port is still open"
}
a_lost_worker_ends_the_pod_with_20_and_is_named() {
    start_pair
    kill -KILL "$WORKER"
    expect_end
    expect_eq "exit status of the head" "$EXIT" 20
    grep -qE 'agent 1 .*lost|rank [23]' "$LOG.err" || fail "nobody is named: $(tail -n 5 "$LOG.err")"
    wait_for 5 session_is_empty "$WORKER" || fail "left of the worker: $(session "$WORKER")"
}
a_killed_rank_of_a_worker_ends_the_pod_with_20_and_is_named() {
    start_pair
    pod_status
    kill -KILL "$(answer '.ranks[3].pid')"
    expect_end
    expect_eq "exit status of the head" "$EXIT" 20
    grep -q "rank 3" "$LOG.err" || fail "rank 3 is not named: $(tail -n 5 "$LOG.err")"
    expect_worker 20
}
a_lost_head_ends_its_workers_with_20() {
    start_pair
    kill -KILL "$SERVER"
    expect_end
    expect_worker 20 'head'
}
a_worker_that_does_not_come_is_told() {
    spawn_head --pp 2 --nnodes 2 --join-timeout 2
    expect_end
    expect_eq "exit status" "$EXIT" 20
    grep -q '1 of 2 agents joined within 2 s' "$LOG.err" || fail "it says: $(tail -n 3 "$LOG.err")"
    JOIN=$(free_port)
    spawn_worker --join-timeout 1
    expect_worker 20 "no head at 127.0.0.1:$JOIN within 1 s"
}
a_head_that_waits_stops_on_a_signal_and_its_workers_with_it() {
    spawn_head --pp 3 --nnodes 3 --join-timeout 50
    spawn_worker
    wait_for 10 grep -q 'joined from' "$LOG.err" || fail "the worker did not join"
    stop_server
    expect_worker 0
}
a_worker_that_waits_stops_on_a_signal() {
    TOKEN=$DIR/token && make_token
    JOIN=$(free_port)
    spawn_worker --log-level info
    wait_for 10 grep -q 'waiting for the head' "$DIR/worker.err" || fail "it does not wait: $(cat "$DIR/worker.err")"
    kill -TERM "$WORKER"
    expect_worker 143
}
more_agents_than_there_can_be_are_refused() {
    TOKEN=$DIR/token && make_token
    refused_serve 10 '4096 agents.*at most 512' -- --model $PODLING --role head --nnodes 4096 --token-file "$TOKEN" --join-timeout 2
}
tokens_that_are_none_are_refused() {
    local head=(--model "$PODLING" --pp 2 --role head --nnodes 2 --join-timeout 2)
    make_token
    refused_serve 10 'no pod token: give --token-file' -- "${head[@]}"
    refused_serve 10 "$DIR/none.*No such file" -- "${head[@]}" --token-file "$DIR/none"
    chmod 644 "$DIR/token"
    refused_serve 10 'mode 0644, want 0600' -- "${head[@]}" --token-file "$DIR/token"
    refused_serve 10 'mode 0644, want 0600' -- --role worker --head 127.0.0.1:9 --token-file "$DIR/token"
    echo short >"$DIR/bad" && chmod 600 "$DIR/bad"
    refused_serve 10 'want 64' -- "${head[@]}" --token-file "$DIR/bad"
    refused_serve 10 'no pod token' -- --role worker --head 127.0.0.1:9
    refused_serve 10 'needs --head' -- --role worker
}
other_build() { # file: this binary, but for one bit of its build id
    local id at
    id=$(readelf -n "$SUPERPOD" 2>/dev/null | awk '/Build ID/ { print $3 }')
    [ -n "$id" ] || skip "no readelf here, or no build id"
    cp "$SUPERPOD" "$1"
    at=$(readelf -SW "$1" | awk '{ for (i = 1; i <= NF; i++) if ($i == ".note.gnu.build-id") print $(i + 3) }')
    # After the note's head and name: twelve and four bytes.
    printf '\x5a\xa5' | dd of="$1" bs=1 seek=$((0x$at + 16)) conv=notrunc status=none
    [ "$(readelf -n "$1" | awk '/Build ID/ { print $3 }')" != "$id" ] || fail "the build id was not changed"
}
wrong_workers_are_refused_and_the_pod_still_forms() {
    local workers=()
    spawn_head "${FOUR[@]}" --nnodes 3 --join-timeout 30
    other_build "$DIR/other"
    BINARY=$DIR/other spawn_worker
    expect_worker 10 'build is .* wants'
    make_token wrong
    TOKEN=$DIR/wrong spawn_worker
    expect_worker 10 'token'
    spawn_worker --rank 1
    workers+=("$WORKER")
    wait_for 5 grep -q 'joined from' "$LOG.err" || fail "the first worker did not join"
    spawn_worker --rank 1
    expect_worker 10 'another agent has this number'
    spawn_worker --rank 2
    workers+=("$WORKER")
    wait_for 20 ready_or_ended || fail "not healthy: $(tail -n 3 "$LOG.err")"
    spawn_worker
    expect_worker 10 'the pod is complete'
    pod_status
    expect_jq '.refused.build == 1 and .refused.token == 1 and [.ranks[].agent] == [0, 0, 1, 2]'
    expect_eq "lines of refusal" "$(grep -c 'warn .*refused' "$LOG.err")" 4
    call POST /v1/completions '{"prompt": [5, 6], "max_tokens": 4}'
    expect_code 200
    stop_server
    for WORKER in "${workers[@]}"; do
        wait_for 10 ended "$WORKER" || fail "a worker stays"
        wait "$WORKER" || fail "a worker ended with $?"
    done
}
a_worker_with_another_model_is_refused() {
    spawn_head "${FOUR[@]}" --nnodes 2 --join-timeout 10
    mkdir -p "$DIR/elsewhere/configs"
    cp -r $PODLING "$DIR/elsewhere/configs/podling"
    # One weight of another value.
    printf '\x01\x3f' | dd of="$DIR/elsewhere/configs/podling/model.safetensors" bs=1 conv=notrunc status=none \
        seek=$(($(od -An -tu8 -N8 "$PODLING/model.safetensors") + 8))
    BINARY=$(realpath "$SUPERPOD")
    TOKEN=$(realpath "$TOKEN")
    cd "$DIR/elsewhere"
    spawn_worker
    cd - >/dev/null
    expect_end
    expect_eq "exit status of the head" "$EXIT" 10
    grep -qE 'rank [23]: .*another model than the head' "$LOG.err" || fail "it says: $(tail -n 4 "$LOG.err")"
    expect_worker 10
}
too_few_slots_at_a_worker_are_told() {
    spawn_head "${FOUR[@]}" --nnodes 2 --join-timeout 10
    spawn_worker --slots 1
    expect_end
    expect_eq "exit status of the head" "$EXIT" 10
    grep -q 'it has 1 slots\?' "$LOG.err" || fail "it says: $(tail -n 3 "$LOG.err")"
    expect_worker 10 'slot'
}

# ---- strangers at the join port ------------------------------------------------------------------

at_door() { # file: sends it, and waits for the end of the connection
    local conn
    exec {conn}<>"/dev/tcp/127.0.0.1/$JOIN" || fail "nobody is at the door"
    (trap '' PIPE && cat "$1" >&"$conn") 2>/dev/null || true
    timeout $((8 * SLOW)) cat <&"$conn" >"$DIR/reply" 2>/dev/null || [ $? != 124 ] || fail "the door holds a stranger"
    exec {conn}>&-
}
refusals() { # of every kind
    pod_status
    answer '[.refused[]] | add'
}
strangers_at_the_door_do_no_harm() {
    start_pair
    head -c 100000 /dev/zero | tr '\0' 'x' >"$DIR/oversized"
    printf 'GET / HTTP/1.1\r\n\r\n' >"$DIR/http"
    # HELLO's header with lengths that are none, and one that ends in the middle.
    printf '\x53\x50\x44\x31\x01\x00\x01\x00\xff\xff\xff\xff\x00\x00\x00\x00' >"$DIR/huge"
    printf '\x53\x50\x44\x31\x01\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00' >"$DIR/out-of-order"
    printf '\x53\x50\x44\x31\x63\x00\x01\x00\x68\x00\x00\x00\x00\x00\x00\x00' >"$DIR/version"
    local name n=0 before silent
    exec {silent}<>"/dev/tcp/127.0.0.1/$JOIN" # it says nothing, and has five seconds for that
    for name in oversized http huge out-of-order version; do
        before=$(grep -c 'warn .*door: refused' "$LOG.err" || true)
        at_door "$DIR/$name"
        n=$((n + 1))
        expect_eq "refused after '$name'" "$(refusals)" $n
        expect_eq "lines about '$name'" $(($(grep -c 'warn .*door: refused' "$LOG.err") - before)) 1
    done
    expect_jq '.refused.version == 1 and .refused.garbage == 4'
    call POST /v1/completions '{"prompt": [5, 6], "max_tokens": 4}'
    expect_code 200
    timeout $((8 * SLOW)) cat <&"$silent" >"$DIR/reply" 2>/dev/null || [ $? != 124 ] || fail "the door holds a silent stranger"
    exec {silent}>&-
    expect_eq "refused after silence" "$(refusals)" $((n + 1))
    expect_jq '.refused.slow == 1'
    stop_server
    expect_worker 0
}
a_replayed_handshake_is_refused() {
    command -v python3 >/dev/null || skip "no python3: nothing records a handshake"
    spawn_head --pp 2 --nnodes 2 --join-timeout 20
    # A relay that writes down what the guest says; the guest is the pod's own worker.
    local relay
    relay=$(free_port)
    timeout 50 python3 - "$relay" "$JOIN" "$DIR/said" <<'END' &
import socket, sys, threading
relay, join, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
server = socket.create_server(("127.0.0.1", relay))
def pump(a, b, keep):
    while data := a.recv(65536):
        if keep: keep.write(data), keep.flush()
        b.sendall(data)
    try: b.shutdown(socket.SHUT_WR)
    except OSError: pass
n = 0
while True:
    guest, _ = server.accept()
    head = socket.create_connection(("127.0.0.1", join))
    threading.Thread(target=pump, args=(guest, head, open(f"{path}-{n}", "wb")), daemon=True).start()
    threading.Thread(target=pump, args=(head, guest, None), daemon=True).start()
    n += 1
END
    local relay_pid=$! door=$JOIN
    echo "$relay_pid" >>"$DIR/servers"
    wait_for 5 listening "$relay" || fail "no relay"
    JOIN=$relay spawn_worker
    wait_for 20 ready_or_ended || fail "not healthy: $(tail -n 3 "$LOG.err" "$DIR/worker.err")"
    JOIN=$door
    local before file said=0
    before=$(refusals)
    for file in "$DIR"/said-*; do
        [ -s "$file" ] || continue # our own look whether it listens
        said=$((said + 1))
        at_door "$file"
        expect_eq "refused after a replay" "$(refusals)" $((before + said))
    done
    [ $said -ge 2 ] || fail "the relay saw no agent and rank: the case proves nothing"
    expect_jq ".refused.token == $said"
    call POST /v1/completions '{"prompt": [5, 6], "max_tokens": 4}'
    expect_code 200
    stop_server
    expect_worker 0
    kill "$relay_pid"
}

run_cases pod logits_of_podling_are_the_same_at_every_shape \
    logits_are_the_same_however_the_layers_and_the_prompt_are_cut \
    logits_are_the_same_by_each_kind_of_collectives logits_of_the_goldens_are_the_same \
    ids_are_the_same_greedy_and_drawn requests_at_once_are_answered_as_alone four_ranks_are_listed \
    probes_say_before_during_draining_and_after a_head_that_hangs_is_not_alive \
    probes_and_status_want_sensible_words any_killed_rank_ends_the_pod_with_20_and_is_named \
    a_rank_killed_in_the_middle_of_a_stream_is_told_to_the_client a_killed_head_ends_the_pod_with_20 \
    a_killed_agent_takes_all_along a_pod_stopped_while_it_starts_leaves_nothing \
    a_rank_killed_while_it_starts_is_named nothing_stays_whatever_ended_it requests_leave_no_memory_files \
    shapes_that_do_not_fit_are_refused a_worker_joins_and_leaves_with_the_head \
    a_lost_worker_ends_the_pod_with_20_and_is_named \
    a_killed_rank_of_a_worker_ends_the_pod_with_20_and_is_named a_lost_head_ends_its_workers_with_20 \
    a_worker_that_does_not_come_is_told a_head_that_waits_stops_on_a_signal_and_its_workers_with_it \
    a_worker_that_waits_stops_on_a_signal \
    more_agents_than_there_can_be_are_refused tokens_that_are_none_are_refused \
    wrong_workers_are_refused_and_the_pod_still_forms a_worker_with_another_model_is_refused \
    too_few_slots_at_a_worker_are_told strangers_at_the_door_do_no_harm a_replayed_handshake_is_refused
