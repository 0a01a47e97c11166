"""From facts to a launch: least privilege, mounts, names, workspaces that cannot be used, and refusals in words."""

import csv
import json
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given import ANNA, INFO, NOBODY, TableEngine, open_folder, program, without_rights

from torchdock import container, identity, lifeline
from torchdock import launch as launches
from torchdock.container import Identity
from torchdock.errors import EngineError, InputError, TorchdockError
from torchdock.gpus import Gpu
from torchdock.identity import Way
from torchdock.launch import EnvFile, Mount, Port, Variable
from torchdock.sources import Sources

ROOTLESS = Identity(1000, 1000, (44,), "anna", Way.ROOT, groups_reach=False)
GPU = Gpu(0, "GPU-1", "H200", 1, 0)


def launch(engine: "TableEngine | None" = None, who: Identity = ANNA, **different: Any) -> container.LaunchPlan:
    given = different.pop("sources", Sources(None, ()))
    usual: dict[str, Any] = {
        "role": "run",
        "clone": "c0ffee",
        "workspace": Path("/home/anna/project"),
        "command": ["python", "train.py"],
    }
    return container.plan(engine or TableEngine(), "torchdock/cu130:abc", who, given, **{**usual, **different})


def values(plan: container.LaunchPlan, option: str) -> "list[str]":
    """The values of an option before the image's name."""
    words = plan.argv[: plan.argv.index(plan.image)]
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def mounts(plan: container.LaunchPlan) -> "list[list[str]]":
    """Each mount as docker reads it: one row of CSV."""
    return list(csv.reader(values(plan, "--mount")))


