"""What is asked of one launch: mounts, variables, files of them, ports, sizes, times; read, checked, merged."""

from dataclasses import replace
from pathlib import Path

import pytest

from torchdock import launch
from torchdock.errors import InputError
from torchdock.launch import EnvFile, Mount, Port, Variable, Wishes

# --- secrets ---


@pytest.mark.parametrize(
    "name",
    [
        *("PASSWORD", "DB_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "REDIS_PASSWD", "SSH_PASSPHRASE", "db_password"),
        *("SECRET", "AWS_SECRET_ACCESS_KEY", "CLIENT_SECRET", "GOOGLE_APPLICATION_CREDENTIALS"),
        *(
            "TOKEN",
            "HF_TOKEN",
            "GITHUB_TOKEN",
            "TOKENS",
            "HF_TOKEN_2",
            "HF_TOKEN2",
            "TOKEN_READ",
            "hf_token",
            "hfToken",
        ),
        *("WANDB_API_KEY", "OPENAI_API_KEY", "APIKEY", "KEY", "SSH_KEY", "AWS_ACCESS_KEY_ID", "PRIVATE_KEY", "apiKey"),
        *("DB_PASS", "SMTP_PASS", "PGPASS", "SSHPASS", "PASS", "dbPass", "MYSQL_ROOT_PASS", "JWT", "SESSION_JWT"),
        *("ACCESSTOKEN", "ACCESS_TOKEN", "MY_AUTHTOKEN", "SLACK_WEBHOOK_URL", "WEBHOOK"),
        *("BASIC_AUTH", "AUTH", "SESSION_COOKIE", "GITHUB_PAT", "SENTRY_DSN", "BEARER", "BEARER_1", "DB_PW"),
    ],
)
def test_the_name_of_a_secret_tells(name: str) -> None:
    assert launch.is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("KEYBOARD", "MONKEY", "TOKENIZERS_PARALLELISM", "TOKENIZER", "AUTHOR", "PATH", "PATTERN", "PWD", "OLDPWD"),
        *("BYPASS", "BYPASS_CACHE", "COMPASS", "COMPASS_HOME", "PASSES", "NUM_PASSES", "LOWPASS", "PASSIVE", "bypass"),
        *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MODE", "LANG", "TURKEY", "monkey"),
    ],
)
def test_the_name_of_anything_else_does_not(name: str) -> None:
    assert not launch.is_secret(name)


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ("https://anna:hunter2@index.example.org/simple", True),
        ("https://:hunter2@index.example.org/simple", True),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", True),
        ("https://index.example.org/simple", False),
        ("https://anna@index.example.org/", False),
        ("git@github.com:a/b", False),
        ("https://example.org/a:b@c", False),
        ("", False),
    ],
)
def test_a_value_can_tell_too(value: str, secret: bool) -> None:
    assert launch.is_secret("MODE", value) is secret


def test_a_workspace_names_patterns_of_its_own() -> None:
    assert launch.is_secret("MY_SERVICE_X", patterns=["MY_SERVICE_*"])
    assert not launch.is_secret("my_service_x", patterns=["MY_SERVICE_*"])


# --- mounts ---


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("{}/data:/data", ("data", "/data", False)),
        ("{}/data:/data:ro", ("data", "/data", True)),
        ("{}/data:/data:rw", ("data", "/data", False)),
        ("data:/data", ("data", "/data", False)),
        ("./data:/data/", ("data", "/data", False)),
        ("link:/data", ("data", "/data", False)),
        ("file:/etc/app.toml:ro", ("file", "/etc/app.toml", True)),
        ("a,b:/a,b", ("a,b", "/a,b", False)),
        ("a b:/a b:ro", ("a b", "/a b", True)),
        ("a:b:/data", ("a:b", "/data", False)),
        ("a:ro:/data", ("a:ro", "/data", False)),
        ("data:/workspace/data", ("data", "/workspace/data", False)),
        ("data:/ro", ("data", "/ro", False)),
        ("~/data:/data", ("data", "/data", False)),
    ],
)
def test_a_mount_is_read(
    text: str, mount: "tuple[str, str, bool]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "a,b", "a b", "a:b", "a:ro"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.setenv("HOME", str(tmp_path))
    source, target, read_only = mount
    assert launch.mount(text.format(tmp_path), tmp_path) == Mount(tmp_path / source, target, read_only)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a mount is SRC:DST"),
        ("/data", "a mount is SRC:DST"),
        (":/data", "a mount is SRC:DST"),
        ("/:", "a mount is SRC:DST"),
        ("/:data", "'data' is no absolute path"),
        ("/:/data:readonly", "'readonly' is no option of a mount"),
        ("/:/data:ro,z", "'ro,z' is no option of a mount"),
        ("/:/data/../etc", "is no absolute path in the container"),
        ("/:/workspace", "/workspace is torchdock's own place"),
        ("/:/workspace/:ro", "/workspace is torchdock's own place"),
        ("/:/", "/ belongs to the container"),
        ("/:/dev/shm", "torchdock's own place"),
        ("/:/cache", "the mount would hide or damage. Choose another one, such as /data."),
        ("/:/cache/hub", "/cache/hub is torchdock's own place"),
        (
            "/no/such:/data",
            "/no/such does not exist, and torchdock makes no folders on the host. Correct it, or make it",
        ),
        ("/no/such folder:/data", "mkdir -p '/no/such folder'"),
        ("loop:/data", "cannot be used"),
        (f"{'x' * 300}:/data", "cannot be used"),
    ],
)
def test_a_wrong_mount_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError) as refused:
        launch.mount(text, tmp_path)
    assert str(refused.value).startswith(f"-v {text}: ") and told in str(refused.value)


