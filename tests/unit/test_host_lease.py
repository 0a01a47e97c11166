"""The lease of a GPU: who has it by the kernel's word, who waits for it, and what others can do to the files."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from given import ROOT, TableEngine, at_once, open_folder, without_rights

from torchdock import lease
from torchdock.errors import BusyError, InputError
from torchdock.gpus import Gpu
from torchdock.lease import Lease, Request, Waiting, promised


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for leases of the test's own, as /run/lock is one."""
    with open_folder() as folder:
        folder.chmod(0o1777)
        monkeypatch.setattr(lease, "PLACES", (folder,))
        yield folder


def gpu(uuid: str, index: int = 0) -> Gpu:
    return Gpu(index, uuid, "H200", 1, 0)


def request(*uuids: str, count: int = 1, mine: Sequence[str] = (), words: str = "user=anna container=c") -> Request:
    """As `--gpus COUNT` on a host with these."""

    def choose(taken: Mapping[str, str]) -> Sequence[Gpu]:
        free = [gpu(uuid) for uuid in uuids if uuid not in taken]
        if len(free) < count:
            raise BusyError(f"taken: {taken}")
        return free[:count]

    return Request(choose, count, uuids, frozenset(mine), words)


HOLDER = f"""
import fcntl, os, pathlib, sys
sys.path.insert(0, {str(ROOT / "src")!r})
from torchdock import lease
lease.PLACES = (pathlib.Path(sys.argv[1]),)
handle = lease._open(lease.folder() / sys.argv[2])
fcntl.flock(handle, fcntl.LOCK_EX)
lease._write(handle, sys.argv[3])
print("held", flush=True)
sys.stdin.readline()
"""


class Holder:
    """Another process that has a lock, as PID 1 of a container has it, until it is killed."""

    def __init__(self, place: Path, name: str, words: str = "") -> None:
        argv = [sys.executable, "-c", HOLDER, str(place), name, words]
        self.child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == "held\n"

    def end(self) -> None:
        self.child.kill()
        self.child.communicate()


# --- who has it ---


def test_nobody_has_a_gpu_that_was_never_leased_and_asking_makes_nothing(place: Path) -> None:
    assert lease.gather(["GPU-1"]) == {"GPU-1": Lease()}
    assert list(place.iterdir()) == []


def test_who_has_it_is_told_and_a_kill_frees_it(place: Path) -> None:
    holder = Holder(place, "GPU-1", "user=anna container=torchdock-anna-night role=job since=1000 seconds=60\n")
    try:
        found = lease.gather(["GPU-1", "GPU-2"])
        assert found["GPU-1"] == Lease(True, False, "anna", "torchdock-anna-night", "job", 1000.0, 1060.0)
        assert found["GPU-2"].free
    finally:
        holder.end()
    assert lease.gather(["GPU-1"])["GPU-1"] == Lease()  # what stands in the file decides nothing


def test_what_a_client_keeps_for_its_container_is_pending(place: Path) -> None:
    with lease.taking(lambda: request("GPU-1", words="user=anna container=c role=run")) as claim:
        found = lease.gather(["GPU-1"])["GPU-1"]
        assert (found.held, found.pending, found.user, found.role) == (False, True, "anna", "run")
        assert [one.uuid for one in claim.gpus] == ["GPU-1"]
        with pytest.raises(BusyError, match=r"anna \(c, launching just now\)"), lease.taking(lambda: request("GPU-1")):
            pass
    assert lease.gather(["GPU-1"])["GPU-1"].free


def test_asking_keeps_nobody_from_a_lease(place: Path) -> None:
    """Whoever asks has a shared lock for a moment, which is waited for, and no word of somebody who has it."""
    path = lease.folder() / "GPU-1"
    asking, taking = lease._open(path), lease._open(path)
    assert asking is not None and taking is not None
    fcntl.flock(asking, fcntl.LOCK_SH)
    asked = threading.Timer(0.1, os.close, [asking])
    asked.start()
    assert lease.gather(["GPU-1"])["GPU-1"].free
    assert lease._lock(taking)
    asked.join()
    assert lease.gather(["GPU-1"])["GPU-1"].held
    os.close(taking)


