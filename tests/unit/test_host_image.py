"""From inputs to a build: what decides an image's name, the plan, BuildKit's progress, failures and the disk."""

import base64
import json
import os
import re
import shlex
import shutil
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given import INFO, ROOT, TableEngine, program

from torchdock import base, image, stages, variants
from torchdock.console import Reporter
from torchdock.engine import OUTPUT, Engine, ImageFacts
from torchdock.errors import EngineError, TorchdockError
from torchdock.image import BaseChoice, Wishes
from torchdock.sources import Mirror, Sources
from torchdock.state import CloneState

VARIANT = variants.get(ROOT, "cu130")
REGISTRY = BaseChoice("registry", VARIANT.base.image, VARIANT.base.image)
MADE = BaseChoice("bootstrapped", "torchdock/base:trixie-0123456789ab", "torchdock/base:trixie-0123456789ab")
NOTHING = Sources(None, ())
LOG = Path("/clone/.torchdock/logs/build-cu130.log")
GB = 10**9


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a build reads, in a clone of its own."""
    more = [ROOT / "docker/base.Dockerfile", ROOT / "docker/requirements.in"]
    for file in [*image.input_files(ROOT, VARIANT), *more]:
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path


def stage_digests(plan: image.BuildPlan, architecture: str) -> "dict[str, str]":
    """By stage, the digest of all that decides its content."""
    return {name: stage.digest for name, stage in image.read_stages(plan, architecture).items()}


def tag(root: Path) -> str:
    return image.plan(root, VARIANT, REGISTRY, NOTHING, builder="default").tag


# --- which bytes decide the name ---


def test_the_name_is_the_variant_and_12_hex_digits() -> None:
    assert re.fullmatch(r"torchdock/cu130:[0-9a-f]{12}", tag(ROOT))


def test_two_clones_with_equal_content_agree_on_the_name(clone: Path) -> None:
    for file in clone.rglob("*"):
        file.chmod(0o700)
        os.utime(file, (1, 1))
    strays = ("stray.pyc", ".DS_Store", "check.py~", "check.py.orig", "__pycache__/check.cpython-311.pyc")
    for name in (f"src/torchdock/inside/{stray}" for stray in strays):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_bytes(b"bytecode")
    assert tag(clone) == tag(ROOT)


@pytest.mark.parametrize(
    "name",
    [
        "docker/cuda.Dockerfile",
        "docker/entrypoint.sh",
        "docker/init.sh",
        "docker/layers/debian.sh",
        "docker/layers/packages.txt",
        "docker/layers/python-packages.txt",
        "docker/locks/debian/python/amd64.txt",
        "docker/locks/debian/system/amd64.txt",
        "docker/locks/uv.txt",
        "docker/locks/cu130/tools.txt",
        "docker/locks/cu130/recent.txt",
        "src/torchdock/__init__.py",
        "src/torchdock/inside/check.py",
        "tests/container/conftest.py",
        ".dockerignore",
    ],
)
def test_a_changed_input_is_a_new_name(clone: Path, name: str) -> None:
    before = tag(clone)
    with (clone / name).open("a") as file:
        file.write("\n")
    assert tag(clone) != before


def test_a_new_and_a_renamed_file_are_new_names(clone: Path) -> None:
    names = [tag(clone)]
    (clone / "tests/container/test_new.py").write_text("pass\n")
    names.append(tag(clone))
    (clone / "tests/container/test_new.py").rename(clone / "tests/container/test_newer.py")
    names.append(tag(clone))
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    "name", ["README.md", "docker/requirements.in", "docker/locks/host.txt", "src/torchdock/gpus.py"]
)
def test_what_no_build_reads_changes_no_name(clone: Path, name: str) -> None:
    before = tag(clone)
    (clone / name).write_text("something else\n")
    assert tag(clone) == before


def test_the_base_and_its_packages_decide_the_name_too() -> None:
    drift = replace(REGISTRY, debian="drift")
    names = {
        image.plan(ROOT, VARIANT, base, NOTHING, builder="default").tag
        for base in (REGISTRY, MADE, BaseChoice("registry", "debian@sha256:0", "debian@sha256:0"), drift)
    }
    assert len(names) == 4


def test_where_the_bits_come_from_is_not_in_the_name() -> None:
    mirror = Mirror("UV_DEFAULT_INDEX", "https://mirror/simple")
    given = Sources(Path("/etc/ca.pem"), ("HTTPS_PROXY",), index=mirror, base_image="mirror/debian", loopback=True)
    assert image.plan(ROOT, VARIANT, REGISTRY, given, builder="lab", wishes=Wishes(no_cache=True)).tag == tag(ROOT)


def test_a_missing_input_is_named(clone: Path) -> None:
    (clone / "docker/locks/uv.txt").unlink()
    with pytest.raises(TorchdockError, match=r"docker/locks/uv\.txt cannot be read .*git status"):
        tag(clone)


def bind_mounts(variant: variants.Variant) -> "set[str]":
    """What of the clone the variant's Dockerfile mounts into its steps."""
    mounts = [
        dict(part.partition("=")[::2] for part in mount.split(","))
        for mount in re.findall(r"--mount=(\S+)", (ROOT / variant.dockerfile).read_text())
    ]
    sources = {mount["source"] for mount in mounts if mount["type"] == "bind" and "from" not in mount}
    return {source.replace("${VARIANT}", variant.name) for source in sources}


