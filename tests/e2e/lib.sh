# shellcheck shell=bash
# tests/e2e/lib.sh - sourced by the scripts of this folder: cases, servers, requests, assertions.
#
# A script defines one function a case, named as a sentence, and ends with
#     run_cases SUITE case_one case_two ...
# Every case runs in a process of its own under a time limit; `fail` and any command that fails end
# it, `skip` marks it.
#     tests/e2e/NAME.sh [PART]     runs the cases whose name contains PART
#     SUPERPOD_BUILD=build/asan    takes the binaries of another build
#
# Servers run in sessions of their own, so that "nothing is left" can be asked of the session; only
# processes started here are ever signalled.
set -Euo pipefail
SELF=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

only=${1:-} # of the script that sources this
BUILD=${SUPERPOD_BUILD:-build/release}
SUPERPOD=$BUILD/superpod
# shellcheck disable=SC2034 # for the scripts
PODLING=configs/podling
# shellcheck disable=SC2034
GOLDENS=tests/data/goldens
# Sanitizers slow everything down: deadlines stretch with them.
case $BUILD in
*asan | *tsan) SLOW=8 ;;
*) SLOW=1 ;;
esac
export LC_ALL=C
export ASAN_OPTIONS=detect_leaks=1:${ASAN_OPTIONS:-} UBSAN_OPTIONS=print_stacktrace=1
case_limit_s=60

# ---- outcomes ------------------------------------------------------------------------------------

fail() {
    trap - ERR
    echo "    $*" >&2
    exit 1
}
skip() {
    trap - ERR
    echo "$*" >"$DIR/skip"
    exit 77
}

expect_eq() { # what got want
    [ "$2" = "$3" ] || fail "$1 is '${2:0:400}', want '${3:0:400}'"
}
expect_match() { # what got regex
    [[ $2 =~ $3 ]] || fail "$1 is '${2:0:400}', want a match of '$3'"
}
expect_same_file() { # what got want
    cmp -s "$2" "$3" || fail "$1: '$2' and '$3' differ ($(sha256sum "$2" "$3" | cut -c1-12 | paste -sd' '))"
}

# ---- commands ------------------------------------------------------------------------------------

# Runs the binary; STATUS, and what it wrote in $DIR/out and $DIR/err.
superpod() {
    STATUS=0
    timeout -k 5 $((30 * SLOW)) "$SUPERPOD" "$@" >"$DIR/out" 2>"$DIR/err" </dev/null || STATUS=$?
    OUT=$(cat "$DIR/out")
    ERR=$(cat "$DIR/err")
}
expect_ok() { # the last superpod() ended with 0
    [ "$STATUS" = 0 ] || fail "exit status $STATUS, want 0; it said: ${ERR:0:400}"
}
# A refusal: this exit status, nothing on stdout, one line on stderr that matches every regex.
expect_refused() { # status regex...
    local want=$1 regex
    shift
    [ "$STATUS" = "$want" ] || fail "exit status $STATUS, want $want; it said: ${ERR:0:400}"
    expect_eq "standard output" "$OUT" ""
    expect_eq "lines on standard error of: $ERR" "$(wc -l <"$DIR/err")" 1
    for regex in "$@"; do expect_match "the message" "$ERR" "$regex"; done
}

# ---- servers -------------------------------------------------------------------------------------

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() {
    local port
    for _ in $(seq 200); do
        # Below the range that the kernel gives to clients, so that nobody takes it meanwhile.
        port=$((10000 + (BASHPID * 37 + RANDOM) % 20000))
        listening "$port" || { echo "$port" && return; }
    done
    fail "no free port in 200 tries"
}

now_ms() { date +%s%3N; }

# wait_for SECONDS COMMAND...: asks every 20 ms until it holds; false at the deadline.
wait_for() {
    local end=$(($(now_ms) + $1 * 1000 * SLOW))
    shift
    until "$@"; do
        [ "$(now_ms)" -lt "$end" ] || return 1
        sleep 0.02
    done
}

