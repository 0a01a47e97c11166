"""Eight users and four GPUs: two hundred launches of every kind, and deaths at every step of them.

What counts is what the containers themselves wrote, read by a program that knows nothing of leases (intervals.py).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import ROOT, forget_uses, open_clone
from tests.engine.waiting import until
from tests.fakes import FakeDriver, FakeGpu, new_uuid
from tests.unit.given import open_folder
from torchdock import lease, lifeline
from torchdock.engine import Engine
from torchdock.state import CloneState

UIDS = tuple(range(4201, 4209))  # nobody's; no other test has them
GPUS = 4
LAUNCHES = int(os.environ.get("STORM_LAUNCHES", "200"))
SEED = int(os.environ.get("STORM_SEED", "6"))
SECONDS = 900.0  # for one launch that waits, on a machine with two cores
HELD = "/cache/held"
# What each container does first (entrypoint), and what stands in for the checks of `up` and `test` (python).
ENTRY = f'#!/bin/sh\nmkdir -p {HELD}\n/opt/hold {HELD} &\nexec /bin/sh /opt/torchdock/docker/real.sh "$@"\n'
# In place of the checks; the probe of the way to a GPU (python -I …) is the real one.
PYTHON = '#!/bin/sh\ncase "$1" in -I) exec /opt/python "$@" ;; esac\nsleep 0.3\necho "{}"\n'


@dataclass
class User:
    """Somebody in the docker group, with a clone of the user's own and a folder to work in."""

    uid: int
    group: int
    clone: Path
    folder: Path
    env: dict[str, str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`invoke` with these words, as this user types it."""
        return subprocess.Popen(
            [str(self.clone / ".venv/bin/python"), "-m", "invoke", *words],
            cwd=self.clone, env={**self.env, "HOME": str(self.folder)}, user=self.uid, group=self.uid,
            extra_groups=[self.group], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip

    @property
    def label(self) -> str:
        return f"dev.torchdock.clone={CloneState(self.clone).clone}"


@dataclass
class Tally:
    """What came of the launches."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    told: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=lambda: [2.0])

    def add(self, **launch: Any) -> None:
        with self.lock:
            self.told.append(launch)
            if launch["fate"] == "left alone" and launch["code"] == 0 and not launch["waited"]:
                self.seconds.append(launch["seconds"] - launch["work"])

    @property
    def usual(self) -> float:
        """How long a launch takes here and now, without its command."""
        with self.lock:
            return sorted(self.seconds)[len(self.seconds) // 2]


@pytest.fixture(scope="module")
def driver(engine: Engine) -> Iterator[FakeDriver]:
    """Four GPUs that are not there, which this engine injects by CDI."""
    if not engine.cdi:
        pytest.skip('this engine has CDI switched off ({"features": {"cdi": true}} in /etc/docker/daemon.json)')
    with open_folder() as folder, FakeDriver(folder, [FakeGpu(new_uuid()) for _ in range(GPUS)]).handed_over() as fake:
        yield fake


@pytest.fixture(scope="module")
def users(engine: Engine, image: dict[str, Any], driver: FakeDriver) -> Iterator[list[User]]:
    """Eight of them; the image is that of this tree, and tells when it has which GPU."""
    group = os.stat(engine.facts.endpoint.removeprefix("unix://")).st_gid
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    env.update(driver.environment)
    with ExitStack() as stack:
        room = stack.enter_context(open_folder())
        made = []
        for uid in UIDS:
            clone = open_clone(room / f"clone-{uid}", room / "tools")
            with (clone / "docker/entrypoint.sh").open("a") as file:
                file.write(f"# of the storm {room.name}\n")  # an image of its own, the same for all of them
            folder = room / f"home-{uid}"
            folder.mkdir()
            for path in (folder, clone, *clone.rglob("*")):
                os.chown(path, uid, uid, follow_symlinks=False)
            made.append(User(uid, group, clone, folder, env))
        tag = stand_in(made[0], str(image["image"]), room)
        try:
            yield made
        finally:
            for user in made:
                for found in engine.containers([user.label]):
                    engine.remove_container(found["Id"])
                forget_uses(engine, CloneState(user.clone).clone)
                with suppress(Exception):
                    engine.client.api.remove_volume(f"torchdock-cache-{user.uid}")
                shutil.rmtree(lifeline.FOLDERS / f"torchdock-{user.uid}", ignore_errors=True)
            engine.client.images.remove(tag, force=True)
            where = lease.folder()
            for gpu in driver.gpus:
                for suffix in ("", lease.PENDING):
                    lease.file(where, gpu.uuid, suffix).unlink(missing_ok=True)


def stand_in(user: User, image: str, room: Path) -> str:
    """The image that these clones launch: this tree's, with a program that tells which GPUs it has, without checks."""
    build = [str(user.clone / ".venv/bin/python"), "-m", "invoke", "build", "--variant", "cu130", "--dry-run", "--json"]
    shown = subprocess.run(build, cwd=user.clone, capture_output=True, text=True, check=True)
    argv = json.loads(shown.stdout)["argv"]
    tag = str(argv[argv.index("--tag") + 1])
    folder = room / "stand-in"
    folder.mkdir()
    (folder / "entrypoint.sh").write_text(ENTRY)
    (folder / "python").write_text(PYTHON)
    source = Path(__file__).with_name("hold.c")
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-o", folder / "hold", source], check=True)
    shutil.copy(ROOT / "docker/entrypoint.sh", folder / "real.sh")
    shutil.copy(ROOT / "docker/init.sh", folder / "init.sh")
    (folder / "Dockerfile").write_text(
        # COPY follows the link of the venv: the real one is kept beside it.
        f"FROM {image}\nRUN cp /usr/bin/python3 /opt/python\n"
        "COPY --chmod=755 entrypoint.sh real.sh init.sh /opt/torchdock/docker/\n"
        "COPY --chmod=755 hold /opt/hold\nCOPY --chmod=755 python /opt/venv/bin/python\n"
    )
    subprocess.run(["docker", "build", "--quiet", "--tag", tag, folder], check=True, capture_output=True)
    return tag


class Storm:
    """One user's launches, one after the other, all from one seed."""

    def __init__(self, engine: Engine, user: User, tally: Tally, gpus: list[str]) -> None:
        self.engine, self.user, self.tally, self.gpus = engine, user, tally, gpus
        self.chance = random.Random(SEED * 100_000 + user.uid)
        self.number = 0

    def names(self, state: str = "") -> list[str]:
        """This user's containers."""
        found = self.engine.containers([self.user.label])
        return [str(one["Names"][0])[1:] for one in found if state in ("", one["State"])]

    def docker(self, *words: str) -> int:
        return subprocess.run(["docker", *words], capture_output=True).returncode

    def words(self, kind: str, work: float) -> list[str]:
        """What is typed for a launch of this kind."""
        asked: list[str] = []
        if kind not in ("up", "up again"):
            asked = self.chance.choice(
                [[], [], ["--gpus", "1"], ["--gpus", "2"], ["--gpus", "2"], ["--gpus", self.chance.choice(self.gpus)]]
            )
        if self.chance.random() < 0.5:
            asked = [*asked, "--wait"]
        where = ["-w", str(self.user.folder)]
        if kind == "up":
            return ["up", *where, "--time", "60s", *asked]  # one whose client was killed ends too
        if kind == "test":
            return ["test", "--quick", *asked]
        detach = ["--detach", "--name", f"job{self.number}"] if kind == "job" else []
        return ["run", *where, *detach, *asked, "--", "sleep", f"{work:.2f}"]

    def launch(self) -> None:
        """One launch, what befalls it, and the end of what stays."""
        self.number += 1
        kind = self.chance.choices(["run", "job", "up", "test"], [40, 30, 15, 15])[0]
        fate = self.chance.choices(
            ["left alone", "SIGKILL", "SIGINT", "docker rm -f", "docker kill"], [45, 28, 9, 9, 9]
        )[0]
        # By what a launch takes here: on a slow machine too, more is wanted than there is.
        work = self.chance.uniform(0.5, 2.5) * self.tally.usual if kind in ("run", "job") else 0.0
        delay = self.chance.uniform(0.0, 1.3)
        words = self.words(kind, work)
        started = time.monotonic()
        client = self.user.start(*words)
        if fate != "left alone":
            with suppress(subprocess.TimeoutExpired):
                client.wait(delay * (self.tally.usual + work))
            if fate in ("SIGKILL", "SIGINT"):
                client.send_signal(getattr(signal, fate))
            else:
                for name in self.names("running"):
                    self.docker(*fate.split()[1:], name)
        try:
            said, _ = client.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            client.kill()
            said, _ = client.communicate()
            said += "\nHUNG"
        seconds = time.monotonic() - started
        contended = client.returncode == 75 or any(word in said for word in ("Waiting: ", "choosing again"))
        told = {"kind": kind, "fate": fate, "words": words, "code": client.returncode, "seconds": seconds}
        self.tally.add(**told, work=work, contended=contended, waited="Waiting: " in said, said=said)
        time.sleep(self.chance.uniform(0, 1.5) * self.tally.usual if kind in ("job", "up") else 0)
        self.afterwards()

    def afterwards(self) -> None:
        """Old containers are started again, killed, stopped, removed: what holds a GPU does not hold it for ever."""
        for name in self.names():
            end = self.chance.choice(["kill", "rm", "start", "stop", "down"])
            if end == "start":
                self.docker("kill", name)
                time.sleep(self.chance.uniform(0, 0.5))
                if self.docker("start", name) == 0:
                    time.sleep(self.chance.uniform(0, 1.5))
            elif end == "stop":
                self.docker("stop", "--time", "1", name)
            elif end == "kill":
                self.docker("kill", name)
            if end != "kill" or self.chance.random() < 0.5:
                self.docker("rm", "--force", name)

    def run(self, count: int) -> None:
        for _ in range(count):
            self.launch()


@pytest.mark.slow
def test_no_gpu_is_ever_held_twice_and_every_launch_that_waits_gets_its_turn(
    engine: Engine, users: list[User], driver: FakeDriver
) -> None:
    gpus = [gpu.uuid for gpu in driver.gpus]
    tally, begun = Tally(), time.monotonic()
    with ThreadPoolExecutor(len(users)) as pool:
        storms = [Storm(engine, user, tally, gpus) for user in users]
        for done in [pool.submit(storm.run, LAUNCHES // len(users)) for storm in storms]:
            done.result()
    told = tally.told
    # none is held afterwards: not even before what is left is removed, but for the containers that run
    until(lambda: all(not one.pending for one in lease.gather(gpus).values()), "nobody is launching")
    for user in users:
        for found in engine.containers([user.label]):
            engine.remove_container(found["Id"])
    until(lambda: all(one.free for one in lease.gather(gpus).values()), "nothing is held", 10)
    caches = {f"torchdock-cache-{user.uid}" for user in users}
    volumes = [Path(one.attrs["Mountpoint"]) / "held" for one in engine.client.volumes.list() if one.name in caches]
    folders = [str(one) for one in volumes if one.exists()]
    judged = subprocess.run(
        [sys.executable, "-m", "tests.engine.intervals", *folders], cwd=ROOT, capture_output=True, text=True
    )
    found = json.loads(judged.stdout)
    summary = {
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "launches": len(told),
        "contended": sum(one["contended"] for one in told),
        "waited": sum(one["waited"] for one in told),
        "chose again": sum("choosing again" in one["said"] for one in told),
        "fates": Counter(one["fate"] for one in told),
        "kinds": Counter(one["kind"] for one in told),
        "codes": Counter(one["code"] for one in told),
        "lives": found["lives"],
    }
    print(json.dumps(summary))
    keep = os.environ.get("STORM_LOG")
    if keep:
        Path(keep).write_text(json.dumps({"summary": summary, "told": told, "found": found}, indent=1))
    assert (judged.returncode, found["twice"]) == (0, []), judged.stdout
    assert len(told) == LAUNCHES
    assert summary["contended"] >= 50
    assert set(found["lives"]) == set(gpus) and min(found["lives"].values()) >= 5
    alone = [one for one in told if one["fate"] == "left alone"]
    assert not [one for one in told if "Traceback" in one["said"] or "HUNG" in one["said"]]
    # Every launch that waits and is left in peace gets its turn; any other gets a GPU or is told who has them.
    assert [one for one in alone if "--wait" in one["words"] and one["code"] != 0] == []
    assert [one for one in alone if one["code"] not in (0, 75)] == []
    assert [one for one in alone if one["code"] == 75 and " by " not in one["said"]] == []
    assert {"run", "job", "up", "test"} <= {one["kind"] for one in told if one["code"] == 0}