@pytest.mark.parametrize("name", ["cpu", "cu130"])
def test_every_file_that_the_dockerfile_mounts_decides_the_name(name: str) -> None:
    variant = variants.get(ROOT, name)
    inputs = {file.relative_to(ROOT).as_posix() for file in image.input_files(ROOT, variant)}
    mounted = bind_mounts(variant)
    files = {name for name in mounted if (ROOT / name).is_file()}
    assert {"docker/layers/wheels.sh", f"docker/locks/{name}/torch.txt", "docker/locks/uv.txt"} <= files
    assert files <= inputs
    locked = {"docker/locks/debian/python", "docker/locks/debian/system"}
    read_by_suite = {"src/torchdock", "tests/container"}  # see below
    assert mounted - files - {f"docker/locks/{name}"} == locked | read_by_suite
    for folder in (f"docker/locks/{name}", *locked):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).iterdir()} <= inputs
    assert not re.search(r"^(COPY|ADD)\b", (ROOT / variant.dockerfile).read_text(), re.M)


def test_the_dockerfiles_share_their_common_stages() -> None:
    """cpu.Dockerfile is cuda.Dockerfile without its CUDA: what both have is the same, word for word."""

    def stages(path: str) -> "dict[str, str]":
        text = (ROOT / path).read_text().replace("${VARIANT}", "cpu").replace('"$VARIANT"', "cpu")
        found = re.findall(r"^FROM (?:\S+) AS (\w+)\n(.*?)(?=^FROM |\Z)", text, re.M | re.S)
        drop = r"^(#.*|ARG VARIANT|\s+(NVIDIA|CUDA)\w+=.*|\s+--mount=\S*/cuda\.txt\b.*)\n"
        return {name: re.sub(drop, "", body, flags=re.M).strip() for name, body in found}

    cuda, cpu = stages("docker/cuda.Dockerfile"), stages("docker/cpu.Dockerfile")
    branches = ["python", "system", "uv", "torch"]
    assert list(cpu) == [*branches, "tools", "merged", "recent", "configured", "environment"]
    assert {name: cuda[name] for name in cpu} == cpu


def test_every_file_that_the_last_layer_takes_decides_the_name() -> None:
    script = (ROOT / "docker/layers/suite.sh").read_text().replace("$variant", "cu130").replace('"', "")
    taken = set(re.findall(r"^put (\S+)$", script, re.M)) | set(re.findall(r"\$clone/(docker/\S+)", script))
    assert taken == {
        "src/torchdock/__init__.py",
        "src/torchdock/inside",
        "tests/container",
        "docker/locks/cu130",
        "docker/entrypoint.sh",
        "docker/init.sh",
    }
    inputs = set(image.input_files(ROOT, VARIANT))
    for name in taken:
        below = [ROOT / name] if (ROOT / name).is_file() else [p for p in (ROOT / name).rglob("*") if p.is_file()]
        assert {path for path in below if "__pycache__" not in path.parts} <= inputs


def test_a_build_is_sent_what_it_reads_and_nothing_else_of_a_clone() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert rules[-5:] == ["**/__pycache__", "**/*.pyc", "**/.*", "**/*~", "**/*.orig"]
    sent = [rule.removeprefix("!") for rule in rules[1:-5]]
    assert sent == ["docker", "src/torchdock/__init__.py", "src/torchdock/inside", "tests/container"]
    for file in image.input_files(ROOT, VARIANT):
        name = file.relative_to(ROOT).as_posix()
        assert name == ".dockerignore" or any(name == root or name.startswith(f"{root}/") for root in sent)


# --- the plan ---


def test_the_plan_is_one_docker_command() -> None:
    planned = image.plan(ROOT, VARIANT, REGISTRY, NOTHING, builder="lab")
    assert planned.argv == (
        *("docker", "buildx", "build", "--builder", "lab", "--progress=plain", "--provenance=false", "--sbom=false"),
        *("--output", OUTPUT, "--file", f"{ROOT}/docker/cuda.Dockerfile", "--target", "environment"),
        *("--tag", planned.tag),
        *("--build-arg", "SOURCE_DATE_EPOCH=1791158400", "--build-arg", "VARIANT=cu130", str(ROOT)),
    )


def test_a_variant_without_cuda_has_its_own_dockerfile_and_no_argument() -> None:
    planned = image.plan(ROOT, variants.get(ROOT, "cpu"), REGISTRY, NOTHING, builder="lab")
    assert f"{ROOT}/docker/cpu.Dockerfile" in planned.argv
    assert not [word for word in planned.argv if word.startswith("VARIANT=")]


def test_the_devel_target_is_another_image() -> None:
    planned = image.plan(ROOT, VARIANT, REGISTRY, NOTHING, builder="lab", wishes=Wishes(target="devel"))
    assert planned.argv[planned.argv.index("--target") + 1] == "devel"
    assert planned.tag == f"{tag(ROOT)}-devel"


def test_a_mirror_of_the_base_is_an_argument_and_changes_no_name() -> None:
    given = Sources(None, (), base_image="lab:5000/debian")
    planned = image.plans(ROOT, VARIANT, TableEngine(), given)[0]
    assert f"BASE=lab:5000/debian@{VARIANT.base.image.partition('@')[2]}" in planned.argv
    assert planned.tag == tag(ROOT)


def test_what_is_on_the_hosts_loopback_is_reached_on_its_network() -> None:
    assert "--network=host" in image.plan(ROOT, VARIANT, REGISTRY, Sources(None, (), loopback=True), builder="b").argv
    assert "--network=host" not in image.plan(ROOT, VARIANT, REGISTRY, NOTHING, builder="b").argv


