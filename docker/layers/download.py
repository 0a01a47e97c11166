"""Downloads the wheels of a lock with apt's downloader: the same bytes in a quarter of pip's time.

What it cannot get (an index that gives no hashes, or wants a login by its address) is left to pip, which says why.

Usage: python3 download.py LOCK FOLDER REST APT-OPTION…    (pip is on the path of modules: what fits here, it knows)
    FOLDER  where the wheels go;  REST  a file: the entries of the lock whose wheels are not there afterwards
"""

import hashlib
import html
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from pip._internal.models.index import PyPI
from pip._vendor.packaging.markers import Marker
from pip._vendor.packaging.tags import sys_tags
from pip._vendor.packaging.utils import InvalidWheelFilename, parse_wheel_filename

ENTRY = re.compile(r"([A-Za-z0-9._-]+)==[^\s;]+(?:\s*;\s*(.*?))?\s+--hash=")


def entries(lock):
    """Name, marker, SHA-256 digests and text of each pin."""
    for line in re.sub(r"\\\n\s*", " ", lock).splitlines():
        if found := ENTRY.match(line):
            name = re.sub(r"[-_.]+", "-", found[1]).lower()
            yield name, found[2], set(re.findall(r"--hash=sha256:([0-9a-f]{64})", line)), line + "\n"
        elif line.strip() and not line.startswith("#"):
            raise SystemExit(f"not a pin: {line}")  # all is for pip


def fitting(page, address, locked, ranks):
    """File name, URL and digest of the locked wheel on a page of an index (PEP 503) that fits here best."""
    found = []
    for href in re.findall(r"""<a\s[^>]*?\bhref\s*=\s*["']([^"']+)["']""", page):
        digest = href.rpartition("#sha256=")[2]
        if digest not in locked:  # first: some pages have ten thousand files
            continue
        url = urldefrag(urljoin(address, html.unescape(href))).url
        file = unquote(urlsplit(url).path).rpartition("/")[2]
        if file.endswith(".whl"):
            try:
                _, _, build, tags = parse_wheel_filename(file)
            except InvalidWheelFilename:
                continue
            found += [(-ranks[tag], build, file, url, digest) for tag in tags if tag in ranks]
    return max(found)[2:] if found else None


def fetch_all(wanted, options):
    """The first one alone: a server that does not answer is not waited for a hundred times."""
    first, *others = wanted
    return fetch([first], options) and (not others or fetch(others, options))


def fetch(wanted, options):
    """URL, target and SHA-256 (or none) of each file; whether all came as they should."""
    words = [word for url, target, digest in wanted for word in (url, str(target), digest and f"SHA256:{digest}")]
    once = ["-o", "Acquire::Retries=0"]  # what fails is tried again by pip
    return subprocess.run(["/usr/lib/apt/apt-helper", *options, *once, "download-file", *words]).returncode == 0


def tells_secrets(index):
    """Whether an address may hold a token, as `hide` sees it: every user of a host can read a command."""
    parts = urlsplit(index)
    plain = re.fullmatch(r"(/(simple|pypi|whl|root|debian|index|api|cpu|cu\d+))*", parts.path)
    return "@" in parts.netloc or (bool(os.environ.get("INDEX_IS_SECRET")) and plain is None)


def main(lock, folder, rest, *options):
    index = (os.environ.get("PIP_INDEX_URL") or PyPI.simple_url).rstrip("/")
    pins = [pin for pin in entries(Path(lock).read_text()) if pin[1] is None or Marker(pin[1]).evaluate()]
    files = {}
    if pins and not tells_secrets(index):
        pages = {name: (f"{index}/{name}/", Path(f"{rest}-{name}"), "") for name, *_ in pins}
        fetch_all(pages.values(), options)
        ranks = {tag: rank for rank, tag in reversed([*enumerate(sys_tags())])}
        for name, _, locked, _ in pins:
            address, page, _ = pages[name]
            best = fitting(page.read_text(), address, locked, ranks) if page.exists() else None
            if best is not None:
                file, url, digest = best
                files[name] = (url, Path(folder, file), digest)
        if files and not fetch_all(files.values(), options):
            for _, target, digest in files.values():
                if target.exists():
                    with target.open("rb") as content:
                        if hashlib.file_digest(content, "sha256").hexdigest() != digest:
                            target.unlink()
    absent = [text for name, *_, text in pins if name not in files or not files[name][1].exists()]
    Path(rest).write_text("".join(absent))


if __name__ == "__main__":
    main(*sys.argv[1:])
