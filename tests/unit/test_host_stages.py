"""The steps of a Dockerfile: their labels, digests, downloads, and the layers of an image."""

from pathlib import Path

import pytest

from torchdock import locks, stages

DOCKERFILE = """\
# comment
ARG BASE=debian@sha256:0
ARG VARIANT=cu130

FROM ${BASE} AS python
ARG DEBIAN=locked
# comment
RUN --mount=type=bind,source=docker/layers/debian.sh,target=/run/debian.sh \\
    # comment
    --mount=type=bind,source=docker/layers/python-packages.txt,target=/run/packages.txt \\
    --mount=type=bind,source=docker/locks/debian/python,target=/run/debian --mount=type=secret,id=offline \\
    sh /run/debian.sh python "$DEBIAN"

FROM python AS system
RUN --mount=type=bind,source=docker/layers/debian.sh,target=/run/debian.sh \\
    --mount=type=bind,source=docker/layers/packages.txt,target=/run/packages.txt \\
    --mount=type=bind,source=docker/locks/debian/system,target=/run/debian --mount=type=secret,id=offline \\
    sh /run/debian.sh

FROM python AS uv
RUN --mount=type=bind,source=docker/locks/uv.txt,target=/run/uv.txt --mount=type=secret,id=offline sh /run/uv.sh

FROM python AS cuda
ARG VARIANT
RUN --mount=type=bind,source=docker/locks/${VARIANT}/cuda.txt,target=/run/lock.txt --mount=type=secret,id=offline \\
    --mount=type=bind,from=uv,source=/uv,target=/uv sh /run/wheels.sh cuda

FROM python AS tools
ARG VARIANT
RUN --mount=type=bind,source=docker/locks/${VARIANT}/tools.txt,target=/run/lock.txt --mount=type=secret,id=offline \\
    --mount=type=bind,from=uv,source=/uv,target=/uv sh /run/wheels.sh tools

FROM cuda AS merged
COPY --from=system / /
RUN --mount=type=bind,from=tools,target=/from sh /run/merge.sh tools

FROM merged AS recent
ARG VARIANT
RUN --mount=type=bind,source=docker/locks/${VARIANT}/recent.txt,target=/run/lock.txt --mount=type=secret,id=offline \\
    --mount=type=bind,from=uv,source=/uv,target=/uv sh /run/wheels.sh recent

FROM recent AS configured
LABEL dev.torchdock.variant="${VARIANT}"
WORKDIR /workspace

FROM configured AS environment
RUN --mount=type=bind,source=tests/container,target=/run/clone/tests/container sh /run/suite.sh

FROM configured AS devel-amd64
ENV A="7.5"
FROM configured AS devel-arm64
ENV A="8.0"
FROM devel-${TARGETARCH} AS devel
RUN sh /run/devel.sh
"""
FILES = {
    "docker/layers/debian.sh": "x",
    "docker/layers/packages.txt": "gcc",
    "docker/layers/python-packages.txt": "python3",
    "docker/locks/debian/python/amd64.txt": "# torchdock: suite=trixie download=11\npython3\n",
    "docker/locks/debian/python/arm64.txt": "# torchdock: suite=trixie download=33\npython3\n",
    "docker/locks/debian/system/amd64.txt": "# torchdock: suite=trixie download=22\ngcc\n",
    "docker/locks/debian/system/arm64.txt": "# torchdock: suite=trixie download=44\ngcc\n",
    "docker/locks/uv.txt": "uv==1\n",
    "docker/locks/cu130/cuda.txt": "# torchdock: variant=cu130 download=x86_64:1000,aarch64:2000 layer=cuda\na==1\n",
    "docker/locks/cu130/tools.txt": "# torchdock: variant=cu130\na==1\n",
    "docker/locks/cu130/recent.txt": "# torchdock: variant=cu130\n# nothing yet\n",
    "docker/locks/cu128/cuda.txt": "# torchdock: variant=cu128 download=x86_64:128\na==1\n",
    "tests/container/test_a.py": "pass",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, text in {**FILES, "docker/cuda.Dockerfile": DOCKERFILE}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def read(clone: Path, architecture: str = "x86_64", **arguments: str) -> "dict[str, stages.Stage]":
    files = [clone / name for name in FILES]
    return stages.read(clone, clone / "docker/cuda.Dockerfile", files, arguments, architecture)


def digests(clone: Path, **arguments: str) -> "dict[str, str]":
    return {name: stage.digest for name, stage in read(clone, **arguments).items()}


def changed(clone: Path, name: str) -> "set[str]":
    before = digests(clone)
    with (clone / name).open("a") as file:
        file.write("\nmore\n")
    after = digests(clone)
    return {stage for stage in before if before[stage] != after[stage]}


TOP = {"merged", "recent", "configured", "environment", "devel-amd64", "devel-arm64", "devel"}
EVERY = {"python", "system", "uv", "cuda", "tools", *TOP}


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("docker/locks/cu130/tools.txt", {"tools", *TOP}),
        ("docker/locks/cu130/recent.txt", TOP - {"merged"}),
        ("docker/layers/packages.txt", {"system", *TOP}),
        ("docker/layers/python-packages.txt", EVERY),
        ("docker/layers/debian.sh", EVERY),
        ("docker/locks/debian/python/amd64.txt", EVERY),
        ("docker/locks/uv.txt", EVERY - {"python", "system"}),
        ("docker/locks/cu130/cuda.txt", {"cuda", *TOP}),
        ("docker/locks/cu128/cuda.txt", set()),
        ("tests/container/test_a.py", {"environment"}),
    ],
)
def test_a_changed_file_changes_what_is_made_of_it_and_what_stands_on_that(
    clone: Path, name: str, which: "set[str]"
) -> None:
    assert changed(clone, name) == which


