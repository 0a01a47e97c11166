"""What .devcontainer/initialize.sh decides, with a docker that says what the test gives it and does nothing.

The same script against a real engine and the real dev containers CLI: tests/engine/test_devcontainer.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.fakes import FakeGpu, write_program, write_smi

from torchdock.engine import OUTPUT

ROOT = Path(__file__).resolve().parents[2]
SIGHT = "src/torchdock/inside/sight.py"
A, B = "GPU-5e6a8f0c-0000-4000-8000-000000000001", "GPU-5e6a8f0c-0000-4000-8000-000000000002"
# What an engine on Linux answers, with one base that was made here and no container.
ANSWERS: Mapping[str, str] = {
    "--version": "echo Docker version 26.1.5",
    "info --format*ID*": "echo 'ID|[name=seccomp,profile=builtin]|Debian'",
    "info*": "echo 17179869184",
    "compose version*|buildx version*": "echo v2",
    "version*": "echo amd64",
    "context show*": "echo mine",
    "images*": "echo torchdock/base:trixie-1",
    "image inspect docker.io*": "exit 1",
    # A container that is given GPUs sees these.
    "run*": "printf '%s\\n' \"$*\" | grep -oE '(GPU|MIG)-[0-9a-f-]{36}' | sort -u",
    "ps*|image inspect*|volume*|buildx build*|inspect*": "",
}


class Host:
    """A host with a clone on it, where the script can be run."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.bin = folder / "clone", folder / "bin"
        self.bin.mkdir(parents=True)
        for name in ("cpu", "cuda"):
            shutil.copytree(
                ROOT / ".devcontainer" / name,
                self.clone / ".devcontainer" / name,
                ignore=shutil.ignore_patterns(".env", "host.yml*"),
            )
        # Where this host's GPUs are leased is everybody's: the script gets a place of its own.
        self.place = folder / "lock"
        self.place.mkdir()
        self.place.chmod(0o1777)
        text = (ROOT / ".devcontainer" / "initialize.sh").read_text()
        assert "for place in /run/lock /tmp; do" in text
        script = self.clone / ".devcontainer" / "initialize.sh"
        script.write_text(text.replace("for place in /run/lock /tmp; do", f"for place in {self.place}; do"))
        shutil.copytree(ROOT / "docker", self.clone / "docker")
        (self.clone / SIGHT).parent.mkdir(parents=True)
        shutil.copy(ROOT / SIGHT, self.clone / SIGHT)
        self.calls = folder / "calls"
        self.env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(folder), "SSL_CERT_FILE": ""}
        self.answer({})

    def answer(self, answers: Mapping[str, str]) -> None:
        """These answers before the others: a pattern of the words, and what sh does then."""
        cases = [f"{pattern.replace(' ', chr(92) + ' ')}) {body}; exit 0 ;;" for pattern, body in answers.items()]
        cases += [
            f"{pattern.replace(' ', chr(92) + ' ')}) {body or ':'}; exit 0 ;;"
            for pattern, body in ANSWERS.items()
            if pattern not in answers
        ]
        text = "\n".join(["printf '%s\\n' \"$*\" >>" + str(self.calls), 'case "$*" in', *cases, "esac", "exit 99"])
        write_program(self.bin / "docker", text)

    def gpus(self, *gpus: FakeGpu, driver: str = "580.95.05", knows_capability: bool = True) -> None:
        """A driver with these GPUs."""
        write_smi(self.bin, gpus, driver, knows_capability=knows_capability)

    def python(self, said: str, works: bool = True) -> None:
        """A .venv whose torchdock chooses this."""
        (self.clone / ".venv" / "bin").mkdir(parents=True)
        fails = "" if works else "case $1 in -c) echo 'No module named docker' >&2; exit 1 ;; esac\n"
        write_program(self.clone / ".venv" / "bin" / "python", f"{fails}[ $1 = -c ] || printf '{said}'")

    def run(self, kind: str = "cuda", **variables: str) -> subprocess.CompletedProcess[str]:
        """The script, to its end."""
        script = self.clone / ".devcontainer" / "initialize.sh"
        env = {**self.env, **variables}
        return subprocess.run(["sh", str(script), kind], env=env, cwd=self.clone, capture_output=True, text=True)

    def good(self, kind: str = "cuda", **variables: str) -> str:
        """What it said; it ended well."""
        done = self.run(kind, **variables)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def refused(self, code: int, kind: str = "cuda", **variables: str) -> str:
        """What it said; it ended with this code, in one paragraph at the end."""
        done = self.run(kind, **variables)
        assert done.returncode == code, done.stderr
        assert done.stderr.splitlines()[-1].startswith("torchdock: ")
        return done.stderr

    def written(self, kind: str = "cuda") -> str:
        return (self.clone / ".devcontainer" / kind / "host.yml").read_text()

    def builds(self) -> list[str]:
        return [call for call in self.calls.read_text().splitlines() if call.startswith("buildx build")]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


