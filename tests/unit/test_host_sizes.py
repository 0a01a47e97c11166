"""What a layer downloads: which wheel an image takes, sums, pages as indexes give them, and how often one is asked."""

import json
from collections.abc import Iterator

import pytest
from given import ROOT
from tests import indexes

from torchdock import locks, sizes, sources, variants
from torchdock.locks import Pin
from torchdock.sources import Mirror, Sources

VARIANTS = variants.read(ROOT)
CPU, CU130 = VARIANTS["cpu"], VARIANTS["cu130"]


def pin(name: str, version: str, *hashes: str) -> Pin:
    lines = [f"{name}=={version}", *(f"--hash=sha256:{one}" for one in hashes)]
    return Pin(name, version, " \\\n    ".join(lines) + "\n")


def taken(*files: str, architecture: str = "x86_64", locked: "int | None" = None) -> "int | None":
    """The place in the list of the wheel that is taken of one package; the first ones are locked."""
    wheels = {f"{place:064x}": (file, place) for place, file in enumerate(files, 1)}
    entry = pin("a", "1", *list(wheels)[:locked])
    return sizes.total([entry], {"a": wheels}, sizes.ranks("3.13", architecture))


@pytest.mark.parametrize(
    ("architecture", "files", "place"),
    [
        ("x86_64", ["a-1-py3-none-any.whl"], 1),
        ("x86_64", ["a-1-py3-none-any.whl", "a-1-cp313-cp313-manylinux_2_28_x86_64.whl"], 2),
        ("aarch64", ["a-1-cp313-cp313-manylinux_2_28_x86_64.whl", "a-1-cp313-cp313-manylinux_2_28_aarch64.whl"], 2),
        ("x86_64", ["a-1-cp313-cp313t-manylinux_2_28_x86_64.whl", "a-1-cp39-abi3-manylinux_2_28_x86_64.whl"], 2),
        ("x86_64", ["a-1-cp310-abi3-manylinux2014_x86_64.whl", "a-1-cp39-abi3-manylinux2014_x86_64.whl"], 1),
        ("x86_64", ["a-1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "a-1-py3-none-any.whl"], 1),
        ("x86_64", ["a-1-cp313-cp313-manylinux_2_17_x86_64.whl", "a-1-cp313-cp313-manylinux_2_39_x86_64.whl"], 2),
        ("x86_64", ["a-1-cp313-cp313-musllinux_1_2_x86_64.whl", "a-1-py3-none-manylinux1_x86_64.whl"], 2),
        ("x86_64", ["a-1-2-py3-none-any.whl", "a-1-10-py3-none-any.whl"], 2),
        ("aarch64", ["a-1-cp313-cp313-win_amd64.whl"], None),
        ("x86_64", ["a-1-cp314-cp314-manylinux_2_28_x86_64.whl"], None),
        ("x86_64", ["a-1-cp313-cp313-manylinux_2_42_x86_64.whl"], None),  # for a newer glibc than Debian 13's
        ("x86_64", ["a-no-wheel.whl"], None),
    ],
)
def test_the_wheel_that_an_image_takes(architecture: str, files: "list[str]", place: "int | None") -> None:
    assert taken(*files, architecture=architecture) == place


def test_only_what_is_locked_is_taken() -> None:
    files = ("a-1-py3-none-any.whl", "a-1-cp313-cp313-manylinux_2_28_x86_64.whl")
    assert taken(*files, locked=1) == 1


def test_a_sum_is_of_all_or_there_is_none() -> None:
    pins = [pin("a", "1", "0" * 64), pin("b", "1", "1" * 64)]
    wheels = {"a": {"0" * 64: ("a-1-py3-none-any.whl", 2)}, "b": {"1" * 64: ("b-1-py3-none-any.whl", 3)}}
    ranks = sizes.ranks("3.13", "x86_64")
    assert sizes.total(pins, wheels, ranks) == 5
    assert sizes.total(pins, {"a": wheels["a"]}, ranks) is None
    assert sizes.total([], {}, ranks) == 0


FILE = {"filename": "a-1-py3-none-any.whl", "hashes": {"sha256": "0" * 64}, "size": 7}


@pytest.mark.parametrize(
    ("files", "wheels"),
    [
        ([FILE, {"filename": "a-1.tar.gz"}], {"0" * 64: ("a-1-py3-none-any.whl", 7)}),
        ([], {}),
        ([{**FILE, "size": None}], None),
        ([{key: FILE[key] for key in ("filename", "hashes")}], None),  # PEP 691 alone
        ([{**FILE, "hashes": {}}], None),
        ("none", None),
    ],
)
def test_a_page_is_read_or_it_tells_no_sizes(files: object, wheels: object) -> None:
    assert sizes.read_page(json.dumps({"files": files}).encode()) == wheels


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff", b"{}"])
def test_what_is_no_page_tells_no_sizes(body: bytes) -> None:
    assert sizes.read_page(body) is None


# --- asking an index --------------------------------------------------------------------------------------------------


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> "Iterator[indexes.Index]":
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with indexes.serve(token="anna:s3cret") as served:
        served.json = True
        yield served


def asking(index: indexes.Index, folder: str = "simple") -> sizes.Sizes:
    def mirror(name: str) -> Mirror:
        return Mirror("X", index.url(name, credentials="anna:s3cret"))

    return sizes.Sizes(Sources(None, (), index=mirror(folder), torch_index=mirror("whl")))


def locked(index: indexes.Index, folder: str, *names: str, tag: str = "py3-none-any") -> "dict[str, Pin]":
    return {name: pin(name, "1", index.wheel(folder, name, "1", tag=tag)) for name in names}


def weight(name: str, tag: str = "py3-none-any") -> int:
    return len(indexes.stand_in_wheel(name, "1", tag=tag)[1])


def test_each_page_is_asked_for_once(index: indexes.Index) -> None:
    names = [f"package-{number}" for number in range(20)]
    pins = locked(index, "simple", *names)
    told, size = asking(index), sum(map(weight, names))
    assert told.of(CU130, "tools", pins) == {"x86_64": size, "aarch64": size}
    assert told.of(CPU, "tools", pins | locked(index, "simple", "one"))["x86_64"] == size + weight("one")
    assert sorted(index.asked) == sorted(f"/simple/{name}/" for name in [*names, "one"])


def test_torch_is_asked_for_in_its_own_index(index: indexes.Index) -> None:
    tag = "cp313-cp313-manylinux_2_28_x86_64"
    told, pins = asking(index), locked(index, "whl/cpu", "torch", tag=tag)
    assert told.of(CPU, "torch", pins) == {"x86_64": weight("torch", tag)}  # none for the other architecture
    assert told.of(CU130, "torch", pins) == {}
    assert index.asked == ["/whl/cpu/torch/", "/simple/torch/"]


@pytest.mark.parametrize("trouble", ["html", "down", "refused", "no sizes"])
def test_an_index_that_tells_no_sizes_is_asked_once(
    index: indexes.Index, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = locked(index, "simple", "a", "b", "c")
    told = asking(index)
    if trouble == "html":
        index.json = False
    elif trouble == "down":
        index.status = 503
    elif trouble == "refused":
        index.token = "anna:another"
    else:
        monkeypatch.setattr(indexes.Index, "_document", lambda *_: '{"files": [{"filename": "a-1-py3-none-any.whl"}]}')
    for layer in ("tools", "recent"):
        assert told.of(CU130, layer, pins) == {}
    assert index.asked == ["/simple/a/"]


def test_what_is_not_as_it_was_asked_for_is_nothing(index: indexes.Index) -> None:
    locked(index, "simple", "a")
    given, url = Sources(None, ()), index.url("simple/a/", credentials="anna:s3cret")
    assert sizes.read_page(sources.fetch(given, url, sizes.JSON) or b"")
    assert sources.fetch(given, url, "application/x") is None  # it comes as HTML
    index.status = 503
    assert sources.fetch(given, url, "text/plain") is None


def test_an_index_that_is_not_there_costs_nothing_more() -> None:
    gone = Sources(None, (), index=Mirror("X", "http://127.0.0.1:9/simple"))
    assert sizes.Sizes(gone).of(CU130, "tools", {"a": pin("a", "1", "0" * 64)}) == {}


def test_where_no_index_is_named_uv_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX", "https://example.org/other")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://example.org/simple")
    found = sizes.public_index()
    assert found.startswith("https://") and found.endswith("/simple") and "example" not in found
    asked: list[str] = []
    monkeypatch.setattr(sizes.sources, "fetch", lambda given, url, accept: asked.append(url))
    assert sizes.Sizes(Sources(None, ())).of(CU130, "tools", {"a": pin("a", "1", "0" * 64)}) == {}
    monkeypatch.setattr(sizes, "public_index", lambda: "")
    assert sizes.Sizes(Sources(None, ())).of(CU130, "tools", {"a": pin("a", "1", "0" * 64)}) == {}
    assert asked == [f"{found}/a/"]


def test_for_nothing_nobody_is_asked(index: indexes.Index) -> None:
    assert asking(index).of(CU130, "recent", {}) == {}
    assert index.asked == []


def test_what_the_lock_says_is_what_was_summed_up(index: indexes.Index) -> None:
    pins = locked(index, "simple", "a")
    sums = asking(index).of(CU130, "tools", pins)
    text = locks.Header("cu130", "tools", "3.13", CU130.architectures, download=sums).line
    assert (found := locks.header(text)) and found.download == sums == dict.fromkeys(sums, weight("a"))
