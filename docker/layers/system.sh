#!/bin/sh
# Layer "system": Debian packages. Usage: system.sh PACKAGES_FILE
set -eu
if [ -s /run/secrets/ca ]; then
    # A private CA matters to an https mirror only; given by option, it leaves no file behind.
    set -- "$1" -o "Acquire::https::CAInfo=/run/secrets/ca"
fi
list=$1
shift
packages=$(sed 's/#.*//' "$list")
marker=/tmp/started
touch "$marker"
apt-get "$@" -o Acquire::Retries=3 update -qq
# shellcheck disable=SC2086  # one word a package
DEBIAN_FRONTEND=noninteractive apt-get "$@" -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 \
    install -qq -y --no-install-recommends $packages >/tmp/apt.log || { cat /tmp/apt.log; exit 1; }

# The caller's UID is not known when an image is built: the entrypoint writes its entry here (see nsswitch.conf(5)).
sed -i -e 's/^passwd:.*/passwd: files extrausers/' -e 's/^group:.*/group: files extrausers/' /etc/nsswitch.conf
mkdir -p /var/lib/extrausers
for file in passwd group; do : >"/var/lib/extrausers/$file"; chmod 0666 "/var/lib/extrausers/$file"; done

# World-writable with the sticky bit, as /tmp: whoever runs the container gets a HOME, caches and a workspace.
mkdir -p /cache /workspace
chmod 1777 /home /cache /workspace

# The environment. Its folders are writable to whoever runs the container, so that `pip install` just works.
(umask 0; python3 -m venv --without-pip /opt/venv)

# One time stamp for all that was written, the folders that mounts hid included.
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \) -prune \
    -o -newer "$marker" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
rm -f /run/adduser # a lock file of adduser's
touch -d "@$SOURCE_DATE_EPOCH" /var/lib/apt /var/lib /var / /etc /root /run
