#!/bin/sh
# What a dev container must know of this host before it starts: the image, who you are, which GPUs, the private CA.
# Usage: sh .devcontainer/initialize.sh cpu|cuda    (`initializeCommand`; run on the host, each time it is opened)
#
# Needs sh and docker. Where this clone has its .venv, torchdock itself builds and chooses (`invoke devcontainer`);
# without it, this script does what can be done without Python. Writes two files that git ignores:
#     .devcontainer/KIND/.env      names, which Compose puts into compose.yml
#     .devcontainer/KIND/host.yml  the part of the service that depends on the host
# TORCHDOCK_GPUS=N|all|UUID,… chooses the GPUs (default: one where there is one; 0: none).
set -eu
umask 022
kind=${1:-}
case $kind in cpu | cuda) ;; *) echo "usage: initialize.sh cpu|cuda" >&2 && exit 2 ;; esac

say() { printf 'torchdock: %s\n' "$*" >&2; }
fail() { say "$@" && exit "${code:-1}"; }
sha() { { sha256sum 2>/dev/null || shasum -a 256; } | cut -c 1-12; }
quoted() { printf "'%s'" "$(printf %s "$1" | sed "s/'/''/g; s/\\\$/\$\$/g")"; } # a scalar of YAML, as Compose reads it
value() { printenv "$1" || :; }
given() { [ -n "$(value "$1")" ]; }
lines() { printf '%s\n' "$1" | grep -c . || :; }
among() { printf '%s\n' "$2" | grep -qxF "$1"; } # LINE LINES

# A relative name of a file is meant from where this was started.
for name_of in SSL_CERT_FILE REQUESTS_CA_BUNDLE PIP_CERT CURL_CA_BUNDLE NETRC; do
    case $(value $name_of) in '' | /*) ;; *) export "$name_of=$PWD/$(value $name_of)" ;; esac
done
cd "$(dirname "$0")/.."
folder=.devcontainer/$kind

# --- facts ------------------------------------------------------------------------------------------------------------

[ -w "$folder" ] ||
    fail "This clone cannot be written by this user ($PWD/$folder). Use a clone of your own, or correct the owner of" \
        "this one: \`sudo chown -R \$USER .\`"
case $(docker --version 2>/dev/null) in
    *[Pp]odman*)
        code=69 fail "This \`docker\` is Podman's, which has no buildx and another Compose. Install Docker's own command" \
            "line and engine, or live in the environment by \`make up\`, which works with Podman."
        ;;
esac
answer=$(docker info --format '{{.ID}}|{{.SecurityOptions}}|{{.OperatingSystem}}' 2>&1) && [ -n "${answer%%|*}" ] ||
    code=69 fail "No container engine answers: $answer. Start Docker (\`make up\` installs one on Debian and Ubuntu)."
docker compose version >/dev/null 2>&1 ||
    code=69 fail "The docker CLI has no Compose plugin, which dev containers need here. Debian: apt-get install" \
        "docker-compose; Docker's own packages: docker-compose-plugin."
uid=$(id -u) gid=$(id -g) groups=$(id -G)
# A UID that nobody has a name for: some print the number, with or without an error.
name=$(id -un 2>/dev/null) && [ "$name" != "$uid" ] || name=user$uid
name=$(printf %s "$name" | LC_ALL=C tr 'A-Z' 'a-z' | LC_ALL=C tr -cd 'a-z0-9_-')
name=${name:-user$uid}
# Under rootless Docker the caller is root in the container.
case $answer in *name=rootless*) user=0:0 groups= ;; *) user=$uid:$gid ;; esac
clone=$(pwd -P | tr -d '\n' | sha)
project=torchdock-$name-$kind-$clone
# Opened again, a container keeps its GPUs, whether it runs or not.
there=$(docker ps --all --quiet --filter "label=com.docker.compose.project=$project" | head -n 1)
held=
[ -z "$there" ] ||
    held=$(docker inspect --format '{{index .Config.Labels "dev.torchdock.gpus"}}' "$there" | tr , '\n')
runs=
[ -z "$there" ] || runs=$(docker inspect --format '{{.State.Running}}' "$there" | grep true || :)

# --- leases, as src/torchdock/lease.py has them ------------------------------------------------------------------------

# shared FOLDER: everybody may write to it, and it is no link.
shared() { case $(LC_ALL=C ls -ld "$1" 2>/dev/null) in drwxrwxrwt*) ;; *) return 1 ;; esac; }

# find_leases: where this host's GPUs are leased. Sets $leases, empty where a container would see no lock of this host.
find_leases() {
    leases=
    [ "$kind" = cuda ] && [ "${TORCHDOCK_GPUS:-}" != 0 ] || return 0
    case $answer in *'Docker Desktop'*) return 0 ;; esac
    if ! command -v flock >/dev/null; then
        say "no GPU is leased, so others may get the same one: there is no \`flock\` (util-linux)"
        return 0
    fi
    for place in /run/lock /tmp; do
        if shared $place; then leases=$place/torchdock-gpus && break; fi
    done
    [ -n "$leases" ] || return 0
    [ -e "$leases" ] || [ -L "$leases" ] || (umask 0 && mkdir -m 1777 "$leases") 2>/dev/null || :
    shared "$leases" || code=2 fail "$leases, where GPUs are leased, is not a folder that everybody may write to. Mend" \
        "it: \`sudo chmod 1777 $leases\`, or, where it is no folder and no container uses a GPU, \`sudo rm -r $leases\`."
}

# lock_file NAME: its path; it is made where it is missing, and only then: the kernel refuses that for another's file.
lock_file() {
    [ -e "$leases/$1" ] || (umask 0 && set -C && : >"$leases/$1" && chmod +t "$leases/$1") 2>/dev/null || :
    printf %s "$leases/$1"
}

# locked FILE: somebody has it alone; asked by a shared lock for a moment.
locked() { [ -f "$1" ] && ! (flock -s -n 9) 9<"$1"; }

# taken UUID: a container has it, but for the one that is opened again, or a launch that has chosen it.
taken() {
    [ -n "$leases" ] || return 1
    locked "$leases/$1.pending" || { locked "$leases/$1" && ! { [ -n "$runs" ] && among "$1" "$held"; }; }
}

# holder UUID: who that is, in words.
holder() {
    file=$leases/$1
    locked "$file" || file=$file.pending
    said=$(head -n 1 "$file" 2>/dev/null | LC_ALL=C tr -cd 'a-zA-Z0-9_.= -')
    word() { printf '%s\n' "$said" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }
    printf '%s by %s (%s)' "$1" "$(word user | grep . || echo somebody)" "$(word container | grep . || echo a container)"
}

# pend: keep $gpus from other launches until the container has them. Fails where another launch was quicker.
pend() {
    [ -n "$leases" ] || return 0
    number=3 # shells have the digits alone: with more than seven GPUs PID 1 has the last word on the others
    for one in $gpus; do
        lock_file "$one" >/dev/null
        if [ $number -le 9 ] && ! { [ -n "$runs" ] && among "$one" "$held"; }; then
            eval "exec $number<\"\$(lock_file "\$one.pending")\"" && flock -x -n $number || {
                while [ $number -ge 3 ]; do eval "exec $number<&-" && number=$((number - 1)); done
                return 1
            }
            number=$((number + 1))
        fi
    done
}

# until_leased: in the background, what is pending stays so until the container has the leases, two minutes at most.
until_leased() {
    for second in $(seq 120); do
        waits=
        for one in $gpus; do locked "$leases/$one" || waits=yes; done
        [ -n "$waits" ] || return 0
        sleep 1 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-
    done
}

# An earlier opening that still keeps GPUs for this container: it is opened anew.
earlier=$(cat $folder/host.yml.pending 2>/dev/null) || earlier=
case $earlier:$(ps -o args= -p "${earlier:-0}" 2>/dev/null) in
    [1-9]*:*"initialize.sh $kind")
        kill "$earlier" 2>/dev/null || :
        for second in 1 2 3; do
            kill -0 "$earlier" 2>/dev/null || break
            sleep 1
        done
        ;;
esac
find_leases
if [ -n "$leases" ] && [ -z "$runs" ]; then
    for one in $held; do
        if taken "$one"; then
            say "$(holder "$one") is taken, which the container that is there was made with; Rebuild Container to have" \
                "another one"
            held=
            break
        fi
    done
fi
# As many as are asked for are kept too: its own work would make them look taken.
keep=
case ${TORCHDOCK_GPUS:-} in '' | "$(lines "$held")") keep=$held ;; esac

# --- choice and image, without Python ---------------------------------------------------------------------------------

# physical FILE: the same without links, which an engine in a virtual machine would look up in there.
physical() {
    path=$1
    while [ -L "$path" ]; do
        target=$(readlink "$path")
        case $target in /*) path=$target ;; *) path=$(dirname "$path")/$target ;; esac
    done
    printf '%s/%s' "$(cd "$(dirname "$path")" && pwd -P)" "$(basename "$path")"
}

# find_ca: the bundle that this host's own programs use, where one is named, as for `invoke build`. Sets $ca.
find_ca() {
    for name_of in SSL_CERT_FILE REQUESTS_CA_BUNDLE PIP_CERT CURL_CA_BUNDLE; do
        ca=$(value $name_of)
        [ -n "$ca" ] || continue
        [ -f "$ca" ] && [ -r "$ca" ] ||
            code=2 fail "$name_of names $ca, which is no file that can be read. Correct $name_of or unset it, and the" \
                "system's own bundle is used."
        ca=$(physical "$ca")
        return 0
    done
    for ca in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem \
        /etc/ssl/cert.pem; do
        [ ! -f "$ca" ] || { ca=$(physical "$ca") && return 0; }
    done
    ca=
}

# row VARIANT KEY: what docker/variants.toml says; the entries of a list with spaces between them.
row() {
    awk -v head="[variant.$1]" -v key="$2" '
        /^\[/ { on = $1 == head }
        on && $1 == key { sub(/^[^=]*= */, ""); sub(/ *#.*/, ""); gsub(/["\[\],]/, ""); print; exit }
    ' docker/variants.toml
}