def test_offline_is_a_secret_so_that_cached_steps_stay_cached() -> None:
    argv = image.plan(ROOT, VARIANT, REGISTRY, NOTHING, builder="b", wishes=Wishes(offline=True)).argv
    assert argv[argv.index("--secret") + 1] == "id=offline,env=TORCHDOCK_OFFLINE"


def test_an_index_with_a_token_goes_by_the_name_of_its_variable() -> None:
    token = Mirror("PIP_INDEX_URL", "https://anna:hunter2@mirror/simple")
    argv = image.plan(ROOT, VARIANT, REGISTRY, Sources(None, (), index=token), builder="b").argv
    assert argv[argv.index("--secret") + 1] == "id=index,env=PIP_INDEX_URL"
    assert "hunter2" not in " ".join(argv)


def test_a_made_base_is_an_argument_and_the_pinned_one_is_not() -> None:
    pinned, made, *drifted = image.plans(ROOT, VARIANT, TableEngine(), NOTHING)
    assert (pinned.base.source, made.base.source) == ("registry", "bootstrapped")
    assert not [word for word in (*pinned.argv, *made.argv) if word.startswith("DEBIAN=")]
    assert all("DEBIAN=drift" in plan.argv for plan in drifted)
    assert not [word for word in pinned.argv if word.startswith("BASE=")]
    assert made.argv[made.argv.index(f"BASE={made.base.reference}") - 1] == "--build-arg"
    assert pinned.argv[4] == made.argv[4] == "default"


def test_secrets_go_by_path_and_proxies_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:hunter2@proxy:3128")
    given = Sources(Path("/etc/private/ca.pem"), ("HTTPS_PROXY", "no_proxy"))
    argv = image.plan(ROOT, VARIANT, REGISTRY, given, builder="default").argv
    at = argv.index("--secret")
    assert argv[at : at + 6] == (
        *("--secret", "id=ca,src=/etc/private/ca.pem"),
        *("--build-arg", "HTTPS_PROXY", "--build-arg", "no_proxy"),
    )
    assert "hunter2" not in " ".join(argv)


def test_the_ca_is_named_so_that_the_command_is_good_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = image.plan(ROOT, VARIANT, REGISTRY, Sources(Path("ca.pem"), ()), builder="default").argv
    assert f"id=ca,src={tmp_path}/ca.pem" in argv


def test_a_comma_in_the_path_of_the_ca_does_not_split_it() -> None:
    given = Sources(Path("/etc/a,b/ca.pem"), ())
    argv = image.plan(ROOT, VARIANT, REGISTRY, given, builder="default").argv
    assert argv[argv.index("--secret") + 1] == 'id=ca,"src=/etc/a,b/ca.pem"'  # docker reads it as CSV


@pytest.mark.parametrize("no_cache", [True, False])
def test_no_cache_is_passed_on(no_cache: bool) -> None:
    argv = image.plan(ROOT, VARIANT, REGISTRY, NOTHING, builder="default", wishes=Wishes(no_cache=no_cache)).argv
    assert ("--no-cache" in argv) is no_cache


# --- what is there already ---


def test_the_image_of_the_preferred_plan_is_found_first() -> None:
    candidates = image.plans(ROOT, VARIANT, TableEngine(), NOTHING)
    both = TableEngine(images=[plan.tag for plan in candidates])
    found = image.find(both, candidates)
    assert found and (found.image, found.source, found.built, found.fallbacks) == (
        candidates[0].tag,
        "registry",
        False,
        [],
    )
    made = image.find(TableEngine(images=[candidates[1].tag]), candidates)
    assert made and (made.image, made.source) == (candidates[1].tag, "bootstrapped")
    assert "made from Debian packages" in made.fallbacks[0]
    assert image.find(TableEngine(), candidates) is None


def test_a_found_image_is_told_like_a_built_one() -> None:
    candidates = image.plans(ROOT, VARIANT, TableEngine(), NOTHING)
    found = image.find(TableEngine(images=[candidates[3].tag]), candidates)
    assert found and len(found.fallbacks) == 2
    assert found.document() | {"seconds": 0, "fallbacks": []} == {
        "variant": "cu130",
        "image": candidates[3].tag,
        "id": f"sha256:{candidates[3].tag}",
        "layers": ["sha256:1"],
        "seconds": 0,
        "built": False,
        "target": "environment",
        "source": "bootstrapped",
        "debian": "drift",
        "fallbacks": [],
        "base": candidates[3].base.reference,
        "environment": "",
        "packages": {},
        "brought": "",
    }


def test_no_build_without_buildx(tmp_path: Path, clone: Path) -> None:
    class Bare(TableEngine):
        def __init__(self) -> None:
            super().__init__()
            self.facts = type(self.facts)(**{**vars(self.facts), "buildx": ""})

    with pytest.raises(EngineError, match="apt-get install docker-buildx"):
        image.ensure(Bare(), CloneState(clone), VARIANT, NOTHING, Reporter())


def test_no_build_with_podman_and_how_an_image_gets_there(clone: Path) -> None:
    """docker's client may well have a buildx; it is not Podman's."""
    podman = TableEngine(podman={"host": {}})
    with pytest.raises(EngineError, match=r"Podman has no buildx.* `docker save IMAGE \| podman load`") as refused:
        image.ensure(podman, CloneState(clone), VARIANT, NOTHING, Reporter())
    assert refused.value.exit_code == 69


