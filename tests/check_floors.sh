#!/bin/bash
# The house rules that a script can hold: which folder may include which (the floors), which file
# may name which library, sizes, words. Prints "FILE:LINE: what" for each breach; exit status 1 when
# there is one.
#
#   tests/check_floors.sh [FOLDER]     of another tree
set -uo pipefail
cd "${1:-$(dirname "$0")/..}" || exit 1

# ---- the floors: what a folder's files may include, by the longest matching prefix ---------------
# A new edge is a change here, and so is seen in review. Siblings never include one another.
floors='
runtime/base      runtime/base
runtime/format    runtime/base runtime/format
runtime/text      runtime/base runtime/text
kernels           runtime/base kernels
kernels/cuda/cuda_groups.c runtime/base kernels comm/group_dev.h comm/group_nccl.h
comm              runtime/base comm kernels/dev.h
comm/group_nccl.c runtime/base comm kernels/dev.h kernels/cuda/kernels.h kernels/cuda/nccl_api.h
comm/group_nccl.h runtime/base comm kernels/dev.h kernels/cuda/nccl_api.h
runtime/model     runtime/base runtime/format kernels comm runtime/model
runtime/kv        runtime/base kernels comm runtime/kv
runtime/gen       runtime/base runtime/text kernels runtime/gen
runtime/engine    runtime kernels comm
frontend          runtime/base runtime/text runtime/engine/engine.h runtime/gen/params.h frontend
launcher          runtime kernels comm frontend launcher
tests             runtime kernels comm frontend launcher tests
'

# ---- third-party headers: the only files that may name them --------------------------------------
libraries='
cJSON.h|cjson/.*       runtime/base/json.c
pcre2.h                runtime/text/pretok.c
utf8proc.h             runtime/text/unicode.c runtime/text/jinja_text.c
event2/.*|event.h      frontend/loop.c frontend/server.c frontend/http.c
openssl/.*             frontend/server.c frontend/auth.c runtime/kv/prefix.c comm/secret.c comm/stream.c launcher/fingerprint.c
curl/.*                frontend/upstream.c
yaml.h                 launcher/config_yaml.c
xxhash.h|xxh_x86dispatch.h  comm/kvx.c
hwloc.h|hwloc/.*       launcher/topo.c kernels/cpu/cpu_topo.c
mpi.h|pmix.h|nccl.h    comm/group_nccl.c launcher/meeting_pmix.c
ucp/.*                 comm/ucx_api.c comm/ucx_api.h comm/kvx_ucx.c
immintrin.h|x86intrin.h|arm_neon.h  kernels/cpu/ runtime/gen/philox.c runtime/gen/row.c
stdatomic.h            runtime/base/thread.c runtime/base/metric.c runtime/base/mem.c runtime/base/chaos.c comm/ kernels/cpu/cpu_pool.c
'

# Files that may hold a function above 70 lines, because it is one table or one switch.
long_functions=''

breaches=0
breach() {
    echo "$1"
    breaches=$((breaches + 1))
}
# One breach a line of standard input.
breaches_of() {
    local line
    while read -r line; do breach "$line"; done
}

sources() { find runtime kernels comm frontend launcher tests -name '*.[ch]' 2>/dev/null | sort; }
product() { find runtime kernels comm frontend launcher -name '*.[ch]' 2>/dev/null | sort; }

mapfile -t all < <(sources)
mapfile -t own < <(product)