# --- variables ---

HERE = {"MODE": "fast", "HF_TOKEN": "hunter2", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "variable"),
    [
        ("MODE=slow", Variable("MODE", "slow", False)),
        ("MODE=", Variable("MODE", "", False)),
        ("MODE=a=b", Variable("MODE", "a=b", False)),
        ("MODE=two\nlines", Variable("MODE", "two\nlines", False)),
        ("MODE", Variable("MODE", "fast", True)),
        ("EMPTY", Variable("EMPTY", "", True)),
        ("HF_TOKEN", Variable("HF_TOKEN", "hunter2", True)),
        ("HF_TOKEN=x", Variable("HF_TOKEN", "x", True)),
        ("URL=http://a:b@c/", Variable("URL", "http://a:b@c/", True)),
        ("MINE_1=x", Variable("MINE_1", "x", True)),
    ],
)
def test_a_variable_is_given_by_name_where_it_is_a_secret(text: str, variable: Variable) -> None:
    assert launch.variable(text, HERE, patterns=["MINE_*"]) == variable


@pytest.mark.parametrize(
    "text",
    [
        "DOCKER_HOST=tcp://anna:hunter2@elsewhere:2375",
        *("LD_PRELOAD=/hunter2.so", "HOME=/hunter2", "PATH=/hunter2", "DOCKER_CONFIG=/hunter2", "XDG_RUNTIME_DIR=/"),
        *(
            "CONTAINER_HOST=ssh://hunter2",
            "CONTAINERS_CONF=/hunter2",
            "SSL_CERT_FILE=/x",
            "OTEL_EXPORTER_OTLP_HEADERS=x",
        ),
    ],
)
def test_a_secret_value_cannot_change_docker_itself(text: str) -> None:
    """docker takes such a value from its own environment, where it reads these as well."""
    name = text.partition("=")[0]
    for env in ({}, {name: "another"}):
        with pytest.raises(InputError, match=rf"^-e {name}: .* --env-file") as refused:
            launch.variable(text, env, patterns=["*"])
        assert "hunter2" not in str(refused.value)
    value = text.partition("=")[2]
    assert launch.variable(name, {name: value}) == Variable(name, value, True)  # docker has that one already
    assert launch.variable(text, {name: value}, patterns=["*"]) == Variable(name, value, True)


@pytest.mark.parametrize("name", ["DOCKER_PASSWORD", "DOCKER_HUB_TOKEN", "GOOGLE_API_KEY", "STORAGE_ACCOUNT_KEY"])
def test_a_secret_that_docker_does_not_read_goes_by_name(name: str) -> None:
    assert launch.variable(f"{name}=hunter2", {}) == Variable(name, "hunter2", True)


def test_what_everybody_may_see_stands_in_the_command_whatever_docker_reads() -> None:
    assert launch.variable("LD_PRELOAD=/lib/x.so", {}) == Variable("LD_PRELOAD", "/lib/x.so", False)


