#!/usr/bin/env bash
# Start a Slurm cluster of one node (this machine) for the tests; run as root, or with sudo.
#
#   eval "$(tools/slurm_here.sh start FOLDER)"    installs missing Debian packages
#   tools/slurm_here.sh stop FOLDER
#
# Configuration, state, logs and pids are in FOLDER. `start` prints SLURM_CONF, which points there, so
# a configuration in /etc/slurm is not touched. There is no accounting, as on a small cluster.
set -euo pipefail
usage="usage: $0 start|stop FOLDER"
action=${1:?$usage} folder=$(realpath -m "${2:?$usage}")
root=$([ "$(id -u)" = 0 ] || echo sudo)
name=$(hostname -s)
export SLURM_CONF="$folder/slurm.conf"
PATH=$PATH:/usr/sbin

install() {
    for program in munged mungekey slurmctld slurmd srun; do
        command -v $program >/dev/null && continue
        $root apt-get update -qq
        $root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends munge slurmctld slurmd slurm-client
        return
    done
}

# Twice as many CPUs as cores, so that two cores run four jobs; nothing binds jobs to cores.
configuration() {
    cat <<CONF
ClusterName=here
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=26817
SlurmdPort=26818
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=5
KillWait=10
ReturnToService=2
MailProg=/bin/true
NodeName=$name NodeAddr=127.0.0.1 CPUs=$((2 * $(nproc))) RealMemory=$(free -m | awk '/^Mem/ {print $2}')
PartitionName=here Nodes=$name Default=YES MaxTime=INFINITE
CONF
}

# Without a configuration, sinfo searches the network for one for a minute.
is_up() { [ -e "$SLURM_CONF" ] && [[ "$(sinfo --noheader --format=%t 2>/dev/null)" =~ ^(idle|mix|alloc)$ ]]; }

start() {
    if ! is_up; then
        mkdir -p "$folder/state" "$folder/spool"
        chmod 755 "$folder"
        configuration >"$SLURM_CONF"
        [ -e "$folder/munge.key" ] || mungekey --create --keyfile="$folder/munge.key"
        $root munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
            --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
            --seed-file="$folder/munged.seed"
        $root slurmctld -f "$SLURM_CONF" -i
        $root slurmd -f "$SLURM_CONF"
        for _ in $(seq 60); do
            is_up && break
            sleep 0.5
        done
        is_up || { tail -n 5 "$folder"/*.log; stop; exit 1; } >&2
    fi
    echo "export SLURM_CONF='$SLURM_CONF'"
}

stop() {
    for daemon in slurmd slurmctld munged; do
        [ -e "$folder/$daemon.pid" ] || continue
        pid=$($root cat "$folder/$daemon.pid")
        $root kill "$pid" 2>/dev/null || continue
        while $root kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
    done
}

case $action in
    start) install >&2 && start ;;
    stop) stop ;;
    *) echo "$usage" >&2 && exit 2 ;;
esac
