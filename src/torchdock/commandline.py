"""How the tasks of tasks.py are declared and run: options, words, and each error as one paragraph with its exit code.

Imports only the standard library and invoke, which may be any: what a task needs besides is imported when it runs.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unicodedata import category

from invoke.context import Context
from invoke.exceptions import Exit, ParseError
from invoke.parser import Parser
from invoke.tasks import Task
from invoke.tasks import task as invoke_task

if TYPE_CHECKING:
    from torchdock.console import Reporter

ROOT = Path(__file__).resolve().parents[2]

SHORT_FLAGS = {"workspace": "w", "volume": "v", "env": "e", "publish": "p", "follow": "f", "lines": "n"}
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
    "min-memory": "memory that each GPU has to have left, such as 40GiB",
    "gpu-name": "a part of each GPU's name, such as H200",
    "volume": "SRC:DST or SRC:DST:ro, a folder of the host in the container (repeatable)",
    "env": "NAME=VALUE, or NAME for the value it has here; values of secrets are never printed (repeatable)",
    "env-file": "a file of NAME=VALUE lines (repeatable)",
    "secret": "as --env, for a secret whose name does not tell (repeatable)",
    "publish": "PORT or HOST:CONTAINER, a port of the container on 127.0.0.1 (repeatable)",
    "memory": "how much memory, such as 16g (default: three quarters of the machine's)",
    "cpus": "how many CPUs' time (default: all, shared evenly where they are scarce)",
    "shm-size": "the size of /dev/shm, such as 8g (default: half of the memory)",
    "wait": "wait for GPUs that others have, at most so long, such as 2h (without a time: as long as it takes)",
    "profile": "`debug`: py-spy, gdb and perf work on your own processes",
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


@dataclass(frozen=True)
class Asked:
    """The options of a task that launches, as typed."""

    variant: str | None = None
    devel: bool = False
    gpus: str | None = None
    min_memory: str | None = None
    gpu_name: str | None = None
    workspace: str | None = None
    volume: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)
    env_file: list[str] = field(default_factory=list)
    secret: list[str] = field(default_factory=list)
    publish: list[str] = field(default_factory=list)
    memory: str | None = None
    cpus: str | None = None
    shm_size: str | None = None
    profile: str | None = None
    wait: str | bool | None = None
    json: bool = False
    dry_run: bool = False

    @property
    def anything(self) -> bool:
        """Whether anything is asked of the container itself."""
        return any(getattr(self, name) for name in LAUNCH if name not in ("workspace", "wait", "json", "dry_run"))


LAUNCH = [one.name for one in fields(Asked)]
FLAGS = {one.name for one in fields(Asked) if one.default is False}
REPEATED = [one.name for one in fields(Asked) if one.default_factory is list]


def launching(**more: str) -> Any:
    """``@task`` for a body that launches: it gets the context, all options of a launch as one Asked, and its own."""

    def decorate(body: Callable[..., None]) -> Any:
        own = [*inspect.signature(body).parameters.values()]

        def launch(context: Context, **options: Any) -> None:
            given: dict[str, Any] = {name: options.pop(name) for name in LAUNCH}
            asked = Asked(**given | {name: given[name] or [] for name in REPEATED})
            body(context, asked, **options)

        kind = inspect.Parameter.KEYWORD_ONLY
        common = [inspect.Parameter(name, kind, default=False if name in FLAGS else None) for name in LAUNCH]
        own_last = [parameter.replace(kind=kind) for parameter in own[2:]]
        launch.__signature__ = inspect.Signature([own[0], *common, *own_last])  # type: ignore[attr-defined]
        launch.__name__, launch.__doc__ = body.__name__, body.__doc__
        texts = {name.replace("_", "-"): HELP[name.replace("_", "-")] for name in LAUNCH} | more
        return invoke_task(klass=_Task, auto_shortflags=False, help=texts, iterable=REPEATED, optional=("wait",))(
            launch
        )

    return decorate


# invoke has no positional argument that may be left away: a word after one of these tasks is the value of this option.
WORDS = {"verify": "image", "logs": "name", "attach": "name", "stop": "name"}
WORDS |= {"push": "repository", "pull": "repository", "save": "file", "load": "file"}


def _name_words(self: Parser, argv: list[str]) -> list[str]:
    """``verify IMAGE`` as ``verify --image IMAGE``; an option's value is no task (``tensorboard --logdir logs``)."""
    named: list[str] = []
    flags: dict[str, Any] = {}
    wanted = None
    words = iter(argv)
    for word in words:
        if word in self.contexts:
            flags, wanted = self.contexts[word].flags, WORDS.get(word)
        elif wanted is not None and not word.startswith("-"):
            named.append(f"--{wanted}")
            wanted = None
        named.append(word)
        if word in flags and flags[word].takes_value:
            named += islice(words, 1)
    return named


def _parse_argv(self: Parser, argv: list[str], _original: Any = Parser.parse_argv) -> Any:
    """A mistyped task or option is wrong input: exit code 2 and a suggestion, where invoke itself exits with 1."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    named = [self.contexts[word] for word in words if word in self.contexts]
    flags = named[-1].flags if named else {}
    try:
        if words and words[-1] in flags and flags[words[-1]].takes_value and not flags[words[-1]].optional:
            raise ParseError(f"{words[-1]} needs a value, and none was given.")  # invoke takes an empty list for one
        single = [word for word in words if word in flags and flags[word].kind is not list]
        twice = [word for word in single if single.count(word) > 1]
        if twice and len(named) == 1:
            raise ParseError(f"{twice[0]} is given twice: leave one of them.")
        return _original(self, _name_words(self, argv))
    except ParseError as error:
        words = [word for word in argv if word in str(error)]
        known = list(error.context.flags) if error.context and error.context.name else list(self.contexts)
        close = difflib.get_close_matches(words[0], known, n=1) if words else []
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise Exit(
            f"torchdock: {error}{hint} `invoke --list` shows the tasks, `invoke --help TASK` its options.", code=2
        ) from None


Parser.parse_argv = _parse_argv  # type: ignore[method-assign]


@contextmanager
def task_run(json: bool = False) -> Iterator[Reporter]:
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
    # What stands in somebody's file or in a path reaches no terminal as an escape sequence.
    odd = ("Cc", "Cs")  # control characters, and bytes that are no UTF-8
    plain = "".join(ascii(one)[1:-1] if category(one) in odd and one != "\n" else one for one in text)
    print(f"torchdock: {plain}", file=sys.stderr)
    raise Exit(code=code)


def _use_venv() -> None:
    """Go on in ``.venv``, whichever invoke was typed: the tools are there, locked."""
    venv = ROOT / ".venv"
    if Path(sys.prefix) == venv:
        return
    if not (venv / "torchdock.host").is_file():
        _fail("The host-side tools are not installed in this clone yet: run `make up` (or `make venv`) first.", 2)
    python = str(venv / "bin" / "python")
    os.execv(python, [python, "-m", "invoke", *sys.argv[1:]])
