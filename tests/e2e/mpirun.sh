#!/bin/bash
# A pod that mpirun starts: one command, N agents; and ./run, with and without it.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/split_lib.sh
source tests/e2e/split_lib.sh

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# What an enclosing launcher left in the environment is not ours.
for word in $(compgen -e | grep -E '^(SLURM|PMI|PMIX|OMPI_COMM|OMPI_UNIVERSE)' || true); do unset "$word"; done

need_mpirun() { command -v mpirun >/dev/null || skip "no mpirun"; }

# mpi AGENTS OPTION...: SERVER is mpirun (in a session of its own), the first agent is in $DIR/pid.
mpi() {
    local n=$1
    shift
    need_mpirun
    PORT=$(free_port)
    URL=http://127.0.0.1:$PORT
    LOG=$DIR/mpi-$PORT
    env --default-signal=INT,QUIT,TERM setsid mpirun --oversubscribe --bind-to none "${RECOVERY[@]}" -np "$n" \
        "$SUPERPOD" serve --model $PODLING --port "$PORT" --pid-file "$DIR/pid" "$@" >"$LOG.out" 2>"$LOG.err" </dev/null &
    SERVER=$!
    echo "$SERVER" >>"$DIR/servers"
}
RECOVERY=()
mpi_up() {
    mpi "$@"
    wait_for 20 ready_or_ended || fail "not healthy after $((20 * SLOW)) s: $(tail -n 5 "$LOG.err")"
    ! ended "$SERVER" || fail "ended at its start: $(tail -n 5 "$LOG.err")"
}
BODY='{"prompt": [5, 6, 7, 300, 12], "temperature": 0, "max_tokens": 30, "ignore_eos": true, "return_token_ids": true}'
ids_alone() {
    superpod run --model $PODLING --raw --ids --ignore-eos --temperature 0 --tokens 5,6,7,300,12 --max-tokens 30
    expect_ok
    jq -c . "$DIR/out"
}
ids_served() {
    call POST /v1/completions "$BODY"
    expect_code 200
    answer '.choices[0].token_ids | tojson'
}
agents_are() { # JSON: ranks of each
    superpod status --json --url "$URL"
    expect_ok
    cp "$DIR/out" "$DIR/body"
    expect_jq --argjson want "$1" '[.nodes[].ranks] == $want and ([.ranks[].state] | unique == ["active"])'
    expect_jq '.head.launcher == "Open MPI"'
}
serves_and_drains() { # agents ranks-of-each option...
    local want ranks=$2
    want=$(ids_alone)
    mpi_up "$1" --tp 2 --pp 2 "${@:3}"
    agents_are "$ranks"
    expect_eq "the ids of $1 agents" "$(ids_served)" "$want"
    kill -TERM "$(cat "$DIR/pid")"
    expect_end
    expect_eq "exit status of mpirun ($(tail -n 3 "$LOG.err"))" "$EXIT" 0
    [ ! -e "$DIR/pid" ] || fail "the pid file stays"
}
four_agents_of_one_rank_serve_and_drain() { serves_and_drains 4 '[1, 1, 1, 1]'; }
three_agents_share_four_ranks() { serves_and_drains 3 '[2, 1, 1]'; }
one_agent_serves_alone() { serves_and_drains 1 '[4]'; }
five_agents_leave_one_without_a_rank() { serves_and_drains 5 '[1, 1, 1, 1, 0]'; }
four_agents_by_ucx_serve_and_drain() { serves_and_drains 4 '[1, 1, 1, 1]' --collectives ucx; }
recovery_changes_nothing_that_drains() {
    RECOVERY=(--enable-recovery)
    serves_and_drains 4 '[1, 1, 1, 1]'
}

