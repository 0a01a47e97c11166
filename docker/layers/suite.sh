#!/bin/sh
# The last layer: the suite, what it runs, the lock it compares with, the entrypoint, and what `pip install` must leave.
# Usage: suite.sh CLONE VARIANT
set -eu
clone=$1
variant=$2
target=/opt/torchdock
umask 022
mkdir -p "$target"
put() { # put FOLDER: every file below it, times, owners and modes made constant
    [ -e "$clone/$1" ] || exit 1 # find's own failure would be lost in the pipe
    (cd "$clone" && find "$1" -name __pycache__ -prune -o -type f -print0) |
        (cd "$clone" && xargs -0 cp --parents --no-preserve=all --target-directory="$target")
}
put src/torchdock/__init__.py
put src/torchdock/inside
put tests/container
put "docker/locks/$variant"
install -D -m 0755 "$clone/docker/init.sh" "$target/docker/init.sh"
install -D -m 0755 "$clone/docker/entrypoint.sh" "$target/docker/entrypoint.sh"
# Where a container may gain privileges, which is in a dev container alone, its user may install what a moment needs.
printf '%s\n' 'ALL ALL=(ALL:ALL) NOPASSWD: ALL' \
    'Defaults env_keep += "HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy"' >/etc/sudoers.d/torchdock
chmod 0440 /etc/sudoers.d/torchdock
site=$(echo /opt/venv/lib/python3*/site-packages)
# What `pip install` and `uv pip install` leave as it is (PIP_CONSTRAINT, UV_CONSTRAINT): every pin of CUDA and torch, as
# the lock has it, with `+cpu` where there is one. The libraries too: pip itself would move one without asking torch.
for layer in cuda torch; do
    lock=$target/docker/locks/$variant/$layer.txt
    [ ! -e "$lock" ] || sed -n 's/^\([a-zA-Z0-9][^\\]*[^ \\]\) *\\*$/\1/p' "$lock"
done >"$target/constraints.txt"
# A package that is compiled against torch asks for it once more, in the folder of its own in which pip and uv build it,
# and would get gigabytes of another one. There it gets a wheel that consists of a path to the torch that is here.
# -B: no bytecode of the standard library in this layer.
python3 -I -B - "$target" "$site" "$variant" <<'END'
import pathlib, re, sys, zipfile

target, site, variant = pathlib.Path(sys.argv[1]), *sys.argv[2:]
version = re.search(r"^torch==(\S+)", (target / "constraints.txt").read_text(), re.MULTILINE)[1]
info = f"torch-{version}.dist-info"
files = {
    "torch-of-the-environment.pth": f"{site}\n",
    f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: torchdock\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
wheel = target / "wheels" / f"torch-{version}-py3-none-any.whl"
wheel.parent.mkdir()
with zipfile.ZipFile(wheel, "w") as archive:
    for name, text in files.items():
        archive.writestr(zipfile.ZipInfo(name), text)  # of 1980, whenever it is built
(target / "build-constraints.txt").write_text(f"torch @ {wheel.as_uri()}\n")
# What they built is kept in /cache by the package's name alone, and would be taken for another torch later on.
pathlib.Path("/etc/uv").mkdir()
pathlib.Path("/etc/uv/uv.toml").write_text(f'cache-dir = "/cache/uv/{variant}-torch-{version}"\n')
pathlib.Path("/etc/pip.conf").write_text(f"[global]\ncache-dir = /cache/pip/{variant}-torch-{version}\n")
END
{
    echo "$target/src"
    echo "import torchdock.inside.startup"
    # --profile debug: debuggers may attach to every Python process
    echo 'import os; os.environ.get("TORCHDOCK_PROFILE") and __import__("torchdock.inside.tracing").inside.tracing.consent()'
} >"$site/torchdock.pth"
find "$target" "$site/torchdock.pth" "$site" /etc/sudoers.d -maxdepth 0 -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
find "$target" /etc/uv /etc/pip.conf /etc/sudoers.d/torchdock -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
touch -d "@$SOURCE_DATE_EPOCH" /opt / /etc /run
