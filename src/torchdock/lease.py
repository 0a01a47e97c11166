"""The lease of a GPU: the right of one launch to it, held by the container itself for exactly as long as it lives.

A lease is an flock on a file of this host that is named for the GPU. The container has that file mounted, and its PID 1
takes the lock before anything else and keeps it (docker/init.sh): the client's death changes nothing, and the end of
the container, by any way, is the end of the lease. From choosing until then the client holds a second lock, the pending
one; a GPU is free when nobody has either. Both belong to the kernel: no file can go stale, and what stands in one only
describes. Leases are cooperative: whoever does without torchdock is seen by NVML alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torchdock.engine import Engine
from torchdock.errors import BusyError, InputError, TorchdockError
from torchdock.gpus import Gpu

# On a local disk, empty after a reboot, the same for every user. The first one that everybody may write to.
PLACES = (Path("/run/lock"), Path("/tmp"))
NAME = "torchdock-gpus"
SHARED = 0o1777
# Whatever the umask. The sticky bit of a file keeps it from what clears old files out of /tmp (systemd-tmpfiles).
FILE = 0o1666
MADE_SECONDS = 1.0  # what another process gets to finish a folder that it is making
INSIDE = "/run/torchdock/leases"  # where a container has the locks of its GPUs
PENDING = ".pending"
VARIABLE = "TORCHDOCK_LEASE"  # what PID 1 writes into them
LOST = " is leased to "  # what PID 1 says, and ends with 75, where another container has one (docker/init.sh)
LOOK_SECONDS = 0.02  # between two looks whether a container has taken its leases
SLOW_SECONDS = 1.0  # the same once it has had plenty of time
PLENTY_SECONDS = 10.0
ALONE_SECONDS = 5.0  # for others that choose; one that is stopped (Ctrl-Z) is waited for no longer
WAIT_SECONDS = 0.25  # between two looks of a launch that waits
ALIVE_SECONDS = 10.0  # a launch that waits and has not looked for so long is stopped: nothing is kept free for it


@dataclass(frozen=True)
class Lease:
    """Who has one GPU. All words come from a file that anybody may write: they describe and decide nothing.

    Attributes:
        held: a container has it.
        pending: a client has it, whose container does not run yet.
        user, container, role: whose it is; empty where that is not told.
        since, until: seconds since 1970; ``until`` is the end of its time limit, None without one.
    """

    held: bool = False
    pending: bool = False
    user: str = ""
    container: str = ""
    role: str = ""
    since: float | None = None
    until: float | None = None

    @property
    def free(self) -> bool:
        """Nobody has it."""
        return not (self.held or self.pending)


def folder(*, make: bool = True) -> Path:
    """The folder of this host's leases, the same for all of its users; made if need be.

    Raises:
        InputError: none can be had, or it is not one that everybody may use.
    """
    place = next((one for one in PLACES if _is_shared(one)), None)
    if place is None:
        raise InputError(
            f"GPUs are leased by locks in {' or '.join(map(str, PLACES))}, and neither is a folder that everybody may "
            f"write to here. Mend the one on the local disk: `sudo chmod 1777 {PLACES[-1]}`."
        )
    path = place / NAME
    if make and not os.path.lexists(path):
        with _no_umask(), suppress(FileExistsError):
            path.mkdir(mode=SHARED)
    deadline = time.monotonic() + MADE_SECONDS
    while os.path.lexists(path) and not _is_shared(path):
        if time.monotonic() > deadline:
            raise InputError(
                f"{path}, where GPUs are leased, is not a folder that everybody may write to, so nobody can tell "
                f"which GPUs are taken. Mend it: `sudo chmod 1777 {path}`, or, where it is no folder and no container "
                f"uses a GPU, `sudo rm -r {path}`."
            )
        time.sleep(0.01)
    return path


def hindrance(engine: Engine, where: Path) -> str:
    """Why a container of this engine cannot hold a lease of this host; empty where it can."""
    if engine.virtual:
        return "the engine's machine is a virtual one, which sees no lock of this host"
    return "" if engine.sees(where) else f"the engine does not see {where} of this host"


def _is_shared(path: Path) -> bool:
    """A folder, no link to one, that everybody may write to, and nobody remove another's files from."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & SHARED == SHARED


