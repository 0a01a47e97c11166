"""``torchdock.toml``: what a workspace asks of torchdock, read strictly, so that no word in it is passed over."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from torchdock import launch, selection
from torchdock.errors import InputError, did_you_mean
from torchdock.launch import Wishes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "torchdock.toml"
# Every key that there is: its types, and an example for the person who got it wrong. An entry of a list is what the
# option of that name takes.
KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "variant": ((str,), 'variant = "cu130"'),
    "mounts": ((list,), 'mounts = ["/data/imagenet:/data:ro"]'),
    "environment": ((list,), 'environment = ["WANDB_MODE=offline", "WANDB_API_KEY"]'),
    "env_files": ((list,), 'env_files = [".env"]'),
    "secrets": ((list,), 'secrets = ["MY_SERVICE_*"]'),
    "ports": ((list,), 'ports = ["8000"]'),
    "memory": ((str,), 'memory = "16g"'),
    "cpus": ((int, float), "cpus = 4"),
    "gpus": ((int, str), "gpus = 2"),
    "min_memory": ((str,), 'min_memory = "40GiB"'),
    "gpu_name": ((str,), 'gpu_name = "H200"'),
    "shm_size": ((str,), 'shm_size = "8g"'),
    "packages": ((list,), 'packages = ["einops>=0.8", "timm"]'),
    "requirements": ((str,), 'requirements = "requirements.in"'),
}
Read = TypeVar("Read")


@dataclass(frozen=True)
class WorkspaceConfig:
    """What the file of one workspace says, its types checked.

    Attributes:
        path: the file; None where the workspace has none.
        values: what stands there, by key.
        text: the file's text, where line numbers come from.
    """

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    text: str = field(default="", repr=False)

    @property
    def variant(self) -> str | None:
        """The pinned variant, or None. Numbers move with the version, so no other one is taken then."""
        return self.values.get("variant")

    def wishes(self, env: Mapping[str, str]) -> Wishes:
        """What launches of this workspace are given unless the command line says otherwise.

        A variable that is named without a value and is not in ``env`` is passed over: it is a colleague's.

        Raises:
            InputError: an entry is wrong; names the file, its line and the mistake.
        """
        if self.path is None:
            return launch.NOTHING
        folder, values = self.path.parent, self.values
        patterns = [str(pattern) for pattern in values.get("secrets", ())]
        named = [
            one for one in values.get("environment", ()) if "=" in one or not launch.NAME.fullmatch(one) or one in env
        ]
        variables = [
            self._entry("environment", one, lambda text: launch.variable(text, env, patterns=patterns)) for one in named
        ]
        wishes = Wishes(
            mounts=tuple(
                self._entry("mounts", one, lambda text: launch.mount(text, folder)) for one in values.get("mounts", ())
            ),
            variables=tuple(variables),
            files=tuple(
                self._entry("env_files", one, lambda text: launch.env_file(text, folder))
                for one in values.get("env_files", ())
            ),
            ports=tuple(self._entry("ports", one, launch.port) for one in values.get("ports", ())),
            memory=self._single("memory", lambda text: launch.size(text, "--memory")),
            cpus=self._single("cpus", launch.cpus),
            shm=self._single("shm_size", lambda text: launch.size(text, "--shm-size")),
        )
        for option, what in launch.duplicates(wishes):
            key = {"-v": "mounts", "-e": "environment", "-p": "ports"}[option]
            raise InputError(f"{self.path}, line {_line(self.text, key)}: {key} gives {what} twice: leave one of them.")
        return wishes

    @property
    def gpus(self) -> selection.Wish:
        """Which GPUs launches of this workspace get unless the command line says otherwise.

        Raises:
            InputError: an entry is wrong; names the file, its line and the mistake.
        """
        return selection.Wish(
            self._single("gpus", selection.word),
            self._single("min_memory", lambda text: selection.wish(min_memory=text).memory),
            self._single("gpu_name", lambda text: selection.wish(gpu_name=text).name) or "",
        )

    def packages(self) -> list[Requirement]:
        """What the image of this workspace has besides the environment: ``packages``, and the lines of the file that
        ``requirements`` names. A file of requirements counts only where it is named: many projects have one lying
        about.

        Raises:
            InputError: an entry is no package of an index, or the file cannot be read; names the file, the line and the
                mistake.
        """
        found = [self._entry("packages", one, requirement) for one in self.values.get("packages", ())]
        named = self.values.get("requirements")
        if named is None or self.path is None:
            return found
        path = self.path.parent / named
        try:
            lines = launch.read_file(path).decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or "it is no text"
            raise InputError(
                f"{self.path}, line {_line(self.text, 'requirements')}: {path} cannot be read ({why}). Name a file "
                "beside torchdock.toml with one package a line, or take the key out."
            ) from None
        for number, raw in enumerate(lines, 1):
            line = re.sub(r"(^|\s)#.*", "", raw).strip()
            if line:
                try:
                    found.append(requirement(line))
                except InputError as error:
                    raise InputError(f"{path}, line {number}: {error}") from None
        return found

    def _single(self, key: str, reader: Callable[[str], Read]) -> Read | None:
        return self._entry(key, str(self.values[key]), reader) if key in self.values else None

    def _entry(self, key: str, entry: str, reader: Callable[[str], Read]) -> Read:
        try:
            return reader(entry)
        except InputError as error:
            raise InputError(f"{self.path}, line {_line(self.text, key, entry)}: {error}") from None


def requirement(text: str) -> Requirement:
    """A package as a workspace may ask for it: by name, from an index, in a version that a lock can hold. Pure.

    Raises:
        InputError: it is something else; the text says what, and shows no URL, which may carry a token.
    """
    entry = text.strip()
    name = re.match(r"-*[\w.-]*", entry)
    word = name[0] if name and name[0] else entry[:1]
    try:
        found = Requirement(entry)
    except InvalidRequirement as error:
        if entry.startswith("-"):
            problem = "is an option of pip's; indexes are named in the environment (UV_DEFAULT_INDEX), files one by one"
        elif "://" in entry or re.match(r"[.~/]", entry):
            problem = "is an address or a path, which no lock by hash of an index can hold"
        else:
            problem = f"is no package ({str(error).splitlines()[0]})"
        raise InputError(f"{word!r} {problem}. {_ASK}") from None
    if found.url or re.search(r"\.(whl|zip|tar\.\w+)$", found.name):
        raise InputError(f"{word!r} names an address or a file, which no lock by hash of an index can hold. {_ASK}")
    own = canonicalize_name(found.name)
    if own in _VARIANTS or (own.startswith("nvidia-") and own != "nvidia-ml-py"):
        raise InputError(
            f"{found.name} belongs to the variant, which has it with its CUDA: take it out of the list. Another one is "
            'another variant: `variant = "cu130"` in torchdock.toml.'
        )
    return found


_VARIANTS = ("torch", "torchvision", "triton")
_ASK = (
    "Ask for packages by name, and versions if it matters, such as `einops>=0.8`; a project of yours is installed in "
    "the container of `up`: pip install -e ."
)


def read(folder: Path) -> WorkspaceConfig:
    """The ``torchdock.toml`` of this folder; an empty config where there is none.

    Raises:
        InputError: it cannot be read, is no TOML, or has an unknown key or a value of the wrong type; names the file,
            the line and the mistake.
    """
    path = folder / FILE
    try:
        text = launch.read_file(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not path.is_symlink():
            return WorkspaceConfig()
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        if isinstance(error, FileNotFoundError):
            why = f"it is a link to {os.readlink(path)}, which is not there"
        raise InputError(f"{path} cannot be read ({why}). Mend it or remove it, then run it again.") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # its text ends with "(at line 3, column 7)"
        raise InputError(f"{path} is not valid TOML: {error}. Mend that line, then run it again.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{path} is not valid TOML: {error}. Mend it, then run it again.") from None
    return parse(values, text, path)


def parse(values: dict[str, Any], text: str, path: Path) -> WorkspaceConfig:
    """Check the keys of a file against :data:`KEYS`. ``text`` is where line numbers come from. Pure.

    Raises:
        InputError: see :func:`read`.
    """
    for key, value in values.items():
        where = f"{path}, line {_line(text, key)}"
        if key not in KEYS:
            known = ", ".join(sorted(KEYS))
            raise InputError(f"{where}: there is no key {key!r}.{did_you_mean(key, list(KEYS))} Keys: {known}.")
        wanted, example = KEYS[key]
        if type(value) not in wanted:
            raise InputError(f"{where}: {key} is {_kind(value)}. Write it like this: {example}")
        wrong = [entry for entry in value if not isinstance(entry, str)] if isinstance(value, list) else []
        if wrong:
            raise InputError(f"{where}: {key} has an entry that is {_kind(wrong[0])}. Write it like this: {example}")
        if key == "variant" and not value.isprintable():
            raise InputError(f"{where}: {key} has a control character. Write it like this: {example}")
    return WorkspaceConfig(path, values, text)


def _line(text: str, key: str, entry: str = "") -> int:
    """The line that a top-level key, or this entry of it, is written on, or the table of that name begins on.

    1 where it is not found.
    """
    start = re.compile(rf"""\s*\[{{0,2}}\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines, start=1) if start.match(line)), 1)
    return next(
        (number for number, line in enumerate(lines[first - 1 :], start=first) if entry and entry in line), first
    )


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or a time")
