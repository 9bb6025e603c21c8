#!/bin/bash
# The commands that tools and people rely on: help, run, inspect, names of the Hugging Face cache.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

every_command_has_help() {
    local words
    for words in "" serve run inspect "inspect tokens" "inspect template" "inspect tensors" "inspect logits" \
        "inspect topology" bench "bench step" "bench http" "bench gpu"; do
        # shellcheck disable=SC2086 # several words
        superpod $words --help
        expect_ok
        [ "$(wc -l <"$DIR/out")" -ge 2 ] || fail "the help of '$words' is short: $OUT"
    done
    superpod serve --help
    local option
    for option in model port host max-num-seqs max-num-batched-tokens block-size api-key threads tensor-parallel-size; do
        expect_match "serve --help" "$OUT" "--$option"
    done
}
version_says_name_and_number() {
    superpod --version
    expect_ok
    expect_match "the version" "$OUT" '^superpod [0-9]+\.[0-9]+\.[0-9]+$'
}

run_answers_one_prompt() {
    superpod run --model $PODLING --temperature 0 "What is the capital of France?"
    expect_ok
    expect_eq "standard output" "$OUT" "The capital of France is Paris."
    # Its last byte is a newline, and there is only one.
    expect_eq "bytes" "$(stat -c %s "$DIR/out")" 32
}
run_reads_a_prompt_from_standard_input() {
    printf 'What is the capital of Italy?' | "$SUPERPOD" run --model $PODLING --temperature 0 >"$DIR/out" 2>"$DIR/err"
    grep -q Rome "$DIR/out" || fail "it said: $(cat "$DIR/out") $(cat "$DIR/err")"
}
run_raw_prints_the_completion_and_nothing_else() {
    superpod run --model $PODLING --raw --temperature 0 --max-tokens 20 --prompt "The capital of France"
    expect_ok
    local ids
    "$SUPERPOD" run --model $PODLING --raw --temperature 0 --max-tokens 20 --ids --prompt "The capital of France" >"$DIR/ids"
    ids=$(jq -c . "$DIR/ids")
    "$SUPERPOD" inspect tokens --model $PODLING --ids "$(jq -r 'join(",")' <<<"$ids")" >"$DIR/text"
    [ -n "$OUT" ] || fail "nothing was said"
    # --raw writes the text as it is; the shell strips newlines of both alike.
    local text
    text=$(jq -r . "$DIR/text" 2>/dev/null || cat "$DIR/text")
    expect_eq "the completion" "$OUT" "${text%%<|*}"
}
run_stops_at_max_tokens() {
    superpod run --model $PODLING --raw --ids --ignore-eos --temperature 0 --tokens 1,2,3 --max-tokens 7
    expect_ok
    jq -e 'length == 7' "$DIR/out" >/dev/null || fail "ids: $OUT"
}
run_with_a_seed_is_repeatable() {
    local first
    superpod run --model $PODLING --raw --ids --ignore-eos --temperature 1 --seed 5 --tokens 5,6,7 --max-tokens 30
    expect_ok
    first=$OUT
    superpod run --model $PODLING --raw --ids --ignore-eos --temperature 1 --seed 5 --tokens 5,6,7 --max-tokens 30
    expect_eq "the same seed" "$OUT" "$first"
    superpod run --model $PODLING --raw --ids --ignore-eos --temperature 1 --seed 6 --tokens 5,6,7 --max-tokens 30
    [ "$OUT" != "$first" ] || fail "another seed draws the same"
}
run_leaves_no_process() {
    setsid "$SUPERPOD" run --model $PODLING --temperature 0 "What is superpod?" >"$DIR/out" 2>"$DIR/err" </dev/null &
    local pid=$!
    wait $pid
    wait_for 2 session_is_empty $pid || fail "left behind: $(session $pid)"
}

