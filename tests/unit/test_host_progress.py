"""How a build goes: BuildKit's output, the bar, and what is said beforehand."""

import re
from itertools import pairwise
from typing import Any

import pytest
from given import ROOT, Screen

from torchdock.progress import STAGES, BuildProgress, Expected, Forecast, Meter, forecast, is_news, record, recorded
from torchdock.stages import BuildStep

GB, MB = 10**9, 10**6

# --- what BuildKit says ---

COLD = """\
#0 building with "default" instance using docker driver

#1 [internal] load build definition from cuda.Dockerfile
#1 transferring dockerfile: 5.10kB 0.0s done
#1 DONE 0.0s

#4 [system 1/2] FROM docker.io/torchdock/base:trixie-2b0d8127fb09
#4 DONE 0.0s

#4 [system 1/2] FROM docker.io/torchdock/base:trixie-2b0d8127fb09
#4 CACHED

#5 [system 2/2] RUN --mount=type=secret,id=ca     sh /run/system.sh /run/packages.txt
#5 2.114 debconf: delaying package configuration
#5 DONE 24.6s

#6 [uv 1/1] RUN --mount=type=bind,source=docker/locks/uv.txt
#6 DONE 5.1s

#7 [cuda 1/1] RUN sh /run/wheels.sh /run/lock.txt
#7 ...

#8 [auth] sharing credentials
#8 DONE 0.1s

#7 [cuda 1/1] RUN sh /run/wheels.sh /run/lock.txt
#7 DONE 27.3s

#9 [torch 1/1] RUN sh /run/wheels.sh /run/lock.txt
#9 CACHED

#10 [environment 1/2] RUN sh /run/clone/docker/layers/suite.sh /run/clone cu130
#10 DONE 0.4s

#11 [environment 2/2] WORKDIR /workspace
#11 DONE 0.3s

#12 exporting to image
#12 exporting layers 11.2s done
#12 DONE 11.3s
"""
FAILED = """\
#6 [system 2/2] RUN echo packages
#6 0.714 packages
#6 DONE 0.8s

#9 [tools 1/1] RUN sh /run/wheels.sh /run/lock.txt
#9 0.300 something unrelated

#7 [torch 1/1] RUN sh /run/wheels.sh /run/lock.txt
#7 0.702 error: Failed to download `triton==3.8.0`
#7 0.702   cause: Hash mismatch for `triton==3.8.0`
#7 ERROR: process "/bin/sh -c sh /run/wheels.sh /run/lock.txt" did not complete successfully: exit code: 1

#9 [tools 1/1] RUN sh /run/wheels.sh /run/lock.txt
#9 CANCELED
------
 > [torch 1/1] RUN sh /run/wheels.sh /run/lock.txt:
0.702 error: Failed to download `triton==3.8.0`
------
cuda.Dockerfile:47
ERROR: failed to solve: process "/bin/sh -c sh /run/wheels.sh /run/lock.txt" did not complete successfully: exit code: 1
"""


def read(text: str, screen: "Screen | None" = None) -> BuildProgress:
    progress = BuildProgress(screen)
    for line in text.splitlines():
        progress.line(line)
    return progress


def test_each_stage_is_finished_once_with_the_time_of_all_its_steps() -> None:
    assert read(COLD).finished == [
        ("system", "25 s"),
        ("uv", "5 s"),
        ("cuda", "27 s"),
        ("torch", "cached"),
        ("environment", "1 s"),
    ]


def test_what_runs_is_shown_in_words() -> None:
    screen = Screen()
    read(COLD, screen)
    assert screen.finished[0] == "Debian packages: 25 s"
    assert screen.finished[3] == "torch and torchvision: cached"
    assert screen.doing[0] == "Debian packages"
    assert screen.doing[-1] == "writing the image"


def test_what_the_failed_step_printed_is_kept_and_no_other() -> None:
    progress = read(FAILED)
    assert progress.finished == [("system", "1 s")]
    assert progress.output_of_failure()[:2] == [
        "error: Failed to download `triton==3.8.0`",
        "  cause: Hash mismatch for `triton==3.8.0`",
    ]
    assert not any("unrelated" in line for line in progress.output_of_failure())


