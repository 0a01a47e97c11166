"""check runs a suite in a process of its own: crashes, hangs and bad input all end with a name. Needs no torch."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from torchdock.inside import check, suite

CONFTEST = (check.SUITE / "conftest.py").read_text(encoding="utf-8").partition("@pytest.fixture")[0]


def run(tmp_path: Path, tests: str, *, committed: int = 1, expression: str | None = None) -> tuple[suite.Result, str]:
    """Run these tests as if they were the suite; return the result and what people read."""
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "conftest.py").write_text(CONFTEST)
    (tmp_path / "suite" / "test_toy.py").write_text(f'"""toys work"""\nimport pytest\n{textwrap.dedent(tests)}')
    (tmp_path / "run").mkdir()
    out = io.StringIO()
    selection = suite.Selection("default", "not gpu", gpu=False, committed=committed, expression=expression)
    return check.Run(selection, tmp_path / "run", None, out).run(tmp_path / "suite"), out.getvalue()


def test_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise SystemExit('never read')\n")
    result, text = run(tmp_path, "def test_a(): pass\n@pytest.mark.gpu\ndef test_b(): assert 0")
    assert result.good, result.problems
    assert [(one.id, one.outcome) for one in result.checks] == [("test_toy.py::test_a", "passed")]
    assert re.search(r"^ok +toy +1/1 +\d\.\d s  toys work$", text, re.MULTILINE)
    assert not list((tmp_path / "suite").glob("*cache*")), "the suite's folder belongs to the image"


def test_failure_tells_what_meaning_and_remedy(tmp_path: Path) -> None:
    result, text = run(tmp_path, 'REMEDY = "mend it"\ndef test_a():\n  "It matters."\n  assert 1 == 2')
    assert not result.good
    assert result.checks[0].message == "assert 1 == 2\nMeaning: It matters.\nRemedy: mend it"
    assert "FAILED  toy" in text


def test_fixture_failure_skip_and_expected_failure(tmp_path: Path) -> None:
    tests = """
    @pytest.fixture
    def broken(): raise OSError("no")
    def test_a(broken): pass
    def test_b(): pytest.skip("because")
    @pytest.mark.xfail(reason="upstream")
    def test_c(): assert 0
    @pytest.mark.xfail
    def test_d(): pass
    """
    result, _ = run(tmp_path, tests, committed=2)
    assert [one.outcome for one in result.checks] == ["failed", "skipped", "skipped", "failed"]
    assert "OSError: no" in result.checks[0].message
    assert "because" in result.checks[1].message
    assert result.problems == ()


def test_a_file_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    result, text = run(tmp_path, "import no_such_module")
    assert (result.good, [one.outcome for one in result.checks]) == (False, ["failed"])
    assert "no_such_module" in result.checks[0].message
    assert "FAILED" in text


def test_an_unregistered_marker_is_a_failure(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "@pytest.mark.qiuck\ndef test_a(): pass")
    assert not result.good


def test_a_crash_has_a_name(tmp_path: Path) -> None:
    tests = (
        "import os, signal\ndef test_a(): pass\ndef test_b(): os.kill(os.getpid(), signal.SIGSEGV)\ndef test_c(): pass"
    )
    result, _ = run(tmp_path, tests, committed=3)
    assert [(one.id, one.outcome) for one in result.checks] == [
        ("test_toy.py::test_a", "passed"),
        ("test_toy.py::test_b", "failed"),
    ]
    assert "SIGSEGV" in result.checks[1].message
    assert any(problem.startswith("2 checks ran, and 3 are committed") for problem in result.problems)


def test_a_hang_has_a_name_and_the_rest_still_runs(tmp_path: Path) -> None:
    tests = """
    import time
    @pytest.mark.limit(0.5)
    def test_a():
        try:
            time.sleep(60)
        except Exception:  # a library that swallows everything does not swallow the limit
            time.sleep(60)
    def test_b(): pass
    """
    start = time.monotonic()
    result, _ = run(tmp_path, tests, committed=2)
    assert time.monotonic() - start < 20
    assert [one.outcome for one in result.checks] == ["failed", "passed"]
    assert "test_toy.py::test_a did not end within its time limit of 0.5 s" in result.checks[0].message


def test_a_deadlock_that_no_alarm_reaches_has_a_name(tmp_path: Path) -> None:
    tests = """
    import signal, time
    @pytest.mark.limit(0.3, grace=0.7)
    def test_a():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(60)
    """
    start = time.monotonic()
    result, _ = run(tmp_path, tests)
    assert time.monotonic() - start < 20
    assert [(one.id, one.outcome) for one in result.checks] == [("test_toy.py::test_a", "failed")]
    assert "Timeout" in result.checks[0].message
    assert not result.good


def test_a_frozen_process_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MARGIN", 0.5)
    tests = "import os, signal\n@pytest.mark.limit(0.1, grace=0.4)\ndef test_a(): os.kill(os.getpid(), signal.SIGSTOP)"
    result, _ = run(tmp_path, tests)
    assert [one.outcome for one in result.checks] == ["failed"]
    assert "SIGKILL" in result.checks[0].message


def test_nothing_is_left_running(tmp_path: Path) -> None:
    tests = f"""
    import subprocess
    def test_a():
        child = subprocess.Popen(["sleep", "300"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
    """
    assert run(tmp_path, tests)[0].good
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("a process that a check started is still there")


@pytest.mark.parametrize("expression", ["no_such_name", "(", "a and"])
def test_a_filter_that_matches_nothing_is_wrong_input(tmp_path: Path, expression: str) -> None:
    with pytest.raises(check.WrongInput, match="-k "):
        run(tmp_path, "def test_a(): pass", expression=expression)


def command_line(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(check.ROOT / "src")}
    command = [sys.executable, "-m", "torchdock.inside.check", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", [["--fast"], ["-k"], ["tests"]])
def test_wrong_options_exit_2(tmp_path: Path, arguments: list[str]) -> None:
    done = command_line(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr


def test_a_report_folder_that_cannot_be_made_exits_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command_line("--report", "file/report", cwd=tmp_path)
    assert done.returncode == 2
    assert "--report file/report: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_reports_and_json(tmp_path: Path) -> None:
    """Also where every file fails, as without torch: reports are written, stdout is one JSON document."""
    done = command_line("-k", "views_share or damaged", "--json", "--report", "out", cwd=tmp_path)
    document = json.loads(done.stdout)
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written == document
    assert document["expression"] == "views_share or damaged"
    assert (tmp_path / "out" / "report.xml").read_text().startswith("<?xml")
    assert (tmp_path / "out" / "pytest.log").exists()
    assert done.returncode == (0 if document["good"] else 1)


def test_terminated_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(check.ROOT / "src"), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-m", "torchdock.inside.check"], env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 10
    while not list(tmp_path.glob("torchdock-check-*/events")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
