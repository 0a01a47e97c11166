"""Where bits come from: which CA bundle counts, what is no bundle, and proxies by name alone."""

import base64
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from torchdock import sources

BUNDLE = certifi.where()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"SSL_CERT_FILE": "1", "REQUESTS_CA_BUNDLE": "2", "PIP_CERT": "3", "CURL_CA_BUNDLE": "4"}, "1"),
        ({"CURL_CA_BUNDLE": "4", "PIP_CERT": "3", "REQUESTS_CA_BUNDLE": "2"}, "2"),
        ({"CURL_CA_BUNDLE": "4", "PIP_CERT": "3"}, "3"),
        ({"CURL_CA_BUNDLE": "4"}, "4"),
        ({"SSL_CERT_FILE": "", "PIP_CERT": "3"}, "3"),
        ({"NODE_EXTRA_CA_CERTS": "1"}, "system"),
        ({}, "system"),
    ],
)
def test_the_most_specific_variable_names_the_bundle(env: "dict[str, str]", expected: str, tmp_path: Path) -> None:
    for name in ("1", "2", "3", "4", "system"):
        (tmp_path / name).symlink_to(BUNDLE)
    given = {name: value and str(tmp_path / value) for name, value in env.items()}
    assert sources.ca_bundle(given, (str(tmp_path / "none"), str(tmp_path / "system"))) == tmp_path / expected


def test_a_host_without_a_bundle_has_none(tmp_path: Path) -> None:
    assert sources.ca_bundle({}, (str(tmp_path / "none"),)) is None


@pytest.mark.parametrize(
    "content", [None, "", "no certificate\n", "folder"], ids=["missing", "empty", "text", "folder"]
)
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_what_is_no_bundle_is_named_with_its_variable(variable: str, content: "str | None", tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(sources.SourceError) as bad:
        sources.ca_bundle({variable: str(path)}, (BUNDLE,))
    assert str(bad.value).startswith(f"{variable} names {path}, which is not a readable bundle of CA certificates (")
    assert f"Correct {variable} or unset it" in str(bad.value)


def test_a_bad_variable_is_not_passed_over_for_a_good_one(tmp_path: Path) -> None:
    with pytest.raises(sources.SourceError, match="SSL_CERT_FILE"):
        sources.ca_bundle({"SSL_CERT_FILE": str(tmp_path / "none"), "PIP_CERT": BUNDLE})


def test_proxies_are_known_by_name_and_never_by_value() -> None:
    secret = "http://anna:hunter2@proxy:3128"
    env = {"HTTPS_PROXY": secret, "http_proxy": secret, "NO_PROXY": "", "no_proxy": "localhost", "FOO_PROXY": secret}
    found = sources.gather({**env, "SSL_CERT_FILE": BUNDLE})
    assert found.ca == Path(BUNDLE)
    assert found.proxies == ("http_proxy", "HTTPS_PROXY", "no_proxy")
    assert "hunter2" not in repr(found)


# --- mirrors ---

URL = "https://anna:hunter2@mirror.example/t0ken/simple/"


def given(**env: str) -> sources.Sources:
    return sources.gather({"SSL_CERT_FILE": BUNDLE, "HOME": "/nonexistent", **env})


@pytest.mark.parametrize(
    ("env", "variable"),
    [
        ({"UV_DEFAULT_INDEX": URL, "UV_INDEX_URL": "https://b/", "PIP_INDEX_URL": "https://c/"}, "UV_DEFAULT_INDEX"),
        ({"UV_INDEX_URL": URL, "PIP_INDEX_URL": "https://c/"}, "UV_INDEX_URL"),
        ({"UV_DEFAULT_INDEX": "", "PIP_INDEX_URL": URL}, "PIP_INDEX_URL"),
    ],
)
def test_the_most_specific_index_counts(env: "dict[str, str]", variable: str) -> None:
    found = given(**env)
    assert found.index == sources.Mirror(variable, URL)
    assert f"id=index,env={variable}" in found.secrets()


def test_each_mirror_has_its_variable_and_its_secret() -> None:
    found = given(
        TORCHDOCK_TORCH_INDEX=URL, TORCHDOCK_APT_MIRROR="http://mirror/debian", TORCHDOCK_BASE_IMAGE="lab/debian"
    )
    assert [mirror.variable for mirror in found.mirrors] == ["TORCHDOCK_TORCH_INDEX", "TORCHDOCK_APT_MIRROR"]
    assert found.base_image == "lab/debian"
    assert found.secrets() == [
        f"id=ca,src={BUNDLE}",
        "id=torch-index,env=TORCHDOCK_TORCH_INDEX",
        "id=apt-mirror,env=TORCHDOCK_APT_MIRROR",
    ]


@pytest.mark.parametrize(
    "value", ["mirror/simple", "ftp://m/", "https:///t0ken", "https://m/ x", "https://m:http/", 'https://"m/']
)
@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "PIP_INDEX_URL", "TORCHDOCK_TORCH_INDEX", "TORCHDOCK_APT_MIRROR"])
def test_what_is_no_url_is_refused_without_showing_it(name: str, value: str) -> None:
    with pytest.raises(sources.SourceError) as bad:
        given(**{name: value})
    assert str(bad.value).startswith(f"{name} is no http:// or https:// URL")
    assert value not in str(bad.value) and bad.value.exit_code == 2


