"""`clean` on a real engine: two users, two clones, an image shared, containers and volumes of strangers."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pexpect
import pytest

from tests.engine.conftest import argv, copy_tree, tidy
from torchdock import clean, container, lifeline, uses
from torchdock import engine as engines
from torchdock.engine import Engine
from torchdock.state import CloneState

# Users of this machine without a passwd entry, whom no other test makes: `clean` acts on all images of a user whose
# clones are gone, and the user who runs these tests has some.
OWNER, OTHER = 54322, 54321

pytestmark = pytest.mark.usefixtures("image")


@dataclass(frozen=True)
class Person:
    """Somebody with a clone."""

    uid: int
    root: Path

    @property
    def state(self) -> CloneState:
        """The state folder of the clone."""
        return CloneState(self.root)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of this user's commands."""
        return {**os.environ, "HOME": str(self.root), "PYTHONPATH": "src"}

    def words(self, words: list[str]) -> list[str]:
        """A command as this user types it."""
        # To read the tools in .venv and nothing else: they may lie below a folder of root's.
        right = "+dac_read_search"
        group = str(os.stat("/var/run/docker.sock").st_gid)
        become = ["setpriv", "--reuid", str(self.uid), "--regid", str(self.uid), "--groups", group]
        return [*become, "--inh-caps", right, "--ambient-caps", right, *words]

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        """A command as this user, in the clone."""
        return subprocess.run(
            self.words(words), cwd=self.root, env=self.environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip

    @contextmanager
    def acting(self) -> Iterator[None]:
        """While this lasts this process is the user's: the real user ID, by which torchdock knows who calls.

        The effective one remains, and with it the engine's socket, which is read here as root.
        """
        mine = os.getresuid()
        os.setresuid(self.uid, -1, -1)
        try:
            yield
        finally:
            os.setresuid(*mine)

    def clean(self, *options: str, code: int = 0) -> dict[str, Any]:
        """The document of `invoke clean`."""
        done = self.run(argv("clean", "--json", *options))
        assert done.returncode == code, done.stderr
        return {"stderr": done.stderr} | (json.loads(done.stdout) if code == 0 else {})

    def job(self, name: str, script: str) -> str:
        """Start a job; its container's name."""
        done = self.run(argv("run", "--json", "--detach", "--name", name, "--", "sh", "-c", script))
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["container"])

    def use(self, tag: str, base: str = "") -> None:
        """Say that this user and clone use an image, as a launch does."""
        with self.acting():
            assert uses.mark(engines.require(), self.state, tag, base) == ""