def test_the_plan_is_one_docker_command() -> None:
    plan = launch(name="torchdock-anna-run-1")
    assert plan.argv == (
        *("docker", "run", "--rm", "--interactive"),
        *("--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=2"),
        *("--name", "torchdock-anna-run-1", "--hostname", "torchdock"),
        *("--label", "dev.torchdock.role=run", "--label", "dev.torchdock.user=1000"),
        *("--label", "dev.torchdock.clone=c0ffee", "--label", "dev.torchdock.workspace=/home/anna/project"),
        *("--label", "dev.torchdock.gpus="),
        *("--user", "1000:1000", "--group-add", "44", "--group-add", "998"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--memory", str(12 << 30), "--memory-swap", str(12 << 30), "--cpu-shares", "512", "--pids-limit", "32768"),
        *("--oom-score-adj", "500", "--shm-size", str(6 << 30), "--ulimit", "nofile=20000", "--stop-timeout", "120"),
        *("--mount", "type=bind,source=/home/anna/project,target=/workspace"),
        *("--mount", "type=volume,source=torchdock-cache-1000,target=/cache,volume-label=dev.torchdock.user=1000"),
        *("--env", "TORCHDOCK_USER=anna", "--env", "TORCHDOCK_LAUNCHED=1"),
        *("torchdock/cu130:abc", "python", "train.py"),
    )


@pytest.mark.parametrize("role", ["up", "job", "run", "shell", "test"])
@pytest.mark.parametrize("who", [ANNA, ROOTLESS, Identity(0, 0, (), "root")], ids=["user", "rootless", "root"])
def test_no_launch_has_more_than_the_least_privilege(role: str, who: Identity) -> None:
    plan = launch(who=who, role=role, tty=True, gpus=[GPU], gpu_arguments=["--device", "nvidia.com/gpu=GPU-1"])
    assert values(plan, "--cap-drop") == ["ALL"]
    assert values(plan, "--security-opt") == ["no-new-privileges"]
    words = " ".join(plan.argv)
    forbidden = r"--(privileged|cap-add|network|net|ipc|pid|userns|uts|publish|volumes-from)\b|docker\.sock| -p "
    assert not re.search(forbidden, words)


def test_under_a_rootless_engine_the_caller_is_root_inside() -> None:
    plan = launch(who=ROOTLESS)
    assert values(plan, "--user") == values(plan, "--group-add") == []
    assert values(plan, "--label")[1] == "dev.torchdock.user=1000"


def test_a_caller_without_further_groups_adds_none() -> None:
    plan = launch(who=Identity(0, 0, (), "root"))
    assert (values(plan, "--user"), values(plan, "--group-add")) == (["0:0"], [])


@pytest.mark.parametrize(
    ("role", "tty", "flags"),
    [
        ("up", False, ("--detach",)),
        ("job", False, ("--detach", "--interactive")),
        ("run", False, ("--rm", "--interactive")),
        ("run", True, ("--rm", "--interactive")),
        ("test", False, ("--rm", "--interactive")),
    ],
)
def test_only_the_workspace_container_and_jobs_stay(role: str, tty: bool, flags: "tuple[str, ...]") -> None:
    plan = launch(role=role, tty=tty)
    assert plan.argv[2 : plan.argv.index("--log-driver")] == flags
    terminal = ("--tty", "--detach-keys", "ctrl-@,ctrl-^,ctrl-@", "--env", "TERM", "--env", "COLORTERM")
    assert plan.argv[plan.argv.index("--name") - len(terminal) * tty : plan.argv.index("--name")] == terminal * tty
    assert tty or "--tty" not in plan.argv


@pytest.mark.parametrize("role", ["up", "job", "run", "shell", "test"])
def test_no_output_fills_a_disk(role: str) -> None:
    """A training that is attached for days draws progress bars; the engine's own driver may keep all of them."""
    size = f"max-size={'500' if role == 'job' else '10'}m"
    plan = launch(role=role)
    assert (values(plan, "--log-driver"), values(plan, "--log-opt")) == (["json-file"], [size, "max-file=2"])
    plan = launch(TableEngine(podman={"host": {}}), role=role)
    assert (values(plan, "--log-driver"), values(plan, "--log-opt")) == (["json-file"], [size])


@pytest.mark.parametrize("role", ["up", "job", "run"])
def test_a_dry_run_tells_all_that_a_launch_has(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path)
    cli = program(tmp_path / "docker", f'printf "%s\\n" "$@" >{tmp_path}/words')
    engine, plan = TableEngine(cli=cli), launch(role=role)
    assert container.additions(engine, plan, "ID", dry_run=True) or role == "job"
    assert list(tmp_path.iterdir()) == [tmp_path / "docker"]  # nothing is made for it
    lifeline.folder(os.getuid())
    told = container.additions(engine, plan, "ID", dry_run=True)
    {"up": container.up, "job": container.start, "run": container.attached}[role](engine, plan)
    words = (tmp_path / "words").read_text().splitlines()
    passed = [re.sub(r"(?<=TORCHDOCK_LIFELINE=)[0-9a-f]{16}(?=:)", "ID", word) for word in words]
    assert passed == ["run", *told, *plan.argv[2:]]
    assert len(told) == {"up": 4, "job": 0, "run": 4}[role]


def test_a_time_limit_stands_before_the_command_and_gives_it_its_grace() -> None:
    plan = launch(seconds=28800)
    assert plan.argv[plan.argv.index(plan.image) + 1 :] == (
        *("timeout", "--foreground", "--preserve-status", "--verbose", "--kill-after=120", "28800"),
        *("python", "train.py"),
    )
    assert "dev.torchdock.seconds=28800" in values(plan, "--label")


WISHES = launches.Wishes(
    mounts=(Mount(Path("/data/a,b"), "/data", read_only=True), Mount(Path("/out"), "/out")),
    variables=(Variable("MODE", "fast", by_name=False), Variable("API_TOKEN", "hunter2", by_name=True)),
    files=(EnvFile(Path("/home/anna/.env"), "0" * 64),),
    ports=(Port(8000, 8000), Port(0, 80, "[::1]")),
    memory=2 << 30,
    cpus=1.5,
    shm=1 << 30,
)


def test_what_is_wished_for_is_in_the_command_and_no_secret_is() -> None:
    plan = launch(wishes=WISHES)
    assert mounts(plan)[2:] == [
        ["type=bind", "source=/data/a,b", "target=/data", "readonly"],
        ["type=bind", "source=/out", "target=/out"],
    ]
    assert {"MODE=fast", "API_TOKEN"} <= set(values(plan, "--env"))
    assert values(plan, "--env-file") == ["/home/anna/.env"]
    assert values(plan, "--publish") == ["127.0.0.1:8000:8000", "[::1]::80"]
    assert [values(plan, option)[0] for option in ("--memory", "--cpus", "--shm-size")] == [
        *(str(2 << 30), "1.5", str(1 << 30))
    ]
    assert plan.environment == {"API_TOKEN": "hunter2"}
    assert "hunter2" not in f"{plan} {plan.argv} {WISHES}"


def test_another_value_of_a_secret_or_of_a_file_is_another_plan() -> None:
    usual: dict[str, Any] = {"role": "up", "name": "n"}
    others = [
        launches.NOTHING,
        WISHES,
        replace(WISHES, variables=(Variable("MODE", "fast", False), Variable("API_TOKEN", "other", True))),
        replace(WISHES, files=(EnvFile(Path("/home/anna/.env"), "1" * 64),)),
    ]
    assert len({launch(**usual, wishes=one).digest for one in others}) == len(others)


@pytest.mark.parametrize("short", ["night", "a", "lr.1-b_2", "x" * 63])
def test_a_job_is_called_by_its_name(short: str) -> None:
    assert container.job_name(ANNA, short) == f"torchdock-anna-{short}"


@pytest.mark.parametrize("short", ["", "-a", ".a", "a b", "a/b", "é", "x" * 64, "a\n"])
def test_a_name_that_docker_would_not_take_is_wrong_input(short: str) -> None:
    with pytest.raises(InputError, match="a name is letters"):
        container.job_name(ANNA, short)


def test_a_name_in_use_is_wrong_input() -> None:
    labels = {"dev.torchdock.role": "job"}
    there = {"Names": ["/torchdock-anna-night"], "Labels": labels, "Status": "Exited (0) 2 hours ago"}
    engine = TableEngine(containers=[there])
    with pytest.raises(InputError, match=r"in use: torchdock-anna-night \(Exited .*`invoke stop --remove NAME`"):
        container.refuse_taken(engine, "torchdock-anna-night")
    container.refuse_taken(engine, "torchdock-anna-nigh")


@pytest.mark.parametrize(
    ("limit", "asked"),
    [(None, []), (20_000, ["nofile=20000"]), (65_536, ["nofile=65536"]), (1 << 30, ["nofile=65536"])],
)
def test_no_more_open_files_are_asked_for_than_the_engine_can_give(limit: "int | None", asked: "list[str]") -> None:
    assert values(launch(TableEngine(open_files=limit)), "--ulimit") == asked


@pytest.mark.parametrize(
    "folder", ["/data/a,b", '/data/say "hi"', "/data/two words", "/data/a:b", "/data/a=b", "/data/é"]
)
def test_any_path_can_be_mounted(folder: str) -> None:
    assert mounts(launch(workspace=Path(folder)))[0] == ["type=bind", f"source={folder}", "target=/workspace"]


def test_a_mount_is_csv() -> None:
    assert container.mount("/a", "/b") == ["--mount", "type=bind,source=/a,target=/b"]
    assert container.mount("/a,b", "/c", read_only=True) == ["--mount", 'type=bind,"source=/a,b",target=/c,readonly']
    assert container.mount('/a"b', "/c") == ["--mount", 'type=bind,"source=/a""b",target=/c']


def test_without_a_workspace_only_the_cache_is_mounted() -> None:
    plan = launch(workspace=None, mounts=container.mount("/reports", "/report"))
    assert [mount[2] for mount in mounts(plan)] == ["target=/cache", "target=/report"]
    assert "dev.torchdock.workspace=" in values(plan, "--label")


def test_the_ca_bundle_is_mounted_read_only_under_every_name_that_clients_know(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    (tmp_path / "link.pem").symlink_to("ca.pem")
    plan = launch(sources=Sources(tmp_path / "link.pem", ()))
    inside = "/run/torchdock/ca.crt"
    assert ["type=bind", f"source={tmp_path.resolve()}/ca.pem", f"target={inside}", "readonly"] in mounts(plan)
    names = (
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
    )
    assert set(values(plan, "--env")) >= {f"{name}={inside}" for name in names}


def test_proxies_go_by_name_and_their_values_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:hunter2@proxy:3128")
    plan = launch(sources=Sources(None, ("HTTPS_PROXY", "no_proxy")))
    assert {"HTTPS_PROXY", "no_proxy"} <= set(values(plan, "--env"))
    assert "hunter2" not in " ".join(plan.argv)


def test_gpus_are_handed_over_and_labelled_by_uuid() -> None:
    second = Gpu(1, "GPU-2", "H200", 1, 0)
    plan = launch(gpus=[GPU, second], gpu_arguments=["--gpus", '"device=GPU-1,GPU-2"'])
    assert plan.gpus == (GPU, second)
    assert values(plan, "--gpus") == ['"device=GPU-1,GPU-2"']
    assert "dev.torchdock.gpus=GPU-1,GPU-2" in values(plan, "--label")
    assert {"TORCHDOCK_GPUS=GPU-1,GPU-2", "CUDA_DEVICE_ORDER=PCI_BUS_ID"} <= set(values(plan, "--env"))
    assert not any("CUDA_DEVICE_ORDER" in word for word in launch().argv)


def test_the_command_arrives_word_for_word() -> None:
    words = ["python", "-c", 'print("a  b")', "--gpus", "", "$HOME", "two\nlines"]
    plan = launch(command=words)
    assert plan.argv[plan.argv.index(plan.image) + 1 :] == tuple(words)


def test_a_container_of_its_own_has_a_name_of_its_own() -> None:
    names = {launch().name for _ in range(3)}
    assert len(names) == 3
    assert all(re.fullmatch(r"torchdock-anna-run-[0-9a-f]{8}", name) for name in names)


def test_equal_plans_have_equal_digests_and_any_difference_shows() -> None:
    usual: dict[str, Any] = {"role": "up", "name": "n"}
    digests = [
        launch(**usual).digest,
        launch(**usual, sources=Sources(Path("/ca"), ())).digest,
        launch(**usual, gpus=[GPU]).digest,
        launch(**{**usual, "command": ["sleep", "1"]}).digest,
        launch(**{**usual, "command": ["sleep 1"]}).digest,
        launch(TableEngine(open_files=1), **usual).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert launch(**usual).digest == digests[0]
    assert re.fullmatch("[0-9a-f]{12}", digests[0])


# --- names ---


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("/home/anna/project", "project"),
        ("/home/anna/my project (2)", "myproject2"),
        ("/data/Größe", "Gre"),
        ("/data/---", "---"),
        ("/data/日本", "root"),
        ("/", "root"),
        (f"/data/{'x' * 200}", "x" * 30),
    ],
)
def test_a_workspace_container_is_named_so_that_docker_takes_it(folder: str, label: str) -> None:
    name = container.workspace_name(ANNA, "c0ffee", Path(folder))
    assert re.fullmatch(rf"torchdock-anna-{re.escape(label)}-[0-9a-f]{{8}}", name)
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name)