@pytest.mark.parametrize(
    "text", ["", "\n", "user", "since=now seconds=x", "\x00\xff", "user=\x1b[31m;rm container=$(x)", "=", "since=1e999"]
)
def test_whatever_stands_in_the_file_is_harmless(place: Path, text: str) -> None:
    lease.folder()
    holder = Holder(place, "GPU-1")
    try:
        (place / lease.NAME / "GPU-1").write_bytes(text.encode("latin-1"))
        found = lease.gather(["GPU-1"])["GPU-1"]
        assert found.held
        assert not set("\x1b$(;") & set(found.user + found.container)
        assert lease.told(found)
    finally:
        holder.end()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Lease(held=True), "somebody"),
        (Lease(held=True, user="anna"), "anna"),
        (Lease(pending=True, user="anna", container="c"), "anna (c, launching just now)"),
    ],
)
def test_a_holder_in_words(found: Lease, words: str) -> None:
    assert lease.told(found) == words


def test_times_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        found = Lease(True, False, "anna", "c", "job", 0.0, time.time() // 86400 * 86400)
        assert lease.told(found).startswith("anna (c, since 1970-01-01 00:00, until ")
        assert lease.told(found).endswith(" at the latest)")
    finally:
        monkeypatch.undo()
        time.tzset()


# --- the folder and the files, which are everybody's ---


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everybody_may_lock_whatever_the_umask_and_nothing_clears_it_away(place: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with lease.taking(lambda: request("GPU-1")):
            pass
        assert os.umask(umask) == umask  # as it was
    finally:
        os.umask(before)
    folder = place / lease.NAME
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    for name in ("GPU-1", "GPU-1.pending"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o1666  # systemd-tmpfiles keeps what is sticky


def test_another_users_files_are_used_as_they_are(place: Path) -> None:
    with lease.taking(lambda: request("GPU-1")):
        pass
    with without_rights(), lease.taking(lambda: request("GPU-1")) as claim:
        assert claim.gpus
        assert lease.gather(["GPU-1"])["GPU-1"].pending


def test_the_first_place_that_everybody_may_write_to_is_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, link = place / "closed", place / "link"
    closed.mkdir(mode=0o755)
    other = place / "other"
    other.mkdir()
    other.chmod(0o1777)
    link.symlink_to(other)
    monkeypatch.setattr(lease, "PLACES", (place / "missing", closed, link, other, place))
    assert lease.folder() == other / lease.NAME
    monkeypatch.setattr(lease, "PLACES", (closed, link))
    with pytest.raises(InputError, match=rf"neither is a folder that everybody may write to.*`sudo chmod 1777 {link}`"):
        lease.folder()


@pytest.mark.parametrize("what", ["closed", "not sticky", "file", "link", "dangling link"])
def test_a_folder_that_is_not_everybodys_is_refused_with_the_remedy(
    place: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "MADE_SECONDS", 0.0)
    folder = place / lease.NAME
    if what in ("closed", "not sticky"):
        folder.mkdir()
        folder.chmod(0o755 if what == "closed" else 0o777)
    elif what == "file":
        folder.touch()
    else:
        other = place / "other"
        if what == "link":
            other.mkdir()
            other.chmod(0o1777)
        folder.symlink_to(other)
    for use in (lambda: lease.gather(["GPU-1"]), lease.folder):
        with pytest.raises(InputError, match=f"{folder}, where GPUs are leased.*`sudo chmod 1777 {folder}`") as failed:
            use()
        assert failed.value.exit_code == 2
    assert not (place / "other" / "GPU-1").exists()


def test_a_folder_that_another_process_is_just_making_is_waited_for(place: Path) -> None:
    folder = place / lease.NAME
    folder.mkdir(mode=0o700)
    timer = threading.Timer(0.1, folder.chmod, [0o1777])
    timer.start()
    assert lease.folder() == folder
    timer.join()


@pytest.mark.parametrize("what", ["closed", "link", "pipe", "folder"])
def test_a_lock_that_cannot_be_used_is_refused_with_the_remedy(place: Path, what: str) -> None:
    path = lease.folder() / "GPU-1.pending"
    if what == "closed":
        path.touch(mode=0o600)
    elif what == "link":
        (place / "secret").touch()
        (place / "secret").chmod(0o666)
        path.symlink_to(place / "secret")
    elif what == "pipe":
        os.mkfifo(path, 0o666)
    else:
        path.mkdir()
    refused = pytest.raises(InputError, match=f"`sudo chmod 1666 {path}`")
    with at_once(), without_rights(), refused as failed, lease.taking(lambda: request("GPU-1")):
        pass
    assert failed.value.exit_code == 2
    if what == "link":
        assert (place / "secret").read_text() == ""


def test_a_link_in_the_place_of_a_file_that_is_missing_makes_nothing_elsewhere(place: Path) -> None:
    (lease.folder() / "GPU-1").symlink_to(place / "planted")
    with pytest.raises(InputError), lease.taking(lambda: request("GPU-1")):
        pass
    assert not (place / "planted").exists()


def test_old_names_of_mig_instances_have_slashes() -> None:
    assert lease.file(Path("/x"), "MIG-GPU-1/3/0", lease.PENDING) == Path("/x/MIG-GPU-1_3_0.pending")


def test_an_engine_elsewhere_sees_no_lock(place: Path) -> None:
    class Blind(TableEngine):
        def sees(self, folder: Path) -> bool:
            return False

    assert lease.hindrance(TableEngine(), place) == ""
    assert "does not see" in lease.hindrance(Blind(), place)
    desktop = TableEngine(info={"ID": "1", "OperatingSystem": "Docker Desktop"})
    assert "virtual" in lease.hindrance(desktop, place)


# --- taking one ---


def test_the_next_one_is_taken_where_the_first_is_held_or_pending(place: Path) -> None:
    holder = Holder(place, "GPU-1")
    try:
        with lease.taking(lambda: request("GPU-1", "GPU-2", "GPU-3")) as first:
            assert [one.uuid for one in first.gpus] == ["GPU-2"]
            with lease.taking(lambda: request("GPU-1", "GPU-2", "GPU-3")) as second:
                assert [one.uuid for one in second.gpus] == ["GPU-3"]
    finally:
        holder.end()


def test_more_than_one_are_taken_together_or_not_at_all(place: Path) -> None:
    holder = Holder(place, "GPU-2", "user=berta container=c")
    try:
        with pytest.raises(BusyError, match=r"berta \(c\)"), lease.taking(lambda: request("GPU-1", "GPU-2", count=2)):
            pass
        assert lease.gather(["GPU-1"])["GPU-1"].free
    finally:
        holder.end()
    with lease.taking(lambda: request("GPU-1", "GPU-2", count=2)) as claim:
        assert len(claim.gpus) == 2
        assert all(one.pending for one in lease.gather(["GPU-1", "GPU-2"]).values())
    assert all(one.free for one in lease.gather(["GPU-1", "GPU-2"]).values())


def test_what_ones_own_container_holds_can_be_had_in_its_place(place: Path) -> None:
    holder = Holder(place, "GPU-1")
    try:
        with lease.taking(lambda: request("GPU-1", mine=["GPU-1"])) as claim:
            assert claim.gpus
    finally:
        holder.end()


def test_a_pending_lock_that_somebody_took_past_the_queue_is_no_failure(place: Path) -> None:
    """As initialize.sh of a dev container does, which has no part in choosing by turns."""
    holder = None

    def ask() -> Request:
        found = request("GPU-1", "GPU-2")

        def choose(taken: Mapping[str, str]) -> Sequence[Gpu]:
            nonlocal holder
            chosen = found.choose(taken)
            holder = holder or Holder(place, "GPU-1.pending")
            return chosen

        return Request(choose, 1, found.uuids)

    try:
        with lease.taking(ask) as claim:
            assert [one.uuid for one in claim.gpus] == ["GPU-2"]
    finally:
        assert holder is not None
        holder.end()


def test_one_that_stopped_in_the_middle_of_choosing_keeps_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "ALONE_SECONDS", 0.05)
    holder = Holder(place, "choosing")
    try:
        with lease.taking(lambda: request("GPU-1")) as claim:
            assert claim.gpus
    finally:
        holder.end()


def test_the_pending_lock_is_given_back_when_the_container_has_the_lease(place: Path) -> None:
    with lease.taking(lambda: request("GPU-1")) as claim, claim.watched("c") as begun:
        begun()
        assert lease.gather(["GPU-1"])["GPU-1"].pending
        # What one of the same name wrote before this launch does not count.
        (place / lease.NAME / "GPU-1").write_text("container=c since=1000\n")
        assert not claim.settle("c")
        holder = Holder(place, "GPU-1", f"container=c since={time.time():.0f}\n")
        try:
            deadline = time.monotonic() + 10
            while lease.gather(["GPU-1"])["GPU-1"].pending:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            holder.end()
    assert claim.settled


def test_anothers_container_settles_nothing(place: Path) -> None:
    with lease.taking(lambda: request("GPU-1")) as claim, claim.watched("c") as begun:
        begun()
        (place / lease.NAME / "GPU-1").write_text(f"container=other since={time.time():.0f}\n")
    assert not claim.settled


CLIENT = f"""
import pathlib, sys, time
sys.path[:0] = [{str(ROOT / "src")!r}, {str(ROOT / "tests/unit")!r}]
from torchdock import lease
from test_host_lease import request
lease.PLACES = (pathlib.Path(sys.argv[1]),)
with lease.taking(lambda: request("GPU-1", words=sys.argv[2]), seconds=None, say=lambda text: print(text, flush=True)):
    print("taken", flush=True)
    sys.stdin.readline()
"""


def client(place: Path, name: str) -> subprocess.Popen[str]:
    """Another user's launch, which waits for GPU-1 and keeps it until its stdin is closed."""
    words = [sys.executable, "-c", CLIENT, str(place), f"user={name} container=c"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def heard(one: subprocess.Popen[str], text: str) -> None:
    assert one.stdout is not None
    line = one.stdout.readline()
    assert text in line, line


def test_a_client_that_is_killed_leaves_nothing(place: Path) -> None:
    one = client(place, "anna")
    heard(one, "taken")
    assert lease.gather(["GPU-1"])["GPU-1"].pending
    one.kill()
    one.communicate()
    assert lease.gather(["GPU-1"])["GPU-1"].free


# --- waiting for it ---


def test_those_who_wait_get_their_turn_in_order_and_nobody_overtakes_them(place: Path) -> None:
    holder = Holder(place, "GPU-1", "user=zoe container=z")
    waiting = []
    try:
        for name in ("anna", "berta", "carla"):
            waiting.append(client(place, name))
            heard(waiting[-1], "Waiting: taken: {'GPU-1': 'zoe (z)'}")
        holder.end()
        for name, one in zip(("anna", "berta", "carla"), waiting, strict=True):
            # It may be free for a moment; one that comes now and does not wait goes away.
            with pytest.raises(BusyError), lease.taking(lambda: request("GPU-1")):
                pass
            while (line := one.stdout.readline() if one.stdout else "") != "taken\n":
                assert line.startswith("Wait")
            assert lease.gather(["GPU-1"])["GPU-1"].user == name
            one.communicate()
    finally:
        for one in waiting:
            one.kill()
            one.communicate()
    with lease.taking(lambda: request("GPU-1")) as claim:
        assert claim.gpus


def test_one_that_waits_and_is_killed_or_stopped_keeps_nothing_free(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Holder(place, "GPU-1")
    killed, stopped = client(place, "anna"), client(place, "berta")
    try:
        heard(killed, "Waiting: ")
        heard(stopped, "Waiting: ")
        killed.kill()
        killed.communicate()
        stopped.send_signal(signal.SIGSTOP)
        holder.end()
        monkeypatch.setattr(lease, "ALIVE_SECONDS", 0.0)  # it has not looked since
        with lease.taking(lambda: request("GPU-1")) as claim:
            assert claim.gpus
    finally:
        holder.end()
        for one in (killed, stopped):
            one.kill()
            one.communicate()


def test_waiting_ends_by_its_time_and_names_the_holder(place: Path) -> None:
    holder = Holder(place, "GPU-1", "user=zoe container=z")
    said: list[str] = []
    try:
        with (
            pytest.raises(BusyError, match=r"Waited 0 s in vain\. .*zoe \(z\)") as failed,
            lease.taking(lambda: request("GPU-1"), seconds=0.3, say=said.append),
        ):
            pass
    finally:
        holder.end()
    assert failed.value.exit_code == 75
    assert said == ["Waiting: taken: {'GPU-1': 'zoe (z)'}"]
    with lease.taking(lambda: request("GPU-1")) as claim:
        assert claim.gpus


@pytest.mark.parametrize(
    ("waiting", "free", "kept"),
    [
        ([], "ab", {}),
        ([(1, "ab")], "ab", {"a"}),
        ([(1, "b"), (1, "ab")], "ab", {"b", "a"}),
        ([(1, "c")], "ab", set()),  # what it waits for is taken: the rest is anybody's
        ([(2, "abc")], "b", {"b"}),  # it gets the second one when that is free
        ([(2, "abc"), (1, "abc")], "bc", {"b", "c"}),
        ([(9, "ab")], "abc", {"a", "b"}),
    ],
)
def test_what_is_free_is_kept_for_those_that_wait_longest(
    waiting: list[tuple[int, str]], free: str, kept: set[str]
) -> None:
    those = [Waiting(number, count, tuple(uuids), "anna") for number, (count, uuids) in enumerate(waiting)]
    found = promised(those, free)
    assert set(found) == set(kept)
    assert set(found.values()) <= {"anna (who waits for it)"}


def test_words_come_back_as_they_went() -> None:
    given = {"user": "anna", "container": "torchdock-anna-x.y", "role": "job", "clone": "0a", "seconds": "60"}
    assert lease.words(lease.description(**given, absent=None)) == given
