"""Locks: reading, what is no pin, layers, differences, what one is for, writing whole; and the committed locks."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from given import ROOT

from torchdock import image, locks, variants
from torchdock.errors import InputError
from torchdock.inside import versions

A, B = "a" * 64, "b" * 64
VARIANTS = variants.read(ROOT)
VARIANT = VARIANTS["cu130"]
LOCKED = [name for name in VARIANTS if (ROOT / "docker/locks" / name).is_dir()]
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


def test_without_cuda_there_is_no_cuda_layer() -> None:
    assert locks.layers(VARIANTS["cu130"]) == ("cuda", "torch", "tools", "recent") == versions.LAYERS
    assert locks.layers(VARIANTS["cpu"]) == ("torch", "tools", "recent")


def test_triton_comes_from_where_it_was_locked() -> None:
    # The index of cu126 has a triton with other hashes, and its torch layer is installed from there.
    assert locks.layer_of("triton", own_index=True) == "cuda"
    assert locks.layer_of("torch", own_index=True) == "torch"


def locked(root: Path, variant: str = "cu130") -> "dict[str, str]":
    """The files of the environment; the lock of the devel target may lie beside them."""
    folder = root / "docker/locks" / variant
    return {path.name: path.read_text() for path in folder.iterdir() if path.stem in locks.LAYERS}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What check and write read of a clone."""
    for name in ("variants.toml", "requirements.in"):
        (tmp_path / "docker").mkdir(exist_ok=True)
        shutil.copy(ROOT / "docker" / name, tmp_path / "docker")
    shutil.copytree(ROOT / "docker/locks/cu130", tmp_path / "docker/locks/cu130")
    shutil.copytree(ROOT / "docker/locks/cpu", tmp_path / "docker/locks/cpu")
    return tmp_path


# --- the header -------------------------------------------------------------------------------------------------------

HEADER = locks.Header("cpu", "torch", "3.13", ("x86_64", "aarch64"), index="https://example.org/whl/cpu")


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        locks.Header("cu128", "recent", "3.13", ("x86_64",), requirements="0123456789ab"),
        locks.Header("cu128", "tools", "3.13", ("x86_64", "aarch64"), download={"x86_64": 12, "aarch64": 0}),
    ],
)
def test_a_header_reads_as_it_was_written(header: locks.Header) -> None:
    assert locks.header(header.line + "torch==1\n") == header
    assert locks.parse(header.line, "x") == {}
    assert versions.pins(header.line) == {}


def test_a_header_says_what_a_lock_is_for() -> None:
    line = "variant=cpu layer=torch python=3.13 architectures=x86_64,aarch64 index=https://example.org/whl/cpu"
    assert HEADER.line == f"# torchdock: {line}\n"
    sized = replace(HEADER, index="", download={"x86_64": 34, "aarch64": 5})
    assert sized.line.endswith(" architectures=x86_64,aarch64 download=x86_64:34,aarch64:5\n")
    assert locks.header(sized.line.replace("x86_64:34", "x86_64:many")) == replace(sized, download={"aarch64": 5})


@pytest.mark.parametrize("text", ["", "torch==1\n", "# torchdock: variant=cpu\n", f"\n{HEADER.line}"])
def test_where_the_first_line_says_nothing_there_is_no_header(text: str) -> None:
    assert locks.header(text) is None


# --- requirements -----------------------------------------------------------------------------------------------------


def asked(clone: Path, text: str) -> "dict[int, str]":
    (clone / "docker/requirements.in").write_text(text)
    return {number: str(requirement) for number, requirement in locks.requirements(clone).items()}


def test_requirements_are_read_by_line(clone: Path) -> None:
    text = "# tools\nnumpy\n\nnumba>=0.60,<1 # speed\n  einops[all] ; python_version>'3'\nx#y-is-no-comment\n"
    found = {2: "numpy", 4: "numba<1,>=0.60", 5: 'einops[all]; python_version > "3"'}
    assert asked(clone, text.replace("x#y-is-no-comment\n", "")) == found
    with pytest.raises(InputError, match=r"requirements\.in:6: 'x' is no requirement"):
        asked(clone, text)