def test_a_workspace_container_is_one_for_each_user_clone_and_folder() -> None:
    def name(who: Identity = ANNA, clone: str = "c0ffee", folder: str = "/a/project") -> str:
        return container.workspace_name(who, clone, Path(folder))

    assert name() == name() == container.workspace_name(ANNA, "c0ffee", Path("/a/project"))
    dotted = Identity(1001, 1001, (), "anna")  # an.na, say
    assert len({name(), name(dotted), name(Identity(1, 1, (), "bert")), name(clone="beef"), name(folder="/b/p")}) == 5


@pytest.mark.parametrize(
    ("listed", "held"),
    [
        ({"State": "running", "Labels": {"dev.torchdock.gpus": "GPU-1,GPU-2"}}, "GPU-1,GPU-2"),
        ({"State": "running", "Labels": {"dev.torchdock.gpus": ""}}, "0"),
        ({"State": "exited", "Labels": {"dev.torchdock.gpus": "GPU-1"}}, None),
        ({"State": "running", "Labels": {"dev.torchdock.gpus": "GPU-1"}, "Names": ["/other"]}, None),
        ({"State": "running", "Labels": {"dev.torchdock.gpus": "GPU-1", "dev.torchdock.user": "4711"}}, None),
    ],
)
def test_a_running_workspace_container_keeps_its_gpus(listed: "dict[str, Any]", held: "str | None") -> None:
    labels = {"dev.torchdock.role": "up", "dev.torchdock.user": str(os.getuid()), **listed["Labels"]}
    engine = TableEngine(containers=[{"Names": ["/torchdock-anna"], **listed, "Labels": labels}])
    assert container.held_gpus(engine, "torchdock-anna") == held


