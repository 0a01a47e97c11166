"""The suite's rules: what is selected, what counts as good, how it is told."""

import json
from xml.etree import ElementTree

import pytest

from torchdock.inside import suite

SELECTION = suite.Selection("default", "not gpu", gpu=False, committed=3)


def tally_of(*outcomes: str, **fields: object) -> suite.Tally:
    tally = suite.Tally()
    ids = [f"test_a.py::test_{number}" for number in range(len(outcomes))]
    tally.take({"event": "facts", "device": "cpu", "versions": {"torch": "2.14.1+cu130"}})
    tally.take({"event": "collected", "ids": ids, "words": {"a": "what a proves"}})
    for id, outcome in zip(ids, outcomes, strict=True):
        tally.take({"event": "start", "id": id, "limit": 1})
        tally.take({"event": "end", "id": id, "outcome": outcome, "seconds": 0.25, "message": "why"})
    return tally


def result_of(tally: suite.Tally, *problems: str, selection: suite.Selection = SELECTION) -> suite.Result:
    checks = tuple(tally.checks.values())
    return suite.Result(selection, checks, problems, 1.5, tally.device, tally.versions, "cu130")


@pytest.mark.parametrize(
    ("quick", "gpu", "launched", "name", "markers"),
    [
        (False, False, False, "default", "not gpu and not launched and not devel"),
        (True, False, False, "quick", "quick and not gpu and not launched and not devel"),
        (False, True, False, "gpu", "not launched and not devel"),
        (True, True, True, "quick-gpu", "quick and not devel"),
        (False, True, True, "gpu", "not devel"),
    ],
)
def test_select(quick: bool, gpu: bool, launched: bool, name: str, markers: str) -> None:
    selection = suite.select(quick, gpu, launched)
    assert (selection.name, selection.markers, selection.gpu) == (name, markers, gpu)
    assert selection.committed == suite.COMMITTED[name] + (suite.COMMITTED_LAUNCHED if launched else 0)


@pytest.mark.parametrize(
    ("quick", "gpu", "launched", "name", "markers", "more"),
    [
        (False, False, False, "default-devel", "not gpu and not launched", suite.COMMITTED_DEVEL),
        (True, False, True, "quick-devel", "(quick or devel) and not gpu", suite.COMMITTED_DEVEL),
        (False, True, True, "gpu-devel", "", suite.COMMITTED_DEVEL + suite.COMMITTED_DEVEL_GPU),
    ],
)
def test_the_compilers_checks_come_on_top(
    quick: bool, gpu: bool, launched: bool, name: str, markers: str, more: int
) -> None:
    selection = suite.select(quick, gpu, launched, devel=True)
    assert (selection.name, selection.markers, selection.gpu) == (name, markers, gpu)
    assert selection.committed == suite.select(quick, gpu, launched).committed + more


def test_committed_counts_are_consistent() -> None:
    count = suite.COMMITTED
    assert 0 < count["quick"] < count["default"] < count["gpu"]
    assert count["quick"] < count["quick-gpu"] <= count["gpu"]


def test_pytest_reads_no_configuration_of_the_callers() -> None:
    arguments = suite.pytest_arguments(SELECTION, "/suite", "/out/report.xml")
    assert arguments[:2] == ["-c", "/dev/null"]
    assert {"--rootdir=/suite", "--confcutdir=/suite", "no:cacheprovider", "--strict-markers"} <= set(arguments)
    assert "--junitxml=/out/report.xml" in arguments
    assert "-k" not in arguments
    assert suite.pytest_arguments(suite.select(False, False, False, "a or b"), "/suite", None)[-2:] == ["-k", "a or b"]