@pytest.mark.parametrize(
    ("line", "name", "problem"),
    [
        ("numpy=2", "numpy", "is no requirement"),
        ("-r more.txt", "-r", "is an option"),
        ("--extra-index-url https://u:s3cret@example.org/", "--extra-index-url", "is an option"),
        ("mine @ https://u:s3cret@example.org/mine.whl", "mine", "names a URL"),
        ("https://u:s3cret@example.org/mine.whl", "https", "is no requirement"),
    ],
)
def test_a_line_that_no_lock_can_hold_is_named_without_its_url(clone: Path, line: str, name: str, problem: str) -> None:
    with pytest.raises(InputError) as bad:
        asked(clone, f"numpy\n{line}\n")
    assert str(bad.value).startswith(f"docker/requirements.in:2: {name!r} {problem}")
    assert "s3cret" not in str(bad.value)


def test_a_digest_is_of_what_is_asked_not_of_how_it_is_written(clone: Path) -> None:
    def digest(text: str) -> str:
        asked(clone, text)
        return locks.digest(locks.requirements(clone).values())

    first = digest("numpy>=2,<3\nTyping_Extensions\n")
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert digest("# x\ntyping-extensions  # y\nnumpy <3, >=2\n") == first
    assert digest("numpy>=2\ntyping-extensions\n") != first
    assert digest("numpy>=2,<3\ntyping-extensions\nrich\n") != first


# --- whether a lock can be built --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", LOCKED)
@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_committed_locks_are_good(variant: str, architecture: str) -> None:
    if architecture in VARIANTS[variant].architectures:
        assert locks.check(ROOT, VARIANTS[variant], architecture) == []
        return
    with pytest.raises(InputError, match=rf"{variant} is for x86_64, not for {architecture}"):
        locks.check(ROOT, VARIANTS[variant], architecture)


def test_where_there_is_no_lock_the_task_that_writes_it_is_named(clone: Path) -> None:
    with pytest.raises(InputError) as bad:
        locks.check(clone, VARIANTS["cu126"], "x86_64")
    assert str(bad.value) == (
        "The variant cu126 has no lock in this clone yet: `invoke lock --variant cu126` where "
        "download.pytorch.org/whl/cu126 can be reached writes it."
    )
    with pytest.raises(
        InputError, match="cu128 has no lock in this clone yet: `invoke lock --variant cu128` writes it"
    ):
        locks.check(clone, VARIANTS["cu128"], "x86_64")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("tools", "python=3.13", "python=3.12", "is for Python 3.12, and the variant cpu has 3.13"),
        ("torch", "=x86_64,aarch64", "=aarch64", "is for aarch64, not for x86_64"),
        ("tools", "variant=cpu", "variant=cu130", "is for the variant cu130, not for cpu"),
        ("tools", "layer=tools", "layer=torch", "is the layer torch, not tools"),
        ("torch", "/whl/cpu", "/whl/cu126", "takes its packages from https://download.pytorch.org/whl/cu126, and"),
        ("tools", "# torchdock:", "# once:", "does not begin with the line that says what it is for"),
    ],
)
def test_a_lock_for_something_else_is_refused(clone: Path, file: str, old: str, new: str, said: str) -> None:
    path = clone / f"docker/locks/cpu/{file}.txt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError) as bad:
        locks.check(clone, VARIANTS["cpu"], "x86_64")
    assert str(bad.value).startswith(f"docker/locks/cpu/{file}.txt {said}")
    assert "`git checkout docker/locks` restores it, `invoke lock --variant cpu` writes it anew." in str(bad.value)


@pytest.mark.parametrize("layer", ["torch", "recent"])
def test_a_lock_of_which_a_file_is_missing_is_refused(clone: Path, layer: str) -> None:
    (clone / f"docker/locks/cpu/{layer}.txt").unlink()
    with pytest.raises(
        InputError, match=rf"/{layer}\.txt is missing\. `git checkout .*`invoke lock --variant cpu` wri"
    ):
        locks.check(clone, VARIANTS["cpu"], "x86_64")


