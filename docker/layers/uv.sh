#!/bin/sh
# uv by hash into /uv: through the same index, proxy and CA as everything else, so there is no second registry to reach.
. /run/common.sh
if [ -e /run/secrets/offline ]; then fail "offline: uv is not in the build cache"; fi
if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -s /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi
if [ -s /run/secrets/index ]; then PIP_INDEX_URL=$(cat /run/secrets/index); export PIP_INDEX_URL; fi
# pip straight out of its wheel, as ensurepip runs it: an environment for one download would take longer than that.
PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl)
export PYTHONPATH
watched uv quietly python3 -B -m pip install --quiet --disable-pip-version-check --no-cache-dir --root-user-action=ignore \
    --require-hashes --only-binary :all: --no-deps --no-compile --target /uv -r /run/uv.txt
