#!/bin/bash
# What is wrong is refused in one line that names it: options, model files, HTTP and JSON. Nothing
# of it hurts the server.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

# ---- options -------------------------------------------------------------------------------------

wrong_options_are_usage_errors() {
    superpod
    expect_eq "status without a command" "$STATUS" 2
    superpod frobnicate
    expect_refused 2 frobnicate
    superpod serve
    expect_refused 2 model
    superpod serve --model $PODLING --no-such-option 3
    expect_refused 2 no-such-option
    superpod serve --model $PODLING --max-num-seq 3
    expect_refused 2 max-num-seqs # did you mean
    superpod serve --model $PODLING --port banana
    expect_refused 2 port banana
    superpod serve --model $PODLING --port 70000
    expect_refused 2 port 70000 65535
    superpod serve --model $PODLING --max-num-seqs 0
    expect_refused 2 max-num-seqs
    superpod serve --model $PODLING --max-num-batched-tokens -5
    expect_refused 2 max-num-batched-tokens
    superpod serve --model $PODLING --block-size
    expect_refused 2 block-size
    superpod run --model $PODLING --temperature hot "x"
    expect_refused 2 temperature hot
    superpod inspect logits --model $PODLING --tokens 1,2,3
    expect_refused 2 out
    superpod inspect frobnicate
    expect_refused 2 frobnicate
    superpod bench frobnicate
    expect_refused 2 frobnicate
    SUPERPOD_MAX_NUM_SEQS=many superpod serve --model $PODLING
    expect_refused 2 'max-num-seqs|SUPERPOD_MAX_NUM_SEQS' many
}
a_wrong_configuration_file_is_refused() {
    superpod serve --model $PODLING --config "$DIR/none.yaml"
    expect_match "the status" "$STATUS" '^(2|10)$'
    expect_match "the message" "$ERR" none.yaml
    echo "max-num-seqs: [1, 2" >"$DIR/broken.yaml"
    superpod serve --model $PODLING --config "$DIR/broken.yaml"
    expect_match "the status" "$STATUS" '^(2|10)$'
    expect_match "the message" "$ERR" broken.yaml
    echo "max-nom-seqs: 4" >"$DIR/unknown.yaml"
    superpod serve --model $PODLING --config "$DIR/unknown.yaml"
    expect_match "the status" "$STATUS" '^(2|10)$'
    expect_match "the message" "$ERR" max-nom-seqs
}
wrong_token_ids_are_refused() {
    local ids
    for ids in 1,2,99999 1,,2 a,b -1 "" 1.5 99999999999999999999; do
        superpod run --model $PODLING --raw --max-tokens 2 --tokens "$ids"
        expect_match "the status for --tokens '$ids'" "$STATUS" '^(2|10)$'
        expect_eq "standard output for --tokens '$ids'" "$OUT" ""
        expect_eq "lines on standard error for --tokens '$ids': $ERR" "$(wc -l <"$DIR/err")" 1
    done
}

# ---- devices -------------------------------------------------------------------------------------

a_device_that_cannot_be_used_is_refused() {
    local backend file
    for backend in cuda emu; do
        file=superpod_cuda$([ $backend = cuda ] || echo _emu).so
        [ ! -e "$BUILD/$file" ] || continue
        superpod serve --model $PODLING --device $backend
        expect_refused 10 "option 'device' is $backend" "$file" "make $backend"
    done
    [ -e "$BUILD/superpod_cuda_emu.so" ] || skip "no superpod_cuda_emu.so"
    SUPERPOD_EMU_DEVICES=0 superpod serve --model $PODLING --device emu
    expect_refused 10 "option 'device' is emu: no GPU on this machine"
    SUPERPOD_EMU_DRIVER=0 superpod serve --model $PODLING --device emu
    expect_refused 10 "option 'device' is emu: no CUDA driver on this machine"
    SUPERPOD_EMU_DRIVER=12080 superpod run --model $PODLING --device emu x
    expect_refused 10 'driver is of version 12.8, older than the toolkit 13'
    SUPERPOD_EMU_ARCH=75 superpod bench step --model $PODLING --device emu
    expect_refused 10 'compute capability 7.5, want 8.0 or newer'
    # What is only asked for is an answer, not an error.
    SUPERPOD_EMU_DRIVER=0 superpod inspect topology --device emu
    expect_ok
    expect_match "inspect topology" "$OUT" 'emu +none: no CUDA driver on this machine'
}
too_little_device_memory_is_refused_before_anything_is_loaded() {
    local there
    [ -e "$BUILD/superpod_cuda_emu.so" ] || skip "no superpod_cuda_emu.so"
    export SUPERPOD_EMU_MEMORY_MB=30
    superpod serve --model $PODLING --device emu
    expect_refused 10 'weights need [0-9.]+ MiB and activations [0-9.]+ MiB, [0-9.]+ MiB are there' \
        'would fit: tp [248] x pp'
    there=$(grep -o 'weights need .* are there' "$DIR/err")
    superpod plan --model $PODLING --device emu
    expect_refused 10 'would fit'
    expect_eq "what plan says" "$(grep -o 'weights need .* are there' "$DIR/err")" "$there"
}

