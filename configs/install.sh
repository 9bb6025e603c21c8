#!/bin/sh
# Installs the Debian packages of configs/packages.txt that are missing, and says which and why.
#
#   configs/install.sh run        what building and serving needs
#   configs/install.sh run test   that and what the tests need
#
# Asks nothing, and touches neither network nor package lists when nothing is missing.
set -eu
cd "$(dirname "$0")/.."

# "name # why" of each package of the wanted sections, as "name<tab>why".
wanted() {
    awk -v sections=" $* " '
        /^\[/ { section = substr($0, 2, index($0, "]") - 2); next }
        /^[a-z0-9]/ && index(sections, " " section " ") {
            why = $0
            sub(/^[^#]*# */, "", why)
            print $1 "\t" why
        }' configs/packages.txt
}

names() { cut -f1 | paste -sd' ' -; }

packages=$(wanted "$@")
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "not a Debian or Ubuntu system: please provide what these packages hold:" \
        "$(printf '%s\n' "$packages" | names)" >&2
    command -v make >/dev/null || exit 1
    exit 0
fi

# dpkg-query answers 1 and writes to stderr for names it never heard of: they are missing too.
here=$(printf '%s\n' "$packages" | cut -f1 |
    xargs dpkg-query -W -f='${db:Status-Status} ${Package}\n' 2>/dev/null |
    sed -n 's/^installed //p') || true
missing=$(printf '%s\n' "$packages" | awk -F'\t' -v here="$here" '
    BEGIN { n = split(here, list, "\n"); for (i = 1; i <= n; i++) have[list[i]] = 1 }
    !($1 in have)')
[ -n "$missing" ] || exit 0

echo "installing, because it is missing:"
printf '%s\n' "$missing" | awk -F'\t' '{ printf "  %-22s %s\n", $1, $2 }'

as_root=
if [ "$(id -u)" != 0 ]; then
    # -n: sudo that would ask for a password counts as no sudo.
    if ! sudo -n true 2>/dev/null; then
        echo "needs root once: sudo apt-get install -y --no-install-recommends" \
            "$(printf '%s\n' "$missing" | names)" >&2
        exit 1
    fi
    as_root="sudo -n"
fi

mkdir -p build
log=build/install.log
apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" \
        </dev/null >>"$log" 2>&1
}
: >"$log"
# An update that fails (one mirror of several is down) need not matter: the install decides.
apt update || true
# shellcheck disable=SC2046 # one word a package is what apt-get wants
if ! apt install --no-install-recommends $(printf '%s\n' "$missing" | names); then
    tail -n 15 "$log" >&2
    echo "could not install: $(printf '%s\n' "$missing" | names) (the whole log is in $log)" >&2
    exit 1
fi
