"""The judgements of doctor: from facts to findings, each bad one with its remedy."""

from typing import Any

import pytest
from given import INFO, ROOT, facts

from torchdock import doctor, variants
from torchdock.engine import EngineFacts
from torchdock.errors import InputError

VARIANT = variants.get(ROOT, "cu130")
GB = 10**9


def rows(found: "list[doctor.Finding]") -> "list[tuple[str, str]]":
    return [(finding.subject, finding.severity) for finding in found]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (facts(), [("engine", "good"), ("identity", "good"), ("permission", "good"), ("buildx", "good")]),
        (facts(buildx=""), [("engine", "good"), ("identity", "good"), ("permission", "good"), ("buildx", "error")]),
        (facts(info={}, error="Cannot connect"), [("engine", "error")]),
        (facts(info={}, error="permission denied"), [("engine", "error")]),
        (facts(info={}, cli=None, binary=None), [("engine", "error")]),
        (facts(info={}, endpoint="tcp://lab:2376", error="dial"), [("engine", "error")]),
        (facts(endpoint="ssh://lab"), [("engine", "error")]),
    ],
    ids=["ready", "no buildx", "stopped", "forbidden", "not installed", "unreachable", "remote"],
)
def test_the_engine_is_judged(found: EngineFacts, expected: "list[tuple[str, str]]") -> None:
    findings = doctor.judge_engine(found)
    assert rows(findings) == expected
    assert all(bool(finding.remedy) is (finding.severity != "good") for finding in findings)
    assert {finding.group for finding in findings} == {"engine"}


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["name=seccomp"], "26.1.5, context default (unix:///var/run/docker.sock)"),
        (["name=rootless"], "26.1.5, rootless, context default (unix:///var/run/docker.sock)"),
        (None, "26.1.5, context default (unix:///var/run/docker.sock)"),
    ],
)
def test_an_engine_is_described(options: "list[str] | None", seen: str) -> None:
    assert doctor.judge_engine(facts(info={**INFO, "SecurityOptions": options}))[0].seen == seen


PODMAN = {"host": {"security": {"rootless": True}, "ociRuntime": {"name": "crun"}}}


@pytest.mark.parametrize(
    ("info", "podman", "severity", "seen"),
    [
        (INFO, {}, "good", "the same UID inside and outside; groups reach into a container"),
        (
            {**INFO, "SecurityOptions": ["name=rootless"]},
            {},
            "note",
            "root inside is the caller outside; groups of the",
        ),
        (INFO, PODMAN, "good", "the caller keeps the UID; groups reach"),
        (
            INFO,
            {"host": {**PODMAN["host"], "ociRuntime": {"name": "runc"}}},
            "note",
            "the caller keeps the UID; groups of",
        ),
        ({**INFO, "SecurityOptions": ["name=selinux"]}, {}, "good", "SELinux is switched off for containers"),
    ],
    ids=["Docker", "rootless Docker", "Podman with crun", "Podman with runc", "SELinux"],
)
def test_doctor_says_who_one_is_in_a_container(
    info: "dict[str, Any]", podman: "dict[str, Any]", severity: str, seen: str
) -> None:
    finding = doctor.judge_engine(facts(info=info, podman=podman))[1]
    assert (finding.subject, finding.severity) == ("identity", severity)
    assert seen in finding.seen
    assert bool(finding.remedy) is (severity != "good")


def test_podman_builds_nothing_and_doctor_says_how_an_image_gets_there() -> None:
    finding = doctor.judge_engine(facts(podman=PODMAN, buildx=""))[-1]
    assert (finding.subject, finding.severity) == ("buildx", "note")
    assert "`docker save IMAGE | podman load`" in finding.remedy


@pytest.mark.parametrize(
    ("free", "image_there", "severity"),
    [
        (VARIANT.build_bytes, False, "good"),
        (VARIANT.build_bytes - 1, False, "error"),
        (VARIANT.build_bytes - 1, True, "note"),
        (0, True, "note"),
        (None, False, "note"),
    ],
)
def test_the_disk_is_judged(free: "int | None", image_there: bool, severity: str) -> None:
    finding = doctor.judge_disk(free, "/var/lib/docker", VARIANT, VARIANT.build_bytes, image_there=image_there)
    assert (finding.group, finding.severity) == ("disk", severity)
    if free is not None:
        size = f"{VARIANT.build_bytes / GB:.1f} GB"
        assert finding.seen == f"{free / GB:.1f} GB free below /var/lib/docker; a cold build of cu130 takes {size}"
        assert ("docker builder prune" in finding.remedy) is (severity != "good")


def test_an_examination_that_fails_is_a_finding_and_hides_no_other() -> None:
    def breaks() -> "list[doctor.Finding]":
        raise ZeroDivisionError("by its own probing")

    def refuses() -> "list[doctor.Finding]":
        raise InputError("The workspace /x is no folder. Name another one.")

    (note,) = doctor._guarded("gpus", "GPUs", breaks)
    assert (note.severity, "ZeroDivisionError: by its own probing" in note.seen) == ("note", True)
    (error,) = doctor._guarded("container", "launch", refuses)
    assert (error.severity, error.remedy) == ("error", "The workspace /x is no folder. Name another one.")