@pytest.mark.parametrize(("field", "name"), [("torch", "torch"), ("torchvision", "torchvision")])
def test_a_lock_of_another_torch_line_is_refused(clone: Path, field: str, name: str) -> None:
    other = replace(VARIANTS["cpu"], **{field: "2.15.0+cpu"})
    was = getattr(VARIANTS["cpu"], field)
    with pytest.raises(
        InputError, match=rf"lock of cpu has {name} {re.escape(was)}, docker/variants.toml says 2\.15\.0"
    ):
        locks.check(clone, other, "x86_64")


def test_a_lock_with_a_missing_hash_is_refused(clone: Path) -> None:
    path = clone / "docker/locks/cpu/tools.txt"
    path.write_text(re.sub(r"^(iniconfig==\S+) (\\\n    --hash=\S+ ?)+", r"\1\n", path.read_text(), flags=re.M))
    with pytest.raises(InputError, match=r"^docker/locks/cpu/tools\.txt: 'iniconfig==\S+ is not a pinned package"):
        locks.check(clone, VARIANTS["cpu"], "x86_64")


def test_a_lock_older_than_its_requirements_is_a_warning(clone: Path) -> None:
    with (clone / "docker/requirements.in").open("a") as requirements:
        requirements.write("einops\n")
    assert locks.check(clone, VARIANTS["cpu"], "x86_64") == [
        "The lock of cpu is older than docker/requirements.in: `invoke lock` brings it up to date"
    ]
    digest = locks.digest(locks.requirements(clone).values())
    assert locks.is_older(clone, "cpu", digest) and not locks.is_older(clone, "cu126", digest)
    locks.replace(written(clone, VARIANTS["cpu"], locks.read(clone, "cpu") | pins(einops="1"), digest))
    assert not locks.is_older(clone, "cpu", digest) and locks.check(clone, VARIANTS["cpu"], "x86_64") == []
    (clone / "docker/locks/cpu/recent.txt").unlink()  # of before there was that layer
    assert locks.is_older(clone, "cpu", digest)


def test_a_mistake_in_the_requirements_stops_no_build(clone: Path) -> None:
    (clone / "docker/requirements.in").write_text("numpy=2\n")
    (warning,) = locks.check(clone, VARIANTS["cpu"], "x86_64")
    assert warning.startswith("docker/requirements.in:1: 'numpy' is no requirement")


# --- writing ----------------------------------------------------------------------------------------------------------


def written(
    clone: Path,
    variant: variants.Variant,
    pins: "dict[str, locks.Pin]",
    asked: str = "0" * 12,
    download: "dict[str, dict[str, int]] | None" = None,
) -> "dict[Path, str | None]":
    """What is to be written for these pins."""
    there = locks.texts(clone, variant)
    return locks.files(clone, variant, locks.lay(variant, pins, there), asked, there, download)


def test_each_package_is_written_to_the_file_of_its_layer(clone: Path) -> None:
    new = pins(torch="2.14.1", numpy="2.5.5", attrs="1", triton="3")
    locks.replace(written(clone, VARIANT, new, "0123456789ab"))
    found = locked(clone)
    assert {name: locks.header(text) for name, text in found.items()} == {
        f"{layer}.txt": locks.Header(
            "cu130", layer, "3.13", ("x86_64", "aarch64"), requirements="0123456789ab" * (layer == "recent")
        )
        for layer in locks.LAYERS
    }
    bodies = {name: text.partition(locks.NOTE)[2] for name, text in found.items()}
    assert bodies == {
        "cuda.txt": "",
        "torch.txt": new["torch"].text + new["triton"].text,
        "tools.txt": new["attrs"].text + new["numpy"].text,
        "recent.txt": "",
    }
    assert locks.read(clone, "cu130") == new


