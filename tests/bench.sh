#!/bin/bash
# The figures that matter, as ratios where that is possible: this machine's own speed cancels out.
#
#   make bench                                  all of them, about twelve minutes
#   tests/bench.sh http prefix                  some: http prefix start idle pod split gpu vllm
#   VLLM_PYTHON=/venv/bin/python make bench     also vLLM on the same model, in the same run
#
# A benchmark is no test: nothing fails here. "floor" is what must hold, "goal" what is wanted.
# Medians, because others use the machine too; what is compared is measured in turns.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
superpod=${SUPERPOD_BUILD:-build/release}/superpod
model=configs/podling
dir=$(mktemp -d)
servers=()
trap 'stop_all; rm -rf "$dir"' EXIT
trap 'exit 143' INT TERM

stop_all() {
    local pid child
    for pid in ${servers[@]+"${servers[@]}"}; do
        kill -TERM "$pid" 2>/dev/null || continue
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null && sleep 0.1 || break; done
        for child in $(ps -o pid= --sid "$pid"); do kill -KILL "$child" 2>/dev/null; done
        wait "$pid" 2>/dev/null
    done
    servers=()
}

row() { printf '%-48s %14s %10s %10s\n' "$@"; }
median_of() { printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 } END { if (NR) print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) }'; }
calc() { awk "BEGIN { printf \"$1\", ($2) }"; } # parentheses: ">" would be a file
now_us() { echo "${EPOCHREALTIME/[.,]/}"; }