NO_CDI = {"run*--device*": "exit 1"}
NO_GPUS_OPTION = {**NO_CDI, "run*--gpus*": "echo 'could not select device driver'; exit 125"}
NO_WAY = {**NO_GPUS_OPTION, "run*--runtime*": "exit 1"}


@pytest.mark.parametrize("python", [True, False])
@pytest.mark.parametrize(
    ("answers", "by", "there"),
    [
        ({}, "(by cdi)", f"- 'nvidia.com/gpu={A}'"),
        ({"run*--device*": f"echo {B}"}, "(by gpus)", f"- '{A}'"),
        ({"run*--device*": f"echo {A}; echo {B}"}, "(by gpus)", f"- '{A}'"),
        (NO_CDI, "(by gpus)", f"- '{A}'"),
        (NO_GPUS_OPTION, "(by runtime)", f"NVIDIA_VISIBLE_DEVICES: '{A}'"),
        (NO_WAY, "Install the NVIDIA Container Toolkit", "dev.torchdock.gpus: ''"),
    ],
)
def test_the_gpu_goes_by_the_way_by_which_a_container_sees_it_alone_and_without_one_it_is_the_cpu(
    python: bool, answers: dict[str, str], by: str, there: str, host: Host
) -> None:
    host.answer(answers)
    host.gpus(FakeGpu(A))
    if python:
        host.python(f"image=torchdock/cu130:1\\nca=\\ngpus={A}\\n")
    assert by in host.good()
    assert there in host.written()
    assert ("runtime: nvidia" in host.written()) is (by == "(by runtime)")
    assert ("driver: cdi" in host.written()) is (by == "(by cdi)")
    assert ("driver: nvidia" in host.written()) is (by == "(by gpus)")
    assert all("--pull never" in call for call in host.calls.read_text().splitlines() if call.startswith("run "))


def test_all_gpus_and_the_idlest_and_those_by_uuid(host: Host) -> None:
    host.gpus(FakeGpu(A, memory_used=1 << 30), FakeGpu(B))
    host.good()
    assert f"dev.torchdock.gpus: '{B}'" in host.written()
    host.good(TORCHDOCK_GPUS="all")
    assert f"dev.torchdock.gpus: '{B},{A}'" in host.written()
    host.good(TORCHDOCK_GPUS=A)
    assert f"dev.torchdock.gpus: '{A}'" in host.written()
    host.good(TORCHDOCK_GPUS="0")
    assert "dev.torchdock.gpus: ''" in host.written()
    assert "this host has 2" in host.refused(2, TORCHDOCK_GPUS="3")
    assert "'GPU-x' is none of the GPUs here" in host.refused(2, TORCHDOCK_GPUS=f"{A},GPU-x")


