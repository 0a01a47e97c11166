"""The passport's part that the host alone knows: image, build record, engine, host, GPUs, profile, the clone's commit.

The suite writes ``report.json`` in the container (``inside/passport.py``, by ``inside/report.schema.json``). Its part
``host`` is empty there; :func:`complete` fills it.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchdock import host, provision
from torchdock.engine import Engine
from torchdock.gpus import Gpu, Inventory
from torchdock.process import capture
from torchdock.state import CloneState

LOGS = ("report.xml", "pytest.log")
_RELEASES = (Path("/etc/os-release"), Path("/usr/lib/os-release"))


def gather(
    engine: Engine, state: CloneState, image: str, inventory: Inventory, handed: Sequence[Gpu], *, profile: str = ""
) -> dict[str, Any]:
    """The part ``host``: what this launch was made from. Changes nothing.

    Args:
        image: the name of the image that was launched.
        handed: the GPUs, or MIG instances, that the container was given.
        profile: what ``--profile`` granted; empty for the least privilege of a launch without it.
    """
    found = engine.image(image)
    here = {"id": found.id, "digests": list(found.digests), "layers": list(found.layers)} if found else None
    records = (record for record in state.records() if record["image"] == image)
    release = next((path.read_text() for path in _RELEASES if path.is_file()), "")
    fields = ("index", "uuid", "name", "memory_total", "compute_capability")
    return {
        "image": {"name": image, **(here or {"id": None, "digests": [], "layers": []})},
        # One of another clone or machine, for the same image: the same bits, whose build is not known here.
        "build": next((record for record in records if here and record.get("id") == here["id"]), None),
        "clone": commit(state.root),
        "engine": {
            "kind": engine.kind,
            "version": engine.facts.info.get("ServerVersion"),
            "podman": engine.podman,
            "rootless": engine.rootless,
            "context": engine.facts.context,
        },
        "host": {
            "name": socket.gethostname(),
            "system": provision.parse_os_release(release).get("PRETTY_NAME") or platform.system(),
            "kernel": engine.kernel,
            "architecture": host.architecture(),
            "cpus": os.cpu_count(),
            "memory": engine.memory_bytes,
        },
        "driver": inventory.driver or None,
        "gpus": [{name: getattr(gpu, name) for name in fields} for gpu in handed],
        "profile": profile or None,
    }


def commit(root: Path) -> dict[str, Any] | None:
    """The commit of this clone, and whether files differ from it; None where it is no git clone."""
    head = capture(["git", "-C", str(root), "rev-parse", "HEAD"], timeout=10)
    changed = capture(["git", "-C", str(root), "status", "--porcelain"], timeout=20)
    if head.code != 0 or changed.code != 0:
        return None
    return {"commit": head.out.strip(), "changed": bool(changed.out.strip())}


def complete(
    folder: Path, part: Mapping[str, Any], state: CloneState, redact: Callable[[str], str]
) -> dict[str, Any] | None:
    """Fill in the report of a folder, and take this host's secrets out of all that was written there.

    A check's message is whatever a program said, so that a URL with a token may be in it.

    Returns:
        The document, or None where the suite did not come to write one.

    Raises:
        InputError: the folder is not writable for this user.
    """
    for path in (folder / name for name in LOGS):
        if path.is_file() and (clean := redact(text := path.read_text(errors="replace"))) != text:
            path.write_text(clean)
    try:
        document: dict[str, Any] = _everywhere(json.loads((folder / "report.json").read_text()), redact)
    except (OSError, ValueError):
        return None
    gpus = [document.get("device") or "", *(gpu["name"] for gpu in part["gpus"])]
    document["host"] = _everywhere(part, redact)
    document["fake"] = document["fake"] or any("fake" in name.lower() for name in gpus)
    state.write(folder / "report.json", document)
    return document


def _everywhere(value: Any, clean: Callable[[str], str]) -> Any:
    """A JSON value with each of its texts cleaned; the names of its fields stay."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {name: _everywhere(one, clean) for name, one in value.items()}
    return [_everywhere(one, clean) for one in value] if isinstance(value, (list, tuple)) else value
