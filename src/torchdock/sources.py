"""Where bits come from on this host: CA bundle, proxies, indexes, mirrors; and whether a source answers.

Values found here are secrets (index URLs, mirrors and proxies carry tokens). They reach a build as BuildKit secrets or
as predefined proxy arguments *by name*, never as words of a command, and :meth:`Sources.redact` keeps them out of logs.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from torchdock.errors import InputError
from torchdock.process import csv_fields

# In the order of how specific they are; the first that names a file wins.
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
# Debian and Ubuntu, Fedora and RHEL, openSUSE, Alpine and macOS.
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# The ones that BuildKit knows without an ARG and keeps out of history and cache keys.
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
# The Python package index: uv's own names first, because they are the more specific ones.
INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
# What else pip and uv read; builds take everything from one index, these are for what people install in a container.
FURTHER_INDEX_VARIABLES = ("PIP_EXTRA_INDEX_URL", "UV_INDEX")
TRUST_VARIABLES = ("PIP_TRUSTED_HOST", "UV_INSECURE_HOST")
TORCH_INDEX_VARIABLE = "TORCHDOCK_TORCH_INDEX"
APT_MIRROR_VARIABLE = "TORCHDOCK_APT_MIRROR"
BASE_IMAGE_VARIABLE = "TORCHDOCK_BASE_IMAGE"
# [host[:port]/]repository[:tag][@digest]; no scheme and no user.
REFERENCE = re.compile(
    r"([a-zA-Z0-9.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[a-zA-Z0-9_][a-zA-Z0-9_.-]*)?(@sha256:[0-9a-f]{64})?"
)
SECRET_BYTES = 500 * 1024  # BuildKit's limit for one secret
# Paths that every mirror has, which hide nothing.
COMMON_PATH = re.compile(r"(/(simple|pypi|whl|root|debian|index|api))*")
PROBE_SECONDS = 5.0


class SourceError(InputError):
    """A variable that names a source is wrong; the text says which one and what to do."""


@dataclass(frozen=True)
class Mirror:
    """A URL that replaces a source, and the variable that named it. The URL may carry a token: it is never shown."""

    variable: str
    url: str = field(repr=False)

    @property
    def parts(self) -> SplitResult:
        """The URL taken apart."""
        return urlsplit(self.url)

    @property
    def label(self) -> str:
        """What people are shown: the variable and the host, neither user nor path."""
        return f"{self.variable} at {self.parts.hostname}"


@dataclass(frozen=True)
class Sources:
    """What a build or a launch is given of this host.

    Attributes:
        ca: the CA bundle (PEM), or None where the host has none.
        proxies: names of the proxy variables that are set; the values stay in the environment.
        index: the Python package index, or None for the public one.
        torch_index: the root of the PyTorch wheel indexes (their names, ``cpu`` or ``cu126``, are appended), or None
            for the one that ``variants.toml`` names.
        apt_mirror: Debian's archive, or None for the one that the base names.
        base_image: a reference that replaces the pinned base's repository; empty for none.
        netrc: credentials for hosts (the file of ``NETRC``, else ``~/.netrc``), or None.
        loopback: some source or proxy is on this host's loopback, which a build reaches on the host's network only.
        further: further indexes and what pip and uv trust, by the variables that name them.
    """

    ca: Path | None
    proxies: tuple[str, ...]
    index: Mirror | None = None
    torch_index: Mirror | None = None
    apt_mirror: Mirror | None = None
    base_image: str = ""
    netrc: Path | None = None
    loopback: bool = False
    further: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def installing(self) -> dict[str, str]:
        """The variables by which pip and uv in a container find this host's indexes; their values may carry tokens.

        One on the loopback is left away: a container has a loopback of its own.
        """
        found = dict(self.further)
        if self.index is not None and not _is_loopback(self.index.url):
            found |= {"PIP_INDEX_URL": self.index.url, "UV_DEFAULT_INDEX": self.index.url}
        return found

    @property
    def mirrors(self) -> tuple[Mirror, ...]:
        """Every mirror that is set."""
        return tuple(mirror for mirror in (self.index, self.torch_index, self.apt_mirror) if mirror is not None)

    def torch_index_url(self, root_url: str, name: str) -> str:
        """The index of one variant's torch wheels: ``name`` below the mirror, else below ``root_url``."""
        root = self.torch_index.url if self.torch_index is not None else root_url
        return f"{root.rstrip('/')}/{name}"

    def environment(self) -> dict[str, str]:
        """This process's environment for uv or pip on the host, with CA, index and netrc under the names they read."""
        env = dict(os.environ)
        if self.ca is not None:
            env["SSL_CERT_FILE"] = str(self.ca)
        if self.index is not None:
            env["UV_DEFAULT_INDEX"] = env["PIP_INDEX_URL"] = self.index.url
        if self.netrc is not None:
            env["NETRC"] = str(self.netrc)
        return env

    def secrets(self) -> list[str]:
        """The ``--secret`` values of a build (``id=…,src=…`` or ``id=…,env=…``): names and paths, never a value.

        Raises:
            SourceError: a file is larger than a secret may be.
        """
        files = {"ca": self.ca, "netrc": self.netrc}
        for path in files.values():
            if path is not None and path.is_file() and path.stat().st_size > SECRET_BYTES:
                raise SourceError(
                    f"{path} is larger than {SECRET_BYTES >> 10} KiB, which BuildKit takes as a secret. Name a bundle "
                    "with the authorities that this host needs in SSL_CERT_FILE."
                )
        found = [csv_fields(f"id={name}", f"src={path.absolute()}") for name, path in files.items() if path is not None]
        mirrors = {"index": self.index, "torch-index": self.torch_index, "apt-mirror": self.apt_mirror}
        return found + [f"id={name},env={mirror.variable}" for name, mirror in mirrors.items() if mirror is not None]

    def redact(self, text: str) -> str:
        """The text without the URLs of mirrors and the credentials of mirrors and proxies."""
        for mirror in self.mirrors:
            # A tool may print the URL with, without or with a starred user, and the address is a secret as a whole:
            # some services carry the token in the path.
            address = re.escape(mirror.parts.netloc.rpartition("@")[2] + mirror.parts.path.rstrip("/"))
            scheme = re.escape(mirror.parts.scheme)
            text = re.sub(rf"{scheme}://(?:[^/@\s]*@)?{address}", f"<{mirror.label}>", text)
            path = mirror.parts.path.rstrip("/")
            if not COMMON_PATH.fullmatch(path):  # printed without its host, it still holds the token
                text = text.replace(path, f"<{mirror.label}>")
        for word in self._credentials():
            text = text.replace(word, "****")
        return text

    def _credentials(self) -> list[str]:
        urls = [mirror.parts for mirror in self.mirrors]
        urls += [urlsplit(os.environ.get(name, "")) for name in self.proxies]
        # A name alone is a token; beside a password it is a name, and may be a common word.
        words = {url.password or url.username or "" for url in urls}
        words |= {unquote(word) for word in words}
        return sorted((word for word in words if len(word) > 3), key=len, reverse=True)


