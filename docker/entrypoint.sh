#!/bin/sh
# Gives the caller a name, a HOME and a thread count, then becomes the command. Any UID may run it.
# Works for `docker run --user UID:GID IMAGE` as well as for torchdock's launches, and again for `docker exec`.
set -eu

uid=$(id -u)
gid=$(id -g)
name=${TORCHDOCK_USER:-user}

# getpass.getuser(), ssh and git need an entry for the UID; /etc/passwd belongs to root, extrausers to everybody.
if ! getent passwd "$uid" >/dev/null; then
    getent passwd "$name" >/dev/null && name="user$uid"
    # No password, and no entry in shadow that sudo's PAM would look for.
    echo "$name:*:$uid:$gid::/home/$name:/bin/bash" >>/var/lib/extrausers/passwd
fi
for group in $(id -G); do
    getent group "$group" >/dev/null || echo "group$group:x:$group:" >>/var/lib/extrausers/group
done

entry=$(getent passwd "$uid" || echo "$name:*:$uid:$gid::/home/$name:/bin/bash")
USER=$(echo "$entry" | cut -d: -f1)
home=$(echo "$entry" | cut -d: -f6)
# Docker sets HOME to / for a UID it does not know; a HOME that was asked for is kept where it can be used.
# A new one gets colours and completion of an interactive shell.
use_home() {
    [ -d "$1" ] || { mkdir -p "$1" && cp -r /etc/skel/. "$1"; } 2>/dev/null
    [ -w "$1" ]
}
if [ "${HOME:-/}" = / ] || ! use_home "$HOME"; then
    HOME=$home
    use_home "$HOME" || :
fi
export HOME USER LOGNAME="$USER"

# The prompt of Debian's bashrc names the variant by this, and a terminal that nobody here knows has no line editing.
export debian_chroot="${TORCHDOCK_VARIANT:-}"
if [ -t 0 ] && ! infocmp >/dev/null 2>&1; then export TERM=xterm-256color; fi

# As many threads as the CPU quota allows: torch and OpenMP count the cores of the host (pytorch/pytorch#193859).
if [ -z "${OMP_NUM_THREADS:-}" ] || [ -z "${PYTHON_CPU_COUNT:-}" ]; then
    threads=$(OMP_NUM_THREADS='' nproc)
    if [ -r /sys/fs/cgroup/cpu.max ]; then # cgroup v2
        read -r quota period </sys/fs/cgroup/cpu.max
    elif [ -r /sys/fs/cgroup/cpu/cpu.cfs_quota_us ]; then # cgroup v1
        quota=$(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us)
        period=$(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us)
    else
        quota=max period=1
    fi
    case $quota in
        max | -1) ;;
        *)
            allowed=$((quota / period))
            [ "$allowed" -ge 1 ] || allowed=1
            [ "$allowed" -ge "$threads" ] || threads=$allowed
            ;;
    esac
    # MKL goes by its own variable first: one that a person set for OpenMP is meant for it too.
    export MKL_NUM_THREADS="${MKL_NUM_THREADS:-${OMP_NUM_THREADS:-$threads}}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
    # os.cpu_count(), so what people give as num_workers, and torch's own hint for it (inside/startup.py)
    export PYTHON_CPU_COUNT="${PYTHON_CPU_COUNT:-$threads}"
fi

# The GPUs of this container are watched over while it lives, and its command ends in good order when they are lost
# (torchdock.inside.watch); what a person types to, a shell or the workspace container, is told alone. Later commands are
# told too.
lost=/tmp/torchdock-gpu-lost
if [ "$PPID" != 1 ]; then
    [ ! -f "$lost" ] || echo "torchdock: this container has lost its GPU: $(cat "$lost"). Launch it anew" >&2
elif [ -n "${TORCHDOCK_GPUS:-}" ] && [ "${TORCHDOCK_WATCH:-}" != 0 ]; then
    manner=end
    case $#:$* in *torchdock-stay) manner=tell ;; 1:*sh) [ ! -t 0 ] || manner=tell ;; esac # also behind a time limit
    PYTHONPATH=/opt/torchdock/src setsid --fork python -P -S -m torchdock.inside.watch $$ $manner </dev/null >/dev/null
fi

