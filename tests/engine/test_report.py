"""The report of `invoke test`: the environment's part and the host's, by the schema, and no secret of the host."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.engine.conftest import ROOT, Invoke
from tests.engine.planting import invalid
from torchdock.engine import Engine


@pytest.mark.slow
def test_the_passport_of_a_launch(invoke: Invoke, image: dict[str, Any], engine: Engine) -> None:
    secret = {
        "HTTPS_PROXY": "http://anna:hunter2@127.0.0.1:9",
        "UV_DEFAULT_INDEX": "https://anna:hunter2@127.0.0.1:9/x/",
    }
    done = invoke("test", "--quick", "--variant", "cu130", "--json", env={**secret, "NO_PROXY": "*"})
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["failed"], summary["skipped"]) == (0, 0) and summary["passed"] > 50 and summary["seconds"] > 1
    report = json.loads(Path(summary["passport"]).read_text())
    assert invalid(image, report) == []
    assert {name: report[name] for name in ("passed", "selection", "fake")} == {
        "passed": summary["passed"],
        "selection": "quick",
        "fake": False,
    }
    environment, host = report["environment"], report["host"]
    assert environment["image"] is True and environment["lock"]["differences"] == environment["lock"]["added"] == []
    assert environment["settings"]["torch"]["matmul_precision"] == "highest"
    facts = engine.image(image["image"])
    assert facts is not None
    assert (host["image"]["id"], host["image"]["layers"]) == (facts.id, list(facts.layers))
    assert host["build"]["image"] == image["image"] and host["build"]["debian"] == "locked"
    assert host["engine"]["version"] == engine.facts.info["ServerVersion"]
    assert (host["gpus"], host["profile"]) == ([], None)
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert host["clone"]["commit"] == head.stdout.strip()
    folder = Path(summary["report"]).parent
    assert ElementTree.parse(summary["report"]).getroot().tag == "testsuites"
    assert sorted(path.name for path in folder.iterdir()) == ["pytest.log", "report.json", "report.xml"]
    assert {path.stat().st_uid for path in folder.iterdir()} == {os.getuid()}
    written = "".join(path.read_text() for path in folder.iterdir())
    assert "hunter2" not in written + done.stdout + done.stderr
