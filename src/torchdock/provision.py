"""Getting a container engine onto a machine that has none, and starting one that is stopped.

Installs from the distribution's own packages and adds no package source: Debian 12's engine is older than BuildKit's
plugin, so there the three packages of the next release are downloaded by apt (signed index, checked) from the mirror
that the host already uses, and installed as files; they need nothing newer than Debian 12's glibc, containerd and runc.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchdock import engine
from torchdock.console import Reporter
from torchdock.engine import Engine, EngineFacts, State
from torchdock.errors import EngineError
from torchdock.process import Completed, capture

DAEMON_LOG = Path("/var/log/dockerd.log")
START_SECONDS = 90
PID_FILES = ("/var/run/docker.pid", "/var/run/docker/containerd/containerd.pid")
# PID files that a killed engine left name some other process after a reboot; dockerd would take that for itself.
FORGET_STALE = (
    'for file in "$@"; do [ -e "$file" ] || continue; '
    'case $(cat "/proc/$(cat "$file")/comm" 2>/dev/null) in dockerd | containerd) ;; *) rm -f "$file" ;; esac; done'
)
# The release whose packages serve a release that is too old, by Debian's major version.
BORROWED_RELEASE = {12: "trixie"}
BORROWED_PACKAGES = ("docker.io", "docker-cli", "docker-buildx", "docker-compose")
ARCHIVE_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# An engine that was just installed and that nobody has configured: before Docker 28.3, CDI has to be switched on.
SWITCH_ON_CDI = (
    'set -e; [ ! -e "$1" ] || exit 0; mkdir -p "${1%/*}"; '
    'echo \'{"features": {"cdi": true}}\' >"$1.new"; mv "$1.new" "$1"'
)
DAEMON_CONFIGURATION = "/etc/docker/daemon.json"
DOCKERS_SCRIPT = "curl -fsSL https://get.docker.com -o get-docker.sh && sudo sh get-docker.sh"
# A person's commands where torchdock does not install by itself, by the ID of os-release.
COMMANDS = {
    "fedora": "sudo dnf install moby-engine docker-buildx && sudo systemctl enable --now docker",
    "arch": "sudo pacman -S docker docker-buildx && sudo systemctl enable --now docker",
    "opensuse": "sudo zypper install docker docker-buildx && sudo systemctl enable --now docker",
    "suse": "sudo zypper install docker docker-buildx && sudo systemctl enable --now docker",
    "alpine": "doas apk add docker docker-cli-buildx && doas rc-service docker start",
    "debian": "sudo apt-get install docker.io docker-buildx docker-compose && sudo systemctl enable --now docker",
    "darwin": "brew install --cask docker && open -a Docker",
}


@dataclass(frozen=True)
class System:
    """The operating system and what this user may do to it.

    Attributes:
        id: ``ID`` of os-release (``debian``, ``ubuntu``, …), ``darwin`` on macOS.
        like: ``ID_LIKE``, split.
        version: ``VERSION_ID`` as numbers: (12,) or (24, 4); empty where there is none (Debian testing).
        root: this process is root.
        sudo: sudo works without a password.
        systemd: systemd is the running init.
        apparmor: the kernel enforces AppArmor, so the engine needs its parser.
    """

    id: str
    like: tuple[str, ...]
    version: tuple[int, ...]
    root: bool
    sudo: bool
    systemd: bool
    apparmor: bool = False


@dataclass(frozen=True)
class EnginePlan:
    """What will be done, in the words that are said before it is done.

    Attributes:
        packages: names to install from the distribution; empty if the engine only has to be started.
        borrow_from: the release that :data:`BORROWED_PACKAGES` come from, or an empty string.
        systemd: start through systemd, else directly.
        privilege: what comes before each command that changes the system: nothing, or sudo.
        sentence: one sentence for people.
    """

    packages: tuple[str, ...]
    borrow_from: str
    systemd: bool
    privilege: tuple[str, ...]
    sentence: str


def parse_os_release(text: str) -> dict[str, str]:
    """``/etc/os-release`` as a mapping (os-release(5)); quotes removed."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value.strip().strip("\"'") for name, value in pairs}


def gather() -> System:
    """The facts of this system; changes nothing (``sudo -n true`` asks for no password)."""
    if platform.system() == "Darwin":
        return System("darwin", (), (), os.geteuid() == 0, False, False)
    paths = (Path("/etc/os-release"), Path("/usr/lib/os-release"))
    release = parse_os_release(next((path.read_text() for path in paths if path.is_file()), ""))
    version = tuple(int(part) for part in release.get("VERSION_ID", "").split(".") if part.isdigit())
    root = os.geteuid() == 0
    apparmor = Path("/sys/module/apparmor/parameters/enabled")
    return System(
        id=release.get("ID", "linux"),
        like=tuple(release.get("ID_LIKE", "").split()),
        version=version,
        root=root,
        sudo=not root and capture(["sudo", "-n", "true"], timeout=10).code == 0,
        systemd=Path("/run/systemd/system").is_dir(),
        apparmor=apparmor.is_file() and apparmor.read_text().startswith("Y"),
    )


