"""BuildKit's events as plain lines: what was recorded of real builds in both formats, and what may come between."""

import base64
import json
from typing import Any

import pytest
from given import ROOT, Screen

from torchdock.progress import BuildProgress, Expected, Forecast, is_news
from torchdock.rawjson import known_to, plain_lines
from torchdock.stages import BuildStep

MB = 10**6
# The same builds by buildx 0.13.1 in both formats: two stages at once and then both laid together; the same again; and
# two stages at once, of which one fails.
RECORDED = ROOT / "tests/unit/buildkit"
SIZES = {"python 2/2": (4, 1), "cuda 1/1": (500, 900), "system 1/1": (50, 0), "merged 1/1": (0, 60)}


def recorded(name: str) -> "list[str]":
    return (RECORDED / name).read_text().splitlines(keepends=True)


def follow(lines: "list[str]", screen: "Screen | None" = None) -> BuildProgress:
    steps = [
        Expected(BuildStep(label, label, layer=True), False, download * MB, write * MB)
        for label, (download, write) in SIZES.items()
    ]
    progress = BuildProgress(screen, Forecast(tuple(steps)))
    for line in lines:
        progress.line(line.rstrip("\n"))
    return progress


def state(lines: "list[str]") -> "tuple[Any, ...]":
    """All that a build by these lines left: on the screen, in the record, and of its failure.

    What is cached is told in any order.
    """
    screen = Screen()
    progress = follow(lines, screen)
    printed = progress.output_of_failure() if any(" ERROR: " in line for line in lines) else []
    meter = progress.meter
    return (
        (sorted(screen.finished), screen.doing[-1], screen.measured[-1]),
        (sorted(progress.finished), progress.notes, printed),
        (meter.total, meter.done, meter.fraction),
    )


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("cold", ["python", "system", "cuda", "merged"]),
        ("cached", ["python", "cuda", "system", "merged"]),
        ("failed", ["python"]),
    ],
)
def test_a_build_ends_in_the_same_state_in_both_formats(name: str, stages: "list[str]") -> None:
    lines = list(plain_lines(recorded(f"{name}.rawjson")))
    assert state(lines) == state(recorded(f"{name}.plain"))
    assert [stage for stage, _ in follow(lines).finished] == stages
    assert (follow(lines).meter.total > 0) is (name != "cached")


@pytest.mark.parametrize("name", ["cold", "cached", "failed"])
def test_a_document_may_be_one_line(name: str) -> None:
    """As newer ones than 0.13 may write it."""
    text, documents = "".join(recorded(f"{name}.rawjson")), list[str]()
    while text.startswith("{"):
        document, end = json.JSONDecoder().raw_decode(text)
        documents.append(json.dumps(document) + "\n")
        text = text[end:].lstrip("\n")
    lines = [*documents, *text.splitlines(keepends=True)]
    assert len(documents) > 15
    assert list(plain_lines(lines)) == list(plain_lines(recorded(f"{name}.rawjson")))


def test_what_runs_at_once_is_told_at_once() -> None:
    """The plain lines of the same build tell of the second stage when the first has ended, 3 s later."""

    def counted(lines: "list[str]") -> "list[str]":
        return [line.split()[-2] for line in lines if not is_news(line)]

    lines = list(plain_lines(recorded("cold.rawjson")))
    assert counted(lines)[:4] == ["python", "cuda", "system", "system"]
    assert counted(recorded("cold.plain")) == ["python", *["system"] * 4, *["cuda"] * 4]
    begun = next(number for number, line in enumerate(lines) if line.endswith("received: cuda 200000000\n"))
    screen = Screen()
    progress = follow(lines[: begun + 1], screen)
    assert screen.doing[-1] == "Debian packages, CUDA libraries"
    assert progress.meter.done == int(4.85 * MB) + (500 + 765) * MB * 2 // 5 + 20 * MB


def test_the_log_of_a_failed_build_is_text() -> None:
    log = "".join(line for line in plain_lines(recorded("failed.rawjson")) if is_news(line))
    assert "vertexes" not in log and "torchdock: received: torch 5\n" not in log
    assert "\n#7 [torch 1/1] RUN sleep 0.5; echo 'error: Failed" in log
    steps = [line for line in log.splitlines() if line.startswith(("#6 ", "#7 "))][2:]
    assert [line[:60] for line in steps] == [
        "#6 0.184 packages",
        "#7 0.714 error: Failed to download `triton==3.8.0`",
        "#6 2.178 unrelated",
        "#7 2.716   cause: Hash mismatch for `triton==3.8.0`",
        "#7 ERROR: process \"/bin/sh -c sleep 0.5; echo 'error: Failed",
        "#6 CANCELED",
    ]
    assert log.splitlines()[-1].startswith('ERROR: failed to solve: process "/bin/sh -c sleep 0.5;')
    assert log.splitlines()[-1].endswith("did not complete successfully: exit code: 1")


def test_what_is_cached_is_told_below_its_name() -> None:
    lines = list(plain_lines(recorded("cached.rawjson")))
    assert [line for line in lines if line.startswith(("#6 ", "#7 "))][1::2] == ["#6 CACHED\n", "#7 CACHED\n"]
    assert "#10 exporting layers 0.0s done\n" in lines


# --- what may come between ---


