"""``.venv`` with the host-side tools, by hash, from nothing but Python 3.10.

Standard library only: ``make`` runs ``python3 -m torchdock.bootstrap [--dev]`` before anything is installed. The folder
is finished when its stamp is written, last; an interrupted run leaves no stamp and the next one goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torchdock.sources import SourceError, ca_bundle, gather

ROOT = Path(__file__).resolve().parents[2]
HOST_LOCK = Path("docker/locks/host.txt")
DEV_LOCK = Path("docker/locks/host-dev.txt")
OLDEST_PYTHON = (3, 10)


class BootstrapError(Exception):
    """The environment cannot be made; the text is one paragraph that ends with the remedy."""


def stamp_of(root: Path, locks: Sequence[Path]) -> str:
    """What a finished environment records: this Python, this folder and the content of the locks it was made from."""
    digest = hashlib.sha256(f"{sys.version}\n{sys.executable}\n{root}\n".encode())
    for lock in locks:
        digest.update((root / lock).read_bytes())
    return digest.hexdigest()


def how_to_get_pip(*, ensurepip: bool, uv: bool, apt: bool) -> str:
    """The way to an environment with these means: ``venv``, ``uv`` or ``apt`` (pip's wheel out of Debian's package).

    Raises:
        BootstrapError: there is none.
    """
    if ensurepip:
        return "venv"
    if uv:
        return "uv"
    if apt:
        return "apt"
    raise BootstrapError(
        f"{sys.executable} can make no virtual environment (its ensurepip module is missing), and neither uv nor "
        "apt-get is on the PATH. Install the venv package of your distribution (Debian: python3-venv) and run it again."
    )


@contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """One bootstrap at a time in one clone; the second waits, then finds the work done."""
    try:
        (root / ".torchdock").mkdir(exist_ok=True)
        handle = (root / ".torchdock" / "bootstrap.lock").open("w")
    except OSError as error:
        raise BootstrapError(
            f"This clone cannot be written by this user ({error.strerror}: {error.filename}). Use a clone of your own, "
            "or correct the owner of this one: `sudo chown -R $USER .`"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another command is making .venv in this clone; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"torchdock: {text}", file=sys.stderr, flush=True)


def _run(argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str]:
    done = subprocess.run(
        argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def _unpack_from_apt(folder: Path, package: str) -> None:
    """Unpack Debian's signed package into ``folder``; installs nothing and needs no root."""
    code, output = _run(["apt-get", "download", "-qq", package], cwd=folder)
    if code != 0:  # a machine whose package lists were never fetched: fetch them into this folder
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        private = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        _run(["apt-get", *private, "update", "-qq"], cwd=folder)
        code, output = _run(["apt-get", *private, "download", "-qq", package], cwd=folder)
    found = list(folder.glob(f"{package}_*.deb"))
    if code != 0 or not found:
        raise BootstrapError(
            f"This Python has no ensurepip, and Debian's package {package} could not be downloaded "
            f"({_last_line(output)}). Install python3-venv (apt-get install python3-venv) and run it again."
        )
    _run(["dpkg-deb", "-x", str(found[0]), str(folder)])