def test_a_variant_with_an_index_names_it_where_it_is_used(clone: Path) -> None:
    texts = written(clone, VARIANTS["cu126"], pins(torch="2.14.1+cu126", triton="3"))
    headers = {path.stem: locks.header(text or "") for path, text in texts.items()}
    assert {name: found and found.index for name, found in headers.items()} == {
        "cuda": "",
        "torch": "https://download.pytorch.org/whl/cu126",
        "tools": "",
        "recent": "",
    }
    assert "triton==3" in (texts[clone / "docker/locks/cu126/cuda.txt"] or "")


def test_a_variant_that_lost_its_cuda_loses_that_file(clone: Path) -> None:
    bare = replace(VARIANT, cuda="")
    locks.replace(written(clone, bare, pins(torch="2.14.1")))
    assert set(locked(clone)) == {"torch.txt", "tools.txt", "recent.txt"}
    assert {path.stem for path in written(clone, bare, {})} == {"torch", "tools", "recent"}


# --- what was added or moved since the tools were laid ----------------------------------------------------------------


@pytest.fixture
def small(clone: Path) -> Path:
    """A clone in which cu130 was laid with two tools."""
    shutil.rmtree(clone / "docker/locks/cu130")
    sizes = {layer: {"x86_64": number} for number, layer in enumerate(locks.LAYERS, 1)}
    locks.replace(written(clone, VARIANT, pins(torch="2", numpy="1", attrs="1"), "a" * 12, sizes))
    return clone


def relock(
    clone: Path, digest: str = "b" * 12, upgraded: bool = False, **versions: str
) -> "tuple[locks.Laid, dict[str, dict[str, str]]]":
    """Lock these versions and torch 2; how they are laid, and the versions in each file of tools."""
    there = locks.texts(clone, VARIANT)
    laid = locks.lay(VARIANT, pins(torch="2", **versions), there, upgraded=upgraded)
    locks.replace(locks.files(clone, VARIANT, laid, digest, there, {layer: {"x86_64": 99} for layer in locks.LAYERS}))
    found = {layer: locks.read(clone, "cu130", [layer]) for layer in ("tools", "recent")}
    return laid, {layer: {name: pin.version for name, pin in held.items()} for layer, held in found.items()}


BASE = {"numpy": "1", "attrs": "1"}


@pytest.mark.parametrize(
    ("wanted", "recent", "said"),
    [
        ({**BASE, "rich": "1"}, {"rich": "1"}, "the next build installs 1 package in the layer of recent ones (rich)"),
        ({**BASE, "numpy": "2"}, {"numpy": "2"}, "1 package in the layer of recent ones (numpy), the tools stay"),
        ({"numpy": "2", "attrs": "2"}, {"numpy": "2", "attrs": "2"}, "2 packages in the layer of recent ones (attrs, "),
        (BASE, {}, "the tools stay as they are"),
    ],
    ids=["added", "moved", "all moved", "the same"],
)
def test_what_is_added_or_moved_is_laid_on_the_tools(
    small: Path, wanted: "dict[str, str]", recent: "dict[str, str]", said: str
) -> None:
    before = locked(small)
    laid, found = relock(small, **wanted)
    assert found == {"tools": BASE, "recent": recent}
    after = locked(small)
    assert {name for name in after if after[name] != before[name]} == {"recent.txt"}  # for what it was resolved from
    assert {name: pin.version for name, pin in locks.read(small, "cu130").items()} == {"torch": "2", **wanted}
    assert said in str(laid) and laid.document() == {"anew": "", "recent": sorted(recent)}


def test_other_hashes_of_the_same_version_are_recent(small: Path) -> None:
    there = locks.texts(small, VARIANT)
    moved = {"numpy": replace(pins(numpy="1")["numpy"], text=f"numpy==1 \\\n    --hash=sha256:{B}\n")}
    laid = locks.lay(VARIANT, pins(torch="2", **BASE) | moved, there)
    assert laid.layers["recent"] == moved and laid.layers["tools"] == pins(**BASE) and not laid.anew


