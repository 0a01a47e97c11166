#!/bin/sh
# Puts what another stage has packed (pack.sh), which is mounted at /packed, on top of this one, to the bit: owners, modes,
# times and links as they are there. So layers are made at the same time and yet stand on each other.
# Usage: merge.sh LAYER    (which one it is, for whoever reads the image's history)
set -eu
while kill -0 $$ 2>/dev/null; do sync -f / 2>/dev/null || :; sleep 0.2; done & # as in wheels.sh
set -- tar -C / --extract --preserve-permissions --numeric-owner --xattrs --xattrs-include=security.capability
"$@" --file=/packed/folders # first, that of the others none makes one; and last, for their times
printf '%s\n' /packed/files-* | xargs -P 4 -I '{}' "$@" --file='{}'
"$@" --file=/packed/folders
# What mounts touched besides.
touch -d "@$SOURCE_DATE_EPOCH" / /etc /root /run
