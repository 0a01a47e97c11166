#!/bin/sh
# What the scripts of the layers share; sourced, not run. Secrets of a build lie below /run/secrets, each may be absent.
set -eu

fail() {
    echo "torchdock: $*" >&2
    exit 1
}

# hide: copies its input without the addresses and credentials of mirrors. BuildKit keeps what a build prints.
# The path of an address is hidden by itself too (a tool may print it without the host, and it may hold a token), unless
# it is one that every mirror has.
hide() {
    awk '
        function add(what, by) {
            if (length(what) > 3) { words[++count] = what; instead[count] = by }
        }
        function note(file,   line, at, user, path) {
            while ((getline line < file) > 0) {
                sub(/^[a-z]+:\/\//, "", line); sub(/\/+$/, "", line)
                if (at = index(line, "@")) {
                    user = substr(line, 1, at - 1)
                    line = substr(line, at + 1)
                    add(user, "****")
                    if (index(user, ":")) add(substr(user, index(user, ":") + 1), "****")
                }
                add(line, "(mirror)")
                path = index(line, "/") ? substr(line, index(line, "/")) : ""
                if (path !~ /^(\/(simple|pypi|whl|root|debian|index|api))*$/) add(path, "/(mirror)")
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
            for (i = 1; i <= count; i++) $0 = replace($0, words[i], instead[i])
            print
        }'
}

# quietly COMMAND…: nothing is printed when it works; its output, without secrets, when it does not.
quietly() {
    "$@" >/tmp/output 2>&1 || { code=$?; hide </tmp/output >&2; return "$code"; }
}

# silently COMMAND…: nothing is printed in any case.
silently() {
    "$@" >/tmp/output 2>&1
}

# received: sets $received, the bytes that came in over the network, loopback aside.
received() {
    received=0
    while IFS=' :' read -r interface bytes _; do
        case $interface,$bytes in lo,* | *, | *,*[!0-9]*) ;; *) received=$((received + bytes)) ;; esac
    done </proc/net/dev
}

# watched STAGE COMMAND…: runs the command and says meanwhile, twice a second, how many bytes came in since its start.
# A step has a network of its own, so these are the step's; with --network=host nobody reads them. Around `quietly`, not
# inside of it: the lines go to the step's own output.
watched() {
    stage=$1
    shift
    (
        nap=
        trap '[ -z "$nap" ] || kill "$nap" 2>/dev/null; exit 0' TERM
        received
        start=$received
        while kill -0 $$ 2>/dev/null; do # not longer than the script, however that ends
            sleep 0.5 >/dev/null 2>&1 &
            nap=$!
            wait "$nap" || :
            received
            echo "torchdock: received: $stage $((received - start))"
        done
    ) &
    watcher=$!
    code=0
    "$@" || code=$?
    kill "$watcher" 2>/dev/null || :
    wait "$watcher" 2>/dev/null || :
    return "$code"
}

# roots: the certificates that TLS trusts. They are there with the python layer, $bundle is made with the system layer.
bundle=/etc/ssl/certs/ca-certificates.crt
roots() {
    find /usr/share/ca-certificates /usr/local/share/ca-certificates -name '*.crt' -exec cat {} + 2>/dev/null || :
}

# transport: sets $apt, the options of each call of apt and its downloader.
transport() {
    apt="-o Acquire::Retries=3 -o APT::Sandbox::User=root -o Dir::Etc::netrc=/tmp/netrc"
    if [ -s /run/secrets/ca ]; then
        apt="$apt -o Acquire::https::CAInfo=/run/secrets/ca"
    elif [ ! -e "$bundle" ] && [ -d /usr/share/ca-certificates ]; then
        roots >/tmp/roots
        apt="$apt -o Acquire::https::CAInfo=/tmp/roots"
    fi
    (umask 077; cat /run/secrets/netrc >/tmp/netrc 2>/dev/null) || :
}

