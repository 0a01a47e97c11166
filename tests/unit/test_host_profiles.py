"""Profiles: what they add to a launch, and what is said where the host's kernel is against them."""

import pytest

from torchdock import profiles
from torchdock.errors import InputError
from torchdock.profiles import Kernel


def test_debug_adds_two_capabilities_and_the_variable() -> None:
    assert profiles.arguments("debug", "6.1.0-18-amd64") == [
        "--cap-add", "PERFMON", "--cap-add", "SYS_PTRACE", "--env", "TORCHDOCK_PROFILE=debug",
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["4.18.0-553.el8", "5.4.0-200-generic", "5.7"])
def test_an_old_kernel_is_not_asked_for_what_it_does_not_know(version: str) -> None:
    assert "PERFMON" not in profiles.arguments("debug", version)
    (said,) = profiles.hindrances(Kernel(version, 0, 2))
    assert version in said


@pytest.mark.parametrize("version", ["5.8.0", "5.10.0", "6.18.44-fc", "10.0", ""])
def test_a_newer_one_is(version: str) -> None:
    assert "PERFMON" in profiles.arguments("debug", version)


@pytest.mark.parametrize("kernel", [Kernel("6.1", None, None), Kernel("6.1", 0, 2), Kernel("6.1", 0, -1)])
def test_nothing_is_said_where_all_works(kernel: Kernel) -> None:
    assert profiles.hindrances(kernel) == []


@pytest.mark.parametrize(
    ("scope", "paranoid", "said"),
    [
        (1, 2, "ptrace_scope is 1: py-spy and gdb attach to Python processes"),
        (2, 2, "sudo sysctl kernel.yama.ptrace_scope=1"),
        (3, 2, "only a restart of this host changes"),
        (0, 3, "sudo sysctl kernel.perf_event_paranoid=2"),
        (None, 4, "kernel.perf_event_paranoid is 4"),
    ],
)
def test_a_hindrance_says_whom_to_ask_for_what(scope: "int | None", paranoid: int, said: str) -> None:
    (text,) = profiles.hindrances(Kernel("6.1", scope, paranoid))
    assert said in text


def test_settings_of_a_virtual_machine_are_not_ours() -> None:
    assert profiles.gather("6.1", virtual=True) == Kernel("6.1", None, None)


def test_an_unknown_name() -> None:
    assert profiles.check("debug") == "debug"
    for name in ("", "debag", "Debug"):
        with pytest.raises(InputError, match="There is: debug"):
            profiles.check(name)
