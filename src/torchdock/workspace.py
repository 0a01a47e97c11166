"""``torchdock.toml``: what a workspace asks of torchdock, read strictly, so that no word in it is passed over."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdock.errors import InputError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "torchdock.toml"
# Every key that there is: its type, and an example for the person who got it wrong.
KEYS: dict[str, tuple[type, str]] = {
    "variant": (str, 'variant = "cu130"'),
}


@dataclass(frozen=True)
class WorkspaceConfig:
    """What the file of one workspace says.

    Attributes:
        path: the file; None where the workspace has none.
        variant: the pinned variant, or None. Numbers move with the version, so no other one is taken then.
    """

    path: Path | None = None
    variant: str | None = None


def read(folder: Path) -> WorkspaceConfig:
    """The ``torchdock.toml`` of this folder; an empty config where there is none.

    Raises:
        InputError: it cannot be read, is no TOML, or has an unknown key or a value of the wrong type; names the file,
            the line and the mistake.
    """
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return WorkspaceConfig()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"{path} cannot be read ({why}). Mend it or remove it, then run it again.") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # its text ends with "(at line 3, column 7)"
        raise InputError(f"{path} is not valid TOML: {error}. Mend that line, then run it again.") from None
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
        if type(value) is not wanted:
            raise InputError(f"{where}: {key} is {_kind(value)}. Write it like this: {example}")
    return WorkspaceConfig(path=path, **values)


def _line(text: str, key: str) -> int:
    """The line that a top-level key is written on, or the table of that name begins on; 1 where it is not found."""
    start = re.compile(rf"""\s*\[{{0,2}}\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), start=1) if start.match(line)), 1)


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or a time")
