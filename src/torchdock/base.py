"""The base image: the pinned one from a registry or a mirror of it, else one made here from Debian packages."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchdock import debian, provision
from torchdock.console import Reporter
from torchdock.debian import DebianLock
from torchdock.engine import OUTPUT, Engine
from torchdock.errors import EngineError, InputError, TorchdockError
from torchdock.process import capture, stream
from torchdock.sources import BASE_IMAGE_VARIABLE, PROXY_VARIABLES, Sources, probe
from torchdock.variants import Base

# As small as Debian's own slim image, and with its rule that packages bring no documentation and no translations;
# everything else comes with the system layer, as on the pinned base.
EXCLUDED = ("doc/*", "info/*", "man/*", "locale/*", "groff/*", "lintian/*", "linda/*")
INCLUDED = ("doc/*/copyright", "locale/locale.alias")
BOOTSTRAP_OPTIONS = (
    "--variant=minbase",
    "--format=tar",
    *(f"--dpkgopt=path-exclude=/usr/share/{path}" for path in EXCLUDED),
    *(f"--dpkgopt=path-include=/usr/share/{path}" for path in INCLUDED),
)
SNAPSHOT = "http://snapshot.debian.org/archive"  # what comes from there is signed, and a bare base has no CA
LOCKED, DRIFT = "locked", "drift"
# What mmdebstrap needs of the environment behind sudo.
KEPT = "SOURCE_DATE_EPOCH,LC_ALL," + ",".join(f"{name},{name.lower()}" for name in PROXY_VARIABLES)


@dataclass(frozen=True)
class BaseChoice:
    """Where a base comes from.

    Attributes:
        source: ``registry`` (the pinned digest), ``bootstrapped`` (made from Debian packages), or ``custom`` (another
            image that ``TORCHDOCK_BASE_IMAGE`` names).
        name: what decides its content; part of the digest in the image's name.
        reference: what the build is given: ``name``, or a mirror of it.
        debian: ``locked`` (exactly the packages of the lock), or ``drift`` (what the mirror carries today).
    """

    source: str
    name: str
    reference: str
    debian: str = LOCKED

    def fallbacks(self) -> list[str]:
        """What is not as the lock would have it, a sentence each."""
        said = []
        if self.source == "bootstrapped":
            said.append(
                "the base was made from Debian packages (mmdebstrap), because the pinned one could not be pulled"
            )
        if self.source == "custom":
            said.append(f"the base is {self.name} ({BASE_IMAGE_VARIABLE}), not the pinned one")
        if self.debian == DRIFT:
            said.append(
                "the Debian packages are those of the mirror on that day, because it and the snapshot no longer gave "
                "the locked ones"
            )
        return said


def mirrored(pinned: str, mirror: str) -> BaseChoice:
    """The pinned base, by way of a mirror's repository if one is named. Pure.

    ``mirror`` is a repository (its tag does not count: the pinned digest does), or a reference with a digest of its
    own, which is another base and said so.
    """
    if not mirror:
        return BaseChoice("registry", pinned, pinned)
    digest = pinned.rpartition("@")[2]
    repository, _, named = mirror.partition("@")
    if named and named != digest:
        return BaseChoice("custom", mirror, mirror)
    host, slash, path = repository.rpartition("/")
    return BaseChoice("registry", pinned, f"{host}{slash}{path.partition(':')[0]}@{digest}")


def refuse_custom(pinned: str, given: Sources) -> None:
    """What --locked says to another base than the pinned one.

    Raises:
        InputError: it is another one.
    """
    if mirrored(pinned, given.base_image).source == "custom":
        raise InputError(
            f"{BASE_IMAGE_VARIABLE} names a base with another digest than the pinned one, which --locked refuses. Name "
            "a mirror's repository without a digest, or leave --locked."
        )


def bootstrapped(root: Path, base: Base, lock: DebianLock | None) -> BaseChoice:
    """The base made from Debian packages: one for each suite, day, recipe and lock (None: today's packages)."""
    digest = hashlib.sha256((root / "docker/base.Dockerfile").read_bytes())
    words = [base.suite, str(base.epoch), *BOOTSTRAP_OPTIONS]
    if lock is not None:
        words += [f"{one.name} {one.sha256}" for one in lock.packages if one.section == "base"]
    digest.update("\0".join(words).encode())
    name = f"torchdock/base:{base.suite}-{digest.hexdigest()[:12]}"
    return BaseChoice("bootstrapped", name, name, LOCKED if lock is not None else DRIFT)


def choices(root: Path, base: Base, architecture: str, given: Sources) -> list[BaseChoice]:
    """Every base that an image may stand on, the preferred one first: locked before drift, pinned before made here."""
    lock = debian.read(root, architecture)
    pinned = mirrored(base.image, given.base_image)
    made = bootstrapped(root, base, lock)
    drifted = [replace(choice, debian=DRIFT) for choice in (pinned, made)]
    return list(dict.fromkeys([pinned, made, *drifted, bootstrapped(root, base, None)]))


def obtain(
    engine: Engine,
    root: Path,
    base: Base,
    candidates: Sequence[BaseChoice],
    given: Sources,
    reporter: Reporter,
    *,
    locked: bool = False,
    offline: bool = False,
) -> BaseChoice:
    """The first of the locked candidates that is there or can be had; makes one where none can be pulled.

    Raises:
        TorchdockError: none can be had, or only by a fallback that ``locked`` refuses.
        EngineError: the engine went away.
    """
    pinned, made = candidates[0], candidates[1]
    if locked:
        refuse_custom(base.image, given)
    if engine.image(pinned.reference) is not None:
        return pinned
    if offline:
        if not locked and engine.image(made.reference) is not None:
            return made
        raise TorchdockError(
            f"offline: the base is not here: neither {pinned.reference} nor {made.reference}. Bring the "
            "finished image from a machine that has it: `invoke save FILE` there, `invoke load FILE` here."
        )
    with reporter.step("Base image"):
        pulled = capture([engine.cli, "pull", "--quiet", pinned.reference], timeout=600)
    if pulled.code == 0:
        return pinned
    why = " ".join((pulled.err or pulled.out).strip().split())[-300:]
    if "Cannot connect to the Docker daemon" in why:
        raise EngineError(f"The container engine stopped answering while the base was pulled. Run `make up`. ({why})")
    if locked:
        raise TorchdockError(
            f"The pinned base {pinned.reference} cannot be pulled ({why}), and --locked refuses one made here. Reach "
            f"a registry, name a mirror of it in {BASE_IMAGE_VARIABLE} (or as registry-mirrors in "
            "/etc/docker/daemon.json), or leave --locked."
        )
    missing = engine.image(made.reference) is None
    how = "making it from Debian packages with mmdebstrap" if missing else "taking the one made from Debian packages"
    reporter.fallback(f"no registry gave the pinned base ({why}); {how}")
    if not missing:
        return made
    return bootstrap(engine, root, base, candidates, given, reporter)


def bootstrap(
    engine: Engine,
    root: Path,
    base: Base,
    candidates: Sequence[BaseChoice],
    given: Sources,
    reporter: Reporter,
    tag: str | None = None,
) -> BaseChoice:
    """Make a base from Debian packages: the locked ones from the mirror or the snapshot, else, said aloud, today's.

    ``tag``: its name, instead of the candidate's.

    Raises:
        TorchdockError: it could not be made; the text has the remedy.
    """
    lock = debian.read(root, engine.architecture)
    log = root / ".torchdock" / "logs" / "base.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="torchdock-base-") as name,
        reporter.step("Base from Debian packages") as step,
    ):
        folder = Path(name)
        folder.chmod(0o755)  # in its unprivileged mode mmdebstrap starts its helper as another user
        tool = [*_privilege(), *_mmdebstrap(folder, base)]
        private = folder / "private"
        (private / "context").mkdir(parents=True)
        private.chmod(0o700)  # nobody else may put a file in the place of ours, or read a mirror's token
        chosen = candidates[1]
        differs = _debootstrap(tool, private, base, lock, given, log, archive=None)
        if differs and lock is not None:
            archive = (f"{SNAPSHOT}/debian/{lock.snapshot}", f"{SNAPSHOT}/debian-security/{lock.snapshot}")
            if probe(given, f"{archive[0]}/dists/{base.suite}/InRelease").ok:
                differs = _debootstrap(tool, private, base, lock, given, log, archive=archive)
        if differs:
            chosen = bootstrapped(root, base, None)
            shown = ", ".join(differs[:5]) + (f" and {len(differs) - 5} more" if len(differs) > 5 else "")
            reporter.fallback(
                f"neither the Debian mirror nor the snapshot carries the locked packages of the base ({shown}); taking "
                "what the mirror has today. `invoke lock --upgrade debian` locks that"
            )
        build = [engine.cli, "buildx", "build", "--builder", engine.facts.context, "--provenance=false", "--sbom=false"]
        build += ["--output", OUTPUT, "--build-arg", f"SOURCE_DATE_EPOCH={base.epoch}"]
        build += ["--tag", tag or chosen.reference]
        build += ["--file", str(root / "docker/base.Dockerfile"), str(private / "context")]
        done = capture(build, timeout=600)
        if done.code != 0:
            raise TorchdockError(f"The base could not be loaded into the engine: {' '.join(done.err.split())[-600:]}")
        step.done(f"base made from Debian packages ({step.seconds:.0f} s)")
    return chosen


