"""What an image costs, side by side: a plain Dockerfile with pip, the pattern of uv's documentation, and torchdock.

    .venv/bin/python bench/build.py [--repeats N] [--only plain,uv,ours,floor] [--variant NAME] [--out CHART.png]

All three stand on the same base and get the same Debian packages by name and the same Python packages in the same
versions. Measured of each: a cold build, the same again, one tool added, one tool moved, the source edited: wall clock,
bytes written, bytes that a push would upload; size; `import torch` in new containers, of the images in turn. And the
floor of a cold build: the same wheels installed and byte-compiled by uv into a folder of this host, and the files of
the image written once, as a tar.

An hour or two, and 40 GB of disk, on a machine that does nothing else meanwhile: bytes written and the disk's peak are
those of the whole disk that the engine's data are on, and what `invoke build` leaves in the build cache cannot be told
from what somebody else builds at the same moment. What is made has names of torchdock-bench-…, but for the images that
`invoke build` names, and is removed at the end. TMPDIR should be on the engine's disk. Needs Docker and .venv, no more:
the chart is drawn in the image.

Exits with 1 where a limit does not hold, of those that could be judged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import docker.errors  # noqa: E402
from bench import build_figures as figures  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from torchdock import buildcache, locks, sources, uses, variants  # noqa: E402
from torchdock import engine as engines  # noqa: E402
from torchdock import image as images  # noqa: E402
from torchdock.errors import InputError, TorchdockError  # noqa: E402
from torchdock.process import stream  # noqa: E402
from torchdock.state import CloneState  # noqa: E402

BENCH = ROOT / "bench" / "build"
# What a clone needs to build and lock, and what of it is "the source" that the others' images copy.
TREE = ("docker", "src", "tests/container", "tasks.py", "pyproject.toml", ".dockerignore")
SOURCE = ("src/torchdock/inside", "tests/container")
IMPORTS = 11  # containers of each image in which torch is imported
SAMPLE = 0.1  # seconds between two looks at the disk
# Steps of the build cache that are of the images beside ours, whoever else builds: they name this file, or their stage.
FOREIGN = re.compile(r"/run/host\.sh|torchdock-bench")
WHAT = ("plain", "uv", "ours", "floor")


def say(text: str) -> None:
    """Progress, for people."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# --- the disk -------------------------------------------------------------------------------------------------------


def device(folder: Path) -> tuple[int, int] | None:
    """The number of the disk that a folder is on, as /proc/diskstats has it; None where it is not to be seen here."""
    try:
        found = folder.stat().st_dev
        number = (os.major(found), os.minor(found))
        stats = Path("/proc/diskstats").read_text()
        if figures.sectors_written(stats, number) is None:
            source = os.stat(figures.mounted_from(Path("/proc/self/mountinfo").read_text(), number)).st_rdev
            number = (os.major(source), os.minor(source))
        return number if figures.sectors_written(stats, number) is not None else None
    except OSError:
        return None


def written(disk: tuple[int, int] | None) -> int | None:
    """Bytes written to a disk so far; what is on its way is written first."""
    if disk is None:
        return None
    os.sync()
    sectors = figures.sectors_written(Path("/proc/diskstats").read_text(), disk)
    return None if sectors is None else sectors * 512


def settle(cli: str) -> None:
    """What was done before is no matter of what is measured next, where this host lets us see to that.

    ext4 without a journal passes over inodes that were freed in the last minutes, each time that it looks for a free
    one (recently_deleted() in fs/ext4/ialloc.c), as long as their blocks are in memory: a build right after a large
    removal takes a fifth longer. And no builder is to find in memory what another one has read, but for the programs
    themselves, which are there again.
    """
    os.sync()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")
    for program in ([cli, "buildx", "version"], [cli, "version"], [sys.executable, "-m", "invoke", "build", "--help"]):
        subprocess.run(program, cwd=ROOT, check=True, capture_output=True)


