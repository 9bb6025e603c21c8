#!/bin/bash
# The Kubernetes manifests: they render without a cluster, every field of them is known to the schemas
# that API servers publish, and what the files say of each other agrees.
# shellcheck source=tests/e2e/lib.sh
source "$(dirname "$0")/lib.sh"

FIXTURES=../shared/fixtures/k8s
WAYS="base overlays/lws overlays/kserve"
folder_of() { echo "k8s/${1#base}"; }

# Where PyYAML and jsonschema are Debian packages, another python3 in front does not see them.
find_python() {
    local python
    for python in python3 /usr/bin/python3; do
        if "$python" -c 'import jsonschema, yaml' 2>/dev/null; then
            PYTHON=$python
            return
        fi
    done
    skip "no python3 with yaml and jsonschema"
}
need() {
    command -v kubectl >/dev/null || skip "no kubectl"
    find_python
}
need_schemas() {
    need
    [ -d $FIXTURES ] || skip "no schemas at '$FIXTURES'"
}
render() { # way: into $DIR/NAME.yaml
    RENDERED=$DIR/$(basename "$1").yaml
    timeout 30 kubectl kustomize "$(folder_of "$1")" >"$RENDERED" 2>"$DIR/err" ||
        fail "'$1' does not render: $(tail -n 3 "$DIR/err")"
}
validate() { # mode file: FOUND
    STATUS=0
    FOUND=$(timeout 100 "$PYTHON" -B tests/e2e/k8s_validate.py $FIXTURES "$1" "$2") || STATUS=$?
}
expect_clean() { # mode way
    render "$2"
    validate "$1" "$RENDERED"
    [ "$STATUS" = 0 ] || fail "$2, $1: $FOUND"
}
# The mistake that sed script SCRIPT makes in WAY is found by MODE, in a line that matches REGEX.
expect_found() { # mode way script regex
    render "$2"
    sed -E "$3" "$RENDERED" >"$DIR/wrong.yaml"
    ! cmp -s "$RENDERED" "$DIR/wrong.yaml" || fail "'$3' changes nothing in $2"
    validate "$1" "$DIR/wrong.yaml"
    [ "$STATUS" = 1 ] || fail "'$3' in $2 is not found ($STATUS): $FOUND"
    expect_match "what is found for '$3' in $2" "$FOUND" "$4"
}

every_field_is_known_to_the_published_schemas() {
    need_schemas
    local way
    for way in $WAYS; do expect_clean check "$way"; done
}
every_misspelt_field_would_be_found() {
    need_schemas
    local way
    for way in $WAYS; do expect_clean seed "$way"; done
    expect_found check base 's/publishNotReadyAddresses/publishNotReadyAdresses/' publishNotReadyAdresses
    expect_found check base 's/replicas: 1/replicas: one/' 'replicas.*integer'
    expect_found check base 's/memory: 8Gi/memory: 8 gigabytes/' 'memory.*8 gigabytes'
    expect_found check base 's/(kind: )NetworkPolicy/\1NetworkRule/' 'no schema'
    expect_found check overlays/lws 's/restartPolicy: None/restartPolicy: Never/' 'restartPolicy.*Never'
    expect_found check overlays/kserve 's/pipelineParallelSize/pipelineParalellSize/' pipelineParalellSize
}
the_schemas_take_the_samples_of_their_own_projects() {
    need_schemas
    local file
    for file in $FIXTURES/samples/lws/*/*.yaml $FIXTURES/kserve-runtimes/*.yaml; do
        [[ $file != *autoscaler.yaml ]] || continue # a kind that the trimmed schemas leave out
        validate check "$file"
        [ "$STATUS" = 0 ] || fail "$FOUND"
    done
}
the_files_agree_and_containers_may_do_little() {
    need
    local way
    for way in $WAYS; do expect_clean rules "$way"; done
}
a_mistake_between_files_would_be_found() {
    need
    expect_found rules base 's/nnodes: 2/nnodes: 3/' 'nnodes is 3'
    expect_found rules base 's/readOnlyRootFilesystem: true/readOnlyRootFilesystem: false/' 'superpod: securityContext.readOnlyRootFilesystem'
    expect_found rules base '/^kind: Service/,/^---/s/component: head/component: heads/' 'Service/superpod: selects 0'
    expect_found rules base 's/name: superpod-config-.*/name: superpod-config/; s/^(  name:) superpod-config$/\1 other/' "no ConfigMap"
    expect_found rules base 's/claimName: .*/claimName: other/' "no claim 'other'"
    expect_found rules base 's/- --live$/- --ready/' 'liveness probe'
    expect_found rules base 's/defaultMode: 288/defaultMode: 292/' 'is not 0440'
    expect_found rules base 's/containerPort: 7000/containerPort: 7001/' 'port 7000'
    expect_found rules base 's/type: Recreate/type: RollingUpdate/' 'two at a time'
    expect_found rules overlays/lws 's/^(    )head-port: 7000/\1nnodes: 2/' "'nnodes' in the configuration"
    expect_found rules overlays/lws 's/restartPolicy: None/restartPolicy: RecreateGroupOnPodRestart/' 'restarts them all'
    expect_found rules overlays/kserve 's/runAsNonRoot: true/runAsNonRoot: false/' 'worker-container: securityContext.runAsNonRoot'
}

# The words after "serve" of every container, one command a line.
commands() {
    "$PYTHON" -B - "$1" <<'P'
import sys
sys.path.insert(0, "tests/e2e")
import k8s_validate as k8s
for doc in k8s.yaml.load_all(open(sys.argv[1], encoding="utf-8"), k8s.LOADER):
    for _, pod, _ in k8s.pod_specs(doc or {}):
        for container in pod["containers"]:
            print(" ".join(container["args"]))
P
}
the_binary_knows_every_option_and_key() {
    need
    superpod serve --help
    local help=$OUT way option
    [[ $help == *--nnodes* ]] || skip "this build serves on one node only"
    for way in $WAYS; do
        render "$way"
        for option in $(commands "$RENDERED" | tr ' ' '\n' | grep '^--' | sort -u); do
            [[ $help == *"$option"[[:space:],=]* ]] || fail "$way: 'serve' has no $option"
        done
    done
    # A key that nobody knows is a usage error; with the keys right, the model is what is missing.
    printf '%064d' 7 >"$DIR/token"
    chmod 600 "$DIR/token"
    local with=(--token-file "$DIR/token" --model "$DIR/none")
    superpod serve --role head --config k8s/config.yaml "${with[@]}"
    expect_eq "the status of the base, which said: $ERR" "$STATUS" 10
    export LWS_LEADER_ADDRESS=localhost LWS_GROUP_SIZE=2 LWS_WORKER_INDEX=0
    superpod serve --config k8s/overlays/lws/config.yaml "${with[@]}"
    expect_eq "the status of the leader, which said: $ERR" "$STATUS" 10
}

run_cases k8s every_field_is_known_to_the_published_schemas every_misspelt_field_would_be_found \
    the_schemas_take_the_samples_of_their_own_projects the_files_agree_and_containers_may_do_little \
    a_mistake_between_files_would_be_found the_binary_knows_every_option_and_key
