"""Who uses an image: told to all users and clones of one engine, so that nobody removes what another one works with.

The images of equal trees are one image, whoever built it, and a build record is known to its own clone alone. So each
clone that builds or finds an image leaves an empty volume with labels in the engine: it costs 1 ms, makes no file that
can go stale beside the engine, and goes with the engine's data. Marking twice is marking once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdock.container import LABEL
from torchdock.engine import Engine
from torchdock.state import CloneState

PREFIX = "torchdock-use-"


@dataclass(frozen=True)
class Use:
    """One clone of one user uses one image.

    Attributes:
        image: its name; ``base``: the name of the base that it stands on, or an empty string.
        root: the folder of the clone.
        since: when it was marked, in seconds since 1970.
        volume: the volume that says so.
        brought: where the image came from, if this clone did not build it but brought it: a registry or a file.
    """

    image: str
    base: str
    uid: int
    clone: str
    root: Path
    since: float
    volume: str
    brought: str = ""

    @property
    def genuine(self) -> bool:
        """The volume is named as :func:`mark` names it: labels alone can be on anybody's volume."""
        return self.volume == volume_name(self.image, self.uid, self.clone)


def volume_name(image: str, uid: int, clone: str) -> str:
    """The name of the volume that marks a use."""
    return f"{PREFIX}{re.sub(r'[^a-zA-Z0-9_.-]', '-', image.removeprefix('torchdock/'))}-{uid}-{clone}"


def mark(engine: Engine, state: CloneState, image: str, base: str, brought: str = "") -> str:
    """Say that this user and clone use this image from now on.

    ``brought``: where it came from, if it was built elsewhere; replaces what was said of an earlier image by this name.

    Returns:
        Why it could not be said, else an empty string; a launch need not fail for it.
    """
    import docker.errors

    labels = {"use": image, "base": base, "user": str(os.getuid()), "clone": state.clone, "root": str(state.root)}
    labels["since"] = f"{time.time():.3f}"
    name = volume_name(image, os.getuid(), state.clone)
    try:
        if brought:
            labels["brought"] = brought
            with suppress(docker.errors.NotFound):
                engine.client.api.remove_volume(name)
        engine.client.api.create_volume(name, labels={f"{LABEL}.{key}": labels[key] for key in labels})
    except docker.errors.APIError as error:
        return " ".join(str(error.explanation or error).split())
    return ""


def gather(engine: Engine) -> tuple[Use, ...]:
    """All uses that this engine knows of, everybody's."""
    found = engine.client.api.volumes(filters={"label": f"{LABEL}.use"})["Volumes"] or []
    return tuple(use for volume in found if (use := read(volume)) is not None)


def brought(engine: Engine, image: str) -> str:
    """Where an image came from, if somebody on this engine brought it and did not build it; else an empty string."""
    return next((use.brought for use in gather(engine) if use.image == image and use.genuine and use.brought), "")


def read(volume: Mapping[str, Any]) -> Use | None:
    """The use that a volume says, as the engine lists it; None where its labels make no sense. Pure."""
    labels = {key.removeprefix(f"{LABEL}."): text for key, text in (volume.get("Labels") or {}).items()}
    try:
        return Use(
            image=labels["use"],
            base=labels.get("base", ""),
            uid=int(labels["user"]),
            clone=labels["clone"],
            root=Path(labels.get("root", "/")),
            since=float(labels.get("since", 0)),
            volume=volume["Name"],
            brought=labels.get("brought", ""),
        )
    except (KeyError, ValueError):
        return None
