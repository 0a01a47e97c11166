"""The workflow files: what each of them has to have, as a table of properties, and that each property can be missed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tasks
from given import ROOT, program
from invoke.parser import Parser
from invoke.util import yaml  # invoke has one of its own

from torchdock import variants
from torchdock.debian import ARCHITECTURES

FOLDER = ROOT / ".github/workflows"
FILES = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
PUBLISH = FILES["publish.yml"]
RUNNERS = {"amd64": "ubuntu-24.04", "arm64": "ubuntu-24.04-arm"}
# What each variant is built for: the architectures that its lock in this clone is for.
LOCKED = {
    name: sorted(ARCHITECTURES[one] for one in variant.locked)
    for name, variant in variants.read(ROOT).items()
    if variant.locked
}
PAIRS = sorted((name, one) for name, architectures in LOCKED.items() for one in architectures)

Property = Callable[[dict[Any, Any]], Iterator[str]]


def steps(document: "dict[Any, Any]") -> "Iterator[tuple[str, dict[str, Any]]]":
    """Each step with the name of its job."""
    for name, job in document["jobs"].items():
        for step in job["steps"]:
            yield name, step


def pinned(document: "dict[Any, Any]") -> "Iterator[str]":
    """Whatever is used is pinned to a commit, or an image to a digest."""
    for job, step in steps(document):
        if "uses" in step and not re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40}", step["uses"]):
            yield f"{job}: {step['uses']} is not pinned"
    for name, job in document["jobs"].items():
        if "container" in job or "services" in job:
            yield f"{name}: an image that is not the runner's own"


def least_privilege(document: "dict[Any, Any]") -> "Iterator[str]":
    """Nothing is allowed that a job does not do: it checks out, it pushes, it pulls."""
    if document.get("permissions") != {}:
        yield "the workflow itself allows something"
    for name, job in document["jobs"].items():
        commands = "\n".join(step.get("run", "") for step in job["steps"])
        wanted = {"contents": "read"} if "git fetch" in commands else {}
        if "invoke push" in commands or "imagetools" in commands:
            wanted["packages"] = "write"
        elif "docker login" in commands:
            wanted["packages"] = "read"
        if job.get("permissions") != wanted:
            yield f"{name}: {job.get('permissions')}, and it needs {wanted}"


def no_secret_told(document: "dict[Any, Any]") -> "Iterator[str]":
    """A token goes by the environment of one step, and nowhere where it is printed or kept."""
    if re.search(r"secrets\.|github\.token", str(document.get("env", ""))):
        yield "a token for all jobs"
    for name, job in document["jobs"].items():
        if re.search(r"secrets\.|github\.token", str(job.get("env", ""))):
            yield f"{name}: a token for all steps"
    for job, step in steps(document):
        command = step.get("run", "")
        if "${{" in command:
            yield f"{job}: an expression in a command"
        if re.search(r"\bset -\w*x|\bbash -\w*x|\becho .*TOKEN|\benv\b *$|\bprintenv\b", command, re.M):
            yield f"{job}: a command that prints the environment"
        if re.search(r"--password(?!-stdin)| -p ", command):
            yield f"{job}: a password in a command line"
        if "TOKEN" in command and not re.search(r"docker login|git fetch", command):
            yield f"{job}: a token for nothing"
    for name, job in document["jobs"].items():
        commands = [step.get("run", "") for step in job["steps"]]
        if any("docker login" in one for one in commands) and not any(
            "docker logout" in step.get("run", "") and step.get("if") == "always()" for step in job["steps"]
        ):
            yield f"{name}: it stays logged in"


def all_variants(document: "dict[Any, Any]") -> "Iterator[str]":
    """Every locked variant on a machine of each of its architectures, and none that has no lock."""
    jobs = document["jobs"]
    for name in ("build", "prove"):
        rows = jobs[name]["strategy"]["matrix"]["include"]
        if sorted((row["variant"], row["architecture"]) for row in rows) != PAIRS:
            yield f"{name}: other images than the locks are for"
        if any(row["runner"] != RUNNERS.get(row["architecture"]) for row in rows):
            yield f"{name}: a machine of another architecture"
    if sorted(jobs["build"]["outputs"]) != [f"{variant}-{architecture}" for variant, architecture in PAIRS]:
        yield "build: a digest is lost"
    rows = jobs["index"]["strategy"]["matrix"]["include"]
    if {row["variant"]: row["images"] for row in rows} != {name: len(one) for name, one in LOCKED.items()}:
        yield "index: other variants or numbers of images than the locks are for"
    if set(jobs["index"]["outputs"]) != set(LOCKED):
        yield "index: a digest is lost"


def in_order(document: "dict[Any, Any]") -> "Iterator[str]":
    """On a tag alone; nothing is pushed that was not built with no fallback, compared to the bit, and tested."""
    if document[True] != {"push": {"tags": ["v*"]}}:  # YAML 1.1 reads `on` as true
        yield "not on tags alone"
    if [document["jobs"][name].get("needs") for name in ("build", "index", "prove")] != ["checks", "build", "index"]:
        yield "jobs in another order"
    commands = [step.get("run", "") for step in document["jobs"]["build"]["steps"]]
    wanted = ('invoke build --variant "$VARIANT" --locked', "invoke verify", "invoke test", "invoke push")
    places = [next((place for place, one in enumerate(commands) if word in one), -1) for word in wanted]
    if -1 in places or places != sorted(places):
        yield f"steps in another order: {places}"
    for name, job in document["jobs"].items():
        if any("continue-on-error" in one for one in (job, *job["steps"])):
            yield f"{name}: a failure is passed over"
        if "timeout-minutes" not in job:
            yield f"{name}: it may run for six hours"


def one_way_to_check_out(document: "dict[Any, Any]") -> "Iterator[str]":
    """The lines that fetch the tree are the same in every job, and fetch the commit of the tag."""
    found = {step["run"] for _, step in steps(document) if "git fetch" in step.get("run", "")}
    if len(found) != 1 or '"$GITHUB_SHA"' not in found.pop():
        yield "the tree is fetched in more than one way"


PROPERTIES: "list[Property]" = [pinned, least_privilege, no_secret_told, all_variants, in_order, one_way_to_check_out]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("judge", PROPERTIES, ids=lambda judge: judge.__name__)
def test_a_workflow_has_every_property(name: str, judge: Property) -> None:
    assert list(judge(yaml.safe_load(FILES[name]))) == []


@pytest.mark.parametrize(
    ("judge", "good", "bad"),
    [
        (pinned, "      - name: Lint\n        run: make lint\n", "      - uses: actions/checkout@v4\n"),
        (pinned, "      - name: Lint\n        run: make lint\n", "      - uses: docker://debian\n"),
        (pinned, "    needs: build\n", "    needs: build\n    container: debian\n"),
        (least_privilege, "permissions: {}\n", ""),
        (least_privilege, "permissions: {}\n", "permissions: write-all\n"),
        (least_privilege, "      packages: read ", "      packages: write "),
        (least_privilege, "      contents: read ", "      contents: write "),
        (no_secret_told, "  REGISTRY: ghcr.io\n", "  REGISTRY: ghcr.io\n  TOKEN: ${{ github.token }}\n"),
        (no_secret_told, "      VARIANT: ${{", "      TOKEN: ${{ secrets.GITHUB_TOKEN }}\n      VARIANT: ${{"),
        (no_secret_told, "run: make lint", "run: set -x; make lint"),
        (no_secret_told, "run: make lint", "run: echo ${{ github.ref_name }}"),
        (no_secret_told, "run: make lint", "run: make lint; echo $TOKEN"),
        (no_secret_told, "--password-stdin", '--password "$TOKEN"'),
        (no_secret_told, "        if: always()\n", ""),
        (all_variants, "          - {variant: cu128, architecture: amd64, runner: ubuntu-24.04}\n", ""),
        (all_variants, "{variant: cpu, architecture: arm64", "{variant: cu126, architecture: arm64"),
        (all_variants, "runner: ubuntu-24.04-arm}", "runner: ubuntu-24.04}"),
        (all_variants, "images: 2}", "images: 1}"),
        (all_variants, "      cpu-arm64: ${{ steps.push.outputs.cpu-arm64 }}\n", ""),
        (in_order, '    tags: ["v*"]\n', '    tags: ["v*"]\n    branches: ["main"]\n'),
        (in_order, " --locked", ""),
        (in_order, "invoke verify", "invoke doctor"),
        (in_order, "    needs: build\n", "    needs: checks\n"),
        (in_order, "      - name: The validation suite\n", "      - continue-on-error: true\n"),
        (in_order, "    timeout-minutes: 10\n", ""),
        (one_way_to_check_out, '"$GITHUB_SHA"', "main"),
    ],
)  # fmt: skip
def test_a_property_can_be_missed(judge: Property, good: str, bad: str) -> None:
    assert good in PUBLISH
    assert list(judge(yaml.safe_load(PUBLISH.replace(good, bad, 1)))) != []


@pytest.mark.parametrize("name", FILES)
def test_every_command_is_a_script_that_can_be_read(name: str) -> None:
    for job, step in steps(yaml.safe_load(FILES[name])):
        if step.get("shell") == "python":
            compile(step["run"], job, "exec")
        elif "run" in step:
            read = subprocess.run(["bash", "-n"], input=step["run"], capture_output=True, text=True)
            assert (read.returncode, read.stderr) == (0, ""), job


def test_the_tasks_and_options_that_it_calls_are_there() -> None:
    """By invoke's own parser: a task that was renamed is found here and not on the day of a release."""
    calls = re.findall(r"\.venv/bin/invoke ([^\n>]+)", PUBLISH)
    assert len(calls) >= 6
    for call in calls:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', call)]
        (found,) = Parser(contexts=tasks.namespace.to_contexts()).parse_argv(words)
        assert found.name == words[0]


