"""What nobody should read is in no report: secrets by their variable's name, and who comes in by a URL."""

from __future__ import annotations

import pytest

from torchdock import launch
from torchdock.inside import discretion


def test_the_host_and_the_image_have_one_rule() -> None:
    """The image has no launch.py: the rule stands twice."""
    assert discretion.SECRET_NAME == launch.SECRET_NAME


def test_secrets_of_an_environment() -> None:
    given = {
        "WANDB_API_KEY": "0123456789abcdef",
        "KEYBOARD": "a common keyboard",
        "HF_TOKEN": "short",
        "HTTPS_PROXY": "http://anna:correct-horse@proxy:3128",
        "UV_INDEX": "https://token-of-hers@index/simple",
        "PATH": "/usr/bin",
    }
    assert discretion.secrets(given) == ["0123456789abcdef", "correct-horse", "token-of-hers"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("key=s3cr<t&\"'x!", "key=****"),
        ('{"key": "s3cr<t&\\"\'x!"}', '{"key": "****"}'),
        ("<x>s3cr&lt;t&amp;\"'x!</x>", "<x>****</x>"),
        ("http://anna:a@proxy and ftp://b@c", "http://****@proxy and ftp://****@c"),
        ("anna@example.org, 'http://x', a@b", "anna@example.org, 'http://x', a@b"),
    ],
)
def test_redact(text: str, clean: str) -> None:
    assert discretion.redact(text, ["s3cr<t&\"'x!"]) == clean


def test_names_of_fields_stay() -> None:
    value = {"hidden": ["hidden", 1, None, ("hidden",)]}
    assert discretion.everywhere(value, lambda text: "****") == {"hidden": ["****", 1, None, ["****"]]}