# --- building, with a docker CLI made for the test ---


class Builder(TableEngine):
    """An engine whose docker CLI is a script; the image of a build is there once the script made `built`."""

    def __init__(self, folder: Path, script: str, *, images: Sequence[str] = ()) -> None:
        path = program(folder / "docker-cli", f'cd {folder}; printf "%s\\n" "$*" >>argv; case "$1" in {script} esac')
        super().__init__(cli=path, data_root=None, images=images)
        self.folder = folder
        self.layers: list[dict[str, Any]] = []

    def image(self, reference: str) -> "ImageFacts | None":
        built = (self.folder / "built").exists() and reference.startswith("torchdock/cu130:")
        return ImageFacts("sha256:new", ("sha256:1",), 1) if built else super().image(reference)

    def history(self, reference: str) -> "list[dict[str, Any]]":
        return self.layers

    @property
    def said(self) -> "list[str]":
        path = self.folder / "argv"
        return path.read_text().splitlines() if path.exists() else []


UNREACHABLE = "pull) echo 'dial tcp: lookup registry: no such host' >&2; exit 1;;"
BUILDS = "buildx) echo '#5 [system 2/2] RUN x'; echo '#5 1.0 torchdock: received: system 77'; echo '#5 DONE 9.0s'; "
BUILDS += "touch built;;"


@pytest.fixture
def made(clone: Path) -> str:
    return base.choices(clone, VARIANT.base, "x86_64", NOTHING)[1].reference


def ensure(engine: TableEngine, clone: Path, given: Sources = NOTHING, **wishes: Any) -> image.Built:
    return image.ensure(engine, CloneState(clone), VARIANT, given, Reporter(), Wishes(**wishes))


