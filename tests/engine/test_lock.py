"""`invoke lock` with indexes on the loopback that behave and misbehave; the committed locks with the real index."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import indexes
from tests.engine.conftest import argv
from torchdock import locks, resolver, sources, variants
from torchdock.console import Reporter
from torchdock.errors import InputError, TorchdockError

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".venv/bin/uv"
VARIANTS = variants.read(ROOT)
# What the stand-in of the Python package index has; the torch indexes have stale copies of some of them.
SIMPLE = {
    "numpy": "2.5.5", "pillow": "13.0", "filelock": "4.2", "typing-extensions": "4.16", "setuptools": "84.0",
    "sympy": "1.14", "networkx": "3.7", "jinja2": "3.1.6", "fsspec": "2026.9", "alpha": "1.0", "beta": "1.0",
}  # fmt: skip
CUDA = ("nvidia-cublas", "cuda-bindings", "triton")
SECRET = "t0ken-0f-anna"


def snapshot(clone: Path) -> dict[str, str]:
    """Every file below the locks, hidden ones too."""
    folder = clone / "docker/locks"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def uv_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uv-cache")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `invoke lock` needs of a clone: variants without a lock, and three packages."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tasks.py", folder)
    for name in ("docker/layers", "docker/locks/debian"):  # up to date: no engine is asked for Debian's packages
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "docker/variants.toml", folder / "docker")
    (folder / "docker/requirements.in").write_text("numpy\npillow\nalpha  # mine\n")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch, uv_cache: Path, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which nothing of this host names a source, and a failed request is not tried again."""
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_")) or name.upper().endswith("_PROXY") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("UV_CACHE_DIR", str(uv_cache))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return monkeypatch


def publish(index: indexes.Index) -> None:
    """A world of small wheels for every variant: torch here and there, and what it depends on."""
    for name, version in SIMPLE.items():
        index.wheel("simple", name, version)
    for name in (*CUDA, "ninja"):
        index.wheel("simple", name, "1.0")
    for variant in VARIANTS.values():
        folder = f"whl/{variant.index}" if variant.index else "simple"
        indexes.publish_stand_ins(index, folder, variant, CUDA if variant.cuda else ())
        if variant.index:
            indexes.publish_stale(index, folder)
            index.wheel(folder, "triton", "1.0", ("a-dependency-of-another-triton",))
    nvcc = f"{VARIANTS['cu130'].cuda}.1"
    index.wheel("simple", "nvidia-cuda-nvcc", nvcc)
    index.wheel("simple", "cuda-toolkit", nvcc, (f"nvidia-cuda-nvcc=={nvcc}",))


def point_at(calm: pytest.MonkeyPatch, index: indexes.Index, credentials: str = "") -> None:
    """This host's sources are this index."""
    calm.setenv("UV_DEFAULT_INDEX", index.url("simple", credentials=credentials))
    calm.setenv("TORCHDOCK_TORCH_INDEX", index.url("whl", credentials=credentials))


@pytest.fixture
def index(calm: pytest.MonkeyPatch) -> Iterator[indexes.Index]:
    with indexes.serve() as served:
        publish(served)
        point_at(calm, served)
        yield served


def refresh(clone: Path, **options: Any) -> resolver.Refreshed:
    return resolver.refresh(clone, sources.gather(), Reporter(), **options)


def lock(clone: Path, **options: Any) -> resolver.Refreshed:
    found = refresh(clone, **options)
    locks.replace(found.files)
    return found


def versions(clone: Path, variant: str = "cpu") -> dict[str, str]:
    return {name: pin.version for name, pin in locks.read(clone, variant).items()}


def add(clone: Path, line: str) -> None:
    with (clone / "docker/requirements.in").open("a") as requirements:
        requirements.write(f"{line}\n")


@pytest.fixture(scope="session")
def first() -> dict[str, dict[str, str]]:
    """The locks of every variant from the loopback: made once, because the wheels are the same every time."""
    return {}


@pytest.fixture
def locked(clone: Path, index: indexes.Index, first: dict[str, dict[str, str]]) -> Path:
    """A clone whose every variant is locked from the loopback."""
    if not first:
        lock(clone)
        first["files"] = snapshot(clone)
        index.asked.clear()
    for name, text in first["files"].items():
        path = clone / "docker/locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return clone


