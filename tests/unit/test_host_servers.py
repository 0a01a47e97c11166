"""The servers' host side: folders, addresses, commands; and that it agrees with what serves inside."""

from pathlib import Path

import pytest
from given import TableEngine

from torchdock import container, launch, servers
from torchdock.errors import InputError, TorchdockError
from torchdock.inside import serve

PROJECT = Path("/home/anna/project")


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("runs", "/workspace/runs"),
        ("./runs/", "/workspace/runs"),
        (".", "/workspace"),
        ("a/../b", "/workspace/b"),
        ("/data/runs", "/data/runs"),
        ("/workspace/x", "/workspace/x"),
        ("/home/anna/project/out/1", "/workspace/out/1"),  # as a shell completes it
        ("/home/anna/projects", "/home/anna/projects"),
    ],
)
def test_a_logdir_is_the_containers(text: str, folder: str) -> None:
    assert servers.logdir(text, PROJECT) == folder


@pytest.mark.parametrize("text", ["", " ", "..", "../other", "a/../../b", "/home/anna/project/../x\0"])
def test_a_logdir_outside_is_wrong_input(text: str) -> None:
    with pytest.raises(InputError, match="name a folder below the workspace"):
        servers.logdir(text, PROJECT)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:49153/lab?token=T"),
        ("0.0.0.0", "http://127.0.0.1:49153/lab?token=T"),
        ("", "http://127.0.0.1:49153/lab?token=T"),
        ("10.0.0.7", "http://10.0.0.7:49153/lab?token=T"),
        ("::1", "http://[::1]:49153/lab?token=T"),
    ],
)
def test_an_address(host: str, url: str) -> None:
    assert servers.address(servers.JUPYTER, host, 49153, "T") == url


def test_both_sides_agree() -> None:
    known = {one.name: one.port for one in (servers.JUPYTER, servers.TENSORBOARD)}
    assert known == {name: one.port for name, one in serve.SERVERS.items()}
    assert servers.WORKSPACE == serve.WORKSPACE
    assert container.SERVE[-1] == serve.__name__


def test_ports_are_free_ones_of_the_loopback_unless_the_workspace_names_them() -> None:
    assert [port.word for port in servers.PORTS] == ["127.0.0.1::8888", "127.0.0.1::6006"]
    own = launch.Wishes(ports=(launch.port("9999:8888"), launch.port("8000")))
    words = [port.word for port in launch.merge(launch.Wishes(ports=servers.PORTS), own).ports]
    assert words == ["127.0.0.1::6006", "127.0.0.1:9999:8888", "127.0.0.1:8000:8000"]


def test_a_container_without_the_port_is_said() -> None:
    class Unpublished(TableEngine):
        def published(self, name: str, port: int) -> "tuple[str, int] | None":
            return None

    with pytest.raises(TorchdockError, match=r"has no port for JupyterLab.*`invoke down`, and `invoke jupyter`"):
        servers.start(Unpublished(), "torchdock-anna-x", servers.JUPYTER)
