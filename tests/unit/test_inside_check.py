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

from torchdock.inside import check, passport, suite

CONFTEST = (check.SUITE / "conftest.py").read_text(encoding="utf-8").partition("@pytest.fixture")[0]


def run(tmp_path: Path, tests: str, *, committed: int = 1, expression: str | None = None) -> tuple[suite.Result, str]:
    """Run these tests as if they were the suite; return the result and what people read."""
    (tmp_path / "suite").mkdir(exist_ok=True)
    (tmp_path / "suite" / "conftest.py").write_text(CONFTEST)
    (tmp_path / "suite" / "test_toy.py").write_text(f'"""toys work"""\nimport pytest\n{textwrap.dedent(tests)}')
    (tmp_path / "run").mkdir()
    out = io.StringIO()
    selection = suite.Selection("default", "not gpu", gpu=False, committed={"toy": committed}, expression=expression)
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
    assert any("toy 2 of 3" in problem for problem in result.problems)


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


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose function never returns, whatever signal arrives, as a deadlock in a driver or in OpenMP."""
    folder = tmp_path_factory.mktemp("stuck")
    (folder / "stuck.c").write_text("#include <unistd.h>\nvoid stuck(void) { for (;;) pause(); }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "stuck.so", folder / "stuck.c"], check=True)
    return folder / "stuck.so"


@pytest.mark.parametrize("loader", ["PyDLL", "CDLL"])
def test_a_hang_in_c_code_that_no_alarm_reaches_has_a_name(tmp_path: Path, stuck: Path, loader: str) -> None:
    """PyDLL keeps the interpreter's lock, so that no other thread of Python runs either."""
    tests = f"""
    import ctypes
    @pytest.mark.limit(0.3, grace=0.7)
    def test_a(): ctypes.{loader}({str(stuck)!r}).stuck()
    """
    start = time.monotonic()
    result, _ = run(tmp_path, tests)
    assert time.monotonic() - start < 20
    assert [(one.id, one.outcome) for one in result.checks] == [("test_toy.py::test_a", "failed")]
    assert "Timeout" in result.checks[0].message and "in test_a" in result.checks[0].message


@pytest.mark.parametrize("where", ["the file", "a fixture", "a fixture's end", "a child that keeps the output open"])
def test_a_hang_anywhere_has_a_name(tmp_path: Path, stuck: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MARGIN", 1.0)
    monkeypatch.setattr(check, "READING", 0.5)
    hang = f"__import__('ctypes').PyDLL({str(stuck)!r}).stuck()"
    tests = f"""
    import subprocess
    if {where == "the file"}: {hang}
    @pytest.fixture
    def slow():
        if {where == "a fixture"}: {hang}
        yield
        if {where == "a fixture's end"}: {hang}
    @pytest.mark.limit(0.3, grace=0.7)
    def test_a(slow):
        if {where.startswith("a child")}: subprocess.run(["sleep", "300"], start_new_session=True, timeout=0.2)
    """
    start = time.monotonic()
    result, _ = run(tmp_path, tests)
    assert time.monotonic() - start < 20
    name = "test_toy.py" if where == "the file" else "test_toy.py::test_a"
    assert [(one.id, one.outcome) for one in result.checks] == [(name, "failed")]


def test_a_process_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "ENDING", 0.5)
    tests = """
    import threading, time
    def test_a(): threading.Thread(target=time.sleep, args=(300,)).start()
    """
    result, _ = run(tmp_path, tests)
    assert [one.outcome for one in result.checks] == ["passed"]
    (problem,) = result.problems
    assert "SIGKILL) after its last check: a thread or a child of some check holds it up" in problem


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