loopback() { # URL
    host=${1#*://}
    host=${host%%/*}
    case ${host##*@} in localhost | localhost:* | 127.* | '[::1]'*) ;; *) return 1 ;; esac
}

# find_base: the base of the image, as `invoke build` has it but for the making of one. Sets $base, empty for the pinned.
find_base() {
    pinned=$(sed -n 's/^ARG BASE=//p' docker/cuda.Dockerfile)
    base=${TORCHDOCK_BASE_IMAGE:-}
    case $base in
        '') ;;
        *"@${pinned##*@}") ;;
        *@*)
            say "fallback: the base is $base (TORCHDOCK_BASE_IMAGE), not the pinned one"
            return 0
            ;;
        *) base=$(printf %s "$base" | sed 's/:[^:/]*$//')@${pinned##*@} ;;
    esac
    wanted=${base:-$pinned}
    ! docker image inspect "$wanted" >/dev/null 2>&1 || return 0
    # One that was made here goes before the registry's: the layers of `invoke build` stand on it.
    made=$(docker images --format '{{.Repository}}:{{.Tag}}' torchdock/base | grep -v '<none>' | head -n 1)
    if [ -n "$made" ]; then
        base=$made
        say "fallback: the base is $made, which was made from Debian packages, not the pinned one"
        return 0
    fi
    said=$(docker pull --quiet "$wanted" 2>&1) ||
        fail "The base $wanted cannot be pulled ($(printf %s "$said" | tr '\n' ' ')). Reach a registry, name a mirror of" \
            "it in TORCHDOCK_BASE_IMAGE, or run \`make build\`, which makes a base from Debian packages."
}

# build VARIANT: the image of this variant, from the same Dockerfile and locks as `invoke build`, so that layers are
# shared. Sets $image; where it fails, what was said is in $log.
build() {
    variant=$1 file=$(row "$1" dockerfile)
    image=torchdock/$variant:devcontainer-$uid-$clone
    # By name: another builder that is the current one would keep the image to itself.
    set -- --builder "$(docker context show 2>/dev/null || echo default)" --progress=plain
    set -- "$@" --file "$file" --target environment --tag "$image" --provenance=false --sbom=false
    # As src/torchdock/engine.py says (OUTPUT).
    set -- "$@" --output type=image,compression=zstd,compression-level=1,oci-mediatypes=true
    set -- "$@" --build-arg "SOURCE_DATE_EPOCH=$(sed -n 's/^ARG SOURCE_DATE_EPOCH=//p' "$file" | head -n 1)"
    [ "$variant" = cpu ] || set -- "$@" --build-arg "VARIANT=$variant"
    [ -z "$base" ] || set -- "$@" --build-arg "BASE=$base"
    # What no layer may hold goes as a secret, or by name.
    [ -z "$ca" ] || set -- "$@" --secret "id=ca,\"src=$ca\""
    [ -z "$netrc" ] || set -- "$@" --secret "id=netrc,\"src=$netrc\""
    [ -z "$index" ] || set -- "$@" --secret "id=index,env=$index"
    ! given TORCHDOCK_TORCH_INDEX || set -- "$@" --secret id=torch-index,env=TORCHDOCK_TORCH_INDEX
    ! given TORCHDOCK_APT_MIRROR || set -- "$@" --secret id=apt-mirror,env=TORCHDOCK_APT_MIRROR
    here=
    for name_of in "$index" TORCHDOCK_TORCH_INDEX TORCHDOCK_APT_MIRROR; do
        [ -z "$name_of" ] || ! loopback "$(value "$name_of")" || here=yes
    done
    for name_of in HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY http_proxy https_proxy ftp_proxy all_proxy; do
        ! given $name_of || set -- "$@" --build-arg $name_of
        ! loopback "$(value $name_of)" || here=yes
    done
    for name_of in NO_PROXY no_proxy; do ! given $name_of || set -- "$@" --build-arg $name_of; done
    [ -z "$here" ] || set -- "$@" --network=host # which the network of a build does not reach
    { docker buildx build "$@" . 2>&1 && echo >"$log.good"; } | tee "$log" >&2
    [ -f "$log.good" ]
}

unbuilt() {
    fail "The image $image could not be built (above). Correct what the log names (sources, proxy, disk), or run" \
        "\`make build\`, which says more, and open it again."
}

# serves VARIANT: those GPUs of $list that it computes on. Built code runs on the same major and any higher minor number;
# what is newer than all that is known is tried (src/torchdock/choice.py).
serves() {
    printf '%s\n' "$list" | awk -F ', *' -v needs="$(row "$1" driver)" -v code="$(row "$1" "compute_capability.$arch")" '
        function number(text, part) { split(text, part, "."); return part[1] * 1000000 + part[2] * 1000 + part[3] }
        {
            count = split(code, built, " ")
            fits = count && $4 !~ /^[0-9]/ || int(built[count]) == 12 && $4 > 12.1
            for (i = 1; i <= count; i++) if (int(built[i]) == int($4) && built[i] + 0 <= $4 + 0) fits = 1
            if (fits && number($3) >= number(needs)) print $2
        }'
}

# list_gpus: a line for each GPU, the idlest first: memory in use, UUID, driver, compute capability. Sets $list.
list_gpus() {
    list=
    [ "$kind" = cuda ] && [ "${TORCHDOCK_GPUS:-}" != 0 ] || return 0
    PATH=$PATH:/usr/lib/wsl/lib # where Windows puts it
    query=memory.used,uuid,driver_version
    bound=
    ! command -v timeout >/dev/null || bound='timeout 30' # a driver may hang
    said=$($bound nvidia-smi --query-gpu=$query,compute_cap --format=csv,noheader,nounits 2>&1) ||
        { [ $? != 124 ] && said=$($bound nvidia-smi --query-gpu=$query --format=csv,noheader,nounits 2>&1); } || # an old one
        said="no GPU: ${said:-the driver gave no answer within 30 s}"
    list=$(printf '%s\n' "$said" | grep '^[^,]*, *[A-Z]*-[^,]*,' | sort -n) || list=
    if [ -z "$list" ]; then
        [ -z "${TORCHDOCK_GPUS:-}" ] || code=2 fail "TORCHDOCK_GPUS=$TORCHDOCK_GPUS, and the driver lists no GPU: $said"
        say "there is no GPU that the NVIDIA driver lists: the environment computes on the CPU"
        return 0
    fi
    case ${TORCHDOCK_GPUS:-} in
        '' | all) ;;
        *[!0-9]*)
            asked=
            for one in $(printf %s "$TORCHDOCK_GPUS" | tr , ' '); do
                asked=$asked$(printf '%s\n' "$list" | grep -F ", $one,") ||
                    code=2 fail "TORCHDOCK_GPUS: '$one' is none of the GPUs here:" $(printf '%s\n' "$list" | cut -d , -f 2)
                asked="$asked
"
            done
            list=$(printf %s "$asked" | grep .)
            ;;
        *)
            [ "$TORCHDOCK_GPUS" -le "$(lines "$list")" ] ||
                code=2 fail "TORCHDOCK_GPUS=$TORCHDOCK_GPUS, and this host has $(lines "$list")."
            ;;
    esac
}

# choose: the variant, and of the GPUs that it computes on as many as are wanted. Sets $variant and $gpus.
choose() {
    gpus=
    pin=$(sed -n '/^[[:space:]]*\[/q; s/^[[:space:]]*variant[[:space:]]*=[[:space:]]*["'\'']\([^"'\'']*\).*/\1/p' \
        torchdock.toml 2>/dev/null | head -n 1) || pin=
    ! sed '/^[[:space:]]*\[/q' torchdock.toml 2>/dev/null | grep -qE '^[[:space:]]*(packages|requirements)[[:space:]]*=' ||
        say "torchdock.toml asks for packages, which torchdock alone adds: run \`make up\`, then open it again"
    if [ -n "$pin" ]; then
        case " $(row "$pin" architectures) " in
            *" $arch "*) ;;
            *) code=2 fail "torchdock.toml pins the variant $pin, which docker/variants.toml does not have for $arch." \
                "Change the pin in that file." ;;
        esac
        [ -f "docker/locks/$pin/torch.txt" ] ||
            code=2 fail "torchdock.toml pins the variant $pin, which has no lock in this clone. Change the pin in that" \
                "file, or run \`invoke lock --variant $pin\`."
        [ "$kind:$pin" != cuda:cpu ] ||
            code=2 fail "A CUDA variant is demanded, and torchdock.toml pins cpu, which has none. Open the CPU" \
                "configuration, or change the pin in that file."
    fi
    variant=${pin:-cu130}
    [ -n "$pin" ] || [ "$kind" = cuda ] || variant=cpu
    [ -n "$list" ] || return 0
    served=$(serves "$variant")
    if [ -z "$pin" ]; then # the newest; an older torch where it serves more
        case " $(row cu128 architectures) " in
            *" $arch "*)
                other=$(serves cu128)
                if [ "$(lines "$other")" -gt "$(lines "$served")" ]; then
                    say "cu128 is taken: cu130 does not compute on every GPU here (driver, compute capability). It has" \
                        "torch $(row cu128 torch) instead of $(row cu130 torch), and numbers move with the version"
                    variant=cu128 served=$other
                fi
                ;;
        esac
    fi
    all=$served busy= served=
    for one in $all; do
        if taken "$one"; then busy="$busy${busy:+, }$(holder "$one")"; else served="$served$one
