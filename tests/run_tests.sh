#!/bin/bash
# Builds and runs every test, as `./test` and `make test` do; installs nothing.
#
#   release       every unit test, then the end-to-end scripts of tests/e2e (that on a real Slurm
#                 only with --all or where CI is set)
#   asan (+ubsan) every unit test, then a share of the end-to-end scripts
#   tsan          the unit tests of what runs in threads
#
# The last line is "N passed, N failed, N skipped": single tests, added up over all programs and
# modes. A build that fails counts as one failed test.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

everything=${CI:-}
[ "${1:-}" != --all ] || everything=1

threaded='/(comm|engine|frontend)/|/test_(thread|metric|log|cpu_pool)$'
e2e_on_asan=(podling_chat bad_input)

passed=0 failed=0 skipped=0 failures=()

# Shows a step's output as it comes and adds its last line to the sums.
count() {
    local title=$1 log started=$SECONDS
    shift
    log=build/test-step.log
    echo "== $title"
    "$@" 2>&1 | tee "$log"
    local status=${PIPESTATUS[0]}
    if [[ $(tail -n 1 "$log") =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        skipped=$((skipped + BASH_REMATCH[3]))
        [ "${BASH_REMATCH[2]}" = 0 ] || failures+=("$title")
    elif [ "$status" = 0 ]; then
        status=1 # it said nothing of its tests: that is no success
        failed=$((failed + 1)) && failures+=("$title: no last line")
    else
        failed=$((failed + 1)) && failures+=("$title: status $status")
    fi
    echo "   $((SECONDS - started)) s"
}

# Builds quietly; the compiler's words are shown when it fails.
build() {
    local title=$1 started=$SECONDS
    shift
    echo "== $title"
    if ! make --no-print-directory -k -j2 "$@" >build/make.log 2>&1; then
        grep -vE '^  (compile|link) ' build/make.log | tail -n 60
        failed=$((failed + 1))
        failures+=("$title")
        return 1
    fi
    grep -B2 -A6 'warning:' build/make.log | head -n 40
    echo "   $((SECONDS - started)) s"
}

unit_programs() { find tests -name 'test_*.c' | sort | sed 's/\.c$//'; }

helpers() { find tests/e2e -name '*.c' | sort | sed "s#^#build/$1/#; s#\.c\$##"; }

mkdir -p build
# What did not build is counted below as well, by its own name: the rest still runs.
# shellcheck disable=SC2046 # names of ours, one word each
build "build (release)" all emu tests $(helpers release) NVCC=
count "unit tests (release)" tests/run_unit.sh build/release

# The scripts mostly wait: beside them, at the lowest priority, the builds that come after them.
mapfile -t programs < <(unit_programs | grep -E "$threaded")
# shellcheck disable=SC2046
setsid nice -n 19 bash -c 'asan=$1 && shift
    make -k -j2 MODE=asan all tests $asan
    make -k -j2 MODE=tsan "$@"
    make nvcc-check NVCC_ARCHS=90a >build/nvcc.log 2>&1' beside "$(helpers asan | tr '\n' ' ')" "${programs[@]/#/build/tsan/}" \
    >/dev/null 2>&1 </dev/null &
beside=$!
# So do Slurm, for its daemons, and pods of devices, for a rank that hangs: their scripts, one after
# another in a lane, have logs of their own, counted when the others are done.
lane() {
    local name
    for name in "$@"; do "tests/e2e/$name.sh" >"build/$name.log" 2>&1 </dev/null; done
}
apart=(emulated_hang emulated emulated_split)
waiting=()
lane emulated_hang &
waiting+=($!)
lane emulated emulated_split &
waiting+=($!)
if [ -n "$everything" ]; then
    apart+=(slurm)
    lane slurm &
    waiting+=($!)
fi
trap 'kill -- "-$beside" "${waiting[@]}" 2>/dev/null' EXIT
trap 'exit 143' INT TERM

for script in tests/e2e/*.sh; do
    name=$(basename "$script" .sh)
    case $name in
    lib | *_lib | slurm | emulated*) ;;
    *) count "end to end: $name" "$script" ;;
    esac
done
wait "${waiting[@]}"
for name in "${apart[@]}"; do count "end to end: $name" cat "build/$name.log"; done

# Whatever the builds said is said again by these.
wait "$beside"
trap - EXIT
# shellcheck disable=SC2046
build "build (asan)" MODE=asan all tests $(helpers asan)
count "unit tests (asan, ubsan)" tests/run_unit.sh build/asan
for name in "${e2e_on_asan[@]}"; do
    count "end to end (asan): $name" env SUPERPOD_BUILD=build/asan "tests/e2e/$name.sh"
done

build "build (tsan)" MODE=tsan "${programs[@]/#/build/tsan/}"
count "unit tests (tsan)" tests/run_unit.sh build/tsan "${programs[@]}"

# The same kernels by nvcc, where it is, for one of the architectures that `make` builds; nothing of it
# can run without a GPU.
echo "== nvcc" && cat build/nvcc.log
if ! grep -qE "^nvcc-check (passed|skipped)" build/nvcc.log; then
    failed=$((failed + 1))
    failures+=("nvcc-check")
fi

if [ ${#failures[@]} -gt 0 ]; then
    echo "failed:"
    printf '  %s\n' "${failures[@]}"
fi
echo "took $SECONDS s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
