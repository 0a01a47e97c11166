"""How GPUs get into a container: the ways, their words, and what a probe has to see."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from given import ANNA, INFO, TableEngine

from torchdock import cdi, lifeline, passthrough
from torchdock.gpus import Gpu
from torchdock.passthrough import Facts, Way

BOX = tuple(Gpu(index, f"GPU-{index}", "H200", 141 << 30, 0) for index in range(3))


def catalogue(*names: str, error: str = "") -> cdi.Catalogue:
    return cdi.Catalogue((cdi.Specification(Path("/etc/cdi/a.yaml"), tuple(map(cdi.Device, names)), error=error),))


def facts(*names: str, **different: Any) -> Facts:
    usual = {"injects": True, "podman": False, "runtimes": ("runc",), "catalogue": catalogue(*names)}
    return Facts(**{**usual, **different})


def seen(*uuids: str, code: int = 0, nodes: "dict[str, int] | None" = None) -> "dict[str, Any]":
    return {"code": code, "call": "nvmlInit_v2", "error": "Unknown Error", "visible": uuids, "nodes": nodes or {}}


@pytest.mark.parametrize(
    ("names", "chosen", "words"),
    [
        pytest.param(["GPU-0", "GPU-1"], [1], ["--device", "nvidia.com/gpu=GPU-1"], id="by UUID"),
        pytest.param(["0", "1", "all"], [1], ["--device", "nvidia.com/gpu=1"], id="by index, as an old toolkit"),
        pytest.param(["0", "GPU-0"], [0], ["--device", "nvidia.com/gpu=GPU-0"], id="the UUID before the index"),
        pytest.param(
            ["GPU-0", "GPU-2"],
            [2, 0],
            ["--device", "nvidia.com/gpu=GPU-2", "--device", "nvidia.com/gpu=GPU-0"],
            id="two, in order",
        ),
    ],
)
def test_by_cdi_gpus_go_by_the_names_of_the_specification(
    names: "list[str]", chosen: "list[int]", words: "list[str]"
) -> None:
    first = passthrough.candidates(facts(*names), [BOX[index] for index in chosen])[0]
    assert (first.way, list(first.words), first.obstacle) == (Way.CDI, words, "")


def test_an_instance_goes_by_its_gpus_index_and_its_own() -> None:
    part = Gpu(2, "MIG-1", "H200 MIG", 16 << 30, 0, parent="GPU-2", slot=1)
    for names in (["2:1", "2"], ["MIG-1", "2:1"]):
        words = passthrough.candidates(facts(*names), [part])[0].words
        assert words == ("--device", f"nvidia.com/gpu={names[0]}")


@pytest.mark.parametrize(
    ("given", "obstacle"),
    [
        (facts("GPU-0", injects=False), "it is switched off in the engine"),
        (facts("GPU-10", "10"), "no CDI specification names these GPUs"),
        (facts(catalogue=catalogue(error="Permission denied")), "/etc/cdi/a.yaml cannot be read (Permission denied)"),
    ],
)
def test_cdi_that_cannot_be_is_explained(given: Facts, obstacle: str) -> None:
    assert passthrough.candidates(given, BOX[:1])[0].obstacle == obstacle


def test_the_other_ways_go_by_uuid() -> None:
    ways = passthrough.candidates(facts(runtimes=("nvidia", "runc")), BOX[:2])
    assert [way.way for way in ways] == [Way.CDI, Way.GPUS, Way.RUNTIME]
    assert ways[1].words == ("--gpus", '"device=GPU-0,GPU-1"')  # docker reads CSV
    assert ways[2].words[:4] == ("--runtime", "nvidia", "--env", "NVIDIA_VISIBLE_DEVICES=GPU-0,GPU-1")
    assert passthrough.candidates(facts(), BOX[:1])[2].obstacle == "the engine has no runtime of that name"


def test_podman_knows_cdi_alone() -> None:
    assert [way.way for way in passthrough.candidates(facts("GPU-0", podman=True), BOX[:1])] == [Way.CDI]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        pytest.param(seen("GPU-0", "GPU-1"), [], id="exactly these"),
        pytest.param(seen("GPU-0"), ["does not see GPU-1"], id="too few"),
        pytest.param(seen("GPU-0", "GPU-1", "GPU-2"), ["sees GPU-2, which it was not given"], id="too many"),
        pytest.param(seen("GPU-0", "GPU-2"), ["does not see GPU-1", "sees GPU-2, which"], id="another one"),
        pytest.param(seen(code=12), ["no driver library in it"], id="no library"),
        pytest.param(
            seen(code=999, nodes={"/dev/nvidiactl": 1, "/dev/nvidia0": 0}),
            ["nvmlInit_v2 gives 999 (Unknown Error)", "/dev/nvidiactl cannot be opened"],
            id="devices taken away",
        ),
    ],
)
def test_a_probe_has_to_see_exactly_what_was_asked_for(found: "Mapping[str, Any]", words: "list[str]") -> None:
    wrong = passthrough.judge(BOX[:2], found)
    assert bool(wrong) is bool(words)
    assert all(word in wrong for word in words)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "dict[str, Any]":
    """What a probe by each way gives: words' first -> what is seen, or a reason; and the words that were tried."""
    given: dict[str, Any] = {"tried": []}

    def look(_engine: Any, _image: str, _who: Any, words: "tuple[str, ...]") -> "tuple[Any, str]":
        given["tried"].append(words[0])
        answer = given[words[0]]
        return (None, answer) if isinstance(answer, str) else (answer, "")

    monkeypatch.setattr(passthrough, "look", look)
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    monkeypatch.setattr(passthrough, "gather", lambda _: given.get("facts", facts("GPU-0", runtimes=("nvidia",))))
    monkeypatch.setattr(TableEngine, "started", "7:7")
    return given


