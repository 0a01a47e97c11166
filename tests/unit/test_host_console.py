"""What people and programs read: one document on stdout, people's text plain and out of its way."""

import json

import pytest

from torchdock.console import Reporter

TEXTS = [
    "plain",
    "[red]no markup[/red]",
    "[Errno 2] No such file",
    "torchdock/cu130 [1/2]",
    r"C:\[bold]x",
    "a [/ b ]",
    "volume :key: and :x:",
    "[link=x]y",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", ["say", "good"])
def test_a_line_is_printed_as_it_is(text: str, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(Reporter(), way)(text)
    assert capsys.readouterr() == (f"{text}\n", "")


@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_is_printed_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().table("", ("name", "seen"), [("x", text)])
    assert capsys.readouterr().out.splitlines()[1].rstrip() == f"x     {text}"


def test_a_long_line_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().say("word " * 100)
    assert capsys.readouterr().out == "word " * 100 + "\n"


def test_a_fallback_is_said_out_loud(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().fallback("made [here]")
    assert capsys.readouterr().out == "fallback: made [here]\n"


def test_with_json_stdout_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(as_json=True)
    reporter.say("said")
    reporter.fallback("why")
    reporter.good("well")
    reporter.table("", ("a",), [("cell",)])
    with reporter.step("Building") as step:
        step.now("first")
        step.done("part")
    reporter.document({"image": "x", "layers": ["é"]})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"image": "x", "layers": ["é"]}
    assert [line.strip() for line in err.splitlines()] == [
        *("said", "fallback: why", "well", "a", "cell", "Building ...", "part")
    ]


def test_without_json_there_is_no_document(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().document({"image": "x"})
    assert capsys.readouterr() == ("", "")


def test_where_nobody_can_be_asked_the_answer_is_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert Reporter().ask("Go ahead?") is True
    assert capsys.readouterr() == ("", "")
