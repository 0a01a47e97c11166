"""What a person asks of one launch: mounts, environment, ports, limits, a time limit; read, checked, merged.

The words of an option and the entries of ``torchdock.toml`` are the same, so both are read here.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import re
import shlex
import socket
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from torchdock.errors import InputError

# What torchdock itself puts into every container; a mount there would hide it, in the trees one below it too.
OWN_TARGETS = ("/workspace", "/dev/shm", "/tmp", "/home", "/root")
# /cache is a volume that outlives the container: the engine would leave root's folder in it as the mount point.
OWN_TREES = ("/cache", "/opt/venv", "/opt/torchdock", "/run/torchdock")
# The container's own system: without it no command starts. Single files and folders below some of it may be wanted.
SYSTEM_TARGETS = (
    *("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/run", "/sbin", "/usr", "/var", "/var/lib"),
    *("/usr/bin", "/usr/lib", "/usr/sbin", "/usr/local", "/usr/share"),
)
SYSTEM_TREES = ("/proc", "/sys", "/dev/pts", "/dev/mqueue", "/etc/passwd", "/etc/group", "/var/lib/extrausers")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Names whose values nobody should read over a shoulder, in a log or in a dry run. By word, so that KEYBOARD is none.
SECRET_NAME = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL"
    r"|(^|_)((API|ACCESS|AUTH|BEARER|BOT|ID|REFRESH|SESSION)?TOKENS?|(API|ACCESS|PRIVATE)?KEYS?)(_|\d|$)"
    # by what stands before it: BYPASS and COMPASS are none
    r"|(^|_)(ADMIN|DB|FTP|LDAP|MAIL|MYSQL|PG|REDIS|ROOT|SMTP|SSH|SUDO|USER)?PASS(_|\d|$)"
    r"|(^|_)(PW|AUTH|COOKIES?|PAT|DSN|BEARER|JWTS?|WEBHOOKS?)(_|\d|$)|_PWD$|(?-i:[a-z](Token|Key|Pass))$",
    re.ASCII | re.IGNORECASE,
)
# user:password@ in a URL, whatever the variable is called
SECRET_VALUE = re.compile(r"://[^/\s@]*:[^/\s@]+@|-----BEGIN ")
# What the docker client, its plugins, Podman and the loader before them read in their own environment: which engine
# they talk to, and what code they run. A value that is handed over by name stands there.
CLIENTS_OWN = re.compile(
    r"(LD|BUILDX|BUILDKIT|CONTAINERS?|_CONTAINERS|PODMAN|XDG|OTEL|DBUS)_.*"
    r"|DOCKER_(?!((HUB|REGISTRY)_)?(PASS|PASSWORD|TOKEN)$).*"  # but those, which only people's own programs read
    r"|GO(DEBUG|TRACEBACK|GC|MEMLIMIT|MAXPROCS|COVERDIR)|GLIBC_TUNABLES|LOCPATH|GCONV_PATH|STORAGE_(DRIVER|OPTS)"
    r"|HOME|PATH|TMPDIR|SSL_CERT_(FILE|DIR)|REGISTRY_AUTH_FILE|SSH_AUTH_SOCK|NOTIFY_SOCKET"
)
UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = 366 * SECONDS["d"]
LONGEST_VALUE = 131_000  # bytes; the kernel hands a program no word, name and all, of more than 131,072
LONGEST_LINE = 60_000  # bytes; docker reads no line of 65,536 or more from a file of variables
LARGEST_FILE = 1 << 18  # bytes of a file that a person wrote


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host and where it is in the container."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Variable:
    """A variable of the container's environment. ``by_name``: docker takes the value from its own environment."""

    name: str
    value: str = field(repr=False)
    by_name: bool


@dataclass(frozen=True)
class EnvFile:
    """A file of variables, what was in it (SHA-256, hex) when it was looked at, and the names that it gives a value."""

    path: Path
    digest: str
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Port:
    """A port of the container on an address of the host; the host's 0 is a free one of the engine's choice."""

    host: int
    container: int
    address: str = "127.0.0.1"

    @property
    def word(self) -> str:
        """As docker's ``--publish`` takes it."""
        return f"{self.address}:{self.host or ''}:{self.container}"


@dataclass(frozen=True)
class Wishes:
    """How a launch is wanted; empty where nothing is asked for.

    Attributes:
        files: ``--env-file``; read by docker, so that no value of them passes through here.
        memory, shm: bytes.
        cpus: how many CPUs' time, as in docker's ``--cpus``.
        profile: a name of :data:`torchdock.profiles.PROFILES`, or empty.
    """

    mounts: tuple[Mount, ...] = ()
    variables: tuple[Variable, ...] = ()
    files: tuple[EnvFile, ...] = ()
    ports: tuple[Port, ...] = ()
    memory: int | None = None
    cpus: float | None = None
    shm: int | None = None
    profile: str = ""