@pytest.fixture
def people(engine: Engine) -> Iterator[tuple[Person, Person, Person]]:
    """Two clones of one user, and one of another; nothing of theirs is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="torchdock-test-"))
    folder.chmod(0o755)
    a, b, other = settle(OWNER, folder / "a"), settle(OWNER, folder / "b"), settle(OTHER, folder / "other")
    yield a, b, other
    for person in (a, b, other):
        tidy(engine, person.root)
    for uid in (OWNER, OTHER):
        with suppress(docker.errors.NotFound):
            engine.client.api.remove_volume(f"torchdock-cache-{uid}", force=True)
        shutil.rmtree(lifeline.FOLDERS / f"torchdock-{uid}", ignore_errors=True)
    shutil.rmtree(folder)


def settle(uid: int, root: Path) -> Person:
    """Give somebody a clone."""
    subprocess.run(["chown", "-R", f"{uid}:{uid}", str(copy_tree(root))], check=True)
    return Person(uid, root)


def remove_image(engine: Engine, tag: str) -> None:
    if engine.image(tag) is not None:
        engine.client.images.remove(tag, force=True)


MB = 1_000_000
Make = Callable[[str, int], str]


@pytest.fixture
def make(engine: Engine) -> Iterator[Make]:
    """Make a small image: its repository, and how many bytes it holds; a name that no other test has."""
    made: list[str] = []
    ids: list[str] = []

    def image(repository: str, size: int) -> str:
        with io.BytesIO() as handle:
            with tarfile.open(fileobj=handle, mode="w") as tar:
                entry = tarfile.TarInfo("file")
                entry.size = size
                tar.addfile(entry, io.BytesIO(os.urandom(size)))
            tag = uuid.uuid4().hex[:12]
            engine.client.api.import_image_from_data(handle.getvalue(), repository=repository, tag=tag)
        made.append(f"{repository}:{tag}")
        ids.append(str(engine.client.images.get(made[-1]).id))
        return made[-1]

    yield image
    for name in (*made, *ids):
        remove_image(engine, name)


@pytest.fixture
def stranger(engine: Engine) -> Iterator[Callable[..., str]]:
    """Start or make a container that torchdock did not launch; it is gone afterwards."""
    made: list[str] = []

    def create(image: str, *words: str, **more: Any) -> str:
        found = engine.client.containers.create(image, [*words], **more)
        made.append(str(found.name))
        return made[-1]

    yield create
    for name in made:
        engine.remove_container(name)


def wait_until_ended(engine: Engine, name: str) -> None:
    engine.client.containers.get(name).wait(timeout=60)


def named(items: list[dict[str, Any]]) -> set[str]:
    return {str(item["name"]) for item in items}


def test_images_go_when_the_last_one_leaves(
    people: tuple[Person, Person, Person], engine: Engine, make: Make, stranger: Callable[..., str]
) -> None:
    a, b, other = people
    base = make("torchdock/base", 1 * MB)
    alone, with_b, with_other, held = [make("torchdock/cu130", 2 * MB) for _ in range(4)]
    unknown, foreign = make("torchdock/cu130", 1 * MB), make("somebody/project", 1 * MB)
    for tag in (alone, with_b, with_other, held):
        a.use(tag, base)
    b.use(with_b)
    other.use(with_other)
    name = stranger(held, "true")
    mine = {alone, with_b, with_other, held, base, unknown, foreign}

    shown = a.clean("--images", "--keep", "0", "--dry-run")
    assert (named(shown["found"]), shown["removed"]) == ({alone}, [])
    assert 2 * MB <= shown["bytes"] < 2.1 * MB
    why = {item["name"]: item["why"] for item in shown["kept"] if item["name"] in mine}
    assert why == {
        with_b: f"used by your clone {b.root}",
        with_other: f"used by UID {OTHER}",
        held: f"the container {name} uses it",
        base: f"{min(with_b, with_other, held)} stands on it",
        unknown: "no clone is known to use it",
    }
    assert alone in shown["stderr"] and "2.0 MB" in shown["stderr"]
    assert all(engine.image(tag) for tag in mine)
    assert len([use for use in uses.gather(engine) if use.clone == a.state.clone]) == 4

    done = a.clean("--images", "--keep", "0")
    assert named(done["removed"]) == {alone}
    assert done["bytes"] == shown["bytes"]
    assert {tag for tag in mine if engine.image(tag) is None} == {alone}
    assert a.clean("--images", "--keep", "0")["found"] == []

    assert named(other.clean("--images", "--keep", "0")["removed"]) == {with_other}
    assert named(b.clean("--images", "--keep", "0")["removed"]) == {with_b}
    engine.remove_container(name)
    assert named(a.clean("--images", "--keep", "0")["removed"]) == {held, base}
    assert {tag for tag in mine if engine.image(tag)} == {unknown, foreign}
    assert not [use for use in uses.gather(engine) if use.clone in {one.state.clone for one in people}]


def test_what_is_taken_into_use_after_the_plan_stays(
    people: tuple[Person, Person, Person],
    engine: Engine,
    image: dict[str, Any],
    make: Make,
    stranger: Callable[..., str],
) -> None:
    a, b, _ = people
    used, held, anew, second = (make("torchdock/cu130", MB) for _ in range(4))
    for tag in (used, held, anew):
        a.use(tag)
    labels = {"dev.torchdock.user": str(OWNER), "dev.torchdock.clone": a.state.clone, "dev.torchdock.role": "job"}
    name = stranger(image["image"], "sleep", "600", name=f"torchdock-user-{uuid.uuid4().hex[:6]}", labels=labels)
    job = engine.client.containers.get(name)
    job.start()
    job.kill()
    wait_until_ended(engine, name)
    wishes = clean.Wishes(images=True, keep=0)
    with a.acting():
        facts = clean.gather(engine, a.state, container.identity(engine), wishes)
    assert facts.uid == OWNER
    planned = clean.plan(facts, wishes)
    assert {item.name for item in planned.items} == {used, held, anew, name}

    b.use(used)
    other = stranger(held, "true")
    engine.client.images.get(second).tag(*anew.split(":"))
    job.start()
    with a.acting():
        done, kept = clean.remove(engine, a.state, facts, planned)
    assert done == []
    why = {item.name: item.why for item in kept}
    assert why[used] == f"used by your clone {b.root}"
    assert why[held] == f"the container {other} uses it"
    assert why[anew] == "it was built anew in the meantime"
    assert "container is running" in why[name] or "running container" in why[name]
    assert all(engine.image(tag) for tag in (used, held, anew))
    assert len([use for use in uses.gather(engine) if use.clone == a.state.clone]) == 3


def test_a_clone_that_was_removed_holds_nothing(
    people: tuple[Person, Person, Person], engine: Engine, make: Make
) -> None:
    a, b, other = people
    tag, hers = make("torchdock/cu130", MB), make("torchdock/cu130", MB)
    a.use(tag)
    b.use(tag)
    b.use(hers)
    gone = b.root.rename(b.root.with_name("renamed"))
    try:
        assert named(other.clean("--images", "--keep", "0")["removed"]) == set()  # not that user's
        assert named(a.clean("--images", "--keep", "0")["removed"]) == {tag, hers}
    finally:
        gone.rename(b.root)


def test_a_launch_says_that_it_uses_the_image_and_old_builds_are_told(
    people: tuple[Person, Person, Person], engine: Engine, image: dict[str, Any]
) -> None:
    """The image of this tree is this clone's too; those that only the other clone built go, but for the newest."""
    a, _, _ = people
    shared = image["image"]
    assert a.run(argv("run", "--", "true")).returncode == 0
    (use,) = [use for use in uses.gather(engine) if use.clone == a.state.clone]
    assert (use.image, use.uid, use.root, use.base) == (shared, OWNER, a.root, image["base"])
    built = []
    for number in range(2):
        (a.root / "tests/container/note.py").write_text(f"# {number}\n")
        done = a.run(argv("build", "--json"))
        assert done.returncode == 0, done.stderr
        built.append(json.loads(done.stdout)["image"])
    assert "1 older image of cu130 on this machine" in done.stderr  # the shared one does not count
    assert "`invoke clean --images` removes them" in done.stderr
    removed = a.clean("--images")
    assert named(removed["removed"]) == {built[0], str(a.state.folder / "logs")}
    assert {item["name"]: item["why"] for item in removed["kept"]}[built[1]].startswith("the image of this tree")
    assert "`invoke clean --build-cache` gives that back too" in removed["stderr"]
    assert engine.image(built[0]) is None and engine.image(built[1]) is not None
    assert named(a.clean("--images", "--keep", "0")["removed"]) == {built[1]}
    assert engine.image(shared) is not None and engine.image(image["base"]) is not None


