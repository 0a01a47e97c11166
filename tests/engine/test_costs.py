"""What people wait for: the launch itself, and the list of what runs."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from tests.engine.conftest import PYTHON, ROOT
from torchdock import jobs
from torchdock.engine import Engine

pytestmark = pytest.mark.usefixtures("image")


@pytest.mark.slow
def test_a_launch_costs_less_than_a_second_more_than_docker_alone() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    bench = [str(PYTHON), "bench/launch_overhead.py", "5"]
    for _ in range(3):  # what else the machine does may spoil one
        done = subprocess.run(bench, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
        if done.returncode == 0:
            return
    pytest.fail(done.stdout + done.stderr)


@pytest.mark.slow
def test_what_was_installed_is_seen_without_comparing_every_file(
    engine: Engine, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine takes 1.4 s to compare 60,000 files; where nothing was installed it is not asked to."""
    compared: list[str] = []
    changes = engine.changes

    def spy(name: str) -> list[dict[str, Any]]:
        compared.append(name)
        return changes(name)

    monkeypatch.setattr(engine, "changes", spy)
    site = jobs.SITE_PACKAGES
    for script, added, asked in (
        ("echo x >/workspace/x; python -c 'import torch'", (), 0),
        (f"mkdir {site}/ours-1.0.dist-info", ("ours 1.0",), 1),
        (f"rm -r {site}/idna-*.dist-info", ("-idna",), 1),
    ):
        compared.clear()
        made = engine.client.containers.run(image["image"], ["sh", "-c", script], detach=True)
        try:
            assert made.wait()["StatusCode"] == 0, made.logs()
            found = jobs.installed(engine, made.id)
            assert tuple(row.split(" ")[0] if row.startswith("-") else row for row in found) == added
            assert len(compared) == asked
        finally:
            made.remove(force=True)
    assert jobs.installed(engine, "no-such-container") == ()
