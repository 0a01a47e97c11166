"""The tasks that people type. Each parses its options, calls ``src/torchdock``, prints, and exits; nothing more.

Imports only the standard library and invoke until a task runs, so that ``invoke --list`` is quick and works before
anything is installed.
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from invoke import Collection, Context, Exit, Task
from invoke.exceptions import ParseError
from invoke.parser import Parser
from invoke.tasks import task as invoke_task

if TYPE_CHECKING:
    from torchdock.console import Reporter
    from torchdock.container import Identity, LaunchPlan
    from torchdock.engine import Engine
    from torchdock.image import Built
    from torchdock.sources import Sources
    from torchdock.state import CloneState
    from torchdock.variants import Variant

ROOT = Path(__file__).resolve().parent
QUICK_SECONDS = 45  # the quick checks after `up` take at most this long

# --- how tasks are declared -------------------------------------------------------------------------------------------

SHORT_FLAGS = {"workspace": "w"}
HELP = {
    "cuda": "the newest CUDA variant (the default; it also computes on CPUs)",
    "variant": "a variant by name (docker/variants.toml)",
    "locked": "refuse every fallback",
    "no-cache": "build every layer anew",
    "workspace": "the folder that is mounted at /workspace (default: this clone)",
    "gpus": "how many GPUs, `all`, or UUIDs (default: one where there is one)",
    "json": "one JSON document on stdout, people's text on stderr",
    "dry-run": "print what would be done, do nothing",
}


class _Task(Task):  # type: ignore[type-arg]
    """A task whose short flags are the ones of SHORT_FLAGS; invoke would make some up from the long names."""

    def arg_opts(self, name: str, default: Any, taken_names: set[str]) -> dict[str, Any]:
        options = super().arg_opts(name, default, taken_names)
        if name in SHORT_FLAGS:
            options["names"] = (name, SHORT_FLAGS[name])
        return options


def task(*names: str, **more: str) -> Any:
    """``@task`` with the shared help texts of the named options."""
    texts = {name: HELP[name] for name in names} | {key.replace("_", "-"): text for key, text in more.items()}
    return invoke_task(klass=_Task, auto_shortflags=False, help=texts)


def _parse_argv(self: Parser, argv: list[str], _original: Any = Parser.parse_argv) -> Any:
    """A mistyped task or option is wrong input: exit code 2 and a suggestion, where invoke itself exits with 1."""
    try:
        return _original(self, argv)
    except ParseError as error:
        words = [word for word in argv if word in str(error)]
        known = list(error.context.flags) if error.context and error.context.name else list(self.contexts)
        close = difflib.get_close_matches(words[0], known, n=1) if words else []
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise Exit(
            f"{error}{hint} `invoke --list` shows the tasks, `invoke --help TASK` its options.", code=2
        ) from None


Parser.parse_argv = _parse_argv  # type: ignore[method-assign]


@contextmanager
def _running(json: bool = False) -> Iterator[Reporter]:
    """What every task runs in: the host-side tools, a reporter, and errors as one paragraph with their exit code."""
    _use_venv()
    from torchdock.console import Reporter
    from torchdock.engine import translate
    from torchdock.errors import TorchdockError

    reporter = Reporter(as_json=json)
    for number in (signal.SIGTERM, signal.SIGHUP):  # children and temporary folders end with us; nohup stays nohup
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        yield reporter
    except TorchdockError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("Interrupted. What was finished is kept (build cache, records); run it again to go on.", 130)
    except Exit:
        raise
    except Exception as error:
        told = translate(error)
        if told is not None:
            _fail(str(told), told.exit_code)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            _fail(
                f"{error.strerror}: {error.filename or 'while writing'}. Make room or correct the owner; run it again.",
                1,
            )
        raise


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _fail(text: str, code: int) -> NoReturn:
    print(f"torchdock: {text}", file=sys.stderr)
    raise Exit(code=code)


def _use_venv() -> None:
    """Go on in ``.venv``, whichever invoke was typed: the tools are there, locked."""
    venv = ROOT / ".venv"
    sys.path.insert(0, str(ROOT / "src"))
    if Path(sys.prefix) == venv:
        return
    if not (venv / "torchdock.host").is_file():
        _fail("The host-side tools are not installed in this clone yet: run `make up` (or `make venv`) first.", 2)
    python = str(venv / "bin" / "python")
    os.execv(python, [python, "-m", "invoke", *sys.argv[1:]])


# --- what several tasks need ------------------------------------------------------------------------------------------


def _image(reporter: Reporter, engine: Engine, variant: Variant, sources: Sources, **options: bool) -> Built:
    from torchdock import image

    state = _state()
    found = None if options.get("no_cache") else image.find(engine, state, image.plans(ROOT, variant, engine, sources))
    if found is not None and not (options.get("locked") and found.fallbacks):
        return found
    with state.exclusive(reporter):
        built = image.ensure(engine, state, variant, sources, reporter, **options)
    if built.built:
        reporter.good(f"Built {built.image} in {built.seconds:.0f} s")
    return built


@lru_cache
def _state() -> CloneState:
    from torchdock.state import CloneState

    return CloneState(ROOT)


def _choose(variant: str | None, *, cuda: bool = False, gpus: str | None = None) -> Variant:
    from torchdock import gpus as cards
    from torchdock import variants
    from torchdock.errors import InputError

    chosen = variants.get(ROOT, variant)
    if gpus is not None:  # a mistyped choice is told before anything is installed or built
        cards.choose(cards.gather(), gpus)
    if cuda and not chosen.cuda:
        raise InputError(f"--cuda and --variant {variant} contradict each other: leave one of them.")
    return chosen


def _launch(
    engine: Engine, image: str, who: Identity, sources: Sources, gpus: str | None, workspace: Path | None, **more: Any
) -> LaunchPlan:
    from torchdock import container
    from torchdock import gpus as cards

    chosen = cards.choose(cards.gather(), gpus)
    handed = cards.arguments(chosen, cards.cdi_devices() if engine.cdi else "")
    options = {"gpus": chosen, "gpu_arguments": handed, "workspace": workspace, "clone": _state().clone, **more}
    return container.plan(engine, image, who, sources, **options)


def _up_plan(
    engine: Engine, image: str, who: Identity, sources: Sources, gpus: str | None, workspace: Path
) -> LaunchPlan:
    """The workspace container. Where no GPUs are asked for, one that is there keeps those it was launched with."""
    from torchdock import container

    name = container.workspace_name(who, _state().clone, workspace)
    if gpus is None:
        gpus = container.held_gpus(engine, name)
    command = ["sleep", "infinity"]
    return _launch(engine, image, who, sources, gpus, workspace, role="up", name=name, command=command)


def _folder(workspace: str | None) -> Path:
    """The folder of ``-w``; this clone without it. An empty name is a variable that was not set, never a folder."""
    from torchdock.errors import InputError

    if workspace == "":
        raise InputError("-w was given an empty name (a variable that is not set?). Name a folder, or leave -w away.")
    return ROOT if workspace is None else Path(workspace)


def _planned_image(engine: Engine, variant: Variant, sources: Sources) -> str:
    """The name of the image for ``--dry-run``: the one that is there, else the one that would be built."""
    from torchdock import image

    candidates = image.plans(ROOT, variant, engine, sources)
    found = image.find(engine, _state(), candidates)
    return found.image if found else candidates[0].tag


def _show(reporter: Reporter, argv: tuple[str, ...]) -> None:
    import shlex

    if not reporter.as_json:
        print(shlex.join(argv))
    reporter.document({"dry_run": True, "argv": list(argv)})


def _read_document(output: IO[str]) -> dict[str, Any]:
    """The JSON document that the suite wrote to this file; empty where it did not come to that."""
    import json

    output.seek(0)
    text = output.read()
    return json.loads(text) if text.strip().startswith("{") else {}


def _checks(engine: Engine, name: str, command: list[str]) -> tuple[int, dict[str, Any]]:
    """Run the suite in a running container: its table goes to our stderr, its document comes back."""
    import tempfile

    from torchdock import container
    from torchdock.process import capture

    with tempfile.TemporaryFile("w+") as output:
        ended = container.execute(engine, name, command, stdout=output.fileno())
        if ended.interrupted:  # docker exec hands no signal on
            capture([engine.cli, "exec", name, "pkill", "-INT", "-f", "torchdock.inside.check"])
            raise KeyboardInterrupt
        return ended.code, _read_document(output)


# --- tasks ------------------------------------------------------------------------------------------------------------


@task("cuda", "variant", "locked", "no-cache", "json", "dry-run")
def build(
    _: Context,
    cuda: bool = False,
    variant: str | None = None,
    locked: bool = False,
    no_cache: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Build the image for this host, or find the one that is there."""
    with _running(json) as reporter:
        from torchdock import image, provision, sources

        chosen = _choose(variant, cuda=cuda)
        given = sources.gather()
        engine = provision.ensure(reporter, dry_run=dry_run)
        if engine is None:
            return reporter.document({"dry_run": True, "argv": []})
        if dry_run:
            plans = image.plans(ROOT, chosen, engine, given, no_cache=no_cache)
            there = next((plan for plan in plans if engine.image(plan.base.reference)), plans[0])
            return _show(reporter, there.argv)
        built = _image(reporter, engine, chosen, given, no_cache=no_cache, locked=locked)
        if not built.built:
            reporter.say(f"{built.image} is there already; nothing to build")
        reporter.document(built.document())