def test_where_no_step_failed_what_buildkit_said_is_kept() -> None:
    progress = read("#1 [internal] load build definition\n\nERROR: Cannot connect to the Docker daemon\n")
    assert progress.output_of_failure() == ["ERROR: Cannot connect to the Docker daemon"]


def test_every_stage_that_runs_something_has_words() -> None:
    files = "".join(path.read_text() for path in (ROOT / "docker").glob("c*.Dockerfile"))
    files += (ROOT / "docker/workspace.Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", files, re.M | re.S)
    runs = {name for name, body in stages if re.search("^RUN", body, re.M)}
    assert {"cuda", "torch", "tools", "environment", "workspace"} <= runs <= set(STAGES)


# --- the bar ---

# As BuildKit 0.12 prints two stages that run at once, and then both laid together; the second one's counters come late.
PARALLEL = """\
#4 [python 1/2] FROM docker.io/torchdock/base:trixie-2b0d8127fb09
#4 CACHED

#5 [python 2/2] RUN sh /run/debian.sh python
#5 1.000 torchdock: received: python 30000000
#5 DONE 3.1s

#6 [cuda 1/1] RUN sh /run/wheels.sh cuda
#6 0.317 torchdock: received: cuda 200000000
#6 0.831 torchdock: received: cuda 900000000
#6 1.330 torchdock: received: cuda 1900000000
#6 ...

#7 [system 1/1] RUN sh /run/debian.sh system
#7 0.373 torchdock: source: Debian packages: 144 from the mirror, 0 from the snapshot
#7 0.874 torchdock: received: system 20000000
#7 1.379 torchdock: received: system 71000000
#7 DONE 9.0s

#6 [cuda 1/1] RUN sh /run/wheels.sh cuda
#6 9.117 torchdock: received: cuda 2300000000
#6 9.591 torchdock: received: cuda 2300000000
#6 DONE 12.9s

#8 [torch 1/1] RUN sh /run/wheels.sh torch
#8 CACHED

#9 [merged 1/1] RUN sh /run/merge.sh system
#9 DONE 1.0s

#10 [configured 1/1] WORKDIR /workspace
#10 DONE 0.1s

#12 exporting to image
#12 exporting layers
#12 exporting layers 6.3s done
#12 writing image sha256:b1e8 done
#12 DONE 6.3s
"""
SIZES = {  # bytes: to download, to write
    "python 2/2": (40 * MB, 100 * MB),
    "uv 1/1": (20 * MB, 0),
    "cuda 1/1": (2100 * MB, 3400 * MB),
    "system 1/1": (60 * MB, 0),
    "torch 1/1": (600 * MB, 2000 * MB),
    "merged 1/1": (0, 400 * MB),
}


def expected(*cached: str, **unknown: Any) -> Forecast:
    """A build of these steps; a stage by name replaces what is expected of it."""
    steps = []
    for label, (download, write) in SIZES.items():
        step = BuildStep(label, f"digest of {label}", layer=label not in ("uv 1/1", "system 1/1"))
        download, write = unknown.get(step.stage, (download, write))
        steps.append(Expected(step, step.stage in cached, download, write))
    return Forecast(tuple(steps), unknown.get("image"))


def fractions(text: str, planned: Forecast, **more: Any) -> "list[float | None]":
    """The bar after each line, and at the end."""
    screen = Screen()
    progress = BuildProgress(screen, planned, **more)
    for line in text.splitlines():
        progress.line(line)
    progress.finish()
    return [fraction for fraction, _ in screen.measured]


@pytest.mark.parametrize(
    "planned",
    [
        pytest.param(expected(), id="all is known"),
        pytest.param(expected("python", "cuda", "torch"), id="what was thought to be cached runs"),
        pytest.param(expected(system=(None, 0), uv=(None, 0)), id="downloads that nobody knows"),
        pytest.param(expected(cuda=(2100 * MB, None), image=6600 * MB), id="a layer that nobody knows"),
        pytest.param(
            expected(
                "uv", "torch", **{name: (size, 0) for name, size in (("python", MB), ("cuda", GB), ("merged", 0))}
            ),
            id="layers of no size",
        ),
        pytest.param(expected(cuda=(1 * MB, 3400 * MB)), id="more is received than the lock says"),
    ],
)
def test_the_bar_never_goes_back_and_is_full_at_the_end_alone(planned: Forecast) -> None:
    seen = [fraction or 0.0 for fraction in fractions(PARALLEL, planned)]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0 and max(seen[:-1]) <= 0.99
    assert len({round(fraction, 3) for fraction in seen}) > 5


