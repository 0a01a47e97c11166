"""A GPU is leased to one container for as long as that lives: seen by all, freed by any end, taken again, waited for.

With GPUs that are not there, whose UUIDs nobody else has. Many at once: test_lease_storm.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import ROOT, argv, open_clone
from tests.engine.waiting import SECONDS, until
from tests.fakes import FakeDriver, FakeGpu, new_uuid, write_program
from tests.unit.given import open_folder
from torchdock import lease, lifeline
from torchdock.engine import Engine

pytestmark = pytest.mark.usefixtures("image")
STRANGER = 4211  # nobody's UID; no other test has it
STAY = ("sh", "-c", "trap 'exit 143' TERM; while :; do sleep 0.1; done")


class Host:
    """A host with so many GPUs, and what is typed on it."""

    def __init__(self, driver: FakeDriver, workspace: Path, engine: Engine) -> None:
        self.driver, self.workspace, self.engine = driver, workspace, engine
        self.gpus = [gpu.uuid for gpu in driver.gpus]
        self.env = {**os.environ, **driver.environment}

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """`invoke` with these words; both streams in one."""
        given = {"env": self.env, "cwd": ROOT, "stdin": subprocess.DEVNULL, **more}
        python = given["cwd"] / ".venv" / "bin" / "python"
        typed = [str(python), "-m", "invoke", *words]
        return subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **given)

    def end(self, *words: str, **more: Any) -> tuple[int, str]:
        """The same to its end: its code, and what it said."""
        child = self.start(*words, **more)
        said, _ = child.communicate(timeout=SECONDS)
        return child.returncode, said

    def run(self, *words: str) -> list[str]:
        return ["run", "-w", str(self.workspace), *words]

    def job(self, *more: str) -> str:
        """A job that holds what it was given until it is killed; the name of its container."""
        return str(self.document(*self.run("--detach", "--json", *more), "--", *STAY)["container"])

    def document(self, *words: str) -> dict[str, Any]:
        """What `invoke … --json` prints."""
        done = subprocess.run(argv(*words), env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @property
    def leases(self) -> Sequence[lease.Lease]:
        return [*lease.gather(self.gpus).values()]

    def docker(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", *words], capture_output=True, text=True)


@pytest.fixture
def host(engine: Engine, tmp_path: Path) -> Iterator[Callable[[int], Host]]:
    """Make one; what was launched on it is removed, and its locks."""
    if not engine.cdi:
        pytest.skip('this engine has CDI switched off ({"features": {"cdi": true}} in /etc/docker/daemon.json)')
    made: list[Host] = []
    stack = ExitStack()

    def make(gpus: int) -> Host:
        driver = FakeDriver(stack.enter_context(open_folder()), [FakeGpu(new_uuid()) for _ in range(gpus)])
        driver.file.parent.mkdir(exist_ok=True)
        driver.file.write_text(driver.specification())
        workspace = tmp_path / f"workspace-{len(made)}"
        workspace.mkdir()
        made.append(Host(driver, workspace, engine))
        return made[-1]

    yield make
    for one in made:
        for found in engine.containers([f"dev.torchdock.workspace={one.workspace}"]):
            engine.remove_container(found["Id"])
        one.driver.file.unlink()
        for uuid in one.gpus:
            for suffix in ("", lease.PENDING):
                lease.file(lease.folder(), uuid, suffix).unlink(missing_ok=True)
    stack.close()


@pytest.fixture
def stranger(engine: Engine) -> Iterator[dict[str, Any]]:
    """How somebody else types: a user without an entry, in the docker group, with a clone and a folder."""
    group = os.stat(engine.facts.endpoint.removeprefix("unix://")).st_gid
    with open_folder() as room:
        clone = open_clone(room / "clone", room / "tools")
        home = room / "home"
        home.mkdir()
        os.chown(home, STRANGER, STRANGER)
        env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        yield {
            "cwd": clone, "env": {**env, "HOME": str(home)}, "user": STRANGER, "group": STRANGER,
            "extra_groups": [group], "home": home,
        }  # fmt: skip
        shutil.rmtree(lifeline.FOLDERS / f"torchdock-{STRANGER}", ignore_errors=True)
        for volume in engine.client.volumes.list():
            if volume.name == f"torchdock-cache-{STRANGER}":
                volume.remove()


def test_a_lease_lasts_as_long_as_its_container_and_is_taken_again_when_that_is_started(
    host: Callable[[int], Host],
) -> None:
    here = host(1)
    first = here.job("--name", f"first-{here.gpus[0][-12:]}", "--time", "1h")
    (held,) = here.leases
    assert (held.held, held.pending, held.container, held.role) == (True, False, first, "job")
    assert held.since is not None and held.until == held.since + 3600
    # The next one is told who has it, and nothing is launched.
    code, said = here.end(*here.run("--", "echo", "launched"))
    assert (code, "launched\n" in said) == (75, False), said
    assert f"({first}, since " in said.splitlines()[-1]
    assert f"({here.gpus[0]}) is leased by " in said.splitlines()[-1]
    # Whatever ends the container ends the lease.
    here.docker("kill", first)
    until(lambda: here.leases[0].free, "the lease is free", 10)
    # The old container must take it again, and may not where somebody else has it.
    second = here.job()
    started = here.docker("start", "--attach", first)
    assert started.returncode == 75
    assert f"torchdock: {here.gpus[0]} is leased to " in started.stderr and f"({second}, since " in started.stderr
    assert here.leases[0].container == second
    here.docker("rm", "--force", second)
    here.docker("start", first)
    until(lambda: here.leases[0].container == first, "the old container has it again", 10)
    assert here.leases[0].held


@pytest.mark.slow
def test_another_user_is_told_who_has_it_and_has_it_afterwards(
    host: Callable[[int], Host], stranger: dict[str, Any]
) -> None:
    here = host(1)
    home = stranger.pop("home")
    stranger["env"].update(here.driver.environment)
    first = here.job()
    words = ["run", "-w", str(home), "--", "sh", "-c", "cat /run/torchdock/leases/*"]
    code, said = here.end(*words, **stranger)
    assert (code, f"({first}, since " in said) == (75, True), said
    here.docker("rm", "--force", first)
    code, said = here.end(*words, **stranger)
    assert (code, f"user=user{STRANGER} container=torchdock-user{STRANGER}-run-" in said) == (0, True), said
    assert here.job()  # and back


def test_a_launch_waits_for_its_turn_and_a_client_that_is_killed_leaves_nothing(host: Callable[[int], Host]) -> None:
    here = host(1)
    first = here.job()
    waiting = here.start(*here.run("--wait", "5m"), "--", *STAY)
    assert waiting.stdout is not None
    said = ""
    while "Waiting: " not in said:
        said = waiting.stdout.readline()
        assert said, waiting.wait()
    assert f"({first}, since " in said
    # One that gives up after its time says for whom it waited.
    code, said = here.end(*here.run("--wait", "1s"), "--", "true")
    assert (code, "Waited 1 s in vain" in said, first in said) == (75, True, True), said
    here.docker("rm", "--force", first)
    until(lambda: here.leases[0].held and here.leases[0].role == "run", "it has its turn")
    assert "Waited " in waiting.stdout.readline()
    # The client dies; the container has its grace, and then the GPU is free.
    waiting.send_signal(signal.SIGKILL)
    waiting.communicate(timeout=SECONDS)
    until(lambda: here.leases[0].free, "the lease is free", 30)


@pytest.mark.parametrize("kind", ["run", pytest.param("job", marks=pytest.mark.slow)])
def test_where_another_container_is_quicker_the_launch_chooses_again(
    kind: str, host: Callable[[int], Host], tmp_path: Path
) -> None:
    """Somebody starts an old container between the choice and the launch: here a lock, right before docker's `run`."""
    here = host(1)
    programs = tmp_path / "programs"
    programs.mkdir()
    taken, lock = tmp_path / "taken", lease.file(lease.folder(), here.gpus[0])
    docker = shutil.which("docker")
    write_program(
        programs / "docker",
        # Not of the probe's container, which tries the way to the GPU before and leases nothing.
        f"""case "$*" in "run "*{lease.VARIABLE}=*) if mkdir {taken} 2>/dev/null; then
            exec 9<{lock}
            flock -x 9 # until that container has ended
            name=$(printf '%s\\n' "$*" | sed 's/.*--name \\([^ ]*\\) .*/\\1/')
            code=0
            {docker} "$@" 9<&- || code=$?
            {docker} wait "$name" >/dev/null 2>&1 9<&- || :
            exit $code
        fi ;; esac
        exec {docker} "$@\"""",
    )
    here.env["PATH"] = f"{programs}:{here.env['PATH']}"
    command = ["sh", "-c", "ls /run/torchdock/leases; exit 75"]  # which is the command's own code, and not a loss
    if kind == "run":
        code, said = here.end(*here.run("--wait"), "--", *command)
        assert code == 75
    else:
        code, said = here.end(*here.run("--wait", "--detach", "--name", f"lost-{here.gpus[0][-12:]}"), "--", *command)
        assert code == 0, said
    assert said.count("choosing again") == 1
    assert here.leases[0].free or kind == "job"
    if kind == "run":
        assert f"torchdock: {here.gpus[0]} is leased to " in said
        assert said.splitlines()[-1] == here.gpus[0]


