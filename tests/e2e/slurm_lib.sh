# shellcheck shell=bash
# tests/e2e/slurm_lib.sh - sourced after lib.sh: a Slurm cluster of this machine alone, one controller
# and three node daemons with ports, state and logs in the case's folder; no munge, no root's files.
#
#     slurm_up                 in a case; skips it by name where that cannot be
#     srun -N3 ..., sbatch ... as anywhere: SLURM_CONF is exported
#     slurm_state JOB          R, CG, CD, ... or nothing for a job that is forgotten
#
# All goes away with the case: by its EXIT trap, or by a watcher that outlives it when it is killed.
# Whoever belongs to the cluster, jobs and their children too, has its SLURM_CONF in the environment.

SLURM_DIR=
SLURM_NODES=3

# Processes that were started with the configuration at $1; never the case's own shell.
slurm_pids() {
    local file pid
    for file in $(grep -lsaF "SLURM_CONF=$1" /proc/[0-9]*/environ 2>/dev/null); do
        pid=${file//[!0-9]/}
        [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ] || echo "$pid"
    done
}
slurm_kill() { # signal configuration
    local pid
    for pid in $(slurm_pids "$2"); do kill -"$1" "$pid" 2>/dev/null; done
    return 0
}
slurm_down() {
    [ -n "$SLURM_DIR" ] || return 0
    timeout 5 scancel --quiet --user="$(id -un)" 2>/dev/null
    # Jobs first, so that daemons do not restart what the kill ends.
    local _
    for _ in $(seq 30); do
        [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
        sleep 0.1
    done
    slurm_kill TERM "$SLURM_CONF"
    for _ in $(seq 30); do
        [ -n "$(slurm_pids "$SLURM_CONF")" ] || break
        sleep 0.1
    done
    slurm_kill KILL "$SLURM_CONF"
    SLURM_DIR=
}
slurm_watch() {
    local watched=$BASHPID conf=$SLURM_CONF
    (
        trap '' HUP INT TERM
        set +eE
        trap - ERR EXIT
        exec </dev/null >/dev/null 2>&1
        while kill -0 "$watched"; do sleep 0.5; done
        for _ in 1 2 3; do slurm_kill KILL "$conf" && sleep 0.3; done
    ) &
    disown
}

slurm_conf() { # controller's port, node ports
    local host
    host=$(hostname -s)
    cat <<END
ClusterName=superpod
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation=$SLURM_DIR/state
SlurmdSpoolDir=$SLURM_DIR/spool/%n
# One a node: Slurm's pmix plugin makes a folder of the same name on each.
TmpFS=$SLURM_DIR/tmp/%n
SlurmctldPidFile=$SLURM_DIR/run/slurmctld.pid
SlurmdPidFile=$SLURM_DIR/run/slurmd-%n.pid
SlurmctldLogFile=$SLURM_DIR/log/slurmctld.log
SlurmdLogFile=$SLURM_DIR/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Each node claims more cores than this machine may have.
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdTimeout=30
KillWait=20
MinJobAge=60
# Above free_port's, below the range that the kernel gives to clients.
SrunPortRange=30100-32700
NodeName=node[1-$SLURM_NODES] NodeHostname=$host NodeAddr=127.0.0.1 Port=$2 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

slurm_idle() { [ "$(sinfo -h -o '%T %D' 2>/dev/null)" = "idle $SLURM_NODES" ]; }
slurm_state() { squeue -h -t all -j "$1" -o %t 2>/dev/null; }
slurm_logs() { tail -n 3 "$SLURM_DIR"/log/*.log 2>/dev/null; }

slurm_up() {
    local word i ports=()
    for word in slurmctld slurmd srun sbatch; do
        command -v "$word" >/dev/null || skip "no $word"
    done
    [ "$(id -u)" = 0 ] || skip "a Slurm of our own needs root"
    SLURM_DIR=$DIR/slurm
    export SLURM_CONF=$SLURM_DIR/slurm.conf
    mkdir -p "$SLURM_DIR"/{state,log,run}
    for ((i = 1; i <= SLURM_NODES; i++)); do
        mkdir -p "$SLURM_DIR/spool/node$i" "$SLURM_DIR/tmp/node$i"
        ports+=("$(free_port)")
    done
    [ "$(printf '%s\n' "${ports[@]}" | sort -u | wc -l)" = "$SLURM_NODES" ] || ports=("$((ports[0]))" "$((ports[0] + 1))" "$((ports[0] + 2))")
    slurm_conf "$(free_port)" "$(IFS=, && echo "${ports[*]}")" >"$SLURM_CONF"
    trap 'set +e; trap - ERR; slurm_down; kill_servers "$DIR"' EXIT
    slurm_watch
    # What an enclosing job left in the environment is not ours; in the foreground, so that they stay
    # children whose end the case sees.
    for word in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|PMI|OMPI|MPI)' | grep -vx SLURM_CONF || true); do unset "$word"; done
    setsid slurmctld -D -f "$SLURM_CONF" >"$SLURM_DIR/log/slurmctld.out" 2>&1 </dev/null &
    for ((i = 1; i <= SLURM_NODES; i++)); do
        setsid slurmd -D -f "$SLURM_CONF" -N "node$i" >"$SLURM_DIR/log/slurmd-node$i.out" 2>&1 </dev/null &
    done
    wait_for 20 slurm_idle || fail "no Slurm after $((20 * SLOW)) s: $(slurm_logs)"
}