def measured(text: str, planned: Forecast, **more: Any) -> BuildProgress:
    progress = BuildProgress(None, planned, **more)
    for line in text.splitlines():
        progress.line(line)
    return progress


def until(text: str, line: str) -> str:
    """The output up to and with this line."""
    return text[: text.index(line) + len(line)]


def share(part: float) -> float:
    """What a step of CUDA has done, of its download and of its layer, in bytes."""
    return part * (2100 + 0.85 * 3400) * MB


def test_the_bar_counts_what_is_received_and_what_is_written() -> None:
    begun = until(PARALLEL, "received: cuda 900000000")
    meter = measured(begun, expected()).meter
    assert meter.total == sum(download + write for download, write in SIZES.values())
    assert meter.done == 40 * MB + int(0.85 * 100 * MB) + int(share(900 / 2100))
    assert meter.fraction == meter.done / meter.total


def test_of_a_step_that_runs_a_rest_is_left_for_its_end() -> None:
    text = until(PARALLEL, "#6 9.591 torchdock: received: cuda 2300000000")
    before = measured(until(PARALLEL, "#7 DONE 9.0s"), expected()).meter.done
    ended = 140 * MB - int(0.15 * 100 * MB) + 60 * MB
    assert before == ended + int(share(1900 / 2100))
    assert measured(text, expected()).meter.done == ended + int(share(0.97))


def test_the_bar_moves_with_what_is_received_and_never_by_a_layer_at_once() -> None:
    counters = "".join(f"#6 0.3 torchdock: received: cuda {count * 10 * MB}\n" for count in range(1, 211))
    cached = set(STAGES) - {"cuda"}
    seen = fractions(f"#6 [cuda 1/1] RUN x\n{counters}#6 DONE 30.0s", expected(*cached))
    steps = [(after or 0) - (before or 0) for before, after in pairwise(seen)]
    assert max(steps[:-1]) < 0.03  # the last is the end of the build, all that the export writes
    assert sum(1 for moved in steps if moved > 0) > 200


def test_a_step_whose_download_nobody_knows_has_done_nothing_before_its_end() -> None:
    text = until(PARALLEL, "received: cuda 900000000")
    meter = measured(text, expected(cuda=(None, 3400 * MB))).meter
    assert meter.done == 125 * MB


def test_when_the_export_has_written_the_layers_all_of_them_are_done() -> None:
    before, after = (
        measured(until(PARALLEL, line), expected()).meter for line in ("#12 exporting layers", "6.3s done")
    )
    assert after.done == after.total == before.total
    assert before.total - before.done == int(0.15 * 3900 * MB)
    assert (after.fraction, measured(PARALLEL, expected()).meter.fraction) == (0.99, 0.99)


def test_a_step_that_is_cached_is_taken_out() -> None:
    text = until(PARALLEL, "#8 CACHED")
    with_torch, without = (measured(part, expected()).meter for part in (text.removesuffix("#8 CACHED"), text))
    assert with_torch.total - without.total == 2600 * MB
    assert with_torch.done == without.done


def test_a_step_that_was_thought_to_be_cached_and_runs_comes_in() -> None:
    text = until(PARALLEL, "received: cuda 200000000")
    meter = measured(text, expected("cuda")).meter
    assert meter.total == sum(download + write for download, write in SIZES.values())
    assert (meter.fraction or 0) < 0.1


def test_at_the_export_what_never_ran_is_no_part_of_it() -> None:
    meter = measured(until(PARALLEL, "#12 exporting to image"), expected()).meter
    ran = [SIZES[label] for label in ("python 2/2", "cuda 1/1", "system 1/1", "merged 1/1")]  # uv and torch did not
    assert meter.total == sum(download + write for download, write in ran)
    assert meter.fraction == pytest.approx(1 - 0.15 * sum(write for _, write in ran) / meter.total)


