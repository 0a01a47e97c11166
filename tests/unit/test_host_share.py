"""Images to and from registries and files: names, what is checked of what comes, and what docker's words mean."""

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given import INFO, ROOT, TableEngine, open_folder, program, without_rights

from torchdock import brought, debian, image, parcel, share, variants
from torchdock import engine as engines
from torchdock.base import BaseChoice
from torchdock.brought import Contents, Expected
from torchdock.console import Reporter
from torchdock.engine import ImageFacts
from torchdock.errors import EngineError, InputError, TorchdockError
from torchdock.image import BuildPlan, Built
from torchdock.share import NotShared, Repository, Transfer
from torchdock.sources import Sources
from torchdock.state import CloneState

VARIANT = variants.get(ROOT, "cu130")
DIGEST = f"sha256:{'d' * 64}"
TEAM = Repository("registry.example.org/team/torchdock")
PINNED = BaseChoice("registry", "debian@sha256:1", "debian@sha256:1")
MADE = BaseChoice("bootstrapped", "torchdock/base:2", "torchdock/base:2")
NOTHING = Sources(None, ())


def planned(base: BaseChoice = PINNED, digest: str = "5edab7a1dbcb", target: str = "environment") -> BuildPlan:
    argv = ("docker", "buildx", "build", "--target", target, str(ROOT))
    suffix = "" if target == image.ENVIRONMENT else f"-{target}"
    return BuildPlan(VARIANT, base, f"torchdock/cu130:{digest}{suffix}", argv, ROOT)


# --- where ---


@pytest.mark.parametrize(
    ("text", "name", "digest", "login"),
    [
        ("registry.example.org/team/torchdock", "registry.example.org/team/torchdock", "", "registry.example.org"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x", "", "127.0.0.1:5000"),
        ("localhost/team/x", "localhost/team/x", "", "localhost"),
        (f"ghcr.io/team/x@{DIGEST}", "ghcr.io/team/x", DIGEST, "ghcr.io"),
        ("team/torchdock", "team/torchdock", "", ""),  # Docker Hub's
        (" registry.example.org/x \n", "registry.example.org/x", "", "registry.example.org"),
    ],
)
def test_a_repository_is_read(text: str, name: str, digest: str, login: str) -> None:
    found = share.repository(text, "it")
    assert (found.name, found.digest, found.login) == (name, digest, f"docker login {login}".strip())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://registry.example.org/team",
        "anna:hunter2@registry.example.org/team",
        "registry.example.org/team:latest",
        "registry.example.org/team@sha256:123",
        "registry.example.org/Team",
        "registry.example.org/team/x;ls",
        "--help",
        "registry.example.org/",
    ],
)
def test_what_is_no_repository_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InputError) as refused:
        share.repository(text, "What was typed")
    assert str(refused.value).startswith("What was typed is no repository of a registry")
    assert "hunter2" not in str(refused.value)


def test_names_of_this_engine_are_no_repository() -> None:
    with pytest.raises(InputError, match="begins as the names of images on this engine do"):
        share.repository("torchdock/cu130", "it")