@pytest.mark.parametrize(
    ("capability", "driver", "arch", "variant", "served"),
    [
        ("9.0", "580.95.05", "amd64", "cu130", True),
        ("7.5", "595.10", "amd64", "cu130", True),
        ("12.1", "580.95.05", "arm64", "cu130", True),
        ("13.0", "610.1", "amd64", "cu130", True),  # newer than all that is known
        ("7.0", "580.95.05", "amd64", "cu128", True),
        ("9.0", "570.86.10", "amd64", "cu128", True),
        ("9.0", "570.86.10", "arm64", "cu130", False),
        ("6.1", "580.95.05", "amd64", "cu130", False),
        ("9.0", "470.1", "amd64", "cu130", False),
    ],
)
def test_the_variant_is_that_which_computes_on_the_gpu(
    capability: str, driver: str, arch: str, variant: str, served: bool, host: Host
) -> None:
    host.answer({"version*": f"echo {arch}"})
    host.gpus(FakeGpu(A, capability=capability), driver=driver)
    said = host.good()
    assert f"image: 'torchdock/{variant}:devcontainer-" in host.written()
    assert (f"dev.torchdock.gpus: '{A}'" in host.written()) is served
    assert ("computes on the CPU" in said) is not served
    assert "make up" in said or served
    if not served:
        host.refused(2, TORCHDOCK_GPUS="1")


def test_of_two_gpus_the_one_that_the_variant_computes_on_is_taken_though_it_is_busier(host: Host) -> None:
    host.gpus(FakeGpu(A, capability="5.2"), FakeGpu(B, capability="8.0", memory_used=1 << 30))
    host.good()
    assert f"dev.torchdock.gpus: '{B}'" in host.written()
    assert B in host.refused(2, TORCHDOCK_GPUS="2")


def test_an_old_driver_does_not_tell_the_compute_capability(host: Host) -> None:
    host.gpus(FakeGpu(A), driver="525.85.12", knows_capability=False)
    host.good()
    assert "image: 'torchdock/cu128:" in host.written()
    assert f"dev.torchdock.gpus: '{A}'" in host.written()


def test_a_driver_that_hangs_is_given_up(host: Host) -> None:
    write_program(host.bin / "nvidia-smi", "exec sleep 100")
    write_program(host.bin / "timeout", f'echo $* >>{host.calls}; shift; exec /usr/bin/timeout 0.2 "$@"')
    assert "there is no GPU that the NVIDIA driver lists" in host.good()
    assert [call for call in host.calls.read_text().splitlines() if call.startswith("30 nvidia-smi")] != []
    assert "the driver gave no answer within 30 s" in host.refused(2, TORCHDOCK_GPUS="1")


def test_a_pin_is_kept_or_refused(host: Host) -> None:
    pin = host.clone / "torchdock.toml"
    pin.write_text('variant = "cu128"\n')
    host.good()
    assert "image: 'torchdock/cu128:" in host.written()
    host.good("cpu")
    assert "image: 'torchdock/cu128:" in host.written("cpu")
    for pinned, why in (("cpu", "pins cpu"), ("cu126", "has no lock"), ("cu999", "does not have")):
        pin.write_text(f"variant = '{pinned}'  # why\n")
        assert why in host.refused(2)
    host.answer({"version*": "echo arm64"})
    pin.write_text('variant = "cu128"\n')
    assert "for aarch64" in host.refused(2)
    pin.write_text('packages = ["einops"]\n')
    assert "torchdock alone adds" in host.good()


def test_only_an_index_out_of_reach_makes_a_second_best(host: Host) -> None:
    failed = 'case "$*" in *cpu.Dockerfile*) echo "{}"; exit 1 ;; esac'
    host.answer({"buildx build*": failed.format("cause: Failed to fetch: https://download.pytorch.org/whl/cpu/torch/")})
    assert "fallback: the wheel index download.pytorch.org" in host.good("cpu")
    assert "image: 'torchdock/cu130:" in host.written("cpu")
    host.answer({"buildx build*": failed.format("no space left on device")})
    assert "fallback: the wheel" not in host.refused(1, "cpu")
    host.answer({"buildx version*": "exit 1", "compose version*": "echo v2"})
    assert "buildx plugin" in host.refused(69, "cpu")