NOTHING = Wishes()


def read_file(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """The content of a small file that a person wrote, and nothing else: no device and no pipe, which would never end.

    Raises:
        OSError: it cannot be read, is no regular file, or has more bytes than ``largest``; ``strerror`` says what is
            wrong.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(handle, "rb") as file:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        content = file.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"it is larger than {largest >> 10} KiB", str(path))
    return content


def is_text(words: str) -> bool:
    """Whether words of the command line or of a path are UTF-8; docker alters others on their way."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_plain(path: str) -> bool:
    """Whether a path reaches a container as it is: UTF-8, and no control character (which docker's CSV alters)."""
    return not any(unicodedata.category(one) in ("Cc", "Cs") for one in path)


def _is_within(path: str, trees: Iterable[str]) -> bool:
    return any(path == tree or path.startswith(f"{tree}/") for tree in trees)


def is_secret(name: str, value: str = "", patterns: Iterable[str] = ()) -> bool:
    """Whether a variable's value is not to be shown: by its name, by a URL with a password in it, or on request."""
    if any(fnmatchcase(name, pattern) for pattern in patterns):
        return True
    return bool(SECRET_NAME.search(name) or SECRET_VALUE.search(value))


def mount(text: str, folder: Path) -> Mount:
    """``SRC:DST[:ro]``; a relative SRC is below ``folder``.

    Raises:
        InputError: it is no such text, SRC is not there, or DST is a place of torchdock's own or of the system.
    """
    words = "a mount is SRC:DST or SRC:DST:ro, for example ~/data:/data:ro"
    if not is_plain(text):
        raise InputError(
            f"-v {text!a}: a path with a control character, or one that is no UTF-8, does not reach the container "
            f"as it is. Rename it; {words}."
        )
    rest, read_only = text, False
    head, _, last = text.rpartition(":")
    if last in ("ro", "rw"):
        rest, read_only = head, last == "ro"
    elif head and not last.startswith("/") and ":/" in head:
        raise InputError(f"-v {text}: {last!r} is no option of a mount; {words}. `ro` and `rw` are the options.")
    source, _, target = rest.rpartition(":")
    if not source or not target:
        raise InputError(f"-v {text}: {words}.")
    if not target.startswith("/") or ".." in PurePosixPath(target).parts:
        raise InputError(f"-v {text}: {target!r} is no absolute path in the container; {words}.")
    target = str(PurePosixPath(target)).replace("//", "/")
    if target in OWN_TARGETS or _is_within(target, OWN_TREES):
        below = ", or a folder below it" if target in OWN_TARGETS else ""
        raise InputError(
            f"-v {text}: {target} is torchdock's own place in the container, which the mount would hide or damage. "
            f"Choose another one, such as /data{below}."
        )
    if target in SYSTEM_TARGETS or _is_within(target, SYSTEM_TREES):
        raise InputError(
            f"-v {text}: {target} belongs to the container's own system, which would not work without it. Choose "
            "another place, such as /data."
        )
    path = Path(os.path.expanduser(source))
    path = path if path.is_absolute() else folder / path
    try:
        path = path.resolve(strict=True)
    except FileNotFoundError:
        raise InputError(
            f"-v {text}: {path} does not exist, and torchdock makes no folders on the host. "
            f"Correct it, or make it: mkdir -p {shlex.quote(str(path))}"
        ) from None
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"-v {text}: {path} cannot be used ({why}). Correct the path or its modes.") from None
    if not is_plain(str(path)):  # by a link
        raise InputError(f"-v {text}: {str(path)!a} has a control character in its name, or is no UTF-8. Rename it.")
    return Mount(path, target, read_only)


