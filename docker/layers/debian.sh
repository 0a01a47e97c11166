#!/bin/sh
# A layer of Debian packages. Usage: debian.sh LAYER locked|drift    (its lock is in /run/debian, its names /run/packages.txt)
#   LAYER   python: what wheels are installed with, on the base;  system: everything else, on python
#   locked  exactly the packages of docker/locks/debian, each by its SHA-256, from wherever it can be had
#   drift   what the mirror carries today
. /run/common.sh
layer=$1
lock=/run/debian/$(dpkg --print-architecture).txt
requested=$(sed 's/#.*//' /run/packages.txt)
marker=/tmp/started
touch "$marker"
archives
export DEBIAN_FRONTEND=noninteractive
# What is half written when a build breaks off is thrown away: dpkg need not wait for the disk.
install="apt-get $apt -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io install -qq -y --no-install-recommends"
if [ "$layer" = python ]; then # all the wheels wait for this step: what takes half of its time is done otherwise
    mkdir /tmp/instead
    # The links of 150 certificates, made twice: no wheel needs them (`download` in common.sh), the next layer makes them.
    ln -s /bin/true /tmp/instead/update-ca-certificates
    # Bytecode of the standard library by one process: the packages ask for its sources, get none, and leave it to us.
    printf '#!/bin/sh\ncase $* in "-L libpython3."*) ;; *) exec /usr/bin/dpkg "$@" ;; esac\n' >/tmp/instead/dpkg
    chmod +x /tmp/instead/dpkg
    install="$install -o Dpkg::Path=/tmp/instead:$PATH"
fi