"; fi
    done
    remedy="\`make up\` chooses among all variants, and says what each needs."
    if [ -z "$all" ]; then
        [ -z "${TORCHDOCK_GPUS:-}" ] ||
            code=2 fail "TORCHDOCK_GPUS=$TORCHDOCK_GPUS: $variant computes on none of these GPUs. $remedy"
        say "$variant computes on none of this host's GPUs (memory, UUID, driver, compute capability: $(
            printf %s "$list" | tr '\n' ';'
        )): the environment computes on the CPU. $remedy"
        return 0
    fi
    case ${TORCHDOCK_GPUS:-} in
        '')
            gpus=$keep
            for one in $keep; do among "$one" "$served" || gpus=; done
            gpus=${gpus:-$(printf '%s\n' "$served" | head -n 1)}
            [ -n "$gpus" ] || code=75 fail "Every GPU is taken: $busy. Open it again when one is free;" \
                "TORCHDOCK_GPUS=0 computes on the CPU."
            return 0
            ;;
        *[!0-9]*) number=$(lines "$list") ;;
        *) number=$TORCHDOCK_GPUS ;;
    esac
    [ "$number" -le "$(lines "$all")" ] ||
        code=2 fail "TORCHDOCK_GPUS=$TORCHDOCK_GPUS: $variant computes on these alone:" $all. "$remedy"
    [ "$number" -le "$(lines "$served")" ] ||
        code=75 fail "TORCHDOCK_GPUS=$TORCHDOCK_GPUS: not all of them are free: $busy. Open it again when they are, or" \
            "ask for fewer."
    gpus=$(printf '%s\n' "$served" | head -n "$number")
    [ -z "$keep" ] || gpus=$keep
}

