"""The suite's rules: what is selected, what counts as good, how it is told."""

import json
from xml.etree import ElementTree

import pytest

from torchdock.inside import check, suite

SELECTION = suite.Selection("default", "not gpu", gpu=False, committed={"a": 3})


def tally_of(*outcomes: str, **fields: object) -> suite.Tally:
    tally = suite.Tally()
    ids = [f"test_a.py::test_{number}" for number in range(len(outcomes))]
    facts = {"device": "cpu", "versions": {"torch": "2.14.1+cu130"}, "environment": {"image": True}}
    tally.take({"event": "facts", **facts})
    tally.take({"event": "collected", "ids": ids, "words": {"a": "what a proves"}, "markers": [["quick"]] * len(ids)})
    for id, outcome in zip(ids, outcomes, strict=True):
        tally.take({"event": "start", "id": id, "limit": 1})
        tally.take({"event": "end", "id": id, "outcome": outcome, "seconds": 0.25, "message": "why"})
    return tally


def result_of(tally: suite.Tally, *problems: str, selection: suite.Selection = SELECTION) -> suite.Result:
    checks = tuple(tally.checks.values())
    return suite.Result(selection, checks, problems, 1.5, tally.device, tally.versions, "cu130")


COUNTS = suite.read_counts(
    "a: plain 1, quick 2, gpu 4, quick+gpu 8\n# no topic\nb: quick+launched 16, devel 32, gpu+devel 64"
)


@pytest.mark.parametrize(
    ("quick", "has", "name", "markers", "committed"),
    [
        (False, [], "default", "not gpu and not launched and not devel", {"a": 3}),
        (True, [], "quick", "quick and not gpu and not launched and not devel", {"a": 2}),
        (False, ["gpu"], "gpu", "not launched and not devel", {"a": 15}),
        (True, ["gpu", "launched"], "quick-gpu", "quick and not devel", {"a": 10, "b": 16}),
        (False, ["gpu", "launched"], "gpu", "not devel", {"a": 15, "b": 16}),
        (False, ["devel"], "default-devel", "not gpu and not launched", {"a": 3, "b": 32}),
        (True, ["launched", "devel"], "quick-devel", "(quick or devel) and not gpu", {"a": 2, "b": 48}),
        (False, ["gpu", "launched", "devel"], "gpu-devel", "", {"a": 15, "b": 112}),
    ],
)
def test_select(quick: bool, has: list[str], name: str, markers: str, committed: dict[str, int]) -> None:
    selection = suite.select(quick, [*has, "gpus", "image"], COUNTS)
    assert (selection.name, selection.markers, selection.gpu) == (name, markers, "gpu" in has)
    assert selection.committed == committed


def test_another_environment_is_not_held_to_what_the_image_promises() -> None:
    counts = suite.read_counts("a: quick 2, quick+image 3, launched+image 1")
    selection = suite.select(False, [], counts)
    assert selection.markers.endswith(" and not image")
    assert selection.committed == {"a": 2}


def test_one_gpu_is_not_held_to_what_two_promise() -> None:
    counts = suite.read_counts("a: gpu 4, gpu+gpus 8")
    assert suite.select(False, ["gpu", "launched", "devel", "image"], counts).markers == "not gpus"
    assert suite.select(False, ["gpu"], counts).committed == {"a": 4}
    assert suite.select(False, ["gpu", "gpus"], counts).committed == {"a": 12}


def test_counts_are_read_as_they_are_written() -> None:
    text = suite.write_counts(COUNTS)
    assert text == "a: gpu 4, plain 1, quick 2, quick+gpu 8\nb: devel 32, gpu+devel 64, quick+launched 16\n"
    assert suite.read_counts(text) == COUNTS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: quick 1\na: quick 2", "line 2 is a second one for a"),
        ("a", "line 1 says no number"),
        ("a: quick", "line 1 says no number"),
        ("a: qiuck 3", "line 1 says no number"),
        ("a: quick 1, quick 2", "line 1 says no number"),
        ("<<<<<<< HEAD", "line 1 says no number"),
    ],
)
def test_counts_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        suite.read_counts(text)


def test_committed_counts_cover_each_file_of_the_suite() -> None:
    assert set(check.committed()) == {file.stem.removeprefix("test_") for file in check.SUITE.glob("test_*.py")}
    for launched in ([], ["launched"]):
        quick, everything = (
            sum(suite.select(q, launched, check.committed()).committed.values()) for q in (True, False)
        )
        assert 0 < quick < everything


def test_pytest_reads_no_configuration_of_the_callers() -> None:
    arguments = suite.pytest_arguments(SELECTION, "/suite", "/out/report.xml")
    assert arguments[:2] == ["-c", "/dev/null"]
    assert {"--rootdir=/suite", "--confcutdir=/suite", "no:cacheprovider", "--strict-markers"} <= set(arguments)
    assert "--junitxml=/out/report.xml" in arguments
    assert "-k" not in arguments
    assert suite.pytest_arguments(suite.select(False, [], {}, "a or b"), "/suite", None)[-2:] == ["-k", "a or b"]


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


