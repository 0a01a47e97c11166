"""What serves inside: a token before everything, one server at a time, files for one user; pure of either server."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from torchdock.inside import serve
from torchdock.inside.serve import Place

TOKEN = "Zq7-" * 8
SOURCE = Path(serve.__file__).parents[2]


def ask(query: str = "", cookie: str = "") -> "tuple[str, dict[str, str], bytes]":
    """A request to an application behind the guard: status, headers, body."""
    answered: list[Any] = []

    def app(environ: "dict[str, Any]", respond: Any) -> Iterable[bytes]:
        respond("200 OK", [("X-App", "yes")])
        return [b"inside"]

    def respond(status: str, headers: "list[tuple[str, str]]") -> None:
        answered.extend((status, dict(headers)))

    body = b"".join(serve.guard(app, TOKEN)({"QUERY_STRING": query, "HTTP_COOKIE": cookie}, respond))
    return answered[0], answered[1], body


def test_the_token_opens_and_leaves_a_cookie_that_opens() -> None:
    status, headers, body = ask(f"x=1&token={TOKEN}")
    assert (status, body, headers["X-App"]) == ("200 OK", b"inside", "yes")
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
    again = ask(cookie=f'username="2|1:0"; {cookie};broken')
    assert again == ("200 OK", {"X-App": "yes"}, b"inside")


@pytest.mark.parametrize(
    "query", ["", "token=", f"token={TOKEN[:-1]}", f"token={TOKEN}x", "token=%C3%A9", f"t={TOKEN}"]
)
def test_nothing_else_opens(query: str) -> None:
    status, headers, body = ask(query)
    assert status == "403 Forbidden"
    assert b"invoke tensorboard" in body
    assert TOKEN not in str(headers)


@pytest.mark.parametrize("cookie", [f"token={TOKEN}", f"torchdock-000000000000={TOKEN}", TOKEN, ";;=", "é=é"])
def test_no_other_cookie_opens(cookie: str) -> None:
    assert ask(cookie=cookie)[0] == "403 Forbidden"


def test_one_process_holds_a_place_and_others_see_which(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from torchdock.inside.serve import Place\n"
        "place = Place('x', Path(sys.argv[1])); assert place.claim() is not None; print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "p")],
        env={"PYTHONPATH": str(SOURCE)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    place = Place("x", tmp_path / "p")
    assert place.holder() == child.pid
    assert place.claim() is None
    assert serve.stop(place, seconds=20) is True
    assert child.wait(20) == -15
    assert place.holder() == 0
    assert serve.stop(place) is False


def test_one_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    program = (
        "import signal, sys; from pathlib import Path; from torchdock.inside.serve import Place\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "place = Place('x', Path(sys.argv[1])); assert place.claim() is not None; print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env={"PYTHONPATH": str(SOURCE)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    assert serve.stop(Place("x", tmp_path), seconds=0.2) is True
    assert child.wait(20) == -9


def test_the_state_is_this_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        place = Place("x", tmp_path / "p")
        assert place.read() == {}
        place.write({"token": "T"})
    finally:
        os.umask(before)
    assert place.read() == {"token": "T"}
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700
    assert place.state.stat().st_mode & 0o777 == 0o600


def test_one_that_ended_is_told_from_one_that_has_not_begun(tmp_path: Path) -> None:
    place = Place("jupyter", tmp_path)
    place.log.write_text("".join(f"line {number}\n\n" for number in range(40)))
    place.write({"start": "mine", "token": "T"})
    ended = serve.wait("jupyter", "mine", place, seconds=60)
    assert ended["error"] == "it ended at once"
    assert ended["lines"] == [f"line {number}" for number in range(25, 40)]
    assert serve.wait("jupyter", "another", place, seconds=0.3)["error"] == "it gave no answer in 0 s"
