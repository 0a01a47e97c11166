#!/bin/bash
# PID 1: takes the lease of each GPU that the container was given, then becomes tini, which reaps orphans and hands signals
# on. tini keeps the locks for exactly as long as the container lives, however it ends; `docker start` takes them again.
# The locks are files of the host (torchdock.lease). Where another container has one, this one ends with 75 (EX_TEMPFAIL).
set -u
held=() said=()
for file in /run/torchdock/leases/*; do
    [ -e "$file" ] || continue # there is none
    name=${file##*/}
    { exec {lock}<"$file"; } 2>/dev/null || {
        echo "torchdock: the lease of $name cannot be taken: its lock cannot be opened" >&2
        exit 1
    }
    # Whoever asks who has it takes a shared lock for a moment: that is waited for.
    flock --timeout 2 "$lock" || {
        # Anybody may have written these words.
        read -r -a said <"$file" 2>/dev/null || :
        user='somebody else' container='a container' since=
        for word in "${said[@]}"; do
            value=${word#*=}
            case $word in
                user=*) user=${value//[^a-zA-Z0-9_.-]/} ;;
                container=*) container=${value//[^a-zA-Z0-9_.-]/} ;;
                since=*[!0-9]*) ;;
                since=?*) printf -v since ', since %(%F %H:%M)T UTC' "$value" ;;
            esac
        done
        echo "torchdock: $name is leased to $user ($container$since)" >&2
        exit 75
    }
    held+=("$lock")
done
entry=/opt/torchdock/docker/entrypoint.sh
[ ${#held[@]} -gt 0 ] || exec /usr/bin/tini -- "$entry" "$@"
# Who has it, for whoever asks.
for file in /run/torchdock/leases/*; do
    printf '%s since=%(%s)T\n' "${TORCHDOCK_LEASE:-}" -1 >"$file" || :
done
unset TORCHDOCK_LEASE
# PID 1 alone keeps them: nothing that a command does can give one back.
# shellcheck disable=SC2016
exec /usr/bin/tini -- /bin/bash -c 'for lock in '"${held[*]}"'; do exec {lock}<&-; done; exec "$@"' init "$entry" "$@"
