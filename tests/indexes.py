"""A package index on this host's loopback, and small wheels to put in it: what the tests have in place of real ones.

It serves folders of simple indexes (PEP 503 pages with hashes and PEP 658 metadata), and can be made to misbehave as
real ones do: refuse a token, answer with an error, give other bytes than its page promises, show an old certificate.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

from torchdock.variants import Variant

JSON = "application/vnd.pypi.simple.v1+json"


def normalise(name: str) -> str:
    """A name as it stands in the address of its page."""
    return name.lower().replace("_", "-").replace(".", "-")


def sha256(content: bytes) -> str:
    """The hash of a file as a lock has it."""
    return hashlib.sha256(content).hexdigest()


def metadata(name: str, version: str, requires: Iterable[str] = ()) -> str:
    """A wheel's METADATA."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)]) + "\n"


def stand_in_wheel(
    name: str,
    version: str,
    requires: Iterable[str] = (),
    *,
    tag: str = "py3-none-any",
    modules: Mapping[str, str] | None = None,
) -> tuple[str, bytes]:
    """(file name, content) of a small valid wheel, the same bytes every time. ``modules``: path -> source."""
    module = normalise(name).replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = dict(modules or {f"{module}/__init__.py": f'__version__ = "{version}"\n'})
    files[f"{info}/METADATA"] = metadata(name, version, requires)
    pure = str(tag.endswith("-any")).lower()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: stand-in\nRoot-Is-Purelib: {pure}\nTag: {tag}\n"
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(zipfile.ZipInfo(path, (2026, 10, 5, 0, 0, 0)), text)
    return f"{module}-{version}-{tag}.whl", content.getvalue()


@dataclass
class _File:
    name: str
    sha256: str
    content: bytes | None
    metadata: str | None


@dataclass
class Index:
    """A server of simple indexes: ``url("whl/cpu")`` is the address of one folder, ``/whl/cpu/<package>/`` its pages.

    Attributes:
        token: ``user:password`` that every request must carry; anything else is answered with 401.
        status: answered to everything instead, where it is set.
        asked: the paths of all requests, decoded.
        agents: who asked for them, as the header has it.
        open: while it is not set, no request is answered.
        json: it has its pages as JSON too, with the sizes of the files (PEP 691 and 700).
    """

    token: str | None = None
    status: int | None = None
    asked: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    address: str = ""
    open: threading.Event = field(default_factory=threading.Event)
    json: bool = False
    _pages: dict[str, list[_File]] = field(default_factory=dict)

    def url(self, folder: str, *, credentials: str = "") -> str:
        """The address of a folder, with ``user:password`` in it where they are given."""
        scheme, _, host = self.address.partition("://")
        return f"{scheme}://{credentials}{'@' if credentials else ''}{host}/{folder}"

    def publish(
        self, folder: str, file: str, *, sha256: str = "", content: bytes | None = None, metadata: str | None = None
    ) -> None:
        """Put a file on its package's page, with the hash of its content or the one given, which may be a lie.

        Without content the page and the metadata are there and the file itself is not found.
        """
        hashed = sha256 or hashlib.sha256(content or b"").hexdigest()
        path = f"/{folder}/{normalise(file.partition('-')[0])}/"
        self._pages.setdefault(path, []).append(_File(file, hashed, content, metadata))

    def wheel(
        self, folder: str, name: str, version: str, requires: Sequence[str] = (), tag: str = "py3-none-any"
    ) -> str:
        """Publish a stand-in wheel with its metadata; returns its SHA-256."""
        file, content = stand_in_wheel(name, version, requires, tag=tag)
        self.publish(folder, file, content=content, metadata=metadata(name, version, requires))
        return hashlib.sha256(content).hexdigest()

    def answer(self, path: str, authorization: str, accept: str = "") -> tuple[int, str, bytes]:
        """(status, content type, body) of a request."""
        self.asked.append(path)
        self.open.wait()
        if self.token is not None:
            expected = "Basic " + base64.b64encode(self.token.encode()).decode()
            if authorization != expected:
                return 401, "text/plain", b"who are you?"
        if self.status is not None:
            return self.status, "text/plain", b"not today"
        if path in self._pages and self.json and JSON in accept:
            return 200, JSON, self._document(path).encode()
        if path in self._pages:
            return 200, "text/html", self._page(path).encode()
        folder, _, name = path.rpartition("/")
        for file in self._pages.get(f"{folder}/", []):
            if name == file.name and file.content is not None:
                return 200, "application/octet-stream", file.content
            if name == f"{file.name}.metadata" and file.metadata is not None:
                return 200, "text/plain", file.metadata.encode()
        return 404, "text/plain", b"no such package"

    def _page(self, path: str) -> str:
        links = []
        for file in self._pages[path]:
            told = "" if file.metadata is None else hashlib.sha256(file.metadata.encode()).hexdigest()
            told = f' data-core-metadata="sha256={told}" data-dist-info-metadata="sha256={told}"' if told else ""
            # A plus sign in an address is a space to some servers: real indexes write %2B.
            links.append(f'<a href="{quote(file.name)}#sha256={file.sha256}"{told}>{file.name}</a><br/>')
        return "<!DOCTYPE html><html><body>\n" + "\n".join(links) + "\n</body></html>\n"

    def _document(self, path: str) -> str:
        files = [
            {
                "filename": file.name,
                "url": quote(file.name),
                "hashes": {"sha256": file.sha256},
                "core-metadata": file.metadata is not None
                and {"sha256": hashlib.sha256(file.metadata.encode()).hexdigest()},
                "size": len(file.content or b""),
            }
            for file in self._pages[path]
        ]
        name = path.strip("/").rpartition("/")[2]
        return json.dumps({"meta": {"api-version": "1.1"}, "name": name, "versions": [], "files": files})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that hangs up, or refuses the certificate, is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, index: Index, *rest: object) -> None:
        self._index = index
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._index.agents.append(self.headers.get("User-Agent", ""))
        status, kind, body = self._index.answer(
            unquote(self.path.partition("?")[0]), self.headers.get("Authorization", ""), self.headers.get("Accept", "")
        )
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(
    *, token: str | None = None, certificate: tuple[Path, Path] | None = None, host: str = "127.0.0.1"
) -> Iterator[Index]:
    """An index that answers while the block runs; with a certificate (PEM: chain, key) by TLS, as ``localhost``."""
    index = Index(token=token)
    index.open.set()
    server = _Server((host, 0), partial(_Handler, index))
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme, host = "https", "localhost"
    index.address = f"{scheme}://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.open.set()
        server.shutdown()
        server.server_close()
        thread.join()