@pytest.mark.parametrize(
    "value", ["my debian", "https://anna:hunter2@lab/debian", "anna:hunter2@lab/debian", "lab/debian@sha256:12", "lab/"]
)
def test_what_is_no_image_reference_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(sources.SourceError, match="TORCHDOCK_BASE_IMAGE is no image reference") as bad:
        given(TORCHDOCK_BASE_IMAGE=value)
    assert value not in str(bad.value)


@pytest.mark.parametrize(
    "value", ["debian", "lab/debian:13", "lab:5000/library/debian", f"lab/debian@sha256:{'b' * 64}"]
)
def test_an_image_reference_is_taken(value: str) -> None:
    assert given(TORCHDOCK_BASE_IMAGE=value).base_image == value


def test_a_path_that_holds_a_token_is_hidden_by_itself() -> None:
    cleaned = given(UV_DEFAULT_INDEX=URL).redact("Max retries exceeded with url: /t0ken/simple/uv/ (Caused by x)")
    assert "t0ken" not in cleaned and "UV_DEFAULT_INDEX at mirror.example" in cleaned
    plain = given(TORCHDOCK_APT_MIRROR="http://mirror/debian")
    assert plain.redact("the Debian packages below /debian") == "the Debian packages below /debian"


def test_a_bundle_that_no_build_takes_is_told(tmp_path: Path) -> None:
    large = tmp_path / "ca.pem"
    large.write_text(Path(BUNDLE).read_text() + "\n" * 600_000)
    with pytest.raises(sources.SourceError, match="larger than 500 KiB"):
        given(SSL_CERT_FILE=str(large)).secrets()


def test_nothing_that_is_shown_holds_a_token() -> None:
    found = given(UV_DEFAULT_INDEX=URL, TORCHDOCK_TORCH_INDEX=URL, TORCHDOCK_APT_MIRROR=URL)
    shown = repr(found) + " ".join(found.secrets()) + " ".join(mirror.label for mirror in found.mirrors)
    assert not [word for word in ("anna", "hunter2", "t0ken") if word in shown]


@pytest.mark.parametrize(
    "said",
    [
        f"error at {URL}torch/",
        "error at https://mirror.example/t0ken/simple/torch/",
        "error at https://****@mirror.example/t0ken/simple/torch/",
        "error at https://anna:****@mirror.example/t0ken/simple/torch/",
    ],
)
def test_a_tools_words_are_cleaned_of_the_address(said: str) -> None:
    cleaned = given(UV_DEFAULT_INDEX=URL).redact(said)
    assert cleaned == "error at <UV_DEFAULT_INDEX at mirror.example>/torch/"


def test_a_password_alone_is_cleaned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:swordfish@proxy:3128")
    found = given(UV_DEFAULT_INDEX=URL, HTTPS_PROXY="http://anna:swordfish@proxy:3128")
    assert found.redact("user hunter2 by swordfish, as anna") == "user **** by ****, as anna"
    assert given().redact("nothing to hide") == "nothing to hide"


