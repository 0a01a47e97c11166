"""What a person types: the list, the help, and wrong input that ends with 2 and a suggestion."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tasks
from given import ROOT, TableEngine
from invoke.parser import Parser

from torchdock import choice, gpus, host, image, sources, variants
from torchdock.commandline import Asked
from torchdock.console import Reporter
from torchdock.errors import InputError
from torchdock.gpus import Gpu, Inventory
from torchdock.selection import Wish
from torchdock.sources import Mirror, Reach, Sources

TASKS: "dict[str, Any]" = dict(tasks.namespace.tasks)


def invoke(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "invoke", *words]
    given = {**os.environ, **env}
    return subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=given)


def test_the_list_names_every_task() -> None:
    done = invoke("--list", "--list-format=json")
    assert done.returncode == 0, done.stderr
    assert {task["name"] for task in json.loads(done.stdout)["tasks"]} == set(TASKS)
    assert set(TASKS) >= {"build", "up", "down", "run", "shell", "test", "clean", "doctor", "lock"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_and_every_option_has_help(name: str) -> None:
    assert TASKS[name].__doc__
    assert {argument.name for argument in TASKS[name].get_arguments() if not argument.help} == set()
    assert all(not argument.positional for argument in TASKS[name].get_arguments())


def test_the_help_of_a_task_shows_its_options() -> None:
    done = invoke("--help", "up")
    assert done.returncode == 0
    options = re.findall(
        r"^  (?:-(\w)(?: STRING)?, )?--([\w-]+)(?:=STRING|\[=STRING\])?(?:   +\S|$)", done.stdout, re.M
    )
    names = ("cpus", "devel", "dry-run", "env-file", "gpus", "json", "memory", "profile", "secret", "shm-size", "time")
    names = (*names, "gpu-name", "min-memory")
    letters = (("e", "env"), ("p", "publish"), ("v", "volume"), ("w", "workspace"))
    assert sorted(options) == sorted((*(("", name) for name in (*names, "variant", "wait")), *letters))


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"shell"}))
def test_every_task_has_json(name: str) -> None:
    assert "json" in {argument.name for argument in TASKS[name].get_arguments()}


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"doctor", "gpus", "ps"}))
def test_every_task_that_changes_something_has_a_dry_run(name: str) -> None:
    assert "dry_run" in {argument.name for argument in TASKS[name].get_arguments()}


def test_the_short_options_are_those_that_docker_and_people_know() -> None:
    short = {
        name
        for task in TASKS.values()
        for argument in task.get_arguments()
        for name in argument.names
        if len(name) == 1
    }
    assert short == set("wvepfn")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["bild"], "No idea what 'bild' is! Did you mean 'build'?"),
        (["build", "--variat", "cu130"], "Did you mean '--variant'?"),
        (["zzz"], "No idea what 'zzz' is! `invoke --list` shows the tasks"),
        (["build", "--variant"], "needs a value"),
        (["up", "--variant", "cu13"], "There is no variant 'cu13'. Did you mean 'cu130'?"),
        (["run"], "`invoke run` needs a command after two dashes"),
        (["run", "--gpus", "1", "--"], "`invoke run` needs a command after two dashes"),
        (["up", "-w", "/no/such/folder"], "/no/such/folder does not exist"),
        (["build", "-w", "/no/such/folder"], "/no/such/folder is no folder"),
        (["build", "-w", "/etc/passwd"], "/etc/passwd is no folder"),
        (["lock", "-w", "/no/such/folder"], "/no/such/folder is no folder"),
        (["test", "--gpu", "--min-share", "60"], "a number above 0 and up to 1, such as 0.6"),
        (["test", "--min-share", "0.6"], "no GPU is demanded. Remedy: add --gpu"),
        (["test", "--ops", "some"], "expected `one`, `full` or `none`"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_wrong_input_ends_with_2_and_a_suggestion(words: "list[str]", hint: str) -> None:
    done = invoke(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_ca_bundle_is_wrong_input() -> None:
    done = invoke("build", "--dry-run", SSL_CERT_FILE="/no/such/ca.pem")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("torchdock: SSL_CERT_FILE names /no/such/ca.pem, which is not a readable bundle")


# --- the choice of a variant ---

EVERYWHERE = frozenset({"x86_64", "aarch64"})
ROWS = {name: replace(row, locked=EVERYWHERE) for name, row in variants.read(ROOT).items()}
H100 = Gpu(0, "GPU-0", "NVIDIA H100", 80 << 30, 0, (), "9.0")
P40 = Gpu(1, "GPU-1", "Tesla P40", 24 << 30, 0, (), "6.1")
NOTHING = Sources(None, ())
BARE = Inventory((), "", "there is no NVIDIA driver")
MIXED = Inventory((H100, P40), "535.183.01", "")


class Place:
    """A host for the tasks: its GPUs, the images that are there, the indexes that answer, and what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inventory, self.images, self.answers = BARE, "", ""
        self.asked: list[str] = []
        self.engine = TableEngine()
        monkeypatch.setattr(variants, "read", lambda root: ROWS)
        monkeypatch.setattr(gpus, "gather", lambda: self.inventory)
        monkeypatch.setattr(host, "architecture", lambda: "x86_64")
        monkeypatch.setattr(sources, "probe", self._probe)
        monkeypatch.setattr(image, "plans", lambda root, variant, *more: variant)
        monkeypatch.setattr(image, "find", lambda engine, variant: variant if variant.name in self.images else None)

    def _probe(self, given: Sources, url: str, **_: float) -> Reach:
        self.asked.append(url)
        return Reach(url.split("/")[-3] in self.answers.split(), "it is silent")

    def choose(self, wished: "dict[str, Any]", given: Sources = NOTHING, **more: Any) -> choice.Choice:
        return tasks._choose(wished, given, self.engine, **more)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def test_a_choice_asks_the_index_where_it_depends_on_it(place: Place) -> None:
    wish = tasks._wish(None)
    assert place.asked == []
    found = place.choose(wish)
    assert (found.variant.name, place.asked) == ("cu130", ["https://download.pytorch.org/whl/cpu/torch/"])
    assert "(it is silent)" in found.fallbacks[0]
    place.answers = "cpu"
    assert place.choose(wish).variant.name == "cpu"