def variable(text: str, env: Mapping[str, str], *, secret: bool = False, patterns: Iterable[str] = ()) -> Variable:
    """``NAME=VALUE``, or ``NAME`` for the value that it has here.

    Raises:
        InputError: there is no name, it is no name, a name alone is not set here, or a value that nobody shall see
            would change the docker client itself. No value is told.
    """
    option = "--secret" if secret else "-e"
    name, equals, value = text.partition("=")
    if not NAME.fullmatch(name):
        shown = f" {name}" if equals and name else ""
        raise InputError(
            f"{option}{shown}: a variable is NAME=VALUE, or NAME alone for the value that it has in this shell; a name "
            "is letters, digits and _, and does not begin with a digit."
        )
    if name.startswith("TORCHDOCK_"):
        raise InputError(f"{option} {name}: names that begin with TORCHDOCK_ are torchdock's own. Choose another name.")
    if not equals:
        if name not in env:
            raise InputError(
                f"{option} {name}: {name} is not set in this shell. Set it (export {name}=…), or give the value: "
                f"{option} {name}=…"
            )
        _check_value(f"{option} {name}", env[name])
        return Variable(name, env[name], by_name=True)
    if "\0" in value:
        raise InputError(f"{option} {name}: the value has a NUL character, which no variable can hold.")
    _check_value(f"{option} {name}", value)
    by_name = secret or is_secret(name, value, patterns)
    if by_name and env.get(name) != value and CLIENTS_OWN.fullmatch(name):
        raise InputError(
            f"{option} {name}: docker takes a secret value from its own environment, and {name} there would change "
            f"what docker itself does. Put the line {name}=… into a file that only you can read, and give that with "
            "--env-file."
        )
    return Variable(name, value, by_name)


def _check_value(what: str, value: str) -> None:
    if not is_text(value):
        raise InputError(f"{what}: the value is no UTF-8 text, and docker would alter it. Put it into a file instead.")
    if len(value.encode()) > LONGEST_VALUE:
        raise InputError(
            f"{what}: the value has {len(value.encode())} bytes, and a program gets no more than {LONGEST_VALUE} in a "
            "variable. Put it into a file, and mount that with -v."
        )