def test_what_moves_back_is_recent_no_more(small: Path) -> None:
    before = locked(small)
    relock(small, numpy="2", attrs="1", rich="1")
    _, found = relock(small, numpy="1", attrs="1", rich="1")
    assert found == {"tools": BASE, "recent": {"rich": "1"}}
    laid, found = relock(small, "a" * 12, **BASE)
    assert found == {"tools": BASE, "recent": {}} and str(laid) == "the tools stay as they are"
    assert locked(small)["tools.txt"] == before["tools.txt"]


def test_what_is_no_longer_wanted_and_is_recent_just_leaves(small: Path) -> None:
    relock(small, **BASE, rich="1", tqdm="1")
    laid, found = relock(small, **BASE, tqdm="1")
    assert found == {"tools": BASE, "recent": {"tqdm": "1"}} and not laid.anew


def test_where_a_tool_is_no_longer_wanted_all_are_laid_anew(small: Path) -> None:
    relock(small, **BASE, rich="1")
    laid, found = relock(small, numpy="1", rich="1")
    assert found == {"tools": {"numpy": "1", "rich": "1"}, "recent": {}}
    assert str(laid) == "the next build lays the tools anew (2 packages): attrs is no longer wanted"
    assert laid.document() == {"anew": "attrs is no longer wanted", "recent": []}


def test_where_everything_is_upgraded_all_are_laid_anew(small: Path) -> None:
    before = locked(small)
    laid, found = relock(small, "a" * 12, upgraded=True, **BASE)
    assert not laid.anew and locked(small) == before  # and nothing moved
    relock(small, **BASE, rich="1")
    laid, found = relock(small, upgraded=True, **BASE, rich="1")
    assert found == {"tools": {**BASE, "rich": "1"}, "recent": {}} and laid.anew == "everything was upgraded"


def test_too_many_recent_ones_are_laid_with_the_tools(small: Path) -> None:
    many = {f"p{number}": "1" for number in range(locks.MOST_RECENT)}
    laid, found = relock(small, **BASE, **many)
    assert not laid.anew and len(found["recent"]) == 30
    laid, found = relock(small, **BASE, **many, one="1")
    assert found == {"tools": {**BASE, **many, "one": "1"}, "recent": {}}
    assert laid.anew == "31 packages were added or moved since it was laid, and 30 are the most"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("python=3.13", "python=3.12", "tools.txt is for Python 3.12, and the variant cu130 has 3.13"),
        ("variant=cu130", "variant=cu128", "tools.txt is for the variant cu128, not for cu130"),
        ("=x86_64,aarch64", "=x86_64", "tools.txt is for x86_64, not for aarch64"),
        ("=x86_64,aarch64", "=x86_64,aarch64,riscv64", "is for x86_64, aarch64, riscv64, not for x86_64, aarch64"),
        ("# torchdock:", "#", "tools.txt does not begin with the line that says what it is for"),
    ],
)
def test_where_the_tools_are_for_something_else_all_are_laid_anew(small: Path, old: str, new: str, said: str) -> None:
    path = small / "docker/locks/cu130/tools.txt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    laid, found = relock(small, **BASE, rich="1")
    assert found == {"tools": {**BASE, "rich": "1"}, "recent": {}} and said in laid.anew
    assert relock(small, **BASE, rich="1")[0].anew == ""  # the new ones fit


def test_where_nothing_is_locked_all_are_laid(clone: Path) -> None:
    shutil.rmtree(clone / "docker/locks/cu130")
    laid, found = relock(clone, **BASE)
    assert found == {"tools": BASE, "recent": {}} and laid.anew == "nothing was locked yet"
    assert laid.changed == set(locks.LAYERS)


def test_a_lock_of_before_there_were_recent_ones_keeps_its_tools(small: Path) -> None:
    folder = small / "docker/locks/cu130"
    (folder / "recent.txt").unlink()
    old = (folder / "tools.txt").read_text().replace("aarch64 ", f"aarch64 requirements={'a' * 12} ", 1)
    (folder / "tools.txt").write_text(old)
    laid, found = relock(small, **BASE, rich="1")
    assert found == {"tools": BASE, "recent": {"rich": "1"}} and not laid.anew
    assert (folder / "tools.txt").read_text() == old