# ---- model directories ---------------------------------------------------------------------------

# refused_model REGEX...: `serve`, `run` and `inspect logits` refuse $DIR/model, each in one line.
refused_model() {
    local before=$SECONDS
    superpod serve --model "$DIR/model" --port "$(free_port)"
    expect_refused 10 "$@"
    superpod run --model "$DIR/model" --raw --tokens 1,2 --max-tokens 1
    expect_refused 10 "$@"
    superpod inspect logits --model "$DIR/model" --tokens 1,2 --out "$DIR/logits"
    expect_refused 10 "$@"
    [ ! -e "$DIR/logits" ] || fail "logits were written"
    [ $((SECONDS - before)) -le $((10 * SLOW)) ] || fail "took $((SECONDS - before)) s to say so"
}
fresh_model() {
    rm -rf "$DIR/model"
    cp -r $GOLDENS/llama2 "$DIR/model"
    chmod -R u+w "$DIR/model"
}
change_config() { # jq filter
    fresh_model
    jq "$1" $GOLDENS/llama2/config.json >"$DIR/model/config.json"
}

a_model_that_is_not_there_is_refused() {
    mkdir "$DIR/empty"
    rm -rf "$DIR/model"
    refused_model "$DIR/model"
    touch "$DIR/model" # a file in the place of a folder
    refused_model "$DIR/model"
    rm "$DIR/model"
    mkdir "$DIR/model" # an empty folder
    refused_model config.json
    superpod serve --model someone/something
    expect_refused 10 someone/something
}
a_broken_config_is_refused() {
    fresh_model
    head -c 100 $GOLDENS/llama2/config.json >"$DIR/model/config.json"
    refused_model config.json
    : >"$DIR/model/config.json"
    refused_model config.json
    echo '[1, 2, 3]' >"$DIR/model/config.json"
    refused_model config.json
    head -c 300000 /dev/zero | tr '\0' '[' >"$DIR/model/config.json"
    refused_model config.json
    change_config 'del(.hidden_size)'
    refused_model hidden_size
    change_config '.hidden_size = "large"'
    refused_model hidden_size
    change_config '.num_hidden_layers = -4'
    refused_model num_hidden_layers
    change_config '.num_hidden_layers = 1e300'
    refused_model num_hidden_layers
    change_config '.num_attention_heads = 0'
    refused_model num_attention_heads
    change_config '.num_key_value_heads = 3'
    refused_model num_key_value_heads
    change_config '.rope_scaling = {"rope_type": "wobbly", "factor": 2.0}'
    refused_model wobbly
    change_config '.hidden_act = "wiggle"'
    refused_model wiggle
}
a_config_that_lies_about_the_weights_is_refused() {
    change_config '.num_hidden_layers = 5'
    refused_model 'layers\.4\.'
    change_config '.vocab_size = 321'
    refused_model 320 321
    change_config '.intermediate_size = 136'
    refused_model 128 136
    change_config '.hidden_size = 72'
    refused_model 64 72
}
broken_weights_are_refused() {
    local file=$DIR/model/model.safetensors size
    fresh_model
    rm "$file"
    refused_model safetensors
    : >"$file"
    refused_model model.safetensors
    head -c 7 $GOLDENS/llama2/model.safetensors >"$file"
    refused_model model.safetensors
    size=$(stat -c %s $GOLDENS/llama2/model.safetensors)
    head -c $((size - 100)) $GOLDENS/llama2/model.safetensors >"$file"
    refused_model model.safetensors
    printf '\xff\xff\xff\xff\xff\xff\xff\x7f' >"$file" # a header longer than any file
    refused_model model.safetensors
    printf '\x10\0\0\0\0\0\0\0{"a": [1, 2, 3]}' >"$file"
    refused_model model.safetensors
    printf '\x10\0\0\0\0\0\0\0{"a": this is not' >"$file"
    refused_model model.safetensors
    # Another element type with the same bytes.
    LC_ALL=C sed 's/"BF16"/"ZZ16"/g' $GOLDENS/llama2/model.safetensors >"$file"
    refused_model ZZ16
}
broken_shards_are_refused() {
    fresh_model
    rm "$DIR/model/model.safetensors"
    echo '{"metadata": {}, "weight_map": {"model.embed_tokens.weight": "part-1.safetensors"}}' \
        >"$DIR/model/model.safetensors.index.json"
    refused_model part-1.safetensors
    echo '{"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../../../etc/passwd"}}' \
        >"$DIR/model/model.safetensors.index.json"
    refused_model passwd
    echo '{"weight_map": 5}' >"$DIR/model/model.safetensors.index.json"
    refused_model model.safetensors.index.json
}
a_broken_tokenizer_is_refused() {
    fresh_model
    head -c 2000 $GOLDENS/llama2/tokenizer.json >"$DIR/model/tokenizer.json"
    superpod serve --model "$DIR/model" --port "$(free_port)"
    expect_refused 10 tokenizer.json
    rm "$DIR/model/tokenizer.json"
    superpod serve --model "$DIR/model" --port "$(free_port)"
    expect_refused 10 tokenizer
    fresh_model
    jq '.model.type = "Runes"' $GOLDENS/llama2/tokenizer.json >"$DIR/model/tokenizer.json"
    superpod serve --model "$DIR/model" --port "$(free_port)"
    expect_refused 10 Runes
}
inspect_tensors_refuses_what_is_no_safetensors_file() {
    superpod inspect tensors $GOLDENS/llama2/model.safetensors
    expect_ok
    expect_eq "tensors" "$(jq -c 'has("name") and has("dtype") and has("shape")' "$DIR/out" | sort | uniq -c | awk '{ print $1, $2 }')" \
        "39 true"
    head -c 400 $GOLDENS/llama2/model.safetensors >"$DIR/short"
    superpod inspect tensors "$DIR/short"
    expect_refused 10 short
    superpod inspect tensors "$DIR/none"
    expect_refused 10 none
}
no_memory_for_what_is_asked_is_refused() {
    superpod serve --model $PODLING --port "$(free_port)" --num-gpu-blocks-override 67000000
    expect_refused 10
}