@pytest.mark.parametrize(
    ("env", "loopback"),
    [
        ({}, False),
        ({"UV_DEFAULT_INDEX": "http://127.0.0.1:3141/root/pypi"}, True),
        ({"TORCHDOCK_APT_MIRROR": "http://localhost/debian"}, True),
        ({"TORCHDOCK_TORCH_INDEX": "http://[::1]:8080/whl"}, True),
        ({"https_proxy": "127.0.0.1:3128"}, True),
        ({"no_proxy": "127.0.0.1,localhost"}, False),
        ({"UV_DEFAULT_INDEX": "https://mirror/127.0.0.1"}, False),
    ],
)
def test_a_source_on_the_loopback_is_noticed(env: "dict[str, str]", loopback: bool) -> None:
    assert given(**env).loopback is loopback


def test_the_torch_index_is_below_the_mirror_or_the_named_root() -> None:
    assert given().torch_index_url("https://wheels/whl/", "cpu") == "https://wheels/whl/cpu"
    mirror = given(TORCHDOCK_TORCH_INDEX="https://lab/torch/")
    assert mirror.torch_index_url("https://wheels/whl", "cu126") == "https://lab/torch/cu126"


def test_netrc_is_the_named_file_else_the_one_at_home(tmp_path: Path) -> None:
    home = tmp_path / ".netrc"
    assert given(HOME=str(tmp_path)).netrc is None
    home.write_text("machine mirror login anna password hunter2\n")
    assert given(HOME=str(tmp_path)).netrc == home
    other = tmp_path / "other"
    with pytest.raises(sources.SourceError, match="NETRC names"):
        given(HOME=str(tmp_path), NETRC=str(other))
    other.write_text("")
    assert given(HOME=str(tmp_path), NETRC=str(other)).netrc == other
    assert f"id=netrc,src={other}" in given(NETRC=str(other)).secrets()


def test_tools_on_the_host_are_given_the_same_sources() -> None:
    env = given(PIP_INDEX_URL=URL).environment()
    assert env["UV_DEFAULT_INDEX"] == env["PIP_INDEX_URL"] == URL
    assert env["SSL_CERT_FILE"] == BUNDLE


# --- does it answer? ---


@pytest.mark.parametrize(
    ("status", "why", "remedy"),
    [
        (401, "refuses the credentials (HTTP 401)", "netrc"),
        (403, "refuses the credentials (HTTP 403)", "netrc"),
        (407, "the proxy refuses", "HTTPS_PROXY"),
        (404, "answers HTTP 404", "URL"),
        (503, "answers HTTP 503", "mirror"),
    ],
)
def test_a_status_is_told_with_its_remedy(status: int, why: str, remedy: str) -> None:
    told = sources.judge_answer(status)
    assert not told.ok and why in told.why and remedy in told.remedy
    assert sources.judge_answer(200).ok and sources.judge_answer(302).ok


@pytest.mark.parametrize(
    ("text", "why", "remedy"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired", "has expired", "date"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate", "does not trust", "SSL_CERT_FILE"),
        ("invalid peer certificate: UnknownIssuer", "does not trust", "SSL_CERT_FILE"),
        ("SSLError(SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number'))", "TLS failed", "scheme"),
        ("NameResolutionError: Failed to resolve 'mirror'", "cannot be resolved", "HTTPS_PROXY"),
        ("Read timed out. (read timeout=5)", "in time", "network"),
        ("NewConnectionError: [Errno 111] Connection refused", "Connection refused", "network"),
    ],
)
def test_a_failure_is_told_with_its_remedy(text: str, why: str, remedy: str) -> None:
    told = sources.judge_failure(text)
    assert not told.ok and why in told.why and remedy in told.remedy


class Guarded(http.server.BaseHTTPRequestHandler):
    """Answers whoever knows the password."""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(b"anna:hunter2").decode()
        self.send_response(200 if self.headers.get("Authorization") == expected else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def guarded() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_source_is_asked_with_the_credentials_of_its_url_or_netrc(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.probe(given(), f"http://{guarded}/").why == "it refuses the credentials (HTTP 401)"
    assert sources.probe(given(), f"http://anna:hunter2@{guarded}/").ok
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login anna password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert sources.probe(given(), f"http://{guarded}/").ok


def test_a_source_that_is_not_there_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        told = sources.probe(given(), f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert not told.ok and "Connection refused" in told.why