def plan(state: State, facts: EngineFacts, system: System) -> EnginePlan:
    """What it takes to get from this state to an engine that answers. Pure.

    Raises:
        EngineError: it is not for torchdock to do; the text has the exact commands for this system.
    """
    if state not in (State.STOPPED, State.NOT_INSTALLED):
        raise EngineError(engine.explain(facts, state))
    if system.id == "darwin":
        raise EngineError(f"No container engine runs here. Install and start Docker Desktop: {COMMANDS['darwin']}")
    privilege = () if system.root else ("sudo", "-n")
    allowed = system.root or system.sudo
    how = "through systemd" if system.systemd else f"directly (there is no systemd; its log is {DAEMON_LOG})"
    if state is State.STOPPED:
        if not allowed:
            raise EngineError(
                engine.explain(facts, state)
                + " (This user is not root, and sudo asks for a password: `sudo -v` first.)"
            )
        return EnginePlan((), "", system.systemd, privilege, f"start the installed container engine {how}")

    borrow = ""
    if system.id == "debian" and system.version[:1] in [(number,) for number in BORROWED_RELEASE]:
        borrow = BORROWED_RELEASE[system.version[0]]
        packages: tuple[str, ...] = ("ca-certificates", "iptables", "xz-utils")
    elif system.id == "debian" and (not system.version or system.version[0] >= 13):
        packages = (*BORROWED_PACKAGES, "ca-certificates", "iptables", "xz-utils")
    elif system.id == "ubuntu" and system.version >= (22, 4):
        packages = ("docker.io", "docker-buildx", "docker-compose-v2", "ca-certificates", "iptables", "xz-utils")
    else:
        # Releases too old for buildx, and derivatives of Fedora, have no such package: Docker's own script serves them.
        names = () if system.id in ("debian", "ubuntu") else (system.id, *(set(system.like) - {"fedora"}))
        commands = next((COMMANDS[name] for name in names if name in COMMANDS), DOCKERS_SCRIPT)
        raise EngineError(
            f"No container engine is installed, and torchdock installs one on Debian 12 or newer and "
            f"Ubuntu 22.04 or newer only. On this system: {commands}; then run `make up` again."
        )
    if not allowed:
        raise EngineError(
            "No container engine is installed, this user is not root, and sudo asks for a password. Run `sudo -v`, "
            "then `make up` again, and Docker Engine is installed from the distribution's packages; or ask an "
            "administrator for an engine and for membership of its group: `sudo usermod -aG docker $USER`."
        )
    if system.apparmor:
        packages += ("apparmor",)
    source = (
        f"Debian's {borrow} packages, as files (no package source is added)"
        if borrow
        else "the distribution's packages"
    )
    return EnginePlan(
        packages,
        borrow,
        system.systemd,
        privilege,
        f"install Docker Engine with buildx and Compose from {source} and start it {how}"
        + ("" if system.root else "; using it then takes one more step of yours, which will be shown (its group)"),
    )


def ensure(reporter: Reporter, *, dry_run: bool = False) -> Engine | None:
    """An engine that can launch: the one that answers, else installed or started after saying so.

    Returns:
        The engine; None with ``dry_run`` where something would have to be done first.

    Raises:
        EngineError: none can be had; the text has the remedy.
    """
    facts = engine.gather()
    state = engine.classify(facts)
    if state is State.READY:
        return Engine(facts)
    wanted = plan(state, facts, gather())
    reporter.say(f"There is no container engine that answers. torchdock will {wanted.sentence}.")
    if dry_run:
        return None
    if not reporter.ask("Go ahead?"):
        raise EngineError("Nothing was changed. " + engine.explain(facts, state))
    with reporter.step("Container engine") as step:
        if wanted.packages:
            _install(wanted)
            step.done(f"Docker Engine installed ({step.seconds:.0f} s)")
        logged = DAEMON_LOG.stat().st_size if DAEMON_LOG.is_file() else 0
        _start(wanted)
        ready = _wait(logged)
        step.done(f"Docker Engine {ready.facts.info.get('ServerVersion', '')} answers ({step.seconds:.0f} s)")
    return ready


def _install(wanted: EnginePlan) -> None:
    # A source that fails is no obstacle: what is needed may come from the others, or the install says what is missing.
    _apt(wanted, "update", "-qq")
    with tempfile.TemporaryDirectory(prefix="torchdock-") as folder:
        Path(folder).chmod(0o755)  # apt's own user reads the packages
        files = _borrow(Path(folder), wanted.borrow_from) if wanted.borrow_from else []
        # Before the packages, whose own scripts start the engine where there is systemd.
        capture([*wanted.privilege, "sh", "-c", SWITCH_ON_CDI, "sh", DAEMON_CONFIGURATION])
        done = _apt(wanted, "install", "-y", "-qq", "--no-install-recommends", *map(str, files), *wanted.packages)
    if done.code != 0:
        raise EngineError(
            f"Docker Engine could not be installed; apt-get said: {_tail(done.err or done.out)}. Mend that (often "
            "`apt-get update` or the disk), then run `make up` again."
        )


