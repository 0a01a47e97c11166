"""Pure logic of inside: locks, control groups, the judgement on GPUs, the command line of train."""

from pathlib import Path

import pytest

from torchdock.inside import devices, machine, train, versions

LOCK = """\
# made by uv pip compile
--index-url https://example.org/simple
torch==2.14.1 \\
    --hash=sha256:c8f7 \\
    --hash=sha256:6d53
    # via -r requirements.in
Typing_Extensions==4.16.0 \\
    --hash=sha256:aa
uv[extra]==0.13.9  # a comment
"""


def test_pins() -> None:
    assert versions.pins(LOCK) == {"torch": "2.14.1", "typing-extensions": "4.16.0", "uv": "0.13.9"}


@pytest.mark.parametrize(
    "line",
    ["torch>=2", "torch", "numpy==2.5.5 ; python_version < '3.14'", "torch==2.14.1\ntorch==2.15.0", "numpy = 2"],
)
def test_what_is_no_pin_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="of the lock"):
        versions.pins(line)


def test_a_recent_version_replaces_the_tools(tmp_path: Path) -> None:
    folder = tmp_path / "docker/locks/cpu"
    folder.mkdir(parents=True)
    for layer, text in {"torch": "torch==2", "tools": "a==1\nb==1", "recent": "b==2\nc==1", "devel": "d==1"}.items():
        (folder / f"{layer}.txt").write_text(f"# torchdock: layer={layer}\n{text}\n")
    assert versions.read(tmp_path, "cpu") == {"torch": "2", "a": "1", "b": "2", "c": "1"}
    (folder / "recent.txt").write_text("b==2\nb==3\n")
    with pytest.raises(ValueError, match="pins b twice"):
        versions.read(tmp_path, "cpu")


@pytest.mark.parametrize("name", ["Typing_Extensions", "typing.extensions", "typing--extensions", "typing-extensions"])
def test_normalise(name: str) -> None:
    assert versions.normalise(name) == "typing-extensions"


def test_differences() -> None:
    locked = {"a": "1", "b": "2", "c": "3"}
    assert versions.differences(locked, {"a": "1", "b": "2", "c": "3", "mine": "9"}) == []
    assert versions.differences(locked, {"a": "1", "b": "2.1"}) == ["b is 2.1, locked 2", "c 3 is missing"]


@pytest.mark.parametrize(("variant", "cuda"), [("cu130", "13.0"), ("cu126", "12.6"), ("cpu", None)])
def test_cuda_of(variant: str, cuda: "str | None") -> None:
    assert versions.cuda_of(variant) == cuda


@pytest.mark.parametrize("variant", ["", "rocm", "cu", "13.0"])
def test_cuda_of_no_variant(variant: str) -> None:
    with pytest.raises(ValueError, match="no variant"):
        versions.cuda_of(variant)


def test_cuda_majors() -> None:
    names = ["nvidia-nccl-cu13", "nvidia_cudnn_cu12", "torch", "nvidia-cublas", "document-cutter"]
    assert versions.cuda_majors(names) == {"12", "13"}


def test_cuda_packages() -> None:
    names = ["nvidia_cudnn_cu12", "cuda-toolkit", "triton", "nvidia-ml-py", "torch", "nvidia-cublas", "tritonclient"]
    assert versions.cuda_packages(names) == ["cuda-toolkit", "nvidia-cublas", "nvidia-cudnn-cu12", "triton"]
    assert versions.cuda_packages(["torch", "nvidia_ml_py", "barracuda"]) == []


V2 = {"/proc/self/cgroup": "0::/user/job\n"}
V1 = {"/proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n"}


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({**V2, "/sys/fs/cgroup/user/job/cpu.max": "max 100000", "/sys/fs/cgroup/user/cpu.max": "400000 100000"}, 4.0),
        (
            {**V2, "/sys/fs/cgroup/user/job/cpu.max": "200000 100000", "/sys/fs/cgroup/user/cpu.max": "400000 100000"},
            2.0,
        ),
        (
            {**V1, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ({**V1, "/sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000"}, 3.0),
        ({**V1, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
    ],
)
def test_quota(files: "dict[str, str]", cpus: "float | None") -> None:
    assert machine.quota(files.get) == cpus


def test_threads_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert machine.threads_allowed({}.get) == 8
    for limit, threads in (("50000", 1), ("250000", 2), ("1600000", 8)):
        files = {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": f"{limit} 100000"}
        assert machine.threads_allowed(files.get) == threads


def test_status() -> None:
    fields = machine.status({"/proc/self/status": "Name:\tpython\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n"}.get)
    assert (fields["CapEff"], fields["NoNewPrivs"]) == ("0000000000000000", "1")
    assert "Name" in machine.status()


def test_a_gpu_is_good() -> None:
    assert devices.judge_gpu(1, ["NVIDIA H200"], "580.65.06", "13.0", "") is None


@pytest.mark.parametrize(
    ("count", "names", "driver", "build", "silence", "words"),
    [
        (0, [], "", "13.0", "NVML Shared Library Not Found", "NVML Shared Library Not Found"),
        (0, [], "580.65.06", None, "", "CPU build"),
        (0, ["NVIDIA H200"], "525.60.13", "13.0", "", "driver 525.60.13 answers"),
        (0, ["NVIDIA H200"], "580.0-FAKE", "13.0", "", "fake driver"),
        (1, ["Fake H200"], "580.65.06", "13.0", "", "fake driver"),
        (0, ["torchdock fake GPU 0"], "580.65.06", None, "", "fake driver"),
    ],
)
def test_no_gpu_is_told_with_its_remedy(
    count: int, names: "list[str]", driver: str, build: "str | None", silence: str, words: str
) -> None:
    problem = devices.judge_gpu(count, names, driver, build, silence)
    assert problem is not None
    assert words in problem
    assert problem.startswith("A GPU is demanded")
    assert "Remedy: " in problem
    assert "\n" not in problem


def test_train_options() -> None:
    args = train.arguments(["--model", "cnn", "--epochs", "3", "--seed", "7", "--device", "cuda", "--amp", "bf16"])
    assert (args.model, args.epochs, args.seed, args.device, args.amp) == ("cnn", 3, 7, "cuda", "bf16")
    args = train.arguments([])
    assert (args.model, args.epochs, args.seed, args.device, args.resume) == ("classifier", None, 0, "auto", False)


@pytest.mark.parametrize(
    "argv",
    [
        *(["--epochs", "0"], ["--epochs", "x"], ["--device", "tpu"], ["file"], ["--rate", "0"], ["--rate", "nan"]),
        *(["--batch", "-1"], ["--amp", "int8"], ["--workers", "-1"], ["--resume", "--overwrite"]),
    ],
)
def test_train_wrong_options_exit_2(argv: "list[str]", capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.arguments(argv)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
