#!/bin/bash
# Runs unit test programs of one build folder, two at a time, each under a time limit.
#
#   tests/run_unit.sh build/release                         all of tests/**/test_*.c
#   tests/run_unit.sh build/tsan tests/comm/test_ring ...   these
#
# A program ends with the line "suite: N passed, N failed, N skipped". One that does not (a crash, a
# sanitizer's report, the time limit) counts as one failed test more, by the program's name. What a
# program prints is shown when it failed; of others only the skipped tests are shown.
# The last line is "unit (MODE): N passed, N failed, N skipped"; exit status 1 when any failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
build=${1:?usage: tests/run_unit.sh BUILD_DIR [PROGRAM...]}
shift
mode=${build##*/}
case $mode in
asan | tsan) limit_s=180 ;;
*) limit_s=60 ;;
esac

# A leak, an undefined shift or a race is a failure and never only a remark.
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:${ASAN_OPTIONS:-}
export UBSAN_OPTIONS=print_stacktrace=1:${UBSAN_OPTIONS:-}
export TSAN_OPTIONS=halt_on_error=0:exitcode=66:second_deadlock_stack=1:${TSAN_OPTIONS:-}

programs=("$@")
if [ ${#programs[@]} = 0 ]; then
    mapfile -t programs < <(find tests -name 'test_*.c' | sort | sed 's/\.c$//')
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# One program: its output and exit status into files named after it.
run_one() {
    local name=$1 log
    log=$out/${name//\//-}
    local wrap=()
    # gcc 12's thread sanitizer cannot place its shadow when addresses are too random.
    if [ "$mode" = tsan ] && setarch -R true 2>/dev/null; then wrap=(setarch -R); fi
    if [ ! -x "$build/$name" ]; then
        echo "not built: $build/$name" >"$log"
        echo 127 >"$log.status"
        return
    fi
    # The outer redirection takes the shell's own remark on a crash.
    { timeout -k 5 "$limit_s" "${wrap[@]}" "$build/$name" >"$log" 2>&1 </dev/null; } 2>/dev/null
    echo $? >"$log.status"
}

running=0
for name in "${programs[@]}"; do
    if [ "$running" -ge 2 ]; then
        wait -n
        running=$((running - 1))
    fi
    run_one "$name" &
    running=$((running + 1))
done
wait

passed=0 failed=0 skipped=0
for name in "${programs[@]}"; do
    log=$out/${name//\//-}
    status=$(cat "$log.status" 2>/dev/null || echo 127)
    why=
    case $status in
    0 | 1) ;;
    124 | 137) why="ran past $limit_s s" ;;
    *) why="ended with status $status" ;;
    esac
    if [[ $(tail -n 1 "$log" 2>/dev/null) =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        skipped=$((skipped + BASH_REMATCH[3]))
        failed=$((failed + BASH_REMATCH[2]))
        [ "${BASH_REMATCH[2]}" = 0 ] && [ "$status" = 1 ] && why="ended with status 1"
    else
        : "${why:=ended with status $status before its last line}"
    fi
    if [ -n "$why" ]; then
        failed=$((failed + 1))
        echo "FAILED  $name ($mode): $why"
    fi
    if [ "$status" != 0 ]; then
        tail -n 200 "$log" | sed 's/^/    /'
    else
        grep '^skipped ' "$log"
    fi
done
echo "unit ($mode): $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
