"""torchdock.toml: what it may say, and that a mistake in it names the file, the line and the remedy."""

from pathlib import Path

import pytest
from given import without_rights

from torchdock import gpus, host, workspace
from torchdock.errors import InputError
from torchdock.gpus import Gpu, Inventory
from torchdock.host import HostFacts, HostGpu
from torchdock.workspace import WorkspaceConfig


def test_a_folder_without_the_file_asks_for_nothing(tmp_path: Path) -> None:
    assert workspace.read(tmp_path) == WorkspaceConfig(None, None)
    assert workspace.read(tmp_path / "none") == WorkspaceConfig(None, None)
    (tmp_path / "file").write_text("")
    assert workspace.read(tmp_path / "file") == WorkspaceConfig(None, None)


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ('variant = "cu126"\n', "cu126"),
        ("# nothing\n", None),
        ("", None),
        ("# pinned\n\n\"variant\" = 'cpu'  # why\n", "cpu"),
    ],
)
def test_it_pins_a_variant(text: str, variant: "str | None", tmp_path: Path) -> None:
    path = tmp_path / "torchdock.toml"
    path.write_text(text)
    assert workspace.read(tmp_path) == WorkspaceConfig(path, variant)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('\nvarient = "cu126"\n', ", line 2: there is no key 'varient'. Did you mean 'variant'? Keys: variant."),
        ('[tool]\nx = 1\n', ", line 1: there is no key 'tool'. Keys: variant."),
        ('# a\n# b\nvariant = 126\n', ', line 3: variant is a number. Write it like this: variant = "cu130"'),
        ("variant = true\n", ", line 1: variant is true or false."),
        ('variant = ["cu126"]\n', ", line 1: variant is a list."),
        ('\n[variant]\nname = "cu126"\n', ", line 2: variant is a table."),
        ("variant = 2026-10-05\n", ", line 1: variant is a date or a time."),
        ("variant = cu126\n", " is not valid TOML: Invalid value (at line 1, column 11). Mend that line"),
        (b"variant = '\xff'\n", " cannot be read (it is not UTF-8)"),
    ],
)  # fmt: skip
def test_a_mistake_is_wrong_input(text: "str | bytes", told: str, tmp_path: Path) -> None:
    path = tmp_path / "torchdock.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as refused:
        workspace.read(tmp_path)
    assert str(refused.value).startswith(f"{path}{told}")
    assert refused.value.exit_code == 2


def test_a_file_that_may_not_be_read_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "torchdock.toml").mkdir()
    with pytest.raises(InputError, match=r"torchdock\.toml cannot be read \(Is a directory\)"):
        workspace.read(tmp_path)


def test_a_folder_that_may_not_be_looked_into_is_wrong_input() -> None:
    from given import open_folder

    with open_folder() as folder:
        folder.chmod(0o700)
        (folder / "torchdock.toml").write_text("")
        (folder / "torchdock.toml").chmod(0)
        with without_rights(), pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
            workspace.read(folder)


# --- the facts of the host ---

H100 = Gpu(0, "GPU-0", "NVIDIA H100", 80 << 30, 0, 0, "9.0", True)
P40 = Gpu(1, "GPU-1", "Tesla P40", 24 << 30, 0, 3, "6.1")


def gathered(wanted: "str | None", found: Inventory, folder: Path, monkeypatch: pytest.MonkeyPatch) -> HostFacts:
    monkeypatch.setattr(gpus, "gather", lambda: found)
    return host.gather(wanted, folder)


@pytest.mark.parametrize(
    ("wanted", "uuids"),
    [
        (None, ["GPU-0", "GPU-1"]),
        ("0", ["GPU-0", "GPU-1"]),
        ("1", ["GPU-0", "GPU-1"]),
        ("all", ["GPU-0", "GPU-1"]),
        ("GPU-1", ["GPU-1"]),
    ],
)
def test_every_gpu_that_could_be_leased_counts(
    wanted: "str | None", uuids: "list[str]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gathered(wanted, Inventory((H100, P40), "580.95.05", ""), tmp_path, monkeypatch)
    assert [gpu.uuid for gpu in found.gpus] == uuids
    assert (found.driver, found.no_gpu_reason, found.reachable) == ("580.95.05", "", None)


def test_the_facts_are_those_of_nvml_and_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchdock.toml").write_text('variant = "cu126"')
    found = gathered(None, Inventory((H100,), "580.1", ""), tmp_path, monkeypatch)
    assert found.gpus == (HostGpu("GPU-0", "NVIDIA H100", "9.0", True),)
    assert (found.pinned, found.pinned_by) == ("cu126", tmp_path / "torchdock.toml")
    bare = gathered(None, Inventory((), "", "no driver"), tmp_path / "none", monkeypatch)
    assert (bare.gpus, bare.no_gpu_reason, bare.pinned, bare.pinned_by) == ((), "no driver", None, None)


def test_gpus_that_are_not_there_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'GPU-7' is none of them here"):
        gathered("GPU-7", Inventory((H100,), "580.1", ""), tmp_path, monkeypatch)