def _debootstrap(
    tool: Sequence[str],
    folder: Path,
    base: Base,
    lock: DebianLock | None,
    given: Sources,
    log: Path,
    *,
    archive: tuple[str, str] | None,
) -> list[str]:
    """Write ``folder/context/rootfs.tar``; the names of the packages that are not in the version of the lock.

    ``archive``: where Debian and its security archive are, or None for the mirror of this host, else mmdebstrap's own.
    Nothing of this host stays in the base: its sources are always the ones that mmdebstrap writes by itself.
    """
    if archive is None and given.apt_mirror is not None:
        main = given.apt_mirror.url.rstrip("/")
        archive = (main, f"{main.rpartition('/')[0]}/debian-security")
    pins, edit, manifest = folder / "pins", folder / "sources.sed", folder / "manifest"
    pins.write_text(lock.preferences() if lock is not None else "")
    edit.write_text(_point_at(*archive) if archive is not None else "")
    argv = [*tool, *BOOTSTRAP_OPTIONS]
    if given.ca is not None:
        argv.append(f'--aptopt=Acquire::https::CAInfo "{given.ca.absolute()}"')
    if archive is not None and archive[0].startswith(SNAPSHOT):
        argv.append('--aptopt=Acquire::Check-Valid-Until "false"')
    # mmdebstrap itself carries files in and out: its hooks may be another user, who cannot read this folder.
    traces = ["etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/preferences.d/torchdock", "edit.sed", "manifest"]
    argv += [f"--setup-hook=upload {pins} /etc/apt/preferences.d/torchdock", f"--setup-hook=upload {edit} /edit.sed"]
    if given.netrc is not None:
        argv.append(f"--setup-hook=upload {given.netrc.absolute()} /etc/apt/auth.conf")
        traces.append("etc/apt/auth.conf")
    argv += [
        '--setup-hook=cp "$1/etc/apt/sources.list" "$1/sources"; sed -E -i -f "$1/edit.sed" "$1/etc/apt/sources.list"',
        '--customize-hook=chroot "$1" dpkg-query -W -f "\\${Package} \\${Version}\\n" >"$1/manifest"',
        f"--customize-hook=download /manifest {manifest}",
        f'--customize-hook=cd "$1" && rm -f {" ".join(traces)} && mv sources etc/apt/sources.list',
    ]
    lines: list[str] = []
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(base.epoch), "LC_ALL": "C.UTF-8"}
    with log.open("a") as handle:
        command = [*argv, base.suite, str(folder / "context/rootfs.tar")]
        code = stream(command, lines.append, log=handle, env=env, clean=given.redact)
    if code != 0:
        raise TorchdockError(
            f"No registry gave the base image, and making it from Debian packages failed: {' '.join(lines[-3:])} "
            f"(log: {log}). Mend that, or name a mirror of it in {BASE_IMAGE_VARIABLE}, then run it again."
        )
    if lock is None:
        return []
    there = dict(line.split(" ", 1) for line in manifest.read_text().splitlines())
    wanted = {one.name: one.version for one in lock.packages if one.section == "base"}
    return sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))