# A pause of milliseconds that starts no process.
exec {never}<> <(:)
pause() { read -rt "$1" -u "$never" || true; }

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
free_port() {
    local port
    while port=$((10000 + (BASHPID * 37 + RANDOM) % 20000)) && listening "$port"; do :; done
    echo "$port"
}
# /health of $port answers 200; asked without starting a process.
healthy() {
    local conn line=
    { exec {conn}<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || return 1
    printf 'GET /health HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: close\r\n\r\n' "$port" >&"$conn"
    read -rt 5 line <&"$conn"
    exec {conn}>&-
    [[ $line == "HTTP/1.1 200"* ]]
}
# Starts a command in a session of its own and waits for its /health: `server`, `ready_ms`.
start() { # seconds command...
    local limit=$1 began
    shift
    began=$(now_us)
    setsid "$@" >"$dir/server.out" 2>"$dir/server.err" </dev/null &
    server=$!
    servers+=("$server")
    until healthy; do
        pause 0.002
        if ! kill -0 "$server" 2>/dev/null || [ $(($(now_us) - began)) -gt $((limit * 1000000)) ]; then
            echo "not healthy: $(tail -n 2 "$dir/server.err")" >&2
            exit 1
        fi
    done
    ready_ms=$(calc %.1f "($(now_us) - $began) / 1000")
    url=http://127.0.0.1:$port
}
start_superpod() { # option...
    port=$(free_port)
    start 20 "$superpod" serve --model $model --port "$port" --quiet "$@"
}

metric() { curl -sS "$url/metrics" | awk -v name="$1" 'index($0, name) == 1 { sum += $NF } END { printf "%.9f", sum }'; }
# load STREAMS TOKENS: output tokens a second of `superpod bench http` against $url; the first
# request of each stream warms.
load() {
    "$superpod" bench http --url "$url" --streams "$1" --warmup "$1" --requests "$(($1 * 2))" \
        --prompt-tokens 32 --max-tokens "$2" --json >"$dir/load" 2>"$dir/load.err" ||
        echo "load of $url: $(tail -n 1 "$dir/load.err") $(jq -c .failures "$dir/load")" >&2
    jq -r .output_tokens_per_s "$dir/load"
}

# ---- what HTTP, head and ring cost against the bare step -----------------------------------------
bench_http() {
    local i step=() step_p50=() one=() gap_p50=() many=()
    start_superpod
    load 1 50 >/dev/null # warm
    for i in 1 2 3 4 5; do
        "$superpod" bench step --model $model --steps 200 >"$dir/step"
        step+=("$(jq -r .tok_per_s "$dir/step")")
        step_p50+=("$(jq -r .step_ms_p50 "$dir/step")")
        one+=("$(load 1 200)")
        gap_p50+=("$(jq -r .itl_ms.p50 "$dir/load")")
    done
    local s o
    s=$(median_of "${step[@]}")
    o=$(median_of "${one[@]}")
    row "bare decode steps, 1 sequence" "$(calc %.0f "$s") tok/s" - -
    row "1 stream over HTTP, 200 tokens, first included" "$(calc %.0f "$o") tok/s" - -
    row "  of the bare steps" "$(calc %.2f "$o / $s")" 0.5 0.8
    # Both mean the ordinary token; the figures above also hold what others on the machine took.
    row "median step / median gap between tokens" \
        "$(calc %.2f "$(median_of "${step_p50[@]}") / $(median_of "${gap_p50[@]}")")" 0.5 0.8

    local steps cpu events http_cpu
    steps=$(metric superpod:engine_steps_total) cpu=$(metric superpod:engine_step_cpu_seconds_total)
    events=$(metric superpod:http_events_total) http_cpu=$(metric superpod:http_event_cpu_seconds_total)
    for i in 1 2 3; do many+=("$(load 32 100)"); done
    many_rate=$(median_of "${many[@]}")
    row "32 streams over HTTP, 100 tokens each" "$(calc %.0f "$many_rate") tok/s" - -
    steps=$(calc %.9f "$(metric superpod:engine_steps_total) - $steps")
    cpu=$(calc %.9f "$(metric superpod:engine_step_cpu_seconds_total) - $cpu")
    events=$(calc %.9f "$(metric superpod:http_events_total) - $events")
    http_cpu=$(calc %.9f "$(metric superpod:http_event_cpu_seconds_total) - $http_cpu")
    row "  engine thread a step, 32 sequences" "$(calc %.1f "$steps > 0 ? $cpu / $steps * 1e6 : 0") us" "50 us" -
    row "  HTTP thread an event" "$(calc %.1f "$events > 0 ? $http_cpu / $events * 1e6 : 0") us" "10 us" -
    stop_all
}

# ---- a prompt of about 1,500 tokens, never seen and seen ------------------------------------------
bench_prefix() {
    local i body first=() second=()
    start_superpod
    for i in 1 2 3 4 5 6 7; do
        body=$(awk -v s="$i" 'BEGIN { printf "{\"max_tokens\": 1, \"temperature\": 0, \"prompt\": ["
            for (i = 0; i < 1500; i++) { s = (s * 16807 + 11) % 2147483647; printf "%s%d", i ? "," : "", 5 + s % 2000 }
            print "]}" }')
        first+=("$(timed "$body")")
        second+=("$(timed "$body")")
    done
    local f s
    f=$(median_of "${first[@]}")
    s=$(median_of "${second[@]}")
    row "1,500 tokens never seen: first token" "$(calc %.1f "$f * 1000") ms" - -
    row "1,500 tokens seen before: first token" "$(calc %.1f "$s * 1000") ms" - -
    row "  never seen / seen" "$(calc %.1f "$f / $s") x" "3 x" "10 x"
    stop_all
}
timed() { curl -sS -o /dev/null -w '%{time_total}' -H 'Content-Type: application/json' -d "$1" "$url/v1/completions"; }

# ---- from exec to the first answer ----------------------------------------------------------------
bench_start() {
    local i began first=() ready=()
    for i in $(seq 10); do
        began=$(now_us)
        "$superpod" run --model $model --temperature 0 "What is superpod?" 2>/dev/null </dev/null | {
            read -rN 1 _
            calc %.1f "($(now_us) - $began) / 1000" >"$dir/first"
            cat >/dev/null
        }
        first+=("$(cat "$dir/first")")
        start_superpod
        ready+=("$ready_ms")
        stop_all
    done
    row "superpod run: exec to the first character" "$(median_of "${first[@]}") ms" - -
    row "superpod serve: exec to /health 200" "$(median_of "${ready[@]}") ms" - -
}

# ---- what doing nothing costs ----------------------------------------------------------------------
cpu_ns() { # of all threads of a session
    local pid
    for pid in $(ps -o pid= --sid "$1"); do cat /proc/"$pid"/task/*/schedstat 2>/dev/null; done |
        awk '{ sum += $1 } END { printf "%d", sum }'
}
resident_kb() {
    local pid
    for pid in $(ps -o pid= --sid "$1"); do cat "/proc/$pid/status" 2>/dev/null; done |
        awk '/^VmRSS:/ { sum += $2 } END { print sum }'
}
bench_idle() {
    local before after began i fd fds=()
    start_superpod
    load 4 20 >/dev/null
    before=$(cpu_ns "$server") began=$(now_us)
    sleep 10
    after=$(cpu_ns "$server")
    row "idle, of one core over 10 s" "$(calc %.3f "($after - $before) / (($(now_us) - $began) * 1000) * 100") %" "1 %" "0.1 %"
    row "resident, all processes" "$(calc %.1f "$(resident_kb "$server") / 1024") MiB" - -

    ulimit -n 4096 2>/dev/null || true
    before=$(resident_kb "$server")
    for i in $(seq 1000); do
        { exec {fd}<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || break
        fds+=("$fd")
    done
    # A request on the last one: once it is answered the server has seen them all.
    healthy || true
    sleep 1
    after=$(resident_kb "$server")
    row "${#fds[@]} idle connections, each" "$(calc %.1f "($after - $before) / ${#fds[@]}") KiB" "50 KiB" "10 KiB"
    for fd in "${fds[@]}"; do exec {fd}>&-; done
    stop_all
}

# ---- many ranks on this machine --------------------------------------------------------------------
# Ranks that share two cores cannot be faster than one that has both: the ratios say what being
# several costs.
sum_of() { # ranks: the median of three runs, microseconds
    local i us=()
    for i in 1 2 3; do
        us+=("$("$superpod" bench allreduce --ranks "$1" --bytes 16KiB --iterations 3000 | jq -r .median_us)")
    done
    median_of "${us[@]}"
}
# against NAME STREAMS TOKENS FLOOR OPTION...: podling as one rank and with these options, in turns.
against() {
    local name=$1 streams=$2 tokens=$3 floor=$4 one many i a=() b=()
    shift 4
    start_superpod
    one=$url
    start_superpod "$@"
    many=$url
    for i in 0 1 2 3 4 5 6; do # the first turn warms both
        a[i]=$(url=$one && load "$streams" "$tokens")
        b[i]=$(url=$many && load "$streams" "$tokens")
    done
    local x y
    x=$(median_of "${a[@]:1}")
    y=$(median_of "${b[@]:1}")
    row "$streams stream$([ "$streams" = 1 ] || echo s) x $tokens tokens: 1 rank" "$(calc %.0f "$x") tok/s" - -
    row "$streams stream$([ "$streams" = 1 ] || echo s) x $tokens tokens: $name" "$(calc %.0f "$y") tok/s" - -
    row "  $name / 1 rank" "$(calc %.2f "$y / $x")" "$floor" -
    stop_all
}
wireup() { "$superpod" bench wireup --ranks "$1" --runs 5 --json | jq -r .ready_ms; }
bench_pod() {
    local ranks steps cpu events http_cpu before began
    for ranks in 2 4; do row "sum of 16 KiB, $ranks ranks, shared memory" "$(calc %.1f "$(sum_of $ranks)") us" - -; done
    against "tp 2" 1 200 0.7 --tp 2
    against "pp 2" 32 100 0.75 --pp 2
    row "exec to ready, 8 null ranks" "$(calc %.0f "$(wireup 8)") ms" "500 ms" -
    row "exec to ready, 64 null ranks" "$(calc %.0f "$(wireup 64)") ms" "5000 ms" "1000 ms"

    start_superpod --null-model --max-num-seqs 256
    load 256 4 >/dev/null # warm
    steps=$(metric superpod:engine_steps_total) cpu=$(metric superpod:engine_step_cpu_seconds_total)
    events=$(metric superpod:http_events_total) http_cpu=$(metric superpod:http_event_cpu_seconds_total)
    load 256 1500 >/dev/null # long answers: nearly all the time all 256 run
    steps=$(calc %.9f "$(metric superpod:engine_steps_total) - $steps")
    cpu=$(calc %.9f "$(metric superpod:engine_step_cpu_seconds_total) - $cpu")
    events=$(calc %.9f "$(metric superpod:http_events_total) - $events")
    http_cpu=$(calc %.9f "$(metric superpod:http_event_cpu_seconds_total) - $http_cpu")
    row "null model: engine thread a step, 256 sequences" "$(calc %.1f "$steps > 0 ? $cpu / $steps * 1e6 : 0") us" "200 us" "50 us"
    row "  tokens a step" "$(calc %.0f "$steps > 0 ? $events / $steps : 0")" - -
    row "  HTTP thread an event" "$(calc %.1f "$events > 0 ? $http_cpu / $events * 1e6 : 0") us" "10 us" -
    stop_all

    start_superpod --tp 2 --pp 2
    load 4 20 >/dev/null
    before=$(cpu_ns "$server") began=$(now_us)
    sleep 10
    row "4 ranks idle, of one core over 10 s" \
        "$(calc %.3f "($(cpu_ns "$server") - $before) / (($(now_us) - $began) * 1000) * 100") %" "2 %" "0.2 %"
    stop_all
}

# ---- prefill and decode by different groups ---------------------------------------------------------
# shellcheck source=tests/bench_split.sh
source tests/bench_split.sh

# ---- a GPU against what it can give -----------------------------------------------------------------
# GPU_MODEL=DIR: its shapes, and decode steps.
bench_gpu() {
    local why
    why=$("$superpod" inspect topology --json | jq -r '.backend.why // ""')
    if [ -n "$why" ]; then
        row "a GPU" "skipped" - -
        echo "  $why"
        return
    fi
    "$superpod" bench gpu ${GPU_MODEL:+--model "$GPU_MODEL"} --json >"$dir/gpu" || return
    row "copy inside the card, read and written" "$(calc %.0f "$(jq .copy_gb_per_s "$dir/gpu")") GB/s" - -
    row "largest product" "$(calc %.1f "$(jq .gemm_tflop_per_s "$dir/gpu")") TFLOP/s" - -
    row "smallest launch" "$(calc %.2f "$(jq .launch_us "$dir/gpu")") us" - -
    local op
    for op in add_rmsnorm embed act_mul gemm rope_store attend draw; do
        jq -r --arg op $op '[.operations[] | select(.op == $op)] | if length == 0 then empty
            else (min_by(.ratio), max_by(.ratio)) | "\(.op) \(.shape)\t\(.ratio)" end' "$dir/gpu" |
            while IFS=$'\t' read -r name ratio; do row "  $name" "$(calc %.2f "$ratio") x floor" - -; done
    done
    jq -r '.decode[] | select(.why == null) | "\(.batch)\t\(.tok_per_s)"' "$dir/gpu" |
        while IFS=$'\t' read -r batch rate; do row "decode steps, batch $batch" "$(calc %.0f "$rate") tok/s" - -; done
}

# ---- vLLM's CPU build on the same model, in turns with ours ----------------------------------------
bench_vllm() {
    local python=${VLLM_PYTHON:-} ours_port theirs_port ours theirs i ready
    if [ -z "$python" ]; then
        row "vLLM on the same model" "not asked" - -
        return
    fi
    ours_port=$(free_port) theirs_port=$(free_port)
    port=$theirs_port
    export OMP_NUM_THREADS=2 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
    # shellcheck disable=SC2086 # several options
    start 180 "$(dirname "$python")/vllm" serve $model --served-model-name podling --max-model-len 2048 \
        --max-num-seqs 64 --port "$theirs_port" ${VLLM_OPTIONS:-}
    ready=$ready_ms
    theirs=$url
    port=$ours_port
    start 20 "$superpod" serve --model $model --served-model-name podling --port "$ours_port" --quiet
    ours=$url
    row "exec to /health 200: vLLM / superpod" "$(calc %.0f "$ready / $ready_ms") x" - -

    local streams tokens a b ours_rate theirs_rate
    for streams in 1 32; do
        tokens=$((streams == 1 ? 200 : 100))
        a=() b=()
        for i in 1 2 3 4; do # the first turn warms both
            a+=("$(url=$ours && load "$streams" "$tokens")")
            b+=("$(url=$theirs && load "$streams" "$tokens")")
        done
        ours_rate=$(median_of "${a[@]:1}")
        theirs_rate=$(median_of "${b[@]:1}")
        row "$streams streams x $tokens tokens: superpod" "$(calc %.0f "$ours_rate") tok/s" - -
        row "$streams streams x $tokens tokens: vLLM" "$(calc %.0f "$theirs_rate") tok/s" - -
        row "  superpod / vLLM" "$(calc %.2f "$ours_rate / $theirs_rate")" 1 -
    done
    stop_all
}

[ -x $superpod ] || { echo "not built: $superpod" >&2 && exit 1; }
[ $# -gt 0 ] || set -- http prefix start idle pod split gpu vllm
row figure value floor goal
for part in "$@"; do "bench_$part"; done
