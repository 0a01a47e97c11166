"""Errors that a person is meant to read: one paragraph that ends with the remedy, and its exit code."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path


class TorchdockError(Exception):
    """Something failed; exit code 1. The text is one paragraph that ends with the remedy."""

    exit_code = 1


class InputError(TorchdockError):
    """Wrong input, nothing was changed; exit code 2."""

    exit_code = 2


class EngineError(TorchdockError):
    """No container engine that can be used; exit code 69 (EX_UNAVAILABLE of sysexits.h)."""

    exit_code = 69


class BusyError(TorchdockError):
    """Every GPU that would do is in use, try later; exit code 75 (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


def read_text(path: Path, origin: str) -> str:
    """The text of a file of the repository.

    Raises:
        InputError: it is missing or no text; names it as ``origin``.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"{origin} cannot be read ({why}). `git checkout {origin}` restores it.") from None


def did_you_mean(word: str, known: list[str]) -> str:
    """``" Did you mean 'cu130'?"`` where one known word is close, else an empty string."""
    close = get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
