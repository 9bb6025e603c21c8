#!/bin/bash
# One pod over several hosts: started by mpirun, or by hand with a head and workers that dial it, or
# with the variables that Kubernetes controllers set. The tokens are those of one process alone, a
# TERM drains, and nothing stays.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/hosts_lib.sh
source tests/e2e/hosts_lib.sh

CLIENT=h0
curl() { on "$CLIENT" curl "$@"; } # whatever asks, asks from there
URL=http://10.77.0.10:8000
PROMPT=5,6,7,300,12,44,1027,9,81,640,2,17
declare -A NODE # host: pid of its agent
WITH=()         # variables of the agents that start next, NAME=VALUE

need_pod() {
    superpod serve --help
    [[ $OUT == *--nnodes* ]] || skip "this build serves on one node only"
}
make_token() {
    openssl rand -hex 32 >"$DIR/${1:-token}"
    chmod 600 "$DIR/${1:-token}"
}

# node HOST OPTION...: an agent on it; what it says is in $DIR/HOST.err.
node() {
    local host=$1
    shift
    env --default-signal=INT,QUIT,TERM "${WITH[@]}" setsid "$HOSTS/on" "$host" "$SUPERPOD" serve "$@" \
        >"$DIR/$host.out" 2>"$DIR/$host.err" </dev/null &
    NODE[$host]=$!
    echo $! >>"$DIR/servers"
}
said() { tail -n 4 "$DIR"/*.err 2>/dev/null | cut -c1-300; }
all_here() {
    local host
    for host in "${!NODE[@]}"; do ! ended "${NODE[$host]}" || return 1; done
}
pod_ready_or_broken() { healthy "$URL" || ! all_here; }
wait_ready() {
    wait_for 30 pod_ready_or_broken || fail "not healthy after $((30 * SLOW)) s: $(said)"
    all_here || fail "an agent ended: $(said)"
}

ids_alone() {
    superpod run --model $PODLING --raw --ids --ignore-eos --temperature 0 --tokens $PROMPT --max-tokens 40
    expect_ok
    jq -c . "$DIR/out"
}
BODY_IDS="{\"prompt\": [$PROMPT], \"temperature\": 0, \"max_tokens\": 40, \"ignore_eos\": true, \"return_token_ids\": true}"
expect_ids() { # want
    call POST /v1/completions "$BODY_IDS"
    expect_code 200
    expect_eq "the token ids asked from $CLIENT" "$(answer '.choices[0].token_ids | tojson')" "$1"
}
expect_capital() {
    call POST /v1/chat/completions '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'
    expect_code 200
    expect_jq '.choices[0].message.content == "The capital of France is Paris."'
}
check_answers() {
    local want host
    want=$(ids_alone)
    for host in h0 h1; do # the head's own host, and another
        CLIENT=$host
        expect_ids "$want"
    done
    CLIENT=h0
    expect_capital
}

# A stream that runs while the pod is told to end is finished first.
start_stream() {
    curl -sS -N -m $((60 * SLOW)) -H 'Content-Type: application/json' -o "$DIR/stream" "$URL/v1/completions" \
        -d "{\"prompt\": [$PROMPT], \"temperature\": 0, \"max_tokens\": 600, \"ignore_eos\": true, \"stream\": true}" &
    STREAM=$!
    wait_for 20 test -s "$DIR/stream" || fail "no stream: $(said)"
}
expect_whole_stream() {
    wait "$STREAM" || fail "the stream broke: $(tail -c 300 "$DIR/stream")"
    expect_eq "the end of the stream" "$(grep '^data: ' "$DIR/stream" | tail -n 1)" "data: [DONE]"
}
nobody_left() { [ -z "$(hosts_pids)" ]; }
expect_nobody_left() {
    wait_for 5 nobody_left || fail "left behind: $(for p in $(hosts_pids); do tr '\0' ' ' <"/proc/$p/cmdline"; done)"
}
all_ended() {
    local host
    for host in "${!NODE[@]}"; do ended "${NODE[$host]}" || return 1; done
}
expect_all_end_with_0() {
    local host status
    wait_for 30 all_ended || fail "still there $((30 * SLOW)) s after the drain: $(said)"
    for host in "${!NODE[@]}"; do
        status=0
        wait "${NODE[$host]}" || status=$?
        [ "$status" = 0 ] || fail "$host ended with $status, want 0: $(said)"
    done
    expect_nobody_left
}
drain_and_end() {
    start_stream
    kill -TERM "${NODE[h0]}"
    expect_whole_stream
    expect_all_end_with_0
}

# ---- the hosts themselves ------------------------------------------------------------------------

# "refused" is an answer; a host behind a cut wire gives none.
knock() { on "$1" timeout 1 bash -c "exec 3<>/dev/tcp/$2/9" 2>&1; }

hosts_have_names_and_reach_each_other() {
    hosts_up 3
    local host
    for host in h0 h1 h2; do
        expect_eq "the name of $host" "$(on $host hostname)" $host
        expect_match "a knock from $host" "$(knock $host h1 || true)" 'refused'
    done
    [ "$(hostname)" != h0 ] || fail "the machine itself was renamed"
    host_cut h1
    [[ $(knock h0 h1 || true) != *refused* ]] || fail "h1 answers behind a cut wire"
    expect_match "a knock at h2" "$(knock h0 h2 || true)" 'refused'
    host_heal h1
    # The neighbour that did not answer is forgotten after a moment.
    healed() { [[ $(knock h0 h1 || true) == *refused* ]]; }
    wait_for 10 healed || fail "h1 does not answer after the wire is back"
}
mpirun_starts_one_process_on_each_host() {
    hosts_up 3
    hosts_mpirun h0
    "${MPIRUN[@]}" -n 3 bash -c 'echo "$OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE on $(hostname)"' >"$DIR/out" 2>"$DIR/err" ||
        fail "mpirun: $(tail -n 5 "$DIR/err")"
    expect_eq "who runs where" "$(sort "$DIR/out" | paste -sd,)" "0 of 3 on h0,1 of 3 on h1,2 of 3 on h2"
    hosts_mpirun h0 2
    "${MPIRUN[@]}" -n 6 --map-by node hostname >"$DIR/out" 2>"$DIR/err" || fail "mpirun: $(tail -n 5 "$DIR/err")"
    expect_eq "two a host" "$(sort "$DIR/out" | uniq -c | awk '{ print $1 $2 }' | paste -sd,)" "2h0,2h1,2h2"
    expect_nobody_left
}
mpirun_lets_the_others_go_on_when_one_is_killed() {
    hosts_up 2
    hosts_mpirun h0
    # The one waits for the other to be there before it dies; mpirun may lose words of a job that
    # breaks in its first moments.
    cat >"$DIR/task" <<'END'
cd "$1" || exit 1
if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then
    until [ -e there ]; do sleep 0.05; done
    echo $$ >victim
    kill -KILL $$
fi
touch there
until [ -s victim ] && ! kill -0 "$(cat victim)"; do sleep 0.05; done 2>/dev/null
sleep 1.5 # by then mpirun would have ended us
echo "still here"
END
    "${MPIRUN[@]}" -n 2 bash "$DIR/task" "$DIR" >"$DIR/out" 2>"$DIR/err" || fail "mpirun ended with $?: $(tail -n 5 "$DIR/err")"
    expect_eq "what the other says" "$(cat "$DIR/out")" "still here"
    expect_nobody_left
}
hosts_that_wait() { # a case that is killed by the next one
    hosts_up 2
    echo "$HOSTS_PREFIX" >"$DIR/up"
    on h1 sleep 1000
}
nothing_is_left_of_a_case_that_is_killed() {
    hosts_up 1 # skips where it cannot be
    local pid prefix
    mkdir "$DIR/inner"
    DIR=$DIR/inner E2E_CASE=hosts_that_wait setsid "$SELF" >"$DIR/log" 2>&1 </dev/null &
    pid=$!
    wait_for 10 test -s "$DIR/inner/up" || fail "no hosts: $(cat "$DIR/log")"
    prefix=$(cat "$DIR/inner/up")
    kill -KILL "$pid"
    gone() { [ -z "$(hosts_namespaces "$prefix")" ]; }
    wait_for 10 gone || fail "left: $(hosts_namespaces "$prefix" | paste -sd' ')"
    [ -n "$(hosts_namespaces "$HOSTS_PREFIX")" ] || fail "the hosts of another case went with it"
}

# ---- mpirun --------------------------------------------------------------------------------------

# The agent on a host: the one of our processes there whose parent is none of ours.
is_superpod() { [ "$(readlink "/proc/$1/exe" 2>/dev/null)" = "$(realpath "$SUPERPOD")" ]; }
agent_on() {
    local pid
    for pid in $(hosts_pids "$1"); do
        is_superpod "$pid" && ! is_superpod "$(awk '{ print $4 }' "/proc/$pid/stat")" && echo "$pid" && return
    done
    fail "no agent on $1: $(said)"
}
serve_by_mpirun() { # processes option...
    local n=$1
    shift
    hosts_mpirun h0
    env --default-signal=INT,QUIT,TERM setsid "${MPIRUN[@]}" -n "$n" "$SUPERPOD" serve --model $PODLING \
        --host 0.0.0.0 --port 8000 --access-log=false "$@" >"$DIR/mpirun.out" 2>"$DIR/mpirun.err" </dev/null &
    NODE[mpirun]=$!
    echo $! >>"$DIR/servers"
    wait_ready
}
check_mpirun() { # hosts option...
    need_pod
    hosts_up "$1"
    serve_by_mpirun "$@"
    check_answers
    start_stream
    # Not mpirun itself: a second after its own TERM it kills what is still there.
    kill -TERM "$(agent_on h0)"
    expect_whole_stream
    expect_all_end_with_0
}
mpirun_over_two_hosts_tp2_pp2() { check_mpirun 2 --tp 2 --pp 2; }
mpirun_over_two_hosts_tp2() { check_mpirun 2 --tp 2; }
mpirun_over_three_hosts_pp3() { check_mpirun 3 --pp 3; }
mpirun_over_three_hosts_tp2_pp3() { check_mpirun 3 --tp 2 --pp 3; }

# ---- a head, and workers that dial it ------------------------------------------------------------

head_of() { # hosts option...
    local n=$1
    shift
    node h0 --role head --nnodes "$n" --head-port 7000 --token-file "$DIR/token" --model $PODLING \
        --host 0.0.0.0 --port 8000 --access-log=false "$@"
}
worker() { node "$1" --role worker --head h0:7000 --token-file "$DIR/${2:-token}"; }

workers_that_start_first_wait_for_the_head() {
    need_pod
    hosts_up 3
    make_token
    worker h1
    worker h2
    # They say what they wait for, which also is how we know that they have tried.
    wait_for 10 grep -q 7000 "$DIR/h1.err" || fail "h1 does not say what it waits for: $(said)"
    wait_for 10 grep -q 7000 "$DIR/h2.err" || fail "h2 does not say what it waits for: $(said)"
    all_here || fail "a worker did not wait: $(said)"
    head_of 3 --pp 3
    wait_ready
    check_answers
    drain_and_end
}
# The prompt is computed on one host, its KV blocks go to the other by TCP.
prefill_on_one_host_and_decode_on_another_give_the_same_ids() {
    need_pod
    hosts_up 2
    make_token
    local length want ids
    head_of 2 --prefill-threshold-tokens 24 --pool name=p,role=prefill --pool name=d,role=decode
    worker h1
    wait_ready
    call GET /superpod/status
    expect_jq '[.ranks[] | [.host, .role]] == [["h0", "prefill"], ["h1", "decode"]]'
    for length in 20 200 600; do
        ids=$(awk -v n=$length 'BEGIN { for (i = 0; i < n; i++) printf "%s%d", i ? "," : "", (i * i * 7 + n) % 2048 }')
        superpod run --model $PODLING --raw --ids --ignore-eos --temperature 1 --seed 3 --max-tokens 30 --tokens "$ids"
        expect_ok
        want=$(jq -c . "$DIR/out")
        call POST /v1/completions "{\"prompt\": [$ids], \"temperature\": 1, \"seed\": 3, \"max_tokens\": 30,
            \"ignore_eos\": true, \"return_token_ids\": true}"
        expect_code 200
        expect_eq "ids of $length tokens" "$(answer '.choices[0].token_ids | tojson')" "$want"
    done
    expect_eq "requests prefilled elsewhere" "$(metric superpod:prefilled_elsewhere_total)" 2
    expect_eq "blocks pulled" "$(metric superpod:kv_blocks_pulled_total)" 49
    call POST /superpod/pools '{"pools": {"p": "mixed"}}' # from another machine, and there are no keys
    expect_code 403
    call GET /superpod/pools
    expect_jq '[.pools[].groups[].role] == ["prefill", "decode"]'
    drain_and_end
}
a_head_that_starts_first_waits_for_its_workers() {
    need_pod
    hosts_up 2
    make_token
    head_of 2 --tp 2 --pp 2
    wait_for 10 test -s "$DIR/h0.err" || fail "the head says nothing"
    ! healthy "$URL" || fail "healthy with a node missing"
    worker h1
    wait_ready
    check_answers
    drain_and_end
}
a_wrong_token_is_refused_and_hurts_nobody() {
    need_pod
    hosts_up 3
    make_token
    make_token wrong
    head_of 2 --pp 2
    worker h1
    wait_ready
    local before status=0 want
    want=$(ids_alone)
    before=$(wc -l <"$DIR/h0.err")
    worker h2 wrong
    wait_for 20 ended "${NODE[h2]}" || fail "an intruder goes on trying: $(said)"
    wait "${NODE[h2]}" || status=$?
    unset 'NODE[h2]'
    expect_eq "the intruder's status" "$status" 10
    expect_eq "lines that the intruder says of it" "$(grep -c token "$DIR/h2.err")" 1
    expect_eq "lines that the head says of it" "$(tail -n +$((before + 1)) "$DIR/h0.err" | grep -c token)" 1
    ! grep -qf "$DIR/token" "$DIR"/*.err || fail "the token is in a log"
    ! grep -qf "$DIR/wrong" "$DIR"/*.err || fail "the wrong token is in a log"
    expect_ids "$want"
    drain_and_end
}
a_token_that_others_may_read_is_refused() {
    need_pod
    make_token
    chmod 644 "$DIR/token"
    local worker=(serve --role worker --log-level warn --head localhost:7000)
    superpod "${worker[@]}" --token-file "$DIR/token"
    expect_refused 10 token 0644
    superpod "${worker[@]}" --token-file "$DIR/none"
    expect_refused 10 none
    echo "not sixty-four digits" >"$DIR/short"
    chmod 600 "$DIR/short"
    superpod "${worker[@]}" --token-file "$DIR/short"
    expect_refused 10 short
}

# ---- what controllers set instead of options -----------------------------------------------------

a_leader_worker_set_needs_no_options() {
    need_pod
    hosts_up 3
    make_token
    local i common=(--token-file "$DIR/token" --model "$PODLING" --pp 3 --access-log=false)
    echo "$(host_address h0) superpod-0.superpod.default" >>"$HOSTS/hosts"
    for i in 2 1 0; do
        WITH=(LWS_LEADER_ADDRESS=superpod-0.superpod.default LWS_GROUP_SIZE=3 "LWS_WORKER_INDEX=$i")
        node h$i "${common[@]}"
    done
    wait_ready
    expect_match "what the head says of its place" "$(cat "$DIR/h0.err")" LWS
    check_answers
    drain_and_end
}

# KServe's variables, as its versions set them; the arguments are those of k8s/overlays/kserve.
check_kserve() { # words of the head's environment -- words of the workers'
    need_pod
    hosts_up 2
    local head=() host
    while [ "$1" != -- ]; do head+=("$1") && shift; done
    shift
    echo "$(host_address h0) m-head-1.models.svc.cluster.local" >>"$HOSTS/hosts"
    export POD_NAMESPACE=models SUPERPOD_POD_TOKEN
    SUPERPOD_POD_TOKEN=$(openssl rand -hex 32)
    WITH=("$@")
    node h1 --model $PODLING --head-port 7000
    WITH=("${head[@]}")
    node h0 --model $PODLING --head-port 7000 --host 0.0.0.0 --port 8000 \
        --tensor-parallel-size 1 --pipeline-parallel-size 2 --access-log=false
    wait_ready
    for host in h0 h1; do
        expect_match "what $host says of its place" "$(cat "$DIR/$host.err")" KServe
        ! grep -aq "$SUPERPOD_POD_TOKEN" "/proc/${NODE[$host]}/environ" || fail "the token stays in the environment of $host"
    done
    check_answers
    drain_and_end
}
kserve_0_15_0_needs_no_options() {
    check_kserve PIPELINE_PARALLEL_SIZE=2 TENSOR_PARALLEL_SIZE=1 MODEL_NAME=m MODEL_DIR=/mnt/models -- \
        PIPELINE_PARALLEL_SIZE=2 ISVC_NAME=m HEAD_SVC=m-head-1
}
kserve_0_15_1_needs_no_options() {
    check_kserve PIPELINE_PARALLEL_SIZE=2 TENSOR_PARALLEL_SIZE=1 MODEL_NAME=m RAY_NODE_COUNT=2 REQUEST_GPU_COUNT=1 -- \
        ISVC_NAME=m HEAD_SVC=m-head-1 RAY_NODE_COUNT=2 REQUEST_GPU_COUNT=1
}
kserve_0_18_needs_no_options() {
    check_kserve PIPELINE_PARALLEL_SIZE=2 TENSOR_PARALLEL_SIZE=1 MODEL_NAME=m RAY_NODE_COUNT=2 REQUEST_GPU_COUNT=1 \
        INFERENCE_SERVICE_NAME=m -- ISVC_NAME=m HEAD_SVC=m-head-1 RAY_NODE_COUNT=2 REQUEST_GPU_COUNT=1 \
        PIPELINE_PARALLEL_SIZE=2 TENSOR_PARALLEL_SIZE=1 WORKER_SVC=m-workers-1
}

# ---- the preflight, and a cut --------------------------------------------------------------------

three_to_be_measured() { # option of the head...
    need_pod
    hosts_up 3
    make_token
    worker h1
    worker h2
    head_of 3 --pp 3 "$@"
}
expect_refusal_everywhere() { # regex of what the head says
    local host status
    wait_for 20 all_ended || fail "still there: $(said)"
    for host in h0 h1 h2; do
        status=0
        wait "${NODE[$host]}" || status=$?
        expect_eq "exit status of $host" "$status" 10
    done
    expect_match "what the head says" "$(cat "$DIR/h0.err")" "$1"
    expect_match "what a worker hears" "$(cat "$DIR/h1.err")" 'ended the pod: preflight'
    expect_nobody_left
}
every_pair_of_nodes_is_measured() {
    three_to_be_measured --preflight warn
    wait_ready
    on h0 "$SUPERPOD" status --json >"$DIR/status" || fail "no status"
    jq -e '[.links[] | [.from, .to] | sort | join("-")] | sort == ["h0-h1", "h0-h2", "h1-h2"]' "$DIR/status" >"$DIR/jq" ||
        fail "links: $(jq -c .links "$DIR/status")"
    jq -e 'all(.links[]; .rtt_us > 0 and .rtt_us < 1e6 and .gb_per_s > 0 and .error == null)' "$DIR/status" >"$DIR/jq" ||
        fail "figures: $(jq -c .links "$DIR/status")"
    jq -e 'all(.nodes[]; .clock_offset_us | fabs < 500000)' "$DIR/status" >"$DIR/jq" ||
        fail "clocks: $(jq -c .nodes "$DIR/status")"
    grep -qE 'preflight: (good|[0-9]+ remark)' "$DIR/h0.err" || fail "no verdict: $(said)"
    on h0 "$SUPERPOD" status >"$DIR/status"
    grep -qE '^h[01] +h[12] +[0-9.]+ +[0-9.]+$' "$DIR/status" || fail "the table shows no link: $(cat "$DIR/status")"
    # Nobody listens any more but the head.
    ! command -v ss >/dev/null || expect_eq "doors of the agent on h1" "$(on h1 ss -ltnpH | grep -c '"superpod"' || true)" 0
    drain_and_end
}
nothing_is_measured_where_it_is_off() {
    three_to_be_measured --preflight off
    wait_ready
    on h0 "$SUPERPOD" status --json >"$DIR/status" || fail "no status"
    jq -e '.links == [] and .nodes[1].clock_offset_us == null' "$DIR/status" >"$DIR/jq" || fail "measured: $(cat "$DIR/status")"
    ! grep -q preflight: "$DIR/h0.err" || fail "it speaks of a preflight: $(said)"
    drain_and_end
}
a_pair_that_cannot_connect_is_named_by_both() {
    need_pod
    hosts_up 3
    # Packets between these two get lost, and nobody is told.
    ip -n "$HOSTS_PREFIX"h1 neigh replace 10.77.0.12 lladdr 02:00:00:00:00:99 dev eth0 nud permanent
    make_token
    worker h1
    worker h2
    head_of 3 --pp 3 --preflight strict
    expect_refusal_everywhere "preflight: 1 remark: 'h[12]' and 'h[12]' cannot connect.*10\.77\.0\.1[12]"
}
a_limit_that_is_too_low_is_named() {
    need_pod
    hosts_up 3
    make_token
    worker h1
    (
        ulimit -n 600
        worker h2
    )
    head_of 3 --pp 3 --preflight strict
    wait_for 20 ended "${NODE[h0]}" || fail "still there: $(said)"
    local status=0
    wait "${NODE[h0]}" || status=$?
    expect_eq "exit status of h0" "$status" 10
    expect_match "what the head says" "$(cat "$DIR/h0.err")" "'h2' may open 600 files, want 1024"
    wait_for 5 nobody_left || fail "left behind"
}
a_cut_host_ends_the_pod_with_20_and_is_named() {
    three_to_be_measured
    wait_ready
    start_stream
    local before status=0
    before=$(now_ms)
    host_cut h2
    wait_for 10 ended "${NODE[h0]}" || fail "still there 10 s after the cut: $(said)"
    wait "${NODE[h0]}" || status=$?
    expect_eq "exit status of the head" "$status" 20
    grep -qE "agent [12] on 'h2' is lost" "$DIR/h0.err" || fail "h2 is not named after $(($(now_ms) - before)) ms: $(said)"
    # The host behind the cut finds out by itself.
    wait_for 15 all_ended || fail "still there: $(said)"
    expect_nobody_left
}

run_cases hosts hosts_have_names_and_reach_each_other mpirun_starts_one_process_on_each_host \
    mpirun_lets_the_others_go_on_when_one_is_killed nothing_is_left_of_a_case_that_is_killed \
    mpirun_over_two_hosts_tp2_pp2 mpirun_over_two_hosts_tp2 mpirun_over_three_hosts_pp3 \
    mpirun_over_three_hosts_tp2_pp3 workers_that_start_first_wait_for_the_head \
    prefill_on_one_host_and_decode_on_another_give_the_same_ids \
    a_head_that_starts_first_waits_for_its_workers a_wrong_token_is_refused_and_hurts_nobody \
    a_token_that_others_may_read_is_refused a_leader_worker_set_needs_no_options \
    kserve_0_15_0_needs_no_options kserve_0_15_1_needs_no_options kserve_0_18_needs_no_options \
    every_pair_of_nodes_is_measured nothing_is_measured_where_it_is_off \
    a_pair_that_cannot_connect_is_named_by_both a_limit_that_is_too_low_is_named \
    a_cut_host_ends_the_pod_with_20_and_is_named