pools() { # agents ranks-of-each roles pool...
    local n=$1 ranks=$2 roles=$3 options=(--prefill-threshold-tokens 64)
    shift 3
    while [ $# -gt 0 ]; do options+=(--pool "$1") && shift; done
    mpi_up "$n" "${options[@]}"
    agents_are "$ranks"
    expect_eq "roles of the ranks" "$(answer '[.ranks[].role[:1]] | join("")')" "$roles"
    check_split
    kill -TERM "$(cat "$DIR/pid")"
    expect_end
    expect_eq "exit status of mpirun ($(tail -n 3 "$LOG.err"))" "$EXIT" 0
}
pools_lie_on_agents_with_different_numbers_of_ranks() {
    pools 4 '[2, 2, 1, 1]' ppppdd name=p,role=prefill,replicas=2,tp=2 name=d,role=decode,pp=2
    pools 3 '[1, 1, 1]' pdd name=p,role=prefill name=d,role=decode,tp=2
}
pools_without_enough_slots_are_refused_once() {
    mpi 2 --slots 1 --pool name=p,role=prefill,tp=2 --pool name=d,role=decode
    expect_end
    expect_eq "exit status of mpirun" "$EXIT" 10
    expect_eq "lines of ours: $(cat "$LOG.err")" "$(grep -c '^superpod:' "$LOG.err")" 1
    grep -q 'p: 1 of tp 1 x pp 1, d: 1 of tp 1 x pp 1 would fit: there is 1 slot$' "$LOG.err" || fail "it says: $(cat "$LOG.err")"
}

a_running_stream_is_finished_before_mpirun_ends() {
    mpi_up 4 --tp 2 --pp 2 --backend ref --threads 1
    curl -sS -N -m $((50 * SLOW)) -o "$DIR/stream" -H 'Content-Type: application/json' "$URL/v1/completions" \
        -d '{"prompt": [5, 6], "max_tokens": 60, "ignore_eos": true, "stream": true}' &
    local client=$!
    wait_for 10 grep -qs '"text":"[^"]' "$DIR/stream" || fail "no text came"
    kill -TERM "$(cat "$DIR/pid")"
    wait "$client" || fail "the stream broke"
    split_events "$DIR/stream"
    jq -se '[.[].choices[]?.finish_reason // empty] == ["length"]' "$DIR/events" >/dev/null || fail "it is not whole"
    expect_end
    expect_eq "exit status of mpirun" "$EXIT" 0
}
a_signal_to_mpirun_itself_leaves_nothing() {
    local signal
    for signal in TERM INT KILL; do
        mpi_up 4 --tp 2 --pp 2
        kill -$signal "$SERVER"
        expect_end
    done
}
a_killed_rank_is_the_exit_status_of_mpirun() {
    mpi_up 4 --tp 2 --pp 2
    agents_are '[1, 1, 1, 1]'
    kill -KILL "$(answer '.ranks[2].pid')"
    expect_end
    expect_eq "exit status of mpirun" "$EXIT" 20
    grep -q 'rank 2' "$LOG.err" || fail "rank 2 is not named: $(tail -n 5 "$LOG.err")"
}
a_killed_agent_ends_the_pod() {
    mpi_up 4 --tp 2 --pp 2
    agents_are '[1, 1, 1, 1]'
    kill -KILL "$(answer '.nodes[3].pid')"
    expect_end
    [ "$EXIT" != 0 ] || fail "exit status 0 although an agent was killed"
}
a_refused_model_is_said_once() {
    local before
    before=$(now_ms)
    mpi 4 --tp 3
    expect_end
    expect_eq "exit status of mpirun" "$EXIT" 10
    [ $(($(now_ms) - before)) -lt $((5000 * SLOW)) ] || fail "took $(($(now_ms) - before)) ms"
    expect_eq "lines of ours: $(cat "$LOG.err")" "$(grep -c '^superpod:' "$LOG.err")" 1
    grep -q '^superpod: .*3 does not divide the 8' "$LOG.err" || fail "it says: $(cat "$LOG.err")"
}
other_commands_are_alone_under_mpirun() {
    need_mpirun
    STATUS=0
    timeout $((30 * SLOW)) mpirun --oversubscribe --bind-to none -np 1 "$SUPERPOD" run --model $PODLING --tp 2 --raw \
        --ids --ignore-eos --temperature 0 --tokens 5,6,7,300,12 --max-tokens 30 >"$DIR/mine" 2>"$DIR/err" || STATUS=$?
    ERR=$(cat "$DIR/err")
    expect_ok
    expect_eq "the ids" "$(jq -c . "$DIR/mine")" "$(ids_alone)"
}

# ---- ./run ---------------------------------------------------------------------------------------

# Starts ./run WORD...: SERVER is it, LAUNCHER the mpirun of `./run mpi`.
spawn_run() {
    PORT=$(free_port)
    URL=http://127.0.0.1:$PORT
    LOG=$DIR/run-$PORT
    PORT=$PORT TMPDIR=$DIR env --default-signal=INT,QUIT,TERM setsid ./run "$@" --no-install >"$LOG.out" 2>"$LOG.err" </dev/null &
    SERVER=$!
    LAUNCHER=
    echo "$SERVER" >>"$DIR/servers"
}
mpirun_of_run() {
    LAUNCHER=$(ps -o pid=,args= --ppid "$SERVER" | awk '$2 == "mpirun" { print $1 }')
    [ -n "$LAUNCHER" ]
}
run_ends_well() { # signal word...
    local signal=$1
    shift
    spawn_run "$@"
    if [ "${1:-}" = mpi ]; then # a build may come first
        wait_for 50 mpirun_of_run || fail "no mpirun: $(tail -n 5 "$LOG.err")"
        echo "$LAUNCHER" >>"$DIR/servers"
    fi
    wait_for 50 ready_or_ended || fail "not healthy: $(tail -n 5 "$LOG.err")"
    ! ended "$SERVER" || fail "ended at its start: $(tail -n 5 "$LOG.err")"
    expect_eq "the ids" "$(ids_served)" "$(ids_alone)"
    grep -q "4 ranks (tp 2 x pp 2) at $URL" "$LOG.out" || fail "it says: $(cat "$LOG.out")"
    kill -"$signal" "$SERVER"
    expect_end
    expect_eq "exit status after SIG$signal ($(tail -n 3 "$LOG.err"))" "$EXIT" 0
    [ -z "$LAUNCHER" ] || wait_for 2 session_is_empty "$LAUNCHER" || fail "left behind: $(session "$LAUNCHER")"
    expect_eq "temporary files" "$(find "$DIR" -maxdepth 1 -name 'tmp.*')" ""
}
run_ends_well_on_sigint() { run_ends_well INT; }
run_ends_well_on_sigterm() { run_ends_well TERM; }
run_mpi_ends_well_on_sigint() { need_mpirun && run_ends_well INT mpi; }
run_mpi_ends_well_on_sigterm() { need_mpirun && run_ends_well TERM mpi; }
run_mpi_stopped_while_it_starts_ends_well() {
    need_mpirun
    spawn_run mpi
    wait_for 50 mpirun_of_run || fail "no mpirun: $(tail -n 5 "$LOG.err")"
    echo "$LAUNCHER" >>"$DIR/servers"
    kill -INT "$SERVER"
    expect_end
    expect_eq "exit status ($(tail -n 3 "$LOG.err"))" "$EXIT" 0
    wait_for 2 session_is_empty "$LAUNCHER" || fail "left behind: $(session "$LAUNCHER")"
}
run_mpi_tells_that_a_rank_was_lost() {
    need_mpirun
    spawn_run mpi
    wait_for 50 mpirun_of_run || fail "no mpirun: $(tail -n 5 "$LOG.err")"
    echo "$LAUNCHER" >>"$DIR/servers"
    wait_for 50 ready_or_ended || fail "not healthy: $(tail -n 5 "$LOG.err")"
    agents_are '[1, 1, 1, 1]'
    kill -KILL "$(answer '.ranks[1].pid')"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    wait_for 2 session_is_empty "$LAUNCHER" || fail "left behind: $(session "$LAUNCHER")"
}
run_refuses_words_it_does_not_know() {
    STATUS=0
    ./run --frobnicate >"$DIR/out" 2>"$DIR/err" || STATUS=$?
    OUT=$(cat "$DIR/out") ERR=$(cat "$DIR/err")
    expect_refused 2 'usage: ./run'
}

run_cases mpirun four_agents_of_one_rank_serve_and_drain three_agents_share_four_ranks one_agent_serves_alone \
    five_agents_leave_one_without_a_rank four_agents_by_ucx_serve_and_drain recovery_changes_nothing_that_drains \
    pools_lie_on_agents_with_different_numbers_of_ranks pools_without_enough_slots_are_refused_once \
    a_running_stream_is_finished_before_mpirun_ends a_signal_to_mpirun_itself_leaves_nothing \
    a_killed_rank_is_the_exit_status_of_mpirun a_killed_agent_ends_the_pod a_refused_model_is_said_once \
    other_commands_are_alone_under_mpirun run_ends_well_on_sigint run_ends_well_on_sigterm \
    run_mpi_ends_well_on_sigint run_mpi_ends_well_on_sigterm run_mpi_stopped_while_it_starts_ends_well \
    run_mpi_tells_that_a_rank_was_lost run_refuses_words_it_does_not_know
