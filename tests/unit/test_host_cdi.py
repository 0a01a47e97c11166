"""CDI specifications: what is read in them, and which device an engine takes of several."""

import json
from pathlib import Path

import pytest

from torchdock import cdi
from torchdock.cdi import Device, Node

# As nvidia-ctk 1.17 writes it, shortened.
WRITTEN = """---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06
    options:
    - ro
    - nosuid
devices:
- containerEdits:
    deviceNodes:
    - fileMode: 438
      major: 195
      minor: 0
      path: /dev/nvidia0
    - hostPath: /dev/dri/card1
      path: /dev/dri/card0
  name: "0"
- name: GPU-5e6a8f0c-0000-4000-8000-000000000001  # the same
  containerEdits:
    deviceNodes:
      - path: /dev/nvidia0
- name: '0:1'
- name: all
kind: nvidia.com/gpu
"""


def test_what_the_toolkit_writes_is_read() -> None:
    found = cdi.read(Path("/etc/cdi/nvidia.yaml"), WRITTEN)
    assert [device.name for device in found.devices] == ["0", "GPU-5e6a8f0c-0000-4000-8000-000000000001", "0:1", "all"]
    assert found.devices[0].nodes == (Node("/dev/nvidia0", 195, 0), Node("/dev/dri/card1"))
    assert found.devices[1].nodes == (Node("/dev/nvidia0"),)
    library = "/usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06"
    assert found.common == Device("", (Node("/dev/nvidiactl"),), (library,))
    assert found.error == ""


def test_json_says_the_same() -> None:
    device = {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "major": 195, "minor": 0}]}}
    text = json.dumps({"cdiVersion": "0.5.0", "kind": cdi.KIND, "devices": [device]})
    assert cdi.read(Path("a.json"), text).devices == (Device("0", (Node("/dev/nvidia0", 195, 0),)),)


def test_of_yaml_that_is_written_otherwise_the_names_are_read() -> None:
    text = "kind: nvidia.com/gpu\ndevices:\n- {name: zero}\n- name: GPU-1\n  note: |\n    text\n- \"name\": 'MIG-2'\n"
    assert [device.name for device in cdi.read(Path("a.yaml"), text).devices] == ["GPU-1", "MIG-2"]


@pytest.mark.parametrize(
    "text",
    ['{"kind": "nvidia.com/gpu", "devices": [', '["nvidia.com/gpu"]', '{"kind": "nvidia.com/gpu", "devices": [1]}'],
)
def test_a_damaged_file_is_told(text: str) -> None:
    found = cdi.read(Path("a.json"), text)
    assert (found.devices, "no CDI specification" in found.error) == ((), True)


def folders(tmp_path: Path, files: "dict[str, list[str]]") -> "list[str]":
    """``etc/a.json`` -> the names of its devices, each with a mount that tells the file."""
    for name, devices in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        edits = {"mounts": [{"hostPath": name, "containerPath": "/x"}]}
        entries = [{"name": device, "containerEdits": edits} for device in devices]
        path.write_text(json.dumps({"kind": cdi.KIND, "devices": entries}))
    return [str(tmp_path / "etc"), str(tmp_path / "run")]


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        pytest.param({"etc/a.json": ["0", "1"]}, {"0": "etc/a.json", "1": "etc/a.json"}, id="one file"),
        pytest.param({"etc/a.json": ["0"], "run/a.json": ["0"]}, {"0": "run/a.json"}, id="the later folder's"),
        pytest.param({"etc/a.json": ["0", "1"], "etc/b.json": ["0"]}, {"1": "etc/a.json"}, id="in conflict: none"),
        pytest.param(
            {"etc/a.json": ["0"], "run/a.json": ["0"], "run/b.json": ["0"]}, {}, id="in conflict above another folder's"
        ),
    ],
)
def test_a_device_is_the_one_that_an_engine_takes(
    files: "dict[str, list[str]]", taken: "dict[str, str]", tmp_path: Path
) -> None:
    found = cdi.gather(folders(tmp_path, files)).devices
    assert {name: device.mounts[0] for name, device in found.items()} == taken


def test_what_is_not_ours_or_cannot_be_read(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "nic.yaml").write_text("kind: vendor.com/nic\ndevices:\n- name: GPU-4\n")
    (etc / "nvidia.yaml.bak").write_text(WRITTEN)
    (etc / "binary.json").write_bytes(b"nvidia.com/gpu \xff\xfe")
    (etc / "folder.yaml").mkdir()
    (etc / "gone.yaml").symlink_to("nowhere")
    found = cdi.gather([str(etc), str(tmp_path / "none")])
    assert [(file.path.name, file.error) for file in found.files] == [
        ("binary.json", "it is no text"),
        ("gone.yaml", "No such file or directory"),
    ]
    assert found.devices == {}


def test_the_digest_names_what_the_files_say(tmp_path: Path) -> None:
    first = cdi.gather(folders(tmp_path, {"etc/a.json": ["0"]})).digest
    assert cdi.gather(folders(tmp_path, {"etc/a.json": ["0"]})).digest == first
    assert cdi.gather(folders(tmp_path, {"etc/a.json": ["1"]})).digest != first
