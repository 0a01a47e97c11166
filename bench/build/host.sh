#!/bin/sh
# What apt, pip and uv need on a host with a private CA, an index or a mirror of its own. Where there is none, as on most
# machines, this does nothing. To be sourced; it writes to /dev/shm, which is in no layer.
export APT_CONFIG=/dev/shm/apt.conf
: >"$APT_CONFIG"
if [ -s /run/secrets/ca ]; then
    export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca
    # The user that apt downloads as cannot read a secret.
    echo 'Acquire::https::CAInfo "/run/secrets/ca"; APT::Sandbox::User "root";' >>"$APT_CONFIG"
fi
if [ -s /run/secrets/netrc ]; then
    export NETRC=/run/secrets/netrc
    echo 'Dir::Etc::netrc "/run/secrets/netrc"; APT::Sandbox::User "root";' >>"$APT_CONFIG"
fi
if [ -s /run/secrets/index ]; then
    PIP_INDEX_URL=$(cat /run/secrets/index)
    export PIP_INDEX_URL UV_DEFAULT_INDEX="$PIP_INDEX_URL"
fi
if [ -n "${TORCH_INDEX:-}" ]; then # of a variant whose torch comes from an index of its own
    if [ -s /run/secrets/torch-index ]; then
        mirror=$(cat /run/secrets/torch-index)
        TORCH_INDEX=${mirror%/}/${TORCH_INDEX##*/}
    fi
    export PIP_EXTRA_INDEX_URL="$TORCH_INDEX" UV_INDEX="$TORCH_INDEX" UV_INDEX_STRATEGY=unsafe-best-match
fi
if [ -s /run/secrets/apt-mirror ]; then
    mirror=$(cat /run/secrets/apt-mirror)
    mirror=${mirror%/}
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    {
        echo "deb $mirror $suite main"
        echo "deb $mirror $suite-updates main"
        echo "deb ${mirror%/*}/debian-security $suite-security main"
    } >/dev/shm/sources.list
    echo 'Dir::Etc::sourcelist "/dev/shm/sources.list"; Dir::Etc::sourceparts "/dev/null";' >>"$APT_CONFIG"
fi
