#!/bin/sh
# The last layer: the suite, what it runs, the lock it compares with, and the entrypoint.
# Usage: suite.sh CLONE VARIANT
set -eu
clone=$1
variant=$2
target=/opt/torchdock
umask 022
put() { # put FOLDER: every file below it, times, owners and modes made constant
    [ -e "$clone/$1" ] || exit 1 # find's own failure would be lost in the pipe
    (cd "$clone" && find "$1" -name __pycache__ -prune -o -type f -print) | while read -r file; do
        install -D -m 0644 "$clone/$file" "$target/$file"
    done
}
put src/torchdock/__init__.py
put src/torchdock/inside
put tests/container
put "docker/locks/$variant"
install -D -m 0755 "$clone/docker/entrypoint.sh" "$target/docker/entrypoint.sh"
site=$(echo /opt/venv/lib/python3*/site-packages)
echo "$target/src" >"$site/torchdock.pth"
find "$target" "$site/torchdock.pth" "$site" -maxdepth 0 -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
find "$target" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
touch -d "@$SOURCE_DATE_EPOCH" /opt / /etc /run
