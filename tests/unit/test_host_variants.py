"""The variants: reading, choosing, and their agreement with the Dockerfile, the lock and the requirements."""

import re
from pathlib import Path

import pytest
from given import ROOT

from torchdock import locks, variants
from torchdock.errors import InputError
from torchdock.variants import GB

TOML = (ROOT / "docker/variants.toml").read_text()
DOCKERFILES = {name: (ROOT / name).read_text() for name in ("docker/cuda.Dockerfile", "docker/cpu.Dockerfile")}
LOCKED = sorted(name for name, variant in variants.read(ROOT).items() if variant.locked)


@pytest.mark.parametrize("name", [None, "cu130"])
def test_the_default_is_cu130(name: "str | None") -> None:
    found = variants.get(ROOT, name)
    assert (found.name, found.torch, found.torchvision, found.python) == ("cu130", "2.14.1", "0.29.1", "3.13")
    assert (found.cuda, found.driver, found.dockerfile) == ("13.0", "580", "docker/cuda.Dockerfile")


# What pins.md verified, as literals: a row that is changed by mistake differs from this.
@pytest.mark.parametrize(
    ("name", "torch", "torchvision", "release", "index", "cuda", "driver", "architectures", "capabilities"),
    [
        ("cpu", "2.14.1+cpu", "0.29.1+cpu", "2.14.1", "cpu", "", "", ["x86_64", "aarch64"], {}),
        (
            *("cu126", "2.14.1+cu126", "0.29.1+cu126", "2.14.1", "cu126", "12.6", "525.60.13", ["x86_64", "aarch64"]),
            {"x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": "8.0 9.0"},
        ),
        (
            *("cu128", "2.10.0", "0.25.0", "2.10.0", "", "12.8", "525.60.13", ["x86_64"]),
            {"x86_64": "7.0 7.5 8.0 8.6 9.0 10.0 12.0"},
        ),
        (
            *("cu130", "2.14.1", "0.29.1", "2.14.1", "", "13.0", "580", ["x86_64", "aarch64"]),
            {"x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0"},
        ),
    ],
)
def test_a_row_is(
    name: str,
    torch: str,
    torchvision: str,
    release: str,
    index: str,
    cuda: str,
    driver: str,
    architectures: "list[str]",
    capabilities: "dict[str, str]",
) -> None:
    found = variants.get(ROOT, name)
    assert (found.torch, found.torchvision, found.torch_release) == (torch, torchvision, release)
    assert (found.index, found.cuda, found.driver, found.python) == (index, cuda, driver, "3.13")
    assert found.index_url == (f"https://download.pytorch.org/whl/{index}" if index else "")
    assert list(found.architectures) == architectures
    assert {key: " ".join(listed) for key, listed in found.compute_capability.items()} == capabilities
    assert found.dockerfile == ("docker/cuda.Dockerfile" if cuda else "docker/cpu.Dockerfile")
    assert GB < found.image_bytes < found.build_bytes < 20 * GB
    assert found.locked <= set(found.architectures)
    assert hash(found) == hash(variants.get(ROOT, name))


def test_these_are_all_the_rows() -> None:
    assert list(variants.read(ROOT)) == ["cpu", "cu126", "cu128", "cu130"]


def test_the_wheel_indexes_have_one_root() -> None:
    assert variants.torch_index(ROOT) == "https://download.pytorch.org/whl"


@pytest.mark.parametrize(
    ("lock", "locked"),
    [
        (None, set()),
        ("torch==2.14.1+cu126 \\\n", {"x86_64", "aarch64"}),
        ("# torchdock: variant=cu126 layer=torch python=3.13 architectures=x86_64,aarch64\n", {"x86_64", "aarch64"}),
        ("# torchdock: variant=cu126 layer=torch python=3.13 architectures=x86_64\ntorch==2.14.1\n", {"x86_64"}),
        ("# torchdock: variant=cu126 layer=torch architectures=x86_64,riscv64\n", {"x86_64"}),
        ("# torchdock: variant=cu126 layer=torch architectures=\n", set()),
        ("\n# torchdock: architectures=x86_64\n", {"x86_64", "aarch64"}),
    ],
    ids=["no lock", "no header", "both", "one", "one that the variant has not", "none", "not the first line"],
)
def test_a_variant_is_locked_for(lock: "str | None", locked: "set[str]", tmp_path: Path) -> None:
    (tmp_path / "docker/locks/cu126").mkdir(parents=True)
    (tmp_path / "docker/variants.toml").write_text(TOML)
    (tmp_path / "docker/locks/cu126/tools.txt").write_text("numpy==2\n")
    if lock is not None:
        (tmp_path / "docker/locks/cu126/torch.txt").write_text(lock)
    found = variants.read(tmp_path)
    assert found["cu126"].locked == locked
    assert found["cu130"].locked == set()


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("525.60.12", "525.60.13"),
        ("525", "525.60.13"),
        ("579.99.99", "580"),
        ("580", "580.65.06"),
        ("99.1", "580"),
        ("2.10.0", "2.14.1"),
        ("2.9.1", "2.10.0"),
        ("9.0", "10.0"),
        ("", "1"),
        ("unknown", "1"),
    ],
)
def test_versions_are_compared_as_numbers(older: str, newer: str) -> None:
    assert variants.numbers(older) < variants.numbers(newer)


@pytest.mark.parametrize(
    ("text", "parts"), [("525.60.13", (525, 60, 13)), ("2.14.1+cu126", (2, 14, 1)), ("580.x", (580,)), ("", ())]
)
def test_numbers_end_at_the_first_that_is_none(text: str, parts: "tuple[int, ...]") -> None:
    assert variants.numbers(text) == parts


