#!/bin/bash
# A rank of a pod of devices that stops in the middle of a step: nobody but the head's deadline, of 30 s
# and more, can tell it from one that takes its time. It waits, so it runs beside other scripts.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/emulated_lib.sh
source tests/e2e/emulated_lib.sh

a_rank_that_hangs_is_found_by_the_step_s_deadline() {
    local rank
    need_plugin
    start_server "${EMULATED[@]}" "${FOUR[@]}"
    begin_stream
    rank=$(pid_of_rank 2)
    kill -STOP "$rank"
    wait_for 50 ended "$SERVER" || fail "still there: $(session "$SERVER")"
    expect_told 20
    ended "$rank" || fail "the hung rank is still there"
}

run_cases emulated_hang a_rank_that_hangs_is_found_by_the_step_s_deadline