def env_file(text: str, folder: Path) -> EnvFile:
    """A file of variables in docker's format: a NAME=VALUE or a NAME a line, ``#`` begins a comment line.

    Raises:
        InputError: it is missing, no text, or a line of it has no name; tells the line's number and never its value.
    """
    if not text or not is_plain(text):
        raise InputError(f"--env-file {text!a}: that is no name of a file. Give one, such as .env.")
    path = Path(os.path.expanduser(text))
    path = path if path.is_absolute() else folder / path
    try:
        content = read_file(path)
        lines = content.decode("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(f"--env-file {text}: there is no file {path}. Correct the path, or make the file.") from None
    except OSError as error:
        raise InputError(
            f"--env-file {text}: {path} cannot be read ({error.strerror}). Name a file of NAME=VALUE lines."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"--env-file {text}: {path} is no UTF-8 text. Save it as UTF-8.") from None
    names = set()
    for number, line in enumerate(lines, start=1):
        line = line.lstrip(" \t").rstrip("\r")
        name, equals, _ = line.partition("=")
        if line and not line.startswith("#") and not NAME.fullmatch(name):
            hint = " Leave `export` away." if name.startswith("export ") else ""
            raise InputError(
                f"{path}, line {number}: what stands before = is no name of a variable. A line is NAME=VALUE, without "
                f"spaces around = (docker takes quotes as a part of the value).{hint}"
            )
        if name.startswith("TORCHDOCK_"):
            raise InputError(
                f"{path}, line {number}: names that begin with TORCHDOCK_ are torchdock's own. Choose another name."
            )
        wrong = "a NUL character, which no variable can hold" if "\0" in line else ""
        if len(line.encode()) > LONGEST_LINE:
            wrong = f"more than {LONGEST_LINE} bytes, which docker does not read"
        if wrong:
            raise InputError(
                f"{path}, line {number}: it has {wrong}. Put that value into a file, and mount it with -v."
            )
        if line and not line.startswith("#") and (equals or name in os.environ):  # docker passes over others
            names.add(name)
    return EnvFile(path.resolve(), hashlib.sha256(content).hexdigest(), frozenset(names))


def port(text: str) -> Port:
    """``PORT``, ``HOST:CONTAINER`` or ``ADDRESS:HOST:CONTAINER``; the address is 127.0.0.1 unless another is asked for.

    Raises:
        InputError: it is no such text.
    """
    found = re.fullmatch(r"(?:(?:(\[[^]]*\]|[^][]+):)?(\d{1,5}):)?(\d{1,5})", text, re.ASCII)
    host, container = (int(found[2] or found[3]), int(found[3])) if found else (0, 0)
    if found is None or not (0 < host < 65536 and 0 < container < 65536):
        raise InputError(
            f"-p {text}: a port is PORT or HOST:CONTAINER, numbers from 1 to 65535, for example 8000 or 8080:80; it is "
            "open on 127.0.0.1 alone unless an address stands before it: 0.0.0.0:8080:80."
        )
    where = (found[1] or "127.0.0.1").strip("[]")
    try:
        address = ipaddress.ip_address(where)
    except ValueError:
        address = None
    if address is None or address.is_multicast or "%" in where:
        raise InputError(f"-p {text}: {where!r} is no address of a network interface, such as 127.0.0.1.")
    return Port(host, container, f"[{address}]" if address.version == 6 else str(address))


def size(text: str, option: str) -> int:
    """``16g``, ``512m``, ``1.5g``: bytes, as docker reads them (k is 1024).

    Raises:
        InputError: it is no size.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([bkmgt]?)(?:i?b)?", text.strip().lower(), re.ASCII)
    number = int(float(found[1]) * (1 << UNITS[found[2]])) if found else 0
    if not 0 < number < 1 << 60:
        raise InputError(f"{option} {text}: a size is a number with m or g behind it, for example 512m or 16g.")
    return number


def cpus(text: str) -> float:
    """How many CPUs, ``2`` or ``1.5``.

    Raises:
        InputError: it is no such number.
    """
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", text.strip(), re.ASCII) or float(text) < 0.01:
        raise InputError(f"--cpus {text}: a number of CPUs is, for example, 2 or 1.5; at least 0.01.")
    return float(text)


def duration(text: str, option: str = "--time") -> int:
    """``8h``, ``90m``, ``1d12h``: seconds.

    Raises:
        InputError: it is no such text, or longer than a year.
    """
    parts = re.findall(r"(\d{1,9})([smhd])", text.strip().lower(), re.ASCII)
    seconds = sum(int(number) * SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not 0 < seconds <= LONGEST:
        raise InputError(
            f"{option} {text}: a time is a number with s, m, h or d behind it: 45m, 8h, 1d12h; up to a year."
        )
    return seconds


def merge(defaults: Wishes, asked: Wishes) -> Wishes:
    """What the command line asks for above the workspace's defaults: the same target, name or port is replaced.

    Raises:
        InputError: the command line gives one target, one name, or one port of an address twice.
    """
    twice = duplicates(asked)
    if twice:
        raise InputError(f"{twice[0][0]} is given twice for {twice[0][1]}: leave one of them.")
    mounts = {one.target: one for one in (*defaults.mounts, *asked.mounts)}
    # docker puts a variable above every file of them, so a typed file would lose to torchdock.toml.
    typed = frozenset().union(*(file.names for file in asked.files))
    kept = [one for one in defaults.variables if one.name not in typed]
    variables = {one.name: one for one in (*kept, *asked.variables)}
    replaced = {one.container for one in asked.ports}
    ports = [one for one in defaults.ports if one.container not in replaced and not _clash(one, asked.ports)]
    return replace(
        asked,
        mounts=tuple(mounts.values()),
        variables=tuple(variables.values()),
        files=(*defaults.files, *asked.files),
        ports=(*ports, *asked.ports),
        memory=asked.memory if asked.memory is not None else defaults.memory,
        cpus=asked.cpus if asked.cpus is not None else defaults.cpus,
        shm=asked.shm if asked.shm is not None else defaults.shm,
        profile=asked.profile or defaults.profile,
    )


def duplicates(wishes: Wishes) -> list[tuple[str, str]]:
    """What is given more than once, as the option and what it is given for: one of them would be passed over."""
    found = []
    for what, keys in (("-v", [one.target for one in wishes.mounts]), ("-e", [one.name for one in wishes.variables])):
        found += [(what, key) for number, key in enumerate(keys) if key in keys[:number]]
    for number, one in enumerate(wishes.ports):
        if _clash(one, wishes.ports[:number]):
            found.append(("-p", f"port {one.host} of {one.address}"))
    return found


def _clash(one: Port, others: Iterable[Port]) -> bool:
    """Whether both want one port of one address; 0.0.0.0 and :: are all addresses."""
    every = ("0.0.0.0", "[::]")
    return any(
        one.host == other.host
        and one.host
        and (one.address == other.address or {one.address, other.address} & {*every})
        for other in others
    )


def check_ports(ports: Iterable[Port]) -> None:
    """Whether each port is free on this host now; the engine decides again when it launches.

    Raises:
        InputError: one is taken, or may not be opened.
    """
    for one in (one for one in ports if one.host):
        address = one.address.strip("[]")
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, one.host))
        except PermissionError:  # below 1024: the engine may do what we may not
            continue
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL):
                raise InputError(
                    f"-p {one.word}: {address} is no address of this machine. Leave it away for 127.0.0.1, or take "
                    "0.0.0.0 for all of its addresses (`ip address` shows them)."
                ) from None
            raise InputError(
                f"The port {one.host} of {address} cannot be used ({error.strerror}). Take another one, for "
                f"example -p {min(one.host + 1, 65535)}:{one.container}, or stop what uses it (`invoke ps`, "
                "`ss -ltnp`)."
            ) from None