def _apt(wanted: EnginePlan, *words: str) -> Completed:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    keep = "DEBIAN_FRONTEND,NEEDRESTART_SUSPEND,http_proxy,https_proxy,no_proxy,HTTP_PROXY,HTTPS_PROXY,NO_PROXY"
    privilege = [*wanted.privilege, f"--preserve-env={keep}"] if wanted.privilege else []
    return capture([*privilege, "apt-get", "-o", "DPkg::Lock::Timeout=120", *words], timeout=900, env=env)


def mirrors(index_targets: str, origin: str = "Debian") -> list[str]:
    """The repositories of this origin in the output of ``apt-get indextargets`` (``URI|origin`` a line), in order."""
    pairs = [line.split("|") for line in index_targets.splitlines() if line.count("|") == 1]
    return list(dict.fromkeys(uri for uri, found in pairs if found == origin))


def _borrow(folder: Path, release: str) -> list[Path]:
    """Download the engine's packages of another release, with a configuration of apt's that lives in ``folder``."""
    targets = capture(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)", "Created-By: Packages"])
    found = mirrors(targets.out)
    if not found:
        raise EngineError(
            "The package sources of this host name no Debian mirror that answers, so Docker Engine cannot be "
            "downloaded. Check /etc/apt/sources.list and `apt-get update`, then run `make up` again."
        )
    for name in ("lists/partial", "cache/archives/partial", "packages"):
        (folder / name).mkdir(parents=True)
    sources = "".join(f"deb [signed-by={ARCHIVE_KEYRING}] {uri} {release} main\n" for uri in found)
    (folder / "sources.list").write_text(sources)
    (folder / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        f'Dir::Etc::preferencesparts "/dev/null";\nDir::Etc::preferences "/dev/null";\n'
        f'Dir::State::lists "{folder}/lists";\nDir::Cache "{folder}/cache";\nAPT::Sandbox::User "";\n'
    )
    env = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    # Another repository of the same origin (security, updates) has no suite of this name: its failure is expected.
    update = capture(["apt-get", "update", "-qq"], timeout=300, env=env)
    inside = ["sh", "-c", 'cd "$1" && shift && exec apt-get download -qq "$@"', "sh", str(folder / "packages")]
    done = capture([*inside, *BORROWED_PACKAGES], timeout=600, env=env)
    files = sorted((folder / "packages").glob("*.deb"))
    if done.code != 0 or len(files) != len(BORROWED_PACKAGES):
        raise EngineError(
            f"Docker Engine's packages could not be downloaded: {_tail(done.err or update.err)}. Check the network and "
            "the Debian mirror in /etc/apt, then run `make up` again."
        )
    return files


def _start(wanted: EnginePlan) -> None:
    if wanted.systemd:
        done = capture([*wanted.privilege, "systemctl", "enable", "--now", "docker"], timeout=START_SECONDS)
    else:
        # A session of its own: the engine outlives this terminal. iptables lives in sbin.
        run = f"exec setsid --fork dockerd >>{DAEMON_LOG} 2>&1 </dev/null"
        script = f"export PATH=/usr/sbin:/usr/bin:/sbin:/bin; {FORGET_STALE}; {run}"
        done = capture([*wanted.privilege, "sh", "-c", script, "sh", *PID_FILES], timeout=30)
    if done.code != 0:
        raise EngineError(f"The container engine could not be started: {_tail(done.err)}. Run `invoke doctor`.")


def _wait(logged: int) -> Engine:
    deadline = time.monotonic() + START_SECONDS
    while True:
        facts = engine.gather()
        state = engine.classify(facts)
        if state is State.READY:
            return Engine(facts)
        failed = _daemon_failure(logged)
        if state is State.FORBIDDEN or failed or time.monotonic() > deadline:
            reason = f" Its log says: {failed}." if failed else ""
            raise EngineError(
                f"The container engine was started and cannot be used.{reason} {engine.explain(facts, state)}"
            )
        time.sleep(0.2)


def _daemon_failure(since: int) -> str:
    """Why a directly started dockerd gave up, from its log after this many bytes; empty while it has not."""
    try:
        with DAEMON_LOG.open(errors="replace") as log:
            log.seek(since)
            text = log.read()
    except OSError:
        return ""
    start = text.rfind("failed to start daemon")
    return " ".join(text[start:].split())[:400] if start >= 0 else ""


def _tail(text: str, lines: int = 3) -> str:
    kept: Sequence[str] = [line.strip() for line in text.strip().splitlines() if line.strip()][-lines:]
    return " ".join(kept) or "nothing"
