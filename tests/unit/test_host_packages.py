"""A workspace's packages without uv and an engine: what may be asked for, whether a lock fits, the layer's plan."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from given import ROOT, TableEngine, at_once

from torchdock import image, locks, packages, variants, workspace
from torchdock.console import Reporter
from torchdock.engine import ImageFacts
from torchdock.errors import InputError, TorchdockError
from torchdock.image import Built, Wishes
from torchdock.locks import Header, Pin
from torchdock.sources import Mirror, Sources
from torchdock.state import CloneState

VARIANTS = variants.read(ROOT)
CU130 = VARIANTS["cu130"]
NOTHING = Sources(None, ())


def pin(name: str, version: str) -> Pin:
    return Pin(name, version, f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n")


def pins(**versions: str) -> "dict[str, Pin]":
    return {name: pin(name, version) for name, version in versions.items()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A workspace that asks for one package and has its lock."""
    (tmp_path / "torchdock.toml").write_text('packages = ["einops>=0.8"]\n')
    said = Header(
        variant="cu130",
        layer="workspace",
        python="3.13",
        architectures=("x86_64",),
        requirements=locks.digest(workspace.read(tmp_path).packages()),
        environment=packages._digest(packages._environment(ROOT, CU130)),
    )
    path = packages.file(tmp_path, CU130)
    path.parent.mkdir()
    path.write_text(said.line + packages.NOTE + pin("einops", "0.8.1").text)
    return tmp_path


# --- what is asked for ---


def asked(folder: Path, text: str, **files: str) -> "list[str]":
    (folder / "torchdock.toml").write_text(text)
    for name, content in files.items():
        (folder / f"{name}.in").write_text(content)
    return [str(one) for one in workspace.read(folder).packages()]


def test_packages_are_listed_or_named_by_a_file(tmp_path: Path) -> None:
    assert asked(tmp_path, "") == []
    assert asked(tmp_path, 'packages = ["einops>=0.8", "timm"]\n') == ["einops>=0.8", "timm"]
    both = asked(
        tmp_path, 'packages = ["a"]\nrequirements = "mine.in"\n', mine="# mine\n\nb[x] ~= 1.0  # why\nnvidia-ml-py\n"
    )
    assert both == ["a", "b[x]~=1.0", "nvidia-ml-py"]


def test_a_file_that_nobody_named_counts_for_nothing(tmp_path: Path) -> None:
    assert asked(tmp_path, "", requirements="einops\n") == []
    assert workspace.read(tmp_path / "none").packages() == []


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("torch", "torch belongs to the variant"),
        ("Torchvision>=0.1", "Torchvision belongs to the variant"),
        ("nvidia-cublas-cu12", "nvidia-cublas-cu12 belongs to the variant"),
        ("-r other.txt", "'-r' is an option of pip's"),
        ("--index-url=https://anna:t0ken@lab/", "'--index-url' is an option of pip's"),
        ("x @ https://anna:t0ken@lab/x.whl", "'x' names an address or a file"),
        ("git+https://anna:t0ken@lab/x", "'git' is an address or a path"),
        ("./x", "'.' is an address or a path"),
        ("/home/anna/x", "'/' is an address or a path"),
        ("x-1.0-py3-none-any.whl", "'x-1.0-py3-none-any.whl' names an address or a file"),
        ("two words", "'two' is no package"),
        ("", "'' is no package"),
    ],
)
def test_what_no_lock_can_hold_is_wrong_input(entry: str, told: str, tmp_path: Path) -> None:
    for text, file, line in (
        (f"# mine\npackages = [\n  'good',\n  '{entry}',\n]\n", "torchdock.toml", 4),
        ('requirements = "mine.in"\n', "mine.in", 2),
    ):
        if file == "mine.in" and not entry:
            continue  # an empty line of a file is none
        with pytest.raises(InputError) as refused:
            asked(tmp_path, text, mine=f"good\n{entry}\n")
        assert str(refused.value).startswith(f"{tmp_path / file}, line {line if entry else 2}: {told}")
        assert "t0ken" not in str(refused.value)