def test_a_mirror_of_the_index_is_asked_instead(place: Place) -> None:
    mirror = Mirror("TORCHDOCK_TORCH_INDEX", "https://mirror.example.org/torch/")
    assert place.choose(tasks._wish(None), Sources(None, (), torch_index=mirror)).variant.name == "cu130"
    assert place.asked == ["https://mirror.example.org/torch/cpu/torch/"]


@pytest.mark.parametrize(
    ("images", "more", "variant", "asked"),
    [
        ("cpu", {}, "cpu", 0),
        ("cu130", {}, "cu130", 1),
        ("cu130", {"thrifty": True}, "cu130", 0),
        ("cpu", {"wishes": image.Wishes(no_cache=True)}, "cu130", 1),
        ("", {"wishes": image.Wishes(offline=True)}, "cu130", 0),
    ],
    ids=["the image is there", "the fallback's is", "which will do", "built anew", "offline"],
)
def test_a_choice_looks_for_images_first(
    place: Place, images: str, more: "dict[str, Any]", variant: str, asked: int
) -> None:
    place.images = images
    found = place.choose(tasks._wish(None), **more)
    assert (found.variant.name, len(place.asked)) == (variant, asked)


def test_the_gpus_that_are_named_decide(place: Place) -> None:
    place.inventory, place.answers = MIXED, "cu126"
    assert place.choose(tasks._wish(None)).variant.name == "cu126"
    assert place.choose(tasks._wish(None, gpus=Wish("GPU-1"))).variant.name == "cu126"
    place.inventory = replace(MIXED, driver="580.1")
    assert place.choose(tasks._wish(None, gpus=Wish("GPU-0"))).variant.name == "cu130"
    assert place.choose(tasks._wish(None, gpus=Wish("1"))).variant.name == "cu126"
    assert place.choose(tasks._wish(None, gpus=Wish("0"))).variant.name == "cu126"  # one environment, GPU or not


def test_only_gpus_that_are_served_are_picked(place: Place) -> None:
    place.inventory = replace(MIXED, gpus=(P40, replace(H100, memory_used=1)), driver="580.1")
    found = place.choose(tasks._wish(None, gpus=Wish("1")))
    assert (found.variant.name, found.unserved) == ("cu130", ("GPU-1",))
    assert [gpu.uuid for gpu in tasks._shown(TableEngine(), found, Wish(), {}).gpus] == ["GPU-0"]
    assert tasks._shown(TableEngine(), found, Wish("0"), {}).gpus == ()
    with pytest.raises(InputError, match=r"--gpus GPU-1: cu130 does not compute on Tesla P40 .*`--gpus 0` computes"):
        tasks._shown(TableEngine(), found, Wish("GPU-1"), {})


