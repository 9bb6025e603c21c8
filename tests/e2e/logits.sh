#!/bin/bash
# Logits and greedy tokens of the Llama goldens; other families are refused by name.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

# Checks every sequence of a golden against its recorded float64 logits.
check_logits() { # model golden.json logits.f32 limit
    local i n vocab length skip=0
    n=$(jq '.sequences | length' "$2")
    vocab=$(jq .vocab_size "$2")
    for i in $(seq 0 $((n - 1))); do
        superpod inspect logits --model "$1" --out "$DIR/logits" \
            --tokens "$(jq -r --argjson i "$i" '.sequences[$i] | join(",")' "$2")"
        expect_ok
        length=$(jq --argjson i "$i" '.sequences[$i] | length' "$2")
        expect_eq "bytes of sequence $i" "$(stat -c %s "$DIR/logits")" $((length * vocab * 4))
        "$BUILD/tests/e2e/f32diff" "$DIR/logits" "$3" "$4" "$skip" >"$DIR/diff" ||
            fail "sequence $i of $1: $(cat "$DIR/diff"), want at most $4"
        skip=$((skip + length * vocab))
    done
}
check_greedy() { # golden folder
    superpod run --model "$1" --raw --ids --temperature 0 --ignore-eos --max-tokens 24 \
        --tokens "$(jq -r '.greedy.prompt | join(",")' "$1/golden.json")"
    expect_ok
    expect_eq "the ids" "$(jq -c . "$DIR/out")" "$(jq -c .greedy.tokens "$1/golden.json")"
}

llama2_logits() { check_logits $GOLDENS/llama2 $GOLDENS/llama2/{golden.json,logits.f32} 2e-4; }
llama2_greedy() { check_greedy $GOLDENS/llama2; }
llama31_logits() { check_logits $GOLDENS/llama3.1 $GOLDENS/llama3.1/{golden.json,logits.f32} 2e-4; }
llama31_greedy() { check_greedy $GOLDENS/llama3.1; }
llama_with_biases_logits() { check_logits $GOLDENS/llama-bias $GOLDENS/llama-bias/{golden.json,logits.f32} 2e-4; }
llama_with_biases_greedy() { check_greedy $GOLDENS/llama-bias; }
podling_logits() { check_logits $PODLING tests/data/podling_golden.json tests/data/podling_logits.f32 2e-4; }

podling_greedy_ids() {
    local i
    for i in 0 5 11 17 23; do
        superpod run --model $PODLING --raw --ids --temperature 0 --max-tokens 400 \
            --tokens "$(jq -r --argjson i $i '.cases[$i].prompt_ids | join(",")' tests/data/podling_golden.json)"
        expect_ok
        expect_eq "ids of conversation $i" "$(jq -c . "$DIR/out")" \
            "$(jq -c --argjson i $i '.cases[$i].ids' tests/data/podling_golden.json)"
    done
}

# Only the description is there: that it is refused before weights are read is part of the case.
other_families_are_refused_by_name() {
    superpod inspect logits --model $GOLDENS/qwen2 --tokens 1,2,3 --out "$DIR/logits"
    expect_refused 10 'qwen2|Qwen2ForCausalLM'
    superpod serve --model $GOLDENS/qwen2 --port "$(free_port)"
    expect_refused 10 'qwen2|Qwen2ForCausalLM'
}
a_sliding_window_is_refused_by_name() {
    superpod inspect logits --model $GOLDENS/mistral-swa --tokens 1,2,3 --out "$DIR/logits"
    expect_refused 10 'mistral|Mistral|sliding_window'
}
an_invented_family_is_refused_by_name() {
    mkdir "$DIR/model"
    cp $GOLDENS/llama2/* "$DIR/model"
    jq '.architectures = ["WombatForCausalLM"] | .model_type = "wombat"' $GOLDENS/llama2/config.json >"$DIR/model/config.json"
    superpod run --model "$DIR/model" --raw --tokens 1,2 --max-tokens 2
    expect_refused 10 '[Ww]ombat'
}

run_cases logits llama2_logits llama2_greedy llama31_logits llama31_greedy \
    llama_with_biases_logits llama_with_biases_greedy podling_logits podling_greedy_ids \
    other_families_are_refused_by_name a_sliding_window_is_refused_by_name \
    an_invented_family_is_refused_by_name
