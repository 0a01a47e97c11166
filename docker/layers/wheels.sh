#!/bin/sh
# A layer of wheels. Usage: wheels.sh LOCK_FILE    (uv is mounted at /uv)
set -eu
lock=$1
venv=/opt/venv
# Group and world may write the folders of the environment: whoever runs the container may `pip install`.
umask 0
if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi
# uv's cache on the environment's own file system: files are linked, not copied, and 5 GB are written once.
export UV_CACHE_DIR="$venv/.uv-cache" UV_LINK_MODE=hardlink
# No record of when and whence a wheel was installed: it differs from build to build.
export UV_NO_INSTALLER_METADATA=1 UV_NO_PROGRESS=1 UV_HTTP_TIMEOUT=120
marker=/tmp/started
touch "$marker"
/uv/bin/uv pip install --quiet --python "$venv/bin/python" --require-hashes --no-deps --only-binary :all: -r "$lock"
rm -rf "$UV_CACHE_DIR" "$venv/.lock"

# Times first, bytecode second: it records the time of its source, and an edited source must still be noticed.
stamp() { find "$venv" -newer "$marker" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; }
stamp
# A few packages ship sources for other Pythons or templates that do not compile; that is not a failure.
"$venv/bin/python" -m compileall -q -j 0 --invalidation-mode timestamp "$venv/lib" >/dev/null 2>&1 || true
stamp
# What mounts touched besides.
touch -d "@$SOURCE_DATE_EPOCH" /opt / /etc /root /run
