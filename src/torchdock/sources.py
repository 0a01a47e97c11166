"""Where bits come from on this host: the CA bundle and the proxies, and whether each source can be reached.

Values found here are secrets (index URLs and proxies carry tokens): they reach a build as BuildKit secrets or as
predefined proxy arguments *by name*, and are never printed.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Sources:
    """What a build or a launch is given of this host.

    Attributes:
        ca: the CA bundle (PEM), or None where the host has none.
        proxies: names of the proxy variables that are set; the values stay in the environment.
    """

    ca: Path | None
    proxies: tuple[str, ...]


class CaError(Exception):
    """A variable names a CA bundle that is missing or holds no certificate; the text says which and what to do."""


def ca_bundle(env: Mapping[str, str], system: tuple[str, ...] = SYSTEM_BUNDLES) -> Path | None:
    """The CA bundle that this host trusts: the first variable that is set, else the system's own bundle.

    Raises:
        CaError: a variable is set and its file is missing or is no PEM bundle.
    """
    for name in CA_VARIABLES:
        value = env.get(name)
        if not value:
            continue
        path = Path(value)
        try:
            ssl.create_default_context(cafile=value)
        except (OSError, ssl.SSLError) as error:
            raise CaError(
                f"{name} names {value}, which is not a readable bundle of CA certificates ({error}). "
                f"Correct {name} or unset it, and the system's own bundle is used."
            ) from None
        return path
    return next((Path(path) for path in system if Path(path).is_file()), None)


def gather(env: Mapping[str, str] | None = None) -> Sources:
    """The facts of this host's environment; reads files, changes nothing, reaches out to nobody.

    Raises:
        CaError: see :func:`ca_bundle`.
    """
    env = os.environ if env is None else env
    spellings = [spelling for name in PROXY_VARIABLES for spelling in (name, name.lower())]
    return Sources(ca=ca_bundle(env), proxies=tuple(name for name in spellings if env.get(name)))
