"""The bench of builds: what it makes of its numbers, and how it reads the disk and what a push would upload."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from bench import build
from bench import build_figures as figures
from bench.build_figures import Floor, Image, Measured, Raw

from torchdock.errors import InputError

GB = 10**9


def raw() -> Raw:
    """Three repeats in which every promise holds, some of them just."""
    seconds = {
        "plain": {"cold": 200.0, "unchanged": 0.4, "added": 160.0, "moved": 160.0, "edited": 0.6},
        "uv": {"cold": 120.0, "unchanged": 0.4, "added": 60.0, "moved": 60.0, "edited": 0.6},
        "ours": {"cold": 110.0, "unchanged": 0.9, "added": 8.0, "moved": 8.0, "edited": 1.9},
    }
    found = Raw("cu130", {"cpus": "2 CPUs", "memory": "24 GiB", "engine": "Docker 26", "date": "2026-11-30"})
    for repeat, off in ((1, 0.0), (2, -0.1), (3, 50.0)):
        for builder, scenarios in seconds.items():
            for scenario, value in scenarios.items():
                lock = 4.0 if builder == "ours" and scenario in ("added", "moved") else None
                peak = (13 + repeat) * GB if scenario == "cold" else None
                upload = 20_000_000 if repeat == 1 else None
                found.builds.append(
                    Measured(builder, scenario, repeat, value + off, lock, 7 * GB + repeat, peak, upload)
                )
    for builder, size, spent in (("plain", 7.0, 1.5), ("uv", 6.9, 1.5), ("ours", 6.9, 1.5)):
        found.images.append(Image(builder, int(size * GB), (9.0, spent, 0.1)))
    found.floors += [Floor(70.0, 9.0), Floor(60.0, 20.0), Floor(70.0, 500.0)]
    return found


def verdicts(found: Raw) -> dict[str, bool | None]:
    return {ratio.name: ratio.good for ratio in figures.ratios(found)}


def changed(found: Raw, builder: str, scenario: str, **more: float) -> Raw:
    builds = [
        Measured(**{**vars(one), **(more if (one.builder, one.scenario) == (builder, scenario) else {})})
        for one in found.builds
    ]
    return Raw(found.variant, found.machine, builds, found.images, found.floors)


def test_medians_decide_and_of_the_disk_its_highest_peak() -> None:
    found = raw()
    assert found.median("plain", "cold") == 200.0
    assert found.median("plain", "added", "lock") is None
    assert found.median("ours", "added", "upload") == 20_000_000  # counted in one of the repeats
    assert found.floor == 80.0
    assert found.importing("ours") == 1.5
    values = {ratio.name: ratio.value for ratio in figures.ratios(found)}
    assert values["cold: torchdock / floor"] == pytest.approx(110 / 80)
    assert values["cold: disk at its peak / size of the image"] == pytest.approx(16 / 6.9)
    assert values["one tool added: torchdock / pip install"] == pytest.approx(0.05)
    assert values["one tool added: the same, `invoke lock` counted in"] == pytest.approx(0.075)


PROMISES = (
    ("one tool added: torchdock / pip install", "added", {"seconds": 8.1}),
    ("one tool added: to upload", "added", {"upload": 25_000_000}),
    ("cold: torchdock / pip install", "cold", {"seconds": 110.1}),
    ("cold: torchdock / floor", "cold", {"seconds": 112.1}),
    ("cold: disk at its peak / size of the image", "cold", {"peak": 15_190_000_000}),
    ("source edited: torchdock", "edited", {"seconds": 2.0}),
    ("no change: torchdock", "unchanged", {"seconds": 1.0}),
)


@pytest.mark.parametrize(("name", "scenario", "worse"), PROMISES, ids=[row[0] for row in PROMISES])
def test_each_promise_holds_up_to_its_limit_and_not_above(name: str, scenario: str, worse: dict[str, float]) -> None:
    good = changed(raw(), "ours", "cold", peak=15_180_000_000)
    assert verdicts(good)[name] is True
    assert verdicts(changed(good, "ours", scenario, **worse))[name] is False


def test_the_size_must_be_less_and_the_import_no_slower() -> None:
    found = raw()
    found.images = [Image(one.builder, 7 * GB, (1.5, 1.5)) for one in found.images]
    assert verdicts(found)["size: torchdock / pip install"] is False
    assert verdicts(found)["import torch: torchdock / pip install"] is True
    found.images[-1] = Image("ours", 7 * GB - 1, (1.51,))
    assert verdicts(found)["size: torchdock / pip install"] is True
    assert verdicts(found)["import torch: torchdock / pip install"] is False


def test_what_was_not_measured_is_neither_held_nor_broken() -> None:
    found = raw()
    found.builds = [one for one in found.builds if one.builder == "ours"]
    found.images, found.floors = [], []
    assert verdicts(found)["cold: torchdock / pip install"] is None
    assert verdicts(found)["cold: torchdock / floor"] is None
    assert verdicts(found)["no change: torchdock"] is True
    assert set(verdicts(Raw("cu130")).values()) == {None}


def test_the_numbers_survive_their_file() -> None:
    found = raw()
    assert Raw.of(json.loads(json.dumps(found.document()))) == found


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"variant": "cu130", "builds": [{"a": 1}]}'])
def test_a_file_without_numbers_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "numbers.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"has no numbers of this bench .* --json wrote"):
        build.read(path)


def test_the_tables_show_each_build_with_its_spread_and_lock() -> None:
    builds, images, floor, promised = figures.tables(raw())
    assert builds[0] == "Building cu130: 2 CPUs, 24 GiB, Docker 26, 2026-11-30"
    assert len(builds[2]) == 15
    ours = next(row for row in builds[2] if row[:2] == ("one tool added", "torchdock"))
    assert ours == ("one tool added", "torchdock", "8.00 s", "7.90 s to 58.0 s", "4.00 s", "7.0 GB", "-", "20.0 MB")
    assert images[2][-1] == ("torchdock", "6.9 GB", "1.50 s")
    assert floor[2] == [("70.0 s", "20.0 s", "80.0 s")]
    assert ("one tool added: torchdock / pip install", "0.050", "≤ 0.05", "holds") in promised[2]
    assert promised[2][6][3] == "holds" and promised[2][-3][3] == "DOES NOT HOLD"
    lone = figures.tables(Raw("cpu", builds=[Measured("uv", "cold", 1, 5.0)]))
    assert [title for title, _, _ in lone] == ["Building cpu: ", "What is promised"]
    assert figures.tables(Raw("cpu", floors=[Floor(1.0, 2.0)]))[0][0] == "The floor of a cold build"
    assert lone[0][2] == [("cold", "uv, as documented", "5.00 s", "", "", "-", "-", "-")]


def test_the_chart_has_a_panel_for_each_thing_that_was_measured() -> None:
    chart = figures.chart(raw())
    titles = [panel["title"] for panel in chart["panels"]]
    assert titles[:2] == ["Cold build", "One tool added"] and len(titles) == 8
    cold = chart["panels"][0]
    assert [(bar["builder"], bar["text"]) for bar in cold["bars"]] == [
        ("plain", "200 s"),
        ("uv", "120 s"),
        ("ours", "110 s"),
    ]
    assert cold["mark"] == {"value": 80.0, "text": "floor 80.0 s"}
    assert "mark" not in chart["panels"][1]
    assert chart["subtitle"] == "medians of 3 runs, less is better, each scale its own"
    alone = figures.chart(Raw("cu130", builds=[Measured("uv", "edited", 1, 0.5)]))
    assert [panel["title"] for panel in alone["panels"]] == ["Source edited"]
    assert alone["subtitle"] == "one run, less is better, each scale its own"


def test_the_chart_is_drawn_in_the_image_without_a_network() -> None:
    words = figures.drawing("torchdock/cu130:abc", "torchdock-bench-1-chart", "print(1)")
    assert words[:3] == ["run", "--rm", "--interactive"]
    assert words[words.index("--network") + 1] == "none"
    assert words[words.index("--name") + 1] == "torchdock-bench-1-chart"
    assert words[-4:] == ["torchdock/cu130:abc", "python", "-c", "print(1)"]


# --- what is built ---


def test_a_lock_becomes_requirements_as_people_write_them() -> None:
    entries = ["a==1 \\\n    --hash=sha256:ab\n", 'b==2 ; sys_platform == "linux" \\\n    --hash=sha256:cd\n']
    assert figures.requirements(entries) == 'a==1\nb==2 ; sys_platform == "linux"\n'


def test_a_tool_is_added_or_takes_the_place_of_its_line() -> None:
    assert figures.with_tool("a==1\nb==2\n", "c==3") == "a==1\nb==2\nc==3\n"
    assert figures.with_tool("a==1\nab==2\n", "a==3") == "ab==2\na==3\n"


def test_a_tool_is_moved_to_a_version_that_is_not_locked() -> None:
    assert figures.another(("a==1", "a==2"), {"a": "3"}) == "a==1"
    assert figures.another(("a==1", "a==2"), {"a": "1"}) == "a==2"
    assert figures.another(("a==1",), {}) == "a==1"


def test_what_is_changed_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    asked, lock, new = tmp_path / "asked", tmp_path / "locks" / "a.txt", tmp_path / "locks" / "b.txt"
    asked.write_text("x")
    lock.write_text("y")
    with build.restored([asked, tmp_path / "locks"]) as before:
        assert before == {asked: b"x", lock: b"y"}
        asked.write_text("changed")
        lock.unlink()
        new.write_text("made")
    assert (asked.read_text(), lock.read_text(), new.exists()) == ("x", "y", False)


@pytest.mark.parametrize("words", [["--only", "plain,pip"], ["--only", ""], ["--repeats", "0"]])
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build.parse(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_parts_are_measured_in_one_order() -> None:
    assert build.parse(["--only", "floor,plain"]).only == ["plain", "floor"]
    assert build.parse([]).only == list(build.WHAT)


# --- the disk ---

STATS = """\
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0
 254       1 vda1 5 0 40 1 7 0 99 1 0 1 1
 254       0 vda 68651 8464 3987570 10604 241545 208468 37437688 169245 0 20156 185405 52562