def test_fewer_than_committed_is_a_problem_naming_the_topic_and_both_numbers() -> None:
    selection = suite.Selection("default", "", gpu=False, committed={"a": 3, "b": 1})
    (problem,) = suite.judge(selection, tally_of("passed", "passed"), 0, "")
    assert "committed for the selection default: a 2 of 3, b 0 of 1." in problem
    assert "Remedy" in problem


def test_one_topic_does_not_make_up_for_another() -> None:
    selection = suite.Selection("default", "", gpu=False, committed={"a": 1, "b": 1})
    (problem,) = suite.judge(selection, tally_of("passed", "passed"), 0, "")
    assert "default: b 0 of 1." in problem


def test_elsewhere_fewer_checks_are_a_finding_and_a_lost_topic_is_a_problem() -> None:
    selection = suite.Selection("default", "", gpu=False, committed={"a": 3, "b": 1, "vision": 7})
    tally = tally_of("passed", "passed")
    tally.environment = {"image": False}
    tally.take({"event": "absent", "id": "test_vision.py", "package": "torchvision"})
    (problem,) = suite.judge(selection, tally, 0, "")
    assert "default: b 0 of 1." in problem
    lacking, fewer = suite.strangers(selection, tally)
    assert (lacking.subject, "vision" in lacking.seen) == ("torchvision", True)
    assert fewer.seen == "Fewer checks ran than in the image: a 2 of 3."
    tally.planned.append("test_a.py::test_never_reached")
    assert "a 2 of 3" in suite.judge(selection, tally, -9, "")[-1]
    tally.environment = {"image": True}
    assert "a 2 of 3, b 0 of 1, vision 0 of 7" in suite.judge(selection, tally, 0, "")[0]


def test_a_skip_did_not_run() -> None:
    (problem,) = suite.judge(SELECTION, tally_of("passed", "passed", "skipped"), 0, "")
    assert "a 2 of 3" in problem


def test_with_gpu_a_skip_is_a_failure_whatever_the_count() -> None:
    selection = suite.Selection("gpu", "", gpu=True, committed={}, expression="something")
    (problem,) = suite.judge(selection, tally_of("passed", "skipped"), 0, "")
    assert "With --gpu a skip is a failure" in problem


def test_a_filter_waives_the_count() -> None:
    selection = suite.Selection("default", "", gpu=False, committed={"a": 3}, expression="one")
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
    assert suite.judge(suite.select(False, ["gpu"], COUNTS), tally, 1, "") == ["A GPU is demanded"]


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
    text = suite.closing(result_of(tally_of("passed", "failed"), "Fewer checks ran"))
    assert "FAILED test_a.py::test_1\n  why" in text
    assert "  Fewer checks ran" in text
    assert text.endswith("\nFAILED: 1 passed, 1 failed, 0 skipped in 1.5 s")
    assert suite.closing(result_of(tally_of("passed"))) == "\ngood: 1 passed, 0 failed, 0 skipped in 1.5 s"


def test_one_cause_of_many_failures_is_told_once() -> None:
    text = suite.closing(result_of(tally_of("failed", "passed", "failed")))
    assert "FAILED test_a.py::test_0, test_a.py::test_2\n  why" in text
    assert text.count("why") == 1


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


def test_a_digest_tells_apart_what_is_not_the_same_to_the_bit() -> None:
    same = suite.digest([0.1 + 0.2, 1], b"ab")
    assert suite.digest((0.30000000000000004, 1.0), "ab") == same
    others = [
        suite.digest([0.3, 1], b"ab"),
        suite.digest([1, 0.1 + 0.2], b"ab"),
        suite.digest([0.1 + 0.2, 1], b"a", b"b"),
    ]
    assert len({same, *others}) == 4


@pytest.mark.parametrize("wrong", [{"severity": "bad"}, {"remedy": " "}, {"seen": ""}])
def test_a_finding_has_a_severity_and_a_remedy(wrong: dict[str, str]) -> None:
    right = {"severity": "note", "subject": "x", "seen": "s", "meaning": "m", "remedy": "r"}
    suite.Finding("id", **right)
    with pytest.raises(ValueError):
        suite.Finding("id", **{**right, **wrong})


def test_a_topic_that_is_left_out_is_not_read_and_not_missed() -> None:
    counts = {"a": {frozenset({"quick"}): 2}, "b": {frozenset({"quick"}): 3}}
    selection = suite.select(True, [], counts, without=["b"])
    assert selection.committed == {"a": 2}
    assert selection.name == "quick without b"
    assert "--ignore=/suite/test_b.py" in suite.pytest_arguments(selection, "/suite", None)
    assert not any(
        "--ignore" in word for word in suite.pytest_arguments(suite.select(True, [], counts), "/suite", None)
    )