@task("variant", "gpus", "workspace", "json", "dry-run")
def up(
    _: Context,
    variant: str | None = None,
    gpus: str | None = None,
    workspace: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Everything from nothing: engine, image, workspace container, quick checks."""
    with _running(json) as reporter:
        from torchdock import container, provision, sources
        from torchdock.errors import TorchdockError

        chosen = _choose(variant, gpus=gpus)
        given = sources.gather()
        folder = _folder(workspace)
        if not os.path.isdir(folder):  # said before an engine is installed, with the identity that a launch will have
            container.check_workspace(folder, container.Identity(os.getuid(), os.getgid(), (), str(os.getuid())))
        if dry_run:
            engine = provision.ensure(reporter, dry_run=True)
            if engine is None:
                return reporter.document({"dry_run": True, "argv": []})
            who = container.identity(engine)
            image = _planned_image(engine, chosen, given)
            return _show(
                reporter, _up_plan(engine, image, who, given, gpus, container.check_workspace(folder, who)).argv
            )
        with _state().exclusive(reporter):  # the second of two `make up` finds everything done, and checks it
            engine = provision.ensure(reporter)
            assert engine is not None
            who = container.identity(engine)
            folder = container.check_workspace(folder, who)
            built = _image(reporter, engine, chosen, given)
            for fallback in built.fallbacks if not built.built else []:
                reporter.fallback(fallback)
            plan = _up_plan(engine, built.image, who, given, gpus, folder)
            name, launched = container.up(engine, plan)
            verb = "Launched" if launched else "Running already:"
            reporter.say(f"{verb} {name} ({built.image}), {folder} at /workspace")
            reporter.say("Quick checks ...")
            command = ["timeout", "--signal=INT", "--kill-after=5", str(QUICK_SECONDS)]
            command += ["python", "-m", "torchdock.inside.check", "--quick", "--json"]
            code, summary = _checks(engine, name, command)
        held = [gpu.uuid for gpu in plan.gpus]
        document = {"container": name, "launched": launched, "gpus": held, **built.document(), "checks": summary}
        reporter.document(document)
        if code in (124, 137):
            raise TorchdockError(
                f"The quick checks were not finished after {QUICK_SECONDS} s and were stopped; {name} runs "
                "on. `invoke test --quick` runs them without this limit; a busy machine or a cold disk explains much."
            )
        if code != 0:
            raise TorchdockError(f"A quick check failed (above, with its remedy); the container {name} runs on.")
        reporter.say("")
        reporter.table("", ("next", ""), [
            ("make shell", "a shell in this container"),
            (".venv/bin/invoke run -- python train.py", "one command in a container of its own"),
            (".venv/bin/invoke up -w ~/project", "the same for a project of yours"),
            ("make test", "the project's tests and the whole validation suite"),
            ("make down", "stop it"),
        ])  # fmt: skip


@task("workspace", "json", "dry-run")
def down(_: Context, workspace: str | None = None, json: bool = False, dry_run: bool = False) -> None:
    """Stop and remove the workspace container."""
    with _running(json) as reporter:
        from torchdock import container
        from torchdock import engine as engines

        engine = engines.require()
        folder = container.workspace_path(_folder(workspace))
        name = container.workspace_name(container.identity(engine), _state().clone, folder)
        if dry_run:
            return _show(reporter, ("docker", "stop", name))
        there = container.find_up(engine, name) is not None
        if there:
            container.stop(engine, name)
        reporter.say(f"Stopped {name}" if there else f"There is no workspace container for {folder}; nothing to stop")
        reporter.document({"container": name, "stopped": there})


@task("variant", "gpus", "workspace", "json", "dry-run")
def run(
    _: Context,
    variant: str | None = None,
    gpus: str | None = None,
    workspace: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """One command in a container of its own: invoke run -- python train.py"""
    with _running(json) as reporter:
        from torchdock.errors import InputError

        command = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
        if not command:
            raise InputError("`invoke run` needs a command after two dashes: invoke run -- python train.py")
        _attached(reporter, "run", command, variant, gpus, workspace, dry_run)


@task("variant", "gpus", "workspace", "json", "dry-run")
def shell(
    _: Context,
    variant: str | None = None,
    gpus: str | None = None,
    workspace: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """A shell in the workspace container if it is up, else in a new one."""
    with _running(json) as reporter:
        from torchdock import container
        from torchdock import engine as engines

        engine = engines.require()
        folder = container.workspace_path(_folder(workspace))
        name = container.workspace_name(container.identity(engine), _state().clone, folder)
        found = container.find_up(engine, name)
        if found is None or found["State"] != "running" or variant or gpus:
            return _attached(reporter, "shell", ["bash"], variant, gpus, workspace, dry_run)
        tty = sys.stdin.isatty() and sys.stdout.isatty() and not json
        if dry_run:
            return _show(reporter, container.exec_argv(name, ["bash"], tty=tty))
        print(f"In {name}, which runs on after this shell.", file=sys.stderr)
        ended = container.execute(engine, name, ["bash"], tty=tty, stdout=2 if json else None)
        reporter.document({"container": name, "exit_code": ended.code})
        raise Exit(code=ended.code)


def _attached(
    reporter: Reporter,
    role: str,
    command: list[str],
    variant: str | None,
    gpus: str | None,
    workspace: str | None,
    dry_run: bool,
) -> None:
    """Launch, wait, and exit with the command's own code. With ``--json`` the command's output goes to stderr."""
    from torchdock import container, sources
    from torchdock import engine as engines

    chosen = _choose(variant, gpus=gpus)
    given = sources.gather()
    engine = engines.require()
    who = container.identity(engine)
    folder = container.check_workspace(_folder(workspace), who)
    tty = sys.stdin.isatty() and sys.stdout.isatty() and not reporter.as_json
    options: dict[str, Any] = {"role": role, "command": command, "tty": tty}
    if dry_run:
        image = _planned_image(engine, chosen, given)
        return _show(reporter, _launch(engine, image, who, given, gpus, folder, **options).argv)
    # A command's stdout is its own: what torchdock has to say while it builds goes to stderr.
    image = _image(type(reporter)(as_json=True), engine, chosen, given).image
    plan = _launch(engine, image, who, given, gpus, folder, **options)
    code = container.attached(engine, plan, stdout=2 if reporter.as_json else None)
    held = [gpu.uuid for gpu in plan.gpus]
    reporter.document({"container": plan.name, "image": image, "gpus": held, "exit_code": code})
    raise Exit(code=code)


@task(
    "variant",
    "gpus",
    "json",
    "dry-run",
    gpu="a GPU is demanded: fails without one, never skips",
    quick="the quick checks alone",
)
def test(
    _: Context,
    gpu: bool = False,
    quick: bool = False,
    variant: str | None = None,
    gpus: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """The validation suite in a container of its own, on this host's device."""
    import tempfile
    import time

    with _running(json) as reporter:
        from torchdock import container, sources
        from torchdock import engine as engines
        from torchdock import gpus as cards
        from torchdock.errors import TorchdockError

        chosen = _choose(variant, gpus=gpus)
        given = sources.gather()
        inventory = cards.gather()
        if gpu and not inventory.gpus:
            raise TorchdockError(
                f"--gpu demands a GPU, and this host has none that can be used: {inventory.reason}. Install or repair "
                "the NVIDIA driver (`invoke doctor` shows what was found), or test on the CPU without --gpu."
            )
        engine = engines.require()
        who = container.identity(engine)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        report = _state().folder / "reports" / stamp
        if not dry_run:
            report = Path(tempfile.mkdtemp(prefix=f"{stamp}-", dir=_state().path("reports", stamp).parent))
        command = ["python", "-m", "torchdock.inside.check", "--json", "--report", "/report"]
        on_gpu = gpu or bool(cards.choose(inventory, gpus))
        command += [*(["--quick"] if quick else []), *(["--gpu"] if on_gpu else [])]
        options: dict[str, Any] = {
            "role": "test",
            "command": command,
            "mounts": container.mount(str(report), "/report"),
        }
        if dry_run:
            image = _planned_image(engine, chosen, given)
            return _show(reporter, _launch(engine, image, who, given, gpus, None, **options).argv)
        image = _image(reporter, engine, chosen, given).image
        plan = _launch(engine, image, who, given, gpus, None, **options)
        with tempfile.TemporaryFile("w+") as output:
            code = container.attached(engine, plan, stdout=output.fileno())
            summary = _read_document(output)
        if (report / "report.xml").is_file():
            reporter.say(f"Report: {report / 'report.xml'}")
        reporter.document({**summary, "report": str(report / "report.xml"), "image": image})
        if code != 0:
            raise Exit(code=code)


@task(
    "json",
    "dry-run",
    images="also the images that this clone built, and your cache volume, which all your clones share",
)
def clean(_: Context, images: bool = False, json: bool = False, dry_run: bool = False) -> None:
    """Remove what torchdock made for this user and clone, and only that."""
    with _running(json) as reporter:
        from torchdock import clean as cleaning
        from torchdock import container
        from torchdock import engine as engines

        engine = engines.require()
        who = container.identity(engine)
        state = _state()
        found = cleaning.gather(engine, state, who, images=images)
        removed: list[str] = []
        kept: list[str] = []
        if not dry_run:
            with state.exclusive(reporter):
                removed, kept = cleaning.remove(engine, state, found)
        for item in found.items if dry_run else removed:
            reporter.say(f"{'Would remove' if dry_run else 'Removed'} {item}")
        for item in kept:
            reporter.say(f"Kept {item}: a container uses it")
        if not found.items:
            reporter.say("Nothing of this user and clone is there; nothing was removed")
        reporter.document({"removed": removed, "kept": kept, "found": list(found.items)})


@task("variant", "json", "dry-run")
def doctor(_: Context, variant: str | None = None, json: bool = False, dry_run: bool = False) -> None:
    """Prove that this host works; findings with remedies."""
    with _running(json) as reporter:
        from torchdock import doctor as examination

        if dry_run:
            return reporter.say(
                "It examines and changes nothing: engine, disk, sources and GPUs, without --dry-run too."
            )
        with reporter.step("Examining this host"):
            findings = examination.examine(_state(), _choose(variant))
        rows = [
            (found.severity, found.subject, found.seen + (f"\n{found.remedy}" if found.remedy else ""))
            for found in findings
        ]
        reporter.table("", ("", "what", "seen"), rows)
        errors = sum(found.severity == "error" for found in findings)
        reporter.say(
            f"{len(findings)} findings, {errors} of them errors" if errors else f"{len(findings)} findings, no error"
        )
        reporter.document({"findings": [vars(found) for found in findings], "errors": errors})
        if errors:
            raise Exit(code=1)


@task("variant", "json", "dry-run", upgrade="move this package (or `all`) to its newest version")
def lock(
    _: Context, variant: str | None = None, upgrade: str | None = None, json: bool = False, dry_run: bool = False
) -> None:
    """Resolve docker/requirements.in anew, write the locks, show the difference."""
    with _running(json) as reporter:
        from torchdock import locks, sources

        chosen = _choose(variant)
        with _state().exclusive(reporter), reporter.step(f"Resolving {chosen.name}"):
            old = locks.read(ROOT, chosen.name)
            new = locks.resolve(ROOT, chosen, sources.gather(), upgrade)
            rows = locks.difference(old, new)
            if not dry_run:
                locks.write(ROOT, chosen, new)
        if rows:
            reporter.table("", ("package", "was", "is"), [(name, was or "-", now or "-") for name, was, now in rows])
        else:
            reporter.say("The locks are up to date; no version moved")
        reporter.document({"variant": chosen.name, "written": not dry_run, "difference": [list(row) for row in rows]})


namespace = Collection(build, up, down, run, shell, test, clean, doctor, lock)
