#!/bin/bash
# What is read instead of run: formatting, house rules, two compilers' warnings, analyzers, scripts.
#
#   tests/lint.sh [STEP...]     format floors headers gcc clang tidy analyzer scripts; default: all
#
# Every step runs even when one before it found something. Exit status 1 when any did.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

# Flags are the Makefile's own, so that both never disagree.
database=$(make --no-print-directory -pn help 2>/dev/null)
make_variable() { sed -n "s/^$1 :\?= //p" <<<"$database" | head -n 1; }
read -ra warn <<<"$(make_variable WARN) -Werror"
read -ra base <<<"-std=gnu11 -D_GNU_SOURCE -DSP_VERSION=\"0\" -I. -Ikernels/cuda/emu/shim $(make_variable BITS) $(make_variable PKG_CFLAGS)"
read -ra isas <<<"$([ "$(uname -m)" = x86_64 ] && echo 'avx2 avx512') generic"

# Sources compiled once an instruction set stand apart: each with its own flags.
mapfile -t product < <(find runtime kernels comm frontend launcher -name '*.c' | grep -v '^kernels/cpu/isa_' | sort)
mapfile -t isa_sources < <(find kernels/cpu -name 'isa_*.c' 2>/dev/null | sort)
mapfile -t test_sources < <(find tests -name '*.c' | sort)
mapfile -t headers < <(find runtime kernels comm frontend launcher tests -name '*.h' ! -name lint_analyzer.h | sort)

# each COMMAND... < list: runs "COMMAND file" for every line, two at a time; fails when one did.
each() { xargs -r -P 2 -d '\n' -I {} "$@" {}; }
lines() { printf '%s\n' "$@"; }

# compile COMPILER: every source with every warning as an error, nothing is written.
compile() {
    local cc=$1 status=0 isa flags
    lines "${product[@]}" "${test_sources[@]}" |
        each "$cc" "${base[@]}" "${warn[@]}" -O1 -fsyntax-only || status=1
    for isa in "${isas[@]}"; do
        [ ${#isa_sources[@]} -gt 0 ] || break
        read -ra flags <<<"$(make_variable "ISA_FLAGS_$isa")"
        lines "${isa_sources[@]}" |
            each "$cc" "${base[@]}" "${warn[@]}" ${flags[@]+"${flags[@]}"} "-DSP_ISA=$isa" "-DSP_ISA_$isa" -O1 -fsyntax-only || status=1
    done
    return $status
}

step_format() {
    # Other versions break lines elsewhere; a difference between tools is nobody's mistake.
    case $(clang-format --version) in
    *"version 14."*) ;;
    *) echo "not checked: the format is clang-format 14's, this is $(clang-format --version)" && return 0 ;;
    esac
    find runtime kernels comm frontend launcher tests -name '*.[ch]' -print0 |
        xargs -0 -P 2 -n 20 clang-format --dry-run -Werror --ferror-limit=3
}
step_floors() { tests/check_floors.sh; }
# Each header alone; kernels/cpu/vec16_*.h are the parts of vec16.h that differ by instruction set.
step_headers() {
    lines "${headers[@]}" | grep -v '^kernels/cpu/vec16_' | each bash -c \
        'printf "#include \"%s\"\n" "${!#}" | gcc "${@:1:$# - 1}" -fsyntax-only -x c -' alone "${base[@]}"
}
step_gcc() { compile gcc; }
step_clang() { compile clang; }
# clang-tidy takes seconds a file: by default it reads what reads the world's bytes; `tests/lint.sh
# tidy_all` reads everything.
step_tidy() { tidy "$(lines "${product[@]}" | grep -E '^(runtime/base|runtime/format|comm)/|^frontend/http')"; }
step_tidy_all() { tidy "$(lines "${product[@]}")"; }
tidy() { # files, one a line
    lines "$1" | each bash -c 'clang-tidy --quiet "${!#}" -- "${@:1:$# - 1}" 2>/dev/null' \
        tidy "${base[@]}" -include tests/lint_analyzer.h
}
# gcc's analyzer is for the code that reads the world's bytes.
step_analyzer() {
    lines "${product[@]}" | grep -E '^(runtime/base|runtime/format)/|^frontend/http' |
        each gcc "${base[@]}" "${warn[@]}" -O1 -fanalyzer -S -o /dev/null
}
step_scripts() { shellcheck -x -S warning run test .ci/run configs/*.sh slurm/*.sbatch tests/*.sh tests/e2e/*.sh; }

[ $# -gt 0 ] || set -- format floors headers gcc clang tidy analyzer scripts
failed=()
for step in "$@"; do
    started=$SECONDS
    if output=$("step_$step" 2>&1); then
        echo "lint: $step ok ($((SECONDS - started)) s)"
    else
        failed+=("$step")
        echo "lint: $step FAILED ($((SECONDS - started)) s)"
    fi
    [ -z "$output" ] || printf '%s\n' "$output" | head -n 200 | sed 's/^/    /'
done
[ ${#failed[@]} = 0 ] || echo "lint failed: ${failed[*]}"
[ ${#failed[@]} = 0 ]