inspect_tokens_encodes_and_decodes() {
    superpod inspect tokens --model $PODLING --text "Hello, world"
    expect_ok
    local ids
    ids=$(jq -r 'join(",")' "$DIR/out")
    superpod inspect tokens --model $PODLING --ids "$ids"
    expect_ok
    expect_match "the text" "$OUT" 'Hello, world'
    # Without --special the spelling of a special token is ordinary text.
    superpod inspect tokens --model $PODLING --text "<|eot_id|>"
    jq -e 'length > 1' "$DIR/out" >/dev/null || fail "ids: $OUT"
    superpod inspect tokens --model $PODLING --special --text "<|eot_id|>"
    expect_eq "the ids" "$(jq -c . "$DIR/out")" "[4]"
}
inspect_tokens_reads_lines() {
    printf '%s\n' '"Hello"' '""' '"h\u00e9llo \ud83d\ude00\n"' >"$DIR/texts"
    "$SUPERPOD" inspect tokens --model $PODLING --stdin <"$DIR/texts" >"$DIR/ids"
    expect_eq "lines" "$(wc -l <"$DIR/ids")" 3
    expect_eq "the ids of nothing" "$(sed -n 2p "$DIR/ids" | jq -c .)" "[]"
    "$SUPERPOD" inspect tokens --model $PODLING --stdin <"$DIR/ids" | jq -c . >"$DIR/back"
    jq -c . "$DIR/texts" >"$DIR/want"
    expect_same_file "there and back" "$DIR/back" "$DIR/want"
}
inspect_template_renders() {
    echo '[{"role": "user", "content": "Hi"}]' >"$DIR/messages.json"
    superpod inspect template --model $PODLING --messages "$DIR/messages.json"
    expect_ok
    expect_match "the prompt" "$OUT" '<\|start_header_id\|>user<\|end_header_id\|>'
    printf '{%% for m in messages %%}[{{ m.role }}: {{ m.content }}]{%% endfor %%}' >"$DIR/own.jinja"
    superpod inspect template --template "$DIR/own.jinja" --messages "$DIR/messages.json"
    expect_ok
    expect_eq "the prompt" "$OUT" "[user: Hi]"
}
inspect_template_says_errors_line_by_line() {
    printf '{%% if boom %%}{{ raise_exception("roles must alternate") }}{%% endif %%}fine' >"$DIR/own.jinja"
    printf '%s\n' '{"messages": []}' '{"messages": [], "boom": true}' '{"messages": []}' |
        "$SUPERPOD" inspect template --template "$DIR/own.jinja" --stdin >"$DIR/out"
    expect_eq "lines" "$(wc -l <"$DIR/out")" 3
    expect_eq "the first" "$(sed -n 1p "$DIR/out" | jq -r .text)" fine
    expect_match "the second" "$(sed -n 2p "$DIR/out" | jq -r .error)" 'roles must alternate'
    expect_eq "the third" "$(sed -n 3p "$DIR/out" | jq -r .text)" fine
}