def test_a_second_command_of_a_step_counts_on() -> None:
    text = until(PARALLEL, "received: system 20000000") + "\n#7 0.9 torchdock: received: system 5000000"
    assert measured(text, expected()).meter.done - measured(
        until(PARALLEL, "#7 [system 1/1] RUN sh /run/debian.sh system"), expected()
    ).meter.done == (25 * MB)


def test_an_image_of_known_size_is_shared_out_over_its_downloads() -> None:
    unknown = {"cuda": (2000 * MB, None), "torch": (500 * MB, None), "image": 6600 * MB}
    meter = measured(
        until(PARALLEL, "#6 DONE 12.9s"), expected("merged", **unknown)
    ).meter  # 400 MB of it are there, 100 are Python
    assert meter.total == (40 + 20 + 2000 + 60 + 500) * MB + 6200 * MB
    assert meter.done == (125 + 60 + 2000 + int(0.85 * 4880)) * MB


def test_counters_of_a_whole_host_are_not_read() -> None:
    text = until(PARALLEL, "received: cuda 900000000")
    assert measured(text, expected(), counts=False).meter.done == 140 * MB - int(0.15 * 100 * MB)


def test_a_bar_with_nothing_to_measure_by_is_none() -> None:
    seen = fractions(PARALLEL, Forecast())
    assert set(seen[:-1]) == {None} and seen[-1] == 1.0


def test_a_build_that_fails_is_never_full() -> None:
    failed = until(PARALLEL, "received: cuda 2300000000") + "\n#6 9.7 error: no\n#6 ERROR: exit code: 1\n"
    progress = measured(failed, expected("torch", "merged"))
    assert 0.8 < (progress.meter.fraction or 0) < 0.9
    assert progress.output_of_failure() == ["error: no", "exit code: 1"]


def test_what_runs_at_once_is_shown_together_and_counters_to_nobody() -> None:
    screen = Screen()
    progress = BuildProgress(screen, expected())
    for line in PARALLEL.splitlines():
        progress.line(line)
    assert "CUDA libraries, Debian packages" in screen.doing
    assert screen.doing[-1] == "writing the image"
    assert progress.notes == ["Debian packages: 144 from the mirror, 0 from the snapshot"]
    assert not [text for text in [*screen.doing, *screen.finished, *progress.notes] if "received" in text]
    assert "4.6 of 8.7 GB" in {text for _, text in screen.measured}


def test_counters_are_not_in_what_a_failed_step_printed() -> None:
    text = "#6 [cuda 1/1] RUN x\n#6 0.3 torchdock: received: cuda 5\n#6 0.4 error: no\n#6 ERROR: exit code: 1\n"
    assert read(text).output_of_failure() == ["error: no", "exit code: 1"]


@pytest.mark.parametrize(
    ("line", "news"),
    [
        ("#6 0.317 torchdock: received: cuda 200000000\n", False),
        ("#6 torchdock: received: cuda 0\n", False),
        ("#6 0.317 torchdock: source: received: cuda 2\n", True),
        ("#6 0.317 error: torchdock: received: cuda 2\n", True),
        ("\n", True),
    ],
)
def test_the_log_is_spared_counters_alone(line: str, news: bool) -> None:
    assert is_news(line) is news


# --- beforehand ---


def test_a_cold_build_is_told_with_its_parts_the_largest_first() -> None:
    assert expected().text == ("2.8 GB to download (CUDA 2.1, torch 0.6, Debian 0.1, uv below 0.1), 5.9 GB to write")


def test_what_is_cached_counts_nothing() -> None:
    assert expected("python", "uv", "system", "cuda").text == "600 MB to download (torch), 2.4 GB to write"
    nothing = expected(*STAGES)
    assert (nothing.text, nothing.download_bytes, nothing.write_bytes) == (
        "nothing to download, nothing to write",
        0,
        0,
    )


def test_what_nobody_knows_is_said_or_left_out_and_never_made_up() -> None:
    some = expected(uv=(None, 0), system=(None, 0))
    assert some.text.startswith("at least 2.7 GB to download (CUDA 2.1, torch 0.6, ")
    assert "uv unknown" in some.text and "Debian unknown" in some.text
    none = expected(merged=(0, None), **dict.fromkeys(("python", "uv", "cuda", "system", "torch"), (None, None)))
    assert (none.text, none.download_bytes, none.write_bytes) == ("", None, None)
    assert Forecast().text == ""


