#!/bin/sh
# The least that a cold build could do: the wheels of a lock, downloaded, unpacked and byte-compiled by uv into
# /floor, a folder of the host, with an empty cache beside it. Prints when it began and ended, in seconds since 1970.
# Usage: floor.sh LOCK
set -eu
unset UV_CONSTRAINT UV_BUILD_CONSTRAINT VIRTUAL_ENV # the image's own; the locks say everything
begun=$(date +%s.%N)
uv venv --quiet --python /usr/bin/python3 /floor/venv
uv pip install --quiet --python /floor/venv/bin/python --require-hashes --no-deps --only-binary :all: --compile-bytecode \
    -r "$1"
echo "$begun $(date +%s.%N)"