# ---- HTTP ----------------------------------------------------------------------------------------

CHAT='{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'
still_serves() {
    call POST /v1/chat/completions "$CHAT"
    expect_code 200
    expect_jq '.choices[0].message.content == "The capital of France is Paris."'
}

malformed_http_is_400_and_the_server_goes_on() {
    local host
    start_server --model $PODLING
    host="Host: 127.0.0.1:$PORT\r\n"
    local post="POST /v1/completions HTTP/1.1\r\n${host}Content-Type: application/json\r\n"
    raw "GARBAGE\r\n\r\n"
    expect_match "garbage" "$CODE" '^(400|501|none)$' # a method that nobody knows
    raw "${post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x"
    expect_eq "two lengths" "$CODE" 400
    raw "${post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    expect_eq "length and chunks" "$CODE" 400
    raw "${post}Content-Length: -1\r\n\r\n"
    expect_eq "a negative length" "$CODE" 400
    raw "${post}Content-Length: banana\r\n\r\n"
    expect_eq "a length that is no number" "$CODE" 400
    raw "${post}Content-Length: 99999999999999999999\r\n\r\n"
    expect_match "a length beyond 64 bits" "$CODE" '^(400|413)$'
    raw "${post}Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"
    expect_eq "a chunk size that is no number" "$CODE" 400
    raw "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
    expect_eq "no host" "$CODE" 400
    raw "GET /health HTTP/1.1\r\n${host}${host}Connection: close\r\n\r\n"
    expect_eq "two hosts" "$CODE" 400
    raw "GET /health HTTP/9.9\r\n$host\r\n"
    expect_match "a version of the future" "$CODE" '^(400|505|none)$'
    raw "GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    expect_match "another site's name on loopback" "$CODE" '^(400|403|421)$'
    raw "GET /health HTTP/1.1\r\n${host}X: $(head -c 100000 /dev/zero | tr '\0' a)\r\nConnection: close\r\n\r\n"
    expect_match "a header of 100 KB" "$CODE" '^(400|413|431|none)$'
    raw "GET /health HTTP/1.1\r\n${host}Connection: close\r\n\r\n"
    expect_eq "a plain request" "$CODE" 200
    still_serves
    stop_server
}

