"""GPUs into real containers, by each way and by the one that is left where another lies; the GPUs are not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Invoke, base_of
from tests.engine.second import load, second_engine, small_image
from tests.fakes import FakeDriver, FakeGpu, FakeInstance, new_uuid, write_program, write_runtime
from torchdock import container, lifeline, passthrough
from torchdock.engine import Engine
from torchdock.gpus import Gpu
from torchdock.passthrough import Way

SEE = ("--", "python", "-I", "/opt/torchdock/src/torchdock/inside/sight.py")


@pytest.fixture(autouse=True)
def a_memory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    """Three GPUs that are not there, the last one cut into two instances."""
    folder = tmp_path / "driver"
    folder.mkdir()
    parts = tuple(FakeInstance(new_uuid("MIG"), gpu_instance=7 + index) for index in range(2))
    return FakeDriver(
        folder, [FakeGpu(new_uuid()), FakeGpu(new_uuid()), FakeGpu(new_uuid(), mig=True, instances=parts)]
    )


def gpu(driver: FakeDriver, index: int) -> Gpu:
    return Gpu(index, driver.gpus[index].uuid, "FAKE", 1, 0)


def seen(engine: Engine, image: str, words: tuple[str, ...]) -> frozenset[str]:
    found, why = passthrough.look(engine, image, container.identity(engine), words)
    assert found is not None, why
    assert found["driver"] == "580.0-fake"
    return frozenset(found["visible"])


# --- CDI, by the engine of this host ---


@pytest.mark.parametrize("by", ["uuid", pytest.param("index", marks=pytest.mark.slow)])
def test_a_run_sees_the_gpu_that_it_was_given_and_no_other(
    by: str, invoke: Invoke, image: dict[str, Any], driver: FakeDriver
) -> None:
    with driver.handed_over(by=by):
        wanted = driver.gpus[1].uuid
        done = invoke("run", "--gpus", wanted, *SEE, env=dict(driver.environment))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["visible"] == [wanted]
        assert "fallback" not in done.stderr
        told = invoke("run", "--gpus", wanted, "--", "printenv", "TORCHDOCK_GPUS", "CUDA_DEVICE_ORDER",
                      env=dict(driver.environment))  # fmt: skip
        assert told.stdout.split() == [wanted, "PCI_BUS_ID"]


def test_a_specification_that_gives_another_gpu_is_no_way(
    engine: Engine, image: dict[str, Any], driver: FakeDriver
) -> None:
    """Indices move: one that was written before names another GPU now."""
    who = container.identity(engine)
    first, second = gpu(driver, 0), gpu(driver, 1)
    with driver.handed_over(by="index"):
        document = json.loads(driver.file.read_text())
        document["devices"][0]["name"], document["devices"][1]["name"] = "1", "0"
        driver.file.write_text(json.dumps(document))
        with pytest.raises(passthrough.NoPassthrough) as refused:
            passthrough.settle(engine, image["image"], who, [first])
    said = dict(refused.value.failed)
    assert f"does not see {first.uuid}" in said[Way.CDI] and f"sees {second.uuid}, which" in said[Way.CDI]
    assert "could not select device driver" in said[Way.GPUS]
    assert "no runtime of that name" in said[Way.RUNTIME]
    assert engine.containers(["dev.torchdock.role=probe"]) == []


def test_a_host_whose_gpu_no_way_hands_over_says_so(invoke: Invoke, image: dict[str, Any], driver: FakeDriver) -> None:
    done = invoke("run", "--gpus", driver.gpus[0].uuid, "--", "true", env=dict(driver.environment))
    assert done.returncode == 1
    assert "by CDI, no CDI specification names these GPUs" in done.stderr
    assert "nvidia-ctk cdi generate" in done.stderr and "Traceback" not in done.stderr


def test_a_mig_instance_is_a_device_of_its_own(engine: Engine, image: dict[str, Any], driver: FakeDriver) -> None:
    part = driver.gpus[2].instances[1].uuid
    with driver.handed_over():
        words = passthrough.arguments(Way.CDI, [Gpu(3, part, "FAKE MIG", 1, 0)], [part])
        assert seen(engine, image["image"], words) == {part}


@pytest.mark.slow
def test_a_driver_that_hangs_in_a_container_is_told_and_nothing_is_left(
    engine: Engine, image: dict[str, Any], driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passthrough, "PROBE_SECONDS", 3.0)
    driver.behave(hang=["nvmlDeviceGetCount*"], where="inside")
    with driver.handed_over():
        words = passthrough.arguments(Way.CDI, [gpu(driver, 0)], [driver.gpus[0].uuid])
        found, why = passthrough.look(engine, image["image"], container.identity(engine), words)
    assert (found, why) == (None, "the driver gave a container no answer within 3 s")
    assert engine.containers(["dev.torchdock.role=probe"]) == []


# --- the other ways, by a second engine with the toolkit's hook and runtime, which are not there either ---


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs that the second engine was started with: what they do is each test's."""
    return tmp_path_factory.mktemp("toolkit")