# --- resolving --------------------------------------------------------------------------------------------------------


def test_every_variant_is_locked_from_its_own_index(clone: Path, index: indexes.Index) -> None:
    found = lock(clone)
    assert set(found.differences) == set(VARIANTS) and found.left == {}
    for variant in variants.read(clone).values():
        pins = versions(clone, variant.name)
        assert (pins["torch"], pins["torchvision"]) == (variant.torch, variant.torchvision)
        assert {name: pins[name] for name in indexes.STALE} == {name: SIMPLE[name] for name in indexes.STALE}
        assert set(CUDA) <= set(pins) if variant.cuda else not set(CUDA) & set(pins)
        for architecture in variant.architectures:
            assert locks.check(clone, variant, architecture) == []
    assert not [path for path in index.asked if path.startswith("/whl/") and "/torch" not in path]


def test_the_devel_layer_is_locked_with_the_variant(locked: Path, index: indexes.Index) -> None:
    path = locked / "docker/locks/cu130/devel.txt"
    pins = locks.parse(path.read_text(), path.name)
    assert {"nvidia-cuda-nvcc", "ninja"} <= set(pins) and not set(pins) & set(versions(locked, "cu130"))
    index.wheel("simple", "ninja", "2.0")
    assert refresh(locked).files == {}
    found = lock(locked, upgrade="ninja")
    assert found.differences == {name: [("ninja", "1.0", "2.0")] * (name == "cu130") for name in VARIANTS}
    assert list(found.files) == [path] and "ninja==2.0" in path.read_text()


def test_a_lock_has_the_hashes_of_both_architectures(clone: Path, index: indexes.Index) -> None:
    lock(clone, variant="cpu")
    entry = locks.read(clone, "cpu")["torch"].text
    tags = [f"cp313-cp313-manylinux_2_28_{machine}" for machine in ("x86_64", "aarch64")]
    wheels = [indexes.stand_in_wheel("torch", "2.14.1+cpu", indexes.TORCH_REQUIRES, tag=tag) for tag in tags]
    assert re.findall(r"sha256:(\w+)", entry) == sorted(indexes.sha256(content) for _, content in wheels)


def test_no_version_moves_unasked(locked: Path, index: indexes.Index) -> None:
    for name in ("alpha", "numpy", "filelock", "triton", "nvidia-cublas", "ninja"):
        index.wheel("simple", name, "99.0")
    before = snapshot(locked)
    assert refresh(locked).files == {}
    add(locked, "beta")
    found = lock(locked)
    assert found.differences == {name: [("beta", "", "1.0")] for name in VARIANTS}
    assert {path.name for path in found.files} == {"recent.txt"}  # a new tool rebuilds the last layer of wheels
    now = snapshot(locked)
    assert {name for name in now if now[name] != before[name]} == {f"{name}/recent.txt" for name in VARIANTS}
    assert "beta==1.0" in now["cpu/recent.txt"] and "requirements=" in now["cpu/recent.txt"]
    assert "requirements=" not in now["cpu/tools.txt"]
    assert locks.check(locked, VARIANTS["cpu"], "x86_64") == [] and refresh(locked).files == {}


def test_what_a_layer_downloads_is_asked_when_it_changes(locked: Path, index: indexes.Index) -> None:
    def downloads(variant: str) -> list[int | None]:
        row = VARIANTS[variant]
        folder = locks.folder(locked, variant)
        return [locks.download_bytes(folder / f"{layer}.txt", "x86_64") for layer in locks.layers(row)]

    assert downloads("cpu") == [None, None, 0]  # the index had pages without sizes
    before = snapshot(locked)
    index.json = True
    assert refresh(locked).files == {}  # a layer is not built anew for it
    add(locked, "beta")
    lock(locked, variant="cpu")
    beta = len(indexes.stand_in_wheel("beta", "1.0")[1])
    assert downloads("cpu") == [None, None, beta] and downloads("cu130") == [None, None, None, 0]
    assert snapshot(locked)["cpu/tools.txt"] == before["cpu/tools.txt"]
    shutil.rmtree(locked / "docker/locks/cu130")
    lock(locked, variant="cu130")
    sums = [sum(one is not None and one > 0 for one in downloads("cu130")), downloads("cu130")[-1]]
    assert sums == [3, 0]