def settle(**more: Any) -> passthrough.Settled:
    return passthrough.settle(TableEngine(), "torchdock/cu130:1", ANNA, BOX[:1], **more)


def test_the_first_way_that_is_proved_is_taken_and_kept(answers: "dict[str, Any]") -> None:
    answers.update({"--device": seen("GPU-0", "GPU-1"), "--gpus": seen("GPU-0")})
    for _ in range(2):
        found = settle()
        assert found.words == ("--gpus", "device=GPU-0")
        assert found.fallback == (
            "GPUs are handed over by --gpus (CDI: the container sees GPU-1, which it was not given)"
        )
    assert answers["tried"] == ["--device", "--gpus"]


@pytest.mark.parametrize("change", ["engine", "start", "specification", "forgotten", "damaged"])
def test_a_proof_holds_no_longer_than_what_it_depends_on(
    change: str, answers: "dict[str, Any]", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers["--device"] = seen("GPU-0")
    assert settle().words == settle().words == ("--device", "nvidia.com/gpu=GPU-0")
    assert answers["tried"] == ["--device"]
    if change == "engine":
        monkeypatch.setitem(INFO, "ID", "another")
    elif change == "start":
        monkeypatch.setattr(TableEngine, "started", "7:8")
    elif change == "specification":
        answers["facts"] = facts("GPU-0", "GPU-1", runtimes=("nvidia",))
    elif change == "forgotten":
        passthrough.forget()
    else:
        next(tmp_path.glob(f"*/{passthrough.MEMORY}")).write_text('{"way": "CDI", "key"')
    settle()
    assert answers["tried"] == ["--device", "--device"]


def test_one_index_that_is_right_proves_no_other(answers: "dict[str, Any]") -> None:
    for names, times in ((("0", "1"), 2), (("GPU-0", "GPU-1"), 1)):
        answers["tried"].clear()
        passthrough.forget()
        answers["facts"] = facts(*names)
        for gpu in BOX[:2]:
            answers["--device"] = seen(gpu.uuid)
            passthrough.settle(TableEngine(), "torchdock/cu130:1", ANNA, [gpu])
        assert len(answers["tried"]) == times


def test_where_no_way_is_proved_each_is_told(answers: "dict[str, Any]") -> None:
    answers.update({"--device": seen(code=999), "--gpus": "the engine refuses: no hook", "--runtime": seen()})
    with pytest.raises(passthrough.NoPassthrough) as refused:
        settle()
    said = str(refused.value)
    assert refused.value.exit_code == 1
    for words in ("by CDI, NVML fails", "by --gpus, the engine refuses: no hook", "by --runtime=nvidia, the container"):
        assert words in said
    assert "nvidia-ctk cdi generate" in said and "`--gpus 0`" in said
    settle_again = answers["tried"][:]
    with pytest.raises(passthrough.NoPassthrough):
        settle()
    assert answers["tried"] == settle_again * 2  # a failure is not kept


def test_a_driver_that_hangs_is_waited_for_once(answers: "dict[str, Any]") -> None:
    answers["--device"] = f"{passthrough.SILENT} within 60 s"
    with pytest.raises(passthrough.NoPassthrough, match="by CDI, the driver gave a container no answer"):
        settle()
    assert answers["tried"] == ["--device"]


def test_a_dry_run_launches_and_makes_nothing(answers: "dict[str, Any]", tmp_path: Path) -> None:
    assert settle(dry_run=True).words == ("--device", "nvidia.com/gpu=GPU-0")
    answers["facts"] = facts()
    assert settle(dry_run=True).words == ("--gpus", "device=GPU-0")
    assert answers["tried"] == []
    assert list(tmp_path.iterdir()) == []


def test_without_gpus_nothing_is_asked(answers: "dict[str, Any]") -> None:
    assert passthrough.settle(TableEngine(), "i", ANNA, ()) == passthrough.Settled((), "")
    assert answers["tried"] == []


def test_a_probe_has_no_more_rights_than_a_launch() -> None:
    argv = passthrough.probe_argv(TableEngine(), "torchdock/cu130:1", ANNA, ("--gpus", "device=GPU-0"), "n")
    line = " ".join(argv)
    for words in ("--user 1000:1000", "--cap-drop ALL", "no-new-privileges", "--network none", "--rm", "--pull never"):
        assert words in line
    assert argv.index("--gpus") < argv.index("torchdock/cu130:1")
