"""torchdock.toml: what it may say, and that a mistake in it names the file, the line and the remedy."""

from pathlib import Path

import pytest
from given import without_rights

from torchdock import gpus, host, launch, workspace
from torchdock.errors import InputError
from torchdock.gpus import Gpu, Inventory, Process
from torchdock.host import HostFacts, HostGpu
from torchdock.launch import Mount, Port
from torchdock.selection import Wish
from torchdock.workspace import WorkspaceConfig


def test_a_folder_without_the_file_asks_for_nothing(tmp_path: Path) -> None:
    assert workspace.read(tmp_path) == WorkspaceConfig()
    assert workspace.read(tmp_path / "none") == WorkspaceConfig()
    (tmp_path / "file").write_text("")
    assert workspace.read(tmp_path / "file") == WorkspaceConfig()
    assert WorkspaceConfig().wishes({"HOME": "/"}) == launch.NOTHING


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
    found = workspace.read(tmp_path)
    assert (found.path, found.variant) == (path, variant)
    assert found.wishes({}) == launch.NOTHING


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('\nvarient = "cu126"\n', ", line 2: there is no key 'varient'. Did you mean 'variant'? Keys: cpus, "),
        ('[tool]\nx = 1\n', ", line 1: there is no key 'tool'. Keys: cpus, "),
        ('# a\n# b\nvariant = 126\n', ', line 3: variant is a number. Write it like this: variant = "cu130"'),
        ("variant = true\n", ", line 1: variant is true or false."),
        ('variant = ["cu126"]\n', ", line 1: variant is a list."),
        ('\n[variant]\nname = "cu126"\n', ", line 2: variant is a table."),
        ("variant = 2026-10-05\n", ", line 1: variant is a date or a time."),
        ("variant = cu126\n", " is not valid TOML: Invalid value (at line 1, column 11). Mend that line"),
        (b"variant = '\xff'\n", " cannot be read (it is not UTF-8)"),
        ('mounts = "/a:/b"\n', ', line 1: mounts is a text. Write it like this: mounts = ["'),
        ('ports = ["8000", 8001]\n', ", line 1: ports has an entry that is a number."),
        ("memory = 16\n", ', line 1: memory is a number. Write it like this: memory = "16g"'),
        ("cpus = true\n", ", line 1: cpus is true or false."),
    ],
)  # fmt: skip
def test_a_mistake_is_wrong_input(text: "str | bytes", told: str, tmp_path: Path) -> None:
    path = tmp_path / "torchdock.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as refused:
        workspace.read(tmp_path)
    assert str(refused.value).startswith(f"{path}{told}")
    assert refused.value.exit_code == 2


WHOLE = """\
mounts = [
    "data:/data:ro",
    "/:/host",
]
environment = ["MODE=fast", "API_KEY", "COLLEAGUES", "MINE_A=secret"]
env_files = [".env"]
secrets = ["MINE_*"]
ports = ["8000", "127.0.0.2:1:2"]
memory = "2g"
cpus = 1.5
shm_size = "1g"
"""


def test_it_says_what_every_launch_is_given(tmp_path: Path) -> None:
    (tmp_path / "torchdock.toml").write_text(WHOLE)
    (tmp_path / "data").mkdir()
    (tmp_path / ".env").write_text("A=1\n")
    wishes = workspace.read(tmp_path).wishes({"API_KEY": "k"})
    assert wishes.mounts == (Mount(tmp_path / "data", "/data", True), Mount(Path("/"), "/host"))
    assert [(one.name, one.value, one.by_name) for one in wishes.variables] == [
        ("MODE", "fast", False),
        ("API_KEY", "k", True),
        ("MINE_A", "secret", True),  # COLLEAGUES is not set here
    ]
    assert [file.path for file in wishes.files] == [tmp_path / ".env"]
    assert wishes.ports == (Port(8000, 8000), Port(1, 2, "127.0.0.2"))
    assert (wishes.memory, wishes.cpus, wishes.shm) == (2 << 30, 1.5, 1 << 30)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('mounts = [\n  "/:/a",\n  "/no/such:/b",\n]\n', "line 3: -v /no/such:/b: /no/such does not exist"),
        ('environment = [\n  "A=1",\n  "1A=2",\n]\n', "line 3: -e 1A: a variable is NAME=VALUE"),
        ('# x\nenvironment = ["A B"]\n', "line 2: -e: a variable is"),
        ('env_files = ["none"]\n', "line 1: --env-file none: there is no file"),
        ('ports = [\n"80",\n"x"]\n', "line 3: -p x: a port is"),
        ('\nmemory = "much"\n', "line 2: --memory much: a size is"),
        ("\n\ncpus = 0\n", "line 3: --cpus 0: a number of CPUs"),
        ('shm_size = "-1g"\n', "line 1: --shm-size -1g: a size is"),
    ],
)
def test_a_wrong_entry_names_its_line(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "torchdock.toml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        workspace.read(tmp_path).wishes({})
    assert str(refused.value).startswith(f"{path}, {told}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpus = -1\n", "line 1: '-1' is neither a number of GPUs, nor `all`, nor UUIDs"),
        ('\ngpus = "two"\n', "line 2: 'two' is neither"),
        ('gpus = "0,1"\n', "line 1: '0,1' is neither"),
        ('min_memory = "much"\n', "line 1: --min-memory much: a size is"),
        ('gpu_name = ""\n', "line 1: --gpu-name was given an empty name"),
    ],
)
def test_a_wrong_word_about_gpus_names_its_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "torchdock.toml").write_text(text)
    config = workspace.read(tmp_path)
    with pytest.raises(InputError) as refused:
        _ = config.gpus
    assert str(refused.value).startswith(f"{tmp_path / 'torchdock.toml'}, {told}")


def test_a_file_that_says_nothing_of_gpus_asks_for_none_in_particular(tmp_path: Path) -> None:
    assert workspace.read(tmp_path).gpus == Wish()
    (tmp_path / "torchdock.toml").write_text('gpus = "all"\nmin_memory = "40GiB"\n')
    assert workspace.read(tmp_path).gpus == Wish("all", 40 << 30)


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

H100 = Gpu(0, "GPU-0", "NVIDIA H100", 80 << 30, 0, (), "9.0")
P40 = Gpu(1, "GPU-1", "Tesla P40", 24 << 30, 0, (Process(7),), "6.1")


def gathered(wanted: "str | None", found: Inventory, folder: Path, monkeypatch: pytest.MonkeyPatch) -> HostFacts:
    monkeypatch.setattr(gpus, "gather", lambda: found)
    return host.gather(Wish(wanted), folder)


@pytest.mark.parametrize(
    ("wanted", "uuids"),
    [
        (None, ["GPU-0", "GPU-1"]),
        ("0", ["GPU-0", "GPU-1"]),
        ("1", ["GPU-0", "GPU-1"]),
        ("all", ["GPU-0", "GPU-1"]),
        ("GPU-1", ["GPU-1"]),
        ("gpu-1", ["GPU-1"]),
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
    assert found.gpus == (HostGpu("GPU-0", "NVIDIA H100", "9.0"),)
    assert (found.pinned, found.pinned_by) == ("cu126", tmp_path / "torchdock.toml")
    bare = gathered(None, Inventory((), "", "no driver"), tmp_path / "none", monkeypatch)
    assert (bare.gpus, bare.no_gpu_reason, bare.pinned, bare.pinned_by) == ((), "no driver", None, None)


def test_gpus_that_are_not_there_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'GPU-7' is none of them here"):
        gathered("GPU-7", Inventory((H100,), "580.1", ""), tmp_path, monkeypatch)
