#!/bin/bash
# Pods as Slurm jobs, on a Slurm of our own: by srun with and without PMIx, and by slurm/pod.sbatch.
# What the batch script does with signals is proven with a stand-in for the binary as well, which
# writes down what reaches it.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/slurm_lib.sh
source tests/e2e/slurm_lib.sh
# shellcheck source=tests/e2e/split_lib.sh
source tests/e2e/split_lib.sh
case_limit_s=90

PROMPT=5,6,7,300,12,44,1027,9,81,640,2,17

need_pod() {
    superpod serve --help
    [[ $OUT == *--nnodes* ]] || skip "this build serves on one node only"
}

# ---- Slurm itself --------------------------------------------------------------------------------

srun_starts_a_task_on_each_node() {
    slurm_up
    timeout 20 srun -N3 -n3 bash -c 'echo "$SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME"' >"$DIR/out" 2>"$DIR/err" ||
        fail "srun: $(cat "$DIR/err")"
    expect_eq "who runs where" "$(sort "$DIR/out" | paste -sd,)" "0 of 3 on node1,1 of 3 on node2,2 of 3 on node3"
}
srun_by_pmix_tells_ranks() {
    slurm_up
    srun --mpi=list 2>&1 | grep -qw pmix || skip "this Slurm has no pmix"
    timeout 20 srun -N2 -n2 --mpi=pmix bash -c 'echo "$PMIX_RANK in $PMIX_NAMESPACE"' >"$DIR/out" 2>"$DIR/err" ||
        fail "srun: $(cat "$DIR/err")"
    expect_match "the ranks" "$(sort "$DIR/out" | paste -sd,)" '^0 in (slurm\.pmix\.[0-9.]+),1 in slurm\.pmix\.[0-9.]+$'
}
sbatch_runs_a_script() {
    slurm_up
    printf '#!/bin/bash\nsrun hostname\n' >"$DIR/job"
    JOB=$(sbatch --parsable -N2 --ntasks-per-node=1 -o "$DIR/superpod-%j.log" "$DIR/job") || fail "sbatch: $?"
    expect_job_ends COMPLETED
    expect_eq "the lines of its log" "$(job_log | sort | uniq -c | awk '{ print $1, $2 }')" "2 $(hostname)"
}
a_killed_task_leaves_the_others() {
    slurm_up
    local status=0
    timeout 20 srun -N3 -n3 -K0 --wait=0 bash -c '[ $SLURM_PROCID != 1 ] || kill -KILL $$; sleep 1; echo here' >"$DIR/out" 2>"$DIR/err" || status=$?
    expect_eq "who is left" "$(paste -sd, "$DIR/out")" here,here
    expect_eq "the status of srun" "$status" 137
}
daemons_that_wait() { # a case that is killed by the next one
    slurm_up
    srun -N1 sleep 1000
}
nothing_is_left_of_a_case_that_is_killed() {
    command -v slurmd >/dev/null || skip "no slurmd"
    [ "$(id -u)" = 0 ] || skip "a Slurm of our own needs root"
    local pid conf=$DIR/inner/slurm/slurm.conf
    mkdir "$DIR/inner"
    DIR=$DIR/inner E2E_CASE=daemons_that_wait setsid "$SELF" >"$DIR/log" 2>&1 </dev/null &
    pid=$!
    running() { SLURM_CONF=$conf squeue -h -o %t 2>/dev/null | grep -qx R; }
    wait_for 20 running || fail "no job: $(cat "$DIR/log")"
    kill -KILL "$pid"
    gone() { [ -z "$(slurm_pids "$conf")" ]; }
    wait_for 15 gone || fail "left: $(slurm_pids "$conf" | xargs -n 1 ps -o args= -p)"
}

# ---- the batch script, with a stand-in -----------------------------------------------------------