def test_on_request_any_variable_is_a_secret() -> None:
    assert launch.variable("MODE=slow", {}, secret=True) == Variable("MODE", "slow", True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "-e: a variable is NAME=VALUE"),
        ("=hunter2", "-e: a variable is NAME=VALUE"),
        ("1A=hunter2", "-e 1A: a variable is"),
        ("A B=hunter2", "-e A B: a variable is"),
        ("hunter2 is no name", "-e: a variable is"),
        ("É=hunter2", "-e É: a variable is"),
        ("A-B", "-e: a variable is"),
        ("UNSET", "-e UNSET: UNSET is not set in this shell. Set it (export UNSET=…)"),
        ("TORCHDOCK_USER=x", "names that begin with TORCHDOCK_ are torchdock's own"),
        ("A=hunter2\0", "a NUL character"),
    ],
)
def test_a_wrong_variable_is_told_without_its_value(text: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        launch.variable(text, HERE)
    assert told in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_wrong_secret_names_its_option() -> None:
    with pytest.raises(InputError, match=r"^--secret UNSET: "):
        launch.variable("UNSET", {}, secret=True)


def test_no_value_of_a_variable_is_shown() -> None:
    assert "hunter2" not in repr(launch.variable("HF_TOKEN", HERE))


# --- files of variables ---


@pytest.mark.parametrize(
    "text", ["", "A=1\n", "A=1\r\nB\r\n", "# a comment\n\n  \nA=b c\n  B=1\n", "\ufeffA=1\n", 'A=it\'s "so"\n']
)
def test_a_file_of_variables_is_read_as_docker_reads_it(text: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(text)
    found = launch.env_file(".env", tmp_path)
    assert found.path == tmp_path / ".env"
    (tmp_path / ".env").write_text(text + "C=1\n")
    assert launch.env_file(str(tmp_path / ".env"), Path("/")).digest != found.digest


def test_a_file_tells_the_names_that_it_gives_a_value_and_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET_HERE", "hunter2")
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    (tmp_path / ".env").write_text("A=hunter2\r\n# C=1\n\n  B=\nSET_HERE\nNOT_SET_HERE\n")
    found = launch.env_file(".env", tmp_path)
    assert found.names == {"A", "B", "SET_HERE"}
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"A=1\nexport B=hunter2\n", "line 2: what stands before = is no name of a variable. A line is NAME=VALUE, "),
        (b"A=1\nexport B=hunter2\n", "Leave `export` away."),
        (b"A = hunter2\n", "line 1: what"),
        (b"=hunter2\n", "line 1: what"),
        (b"\xff\n", "is no UTF-8 text"),
        (None, "there is no file"),
    ],
)
def test_a_wrong_line_of_a_file_is_told_without_its_value(content: "bytes | None", told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / ".env").write_bytes(content)
    with pytest.raises(InputError) as refused:
        launch.env_file(".env", tmp_path)
    assert told in str(refused.value) and str(tmp_path / ".env") in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_folder_is_no_file_of_variables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        launch.env_file(".", tmp_path)


# --- ports ---


@pytest.mark.parametrize(
    ("text", "port", "word"),
    [
        ("8000", Port(8000, 8000), "127.0.0.1:8000:8000"),
        ("8080:80", Port(8080, 80), "127.0.0.1:8080:80"),
        ("0.0.0.0:8080:80", Port(8080, 80, "0.0.0.0"), "0.0.0.0:8080:80"),
        ("[::1]:8080:80", Port(8080, 80, "[::1]"), "[::1]:8080:80"),
        ("::1:8080:80", Port(8080, 80, "[::1]"), "[::1]:8080:80"),
    ],
)
def test_a_port_is_on_this_host_alone_unless_another_address_is_named(text: str, port: Port, word: str) -> None:
    assert launch.port(text) == port
    assert port.word == word


def test_a_free_port_is_the_engines_choice() -> None:
    assert Port(0, 80).word == "127.0.0.1::80"


@pytest.mark.parametrize(
    "text",
    [
        *("", "http", "0", "65536", "-1", "80:", ":80", "8000:x", "80/tcp", "8000-8010", "1e3", "²", "9" * 5000),
        *("example.org:80:80", "256.0.0.1:80:80", ":80:80", "a:b:c:d"),
    ],
)
def test_a_wrong_port_is_told(text: str) -> None:
    with pytest.raises(InputError, match=r"^-p .*: (a port is PORT or HOST:CONTAINER|.* is no address)"):
        launch.port(text)


def test_a_port_that_is_taken_is_told_with_another_one() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {number} of 127.0.0.1 cannot be used .*-p \d+:80, or stop"):
            launch.check_ports([Port(number, 80)])
    launch.check_ports([Port(number, 80), Port(0, 80)])


# --- sizes, CPUs, times ---


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("1", 1), ("512b", 512), ("1k", 1 << 10), ("512m", 512 << 20), ("16g", 16 << 30), ("1.5g", 3 << 29)),
        *((" 2G ", 2 << 30), ("2GB", 2 << 30), ("2gib", 2 << 30), ("2 g", 2 << 30), ("1t", 1 << 40)),
    ],
)
def test_a_size_is_read_as_docker_reads_it(text: str, size: int) -> None:
    assert launch.size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "g", "0", "-1g", "1x", "1gg", "1e3", "1,5g", "0.1b", "9" * 400, "2000000t", "٣g"])