healthy() { [ "$(curl -s -m 5 -o /dev/null -w '%{http_code}' "$1/health")" = 200 ]; }
ended() { ! kill -0 "$1" 2>/dev/null; }
ready_or_ended() { healthy "$URL" || ended "$SERVER"; }

# Starts `superpod serve OPTION...` on a free port: SERVER (pid and session), PORT, URL, LOG.
# Signals get their default action back first: a shell without job control ignores SIGINT for
# what it starts in the background.
spawn_server() {
    PORT=${WANT_PORT:-$(free_port)}
    URL=http://127.0.0.1:$PORT
    LOG=$DIR/server-$PORT
    env --default-signal=INT,QUIT,TERM setsid "$SUPERPOD" serve --port "$PORT" "$@" \
        >"$LOG.out" 2>"$LOG.err" </dev/null &
    SERVER=$!
    echo "$SERVER" >>"$DIR/servers"
    export SERVER PORT URL LOG
}
start_server() {
    spawn_server "$@"
    wait_for 20 ready_or_ended || fail "not healthy after $((20 * SLOW)) s: $(tail -n 3 "$LOG.err")"
    ! ended "$SERVER" || fail "ended at its start: $(tail -n 3 "$LOG.err")"
}

session() { ps -o pid=,stat=,args= --sid "$1" | awk '$2 !~ /^Z/'; }
session_is_empty() { [ -z "$(session "$1")" ]; }

# Waits for the end of the server: EXIT is its status. Nothing of its session may stay, nor its port.
expect_end() {
    wait_for 20 ended "$SERVER" || fail "still there $((20 * SLOW)) s later: $(session "$SERVER")"
    EXIT=0
    wait "$SERVER" || EXIT=$?
    wait_for 2 session_is_empty "$SERVER" || fail "left behind: $(session "$SERVER")"
    ! listening "$PORT" || fail "port $PORT is still open"
}
stop_server() { # [signal]
    kill -"${1:-TERM}" "$SERVER"
    expect_end
    [ "$EXIT" = 0 ] || fail "exit status $EXIT after SIG${1:-TERM}, want 0: $(tail -n 30 "$LOG.err")"
}

# The last resort after a case that failed.
kill_servers() { # folder
    local pid child
    [ -f "$1/servers" ] || return 0
    while read -r pid; do
        for child in $(ps -o pid= --sid "$pid"); do kill -KILL "$child" 2>/dev/null; done
        wait "$pid" 2>/dev/null # or the shell remarks on its death
    done <"$1/servers"
    rm -f "$1/servers"
}

rank_pid() { # of server: the process titled "superpod: rank N"
    ps -o pid=,args= --sid "$1" | awk '/superpod: rank [0-9]/ { print $1; exit }'
}

# ---- requests ------------------------------------------------------------------------------------

