"""What an environment tells of itself: its lock, drift, settings; also without a host, and without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from given import ROOT

from torchdock.inside import passport, suite, versions

SCHEMA = json.loads((ROOT / "src/torchdock/inside/report.schema.json").read_text())


def tree(folder: Path) -> Path:
    for variant, version in (("cpu", "2.14.1+cpu"), ("cu130", "2.14.1")):
        (folder / "docker/locks" / variant).mkdir(parents=True)
        (folder / "docker/locks" / variant / "torch.txt").write_text(f"torch=={version}\nnumpy==2.5.5\n")
    (folder / "docker/locks/debian").mkdir()
    (folder / "docker/locks/host.txt").write_text("docker==7\n")
    return folder


def test_the_lock_that_an_environment_stands_beside(tmp_path: Path) -> None:
    root = tree(tmp_path)
    same = passport.lock(root, {"torch": "2.14.1", "numpy": "2.5.5"}, "13.0", "")
    assert same is not None
    assert (same["variant"], same["differences"], same["added"]) == ("cu130", [], [])
    bent = passport.lock(root, {"torch": "2.13.0", "numpy": "2.5.5", "mine": "1"}, None, "")
    assert bent is not None
    assert (bent["variant"], bent["added"]) == ("cpu", ["mine 1"])
    assert bent["differences"] == ["torch is 2.13.0, locked 2.14.1+cpu"]
    assert same["sha256"] != bent["sha256"]
    (root / "docker/locks/cu130/torch.txt").write_text("torch==2.14.2\n")
    moved = passport.lock(root, {"torch": "2.14.1"}, "13.0", "")
    assert moved is not None and moved["sha256"] != same["sha256"]


def test_a_tree_without_locks(tmp_path: Path) -> None:
    (tmp_path / "docker/locks").mkdir(parents=True)
    assert passport.lock(tmp_path, {}, None, "cpu") is None


@pytest.mark.parametrize(
    ("cuda", "named", "variant"),
    [("13.0", "", "cu130"), (None, "", "cpu"), ("11.8", "", "cpu"), ("13.0", "cpu", "cpu"), ("13.0", "gone", "cu130")],
)
def test_nearest(cuda: str | None, named: str, variant: str) -> None:
    locks = {"cu130": {"torch": "2", "triton": "3"}, "cpu": {"torch": "2"}}
    assert versions.nearest(locks, {"torch": "2"}, cuda, named) == variant


def test_other_versions_are_told_torch_first() -> None:
    locked = {"absl": "1", "numpy": "2", "torch": "2.14", "jupyter": "4", "triton": "3"}
    told = versions.told(locked, {"absl": "2", "torch": "2.13", "numpy": "2"})
    assert told == "torch 2.13 (locked 2.14); absl 2 (locked 1); 2 of 5 locked packages are not there"
    assert versions.told(locked, locked) == ""


def test_only_harmless_variables_are_kept() -> None:
    given = {"OMP_NUM_THREADS": "2", "WANDB_API_KEY": "hunter2", "HTTPS_PROXY": "http://a:hunter2@p", "UV_INDEX": "x"}
    assert passport.variables(given) == {"OMP_NUM_THREADS": "2"}
    words = ("KEY", "TOKEN", "SECRET", "PASS", "PROXY", "INDEX", "URL", "AUTH")
    assert not [name for name in passport.VARIABLES if any(word in name for word in words)]


def test_the_cpus_name() -> None:
    assert passport.cpu("processor\t: 0\nmodel name\t: AMD EPYC 9B45\nmodel name\t: B\n") == "AMD EPYC 9B45"
    assert passport.cpu("processor\t: 0\nCPU part\t: 0xd40\n") is None


def test_gather_never_fails_and_is_what_the_schema_says(tmp_path: Path) -> None:
    """Here there is no torch and no driver, and no tree with locks."""
    found = passport.gather(tmp_path)
    wanted = SCHEMA["$defs"]["environment"]["properties"]
    assert set(found) == set(wanted)
    assert set(found["platform"]) == set(wanted["platform"]["properties"])
    assert (found["image"], found["lock"], found["settings"]["torch"]) == (False, None, None)
    assert "pytest" in found["packages"]
    assert SCHEMA["properties"]["schema"]["const"] == SCHEMA["title"] == passport.SCHEMA


@pytest.mark.parametrize(
    ("nvml", "device", "fake"),
    [
        (None, "cpu: x86_64", False),
        ({"driver": "580.65.06", "devices": [{"name": "NVIDIA H200"}]}, None, False),
        ({"driver": "580.0-fake", "devices": []}, None, True),
        ({"driver": "580.65.06", "devices": [{"name": "FAKE H200"}]}, None, True),
        (None, "cuda: Fake H200", True),
    ],
)
def test_fake(nvml: dict[str, object] | None, device: str | None, fake: bool) -> None:
    assert passport.fake({"nvml": nvml}, device) is fake


def test_a_document_has_every_field_of_the_schema_and_no_other() -> None:
    result = suite.Result(suite.Selection("quick", "", False, {"a": 1}), (), (), 1.0, None, {}, None)
    document = passport.document(result, "now")
    assert set(document) == set(SCHEMA["properties"]) == set(SCHEMA["required"])
    assert document["host"] is None and document["environment"] is None
