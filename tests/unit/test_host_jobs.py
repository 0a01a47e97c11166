"""A user's containers as the engine lists them: names, commands as typed, how they ended, what was installed."""

from pathlib import Path
from typing import Any

import pytest
from given import ANNA, TableEngine, program

from torchdock import jobs
from torchdock.errors import InputError
from torchdock.jobs import Session

ENTRY = "/opt/torchdock/docker/init.sh"


def listed(name: str = "torchdock-anna-night", **different: Any) -> "dict[str, Any]":
    labels = {"role": "job", "user": "1000", "clone": "c0ffee", "workspace": "/home/anna/p", "gpus": ""}
    labels = {f"dev.torchdock.{key}": value for key, value in {**labels, **different.pop("labels", {})}.items()}
    usual = {"Names": [f"/{name}"], "State": "running", "Status": "Up 2 hours", "Image": "torchdock/cu130:abc"}
    return {**usual, "Command": f"{ENTRY} python train.py", "Labels": labels, **different}


def test_a_container_is_told_as_people_know_it() -> None:
    found = jobs.session(listed(labels={"gpus": "GPU-1,GPU-2", "seconds": "28800"}), ANNA)
    assert found == Session(
        name="night",
        container="torchdock-anna-night",
        role="job",
        state="running",
        status="Up 2 hours",
        exit_code=None,
        command="python train.py",
        image="torchdock/cu130:abc",
        workspace="/home/anna/p",
        clone="c0ffee",
        gpus=("GPU-1", "GPU-2"),
        seconds=28800,
    )
    assert found.document()["gpus"] == ("GPU-1", "GPU-2")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("Exited (0) 2 hours ago", 0),
        ("Exited (143) 1 second ago", 143),
        ("Up 2 hours", None),
        ("Created", None),
        ("", None),
    ],
)
def test_the_exit_code_is_in_the_status(status: str, code: "int | None") -> None:
    assert jobs.session(listed(Status=status, State="exited"), ANNA).exit_code == code


@pytest.mark.parametrize(
    ("said", "command"),
    [
        (f"{ENTRY} python train.py", "python train.py"),
        ("/usr/bin/tini -- /opt/torchdock/docker/entrypoint.sh python train.py", "python train.py"),  # an older image
        (
            f"{ENTRY} timeout --foreground --preserve-status --verbose --kill-after=120 28800 "
            "/opt/torchdock/docker/entrypoint.sh torchdock-stay",
            "torchdock-stay",
        ),
        (f"{ENTRY} timeout --foreground --preserve-status --verbose --kill-after=120 28800 python a.py", "python a.py"),
        (f"{ENTRY} timeout 5 python a.py", "timeout 5 python a.py"),
        ("sleep 1", "sleep 1"),
    ],
)
def test_the_command_is_the_one_that_was_typed(said: str, command: str) -> None:
    assert jobs.session(listed(Command=said), ANNA).command == command


def test_a_container_of_an_older_torchdock_has_fewer_labels() -> None:
    found = jobs.session({"Names": ["/x"], "State": "exited", "Labels": {"dev.torchdock.user": "1000"}}, ANNA)
    assert (found.name, found.role, found.gpus, found.seconds, found.command) == ("x", "", (), None, "")


def test_only_this_users_containers_are_listed() -> None:
    engine = TableEngine(containers=[listed(), listed("torchdock-bert-a", labels={"user": "1001"})])
    assert [one.name for one in jobs.gather(engine, ANNA)] == ["night"]


def sessions(*names: str, role: str = "job") -> "list[Session]":
    return [jobs.session(listed(f"torchdock-anna-{name}", labels={"role": role}), ANNA) for name in names]


def test_a_container_is_found_by_its_short_or_whole_name() -> None:
    both = sessions("night", "day")
    assert jobs.find(both, "day") is both[1]
    assert jobs.find(both, "torchdock-anna-night") is both[0]


def test_the_only_job_need_not_be_named() -> None:
    assert jobs.find([*sessions("project", role="up"), *sessions("night")], None).name == "night"
    with pytest.raises(InputError, match=r"Which job\? Name one: night, day\."):
        jobs.find(sessions("night", "day"), None)
    with pytest.raises(InputError, match=r"none; `invoke run --detach -- CMD` starts one"):
        jobs.find(sessions("project", role="up"), None)


def test_a_name_that_nobody_has_is_wrong_input() -> None:
    with pytest.raises(InputError, match=r"no container 'nigth'\. Did you mean 'night'\? `invoke ps`"):
        jobs.find(sessions("night", "day"), "nigth")
    with pytest.raises(InputError, match="no container 'x'"):
        jobs.find([], "x")


def test_what_was_installed_shows() -> None:
    site = "/opt/venv/lib/python3.13/site-packages"
    changes = [
        {"Path": site, "Kind": 0},
        {"Path": f"{site}/einops", "Kind": 1},
        {"Path": f"{site}/einops-0.8.1.dist-info", "Kind": 1},
        {"Path": f"{site}/einops-0.8.1.dist-info/METADATA", "Kind": 1},
        {"Path": f"{site}/numpy-2.4.0.dist-info", "Kind": 2},
        {"Path": f"{site}/Numpy-2.3.0.dist-info", "Kind": 1},
        {"Path": f"{site}/ruamel_yaml-0.18.dist-info", "Kind": 1},
        {"Path": f"{site}/torch-2.14.1.dist-info", "Kind": 0},  # a file in it was touched
    ]
    assert jobs.added(changes) == ("einops 0.8.1", "Numpy 2.3.0", "-numpy 2.4.0", "ruamel-yaml 0.18")
    assert jobs.added([]) == ()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"follow": False, "lines": None}, ()),
        ({"follow": True, "lines": None}, ("--follow",)),
        ({"follow": True, "lines": 0}, ("--follow", "--tail", "0")),
    ],
)
def test_output_is_dockers(more: "dict[str, Any]", words: "tuple[str, ...]") -> None:
    assert jobs.logs_argv(TableEngine(), "n", **more) == ("docker", "logs", *words, "n")
    assert jobs.logs_argv(TableEngine(podman={"host": {}}), "n", **more) == ("podman", "logs", *words, "n")


def test_joining_hands_on_no_signal() -> None:
    assert jobs.attach_argv(TableEngine(), "n") == ("docker", "attach", "--sig-proxy=false", "n")
    assert jobs.attach_argv(TableEngine(podman={"host": {}}), "n")[:2] == ("podman", "attach")


class Ended(TableEngine):
    def exit_code(self, name: str) -> "int | None":
        return 143


@pytest.mark.parametrize(
    ("state", "role", "remove", "stopped", "removed"),
    [
        ("running", "job", False, True, False),
        ("running", "job", True, True, True),
        ("exited", "job", False, False, False),
        ("exited", "job", True, False, True),
        ("running", "up", False, True, True),
    ],
)
def test_stopping_keeps_the_output_unless_it_is_to_go(
    state: str, role: str, remove: bool, stopped: bool, removed: bool, tmp_path: Path
) -> None:
    engine = Ended(cli=program(tmp_path / "docker", f'echo "$@" >>{tmp_path}/argv'))
    one = jobs.session(listed(State=state, labels={"role": role}), ANNA)
    assert jobs.stop(engine, one, remove=remove) == 143
    assert (tmp_path / "argv").exists() is stopped
    if stopped:
        assert (tmp_path / "argv").read_text() == "stop torchdock-anna-night\n"
    assert engine.removed == (["torchdock-anna-night"] if removed else [])