# --- launching, with a docker CLI made for the test ---


def listed(plan: container.LaunchPlan, state: str = "running") -> "dict[str, Any]":
    labels = {"dev.torchdock.role": "up", "dev.torchdock.user": str(os.getuid()), "dev.torchdock.plan": plan.digest}
    return {"Names": [f"/{plan.name}"], "State": state, "Labels": labels}


def test_the_command_that_is_run_is_the_plan(tmp_path: Path) -> None:
    engine = TableEngine(cli=program(tmp_path / "docker", f'printf "%s\\n" "$@" >{tmp_path}/argv'))
    plan = launch(role="up", name="torchdock-anna")
    assert container.up(engine, plan) == ("torchdock-anna", True)
    said = (tmp_path / "argv").read_text().splitlines()
    assert said[:3] == ["run", "--label", f"dev.torchdock.plan={plan.digest}"]
    watched = f"type=bind,source=/tmp/torchdock-{os.getuid()},target=/run/torchdock/lifeline,readonly"
    assert said[3:5] == ["--mount", watched]
    assert said[5:] == list(plan.argv[2:])
    assert engine.removed == []


def test_a_container_with_the_same_plan_is_taken_as_it_is(tmp_path: Path) -> None:
    plan = launch(role="up", name="torchdock-anna")
    engine = TableEngine(cli=str(tmp_path / "no docker"), containers=[listed(plan)])
    assert container.up(engine, plan) == ("torchdock-anna", False)
    assert engine.removed == []


