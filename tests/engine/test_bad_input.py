"""What a person gets wrong, as a table: the exit code as documented, one paragraph that names the remedy, nothing left.

Most of it is refused before anything is launched, so these rows run side by side, once, before the first of them is
judged. Those that need a container, a port or an engine that goes away are tests of their own below.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import ROOT, Invoke, Relay, argv
from torchdock import container, launch, sources
from torchdock.engine import Engine
from torchdock.errors import EngineError, InputError
from torchdock.state import CloneState

Leftovers = Callable[[str], Sequence[str]]
Prepare = Callable[[Path], None]

pytestmark = pytest.mark.usefixtures("image")

ROLES = ("run", "shell", "job", "test")
LIFELINES = Path(f"/tmp/torchdock-{os.getuid()}")


def files(**contents: str | bytes) -> Prepare:
    """These files in the row's folder; two underscores in a name are a dot."""

    def write(folder: Path) -> None:
        for name, content in contents.items():
            path = folder / name.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def toml(text: str | bytes) -> Prepare:
    """This torchdock.toml in the workspace."""
    return files(torchdock__toml=text)


def foreign(folder: Path) -> None:
    """A folder in which root has no right but his capabilities."""
    (folder / "theirs").mkdir(mode=0o755)
    os.chown(folder / "theirs", 1234, 1234)


@dataclass(frozen=True)
class Row:
    """One mistake. ``words``: as typed, ``{here}`` is a folder that ``prepare`` has filled, and the workspace."""

    name: str
    words: str
    told: tuple[str, ...]
    prepare: Prepare = field(default=lambda _: None)
    code: int = 2
    env: Mapping[str, str] = field(default_factory=dict)


def bad(name: str, words: str, *told: str, **more: Any) -> Row:
    return Row(name, words, told, **more)


def run(name: str, options: str, *told: str, **more: Any) -> Row:
    return Row(name, f"run -w {{here}} {options} -- true", told, **more)


def line(name: str, text: str | bytes, *told: str) -> Row:
    """A line of torchdock.toml."""
    return run(f"toml-{name}", "", "torchdock.toml", *told, prepare=toml(text))


def variables(name: str, text: str | bytes, *told: str) -> Row:
    """A line of a file of variables."""
    return run(f"env-file-{name}", "--env-file {here}/vars", *told, prepare=files(vars=text))