def ca_bundle(env: Mapping[str, str], system: tuple[str, ...] = SYSTEM_BUNDLES) -> Path | None:
    """The CA bundle that this host trusts: the first variable that is set, else the system's own bundle.

    Raises:
        SourceError: a variable is set and its file is missing or is no PEM bundle.
    """
    for name in CA_VARIABLES:
        value = env.get(name)
        if not value:
            continue
        path = Path(value)
        try:
            ssl.create_default_context(cafile=value)
        except (OSError, ssl.SSLError) as error:
            raise SourceError(
                f"{name} names {value}, which is not a readable bundle of CA certificates ({error}). "
                f"Correct {name} or unset it, and the system's own bundle is used."
            ) from None
        return path
    return next((Path(path) for path in system if Path(path).is_file()), None)


def _mirror(env: Mapping[str, str], names: tuple[str, ...]) -> Mirror | None:
    for name in names:
        value = env.get(name, "").strip()
        if not value:
            continue
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good or re.search(r"[\s\"'\\]", value):
            raise SourceError(
                f"{name} is no http:// or https:// URL (its value is not shown, it may carry a token). Correct it, or "
                "unset it and the public source is used."
            )
        return Mirror(name, value)
    return None


def _netrc(env: Mapping[str, str]) -> Path | None:
    named = env.get("NETRC")
    path = Path(named) if named else Path(env.get("HOME") or "/nonexistent", ".netrc")
    if path.is_file() and os.access(path, os.R_OK):
        return path
    if named:
        raise SourceError(f"NETRC names {named}, which is no file that can be read. Correct NETRC or unset it.")
    return None


def _further(env: Mapping[str, str]) -> dict[str, str]:
    """Further indexes that a container reaches: neither this host's loopback nor its files."""
    found = {}
    for name in FURTHER_INDEX_VARIABLES:
        words = [(word, re.sub(r"^[\w.-]+=", "", word)) for word in env.get(name, "").split()]  # uv: NAME=URL
        found[name] = " ".join(
            word for word, url in words if re.match("https?://", url, re.IGNORECASE) and not _is_loopback(url)
        )
    found |= {name: env.get(name, "") for name in TRUST_VARIABLES}
    return {name: value for name, value in found.items() if value}


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url if "://" in url else f"http://{url}").hostname or ""
    except ValueError:
        return False
    return host == "localhost" or host.startswith("127.") or host == "::1"