@pytest.mark.parametrize("state", ["running", "exited"])
def test_a_container_with_another_plan_or_at_rest_is_replaced(state: str, tmp_path: Path) -> None:
    plan = launch(role="up", name="torchdock-anna")
    there = listed(plan if state == "exited" else launch(role="up", name="torchdock-anna", gpus=[GPU]), state)
    engine = TableEngine(cli=program(tmp_path / "docker", "exit 0"), containers=[there])
    assert container.up(engine, plan) == ("torchdock-anna", True)
    assert engine.removed == ["torchdock-anna"]


def test_a_launch_that_cannot_be_leaves_the_container_that_is_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        plan = launch(role="up", name="torchdock-anna", wishes=launches.Wishes(ports=(Port(port, 80),)))
        there = listed(launch(role="up", name="torchdock-anna", gpus=[GPU]))
        engine = TableEngine(cli=program(tmp_path / "docker", f"echo $1 >>{tmp_path}/argv"), containers=[there])
        with pytest.raises(InputError, match=f"The port {port} of 127.0.0.1 cannot be used"):
            container.up(engine, plan)
        assert engine.removed == [] and not (tmp_path / "argv").exists()
        there["Ports"] = [{"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": port, "Type": "tcp"}]
        assert container.up(engine, plan) == ("torchdock-anna", True)  # by the one in whose place it comes
    assert (tmp_path / "argv").read_text().split() == ["stop", "run"]


def test_somebody_elses_container_of_this_name_is_left_alone(tmp_path: Path) -> None:
    said = 'The container name "/x" is already in use by container "beef".'
    engine = TableEngine(cli=program(tmp_path / "docker", f"echo '{said}' >&2; exit 125"))
    with pytest.raises(InputError, match="Take another"):
        container.up(engine, launch(role="up", name="torchdock-anna"))
    assert engine.removed == []