"""
MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
35 22 0:45 /@docker /var/lib/docker rw shared:3 - btrfs /dev/nvme0n1p2 rw
"""


def test_sectors_are_those_of_the_device_by_its_number() -> None:
    assert figures.sectors_written(STATS, (254, 0)) == 37437688
    assert figures.sectors_written(STATS, (254, 1)) == 99
    assert figures.sectors_written(STATS, (0, 45)) is None
    assert figures.sectors_written("", (254, 0)) is None


def test_a_file_system_without_a_disk_of_its_number_names_what_it_is_mounted_from() -> None:
    assert figures.mounted_from(MOUNTS, (0, 45)) == "/dev/nvme0n1p2"
    assert figures.mounted_from(MOUNTS, (0, 46)) == ""


def test_a_disk_that_cannot_be_seen_has_no_figures(tmp_path: Path) -> None:
    assert build.written(None) is None
    assert build.device(tmp_path / "nothing") is None
    with build.Peak(None) as peak:
        pass
    assert peak.bytes is None


def test_the_peak_is_seen_although_it_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = iter([100, 500, 300])
    seen = build.threading.Event()

    def look(_: build.Peak) -> int:
        value = next(used, 200)
        if value == 300:
            seen.set()
        return value

    monkeypatch.setattr(build, "SAMPLE", 0.001)
    monkeypatch.setattr(build.Peak, "_used", look)
    with build.Peak(tmp_path) as peak:
        assert seen.wait(10)
    assert peak.bytes == 400