def test_a_change_in_a_later_step_leaves_the_steps_before_it(clone: Path) -> None:
    def merged() -> "list[str]":
        return [step.digest for step in read(clone)["merged"].steps]

    before = merged()
    changed(clone, "docker/locks/cu130/tools.txt")
    after = merged()
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_arguments_decide_and_comments_do_not(clone: Path) -> None:
    before = digests(clone)
    assert digests(clone, BASE="debian@sha256:0", VARIANT="cu130", DEBIAN="locked") == before
    for given in ({"BASE": "other"}, {"DEBIAN": "drift"}):
        assert not set(digests(clone, **given).values()) & set(before.values())
    other = digests(clone, VARIANT="cu128")
    assert other["system"] == before["system"] and other["cuda"] != before["cuda"]
    path = clone / "docker/cuda.Dockerfile"
    path.write_text(path.read_text().replace("# comment", "# another"))
    assert digests(clone) == before


def test_the_steps_are_called_as_buildkit_calls_them(clone: Path) -> None:
    found = read(clone)
    assert [step.label for step in stages.needed(found, "environment")] == [
        *("python 2/2", "system 1/1", "uv 1/1", "cuda 1/1", "tools 1/1", "merged 1/2", "merged 2/2", "recent 1/1"),
        *("configured 1/1", "environment 1/1"),
    ]
    assert [step.label for step in stages.needed(found, "cuda")] == ["python 2/2", "uv 1/1", "cuda 1/1"]
    assert found["devel"].parent == "devel-amd64"
    assert read(clone, "aarch64")["devel"].parent == "devel-arm64"


def test_what_a_step_downloads_is_what_its_lock_says(clone: Path) -> None:
    assert {step.label: step.download for step in stages.needed(read(clone), "environment")} == {
        "python 2/2": 11,
        "system 1/1": 22,
        "uv 1/1": None,
        "cuda 1/1": 1000,
        "tools 1/1": None,
        "merged 1/2": 0,
        "merged 2/2": 0,
        "recent 1/1": 0,
        "configured 1/1": 0,
        "environment 1/1": 0,
    }
    far = {step.label: step.download for step in stages.needed(read(clone, "aarch64"), "environment")}
    assert (far["python 2/2"], far["system 1/1"], far["cuda 1/1"]) == (33, 44, 2000)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("# torchdock: suite=trixie download=77 x=1\ngcc\n", 77),
        ("# torchdock: download=x86_64:9,aarch64:8\nuv==1\n", 9),
        ("# torchdock: layer=recent\n# nothing\n", 0),
        ("# torchdock: download=aarch64:9\nuv==1\n", None),
        ("# torchdock: download=\nuv==1\n", None),
        ("# torchdock: download=some\nuv==1\n", None),
        ("# download=77\nuv==1\n", None),
        ("uv==1\n", None),
    ],
)
def test_a_lock_that_does_not_say_it_is_unknown(tmp_path: Path, text: str, size: "int | None") -> None:
    (tmp_path / "lock.txt").write_text(text)
    assert locks.download_bytes(tmp_path / "lock.txt", "x86_64") == size
    assert locks.download_bytes(tmp_path / "none.txt", "x86_64") is None


def test_the_sizes_of_layers_are_those_of_the_steps_that_made_them(clone: Path) -> None:
    steps = stages.layers(read(clone), "environment")
    labels = ["python 2/2", "cuda 1/1", "merged 1/2", "merged 2/2", "recent 1/1", "environment 1/1"]
    assert [step.label for step in steps] == labels
    made = [f"RUN |2 /bin/sh -c sh /run/{size} # buildkit" for size in range(6)]
    made[2] = "COPY / / # buildkit"
    rows = [{"CreatedBy": step, "Size": size} for size, step in enumerate(made, 1)]
    rows.insert(5, {"CreatedBy": "WORKDIR /workspace", "Size": 8})
    rows.insert(0, {"CreatedBy": "ADD rootfs.tar / # buildkit", "Size": 100})
    assert stages.layer_sizes(steps, rows[::-1]) == dict(zip(labels, range(1, 7), strict=True))
    assert stages.layer_sizes(steps, rows[4:]) == {}