# --- what a build downloads -------------------------------------------------------------------------------------------


def test_a_layer_that_stays_keeps_its_sizes_and_one_that_changed_gets_new_ones(small: Path) -> None:
    def sizes(architecture: str = "x86_64") -> "list[int | None]":
        folder = locks.folder(small, "cu130")
        return [locks.download_bytes(folder / f"{layer}.txt", architecture) for layer in locks.LAYERS]

    assert sizes() == [1, 2, 3, 4]
    assert sizes("aarch64") == [0, None, None, 0]  # what no index told, but for layers of nothing
    relock(small, **BASE, rich="1")
    assert sizes() == [1, 2, 3, 99]
    relock(small, "c" * 12, **BASE, rich="1")  # other requirements, the same packages: nothing is asked
    there = locks.texts(small, VARIANT)
    laid = locks.lay(VARIANT, pins(torch="2", **BASE, rich="1"), there)
    assert laid.changed == set()
    locks.replace(locks.files(small, VARIANT, laid, "d" * 12, there))
    assert sizes() == [1, 2, 3, 99]
    (small / "docker/locks/cu130/torch.txt").unlink()
    (small / "docker/locks/cu130/cuda.txt").unlink()
    assert sizes() == [None, None, 3, 99]


def test_what_is_beside_the_layers_is_no_part_of_the_lock(clone: Path) -> None:
    before = locks.read(clone, "cu130")
    (clone / "docker/locks/cu130/devel.txt").write_text("no lock at all\n")
    assert locks.read(clone, "cu130") == before
    assert locks.check(clone, VARIANT, "x86_64") == []


def a_writing(clone: Path) -> "dict[Path, str | None]":
    """Two files replaced, one removed, one new in a new folder."""
    folder = clone / "docker/locks"
    return {
        folder / "cu130/torch.txt": "new torch\n",
        folder / "cu130/cuda.txt": None,
        folder / "cu126/torch.txt": "new cu126\n",
        folder / "cu130/tools.txt": "new tools\n",
    }


def tree(clone: Path) -> "dict[str, str]":
    folder = clone / "docker/locks"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_written_and_nothing_is_left_beside_it(clone: Path) -> None:
    before = tree(clone)
    for name in ("tools.txt", "torch.txt"):  # of a run that was killed
        os.link(clone / "docker/locks/cu130" / name, clone / f"docker/locks/cu130/.{name}.old")
    locks.replace(a_writing(clone))
    del before["cu130/cuda.txt"]
    new = {"cu130/torch.txt": "new torch\n", "cu126/torch.txt": "new cu126\n", "cu130/tools.txt": "new tools\n"}
    assert tree(clone) == {**before, **new}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("after", range(1, 4))