# It writes down its arguments and each TERM, also those of a child, and drains for a second.
stand_in() {
    cat >"$DIR/superpod" <<END
#!/bin/bash
me=$DIR/\$SLURMD_NODENAME
printf '%s\n' "\$@" >\$me.args
echo "\${SUPERPOD_PORT-none}" >\$me.port
file=\$(printf '%s\n' "\$@" | grep -A1 -x -- --endpoint-file | tail -n 1)
[ \$SLURM_PROCID != 0 ] || echo "{\"url\": \"http://127.0.0.1:9\", \"model\": \"m\", \"job_id\": \"\$SLURM_JOB_ID\", \"nodes\": \$SLURM_NNODES}" >\$file
trap 'echo TERM >>\$me.signals; asked=1' TERM
asked=
echo up >\$me.up
while [ -z "\$asked" ]; do sleep 0.05; done
for _ in \$(seq 20); do sleep 0.05; done
echo drained >\$me.end
END
    chmod +x "$DIR/superpod"
    export SUPERPOD=$DIR/superpod
}
# Submits slurm/pod.sbatch, or $SCRIPT of that folder, from $DIR: JOB.
submit() { # sbatch-option... -- serve-option...
    local options=()
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    shift
    slurm_script=$PWD/slurm/${SCRIPT:-pod.sbatch}
    JOB=$(cd "$DIR" && sbatch --parsable "${options[@]}" "$slurm_script" "$@" 2>"$DIR/sbatch.err") ||
        fail "sbatch: $(cat "$DIR/sbatch.err")"
}
job_log() { cat "$DIR/superpod-$JOB.log" 2>/dev/null; }
job_is_over() { [[ $(slurm_state "$JOB") != @(PD|CF|R|CG|S) ]]; }
expect_job_ends() { # state, as scontrol names it
    wait_for 40 job_is_over || fail "the job goes on ($(slurm_state "$JOB")): $(job_log)"
    expect_match "the job's end; it said: $(job_log)" "$(scontrol -o show job "$JOB")" "JobState=$1 "
}
both_up() { [ -e "$DIR/node1.up" ] && [ -e "$DIR/node2.up" ]; }
start_stand_in() { # sbatch-option...
    slurm_up
    stand_in
    submit -N2 "$@" -- --model here --tp 2
    wait_for 20 both_up || fail "not up: $(job_log)"
}
expect_one_drain() {
    local n
    for n in node1 node2; do
        expect_eq "signals at $n; the job said: $(job_log)" "$(paste -sd, "$DIR/$n.signals")" TERM
        expect_eq "the end of $n" "$(cat "$DIR/$n.end")" drained
    done
    [ ! -e "$DIR/endpoint.json" ] || fail "endpoint.json stays"
}