without_python() {
    docker buildx version >/dev/null 2>&1 ||
        code=69 fail "This docker CLI has no buildx plugin, which builds the image. Install it (Debian, Ubuntu: \`sudo" \
            "apt-get install docker-buildx\`; else https://github.com/docker/buildx#installing), and open it again."
    arch=$(docker version --format '{{.Server.Arch}}')
    case $arch in amd64) arch=x86_64 ;; arm64) arch=aarch64 ;; esac
    find_ca
    netrc=${NETRC:-${HOME:-/nonexistent}/.netrc}
    if [ ! -f "$netrc" ] || [ ! -r "$netrc" ]; then
        [ -z "${NETRC:-}" ] || code=2 fail "NETRC names $NETRC, which is no file that can be read. Correct it or unset it."
        netrc=
    fi
    list_gpus
    choose
    find_base
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    log=$scratch/log
    build "$variant" || {
        # Second best is for the one thing that it helps against.
        from=${TORCHDOCK_TORCH_INDEX:-$(sed -n '/^\[torch_index\]/,/^\[variant/s/^url = "\(.*\)"/\1/p' docker/variants.toml)}
        from=${from#*://}
        from=${from%%/*}
        from=${from##*@}
        [ "$variant" = cpu ] && [ -z "$pin" ] &&
            grep -F "$from" "$log" | grep -qiE 'failed to fetch|error sending request|could not be downloaded|resolve' ||
            unbuilt
        say "fallback: the wheel index $from of the CPU variant cannot be reached; cu130 is taken, which computes on CPUs too"
        build cu130 || unbuilt
    }
}

# sees WORDS: whether a container that docker launches with these words sees exactly the GPUs, as for `invoke run`
# (src/torchdock/passthrough.py); else $said is why not.
sees() {
    said=$(docker run --rm --pull never --network none --entrypoint python "$@" "$image" -I -S -c \
        "$(cat src/torchdock/inside/sight.py)" uuids 2>&1) || return 1
    said=$(printf '%s\n' "$said" | grep -E '^(GPU|MIG)-' | sort)
    [ "$said" = "$(printf '%s\n' "$gpus" | sort)" ] || { said="the container sees ${said:-none} instead" && return 1; }
}

# hand_over: by which way this engine gives a container its GPUs: the one by which a real one sees them. Sets $by.
hand_over() {
    by=none
    [ -n "$gpus" ] || return 0
    list=$(printf %s "$gpus" | tr '\n' ,)
    set --
    for one in $gpus; do set -- "$@" --device "nvidia.com/gpu=$one"; done
    if sees "$@"; then
        by=cdi
    elif sees --gpus "\"device=$list\""; then
        by=gpus
    elif why=$said && sees --runtime nvidia --env "NVIDIA_VISIBLE_DEVICES=$list"; then
        by=runtime
    else
        say "the GPU cannot be handed to a container ($(printf %s "$why" | tr '\n' ' ')); the environment computes on" \
            "the CPU. Install the NVIDIA Container Toolkit, and run \`sudo nvidia-ctk cdi generate" \
            "--output=/etc/cdi/nvidia.yaml\`."
        gpus=
    fi
}

# --- choice and image -------------------------------------------------------------------------------------------------

index=
for name_of in UV_DEFAULT_INDEX UV_INDEX_URL PIP_INDEX_URL; do
    [ -n "$index" ] || ! given $name_of || index=$name_of
done
python=
if [ -e .venv ] || [ -L .venv ]; then
    if said=$(.venv/bin/python -c 'import invoke, docker, rich, filelock, pynvml, packaging' 2>&1); then
        python=yes
    else
        say "fallback: .venv cannot be used ($(printf '%s\n' "$said" | tail -n 1)), so the image is built and the GPU" \
            "chosen without it; \`make venv\` makes it anew"
    fi
fi
with_python() {
    kept=$(printf %s "$keep" | tr '\n' ,) own=
    [ -z "$runs" ] || own=$(printf %s "$held" | tr '\n' ,)
    chosen=$(TORCHDOCK_HELD=$kept TORCHDOCK_OWN=$own .venv/bin/python -m invoke devcontainer "--$kind") || exit $?
    get() { printf '%s\n' "$chosen" | sed -n "s/^$1=//p"; }
    image=$(get image) ca=$(get ca) gpus=$(get gpus | tr , '\n')
}
if [ -n "$python" ]; then with_python; else without_python; fi
tries=1
until pend; do # another launch was quicker
    [ $tries -lt 5 ] || code=75 fail "Others take the GPUs faster than this can. Open it again."
    tries=$((tries + 1))
    if [ -n "$python" ]; then with_python; else list_gpus && choose; fi
done
# Else the editor would ask Docker Hub for it, where anybody could have the name.
docker image inspect "$image" >/dev/null 2>&1 ||
    fail "The engine has no image $image, though its build ended well: its builder keeps images elsewhere. Run" \
        "\`docker buildx use $(docker context show 2>/dev/null || echo default)\`, and open it again."
hand_over
if [ -n "$there" ] && [ "$(printf '%s\n' "$gpus" | sort)" != "$(printf '%s\n' "$held" | sort)" ]; then
    say "the container that is there was made with ${held:-no GPU}, and keeps that; Rebuild Container to change it to" \
        "${gpus:-no GPU}"
fi

# --- act --------------------------------------------------------------------------------------------------------------

# volume NAME: a volume with the labels by which `invoke clean` knows whose it is.
volume() {
    docker volume inspect "$1" >/dev/null 2>&1 ||
        docker volume create --label "dev.torchdock.user=$uid" ${2:+--label "dev.torchdock.clone=$2"} "$1" >/dev/null
}
volume "torchdock-cache-$uid"
volume "torchdock-home-$uid-$kind-$clone" "$clone"

# indexes: where pip and uv in the container find this host's indexes. By name alone, and none on the loopback: a
# container has a loopback of its own.
indexes() {
    if [ -n "$index" ] && ! loopback "$(value "$index")"; then
        printf '      %s: ${%s}\n' PIP_INDEX_URL "$index" UV_DEFAULT_INDEX "$index"
    fi
    for name_of in PIP_EXTRA_INDEX_URL UV_INDEX; do
        good=yes
        for url in $(value $name_of); do
            url=$(printf %s "$url" | sed 's/^[A-Za-z0-9_.-]*=//') # uv: NAME=URL
            case $url in http://* | https://*) ! loopback "$url" || good= ;; *) good= ;; esac
        done
        ! given $name_of || [ -z "$good" ] || echo "      $name_of:"
    done
    for name_of in PIP_TRUSTED_HOST UV_INSECURE_HOST; do ! given $name_of || echo "      $name_of:"; done
}

host() { # host.yml
    echo '# Written by ../initialize.sh each time the dev container is opened; changes are lost.'
    echo 'services:'
    echo '  host:'
    printf '    image: %s\n' "$(quoted "$image")"
    echo "    user: '$user'"
    # As `invoke run` has it: remapped, every UID inside is a stranger to your folders, and SELinux would close them.
    case $answer in *name=userns*) echo '    userns_mode: host' ;; esac
    case $answer in *name=selinux*) echo '    security_opt: [label=disable]' ;; esac
    more=$(for one in $groups; do [ "$one" = "$gid" ] || printf "'%s', " "$one"; done)
    [ -z "$more" ] || echo "    group_add: [$more]"
    echo "    shm_size: '$shm'"
    [ "$by" != runtime ] || echo '    runtime: nvidia'
    echo '    environment:'
    printf '      HOME: %s\n' "$(quoted "/home/$name")"
    printf '      USER: %s\n' "$(quoted "$name")"
    printf '      TORCHDOCK_USER: %s\n' "$(quoted "$name")"
    [ "$by" != runtime ] || echo "      NVIDIA_VISIBLE_DEVICES: '$(printf %s "$gpus" | tr '\n' ,)'"
    # By name alone: the values stay in the environment of whoever starts it.
    for name_of in HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy; do
        ! given $name_of || echo "      $name_of:"
    done
    indexes
    if [ -n "$ca" ]; then
        for name_of in SSL_CERT_FILE REQUESTS_CA_BUNDLE PIP_CERT CURL_CA_BUNDLE GIT_SSL_CAINFO NODE_EXTRA_CA_CERTS; do
            echo "      $name_of: /run/torchdock/ca.crt"
        done
    fi
    # Its PID 1 takes them (docker/init.sh).
    leased=
    [ -z "$leases" ] || leased=$gpus
    [ -z "$leased" ] ||
        echo "      TORCHDOCK_LEASE: 'user=$name container=$project-environment-1 role=devcontainer clone=$clone'"
    [ -z "$ca$leased" ] || echo '    volumes:'
    [ -z "$ca" ] ||
        printf '      - {type: bind, source: %s, target: /run/torchdock/ca.crt, read_only: true}\n' "$(quoted "$ca")"
    for one in $leased; do
        printf "      - {type: bind, source: '%s', target: '/run/torchdock/leases/%s'}\n" "$leases/$one" "$one"
    done
    echo '    labels:'
    echo '      dev.torchdock.role: devcontainer'
    echo "      dev.torchdock.user: '$uid'"
    echo "      dev.torchdock.clone: '$clone'"
    printf '      dev.torchdock.workspace: %s\n' "$(quoted "$PWD")"
    echo "      dev.torchdock.gpus: '$(printf %s "$gpus" | tr '\n' ,)'"
    # Older Compose takes `devices` for files; a reservation by the driver `cdi` is the engine's own, whatever Compose.
    case $by in cdi) driver=cdi prefix=nvidia.com/gpu= ;; gpus) driver=nvidia prefix= ;; *) return 0 ;; esac
    echo '    deploy:'
    echo '      resources:'
    echo '        reservations:'
    echo '          devices:'
    echo "            - driver: $driver"
    echo '              capabilities: [gpu]'
    echo '              device_ids:'
    for one in $gpus; do echo "                - '$prefix$one'"; done
}

# Half of the memory, as for `invoke run`; 64 MB are what DataLoader workers die of.
bytes=$(docker info --format '{{.MemTotal}}')
shm=$((bytes / 2 > 1073741824 ? bytes / 2 : 1073741824))
# Each file whole or not at all, whoever wrote the one that is there.
host >$folder/host.yml.new.$$
mv -f $folder/host.yml.new.$$ $folder/host.yml
printf '%s\n' "TORCHDOCK_HOST=host.yml" "TORCHDOCK_PROJECT=$project" "TORCHDOCK_CACHE=torchdock-cache-$uid" \
    "TORCHDOCK_HOME=torchdock-home-$uid-$kind-$clone" >$folder/host.yml.env.$$
mv -f $folder/host.yml.env.$$ $folder/.env
[ -z "$gpus" ] || say "GPUs: $(printf %s "$gpus" | tr '\n' ' ') (by $by)"
# By exec: what a function's streams were before would stay open, and whoever started this waits for their end.
if [ -n "$gpus" ] && [ -n "$leases" ]; then (exec </dev/null >/dev/null 2>&1 && until_leased) & fi
echo "${!:-}" >$folder/host.yml.pending
