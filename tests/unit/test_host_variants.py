"""The variants: reading, choosing, and their agreement with the Dockerfile, the lock and the requirements."""

import re
from pathlib import Path

import pytest
from given import ROOT

from torchdock import locks, variants
from torchdock.errors import InputError

TOML = (ROOT / "docker/variants.toml").read_text()
DOCKERFILE = (ROOT / "docker/cuda.Dockerfile").read_text()


@pytest.mark.parametrize("name", [None, "cu130"])
def test_the_default_is_cu130(name: "str | None") -> None:
    found = variants.get(ROOT, name)
    assert (found.name, found.torch, found.torchvision, found.python) == ("cu130", "2.14.1", "0.29.1", "3.13")
    assert (found.cuda, found.driver, found.dockerfile) == ("13.0", 580, "docker/cuda.Dockerfile")
    assert found.image_bytes < found.build_bytes < 20_000_000_000


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


def test_every_variant_has_its_dockerfile_and_its_lock() -> None:
    for variant in variants.read(ROOT).values():
        assert (ROOT / variant.dockerfile).is_file()
        pins = locks.read(ROOT, variant.name)
        assert (pins["torch"].version, pins["torchvision"].version) == (variant.torch, variant.torchvision)
        assert f"torch {variant.torch}, torchvision {variant.torchvision}" in variant.summary


def test_plain_docker_builds_on_the_same_base_and_day() -> None:
    base = variants.get(ROOT, "cu130").base
    assert re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.M) == [base.image]
    epochs = re.findall(r"^ARG SOURCE_DATE_EPOCH=(\d+)$", DOCKERFILE, re.M)
    assert len(epochs) == 5 and set(epochs) == {str(base.epoch)}
    assert re.fullmatch(rf"docker\.io/library/debian:{base.suite}-\d{{8}}-slim@sha256:[0-9a-f]{{64}}", base.image)


def test_every_stage_that_writes_has_the_day() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    without = [stage.split()[2] for stage in stages if "ARG SOURCE_DATE_EPOCH=" not in stage]
    assert without == ["uv"]  # bind-mounted, never copied


def test_the_image_says_which_variant_it_is() -> None:
    assert re.findall(r"cu\d+", DOCKERFILE.partition("AS environment")[2]) == ["cu130", "cu130", "cu130"]


def test_the_requirements_ask_for_the_variants_torch() -> None:
    variant = variants.get(ROOT, "cu130")
    asked = dict(re.findall(r"^(torch|torchvision)==(\S+)", (ROOT / "docker/requirements.in").read_text(), re.M))
    assert asked == {"torch": variant.torch, "torchvision": variant.torchvision}


def test_everything_that_is_required_is_locked() -> None:
    text = (ROOT / "docker/requirements.in").read_text()
    asked = {re.split(r"[=<>~\s\[]", line)[0] for line in text.splitlines() if re.match(r"[a-z]", line)}
    assert len(asked) >= 10
    assert asked - set(locks.read(ROOT, "cu130")) == set()
