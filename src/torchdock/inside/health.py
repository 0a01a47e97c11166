"""The state of a GPU by NVML: memory errors, what holds its clocks back, its PCIe link; read, judged, for findings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

# NVML's bits for what holds clocks back. Left out: idle, a power limit at full load and a display, which are usual.
SLOWED = {
    0x08: (
        "error",
        "the hardware slows it down, for heat or its power supply",
        "look at fans, airflow and power cables.",
    ),
    0x40: ("error", "the hardware slows it down for heat", "look at fans, airflow and the temperature of the room."),
    0x80: ("error", "the power supply asks it to slow down", "look at the power supply and its cables."),
    0x20: ("note", "the driver slows it down for heat", "look at fans and airflow; nvidia-smi -q -d TEMPERATURE."),
    0x10: (
        "note",
        "it keeps the pace of the slowest GPU of its group",
        "look for the slow one; nvidia-smi -q -d CLOCK.",
    ),
    0x02: ("note", "an administrator has set its clocks", "sudo nvidia-smi -rac, where that is not meant."),
}
POWER_LIMIT = 0x04
# NVIDIA replaces a board that has retired so many pages (before Ampere; from then on rows are remapped).
PAGES = 60


@dataclass(frozen=True)
class Health:
    """One GPU. None: this part does not tell, or not here.

    corrected, uncorrected: ECC errors since the driver was loaded; ``lifetime``: uncorrected ones in its life.
    retired: pages. remapped: rows, for uncorrected errors. throttle: NVML's bits. temperature: degrees Celsius.
    generation, width: of the PCIe link now; ``most_…``: that GPU and slot can have together.
    """

    uuid: str
    name: str
    ecc: bool | None = None
    ecc_after_reboot: bool | None = None
    corrected: int | None = None
    uncorrected: int | None = None
    lifetime: int | None = None
    retired: int | None = None
    retirement_pending: bool | None = None
    remapped: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    throttle: int | None = None
    temperature: int | None = None
    generation: int | None = None
    most_generation: int | None = None
    width: int | None = None
    most_width: int | None = None

    def worst(self, later: Health) -> Health:
        """Return the two readings as one: all that held it back, its highest temperature, its fastest link."""
        return replace(
            later,
            throttle=_joined(lambda a, b: a | b, self.throttle, later.throttle),
            temperature=_joined(max, self.temperature, later.temperature),
            generation=_joined(max, self.generation, later.generation),
            width=_joined(max, self.width, later.width),
        )


def _joined(join: Callable[[int, int], int], one: int | None, other: int | None) -> int | None:
    return join(one, other) if one is not None and other is not None else one if other is None else other


def read(uuids: set[str]) -> list[Health]:
    """Ask NVML about the GPUs of these plain UUIDs (see ``devices.plain``), or those that these MIG instances are of.

    Raises RuntimeError, in words, where the driver does not answer or a GPU is lost.
    """
    import pynvml

    from torchdock.inside import devices

    try:
        pynvml.nvmlInit()
        try:
            found = []
            for handle, own, instances in devices.units(pynvml):
                if uuids & {own, *instances}:
                    found.append(_read(pynvml, handle, own))
            return found
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML answers with an error: {error}") from error


def _read(pynvml: Any, handle: Any, uuid: str) -> Health:
    silent = tuple(
        getattr(pynvml, f"NVMLError_{name}") for name in ("NotSupported", "FunctionNotFound", "NoPermission")
    )

    def ask(name: str, *more: Any) -> Any:
        try:
            return getattr(pynvml, name)(handle, *more)
        except silent:
            return None

    corrected, uncorrected = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    now, ever = pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC
    causes = (
        pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
        pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
    )
    ecc = ask("nvmlDeviceGetEccMode")
    rows = ask("nvmlDeviceGetRemappedRows")
    # Of a GPU that remaps rows, NVML knows no pages.
    pages = [ask("nvmlDeviceGetRetiredPages", cause) for cause in causes]
    pending = ask("nvmlDeviceGetRetiredPagesPendingStatus")
    name = ask("nvmlDeviceGetName")
    return Health(
        uuid=uuid,
        name=name.decode() if isinstance(name, bytes) else str(name),
        ecc=None if ecc is None else bool(ecc[0]),
        ecc_after_reboot=None if ecc is None else bool(ecc[1]),
        corrected=ask("nvmlDeviceGetTotalEccErrors", corrected, now),
        uncorrected=ask("nvmlDeviceGetTotalEccErrors", uncorrected, now),
        lifetime=ask("nvmlDeviceGetTotalEccErrors", uncorrected, ever),
        retired=None if None in pages else sum(len(found) for found in pages),
        retirement_pending=None if pending is None else bool(pending),
        remapped=None if rows is None else int(rows[1]),
        remap_pending=None if rows is None else bool(rows[2]),
        remap_failed=None if rows is None else bool(rows[3]),
        throttle=ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        temperature=ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        generation=ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        most_generation=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        width=ask("nvmlDeviceGetCurrPcieLinkWidth"),
        most_width=ask("nvmlDeviceGetMaxPcieLinkWidth"),
    )


def broken(health: Health) -> str | None:
    """Return why this GPU belongs out of service, None where nothing says so. Pure."""
    if health.remap_failed:
        return "its memory has no spare rows left for one that failed"
    if health.retired is not None and health.retired >= PAGES:
        return f"{health.retired} pages of its memory have failed"
    return None


def judge(health: Health) -> list[dict[str, str]]:
    """Return what a person should know of a GPU, as the arguments of a finding. Read under load. Pure.

    At rest a GPU slows its clocks and its PCIe link down by itself: only what it does under load tells anything.
    """
    found: list[dict[str, str]] = []
    which = f"{health.name}, GPU-{health.uuid}"

    def tell(severity: str, subject: str, seen: str, meaning: str, remedy: str) -> None:
        said = {"seen": f"{which}: {seen}.", "meaning": meaning, "remedy": remedy}
        found.append({"severity": severity, "subject": subject, **said})

    reset = "end what runs on it, then sudo nvidia-smi --gpu-reset, or reboot the host."
    if health.uncorrected:
        seen = f"{health.uncorrected} memory errors that could not be corrected, since the driver was loaded"
        tell("error", "ECC errors", seen, "What computed then has ended, or has wrong numbers.", reset)
    elif health.lifetime:
        seen = f"{health.lifetime} memory errors in its life could not be corrected; none since the driver was loaded"
        tell(
            "note", "ECC errors", seen, "They were dealt with; more of them tell of failing memory.", "watch the count."
        )
    if health.corrected:
        seen = f"{health.corrected} memory errors were corrected since the driver was loaded"
        meaning = "Results are right; a number that grows from day to day tells of failing memory."
        tell("note", "ECC errors", seen, meaning, "watch the count: nvidia-smi -q -d ECC.")
    if health.ecc is False:
        meaning = "A flipped bit changes numbers and nobody notices."
        tell(
            "note",
            "ECC",
            "ECC is switched off",
            meaning,
            "sudo nvidia-smi -e 1, then reset the GPU, where it is wanted.",
        )
    if health.ecc is not None and health.ecc_after_reboot is not None and health.ecc != health.ecc_after_reboot:
        later = "on" if health.ecc_after_reboot else "off"
        tell("note", "ECC", f"ECC will be {later} after the next reset", "Speed and memory change then.", reset)
    if health.remap_pending or health.retirement_pending:
        seen = "a part of its memory that failed is to be replaced by a spare one at the next reset"
        tell("error", "memory", seen, "Until then it is in use.", reset)
    if health.remapped:
        seen = f"{health.remapped} rows of its memory failed and were replaced by spare ones"
        tell(
            "note",
            "memory",
            seen,
            "It works; the spare ones are limited.",
            "watch the count: nvidia-smi -q -d ROW_REMAPPER.",
        )
    if health.retired:
        seen = f"{health.retired} pages of its memory failed and are no longer used"
        tell("note", "memory", seen, f"It works; at {PAGES} it belongs out of service.", "watch the count.")
    for bit, (severity, seen, remedy) in SLOWED.items():
        # The hardware's general bit stands beside its particular ones.
        if (health.throttle or 0) & bit and not (bit == 0x08 and health.throttle & 0xC0):  # type: ignore[operator]
            tell(severity, "clocks", f"under load {seen}", "It computes slower than others of its kind.", remedy)
    links = [
        (f"{word}{most}", f"{word}{now}")
        for word, now, most in (
            ("generation ", health.generation, health.most_generation),
            ("x", health.width, health.most_width),
        )
        if now is not None and most is not None and now < most
    ]
    if links:
        most, now = (" ".join(words) for words in zip(*links, strict=True))
        seen = f"its PCIe link runs at {now} under load, {most} is possible in this slot"
        remedy = "look at slot, riser and BIOS; a GPU that sits loosely loses lanes."
        tell("note", "PCIe", seen, "Copies between host and GPU are slower.", remedy)
    return found


@contextmanager
def watched(uuids: set[str], every: float = 0.1) -> Iterator[list[Health]]:
    """Read the health of these GPUs again and again while the block works on them; the list is filled when it ends.

    Raises RuntimeError as ``read`` does, at the end of the block.
    """
    worst: dict[str, Health] = {}
    errors: list[RuntimeError] = []
    found: list[Health] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                for health in read(uuids):
                    worst[health.uuid] = worst[health.uuid].worst(health) if health.uuid in worst else health
            except RuntimeError as error:
                errors.append(error)
                return
            done.wait(every)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join(20)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise RuntimeError("NVML gave no answer within 20 s")
    found += worst.values()