# --- what a push uploads ---


def archive(members: Iterable[tuple[str, bytes]]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as target:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    file.seek(0)
    return file


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


ONE, TWO = b"one" * 5000, bytes(range(256)) * 90


@pytest.mark.parametrize("older", [False, True], ids=["oci", "older"])
def test_only_the_layers_that_are_new_are_counted(older: bool) -> None:
    names = ("abc/layer.tar", "def/layer.tar") if older else [f"blobs/sha256/{digest(one)[7:]}" for one in (ONE, TWO)]
    members = [("manifest.json", b"[]"), (names[0], ONE), (names[1], TWO)]
    size = len(zlib.compress(TWO, 6))
    assert build.upload(archive(members), {digest(TWO)}, {}) == size
    known = {digest(ONE): 7}
    assert build.upload(archive(members), {digest(ONE), digest(TWO)}, known) == size + 7
    assert known[digest(TWO)] == size


def test_layers_that_are_not_there_under_their_names_are_not_guessed() -> None:
    compressed = zlib.compress(ONE)
    members = [(f"blobs/sha256/{digest(compressed)[7:]}", compressed)]
    assert build.upload(archive(members), {digest(ONE)}, {}) is None


def test_a_layer_is_compressed_in_pieces() -> None:
    with build.ThreadPoolExecutor(2) as pool:
        found = build.compressed(io.BytesIO(TWO), pool, piece=1000)
    pieces = [TWO[start : start + 1000] for start in range(0, len(TWO), 1000)]
    assert found == (digest(TWO), sum(len(zlib.compress(one, 6)) for one in pieces))


def test_steps_of_other_images_are_known_by_what_they_name() -> None:
    theirs = (build.BENCH / "plain.Dockerfile", build.BENCH / "uv.Dockerfile")
    for path in theirs:
        text = path.read_text()
        stages = [line for line in text.splitlines() if line.startswith("FROM ")]
        assert stages and all(build.FOREIGN.search(line.partition(" AS ")[2]) for line in stages)
        steps = text.split("\nRUN ")[1:]
        assert steps and all(". /run/host.sh" in step.partition("\n\n")[0] for step in steps)
    assert not build.FOREIGN.search('mount / from exec /bin/sh -c sh /run/wheels.sh tools "$VARIANT"')
