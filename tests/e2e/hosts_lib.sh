# shellcheck shell=bash
# tests/e2e/hosts_lib.sh - sourced after lib.sh: several "hosts" on this machine, each a network
# namespace with a name, an address and an /etc/hosts of its own, on a bridge in a namespace of its
# own. Nothing of it touches the machine's own network, so runs do not meet each other either.
#
#     hosts_up 3               in a case: h0 (10.77.0.10), h1, h2; skips the case where that cannot be
#     on h1 COMMAND...         runs it there, its working directory and environment as here
#     hosts_mpirun h0          then "${MPIRUN[@]}" -n 3 CMD: mpirun from h0, one process a host
#     hosts_pids h1            who lives there (or anywhere, without a host)
#
# All goes away with the case: by its EXIT trap, or by a watcher that outlives it when it is killed.

HOSTS= # the folder of this case's hosts
host_address() { echo "10.77.0.$((10 + ${1#h}))"; }
host_ns() { echo "$HOSTS_PREFIX$1"; }

# The names by which this case's namespaces can be found again after anything.
hosts_namespaces() { ip netns list | awk -v p="^$1(h[0-9]+|sw)\$" '$1 ~ p { print $1 }'; }
hosts_pids() {
    local ns
    for ns in $([ $# = 0 ] && hosts_namespaces "$HOSTS_PREFIX" || host_ns "$1"); do
        ip netns pids "$ns"
    done
}

# Ends every process of the namespaces, then the namespaces; again and again harmless.
hosts_remove() { # prefix
    local ns pid
    for ns in $(hosts_namespaces "$1"); do
        for pid in $(ip netns pids "$ns"); do kill -KILL "$pid" 2>/dev/null; done
        ip netns del "$ns" 2>/dev/null
    done
    return 0
}
hosts_down() {
    [ -n "$HOSTS" ] || return 0
    hosts_remove "$HOSTS_PREFIX"
    HOSTS=
}

# A case that is killed runs no trap: a process of its own session waits for its end.
hosts_watch() {
    local watched=$BASHPID
    (
        trap '' HUP INT TERM
        set +eE
        trap - ERR EXIT
        exec </dev/null >/dev/null 2>&1
        while kill -0 "$watched"; do sleep 0.5; done
        hosts_remove "$HOSTS_PREFIX"
    ) &
    disown
}

# The two scripts of a run. Both enter with nsenter: `ip netns exec` would hide /sys/fs/cgroup.
# rsh is what mpirun takes for ssh: rsh [-OPTION...] HOST COMMAND-LINE.
hosts_scripts() {
    cat >"$HOSTS/on" <<END
#!/bin/bash
h=\$1
shift
exec nsenter --net=/run/netns/$HOSTS_PREFIX\$h unshare --uts --mount --propagation private \\
    bash -c 'mount --bind "$HOSTS/hosts" /etc/hosts; hostname "\$0"; exec "\$@"' "\$h" "\$@"
END
    cat >"$HOSTS/rsh" <<END
#!/bin/bash
while [[ \$1 == -* ]]; do shift; done
h=\$1
shift
exec "$HOSTS/on" "\$h" bash -c "\$*"
END
    chmod 755 "$HOSTS/on" "$HOSTS/rsh"
}

hosts_up() { # how many
    local n=$1 h i
    command -v ip >/dev/null || skip "no ip(8)"
    [ "$(id -u)" = 0 ] || skip "network namespaces need root"
    unshare --net --uts --mount true 2>/dev/null || skip "no namespaces can be made here"
    HOSTS=$DIR/hosts
    HOSTS_PREFIX=sp$BASHPID
    mkdir "$HOSTS"
    trap 'set +e; trap - ERR; kill_servers "$DIR"; hosts_down' EXIT
    hosts_watch
    ip netns add "$HOSTS_PREFIX"sw 2>"$DIR/ip" || skip "no network namespace: $(tail -n 1 "$DIR/ip")"
    ip -n "$HOSTS_PREFIX"sw link add br0 type bridge 2>"$DIR/ip" || skip "no bridge: $(tail -n 1 "$DIR/ip")"
    ip -n "$HOSTS_PREFIX"sw link set br0 up
    echo '127.0.0.1 localhost' >"$HOSTS/hosts"
    for ((i = 0; i < n; i++)); do
        h=$HOSTS_PREFIX"h"$i
        ip netns add "$h"
        ip link add "v$i" netns "$HOSTS_PREFIX"sw type veth peer name eth0 netns "$h"
        ip -n "$HOSTS_PREFIX"sw link set "v$i" master br0 up
        ip -n "$h" addr add "$(host_address "h$i")/24" dev eth0
        ip -n "$h" link set eth0 up
        ip -n "$h" link set lo up
        echo "$(host_address "h$i") h$i" >>"$HOSTS/hosts"
    done
    hosts_scripts
}

on() { "$HOSTS/on" "$@"; }

# The wire of a host, pulled and put back: nobody is told.
host_cut() { ip -n "$HOSTS_PREFIX"sw link set "v${1#h}" down; }
host_heal() { ip -n "$HOSTS_PREFIX"sw link set "v${1#h}" up; }

# Sets MPIRUN, the words of a command: "${MPIRUN[@]}" -n 3 CMD (and so `... &` leaves its own pid).
# Open MPI 4.1 ends a job when one process dies unless told to let the others go on. `--bind-to none`
# and yielding, because the hosts share cores that each believes to be its own. No way to drain: what
# is still there a second after a TERM to mpirun is killed by it.
hosts_mpirun() { # from-host [slots of a host]
    local list
    command -v mpirun >/dev/null || skip "no mpirun"
    list=$(sed -n "s/^10\.77\.0\.[0-9]* \(h[0-9]*\)\$/\1:${2:-1}/p" "$HOSTS/hosts" | paste -sd,)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    MPIRUN=("$HOSTS/on" "$1" mpirun --mca plm_rsh_agent "$HOSTS/rsh" --mca plm_rsh_no_tree_spawn 1
        --mca oob_tcp_if_include eth0 --mca btl_tcp_if_include eth0 --mca btl "self,vader,tcp"
        --mca mpi_yield_when_idle 1
        --bind-to none -H "$list" --enable-recovery)
    [ -n "${2:-}" ] || MPIRUN+=(-N 1)
}
