"""The programs that layers are made with (docker/layers): how a layer ends, what is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LAYERS = Path(__file__).resolve().parents[2] / "docker" / "layers"
DAY = 1791158400

# --- finish.py: times and bytecode ---


def finish(folder: Path, cpus: int = 2, *, order: int = 1) -> dict[str, bytes]:
    """End a layer of these files, on so many CPUs; gives what is there afterwards."""
    listed = b"".join(os.fsencode(path) + b"\0" for path in [*folder.rglob("*")][::order])
    program = f"import os, runpy; os.cpu_count = lambda: {cpus}; runpy.run_path({str(LAYERS / 'finish.py')!r})"
    env = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": str(DAY)}
    subprocess.run([sys.executable, "-B", "-S", "-c", program], input=listed, env=env, check=True)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def planted(folder: Path) -> Path:
    """A folder of sources, large enough for several parts."""
    for number in range(6):
        text = "".join(f"def f{line}(a, *, b='{line}'): return (a, b, 'shared', {line}.5)\n" for line in range(9000))
        (folder / f"package{number}").mkdir(parents=True)
        (folder / f"package{number}" / "module.py").write_text(f"'{number}'\n{text}")
    return folder


def test_bytecode_is_what_python_loads(tmp_path: Path) -> None:
    source = tmp_path / "layer" / "alpha.py"
    source.parent.mkdir()
    source.write_text("print(__cached__, 1 + 1)\n")
    finish(tmp_path / "layer")
    made = Path(importlib.util.cache_from_source(str(source)))
    before = made.stat()
    source.write_text("never\n".ljust(source.stat().st_size))  # as long as before
    os.utime(source, (DAY, DAY))
    done = subprocess.run([sys.executable, "-c", "import alpha"], cwd=source.parent, capture_output=True, text=True)
    assert done.stdout == f"{made} 2\n", done.stderr
    assert made.stat().st_mtime_ns == before.st_mtime_ns
    os.utime(source, (DAY + 1, DAY + 1))  # an edited source is noticed
    assert (
        subprocess.run([sys.executable, "-c", "import alpha"], cwd=source.parent, capture_output=True).returncode == 1
    )


def test_everything_gets_the_one_time(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "folder").mkdir(parents=True)
    (layer / "folder" / "alpha.py").write_text("1\n")
    (layer / "data").write_text("x")
    (layer / "link").symlink_to("nowhere")
    (tmp_path / "elsewhere.py").write_text("2\n")
    os.utime(tmp_path / "elsewhere.py", (DAY - 9, DAY - 9))
    (layer / "elsewhere.py").symlink_to(tmp_path / "elsewhere.py")
    (layer / "before.py").symlink_to("folder/alpha.py")  # it comes before what it leads to
    finish(layer)
    found = [*layer.rglob("*")]
    assert len(found) == 11
    assert {path.lstat().st_mtime for path in found} == {DAY}
    assert (tmp_path / "elsewhere.py").stat().st_mtime == DAY - 9
    # Python compares a link's bytecode with the time of what it leads to.
    recorded = {
        name: int.from_bytes(Path(importlib.util.cache_from_source(str(layer / name))).read_bytes()[8:12], "little")
        for name in ("elsewhere.py", "before.py")
    }
    assert recorded == {"elsewhere.py": DAY - 9, "before.py": DAY}


def test_what_cannot_be_compiled_and_what_packages_test_themselves_with_has_none(tmp_path: Path) -> None:
    texts = {"template.py": "{{ name }} = (", "deep.py": "-" * 200_000 + "1"}
    for name in ("good.py", *texts, "tests/test_good.py"):
        path = tmp_path / "layer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get(name, "'\\d'\n"))
    assert [
        name.rpartition("/")[2].partition(".")[0] for name in finish(tmp_path / "layer") if name[-4:] == ".pyc"
    ] == ["good"]


def test_the_bytes_do_not_depend_on_the_machine(tmp_path: Path) -> None:
    folder = planted(tmp_path / "layer")
    one = finish(folder, 1)
    assert sum(name.endswith(".pyc") for name in one) == 6
    for path in folder.rglob("*.pyc"):
        path.unlink()
    assert finish(folder, 5, order=-1) == one


# --- download.py: which wheel, from where ---

HERE = {"cp313-cp313-manylinux_2_28_x86_64": 0, "cp313-abi3-manylinux_2_17_x86_64": 1, "py3-none-any": 2}


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("download", LAYERS / "download.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    return module


@pytest.fixture
def ranks(download: ModuleType) -> dict[Any, int]:
    from pip._vendor.packaging.tags import parse_tag

    return {tag: rank for name, rank in HERE.items() for tag in parse_tag(name)}


def link(file: str, digest: str, folder: str = "https://files/x/") -> str:
    return f'<a href="{folder}{file}#sha256={digest}" data-requires-python="&gt;=3.9">{file}</a><br/>\n'


def test_the_locked_wheel_that_fits_best_is_taken(download: ModuleType, ranks: dict[Any, int]) -> None:
    page = (
        link("a-1-py3-none-any.whl", "any")
        + link("a-1-cp313-cp313-manylinux_2_28_x86_64.whl", "best")
        + link("a-1-cp313-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "abi3")
        + link("a-1-cp313-cp313-manylinux_2_28_aarch64.whl", "other")
        + link("a-1.tar.gz", "source")
    )

    def taken(*locked: str) -> object:
        found = download.fitting(page, "https://index/simple/a/", set(locked), ranks)
        return found and found[2]

    assert taken("any", "best", "abi3", "other", "source") == "best"
    assert taken("any", "abi3", "other") == "abi3"
    assert taken("any", "other") == "any"
    assert taken("other", "source") is None
    assert taken() is None


def test_addresses_are_read_as_an_index_gives_them(download: ModuleType, ranks: dict[Any, int]) -> None:
    file = "a-1+cpu-py3-none-any.whl"
    for folder, expected in {
        "https://files/x/": "https://files/x/",
        "../../packages/": "https://index/root/packages/",
        "/whl/cpu/": "https://index/whl/cpu/",
    }.items():
        page = link(file.replace("+", "%2B"), "d", folder)
        found = download.fitting(page, "https://index/root/simple/a/", {"d"}, ranks)
        assert found == (file, f"{expected}a-1%2Bcpu-py3-none-any.whl", "d")
    signed = "<a class=x href='https://f/a-1-py3-none-any.whl?by=x&amp;until=2#sha256=d'>"
    url = "https://f/a-1-py3-none-any.whl?by=x&until=2"
    assert download.fitting(signed, "https://i/a/", {"d"}, ranks) == ("a-1-py3-none-any.whl", url, "d")


class Mirror:
    """What apt's downloader would get: address to content."""

    def __init__(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.has: dict[str, bytes] = {}
        monkeypatch.setattr(module, "fetch", self.fetch)

    def fetch(self, wanted: Sequence[tuple[str, Path, str]], options: Sequence[str]) -> bool:
        assert options == ("-o", "A=b")
        good = True
        for url, target, digest in wanted:
            self.asked.append(url)
            content = self.has.get(url)
            if content is not None:
                target.write_bytes(content)
            good &= content is not None and digest in ("", hashlib.sha256(content).hexdigest())
        return good


@pytest.fixture
def mirror(download: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    return Mirror(download, monkeypatch)


def entry(name: str, content: bytes, marker: str = "") -> str:
    digests = "0" * 64, hashlib.sha256(content).hexdigest()
    return " \\\n    ".join([f"{name}==1{marker}", *(f"--hash=sha256:{digest}" for digest in digests)]) + "\n"


def test_wheels_are_downloaded_and_the_rest_is_left(
    download: ModuleType, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://index/simple/")
    lock, rest = tmp_path / "lock", tmp_path / "rest"
    lock.write_text(
        "# torchdock: variant=cpu\n"
        + entry("there", b"1")
        + entry("Not.There", b"2")
        + entry("changed", b"3")
        + entry("apple", b"4", " ; sys_platform == 'darwin'")
        + entry("linux", b"5", " ; sys_platform == 'linux'")
    )
    for name, content in {"there": b"1", "changed": b"3", "linux": b"5"}.items():
        file, digest = f"{name}-1-py3-none-any.whl", hashlib.sha256(content).hexdigest()
        mirror.has[f"https://index/simple/{name}/"] = link(file, digest).encode()
        mirror.has[f"https://files/x/{file}"] = b"not that" if name == "changed" else content
    download.main(str(lock), str(tmp_path), str(rest), "-o", "A=b")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.whl")} == {
        "there-1-py3-none-any.whl": b"1",
        "linux-1-py3-none-any.whl": b"5",
    }
    assert "https://index/simple/not-there/" in mirror.asked and "https://index/simple/apple/" not in mirror.asked
    left = rest.read_text()
    assert [line.partition("==")[0] for line in left.splitlines()] == ["Not.There", "changed"]
    assert left.count("--hash=sha256:") == 4  # as pip wants them


def test_an_index_that_does_not_answer_is_asked_once(
    download: ModuleType, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time may take as long as a connection is tried: pip, which comes next, tries for itself."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://index/simple")
    (tmp_path / "lock").write_text("".join(entry(name, b"1") for name in ("a", "b", "c")))
    download.main(str(tmp_path / "lock"), str(tmp_path), str(tmp_path / "rest"), "-o", "A=b")
    assert mirror.asked == ["https://index/simple/a/"]
    assert (tmp_path / "rest").read_text().count("==1 ") == 3
    mirror.asked.clear()  # it answers, and where it has its files does not
    for name in ("a", "b", "c"):
        digest = hashlib.sha256(b"1").hexdigest()
        mirror.has[f"https://index/simple/{name}/"] = link(f"{name}-1-py3-none-any.whl", digest).encode()
    download.main(str(tmp_path / "lock"), str(tmp_path), str(tmp_path / "rest"), "-o", "A=b")
    assert mirror.asked[3:] == ["https://files/x/a-1-py3-none-any.whl"]
    assert (tmp_path / "rest").read_text().count("==1 ") == 3


@pytest.mark.parametrize(
    ("address", "secret", "asked"),
    [
        ("https://anna:hunter2@index/simple", "", False),
        ("https://anna:hunter2@index/simple", "yes", False),
        ("https://index/t0ken/simple", "yes", False),
        ("https://index/root/pypi/simple/", "yes", True),
        ("https://index/whl/cu128", "yes", True),
        ("https://index/anything/simple", "", True),
    ],
)
def test_an_address_with_a_login_is_for_pip(
    download: ModuleType,
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    secret: str,
    asked: bool,
) -> None:
    """Every user of a host can read the words of a command; a token may be in the path of an address, too."""
    monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setenv("INDEX_IS_SECRET", secret)
    (tmp_path / "lock").write_text(entry("there", b"1"))
    download.main(str(tmp_path / "lock"), str(tmp_path), str(tmp_path / "rest"), "-o", "A=b")
    assert bool(mirror.asked) is asked
    assert (tmp_path / "rest").read_text().startswith("there==1 ")


def test_what_is_no_pin_is_left_alone_with_all_the_rest(download: ModuleType, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(entry("there", b"1") + "name @ https://x/name-1-py3-none-any.whl --hash=sha256:1\n")
    with pytest.raises(SystemExit, match="not a pin: name @"):
        download.main(str(tmp_path / "lock"), str(tmp_path), str(tmp_path / "rest"), "-o", "A=b")
    assert not mirror.asked and not (tmp_path / "rest").exists()