def test_one_package_is_upgraded_or_all_are(locked: Path, index: indexes.Index) -> None:
    for name in ("alpha", "numpy", "nvidia-cublas"):
        index.wheel("simple", name, "99.0")
    found = lock(locked, upgrade="Alpha")
    assert found.differences == {name: [("alpha", "1.0", "99.0")] for name in VARIANTS}
    assert {path.name for path in found.files} == {"recent.txt"} and not found.layers["cpu"].anew
    found = lock(locked, upgrade=True)
    assert found.differences["cpu"] == [("numpy", "2.5.5", "99.0")]
    assert found.layers["cpu"].anew == "everything was upgraded"
    assert set(locks.read(locked, "cpu", ["recent"])) == set() and versions(locked)["alpha"] == "99.0"
    assert ("nvidia-cublas", "1.0", "99.0") in found.differences["cu130"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("alfa", r"--upgrade alfa: no lock has this package\. Did you mean 'alpha'\?"),
        ("torch", r"torch's version belongs to the variant: .*docker/variants\.toml"),
        ("zzzz", r"no lock has this package\. A new package goes into docker/requirements\.in"),
    ],
)
def test_what_cannot_be_upgraded_is_told(locked: Path, name: str, said: str) -> None:
    before = snapshot(locked)
    with pytest.raises(InputError, match=said):
        lock(locked, upgrade=name)
    assert snapshot(locked) == before


def test_a_new_lock_takes_the_tools_that_others_have(locked: Path, index: indexes.Index) -> None:
    shutil.rmtree(locked / "docker/locks/cu126")
    for name in ("alpha", "numpy"):
        index.wheel("simple", name, "99.0")
    lock(locked, variant="cu126")
    assert (versions(locked, "cu126")["alpha"], versions(locked, "cu126")["numpy"]) == ("1.0", "2.5.5")


@pytest.mark.parametrize("variable", ["UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"])
def test_no_index_of_another_project_is_asked(
    clone: Path, index: indexes.Index, calm: pytest.MonkeyPatch, variable: str
) -> None:
    index.wheel("other", "alpha", "99.0")
    calm.setenv(variable, index.url("other"))
    lock(clone, variant="cpu")
    assert versions(clone)["alpha"] == "1.0"
    assert not [path for path in index.asked if path.startswith("/other")]


def test_no_setting_for_another_project_counts(clone: Path, index: indexes.Index, calm: pytest.MonkeyPatch) -> None:
    constraints = clone.parent / "constraints.txt"
    constraints.write_text("alpha<1\n")
    calm.setenv("UV_CONSTRAINT", str(constraints))
    calm.setenv("UV_EXCLUDE_NEWER", "2001-01-01T00:00:00Z")
    calm.setenv("UV_TORCH_BACKEND", "cpu")
    (clone / "uv.toml").write_text("[pip]\nno-index = true\n")
    calm.chdir(clone)
    lock(clone, variant="cu128")
    assert (versions(clone, "cu128")["alpha"], versions(clone, "cu128")["torch"]) == ("1.0", "2.10.0")


def test_what_must_be_compiled_is_not_locked(locked: Path, index: indexes.Index) -> None:
    index.wheel("simple", "gamma", "1.0")
    index.publish("simple", "gamma-2.0.tar.gz", content=b"", metadata=indexes.metadata("gamma", "2.0"))
    add(locked, "gamma")
    assert lock(locked, variant="cpu").differences["cpu"] == [("gamma", "", "1.0")]


def test_a_package_of_one_architecture_alone_is_told(locked: Path, index: indexes.Index) -> None:
    before = snapshot(locked)
    index.wheel("simple", "gamma", "1.0")
    index.wheel("simple", "gamma", "2.0", tag="cp313-cp313-manylinux_2_28_x86_64")
    add(locked, "gamma")
    with pytest.raises(InputError, match="resolve differently on x86_64 and aarch64: gamma"):
        lock(locked)
    assert snapshot(locked) == before