def test_a_wrong_size_is_told(text: str) -> None:
    with pytest.raises(InputError, match=r"^--memory .*: a size is a number with m or g"):
        launch.size(text, "--memory")


@pytest.mark.parametrize(("text", "number"), [("2", 2.0), ("1.5", 1.5), ("0.01", 0.01), (" 4 ", 4.0)])
def test_cpus_are_read(text: str, number: float) -> None:
    assert launch.cpus(text) == number


@pytest.mark.parametrize("text", ["", "0", "0.001", "-1", "1e1", "nan", "inf", "all", "1,5", "0x2", "9" * 400])
def test_wrong_cpus_are_told(text: str) -> None:
    with pytest.raises(InputError, match=r"^--cpus .*: a number of CPUs is"):
        launch.cpus(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45s", 45),
        ("90m", 5400),
        ("8h", 28800),
        ("1d12h", 129600),
        ("1h30m15s", 5415),
        (" 8H ", 28800),
        ("366d", 31622400),
    ],
)
def test_a_time_is_read(text: str, seconds: int) -> None:
    assert launch.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "0s", "-1h", "1.5h", "8 h", "8h!", "8hours", "367d", "9" * 400 + "s"])
def test_a_wrong_time_is_told(text: str) -> None:
    with pytest.raises(InputError, match=r"^--time .*: a time is a number with s, m, h or d"):
        launch.duration(text)


# --- the workspace's defaults and the command line ---

DATA = Mount(Path("/a"), "/data")
DEFAULTS = Wishes(
    mounts=(DATA, Mount(Path("/b"), "/more")),
    variables=(Variable("A", "1", False), Variable("B", "1", False)),
    files=(EnvFile(Path("/x"), "0"),),
    ports=(Port(8000, 8000), Port(6006, 6006)),
    memory=1 << 30,
    cpus=1.0,
    shm=1 << 29,
)


def test_the_command_line_stands_above_the_file() -> None:
    asked = Wishes(
        mounts=(Mount(Path("/c"), "/data", True),),
        variables=(Variable("B", "2", False), Variable("C", "2", False)),
        files=(EnvFile(Path("/y"), "1"),),
        ports=(Port(9000, 8000),),
        memory=2 << 30,
    )
    assert launch.merge(DEFAULTS, asked) == Wishes(
        mounts=(Mount(Path("/c"), "/data", True), Mount(Path("/b"), "/more")),
        variables=(Variable("A", "1", False), Variable("B", "2", False), Variable("C", "2", False)),
        files=(EnvFile(Path("/x"), "0"), EnvFile(Path("/y"), "1")),
        ports=(Port(6006, 6006), Port(9000, 8000)),
        memory=2 << 30,
        cpus=1.0,
        shm=1 << 29,
    )
    assert launch.merge(DEFAULTS, launch.NOTHING) == DEFAULTS
    assert launch.merge(launch.NOTHING, asked) == asked


def test_a_typed_file_stands_above_the_variables_of_the_workspaces_file() -> None:
    """docker itself puts every variable above every file of them."""
    typed = EnvFile(Path("/y"), "1", frozenset({"B", "C"}))
    assert launch.merge(DEFAULTS, Wishes(files=(typed,))).variables == (Variable("A", "1", False),)
    both = launch.merge(DEFAULTS, Wishes(files=(typed,), variables=(Variable("C", "2", False),)))
    assert both.variables == (Variable("A", "1", False), Variable("C", "2", False))
    named = launch.merge(replace(DEFAULTS, files=(typed,)), launch.NOTHING)  # in one file, as docker has it
    assert named.variables == DEFAULTS.variables


def test_what_is_given_twice_is_a_mistake() -> None:
    twice = (Variable("A", "1", False), Variable("A", "2", False))
    with pytest.raises(InputError, match="-e is given twice for A"):
        launch.merge(launch.NOTHING, Wishes(variables=twice))
    with pytest.raises(InputError, match="-v is given twice for /data"):
        launch.merge(launch.NOTHING, Wishes(mounts=(DATA, replace(DATA, source=Path("/z")))))
    with pytest.raises(InputError, match=r"-p is given twice for port 80 of 127\.0\.0\.1"):
        launch.merge(launch.NOTHING, Wishes(ports=(Port(80, 1), Port(80, 2))))
