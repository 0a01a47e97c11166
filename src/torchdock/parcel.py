"""An image in a file, for hosts without a network: written whole or not at all, checked before it is used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from torchdock import brought
from torchdock.base import LOCKED
from torchdock.console import Reporter, Step
from torchdock.engine import Engine, settings
from torchdock.errors import InputError, TorchdockError
from torchdock.image import BuildPlan, Built
from torchdock.process import stream
from torchdock.saved import printable
from torchdock.state import CloneState
from torchdock.variants import GB


def check_target(file: str) -> Path:
    """The path of a file that can be written.

    Raises:
        InputError: it cannot.
    """
    path = Path(file).absolute()
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a file in it: `invoke save {path / 'torchdock.tar'}`.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file, and would be replaced by one. Name another.")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder. Make it, or name a file in one that there is.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path.parent} cannot be written by this user. Name a file in a folder of yours.")
    return path


def save(engine: Engine, built: Built, path: Path, reporter: Reporter) -> int:
    """Write an image to a file, whole or not at all; how many bytes it has.

    Raises:
        TorchdockError: the disk is too small or became full, or the engine failed; the file is as it was before.
        KeyboardInterrupt: the same.
    """
    facts = engine.image(built.image)
    size = facts.size if facts is not None else 0
    for folder, what in ((path.parent, "the file"), (engine.data_root, "the engine's own copy of a moment")):
        free = shutil.disk_usage(folder).free if folder is not None else size
        if free < size:
            raise TorchdockError(
                f"{built.image} has {size / GB:.1f} GB, and below {folder} {free / GB:.1f} GB are free for {what}. "
                "Make room, or name a file on another disk. Nothing was written."
            )
    handle = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
    try:
        with handle, tempfile.TemporaryFile("w+", errors="replace") as errors, reporter.step(f"Saving {path}") as step:
            code = _write(engine, built.image, handle.fileno(), errors, step, size)
            if code != 0:
                errors.seek(0)
                raise _save_failure(built.image, path, errors.read())
            os.fsync(handle.fileno())
        try:
            written = contained(Path(handle.name))
        except InputError:  # Docker 26.1 with the containerd store does that to a pulled image
            raise TorchdockError(
                f"`docker save {built.image}` gave a file that is not whole, so {path} is as it was before. Save it "
                "where it was built, or share it by a registry."
            ) from None
        if facts is None or not engine.same(facts, written):
            raise TorchdockError(f"What `docker save` gave is not {built.image}: somebody changed it. Run it again.")
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(handle.name, 0o666 & ~umask)
        os.replace(handle.name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(handle.name)
        raise
    return path.stat().st_size


def _write(engine: Engine, name: str, output: int, errors: TextIO, step: Step, size: int) -> int:
    """`docker save` into a file descriptor; its exit code. It ends with us."""
    child = subprocess.Popen(
        [engine.cli, "save", name], stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
    )
    try:
        while True:
            try:
                return child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                step.now(f"{os.fstat(output).st_size / GB:.1f} of {size / GB:.1f} GB")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _save_failure(name: str, path: Path, said: str) -> TorchdockError:
    said = printable(" ".join(said.split())).rstrip(".")
    full = "Make room, or name a file on another disk" if "no space left" in said or "quota" in said else "Mend that"
    return TorchdockError(f"`docker save {name}` failed: {said}. {full}, and run it again; {path} is as it was before.")


@dataclass(frozen=True)
class Carried:
    """What a file of `docker save` holds.

    Attributes:
        id: the digest of the image's configuration.
        layers: their digests, uncompressed.
        variant: empty where it is none of ours.
        settings: see :func:`torchdock.engine.settings`.
    """

    id: str
    layers: tuple[str, ...]
    names: tuple[str, ...]
    variant: str
    settings: str = ""


def contained(path: Path) -> Carried:
    """Read what a file holds, by its manifest alone: a fraction of a second, whatever its size.

    Raises:
        InputError: it cannot be read, is cut short, or holds anything but one image.
    """
    try:
        with tarfile.open(path) as archive:
            manifest = json.loads(_member(archive, "manifest.json"))
            (entry,) = manifest
            config = _member(archive, entry["Config"])
        document = json.loads(config)
        labels = (document.get("config") or {}).get("Labels") or {}
        names = tuple(entry.get("RepoTags") or ())
        layers = tuple((document.get("rootfs") or {}).get("diff_ids") or ())
        variant = str(labels.get("dev.torchdock.variant") or "")
        return Carried(f"sha256:{brought.sha256(config)}", layers, names, variant, settings(document))
    except OSError as error:
        if error.strerror:
            raise InputError(
                f"{path} cannot be read ({error.strerror}). Name a file that `invoke save` wrote."
            ) from None
        why = str(error)
    except (tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        why = str(error)
    raise InputError(
        f"{path} is no image that `invoke save` wrote, or is cut short ({printable(why)}). Compare its size with the "
        "original's, and copy it again."
    )


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    content = archive.extractfile(name)
    if content is None:
        raise ValueError(f"{name} is no file")
    return content.read()


def plan_load(engine: Engine, file: Carried, path: Path, candidates: Sequence[BuildPlan]) -> BuildPlan | None:
    """The plan whose image the file says it holds; None for a file without names. Changes nothing.

    Raises:
        InputError: it holds another image, or the engine has another one by that name: loading would move names.
    """
    by_name = {one.tag: one for one in candidates if one.base.debian == LOCKED}
    strange = [name for name in file.names if name not in by_name]
    if strange:
        known = ", ".join(by_name)
        raise InputError(
            f"{path} holds {brought.listed(strange)}, and this tree's image is {known}. Check out the tree that it "
            f"was saved from (or name its variant with --variant); `docker load --input {path}` loads it all the same."
        )
    for name in file.names:
        has = engine.image(name)
        if has is not None and not engine.same(has, file):
            raise InputError(
                f"{path} holds another {name} ({file.id[7:19]}) than this engine has ({has.id[7:19]}), which would "
                f"lose its name. `invoke verify` tells whether the one here is right; `docker image rm {name}` "
                "makes room."
            )
    return by_name[file.names[0]] if file.names else None


def load(
    engine: Engine, state: CloneState, file: Carried, path: Path, candidates: Sequence[BuildPlan], reporter: Reporter
) -> Built:
    """Load a file, check the image, and let it keep its name only then.

    Raises:
        TorchdockError: it is damaged, the disk is full, or it is not what the lock gives; nothing of it is left.
        KeyboardInterrupt: the same.
    """
    started = time.monotonic()
    output: list[str] = []
    reference = file.names[0] if file.names else file.id
    there, had = engine.image(file.id) is not None, {one.tag for one in candidates if engine.image(one.tag) is not None}
    log_path = state.path("logs", "load.log")
    try:
        with log_path.open("w") as log, reporter.step(f"Loading {path}") as step:
            code = stream([engine.cli, "load", "--input", str(path)], output.append, log=log)
            if code != 0 or engine.image(reference) is None:
                raise _load_failure(path, output)
            step.now("checking it")
            found = brought.check(engine, state, reference, [one for one in candidates if one.base.debian == LOCKED])
            seconds = time.monotonic() - started
            return brought.adopt(engine, state, found, reference, str(path), seconds, new=found.tag not in had)
    except BaseException:
        for name in (*(name for name in file.names if name not in had), *([] if there else [file.id])):
            brought.untag(engine, name)
        raise


def _load_failure(path: Path, output: Sequence[str]) -> TorchdockError:
    said = printable(" ".join(" ".join(output[-3:]).split())).rstrip(".")
    if re.search(r"no space left|quota", said):
        remedy = "The engine's disk is full: `docker builder prune` and `invoke clean --images` give space back."
    else:
        remedy = "It was damaged on its way: compare its size and checksum with the original's, and copy it again."
    return TorchdockError(f"`docker load` of {path} failed: {said}. {remedy}")