GONE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
ROWS = (
    # tasks and options
    bad("task-unknown", "runn -- true", "Did you mean 'run'?"),
    bad("option-unknown", "run --gpsu 1 -- true", "Did you mean '--gpus'?"),
    bad("command-missing", "run", "needs a command after two dashes"),
    bad("command-empty", "run --", "needs a command after two dashes"),
    bad("option-twice", "run --memory 1g --memory 2g -- true", "--memory is given twice"),
    bad("option-without-value", "run -w", "-w needs a value"),
    bad("list-option-without-value", "run -e -- true", "-e needs a value"),
    run("variant-unknown", "--variant cu131", "Did you mean 'cu130'?"),
    run("profile-unknown", "--profile dbug", "Did you mean 'debug'?"),
    # workspaces
    bad("workspace-missing", "run -w /no/such/folder -- true", "does not exist", "mkdir -p"),
    bad("workspace-file", "run -w /etc/passwd -- true", "is no folder"),
    bad("workspace-empty", "run -w '' -- true", "-w was given an empty name"),
    bad("workspace-unwritable", "run -w {here}/theirs -- true", "is not writable", "sudo chown", prepare=foreign),
    bad("workspace-link-loop", "run -w {here}/a -- true", "cannot be used",
        prepare=lambda folder: (folder / "a").symlink_to(folder / "a")),
    *(
        bad(f"workspace-{what}-{words.split()[0]}", f"{words.split()[0]} -w '{{here}}/a{odd}' {words[4:]}", "Rename it")
        for what, odd in (("newline", "\n"), ("no-text", "\udcff"))
        for words in ("run  -- true", "up", "down")
    ),
    bad("workspace-missing-up", "up -w /no/such/folder", "does not exist"),
    bad("workspace-missing-shell", "shell -w /no/such/folder", "does not exist"),
    # mounts
    run("mount-source-missing", "-v {here}/no:/data", "does not exist", "mkdir -p"),
    run("mount-one-word", "-v /data", "a mount is SRC:DST"),
    run("mount-empty", "-v ''", "a mount is SRC:DST"),
    run("mount-target-relative", "-v {here}:data", "is no absolute path"),
    run("mount-target-above", "-v {here}:/data/../etc", "is no absolute path"),
    run("mount-option-unknown", "-v {here}:/data:rx", "'rx' is no option of a mount"),
    run("mount-twice", "-v {here}:/data -v /tmp:/data", "given twice for /data"),
    run("mount-over-workspace", "-v {here}:/workspace", "torchdock's own place", "a folder below it"),
    run("mount-into-the-environment", "-v {here}:/opt/venv/lib", "torchdock's own place"),
    *(
        run(f"mount-over-{target.strip('/').replace('/', '-') or 'all'}", f"-v {{here}}:{target}", "own system")
        for target in ("/", "/etc", "/usr/", "//usr/lib", "/proc", "/proc/1", "/sys/fs", "/lib", "/bin", "/dev")
    ),
    run("mount-source-loop", "-v {here}/a:/data", "cannot be used",
        prepare=lambda folder: (folder / "a").symlink_to(folder / "a")),
    run("mount-newline", "-v '{here}\n:/data'", "control character"),
    # variables
    run("variable-no-name", "-e =x", "a variable is NAME=VALUE"),
    run("variable-empty", "-e ''", "a variable is NAME=VALUE"),
    run("variable-bad-name", "-e 1X=2", "does not begin with a digit"),
    run("variable-not-set", "-e NO_SUCH_VARIABLE", "is not set in this shell", "export NO_SUCH_VARIABLE="),
    run("variable-own", "-e TORCHDOCK_USER=x", "torchdock's own"),
    run("variable-twice", "-e A=1 -e A=2", "-e is given twice for A"),
    run("variable-and-secret", "-e A=1 --secret A=2", "-e is given twice for A"),
    run("secret-no-name", "--secret =hunter2", "--secret: a variable is NAME=VALUE"),
    run("variable-no-text", "-e A=\udcff", "no UTF-8 text"),
    run("variable-huge", "-e HUGE", "131050 bytes", "mount that with -v", env={"HUGE": "x" * 131_050}),
    # files of variables
    run("env-file-missing", "--env-file {here}/no", "there is no file"),
    run("env-file-empty-name", "--env-file ''", "no name of a file"),
    run("env-file-folder", "--env-file {here}", "cannot be read (Is a directory)"),
    run("env-file-pipe", "--env-file {here}/pipe", "no regular file",
        prepare=lambda folder: os.mkfifo(folder / "pipe")),
    run("env-file-endless", "--env-file /dev/zero", "no regular file"),
    run("env-file-link", "--env-file {here}/link", "there is no file",
        prepare=lambda folder: (folder / "link").symlink_to("/nonexistent/.env")),
    variables("huge", "A=" + "x\n#" * 100_000, "larger than 256 KiB"),
    variables("export", "A=1\nexport B=2\n", "line 2", "Leave `export` away"),
    variables("spaces", "A = hunter2\n", "line 1", "without spaces around ="),
    variables("nul", b"A=hunter2\0\n", "line 1", "NUL character"),
    variables("long-line", "A=" + "x" * 70_000, "line 1", "more than 60000 bytes"),
    variables("latin1", b"A=\xff\n", "no UTF-8 text"),
    variables("own", "TORCHDOCK_LAUNCHED=0\n", "line 1", "torchdock's own"),
    # ports
    run("port-zero", "-p 0", "numbers from 1 to 65535"),
    run("port-zero-on-the-host", "-p 0:8000", "numbers from 1 to 65535"),
    run("port-too-large", "-p 65536", "numbers from 1 to 65535"),
    run("port-no-number", "-p http", "a port is PORT or HOST:CONTAINER"),
    run("port-udp", "-p 53:53/udp", "a port is PORT or HOST:CONTAINER"),
    run("port-half", "-p :8000", "a port is PORT or HOST:CONTAINER"),
    run("port-of-a-name", "-p localhost:8000:8000", "'localhost' is no address"),
    run("port-of-half-an-address", "-p 127.1:8000:8000", "'127.1' is no address"),
    run("port-of-another-host", "-p 192.0.2.1:8000:8000", "no address of this machine"),
    run("port-twice", "-p 18001:80 -p 18001:81", "given twice for port 18001"),
    run("port-twice-by-all-addresses", "-p 18001:80 -p 0.0.0.0:18001:80", "given twice for port 18001"),
    # limits
    run("memory-too-small", "--memory 128m", "less than torch needs"),
    run("memory-without-unit", "--memory 16", "less than torch needs", "a number alone is bytes"),
    run("memory-too-large", "--memory 900t", "this machine has"),
    run("memory-negative", "--memory -1", "a size is a number"),
    run("memory-no-size", "--memory lots", "a size is a number"),
    run("shm-above-memory", "--memory 1g --shm-size 2g", "counts as memory"),
    run("shm-zero", "--shm-size 0", "a size is a number"),
    run("cpus-zero", "--cpus 0", "at least 0.01"),
    run("cpus-too-many", "--cpus 9999", "this machine has"),
    run("cpus-no-number", "--cpus nan", "a number of CPUs"),
    run("time-zero", "--time 0", "a time is a number with s, m, h or d"),
    run("time-zero-seconds", "--time 0s", "a time is a number with s, m, h or d"),
    run("time-too-long", "--time 400d", "up to a year"),
    run("gpus-too-many", "--gpus 99", "--gpus 99"),
    # names of jobs, and jobs that are not there
    run("name-without-detach", "--name night", "add --detach"),
    run("name-bad", "--detach --name 'a b'", "a name is letters, digits"),
    run("name-path", "--detach --name ../x", "a name is letters, digits"),
    run("name-empty", "--detach --name ''", "a name is letters, digits"),
    run("name-of-a-task", "--detach --name stop", "is a task of invoke's"),
    bad("logs-of-none", "logs no-such-job", "You have no container 'no-such-job'", "invoke ps"),
    bad("logs-lines", "logs --lines ten no-such-job", "such as 100"),
    bad("attach-to-none", "attach no-such-job", "You have no container 'no-such-job'"),
    bad("stop-none", "stop no-such-job", "You have no container 'no-such-job'"),
    # torchdock.toml
    line("syntax", 'variant = "cu130"\nmemory = 16g\n', "not valid TOML", "line 2"),
    line("unknown-key", '# mine\nmemroy = "16g"\n', "line 2", "Did you mean 'memory'?"),
    line("variant-type", "variant = 130\n", "line 1", "a number", 'variant = "cu130"'),
    line("variant-unknown", 'variant = "cu13"\n', "cu13"),
    line("mounts-type", 'mounts = "/data:/data"\n', "line 1", "mounts is a text"),
    line("mounts-entry-type", 'mounts = ["/tmp:/data", 3]\n', "line 1", "an entry that is a number"),
    line("mounts-source-missing", 'mounts = [\n  "/tmp:/tmp2",\n  "/no/such:/data",\n]\n', "line 3", "does not exist"),
    line("mounts-system", 'mounts = ["/tmp:/etc"]\n', "line 1", "own system"),
    line("mounts-twice", '\nmounts = ["/tmp:/data", "/var:/data"]\n', "line 2", "/data twice"),
    line("mounts-nul", 'mounts = ["/tmp\\u0000:/data"]\n', "line 1", "control character"),
    line("mounts-escape", 'mounts = ["/tmp\\u001b[31m:/data"]\n', "line 1", "control character", "\\x1b"),
    line("environment-name", 'environment = ["A B=1"]\n', "line 1", "a variable is NAME=VALUE"),
    line("environment-nul", 'environment = ["A=hunter2\\u0000"]\n', "line 1", "NUL character"),
    line("environment-twice", 'environment = ["A=1", "A=2"]\n', "line 1", "A twice"),
    line("env-files-missing", 'env_files = [".env"]\n', "line 1", "there is no file"),
    line("env-files-escape", 'env_files = ["\\u001b[2J"]\n', "line 1", "no name of a file"),
    line("secrets-type", "secrets = true\n", "line 1", "true or false"),
    line("ports-type", "ports = [8000]\n", "line 1", "an entry that is a number"),
    line("ports-range", 'ports = ["70000"]\n', "line 1", "numbers from 1 to 65535"),
    line("ports-twice", 'ports = ["8000", "8000:80"]\n', "line 1", "8000 of 127.0.0.1 twice"),
    line("memory-type", "memory = 16\n", "line 1", 'memory = "16g"'),
    line("memory-text", 'memory = "lots"\n', "line 1", "a size is a number"),
    line("cpus-type", 'cpus = "4"\n', "line 1", "cpus = 4"),
    line("cpus-infinite", "cpus = inf\n", "line 1", "a number of CPUs"),
    line("shm-text", 'shm_size = "-1g"\n', "line 1", "a size is a number"),
    line("latin1", b'variant = "\xff"\n', "not UTF-8"),
    line("huge", "#" * 300_000, "larger than 256 KiB"),
    line("deep", "memory = " + "[" * 100_000, "not valid TOML"),
    line("digits", "cpus = " + "9" * 10_000, "not valid TOML"),
    run("toml-folder", "", "Is a directory", prepare=lambda folder: (folder / "torchdock.toml").mkdir()),
    run("toml-pipe", "", "no regular file", prepare=lambda folder: os.mkfifo(folder / "torchdock.toml")),
    run("toml-dangling-link", "", "a link to /nonexistent/x",
        prepare=lambda folder: (folder / "torchdock.toml").symlink_to("/nonexistent/x")),
    run("toml-device", "", "no regular file",
        prepare=lambda folder: (folder / "torchdock.toml").symlink_to("/dev/zero")),
    # no engine
    *(
        bad(f"engine-gone-{words.split()[0]}", words, "docker context use default", code=69, env=GONE)
        for words in ("run -- true", "shell", "ps", "logs x", "attach x", "stop x", "down")
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    done: subprocess.CompletedProcess[str]
    left: set[str]


def listed(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def outcomes(image: dict[str, Any], invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All rows, each in a folder of its own."""
    base = tmp_path_factory.mktemp("rows")

    def act(row: Row) -> tuple[str, Outcome]:
        folder = base / row.name
        folder.mkdir()
        row.prepare(folder)
        before = listed(folder)
        words = [word.replace("{here}", str(folder)) for word in shlex.split(row.words)]
        done = invoke(*words, env=dict(row.env), timeout=60)
        return row.name, Outcome(done, listed(folder) - before)

    with ThreadPoolExecutor(3) as pool:
        return dict(pool.map(act, ROWS))


def one_paragraph(text: str) -> str:
    """The paragraph of torchdock's; it is the last line, and there is no traceback anywhere."""
    assert "Traceback" not in text, text
    assert text.endswith("\n")
    last = text.splitlines()[-1]
    assert last.startswith("torchdock: "), text
    return last


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_wrong_input_is_told_in_one_paragraph(row: Row, outcomes: dict[str, Outcome]) -> None:
    done = outcomes[row.name].done
    assert done.returncode == row.code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    said = one_paragraph(done.stderr)
    for told in row.told:
        assert told in said
    assert "hunter2" not in said  # no value is told
    assert outcomes[row.name].left == set()


def test_none_of_it_leaves_a_container(outcomes: dict[str, Outcome], leftovers: Leftovers) -> None:
    assert len(outcomes) == len(ROWS) > 100
    assert [name for role in ROLES for name in leftovers(role)] == []


# --- with a container, a port, an engine ------------------------------------------------------------------------------


@pytest.fixture
def nothing_left(leftovers: Leftovers) -> Iterator[None]:
    """After the test: no container of this clone, no file that a client would have held."""
    before = set(LIFELINES.glob("*"))
    yield
    assert [name for role in ROLES for name in leftovers(role)] == []
    made = set(LIFELINES.glob("*")) - before
    assert not [path for path in made if subprocess.run(["flock", "-n", str(path), "true"]).returncode == 0]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that a process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_a_port_that_a_process_has(invoke: Invoke, taken: int, detach: list[str]) -> None:
    done = invoke("run", *detach, "-p", str(taken), "--", "true")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"The port {taken} of 127.0.0.1 cannot be used" in one_paragraph(done.stderr)


@pytest.mark.usefixtures("nothing_left")
def test_a_port_that_a_container_has_and_a_name_that_a_job_has(invoke: Invoke) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    name = f"bad-{os.getpid()}"
    try:
        first = invoke("run", "--detach", "--name", name, "-p", port, "--", "sleep", "600")
        assert (first.returncode, first.stdout) == (0, f"{name}\n"), first.stderr
        for words, told in (
            (["run", "-p", port, "--", "true"], f"The port {port}"),
            (["run", "-p", f"0.0.0.0:{port}:80", "--", "true"], f"The port {port}"),
            (["run", "--detach", "-p", port, "--", "true"], f"The port {port}"),
            (["run", "--detach", "--name", name, "--", "true"], "The name is in use"),
            (["logs", f"{name}x"], f"Did you mean '{name}'?"),
        ):
            done = invoke(*words)
            assert done.returncode == 2, done.stderr
            assert told in one_paragraph(done.stderr)
            assert len(done.stderr.splitlines()) == 1
    finally:
        done = invoke("stop", "--remove", name)
    assert done.returncode == 0
    assert invoke("logs", name).returncode == 2


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("limit", [[], ["--time", "1h"]])
def test_a_job_whose_command_does_not_exist_is_told_at_once(invoke: Invoke, limit: list[str]) -> None:
    done = invoke("run", "--detach", *limit, "--", "no-such-program")
    assert (done.returncode, done.stdout) == (127, "")
    assert "no-such-program is no command in this container" in one_paragraph(done.stderr)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_a_file_that_cannot_be_executed(invoke: Invoke, tmp_path: Path, detach: list[str]) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    done = invoke("run", "-w", str(tmp_path), *detach, "--", "./train.py")
    assert (done.returncode, done.stdout) == (126, "")
    assert "./train.py cannot be executed (chmod +x, or name what reads it: python ./train.py)" in done.stderr
    assert one_paragraph(done.stderr)
    assert listed(tmp_path) == {str(tmp_path / "train.py")}


@pytest.mark.parametrize("code", [3, 127])
def test_a_command_that_ends_at_once_is_a_job_all_the_same(invoke: Invoke, code: int) -> None:
    done = invoke("run", "--detach", "--", "sh", "-c", f"echo short; exit {code}")
    assert done.returncode == 0, done.stderr
    name = done.stdout.strip()
    try:
        assert invoke("logs", "--follow", name).stdout == "short\n"
        assert f"(exit code {code})" in invoke("stop", name).stdout
    finally:
        invoke("stop", "--remove", name)


@pytest.mark.usefixtures("nothing_left")
def test_what_the_engine_refuses_is_no_code_of_the_commands(invoke: Invoke, tmp_path: Path) -> None:
    """A folder on a file; docker's own words stand above, because its stderr is the command's."""
    done = invoke("run", "-v", f"{tmp_path}:/etc/hostname", "--", "true")
    assert done.returncode == 1
    assert "not a directory" in done.stderr
    assert "Correct what it names (a mount" in one_paragraph(done.stderr)
    detached = invoke("run", "--detach", "-v", f"{tmp_path}:/etc/hostname", "--", "true")
    assert detached.returncode == 1
    assert "not a directory" in one_paragraph(detached.stderr)
    assert len(detached.stderr.splitlines()) == 1


@pytest.mark.usefixtures("nothing_left")
def test_a_port_that_is_taken_after_the_probe(
    engine: Engine,
    image: dict[str, Any],
    taken: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of two who ask at the same moment the engine serves one; the other is told as if the probe had seen it."""
    probe, asked = launch.check_ports, []

    def late(ports: Iterable[launch.Port]) -> None:
        asked.append(ports)
        if len(asked) > 1:
            probe(ports)

    monkeypatch.setattr(launch, "check_ports", late)
    wishes = launch.Wishes(ports=(launch.port(f"{taken}"),))
    plan = container.plan(
        engine, image["image"], container.identity(engine), sources.gather(), role="run", clone=CloneState(ROOT).clone,
        workspace=None, command=["true"], wishes=wishes,
    )  # fmt: skip
    with pytest.raises(InputError, match=f"The port {taken} of 127.0.0.1 cannot be used"):
        container.attached(engine, plan)
    assert "address already in use" in capfd.readouterr().err  # docker's own words


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("code", [125, 126, 127])
def test_codes_of_the_engine_are_the_commands_own_too(invoke: Invoke, code: int) -> None:
    done = invoke("run", "--", "sh", "-c", f"exit {code}")
    assert done.returncode == code
    assert "torchdock: " not in done.stderr


@pytest.mark.usefixtures("nothing_left")
def test_a_full_disk_is_the_commands_own_trouble(invoke: Invoke, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        full = subprocess.run(["dd", "if=/dev/zero", f"of={disk}/full", "bs=4k"], capture_output=True, text=True)
        assert "No space left" in full.stderr
        done = invoke("run", "-w", str(disk), "--", "cp", "/etc/passwd", "/workspace/more")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert invoke("run", "-w", str(disk), "--", "true").returncode == 0
        assert {path.name for path in disk.iterdir()} <= {"full", "more"}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_who_has_no_terminal_looks_on_at_one(engine: Engine, image: dict[str, Any]) -> None:
    """Docker refuses to join a terminal from a pipe (`the input device is not a TTY`), even where nobody types."""
    labels = {"dev.torchdock.role": "run", "dev.torchdock.user": str(os.getuid())}
    name, command = f"torchdock-test-{os.getpid()}", ["sh", "-c", "while :; do echo tick; sleep 0.1; done"]
    made = engine.client.containers.run(
        image["image"], command, detach=True, tty=True, stdin_open=True, labels=labels, name=name
    )
    try:
        child = subprocess.Popen(
            argv("attach", name), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "tick\n"
        made.kill()
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 137, errors
    finally:
        made.remove(force=True)


def test_an_engine_that_stops_in_a_further_command(
    engine: Engine, image: dict[str, Any], relay: tuple[Relay, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell, or the checks of `up`, in the workspace container."""
    link, endpoint = relay
    made = engine.client.containers.run(image["image"], ["sleep", "600"], detach=True)
    reader, writer = os.pipe()

    def cut() -> None:
        assert os.read(reader, 6) == b"ready\n"
        link.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        monkeypatch.setenv("DOCKER_HOST", endpoint)
        with pytest.raises(EngineError, match="does not answer"):
            container.execute(engine, made.name, ["sh", "-c", "echo ready; exec sleep 600"], stdout=writer)
    finally:
        os.close(writer)
        cutter.join()
        os.close(reader)
        made.remove(force=True)


@pytest.mark.usefixtures("nothing_left")
def test_an_engine_that_stops_while_one_looks_on(invoke: Invoke, relay: tuple[Relay, str]) -> None:
    """`logs -f`: the job goes on, and that the engine is gone is said. (In mid-run, in a build: test_engines.py.)"""
    link, endpoint = relay
    name = invoke("run", "--detach", "--", "sh", "-c", "echo ready; exec sleep 600").stdout.strip()
    try:
        child = subprocess.Popen(
            argv("logs", "-f", name), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "DOCKER_HOST": endpoint},
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        link.cut()
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 69, errors
        assert one_paragraph(errors)
        attached = subprocess.Popen(argv("attach", name), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert attached.stderr is not None
        assert "leaves it running" in attached.stderr.readline()
        attached.send_signal(signal.SIGINT)
        attached.communicate(timeout=60)
    finally:
        assert invoke("stop", "--remove", name).returncode == 0