@contextmanager
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def _open(path: Path, *, make: bool = True) -> int | None:
    """A descriptor of a lock file, which is made if need be; None where it is missing and is not to be.

    Never opened with O_CREAT where it is there: the kernel refuses that for another's file in a sticky folder
    (fs.protected_regular).

    Raises:
        InputError: what is there is no file that everybody may lock.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    while True:
        try:
            handle = os.open(path, (os.O_RDWR if make else os.O_RDONLY) | flags)
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return handle
            os.close(handle)
            raise OSError(errno.EINVAL, "it is no file")
        except FileNotFoundError:
            if not make:
                return None
        except OSError as error:
            raise InputError(
                f"{path}, a lock by which GPUs are leased, cannot be used ({error.strerror}). Mend it: "
                f"`sudo chmod 1666 {path}`, or, where it is no file and no container uses that GPU, `sudo rm {path}`."
            ) from None
        try:
            with _no_umask():
                os.close(os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE))
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"GPUs are leased by files in {path.parent}, and none can be made there ({error.strerror}). Make room, "
                f"or mend the folder: `sudo chmod 1777 {path.parent}`."
            ) from None


def _is_locked(handle: int) -> bool:
    """Whether somebody has this lock alone. Asked by a shared lock for a moment, which those who ask may all have."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(handle, fcntl.LOCK_UN)
    return False


def file(where: Path, uuid: str, suffix: str = "") -> Path:
    """The lock of a GPU or MIG instance (whose name had slashes in older drivers). Pure."""
    return where / (uuid.replace("/", "_") + suffix)


def _look(path: Path) -> tuple[bool, Mapping[str, str]]:
    """Whether a lock is taken, and what its file says or last said."""
    handle = _open(path, make=False)
    if handle is None:
        return False, {}
    try:
        return _is_locked(handle), words(os.pread(handle, 4096, 0).decode(errors="replace"))
    finally:
        os.close(handle)


def words(text: str) -> dict[str, str]:
    """The ``key=value`` of a description, with spaces between them. Pure.

    Without what no value has: it may be shown on a terminal, and anybody may have written it.
    """
    found = (word.split("=", 1) for word in text.split() if "=" in word)
    return {key: re.sub(r"[^\w.,/-]", "", value, flags=re.ASCII) for key, value in found}


def description(**values: object) -> str:
    """The other way round: ``user``, ``container``, ``role``, ``clone``, ``seconds``; None is left out. Pure."""
    return " ".join(f"{key}={value}" for key, value in values.items() if value is not None)


def _seconds(word: str | None) -> float | None:
    try:
        return float(word) if word else None
    except ValueError:
        return None


def gather(uuids: Iterable[str]) -> dict[str, Lease]:
    """Who has each of these GPUs. Makes nothing and keeps nobody from a lease.

    Raises:
        InputError: the folder, or one of the files, is not what everybody may use.
    """
    uuids = list(uuids)
    if not uuids:  # a host without a GPU may have no place for leases
        return {}
    where = folder(make=False)
    return {uuid: _gather(where, uuid) for uuid in uuids}


def _gather(where: Path, uuid: str) -> Lease:
    held, said = _look(file(where, uuid))
    pending, announced = _look(file(where, uuid, PENDING))
    if not (held and said):  # PID 1 writes it a moment after it has the lock
        said = announced if pending else {}
    since = _seconds(said.get("since"))
    limit = _seconds(said.get("seconds"))
    until = since + limit if held and since is not None and limit is not None else None
    return Lease(held, pending, said.get("user", ""), said.get("container", ""), said.get("role", ""), since, until)


def told(lease: Lease) -> str:
    """Who has it, in words: ``anna (torchdock-anna-night, since 14:05)``. Pure but for the time zone."""
    inner = [lease.container, "launching just now" if lease.pending and not lease.held else ""]
    if lease.held and lease.since is not None:
        inner.append(f"since {_clock(lease.since)}")
    if lease.until is not None:
        inner.append(f"until {_clock(lease.until)} at the latest")
    inner = [word for word in inner if word]
    return (lease.user or "somebody") + (f" ({', '.join(inner)})" if inner else "")


def _clock(seconds: float) -> str:
    try:
        then = time.localtime(seconds)
    except (OverflowError, OSError, ValueError):
        return "?"
    return time.strftime("%H:%M" if abs(time.time() - seconds) < 12 * 3600 else "%Y-%m-%d %H:%M", then)