def test_a_file_of_requirements_that_is_not_there_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"torchdock\.toml, line 2: .*other\.in cannot be read \(No such file"):
        asked(tmp_path, '\nrequirements = "other.in"\n')


def test_a_pipe_in_the_place_of_a_list_or_of_a_lock_is_not_waited_for(project: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    os.mkfifo(tmp_path / "other" / "r")
    with at_once(), pytest.raises(InputError, match=r"line 1: .*/r cannot be read \(it is no regular file\)"):
        asked(tmp_path / "other", 'requirements = "r"\n')
    packages.file(project, CU130).unlink()
    os.mkfifo(packages.file(project, CU130))
    with at_once(), pytest.raises(InputError, match=r"cu130\.txt cannot be read \(it is no regular file\)"):
        packages.find(ROOT, project, CU130, "x86_64")


def test_a_long_lock_is_read_to_its_end(project: Path) -> None:
    path = packages.file(project, CU130)
    path.write_text(path.read_text() + "# a hash more\n" * 50_000)
    assert packages.find(ROOT, project, CU130, "x86_64") is not None


# --- whether a lock fits ---


def test_a_lock_that_fits_is_a_layer(project: Path) -> None:
    layer = packages.find(ROOT, project, CU130, "x86_64")
    assert layer is not None and layer.versions == {"einops": "0.8.1"}


def test_where_nothing_is_new_there_is_no_layer(project: Path, tmp_path: Path) -> None:
    path = packages.file(project, CU130)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert packages.find(ROOT, project, CU130, "x86_64") is None
    (project / "torchdock.toml").write_text("")
    path.write_text("whatever")
    assert packages.find(ROOT, project, CU130, "x86_64") is None


def more(word: str) -> Callable[[str], str]:
    return lambda lock: lock.replace(word, word + "0")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, "asks for packages that are not locked for cu130 yet"),
        (more(" requirements="), "is older than what torchdock.toml asks for"),
        (more(" environment="), "is for another state of the environment cu130, which has been locked anew since"),
        (more("variant=cu13"), "is for the variant cu1300, not for cu130"),
        (more("python=3.1"), "is for Python 3.103, and the variant cu130 has 3.13"),
        (more("x86_64"), "is for x86_640, not for x86_64: a package has no wheels for it"),
        (more("layer=workspace"), "does not begin with the line that says what it is for"),
        (lambda lock: lock.partition("\n")[2], "does not begin with the line that says what it is for"),
        (lambda lock: lock + "--index-url https://elsewhere/simple\n", "has a line that is no pinned package"),
        (lambda lock: lock + "einops2==1\n", "has a line that is no pinned package"),
        (lambda lock: lock + pin("numpy", "1.0").text, "has numpy, which the environment has"),
    ],
)
def test_a_lock_that_does_not_fit_is_wrong_input(
    change: "Callable[[str], str] | None", told: str, project: Path
) -> None:
    path = packages.file(project, CU130)
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as refused:
        packages.find(ROOT, project, CU130, "x86_64")
    assert told in str(refused.value)
    assert str(refused.value).endswith(f". Lock them: invoke lock -w {project}")


def test_more_hashes_in_the_environments_lock_make_no_lock_older() -> None:
    one = pins(numpy="2.0")
    more = {"numpy": Pin("numpy", "2.0", one["numpy"].text + f"    --hash=sha256:{'1' * 64}\n")}
    assert packages._digest(one) == packages._digest(more) != packages._digest(pins(numpy="2.1"))


# --- which variants ---