# call METHOD PATH [JSON [curl option...]]: CODE, BODY (also $DIR/body) and $DIR/headers.
call() {
    local method=$1 path=$2 body=${3-}
    shift $(($# < 3 ? $# : 3))
    local args=(-sS -m $((30 * SLOW)) -X "$method" -o "$DIR/body" -D "$DIR/headers" -w '%{http_code}')
    : >"$DIR/body"
    if [ -n "$body" ]; then
        printf '%s' "$body" >"$DIR/request"
        args+=(-H 'Content-Type: application/json' --data-binary "@$DIR/request")
    fi
    CODE=$(curl "${args[@]}" "$@" "$URL$path" 2>"$DIR/curl") || CODE="curl: $(cat "$DIR/curl")"
    BODY=$(cat "$DIR/body")
}
expect_code() { [ "$CODE" = "$1" ] || fail "status $CODE, want $1: ${BODY:0:400}"; }
# A jq filter over the last body that must be true.
expect_jq() {
    jq -e "$@" "$DIR/body" >/dev/null || fail "not true of the answer: $*: ${BODY:0:600}"
}
answer() { jq -r "$1" "$DIR/body"; }
# An OpenAI error object of this status whose message matches.
expect_error() { # code regex
    expect_code "$1"
    expect_jq --argjson code "$1" '.error | (.message | type == "string" and length > 0)
        and (.type | type == "string") and has("param")
        and (.code == $code or .code == "context_length_exceeded")'
    expect_match "the message" "$(answer .error.message)" "$2"
}

# stream PATH JSON [curl option...]: the events' JSON, one a line, in $DIR/events; the last line of
# the stream must be [DONE].
stream() {
    local path=$1 body=$2
    shift 2
    call POST "$path" "$body" -N "$@"
    expect_code 200
    expect_match "the content type" "$(header content-type)" '^text/event-stream'
    split_events "$DIR/body"
}
split_events() { # file
    expect_eq "the stream's end" "$(grep '^data: ' "$1" | tail -n 1)" "data: [DONE]"
    sed -n 's/^data: //p' "$1" | grep -v '^\[DONE\]' >"$DIR/events" || true
}
header() { awk -v name="$1" 'BEGIN { FS = ": " } tolower($1) == name { sub(/\r$/, ""); print $2 }' "$DIR/headers"; }

# The value of one metric line, by a regular expression of its name and labels; nothing when absent.
metric() { curl -sS -m 10 "$URL/metrics" | awk -v re="^$1" '!n && $0 ~ re { print $NF; n = 1 }'; }
metric_is() { # regex value
    local got
    got=$(metric "$1")
    [ -n "$got" ] && awk -v a="$got" -v b="$2" 'BEGIN { exit !(a == b) }'
}

# raw BYTES (printf escapes): writes them as they are, reads until the server closes or 5 s passed;
# the answer is in $DIR/raw, its status in CODE ("none" without one).
raw() {
    local conn
    exec {conn}<>"/dev/tcp/127.0.0.1/$PORT" || fail "no connection"
    # A server that answers and closes early makes the rest of the write fail: that is its right.
    (trap '' PIPE && printf '%b' "$1" >&"$conn") 2>/dev/null || true
    timeout $((5 * SLOW)) cat <&"$conn" >"$DIR/raw" 2>/dev/null || true
    exec {conn}>&-
    CODE=$(awk 'NR == 1 && /^HTTP\/1\.[01] / { print $2 }' "$DIR/raw")
    BODY=$(cat "$DIR/raw")
    : "${CODE:=none}"
}

# ---- the runner ----------------------------------------------------------------------------------

on_error() { echo "    line $1: '$2' failed" >&2; }

run_cases() {
    local suite=$1 name status
    shift
    if [ "${E2E_CASE:-}" ]; then
        trap 'set +e; trap - ERR; kill_servers "$DIR"' EXIT
        trap 'exit 143' TERM
        trap 'on_error $LINENO "$BASH_COMMAND"' ERR
        set -e
        "$E2E_CASE"
        exit 0
    fi

    local passed=0 failed=0 skipped=0
    TMP=$(mktemp -d)
    trap 'rm -rf "$TMP"' EXIT
    if [ ! -x "$SUPERPOD" ]; then
        echo "FAILED  $suite: '$SUPERPOD' is not built"
        echo "$suite: 0 passed, 1 failed, 0 skipped"
        exit 1
    fi
    for name in "$@"; do
        [[ $name == *"$only"* ]] || continue
        mkdir "$TMP/$name"
        status=0
        DIR=$TMP/$name E2E_CASE=$name timeout -k 10 $((case_limit_s * SLOW)) "$SELF" \
            >"$TMP/$name/log" 2>&1 </dev/null || status=$?
        kill_servers "$TMP/$name"
        case $status in
        0) passed=$((passed + 1)) ;;
        77)
            skipped=$((skipped + 1))
            echo "skipped $suite: $name ($(cat "$TMP/$name/skip"))"
            ;;
        *)
            failed=$((failed + 1))
            [ "$status" != 124 ] || echo "    ran past $((case_limit_s * SLOW)) s" >>"$TMP/$name/log"
            echo "FAILED  $suite: $name"
            tail -n 40 "$TMP/$name/log"
            ;;
        esac
    done
    echo "$suite: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}
