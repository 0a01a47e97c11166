"""The image: found when it is there, small enough, clean of all that belongs to the host, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.engine.conftest import Invoke, argv
from torchdock import sources
from torchdock.engine import Engine
from torchdock.process import capture
from torchdock.state import CloneState

BYTES = 6_600_000_000
PEM_HEADER = " ".join(("BEGIN", "CERTIFICATE"))  # apart, so that a search for key material passes over this file


def test_a_second_build_finds_the_first(invoke: Invoke, image: dict[str, Any]) -> None:
    started = time.monotonic()
    done = invoke("build", "--variant", "cu130", "--json")
    document = json.loads(done.stdout)
    assert document["built"] is False
    assert (document["image"], document["id"]) == (image["image"], image["id"])
    assert set(document) >= {"variant", "image", "id", "layers", "seconds", "built", "source", "fallbacks"}
    assert re.fullmatch(r"torchdock/cu130:[0-9a-f]{12}", document["image"])
    assert time.monotonic() - started < 60  # a build would take minutes: a bound on work, not a benchmark


def test_another_clone_names_the_same_image(invoke: Invoke, image: dict[str, Any], clone: Path) -> None:
    for path in clone.rglob("*.txt"):
        path.chmod(0o600)  # a umask of 077
        os.utime(path, (0, 0))
    done = invoke("build", "--variant", "cu130", "--json", cwd=clone)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"] == image["image"]
    assert json.loads(done.stdout)["built"] is False


def test_the_image_is_small_enough(client: docker.DockerClient, image: dict[str, Any]) -> None:
    assert client.images.get(image["image"]).attrs["Size"] <= BYTES


def test_the_dry_run_prints_the_command_that_is_run(invoke: Invoke, image: dict[str, Any], clone: Path) -> None:
    (clone / "docker/layers/packages.txt").write_text("# changed\n")  # another image, which is not there
    before = {found.id for found in docker.from_env().images.list()}
    done = invoke("build", "--variant", "cu130", "--dry-run", cwd=clone)
    assert done.stdout.startswith("docker buildx build ")
    assert image["image"] not in done.stdout
    assert {found.id for found in docker.from_env().images.list()} == before


def test_nothing_of_the_host_is_in_the_image(invoke: Invoke, client: docker.DockerClient, clone: Path) -> None:
    """A build behind a proxy with a token and a private CA: neither is in files, history, labels or the log."""
    (clone / "tests/container/test_nothing.py").write_text('"""Makes the last layer a new one."""\n')
    token = "s3cret-t0ken"
    done = invoke(
        "build",
        "--variant",
        "cu130",
        "--json",
        cwd=clone,
        env={"HTTPS_PROXY": f"http://ann:{token}@proxy.invalid:9", "NO_PROXY": "*"},
    )
    assert done.returncode == 0, done.stderr
    name = json.loads(done.stdout)["image"]
    told = json.dumps([client.images.get(name).attrs, client.images.get(name).history()])
    log = (clone / ".torchdock/logs/build-cu130.log").read_text()
    records = "".join(path.read_text() for path in clone.glob(".torchdock/builds/*.json"))
    for text in (told, log, records, done.stdout, done.stderr):
        assert token not in text
        assert PEM_HEADER not in text
    assert "PROXY" not in told.upper()

    ca = sources.gather().ca
    assert ca is not None, "this test needs a host with a CA bundle"
    # The host's own certificates: those of its bundle that Debian's ca-certificates does not ship.
    script = r"""
import os, sys
wanted = [line.encode() for line in sys.stdin.read().split()]
stock = open('/etc/ssl/certs/ca-certificates.crt', 'rb').read()
wanted = [line for line in wanted if line not in stock] + [b's3cret-t0ken']
found, files = [], 0
for folder, names, leaves in os.walk('/'):
    names[:] = [n for n in names if os.path.join(folder, n) not in ('/proc', '/sys', '/dev')]
    for leaf in leaves:
        path = os.path.join(folder, leaf)
        if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > 4 << 20:
            continue
        files += 1
        content = open(path, 'rb').read()
        found += [path for line in wanted if line in content]
