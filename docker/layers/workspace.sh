#!/bin/sh
# The layer of a workspace: its wheels, and the lock beside those of the environment, which the suite compares with.
# Usage: workspace.sh    (mounts as for wheels.sh)
. /run/common.sh
for_variant=$(header variant /run/lock.txt)
[ "$for_variant" = "$TORCHDOCK_VARIANT" ] || fail "this lock is for $for_variant, the environment is $TORCHDOCK_VARIANT"
# The environment's own start-up module is imported by every Python from here on, and would leave a file of today.
PYTHONDONTWRITEBYTECODE=1 sh /run/wheels.sh workspace

folder=/opt/torchdock/docker/locks/$TORCHDOCK_VARIANT
install -m 0644 /run/lock.txt "$folder/workspace.txt"
touch -d "@$SOURCE_DATE_EPOCH" "$folder/workspace.txt" "$folder"
