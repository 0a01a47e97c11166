"""What nobody should read in a report: which variables hold secrets, and texts without them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

# As the host's launches have it (torchdock.launch), which is not in the image. By word, so that KEYBOARD is none.
SECRET_NAME = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL"
    r"|(^|_)((API|ACCESS|AUTH|BEARER|BOT|ID|REFRESH|SESSION)?TOKENS?|(API|ACCESS|PRIVATE)?KEYS?)(_|\d|$)"
    # by what stands before it: BYPASS and COMPASS are none
    r"|(^|_)(ADMIN|DB|FTP|LDAP|MAIL|MYSQL|PG|REDIS|ROOT|SMTP|SSH|SUDO|USER)?PASS(_|\d|$)"
    r"|(^|_)(PW|AUTH|COOKIES?|PAT|DSN|BEARER|JWTS?|WEBHOOKS?)(_|\d|$)|_PWD$|(?-i:[a-z](Token|Key|Pass))$",
    re.ASCII | re.IGNORECASE,
)
# Who comes in: whatever it is, and however short.
USER_OF_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
# A shorter value may be a common word, or a number, that stands everywhere.
SHORTEST = 8
COVER = "****"


def secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the secrets of an environment, the longest first: values by their variable's name, passwords of URLs."""
    found = {value for name, value in environment.items() if SECRET_NAME.search(name)}
    for value in environment.values():
        found |= {match[0].rpartition(":")[2] for match in USER_OF_URL.finditer(value)}
    return sorted((word for word in found if len(word) >= SHORTEST), key=lambda word: (-len(word), word))


def redact(text: str, words: Sequence[str]) -> str:
    """Return a text without these words, as they stand in it, in JSON, in XML or as Python prints them.

    Nor has it the user and password of any URL.
    """
    for word in words:
        for spelled in {word, json.dumps(word)[1:-1], escape(word), escape(word, {'"': "&quot;"}), repr(word)[1:-1]}:
            text = text.replace(spelled, COVER)
    return USER_OF_URL.sub(COVER, text)


def everywhere(value: Any, clean: Callable[[str], str]) -> Any:
    """Return a JSON value with each of its texts cleaned; the names of its fields stay."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {name: everywhere(one, clean) for name, one in value.items()}
    return [everywhere(one, clean) for one in value] if isinstance(value, (list, tuple)) else value
