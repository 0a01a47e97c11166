#!/bin/sh
# uv by hash into /uv: through the same index, proxy and CA as everything else, so there is no second registry to reach.
. /run/common.sh
if [ -e /run/secrets/offline ]; then fail "offline: uv is not in the build cache"; fi
indexes /run/uv.txt
watched uv quietly pip install --quiet --root-user-action=ignore --require-hashes --only-binary :all: --no-deps \
    --no-compile --target /uv -r /run/uv.txt
