#!/bin/bash
# The official openai package against `superpod serve`. The package is put into build/.venv once;
# where that cannot be done the tests are skipped by name.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

venv=build/.venv
DIR=$(mktemp -d)
trap 'kill_servers "$DIR"; rm -rf "$DIR"' EXIT

# A venv that is half made is made again; in two minutes the package is there or not to be had.
has_client() { [ -x $venv/bin/python ] && $venv/bin/python -c 'import openai' 2>>"$DIR/pip"; }
make_venv() {
    has_client && return
    rm -rf $venv
    timeout -k 5 120 sh -c "python3 -m venv $venv && $venv/bin/pip install -q --no-input \
        --disable-pip-version-check --retries 1 --timeout 15 'openai>=1.50,<3'" >"$DIR/pip" 2>&1
    has_client
}

if ! make_venv; then
    why=$(grep . "$DIR/pip" | tail -n 1 | cut -c1-100)
    echo "skipped openai_client: every call of the openai package (it cannot be installed: $why)"
    echo "openai_client: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
start_server --model $PODLING --api-key a-key
status=0
timeout -k 5 $((60 * SLOW)) $venv/bin/python tests/e2e/openai_client.py "$URL/v1" a-key || status=$?
stop_server
exit $status
