#!/bin/bash
# Starting, draining, dying: what a process leaves behind, and what its clients see.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

# The reference backend takes some 25 ms a token here: streams last as long as a case needs them.
SLOWLY=(--backend ref --threads 1)

# Begins a stream of so many tokens in the background: CLIENT (curl's pid), its output in
# $DIR/stream. Returns once the first text has come.
begin_stream() { # tokens
    curl -sS -N -m $((50 * SLOW)) -o "$DIR/stream" -H 'Content-Type: application/json' "$URL/v1/completions" \
        -d '{"prompt": "Once upon a time", "max_tokens": '"$1"', "ignore_eos": true, "temperature": 0,
             "stream": true, "stream_options": {"include_usage": true}}' 2>"$DIR/stream.err" &
    CLIENT=$!
    wait_for 10 grep -qs '"text":"[^"]' "$DIR/stream" || fail "no text came: $(cat "$DIR/stream.err")"
}
streamed_whole() { # tokens
    wait "$CLIENT" || fail "the stream broke: $(cat "$DIR/stream.err")"
    split_events "$DIR/stream"
    jq -se --argjson n "$1" 'last.usage.completion_tokens == $n' "$DIR/events" >/dev/null ||
        fail "the stream is not whole: $(tail -n 1 "$DIR/events")"
    jq -se '[.[].choices[]?.finish_reason // empty] == ["length"]' "$DIR/events" >/dev/null ||
        fail "finish reasons: $(jq -c '.choices[]?.finish_reason' "$DIR/events" | sort | uniq -c)"
}
not_ok() { ! healthy "$URL"; }

drains_on() { # signal
    start_server --model $PODLING "${SLOWLY[@]}"
    begin_stream 60
    kill -"$1" "$SERVER"
    # The rest of the stream takes long enough that refusals are seen meanwhile.
    wait_for 5 not_ok || fail "/health stays 200 while draining"
    ! ended "$CLIENT" || fail "the stream ended before /health was asked"
    streamed_whole 60
    expect_end
    expect_eq "exit status after SIG$1" "$EXIT" 0
}
sigterm_finishes_the_running_stream_and_exits_0() { drains_on TERM; }
sigint_finishes_the_running_stream_and_exits_0() { drains_on INT; }

an_idle_server_ends_at_once() {
    local before
    start_server --model $PODLING
    before=$(now_ms)
    stop_server TERM
    [ $(($(now_ms) - before)) -lt $((2000 * SLOW)) ] || fail "took $(($(now_ms) - before)) ms to end"
}
a_server_stopped_while_it_starts_leaves_nothing() {
    local delay_ms
    for delay_ms in 000 002 004 006 008 010 015 020 025 030 040 050 060 080 100; do
        spawn_server --model $PODLING
        sleep "0.$delay_ms"
        # The shell's child may not be the server yet; a signal then ends it before it began.
        kill -TERM "$SERVER"
        expect_end
        expect_match "exit status ${delay_ms} ms after the start" "$EXIT" '^(0|143)$'
    done
}
the_shutdown_timeout_ends_a_stream_that_takes_longer() {
    start_server --model $PODLING "${SLOWLY[@]}" --shutdown-timeout 1
    begin_stream 1800
    kill -TERM "$SERVER"
    expect_end
    expect_eq "exit status" "$EXIT" 0
    wait "$CLIENT" || true
    # The client hears that it is not whole: an error event, or a connection that breaks.
    ! grep -q '"finish_reason":"length"' "$DIR/stream" || fail "it claims to be whole: $(tail -n 4 "$DIR/stream")"
}

a_second_server_on_the_port_is_refused_in_one_line() {
    start_server --model $PODLING
    superpod serve --model $PODLING --port "$PORT"
    expect_refused 10 "$PORT"
    healthy "$URL" || fail "the first server was hurt"
    stop_server
}
run_says_that_its_port_is_taken() {
    start_server --model $PODLING
    STATUS=0
    PORT=$PORT ./run --no-install >"$DIR/out" 2>"$DIR/err" || STATUS=$?
    OUT=$(cat "$DIR/out") ERR=$(cat "$DIR/err")
    expect_refused 10 "$PORT"
    stop_server
}
a_restart_takes_the_port_again_at_once() {
    start_server --model $PODLING
    call GET /v1/models
    stop_server
    WANT_PORT=$PORT start_server --model $PODLING
    stop_server
}

