#!/bin/sh
# Resolves docker/layers/*packages.txt for one architecture, in a container of the base, from the mirror's signed index.
# Usage: debian-lock.sh ARCHITECTURE SUITE PYTHON PACKAGE…
#   PYTHON   the packages of the python layer, one word;  PACKAGE…: those of the system layer
# A version that should stay is in the lock at /run/old.txt. Prints the lock without its header's digest: a line
# `snapshot=…`, then `section name version sha256 archive/path bytes` each.
. /run/common.sh
architecture=$1
suite=$2
python=$3
shift 3
archives
mkdir -p /tmp/apt/lists/partial /tmp/apt/cache/archives/partial
: >/tmp/apt/status # as if nothing were installed: the whole closure is resolved
apt="$apt -o APT::Architecture=$architecture -o APT::Architectures::=$architecture -o Acquire::ForceHash=SHA256
    -o Dir::State=/tmp/apt -o Dir::State::status=/tmp/apt/status -o Dir::Cache=/tmp/apt/cache
    -o Dir::Etc::sourcelist=/tmp/apt/sources.list -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferences=/tmp/apt/pins -o Dir::Etc::preferencesparts=/dev/null"
suites "$suite" "$main" "$security" arch="$architecture" >/tmp/apt/sources.list
# shellcheck disable=SC2086
quietly apt-get $apt update -qq -o APT::Update::Error-Mode=any

# index: `name version sha256` of all that the sources carry.
index() {
    cat /tmp/apt/lists/*_Packages | awk '
        /^Package:/ { name = $2 } /^Version:/ { version = $2 } /^SHA256:/ { sum = $2 }
        /^$/ { print name, version, sum }'
}
index >/tmp/index

# What is locked stays, as long as somebody carries it: the mirror, else the snapshot it was locked from.
kept=
: >/tmp/apt/pins
if [ -s /run/old.txt ]; then
    awk 'NR == FNR { there[$1 " " $2]; next } !/^#/ && !(($2 " " $3) in there)' /tmp/index /run/old.txt >/tmp/dropped
    if [ -s /tmp/dropped ]; then
        day=$(header snapshot /run/old.txt)
        snapshot=http://snapshot.debian.org/archive
        if answers "$snapshot/debian/$day" "$suite" >/dev/null 2>&1; then
            # The snapshot alone, so that it holds whatever is locked now, and its day stays.
            kept=$day
            suites "$suite" "$snapshot/debian/$day" "$snapshot/debian-security/$day" arch="$architecture" \
                check-valid-until=no >/tmp/apt/sources.list
            # shellcheck disable=SC2086
            quietly apt-get $apt update -qq -o APT::Update::Error-Mode=any
            index >/tmp/index
        fi
    fi
    awk '!/^#/ { printf "Package: %s\nPin: version %s\nPin-Priority: 1001\n\n", $2, $3 }' /run/old.txt >/tmp/apt/pins
fi

# closure PACKAGE…: `URI file size SHA256:sum` of each, dependencies included.
closure() {
    # shellcheck disable=SC2086
    apt-get $apt install -qq --no-install-recommends --print-uris "$@" 2>/tmp/output ||
        { hide </tmp/output >&2; fail "the packages cannot be resolved"; }
}
# The base is what mmdebstrap's minbase and Debian's own slim image are: essential, required, and apt.
closure '?essential' '?priority(required)' apt >/tmp/base
# shellcheck disable=SC2086
closure '?essential' '?priority(required)' apt $python >/tmp/python
# shellcheck disable=SC2086
closure '?essential' '?priority(required)' apt $python "$@" >/tmp/all

dates=$(sed -n 's/^Date: //p' /tmp/apt/lists/*InRelease)
latest=$(echo "$dates" | while read -r date; do date -u -d "$date" +%s; done | sort -n | tail -n 1)
# A day later: the snapshot archive takes its pictures a few times a day, after the mirror has changed.
echo "snapshot=${kept:-$(date -u -d "@$((latest + 86400))" +%Y%m%dT%H%M%SZ)}"
awk '
    FILENAME == "/tmp/index" { name_of[$3] = $1; version_of[$3] = $2; next }
    FILENAME == "/tmp/base" { base[$4]; next }
    FILENAME == "/tmp/python" { python[$4]; next }
    {
        sum = $4; sub(/^SHA256:/, "", sum)
        path = $1; gsub("\047", "", path)
        archive = path ~ /\/debian-security\// ? "debian-security" : "debian"
        sub(/^.*\/pool\//, "pool/", path)
        if (!(sum in name_of) || length(sum) != 64) { print "no SHA-256 for " path > "/dev/stderr"; exit 1 }
        section = $4 in base ? "base" : $4 in python ? "python" : "system"
        print section, name_of[sum], version_of[sum], sum, archive "/" path, $3
    }' /tmp/index /tmp/base /tmp/python /tmp/all | sort