print(files, len(wanted), found)
"""
    # One line of base64 from the middle of each certificate is enough to know it by.
    lines = [block.split()[len(block.split()) // 2] for block in re.findall(PEM_HEADER + r"-+([^-]+)-", ca.read_text())]
    run = ["docker", "run", "--rm", "-i", "--entrypoint", "/usr/bin/python3", name, "-c", script]
    seen = subprocess.run(run, input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    files, wanted, found = seen.split(maxsplit=2)
    assert int(files) > 20_000
    assert found.strip() == "[]", f"{found} ({wanted} secrets looked for)"

    folders = "/root/.cache /opt/venv/.uv-cache /var/cache/apt/archives /var/lib/apt/lists /tmp /cache /run/secrets"
    left = f"find {folders} -type f -size +0 2>/dev/null | head"
    caches = capture(["docker", "run", "--rm", "--entrypoint", "sh", name, "-c", left])
    assert caches.out == "", "a cache was left in the image"


def test_an_edited_lock_fails_and_names_the_package(invoke: Invoke, clone: Path, engine: Engine) -> None:
    lock = clone / "docker/locks/cu130/tools.txt"
    text = lock.read_text()
    entry = text[text.index("iniconfig==") :]
    entry = entry[: entry.index("\n", entry.index("--hash=")) + 1]
    lock.write_text(text.replace(entry, re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, entry)))
    hashes = [line for line in lock.read_text().splitlines() if "0" * 64 in line]
    assert hashes
    # Only the wrong hash is left, so that no other file of that version can match.
    kept = lock.read_text()
    start = kept.index("iniconfig==")
    end = kept.index("\n", kept.index("0" * 64)) + 1
    following = re.compile(r"^[a-z]", re.MULTILINE).search(kept, end)
    lock.write_text(kept[:end].rstrip("\\\n ") + "\n" + (kept[following.start() :] if following else ""))
    assert kept[start:end].count("--hash") == 1
    done = invoke("build", "--variant", "cu130", "--json", cwd=clone, timeout=600)
    assert done.returncode == 1
    assert "iniconfig" in done.stderr
    assert "git checkout docker/locks" in done.stderr
    assert "Traceback" not in done.stderr
    assert CloneState(clone).records() == []


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_build_that_is_ended_leaves_nothing_and_the_next_one_works(
    invoke: Invoke, clone: Path, sign: signal.Signals, code: int
) -> None:
    (clone / "docker/entrypoint.sh").write_text((clone / "docker/entrypoint.sh").read_text() + "# changed\n")
    script = clone / "docker/layers/suite.sh"
    script.write_text(script.read_text().replace("set -eu\n", "set -eu\necho waiting here\nsleep 600\n", 1))
    child = subprocess.Popen(
        argv("build", "--variant", "cu130"), cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log = clone / ".torchdock/logs/build-cu130.log"
    _wait_for(lambda: log.is_file() and "waiting here" in log.read_text().partition("environment 1/")[2])
    child.send_signal(sign)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == code, output
    assert "Traceback" not in output
    assert capture(["pgrep", "-f", f"buildx build.*{clone}"]).code == 1, "the build goes on"
    assert CloneState(clone).records() == []
    script.write_text(script.read_text().replace("sleep 600\n", "", 1))
    again = invoke("build", "--variant", "cu130", "--json", cwd=clone)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["built"] is True


def test_locked_refuses_a_fallback(invoke: Invoke, image: dict[str, Any], clone: Path) -> None:
    done = invoke("build", "--variant", "cu130", "--locked", "--json", cwd=clone)
    if image["source"] == "registry":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert "--locked refuses" in done.stderr


def _wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)
