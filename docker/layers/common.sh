#!/bin/sh
# What the scripts of the layers share; sourced, not run. Secrets of a build lie below /run/secrets, each may be absent.
set -eu

fail() {
    echo "torchdock: $*" >&2
    exit 1
}

# hide: copies its input without the addresses and credentials of mirrors. BuildKit keeps what a build prints.
hide() {
    awk '
        function note(file,   line, at) {
            while ((getline line < file) > 0) {
                sub(/^[a-z]+:\/\//, "", line); sub(/\/+$/, "", line)
                if (at = index(line, "@")) {
                    credentials[++users] = substr(line, 1, at - 1)
                    if (index(credentials[users], ":"))
                        credentials[++users] = substr(credentials[users - 1], index(credentials[users - 1], ":") + 1)
                    line = substr(line, at + 1)
                }
                if (line != "") addresses[++mirrors] = line
            }
        }
        function replace(text, what, by,   at, done) {
            while (at = index(text, what)) {
                done = done substr(text, 1, at - 1) by
                text = substr(text, at + length(what))
            }
            return done text
        }
        BEGIN { note("/run/secrets/index"); note("/run/secrets/torch-index"); note("/run/secrets/apt-mirror") }
        {
            for (i = 1; i <= mirrors; i++) $0 = replace($0, addresses[i], "(mirror)")
            for (i = 1; i <= users; i++) if (length(credentials[i]) > 3) $0 = replace($0, credentials[i], "****")
            print
        }'
}

# quietly COMMAND…: nothing is printed when it works; its output, without secrets, when it does not.
quietly() {
    "$@" >/tmp/output 2>&1 || { code=$?; hide </tmp/output >&2; return "$code"; }
}

# archives: sets $main and $security, where Debian's archives are for this build, and $apt, the options of each call.
archives() {
    apt="-o Acquire::Retries=3 -o APT::Sandbox::User=root"
    if [ -s /run/secrets/ca ]; then apt="$apt -o Acquire::https::CAInfo=/run/secrets/ca"; fi
    if [ -s /run/secrets/netrc ]; then apt="$apt -o Dir::Etc::netrc=/run/secrets/netrc"; fi
    if [ -s /run/secrets/apt-mirror ]; then
        main=$(cat /run/secrets/apt-mirror)
        main=${main%/}
        security=${main%/*}/debian-security # beside it, as on every full mirror
    else # the ones that the base itself names
        named=$(apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/\(.*\)/InRelease'.*|\2 \1|p")
        main=$(echo "$named" | awk '$1 !~ /-security$/ { print $2; exit }')
        security=$(echo "$named" | awk '$1 ~ /-security$/ { print $2; exit }')
    fi
}

# suites SUITE MAIN SECURITY [OPTION…]: the lines of a sources.list for a release, its updates and its security updates.
suites() {
    for keyring in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
        [ ! -e "$keyring" ] || break
    done
    release=$1 from=$2 from_security=$3
    shift 3
    echo "deb [signed-by=$keyring $*] $from $release main"
    echo "deb [signed-by=$keyring $*] $from $release-updates main"
    echo "deb [signed-by=$keyring $*] $from_security $release-security main"
}

# answers ARCHIVE SUITE: whether something is there. Asked once, before a hundred files are asked for in vain.
answers() {
    # shellcheck disable=SC2086
    /usr/lib/apt/apt-helper $apt -o Acquire::Retries=1 download-file "$1/dists/$2/InRelease" /tmp/answer
}

# header FIELD FILE: the value of FIELD=… in the first line of a lock; empty where it has none.
header() {
    head -n 1 "$2" | tr ' ' '\n' | sed -n "s/^$1=//p"
}