check_floors() {
    awk -v table="$floors" '
        BEGIN {
            n = split(table, lines, "\n")
            for (i = 1; i <= n; i++) {
                if (split(lines[i], w, " ") < 2) continue
                sub(/^[^ ]+ +/, "", lines[i])
                allowed[w[1]] = lines[i]
            }
        }
        function floor_of(path,   p) {
            for (p = path; p != ""; p = (p ~ /\//) ? substr(p, 1, match(p, /\/[^\/]*$/) - 1) : "")
                if (p in allowed) return p
            return ""
        }
        function under(path, prefix) {
            return path == prefix || substr(path, 1, length(prefix) + 1) == prefix "/"
        }
        /^[ \t]*#[ \t]*include[ \t]*"/ {
            split($0, q, "\"")
            f = floor_of(FILENAME)
            ok = 0
            n = split(allowed[f], a, " ")
            for (i = 1; i <= n; i++) if (under(q[2], a[i])) ok = 1
            if (!ok) print FILENAME ":" FNR ": includes \"" q[2] "\", which " (f == "" ? "no floor" : f) " may not"
            else if (q[2] !~ /\//) print FILENAME ":" FNR ": includes \"" q[2] "\", which is not written from the root"
        }' "${all[@]}"
}

check_libraries() {
    awk -v table="$libraries" '
        BEGIN {
            n = split(table, lines, "\n")
            for (i = 1; i <= n; i++) {
                if (split(lines[i], w, " ") < 2) continue
                sub(/^[^ ]+ +/, "", lines[i])
                where[w[1]] = lines[i]
            }
        }
        function may(file, places,   n, a, i) {
            n = split(places, a, " ")
            for (i = 1; i <= n; i++)
                if (file == a[i] || (a[i] ~ /\/$/ && index(file, a[i]) == 1)) return 1
            return 0
        }
        /^[ \t]*#[ \t]*include[ \t]*</ {
            header = $0
            sub(/^[^<]*</, "", header)
            sub(/>.*/, "", header)
            for (re in where)
                if (header ~ ("^(" re ")$") && !may(FILENAME, where[re]))
                    print FILENAME ":" FNR ": includes <" header ">, which only these may: " where[re]
        }' "${own[@]}"
}

check_sizes() {
    wc -l "${all[@]}" | awk '$2 != "total" && $1 > 800 { print $2 ":1: " $1 " lines, at most 800" }'
    # clang-format puts the brace of a function at the end of its head, and its end in column one.
    awk -v excepted="$long_functions" '
        FNR == 1 { inside = 0 }
        !inside && /^[A-Za-z_].*\)[ ]*\{[ ]*$/ || !inside && /^ +.*\)[ ]*\{[ ]*$/ && head { inside = FNR; name = head ? head : $0 }
        { head = (!inside && /^[A-Za-z_][^;={]*(\(|,)[^;{]*$/) ? $0 : (!inside && head && /^ +[^;{]*$/ ? head : "") }
        inside && /^\}/ {
            if (FNR - inside - 1 > 70 && index(excepted, FILENAME) == 0)
                print FILENAME ":" inside ": a function of " FNR - inside - 1 " lines, at most 70"
            inside = 0
        }' "${own[@]}"
}

# FILE:LINE:code of the product, without comments and without the insides of strings.
code() {
    awk '
        FNR == 1 { comment = 0 }
        {
            line = $0
            out = ""
            while (line != "") {
                if (comment) {
                    at = index(line, "*/")
                    if (!at) break
                    line = substr(line, at + 2)
                    comment = 0
                } else if (match(line, /\/\*|\/\/|"/)) {
                    out = out substr(line, 1, RSTART - 1)
                    kind = substr(line, RSTART, RLENGTH)
                    line = substr(line, RSTART + RLENGTH)
                    if (kind == "//") break
                    if (kind == "/*") comment = 1
                    if (kind == "\"") {
                        out = out "\"\""
                        line = match(line, /^([^"\\]|\\.)*"/) ? substr(line, RLENGTH + 1) : ""
                    }
                } else {
                    out = out line
                    break
                }
            }
            print FILENAME ":" FNR ":" out
        }' "${own[@]}"
}

# calls FILE-REGEX EXCEPT-REGEX NAMES WHAT: who calls one of NAMES in files of the first regex and
# not of the second.
calls() {
    grep -E "^($1)" <<<"$plain" | grep -vE "^($2)" |
        grep -E ":[0-9]+:(.*[^_a-zA-Z0-9.>])?($3)\(" | sed "s/^\([^:]*:[0-9]*\):.*/\1: $4/"
}

check_words() {
    local plain
    plain=$(code)
    grep -nE '\b(TODO|FIXME|XXX|HACK)\b' "${all[@]}" Makefile run test .ci/run tests/*.sh tests/e2e/*.sh 2>/dev/null |
        grep -vE '^tests/check_floors\.sh:' |
        sed 's/^\([^:]*:[0-9]*\):.*/\1: an unfinished word: finish it, or refuse by name at run time/'
    grep -E '(\b_Atomic\b|__atomic_[a-z]|__sync_[a-z])' <<<"$plain" |
        grep -vE '^(runtime/base/(thread|metric|mem|chaos)\.[ch]|comm/[a-z_]*\.[ch]|kernels/cpu/cpu_pool\.c):' |
        sed 's/^\([^:]*:[0-9]*\):.*/\1: an atomic outside of the files that argue theirs/'
    # assert() would let a file or a request end the process; exit() below main skips every owner.
    calls . none assert "assert(): SP_ASSERT for our mistakes, a status for those of the world"
    calls . 'launcher/|runtime/base/(status|mem)\.c' 'exit|abort|_exit|quick_exit' "ends the process below the launcher"
    calls . none 'strcpy|strcat|sprintf|vsprintf|gets|strtok|alloca|system|popen' \
        "a function without a bound, an error or a thread of its own"
    # These differ in their last bit from one processor to the next; kernels/math.h is the one source.
    calls 'kernels/|runtime/model/|runtime/gen/' 'kernels/math\.[ch]' '(exp|log|sin|cos|tan|pow|tanh|erf|exp2|log2|log1p|expm1)f?' \
        "a function of libm where bits are part of the contract"
}

check_headers() {
    local header
    for header in $(printf '%s\n' "${all[@]}" | grep '\.h$'); do
        grep -q '^#pragma once' "$header" || echo "$header:1: no #pragma once"
        case $(head -c 2 "$header") in
        '/*') ;;
        *) echo "$header:1: does not open with what it is" ;;
        esac
    done
    # A .c includes its own header first, so that the header is proven to stand alone.
    local file own_header first
    for file in $(printf '%s\n' "${own[@]}" | grep '\.c$'); do
        own_header=${file%.c}.h
        [ -f "$own_header" ] || continue
        first=$(grep -m 1 '^#include' "$file" | sed 's/.*"\(.*\)".*/\1/')
        [ "$first" = "$own_header" ] || echo "$file:1: its own header is not its first include"
    done
}

breaches_of < <(check_floors; check_libraries; check_sizes; check_words; check_headers)
[ "$breaches" = 0 ] || echo "$breaches breaches of the house rules"
[ "$breaches" = 0 ]
