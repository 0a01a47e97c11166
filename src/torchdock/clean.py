"""What torchdock made for one user and one clone: found by labels and build records, removed, nothing else touched."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from torchdock import container
from torchdock.engine import Engine
from torchdock.state import CloneState


@dataclass(frozen=True)
class Found:
    """What there is to remove, by name."""

    containers: tuple[str, ...]
    images: tuple[str, ...]
    volumes: tuple[str, ...]
    folders: tuple[str, ...]

    @property
    def items(self) -> tuple[str, ...]:
        """All of it in words."""
        kinds = (
            ("container", self.containers),
            ("image", self.images),
            ("volume", self.volumes),
            ("folder", self.folders),
        )
        return tuple(f"{kind} {name}" for kind, names in kinds for name in names)


def gather(engine: Engine, state: CloneState, who: container.Identity, *, images: bool) -> Found:
    """Find it. Images are those that this clone's build records name, what `verify` kept too; nobody else's."""
    import docker.errors

    containers = tuple(str(found["Names"][0]).lstrip("/") for found in container.mine(engine, who, state.clone))
    tags = [
        tag
        for record in state.records()
        for tag in (record["image"], record.get("base", ""))
        if tag.startswith("torchdock/")
    ]
    present = tuple(tag for tag in dict.fromkeys(tags) if images and engine.image(tag) is not None)
    volumes: tuple[str, ...] = ()
    if images:
        try:
            volumes = (str(engine.client.volumes.get(f"torchdock-cache-{who.uid}").name),)
        except docker.errors.NotFound:
            volumes = ()
    folders = tuple(str(path) for path in (state.folder / "reports", state.folder / "logs") if path.is_dir())
    return Found(containers, present, volumes, folders)


def remove(engine: Engine, state: CloneState, found: Found) -> tuple[list[str], list[str]]:
    """Remove it; what is in use elsewhere is left and told apart.

    Returns:
        What was removed, and what was kept because a container uses it.
    """
    import docker.errors

    done: list[str] = []
    kept: list[str] = []
    for name in found.containers:
        container.stop(engine, name)
        done.append(f"container {name}")
    for tag in found.images:
        try:
            engine.client.images.remove(tag)
            done.append(f"image {tag}")
        except docker.errors.APIError:
            kept.append(f"image {tag}")
    for volume in found.volumes:
        try:
            engine.client.volumes.get(volume).remove()
            done.append(f"volume {volume}")
        except docker.errors.APIError:
            kept.append(f"volume {volume}")
    for folder in found.folders:
        shutil.rmtree(folder, ignore_errors=True)
        done.append(f"folder {folder}")
    return done, kept
