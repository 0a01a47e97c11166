"""Where bits come from: which CA bundle counts, what is no bundle, and proxies by name alone."""

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