# --- taking one -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What one launch wants.

    Attributes:
        choose: its GPUs, given why each of those that it cannot have is taken (by UUID); raises BusyError.
        count: how many it wants.
        uuids: of the GPUs that would do, the best first.
        mine: those of the container in whose place the launch comes.
        usable: those of ``uuids`` that it would take when nobody has leased them; None: all. What others compute on
            without a lease is not kept free for it.
        words: see :func:`description`.
    """

    choose: Callable[[Mapping[str, str]], Sequence[Gpu]]
    count: int
    uuids: tuple[str, ...]
    mine: frozenset[str] = frozenset()
    words: str = ""
    usable: tuple[str, ...] | None = None


class Lost(TorchdockError):
    """Another container took the lease between choosing and launching; choose again."""


class Claim:
    """GPUs that were chosen for one launch, and are kept for it until its container has their leases."""

    def __init__(self, where: Path | None, gpus: Sequence[Gpu], handles: Sequence[int] = (), words: str = "") -> None:
        self.where, self.gpus, self.words = where, tuple(gpus), words
        self._handles = list(handles)
        self._since = int(time.time())
        self.settled = not self.gpus or where is None

    @property
    def arguments(self) -> list[str]:
        """The part of docker's argv by which the container takes the leases."""
        return arguments(self.where, [gpu.uuid for gpu in self.gpus], self.words)

    def settle(self, container: str) -> bool:
        """Whether the container of this name has the leases, or had them; the pending locks are given back then."""
        if not self.settled:
            assert self.where is not None
            found = [_look(file(self.where, gpu.uuid))[1] for gpu in self.gpus]
            # Written when it had all of them. One of this name may have had them before.
            if all(one.get("container") == container and _newer(one.get("since"), self._since) for one in found):
                self.settled = True
                self.release()
        return self.settled

    def release(self) -> None:
        """Give back what is pending."""
        while self._handles:
            os.close(self._handles.pop())

    @contextmanager
    def watched(self, container: str) -> Iterator[Callable[[], None]]:
        """While a container is waited for: gives back what is pending when it has the leases.

        Yields what begins that; to be called when the container's client has been started: no thread is there before.
        """
        if self.settled:
            yield lambda: None
            return
        ended = threading.Event()

        def watch() -> None:
            started = time.monotonic()
            while not self.settle(container):
                slow = time.monotonic() - started > PLENTY_SECONDS
                if ended.wait(SLOW_SECONDS if slow else LOOK_SECONDS):
                    return

        thread = threading.Thread(target=watch, daemon=True)
        try:
            yield thread.start
        finally:
            ended.set()
            if thread.ident is not None:
                thread.join()
            self.settle(container)


def _newer(word: str | None, than: float) -> bool:
    since = _seconds(word)
    return since is not None and since >= than


NO_CLAIM = Claim(None, ())


def arguments(where: Path | None, uuids: Sequence[str], words: str) -> list[str]:
    """The part of docker's argv by which a container takes the leases of these GPUs. Pure."""
    if where is None or not uuids:
        return []
    from torchdock.mounts import mount  # here: whoever only looks, as `invoke gpus`, does without its imports

    files = [file(where, uuid) for uuid in uuids]
    mounts = [word for path in files for word in mount(str(path), f"{INSIDE}/{path.name}")]
    return [*mounts, "--env", f"{VARIABLE}={words}"]


@contextmanager
def taking(
    ask: Callable[[], Request], *, seconds: float | None = 0, say: Callable[[str], object] = lambda text: None
) -> Iterator[Claim]:
    """The GPUs for a launch; what is pending at the end is given back.

    ``ask`` is called anew for each attempt: others' processes come and go. ``seconds``: how long to wait until they
    are free, None without end; ``say`` hears for whom.

    Raises:
        BusyError: they are not; names the holders.
        InputError: see :func:`folder` and what ``ask`` raises.
    """
    where = folder()
    claim = _claim(where, ask, seconds, say)
    try:
        yield claim
    finally:
        claim.release()


def _claim(where: Path, ask: Callable[[], Request], seconds: float | None, say: Callable[[str], object]) -> Claim:
    try:
        return _try(where, ask(), None)
    except BusyError as error:
        if seconds == 0:
            raise
        busy = error
    started = time.monotonic()
    with _ticket(where) as ticket:
        heard = ""
        while True:
            try:
                claim = _try(where, ask(), ticket)
            except BusyError as error:
                busy = error
            else:
                names = ", ".join(gpu.uuid for gpu in claim.gpus)
                say(f"Waited {time.monotonic() - started:.0f} s: {names}")
                return claim
            if str(busy) != heard:
                heard = str(busy)
                say(f"Waiting: {heard}")
            if seconds is not None and time.monotonic() - started >= seconds:
                raise BusyError(f"Waited {seconds:.0f} s in vain. {busy}") from None
            time.sleep(WAIT_SECONDS)


