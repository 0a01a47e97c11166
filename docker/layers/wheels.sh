#!/bin/sh
# A layer of wheels. Usage: wheels.sh LAYER    (its lock is /run/lock.txt, uv is mounted at /uv, finish.py beside it)
# Where download.sh has been, its wheels are mounted at /wheels; else they are downloaded here.
. /run/common.sh
layer=$1
lock=/run/lock.txt
venv=/opt/venv

serves "$lock"
touched() { touch -d "@$SOURCE_DATE_EPOCH" /opt / /etc /root /run; } # by mounts alone
if [ -z "$(pins "$lock")" ]; then # `recent`, while nothing was added since the tools were laid out
    touched
    exit
fi

refuse_offline "the layer $layer" "$lock"

# Group and world may write the folders of the environment: whoever runs the container may `pip install`.
umask 0
indexes "$lock"
# uv's cache on the environment's own file system: files are linked, not copied, and 5 GB are written once.
export UV_CACHE_DIR="$venv/.uv-cache" UV_LINK_MODE=hardlink
# No record of when and whence a wheel was installed: it differs from build to build.
export UV_NO_INSTALLER_METADATA=1 UV_NO_PROGRESS=1 UV_HTTP_TIMEOUT=120
marker=/tmp/started
touch "$marker"
# When a step ends, its file system is unmounted, which waits until all is on the disk: so that is begun at once.
while kill -0 $$ 2>/dev/null; do sync -f "$venv" 2>/dev/null || :; sleep 0.5; done &
set -- --quiet --python "$venv/bin/python" --require-hashes --no-deps --only-binary :all: -r "$lock"
if [ -d /wheels ]; then
    quietly /uv/bin/uv pip install "$@" --offline --no-index --find-links /wheels
else
    watched "$layer" quietly /uv/bin/uv pip install "$@"
fi
rm -f "$venv/.lock"
# A new file is in a folder that was written, too: of the others' files none is looked at.
find "$venv" -path "$UV_CACHE_DIR" -prune -o -type d -cnewer "$marker" -print0 >/tmp/folders
find -files0-from /tmp/folders -maxdepth 1 ! -path "$UV_CACHE_DIR" -cnewer "$marker" -print0 | sort -zu >/tmp/written
rm -rf "$UV_CACHE_DIR" & # tens of thousands of links
removal=$!
# -B -S: what the environment imports at every start would get its bytecode by that, with the time of today.
PYTHONHASHSEED=0 "$venv/bin/python" -B -S /run/finish.py </tmp/written
wait "$removal"
touch -d "@$SOURCE_DATE_EPOCH" "$venv"
touched