# --- reach ------------------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_variant_whose_index_is_out_of_reach_is_left_and_said(
    locked: Path, calm: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(locked)
    shutil.rmtree(locked / "docker/locks/cu126")
    calm.setenv("TORCHDOCK_TORCH_INDEX", f"http://127.0.0.1:{closed_port()}/whl")
    add(locked, "beta")
    found = lock(locked)
    assert set(found.left) == {"cpu", "cu126"} and set(found.differences) == {"cu128", "cu130"}
    now = snapshot(locked)
    assert {name: now[name] for name in now if name.startswith("cpu/")} == {
        name: before[name] for name in before if name.startswith("cpu/")
    }
    cpu, cu126 = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fallback: ")]
    assert cpu.startswith("fallback: cpu is left as it is, TORCHDOCK_TORCH_INDEX at 127.0.0.1: it cannot be reached")
    assert "Its lock is now older than docker/requirements.in" in cpu
    assert cu126.startswith("fallback: cu126 is left") and "It has no lock yet." in cu126
    with pytest.raises(TorchdockError, match="The variant cpu cannot be resolved, TORCHDOCK_TORCH_INDEX at") as bad:
        lock(locked, variant="cpu")
    assert bad.value.exit_code == 1


def test_an_error_in_the_last_variant_writes_none(locked: Path, index: indexes.Index) -> None:
    before = snapshot(locked)
    index.wheel("simple", "delta", "1.0", ("torch>=2.12",))  # cu128 has an older torch
    add(locked, "delta")
    with pytest.raises(InputError, match=r"could not be resolved for cu128: .*delta.*row of docker/variants\.toml"):
        lock(locked)
    assert snapshot(locked) == before


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("torch==2.9", r"requirements\.in:4 asks for torch==2\.9, and the variant cpu has torch 2\.14\.1\+cpu"),
        ("TorchVision<0.20", r"requirements\.in:4 asks for TorchVision<0\.20, and the variant cpu has torchvision"),
        ("delta", r"could not be resolved for cpu: Because .*delta.*torch==2\.9.*row of docker/variants\.toml"),
        ("no-such-package", r"could not be resolved for cpu: .*no-such-package was not found .*Correct its name"),
        ("numpy=2", r"requirements\.in:4: 'numpy' is no requirement"),
    ],
)
def test_a_requirement_that_cannot_be_met_is_named(locked: Path, index: indexes.Index, line: str, said: str) -> None:
    before = snapshot(locked)
    index.wheel("simple", "delta", "1.0", ("torch==2.9",))
    add(locked, line)
    with pytest.raises(InputError, match=said) as bad:
        lock(locked)
    assert "The locks are unchanged." in str(bad.value)
    assert snapshot(locked) == before


def test_a_lock_with_a_missing_hash_is_named(locked: Path) -> None:
    path = locked / "docker/locks/cu130/tools.txt"
    path.write_text(re.sub(r"(alpha==1\.0) \\\n +--hash=\S+", r"\1", path.read_text()))
    before = snapshot(locked)
    with pytest.raises(InputError, match=r"docker/locks/cu130/tools\.txt: 'alpha==1\.0' is not a pinned package"):
        lock(locked)
    assert snapshot(locked) == before


def test_an_index_that_is_down_is_told(locked: Path, calm: pytest.MonkeyPatch) -> None:
    before = snapshot(locked)
    calm.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{closed_port()}/simple")
    add(locked, "beta")
    with pytest.raises(
        TorchdockError, match=r"UV_DEFAULT_INDEX at 127\.0\.0\.1: it cannot be reached .*refused"
    ) as bad:
        lock(locked)
    assert bad.value.exit_code == 1 and "The locks are unchanged." in str(bad.value)
    assert snapshot(locked) == before


def test_an_index_in_trouble_is_told(locked: Path, index: indexes.Index) -> None:
    before = snapshot(locked)
    index.status = 503
    add(locked, "beta")
    with pytest.raises(TorchdockError, match=r"UV_DEFAULT_INDEX at 127\.0\.0\.1: it answers HTTP 503"):
        lock(locked)
    assert snapshot(locked) == before