a_killed_rank_fails_its_requests_and_ends_the_server_with_20() {
    local rank
    start_server --model $PODLING "${SLOWLY[@]}"
    rank=$(rank_pid "$SERVER")
    [ -n "$rank" ] || fail "no process is called 'superpod: rank 0': $(session "$SERVER")"
    begin_stream 1800
    kill -KILL "$rank"
    expect_end
    expect_eq "exit status" "$EXIT" 20
    wait "$CLIENT" || true
    # The client hears it inside the stream, and the stream still ends as streams do.
    split_events "$DIR/stream"
    jq -se 'last.error.message | type == "string" and length > 0' "$DIR/events" >/dev/null ||
        fail "the stream's last event is no error: $(tail -n 1 "$DIR/events")"
    grep -qi 'rank' "$LOG.err" || fail "the log does not say that a rank was lost: $(tail -n 5 "$LOG.err")"
}
a_killed_rank_answers_waiting_requests_with_an_error() {
    start_server --model $PODLING "${SLOWLY[@]}"
    curl -sS -m $((50 * SLOW)) -o "$DIR/whole" -w '%{http_code}' -H 'Content-Type: application/json' \
        -d '{"prompt": "Once upon a time", "max_tokens": 1800, "ignore_eos": true}' "$URL/v1/completions" >"$DIR/code" &
    CLIENT=$!
    wait_for 10 metric_is 'vllm:num_requests_running' 1 || fail "the request does not run"
    kill -KILL "$(rank_pid "$SERVER")"
    wait "$CLIENT" || fail "no answer came"
    expect_match "the status" "$(cat "$DIR/code")" '^(500|503)$'
    jq -e '.error.message | length > 0' "$DIR/whole" >/dev/null || fail "no error object: $(cat "$DIR/whole")"
    expect_end
    expect_eq "exit status" "$EXIT" 20
}
a_killed_head_leaves_nothing() {
    local head
    start_server --model $PODLING
    head=$(ps -o pid=,args= --sid "$SERVER" | awk '/superpod: head/ { print $1; exit }')
    [ -n "$head" ] || fail "no process is called 'superpod: head': $(session "$SERVER")"
    kill -KILL "$head"
    expect_end
    [ "$EXIT" != 0 ] || fail "exit status 0 although the head was killed"
}
a_killed_agent_leaves_nothing() {
    start_server --model $PODLING
    kill -KILL "$SERVER"
    expect_end
    expect_eq "exit status" "$EXIT" 137
}

leave() { # a client's pid: it goes without a word
    kill -KILL "$1"
    wait "$1" 2>/dev/null || true
}
no_sequence_runs() { metric_is 'vllm:num_requests_running' 0 && metric_is 'vllm:kv_cache_usage_perc' 0; }
a_client_that_leaves_frees_its_blocks() {
    local before after
    start_server --model $PODLING "${SLOWLY[@]}"
    begin_stream 1800
    ! metric_is 'vllm:kv_cache_usage_perc' 0 || fail "a running stream uses no block"
    leave "$CLIENT"
    wait_for 5 no_sequence_runs || fail "still held: $(curl -s "$URL/metrics" | grep -E '^vllm:(kv_cache_usage|num_requests)')"
    # What was left behind is not computed either.
    before=$(metric 'vllm:generation_tokens_total')
    sleep 0.3 # several steps of the reference backend
    after=$(metric 'vllm:generation_tokens_total')
    expect_eq "tokens generated since" "$after" "$before"
    metric_is 'vllm:request_success_total[{].*finished_reason="abort"' 1 || fail "the abort is not counted"
    stop_server
}
a_waiting_client_that_leaves_is_forgotten() {
    start_server --model $PODLING "${SLOWLY[@]}" --max-num-seqs 1
    begin_stream 1800
    curl -sS -m $((50 * SLOW)) -o /dev/null -H 'Content-Type: application/json' -d '{"prompt": "x", "max_tokens": 5}' "$URL/v1/completions" &
    local waiting=$!
    wait_for 5 metric_is 'vllm:num_requests_waiting' 1 || fail "the second request does not wait"
    leave "$waiting"
    wait_for 5 metric_is 'vllm:num_requests_waiting' 0 || fail "the request of a client that left still waits"
    metric_is 'vllm:num_requests_running' 1 || fail "the other request does not run any more"
    leave "$CLIENT"
    wait_for 5 no_sequence_runs || fail "still held"
    stop_server
}
a_full_queue_is_429() {
    start_server --model $PODLING "${SLOWLY[@]}" --max-num-seqs 1 --max-queue 1
    begin_stream 60
    curl -sS -m $((50 * SLOW)) -o "$DIR/second" -H 'Content-Type: application/json' -d '{"prompt": "x", "max_tokens": 2}' "$URL/v1/completions" &
    local second=$!
    wait_for 5 metric_is 'vllm:num_requests_waiting' 1 || fail "the second request does not wait"
    call POST /v1/completions '{"prompt": "y", "max_tokens": 2}'
    expect_error 429 .
    [ -n "$(header retry-after)" ] || fail "no Retry-After: $(cat "$DIR/headers")"
    streamed_whole 60
    wait "$second"
    jq -e '.choices[0].text' "$DIR/second" >/dev/null || fail "the waiting request: $(cat "$DIR/second")"
    stop_server
}