class Peak:
    """Within it, how many bytes more than at its beginning a folder's file system held at most (``bytes``)."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._before, self._most = folder, 0, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def bytes(self) -> int | None:
        return None if self._folder is None else self._most - self._before

    def _used(self) -> int:
        found = os.statvfs(self._folder or "/")
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE):
            self._most = max(self._most, self._used())

    def __enter__(self) -> Peak:
        self._before = self._most = self._used()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._most = max(self._most, self._used())


# --- what a push uploads --------------------------------------------------------------------------------------------


def compressed(content: IO[bytes], pool: ThreadPoolExecutor, piece: int = 4 << 20) -> tuple[str, int]:
    """The digest of a layer (``sha256:…``) and its bytes as gzip -6 makes them, the level of a push.

    In pieces of 4 MiB on all CPUs, as pigz does it, which makes it larger by a few thousandths; never held as a whole.
    """

    def size(block: bytes) -> int:
        return len(zlib.compress(block, 6))

    digest, total = hashlib.sha256(), 0
    waiting: deque[Future[int]] = deque()
    while block := content.read(piece):
        digest.update(block)
        waiting.append(pool.submit(size, block))
        if len(waiting) > 2 * (os.cpu_count() or 1):
            total += waiting.popleft().result()
    return f"sha256:{digest.hexdigest()}", total + sum(one.result() for one in waiting)


def upload(saved: IO[bytes], wanted: set[str], known: dict[str, int]) -> int | None:
    """Bytes that a push of these layers (diff IDs) uploads, from the stream of ``docker save``; read in one go.

    ``known``: sizes that were found before, and are found here. None where the stream has not all of the layers under
    their diff IDs: an engine with the containerd store keeps them compressed.
    """
    with tarfile.open(fileobj=saved, mode="r|") as archive, ThreadPoolExecutor(os.cpu_count()) as pool:
        for member in archive:
            if wanted <= known.keys():
                break
            digest = f"sha256:{member.name.removeprefix('blobs/sha256/')}"
            if digest in wanted - known.keys() or (member.isreg() and member.name.endswith("/layer.tar")):
                content = archive.extractfile(member)
                assert content is not None
                found, size = compressed(content, pool)
                known.setdefault(found, size)
    return sum(known[layer] for layer in wanted) if wanted <= known.keys() else None


# --- the bench ------------------------------------------------------------------------------------------------------


class Bench:
    """One run: what it stands on, what it made and must remove, what it measured."""

    def __init__(self, variant: str, folder: Path, results: Path, *, uploads: bool = True, keep: bool = False) -> None:
        self.engine = engines.require()
        if self.engine.podman:
            raise InputError("Podman has no buildx, which builds what is measured here. Use a Docker Engine.")
        self.variant = variants.get(ROOT, variant)
        self.given = sources.gather()
        self.folder, self.results, self.uploads, self.keep = folder, results, uploads, keep
        self.run = f"torchdock-bench-{os.getpid()}-{int(time.time())}"
        self.log = folder / "log"
        self.known: dict[str, int] = {}  # what layers are when compressed, by diff ID
        self.tags: set[str] = set()
        self.steps: set[str] = set()
        self.cold: dict[str, str] = {}  # the images of this repeat's cold builds, by builder
        data = Path(str(self.engine.facts.info.get("DockerRootDir") or "/nonexistent"))
        local = not self.engine.virtual and data.exists()
        self.data = data if local else None
        self.disk = device(data) if local else None
        if local and os.stat(folder).st_dev != data.stat().st_dev:
            say(f"note: {folder} is on another disk than {data}: set TMPDIR, or the floor is that of another disk")
        pins = locks.read(ROOT, variant, locks.layers(self.variant))
        self.locked = {name: pin.version for name, pin in pins.items()}
        (folder / "lock.txt").write_text("".join(pin.text for pin in pins.values()))  # as a whole, for the floor
        self.requirements = figures.requirements(pin.text for _, pin in sorted(pins.items()))
        self.tools = {
            "added": figures.another(figures.ADDED, self.locked),
            "moved": figures.another(figures.MOVED, self.locked),
        }
        self.raw = figures.Raw(variant, machine(self.engine))
        say("the image of this tree: found, else built")
        # On its base all of them stand, its Python and uv install the floor, its Pillow draws the chart.
        self.call([sys.executable, "-m", "invoke", "build", "--variant", variant], cwd=ROOT)
        found = images.find(self.engine, images.plans(ROOT, self.variant, self.engine, self.given))
        assert found is not None
        self.base, self.image = found.base, found.image

    # --- commands ---

    def call(self, argv: Sequence[str], *, cwd: Path) -> float:
        """Run a command to its end: its seconds.

        Raises:
            TorchdockError: it failed; has the end of what it printed.
        """
        inside = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(cwd), *argv]
        lines: deque[str] = deque(maxlen=30)
        with self.log.open("a") as log:
            started = time.perf_counter()
            code = stream(inside, lines.append, log=log, env=self.given.environment(), clean=self.given.redact)
            seconds = time.perf_counter() - started
        if code:
            raise TorchdockError("\n".join([*lines, f"This ended with exit code {code}: {' '.join(argv)[:300]}"]))
        return seconds

    def ask(self, argv: Sequence[str], given: bytes | None = None, variables: Mapping[str, str] | None = None) -> bytes:
        """The output of a docker command that must succeed; ``variables``: more of its environment.

        Raises:
            TorchdockError: it failed; has what it said.
        """
        env = {**self.given.environment(), **(variables or {})}
        done = subprocess.run([self.engine.cli, *argv], input=given, capture_output=True, env=env)
        if done.returncode:
            raise TorchdockError(self.given.redact(done.stderr.decode(errors="replace")))
        return done.stdout

    def facts(self, tag: str) -> engines.ImageFacts:
        """An image that was built.

        Raises:
            TorchdockError: it is not there.
        """
        found = self.engine.image(tag)
        if found is None:
            raise TorchdockError(
                f"The build ended well, yet there is no image {tag}: it was built on another base than {self.base}, "
                "or somebody removed it. See what `invoke build` says, and measure while nobody else builds."
            )
        return found

    # --- measuring ---

    def measure(self, builder: str, scenario: str, repeat: int, argv: Sequence[str], cwd: Path, **more: Any) -> None:
        """One build; ``more``: further figures of it."""
        before = self.cached()
        if scenario == "cold":
            settle(self.engine.cli)
        start = written(self.disk)
        try:
            with Peak(self.data) as peak:
                seconds = self.call(argv, cwd=cwd)
        finally:
            self.steps |= self.appeared(before, builder)
        end = written(self.disk)
        if scenario == "cold":
            more["peak"] = peak.bytes
        wrote = None if start is None or end is None else end - start
        self.raw.builds.append(figures.Measured(builder, scenario, repeat, seconds, written=wrote, **more))
        say(f"{builder}, {figures.SCENARIOS[scenario]}: {seconds:.2f} s, {figures.amount(wrote)} written")

    def weigh(self, builder: str, tag: str, before: Sequence[str]) -> tuple[str, ...]:
        """Count for the last build what a push of its image uploads where ``before`` is there; returns its layers."""
        facts = self.facts(tag)
        # Once a builder: it is the same in every repeat, and takes minutes.
        if self.uploads and self.raw.builds[-1].repeat == 1:
            wanted, count = set(facts.layers) - set(before), None
            if wanted <= self.known.keys():
                count = sum(self.known[layer] for layer in wanted)
            else:
                with subprocess.Popen([self.engine.cli, "save", tag], stdout=subprocess.PIPE) as saving:
                    assert saving.stdout is not None
                    try:
                        count = upload(saving.stdout, wanted, self.known)
                    finally:
                        saving.kill()  # it is read as far as it is needed
            last = self.raw.builds.pop()
            self.raw.builds.append(replace(last, upload=count))
            say(f"{builder}: {figures.amount(count)} to upload")
        return facts.layers

    def look(self, repeat: int) -> None:
        """The sizes of the images of the cold builds, and how long torch takes to import in new containers of them.

        In turn, so that what else the machine does falls on all of them; the first round is not counted.
        """
        program = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"
        found: dict[str, list[float]] = {builder: [] for builder in self.cold}
        for _ in range(IMPORTS + 1):
            for builder, tag in self.cold.items():
                words = ["run", "--rm", "--name", f"{self.run}-import", tag, "python", "-c", program]
                found[builder].append(float(self.ask(words)))
        for builder, tag in self.cold.items():
            size, imports = self.facts(tag).size, found[builder][1:]
            self.raw.images.append(figures.Image(builder, size, tuple(imports)))
            say(f"{builder}, {repeat}: {figures.amount(size)}, import torch {statistics.median(imports):.2f} s")
        self.cold.clear()

    def save(self) -> None:
        """Keep what was measured so far: an hour of it is not to be lost."""
        self.results.parent.mkdir(parents=True, exist_ok=True)
        self.results.write_text(json.dumps(self.raw.document(), indent=1) + "\n")

    # --- plain, uv ---

    def foreign(self, builder: str, repeat: int) -> None:
        """All scenarios of a Dockerfile that is not ours."""
        context = self.folder / builder
        shutil.rmtree(context, ignore_errors=True)
        context.mkdir()
        shutil.copy(BENCH / "host.sh", context)
        packages = [path.read_text() for path in (ROOT / "docker" / "layers").glob("*packages.txt")]
        (context / "packages.txt").write_text(re.sub(r"\s*#.*", "", "".join(packages)))
        asked = context / "requirements.txt"
        asked.write_text(self.requirements)
        for name in SOURCE:
            copy_folder(ROOT / name, context / "src" / name)
        edited = context / "src" / SOURCE[-1] / "conftest.py"

        def build(scenario: str) -> None:
            tag = f"torchdock-bench-{builder}:{self.run.removeprefix('torchdock-bench-')}-{scenario}"
            self.tags.add(tag)
            argv = [self.engine.cli, "buildx", "build", "--builder", self.engine.facts.context, "--progress=plain"]
            argv += ["--provenance=false", "--file", str(BENCH / f"{builder}.Dockerfile"), "--tag", tag]
            argv += ["--build-arg", f"BASE={self.base}"]
            if self.variant.index_url:
                argv += ["--build-arg", f"TORCH_INDEX={self.variant.index_url}"]
            if builder == "uv":
                argv += ["--build-arg", f"CACHE={self.run}-{repeat}", "--build-arg", f"UV={self.uv}"]
            argv += images.handed_over(self.given, images.Wishes(no_cache=scenario == "cold"))
            self.measure(builder, scenario, repeat, [*argv, str(context)], context)
            layers[scenario] = self.weigh(builder, tag, layers["cold"])
            if scenario == "cold":
                self.cold[builder] = tag

        layers: dict[str, tuple[str, ...]] = {"cold": ()}
        build("cold")
        build("unchanged")
        for scenario in ("added", "moved"):
            asked.write_text(figures.with_tool(self.requirements, self.tools[scenario]) + self.mark(scenario, repeat))
            with self.passing():
                build(scenario)
        asked.write_text(self.requirements)
        edited.write_text(edited.read_text() + self.mark("edited", repeat))
        build("edited")

    @property
    def uv(self) -> str:
        """The version of uv that our builds use."""
        found = locks.parse((ROOT / "docker" / "locks" / "uv.txt").read_text(), "docker/locks/uv.txt")
        return found["uv"].version

    def mark(self, scenario: str, repeat: int) -> str:
        """A comment that no build has seen: without it a second run would find the change in the cache of the first."""
        return f"# {self.run} {scenario} {repeat}\n"

    # --- ours ---

    def ours(self, repeat: int) -> None:
        """All scenarios of `invoke build`, in a clone."""
        clone = self.folder / "ours"
        with suppress(FileNotFoundError):
            shutil.rmtree(clone)
        for name in TREE:
            if (ROOT / name).is_dir():
                copy_folder(ROOT / name, clone / name)
            else:
                clone.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, clone / name)
        (clone / ".venv").symlink_to(ROOT / ".venv")
        edited = clone / "tests" / "container" / "conftest.py"
        # Its images get names of their own: what the caller has built from this tree is not replaced, and not removed.
        edited.write_text(edited.read_text() + self.mark("cold", 0))
        invoke = [sys.executable, "-m", "invoke"]
        variant = ["--variant", self.variant.name]

        def build(scenario: str, *options: str, **more: Any) -> None:
            plans = images.plans(clone, self.variant, self.engine, self.given)
            tag = next(plan.tag for plan in plans if plan.base.reference == self.base)
            self.tags.add(tag)
            # Never from a team's registry: a build is measured.
            argv = ["env", "TORCHDOCK_REGISTRY=", *invoke, "build", *variant, *options]
            self.measure("ours", scenario, repeat, argv, clone, **more)
            layers[scenario] = self.weigh("ours", tag, layers["cold"])
            if scenario == "cold":
                self.cold["ours"] = tag

        layers: dict[str, tuple[str, ...]] = {"cold": ()}
        build("cold", "--no-cache")
        build("unchanged")
        for scenario in ("added", "moved"):
            with restored([clone / locks.REQUIREMENTS, locks.folder(clone, self.variant.name)]) as before:
                asked = clone / locks.REQUIREMENTS
                asked.write_text(f"{asked.read_text().rstrip()}\n{self.tools[scenario]}\n")
                seconds = self.call([*invoke, "lock", *variant], cwd=clone)
                say(f"ours, {figures.SCENARIOS[scenario]}: locked in {seconds:.2f} s")
                for path in sorted(locks.folder(clone, self.variant.name).glob("*.txt")):
                    if before.get(path) != path.read_bytes():
                        path.write_text(path.read_text() + self.mark(scenario, repeat))
                with self.passing():
                    build(scenario, lock=seconds)
        edited.write_text(edited.read_text() + self.mark("edited", repeat))
        build("edited")

    # --- the floor ---

    def floor(self) -> None:
        """Install and byte-compile by uv into a folder, and write the image's files once as layers are, as a tar.

        It is low rather than high: the container's start is not counted, Debian packages are not installed, nothing is
        hashed, and nothing is waited for until it is on the disk.
        """
        target = self.folder / "floor"
        target.mkdir(exist_ok=True)
        mounts = [f"{target}:/floor", f"{self.folder}/lock.txt:/run/lock.txt:ro", f"{BENCH}:/run/bench:ro"]
        as_root = ["run", "--rm", "--user", "0", "--security-opt", "label=disable"]
        words = [*as_root, "--name", f"{self.run}-floor"]
        # What this host has goes by name: values may carry tokens, and every user reads the words of a command.
        variables: dict[str, str] = {}
        words += ["--env", "UV_CACHE_DIR=/floor/cache", "--env", "UV_LINK_MODE=hardlink"]
        if self.given.ca is not None:
            mounts.append(f"{self.given.ca.resolve()}:/run/ca:ro")
            words += ["--env", "SSL_CERT_FILE=/run/ca"]
        if self.given.netrc is not None:
            mounts.append(f"{self.given.netrc.resolve()}:/run/netrc:ro")
            words += ["--env", "NETRC=/run/netrc"]
        if self.given.index is not None:
            words += ["--env", "UV_DEFAULT_INDEX"]
        if self.variant.index_url:
            variables["UV_INDEX"] = self.given.torch_index_url(*self.variant.index_url.rsplit("/", 1))
            words += ["--env", "UV_INDEX", "--env", "UV_INDEX_STRATEGY=unsafe-best-match"]
        for name in self.given.proxies:
            words += ["--env", name]
        if self.given.loopback:
            words.append("--network=host")
        for mount in mounts:
            words += ["--volume", mount]
        settle(self.engine.cli)
        try:
            script = ["--entrypoint", "sh", self.image, "/run/bench/floor.sh", "/run/lock.txt"]
            begun, installed, writing, written = map(float, self.ask([*words, *script], variables=variables).split())
        finally:  # root's files, in a folder that may be somebody else's; cut off, the container goes on
            self.engine.remove_container(f"{self.run}-floor")
            clear = ["--entrypoint", "find", self.image, "/floor", "-mindepth", "1", "-delete"]
            self.ask([*as_root, "--name", f"{self.run}-clear", "--volume", f"{target}:/floor", *clear])
        self.raw.floors.append(figures.Floor(installed - begun, written - writing))
        say(f"floor: installed in {installed - begun:.1f} s, written as a tar in {written - writing:.1f} s")

    # --- the build cache ---

    def cached(self) -> set[str]:
        """The IDs of the records that the build cache holds."""
        return {record.id for record in buildcache.gather(self.engine)}

    def appeared(self, before: set[str], builder: str) -> set[str]:
        """The records that a build left. Those of `invoke build` tell nobody's name: see the module's docstring."""
        records = buildcache.gather(self.engine)
        theirs = [record for record in records if FOREIGN.search(record.description)]
        made = buildcache.ours(records) if builder == "ours" else theirs
        return {record.id for record in made} - before

    @contextmanager
    def passing(self) -> Iterator[None]:
        """What is built within it is removed at its end: another 7 GB, of an image that was changed."""
        tags, steps = set(self.tags), set(self.steps)
        yield
        if not self.keep:
            self.remove(but=(tags, steps))

    def remove(self, but: tuple[set[str], set[str]] = (set(), set())) -> None:
        """Remove the images and the records of the build cache that were made so far, ``but`` for some of both."""
        for tag in self.tags - but[0]:
            with suppress(docker.errors.ImageNotFound):
                self.engine.client.images.remove(tag, force=True)
        self.tags &= but[0]
        going = self.steps - but[1]
        # Again while something goes: a record stays as long as another one stands on it.
        while records := [record for record in buildcache.gather(self.engine) if record.id in going]:
            gone, why = buildcache.prune(self.engine, records)
            if not gone:
                say(f"note: {len(records)} records of the build cache are in use and stay {why}")
                break
        self.steps -= going - {record.id for record in records}  # what stays is tried once more at the end

    def forget(self) -> None:
        """Remove what else is in the engine: containers that were cut off, notes of the clone."""
        for name in ("import", "floor", "clear", "chart"):
            self.engine.remove_container(f"{self.run}-{name}")
        clone = CloneState(self.folder / "ours").clone
        for use in uses.gather(self.engine):
            if use.clone == clone:
                self.engine.client.api.remove_volume(use.volume)

    def measure_all(self, only: Sequence[str], repeats: int) -> None:
        """Everything that is asked for; what was made is gone before the next repeat begins."""
        for repeat in range(1, repeats + 1):
            # Who comes first alternates: what the machine does besides falls on all.
            for what in only if repeat % 2 else only[::-1]:
                say(f"--- {what}, {repeat} of {repeats}")
                if what == "floor":
                    self.floor()
                elif what == "ours":
                    self.ours(repeat)
                else:
                    self.foreign(what, repeat)
                self.save()
            self.look(repeat)
            self.save()
            if not self.keep:
                self.remove()


def machine(engine: engines.Engine) -> dict[str, str]:
    """What it is measured on, in words."""
    info = engine.facts.info
    return {
        "cpus": f"{info.get('NCPU')} CPUs",
        "memory": f"{int(info.get('MemTotal') or 0) / 2**30:.0f} GiB",
        "engine": f"Docker {info.get('ServerVersion')} ({info.get('Driver')})",
        "date": date.today().isoformat(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def copy_folder(source: Path, target: Path) -> None:
    """A folder of this tree without what Python left in it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