the_script_passes_options_and_finds_a_port() {
    start_stand_in
    expect_eq "the arguments" "$(paste -sd' ' "$DIR/node2.args")" \
        "serve --endpoint-file $DIR/endpoint.json --model here --tp 2"
    expect_eq "the port" "$(cat "$DIR/node1.port")" 0
    expect_eq "the endpoint's job" "$(jq -r .job_id "$DIR/endpoint.json")" "$JOB"
    scancel --signal=TERM --batch "$JOB"
    expect_job_ends COMPLETED
    expect_one_drain
}
a_term_at_the_steps_drains_and_the_job_completes() {
    start_stand_in
    scancel --signal=TERM "$JOB"
    expect_job_ends COMPLETED
    expect_one_drain
}
a_cancelled_job_drains_once() {
    start_stand_in
    scancel "$JOB"
    expect_job_ends CANCELLED
    expect_one_drain
}
a_job_is_drained_before_its_time_is_up() {
    start_stand_in --time=10 --signal=B:TERM@110
    scontrol update "JobId=$JOB" TimeLimit=2 # so less than 110 s are left
    expect_job_ends COMPLETED
    expect_one_drain
}
a_job_that_is_put_back_starts_again() {
    start_stand_in
    rm "$DIR"/node?.up
    scontrol requeue "$JOB"
    # Slurm holds a requeued job back for a while; what counts is that it may start again.
    queued() { [[ $(slurm_state "$JOB") == @(PD|CF|R) ]]; }
    wait_for 30 queued || fail "not queued again but $(slurm_state "$JOB"): $(job_log)"
    expect_one_drain
    scancel "$JOB"
}
words_of_split() { # sbatch-option... -- serve-option...: what superpod is started with
    SCRIPT=split.sbatch submit "$@"
    up() { [ -e "$DIR/node1.up" ] || job_is_over; }
    wait_for 20 up || fail "not up: $(job_log)"
    ! job_is_over || fail "the job ended: $(job_log)"
    scancel --signal=TERM --batch "$JOB"
    expect_job_ends COMPLETED
    expect_eq "signals; the job said: $(job_log)" "$(paste -sd, "$DIR/node1.signals")" TERM
    WORDS=$(paste -sd' ' "$DIR/node1.args")
    rm "$DIR"/node*.*
}
the_split_script_gives_each_node_a_group() {
    slurm_up
    stand_in
    words_of_split -N3 -- --model here --tp 2
    expect_eq "the words for 3 nodes" "$WORDS" "serve --endpoint-file $DIR/endpoint.json --pool name=prefill,role=prefill,replicas=1 --pool name=decode,role=decode,replicas=2 --model here --tp 2"
    SUPERPOD_PREFILL_NODES=2 words_of_split -N3 -- --model here
    expect_match "the words for 2 of 3 nodes" "$WORDS" 'role=prefill,replicas=2 .*role=decode,replicas=1 --model here$'
    words_of_split -N1 -- --model here --pool=name=a
    expect_eq "pools of one's own" "$WORDS" "serve --endpoint-file $DIR/endpoint.json --model here --pool=name=a"
    SCRIPT=split.sbatch SUPERPOD_PREFILL_NODES=3 submit -N3 -- --model here
    expect_job_ends FAILED
    expect_match "the log" "$(job_log)" "SUPERPOD_PREFILL_NODES is '3', want 1 to 2 of 3 nodes"
    expect_match "the exit code" "$(scontrol -o show job "$JOB")" 'ExitCode=10:0'
}
the_file_of_another_job_is_not_touched() {
    slurm_up
    stand_in
    # A stand-in that ends at once and tells no endpoint.
    printf '#!/bin/bash\nexit 3\n' >"$DIR/superpod"
    echo '{"url": "http://127.0.0.1:9", "model": "m", "job_id": "1000001", "nodes": 2}' >"$DIR/endpoint.json"
    submit -N2 -- --model here
    expect_job_ends FAILED
    expect_match "the exit code" "$(scontrol -o show job "$JOB")" 'ExitCode=3:0'
    expect_eq "the endpoint's job" "$(jq -r .job_id "$DIR/endpoint.json")" 1000001
}
a_binary_that_is_not_there_is_named() {
    slurm_up
    SUPERPOD=$DIR/none submit -N1 -- --model here
    expect_job_ends FAILED
    expect_match "the log" "$(job_log)" "no '$DIR/none'"
    expect_match "the exit code" "$(scontrol -o show job "$JOB")" 'ExitCode=10:0'
}

# ---- the server ----------------------------------------------------------------------------------

