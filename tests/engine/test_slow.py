"""What takes longer than `make test` allows: a bare Debian, a storm of interrupts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.engine.conftest import ROOT, TREE, Invoke, argv, base_of
from torchdock import container, sources
from torchdock.engine import Engine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("image")]


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_bare_debian_gets_its_tools(image: dict[str, Any], engine: Engine, user: str) -> None:
    """python3, make and git alone: no ensurepip, no pip, no package lists, no root; then everything by hash."""
    ca = sources.gather().ca
    mounts = [word for name in TREE for word in container.mount(str(ROOT / name), f"/src/{name}", read_only=True)]
    if ca is not None:
        mounts += container.mount(str(ca.resolve()), "/ca.crt", read_only=True)
        mounts += ["--env", "SSL_CERT_FILE=/ca.crt"]
    script = (
        "set -e; apt-get update -qq; apt-get install -qq -y --no-install-recommends python3 make git >/dev/null; "
        "rm -rf /var/lib/apt/lists/*; ! python3 -c 'import ensurepip' 2>/dev/null; "
        "mkdir /clone; cp -r /src/. /clone; chmod -R a+rwX /clone; cd /clone; export HOME=/clone; "
        f"setpriv --reuid={user} --regid=nogroup --clear-groups sh -c 'make venv && make up; echo code $?'; "
        "cat .venv/torchdock.host"
    )
    run = ["docker", "run", "--rm", *mounts, base_of(engine, image), "sh", "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr  # the stamp is there: the tools are installed
    if user == "nobody":  # nobody may install an engine here, and is told who may
        assert "sudo" in done.stderr
        assert "No container engine is installed" in done.stderr
    else:  # root installs one, which cannot start in a container without privileges, and says why
        assert "Docker Engine installed" in done.stdout
        assert "failed to start daemon" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_storm_of_interrupts_leaves_nothing(invoke: Invoke, leftovers: Callable[[str], Sequence[str]]) -> None:
    """Sixty runs, each cut off at a random moment by a random signal."""
    chance = random.Random(20261005)
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    for _ in range(60):
        words = argv("run", "--", "sleep", "600")
        child = subprocess.Popen(words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(chance.uniform(0.05, 1.6))  # the point of the test: moments chosen blindly
        child.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
        child.communicate(timeout=60)
        assert child.returncode != 0
        deadline = time.monotonic() + 10
        while leftovers("run") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert leftovers("run") == []
    assert invoke("run", "--", "true").returncode == 0