def _point_at(main: str, security: str) -> str:
    """A sed script that replaces the archives in a sources.list, and nothing else of it. Pure."""

    def line(condition: str, url: str) -> str:
        quoted = re.sub(r"([\\&|])", r"\\\1", url)
        return rf"{condition}s|^deb (\[[^]]*\] )?[^ ]+ |deb \1{quoted} |"

    return line("/-security /", security) + "\n" + line("/-security /!", main) + "\n"


def _privilege() -> list[str]:
    """What mmdebstrap needs before it: nothing as root or where user namespaces are proved to work, else sudo.

    Raises:
        TorchdockError: neither is to be had.
    """
    if os.geteuid() == 0 or capture(["unshare", "--user", "--map-auto", "true"], timeout=10).code == 0:
        return []
    if capture(["sudo", "-n", "true"], timeout=10).code == 0:
        return ["sudo", "-n", f"--preserve-env={KEPT}"]
    raise TorchdockError(
        "No registry gave the base image, and making it from Debian packages as a user without root needs user "
        "namespaces: `sudo apt-get install uidmap` (and, where /etc/subuid has no line for this user, `sudo usermod "
        "--add-subuids 100000-165535 --add-subgids 100000-165535 $USER`), or `sudo -v` first; then run it again."
    )


def _mmdebstrap(folder: Path, base: Base) -> list[str]:
    """The argv that starts mmdebstrap: the installed one, else Debian's package unpacked into ``folder``."""
    found = shutil.which("mmdebstrap")
    if found is not None:
        return [found]
    unpacked = folder / "tool"
    (unpacked / "lists" / "partial").mkdir(parents=True)
    (unpacked / "cache/archives/partial").mkdir(parents=True)
    script = 'cd "$1" && shift && apt-get download -qq "$@" mmdebstrap && dpkg-deb -x mmdebstrap_*.deb .'
    private = ["-o", f"Dir::State::Lists={unpacked}/lists", "-o", f"Dir::Cache={unpacked}/cache"]
    done = capture(["sh", "-c", script, "sh", str(unpacked)], timeout=300)
    if done.code != 0:  # a machine whose package lists were never fetched
        capture(["apt-get", *private, "-qq", "update"], timeout=300)
        done = capture(["sh", "-c", script, "sh", str(unpacked), *private], timeout=300)
    if done.code != 0 or shutil.which("perl") is None:
        raise TorchdockError(
            "No registry gave the base image, and mmdebstrap, which makes one from Debian packages, can only be had on "
            f"Debian and Ubuntu ({(done.err.strip().splitlines() or ['perl is missing'])[-1]}). Name a mirror "
            f"of {base.image} in {BASE_IMAGE_VARIABLE}, or bring the finished image by `invoke save` and `invoke load`."
        )
    # Its own helper is looked for on the PATH, which sudo would reset.
    programs = unpacked / "usr/bin"
    argv = ["env", f"PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin", "perl", str(programs / "mmdebstrap")]
    if not Path(provision.ARCHIVE_KEYRING).is_file():  # Ubuntu trusts its own archive only
        script = script.replace("mmdebstrap", "debian-archive-keyring")
        done = capture(["sh", "-c", script, "sh", str(unpacked), *private], timeout=300)
        argv.append(f"--keyring={unpacked}{provision.ARCHIVE_KEYRING}")
    return argv