@pytest.mark.parametrize(
    ("expired", "trusted", "said"),
    [
        (True, True, "its TLS certificate has expired"),
        (False, False, "its TLS certificate is signed by an authority that this host does not trust"),
        (False, True, ""),
    ],
    ids=["expired", "unknown authority", "good"],
)
def test_certificates(
    locked: Path, calm: pytest.MonkeyPatch, tmp_path: Path, expired: bool, trusted: bool, said: str
) -> None:
    before = snapshot(locked)
    authority, certificate = indexes.certificates(tmp_path, expired=expired)
    calm.delenv("SSL_CERT_FILE", raising=False)
    if trusted:  # by a name that uv itself does not read
        calm.setenv("REQUESTS_CA_BUNDLE", str(authority))
    add(locked, "beta")
    calm.delenv("UV_DEFAULT_INDEX")
    with indexes.serve(certificate=certificate) as index:
        publish(index)
        calm.setenv("PIP_INDEX_URL", index.url("simple"))
        calm.setenv("TORCHDOCK_TORCH_INDEX", index.url("whl"))
        if not said:
            assert lock(locked).differences["cpu"] == [("beta", "", "1.0")]
            return
        with pytest.raises(TorchdockError, match=f"PIP_INDEX_URL at localhost: {said}"):
            lock(locked)
        with pytest.raises(TorchdockError, match=f"TORCHDOCK_TORCH_INDEX at localhost: {said}"):
            lock(locked, variant="cpu")
    assert snapshot(locked) == before


def test_a_token_is_used_and_never_shown(clone: Path, calm: pytest.MonkeyPatch) -> None:
    with indexes.serve(token=f"anna:{SECRET}") as index:
        publish(index)
        point_at(calm, index, f"anna:{SECRET}")
        done = invoke(clone, "lock", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["variants"]) == set(VARIANTS)
    assert_not_shown(clone, done)


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "TORCHDOCK_TORCH_INDEX"])
def test_a_token_that_is_refused_is_told_and_never_shown(
    locked: Path, index: indexes.Index, calm: pytest.MonkeyPatch, variable: str
) -> None:
    before = snapshot(locked)
    add(locked, "beta")
    with indexes.serve(token="anna:another") as strict:
        publish(strict)
        folder = "simple" if variable == "UV_DEFAULT_INDEX" else "whl"
        calm.setenv(variable, strict.url(folder, credentials=f"anna:{SECRET}"))
        done = invoke(locked, "lock", "--variant", "cpu")
    assert done.returncode == 1
    assert f"{variable} at 127.0.0.1: it refuses the credentials (HTTP 401). Renew the token" in done.stderr
    assert snapshot(locked) == before
    assert_not_shown(locked, done)


def test_a_token_in_a_path_is_not_shown_where_uv_shows_its_url(
    locked: Path, index: indexes.Index, calm: pytest.MonkeyPatch
) -> None:
    folder = f"{SECRET}/simple"
    for name, version in SIMPLE.items():
        index.wheel(folder, name, version)
    index.publish(folder, "gamma-1.0-py3-none-any.whl")  # on its page, and nowhere else
    calm.setenv("UV_DEFAULT_INDEX", index.url(folder))
    add(locked, "gamma")
    done = invoke(locked, "lock", "--variant", "cpu")
    assert done.returncode == 1
    assert "torchdock: cpu could not be resolved, An index: " in done.stderr
    assert "<UV_DEFAULT_INDEX at 127.0.0.1>/gamma/gamma-1.0-py3-none-any.whl" in done.stderr
    assert_not_shown(locked, done)


def assert_not_shown(clone: Path, done: subprocess.CompletedProcess[str]) -> None:
    """The token is in no output and in no file of the clone."""
    kept = "".join(path.read_text(errors="replace") for path in clone.rglob("*") if path.is_file())
    assert "beta" in kept or "alpha" in kept  # the search is not blind
    assert [SECRET in text for text in (done.stdout, done.stderr, kept)] == [False] * 3


# --- as it is typed ---------------------------------------------------------------------------------------------------