A, B = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


@pytest.mark.parametrize(
    ("digests", "images", "has", "code"),
    [
        ({"cu130-amd64": A, "cu130-arm64": B, "cpu-amd64": f"sha256:{'c' * 64}"}, 2, [B, A], 0),
        ({"cu130-amd64": A}, 2, [A], 1),  # one machine gave none
        ({"cu130-amd64": A, "cu130-arm64": "null"}, 2, [A], 1),
        ({"cu130-amd64": A, "cu130-arm64": B}, 2, [A, A], 1),  # the registry has another index
    ],
    ids=["good", "one is missing", "no digest", "another index"],
)
def test_the_index_names_the_images_of_its_variant_by_digest(
    tmp_path: Path, digests: "dict[str, str]", images: int, has: "list[str]", code: int
) -> None:
    """The step's own script, with a docker that notes what it is asked for and answers with ``has``."""
    index = json.dumps({"digest": f"sha256:{'d' * 64}", "manifests": [{"digest": one} for one in has]})
    program(tmp_path / "docker", f'echo "$@" >>{tmp_path}/calls; [ "$3" != inspect ] || echo \'{index}\'')
    env = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "REGISTRY": "ghcr.io", "VARIANT": "cu130",
        "GITHUB_REPOSITORY": "Team/Torchdock", "GITHUB_REF_NAME": "v1", "GITHUB_OUTPUT": str(tmp_path / "output"),
        "DIGESTS": json.dumps(digests), "IMAGES": str(images),
    }  # fmt: skip
    script = next(step["run"] for job, step in steps(yaml.safe_load(PUBLISH)) if step.get("id") == "index")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == code, done
    if code == 0:
        calls = (tmp_path / "calls").read_text().splitlines()
        name = "ghcr.io/team/torchdock"
        assert calls[0] == f"buildx imagetools create --tag {name}:cu130-v1 {name}@{A} {name}@{B}"
        assert (tmp_path / "output").read_text() == f"cu130=sha256:{'d' * 64}\n"
    else:
        assert not (tmp_path / "output").exists()