def test_the_environment_cannot_steer_pytest() -> None:
    given = {"PYTEST_ADDOPTS": "-x", "PYTEST_PLUGINS": "mine", "PYTEST_DEBUG": "1", "HOME": "/h", "PYTHONPATH": "/p"}
    kept = suite.child_environment(given, "/src")
    assert [name for name in kept if name.startswith("PYTEST_")] == ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
    assert (kept["HOME"], kept["PYTHONPATH"]) == ("/h", "/src:/p")
    assert suite.child_environment({}, "/src")["PYTHONPATH"] == "/src"


@pytest.mark.parametrize(
    ("crash", "expected"),
    [
        (
            "AssertionError: /dev/shm is small. Remedy: --shm-size=2g.\nassert 1 > 2",
            "/dev/shm is small.\nMeaning: It\nmatters.\nRemedy: --shm-size=2g.",
        ),
        ("assert 3 == 4\n + where 3 = f()", "assert 3 == 4 + where 3 = f()\nMeaning: It\nmatters.\nRemedy: default"),
        ("RuntimeError: boom", "RuntimeError: boom\nMeaning: It\nmatters.\nRemedy: default"),
        ("", "It failed without a message.\nMeaning: It\nmatters.\nRemedy: default"),
    ],
)
def test_paragraph(crash: str, expected: str) -> None:
    assert suite.paragraph(crash, "It\n   matters.", "default") == expected.replace("It\nmatters", "It matters")


def test_paragraph_of_a_novel_stays_a_paragraph() -> None:
    what = suite.paragraph("ValueError: " + "word " * 500, "", "default").splitlines()[0]
    assert len(what) <= 600


def test_all_passed_is_good() -> None:
    tally = tally_of("passed", "passed", "passed")
    assert suite.judge(SELECTION, tally, 0, "") == []
    assert result_of(tally).good


def test_a_failed_check_is_not_good_and_no_further_problem() -> None:
    tally = tally_of("passed", "failed", "passed")
    assert suite.judge(SELECTION, tally, 1, "") == []
    assert not result_of(tally).good


def test_fewer_than_committed_is_a_problem_naming_both_numbers() -> None:
    (problem,) = suite.judge(SELECTION, tally_of("passed", "passed"), 0, "")
    assert problem.startswith("2 checks ran, and 3 are committed")
    assert "Remedy" in problem


def test_a_skip_did_not_run() -> None:
    (problem,) = suite.judge(SELECTION, tally_of("passed", "passed", "skipped"), 0, "")
    assert problem.startswith("2 checks ran, and 3 are committed")


def test_with_gpu_a_skip_is_a_failure_whatever_the_count() -> None:
    selection = suite.Selection("gpu", "", gpu=True, committed=1, expression="something")
    (problem,) = suite.judge(selection, tally_of("passed", "skipped"), 0, "")
    assert "With --gpu a skip is a failure" in problem


def test_a_filter_waives_the_count() -> None:
    selection = suite.Selection("default", "", gpu=False, committed=3, expression="one")
    assert suite.judge(selection, tally_of("passed"), 0, "") == []


@pytest.mark.parametrize("code", [-11, 2, 3, 4, 5, 1])
def test_a_bad_end_is_a_problem(code: int) -> None:
    problems = suite.judge(SELECTION, tally_of("passed", "passed", "passed"), code, "last\nwords")
    assert len(problems) == 1
    assert suite.ended(code) in problems[0]
    assert "last | words" in problems[0]


def test_a_crash_is_a_failure_of_the_check_that_ran() -> None:
    tally = tally_of("passed")
    tally.take({"event": "start", "id": "test_b.py::test_crash", "limit": 1})
    tally.crash(suite.ended(-7), "Fatal Python error: Bus error\n  File x")
    check = tally.checks["test_b.py::test_crash"]
    assert (check.outcome, check.topic) == ("failed", "b")
    assert "SIGBUS" in check.message
    assert "--shm-size" in check.message
    assert "Fatal Python error" in check.message


def test_no_crash_where_nothing_ran() -> None:
    tally = tally_of("passed")
    tally.crash("exit code 0", "")
    assert [check.outcome for check in tally.checks.values()] == ["passed"]