an_oversize_body_is_413() {
    start_server --model $PODLING --max-body-bytes 64K
    head -c 200000 /dev/zero | tr '\0' ' ' >"$DIR/large"
    call POST /v1/completions "" -H 'Content-Type: application/json' -H 'Expect:' --data-binary "@$DIR/large"
    expect_eq "with a length" "$CODE" 413
    call POST /v1/completions "" -H 'Content-Type: application/json' -H 'Expect:' -H 'Transfer-Encoding: chunked' --data-binary "@$DIR/large"
    expect_eq "in chunks" "$CODE" 413
    still_serves
    stop_server
}

paths_and_methods_are_checked() {
    start_server --model $PODLING
    call GET /nothing/here
    expect_error 404 .
    call GET /v1/chat/completions
    expect_error 405 .
    call DELETE /v1/models
    expect_error 405 .
    call GET /v1/models/unknown
    expect_error 404 unknown
    call POST /v1/completions "" -H 'Content-Type: text/plain' -d 'hello'
    expect_match "text as a body" "$CODE" '^(400|415)$'
    call GET /health
    expect_code 200
    stop_server
}

# Each line: a JSON body for /v1/chat/completions, a tab, what the message must name.
WRONG_CHATS='{"messages": [{"role": "user", "content": "x"}	.
[1, 2]	.
"hello"	.
{}	messages
{"messages": []}	messages
{"messages": "hello"}	messages
{"messages": [5]}	messages
{"messages": [{"content": "x"}]}	role
{"messages": [{"role": "wizard", "content": "x"}]}	role
{"messages": [{"role": "user", "content": 5}]}	content
{"messages": [{"role": "user", "content": "x"}], "temperature": 3}	temperature
{"messages": [{"role": "user", "content": "x"}], "temperature": "0.5"}	temperature
{"messages": [{"role": "user", "content": "x"}], "temperature": -1}	temperature
{"messages": [{"role": "user", "content": "x"}], "top_p": 0}	top_p
{"messages": [{"role": "user", "content": "x"}], "top_p": 1.5}	top_p
{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}	max_tokens
{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1.5}	max_tokens
{"messages": [{"role": "user", "content": "x"}], "max_tokens": 100000}	max_tokens
{"messages": [{"role": "user", "content": "x"}], "n": 0}	n
{"messages": [{"role": "user", "content": "x"}], "n": 1000000}	n
{"messages": [{"role": "user", "content": "x"}], "stop": [""]}	stop
{"messages": [{"role": "user", "content": "x"}], "stop": 5}	stop
{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"99999": 1}}	logit_bias
{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"a": 1}}	logit_bias
{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 5}	logprobs
{"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 21}	logprobs
{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}	stream
{"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": true}}	stream_options
{"messages": [{"role": "user", "content": "x"}], "presence_penalty": 5}	presence_penalty
{"messages": [{"role": "user", "content": "x"}], "repetition_penalty": 0}	repetition_penalty
{"messages": [{"role": "user", "content": "x"}], "min_p": 2}	min_p
{"messages": [{"role": "user", "content": "x"}], "seed": "one"}	seed
{"messages": [{"role": "user", "content": "x"}], "temperature": 1, "temperature": 0}	temperature'