def step(digest: str, name: str, **more: Any) -> str:
    vertex = {"digest": digest, "name": name, "started": "2026-11-30T08:02:41Z", **more}
    return json.dumps({"vertexes": [vertex]}) + "\n"


def log(digest: str, data: bytes, stream: int = 1, when: str = "2026-11-30T09:02:43.5+01:00") -> str:
    said = {"vertex": digest, "stream": stream, "data": base64.b64encode(data).decode(), "timestamp": when}
    return json.dumps({"logs": [said]}) + "\n"


BEGUN = step("a", "[cuda 1/1] RUN x\ny")


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        pytest.param([(b"ab", 1), (b"cd\nef\n", 1)], ["abcd", "ef"], id="a line in two"),
        pytest.param([(b"ab", 1), (b"cd\n", 2), (b"ef\n", 1)], ["cd", "abef"], id="two streams"),
        pytest.param([("é".encode()[:1], 1), ("é".encode()[1:] + b"\n", 1)], ["é"], id="a letter in two"),
        pytest.param([(b"\xff\n", 1)], ["\N{REPLACEMENT CHARACTER}"], id="no letter"),
        pytest.param([(b"1 %\r2 %\r\n\n", 1)], ["1 %", "2 %", ""], id="carriage returns"),
        pytest.param([(b"", 1), (b"end", 2)], ["end"], id="no end of the line"),
    ],
)
def test_what_a_step_prints_comes_in_lines(parts: "list[tuple[bytes, int]]", lines: "list[str]") -> None:
    done = step("a", "[cuda 1/1] RUN x", completed="2026-11-30T08:02:51.04Z")
    told = list(plain_lines([BEGUN, *(log("a", data, stream) for data, stream in parts), done]))
    assert told == ["\n", "#1 [cuda 1/1] RUN x y\n", *(f"#1 2.500 {line}\n" for line in lines), "#1 DONE 10.0s\n"]


def test_a_line_keeps_the_time_of_its_begin() -> None:
    parts = [log("a", b"be"), log("a", b"gun\nnext\n", when="2026-11-30T08:05:41.123456789Z")]
    assert list(plain_lines([BEGUN, *parts]))[2:] == ["#1 2.500 begun\n", "#1 180.1 next\n"]


def test_a_step_of_which_only_the_key_was_computed_is_begun_once() -> None:
    known = {"digest": "a", "name": "[python 1/2] FROM x", "started": "2026-11-30T08:02:41Z"}
    ended = {**known, "completed": "2026-11-30T08:02:42Z"}
    waiting = {"digest": "b", "name": "[cuda 1/1] RUN x"}
    both = json.dumps({"vertexes": [waiting, ended, {**ended, "cached": True}], "logs": None}) + "\n"
    assert list(plain_lines([both, both])) == ["\n", "#1 [python 1/2] FROM x\n", "#1 CACHED\n", "#1 CACHED\n"]


def test_what_nobody_announced_is_not_told() -> None:
    status = {"id": "exporting layers", "vertex": "b", "started": "2026-11-30T08:02:41Z", "current": 0}
    ended = {"digest": "b", "name": "x", "completed": "2026-11-30T08:02:42Z", "error": "x"}
    assert list(plain_lines([json.dumps({"statuses": [status]}) + "\n", log("b", b"x\n"), "{}\n"])) == []
    assert list(plain_lines([json.dumps({"vertexes": [ended]})])) == []


CUT = "ERROR: what BuildKit told of this build ends in the middle\n"
GONE = "ERROR: failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF\n"
LINE = log("a", b"lost\n")
PRETTY = json.dumps(json.loads(LINE), indent=2).splitlines(keepends=True)


HALF, LOST = "#1 2.500 half\n", "#1 2.500 lost\n"


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        pytest.param([], [HALF], id="nothing"),
        pytest.param([GONE], [GONE, HALF], id="an error"),
        pytest.param([LINE[:40]], [CUT, HALF], id="half a line"),
        pytest.param([LINE[:40] + "\n", GONE], [CUT, GONE, HALF], id="half a line and an error"),
        pytest.param(PRETTY[:4], [HALF, CUT], id="half a document"),
        pytest.param([*PRETTY[:4], GONE], [CUT, GONE, HALF], id="half a document and an error"),
        pytest.param([*PRETTY[:4], *PRETTY], [CUT, LOST, HALF], id="half a document and a whole one"),
        pytest.param(PRETTY[:1], [HALF, CUT], id="a brace"),
        pytest.param(["{a brace} of a person\n"], ["{a brace} of a person\n", HALF], id="text in braces"),
        pytest.param(["Dockerfile:3\n", "   3 |  x\n"], ["Dockerfile:3\n", "   3 |  x\n", HALF], id="text"),
    ],
)
def test_where_the_events_end_what_is_known_is_told(ending: "list[str]", told: "list[str]") -> None:
    assert list(plain_lines([BEGUN, log("a", b"half", 2), *ending]))[2:] == told


@pytest.mark.parametrize("version", ["v0.13.1", "0.13.1+ds1", "v0.30.0-desktop.1", "v1.0.0"])
def test_a_buildx_that_knows_events(version: str) -> None:
    assert known_to(version)


@pytest.mark.parametrize("version", ["v0.12.5", "v0.9.1", "", "devel", "v0.0.0+unknown"])
def test_a_buildx_that_knows_none_or_does_not_say_it(version: str) -> None:
    assert not known_to(version)