def test_the_pinned_the_named_or_every_locked_variant_is_resolved() -> None:
    locked = {name for name, row in VARIANTS.items() if row.locked}
    assert {row.name for row in packages._rows(ROOT, None, None)} == locked
    assert [row.name for row in packages._rows(ROOT, "cu128", None)] == ["cu128"]
    assert [row.name for row in packages._rows(ROOT, None, "cpu")] == ["cpu"]
    with pytest.raises(InputError, match="pins the variant cu128, and cpu is asked for"):
        packages._rows(ROOT, "cu128", "cpu")
    with pytest.raises(InputError, match="There is no variant 'cu31'"):
        packages._rows(ROOT, None, "cu31")
    for name in set(VARIANTS) - locked:
        with pytest.raises(InputError, match=f"`invoke lock --variant {name}` writes it"):
            packages._rows(ROOT, name, None)


def test_a_workspace_that_asks_for_nothing_has_nothing_to_lock(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"asks for no packages\. List them in its torchdock\.toml, `packages = \["):
        packages.refresh(ROOT, tmp_path, NOTHING, Reporter(), architecture="x86_64")


@pytest.mark.parametrize(
    ("variant", "brought", "refused"),
    [
        ("cu130", "nvidia-cublas-cu12", True),
        ("cu130", "nvidia-nccl-cu13", False),
        ("cu130", "cuda-python", False),
        ("cpu", "nvidia-nccl-cu13", True),
        ("cpu", "triton", True),
        ("cpu", "nvidia-ml-py", False),
        ("cu128", "nvidia-cublas-cu12", False),
    ],
)
def test_another_cuda_is_refused(variant: str, brought: str, refused: bool) -> None:
    found = {"einops": pin("einops", "1"), brought: pin(brought, "1")}
    if not refused:
        return packages._refuse_cuda(VARIANTS[variant], found)
    with pytest.raises(InputError, match=f"brings {brought}, and the variant {variant} has (no )?CUDA"):
        packages._refuse_cuda(VARIANTS[variant], found)


CONFLICT = """error: No solution found when resolving dependencies
  cause: Because old==1.0 depends on numpy<2 and you require numpy==2.5.5, we can conclude that …
"""
NO_WHEEL = """error: No solution found when resolving dependencies
  cause: Because raw==1.0 has no usable wheels and you require raw, we can conclude that …

hint: Wheels are required for `raw` because building from source is disabled for all packages (i.e., with `--no-build`)
"""


def test_why_it_cannot_be_resolved_is_told() -> None:
    environment = pins(numpy="2.5.5", py="2.5", pillow="13.0")

    def told(text: str) -> str:
        error = packages._explain(text, CU130, "aarch64", environment, NOTHING)
        assert isinstance(error, InputError)
        return str(error)

    assert "cannot be resolved for cu130: Because old==1.0 depends on numpy<2" in told(CONFLICT)
    assert "The environment has numpy 2.5.5, and a workspace adds to it" in told(CONFLICT)
    assert "for Python 3.13 on aarch64, or install it in the container (`pip install`)" in told(NO_WHEEL)
    assert "hint" not in told(NO_WHEEL)


# --- the layer ---


def plan(
    project: Path, given: Sources = NOTHING, environment: str = "torchdock/cu130:1", **wishes: bool
) -> image.BuildPlan:
    layer = packages.find(ROOT, project, CU130, "x86_64")
    assert layer is not None
    return packages.plan(ROOT, layer, environment, given, builder="default", wishes=Wishes(**wishes))


def test_the_build_is_one_docker_command_on_the_environment(project: Path) -> None:
    given = Sources(None, ("HTTPS_PROXY",), index=Mirror("UV_DEFAULT_INDEX", "https://anna:t0ken@lab/simple"))
    wanted = plan(project, given, offline=True)
    repository, _, digest = wanted.tag.partition(":")
    assert (repository, len(digest), wanted.label) == ("torchdock/cu130-workspace", 12, "cu130-workspace")
    words = " ".join(wanted.argv)
    assert words.endswith(f" {ROOT}")
    for option in (
        f"--file {ROOT}/docker/workspace.Dockerfile --target workspace --tag {wanted.tag}",
        f"--build-arg SOURCE_DATE_EPOCH={CU130.base.epoch}",
        "--build-arg ENVIRONMENT=torchdock/cu130:1 --build-arg VARIANT=cu130",
        f"--build-context lock={project}/torchdock.locks",
        "--secret id=index,env=UV_DEFAULT_INDEX --secret id=offline,env=TORCHDOCK_OFFLINE --build-arg HTTPS_PROXY",
        "--provenance=false",
    ):
        assert option in words
    assert "t0ken" not in words


