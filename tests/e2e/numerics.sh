#!/bin/bash
# Option numerics: fast on a device that has it, and its refusals.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

question="What is the capital of France?"
# Small sizes: the emulated device writes zeros into all that it takes.
ask() { # options...
    superpod run --model "$PODLING" --temperature 0 --max-tokens 12 --max-model-len 128 \
        --num-kv-blocks 16 --max-num-batched-tokens 64 --max-num-seqs 2 "$@" "$question"
}
needs_emulator() {
    [ -e "$BUILD/superpod_cuda_emu.so" ] || skip "no $BUILD/superpod_cuda_emu.so (make emu)"
}

fast_answers_on_the_emulated_device() {
    needs_emulator
    ask --device emu --numerics fast
    expect_ok
    expect_match "the answer" "$OUT" "The capital of France is Paris\."
    expect_eq "standard error" "$ERR" ""
}
fast_without_cublaslt_answers_with_one_warning() {
    needs_emulator
    SUPERPOD_EMU_CUBLASLT_VERSION=110000 ask --device emu --numerics fast
    expect_ok
    expect_match "the answer" "$OUT" "The capital of France is Paris\."
    expect_eq "lines on standard error" "$(wc -l <"$DIR/err")" 1
    expect_match "the warning" "$ERR" "numerics fast is by superpod's own kernels: .*want 12.0 or newer"
}
fast_on_the_cpu_is_refused_by_the_option() {
    ask --device cpu --numerics fast
    expect_refused 10 "option 'numerics' is fast: device 'cpu'" "--device cuda"
}
another_word_is_refused_with_those_there_are() {
    ask --numerics quick
    expect_refused 2 "option 'numerics': want exact or fast, got 'quick'"
}

run_cases numerics fast_answers_on_the_emulated_device \
    fast_without_cublaslt_answers_with_one_warning fast_on_the_cpu_is_refused_by_the_option \
    another_word_is_refused_with_those_there_are