@contextmanager
def restored(paths: Sequence[Path]) -> Iterator[dict[Path, bytes]]:
    """These files and the files in these folders are what they were at its end; gives what they are."""

    def files() -> list[Path]:
        return [one for path in paths for one in (path.iterdir() if path.is_dir() else [path])]

    before = {path: path.read_bytes() for path in files()}
    yield before
    for path in files():
        if path not in before:
            path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


# --- what people get ------------------------------------------------------------------------------------------------


def show(raw: figures.Raw) -> bool:
    """Print everything; whether every limit that can be judged holds."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    for title, columns, rows in figures.tables(raw):
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number > 1 else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in figures.NOTES:
        console.print(note, markup=False)
    return all(ratio.good is not False for ratio in figures.ratios(raw))


def draw(bench: Bench, target: Path) -> None:
    """Draw the chart in a container of the image and write it to a file."""
    words = figures.drawing(bench.image, f"{bench.run}-chart", (BENCH / "chart.py").read_text())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(bench.ask(words, json.dumps(figures.chart(bench.raw)).encode()))
    say(f"wrote {target}")


def read(path: Path) -> figures.Raw:
    """The numbers of a run.

    Raises:
        InputError: they are none.
    """
    try:
        return figures.Raw.of(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} has no numbers of this bench ({error}). Name a file that --json wrote.") from None


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for; wrong input ends with exit code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    state = ROOT / ".torchdock"
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--only", default=",".join(WHAT), help=f"of {','.join(WHAT)} (default: all)")
    parser.add_argument("--variant", default=variants.DEFAULT, help=f"default: {variants.DEFAULT}")
    parser.add_argument("--out", type=Path, default=state / "bench-build.png", help="the chart (default: %(default)s)")
    parser.add_argument(
        "--json", type=Path, default=state / "bench-build.json", help="all numbers (default: %(default)s)"
    )
    parser.add_argument(
        "--redraw", type=Path, metavar="JSON", help="table and chart of these numbers; measures nothing"
    )
    parser.add_argument(
        "--no-upload", action="store_true", help="do not count what a push uploads, which takes minutes"
    )
    parser.add_argument("--keep", action="store_true", help="leave the images and their build cache")
    asked = parser.parse_args(words)
    named = asked.only.split(",")
    if not set(named) <= set(WHAT):
        parser.error(f"--only takes {', '.join(WHAT)}, with commas between")
    if asked.repeats < 1:
        parser.error("--repeats takes a number from 1")
    asked.only = [what for what in WHAT if what in named]
    return asked


def main() -> int:
    """Measure, print, draw, judge."""
    asked = parse()
    before = read(asked.redraw) if asked.redraw else None
    # By SIGTERM, too, everything is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="torchdock-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        variant = before.variant if before else asked.variant
        bench = Bench(variant, folder, asked.json, uploads=not asked.no_upload, keep=asked.keep)
        try:
            if before:
                bench.raw = before
            else:
                bench.measure_all(asked.only, asked.repeats)
            draw(bench, asked.out)
        finally:
            if not asked.keep:
                bench.remove()
            bench.forget()
    return 0 if show(bench.raw) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TorchdockError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