# The workspace container's own process. When the container is stopped, what people run in it gets SIGTERM and is waited
# for, as long as the engine waits; at the end of this process the kernel would kill it without a word.
# SIGTERM is for what was started from outside or by an interactive shell, and for what has lost its parent since; not for
# the workers of a training, which are its own to end. An interactive shell ignores SIGTERM, and hands its hangup on to what
# it runs, so it gets that last.
if [ "${1:-}" = torchdock-stay ]; then
    # The processes of other sessions than this one, in one of two ways:
    # `left`: busy, shells (where nothing else is left), or nothing. `first`: the PIDs of those that SIGTERM is for.
    processes() {
        ps -e -o pid=,ppid=,sid=,stat=,tname=,ignored= | awk -v own="$session" -v asked="$1" '
            $3 == own || $4 ~ /^Z/ { next }
            {
                pids[++count] = $1
                parent[$1] = $2
                shell[$1] = $5 != "?" && substr($6, length($6) - 3, 1) ~ /[4-7c-f]/ # bit 15 of those ignored: SIGTERM
            }
            END {
                for (i = 1; i <= count; i++) {
                    pid = pids[i]
                    if (shell[pid]) { shells = 1; continue }
                    busy = 1
                    if (asked == "first" && (!(parent[pid] in parent) || shell[parent[pid]])) print pid
                }
                if (asked == "left") print busy ? "busy" : shells ? "shells" : ""
            }'
    }
    end() {
        trap '' TERM
        told=
        while state=$(processes left) && [ -n "$state" ]; do
            for pid in $(processes first); do
                case " $told " in *" $pid "*) continue ;; esac
                told="$told $pid"
                kill -s TERM "$pid" 2>/dev/null || :
                kill -s CONT "$pid" 2>/dev/null || : # one that was stopped (Ctrl-Z) hears it only so
            done
            [ "$state" = busy ] || kill -s HUP -- -1 2>/dev/null || :
            sleep 0.1
        done
        exit 143
    }
    session=$(($(ps -o sid= -p $$)))
    trap end TERM
    while :; do
        sleep infinity &
        wait || :
    done
fi

# What a person typed stands behind the limit of --time (torchdock.container).
program=${1:-}
case "$program ${2:-} ${3:-} ${5:-}" in "timeout --foreground --preserve-status --kill-after="*) program=${7:-} ;; esac
found=$(command -v -- "$program") || {
    echo "torchdock: ${program:-''} is no command in this container" >&2
    exit 127
}
case $found in
    */*)
        if [ ! -f "$found" ] || [ ! -x "$found" ]; then
            echo "torchdock: $program cannot be executed (chmod +x, or name what reads it: python $program)" >&2
            exit 126
        fi
        ;;
esac

# The client holds a lock on this file for as long as it lives (torchdock.lifeline). When it is gone, by SIGKILL or with a
# lost connection, the command ends as by `docker stop`; an interactive shell ignores SIGTERM and ends by the hangup.
# One that nobody holds now: the client is gone already, if its kernel and its folder are ours; else its locks are not seen
# in here: in a virtual machine, or after the folder was removed and made anew beside the one that is mounted.
line=/run/torchdock/lifeline/${TORCHDOCK_LIFELINE:-}
line=${line%%:*}
held=-
if [ -n "${TORCHDOCK_LIFELINE:-}" ] && [ -r "${line%/*}" ]; then
    held=0
    [ ! -f "$line" ] || flock --nonblock "$line" true || held=$? # 1 where it is held, more where it cannot be opened
fi
if [ "$held" = 0 ] &&
    [ "${TORCHDOCK_LIFELINE#*:}" = "$(cat /proc/sys/kernel/random/boot_id):$(stat -c %d:%i "${line%/*}")" ]; then
    echo "torchdock: the client ended before the command began" >&2
    exit 143
elif [ "$held" = 1 ]; then
    end=TERM
    case $#:${1##*/} in 1:*sh) [ ! -t 0 ] || end=HUP ;; esac
    setsid --fork sh -c '
        flock "$1" true
        kill -s "$3" "$2" || exit 0
        for second in $(seq "$4"); do
            kill -0 "$2" || exit 0
            sleep 1
        done
        kill -s KILL "$2"
    ' lifeline "$line" $$ "$end" "${TORCHDOCK_GRACE:-120}" </dev/null >/dev/null 2>&1
fi
unset TORCHDOCK_LIFELINE
# A profile's capabilities are for the engine's filter of system calls; as root they would also work, and beyond one's own
# processes.
if [ -n "${TORCHDOCK_PROFILE:-}" ] && [ "$uid" = 0 ]; then
    set -- /opt/venv/bin/python -I /opt/torchdock/src/torchdock/inside/tracing.py "$@"
fi
exec "$@"
