"""``.torchdock/``: what torchdock keeps in a clone (build records, logs, reports), and one builder at a time in it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from torchdock.console import Reporter
from torchdock.errors import InputError


class CloneState:
    """The state folder of one clone. Everything in it can be deleted at any time; nothing here decides anything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".torchdock"
        self._lock: FileLock | None = None

    @property
    def clone(self) -> str:
        """Names this clone in labels: 12 hex digits of its path."""
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:12]

    def path(self, *parts: str) -> Path:
        """A path in the state folder; its parent folder exists afterwards.

        Raises:
            InputError: the clone is not writable for this user.
        """
        target = self.folder.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        return target

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"torchdock keeps its records in {self.folder}, which cannot be written ({error.strerror}). "
            "Use a clone of your own, or correct the owner of this one: `sudo chown -R $USER .`"
        )

    @contextmanager
    def exclusive(self, reporter: Reporter) -> Iterator[None]:
        """One command that builds or launches the workspace container at a time; a second one says so and waits.

        The holder may enter again.
        """
        self._lock = self._lock or FileLock(self.path("lock"), mode=0o666)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            reporter.say("Another torchdock command is at work in this clone; waiting for it to finish.")
            self._lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            yield
        finally:
            self._lock.release()

    def write(self, path: Path, document: dict[str, Any]) -> None:
        """Write JSON whole or not at all.

        Raises:
            InputError: the clone is not writable for this user.
            OSError: the disk is full; nothing is left of it.
        """
        text = json.dumps(document, indent=2, sort_keys=True)
        try:
            handle = tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False)  # noqa: SIM115
        except PermissionError as error:
            raise self._unwritable(error) from None
        try:
            with handle:
                handle.write(text + "\n")
            os.chmod(handle.name, 0o644)
            os.replace(handle.name, path)
        except BaseException:
            os.unlink(handle.name)
            raise

    def records(self) -> list[dict[str, Any]]:
        """The build records of this clone; damaged ones are passed over."""
        found = []
        for path in sorted(self.folder.glob("builds/*.json")):
            try:
                found.append(json.loads(path.read_text()))
            except (OSError, ValueError):
                continue
        return [record for record in found if isinstance(record, dict) and "image" in record]

    def forget(self, image: str) -> None:
        """Remove the build records of an image that is gone."""
        for path in self.folder.glob("builds/*.json"):
            with suppress(OSError, ValueError, TypeError, KeyError):
                if json.loads(path.read_text())["image"] == image:
                    path.unlink()