def test_layers_of_no_known_size_are_the_image_without_those_that_are_there() -> None:
    unknown = {"cuda": (2100 * MB, None), "image": 6600 * MB}
    assert expected(**unknown).write_bytes == 6600 * MB
    assert expected(**unknown).text.endswith(", about 6.6 GB to write")
    assert expected("torch", **unknown).write_bytes == 4600 * MB
    assert expected("torch", torch=(600 * MB, None), **unknown).write_bytes is None


def test_what_a_registry_may_have_is_told_as_the_most() -> None:
    planned = Forecast(expected().steps, at_most=True)
    assert planned.text.startswith("at most 2.8 GB to download") and planned.text.endswith("at most 5.9 GB to write")


STEPS = [BuildStep("cuda 1/1", "c", layer=True, download=7), BuildStep("system 1/1", "s", layer=True, download=5)]


def told(
    records: "list[dict[str, Any]]", *cached: str, **more: Any
) -> "list[tuple[bool, int | None, int | None, bool]]":
    planned = forecast(STEPS, STEPS[:1], records, frozenset(cached), variant="cu130", image=None, **more)
    return [(one.cached, one.download, one.write, one.exact) for one in planned.steps]


def kept(digest: str, size: "int | None", variant: str = "cu130") -> "dict[str, Any]":
    return {"variant": variant, "steps": record([BuildStep("cuda 1/1", digest, layer=True)], {"cuda 1/1": size or 0})}


def test_sizes_come_from_builds_of_the_same_step_or_of_one_like_it() -> None:
    assert told([]) == [(False, 7, None, False), (False, 5, 0, False)]
    assert told([kept("other", 8), kept("c", 9), kept("other", 10)])[0] == (False, 7, 9, True)
    assert told([kept("other", 8), kept("another", 10)])[0] == (False, 7, 10, False)
    assert told([kept("other", 8, variant="cu128")])[0] == (False, 7, None, False)
    assert told([kept("c", 9)], "c")[0] == (True, 7, 9, True)


def test_what_stays_beside_the_image_is_written_too() -> None:
    """Wheels as they come; Debian's layer, and the same as archives, as large as what is laid on the image of it."""
    steps = [
        BuildStep("torch-wheels 1/1", "w", layer=True, download=800),
        BuildStep("system 1/2", "s", layer=True, download=90),
        BuildStep("system 2/2", "p", layer=True),
        BuildStep("uv 1/1", "u", layer=True, download=20),
        *(layers := [BuildStep("torch 1/1", "t", layer=True), BuildStep("merged 1/1", "m", layer=True)]),
    ]

    def planned(sizes: "dict[str, int]", *cached: str) -> Forecast:
        records = [{"variant": "cu130", "steps": record(layers, sizes)}] if sizes else []
        return forecast(steps, layers, records, frozenset(cached), variant="cu130", image=3000)

    known = {"torch 1/1": 2000, "merged 1/1": 400}
    assert planned(known).write_bytes == 800 + 400 + 400 + 2000 + 400
    assert planned(known, "s", "p", "m").write_bytes == 800 + 2000
    assert planned(known, "w", "t").write_bytes == 400 + 400 + 400
    assert planned({}).write_bytes == 3000 + 800  # the sizes of layers are not known: the image, and what is
    assert planned({}, "w").write_bytes == 3000
    assert Meter(planned(known)).total == 800 + 90 + 20 + 4000  # with the downloads


def test_offline_nothing_is_downloaded() -> None:
    assert [download for _, download, _, _ in told([], offline=True)] == [0, 0]


@pytest.mark.parametrize(
    "damaged",
    [{}, {"steps": None}, {"steps": []}, {"steps": {"cuda 1/1": 5}}, {"steps": {"cuda 1/1": {"digest": 5}}}],
)
def test_a_record_without_steps_tells_nothing(damaged: "dict[str, Any]") -> None:
    assert recorded(damaged) == {}


def test_what_is_recorded_is_read_again() -> None:
    steps = record(STEPS, {"cuda 1/1": 9})
    assert recorded({"steps": steps}) == {"cuda 1/1": ("c", 9), "system 1/1": ("s", None)}