a_name_is_found_in_the_hugging_face_cache() {
    local at=$DIR/hf/hub/models--acme--tiny
    mkdir -p "$at/refs" "$at/snapshots/0123abcd" "$at/blobs"
    printf 0123abcd >"$at/refs/main"
    local file
    for file in $GOLDENS/llama2/*; do
        cp "$file" "$at/blobs/$(basename "$file")-blob"
        ln -s "../../blobs/$(basename "$file")-blob" "$at/snapshots/0123abcd/$(basename "$file")"
    done
    HF_HOME=$DIR/hf superpod run --model acme/tiny --raw --ids --ignore-eos --temperature 0 --max-tokens 24 \
        --tokens "$(jq -r '.greedy.prompt | join(",")' $GOLDENS/llama2/golden.json)"
    expect_ok
    expect_eq "the ids" "$(jq -c . "$DIR/out")" "$(jq -c .greedy.tokens $GOLDENS/llama2/golden.json)"
    HF_HOME=$DIR/hf superpod run --model acme/absent --raw --tokens 1
    expect_refused 10 acme/absent
}

serve_answers_under_every_name() {
    start_server --model $PODLING --served-model-name podling --served-model-name demo
    call GET /v1/models
    expect_code 200
    expect_jq '.object == "list" and ([.data[].id] | sort) == ["demo", "podling"]'
    call GET /v1/models/demo
    expect_code 200
    expect_jq '.id == "demo" and .object == "model"'
    call POST /v1/completions '{"model": "demo", "prompt": "x", "max_tokens": 2}'
    expect_code 200
    expect_jq '.model == "demo"'
    stop_server
}
tokenize_and_detokenize_are_inverse() {
    start_server --model $PODLING
    call POST /tokenize '{"prompt": "Hello, world", "add_special_tokens": false}'
    expect_code 200
    expect_jq '.count == (.tokens | length) and .max_model_len == 2048'
    call POST /detokenize "$(answer '{tokens} | @json')"
    expect_code 200
    expect_jq '.prompt == "Hello, world"'
    stop_server
}
metrics_and_small_routes_answer() {
    start_server --model $PODLING
    local path
    for path in /health /ready /ping /version /load /metrics /v1/models /openai/v1/models; do
        call GET $path
        expect_eq "status of $path" "$CODE" 200
    done
    call POST /v1/completions '{"prompt": "x", "max_tokens": 3, "ignore_eos": true}'
    expect_code 200
    metric_is 'vllm:generation_tokens_total' 3 || fail "generation tokens: $(metric 'vllm:generation_tokens_total')"
    local lines
    lines=$(curl -sS "$URL/metrics" | grep '^# TYPE' | sort | uniq -d)
    expect_eq "TYPE lines that come twice" "$lines" ""
    call GET /health "" -H 'X-Request-Id: abc-123'
    expect_eq "the echoed id" "$(header x-request-id)" abc-123
    stop_server
}
options_come_from_a_file_and_from_variables() {
    printf 'model: %s\nserved_model_name: [from-file]\nmax-num-seqs: 3\n' $PODLING >"$DIR/pod.yaml"
    start_server --config "$DIR/pod.yaml"
    call GET /v1/models
    expect_jq '.data[0].id == "from-file"'
    stop_server
    SUPERPOD_SERVED_MODEL_NAME=from-env start_server --config "$DIR/pod.yaml"
    call GET /v1/models
    expect_jq '.data[0].id == "from-env"'
    stop_server
    SUPERPOD_SERVED_MODEL_NAME=from-env start_server --config "$DIR/pod.yaml" --served-model-name from-flag
    call GET /v1/models
    expect_jq '.data[0].id == "from-flag"'
    stop_server
}
the_reference_configuration_is_the_generated_one() {
    superpod serve --print-reference
    expect_ok
    expect_same_file "configs/reference.yaml and --print-reference" configs/reference.yaml "$DIR/out"
}
bench_prints_json() {
    superpod bench step --model $PODLING --steps 20
    expect_ok
    jq -e '.tok_per_s > 0 and .step_ms_p50 > 0' "$DIR/out" >/dev/null || fail "bench step: $OUT"
    start_server --model $PODLING
    superpod bench http --url "$URL" --streams 2 --requests 6 --max-tokens 20 --json
    expect_ok
    jq -e '.completed == 6 and .failed == 0 and .output_tokens == 120' "$DIR/out" >/dev/null || fail "bench http: $OUT"
    stop_server
}
the_emulated_gpu_is_told_and_timed() {
    [ -e "$BUILD/superpod_cuda_emu.so" ] || skip "no superpod_cuda_emu.so"
    SUPERPOD_EMU_DEVICES=2 superpod inspect topology --device emu --json
    expect_ok
    jq -e '.backend | .why == null and (.devices | length) == 2 and .links[0].peer' "$DIR/out" >/dev/null ||
        fail "inspect topology: $OUT"
    SUPERPOD_EMU_DEVICES=2 SUPERPOD_EMU_PEERS=0 superpod inspect topology --device emu
    expect_match "the link" "$OUT" 'link +through the host: 0-1'
    superpod bench gpu --device emu --json
    expect_ok
    jq -e '.emulated and ([.operations[].op] | unique | length) >= 7' "$DIR/out" >/dev/null ||
        fail "bench gpu: $OUT"
}
an_installed_binary_finds_its_plugins() {
    [ -e "$BUILD/superpod_cuda_emu.so" ] || skip "no superpod_cuda_emu.so"
    # What is installed is what was built: a compiler for GPUs takes minutes.
    local nvcc=()
    [ -e "$BUILD/superpod_cuda.so" ] || nvcc=(NVCC=)
    make --no-print-directory MODE="${BUILD##*/}" B="$BUILD" "${nvcc[@]}" DESTDIR="$DIR/root" PREFIX=/opt/pod install \
        >"$DIR/install" 2>&1 || fail "make install: $(tail -n 3 "$DIR/install")"
    [ -x "$DIR/root/opt/pod/lib/superpod/superpod_cuda_emu.so" ] || fail "installed: $(cat "$DIR/install")"
    SUPERPOD=$DIR/root/opt/pod/bin/superpod superpod inspect topology --device emu
    expect_ok
    expect_match "the device" "$OUT" 'emu +0 +emulated device'
}

run_cases commands every_command_has_help version_says_name_and_number run_answers_one_prompt \
    run_reads_a_prompt_from_standard_input run_raw_prints_the_completion_and_nothing_else \
    run_stops_at_max_tokens run_with_a_seed_is_repeatable run_leaves_no_process \
    inspect_tokens_encodes_and_decodes inspect_tokens_reads_lines inspect_template_renders \
    inspect_template_says_errors_line_by_line a_name_is_found_in_the_hugging_face_cache \
    serve_answers_under_every_name tokenize_and_detokenize_are_inverse \
    metrics_and_small_routes_answer options_come_from_a_file_and_from_variables \
    the_reference_configuration_is_the_generated_one bench_prints_json \
    the_emulated_gpu_is_told_and_timed an_installed_binary_finds_its_plugins