def test_a_team_names_its_repository_once(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    table = (ROOT / "docker/variants.toml").read_text()
    example = '# repository = "registry.example.org/team/torchdock"'
    assert example in table
    path = tmp_path / "docker/variants.toml"
    path.write_text(table)
    assert share.named(tmp_path, {}) is None
    path.write_text(table.replace(example, example.removeprefix("# ")))
    assert share.named(tmp_path, {}) == TEAM
    assert share.named(tmp_path, {"TORCHDOCK_REGISTRY": "ghcr.io/other/x"}) == Repository("ghcr.io/other/x")
    assert share.named(tmp_path, {"TORCHDOCK_REGISTRY": ""}) is None  # none, whatever the file says
    assert share.asked("ghcr.io/third/x", tmp_path, {}).name == "ghcr.io/third/x"
    assert share.asked(None, tmp_path, {}) == TEAM
    path.write_text(table.replace(example, 'repository = "https://x"'))
    with pytest.raises(InputError, match=r"^docker/variants.toml, \[share\] repository is no repository"):
        share.named(tmp_path, {})
    with pytest.raises(InputError, match=r"^TORCHDOCK_REGISTRY names one image by its digest"):
        share.named(tmp_path, {"TORCHDOCK_REGISTRY": f"ghcr.io/team/x@{DIGEST}"})
    path.write_text(table)
    with pytest.raises(InputError, match="Which repository"):
        share.asked(None, tmp_path, {})


@pytest.mark.parametrize(
    ("name", "architecture", "tag"),
    [
        ("torchdock/cu130:5edab7a1dbcb", "x86_64", "cu130-5edab7a1dbcb-amd64"),
        ("torchdock/cu130:5edab7a1dbcb-devel", "aarch64", "cu130-5edab7a1dbcb-devel-arm64"),
        ("torchdock/cpu:0", "x86_64", "cpu-0-amd64"),
    ],
)
def test_a_tag_says_the_architecture_which_the_inputs_do_not(name: str, architecture: str, tag: str) -> None:
    assert share.tag_of(name, architecture) == tag


def test_the_layers_for_builds_have_a_name_that_stays() -> None:
    assert share.cache_tag(VARIANT, "environment", "x86_64") == "cu130-cache-amd64"
    assert share.cache_tag(VARIANT, "devel", "aarch64") == "cu130-devel-cache-arm64"


# --- what comes is checked ---

GIVEN = Expected(
    files={"src/torchdock/inside/check.py": "1", "tests/container/test_data.py": "2", "docker/entrypoint.sh": "3",
           "docker/locks/cu130/tools.txt": "4", "docker/layers/suite.sh": "5"},
    suite=frozenset({"src/torchdock/inside/check.py", "tests/container/test_data.py", "docker/entrypoint.sh",
                     "docker/locks/cu130/tools.txt"}),
    packages={"gcc": "14", "git": "2"},
    base={"bash": "5"},
)  # fmt: skip
SEEN = Contents(
    id="sha256:1",
    layers=("sha256:0",),
    variant="cu130",
    architecture="amd64",
    created="2026-10-05T00:00:00Z",
    steps=("debian", "RUN sh /run/debian.sh python locked", "RUN sh /run/suite.sh"),
    files={name: digest for name, digest in GIVEN.files.items() if name in GIVEN.suite} | {"constraints.txt": "9"},
    packages={"gcc": "14", "git": "2", "bash": "4", "dash": "1"},
)
MADE_STEPS = ("ADD rootfs.tar / # buildkit", *SEEN.steps[1:])
MADE_PACKAGES = {"gcc": "14", "git": "2", "bash": "5"}


def test_what_this_lock_gives_fits() -> None:
    assert brought.mismatches(SEEN, planned(), GIVEN, "x86_64") == []
    made = replace(SEEN, steps=MADE_STEPS, packages=MADE_PACKAGES)
    assert brought.mismatches(made, planned(MADE), GIVEN, "x86_64") == []
    devel = replace(SEEN, steps=(*SEEN.steps, "RUN sh /run/devel.sh"))
    assert brought.mismatches(devel, planned(target="devel"), GIVEN, "x86_64") == []
    whole_second = replace(SEEN, created="2026-10-05T00:00:00.000000000Z")
    assert brought.mismatches(whole_second, planned(), GIVEN, "x86_64") == []


@pytest.mark.parametrize(
    ("different", "base", "said"),
    [
        ({"variant": "cu128"}, PINNED, "it says that it is cu128, not cu130"),
        ({"variant": ""}, PINNED, "it says that it is none of torchdock’s, not cu130"),
        ({"architecture": "arm64"}, PINNED, "it is for arm64, not amd64"),
        ({"created": "2026-10-06T00:00:00Z"}, PINNED, "it says that it is of 2026-10-06T00:00:00Z, and a build"),
        ({"created": "now"}, PINNED, "it says that it is of now"),
        ({"created": ""}, PINNED, "it says that it is of "),
        ({"steps": (*SEEN.steps, "RUN sh /run/devel.sh")}, PINNED, "it has the compiler"),
        ({}, MADE, "it does not stand on torchdock/base:2"),
        ({"steps": MADE_STEPS, "packages": MADE_PACKAGES}, PINNED, "it does not stand on debian@sha256:1"),
        ({"files": {**SEEN.files, "tests/container/test_data.py": "x"}}, PINNED, "tests/container/test_data.py dif"),
        ({"files": {**SEEN.files, "src/more.py": "x"}}, PINNED, "src/more.py differs"),
        ({"files": {**SEEN.files, "docker/locks/cpu/tools.txt": "x"}}, PINNED, "docker/locks/cpu/tools.txt differs"),
        ({"files": {}}, PINNED, "docker/entrypoint.sh, docker/locks/cu130/tools.txt, src/torchdock/inside/check.py, "),
        ({"packages": {**SEEN.packages, "gcc": "15"}}, PINNED, "the Debian packages gcc are not those of the lock"),
        ({"packages": {"gcc": "14"}}, PINNED, "the Debian packages git are not"),
        ({"steps": MADE_STEPS, "packages": {**MADE_PACKAGES, "bash": "6"}}, MADE, "the Debian packages bash are not"),
        ({"steps": MADE_STEPS, "packages": {**MADE_PACKAGES, "nmap": "7"}}, MADE, "the Debian packages nmap are not"),
        ({"files": {**SEEN.files, "src/\x1b[2J": "x"}}, PINNED, "src/\\x1b[2J differs"),
    ],
)  # fmt: skip
def test_what_it_does_not_give_is_said_in_a_few_words(different: Any, base: BaseChoice, said: str) -> None:
    found = brought.mismatches(replace(SEEN, **different), planned(base), GIVEN, "x86_64")
    assert len(found) == 1 and found[0].startswith(said)


def test_an_image_without_the_compiler_is_no_devel_image() -> None:
    assert brought.mismatches(SEEN, planned(target="devel"), GIVEN, "x86_64") == ["it has no compiler"]


def test_many_files_are_counted() -> None:
    files = {f"tests/container/{number}.py": "x" for number in range(30)}
    (found,) = brought.mismatches(replace(SEEN, files={**SEEN.files, **files}), planned(), GIVEN, "x86_64")
    assert found.endswith("and 26 more differ from this clone's") and len(found) < 200


def test_this_clones_files_are_what_is_expected() -> None:
    found = brought.expected(ROOT, VARIANT, image.ENVIRONMENT, "x86_64")
    assert {"docker/entrypoint.sh", "tests/container/test_data.py", "docker/locks/cu130/cuda.txt"} <= found.suite
    assert "docker/locks/cu130/devel.txt" not in found.suite
    assert "docker/locks/cu130/devel.txt" in brought.expected(ROOT, VARIANT, image.DEVEL, "x86_64").suite
    assert not any("__pycache__" in name for name in found.files)
    lock = debian.read(ROOT, "x86_64")
    assert lock is not None
    assert len(found.base) + len(found.packages) == len(lock.packages) and "gcc" in found.packages
    other = brought.expected(ROOT, VARIANT, image.ENVIRONMENT, "aarch64")
    assert other.suite == found.suite


def test_the_packages_that_dpkg_has() -> None:
    status = (
        "Package: gcc\nStatus: install ok installed\nVersion: 4:14\nDescription: compiler\n Package: not-this\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
        "Package: half\nStatus: install ok half-installed\nVersion: 1\n"
    )
    assert brought.installed(status) == {"gcc": "4:14"}
    assert brought.installed("") == {}


def look_at(monkeypatch: pytest.MonkeyPatch, seen: Contents) -> None:
    monkeypatch.setattr(brought, "look", lambda engine, reference: seen)
    monkeypatch.setattr(brought, "expected", lambda *_: GIVEN)


def test_the_plan_that_fits_is_found_and_else_the_nearest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    look_at(monkeypatch, replace(SEEN, steps=MADE_STEPS, packages=MADE_PACKAGES))
    state = CloneState(ROOT)
    candidates = [planned(), planned(MADE)]
    assert brought.check(TableEngine(), state, "x", candidates) == candidates[1]
    look_at(monkeypatch, replace(SEEN, architecture="arm64"))
    with pytest.raises(TorchdockError, match=r"x is not what this clone's lock gives: it is for arm64, not amd64\. "):
        brought.check(TableEngine(), state, "x", candidates)


# --- docker's client ---


class Line:
    """A step that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[str] = []

    def now(self, text: str) -> None:
        self.shown.append(text)

    def done(self, text: str) -> None:
        self.said.append(text)


def test_a_push_is_read() -> None:
    step = Line()
    seen = Transfer(step)  # type: ignore[arg-type]
    for line in (
        "The push refers to repository [127.0.0.1:5055/s1/x]",
        "1767c49c6d87: Preparing",
        "077fd9daacc0: Preparing",
        "17a9aab50ef2: Waiting",
        "1767c49c6d87: Layer already exists",
        "17a9aab50ef2: Mounted from team/other",
        "077fd9daacc0: Retrying in 5 seconds",
        "077fd9daacc0: Retrying in 4 seconds",
        "077fd9daacc0: Pushed",
        f"a: digest: {DIGEST} size: 528",
    ):
        seen.line(line)
    assert (seen.sent, seen.there, seen.digest) == (1, 2, DIGEST)
    assert step.shown[-1] == "3 of 3 layers"
    assert len(step.said) == 1 and "tries again" in step.said[0]


def test_a_pull_is_read() -> None:
    seen = Transfer(None)
    for line in (
        "cu130-1-amd64: Pulling from team/torchdock",
        "1767c49c6d87: Already exists",
        "077fd9daacc0: Pulling fs layer",
        "077fd9daacc0: Download complete",
        "077fd9daacc0: Pull complete",
        f"Digest: {DIGEST}",
        "Status: Downloaded newer image for x",
    ):
        seen.line(line)
    assert (seen.sent, seen.there, seen.digest) == (1, 1, DIGEST)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("no basic auth credentials", TorchdockError, "`docker login registry.example.org`"),
        ("denied: requested access to the resource is denied", TorchdockError, "Log in as somebody who may push there"),
        ("unauthorized: authentication required", TorchdockError, "docker login"),
        ("Error response from daemon: pull access denied for team/x, repository does not exist or may require 'docker "
         "login': denied: requested access to the resource is denied", TorchdockError, "docker login"),
        ('Get "https://r/v2/": http: server gave HTTP response to HTTPS client', TorchdockError, "insecure-registries"),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority", TorchdockError,
         "/etc/docker/certs.d/registry.example.org/ca.crt"),
        ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", TorchdockError, "The disk is full"),
        ("received unexpected HTTP status: 500 Internal Server Error", TorchdockError, "whose disk is full"),
        ("Error response from daemon: manifest for r/x:a not found: manifest unknown: manifest unknown", NotShared, ""),
        ('Get "http://127.0.0.1:5099/v2/": dial tcp 127.0.0.1:5099: connect: connection refused', TorchdockError,
         "cannot be reached"),
        ('Get "https://x.invalid/v2/": dial tcp: lookup x.invalid on 10.0.0.1:53: no such host', TorchdockError,
         "check the name"),
        ("EOF", TorchdockError, "layers that have arrived are not carried again"),
        ("write tcp 10.0.0.1:1->10.0.0.2:2: write: broken pipe", TorchdockError, "the connection broke"),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", EngineError, "`make up`"),
        ("something new", TorchdockError, "with registry.example.org/team/torchdock failed: something new."),
        ("", TorchdockError, "docker said nothing"),
    ],
)  # fmt: skip
def test_what_docker_says_has_a_meaning_and_a_remedy(said: str, kind: type[TorchdockError], told: str) -> None:
    found = share.failure([said] if said else [], TEAM, "push")
    assert type(found) is kind and told in str(found) and "\n" not in str(found)
    assert not {"VERB", "HOST", "LOGIN"} & set(str(found).replace("`", " ").replace("/", " ").split())


def test_nothing_of_a_registrys_words_reaches_the_terminal_as_it_is() -> None:
    assert "\x1b" not in str(share.failure(["denied: \x1b[2J\x07"], TEAM, "pull"))


# --- plans ---


class Shelf(TableEngine):
    """Images by name and ID, and a docker that a script plays."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.known: dict[str, ImageFacts] = {}
        self.names: list[tuple[str, ...]] = []

    def image(self, reference: str) -> ImageFacts | None:
        by_id = {facts.id: facts for facts in self.known.values()}
        return self.known.get(reference) or by_id.get(reference)


def facts(id: str = "sha256:same") -> ImageFacts:
    return ImageFacts(id, ("sha256:0",), 1)


def built(base: BaseChoice = PINNED) -> Built:
    return Built("cu130", planned().tag, "sha256:same", ("sha256:0",), 1.0, False, "environment", base.source,
                 base.debian, base=base.reference)  # fmt: skip


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(root: Path, variant: Any, engine: Any, sources: Any, wishes: Any) -> list[BuildPlan]:
        argv = ("docker", "buildx", "build", *image.handed_over(sources, wishes), str(root))
        return [BuildPlan(variant, base, wishes.tag or "x", argv, root) for base in (PINNED, MADE)]

    monkeypatch.setattr(image, "plans", given)


@pytest.mark.usefixtures("plans")
def test_a_push_gives_the_image_and_its_layers() -> None:
    plan = share.plan_push(Shelf(), CloneState(ROOT), built(), TEAM, NOTHING)
    name, cache = (f"{TEAM.name}:cu130-{tag}-amd64" for tag in ("5edab7a1dbcb", "cache"))
    assert plan.layers is not None and plan.layers.tag == cache
    assert plan.layers.argv[-3:] == ("--cache-to", "type=inline", str(ROOT))
    assert "id=offline,env=TORCHDOCK_OFFLINE" in plan.layers.argv  # it fails at once where its steps are not cached
    tag, send = ("docker", "tag", planned().tag, name), ("docker", "push", name)
    remove = ("docker", "image", "rm", name, cache)
    assert plan.commands == (tag, send, plan.layers.argv, ("docker", "push", cache), remove)


@pytest.mark.usefixtures("plans")
def test_where_the_cache_cannot_be_had_the_image_alone_is_pushed() -> None:
    state = CloneState(ROOT)
    brought_without_base = share.plan_push(Shelf(), state, built(MADE), TEAM, NOTHING)
    assert brought_without_base.layers is None and len(brought_without_base.commands) == 3
    shelf = Shelf()
    shelf.known["torchdock/base:2"] = facts()
    assert share.plan_push(shelf, state, built(MADE), TEAM, NOTHING).layers is not None


@pytest.mark.usefixtures("plans")
def test_what_nobody_could_check_is_not_pushed() -> None:
    state = CloneState(ROOT)
    with pytest.raises(TorchdockError, match="nobody else can tell whether it is what the lock gives"):
        share.plan_push(Shelf(), state, built(replace(PINNED, debian=image.DRIFT)), TEAM, NOTHING)
    with pytest.raises(InputError, match="leave @sha256:… away"):
        share.plan_push(Shelf(), state, built(), replace(TEAM, digest=DIGEST), NOTHING)


def test_a_pull_asks_for_what_the_lock_gives_alone() -> None:
    drift = planned(replace(PINNED, debian=image.DRIFT), "000000000000")
    candidates = [planned(), planned(MADE, "aaaaaaaaaaaa"), drift]
    plan = share.plan_pull(TableEngine(), candidates, TEAM)
    assert plan.commands == tuple(
        ("docker", "pull", f"{TEAM.name}:cu130-{digest}-amd64") for digest in ("5edab7a1dbcb", "aaaaaaaaaaaa")
    )
    one = share.plan_pull(TableEngine(), candidates, replace(TEAM, digest=DIGEST))
    assert one.references == (f"{TEAM.name}@{DIGEST}",) and one.wanted == ((candidates[0], candidates[1]),)


def test_layers_from_a_registry_change_no_name() -> None:
    base = BaseChoice("registry", VARIANT.base.image, VARIANT.base.image)
    usual = image.plan(ROOT, VARIANT, base, NOTHING, builder="default")
    wishes = image.Wishes(cache_from=f"{TEAM.name}:cu130-cache-amd64")
    taken = image.plan(ROOT, VARIANT, base, NOTHING, builder="default", wishes=wishes)
    assert usual.tag == taken.tag
    place = taken.argv.index("--cache-from")
    assert taken.argv[place + 1] == f"type=registry,ref={TEAM.name}:cu130-cache-amd64"
    assert (*taken.argv[:place], *taken.argv[place + 2 :]) == usual.argv


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """An engine whose names are moved in a table; its docker prints the file ``said`` and exits with ``code``."""
    (tmp_path / "said").touch()
    (tmp_path / "code").write_text("0")
    docker = f'echo "$@" >>{tmp_path}/calls; cat {tmp_path}/said; exit $(cat {tmp_path}/code)'
    found = Shelf(cli=program(tmp_path / "docker", docker))

    def tag(engine: Shelf, source: str, name: str) -> None:
        seen = engine.image(source)
        assert seen is not None
        engine.known[name] = seen

    monkeypatch.setattr(brought, "tag", tag)
    monkeypatch.setattr(brought, "untag", lambda engine, name: engine.known.pop(name, None))
    monkeypatch.setattr(brought.uses, "mark", lambda engine, *words: found.names.append(words[1:]) or "")
    look_at(monkeypatch, SEEN)
    return found


def test_what_is_pulled_is_named_after_it_was_checked(shelf: Shelf, tmp_path: Path) -> None:
    state = CloneState(tmp_path)
    plan = share.plan_pull(shelf, [planned()], TEAM)
    shelf.known[plan.references[0]] = facts()  # as docker leaves it, and as it was there before
    (tmp_path / "said").write_text(f"Digest: {DIGEST}\n")
    pulled = share.pull(shelf, state, plan, Reporter())
    assert (pulled.image, pulled.id, pulled.brought, pulled.built) == (
        planned().tag, "sha256:same", f"{TEAM.name}@{DIGEST}", False,
    )  # fmt: skip
    assert set(shelf.known) == {plan.references[0], planned().tag}  # the name that was there before stays
    assert shelf.names == [(planned().tag, PINNED.reference, pulled.brought)]
    (record,) = state.records()
    assert record["image"] == planned().tag and "steps" not in record
    # Once more: it is there already, and is no news.
    assert share.pull(shelf, state, plan, Reporter()).id == "sha256:same"
    assert len(shelf.names) == 1


def test_what_differs_from_the_one_that_is_here_takes_no_name(shelf: Shelf, tmp_path: Path) -> None:
    plan = share.plan_pull(shelf, [planned()], TEAM)
    shelf.known |= {plan.references[0]: facts("sha256:other"), planned().tag: facts("sha256:mine")}
    (tmp_path / "said").write_text(f"Digest: {DIGEST}\n")
    with pytest.raises(TorchdockError, match=r"has torchdock/cu130:5edab7a1dbcb already, .* differs from it"):
        share.pull(shelf, CloneState(tmp_path), plan, Reporter())
    assert shelf.known[planned().tag].id == "sha256:mine" and shelf.names == []


def test_an_image_that_cannot_be_noted_as_brought_is_not_named(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify` would take it for one that was built here."""
    monkeypatch.setattr(brought.uses, "mark", lambda *_: "volumes are full")
    plan = share.plan_pull(shelf, [planned()], TEAM)
    shelf.known[plan.references[0]] = facts()
    with pytest.raises(TorchdockError, match="took no note of where"):
        share.pull(shelf, CloneState(tmp_path), plan, Reporter())
    assert planned().tag not in shelf.known


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("manifest unknown", "has no image of this tree yet; building it"),
        (
            "no basic auth credentials",
            "fallback: `docker pull` with registry.example.org/team/torchdock failed: no",
        ),
    ],
)
def test_a_registry_that_has_nothing_holds_up_no_build(
    shelf: Shelf, tmp_path: Path, said: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "said").write_text(f"{said}\n")
    (tmp_path / "code").write_text("1")
    candidates = [planned(), planned(MADE, "aaaaaaaaaaaa")]
    offer = share.offered(shelf, CloneState(tmp_path), candidates, TEAM, Reporter())
    assert offer == share.Offered(None, answered=said == "manifest unknown")
    assert told in capsys.readouterr().out
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == (2 if said == "manifest unknown" else 1)


def test_an_engine_that_went_away_is_no_reason_to_build(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?\n")
    (tmp_path / "code").write_text("1")
    with pytest.raises(EngineError, match="went away"):
        share.offered(shelf, CloneState(tmp_path), [planned()], TEAM, Reporter())


# --- files ---


def archive(path: Path, manifest: Any, **members: bytes) -> Path:
    """A tar with a manifest and further files."""
    with tarfile.open(path, "w") as tar:
        for name, content in {**members, "manifest.json": json.dumps(manifest).encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


LABELS = {"config": {"Labels": {"dev.torchdock.variant": "cu130"}}}
CONFIG = json.dumps({**LABELS, "rootfs": {"diff_ids": ["sha256:0"]}}).encode()
ENTRY = {"Config": "config", "RepoTags": ["torchdock/cu130:5edab7a1dbcb"]}


def test_a_file_tells_what_it_holds(tmp_path: Path) -> None:
    found = parcel.contained(archive(tmp_path / "x.tar", [ENTRY], config=CONFIG))
    named = ("torchdock/cu130:5edab7a1dbcb",)
    said = engines.settings(json.loads(CONFIG))
    assert found == parcel.Carried(f"sha256:{brought.sha256(CONFIG)}", ("sha256:0",), named, "cu130", said)
    nameless = archive(tmp_path / "y.tar", [{"Config": "config", "RepoTags": None}], config=b"{}")
    assert parcel.contained(nameless) == parcel.Carried(f"sha256:{brought.sha256(b'{}')}", (), (), "", "{}")


@pytest.mark.parametrize(
    ("manifest", "config"),
    [([], CONFIG), ([ENTRY, ENTRY], CONFIG), ({}, CONFIG), ("x", CONFIG), ([ENTRY], b"x"), ([ENTRY], b"[]"),
     ([{}], CONFIG), ([{"Config": "other"}], CONFIG), ([{"Config": 1}], CONFIG), (None, CONFIG)],
)  # fmt: skip
def test_a_file_with_anything_else_is_wrong_input(tmp_path: Path, manifest: Any, config: bytes) -> None:
    with pytest.raises(InputError, match="is no image that `invoke save` wrote, or is cut short"):
        parcel.contained(archive(tmp_path / "x.tar", manifest, config=config))


def test_what_is_no_archive_is_wrong_input(tmp_path: Path) -> None:
    good = archive(tmp_path / "x.tar", [ENTRY], config=CONFIG).read_bytes()
    for content in (b"", b"text", good[:700], good[:1500]):
        (tmp_path / "y.tar").write_bytes(content)
        with pytest.raises(InputError, match="cut short"):
            parcel.contained(tmp_path / "y.tar")
    for path in (tmp_path, tmp_path / "none.tar"):
        with pytest.raises(InputError, match="cannot be read"):
            parcel.contained(path)


def test_a_file_moves_no_name_of_another_image(tmp_path: Path) -> None:
    engine, candidates = Shelf(), [planned(), planned(MADE, "aaaaaaaaaaaa")]
    path = tmp_path / "x.tar"
    mine = parcel.Carried("sha256:same", ("sha256:0",), (planned().tag,), "cu130")
    assert parcel.plan_load(engine, mine, path, candidates) == candidates[0]
    assert parcel.plan_load(engine, replace(mine, names=()), path, candidates) is None
    engine.known[planned().tag] = facts()
    assert parcel.plan_load(engine, mine, path, candidates) == candidates[0]
    with pytest.raises(InputError, match="holds debian:latest, and this tree's image is"):
        parcel.plan_load(engine, replace(mine, names=(planned().tag, "debian:latest")), path, candidates)
    engine.known[planned().tag] = facts("sha256:another")
    with pytest.raises(InputError, match="which would lose its name"):
        parcel.plan_load(engine, mine, path, candidates)


def test_an_engine_that_names_images_by_their_manifest(tmp_path: Path) -> None:
    """The containerd store: the same image has another ID where it was pulled, so layers and settings tell."""
    store = {**INFO, "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    engine, mine = Shelf(info=store), parcel.Carried("sha256:config", ("sha256:0",), (planned().tag,), "cu130")
    engine.known[planned().tag] = facts("sha256:manifest")
    assert parcel.plan_load(engine, mine, tmp_path / "x.tar", [planned()]) == planned()
    for different in ({"layers": ("sha256:1",)}, {"settings": '{"User": "1"}'}):
        engine.known[planned().tag] = replace(facts("sha256:manifest"), **different)
        with pytest.raises(InputError, match="which would lose its name"):
            parcel.plan_load(engine, mine, tmp_path / "x.tar", [planned()])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".", "is a folder"),
        ("pipe", "is no regular file"),
        ("none/image.tar", "is no folder"),
        ("closed/image.tar", "cannot be written by this user"),
    ],
)
def test_a_file_that_cannot_be_written_is_wrong_input(name: str, said: str) -> None:
    with open_folder() as folder:
        os.mkfifo(folder / "pipe")
        (folder / "closed").mkdir(mode=0o755)
        with without_rights(), pytest.raises(InputError, match=said):
            parcel.check_target(str(folder / name))
    assert parcel.check_target("image.tar") == Path.cwd() / "image.tar"


def saving(tmp_path: Path, script: str) -> Shelf:
    engine = Shelf(cli=program(tmp_path / "docker", script))
    engine.known[planned().tag] = facts(f"sha256:{brought.sha256(CONFIG)}")
    return engine


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = archive(tmp_path / "good", [ENTRY], config=CONFIG)
    made = replace(built(), id=f"sha256:{brought.sha256(CONFIG)}")
    target = tmp_path / "out/image.tar"
    target.parent.mkdir()
    size = parcel.save(saving(tmp_path, f"cat {good}"), made, target, Reporter())
    assert target.read_bytes() == good.read_bytes() and size == good.stat().st_size
    assert target.stat().st_mode & 0o777 == 0o644
    before = target.read_bytes()
    for script, said in (
        (
            f"head -c 2000 {good}; echo 'write: no space left on device' >&2; exit 1",
            "Make room, or name a file on another",
        ),
        ("echo strange >&2; exit 1", "failed: strange. Mend that"),
        (f"head -c 700 {good}", "gave a file that is not whole"),
        ("", "gave a file that is not whole"),
    ):
        with pytest.raises(TorchdockError, match=said):
            parcel.save(saving(tmp_path, script), made, target, Reporter())
        assert [path.name for path in target.parent.iterdir()] == ["image.tar"]
        assert target.read_bytes() == before
    other = json.dumps({**LABELS, "rootfs": {"diff_ids": ["sha256:1"]}}).encode()
    stranger = saving(tmp_path, f"cat {archive(tmp_path / 'stranger', [ENTRY], config=other)}")
    with pytest.raises(TorchdockError, match="somebody changed it"):
        parcel.save(stranger, made, target, Reporter())
    assert [path.name for path in target.parent.iterdir()] == ["image.tar"]


def test_an_image_that_does_not_fit_is_told_before_it_is_written(tmp_path: Path) -> None:
    engine = saving(tmp_path, f"touch {tmp_path}/called")
    engine.known[planned().tag] = replace(facts(), size=1 << 60)
    with pytest.raises(TorchdockError, match="Nothing was written"):
        parcel.save(engine, built(), tmp_path / "x.tar", Reporter())
    assert not (tmp_path / "x.tar").exists() and not (tmp_path / "called").exists()


def test_what_is_loaded_keeps_its_name_once_it_was_checked(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parcel.Carried("sha256:same", ("sha256:0",), (planned().tag,), "cu130")
    state, path = CloneState(tmp_path), tmp_path / "x.tar"

    seen: list[str] = []

    def stream(argv: Any, on_line: Any, **_: Any) -> int:
        seen.append(" ".join(argv[1:]))
        shelf.known[planned().tag] = facts()
        return 0

    monkeypatch.setattr(parcel, "stream", stream)
    loaded = parcel.load(shelf, state, file, path, [planned()], Reporter())
    assert seen == [f"load --input {path}"]
    assert (loaded.image, loaded.id, loaded.brought) == (planned().tag, "sha256:same", str(path))
    assert shelf.names == [(planned().tag, PINNED.reference, str(path))]
    shelf.known.clear()
    look_at(monkeypatch, replace(SEEN, variant="cpu"))
    with pytest.raises(TorchdockError, match="it says that it is cpu"):
        parcel.load(shelf, state, file, path, [planned()], Reporter())
    assert shelf.known == {}


def test_a_damaged_file_is_told_from_a_full_disk(shelf: Shelf, tmp_path: Path) -> None:
    file = parcel.Carried("sha256:same", ("sha256:0",), (planned().tag,), "cu130")
    (tmp_path / "code").write_text("1")
    for said, told in (
        ("invalid diffID for layer 3: expected x, got y", "It was damaged on its way"),
        ("write /var/lib/docker: no space left on device", "The engine's disk is full"),
    ):
        (tmp_path / "said").write_text(f"{said}\n")
        with pytest.raises(TorchdockError, match=told):
            parcel.load(shelf, CloneState(tmp_path), file, tmp_path / "x.tar", [planned()], Reporter())
