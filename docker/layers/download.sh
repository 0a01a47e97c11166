#!/bin/sh
# The wheels of a layer into /wheels, for a step that needs no secrets: BuildKit reads everything below a step that mounts
# one, and below these there are gigabytes. So they also arrive while the layers below are made.
# Usage: download.sh LAYER    (its lock is /run/lock.txt)
. /run/common.sh
layer=$1
lock=/run/lock.txt
mkdir /wheels
[ -n "$(pins "$lock")" ] || exit 0 # `recent`, while nothing was added since the tools were laid out
serves "$lock"
refuse_offline "the layer $layer" "$lock"
download "$layer-wheels" "$lock" /wheels