def test_the_base_that_was_made_here_is_a_fallback_and_without_any_there_is_a_remedy(host: Host) -> None:
    assert "fallback: the base is torchdock/base:trixie-1" in host.good()
    assert "--build-arg BASE=torchdock/base:trixie-1" in host.builds()[-1]
    host.answer({"images*": ":", "pull*": "echo no such host; exit 1"})
    assert "`make build`, which makes a base" in host.refused(1)
    host.answer({"image inspect docker.io*": ":"})
    assert "fallback" not in host.good()
    assert "BASE=" not in host.builds()[-1]
    digest = host.clone.joinpath("docker/cuda.Dockerfile").read_text().partition("ARG BASE=")[2].split()[0]
    digest = digest.rpartition("@")[2]
    for named, base, custom in (
        ("mirror:5000/debian:x", f"mirror:5000/debian@{digest}", False),
        ("mirror/debian@sha256:1", "mirror/debian@sha256:1", True),
    ):
        assert ("fallback: the base is" in host.good(TORCHDOCK_BASE_IMAGE=named)) is custom
        assert f"--build-arg BASE={base} " in host.builds()[-1]


def test_the_build_gets_the_sources_of_this_host_by_name(host: Host, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine a login b password hidden\n")
    netrc = str(tmp_path / "netrc")
    host.good(NETRC=netrc, PIP_INDEX_URL="http://u:hidden@127.0.0.1:3141/simple", HTTPS_PROXY="http://proxy:3128")
    build = host.builds()[-1]
    assert f'id=netrc,"src={netrc}"' in build
    assert "id=index,env=PIP_INDEX_URL" in build
    assert "--build-arg HTTPS_PROXY " in build
    assert "--network=host" in build
    assert "--builder mine" in build
    assert f" --output {OUTPUT} " in build
    assert "hidden" not in host.calls.read_text()
    assert "PIP_INDEX_URL" not in host.written()  # the loopback is another one in there
    host.good(PIP_INDEX_URL="https://u:hidden@mirror.example/simple", UV_INDEX="a=http://localhost:1 b=https://b.example",
              PIP_EXTRA_INDEX_URL="https://c.example/simple", PIP_TRUSTED_HOST="c.example")  # fmt: skip
    assert "--network=host" not in host.builds()[-1]
    for line in ("PIP_INDEX_URL: ${PIP_INDEX_URL}", "UV_DEFAULT_INDEX: ${PIP_INDEX_URL}", "PIP_EXTRA_INDEX_URL:\n",
                 "PIP_TRUSTED_HOST:\n"):  # fmt: skip
        assert f"      {line}" in host.written()
    assert "UV_INDEX:" not in host.written()
    assert "hidden" not in host.written()
    assert "no file that can be read" in host.refused(2, NETRC="/nowhere")


def test_a_ca_is_looked_up_where_it_was_named_without_links_or_refused(host: Host, tmp_path: Path) -> None:
    real = tmp_path / "real $dollar's"
    real.mkdir()
    (real / "ca.pem").write_text("PEM")
    (host.clone / "link.pem").symlink_to(real / "ca.pem")
    host.good(SSL_CERT_FILE="link.pem")
    assert f"source: '{tmp_path}/real $$dollar''s/ca.pem'" in host.written()
    assert "SSL_CERT_FILE names" in host.refused(2, SSL_CERT_FILE="missing.pem")


def opened_with(gpus: str) -> dict[str, str]:
    """A container is there, ended, and was given these GPUs."""
    return {"ps --all*": "echo 0123", "inspect --format*": f"echo '{gpus}'"}


def test_a_container_keeps_its_gpus_when_it_is_opened_again(host: Host) -> None:
    host.gpus(FakeGpu(A, memory_used=1 << 30), FakeGpu(B))
    host.answer(opened_with(A))
    assert "Rebuild" not in host.good()
    assert f"dev.torchdock.gpus: '{A}'" in host.written()
    host.good(TORCHDOCK_GPUS="1")
    assert f"dev.torchdock.gpus: '{A}'" in host.written()
    said = host.good(TORCHDOCK_GPUS="2")
    assert f"was made with {A}, and keeps that; Rebuild Container to change it" in said
    host.answer(opened_with(""))  # made without one: a GPU that is there now is not lost for ever
    assert "was made with no GPU" in host.good()
    assert f"dev.torchdock.gpus: '{B}'" in host.written()
    host.answer(opened_with("GPU-that-was-taken-out"))
    assert f"Rebuild Container to change it to {B}" in host.good()


def test_torchdock_is_told_which_gpus_a_container_holds(host: Host) -> None:
    host.answer(opened_with(f"{A},{B}"))
    host.python("image=i\\nca=\\ngpus=%s\\n' \"$TORCHDOCK_HELD\" '")
    host.good()
    assert f"dev.torchdock.gpus: '{A},{B}'" in host.written()


def test_remapped_users_and_selinux_are_switched_off_for_it_as_for_invoke_run(host: Host) -> None:
    host.good()
    assert "userns_mode" not in host.written() and "security_opt" not in host.written()
    host.answer({"info --format*ID*": "echo 'ID|[name=seccomp,profile=builtin name=selinux name=userns]|Fedora'"})
    host.good()
    assert "    userns_mode: host\n    security_opt: [label=disable]\n" in host.written()


def test_a_venv_that_does_not_work_is_said_and_gone_without(host: Host) -> None:
    host.python("image=never\\n", works=False)
    said = host.good()
    assert "fallback: .venv cannot be used (No module named docker)" in said
    assert "image: 'torchdock/cu130:devcontainer-" in host.written()


def test_an_image_that_is_not_there_is_never_pulled(host: Host) -> None:
    host.answer({"image inspect torchdock*": "exit 1"})
    assert "keeps images elsewhere" in host.refused(1)
    assert "pull_policy: never" in (ROOT / ".devcontainer" / "environment.yml").read_text()


def test_a_user_without_a_name_is_called_by_the_uid(host: Host) -> None:
    for said in ("echo 4321; exit 1", "echo 4321", "exit 1"):
        write_program(host.bin / "id", f"case $1 in -un) {said} ;; -u | -g | -G) echo 4321 ;; esac")
        host.good()
        assert "USER: 'user4321'" in host.written()


def test_no_compose_no_engine_and_podman_are_told_in_one_paragraph(host: Host) -> None:
    host.answer({"compose version*": "exit 1"})
    assert "no Compose plugin" in host.refused(69)
    host.answer({"info*": "echo 'Cannot connect'; exit 1"})
    assert "No container engine answers" in host.refused(69)
    host.answer({"--version": "echo podman version 5.4.2"})
    assert "is Podman's" in host.refused(69)


def test_a_clone_that_cannot_be_written_is_told_before_anything_is_built(host: Host) -> None:
    folder = host.clone / ".devcontainer" / "cuda"
    folder.chmod(0o555)
    argv = ["sh", str(host.clone / ".devcontainer" / "initialize.sh"), "cuda"]
    if os.getuid() == 0:  # who may write everywhere
        for above in (host.clone, *list(host.clone.parents)[:3], host.bin):
            above.chmod(0o755)
        argv = ["setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", *argv]
    done = subprocess.run(argv, env=host.env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("torchdock: This clone cannot be written by this user")
    assert not host.calls.exists()


# --- leases ---

HELD = "user=zoe container=torchdock-zoe-night role=job since=1000"


def hold(host: Host, name: str) -> subprocess.Popen[str]:
    """Somebody has this lock, as a container has it or a launch."""
    folder = host.place / "torchdock-gpus"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o1777)
    (folder / name).write_text(f"{HELD}\n")
    words = ["flock", "--exclusive", str(folder / name), "sh", "-c", "echo held; exec cat"]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.fixture
def leased(host: Host) -> Iterator[Callable[[str], None]]:
    """Make somebody hold a lock until the end of the test."""
    children = []
    yield lambda name: children.append(hold(host, name))
    for child in children:
        child.communicate("")


def waiter(host: Host) -> int:
    """The process that keeps GPUs for the container to come."""
    return int((host.clone / ".devcontainer/cuda/host.yml.pending").read_text())


@pytest.mark.parametrize("suffix", ["", ".pending"])
def test_a_gpu_that_somebody_has_is_passed_over(host: Host, suffix: str, leased: Callable[[str], None]) -> None:
    host.gpus(FakeGpu(A), FakeGpu(B, memory_used=1 << 30))
    leased(A + suffix)
    host.good()
    assert f"dev.torchdock.gpus: '{B}'" in host.written()


def test_where_all_are_taken_it_ends_with_75_and_says_who_has_them(host: Host, leased: Callable[[str], None]) -> None:
    host.gpus(FakeGpu(A), FakeGpu(B))
    leased(A)
    leased(B)
    done = host.run()
    assert done.returncode == 75
    assert f"Every GPU is taken: {A} by zoe (torchdock-zoe-night), {B} by zoe (torchdock-zoe-night)." in done.stderr
    done = host.run(TORCHDOCK_GPUS="2")
    assert (done.returncode, "not all of them are free" in done.stderr) == (75, True)
    assert not (host.clone / ".devcontainer/cuda/host.yml").exists()
    host.good(TORCHDOCK_GPUS="0")


def test_the_container_is_given_the_locks_of_its_gpus_and_they_are_kept_for_it(host: Host) -> None:
    host.gpus(FakeGpu(A), FakeGpu(B))
    host.good(TORCHDOCK_GPUS="all")
    folder = host.place / "torchdock-gpus"
    assert folder.stat().st_mode & 0o7777 == 0o1777
    for uuid in (A, B):
        mounted = f"{{type: bind, source: '{folder}/{uuid}', target: '/run/torchdock/leases/{uuid}'}}"
        assert mounted in host.written()
        for name in (uuid, f"{uuid}.pending"):
            assert (folder / name).stat().st_mode & 0o7777 == 0o1666
        assert subprocess.run(["flock", "--nonblock", str(folder / f"{uuid}.pending"), "true"]).returncode == 1
    assert "TORCHDOCK_LEASE: 'user=" in host.written()
    # Opened again at once, as after a mistake elsewhere: its own earlier opening keeps nothing from it.
    first = waiter(host)
    host.good(TORCHDOCK_GPUS="1")
    assert f"dev.torchdock.gpus: '{A}'" in host.written() or f"dev.torchdock.gpus: '{B}'" in host.written()
    assert waiter(host) != first
    os.kill(waiter(host), signal.SIGKILL)


def test_what_is_kept_for_a_container_is_given_back_when_it_has_the_leases(
    host: Host, leased: Callable[[str], None]
) -> None:
    host.gpus(FakeGpu(A))
    host.good()
    leased(A)
    pending = host.place / "torchdock-gpus" / f"{A}.pending"
    deadline = time.monotonic() + 30
    while subprocess.run(["flock", "--nonblock", str(pending), "true"]).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("runs", [True, False])
def test_what_its_own_container_holds_is_no_obstacle_while_it_runs(
    host: Host, runs: bool, leased: Callable[[str], None]
) -> None:
    host.gpus(FakeGpu(A), FakeGpu(B))
    host.answer({"inspect*State.Running*": f"echo {str(runs).lower()}", **opened_with(A)})
    leased(A)
    said = host.good()
    assert f"dev.torchdock.gpus: '{A if runs else B}'" in host.written()
    assert (f"{A} by zoe (torchdock-zoe-night) is taken" in said) != runs


@pytest.mark.parametrize("what", ["closed", "file"])
def test_a_folder_of_leases_that_is_not_everybodys_is_refused_with_the_remedy(host: Host, what: str) -> None:
    host.gpus(FakeGpu(A))
    folder = host.place / "torchdock-gpus"
    if what == "closed":
        folder.mkdir(mode=0o755)
    else:
        folder.touch()
    done = host.run()
    assert done.returncode == 2
    assert f"`sudo chmod 1777 {folder}`" in done.stderr


def test_with_torchdock_it_keeps_what_that_has_chosen_and_asks_again_where_another_was_quicker(
    host: Host, leased: Callable[[str], None]
) -> None:
    host.python(f"image=torchdock/cu130:x\\nca=\\ngpus={A}\\n")
    leased(f"{A}.pending")
    done = host.run()
    assert (done.returncode, "Others take the GPUs faster" in done.stderr) == (75, True)


def test_docker_desktop_has_no_leases(host: Host, leased: Callable[[str], None]) -> None:
    host.gpus(FakeGpu(A))
    leased(A)
    host.answer({"info --format*ID*": "echo 'ID|[name=seccomp]|Docker Desktop'"})
    host.good()
    assert "leases" not in host.written()
