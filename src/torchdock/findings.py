"""What doctor reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        group: ``engine``, ``disk``, ``sources``, ``gpus`` or ``container``.
        subject: what was examined, in a word or two.
        severity: ``good``, ``note`` (works, with a fallback), or ``error``.
        seen: what was seen, and what it means.
        remedy: what to do; empty for a good finding.
    """

    group: str
    subject: str
    severity: str
    seen: str
    remedy: str = ""
