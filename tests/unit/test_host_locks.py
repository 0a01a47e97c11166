"""Locks: reading, what is no pin, layers, differences, writing whole; and the lock of cu130 itself."""

from pathlib import Path

import pytest
from given import ROOT

from torchdock import image, locks, variants
from torchdock.errors import InputError

A, B = "a" * 64, "b" * 64
VARIANT = variants.get(ROOT, "cu130")
LOCK = f"""\
# written by a resolver
torch==2.14.1 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
    # via -r requirements.in

Typing_Extensions==4.16.0 ; python_version < '3.14' --hash=sha256:{A}
uv[extra]==0.13.9+local.1 --hash=sha256:{B}
"""


def test_a_lock_is_read_with_hashes_markers_and_continuation_lines() -> None:
    assert locks.parse(LOCK, "x.txt") == {
        "torch": locks.Pin("torch", "2.14.1", f"torch==2.14.1 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n"),
        "typing-extensions": locks.Pin(
            "typing-extensions",
            "4.16.0",
            f"Typing_Extensions==4.16.0 ; python_version < '3.14' \\\n    --hash=sha256:{A}\n",
        ),
        "uv": locks.Pin("uv", "0.13.9+local.1", f"uv==0.13.9+local.1 \\\n    --hash=sha256:{B}\n"),
    }


def test_what_was_read_reads_the_same_again() -> None:
    pins = locks.parse(LOCK, "x.txt")
    assert locks.parse("".join(pin.text for pin in pins.values()), "x.txt") == pins


def test_an_empty_lock_has_no_pins() -> None:
    assert locks.parse("\n# nothing\n", "x.txt") == {}


@pytest.mark.parametrize(
    "entry",
    [
        "numpy==2.5.5",
        f"numpy>=2 --hash=sha256:{A}",
        f"numpy --hash=sha256:{A}",
        "numpy==2.5.5 --hash=sha256:abc",
        f"numpy==2.5.5 --hash=sha256:{A}0",
        f"numpy==2.5.5 --hash=md5:{A}",
        "numpy @ file:///numpy.whl",
    ],
    ids=["no hash", "a range", "no version", "short hash", "long hash", "weak hash", "a file"],
)
def test_what_is_no_pin_with_its_hash_names_the_file_and_the_package(entry: str) -> None:
    with pytest.raises(InputError) as bad:
        locks.parse(f"{LOCK}{entry}\n", "docker/locks/cu130/tools.txt")
    assert str(bad.value).startswith("docker/locks/cu130/tools.txt: 'numpy")
    assert "git checkout docker/locks" in str(bad.value)
    assert bad.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torch", "torch"),
        ("torchvision", "torch"),
        ("triton", "torch"),
        ("nvidia-cudnn-cu13", "cuda"),
        ("nvidia-nvshmem-cu13", "cuda"),
        ("cuda-bindings", "cuda"),
        ("nvidia-ml-py", "tools"),
        ("torchmetrics", "tools"),
        ("numpy", "tools"),
    ],
)
def test_a_package_belongs_to_a_layer(name: str, layer: str) -> None:
    assert locks.layer_of(name) == layer


def pins(**versions: str) -> "dict[str, locks.Pin]":
    return {
        name: locks.Pin(name, version, f"{name}=={version} \\\n    --hash=sha256:{A}\n")
        for name, version in versions.items()
    }


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [
        ({}, {}, []),
        ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, []),
        ({"a": "1", "c": "3"}, {"a": "2", "b": "1"}, [("a", "1", "2"), ("b", "", "1"), ("c", "3", "")]),
    ],
)
def test_a_difference_names_each_package_that_moved(
    old: "dict[str, str]", new: "dict[str, str]", rows: "list[tuple[str, str, str]]"
) -> None:
    assert locks.difference(pins(**old), pins(**new)) == rows


def locked(root: Path) -> "dict[str, str]":
    return {path.name: path.read_text() for path in (root / "docker/locks/cu130").iterdir() if path.is_file()}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "docker/locks/cu130").mkdir(parents=True)
    for name in ("cuda.txt", "torch.txt", "tools.txt"):
        (tmp_path / "docker/locks/cu130" / name).write_text(f"# old {name}\n")
    return tmp_path


def test_each_package_is_written_to_the_file_of_its_layer(clone: Path) -> None:
    new = pins(torch="2.14.1", numpy="2.5.5", attrs="1")
    locks.write(clone, VARIANT, new)
    assert locked(clone) == {
        "cuda.txt": "",
        "torch.txt": new["torch"].text,
        "tools.txt": new["attrs"].text + new["numpy"].text,
    }
    assert locks.read(clone, "cu130") == new


def test_where_one_file_cannot_be_written_none_is(clone: Path) -> None:
    before = locked(clone)
    (clone / "docker/locks/cu130/.tools.txt.new").mkdir()  # the last of the three cannot be prepared
    with pytest.raises(OSError):
        locks.write(clone, VARIANT, pins(torch="3", numpy="3"))
    assert locked(clone) == before


def test_a_damaged_file_of_a_lock_is_named(clone: Path) -> None:
    (clone / "docker/locks/cu130/torch.txt").write_text("torch==2.14.1\n")
    with pytest.raises(InputError, match=r"^docker/locks/cu130/torch\.txt: 'torch==2\.14\.1' is not a pinned package"):
        locks.read(clone, "cu130")


@pytest.mark.parametrize(("layer", "least"), [("cuda", 15), ("torch", 3), ("tools", 25)])
def test_the_lock_of_cu130_has_each_package_in_its_layer(layer: str, least: int) -> None:
    path = ROOT / "docker/locks/cu130" / f"{layer}.txt"
    found = locks.parse(path.read_text(), path.name)
    assert len(found) >= least
    assert {name for name in found if locks.layer_of(name) != layer} == set()


def test_the_lock_of_cu130_is_as_it_would_be_written(tmp_path: Path) -> None:
    (tmp_path / "docker/locks/cu130").mkdir(parents=True)
    locks.write(tmp_path, VARIANT, locks.read(ROOT, "cu130"))
    assert locked(tmp_path) == locked(ROOT)


def test_no_package_is_locked_twice() -> None:
    sizes = {
        name: len(locks.parse((ROOT / f"docker/locks/cu130/{name}.txt").read_text(), name)) for name in locks.LAYERS
    }
    assert sum(sizes.values()) == len(locks.read(ROOT, "cu130"))


def test_the_builds_own_uv_is_pinned() -> None:
    found = locks.parse((ROOT / "docker/locks/uv.txt").read_text(), "uv.txt")
    assert list(found) == ["uv"]
    assert found["uv"].version == locks.read(ROOT, "cu130")["uv"].version


def test_the_lock_decides_the_image() -> None:
    inputs = {path.name for path in image.input_files(ROOT, VARIANT)}
    assert {f"{layer}.txt" for layer in locks.LAYERS} <= inputs