def test_refused_is_the_only_problem() -> None:
    tally = tally_of()
    tally.take({"event": "refused", "message": "A GPU is demanded"})
    assert suite.judge(suite.select(False, True, False), tally, 1, "") == ["A GPU is demanded"]


def test_document() -> None:
    document = json.loads(json.dumps(result_of(tally_of("passed", "failed", "skipped"), "lost").document()))
    assert (document["passed"], document["failed"], document["skipped"], document["good"]) == (1, 1, 1, False)
    assert (document["selection"], document["variant"], document["seconds"]) == ("default", "cu130", 1.5)
    assert (document["device"], document["versions"]["torch"]) == ("cpu", "2.14.1+cu130")
    assert document["checks"][1] == {
        "id": "test_a.py::test_1",
        "outcome": "failed",
        "seconds": 0.25,
        "message": "why",
    }
    assert document["problems"] == ["lost"]


def test_junit_of_a_run_that_pytest_did_not_live_to_report() -> None:
    top = ElementTree.fromstring(result_of(tally_of("passed", "failed", "skipped"), "lost <&>").junit())
    (group,) = top
    assert {name: group.attrib[name] for name in ("tests", "failures", "skipped")} == {
        "tests": "4",
        "failures": "2",
        "skipped": "1",
    }
    assert [case.find("failure") is not None for case in group] == [False, True, False, True]
    assert group[3].find("failure").text == "lost <&>"  # type: ignore[union-attr]


def test_topic_line() -> None:
    checks = list(tally_of("passed", "passed").checks.values())
    line = suite.topic_line("tensors", "views and more", checks)
    assert line.split() == ["ok", "tensors", "2/2", "0.5", "s", "views", "and", "more"]
    assert len(suite.topic_line("tensors", "word " * 99, checks, width=80)) <= 80
    assert suite.topic_line("a", "", list(tally_of("passed", "failed").checks.values())).startswith("FAILED")
    assert suite.topic_line("a", "", list(tally_of("passed", "skipped").checks.values())).startswith("skips")


def test_color_only_where_asked() -> None:
    checks = list(tally_of("passed").checks.values())
    assert "\x1b" not in suite.topic_line("a", "b", checks)
    assert "\x1b[32m" in suite.topic_line("a", "b", checks, color=True)


def test_closing_tells_each_failure_and_the_totals() -> None:
    text = suite.closing(result_of(tally_of("passed", "failed"), "1 checks ran, and 3 are committed"))
    assert "FAILED test_a.py::test_1\n  why" in text
    assert "  1 checks ran, and 3 are committed" in text
    assert text.endswith("\nFAILED: 1 passed, 1 failed, 0 skipped in 1.5 s")
    assert suite.closing(result_of(tally_of("passed"))) == "\ngood: 1 passed, 0 failed, 0 skipped in 1.5 s"


def test_heading_leaves_out_what_is_unknown() -> None:
    assert suite.heading(SELECTION, suite.Tally(), None) == "torchdock check · default"
    assert (
        suite.heading(SELECTION, tally_of(), "cu130") == "torchdock check · default · cu130 · torch 2.14.1+cu130 · cpu"
    )


@pytest.mark.parametrize(("code", "words"), [(3, "exit code 3"), (-9, "signal SIGKILL"), (-1000, "signal 1000")])
def test_ended(code: int, words: str) -> None:
    assert suite.ended(code) == words


def test_last_words_begin_where_it_went_wrong() -> None:
    frames = "\n".join(f'  File "/lib/f{number}.py", line 1' for number in range(20))
    log = f'much\nTimeout (0:02:30)!\nThread 0x1:\n{frames}\n  File "/suite/test_a.py", line 7 in test_a\n'
    words = suite.last_words(log)
    assert words.startswith("Timeout (0:02:30)! | Thread 0x1: | File")
    assert words.endswith('File "/suite/test_a.py", line 7 in test_a')
    assert suite.last_words("") == "none"