def _try(where: Path, request: Request, ticket: _Ticket | None) -> Claim:
    """Choose among what is free now and lock it as pending.

    Raises:
        BusyError: not enough is free, or it is kept for launches that wait longer than this one.
    """
    with _alone(where):
        if ticket is not None:
            ticket.write(request)
        taken = busy(where, request.uuids, request.mine, ticket)
        while True:
            gpus = request.choose(taken)
            handles: list[int] = []
            try:
                for gpu in gpus:
                    handle = _open(file(where, gpu.uuid, PENDING))
                    assert handle is not None
                    handles.append(handle)
                    if not _lock(handle):
                        taken = {**taken, gpu.uuid: "somebody who is launching just now"}
                        break
                    lock = _open(file(where, gpu.uuid))  # it is there, to be mounted
                    assert lock is not None
                    os.close(lock)
                    _write(handle, f"{request.words} since={time.time():.0f}\n")
                else:
                    return Claim(where, gpus, handles, request.words)
            except BaseException:
                _close(handles)
                raise
            _close(handles)


def _close(handles: Iterable[int]) -> None:
    for handle in handles:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Take a lock alone, if nobody has it so; whoever only asks about it is gone in a moment."""
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _is_locked(handle):
                return False
            continue
        return True


def _write(handle: int, text: str) -> None:
    with suppress(OSError):  # a full disk: what it says decides nothing
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def busy(
    where: Path, uuids: Iterable[str], mine: Collection[str] = (), ticket: _Ticket | None = None
) -> dict[str, str]:
    """Those of these GPUs that a launch cannot have now, and who has each: by UUID, in words.

    Also what is free and kept for launches that wait longer than the one of this ticket; all that wait do, without one.
    """
    taken = {}
    for uuid in uuids:
        lease = _gather(where, uuid)
        if lease.pending or (lease.held and uuid not in mine):
            taken[uuid] = told(lease)
    free = [uuid for uuid in uuids if uuid not in taken and uuid not in mine]
    return {**taken, **promised(_waiting(where, ticket), free)}


@contextmanager
def _alone(where: Path) -> Iterator[None]:
    """One that chooses at a time, so that nobody finds taken what another tried in vain.

    It is no matter of right or wrong: where somebody stopped in the middle, it goes without.
    """
    handle = _open(where / "choosing")
    assert handle is not None
    deadline = time.monotonic() + ALONE_SECONDS
    try:
        while not _lock(handle) and time.monotonic() < deadline:
            time.sleep(0.005)
        yield
    finally:
        os.close(handle)


# --- waiting for one's turn ---


@dataclass(frozen=True)
class Waiting:
    """A launch that waits: since when (on the clock that runs on while the machine sleeps), for how many of which."""

    order: int
    count: int
    uuids: tuple[str, ...]
    who: str


class _Ticket:
    """The place of this launch among those that wait: a file that it has locked, and writes again at each look."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle
        self.order = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def write(self, request: Request) -> None:
        usable = request.uuids if request.usable is None else request.usable
        wanted = description(order=self.order, count=request.count, uuids=",".join(usable))
        _write(self._handle, f"{wanted} {request.words}\n")


@contextmanager
def _ticket(where: Path) -> Iterator[_Ticket]:
    """The first place that nobody has; the order is by the time, not by the place."""
    number = 0
    while True:
        path = where / f"waiting-{number}"
        handle = _open(path)
        assert handle is not None
        if _lock(handle):
            break
        os.close(handle)
        number += 1
    try:
        yield _Ticket(path, handle)
    finally:
        os.close(handle)


def _waiting(where: Path, ticket: _Ticket | None) -> list[Waiting]:
    """Those that wait longer than the launch of this ticket, and look after it, the first one first."""
    found = []
    for path in where.glob("waiting-*"):
        if ticket is not None and path == ticket.path:
            continue
        try:
            if time.time() - path.stat().st_mtime > ALIVE_SECONDS:
                continue
        except OSError:
            continue
        locked, said = _look(path)
        if locked and said.get("order", "").isdigit() and said.get("count", "").isdigit():
            one = Waiting(int(said["order"]), int(said["count"]), tuple(said["uuids"].split(",")), said.get("user", ""))
            if ticket is None or (one.order, str(path)) < (ticket.order, str(ticket.path)):
                found.append(one)
    return sorted(found, key=lambda one: one.order)


def promised(waiting: Iterable[Waiting], free: Iterable[str]) -> dict[str, str]:
    """What is kept of the GPUs that are free for those that wait, the longest first, and for whom. Pure.

    Also for one that needs more than there are now: else it would never get them.
    """
    left = list(free)
    kept = {}
    for one in waiting:
        for uuid in [uuid for uuid in one.uuids if uuid in left][: one.count]:
            left.remove(uuid)
            kept[uuid] = f"{one.who or 'somebody'} (who waits for it)"
    return kept