def test_where_one_file_cannot_be_written_none_is(
    clone: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException
) -> None:
    before, calls, real = tree(clone), [], os.replace

    def stumble(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == after:
            raise error
        real(source, target)

    monkeypatch.setattr(locks.os, "replace", stumble)
    with pytest.raises(type(error)):
        locks.replace(a_writing(clone))
    assert len(calls) >= after
    assert tree(clone) == before
    assert not (clone / "docker/locks/cu126").exists()


def test_where_one_file_cannot_be_prepared_none_is_written(clone: Path) -> None:
    before = tree(clone)
    (clone / "docker/locks/cu130/.tools.txt.new").mkdir()  # the last one
    with pytest.raises(OSError):
        locks.replace(a_writing(clone))
    assert tree(clone) == before


def test_without_hard_links_the_old_ones_are_copied(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(locks.os, "link", refuse)
    test_where_one_file_cannot_be_written_none_is(clone, monkeypatch, 2, KeyboardInterrupt())


def test_a_damaged_file_of_a_lock_is_named(clone: Path) -> None:
    (clone / "docker/locks/cu130/torch.txt").write_text("torch==2.14.1\n")
    with pytest.raises(InputError, match=r"^docker/locks/cu130/torch\.txt: 'torch==2\.14\.1' is not a pinned package"):
        locks.read(clone, "cu130")


# --- the committed locks ----------------------------------------------------------------------------------------------


def test_there_is_a_lock_of_every_variant_whose_index_was_reached() -> None:
    assert {"cpu", "cu128", "cu130"} <= set(LOCKED)


@pytest.mark.parametrize("variant", LOCKED)
def test_each_package_of_a_lock_is_in_its_layer_and_in_no_other(variant: str) -> None:
    own, seen = bool(VARIANTS[variant].index), []
    for layer in locks.layers(VARIANTS[variant]):
        found = locks.parse((ROOT / f"docker/locks/{variant}/{layer}.txt").read_text(), layer)
        home = "tools" if layer == "recent" else layer
        assert {name for name in found if locks.layer_of(name, own_index=own) != home} == set()
        assert len(found) >= {"cuda": 15, "torch": 2, "tools": 30, "recent": 0}[layer]
        seen += found if layer != "recent" else []
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("variant", LOCKED)
def test_a_lock_is_as_it_would_be_written(variant: str) -> None:
    digest = locks.digest(locks.requirements(ROOT).values())
    texts = written(ROOT, VARIANTS[variant], locks.read(ROOT, variant), digest)
    assert {path.name: text for path, text in texts.items()} == locked(ROOT, variant)


@pytest.mark.parametrize("variant", LOCKED)
def test_everything_that_is_required_is_locked(variant: str) -> None:
    required = {requirement.name for requirement in locks.requirements(ROOT).values()}
    assert required >= {"numpy", "pytest", "jupyterlab", "tensorboard", "py-spy"}
    assert required - set(locks.read(ROOT, variant)) == set()


def test_the_variants_share_their_tools() -> None:
    tools = [
        {name: pin for name, pin in locks.read(ROOT, variant).items() if locks.layer_of(name) == "tools"}
        for variant in LOCKED
    ]
    common = set.intersection(*(set(found) for found in tools))
    assert len(common) > 100
    assert all(found[name] == tools[0][name] for found in tools for name in common)


def test_the_cpu_variant_has_no_cuda() -> None:
    assert versions.cuda_packages(locks.read(ROOT, "cpu")) == []


@pytest.mark.parametrize("variant", LOCKED)
def test_a_lock_says_what_is_downloaded(variant: str) -> None:
    row, limits = VARIANTS[variant], {"cuda": 5e9, "torch": 2e9, "tools": 3e8, "recent": 2e8}
    for architecture in row.locked:
        for layer, limit in limits.items():
            size = locks.download_bytes(locks.folder(ROOT, variant) / f"{layer}.txt", architecture)
            if layer not in locks.layers(row) or (layer == "torch" and row.index):
                continue  # PyTorch's own index tells no sizes
            assert size is not None and size < limit
            assert (size > 1e8) is bool(locks.read(ROOT, variant, [layer])) or layer == "recent"


def test_the_builds_own_uv_is_pinned() -> None:
    found = locks.parse((ROOT / "docker/locks/uv.txt").read_text(), "uv.txt")
    assert list(found) == ["uv"]
    assert found["uv"].version == locks.read(ROOT, "cu130")["uv"].version


def test_the_lock_decides_the_image() -> None:
    inputs = {path.name for path in image.input_files(ROOT, VARIANT)}
    assert {f"{layer}.txt" for layer in locks.LAYERS} <= inputs


def test_a_lock_that_was_cut_is_refused(tmp_path: Path) -> None:
    """At the boundary of a package each line is good; that one is missing shows by what was asked for."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    path = tmp_path / "docker/locks/cu130/tools.txt"
    whole = path.read_text()
    path.write_text(whole[: whole.index("\nnumpy==") + 1])
    with pytest.raises(InputError, match=r"The lock of cu130 lacks .*numpy.* which docker/requirements\.in asks for"):
        locks.check(tmp_path, variants.get(tmp_path, "cu130"), "x86_64")
