"""What pip and uv in a container are given of this host: its indexes, by name, and never one that they cannot reach."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from given import ANNA, TableEngine

from torchdock import container, jobs, launch, sources
from torchdock.container import LaunchPlan
from torchdock.launch import NOTHING, Wishes
from torchdock.sources import Sources

URL = "https://anna:hunter2@mirror.example/simple"
BOTH = {"PIP_INDEX_URL": URL, "UV_DEFAULT_INDEX": URL}


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, {}),
        ({"PIP_INDEX_URL": URL}, BOTH),
        ({"UV_INDEX_URL": URL}, BOTH),
        ({"PIP_INDEX_URL": "http://127.0.0.1:3141/root/pypi"}, {}),
        ({"UV_DEFAULT_INDEX": "http://localhost/simple", "PIP_TRUSTED_HOST": "a"}, {"PIP_TRUSTED_HOST": "a"}),
        ({"PIP_EXTRA_INDEX_URL": f"{URL} http://localhost:1/x file:///srv/simple"}, {"PIP_EXTRA_INDEX_URL": URL}),
        ({"UV_INDEX": f"own={URL} near=http://[::1]/x {URL}"}, {"UV_INDEX": f"own={URL} {URL}"}),
        ({"UV_INDEX": "file:///srv", "UV_INSECURE_HOST": "mirror"}, {"UV_INSECURE_HOST": "mirror"}),
    ],
)  # fmt: skip
def test_indexes_that_a_container_reaches(env: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    found = sources.gather(env)
    assert found.installing == wanted
    assert "hunter2" not in repr(found)


def plan(given: Sources, wishes: Wishes = NOTHING) -> LaunchPlan:
    return container.plan(
        TableEngine(), "image", ANNA, given, role="up", name="it", clone="c", workspace=Path("/w"), command=["sleep"],
        wishes=wishes,
    )  # fmt: skip


def test_indexes_are_given_by_name() -> None:
    made = plan(sources.gather({"PIP_INDEX_URL": URL}))
    words = " ".join(made.argv)
    assert "--env PIP_INDEX_URL --env UV_DEFAULT_INDEX" in words
    assert "--label dev.torchdock.renewed=PIP_INDEX_URL,UV_DEFAULT_INDEX" in words
    assert made.environment == BOTH
    assert "hunter2" not in words + repr(made)
    assert "renewed" not in " ".join(plan(sources.gather({})).argv)


def test_a_renewed_token_makes_no_other_container() -> None:
    one, two = (plan(sources.gather({"PIP_INDEX_URL": f"https://anna:{token}@m/"})) for token in ("one", "two"))
    assert one.digest == two.digest
    assert one.digest != plan(sources.gather({})).digest
    asked = [launch.variable(f"PIP_INDEX_URL=https://anna:{token}@m/", {}) for token in ("one", "two")]
    first, second = (plan(sources.gather({}), Wishes(variables=(one,))) for one in asked)
    assert first.digest != second.digest


def test_what_was_asked_for_goes_before_the_host_and_is_not_renewed() -> None:
    asked = launch.variable("PIP_INDEX_URL=https://mine:word1@m/", {})
    made = plan(sources.gather({"PIP_INDEX_URL": URL}), Wishes(variables=(asked,)))
    assert made.environment == {"PIP_INDEX_URL": "https://mine:word1@m/", "UV_DEFAULT_INDEX": URL}
    assert made.renewed == {"UV_DEFAULT_INDEX"}
    plain = launch.variable("PIP_INDEX_URL=https://m/", {})
    words = plan(sources.gather({"PIP_INDEX_URL": URL}), Wishes(variables=(plain,))).argv
    assert words.index("PIP_INDEX_URL") < words.index("PIP_INDEX_URL=https://m/")  # docker takes the last


def test_a_further_command_gets_the_indexes_that_its_container_has() -> None:
    found = {"Labels": {container.RENEWED: "UV_DEFAULT_INDEX"}}
    assert container.renewed(found, lambda: sources.gather({"PIP_INDEX_URL": URL})) == {"UV_DEFAULT_INDEX": URL}
    assert container.renewed(found, lambda: sources.gather({})) == {}
    assert container.renewed({"Labels": {}}, lambda: pytest.fail("nobody needs them")) == {}
    argv = container.exec_argv(TableEngine(), "it", ["bash"], variables=["UV_DEFAULT_INDEX"])
    assert argv[:6] == ("docker", "exec", "--interactive", "--env", "UV_DEFAULT_INDEX", "it")
    assert container.exec_argv(TableEngine(podman={"host": {}}), "it", ["bash"])[:2] == ("podman", "exec")


def test_what_is_installed_is_read_from_the_container(tmp_path: Path) -> None:
    from given import program

    folder = "/opt/venv/lib/python3.13/site-packages"
    listing = f"printf '%s\\n' {folder}/typing_extensions-4.16.0.dist-info {folder}/torch-2.14.1+cpu.dist-info"
    engine = TableEngine(cli=program(tmp_path / "docker", listing))
    assert jobs.versions(engine, "it") == {"typing-extensions": "4.16.0", "torch": "2.14.1+cpu"}
    engine = TableEngine(cli=program(tmp_path / "gone", "echo no such container >&2; exit 1"))
    assert jobs.versions(engine, "it") == {}