def test_marking_a_use_again_takes_no_time(engine: Engine, people: tuple[Person, Person, Person]) -> None:
    state = people[0].state
    seconds = []
    with people[0].acting():
        for _ in range(5):
            started = time.perf_counter()
            assert uses.mark(engine, state, "torchdock/cu130:x", "") == ""
            seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.03
    assert len([use for use in uses.gather(engine) if use.clone == state.clone]) == 1


def test_containers_of_others_and_what_runs_stay(
    people: tuple[Person, Person, Person], engine: Engine, image: dict[str, Any], stranger: Callable[..., str]
) -> None:
    a, b, other = people
    unique = uuid.uuid4().hex[:6]
    ended = a.job(
        f"ended-{unique}", "head -c 3000000 /dev/zero >/home/x 2>/dev/null || head -c 3000000 /dev/zero >$HOME/x"
    )
    saving = "trap 'echo saved >/workspace/saved; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    runs = a.job(f"runs-{unique}", saving)
    in_b, of_other = b.job(f"in-b-{unique}", "true"), other.job(f"other-{unique}", "echo hi")
    labels = {f"dev.torchdock.{key}": value for key, value in
              (("user", str(OWNER)), ("clone", a.state.clone), ("role", "run"))}  # fmt: skip
    forged = stranger(image["image"], "true", name=f"torchdock-other-{unique}",
                      labels={**labels, "dev.torchdock.user": str(OTHER)})  # fmt: skip
    inherited = stranger(image["image"], "true", name=f"project-{unique}", labels=labels)
    plain = stranger(image["image"], "true", name=f"torchdock-user-plain-{unique}")
    everything = {ended, runs, in_b, of_other, forged, inherited, plain}
    for name in (ended, in_b, of_other):
        wait_until_ended(engine, name)
    while b"ready" not in engine.client.containers.get(runs).logs():
        time.sleep(0.05)

    def there() -> set[str]:
        return everything & {str(one.name) for one in engine.client.containers.list(all=True)}

    shown = a.clean("--dry-run")
    assert (named(shown["found"]), named(shown["kept"])) == ({ended}, {runs})
    assert 3 * MB <= shown["bytes"] < 3.5 * MB
    assert there() == everything
    refused = a.clean(code=2)["stderr"]
    assert f"This cannot be undone: container {ended} would go. Add --yes" in refused
    assert there() == everything
    assert named(a.clean("--yes")["removed"]) == {ended}
    assert there() == everything - {ended}
    assert named(other.clean("--yes")["removed"]) == {of_other}
    assert there() == everything - {ended, of_other}
    assert named(a.clean("--yes", "--running")["removed"]) == {runs}
    assert (a.root / "saved").read_text() == "saved\n"  # it was asked to end, not killed
    assert there() == {in_b, forged, inherited, plain}


