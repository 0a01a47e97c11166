#!/bin/sh
# The least that a cold build could do: the wheels of a lock, downloaded, unpacked and byte-compiled by uv into
# /floor, a folder of the host, with an empty cache beside it; and all files of the image written once as its layers are,
# as a tar.
# Prints when it began, had installed, and had written, in seconds since 1970.
# Usage: floor.sh LOCK
set -eu
unset UV_CONSTRAINT UV_BUILD_CONSTRAINT VIRTUAL_ENV # the image's own; the locks say everything
begun=$(date +%s.%N)
uv venv --quiet --python /usr/bin/python3 /floor/venv
uv pip install --quiet --python /floor/venv/bin/python --require-hashes --no-deps --only-binary :all: --compile-bytecode \
    -r "$1"
installed=$(date +%s.%N)
sync # what the installation has left to write is not the tar's
writing=$(date +%s.%N)
# With the image's own files, but for its environment, which was just installed again.
tar -C / --one-file-system --exclude=./opt/venv -cf /floor/layers.tar . ./floor/venv
echo "$begun $installed $writing $(date +%s.%N)"
