"""Resolving locks, the part without uv: one lock for all architectures, and the project that is resolved."""

import sys

import pytest
from given import ROOT

from torchdock import resolver, variants
from torchdock.errors import InputError
from torchdock.locks import Pin
from torchdock.sources import Mirror, Sources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIANTS = variants.read(ROOT)


def pin(name: str, version: str, *digits: str) -> Pin:
    return Pin(
        name, version, " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{x * 64}" for x in digits)]) + "\n"
    )


def test_the_hashes_of_all_architectures_are_locked() -> None:
    one, other = {"a": pin("a", "1", "1", "3")}, {"a": pin("a", "1", "2", "3")}
    assert resolver.same({"x86_64": one, "aarch64": other}) == {"a": pin("a", "1", "1", "2", "3")}
    assert resolver.same({"x86_64": one, "aarch64": one}) == one
    assert resolver.same({"x86_64": other}) == other


@pytest.mark.parametrize("other", [{}, {"a": pin("a", "2", "1")}], ids=["absent", "another version"])
def test_what_differs_between_architectures_is_named(other: "dict[str, Pin]") -> None:
    with pytest.raises(InputError, match=r"resolve differently on x86_64 and aarch64: a\. .*constrain them"):
        resolver.same({"x86_64": {"a": pin("a", "1", "1")}, "aarch64": other})


@pytest.mark.parametrize("path", ["whl", "t%22o%5Cken/whl/"])
def test_the_torch_index_is_asked_for_torch_alone(path: str) -> None:
    given = Sources(None, (), torch_index=Mirror("TORCHDOCK_TORCH_INDEX", f"https://example.org/{path}"))
    project = tomllib.loads(resolver._project(VARIANTS["cu126"], given))
    assert project["project"]["dependencies"] == ["torch==2.14.1+cu126", "torchvision==0.29.1+cu126"]
    url = f"https://example.org/{path.rstrip('/')}/cu126"
    assert project["tool"]["uv"] == {
        "sources": {"torch": {"index": "torch"}, "torchvision": {"index": "torch"}},
        "index": [{"name": "torch", "url": url, "explicit": True}],
    }


def test_without_a_mirror_the_upstream_index_is_asked() -> None:
    project = tomllib.loads(resolver._project(VARIANTS["cpu"], Sources(None, ())))
    assert [index["url"] for index in project["tool"]["uv"]["index"]] == ["https://download.pytorch.org/whl/cpu"]


def test_a_variant_of_the_package_index_names_no_other() -> None:
    project = tomllib.loads(resolver._project(VARIANTS["cu130"], Sources(None, ())))
    assert project["project"]["dependencies"] == ["torch==2.14.1", "torchvision==0.29.1"]
    assert "tool" not in project


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cause: client error (Connect) cause: invalid peer certificate: Expired", "its TLS certificate has expired"),
        ("cause: invalid peer certificate: UnknownIssuer", "an authority that this host does not trust"),
        ("cause: dns error cause: failed to lookup address: Name or service not known", "cannot be resolved"),
        ("cause: operation timed out", "does not answer in time"),
    ],
)
def test_where_the_public_index_fails_it_is_not_the_requirements(text: str, said: str) -> None:
    error = resolver._explain(f"error: Failed to fetch\n  {text}", VARIANTS["cu130"], Sources(None, ()))
    assert said in str(error) and str(error).endswith("The locks are unchanged.")
    assert error.exit_code == 1
