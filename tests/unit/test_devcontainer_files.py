"""The dev container's files: only keys that the specification has, with values of the right kind; the two kinds alike.

The table is made from the Development Container Specification's reference (containers.dev/implementors/json_reference).
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".devcontainer"
KINDS = ("cpu", "cuda")


def text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(text(one) for one in value)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def mapping(value: Any) -> bool:
    return isinstance(value, dict)


def text_mapping(value: Any) -> bool:
    return mapping(value) and all(one is None or isinstance(one, str) for one in value.values())


def command(value: Any) -> bool:
    return text(value) or texts(value) or (mapping(value) and all(text(one) or texts(one) for one in value.values()))


def one_of(*words: str) -> Any:
    return lambda value: value in words


def ports(value: Any) -> bool:
    def port(one: Any) -> bool:
        number = str(one).rpartition(":")[2]
        return not isinstance(one, bool) and number.isdigit() and 0 < int(number) < 65536

    return isinstance(value, list) and all(port(one) for one in value)


PORT = {
    "onAutoForward": one_of("notify", "openBrowser", "openBrowserOnce", "openPreview", "silent", "ignore"),
    "elevateIfNeeded": flag,
    "label": text,
    "requireLocalPort": flag,
    "protocol": one_of("http", "https"),
}


def port_attributes(value: Any) -> bool:
    return mapping(value) and all(
        mapping(one) and all(key in PORT and PORT[key](entry) for key, entry in one.items()) for one in value.values()
    )


# The general properties, and those of a configuration by Compose; those of an image or a Dockerfile are none of ours.
PROPERTIES = {
    "name": text,
    "forwardPorts": ports,
    "portsAttributes": port_attributes,
    "otherPortsAttributes": lambda value: port_attributes({"other": value}),
    "containerEnv": text_mapping,
    "remoteEnv": text_mapping,
    "remoteUser": text,
    "containerUser": text,
    "updateRemoteUserUID": flag,
    "userEnvProbe": one_of("none", "interactiveShell", "loginShell", "loginInteractiveShell"),
    "overrideCommand": flag,
    "features": mapping,
    "overrideFeatureInstallOrder": texts,
    "secrets": mapping,
    "customizations": mapping,
    "mounts": lambda value: isinstance(value, list) and all(text(one) or mapping(one) for one in value),
    "init": flag,
    "privileged": flag,
    "capAdd": texts,
    "securityOpt": texts,
    "hostRequirements": mapping,
    "initializeCommand": command,
    "onCreateCommand": command,
    "updateContentCommand": command,
    "postCreateCommand": command,
    "postStartCommand": command,
    "postAttachCommand": command,
    "waitFor": one_of(
        "initializeCommand", "onCreateCommand", "updateContentCommand", "postCreateCommand", "postStartCommand"
    ),
    "dockerComposeFile": lambda value: text(value) or texts(value),
    "service": text,
    "runServices": texts,
    "workspaceFolder": text,
    "shutdownAction": one_of("none", "stopCompose"),
}


def read(kind: str) -> dict[str, Any]:
    """The file without its comments, which are lines of their own."""
    lines = (FOLDER / kind / "devcontainer.json").read_text().splitlines()
    document: dict[str, Any] = json.loads("\n".join(line for line in lines if not line.strip().startswith("//")))
    return document


def mistakes(document: dict[str, Any]) -> list[str]:
    """Unknown keys, and keys whose value is of another kind."""
    return [key for key, value in document.items() if key not in PROPERTIES or not PROPERTIES[key](value)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_one_of_the_specification(kind: str) -> None:
    assert mistakes(read(kind)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runArg", ["--gpus"]),
        ("runArgs", ["--gpus", "all"]),  # of a Dockerfile's configuration; with Compose nobody reads it
        ("overrideCommand", "false"),
        ("forwardPorts", [8888, 0]),
        ("portsAttributes", {"8888": {"onAutoForward": "quiet"}}),
        ("portsAttributes", {"8888": {"title": "Jupyter"}}),
        ("shutdownAction", "stopContainer"),
        ("userEnvProbe", "login"),
        ("postCreateCommand", 3),
    ],
)
def test_a_mistake_in_a_key_is_seen(key: str, value: Any) -> None:
    assert mistakes({**read("cuda"), key: value}) == [key]


def test_cpu_and_cuda_differ_in_their_names_alone() -> None:
    cpu, cuda = read("cpu"), read("cuda")
    assert {key for key in cuda if cpu.get(key) != cuda[key]} == {"name", "initializeCommand"}
    assert cpu.keys() == cuda.keys()
    files = [(FOLDER / kind / "compose.yml").read_text() for kind in KINDS]
    assert files[0] == files[1].replace("torchdock-cuda", "torchdock-cpu")


def test_extensions_are_identifiers_and_settings_name_the_interpreter_of_the_image() -> None:
    editor = read("cuda")["customizations"]["vscode"]
    assert all(re.fullmatch(r"[a-z0-9-]+\.[a-z0-9-]+", one) for one in editor["extensions"])
    assert editor["settings"]["python.defaultInterpreterPath"] == "/opt/venv/bin/python"


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_script_writes_is_ignored_by_git_and_the_default_is_not(kind: str) -> None:
    words = [f".devcontainer/{kind}/{name}" for name in (".env", "host.yml", "compose.yml", "devcontainer.json")]
    done = subprocess.run(["git", "check-ignore", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("this is no git clone")
    assert done.stdout.split() == words[:2]
