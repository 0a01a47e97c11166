#!/bin/sh
# uv by hash into /uv: through the same index, proxy and CA as everything else, so there is no second registry to reach.
. /run/common.sh
if [ -e /run/secrets/offline ]; then fail "offline: uv is not in the build cache"; fi
if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -s /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi
if [ -s /run/secrets/index ]; then PIP_INDEX_URL=$(cat /run/secrets/index); export PIP_INDEX_URL; fi
python3 -m venv /tmp/pip
quietly /tmp/pip/bin/pip install --quiet --disable-pip-version-check \
    --require-hashes --only-binary :all: --no-deps --no-compile --target /uv -r /run/uv.txt