def test_an_image_is_built_on_the_pinned_base_and_recorded(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Builder(clone, f"pull) ;; {BUILDS}")
    wanted = image.plans(clone, VARIANT, engine, NOTHING)[0]
    made = stages.layers(image.read_stages(wanted, "x86_64"), "environment")
    engine.layers = [{"CreatedBy": "RUN sh suite.sh", "Size": 4}, *[{"CreatedBy": "RUN x"}] * (len(made) - 1)]
    built = ensure(engine, clone)
    wanted = image.plans(clone, VARIANT, engine, NOTHING)[0]
    events = " ".join(wanted.argv[1:]).replace(" --progress=plain ", " --progress=rawjson ")
    assert engine.said == [f"pull --quiet {VARIANT.base.image}", events]
    assert (built.image, built.id, built.built, built.source) == (wanted.tag, "sha256:new", True, "registry")
    (record,) = CloneState(clone).records()
    assert record | {"seconds": 0, "when": ""} == {
        **built.document(),
        "seconds": 0,
        "when": "",
        "base": VARIANT.base.image,
        "steps": record["steps"],
        "mirrors": [],
        "sources": [],
    }
    digests = stage_digests(wanted, "x86_64")
    assert record["steps"]["torch 1/1"] == {"digest": digests["torch"], "bytes": 0}
    assert record["steps"]["environment 1/1"] == {"digest": digests["environment"], "bytes": 4}
    log = (clone / ".torchdock/logs/build-cu130.log").read_text()
    assert log == f"{shlex.join(wanted.argv)}\n#5 [system 2/2] RUN x\n#5 DONE 9.0s\n"
    said = capsys.readouterr().out
    assert "Debian packages: 9 s" in said and "received" not in said
    assert f"Building {wanted.tag}: " in said


def test_where_buildx_has_no_events_its_plain_lines_are_read(clone: Path) -> None:
    engine = Builder(clone, BUILDS, images=[VARIANT.base.image])
    engine.facts = replace(engine.facts, buildx="v0.12.1")
    assert ensure(engine, clone).built is True
    assert engine.said == [" ".join(image.plans(clone, VARIANT, engine, NOTHING)[0].argv[1:])]


def test_the_log_of_a_build_that_is_told_in_events_is_text(clone: Path) -> None:
    recorded = ROOT / "tests/unit/buildkit/failed.rawjson"
    fails = f"buildx) cat {recorded} >&2; exit 1;;"
    with pytest.raises(
        TorchdockError, match=r"failed: error: Failed to download `triton==3\.8\.0` cause: Hash mismatch"
    ):
        ensure(Builder(clone, fails, images=[VARIANT.base.image]), clone)
    log = (clone / ".torchdock/logs/build-cu130.log").read_text()
    assert log.startswith("docker buildx build ") and "\n#7 2.716   cause: Hash mismatch for `triton==3.8.0`\n" in log
    assert '"vertex' not in log and "torchdock: received: torch 5\n" not in log


def test_an_engine_that_goes_away_in_the_middle_of_an_event(clone: Path) -> None:
    recorded = ROOT / "tests/unit/buildkit/cold.rawjson"
    dies = f"buildx) (head -n 300 {recorded}; echo 'ERROR: failed to receive status: rpc error: code = Unavailable "
    dies += "desc = error reading from server: EOF') >&2; exit 1;;"
    with pytest.raises(EngineError, match=r"went away in the middle.*`make up`"):
        ensure(Builder(clone, dies, images=[VARIANT.base.image]), clone)
    killed = f"buildx) head -n 300 {recorded} >&2; exit 1;;"
    with pytest.raises(TorchdockError, match="what BuildKit told of this build ends in the middle"):
        ensure(Builder(clone, killed, images=[VARIANT.base.image]), clone)


def test_a_base_that_is_there_is_not_pulled_again(clone: Path) -> None:
    engine = Builder(clone, BUILDS, images=[VARIANT.base.image])
    assert ensure(engine, clone).source == "registry"
    assert [line.split()[0] for line in engine.said] == ["buildx"]


def test_where_no_registry_answers_a_made_base_is_taken_and_said(
    clone: Path, made: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Builder(clone, f"{UNREACHABLE} {BUILDS}", images=[made])
    built = ensure(engine, clone)
    assert f"--build-arg BASE={made}" in engine.said[-1]
    assert (
        "fallback: no registry gave the pinned base (dial tcp: lookup registry: no such host)"
        in capsys.readouterr().out
    )
    assert built.source == "bootstrapped" and len(built.fallbacks) == 1
    assert CloneState(clone).records()[0]["fallbacks"] == built.fallbacks


def test_locked_refuses_a_made_base(clone: Path, made: str) -> None:
    engine = Builder(clone, f"{UNREACHABLE} {BUILDS}", images=[made])
    with pytest.raises(TorchdockError, match="--locked refuses one made here"):
        ensure(engine, clone, locked=True)
    assert [line.split()[0] for line in engine.said] == ["pull"]


DRIFTS = "buildx) case $* in *DEBIAN=drift*) touch built;; *) echo '#5 [system 2/2] RUN x'; "
DRIFTS += "echo '#5 0.1 torchdock: drift: neither the mirror nor the snapshot of D gave: gcc'; "
DRIFTS += "echo '#5 ERROR: exit code: 1'; exit 1;; esac;;"


def test_where_the_locked_packages_are_gone_todays_are_taken_and_said(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = ensure(Builder(clone, DRIFTS, images=[VARIANT.base.image]), clone)
    assert "fallback: neither the mirror nor the snapshot of D gave: gcc; taking what" in capsys.readouterr().out
    assert (built.source, built.debian, len(built.fallbacks)) == ("registry", "drift", 1)
    assert CloneState(clone).records()[0]["fallbacks"] == built.fallbacks
    assert built.image == image.plans(clone, VARIANT, TableEngine(), NOTHING)[2].tag


@pytest.mark.parametrize("wish", ["locked", "offline"])
def test_drift_is_refused_where_nothing_may_differ(clone: Path, wish: str) -> None:
    engine = Builder(clone, DRIFTS, images=[VARIANT.base.image])
    with pytest.raises(TorchdockError, match="invoke lock --upgrade debian"):
        ensure(engine, clone, **{wish: True})
    assert len(engine.said) == 1


def test_locked_refuses_a_lock_that_is_older_than_what_it_locks(clone: Path) -> None:
    (clone / "docker/layers/packages.txt").write_text("gcc\nhello\n")
    engine = Builder(clone, BUILDS, images=[VARIANT.base.image])
    assert "packages.txt was changed after its lock was written" in ensure(engine, clone).fallbacks[0]
    assert ensure(engine, clone).built is False  # it is there now, and is refused all the same
    with pytest.raises(TorchdockError, match=r"--locked refuses .*packages\.txt was changed"):
        ensure(engine, clone, locked=True)


def test_locked_refuses_another_base_even_where_its_image_is_there(clone: Path) -> None:
    engine = Builder(clone, BUILDS, images=["lab/debian@sha256:" + "b" * 64])
    given = Sources(None, (), base_image="lab/debian@sha256:" + "b" * 64)
    assert ensure(engine, clone, given).source == "custom"
    with pytest.raises(TorchdockError, match="which --locked refuses"):
        ensure(engine, clone, given, locked=True)


def test_what_a_script_says_of_its_sources_is_recorded(clone: Path) -> None:
    says = "buildx) echo '#5 [system 2/2] RUN x'; echo '#5 0.2 torchdock: source: 3 from the mirror'; touch built;;"
    ensure(Builder(clone, says, images=[VARIANT.base.image]), clone)
    assert CloneState(clone).records()[0]["sources"] == ["3 from the mirror"]


def test_a_token_that_a_tool_prints_reaches_no_log_and_no_error(clone: Path) -> None:
    prints = "buildx) echo '#5 [tools 1/1] RUN x'; echo '#5 0.1 error: https://anna:hunter2@mirror/t0ken/simple/x: 401 "
    prints += "Unauthorized'; echo '#5 ERROR: exit code: 1'; exit 1;;"
    given = Sources(None, (), index=Mirror("UV_DEFAULT_INDEX", "https://anna:hunter2@mirror/t0ken/simple/"))
    with pytest.raises(TorchdockError, match="renew the token") as failed:
        ensure(Builder(clone, prints, images=[VARIANT.base.image]), clone, given)
    assert "<UV_DEFAULT_INDEX at mirror>/x" in str(failed.value)
    log = (clone / ".torchdock/logs/build-cu130.log").read_text()
    assert not [word for word in ("hunter2", "t0ken") if word in log + str(failed.value)]


def test_a_token_in_an_event_reaches_no_log_and_no_error(clone: Path) -> None:
    """What steps print is base64 in the events: no token can be found there before it was decoded."""
    said = base64.b64encode(b"error: https://anna:hunter2@mirror/t0ken/simple/x: 401 Unauthorized").decode()
    name = {"digest": "a", "name": "[tools 1/1] RUN x", "started": "2026-11-30T08:02:41Z"}
    ended = {**name, "completed": "2026-11-30T08:02:42Z", "error": "exit code: 1"}
    printed = {"vertex": "a", "data": said, "timestamp": "2026-11-30T08:02:41.5Z"}
    events = [{"vertexes": [name]}, {"logs": [printed]}, {"vertexes": [ended]}]
    (clone / "events").write_text("".join(json.dumps(event) + "\n" for event in events))
    given = Sources(None, (), index=Mirror("UV_DEFAULT_INDEX", "https://anna:hunter2@mirror/t0ken/simple/"))
    with pytest.raises(TorchdockError, match="renew the token") as failed:
        ensure(Builder(clone, "buildx) cat events >&2; exit 1;;", images=[VARIANT.base.image]), clone, given)
    log = (clone / ".torchdock/logs/build-cu130.log").read_text()
    assert "#1 0.500 error: <UV_DEFAULT_INDEX at mirror>/x: 401 Unauthorized\n" in log
    assert not [word for word in ("hunter2", "t0ken", said) if word in log + str(failed.value)]


def test_a_given_name_is_built_anew_and_not_recorded(clone: Path) -> None:
    engine = Builder(clone, BUILDS, images=[VARIANT.base.image, "torchdock/cu130:again"])
    built = ensure(engine, clone, tag="torchdock/cu130:again")
    assert (built.image, built.built) == ("torchdock/cu130:again", True)
    assert CloneState(clone).records() == []


def test_an_engine_that_goes_away_while_the_base_is_pulled(clone: Path, made: str) -> None:
    silent = "pull) echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock.' >&2; exit 1;;"
    with pytest.raises(EngineError, match="Run `make up`"):
        ensure(Builder(clone, silent, images=[made]), clone)


def test_a_failed_build_leaves_no_record(clone: Path) -> None:
    fails = "buildx) echo '#5 [tools 1/1] RUN x'; echo '#5 0.1 No space left'; echo '#5 ERROR: x'; exit 1;;"
    with pytest.raises(TorchdockError, match=r"The disk is full.*build-cu130\.log\."):
        ensure(Builder(clone, fails, images=[VARIANT.base.image]), clone)
    assert CloneState(clone).records() == []


def test_a_builder_that_keeps_images_elsewhere_is_named(clone: Path) -> None:
    with pytest.raises(TorchdockError, match="`docker buildx use default`"):
        ensure(Builder(clone, "buildx) ;;", images=[VARIANT.base.image]), clone)


def test_no_cache_builds_what_is_there(clone: Path) -> None:
    engine = Builder(clone, BUILDS, images=[VARIANT.base.image])
    (clone / "built").touch()
    assert ensure(engine, clone).built is False
    assert engine.said == []
    assert ensure(engine, clone, no_cache=True).built is True
    assert " --no-cache " in engine.said[-1]


# --- failures ---

UV_STEP = (
    'process "/bin/sh -c set -eu; if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi;     python3 '
    "-m venv /tmp/pip && /tmp/pip/bin/pip install --quiet --disable-pip-version-check         --require-hashes "
    '--only-binary :all: --no-deps --no-compile --target /uv -r /run/uv.txt" did not complete successfully: exit code: '
    "1"
)
WHEELS_STEP = 'process "/bin/sh -c sh /run/wheels.sh /run/lock.txt" did not complete successfully: exit code: 1'
HASH, DISK, TLS = "git checkout docker/locks", "The disk is full", "SSL_CERT_FILE"
TOKEN = "renew the token"
INDEX, NETWORK, GONE = "is not in the index", "A source could not be reached", "went away in the middle"


@pytest.mark.parametrize(
    ("said", "step", "remedy"),
    [
        pytest.param(
            "error: Failed to download `triton==3.8.0`\n  cause: Hash mismatch for `triton==3.8.0`\n\n"
            "         Expected:\n           sha256:00\n\n         Computed:\n           sha256:91",
            WHEELS_STEP,
            HASH,
            id="uv, hash",
        ),
        pytest.param(
            "  × Failed to download `triton==3.8.0`\n  ╰─▶ Hash mismatch for `triton==3.8.0`\n\n      Expected:\n",
            WHEELS_STEP,
            HASH,
            id="uv with boxes, hash",
        ),
        pytest.param(
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package "
            "versions, please update the hashes.\n    uv==0.13.9 from file:///uv-0.13.9.whl (from -r /run/uv.txt):",
            UV_STEP,
            HASH,
            id="pip, hash",
        ),
        pytest.param(
            "error: In `--require-hashes` mode, all requirements must have a hash, but none were provided for: triton",
            WHEELS_STEP,
            HASH,
            id="uv, no hash",
        ),
        pytest.param(
            "error: Failed to install: torch-2.14.1.whl (torch==2.14.1)\n  cause: failed to copy file\n"
            "  cause: No space left on device (os error 28)",
            WHEELS_STEP,
            DISK,
            id="uv, disk",
        ),
        pytest.param("E: You don't have enough free space\ndpkg: no space left on device", "x", DISK, id="apt, disk"),
        pytest.param(
            "error: Failed to fetch: `https://index/simple/triton/`\n  cause: client error (Connect)\n"
            "  cause: invalid peer certificate: UnknownIssuer",
            WHEELS_STEP,
            TLS,
            id="uv, certificate",
        ),
        pytest.param(
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(SSLCertVerificationError(1, "
            "'[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate'))'\n"
            "ERROR: No matching distribution found for uv==0.13.9",
            UV_STEP,
            TLS,
            id="pip, certificate",
        ),
        pytest.param(
            "  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no version of triton==99,\n"
            "      your requirements are unsatisfiable.",
            WHEELS_STEP,
            INDEX,
            id="uv, no such version",
        ),
        pytest.param(
            "error: Request failed after 3 retries in 8.6s\n  cause: Failed to fetch: https://index/simple/triton/\n"
            "  cause: client error (Connect)\n  cause: tcp connect error\n  cause: Connection refused (os error 111)",
            WHEELS_STEP,
            NETWORK,
            id="uv, network",
        ),
        pytest.param(
            "error: Failed to fetch: https://index/simple/triton/\n  cause: client error (Connect)\n"
            "  cause: dns error: failed to lookup address information: Temporary failure in name resolution",
            WHEELS_STEP,
            NETWORK,
            id="uv, names",
        ),
        pytest.param(
            "error: Failed to fetch: https://index/simple/triton/\n  cause: connection error: connection reset",
            WHEELS_STEP,
            NETWORK,
            id="uv, a source resets",
        ),
        pytest.param(
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(Failed to establish a "
            "new connection: [Errno 111] Connection refused)'\nERROR: Could not find a version that satisfies",
            UV_STEP,
            NETWORK,
            id="pip, network",
        ),
        pytest.param(
            "E: Failed to fetch http://mirror/debian/pool/g/gcc.deb  Could not connect to mirror:80 - connect (111: "
            "Connection refused)",
            "x",
            NETWORK,
            id="apt, network",
        ),
        pytest.param(
            "error: Failed to fetch: https://index/simple/x/\n  cause: HTTP status client error (401 Unauthorized)",
            WHEELS_STEP,
            TOKEN,
            id="uv, token",
        ),
        pytest.param(
            "ERROR: HTTP error 403 while getting x\nERROR: 403 Client Error: Forbidden for url: x",
            UV_STEP,
            TOKEN,
            id="pip, token",
        ),
        pytest.param(
            "error: Failed to fetch: x\n  cause: client error (Connect)\n  cause: invalid peer certificate: "
            "certificate expired: verification time 1795419459 (UNIX)",
            WHEELS_STEP,
            "has expired",
            id="uv, expired",
        ),
        pytest.param(
            "torchdock: the Debian mirror gives other files than the lock names for: gcc. Do not trust that mirror.",
            "x",
            HASH,
            id="apt, hash",
        ),
        pytest.param(
            "torchdock: offline: the layer cuda is not in the build cache; it needs these wheels: a==1",
            "x",
            "invoke save",
            id="offline",
        ),
        pytest.param(
            "ERROR: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "",
            GONE,
            id="engine",
        ),
        pytest.param(
            "ERROR: failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF",
            "",
            GONE,
            id="engine midway",
        ),
    ],
)
def test_a_failed_build_says_what_it_means_and_what_to_do(said: str, step: str, remedy: str) -> None:
    told = image.build_failure([*said.splitlines(), *([step] if step else [])], LOG)
    assert remedy in str(told)
    assert str(told).startswith("The build failed: ") and str(told).endswith(f"The whole log is {LOG}.")
    assert "\n" not in str(told)
    assert told.exit_code == (69 if remedy == GONE else 1)
    assert isinstance(told, EngineError) is (remedy == GONE)


@pytest.mark.parametrize("mark", ["error: Failed to download", "  × Failed to download"])
def test_a_lock_edited_by_hand_names_the_package(mark: str) -> None:
    lines = [f"{mark} `nvidia-cudnn-cu13==9.24.0.43`", "  ╰─▶ Hash mismatch for `nvidia-cudnn-cu13==9.24.0.43`"]
    told = str(image.build_failure([*lines, WHEELS_STEP], LOG))
    assert "`nvidia-cudnn-cu13==9.24.0.43`" in told
    assert not set("│├╰×▶─") & set(told)


def test_an_unknown_failure_is_shown_short_with_its_beginning_and_end() -> None:
    told = image.build_failure(["noise", "error: it began here", *["x" * 50] * 30, "and ended here"], LOG)
    assert str(told).startswith("The build failed: error: it began here")
    assert str(told).endswith(f"and ended here The whole log is {LOG}.")
    assert len(str(told)) < 720


# --- the disk ---

Usage = namedtuple("Usage", "total used free")


def check(root: Path, engine: Engine, free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image.shutil, "disk_usage", lambda path: Usage(10**12, 0, int(free)))
    wanted = image.likely(engine, image.plans(root, VARIANT, engine, NOTHING))
    image.check_disk(engine, VARIANT, image.foresee(engine, CloneState(root), wanted, Wishes()))


def test_a_cold_build_is_refused_before_it_fills_the_disk(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TableEngine(data_root=clone)
    check(clone, engine, VARIANT.build_bytes, monkeypatch)
    with pytest.raises(TorchdockError) as refused:
        check(clone, engine, VARIANT.build_bytes - 1, monkeypatch)
    needed = f"Building cu130 needs {VARIANT.build_bytes / GB:.1f} GB free below {clone}"
    assert needed in str(refused.value)
    assert "docker builder prune" in str(refused.value) and "Nothing was changed." in str(refused.value)
    # containerd's store has the layers in the cache, compressed, and unpacked again.
    store = {**INFO, "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    both, needed = TableEngine(info=store, data_root=clone), VARIANT.build_bytes + VARIANT.image_bytes * 3 // 2
    check(clone, both, needed, monkeypatch)
    with pytest.raises(TorchdockError, match=rf"needs {needed / GB:.1f} GB free"):
        check(clone, both, needed - 1, monkeypatch)


def keep(root: Path, plan: image.BuildPlan, sizes: int = GB) -> None:
    """The record of a build by this plan, whose image is torchdock/cu130:old, each of its layers of so many bytes."""
    steps = {step.label: {"digest": step.digest, "bytes": sizes} for step in steps_of(plan)}
    record = {"image": "torchdock/cu130:old", "variant": "cu130", "steps": steps}
    state = CloneState(root)
    state.write(state.path("builds", "cu130-old.json"), record)


def steps_of(plan: image.BuildPlan) -> "list[stages.BuildStep]":
    return stages.needed(image.read_stages(plan, "x86_64"), "environment")


OLD = ["torchdock/cu130:old"]


@pytest.mark.parametrize(
    ("images", "changed", "cached", "need"),
    [
        pytest.param(
            OLD, "tests/container/conftest.py", 30, 3 * GB, id="on the large layers of an image that is there"
        ),
        pytest.param([], "tests/container/conftest.py", 30, VARIANT.build_bytes, id="the image is gone"),
        pytest.param(OLD, "docker/layers/common.sh", 30, VARIANT.build_bytes, id="all layers changed"),
        pytest.param(OLD, "tests/container/conftest.py", 0, VARIANT.build_bytes, id="the build cache was emptied"),
    ],
)
def test_a_rebuild_needs_room_for_what_it_writes(
    clone: Path, monkeypatch: pytest.MonkeyPatch, images: "list[str]", changed: str, cached: int, need: int
) -> None:
    engine = TableEngine(data_root=clone, images=images, cached_steps=cached)
    keep(clone, image.plans(clone, VARIANT, engine, NOTHING)[0])
    with (clone / changed).open("a") as file:
        file.write("\n# another\n")
    check(clone, engine, need, monkeypatch)
    with pytest.raises(TorchdockError, match=rf"needs {need / GB:.1f} GB free"):
        check(clone, engine, need - 1, monkeypatch)


def test_without_the_cache_nothing_counts_as_cached(clone: Path) -> None:
    engine = TableEngine(images=OLD)
    plan = image.plans(clone, VARIANT, engine, NOTHING)[0]
    keep(clone, plan)
    state = CloneState(clone)
    assert image.foresee(engine, state, plan, Wishes()).text == "nothing to download, nothing to write"
    anew = image.foresee(engine, state, plan, Wishes(no_cache=True))
    assert not [one for one in anew.steps if one.cached]


def test_a_build_on_another_base_or_with_other_packages_has_nothing_in_the_cache(clone: Path) -> None:
    engine = TableEngine(images=OLD)
    plans = image.plans(clone, VARIANT, engine, NOTHING)
    keep(clone, plans[0])
    for other in plans[1:]:
        assert not [one for one in image.foresee(engine, CloneState(clone), other, Wishes()).steps if one.cached]


def test_a_mirror_of_the_base_has_what_the_base_has(clone: Path) -> None:
    engine = TableEngine(images=OLD)
    keep(clone, image.plans(clone, VARIANT, engine, NOTHING)[0])
    plan = image.plans(clone, VARIANT, engine, Sources(None, (), base_image="lab:5000/debian"))[0]
    assert image.foresee(engine, CloneState(clone), plan, Wishes()).running == []


def test_a_disk_that_is_not_this_hosts_is_not_judged(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(clone, TableEngine(data_root=None), 0, monkeypatch)
    with pytest.raises(TorchdockError):
        check(clone, TableEngine(data_root=clone), 0, monkeypatch)


# --- what the stages are made of ---

ALWAYS, LAST = {"environment", "devel"}, {"configured", "nvcc", "devel-amd64", "devel-arm64", *("environment", "devel")}


@pytest.mark.parametrize(
    ("name", "changed", "same"),
    [
        ("docker/layers/packages.txt", {"system"}, set()),
        ("docker/layers/common.sh", {"system", "uv", "cuda", "torch", "tools"}, set()),
        ("docker/locks/uv.txt", {"uv", "cuda", "torch", "tools"}, {"system"}),
        ("docker/locks/cu130/cuda.txt", {"cuda", "torch"}, {"system", "uv"}),
        ("docker/locks/cu130/torch.txt", {"torch"}, {"system", "uv", "cuda"}),
        ("docker/locks/cu130/tools.txt", {"tools"}, {"system", "uv", "cuda", "torch"}),
        ("docker/locks/cu130/devel.txt", {"nvcc"}, {"system", "uv", "cuda", "torch", "tools", "configured"}),
        ("tests/container/conftest.py", set(), {"system", "uv", "cuda", "torch", "tools", "configured", "nvcc"}),
        ("docker/requirements.in", set(), {"system", "uv", "cuda", "torch", "tools", *LAST}),
    ],
)
def test_a_changed_file_changes_the_stages_that_are_made_of_it(
    clone: Path, name: str, changed: "set[str]", same: "set[str]"
) -> None:
    plan = image.plans(clone, VARIANT, TableEngine(), NOTHING)[0]
    before = stage_digests(plan, "x86_64")
    assert before == stage_digests(plan, "x86_64")
    with (clone / name).open("a") as file:
        file.write("\n# another\n")
    after = stage_digests(plan, "x86_64")
    differ = {stage for stage in before if after[stage] != before[stage]}
    assert changed <= differ and not same & differ
    assert ALWAYS & differ == (ALWAYS - same if name != "docker/locks/cu130/devel.txt" else {"devel"})
