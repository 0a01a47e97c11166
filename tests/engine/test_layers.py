"""The scripts that layers are made with (docker/layers), in a container as a build has them."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

from tests import indexes
from tests.engine.conftest import ROOT

LAYERS = ROOT / "docker" / "layers"


def in_container(image: dict[str, Any], script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script of sh as root, with the layers' scripts where a build mounts them."""
    words = ["docker", "run", "--rm", "-i", "--user", "0", "--entrypoint", "sh", "--tmpfs", "/tmp", "-w", "/"]
    words += ["-e", "SOURCE_DATE_EPOCH=1791158400", *options]
    for path in LAYERS.iterdir():
        words += ["-v", f"{path}:/run/{path.name}:ro"]
    return subprocess.run([*words, image["image"], "-eu"], input=script, capture_output=True, text=True, timeout=120)


def test_what_is_packed_is_laid_on_another_stage_to_the_bit(image: dict[str, Any]) -> None:
    """Owners, modes, times, links, capabilities; and of what is laid on nothing but that is changed."""
    done = in_container(
        image,
        """
        shown() { # all that a layer has of these files
            find /srv /opt/kept -printf '%y %m %U:%G %T@ %n %l %s %p\\n' | grep -v '^d.* /srv$' | sort -k 8
            find /srv -type f -print0 | sort -z | xargs -0 sha256sum
            python3 -c 'import os; print(os.getxattr("/srv/able", "security.capability"))'
        }
        mkdir -p /srv/folder/empty /srv/sticky /opt/kept
        for number in $(seq 50); do echo $number >/srv/folder/$number; done
        echo two >/srv/one; ln /srv/one /srv/folder/two; ln /srv/one /srv/three
        echo set >/srv/setuid; chown 12:34 /srv/setuid; chmod 4751 /srv/setuid
        echo able >/srv/able
        capability=0100000200200000000000000000000000000000
        python3 -c "import os; os.setxattr('/srv/able', 'security.capability', bytes.fromhex('$capability'))"
        ln -s nowhere '/srv/a link'; touch '/srv/a
        line'; ln -s folder /srv/way
        echo long >/srv/folder/$(printf '%0200d' 7)
        chmod 1777 /srv/sticky; chown 7:8 /srv/folder/empty
        echo kept >/opt/kept/file
        find /srv -mindepth 1 -exec touch -h -d @1000000000 {} +
        find /srv -mindepth 1 -print0 | sed -z 's|^/||' >/written
        shown >/tmp/before
        sh /run/pack.sh
        sha256sum /packed/* >/tmp/packed
        rm -rf /packed; chmod -R u+r /srv; sh /run/pack.sh # read and changed since, as by another build
        sha256sum --quiet --check /tmp/packed
        rm -rf /srv/*; mkdir /srv/folder; echo old >/srv/folder/1; ln -s old /srv/one # another stage has others
        sed -i 's/^lp:x:7:/lp:x:77:/; s/^mail:x:8:/mail:x:88:/' /etc/passwd /etc/group # and other users
        sh /run/merge.sh system
        sed -i 's/^lp:x:77:/lp:x:7:/; s/^mail:x:88:/mail:x:8:/' /etc/passwd /etc/group
        touch -d "@$SOURCE_DATE_EPOCH" /etc
        shown >/tmp/after
        diff /tmp/before /tmp/after
        stat -c %Y / /etc /root /run | sort -u
        """,
    )
    assert (done.returncode, done.stdout) == (0, "1791158400\n"), done.stdout + done.stderr


def test_a_broken_archive_ends_the_step(image: dict[str, Any]) -> None:
    script = "mkdir /packed; tar -cf /packed/folders -T /dev/null; cp /packed/folders /packed/files-aa\n"
    assert in_container(image, f"{script}sh /run/merge.sh system").returncode == 0
    assert in_container(image, f"{script}echo x >/packed/files-ab\nsh /run/merge.sh system").returncode != 0