cpu_ticks() { # of a session: user and system time of all its processes
    local pid total=0 line fields
    for pid in $(ps -o pid= --sid "$1"); do
        line=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
        read -ra fields <<<"${line##*) }"
        total=$((total + fields[11] + fields[12]))
    done
    echo $total
}
an_idle_server_sleeps() {
    local before after bound
    start_server --model $PODLING
    call POST /v1/completions '{"prompt": "x", "max_tokens": 5}'
    expect_code 200
    before=$(cpu_ticks "$SERVER")
    sleep 2 # what is measured is these two seconds
    after=$(cpu_ticks "$SERVER")
    bound=$(($(getconf CLK_TCK) * 2 * 3 / 100)) # 3 % of them
    [ $((after - before)) -le "$bound" ] || fail "$((after - before)) clock ticks in 2 idle seconds, want at most $bound"
    stop_server
}

keys_are_asked_for() {
    start_server --model $PODLING --api-key secret-one --api-key secret-two
    call GET /v1/models
    expect_error 401 .
    call GET /v1/models "" -H 'Authorization: Bearer wrong'
    expect_error 401 .
    call POST /v1/completions '{"prompt": "x"}' -H 'Authorization: Bearer secret-on'
    expect_error 401 .
    call GET /v1/models "" -H 'Authorization: Bearer secret-one'
    expect_code 200
    call POST /v1/completions '{"prompt": "x", "max_tokens": 2}' -H 'Authorization: Bearer secret-two'
    expect_code 200
    call GET /health
    expect_code 200
    call GET /metrics
    expect_code 200
    ! grep -q secret "$LOG.err" "$LOG.out" || fail "a key is in the log"
    stop_server
}
prompts_are_not_logged() {
    start_server --model $PODLING --log-level trace
    call POST /v1/chat/completions '{"messages": [{"role": "user", "content": "xylophone marmalade"}], "max_tokens": 5}'
    expect_code 200
    stop_server
    ! grep -qiE 'xylophone|marmalade' "$LOG.err" "$LOG.out" || fail "a prompt is in the log"
}

run_cases lifecycle sigterm_finishes_the_running_stream_and_exits_0 \
    sigint_finishes_the_running_stream_and_exits_0 an_idle_server_ends_at_once \
    a_server_stopped_while_it_starts_leaves_nothing \
    the_shutdown_timeout_ends_a_stream_that_takes_longer \
    a_second_server_on_the_port_is_refused_in_one_line run_says_that_its_port_is_taken \
    a_restart_takes_the_port_again_at_once \
    a_killed_rank_fails_its_requests_and_ends_the_server_with_20 \
    a_killed_rank_answers_waiting_requests_with_an_error a_killed_head_leaves_nothing \
    a_killed_agent_leaves_nothing a_client_that_leaves_frees_its_blocks \
    a_waiting_client_that_leaves_is_forgotten a_full_queue_is_429 an_idle_server_sleeps \
    keys_are_asked_for prompts_are_not_logged
