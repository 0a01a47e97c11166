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
    echo "$name:x:$uid:$gid::/home/$name:/bin/bash" >>/var/lib/extrausers/passwd
fi
for group in $(id -G); do
    getent group "$group" >/dev/null || echo "group$group:x:$group:" >>/var/lib/extrausers/group
done

entry=$(getent passwd "$uid" || echo "$name:x:$uid:$gid::/home/$name:/bin/bash")
USER=$(echo "$entry" | cut -d: -f1)
home=$(echo "$entry" | cut -d: -f6)
# Docker sets HOME to / for a UID it does not know; a HOME that was asked for and exists is kept.
if [ "${HOME:-/}" = / ] || [ ! -w "$HOME" ]; then HOME=$home; fi
[ -d "$HOME" ] || mkdir -p "$HOME"
export HOME USER LOGNAME="$USER"

# As many threads as the CPU quota allows: torch and OpenMP count the cores of the host (pytorch/pytorch#193859).
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    threads=$(nproc)
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
    export OMP_NUM_THREADS="$threads"
fi

if ! command -v -- "${1:-}" >/dev/null; then
    echo "torchdock: ${1:-} is no command in this container" >&2
    exit 127
fi
exec "$@"