@pytest.fixture(scope="module")
def other(engine: Engine, image: dict[str, Any], toolkit: Path) -> Iterator[tuple[Engine, str, Path]]:
    """A second engine with the hook, the runtime and a folder of CDI specifications of its own; and its image."""
    for name in ("nvidia-container-runtime-hook", "nvidia-container-runtime"):
        write_program(toolkit / name, "exit 1")
    cdi = toolkit / "cdi"
    cdi.mkdir()
    settings = {
        "features": {"cdi": True},
        "cdi-spec-dirs": [str(cdi)],
        "runtimes": {"nvidia": {"path": str(toolkit / "nvidia-container-runtime")}},
    }
    with (
        small_image(base_of(engine, image), image["image"]) as small,
        second_engine(engine, settings=settings, path=[toolkit]) as second,
    ):
        load(second, small)
        yield second.engine, small, cdi


@pytest.fixture
def hook(
    other: tuple[Engine, str, Path], toolkit: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The hook, which does as the real one; the runtime is without it."""
    monkeypatch.setenv("DOCKER_HOST", other[0].facts.endpoint)
    path = toolkit / "nvidia-container-runtime-hook"
    driver.write_hook(path)
    write_program(toolkit / "nvidia-container-runtime", 'exec runc "$@"')
    yield path
    for file in other[2].iterdir():
        file.unlink()


def settle(other: tuple[Engine, str, Path], *chosen: Gpu) -> passthrough.Settled:
    engine, image, _ = other
    return passthrough.settle(engine, image, container.identity(engine), chosen)


@pytest.mark.slow
def test_by_the_hook(other: tuple[Engine, str, Path], hook: Path, driver: FakeDriver) -> None:
    found = settle(other, gpu(driver, 0), gpu(driver, 1))
    assert found.words[0] == "--gpus"
    assert found.fallback == "GPUs are handed over by --gpus (CDI: no CDI specification names these GPUs)"
    assert seen(other[0], other[1], found.words) == {driver.gpus[0].uuid, driver.gpus[1].uuid}


@pytest.mark.slow
def test_by_the_runtime_where_the_hook_does_nothing(
    other: tuple[Engine, str, Path], hook: Path, toolkit: Path, driver: FakeDriver
) -> None:
    real = toolkit / "real-hook"
    driver.write_hook(real)
    write_program(hook, "exit 0")
    write_runtime(toolkit / "nvidia-container-runtime", real)
    found = settle(other, gpu(driver, 1))
    assert found.words[:2] == ("--runtime", "nvidia")
    assert "--gpus: the container starts, and has no driver library in it" in found.fallback
    assert seen(other[0], other[1], found.words) == {driver.gpus[1].uuid}


@pytest.mark.slow
def test_by_the_hook_where_the_specification_is_stale(
    other: tuple[Engine, str, Path], hook: Path, driver: FakeDriver
) -> None:
    text = driver.specification().replace(str(driver.library), f"{driver.library}.580.1")
    (other[2] / "nvidia.json").write_text(text)
    found = settle(other, gpu(driver, 0))
    assert found.words[0] == "--gpus"
    assert "CDI: the engine refuses" in found.fallback
    assert ".580.1" in found.fallback


@pytest.mark.slow
def test_cdi_goes_before_the_hook(other: tuple[Engine, str, Path], hook: Path, driver: FakeDriver) -> None:
    (other[2] / "nvidia.json").write_text(driver.specification())
    assert settle(other, gpu(driver, 0)) == passthrough.Settled(
        ("--device", f"nvidia.com/gpu={driver.gpus[0].uuid}"), ""
    )


@pytest.mark.slow
def test_where_everything_lies_each_lie_is_told(
    other: tuple[Engine, str, Path], hook: Path, toolkit: Path, driver: FakeDriver
) -> None:
    """CDI brings one GPU too many, the hook another one, the runtime none."""
    document = json.loads(driver.specification())
    document["devices"][0]["containerEdits"]["mounts"] += document["devices"][1]["containerEdits"]["mounts"]
    (other[2] / "nvidia.json").write_text(json.dumps(document))
    text = hook.read_text()
    hook.write_text(text.replace("return [KNOWN[word] for word in words]", "return ALL[1:]"))
    first, second = gpu(driver, 0), gpu(driver, 1)
    with pytest.raises(passthrough.NoPassthrough) as refused:
        settle(other, first)
    said = dict(refused.value.failed)
    assert said[Way.CDI] == f"the container sees {second.uuid}, which it was not given"
    assert f"does not see {first.uuid}" in said[Way.GPUS]
    assert said[Way.RUNTIME] == "the container starts, and has no driver library in it"


@pytest.mark.slow
def test_an_engine_that_was_started_anew_is_asked_anew(engine: Engine, other: tuple[Engine, str, Path]) -> None:
    assert engine.started and other[0].started
    assert engine.started != other[0].started
