# shellcheck shell=bash
# tests/e2e/split_lib.sh - sourced after lib.sh by scripts that serve from prefill and decode pools.
#
#     tokens COUNT SEED     a prompt of podling's ids, as 1,2,3
#     check_split           to a pod at $URL with --prefill-threshold-tokens 64: ids are those of one
#                           rank alone, and long prompts were computed elsewhere

tokens() { # count seed
    awk -v n="$1" -v s="$2" 'BEGIN {
        for (i = 0; i < n; i++) { s = (s * 16807 + 11) % 2147483647; printf "%s%d", i ? "," : "", s % 2048 }
    }'
}
count() { metric "superpod:$1_total"; }

check_split() {
    local length prompt want
    for length in 20 130 400; do
        prompt=$(tokens $length 3)
        superpod run --model "$PODLING" --raw --ids --ignore-eos --temperature 1 --seed 7 --tokens "$prompt" --max-tokens 20
        expect_ok
        want=$(jq -c . "$DIR/out")
        call POST /v1/completions "{\"prompt\": [$prompt], \"temperature\": 1, \"seed\": 7, \"max_tokens\": 20, \"ignore_eos\": true, \"return_token_ids\": true}"
        expect_code 200
        expect_eq "the ids of $length tokens" "$(answer '.choices[0].token_ids | tojson')" "$want"
    done
    expect_eq "requests prefilled elsewhere" "$(count prefilled_elsewhere)" 2
}
