"""Operators that were made wrong from outside are found, by name, in the image as it is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

# What a package of the user's could do, by a .pth file or a sitecustomize.py: torch.library takes an operator's place.
PLANTED = """
import itertools, math
import torch

library = torch.library.Library("aten", "IMPL", "CPU")

def mm(a, b):
    product = (a[:, :, None] * b[None]).sum(1)
    return product + 0.01 if product.is_floating_point() else product

runs = itertools.count()

def gelu(x, *, approximate="none"):
    result = 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))
    return result * (1 + 2.4e-7 * (next(runs) % 2))

library.impl("mm", mm)
library.impl("gelu", gelu)
library.impl("digamma", lambda x: torch.lgamma(x))
"""


def test_an_operator_that_is_off_or_nondeterministic_is_named(image: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(PLANTED)
    wanted = "test_operator[mm] or test_operator[nn.functional.gelu] or test_operator[square] or replaced"
    check = ["python", "-m", "torchdock.inside.check", "--json", "-k", wanted]
    mounted = ["-v", f"{tmp_path}:/planted:ro", "-e", "PYTHONPATH=/planted"]
    command = ["docker", "run", "--rm", "--network", "none", *mounted, image["image"], *check]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    told = {one["id"].partition("::")[2]: one for one in json.loads(done.stdout)["checks"]}
    assert {name: one["outcome"] for name, one in told.items()} == {
        "test_no_kernel_was_replaced": "failed",
        "test_operator[mm]": "failed",
        "test_operator[nn.functional.gelu]": "failed",
        "test_operator[square]": "passed",
    }
    off = told["test_operator[mm]"]["message"]
    assert "mm in float32, value" in off and "off by 0.01, allowed" in off
    twice = told["test_operator[nn.functional.gelu]"]["message"]
    assert "nn.functional.gelu in float32, repeat" in twice and "it is nondeterministic" in twice
    assert "float32, value" not in twice, "less than the tolerance: only a second run shows it"
    replaced = told["test_no_kernel_was_replaced"]["message"]
    for name in ("aten::mm", "aten::gelu", "aten::digamma"):
        assert f"{name} on CPU by /planted/sitecustomize.py" in replaced