LOCK = "{0}==1.0 --hash=sha256:{1}\n"
DOWNLOAD = """{before}
    mkdir /run/secrets
    printf %s '{index}' >/run/secrets/index; printf %s '{netrc}' >/run/secrets/netrc
    . /run/common.sh
    printf %s '{lock}' >/tmp/lock.txt
    download torch-wheels /tmp/lock.txt /wheels
    ls /wheels
"""


def download(image: dict[str, Any], **said: str) -> subprocess.CompletedProcess[str]:
    """The wheels of a lock, from an index on this host."""
    return in_container(image, DOWNLOAD.format(**{"netrc": "", "before": "", **said}), "--network=host")


def test_wheels_come_by_apts_downloader(image: dict[str, Any]) -> None:
    with indexes.serve() as index:
        lock = "".join(LOCK.format(name, index.wheel("simple", name, "1.0")) for name in ("alpha", "beta"))
        done = download(image, index=index.url("simple"), lock=lock)
    files = [f"{name}-1.0-py3-none-any.whl" for name in ("alpha", "beta")]
    assert (done.returncode, done.stdout.split("\n")[-3:-1]) == (0, files), done.stderr
    assert sorted(index.asked) == [
        "/simple/alpha/",
        f"/simple/alpha/{files[0]}",
        "/simple/beta/",
        f"/simple/beta/{files[1]}",
    ]
    assert {agent.partition("/")[0] for agent in index.agents} == {"Debian APT-HTTP"}


def test_what_comes_in_is_counted_meanwhile(image: dict[str, Any]) -> None:
    with indexes.serve() as index:
        lock = LOCK.format("alpha", index.wheel("simple", "alpha", "1.0"))
        index.open.clear()
        later = threading.Timer(1.5, index.open.set)  # two looks
        later.start()
        done = download(image, index=index.url("simple"), lock=lock)
        later.join()
    assert done.returncode == 0, done.stderr
    assert "torchdock: received: torch-wheels " in done.stdout
    assert {agent.partition("/")[0] for agent in index.agents} == {"Debian APT-HTTP"}


def test_what_it_does_not_get_is_for_pip(image: dict[str, Any]) -> None:
    """An index by plain HTTP that wants a login: apt sends none there."""
    with indexes.serve(token="anna:hunter2") as index:
        lock = LOCK.format("alpha", index.wheel("simple", "alpha", "1.0"))
        done = download(
            image, index=index.url("simple"), lock=lock, netrc="machine 127.0.0.1 login anna password hunter2"
        )
    assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "alpha-1.0-py3-none-any.whl"), done.stderr
    assert index.agents[0].startswith("Debian APT-HTTP/") and index.agents[-1].startswith("pip/")


def test_other_bytes_than_the_locked_are_refused(image: dict[str, Any]) -> None:
    with indexes.serve() as index:
        file, content = indexes.stand_in_wheel("alpha", "1.0")
        index.publish("simple", file, content=content, sha256="1" * 64)
        done = download(image, index=index.url("simple"), lock=LOCK.format("alpha", "1" * 64))
    assert done.returncode != 0
    assert "HASHES" in done.stderr and "alpha" in done.stderr
    assert file not in done.stdout


def test_whom_tls_trusts_where_the_bundle_is_not_made_yet(image: dict[str, Any], tmp_path: Path) -> None:
    """The system layer makes it, and its certificates are there before."""
    authority, certificate = indexes.certificates(tmp_path)
    with indexes.serve(certificate=certificate) as index:
        lock = LOCK.format("alpha", index.wheel("simple", "alpha", "1.0"))
        before = "rm /etc/ssl/certs/ca-certificates.crt\n"
        refused = download(image, index=index.url("simple"), lock=lock, before=before)
        before += f"cat >/usr/share/ca-certificates/mozilla/test.crt <<'END'\n{authority.read_text()}END\n"
        index.agents.clear()
        done = download(image, index=index.url("simple"), lock=lock, before=before)
    assert refused.returncode != 0 and "CERTIFICATE_VERIFY_FAILED" in refused.stderr, refused.stderr
    assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "alpha-1.0-py3-none-any.whl"), done.stderr
    assert {agent.partition("/")[0] for agent in index.agents} == {"Debian APT-HTTP"}
