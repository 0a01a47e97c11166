#!/bin/sh
# Puts what another stage has written, which is mounted at /from, on top of this one, to the bit: owners, modes, times and
# links as they are there. So layers are made at the same time and yet stand on each other. Usage: merge.sh system|tools
set -eu
case $1 in
    system) set -- --null --no-recursion --files-from=/from/written ;; # debian.sh wrote the list
    tools) set -- opt/venv ;;
esac
# A pipe by name: sh has no exit code for the left side of `|`.
mkfifo /tmp/archive
tar -C /from --create --format=posix --xattrs --xattrs-include=security.capability --file=/tmp/archive "$@" &
{
    tar -C / --extract --preserve-permissions --numeric-owner --xattrs --xattrs-include=security.capability --file=-
    cat >/dev/null # what pads the archive, or its writer finds nobody there
} </tmp/archive
wait $!
# What mounts touched besides.
touch -d "@$SOURCE_DATE_EPOCH" / /etc /root /run
