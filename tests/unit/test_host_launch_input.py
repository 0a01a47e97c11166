"""What is asked of a launch, word by word: what is refused, and what becomes of two words for one thing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from given import TableEngine

from torchdock import container, jobs, launch
from torchdock.errors import InputError
from torchdock.launch import Port, Variable, Wishes

TINI = f"/usr/bin/tini -- {container.ENTRYPOINT} python x.py"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("8000", "127.0.0.1:8000:8000"),
        ("8080:80", "127.0.0.1:8080:80"),
        ("0.0.0.0:1:65535", "0.0.0.0:1:65535"),
        ("::1:80:81", "[::1]:80:81"),
        ("[::0001]:80:81", "[::1]:80:81"),
    ],
)
def test_a_port_is_what_docker_publishes(text: str, word: str) -> None:
    assert launch.port(text).word == word


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "0", "0:80", "65536", "-1", "80:", ":80", "a:80", "1:2:3:4:5", "127.1:80:80", "127.0.0.1::80"),
        *("224.0.0.1:1:1", "[fe80::1%eth0]:1:1", "80/tcp", "\u0668\u0660", "1_0"),
    ],
)
def test_anything_else_is_no_port(text: str) -> None:
    with pytest.raises(InputError, match=r"^-p "):
        launch.port(text)


def test_a_port_of_the_command_line_goes_before_the_files() -> None:
    given = Wishes(ports=(Port(8000, 8000), Port(9000, 9000), Port(7000, 70)))
    asked = Wishes(ports=(Port(8001, 8000), Port(8002, 8000), Port(9000, 90, "0.0.0.0")))
    assert launch.merge(given, asked).ports == (Port(7000, 70), *asked.ports)


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        (Wishes(ports=(Port(80, 1), Port(80, 2))), "port 80 of 127.0.0.1"),
        (Wishes(ports=(Port(80, 1), Port(80, 1, "0.0.0.0"))), "port 80 of 0.0.0.0"),
        (Wishes(ports=(Port(80, 1, "[::]"), Port(80, 1))), "port 80 of 127.0.0.1"),
        (Wishes(variables=(Variable("A", "1", False), Variable("A", "2", True))), "for A"),
    ],
)
def test_one_thing_given_twice_is_wrong_input(wishes: Wishes, told: str) -> None:
    with pytest.raises(InputError, match=told):
        launch.merge(launch.NOTHING, wishes)


def test_ports_that_do_not_meet_are_two() -> None:
    two = Wishes(ports=(Port(80, 1), Port(80, 1, "127.0.0.2"), Port(0, 2), Port(0, 3)))
    assert launch.duplicates(two) == []


def test_a_file_of_a_person_is_a_small_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * (launch.LARGEST_FILE + 1))
    (tmp_path / "just").write_bytes(b"x" * launch.LARGEST_FILE)
    assert len(launch.read_file(tmp_path / "just")) == launch.LARGEST_FILE
    for name in ("pipe", "large", ".", "none"):
        with pytest.raises(OSError):
            launch.read_file(tmp_path / name)


@pytest.mark.parametrize("target", ["/data", "/workspace/data", "/usr/local/cuda", "/etc/ssl/ours", "/optional"])
def test_places_of_the_callers_own_can_be_mounted(target: str, tmp_path: Path) -> None:
    assert launch.mount(f"{tmp_path}:{target}", tmp_path).target == target


@pytest.mark.parametrize("name", ["a b", "a,b", 'a"b', "a\u00a0b", "\u30c7\u30fc\u30bf\u3000", "e\u0301"])
def test_names_that_people_give_folders_can_be_mounted(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert launch.mount(f"{name}:/data", tmp_path).source == tmp_path / name


@pytest.mark.parametrize(
    ("processes", "runs"),
    [
        ([], False),
        (["runc init"], False),
        ([TINI], False),
        ([TINI, f"/bin/sh {container.ENTRYPOINT} python x.py"], False),
        ([TINI, f"/bin/sh {container.ENTRYPOINT} python x.py", "getent passwd 0"], False),
        ([TINI, "[entrypoint.sh]"], False),
        ([TINI, "python x.py"], True),
        ([TINI, "python x.py", "[python]"], True),
    ],
)
def test_a_command_runs_when_the_entrypoint_has_become_it(processes: list[str], runs: bool) -> None:
    assert container.command_runs(processes) is runs


def test_who_cannot_type_looks_on() -> None:
    assert jobs.attach_argv(TableEngine(), "x") == ("docker", "attach", "--sig-proxy=false", "x")
    assert jobs.attach_argv(TableEngine(), "x", typing=False) == (
        "docker",
        "attach",
        "--sig-proxy=false",
        "--no-stdin",
        "x",
    )
