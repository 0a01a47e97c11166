"""What a person types: the list, the help, and wrong input that ends with 2 and a suggestion."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import tasks
from given import ROOT

from torchdock import variants
from torchdock.errors import InputError

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
    options = re.findall(r"^  (?:-(\w) STRING, )?--([\w-]+)(?:=STRING)?   +\S", done.stdout, re.M)
    assert options == [("", "dry-run"), ("", "gpus"), ("", "json"), ("", "variant"), ("w", "workspace")]


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"shell"}))
def test_every_task_has_json(name: str) -> None:
    assert "json" in {argument.name for argument in TASKS[name].get_arguments()}


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"doctor"}))
def test_every_task_that_changes_something_has_a_dry_run(name: str) -> None:
    assert "dry_run" in {argument.name for argument in TASKS[name].get_arguments()}


def test_the_only_short_option_is_w() -> None:
    short = {
        name
        for task in TASKS.values()
        for argument in task.get_arguments()
        for name in argument.names
        if len(name) == 1
    }
    assert short == {"w"}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["bild"], "No idea what 'bild' is! Did you mean 'build'?"),
        (["build", "--variat", "cu130"], "Did you mean '--variant'?"),
        (["zzz"], "No idea what 'zzz' is! `invoke --list` shows the tasks"),
        (["build", "--variant"], "needed value"),
        (["up", "--variant", "cu13"], "There is no variant 'cu13'. Did you mean 'cu130'?"),
        (["run"], "`invoke run` needs a command after two dashes"),
        (["run", "--gpus", "1", "--"], "`invoke run` needs a command after two dashes"),
        (["up", "-w", "/no/such/folder"], "/no/such/folder does not exist"),
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


def test_cuda_contradicts_a_variant_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = variants.get(ROOT, None)
    cpu = variants.Variant(**{**vars(usual), "name": "cpu", "cuda": ""})
    monkeypatch.setattr(variants, "read", lambda root: {"cu130": usual, "cpu": cpu})
    assert tasks._choose("cu130", cuda=True) == tasks._choose(None, cuda=True) == usual
    assert tasks._choose("cpu") == cpu
    with pytest.raises(InputError, match="--cuda and --variant cpu contradict each other"):
        tasks._choose("cpu", cuda=True)