def certificates(folder: Path, *, expired: bool = False) -> tuple[Path, tuple[Path, Path]]:
    """(authority, (certificate of localhost, its key)) as PEM files, signed by that authority; made by openssl."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes", "-sha256")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=test authority")
    openssl("req", "-new", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=localhost")
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=a\n[a]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "[p]\ncommonName=supplied\n[x]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
    )
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("01\n")
    days = ("200101000000Z", "210101000000Z") if expired else ("200101000000Z", "490101000000Z")
    signing = ("-config", "ca.conf", "-extensions", "x", "-cert", "ca.pem", "-keyfile", "ca.key")
    openssl(
        "ca", "-batch", "-notext", *signing, "-startdate", days[0], "-enddate", days[1],
        "-in", "leaf.csr", "-out", "leaf.pem",
    )  # fmt: skip
    return folder / "ca.pem", (folder / "leaf.pem", folder / "leaf.key")


# --- torch on its own index -------------------------------------------------------------------------------------------

# What PyTorch's CPU index has of the versions in docker/variants.toml, gathered from public lock files: the hashes
# count. Which of torchvision's hashes is which file's is not known, and the names are made up.
TORCH_CPU = {
    "torch-2.14.1+cpu-cp313-cp313-manylinux_2_28_x86_64.whl": (
        "331fa474e26e428e2e6af1143b2fdab19cee492d7d21897b8899ce1c14755662"
    ),
    "torch-2.14.1+cpu-cp313-cp313-manylinux_2_28_aarch64.whl": (
        "783a3dec10d272e40ed3f1a05ec228400300d3229b8f7521a9327645fae88646"
    ),
}
TORCHVISION_CPU = [
    "0be6a8048d16964d0c56b819c2beaa72c8f8985700add134d8ae02062fddd5d5",
    "0ca9fcc7c35ca00682e33a278fbc596233552e56417e2548861bcdd023660b51",
    "148aa2e7606117827b9117744c739a38aaba91a519f44c3971a1c6f118508243",
    "192a46d1ccb8118810cef0c3852d90f4ba5160bfcb09c674062d3753b9b97719",
    "25687959fab99dc2489c5f5ab2624101066428a9d344f9f0b45c90c019b25037",
    "265b7c27a54bd17fad35494e478ddcf9028187898a8b1c73df515b8be83bc44f",
    "3058f855e65089330ec987b8cac1ccf5e7a26cd475f8cab20597b5577ddc8767",
    "361f943872f7763807912cc51d621f0172e8d481792f8c6f3fe1f63838a29e0c",
    "48d50755767f08230ada71213decd6502ec59ebc9c9f67098bc2f81036f24b74",
    "502a45b518f801e4b2689e63c4d2085995e257c54002bc5a0e602093db95405d",
    "52662534ce7451661d94312f11a0922e89998c7d409803046de7046ba6fd1c08",
    "53bb0c2dd29e5f4f74dc6796e642c13996222f64b3ac0c2fce6d8abd351998e5",
    "5df6b59fccec8046df9b1ef197d6b5cd8523d1a2e0b981df69fbfd908ccbc464",
    "7b27accfa545169ad070efb8a6679b25d63acc8513bbc0c05937c3ce94c13ea5",
    "7e22a746a259d93d00392e0a71df389d3d4466bcd2458d95be3d65bb018efaa5",
    "84690a857d4ded320a5c5264499a266bb9beb1b706125980d7a4a6f4e07b6b42",
    "9029fbac8d86dc562a79ef33824c50152674ac2f017c001419be4e1e06256b53",
    "94590cee2298a7b6cc6512159781b577a322d0813baf1add3cf02db744138b31",
    "aa6ee9cb6995f10af9e78ba5bceded3aa824b64610f4bafb650e66f8722f841a",
    "dc630e9aa09a8ee4497e088dfabd60dbfb3b839fa35768a4f3d07e5ebd59a632",
    "e100257aa2cd8840088d321c338f02657faf43d802d470dd8dcb7ff4003553d2",
    "ef220d4b21878c58947851beb7337382897159105f012f0c9c07bf7e84174d7e",
    "ef94bfa4f1e870e376d65ca4bac6ca979fdd5da4ce34295621342b6b1736ba43",
    "f1ef752411a031d74f78488c2ec93619f0d75a6c762409b7a541959054578f2c",
]
# The dependencies of the Python package index's torch without the libraries of CUDA and triton.
TORCH_REQUIRES = (
    "filelock",
    "typing-extensions>=4.10.0",
    "setuptools>=77.0.3",
    "sympy>=1.13.3",
    "networkx>=2.5.1",
    "jinja2",
    "fsspec>=0.8.5",
)
TORCHVISION_REQUIRES = ("numpy", "torch>=2.14.0", "pillow!=8.3.*,>=5.3.0")
# The torch indexes carry old copies of torch's dependencies beside it, which nobody should be given.
STALE = {"numpy": "1.26.3", "filelock": "3.13.1", "pillow": "10.2.0", "sympy": "1.12", "jinja2": "3.1.2"}


def publish_recorded_cpu(index: Index, folder: str) -> None:
    """torch and torchvision for CPUs as their real index has them: names, hashes and metadata, without the files."""
    for file, sha256 in TORCH_CPU.items():
        index.publish(folder, file, sha256=sha256, metadata=metadata("torch", "2.14.1+cpu", TORCH_REQUIRES))
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "win_amd64", "macosx_12_0_arm64")
    tags = [f"cp3{minor}-cp3{minor}-{platform}" for minor in range(10, 16) for platform in platforms]
    for tag, sha256 in zip(tags, TORCHVISION_CPU, strict=True):
        described = metadata("torchvision", "0.29.1+cpu", TORCHVISION_REQUIRES)
        index.publish(folder, f"torchvision-0.29.1+cpu-{tag}.whl", sha256=sha256, metadata=described)
    publish_stale(index, folder)


def publish_stand_ins(index: Index, folder: str, variant: Variant, more: Sequence[str] = ()) -> None:
    """Small wheels of a variant's torch and torchvision; ``more``: what torch requires besides, CUDA for example."""
    for machine in variant.architectures:
        tag = f"cp313-cp313-manylinux_2_28_{machine}"
        index.wheel(folder, "torch", variant.torch, (*TORCH_REQUIRES, *more), tag)
        index.wheel(folder, "torchvision", variant.torchvision, ("numpy", "torch", "pillow"), tag)


def publish_stale(index: Index, folder: str) -> None:
    """Old copies of torch's dependencies, in an order that a careless resolver would take."""
    for name, version in STALE.items():
        index.wheel(folder, name, version)
