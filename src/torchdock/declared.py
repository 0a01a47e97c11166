"""What a workspace's own files say it needs, compared with what the environment has: a hint, never an error.

Read on the host, so that it costs milliseconds: requirements by name and version. What an extra of a package needs
stands in that package alone, and is not known here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from torchdock import launch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = "pyproject.toml"
FILES = ("requirements.txt", "requirements.in")
LARGEST = 1 << 20  # bytes; no list of requirements that a person wrote is larger
SHOWN = 4  # so many by name: it is one line


@dataclass(frozen=True)
class Declared:
    """What a workspace declares.

    Attributes:
        requirements: each with the name of the file that declares it.
        damaged: what could not be read, a phrase a file.
    """

    requirements: tuple[tuple[Requirement, str], ...] = ()
    damaged: tuple[str, ...] = ()


def gather(folder: Path) -> Declared:
    """What ``pyproject.toml`` (its project's dependencies), ``requirements.txt`` and ``requirements.in`` declare.

    Lines that name no package by name and version (options, paths, addresses) are passed over, as are dynamic
    dependencies: only pip can tell what they are.
    """
    found: list[tuple[Requirement, str]] = []
    damaged: list[str] = []
    try:
        text = _text(folder / PROJECT)
        found += [(one, PROJECT) for one in _of_project(tomllib.loads(text) if text else {})]
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError among them
        damaged.append(f"{PROJECT} cannot be read ({_why(error)})")
    for name in FILES:
        try:
            found += [(one, name) for one in _of_list(folder / name, set())]
        except (OSError, ValueError, RecursionError) as error:
            damaged.append(f"{name} cannot be read ({_why(error)})")
    return Declared(tuple(found), tuple(damaged))


def _text(path: Path) -> str:
    """The text of an ordinary file, empty where there is none."""
    if not path.is_file():
        return ""
    return launch.read_file(path, LARGEST).decode("utf-8").replace("\r\n", "\n")


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def _of_project(values: Mapping[str, Any]) -> Iterator[Requirement]:
    project = values.get("project")
    entries = project.get("dependencies") if isinstance(project, dict) else None
    own = canonicalize_name(str(project.get("name", ""))) if isinstance(project, dict) else ""
    for entry in entries if isinstance(entries, list) else []:
        requirement = _requirement(entry) if isinstance(entry, str) else None
        if requirement is not None and canonicalize_name(requirement.name) != own:  # its own extras
            yield requirement


def _of_list(path: Path, seen: set[Path]) -> Iterator[Requirement]:
    """The requirements of a file in pip's format, and of those that it includes."""
    seen.add(Path(os.path.realpath(path)))  # resolve() does not bear a link to itself
    text = re.sub(r"\\\n", " ", _text(path))
    for raw in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        included = re.match(r"(?:-r|--requirement)[\s=]*(\S.*)", line)
        if included:
            other = path.parent / included[1]
            if Path(os.path.realpath(other)) not in seen:
                yield from _of_list(other, seen)
            continue
        requirement = _requirement(re.sub(r"\s--\w.*", "", line))  # hashes and other options of that line
        if requirement is not None:
            yield requirement


def _requirement(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def unmet(declared: Declared, there: Mapping[str, str], *, python: str, machine: str) -> dict[str, list[str]]:
    """What is declared and not there, as ``numpy<2 (2.5.5 is there)``, by the file that declares it. Pure.

    ``there`` is version by name, each name as PEP 503 normalises it. ``python`` is the environment's (``3.13``),
    ``machine`` as ``uname -m`` names it: what markers ask for.
    """
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    found: dict[str, list[str]] = {}
    told: set[str] = set()
    for requirement, file in declared.requirements:
        try:
            if requirement.marker is not None and not requirement.marker.evaluate(environment):
                continue
        except (UndefinedComparison, UndefinedEnvironmentName):
            continue
        version = there.get(canonicalize_name(requirement.name))
        if version is not None and (requirement.url or requirement.specifier.contains(version, prereleases=True)):
            continue
        phrase = f"{requirement.name}{requirement.specifier}" + (f" ({version} is there)" if version else "")
        if phrase not in told:  # an address is not shown: it may carry a token
            told.add(phrase)
            found.setdefault(file, []).append(phrase)
    return found


def warning(declared: Declared, missing: Mapping[str, list[str]]) -> str:
    """One line about what is not met, with the remedy; empty where all is. Pure."""
    parts = []
    if missing:
        phrases = [phrase for row in missing.values() for phrase in row]
        more = f" and {len(phrases) - SHOWN} more" if len(phrases) > SHOWN else ""
        install = "-e ." if PROJECT in missing else f"-r {next(iter(missing))}"
        parts.append(
            f"Not in this environment: {', '.join(phrases[:SHOWN])}{more}, which {' and '.join(missing)} "
            f"{'declare' if len(missing) > 1 else 'declares'}. `pip install {install}` in the container of `invoke up` "
            "lasts as long as that"
        )
    parts += [f"{phrase}, so what it declares is not compared" for phrase in declared.damaged]
    return "; ".join(parts)