# archives: sets $main and $security, where Debian's archives are for this build, and $apt.
archives() {
    transport
    if [ -s /run/secrets/apt-mirror ]; then
        main=$(cat /run/secrets/apt-mirror)
        main=${main%/}
        case $main in # credentials go to apt by file: every user of the host can read the words of a command
            *://*@*)
                echo "$main" | awk '
                    function plain(text,   at, done) { # %40 is @
                        while (at = index(text, "%")) {
                            done = done substr(text, 1, at - 1) sprintf("%c", hex(substr(text, at + 1, 2)))
                            text = substr(text, at + 3)
                        }
                        return done text
                    }
                    function hex(two) { return 16 * digit(substr(two, 1, 1)) + digit(substr(two, 2, 1)) }
                    function digit(one) { return index("0123456789abcdef", tolower(one)) - 1 }
                    {
                        # apt sends nothing by plain http unless the entry says so.
                        plainly = /^http:/ ? "http://" : ""
                        sub(/^[a-z]+:\/\//, ""); at = index($0, "@")
                        user = substr($0, 1, at - 1); host = substr($0, at + 1); sub(/[\/:].*/, "", host)
                        password = index(user, ":") ? substr(user, index(user, ":") + 1) : ""; sub(/:.*/, "", user)
                        print "machine", plainly host, "login", plain(user), "password", plain(password)
                    }' >>/tmp/netrc
                main=${main%%://*}://${main#*@}
                ;;
        esac
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

# serves FILE: ends the step where a lock is not for this Python or machine; said here too, as plain Docker asks nobody else.
serves() {
    python=$(header python "$1")
    here=$(python3 -B -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ "${python:-$here}" = "$here" ] || fail "this lock is for Python $python, the base has $here"
    machine=$(uname -m)
    case ,$(header architectures "$1"), in
        ,, | *,"$machine",*) ;;
        *) fail "this lock is for $(header architectures "$1"), this machine is $machine" ;;
    esac
}

# pins FILE: the names and versions in a lock of wheels, in one line; empty where it has none.
pins() {
    sed -n 's/^\([^# ][^ ]*\).*/\1/p' "$1" | tr '\n' ' '
}

# indexes FILE: pip and uv take packages from where this host does, and those of this lock from its own index as well.
indexes() {
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi
    if [ -s /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi
    if [ -s /run/secrets/index ]; then
        PIP_INDEX_URL=$(cat /run/secrets/index)
        export PIP_INDEX_URL UV_DEFAULT_INDEX="$PIP_INDEX_URL" INDEX_IS_SECRET=yes
    fi
    # torch's own index is asked for its layer alone: it carries stale copies of other packages.
    own=$(header index "$1")
    if [ -n "$own" ]; then
        if [ -s /run/secrets/torch-index ]; then
            mirror=$(cat /run/secrets/torch-index)
            own=${mirror%/}/${own##*/}
            INDEX_IS_SECRET=yes
        else
            INDEX_IS_SECRET=
        fi
        export UV_INDEX="$own" PIP_INDEX_URL="$own" INDEX_IS_SECRET
    fi
}

# refuse_offline WHAT FILE: ends a step that would have to download the wheels of a lock.
refuse_offline() {
    [ ! -e /run/secrets/offline ] || fail "offline: $1 is not in the build cache; it needs these wheels: $(pins "$2")"
}

# from_pip WORD…: Python with pip straight out of its wheel, as ensurepip runs it: an environment would take longer than that.
from_pip() {
    PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl) python3 -B "$@"
}

# briefly COMMAND…: as `quietly`, and of pip's words those that say why. What an index answered it tells to -vv alone.
briefly() {
    "$@" >/tmp/output 2>&1 || {
        code=$?
        grep -E 'Could not fetch URL|ERROR|WARNING|HASHES|^ +(Expected|Got) |^ +[^ ]+==[^ ]+ from ' /tmp/output | tail -n 20 | hide >&2
        return "$code"
    }
}

# download STAGE LOCK FOLDER: the wheels of a lock, by download.py and what that leaves by pip.
download() {
    mkdir -p "$3"
    indexes "$2"
    [ -e "$bundle" ] || roots >"$bundle" # pip does not start without it; a stage that downloads is in no image
    transport
    [ -s /run/secrets/ca ] || apt="$apt -o Acquire::https::CAInfo=$bundle"
    cp "$2" /tmp/rest.txt # should download.py fail
    # shellcheck disable=SC2086  # one word an option
    watched "$1" silently from_pip -S /run/download.py "$2" "$3" /tmp/rest.txt $apt || :
    rm -f "$3"/*.FAILED
    [ ! -s /tmp/rest.txt ] || watched "$1" briefly from_pip -m pip --disable-pip-version-check --no-cache-dir --no-input download \
        -vv --progress-bar off --require-hashes --only-binary :all: --no-deps --dest "$3" -r /tmp/rest.txt
}