def _pip_from_apt(folder: Path, env: dict[str, str]) -> list[str]:
    """The words after ``python`` that are pip, out of Debian's packages; sets what it needs in ``env``.

    Debian's pip fails on import where the system has no CA bundle, so it is told of one before it looks.
    """
    _unpack_from_apt(folder, "python3-pip-whl")
    bundle = ca_bundle(env)
    if bundle is None:
        _unpack_from_apt(folder, "ca-certificates")
        bundle = folder / "ca.pem"
        authorities = sorted((folder / "usr/share/ca-certificates/mozilla").glob("*.crt"))
        bundle.write_text("".join(path.read_text() for path in authorities))
    env["PIP_CERT"] = str(bundle)
    env["PYTHONPATH"] = str(next((folder / "usr/share/python-wheels").glob("pip-*.whl")))
    start = "import os, sys; from pip._vendor import certifi; certifi.where = lambda: os.environ['PIP_CERT']; "
    return ["-c", start + "from pip._internal.cli.main import main; sys.exit(main())"]


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _install(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Install by hash; where TLS fails and no CA was named, once more with the CA bundle of the system."""
    code, output = _run(argv, env)
    bundle = ca_bundle(env)
    if code != 0 and re.search("CERTIFICATE_VERIFY_FAILED|UnknownIssuer", output) and bundle is not None:
        code, output = _run(argv, {**env, "PIP_CERT": str(bundle), "SSL_CERT_FILE": str(bundle)})
    if code != 0:
        errors = [line for line in output.splitlines() if "ERROR" in line or "error" in line] or [_last_line(output)]
        raise BootstrapError(
            "The host-side tools could not be installed into .venv: "
            + gather(env).redact(" ".join(" ".join(errors[-2:]).split()))
            + " Check the network, the proxy and the CA (PIP_CERT), and run it again; what was installed is kept."
        )


def ensure(root: Path, *, dev: bool) -> bool:
    """Make ``root/.venv`` equal to the host locks (with the development tools if ``dev``).

    Returns:
        True if something had to be done.

    Raises:
        BootstrapError: it could not be made; the text says why and what to do.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise BootstrapError(
            f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}. "
            "Name another one: make PYTHON=python3.11 up"
        )
    venv = root / ".venv"
    stamps = {"host": (venv / "torchdock.host", [HOST_LOCK]), "dev": (venv / "torchdock.dev", [HOST_LOCK, DEV_LOCK])}

    def finished(which: str) -> bool:
        path, locks = stamps[which]
        return path.is_file() and path.read_text() == stamp_of(root, locks)

    with _exclusive(root):
        wanted = "dev" if dev else "host"
        if finished(wanted):
            return False
        way = how_to_get_pip(
            ensurepip=_has_module("ensurepip"),
            uv=shutil.which("uv") is not None,
            apt=shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None,
        )
        python = venv / "bin" / "python"
        # An environment that another way made has no pip of its own.
        fresh = not finished("host") or (way == "venv" and _run([str(python), "-m", "pip", "--version"])[0] != 0)
        _say("making .venv with the host-side tools" if fresh else "adding the development tools to .venv")
        env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": ""}
        named = ca_bundle(env, system=())
        if named is not None:  # pip knows only two of the names that a bundle may be given under
            env["PIP_CERT"] = env["SSL_CERT_FILE"] = str(named)
        given = gather(env)
        if given.index is not None:  # whichever of the names it was given under
            env["PIP_INDEX_URL"] = env["UV_DEFAULT_INDEX"] = given.index.url
        lock = root / (DEV_LOCK if dev and not fresh else HOST_LOCK)
        requirements = [lock] if not (dev and fresh) else [root / HOST_LOCK, root / DEV_LOCK]
        files = [word for path in requirements for word in ("-r", str(path))]
        with tempfile.TemporaryDirectory(prefix="torchdock-") as folder:
            if fresh:
                shutil.rmtree(venv, ignore_errors=True)
            if way == "uv":
                if fresh:
                    _checked(["uv", "venv", "--quiet", "--python", sys.executable, str(venv)])
                _install(["uv", "pip", "install", "-q", "--require-hashes", "--python", str(python), *files], env)
            else:
                pip = _pip_from_apt(Path(folder), env) if way == "apt" else ["-m", "pip"]
                if fresh:
                    _checked([sys.executable, "-m", "venv", *(["--without-pip"] if way == "apt" else []), str(venv)])
                _install([str(python), *pip, "install", "-q", "--require-hashes", "--no-deps", *files], env)
        stamps["host"][0].write_text(stamp_of(root, [HOST_LOCK]))
        if dev:
            stamps["dev"][0].write_text(stamp_of(root, [HOST_LOCK, DEV_LOCK]))
        return True


def _checked(argv: Sequence[str]) -> None:
    code, output = _run(argv)
    if code != 0:
        raise BootstrapError(f"{' '.join(argv)} failed: {_last_line(output)}. Remove .venv and run it again.")


def _has_module(name: str) -> bool:
    # Importing and not find_spec: Debian ships parts of some modules.
    return _run([sys.executable, "-c", f"import {name}"])[0] == 0


def main(argv: Sequence[str]) -> int:
    """``python3 -m torchdock.bootstrap [--dev]``; 0 when ``.venv`` is there, 2 with one paragraph when it cannot be."""
    try:
        ensure(ROOT, dev="--dev" in argv)
    except (BootstrapError, SourceError) as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted; .venv is unfinished and the next run goes on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
