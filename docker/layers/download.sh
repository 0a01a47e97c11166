#!/bin/sh
# The wheels of a layer into /wheels, for a step that needs no secrets: BuildKit reads everything below a step that mounts
# one, and below these there are gigabytes. So they also arrive while the layers below are made.
# Usage: download.sh LAYER    (its lock is /run/lock.txt)
. /run/common.sh
layer=$1
lock=/run/lock.txt
mkdir /wheels
wheels=$(pins "$lock")
[ -n "$wheels" ] || exit 0 # `recent`, while nothing was added since the tools were laid out
if [ -e /run/secrets/offline ]; then
    fail "offline: the layer $layer is not in the build cache; it needs these wheels: $wheels"
fi
indexes "$lock"
# briefly COMMAND…: as `quietly`, and of pip's words those that say why. What an index answered it tells to -vv alone.
briefly() {
    "$@" >/tmp/output 2>&1 || {
        code=$?
        grep -E 'Could not fetch URL|ERROR|WARNING|HASHES|^ +(Expected|Got) |^ +[^ ]+==[^ ]+ from ' /tmp/output | tail -n 20 | hide >&2
        return "$code"
    }
}
watched "$layer-wheels" briefly pip download -vv --progress-bar off --require-hashes --only-binary :all: --no-deps \
    --dest /wheels -r "$lock"