wrong_chats_are_400_and_name_the_field() {
    local body field wrong=""
    start_server --model $PODLING
    while IFS=$'\t' read -r body field; do
        call POST /v1/chat/completions "$body"
        if [ "$CODE" != 400 ]; then
            wrong+=$'\n'"    $body: status $CODE, want 400: ${BODY:0:200}"
        elif ! jq -e '.error | (.message | length > 0) and has("param") and (.code == 400 or .code == "context_length_exceeded")' "$DIR/body" >/dev/null; then
            wrong+=$'\n'"    $body: no error object: ${BODY:0:200}"
        elif [[ $BODY != *"${field/#./}"* ]]; then
            wrong+=$'\n'"    $body: does not name '$field': ${BODY:0:200}"
        fi
    done <<<"$WRONG_CHATS"
    [ -z "$wrong" ] || fail "taken or refused without a name:$wrong"
    still_serves
    stop_server
}
deep_json_is_refused() {
    start_server --model $PODLING
    call POST /v1/chat/completions "{\"messages\": $(head -c 5000 /dev/zero | tr '\0' '[')"
    expect_error 400 .
    call POST /v1/completions "{\"prompt\": \"x\", \"metadata\": $(printf '[%.0s' $(seq 500))$(printf ']%.0s' $(seq 500))}"
    expect_error 400 .
    still_serves
    stop_server
}
an_unknown_model_is_404() {
    start_server --model $PODLING
    call POST /v1/chat/completions "${CHAT%\}}, \"model\": \"gpt-17\"}"
    expect_error 404 'gpt-17'
    expect_jq '.error.param == "model" and .error.type == "NotFoundError"'
    stop_server
}
a_prompt_beyond_the_context_is_400() {
    start_server --model $PODLING --max-model-len 128
    call POST /v1/completions "{\"prompt\": [$(seq -s, 5 204)], \"max_tokens\": 5}"
    expect_error 400 "^This model's maximum context length is 128 tokens"
    expect_jq '.error.code == "context_length_exceeded"'
    # What fits is cut to the room that is left.
    call POST /v1/completions "{\"prompt\": [$(seq -s, 5 104)], \"max_tokens\": 100, \"ignore_eos\": true, \"temperature\": 0}"
    expect_code 200
    expect_jq '.choices[0].finish_reason == "length" and .usage.completion_tokens == 28'
    stop_server
}
wrong_prompts_are_400() {
    local prompt
    start_server --model $PODLING
    for prompt in '""' '[]' 'null' '[[]]' '[99999]' '[-1]' '{"a": 1}' '5' '[1, "x"]' '[1.5]'; do
        call POST /v1/completions "{\"prompt\": $prompt}"
        [ "$CODE" = 400 ] || fail "status $CODE, want 400, for the prompt $prompt: ${BODY:0:300}"
    done
    still_serves
    stop_server
}

run_cases bad_input wrong_options_are_usage_errors a_wrong_configuration_file_is_refused \
    wrong_token_ids_are_refused a_device_that_cannot_be_used_is_refused \
    too_little_device_memory_is_refused_before_anything_is_loaded a_model_that_is_not_there_is_refused a_broken_config_is_refused \
    a_config_that_lies_about_the_weights_is_refused broken_weights_are_refused \
    broken_shards_are_refused a_broken_tokenizer_is_refused \
    inspect_tensors_refuses_what_is_no_safetensors_file no_memory_for_what_is_asked_is_refused \
    malformed_http_is_400_and_the_server_goes_on an_oversize_body_is_413 \
    paths_and_methods_are_checked wrong_chats_are_400_and_name_the_field deep_json_is_refused \
    an_unknown_model_is_404 a_prompt_beyond_the_context_is_400 wrong_prompts_are_400
