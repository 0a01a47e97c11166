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
watched "$layer-wheels" quietly pip download --quiet --progress-bar off --require-hashes --only-binary :all: --no-deps \
    --dest /wheels -r "$lock"
