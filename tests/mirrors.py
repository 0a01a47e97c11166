"""Mirrors on this host's loopback: they hand on what the real source has, except for what a test changes."""

from __future__ import annotations

import base64
import http.server
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import requests

from torchdock import sources

PASSED_ON = ("Content-Type", "Content-Encoding", "ETag", "Last-Modified")


class Mirror(http.server.ThreadingHTTPServer):
    """One server for several sources: ``/<name>/<path>`` is ``<upstream[name]>/<path>``.

    Attributes:
        changed: a part of a path -> the answer to it; None is 404, a function makes other bytes of the real ones.
        asked: the paths that were asked for, without the name.
        token: ``user:password`` that every request must carry; anything else is answered with 401.
    """

    daemon_threads = True

    def __init__(self, upstream: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.changed: dict[str, Callable[[bytes], bytes] | None] = {}
        self.asked: list[str] = []
        self.token = ""
        self.session = requests.Session()
        self.session.verify = str(sources.gather().ca or True)

    def url(self, name: str) -> str:
        """Where a source is to be found here."""
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        _, name, path = self.path.split("/", 2)
        self.server.asked.append(path)
        expected = f"Basic {base64.b64encode(self.server.token.encode()).decode()}"
        if self.server.token and self.headers.get("Authorization") != expected:
            return self._answer(401, b"", {"WWW-Authenticate": "Basic"})
        change = next((made for part, made in self.server.changed.items() if part in path), bytes)
        if change is None:
            return self._answer(404, b"", {})
        real = self.server.session.get(
            f"{self.server.upstream[name]}/{path}",
            headers={"Accept": self.headers.get("Accept", "*/*"), "Accept-Encoding": "identity"},
        )
        passed = {key: real.headers[key] for key in PASSED_ON if key in real.headers}
        self._answer(real.status_code, change(real.content), passed)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serve(upstream: Mapping[str, str]) -> Iterator[Mirror]:
    """A mirror that answers while the block runs."""
    server = Mirror(upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def debian_upstream(base: str, suite: str) -> dict[str, str]:
    """``debian`` and ``debian-security``: the archives that a base (an image with apt) names itself."""
    show = ["docker", "run", "--rm", base, "apt-get", "update", "--print-uris"]
    uris = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    found = {name: url for url, name in re.findall(r"'(\S+)/dists/(\S+)/InRelease'", uris)}
    return {"debian": found[suite], "debian-security": found[f"{suite}-security"]}


def index_upstream() -> dict[str, str]:
    """``simple``: the Python package index of this host, the public one (whose address pip knows) by default."""
    from pip._internal.models.index import PyPI

    given = sources.gather().index
    return {"simple": (given.url if given is not None else PyPI.simple_url).rstrip("/")}
