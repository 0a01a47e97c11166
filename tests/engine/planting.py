"""Checks of the suite in a container with a fault that was planted from outside."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from tests.engine.conftest import ROOT

SITE = "/opt/venv/lib/python3.13/site-packages"


@dataclass(frozen=True)
class Checked:
    """What a run of checks said. failed: {name of a check, or of a file: message}; document: of ``--json``."""

    code: int
    failed: dict[str, str]
    document: dict[str, Any]

    def tells(self, name: str, words: str) -> None:
        """This check failed, with these words and a remedy."""
        assert words in " ".join(self.failed[name].split()), self.failed
        assert "Remedy: " in self.failed[name]


def checked(image: dict[str, Any], expression: str, *options: str, before: str = "", more: str = "") -> Checked:
    """Run the checks that match, in a container with these options of docker's.

    before: words of a shell in front of the command; more: options of the command.
    """
    command = f"{before} python -m torchdock.inside.check --json -k '{expression}' {more}"
    docker = ["docker", "run", "--rm", "--user", "1234:1234", "--shm-size", "1g", *options, image["image"]]
    done = subprocess.run([*docker, "timeout", "500", "sh", "-c", command], capture_output=True, text=True)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    failed = [one for one in document["checks"] if one["outcome"] == "failed"]
    named = {one["id"].partition("::")[2] or one["id"]: one["message"] for one in failed}
    return Checked(done.returncode, named, document)


VALIDATE = """
import json, sys, jsonschema
schema, document = json.load(sys.stdin)
jsonschema.Draft202012Validator.check_schema(schema)
found = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).iter_errors(document)
print("\\n".join(f"{error.json_path}: {error.message[:200]}" for error in found))
"""


def invalid(image: dict[str, Any], document: Any) -> list[str]:
    """What in a report is not as the schema says; the image has a validator, by way of JupyterLab."""
    schema = json.loads((ROOT / "src/torchdock/inside/report.schema.json").read_text())
    docker = ["docker", "run", "--rm", "--interactive", image["image"], "python", "-c", VALIDATE]
    given = json.dumps([schema, document])
    done = subprocess.run(docker, input=given, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line]