def test_more_than_one_are_leased_together(host: Callable[[int], Host]) -> None:
    here = host(3)
    here.job("--gpus", "2")
    assert sorted(one.held for one in here.leases) == [False, True, True]
    code, said = here.end(*here.run("--gpus", "2"), "--", "true")
    assert (code, "1 of 3 GPUs are free" in said) == (75, True), said
    code, said = here.end(*here.run("--gpus", "1"), "--", "sh", "-c", "ls /run/torchdock/leases")
    assert code == 0
    assert said.splitlines()[-1] == next(uuid for uuid, one in zip(here.gpus, here.leases, strict=True) if not one.held)


@pytest.mark.parametrize("what", ["closed", "file"])
def test_a_folder_of_leases_that_somebody_closed_is_told(what: str, host: Callable[[int], Host]) -> None:
    """In a mount namespace of its own, where /run/lock is another one."""
    here = host(1)
    make = "mkdir -m 0755" if what == "closed" else "touch"
    script = f'mount -t tmpfs -o mode=1777 none /run/lock && {make} /run/lock/{lease.NAME} && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, "sh", *argv(*here.run(), "--", "true")]
    done = subprocess.run(words, env=here.env, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("torchdock: ") == 1
    assert f"`sudo chmod 1777 /run/lock/{lease.NAME}`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not here.engine.containers([f"dev.torchdock.workspace={here.workspace}"])


@pytest.mark.slow
def test_up_keeps_its_gpu_when_run_again_and_its_time_bounds_the_lease(host: Callable[[int], Host]) -> None:
    here = host(2)
    checks = "case $* in *torchdock.inside.check*) echo {}; exit 0 ;; esac"  # which are another matter
    write_program(here.driver.folder / "docker", f'{checks}\nexec {shutil.which("docker")} "$@"')
    here.env["PATH"] = f"{here.driver.folder}:{here.env['PATH']}"
    up = ["up", "-w", str(here.workspace), "--json"]

    def document(*more: str) -> dict[str, Any]:
        return here.document(*up, *more)

    first = document()
    (uuid,) = first["gpus"]
    assert lease.gather([uuid])[uuid].role == "up"
    for more in ([], ["--gpus", "1"]):  # the same one, though another is idler now
        assert document(*more)["gpus"] == [uuid]
        assert document(*more)["launched"] is False
    # Launched anew for another option it keeps the GPU all the same; the time ends the container, and so the lease.
    again = document("--time", "20s")
    assert (again["gpus"], again["launched"]) == ([uuid], True)
    until(lambda: lease.gather([uuid])[uuid].free, "its time is over")
    assert lease.gather([uuid])[uuid].free
    # Somebody else has it now: another one is taken.
    here.end(*here.run("--detach", "--gpus", uuid), "--", *STAY)
    assert document()["gpus"] == [next(one for one in here.gpus if one != uuid)]