def invoke(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {"cwd": clone, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(argv(*words), timeout=60, **given)


@pytest.mark.parametrize(
    ("words", "moved"),
    [
        (["--upgrade", "alpha"], {"alpha"}),
        (["--upgrade=alpha"], {"alpha"}),
        (["--variant", "cpu", "--upgrade"], {"alpha", "numpy"}),
        (["--upgrade", "--variant", "cpu"], {"alpha", "numpy"}),
        ([], set()),
    ],
)
def test_upgrade_is_typed_with_a_package_or_without(
    locked: Path, index: indexes.Index, words: list[str], moved: set[str]
) -> None:
    before = snapshot(locked)
    for name in ("alpha", "numpy"):
        index.wheel("simple", name, "99.0")
    done = invoke(locked, "lock", *words, "--json", "--dry-run")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {name for name, *_ in document["variants"]["cpu"]} == moved
    assert set(document["variants"]) == ({"cpu"} if "--variant" in words else set(VARIANTS))
    file = "tools" if "--variant" in words else "recent"  # all of them, or one
    assert document["files"] == [f"docker/locks/{name}/{file}.txt" for name in document["variants"] if moved]
    layers = {
        "anew": "everything was upgraded" if "--variant" in words else "",
        "recent": ["alpha"] * (len(moved) == 1),
    }
    assert document["layers"] == dict.fromkeys(document["variants"], layers)
    assert snapshot(locked) == before
    assert not (locked / ".torchdock").exists()  # --dry-run acts on nothing


def test_the_difference_is_shown(locked: Path, index: indexes.Index) -> None:
    index.wheel("simple", "alpha", "1.1")
    done = invoke(locked, "lock", "--upgrade", "alpha", "--variant", "cpu")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^cpu *\npackage +was +is *\nalpha +1\.0 +1\.1 *$", done.stdout, re.M)
    assert (
        "\ncpu: the next build installs 1 package in the layer of recent ones (alpha), the tools stay\n" in done.stdout
    )
    assert "Wrote docker/locks/cpu/recent.txt" in done.stdout
    assert versions(locked)["alpha"] == "1.1"
    done = invoke(locked, "lock", "--variant", "cpu")
    assert "\ncpu: no version moved; the tools stay as they are\nWrote nothing\n" in f"\n{done.stdout}"
    wanted = locked / "docker/requirements.in"
    wanted.write_text(wanted.read_text().replace("alpha", "beta"))
    done = invoke(locked, "lock", "--variant", "cpu")
    assert re.search(
        r"^cpu: the next build lays the tools anew \(\d+ packages\): alpha is no longer wanted$", done.stdout, re.M
    )


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_old_locks(locked: Path, index: indexes.Index, sign: signal.Signals) -> None:
    before = snapshot(locked)
    add(locked, "beta")
    index.open.clear()
    started = subprocess.Popen(
        argv("lock"), cwd=locked, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: bool(index.asked))
    started.send_signal(sign)
    assert started.wait(timeout=30) == {signal.SIGINT: 130, signal.SIGTERM: 143}[sign]
    assert started.stdout is not None
    started.stdout.close()
    assert snapshot(locked) == before


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- installing by hash -----------------------------------------------------------------------------------------------


def install(lock: Path, target: Path, *options: str, architecture: str = "x86_64") -> str:
    """Install a lock file as a layer does, into an empty folder; returns what uv said if it failed."""
    words = [str(UV), "pip", "install", "--quiet", "--no-config", "--target", str(target), "--require-hashes"]
    words += ["--no-deps", "--only-binary", ":all:", "--python-version", "3.13", "-r", str(lock), *options]
    words += ["--python-platform", f"{architecture}-manylinux_2_28"]
    found = locks.header(lock.read_text())
    env = dict(os.environ)
    if found is not None and found.index:
        env["UV_INDEX"] = sources.gather().torch_index_url(*found.index.rsplit("/", 1))
    done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    return done.stderr if done.returncode else ""


def test_a_lock_from_the_loopback_installs(locked: Path, index: indexes.Index, tmp_path: Path) -> None:
    index.wheel("simple", "alpha", "1.1")
    lock(locked, variant="cpu", upgrade="alpha")
    for layer in ("torch", "tools", "recent"):
        assert install(locked / f"docker/locks/cpu/{layer}.txt", tmp_path / "site") == ""
    installed = {path.name for path in (tmp_path / "site").glob("*.dist-info")}
    assert {"torch-2.14.1+cpu.dist-info", "numpy-2.5.5.dist-info", "alpha-1.1.dist-info"} <= installed


def test_a_mirror_that_gives_other_bytes_is_refused(locked: Path, index: indexes.Index, tmp_path: Path) -> None:
    before = snapshot(locked)
    with indexes.serve() as liar:
        for name, version in SIMPLE.items():
            file, content = indexes.stand_in_wheel(name, version)
            bad = indexes.stand_in_wheel(name, version, modules={"numpy/__init__.py": "import evil\n"})[1]
            liar.publish("simple", file, sha256=indexes.sha256(content), content=bad if name == "numpy" else content)
        lying = ("--default-index", liar.url("simple"), "--no-cache")
        failed = install(locked / "docker/locks/cpu/tools.txt", tmp_path / "site", *lying)
    assert re.search(r"Hash mismatch for `numpy==2\.5\.5`", failed), failed
    assert not list((tmp_path / "site").glob("numpy*"))
    assert snapshot(locked) == before


# --- the committed locks, and the real index --------------------------------------------------------------------------

COMMITTED = [(name, machine) for name, variant in VARIANTS.items() for machine in sorted(variant.locked)]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[indexes.Index]:
    """PyTorch's CPU index as it was recorded, without the files; all else comes from this host's package index."""
    monkeypatch.setenv("NO_PROXY", ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY")])))
    with indexes.serve() as served:
        indexes.publish_recorded_cpu(served, "whl/cpu")
        monkeypatch.setenv("TORCHDOCK_TORCH_INDEX", served.url("whl"))
        yield served


def test_there_are_locks_for_both_architectures() -> None:
    assert {("cpu", "aarch64"), ("cpu", "x86_64"), ("cu128", "x86_64"), ("cu130", "aarch64")} <= set(COMMITTED)
    assert ("cu128", "aarch64") not in COMMITTED


def test_the_cpu_lock_is_what_is_written_where_its_index_is_reached(clone: Path, recorded: indexes.Index) -> None:
    shutil.copy(ROOT / "docker/requirements.in", clone / "docker")
    shutil.copytree(ROOT / "docker/locks/cpu", clone / "docker/locks/cpu")
    committed = snapshot(clone)
    (clone / "docker/locks/cpu/torch.txt").unlink()  # nothing of it is known, its hashes neither
    found = lock(clone, variant="cpu")
    assert [name for name, *_ in found.differences["cpu"]] == ["torch", "torchvision"]
    assert snapshot(clone) == committed
    assert not [path for path in recorded.asked if path.endswith(".whl")]  # nothing was downloaded


@pytest.mark.parametrize("variant", sorted({name for name, _ in COMMITTED}))
def test_every_locked_hash_is_the_indexs(variant: str, recorded: indexes.Index) -> None:
    """Resolved again with the versions alone: what is locked by hash is what the index has today."""
    pins = locks.read(ROOT, variant)
    bare = {name: locks.Pin(name, pin.version, f"{name}=={pin.version}\n") for name, pin in pins.items()}
    again = resolver.resolve(VARIANTS[variant], locks.requirements(ROOT).values(), bare, sources.gather())
    assert locks.difference(pins, again) == []
    wrong = [name for name, pin in pins.items() if not hashes(pin) <= hashes(again[name])]
    assert wrong == []


def hashes(pin: locks.Pin) -> set[str]:
    found = set(re.findall(r"sha256:(\w{64})", pin.text))
    assert found
    return found


@pytest.mark.parametrize(("variant", "machine"), COMMITTED)
def test_a_lock_installs_by_hash_on_its_own(
    variant: str, machine: str, recorded: indexes.Index, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    files = sorted((ROOT / "docker/locks" / variant).glob("*.txt"))  # that of the devel target too
    assert {f"{layer}.txt" for layer in locks.layers(VARIANTS[variant])} <= {file.name for file in files}
    for file in files:
        assert install(file, tmp_path / "site", "--dry-run", "--cache-dir", str(cache), architecture=machine) == ""
    assert not list((tmp_path / "site").glob("*.dist-info"))
    # A dry run reads the pages of the index: nothing of the gigabytes is fetched.
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 50_000_000


def test_a_flipped_hash_fails_naming_the_package(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    text = locks.read(ROOT, "cpu")["iniconfig"].text
    lock.write_text(text)
    assert install(lock, tmp_path / "good") == ""
    lock.write_text(re.sub(r"sha256:(.)", lambda digit: f"sha256:{int(digit[1], 16) ^ 1:x}", text))
    assert "Hash mismatch for `iniconfig==" in install(lock, tmp_path / "bad")
    assert not list((tmp_path / "bad").glob("iniconfig*"))