ids_alone() {
    superpod run --model $PODLING --raw --ids --ignore-eos --temperature 0 --tokens $PROMPT --max-tokens 40
    expect_ok
    jq -c . "$DIR/out"
}
check_answers() {
    local want
    want=$(ids_alone)
    call POST /v1/completions "{\"prompt\": [$PROMPT], \"temperature\": 0, \"max_tokens\": 40, \"ignore_eos\": true, \"return_token_ids\": true}"
    expect_code 200
    expect_eq "the token ids" "$(answer '.choices[0].token_ids | tojson')" "$want"
    call POST /v1/chat/completions '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'
    expect_code 200
    expect_jq '.choices[0].message.content == "The capital of France is Paris."'
}
start_stream() {
    curl -sS -N -m $((60 * SLOW)) -H 'Content-Type: application/json' -o "$DIR/stream" "$URL/v1/completions" \
        -d "{\"prompt\": [$PROMPT], \"temperature\": 0, \"max_tokens\": 600, \"ignore_eos\": true, \"stream\": true}" &
    STREAM=$!
    wait_for 20 test -s "$DIR/stream" || fail "no stream"
}
expect_whole_stream() {
    wait "$STREAM" || fail "the stream broke: $(tail -c 300 "$DIR/stream")"
    expect_eq "the end of the stream" "$(grep '^data: ' "$DIR/stream" | tail -n 1)" "data: [DONE]"
}
servers_left() {
    local pid
    for pid in $(slurm_pids "$SLURM_CONF"); do
        [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" != "$(realpath "$SUPERPOD")" ] || echo "$pid"
    done
}
expect_no_server_left() {
    gone() { [ -z "$(servers_left)" ]; }
    wait_for 5 gone || fail "left behind: $(servers_left | xargs -n 1 ps -o args= -p)"
    [ -z "$(find . -maxdepth 1 -name '.superpod*' -newer "$DIR/started")" ] || fail "a file of the join stays"
}

# srun in the foreground of a user, in $DIR (a plain srun leaves the file of the join there).
check_srun() { # mpi nodes option...
    need_pod
    slurm_up
    local mpi=$1 n=$2 status=0 server model
    server=$(realpath "$SUPERPOD")
    model=$(realpath $PODLING)
    shift 2
    [ "$mpi" = none ] || srun --mpi=list 2>&1 | grep -qw "$mpi" || skip "this Slurm has no $mpi"
    PORT=$(free_port)
    URL=http://127.0.0.1:$PORT
    touch "$DIR/started"
    (cd "$DIR" && exec setsid srun -N"$n" -n"$n" --mpi="$mpi" -K0 --wait=0 --cpu-bind=none "$server" serve \
        --model "$model" --port "$PORT" "$@") >"$DIR/srun.out" 2>"$DIR/srun.err" </dev/null &
    SERVER=$!
    wait_for 30 ready_or_ended || fail "not healthy: $(tail -n 5 "$DIR/srun.err")"
    ! ended "$SERVER" || fail "srun ended: $(tail -n 5 "$DIR/srun.err")"
    check_answers
    start_stream
    # Every process of every task gets it: head, ranks and agents.
    scancel --signal=TERM "$(squeue -h -o %A)"
    expect_whole_stream
    wait_for 30 ended "$SERVER" || fail "srun goes on: $(tail -n 5 "$DIR/srun.err")"
    wait "$SERVER" || status=$?
    expect_eq "the status of srun, which said: $(tail -n 5 "$DIR/srun.err")" "$status" 0
    expect_no_server_left
}
srun_without_pmi_over_three_nodes() { check_srun none 3 --pp 3; }
srun_without_pmi_over_two_nodes() { check_srun none 2 --tp 2 --pp 2; }
srun_by_pmix_over_three_nodes() { check_srun pmix 3 --pp 3; }
srun_by_pmix_over_two_nodes() { check_srun pmix 2 --tp 2; }

endpoint_or_over() { [ -s "$DIR/endpoint.json" ] || job_is_over; }
start_pod_job() { # nodes serve-option...
    need_pod
    slurm_up
    local n=$1
    shift
    touch "$DIR/started"
    export SUPERPOD
    SUPERPOD=$(realpath "$SUPERPOD")
    submit -N"$n" -- --model "$(realpath $PODLING)" "$@"
    wait_for 40 endpoint_or_over || fail "no endpoint.json: $(job_log)"
    ! job_is_over || fail "the job ended: $(job_log)"
    URL=$(jq -r .url "$DIR/endpoint.json")
    expect_eq "the endpoint's job" "$(jq -r .job_id "$DIR/endpoint.json")" "$JOB"
    # All daemons are on this one machine, which superpod sees.
    jq -e --argjson n "$n" '.nodes | type == "number" and . >= 1 and . <= $n' "$DIR/endpoint.json" >/dev/null ||
        fail "the endpoint's nodes: $(cat "$DIR/endpoint.json")"
    expect_match "the endpoint's model" "$(jq -r .model "$DIR/endpoint.json")" podling
    # It is there when requests are served, not before.
    healthy "$URL" || fail "endpoint.json is there, but $URL is not healthy: $(job_log)"
    check_answers
    start_stream
}
expect_pod_ends() { # state
    expect_whole_stream
    expect_job_ends "$1"
    [ ! -e "$DIR/endpoint.json" ] || fail "endpoint.json stays"
    expect_no_server_left
}
a_pod_job_tells_its_endpoint_and_drains() {
    start_pod_job 2 --tp 2 --pp 2
    scancel --signal=TERM --batch "$JOB"
    expect_pod_ends COMPLETED
}
a_pod_job_drains_by_a_term_at_its_steps() {
    start_pod_job 3 --pp 3
    scancel --signal=TERM "$JOB"
    expect_pod_ends COMPLETED
}
a_pod_job_drains_when_it_is_cancelled() {
    start_pod_job 2 --pp 2
    scancel "$JOB"
    expect_pod_ends CANCELLED
}
a_pod_job_by_pmix() {
    export SUPERPOD_SRUN_MPI=pmix
    start_pod_job 2 --tp 2
    scancel --signal=TERM --batch "$JOB"
    expect_pod_ends COMPLETED
}

check_nodes() { # ranks-of-each roles-of-ranks
    call GET /superpod/status
    expect_code 200
    expect_eq "the ranks of the nodes" "$(answer '[.nodes[].ranks] | tojson')" "$1"
    expect_eq "the roles of the ranks" "$(answer '[.ranks[].role[:1]] | join("")')" "$2"
}
a_split_job_serves_from_two_pools() {
    SCRIPT=split.sbatch start_pod_job 3 --tp 2 --prefill-threshold-tokens 64
    check_split
    check_nodes '[2,2,2]' ppdddd
    scancel --signal=TERM --batch "$JOB"
    expect_pod_ends COMPLETED
}
a_split_job_has_groups_of_any_shape() {
    SCRIPT=split.sbatch start_pod_job 2 --prefill-threshold-tokens 64 \
        --pool name=p,role=prefill,replicas=2,tp=2 --pool name=d,role=decode,pp=2
    check_split
    check_nodes '[3,3]' ppppdd
    scancel --signal=TERM "$JOB"
    expect_pod_ends COMPLETED
}

run_cases slurm srun_starts_a_task_on_each_node srun_by_pmix_tells_ranks sbatch_runs_a_script \
    a_killed_task_leaves_the_others nothing_is_left_of_a_case_that_is_killed \
    the_script_passes_options_and_finds_a_port a_term_at_the_steps_drains_and_the_job_completes \
    a_cancelled_job_drains_once a_job_is_drained_before_its_time_is_up a_job_that_is_put_back_starts_again \
    the_split_script_gives_each_node_a_group \
    the_file_of_another_job_is_not_touched a_binary_that_is_not_there_is_named \
    srun_without_pmi_over_three_nodes srun_without_pmi_over_two_nodes srun_by_pmix_over_three_nodes \
    srun_by_pmix_over_two_nodes a_pod_job_tells_its_endpoint_and_drains \
    a_pod_job_drains_by_a_term_at_its_steps a_pod_job_drains_when_it_is_cancelled a_pod_job_by_pmix \
    a_split_job_serves_from_two_pools a_split_job_has_groups_of_any_shape