def test_findings_numbers_and_fingerprints_reach_the_result(tmp_path: Path) -> None:
    tests = """
    import os, signal
    SAID = {"seen": "Half is there.", "meaning": "It is slow.", "remedy": "buy more"}
    def test_a(finding, measured, fingerprint):
        finding("note", "memory", **SAID)
        measured("copy", 3, "GB/s", device="cpu", sizes=[1, 2])
        assert fingerprint("curve", [1.0, 0.5], b"x", epochs=2) == fingerprint("again", [1, 0.5], "x")
    def test_b(measured): measured("nothing", float("nan"), "s")
    def test_c(finding): finding("dreadful", "memory", **SAID)
    def test_d(measured): measured("what", 1, "s", of=object())
    def test_e(measured):
        measured("last words", 1, "s")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    result, _ = run(tmp_path, tests)
    assert [one.outcome for one in result.checks] == ["passed", "failed", "failed", "failed", "failed"]
    assert "nothing is nan: nothing was measured" in result.checks[1].message
    (found,) = result.findings
    assert (found.check, found.severity, found.subject) == ("test_toy.py::test_a", "note", "memory")
    assert [(one.name, one.value, one.unit) for one in result.numbers] == [("copy", 3, "GB/s"), ("last words", 1, "s")]
    assert result.numbers[0].details == {"device": "cpu", "sizes": [1, 2]}
    assert [one.name for one in result.fingerprints] == ["curve", "again"]
    assert len(result.fingerprints[0].sha256) == 64 and result.fingerprints[0].details == {"epochs": 2}
    assert "memory: Half is there. It is slow. Remedy: buy more" in " ".join(suite.closing(result).split())
    assert json.loads(json.dumps(result.document()))["numbers"][0]["unit"] == "GB/s"


def test_a_finding_is_no_failure(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "def test_a(finding): finding('error', 'x', seen='s', meaning='m', remedy='r')")
    assert result.good and len(result.findings) == 1


def test_plain_pytest_runs_what_reports(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from torchdock.inside.recorder import finding, fingerprint, measured\n")
    (tmp_path / "test_toy.py").write_text("def test_a(measured): measured('copy', 3, 'GB/s')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--junitxml=out.xml", "test_toy.py"]
    environment = {**os.environ, "PYTHONPATH": str(check.ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "GB/s" in (tmp_path / "out.xml").read_text()


def test_what_another_environment_lacks_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "test_pictures.py").write_text("import torchvision\ndef test_a(): pass\n")
    result, text = run(tmp_path, "def test_a(): import torchvision.ops\ndef test_b(): pass", committed=2)
    assert [(one.id, one.outcome) for one in result.checks] == [("test_toy.py::test_b", "passed")]
    assert result.good, result.problems
    (lacking,) = result.findings
    assert lacking.seen == "torchvision is not installed here, so checks were left out of: toy."
    assert re.search(r"^ok +toy +1/1 ", text, re.MULTILINE)


def test_no_secret_of_the_environment_lands_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback shows what functions were called with."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:hunter2@proxy")
    (tmp_path / "report").mkdir()
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "test_toy.py").write_text(
        "import os\ndef called(env): raise ValueError(env['WANDB_API_KEY'] + env['HTTPS_PROXY'])\n"
        "def test_a(): called(dict(os.environ))\n"
    )
    out = io.StringIO()
    selection = suite.Selection("default", "", gpu=False, committed={})
    one = check.Run(selection, tmp_path, tmp_path / "report", out)
    result = one.run(tmp_path / "toy")
    check.write_report(result, tmp_path / "report", tmp_path / "pytest.log")
    assert "**** http" not in result.checks[0].message and "********" not in result.checks[0].message
    assert result.checks[0].message.startswith("ValueError: ****http://****@proxy")
    written = {path.name: path.read_text() for path in (tmp_path / "report").iterdir()}
    assert set(written) == {"report.json", "report.xml", "pytest.log"}
    for text in (*written.values(), out.getvalue(), suite.closing(result)):
        assert "0123456789" not in text and "hunter2" not in text
    assert "****" in written["pytest.log"] and "****" in written["report.xml"]


def test_count_is_what_the_committed_file_should_say(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_toy.py").write_text(
        "import pytest\ndef test_a(): assert 0\n@pytest.mark.quick\n@pytest.mark.gpu\n"
        "@pytest.mark.parametrize('n', range(3))\ndef test_b(n): pass\n"
    )
    assert check.count(tmp_path) == "toy: plain 1, quick+gpu 3\n"
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    with pytest.raises(check.WrongInput, match="no_such_module"):
        check.count(tmp_path)


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
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: written[name] for name in document} == document
    assert (written["schema"], written["host"]) == (passport.SCHEMA, None)
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