@pytest.mark.parametrize(
    ("name", "hint"), [("cu13", " Did you mean 'cu130'?"), ("CU130", " Did you mean 'cu130'?"), ("windows", "")]
)
def test_an_unknown_variant_lists_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(InputError) as bad:
        variants.get(ROOT, name)
    known = ", ".join(sorted(variants.read(ROOT)))
    assert str(bad.value) == f"There is no variant {name!r}.{hint} Variants: {known}."
    assert bad.value.exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="missing"),
        pytest.param("[base\n", id="no TOML"),
        pytest.param(TOML.replace("epoch", "day"), id="a key is missing"),
        pytest.param(TOML.replace('driver = "580"', 'driver = "new"'), id="no number"),
        pytest.param(TOML.replace('driver = "580"', "driver = 580"), id="a number that is no text"),
        pytest.param(TOML.replace('driver = "580"', ""), id="no driver"),
        pytest.param(TOML.replace('"8.6"', '"sm_86"'), id="no capability"),
        pytest.param(TOML.replace("compute_capability.aarch64", "compute_capability.arm"), id="another architecture"),
        pytest.param(TOML.replace('["x86_64", "aarch64"]', '"x86_64"'), id="a text that is no list"),
        pytest.param(TOML.replace('torch = "2.10.0"', "torch = 2.10"), id="a version that is no text"),
        pytest.param(TOML.replace("[torch_index]", "[index]"), id="no root of the wheel indexes"),
        pytest.param(TOML.replace("build_gb = ", 'build_gb = "x"  # '), id="no size"),
        pytest.param(TOML.partition("[variant.")[0] + '[variant]\ncu130 = "x"\n', id="a row is no table"),
        pytest.param("variant = 5\n" + TOML.partition("[variant.")[0], id="no rows at all"),
    ],
)
def test_a_damaged_table_is_wrong_input_and_names_the_file(text: "str | None", tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    if text is not None:
        (tmp_path / "docker/variants.toml").write_text(text)
    with pytest.raises(InputError, match=r"docker/variants\.toml.*git checkout docker/variants\.toml"):
        variants.read(tmp_path)


@pytest.mark.parametrize("name", sorted(variants.read(ROOT)))
def test_a_variant_says_what_is_in_it(name: str) -> None:
    variant = variants.get(ROOT, name)
    vision = variant.torchvision.partition("+")[0]
    assert f"torch {variant.torch_release}, torchvision {vision}" in variant.summary
    assert ("CUDA" in variant.summary) is bool(variant.cuda)
    assert f"CUDA {variant.cuda}" in variant.summary or not variant.cuda


@pytest.mark.parametrize("name", LOCKED)
def test_a_locked_variant_has_its_dockerfile_and_its_torch(name: str) -> None:
    variant = variants.get(ROOT, name)
    assert (ROOT / variant.dockerfile).is_file()
    pins = locks.read(ROOT, variant.name)
    assert (pins["torch"].version, pins["torchvision"].version) == (variant.torch, variant.torchvision)


@pytest.mark.parametrize("name", sorted(DOCKERFILES))
def test_plain_docker_builds_on_the_same_base_and_day(name: str) -> None:
    base = variants.get(ROOT, "cu130").base
    assert re.findall(r"^ARG BASE=(\S+)$", DOCKERFILES[name], re.M) == [base.image]
    epochs = re.findall(r"^ARG SOURCE_DATE_EPOCH=(\d+)$", DOCKERFILES[name], re.M)
    assert len(epochs) >= 4 and set(epochs) == {str(base.epoch)}
    assert re.fullmatch(rf"docker\.io/library/debian:{base.suite}-\d{{8}}-slim@sha256:[0-9a-f]{{64}}", base.image)


@pytest.mark.parametrize("name", sorted(DOCKERFILES))
def test_every_stage_that_writes_has_the_day(name: str) -> None:
    stages = re.split(r"^FROM ", DOCKERFILES[name], flags=re.M)[1:]
    writing = [stage for stage in stages if re.search(r"^(RUN|COPY|ADD) ", stage, re.M)]
    without = {stage.split()[2] for stage in writing if "ARG SOURCE_DATE_EPOCH=" not in stage}
    assert len(writing) >= 5
    mounted = set(re.findall(r"type=bind,from=(uv|[a-z]+-wheels),", DOCKERFILES[name]))  # never copied
    assert without == mounted >= {"uv", "torch-wheels", "recent-wheels"}


def test_plain_docker_builds_the_default_variant() -> None:
    assert re.findall(r"^ARG VARIANT=(\S+)$", DOCKERFILES["docker/cuda.Dockerfile"], re.M) == [variants.DEFAULT]


def test_the_image_says_which_variant_it_is() -> None:
    said = {
        name: re.findall(r'(?:dev\.torchdock\.variant|TORCHDOCK_VARIANT)="?([^"\s]+)', text)
        for name, text in DOCKERFILES.items()
    }
    assert said == {"docker/cuda.Dockerfile": ["${VARIANT}"] * 2, "docker/cpu.Dockerfile": ["cpu"] * 2}


def test_the_requirements_leave_torch_to_the_variants() -> None:
    text = (ROOT / "docker/requirements.in").read_text()
    assert re.findall(r"^torch(?:vision)?\b", text, re.M) == []


@pytest.mark.parametrize("name", LOCKED)
def test_everything_that_is_required_is_locked(name: str) -> None:
    text = (ROOT / "docker/requirements.in").read_text()
    asked = {re.split(r"[=<>~\s\[]", line)[0] for line in text.splitlines() if re.match(r"[a-z]", line)}
    assert len(asked) >= 10
    assert asked - set(locks.read(ROOT, name)) == set()
