#!/bin/bash
# The demo model over HTTP answers as the reference implementation does: 24 recorded conversations,
# whole and streamed, and by token ids.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

golden=tests/data/podling_golden.json

# A recorded conversation as a chat request. tool_choice "none" shows the tools to the model and
# leaves its answer as text.
chat_request() { # index extra-json
    jq -c --argjson i "$1" --argjson extra "${2:-{\}}" '.cases[$i] |
        {messages, temperature: 0, max_tokens: 400} +
        (if .tools then {tools, tool_choice: "none"} else {} end) + $extra' $golden
}
n_cases() { jq '.cases | length' $golden; }

capital_of_france_in_one_piece() {
    start_server --model $PODLING
    call POST /v1/chat/completions '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'
    expect_code 200
    expect_jq '.object == "chat.completion" and (.id | startswith("chatcmpl-"))'
    expect_jq '.choices | length == 1'
    expect_jq '.choices[0] | .message.role == "assistant" and .finish_reason == "stop"'
    expect_jq '.choices[0].message.content == "The capital of France is Paris."'
    expect_jq '.usage | .prompt_tokens == 23 and .completion_tokens == 8 and .total_tokens == 31'
    stop_server
}

capital_of_france_streamed() {
    start_server --model $PODLING
    stream /v1/chat/completions '{"messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0, "stream": true, "stream_options": {"include_usage": true}}'
    expect_eq "the text" "$(jq -j '.choices[].delta.content // empty' "$DIR/events")" \
        "The capital of France is Paris."
    expect_eq "the first role" "$(jq -r '.choices[0].delta.role' "$DIR/events" | head -n 1)" assistant
    expect_eq "finish reasons" "$(jq -r '.choices[].finish_reason // empty' "$DIR/events" | paste -sd' ')" stop
    expect_eq "ids" "$(jq -r .id "$DIR/events" | sort -u | wc -l)" 1
    expect_eq "objects" "$(jq -r .object "$DIR/events" | sort -u)" chat.completion.chunk
    jq -se 'last | .choices == [] and .usage.completion_tokens == 8 and .usage.prompt_tokens == 23' \
        "$DIR/events" >/dev/null || fail "usage chunk: $(tail -n 1 "$DIR/events")"
    # Several tokens, several events: a stream that comes as one lump is none.
    [ "$(grep -c '"content":"[^"]' "$DIR/events")" -ge 4 ] || fail "few chunks: $(cat "$DIR/events")"
    stop_server
}

every_recorded_conversation_in_one_piece() {
    start_server --model $PODLING
    local i
    for i in $(seq 0 $(($(n_cases) - 1))); do
        call POST /v1/chat/completions "$(chat_request "$i")"
        expect_code 200
        expect_jq --slurpfile g $golden --argjson i "$i" \
            '.choices[0].message.content == $g[0].cases[$i].text'
        expect_jq --slurpfile g $golden --argjson i "$i" '.usage.prompt_tokens == ($g[0].cases[$i].prompt_ids | length)
            and .usage.completion_tokens == ($g[0].cases[$i].ids | length)'
    done
    stop_server
}

every_recorded_conversation_streamed() {
    start_server --model $PODLING
    local i
    for i in $(seq 0 $(($(n_cases) - 1))); do
        stream /v1/chat/completions "$(chat_request "$i" '{"stream": true, "stream_options": {"include_usage": true}}')"
        jq -se --slurpfile g $golden --argjson i "$i" '$g[0].cases[$i] as $want |
            ([.[].choices[].delta.content // empty] | add) == $want.text
            and last.usage.prompt_tokens == ($want.prompt_ids | length)' "$DIR/events" >/dev/null ||
            fail "conversation $i: $(jq -j '.choices[].delta.content // empty' "$DIR/events")"
    done
    stop_server
}

recorded_prompt_ids_complete_to_the_recorded_text() {
    start_server --model $PODLING
    local i
    for i in $(seq 0 $(($(n_cases) - 1))); do
        call POST /v1/completions "$(jq -c --argjson i "$i" \
            '{prompt: .cases[$i].prompt_ids, temperature: 0, max_tokens: 400, return_token_ids: true}' $golden)"
        expect_code 200
        expect_jq --slurpfile g $golden --argjson i "$i" \
            '.choices[0].text == $g[0].cases[$i].text and .choices[0].token_ids == $g[0].cases[$i].ids'
    done
    stop_server
}

all_conversations_at_once() {
    start_server --model $PODLING
    local i pids=()
    for i in $(seq 0 $(($(n_cases) - 1))); do
        chat_request "$i" >"$DIR/request-$i"
        curl -sS -m $((30 * SLOW)) -o "$DIR/answer-$i" -H 'Content-Type: application/json' \
            --data-binary "@$DIR/request-$i" "$URL/v1/chat/completions" &
        pids+=($!)
    done
    wait "${pids[@]}"
    for i in $(seq 0 $(($(n_cases) - 1))); do
        jq -e --slurpfile g $golden --argjson i "$i" \
            '.choices[0].message.content == $g[0].cases[$i].text' "$DIR/answer-$i" >/dev/null ||
            fail "conversation $i: $(cat "$DIR/answer-$i")"
    done
    stop_server
}

templates_and_ids_are_the_recorded_ones() {
    jq -c '.cases[] | {messages, tools, add_generation_prompt: true, bos_token: "<|begin_of_text|>"}' $golden >"$DIR/in"
    "$SUPERPOD" inspect template --model $PODLING --stdin <"$DIR/in" >"$DIR/out"
    jq -c .text "$DIR/out" >"$DIR/texts"
    jq -c '.cases[].prompt' $golden >"$DIR/want"
    expect_same_file "the prompts" "$DIR/texts" "$DIR/want"
    "$SUPERPOD" inspect tokens --model $PODLING --special --stdin <"$DIR/want" | jq -c . >"$DIR/ids"
    jq -c '.cases[].prompt_ids' $golden >"$DIR/want-ids"
    expect_same_file "the ids" "$DIR/ids" "$DIR/want-ids"
}

run_cases podling_chat capital_of_france_in_one_piece capital_of_france_streamed \
    every_recorded_conversation_in_one_piece every_recorded_conversation_streamed \
    recorded_prompt_ids_complete_to_the_recorded_text all_conversations_at_once \
    templates_and_ids_are_the_recorded_ones