# fetch MAIN SECURITY: the files of /tmp/wanted that are not there yet; apt compares each with its SHA-256.
# What apt says is added to /tmp/mirror.
fetch() {
    while read -r _ sha path; do
        case $path in
            debian-security/*) url=$2/${path#*/} ;;
            *) url=$1/${path#*/} ;;
        esac
        file=/tmp/debs/${path##*/}
        [ -e "$file" ] || printf '%s %s SHA256:%s\n' "$url" "$file" "$sha"
    done </tmp/wanted >/tmp/downloads
    # shellcheck disable=SC2086  # one word an option
    # Three words a file, and never a file torn apart: xargs splits long lists.
    [ ! -s /tmp/downloads ] || xargs -n 300 /usr/lib/apt/apt-helper $apt download-file </tmp/downloads >>/tmp/mirror 2>&1
}

# missing: the packages whose files are not there: five by name, and how many more.
missing() {
    while read -r name _ path; do
        [ -e "/tmp/debs/${path##*/}" ] || echo "$name"
    done </tmp/wanted | awk 'NR <= 5 { printf "%s%s", (NR == 1 ? "" : ", "), $0 } END { if (NR > 5) printf " and %d more", NR - 5 }'
}

if [ "$2" = locked ]; then
    [ -s "$lock" ] || fail "there is no lock of Debian packages for this architecture (${lock##*/}); \`invoke lock\` writes it"
    # Whatever is below: afterwards every package of the lock is there in exactly its version.
    dpkg-query -W -f '${Package} ${Version}\n' >/tmp/have
    awk 'NR == FNR { have[$1] = $2; next } !/^#/ && have[$2] != $3 { print $2, $4, $5 }' /tmp/have "$lock" >/tmp/wanted
    if [ -e /run/secrets/offline ]; then
        fail "offline: the Debian packages are not in the build cache: $(wc -l </tmp/wanted) files would have to be downloaded"
    fi
    mkdir -p /tmp/debs
    # The mirror first: it is near, and the hash says whether it carries exactly these. What it has dropped, the
    # snapshot keeps.
    suite=$(header suite "$lock")
    carries=no
    if answers "$main" "$suite" >/tmp/mirror 2>&1; then
        carries=yes
        watched "$layer" fetch "$main" "$security" || true
    fi
    near=$(ls /tmp/debs | wc -l)
    if [ -n "$(missing)" ]; then
        snapshot=http://snapshot.debian.org/archive # not https: a bare base has no CA, and each file has its hash
        day=$(header snapshot "$lock")
        if answers "$snapshot/debian/$day" "$suite" >/dev/null 2>&1; then
            cp /tmp/mirror /tmp/said # what the snapshot says explains nothing of the mirror
            watched "$layer" fetch "$snapshot/debian/$day" "$snapshot/debian-security/$day" || true
            mv /tmp/said /tmp/mirror
        fi
    fi
    absent=$(missing)
    if [ -n "$absent" ]; then
        grep -E '^(E|W): ' /tmp/mirror | tail -n 3 | hide >&2
        if grep -q 'Hash Sum mismatch\|Hashes of expected file\|unexpected size' /tmp/mirror; then
            fail "the Debian mirror gives other files than the lock names for: $absent. Do not trust that mirror."
        elif [ "$carries" = no ] && grep -q ' 404 ' /tmp/mirror; then
            fail "the Debian mirror has no $suite: is its URL that of the archive, with dists/ and pool/ below it?"
        elif grep -q ' 404 ' /tmp/mirror; then
            fail "drift: neither the Debian mirror nor the snapshot of $day gave: $absent"
        fi
        fail "Debian packages could not be downloaded: $absent"
    fi
    echo "torchdock: source: Debian packages ($layer): $near from the mirror, $(($(ls /tmp/debs | wc -l) - near)) from the snapshot"
    # shellcheck disable=SC2086
    quietly $install --allow-downgrades /tmp/debs/*.deb
    dpkg-query -W -f '${Package} ${Version}\n' >/tmp/have
    awk 'NR == FNR { have[$1] = $2; next } !/^#/ && have[$2] != $3 { print $2, $3 }' /tmp/have "$lock" >/tmp/wrong
    [ ! -s /tmp/wrong ] || fail "these packages are not installed as locked: $(tr '\n' ',' </tmp/wrong)"
    # What nobody asked for by name may go again with what needed it.
    echo "$requested" | tr -s ' \n' '\n' >/tmp/requested
    awk 'NR == FNR { asked[$1]; next } /^(python|system) / && !($2 in asked) { print $2 }' /tmp/requested "$lock" >/tmp/auto
    quietly xargs apt-mark auto </tmp/auto
else
    if [ -s /run/secrets/apt-mirror ]; then
        suites "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$main" "$security" >/tmp/sources.list
        apt="$apt -o Dir::Etc::sourcelist=/tmp/sources.list -o Dir::Etc::sourceparts=/dev/null"
    fi
    # shellcheck disable=SC2086
    quietly apt-get $apt update -qq
    # shellcheck disable=SC2086
    quietly $install $requested
fi

case $layer in
    python)
        # World-writable with the sticky bit, as /tmp: whoever runs the container gets a HOME, caches and a workspace.
        mkdir -p /cache /workspace
        chmod 1777 /home /cache /workspace
        # The environment. Its folders are writable to whoever runs the container, so that `pip install` just works.
        (umask 0; python3 -m venv --without-pip /opt/venv)
        ;;
    system)
        quietly update-ca-certificates --fresh # see above
        # The caller's UID is not known when an image is built: the entrypoint writes its entry here (nsswitch.conf(5)).
        sed -i -e 's/^passwd:.*/passwd: files extrausers/' -e 's/^group:.*/group: files extrausers/' /etc/nsswitch.conf
        mkdir -p /var/lib/extrausers
        for file in passwd group; do : >"/var/lib/extrausers/$file"; chmod 0666 "/var/lib/extrausers/$file"; done
        ;;
esac

rm -f /run/adduser # a lock file of adduser's
# written TEST: what this step has written, by -newer (contents) or -cnewer (anything); not what mounts put in its place.
written() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/cache -o -path /var/log \
        -o -path /var/lib/apt/lists -o -path /etc/hosts -o -path /etc/hostname -o -path /etc/resolv.conf \) -prune \
        -o "$1" "$marker" -print0
}
# One time for all that has today's, and then the bytecode that the packages left to us.
written -newer | xargs -0 touch -h -d "@$SOURCE_DATE_EPOCH"
[ "$layer" = system ] || written -cnewer | grep -z '^/usr/lib/python3' | PYTHONHASHSEED=0 python3 -B -S /run/finish.py
touch -d "@$SOURCE_DATE_EPOCH" /var/lib/apt /var/lib /var / /etc /root /run
if [ "$layer" = system ]; then # for merge.sh: this layer is made beside the wheels, and put on top of them
    written -cnewer | sed -z 's|^/||; /^$/d' >/tmp/written
    mv /tmp/written /written
fi