def test_a_terminal_is_asked_before_a_jobs_output_goes(
    people: tuple[Person, Person, Person], engine: Engine, image: dict[str, Any], stranger: Callable[..., str]
) -> None:
    a = people[0]
    labels = {"dev.torchdock.user": str(OWNER), "dev.torchdock.clone": a.state.clone, "dev.torchdock.role": "job"}
    name = stranger(image["image"], "true", name=f"torchdock-user-{uuid.uuid4().hex[:6]}", labels=labels)
    engine.client.containers.get(name).start()
    wait_until_ended(engine, name)
    for answer, code, left in (("n", 1, True), ("y", 0, False)):
        words = a.words(argv("clean"))
        child = pexpect.spawn(
            words[0], words[1:], cwd=str(a.root), env=a.environment, dimensions=(40, 200), encoding="utf-8", timeout=60
        )
        child.expect(r"job: Exited \(0\)")
        child.expect(r"Remove\? \[y/N\] ")
        child.sendline(answer)
        child.expect("Nothing was removed" if left else "Removed 1 of 1")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == code
        assert bool(engine.client.containers.list(all=True, filters={"name": name})) is left


def test_the_cache_goes_when_no_clone_of_the_user_uses_it(
    people: tuple[Person, Person, Person], engine: Engine
) -> None:
    _, _, other = people
    unique = uuid.uuid4().hex[:6]
    cache = f"torchdock-cache-{OTHER}"
    name = other.job(f"cache-{unique}", "head -c 5000000 /dev/urandom >/cache/x")
    wait_until_ended(engine, name)
    assert engine.client.api.inspect_volume(cache)["Labels"] == {"dev.torchdock.user": str(OTHER)}
    second = settle(OTHER, other.root.parent / "second")
    kept = {item["name"]: item["why"] for item in second.clean("--cache")["kept"]}
    assert kept == {cache: f"the container {name} uses it"}
    refused = other.clean("--cache", code=2)["stderr"]
    assert f"container {name}, cache {cache} would go" in refused
    done = other.clean("--cache", "--yes")
    assert named(done["removed"]) == {name, cache}
    assert 5 * MB <= {item["name"]: item["bytes"] for item in done["removed"]}[cache] < 5.5 * MB
    with pytest.raises(docker.errors.NotFound):
        engine.client.api.inspect_volume(cache)
    engine.client.api.create_volume(cache)  # somebody's, by chance
    assert named(other.clean("--cache", "--yes")["kept"]) == {cache}


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--keep", "2"], "add --images"), (["--images", "--keep", "some"], "is a number"), (["--imges"], "--images")],
)
def test_wrong_input_of_clean(invoke: Any, options: list[str], told: str) -> None:
    done = invoke("clean", *options)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert told in done.stderr