def test_a_refused_launch_leaves_nothing(tmp_path: Path) -> None:
    said = "docker: Error response from daemon: unresolvable CDI devices nvidia.com/gpu=GPU-1"
    engine = TableEngine(cli=program(tmp_path / "docker", f"echo '{said}' >&2; exit 125"))
    with pytest.raises(TorchdockError, match="CDI specification is stale"):
        container.up(engine, launch(role="up", name="torchdock-anna"))
    assert engine.removed == ["torchdock-anna"]


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 137])
def test_the_commands_own_code_comes_back(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = (
        f"""run) exit {code};; context) echo default unix:///var/run/docker.sock;; info) echo '{json.dumps(INFO)}';;"""
    )
    engine = TableEngine(cli=program(tmp_path / "docker", f'case "$1" in {answers} esac'), started=True)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    plan = launch()
    assert container.attached(engine, plan) == code
    # After a signal it may have been the client that was killed, whose container runs on; 126 and 127 docker gives too.
    assert engine.removed == ([plan.name] if code > 125 else [])


@pytest.mark.parametrize("own", [125, 126, 127])
@pytest.mark.parametrize(
    ("info", "code", "words"),
    [(json.dumps(INFO), 1, "`invoke doctor` checks the engine"), ("", 69, "engine")],
    ids=["the engine answers", "the engine is gone"],
)
def test_a_launch_that_docker_refused_is_an_error_and_leaves_nothing(
    own: int, info: str, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = f"""run) exit {own};; context) echo default unix:///var/run/docker.sock;; info) printf '%s' '{info}';;"""
    engine = TableEngine(cli=program(tmp_path / "docker", f'case "$1" in {answers} esac'))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TorchdockError, match=words) as refused:
        container.attached(engine, launch(name="torchdock-anna-run-1"))
    assert refused.value.exit_code == code
    assert engine.removed == ["torchdock-anna-run-1"]


@pytest.mark.parametrize("own", [125, 126, 127])
def test_a_command_that_itself_ends_with_dockers_code_is_no_refusal(
    own: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = json.dumps(INFO)
    answers = f"""run) exit {own};; context) echo default unix:///var/run/docker.sock;; info) printf '%s' '{info}';;"""
    engine = TableEngine(cli=program(tmp_path / "docker", f'case "$1" in {answers} esac'), started=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert container.attached(engine, launch()) == own


def test_a_refusal_is_explained_by_what_was_doubted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """126 is docker's code where the engine's own complaint is "permission denied"."""
    answers = "run) exit 126;; context) echo default unix:///var/run/docker.sock;;"
    answers += f" info) printf '%s' '{json.dumps(INFO)}';;"
    engine = TableEngine(cli=program(tmp_path / "docker", f'case "$1" in {answers} esac'))
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = replace(launch(), doubt="It is on a file server.")
    with pytest.raises(TorchdockError, match=r"what it said is above\. It is on a file server\.$"):
        container.attached(engine, plan)
    assert engine.removed == [plan.name]


def test_a_further_command_goes_through_the_entrypoint(tmp_path: Path) -> None:
    engine = TableEngine(cli=program(tmp_path / "docker", f'printf "%s\\n" "$@" >{tmp_path}/argv; exit 4'))
    assert container.execute(engine, "torchdock-anna", ["echo", "a  b"]).code == 4
    entry = "/opt/torchdock/docker/entrypoint.sh"
    said = (tmp_path / "argv").read_text().splitlines()
    assert said[:2] == ["exec", "--env"]
    here = f"{lifeline.BOOT_ID.read_text().strip()}:[0-9]+:[0-9]+"
    assert re.fullmatch(f"TORCHDOCK_LIFELINE=[0-9a-f]{{16}}:{here}", said[2])
    assert said[3:] == ["--interactive", "torchdock-anna", entry, "echo", "a  b"]


def test_on_a_virtual_machine_there_is_no_lifeline(tmp_path: Path) -> None:
    """A lock of this host is not seen in Docker Desktop's machine, and would end the command at once."""
    info = {**INFO, "OperatingSystem": "Docker Desktop"}
    engine = TableEngine(cli=program(tmp_path / "docker", f'printf "%s\\n" "$@" >>{tmp_path}/argv'), info=info)
    container.execute(engine, "torchdock-anna", ["true"])
    container.attached(engine, launch(engine))
    container.up(engine, launch(engine, role="up", name="torchdock-anna"))
    said = (tmp_path / "argv").read_text()
    assert said.count("torchdock/cu130:abc") == 2
    assert "lifeline" not in said.lower()


def test_the_values_of_secrets_reach_docker_in_its_environment(tmp_path: Path) -> None:
    engine = TableEngine(cli=program(tmp_path / "docker", f'echo "$1 $API_TOKEN" >>{tmp_path}/got'))
    container.attached(engine, launch(wishes=replace(WISHES, ports=())))
    container.start(engine, launch(role="job", wishes=replace(WISHES, ports=())))
    container.up(engine, launch(role="up", name="n", wishes=replace(WISHES, ports=())))
    assert (tmp_path / "got").read_text() == "run hunter2\n" * 3


def test_a_job_that_docker_refuses_leaves_nothing_but_never_takes_anothers_name(tmp_path: Path) -> None:
    plan = launch(role="job", name="torchdock-anna-night")
    for said, removed in (
        ('The container name "/x" is already in use by container "beef".', []),
        (
            "Bind for 127.0.0.1:8000 failed: port is already allocated.",
            [plan.name],
        ),
    ):
        engine = TableEngine(cli=program(tmp_path / "docker", f"echo '{said}' >&2; exit 125"))
        with pytest.raises(InputError, match="Take another"):
            container.start(engine, plan)
        assert engine.removed == removed


def test_memory_that_was_not_enough_is_said_with_the_code_of_a_kill(tmp_path: Path) -> None:
    class Starved(TableEngine):
        def had(self, name: str, event: str, since: float) -> bool:
            return event == "oom"

    engine = Starved(cli=program(tmp_path / "docker", "exit 137"))
    with pytest.raises(container.OutOfMemory, match=r"\(2\.0 GiB\)\. Ask for more with --memory") as told:
        container.attached(engine, launch(engine, wishes=launches.Wishes(memory=2 << 30)))
    assert told.value.exit_code == 137


def test_a_lost_gpu_is_said_with_a_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file that the container and its client share; whatever the command's own code is."""
    monkeypatch.setattr(lifeline, "FOLDERS", tmp_path / "lines")
    lifeline.FOLDERS.mkdir()
    script = f"""for word; do case $word in *"target={lifeline.WORD}") word=${{word#*source=}}
        test -f "${{word%%,*}}" && echo "off its bus" >"${{word%%,*}}" ;; esac; done; exit $(cat {tmp_path}/code)"""
    engine = TableEngine(cli=program(tmp_path / "docker", script))
    for code in (0, 143):
        (tmp_path / "code").write_text(str(code))
        with pytest.raises(container.LostGpu, match=rf"\(it gave {code}\): off its bus\. Launch it again") as told:
            container.attached(engine, launch(engine, gpus=[GPU]))
        assert told.value.exit_code == 74
        assert container.attached(engine, launch(engine)) == code  # without a GPU there is no such file


@pytest.mark.parametrize(
    ("text", "words"),
    [("", []), ("30", ["TORCHDOCK_WATCH=30"]), ("0", ["TORCHDOCK_WATCH=0"]), ("0.5", ["TORCHDOCK_WATCH=0.5"])],
)
def test_how_often_a_gpu_is_looked_after_is_the_hosts_to_say(
    text: str, words: "list[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDOCK_WATCH", text)
    plan = launch(gpus=[GPU])
    assert [word for word in values(plan, "--env") if "WATCH" in word] == words
    assert not any("WATCH" in word for word in launch().argv)


@pytest.mark.parametrize("text", ["often", "-1", "1e3", "10s"])
def test_a_watch_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="a number of seconds, such as 30"):
        container.watching({"TORCHDOCK_WATCH": text})


# --- who calls ---


def test_the_identity_is_the_callers() -> None:
    who = container.identity(TableEngine())
    assert (who.uid, who.gid, who.root_inside) == (os.getuid(), os.getgid(), False)
    assert set(who.groups) == set(os.getgroups()) - {os.getgid()}
    assert re.fullmatch(r"[a-z0-9_-]+", who.name)
    assert container.identity(TableEngine(info={"SecurityOptions": ["name=rootless"]})).root_inside


@pytest.mark.parametrize(
    ("found", "name"), [(None, "user4711"), ("Anna.Müller@DOMAIN", "annamllerdomain"), ("日本", "user4711")]
)
def test_a_caller_without_a_usable_name_gets_one(
    found: "str | None", name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entry:
        pw_name = found

    def lookup(uid: int) -> Entry:
        if found is None:
            raise KeyError(uid)
        return Entry()

    monkeypatch.setattr(identity.os, "getuid", lambda: 4711)
    monkeypatch.setattr(identity.pwd, "getpwuid", lookup)
    assert container.identity(TableEngine()).name == name


# --- workspaces ---


def myself() -> Identity:
    return Identity(os.getuid(), os.getgid(), (), "me")


def test_a_folder_of_ones_own_is_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(".")
    found = {container.check_workspace(Path(name), myself()) for name in (".", "~", "link", str(tmp_path))}
    assert found == {tmp_path.resolve()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "does not exist. Name a folder of your own with -w DIR, or make it: mkdir -p "),
        ("file", "is no folder"),
        ("file/below", "does not exist"),
        ("x" * 300, "-w DIR"),
        ("~nobody-of-this-name/x", "-w DIR"),
    ],
    ids=["missing", "file", "below a file", "too long", "nobody's home"],
)
def test_what_is_no_folder_is_no_workspace(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as refused:
        container.check_workspace(Path(name) if name.startswith("~") else tmp_path / name, myself())
    assert words in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("owner", "group", "mode", "writable"),
    [
        pytest.param(0, 0, 0o755, True, id="own"),
        pytest.param(0, 0, 0o555, False, id="own, read-only"),
        pytest.param(0, 5, 0o575, False, id="own, writable to the group alone"),
        pytest.param(1000, 1000, 0o755, False, id="another's"),
        pytest.param(1000, 1000, 0o777, True, id="another's, writable to all"),
        pytest.param(1000, 1000, 0o775, False, id="another's, writable to a foreign group"),
        pytest.param(1000, 44, 0o775, True, id="another's, writable to a group of root's"),
        pytest.param(1000, 0, 0o775, True, id="another's, writable to root's own group"),
        pytest.param(1000, 44, 0o757, False, id="another's, closed to a group of root's"),
    ],
)
def test_root_in_a_container_writes_only_what_the_mode_lets_it(
    owner: int, group: int, mode: int, writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = Identity(0, 0, (44,), "root")
    folder = tmp_path / "data"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, owner, group)
        folder.chmod(mode)
    else:  # who may not give folders away: the same facts from stat
        found = os.stat_result((0o040000 | mode, 1, 1, 1, owner, group, 0, 0, 0, 0))
        usual = Path.stat
        monkeypatch.setattr(Path, "stat", lambda self, **more: found if self == folder else usual(self, **more))
    if writable:
        assert container.check_workspace(folder, who) == folder
    else:
        with pytest.raises(InputError, match=rf"belongs to UID {owner} and is not writable for root.*`sudo chown 0 "):
            container.check_workspace(folder, who)


def test_a_folder_that_the_caller_cannot_write_is_no_workspace() -> None:
    with open_folder() as folder:
        folder.chmod(0o555)
        who = Identity(NOBODY, NOBODY, (), "nobody")
        with without_rights(), pytest.raises(InputError, match="not writable for nobody"):
            container.check_workspace(folder, who)
        folder.chmod(0o777)
        with without_rights():
            assert container.check_workspace(folder, who) == folder


def test_a_folder_that_the_caller_cannot_see_is_no_workspace() -> None:
    with open_folder() as folder:
        (folder / "closed" / "data").mkdir(parents=True)
        (folder / "closed").chmod(0)
        with without_rights(), pytest.raises(InputError, match="-w DIR"):
            container.check_workspace(folder / "closed" / "data", Identity(NOBODY, NOBODY, (), "nobody"))
        (folder / "closed").chmod(0o700)


# --- refusals ---


@pytest.mark.parametrize(
    ("said", "kind", "remedy"),
    [
        (
            'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].',
            TorchdockError,
            "install the NVIDIA Container Toolkit",
        ),
        (
            "docker: Error response from daemon: CDI injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1",
            TorchdockError,
            "nvidia-ctk cdi generate",
        ),
        (
            "docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            EngineError,
            "`make up` starts it",
        ),
        (
            "docker: Error response from daemon: mkdir /var/lib/x: no space left on device.",
            TorchdockError,
            "docker builder prune",
        ),
        (
            'docker: Error response from daemon: invalid config for type "bind": bind source path does not exist: /x',
            InputError,
            "A folder to mount does not exist",
        ),
        ("docker: something new\n in two lines", TorchdockError, "something new in two lines `invoke doctor`"),
    ],
)
def test_a_refused_launch_is_one_paragraph_with_a_remedy(said: str, kind: "type[TorchdockError]", remedy: str) -> None:
    told = container.launch_failure(said)
    assert type(told) is kind
    assert str(told).startswith("The container could not be launched: docker: ")
    assert remedy in str(told) and "\n" not in str(told)