def test_the_command_line_names_gpus_above_the_workspaces_file(tmp_path: Path) -> None:
    (tmp_path / "torchdock.toml").write_text('gpus = 2\nmin_memory = "40GiB"\ngpu_name = "H200"\n')
    assert tasks._gpu_wish(Asked(), tmp_path) == Wish("2", 40 << 30, "H200")
    assert tasks._gpu_wish(Asked(gpus="1", min_memory="8g"), tmp_path) == Wish("1", 8 << 30, "H200")
    assert tasks._gpu_wish(Asked(gpus="0"), tmp_path) == Wish("0")
    assert tasks._gpu_wish(Asked(gpus="GPU-1"), tmp_path) == Wish("GPU-1")
    (tmp_path / "torchdock.toml").write_text("gpus = 0\n")
    assert tasks._gpu_wish(Asked(gpu_name="L4"), tmp_path) == Wish(None, None, "L4")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked(min_memory="lots"), "--min-memory lots: a size is a number with m or g behind it"),
        (Asked(gpu_name=" "), "--gpu-name was given an empty name"),
    ],
)
def test_what_a_gpu_cannot_be_is_wrong_input(asked: Asked, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        tasks._gpu_wish(asked, tmp_path)
    assert told in str(refused.value)


def test_a_workspace_pins_its_variant(place: Place, tmp_path: Path) -> None:
    (tmp_path / "torchdock.toml").write_text('variant = "cu128"\n')
    found = place.choose(tasks._wish(None, workspace=str(tmp_path)))
    assert (found.variant.name, place.asked) == ("cu128", [])
    assert found.reason.startswith(f"{tmp_path}/torchdock.toml pins it")
    with pytest.raises(InputError, match=r"torchdock\.toml pins the variant cu128, and cu130 is asked for"):
        tasks._wish("cu130", workspace=str(tmp_path))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"cpu": True, "cuda": True}, "--cpu and --cuda contradict each other"),
        ({"cpu": True, "variant": "cu130"}, "--cpu and --variant cu130 contradict each other"),
        ({"cpu": True, "devel": True}, "--cpu and --devel contradict each other"),
        ({"devel": True, "variant": "cpu"}, "--variant cpu has none"),
        ({"cuda": True, "variant": "cpu"}, "--variant cpu has none: leave one of them"),
        ({"variant": "cu13"}, "Did you mean 'cu130'?"),
        ({"gpus": Wish("GPU-9")}, "'GPU-9' is none of them here"),
        ({"workspace": ""}, "-w was given an empty name"),
    ],
)
def test_a_wish_that_contradicts_itself_is_wrong_input(place: Place, words: "dict[str, Any]", told: str) -> None:
    with pytest.raises(InputError) as refused:
        tasks._wish(**{"variant": None, **words})
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("words", "variant"),
    [
        ({"cpu": True}, "cpu"),
        ({"cpu": True, "variant": "cpu"}, "cpu"),
        ({"cuda": True}, "cu130"),
        ({"devel": True}, "cu130"),
        ({"cuda": True, "variant": "cu128"}, "cu128"),
    ],
)
def test_a_device_is_demanded(place: Place, words: "dict[str, Any]", variant: str) -> None:
    assert place.choose(tasks._wish(**{"variant": None, **words})).variant.name == variant
    assert place.asked == []


def test_what_was_chosen_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    told = choice.Choice(ROWS["cu130"], "because", ("fallback: no index", "mind this"))
    tasks._tell(Reporter(), told)
    assert capsys.readouterr().out.splitlines() == ["cu130: because", "fallback: no index", "mind this"]
    tasks._tell(Reporter(as_json=True), told, reason=False)
    assert capsys.readouterr().err.splitlines() == ["fallback: no index", "mind this"]
    document = {"variant": "cu130", "reason": "because", "warnings": ["fallback: no index", "mind this"]}
    assert tasks._told(told) == document


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["logs", "-n", "3", "night"], ("logs", "name", "night")),
        (["logs", "night", "-f"], ("logs", "name", "night")),
        (["verify", "--variant", "cu130", "a:b"], ("verify", "image", "a:b")),
        (["tensorboard", "--logdir", "logs", "--json"], ("tensorboard", "logdir", "logs")),
        (["tensorboard", "--logdir", "stop", "-w", "x"], ("tensorboard", "workspace", "x")),
        (["logs", "--name", "night"], ("logs", "name", "night")),
    ],
)
def test_a_word_after_a_task_is_its_name_and_the_value_of_an_option_is_none(
    typed: "list[str]", read: "tuple[str, str, str]"
) -> None:
    (found,) = Parser(contexts=tasks.namespace.to_contexts()).parse_argv(typed)
    assert (found.name, read[1], found.args[read[1]].value) == read