def gather(env: Mapping[str, str] | None = None) -> Sources:
    """The facts of this host's environment; reads files, changes nothing, reaches out to nobody.

    Raises:
        SourceError: a variable names a file or URL that cannot be used.
    """
    env = os.environ if env is None else env
    spellings = [spelling for name in PROXY_VARIABLES for spelling in (name, name.lower())]
    proxies = tuple(name for name in spellings if env.get(name))
    base_image = env.get(BASE_IMAGE_VARIABLE, "").strip()
    if base_image and not REFERENCE.fullmatch(base_image):
        raise SourceError(
            f"{BASE_IMAGE_VARIABLE} is no image reference (its value is not shown, it may hold a password, which "
            "`docker login` takes). Name a mirror of the base, for example registry.example.org/library/debian, or "
            "unset it."
        )
    index = _mirror(env, INDEX_VARIABLES)
    torch_index = _mirror(env, (TORCH_INDEX_VARIABLE,))
    apt_mirror = _mirror(env, (APT_MIRROR_VARIABLE,))
    urls = [mirror.url for mirror in (index, torch_index, apt_mirror) if mirror is not None]
    urls += [env[name] for name in proxies if not name.lower().startswith("no_")]
    return Sources(
        ca=ca_bundle(env),
        proxies=proxies,
        index=index,
        torch_index=torch_index,
        apt_mirror=apt_mirror,
        base_image=base_image,
        netrc=_netrc(env),
        loopback=any(_is_loopback(url) for url in urls),
        further=_further(env),
    )


@dataclass(frozen=True)
class Reach:
    """Whether a source answered, and if not why: one sentence without secrets, and the remedy."""

    ok: bool
    why: str = ""
    remedy: str = ""


def probe(given: Sources, url: str, *, seconds: float = PROBE_SECONDS) -> Reach:
    """Ask for this URL as a build would: through the proxy, with the CA, with the credentials of URL or netrc."""
    import requests

    verify: bool | str = str(given.ca) if given.ca is not None else True
    try:
        # The environment is read for proxies and netrc; the CA is given, whichever variable named it.
        with requests.get(url, timeout=seconds, verify=verify, stream=True) as answer:
            return judge_answer(answer.status_code)
    except OSError as error:  # requests' own errors among them, and a CA bundle that is not there
        # What comes before is the request, with its path; the cause is at the end.
        return judge_failure(given.redact(" ".join(str(error).split()).rpartition("Caused by ")[2]))


def probe_torch_index(given: Sources, root_url: str, name: str, *, seconds: float = PROBE_SECONDS) -> Reach:
    """Ask the index of one variant's torch wheels for torch."""
    return probe(given, f"{given.torch_index_url(root_url, name)}/torch/", seconds=seconds)


def fetch(given: Sources, url: str, accept: str, *, seconds: float = PROBE_SECONDS) -> bytes | None:
    """What is at this URL, asked for once and as :func:`probe` does; None where it is not to be had as ``accept``.

    ``seconds``: how long to wait for a connection, and for each part of the answer.
    """
    import requests

    verify: bool | str = str(given.ca) if given.ca is not None else True
    try:
        answer = requests.get(url, headers={"Accept": accept}, timeout=seconds, verify=verify)
    except OSError:
        return None
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    return answer.content if answer.status_code == 200 and kind == accept else None


def judge_answer(status: int) -> Reach:
    """What an HTTP status means for a source. Pure."""
    if status < 400:
        return Reach(True)
    if status in (401, 403):
        return Reach(
            False,
            f"it refuses the credentials (HTTP {status})",
            "Renew the token in the URL, or the entry of that host in ~/.netrc.",
        )
    if status == 407:
        return Reach(False, "the proxy refuses the credentials (HTTP 407)", "Correct the user in HTTPS_PROXY.")
    return Reach(False, f"it answers HTTP {status}", "Check the URL, or whether the mirror carries this.")


def judge_failure(text: str) -> Reach:
    """What the text of a failed request means. Pure."""
    if "expired" in text:
        return Reach(
            False,
            "its TLS certificate has expired",
            "Whoever runs that source renews it; check this host's clock (`date`).",
        )
    if re.search(r"CERTIFICATE_VERIFY_FAILED|UnknownIssuer|certificate", text, re.IGNORECASE):
        return Reach(
            False,
            "its TLS certificate is signed by an authority that this host does not trust",
            "Name the bundle that holds your private CA in SSL_CERT_FILE.",
        )
    if "SSL" in text or "TLS" in text:
        return Reach(False, f"TLS failed ({_short(text)})", "Check the URL's scheme and port, and the proxy.")
    if re.search(r"resolve|Name or service|getaddrinfo|nodename", text):
        return Reach(False, "its name cannot be resolved", "Check the network, the proxy (HTTPS_PROXY) and the URL.")
    if re.search(r"timed? ?out", text, re.IGNORECASE):
        return Reach(False, "it does not answer in time", "Check the network and the proxy (HTTPS_PROXY).")
    return Reach(False, f"it cannot be reached ({_short(text)})", "Check the network and the proxy (HTTPS_PROXY).")


def _short(text: str) -> str:
    return text if len(text) <= 160 else "… " + text[-158:]