def test_the_name_changes_with_the_lock_and_with_the_environment_alone(project: Path) -> None:
    first = plan(project).tag
    assert plan(project, offline=True).tag == first
    assert plan(project, environment="torchdock/cu130:2").tag != first
    path = packages.file(project, CU130)
    path.write_text(path.read_text().replace("0000", "1111"))
    assert plan(project).tag != first


def test_whatever_the_layer_is_made_by_decides_its_name() -> None:
    """What the Dockerfile mounts of the clone is what the digest is over."""
    mounted = [
        line.partition("source=docker/layers/")[2].partition(",")[0]
        for line in (ROOT / packages.DOCKERFILE).read_text().splitlines()
        if "source=docker/" in line
    ]
    assert sorted(mounted) == sorted(packages.SCRIPTS)


class Images(TableEngine):
    """An engine with these images: name to layers."""

    def __init__(self, layers: "Mapping[str, tuple[str, ...]]") -> None:
        super().__init__(cli="/bin/false")
        self._layers = layers

    def image(self, reference: str) -> "ImageFacts | None":
        layers = self._layers.get(reference)
        return None if layers is None else ImageFacts(f"sha256:{reference}", layers, 1)


def extend(layers: "Mapping[str, tuple[str, ...]]", wanted: image.BuildPlan, root: Path, **wishes: bool) -> Built:
    below = Built("cu130", "torchdock/cu130:1", "sha256:e", ("a", "b"), 0.5, False, "environment", "registry", "locked")
    engine, state = Images(layers), CloneState(root)
    return image.extend(engine, state, below, wanted, {"einops": "1"}, NOTHING, Reporter(), Wishes(**wishes))


def test_an_image_on_this_environment_is_found(project: Path, tmp_path: Path) -> None:
    wanted = plan(project)
    found = extend({wanted.tag: ("a", "b", "c")}, wanted, tmp_path)
    assert (found.image, found.layers, found.built) == (wanted.tag, ("a", "b", "c"), False)
    assert (found.environment, found.packages) == ("torchdock/cu130:1", {"einops": "1"})
    assert found.document()["packages"] == {"einops": "1"}


def test_an_image_on_another_environment_of_that_name_is_not(project: Path, tmp_path: Path) -> None:
    """`--no-cache` and drift make another image of the same name."""
    wanted = plan(project)
    with pytest.raises(TorchdockError, match="The build failed"):  # it came to a build, and this engine has none
        extend({wanted.tag: ("a", "x", "c")}, wanted, tmp_path)
    with pytest.raises(TorchdockError, match="The build failed"):
        extend({wanted.tag: ("a", "b", "c")}, wanted, tmp_path, no_cache=True)


def test_a_failure_blames_the_workspaces_lock(project: Path) -> None:
    layer = packages.find(ROOT, project, CU130, "x86_64")
    assert layer is not None
    path = packages.file(project, CU130)
    told = str(image.build_failure(["error: Hash mismatch for `einops`"], Path("log"), packages.meanings(layer)))
    assert f"What the index gives is not what {path} names" in told and "docker/locks" not in told
    told = str(image.build_failure(["error: No solution found"], Path("log"), packages.meanings(layer)))
    assert f"A package of {path} is not in the index" in told and "docker/locks" not in told
    assert "docker/locks" in str(image.build_failure(["error: Hash mismatch for `einops`"], Path("log")))
