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
    from torchdock.choice import Choice
    from torchdock.console import Reporter
    from torchdock.container import Identity, LaunchPlan
    from torchdock.engine import Engine
    from torchdock.gpus import Gpu
    from torchdock.image import BuildPlan, Built, Wishes
    from torchdock.sources import Sources
    from torchdock.state import CloneState
    from torchdock.variants import Variant

ROOT = Path(__file__).resolve().parent
QUICK_SECONDS = 45  # the quick checks after `up` take at most this long

# --- how tasks are declared -------------------------------------------------------------------------------------------

SHORT_FLAGS = {"workspace": "w"}
HELP = {
    "cuda": "a CUDA variant is demanded: the one for this host's driver and GPUs, else the newest",
    "cpu": "the CPU variant is demanded",
    "variant": "a variant by name (docker/variants.toml; default: the one for this host)",
    "devel": "with nvcc and CUDA's headers, for extensions (target `devel`)",
    "locked": "refuse every fallback",
    "offline": "contact no source: build from what is cached, or say what is missing",
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


def task(*names: str, optional: tuple[str, ...] = (), **more: str) -> Any:
    """``@task`` with the shared help texts of the named options; those in ``optional`` need no value."""
    texts = {name: HELP[name] for name in names} | {key.replace("_", "-"): text for key, text in more.items()}
    return invoke_task(klass=_Task, auto_shortflags=False, help=texts, optional=optional)


# invoke has no positional argument that may be left away: a word after one of these tasks is the value of this option.
WORDS = {"verify": "image"}


def _name_words(self: Parser, argv: list[str]) -> list[str]:
    """``verify IMAGE`` as ``verify --image IMAGE``."""
    for name in WORDS.keys() & set(self.contexts) & set(argv):
        flags = self.contexts[name].flags
        index = argv.index(name) + 1
        while index < len(argv) and argv[index].startswith("-"):
            index += 2 if argv[index] in flags and flags[argv[index]].takes_value else 1
        if index < len(argv) and argv[index] not in self.contexts:
            return [*argv[:index], f"--{WORDS[name]}", *argv[index:]]
    return argv


def _parse_argv(self: Parser, argv: list[str], _original: Any = Parser.parse_argv) -> Any:
    """A mistyped task or option is wrong input: exit code 2 and a suggestion, where invoke itself exits with 1."""
    try:
        return _original(self, _name_words(self, argv))
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


def _image(reporter: Reporter, engine: Engine, choice: Choice, sources: Sources, wishes: Wishes | None = None) -> Built:
    from torchdock import image

    state, variant = _state(), choice.variant
    wishes = wishes or image.Wishes()
    for warning in image.check(ROOT, variant, engine.architecture, sources, wishes):
        reporter.fallback(warning)
    candidates = image.plans(ROOT, variant, engine, sources, wishes)
    found = None if wishes.no_cache else image.find(engine, image.acceptable(candidates, wishes))
    if found is not None:
        return found
    with state.exclusive(reporter):
        built = image.ensure(engine, state, variant, sources, reporter, wishes, second_best=choice.fallbacks)
    if built.built:
        reporter.good(f"Built {built.image} in {built.seconds:.0f} s")
    return built


def _refresh_debian(
    reporter: Reporter, given: Sources, *, upgrade: bool, dry_run: bool
) -> tuple[dict[Path, str | None], list[Any]]:
    """Resolve the Debian packages in a container of the base; writes no lock. A dry run takes a base that is there."""
    from torchdock import base as bases
    from torchdock import debian, variants
    from torchdock import engine as engines

    engine = engines.require()
    base = variants.get(ROOT, None).base
    choices = bases.choices(ROOT, base, engine.architecture, given)
    if not dry_run:
        chosen = bases.obtain(engine, ROOT, base, choices, given, reporter)
    elif there := [choice for choice in choices if engine.image(choice.reference) is not None]:
        chosen = there[0]
    else:
        reporter.say("The Debian packages would be resolved in a container of the base, which is not here yet")
        return {}, []
    with reporter.step("Resolving Debian packages"):
        return debian.refresh(engine, ROOT, chosen.reference, base.suite, given, upgrade=upgrade)


@lru_cache
def _state() -> CloneState:
    from torchdock.state import CloneState

    return CloneState(ROOT)


def _wish(
    variant: str | None,
    *,
    cuda: bool = False,
    cpu: bool = False,
    devel: bool = False,
    gpus: str | None = None,
    workspace: str | None = None,
) -> dict[str, Any]:
    """What was asked for and what this host is: the arguments of a choice. Reaches out to nobody.

    Wrong input is refused here, before anything is installed or built.
    """
    from torchdock import choice, container, host, variants
    from torchdock.errors import InputError

    contradicting = (
        "--cuda" if cuda else "--devel" if devel else f"--variant {variant}" if variant not in (None, "cpu") else ""
    )
    if cpu and contradicting:
        raise InputError(f"--cpu and {contradicting} contradict each other: leave one of them.")
    facts = host.gather(gpus, container.workspace_path(_folder(workspace)))
    wish = {"host": facts, "variants": variants.read(ROOT), "wanted": "cpu" if cpu else variant}
    wish["cuda"] = cuda or devel  # the compiler of `devel` is CUDA's
    choice.choose(**wish)
    return wish


def _choose(
    wish: dict[str, Any],
    sources: Sources,
    engine: Engine | None,
    wishes: Wishes | None = None,
    *,
    thrifty: bool = False,
) -> Choice:
    """The variant for this host. Its wheel index is asked only where the choice depends on it and no image is there.

    ``thrifty``: the image of the second best will do as well.
    """
    from torchdock import choice, devel, image
    from torchdock import sources as origins
    from torchdock.variants import torch_index

    wanted = wishes or image.Wishes()

    def reaches(variant: Variant) -> str:
        if wanted.offline:
            return "--offline asks no source"
        answer = origins.probe_torch_index(sources, torch_index(ROOT), variant.index)
        return "" if answer.ok else answer.why

    def built(variant: Variant) -> bool:
        if engine is None or wanted.no_cache:
            return False
        return image.find(engine, image.plans(ROOT, variant, engine, sources, wanted)) is not None

    chosen = choice.decide(**wish, reaches=reaches, built=built, thrifty=thrifty)
    if wanted.target == image.DEVEL:
        devel.check(ROOT, chosen.variant, wish["host"].architecture)
    return chosen


def _tell(reporter: Reporter, choice: Choice, *, reason: bool = True) -> None:
    """Say what was chosen, why, and what a person must know about it."""
    if reason:
        reporter.say(f"{choice.variant.name}: {choice.reason}")
    for text in choice.fallbacks:
        reporter.fallback(text)
    for text in choice.notes:
        reporter.say(text)


def _told(choice: Choice) -> dict[str, Any]:
    """A choice as a part of a task's JSON document."""
    return {"variant": choice.variant.name, "reason": choice.reason, "warnings": list(choice.warnings)}


def _pick_gpus(choice: Choice, gpus: str | None) -> tuple[Gpu, ...]:
    """The GPUs for one launch of this variant, as they are free now."""
    from torchdock import gpus as cards

    return cards.choose(cards.gather(), gpus, unserved=choice.unserved, why=choice.refusal)


def _launch(
    engine: Engine,
    image: str,
    who: Identity,
    sources: Sources,
    gpus: tuple[Gpu, ...],
    workspace: Path | None,
    **more: Any,
) -> LaunchPlan:
    from torchdock import container
    from torchdock import gpus as cards

    handed = cards.arguments(gpus, cards.cdi_devices() if engine.cdi else "")
    options = {"gpus": gpus, "gpu_arguments": handed, "workspace": workspace, "clone": _state().clone, **more}
    return container.plan(engine, image, who, sources, **options)


def _up_plan(
    engine: Engine, image: str, who: Identity, sources: Sources, choice: Choice, gpus: str | None, workspace: Path
) -> LaunchPlan:
    """The workspace container. Where no GPUs are asked for, one that is there keeps those it was launched with."""
    from torchdock import container

    name = container.workspace_name(who, _state().clone, workspace)
    if gpus is None:
        gpus = container.held_gpus(engine, name)
        if gpus is not None and set(gpus.split(",")) & set(choice.unserved):  # launched with another variant
            gpus = None
    command = ["sleep", "infinity"]
    chosen = _pick_gpus(choice, gpus)
    return _launch(engine, image, who, sources, chosen, workspace, role="up", name=name, command=command)


def _folder(workspace: str | None) -> Path:
    """The folder of ``-w``; this clone without it. An empty name is a variable that was not set, never a folder."""
    from torchdock.errors import InputError

    if workspace == "":
        raise InputError("-w was given an empty name (a variable that is not set?). Name a folder, or leave -w away.")
    return ROOT if workspace is None else Path(workspace)


def _wishes(devel: bool, **more: bool) -> Wishes:
    """How the image is wanted."""
    from torchdock import image

    return image.Wishes(image.DEVEL if devel else image.ENVIRONMENT, **more)


def _planned_image(engine: Engine, choice: Choice, sources: Sources, wishes: Wishes) -> str:
    """The name of the image for ``--dry-run``: the one that is there, else the one that would be built."""
    from torchdock import image

    candidates = image.plans(ROOT, choice.variant, engine, sources, wishes)
    found = image.find(engine, candidates)
    return found.image if found else _likely(engine, choice, sources, wishes).tag


def _likely(engine: Engine, choice: Choice, sources: Sources, wishes: Wishes) -> BuildPlan:
    """The build on the base that is there; on the pinned one where none is."""
    from torchdock import image

    plans = image.plans(ROOT, choice.variant, engine, sources, wishes)
    return next((plan for plan in plans if engine.image(plan.base.reference)), plans[0])


def _show(reporter: Reporter, argv: tuple[str, ...], **more: Any) -> None:
    import shlex

    if not reporter.as_json:
        print(shlex.join(argv))
    reporter.document({"dry_run": True, "argv": list(argv), **more})


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


@task("cuda", "cpu", "variant", "devel", "locked", "offline", "no-cache", "json", "dry-run")
def build(
    _: Context,
    cuda: bool = False,
    cpu: bool = False,
    variant: str | None = None,
    devel: bool = False,
    locked: bool = False,
    offline: bool = False,
    no_cache: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Build the image for this host, or find the one that is there."""
    with _running(json) as reporter:
        from torchdock import engine as engines
        from torchdock import image, provision, sources
        from torchdock.errors import InputError, TorchdockError

        if offline and no_cache:
            raise InputError("--offline and --no-cache contradict each other: what is not cached would be downloaded.")
        wish = _wish(variant, cuda=cuda, cpu=cpu, devel=devel)
        given = sources.gather()
        # --offline contacts nobody: not for an engine either.
        engine = engines.require() if offline else provision.ensure(reporter, dry_run=dry_run)
        if engine is None:
            return reporter.document({"dry_run": True, "argv": []})
        wishes = _wishes(devel, no_cache=no_cache, locked=locked, offline=offline)
        choice = _choose(wish, given, engine, wishes, thrifty=offline and not locked)
        chosen = choice.variant
        # With --dry-run stdout is the command alone.
        _tell(reporter.aside if dry_run else reporter, choice)
        if locked and choice.fallbacks:
            raise TorchdockError(
                f"--locked refuses a fallback, and {choice.fallbacks[0]}. Mend that, or name the variant: "
                f"--variant {chosen.name}."
            )
        if dry_run:
            image.check(ROOT, chosen, engine.architecture, given, wishes)
            return _show(reporter, _likely(engine, choice, given, wishes).argv, **_told(choice))
        built = _image(reporter, engine, choice, given, wishes)
        if not built.built:
            reporter.say(f"{built.image} is there already; nothing to build")
        reporter.document({**built.document(), **_told(choice)})


@task("variant", "devel", "gpus", "workspace", "json", "dry-run")
def up(
    _: Context,
    variant: str | None = None,
    devel: bool = False,
    gpus: str | None = None,
    workspace: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Everything from nothing: engine, image, workspace container, quick checks."""
    with _running(json) as reporter:
        from torchdock import container, provision, sources
        from torchdock.errors import TorchdockError

        wish = _wish(variant, devel=devel, gpus=gpus, workspace=workspace)
        wishes = _wishes(devel)
        given = sources.gather()
        folder = _folder(workspace)
        if not os.path.isdir(folder):  # said before an engine is installed, with the identity that a launch will have
            container.check_workspace(folder, container.Identity(os.getuid(), os.getgid(), (), str(os.getuid())))
        if dry_run:
            engine = provision.ensure(reporter, dry_run=True)
            if engine is None:
                return reporter.document({"dry_run": True, "argv": []})
            who = container.identity(engine)
            choice = _choose(wish, given, engine, wishes)
            _tell(reporter.aside, choice)  # stdout is the command alone
            image = _planned_image(engine, choice, given, wishes)
            planned = _up_plan(engine, image, who, given, choice, gpus, container.check_workspace(folder, who))
            return _show(reporter, planned.argv, **_told(choice))
        with _state().exclusive(reporter):  # the second of two `make up` finds everything done, and checks it
            engine = provision.ensure(reporter)
            assert engine is not None
            who = container.identity(engine)
            folder = container.check_workspace(folder, who)
            choice = _choose(wish, given, engine, wishes)
            _tell(reporter, choice)
            built = _image(reporter, engine, choice, given, wishes)
            for fallback in built.fallbacks if not built.built else []:
                reporter.fallback(fallback)
            plan = _up_plan(engine, built.image, who, given, choice, gpus, folder)
            name, launched = container.up(engine, plan)
            verb = "Launched" if launched else "Running already:"
            reporter.say(f"{verb} {name} ({built.image}), {folder} at /workspace")
            reporter.say("Quick checks ...")
            command = ["timeout", "--signal=INT", "--kill-after=5", str(QUICK_SECONDS)]
            command += ["python", "-m", "torchdock.inside.check", "--quick", "--json"]
            code, summary = _checks(engine, name, command)
        held = [gpu.uuid for gpu in plan.gpus]
        document = {"container": name, "launched": launched, "gpus": held, **built.document(), **_told(choice)}
        document["checks"] = summary
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


@task("variant", "devel", "gpus", "workspace", "json", "dry-run")
def run(
    _: Context,
    variant: str | None = None,
    devel: bool = False,
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
        _attached(reporter, "run", command, variant, devel, gpus, workspace, dry_run)


@task("variant", "devel", "gpus", "workspace", "json", "dry-run")
def shell(
    _: Context,
    variant: str | None = None,
    devel: bool = False,
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
        if found is None or found["State"] != "running" or variant or devel or gpus:
            return _attached(reporter, "shell", ["bash"], variant, devel, gpus, workspace, dry_run)
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
    devel: bool,
    gpus: str | None,
    workspace: str | None,
    dry_run: bool,
) -> None:
    """Launch, wait, and exit with the command's own code. With ``--json`` the command's output goes to stderr."""
    from torchdock import container, sources
    from torchdock import engine as engines

    wish = _wish(variant, devel=devel, gpus=gpus, workspace=workspace)
    wishes = _wishes(devel)
    given = sources.gather()
    engine = engines.require()
    who = container.identity(engine)
    folder = container.check_workspace(_folder(workspace), who)
    tty = sys.stdin.isatty() and sys.stdout.isatty() and not reporter.as_json
    options: dict[str, Any] = {"role": role, "command": command, "tty": tty}
    choice = _choose(wish, given, engine, wishes, thrifty=True)
    # A command's stdout is its own: what torchdock has to say goes to stderr.
    aside = reporter.aside
    _tell(aside, choice, reason=False)
    if dry_run:
        image = _planned_image(engine, choice, given, wishes)
        return _show(reporter, _launch(engine, image, who, given, _pick_gpus(choice, gpus), folder, **options).argv)
    image = _image(aside, engine, choice, given, wishes).image
    plan = _launch(engine, image, who, given, _pick_gpus(choice, gpus), folder, **options)
    code = container.attached(engine, plan, stdout=2 if reporter.as_json else None)
    held = [gpu.uuid for gpu in plan.gpus]
    reporter.document({"container": plan.name, "image": image, "gpus": held, "exit_code": code})
    raise Exit(code=code)


@task(
    "variant",
    "devel",
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
    devel: bool = False,
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

        wish = _wish(variant, cuda=gpu, devel=devel, gpus=gpus)
        wishes = _wishes(devel)
        given = sources.gather()
        inventory = cards.gather()
        if gpu and not inventory.gpus:
            raise TorchdockError(
                f"--gpu demands a GPU, and this host has none that can be used: {inventory.reason}. Install or repair "
                "the NVIDIA driver (`invoke doctor` shows what was found), or test on the CPU without --gpu."
            )
        engine = engines.require()
        choice = _choose(wish, given, engine, wishes, thrifty=True)
        _tell(reporter.aside if dry_run else reporter, choice, reason=False)
        chosen = _pick_gpus(choice, gpus)
        if gpu and gpus is None and not chosen:
            raise TorchdockError(f"--gpu demands a GPU, and {choice.refusal}")
        who = container.identity(engine)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        report = _state().folder / "reports" / stamp
        if not dry_run:
            report = Path(tempfile.mkdtemp(prefix=f"{stamp}-", dir=_state().path("reports", stamp).parent))
        command = ["python", "-m", "torchdock.inside.check", "--json", "--report", "/report"]
        flags = {"--quick": quick, "--gpu": gpu or bool(chosen), "--devel": devel}
        command += [flag for flag, wanted in flags.items() if wanted]
        options: dict[str, Any] = {
            "role": "test",
            "command": command,
            "mounts": container.mount(str(report), "/report"),
        }
        if dry_run:
            image = _planned_image(engine, choice, given, wishes)
            return _show(reporter, _launch(engine, image, who, given, chosen, None, **options).argv)
        image = _image(reporter, engine, choice, given, wishes).image
        plan = _launch(engine, image, who, given, chosen, None, **options)
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
        from torchdock import sources

        wish = _wish(variant)
        if dry_run:
            return reporter.say(
                "It examines and changes nothing: engine, disk, sources and GPUs, without --dry-run too."
            )
        with reporter.step("Examining this host"):
            try:
                given = sources.gather()
            except sources.SourceError:  # which is a finding
                given = sources.Sources(None, ())
            choice = _choose(wish, given, None)
            findings = examination.examine(_state(), choice.variant)
        _tell(reporter, choice)
        rows = [
            (found.severity, found.subject, found.seen + (f"\n{found.remedy}" if found.remedy else ""))
            for found in findings
        ]
        reporter.table("", ("", "what", "seen"), rows)
        errors = sum(found.severity == "error" for found in findings)
        reporter.say(
            f"{len(findings)} findings, {errors} of them errors" if errors else f"{len(findings)} findings, no error"
        )
        document = {"findings": [vars(found) for found in findings], "errors": errors, **_told(choice)}
        reporter.document(document)
        if errors:
            raise Exit(code=1)


@task(
    "json",
    "dry-run",
    optional=("upgrade",),
    variant="this variant alone (default: every one whose index can be reached)",
    upgrade="move this package to its newest version (`debian`: Debian's packages); without a name, all of them",
)
def lock(
    _: Context, variant: str | None = None, upgrade: str | None = None, json: bool = False, dry_run: bool = False
) -> None:
    """Resolve what is asked for anew, write the locks, show the difference.

    Python packages from docker/requirements.in; Debian's from docker/layers/packages.txt, where that file was changed.
    """
    from contextlib import nullcontext

    with _running(json) as reporter:
        from torchdock import debian, locks, resolver, sources, variants
        from torchdock.errors import InputError

        given = sources.gather()
        if upgrade == "debian" and variant is not None:
            raise InputError("--upgrade debian moves the packages that all variants share: leave --variant away.")
        moves = upgrade in (True, "debian")
        stale = debian.is_older(ROOT, variants.get(ROOT, None).base.suite)
        with nullcontext() if dry_run else _state().exclusive(reporter):
            found = resolver.Refreshed()
            if upgrade != "debian":
                found = resolver.refresh(ROOT, given, reporter, variant=variant, upgrade=upgrade)
            if variant is None and (moves or stale):
                files, rows = _refresh_debian(reporter, given, upgrade=moves, dry_run=dry_run)
                found.files.update(files)
                found.differences["Debian"] = rows
            elif stale:
                reporter.say(
                    "The lock of Debian packages is out of date too: `invoke lock` without --variant writes it"
                )
            if not dry_run:
                locks.replace(found.files)
        for name, rows in found.differences.items():
            if rows:
                cells = [(one, was or "-", now or "-") for one, was, now in rows]
                reporter.table(name, ("package", "was", "is"), cells)
            else:
                reporter.say(f"{name}: no version moved")
        changed = [str(path.relative_to(ROOT)) for path in found.files]
        reporter.say(f"{'Would write' if dry_run else 'Wrote'} {', '.join(changed) or 'nothing'}")
        reporter.document(
            {
                "dry_run": dry_run,
                "files": changed,
                "variants": {name: [list(row) for row in rows] for name, rows in found.differences.items()},
                "left": found.left,
            }
        )


@task(
    "variant",
    "json",
    "dry-run",
    image="check this image, which somebody else built, against this clone's lock; also `invoke verify IMAGE`",
    base="make the base from Debian packages again instead, and compare that",
)
def verify(
    _: Context,
    image: str | None = None,
    variant: str | None = None,
    base: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Build again from nothing and compare to the bit; or check an image: invoke verify IMAGE"""
    with _running(json) as reporter:
        from torchdock import engine as engines
        from torchdock import sources
        from torchdock import verify as verifying
        from torchdock.errors import InputError

        if image is None and "--" in sys.argv:
            image = next(iter(sys.argv[sys.argv.index("--") + 1 :]), None)
        if base and image is not None:
            raise InputError(f"--base is about the base of this host, and {image} has its own: leave one of them.")
        wish = _wish(variant) if image is None else {}
        given = sources.gather()
        engine = engines.require()
        # With --dry-run stdout is the command alone.
        aside = reporter.aside if dry_run else reporter
        if image is not None:
            chosen = verifying.variant_of(engine, ROOT, image, variant)
        else:
            choice = _choose(wish, given, engine, thrifty=True)
            _tell(aside, choice, reason=False)
            chosen = choice.variant
        if base:
            plan = verifying.plan_base(engine, _state(), chosen, given)
        else:
            plan = verifying.plan(engine, _state(), chosen, given, other=image or "")
        if dry_run:
            aside.say(plan.words)
            return _show(reporter, plan.argv) if plan.argv else reporter.document({"dry_run": True, "argv": []})
        comparison = verifying.run(engine, _state(), plan, given, reporter)
        reporter.document({"variant": chosen.name, **comparison.document()})
        if not comparison.equal:
            raise Exit(code=1)


namespace = Collection(build, up, down, run, shell, test, clean, doctor, lock, verify)
