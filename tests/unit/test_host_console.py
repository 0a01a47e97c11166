"""What people and programs read: one document on stdout, people's text plain and out of its way."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from given import ROOT
from rich.console import Console

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


class Terminal(io.StringIO):
    """Something that is written to as to a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_measured_step_has_a_bar_that_is_full_at_its_end() -> None:
    reporter, screen = Reporter(), Terminal()
    reporter.console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with reporter.step("Image [cu130]", measured=True) as step:
        for fraction, text in ((None, ""), (0.129, "1.2 of 9.5 GB"), (0.996, "9.4 of 9.5 GB"), (1.0, "9.5 of 9.5 GB")):
            step.now("CUDA libraries, tools")
            step.measure(fraction, text)
            assert step._progress is not None
            step._progress.refresh()
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.getvalue()))
    shown = [line for line in lines if "Image [cu130]: CUDA libraries, tools" in line]
    assert "%" not in shown[0] and [
        found[0] for line in shown for found in [re.search(r"\d+% .* GB", line)] if found
    ] == ["12% 1.2 of 9.5 GB", "99% 9.4 of 9.5 GB", *["100% 9.5 of 9.5 GB"] * (len(shown) - 3)]
    full = [line.count("\u2501") for line in shown]
    assert full[-1] == 20
    assert {count for line, count in zip(shown, full, strict=True) if "12%" in line} == {2}


def test_without_a_terminal_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().step("Image", measured=True) as step:
        step.measure(0.5, "1.2 of 9.5 GB")
    assert capsys.readouterr().out == "Image ...\n"


def test_without_json_there_is_no_document(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().document({"image": "x"})
    assert capsys.readouterr() == ("", "")


def test_where_nobody_can_be_asked_the_answer_is_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert Reporter().ask("Go ahead?") is True
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("ends", "out", "err"), [("", "", ""), ("1/0", "", "mine\nthe child\n")])
@pytest.mark.parametrize("keep", [False, True], ids=["", "a document on stdout"])
def test_quiet_means_until_it_fails(ends: str, out: str, err: str, keep: bool) -> None:
    program = f"""
import os, sys
from torchdock.console import quietly
try:
    with quietly(keep_stdout={keep}):
        if {keep}:
            print("document")
        print("mine", file=sys.stderr if {keep} else sys.stdout)
        sys.stdout.flush()
        os.system("echo the child >&2")
        {ends or "pass"}
except ZeroDivisionError:
    pass
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert (done.stdout, done.stderr) == ("document\n" * keep + out, err)
