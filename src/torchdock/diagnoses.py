"""From the evidence of a host with GPUs to findings: what was seen, the reason, the exact remedy. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchdock import choice, host
from torchdock.cdi import Device
from torchdock.evidence import Containers, Host
from torchdock.findings import Finding
from torchdock.gpus import Gpu
from torchdock.passthrough import GENERATE, Attempt, Way
from torchdock.variants import Variant, numbers

SHM_BYTES = 1 << 30
OPEN_FILES = 4096  # Docker 29 with containerd 2.1.5 gives 1024, and DataLoader workers open more
REBOOT = "Reboot the host, or unload and load the driver's kernel modules with no process on a GPU."
XID = "`sudo dmesg | grep -i xid` tells the cause; `sudo nvidia-smi --gpu-reset` or a reboot brings it back."
MISMATCH, LOST = 18, (15, 16, 999)


def is_fake(driver: str) -> bool:
    """Whether this is the driver of the tests."""
    return "fake" in driver.lower()


def obstacle(variant: Variant, gpu: Gpu, architecture: str) -> str:
    """Why a variant does not compute on a GPU, its code and not the driver being meant; empty where it does."""
    facts = host.HostGpu(gpu.uuid, gpu.name, gpu.compute_capability)
    return choice.obstacle(variant, facts, driver="", architecture=architecture)


# --- the host ---------------------------------------------------------------------------------------------------------


def gpus(found: Host, variant: Variant, *, architecture: str) -> list[Finding]:
    """The GPUs of this host, each as a launch would have it, and why there are none."""
    inventory = found.inventory
    findings = []
    if not inventory.gpus and not inventory.cut:
        broken = inventory.broken or found.seen is None or found.seen["code"] not in (0, 12)
        remedy = XID if broken else f"{variant.name} computes on the CPU here."
        findings.append(Finding("gpus", "GPUs", "error" if broken else "note", f"none: {inventory.reason}", remedy))
    for gpu in inventory.gpus:
        size = f"{gpu.memory_total / 2**30:.0f} GiB" if gpu.memory_total else "the host's memory"
        why = obstacle(variant, gpu, architecture)  # the driver has a finding of its own, one for all GPUs
        remedy = f"{variant.name} {why}, so this GPU is handed to no container of it." if why else ""
        seen = f"{gpu.name}, {size}, {gpu.uuid}"
        findings.append(Finding("gpus", f"GPU {gpu.label}", "note" if why else "good", seen, remedy))
        if not gpu.memory_total:
            findings.append(
                Finding(
                    "gpus",
                    f"memory of GPU {gpu.label}",
                    "note",
                    "NVML gives none (Not Supported): the GPU shares the host's memory",
                    "Nothing to repair: --min-memory passes it over; `torch.cuda.mem_get_info()` tells what is free.",
                )
            )
    for fault in inventory.faults:
        findings.append(Finding("gpus", "GPU fault", "error", fault, XID))
    findings += _mig(found)
    return findings


def _mig(found: Host) -> list[Finding]:
    """MIG: one process computes on one instance, and a GPU that is cut without any is of no use."""
    findings = []
    for gpu in found.inventory.cut:
        parts = [part for part in found.inventory.gpus if part.parent == gpu.uuid]
        if not parts:
            seen = f"GPU {gpu.index} ({gpu.uuid}) is in MIG mode and has no instance: nothing computes on it"
            remedy = (
                f"`sudo nvidia-smi mig -i {gpu.index} -cgi 0 -C` makes one, `sudo nvidia-smi -i {gpu.index} -mig 0` "
                f"switches it off; then {GENERATE}."
            )
            findings.append(Finding("gpus", "MIG", "error", seen, remedy))
    return findings


def driver(found: Host, variant: Variant) -> list[Finding]:
    """The driver: one version throughout, new enough for the variant, and answering."""
    inventory, seen = found.inventory, found.seen
    if seen is None:
        what = "the NVIDIA driver gave no answer (nvmlInit and what follows was given up)"
        return [Finding("gpus", "driver", "error", what, f"A GPU or the driver hangs: {XID}")]
    if seen["code"] == MISMATCH or (found.module and found.library and found.module != found.library):
        what = (
            f"its kernel module is {found.module or 'of one version'} and its libraries are "
            f"{found.library or 'of another'} (NVML: {seen['error'] or 'they differ'}): it was updated while it ran"
        )
        return [Finding("gpus", "driver", "error", what, REBOOT)]
    if seen["code"] not in (0, 12) and not inventory.gpus:
        what = f"NVML's {seen['call']} gives {seen['code']} ({seen['error']})"
        return [Finding("gpus", "driver", "error", what, XID if seen["code"] in LOST else REBOOT)]
    if not inventory.driver:
        return []
    what = f"driver {inventory.driver}"
    if is_fake(inventory.driver):
        note = Finding(
            "gpus", "fake driver", "note", f"{what}: the one of torchdock's tests, nothing computes on it",
            "For real work unset LD_LIBRARY_PATH, or remove its CDI specification; `make test-gpu` refuses it.",
        )  # fmt: skip
    findings = [note] if is_fake(inventory.driver) else []
    needed = numbers(variant.driver)
    if numbers(inventory.driver) and numbers(inventory.driver) < needed:
        remedy = f"Install driver {variant.driver} or newer: CUDA {variant.cuda} does not start on an older one."
        return [*findings, Finding("gpus", "driver", "error", what, remedy)]
    findings.append(Finding("gpus", "driver", "good", what))
    major, minor = divmod(seen["cuda"] // 10, 100)
    wanted = numbers(variant.cuda) if variant.cuda else ()
    if len(wanted) > 1 and major == wanted[0] and minor < wanted[1]:
        what = f"the driver knows CUDA {major}.{minor}, and {variant.name} is built with {variant.cuda}"
        remedy = (
            "What is compiled to PTX by that release (torch.compile with its own ptxas does not, extensions may) fails "
            "with error 222: build extensions for the GPU itself (TORCH_CUDA_ARCH_LIST=native), or update the driver."
        )
        findings.append(Finding("gpus", "CUDA of the driver", "note", what, remedy))
    return findings


def specifications(found: Host) -> list[Finding]:
    """The CDI specifications: readable, of this host as it is now, and taken by the engine as they are meant."""
    if not found.inventory.gpus:
        return []
    findings, known, named = [], found.catalogue.devices, 0
    ours = {name for gpu in found.inventory.gpus for name in (gpu.uuid, gpu.label)}
    for file in found.catalogue.files:
        if file.error:
            remedy = f"Every user's tools and a rootless engine read it: `sudo chmod 644 {file.path}`, or {GENERATE}."
            seen = f"{file.path} cannot be read ({file.error})"
            findings.append(Finding("gpus", "CDI file", "error", seen, remedy))
            continue
        mine = [device for device in file.devices if device.name in ours]
        named += len(mine)
        if mine and (why := _stale(found, (file.common, *mine))):
            seen = f"{file.path} is stale: {why}. A container by it has no GPU, or one on which cuInit fails"
            findings.append(Finding("gpus", "CDI specification", "error", seen, f"Make it anew: {GENERATE}."))
        findings += _shadowed(found, file.path.name, mine)
    missing = [gpu.uuid for gpu in found.inventory.gpus if gpu.uuid not in known and gpu.label not in known]
    if missing and named:
        seen = f"no CDI specification that can be used names {', '.join(missing)} (another file names it too?)"
        findings.append(Finding("gpus", "CDI", "note", seen, f"Keep one file alone, and make it anew: {GENERATE}."))
    elif missing:
        remedy = f"{GENERATE} makes one; until then GPUs go by --gpus, whose devices a systemd reload can take away."
        findings.append(Finding("gpus", "CDI", "note", "no CDI specification names these GPUs", remedy))
    elif not found.cdi:
        remedy = 'Put {"features": {"cdi": true}} into /etc/docker/daemon.json and restart the engine.'
        findings.append(Finding("gpus", "CDI", "note", "the engine has CDI switched off", remedy))
    return findings


def _stale(found: Host, devices: Sequence[Device]) -> str:
    for device in devices:
        for node in device.nodes:
            now = found.live.get(node.path)
            if now is None:
                return f"{node.path}, which it names, is not there"
            if node.major is not None and node.minor is not None and now != (node.major, node.minor):
                return f"{node.path} is {now[0]}:{now[1]} now, and {node.major}:{node.minor} in it"
        for path in device.mounts:
            if found.live.get(path) is None:
                return f"{path}, which it names, is not there: the driver was updated since"
    return ""


def _shadowed(found: Host, name: str, mine: Sequence[Device]) -> list[Finding]:
    known = found.catalogue.devices
    other = [device.name for device in mine if device.name in known and known[device.name] != device]
    if not other:
        return []
    seen = f"a later folder says something else of {', '.join(other)} than {name}, and engines take that"
    remedy = f"Keep one of them: what is in /var/run/cdi goes before /etc/cdi. {GENERATE} makes it anew."
    return [Finding("gpus", "CDI override", "note", seen, remedy)]


def use(found: Host) -> list[Finding]:
    """Who computes on the GPUs: with a lease, without one, or nobody that is left."""
    findings = []
    labels = {gpu.uuid: gpu.label for gpu in found.inventory.gpus}
    for one in found.uses:
        label, held = labels[one.gpu], found.leases.get(one.gpu)
        index = label.partition(":")[0]
        if one.gone:
            seen = f"the driver counts PID {one.pid}, which no process of this host has: what it left holds memory"
            remedy = (
                f"`sudo fuser -v /dev/nvidia{index}` shows who has it open, to be ended; where nobody has, "
                f"`sudo nvidia-smi -i {index} --gpu-reset`."
            )
            findings.append(Finding("gpus", f"orphan on GPU {label}", "error", seen, remedy))
            continue
        if held is not None and held.held and held.container == one.name:
            continue
        where = f"container {one.name or one.container[:12]}" if one.container else "no container"
        beside = f", beside {held.container}, which has the lease" if held is not None and held.held else ""
        seen = f"PID {one.pid} of {one.user or 'another user'}, in {where}, computes on it without a lease{beside}"
        remedy = (
            "Launches pass it over while that runs. Ask its owner to launch with torchdock, which leases, or to end "
            "it; within a container this process is not seen, `invoke gpus` shows it."
        )
        findings.append(Finding("gpus", f"use of GPU {label}", "note", seen, remedy))
    return findings


def surroundings(found: Host) -> list[Finding]:
    """What the engine and the editor make of GPUs."""
    findings = []
    present = bool(found.inventory.gpus)
    if present and found.rootless and not found.cdi and found.cgroups is not False:
        seen = (
            "the engine is rootless, and the toolkit's hook makes device rules, as root may: Insufficient Permissions"
        )
        remedy = (
            f"Use CDI ({GENERATE}); else `sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place`, "
        )
        findings.append(
            Finding("gpus", "rootless GPUs", "error", seen, remedy + "which then holds for every engine of this host.")
        )
    runtime = "nvidia" in found.runtimes
    if runtime and not present:
        seen = "the engine has a runtime named nvidia, and this host has no GPU: editors that go by it ask for one"
        remedy = "Remove it: `sudo nvidia-ctk runtime configure --runtime=docker --remove`, and restart the engine."
        findings.append(Finding("gpus", "editor", "note", seen, remedy))
    elif found.editor and present and not runtime:
        seen = (
            f"{found.editor[0]} asks the editor for a GPU, which looks for a runtime named nvidia; this engine has none"
        )
        remedy = (
            "Leave `hostRequirements.gpu` away, as this clone's .devcontainer does: it asks a real container instead."
        )
        findings.append(Finding("gpus", "editor", "note", seen, remedy))
    return findings


# --- containers -------------------------------------------------------------------------------------------------------


def passage(found: Containers, here: Host) -> list[Finding]:
    """Whether a container gets exactly the GPU that it is given, and by which way."""
    findings: list[Finding] = []
    ways: dict[Way, tuple[Gpu, tuple[Attempt, ...]]] = {}
    for gpu, tried in found.attempts:
        last = tried[-1]
        for one in tried:
            findings += _told_of(gpu, one, here)
        if last.why:
            said = "; ".join(f"by {one.way.value}, {one.why}" for one in tried)
            remedy = f"Install the NVIDIA Container Toolkit, then {GENERATE}; restart the engine."
            remedy = XID if last.silent else remedy
            findings.append(
                Finding("gpus", "passthrough", "error", f"no way hands GPU {gpu.label} to a container: {said}", remedy)
            )
        elif last.way is not Way.CDI:
            ways.setdefault(last.way, (gpu, tried))
    for way, (_, tried) in ways.items():
        whys = "; ".join(f"{one.way.value}: {one.why}" for one in tried[:-1])
        reload_ = " The engine's cgroups are systemd's: a daemon-reload takes such a GPU away from containers that run."
        seen = f"GPUs go by {way.value} ({whys}).{reload_ if here.systemd else ''}"
        remedy = f"CDI keeps them: {GENERATE}, with CDI switched on in the engine."
        findings.append(Finding("gpus", "passthrough", "note", seen, remedy))
    if found.attempts and not findings:
        findings.append(
            Finding("gpus", "passthrough", "good", "by CDI, and a container sees exactly the GPU that it is given")
        )
    return list(dict.fromkeys(findings))


def _told_of(gpu: Gpu, one: Attempt, here: Host) -> list[Finding]:
    """What one container told that had this GPU."""
    if one.seen is None:
        return []
    closed = [path for path, code in one.seen["nodes"].items() if code]
    fine_here = here.seen is not None and here.seen["code"] == 0
    if one.seen["code"] in (*LOST, 4) and fine_here:
        code = f"{one.seen['code']} ({one.seen['error']})"
        what = f"NVML works on the host, and in a container that has its GPU by {one.way.value} it gives {code}"
        what += f"; {', '.join(closed)} cannot be opened" if closed else ""
        remedy = (
            f"The device rules are lost or wrong. Launch anew; by CDI they stay ({GENERATE}), and restart the engine."
        )
        return [Finding("gpus", "GPU access", "error", what, remedy)]
    more = set(one.seen["visible"]) - {gpu.uuid}
    if one.seen["code"] == 0 and more:
        what = f"by {one.way.value} a container that was given {gpu.uuid} sees {', '.join(sorted(more))} too"
        remedy = (
            "Others' GPUs are open to it. Remove NVIDIA_VISIBLE_DEVICES from images and torchdock.toml, never use "
            f"--privileged, and make the CDI specification anew: {GENERATE}."
        )
        return [Finding("gpus", "isolation", "error", what, remedy)]
    return []


def bare(found: Containers) -> list[Finding]:
    """A container that was given no GPU has none, and the image no part of a driver."""
    if found.bare is None:
        remedy = "`invoke build` makes the image anew; `docker info` shows what the engine says of itself."
        return [Finding("container", "launch", "error", f"no container starts: {found.bare_error}", remedy)]
    findings = []
    others = found.bare["visible"] if found.bare["code"] == 0 else []
    if others:
        what = f"a container that was given no GPU sees {', '.join(sorted(others))}"
        remedy = (
            'Take "default-runtime": "nvidia" out of /etc/docker/daemon.json and NVIDIA_VISIBLE_DEVICES out of the '
            "image: the two let every container at every GPU."
        )
        findings.append(Finding("gpus", "isolation", "error", what, remedy))
    elif found.bare["libraries"]:
        what = f"the image {found.image} has a driver's libraries in it: {', '.join(found.bare['libraries'][:3])}"
        remedy = (
            "They go before the host's own, and fail with its kernel module (Driver/library version mismatch): build "
            "the image anew (`invoke build --no-cache`), without packages named libnvidia-* or libcuda*."
        )
        findings.append(Finding("container", "driver in the image", "error", what, remedy))
    return findings


def launch(found: Containers) -> list[Finding]:
    """What a launch is like from within: limits, identity, files."""
    inside = found.inside
    if inside is None:
        seen = f"a container of {found.image} gave no answer: {found.inside_error}"
        return [Finding("container", "launch", "error", seen, "`invoke build --no-cache` makes the image anew.")]
    findings = []
    if inside["shm"] < SHM_BYTES:
        seen = f"/dev/shm is {inside['shm'] >> 20} MiB: DataLoader workers die of a bus error, and NCCL fails"
        remedy = "Take shm_size out of torchdock.toml, or ask for 1g or more (--shm-size); it counts as --memory."
        findings.append(Finding("container", "shared memory", "error", seen, remedy))
    if inside["open_files"] < OPEN_FILES:
        seen = f"a container may open {inside['open_files']} files: workers fail with `Too many open files`"
        remedy = (
            "Raise the engine's own limit (`LimitNOFILE=1048576` in its unit, or `ulimit -n` before `dockerd`) and "
            "restart it."
        )
        findings.append(Finding("container", "open files", "error", seen, remedy))
    if not inside["user"]:
        seen = f"UID {inside['uid']} has no entry in the container's passwd: getpass.getuser() fails with a KeyError"
        remedy = "The image's entrypoint makes one: build it anew (`invoke build --no-cache`)."
        findings.append(Finding("container", "user", "error", seen, remedy))
    for what, name in (("workspace", "files"), ("home", "home")):
        if inside[what]:
            seen = f"the container cannot write {inside[what]}"
            remedy = (
                "Correct the owner of the workspace (`sudo chown -R $USER .`), or take a folder of your own with -w."
            )
            if what == "home":
                remedy = "Build the image anew (`invoke build --no-cache`): its /home is to be open to every user."
            findings.append(Finding("container", name, "error", seen, remedy))
    if found.owner is not None and found.owner != found.uid:
        seen = f"what a container writes belongs to UID {found.owner} on the host, and you are UID {found.uid}"
        remedy = (
            "The engine maps users in a way that torchdock does not know; `docker info` names its security options."
        )
        findings.append(Finding("container", "files", "error", seen, remedy))
    if not findings:
        seen = (
            f"{inside['shm'] / 2**30:.1f} GiB of /dev/shm, {inside['open_files']} open files, user {inside['user']}, "
            "and what it writes is yours"
        )
        findings.append(Finding("container", "launch", "good", seen))
    return [*findings, *_order(inside)]


def _order(inside: Mapping[str, Any]) -> list[Finding]:
    """Whether an index means the same GPU to everybody."""
    given = inside["environment"]
    hidden, order = given.get("CUDA_VISIBLE_DEVICES"), given.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    wrong = []
    if hidden is not None and any(word.strip().isdigit() for word in hidden.split(",")):
        wrong.append(f"CUDA_VISIBLE_DEVICES={hidden} hides GPUs by index, and an index is another GPU after a reboot")
    if order != "PCI_BUS_ID":
        wrong.append(f"CUDA_DEVICE_ORDER={order}: CUDA counts the fastest first, and nvidia-smi by PCI bus")
    if not wrong:
        return []
    remedy = "Take it out of torchdock.toml and name GPUs by UUID: `--gpus UUID`; in the container that one is cuda:0."
    return [Finding("gpus", "GPU order", "note", "; ".join(wrong), remedy)]


def torch(found: Containers, here: Host, variant: Variant) -> list[Finding]:
    """torch itself: it imports, its torchvision is of the same build, and it computes on the GPU that it was given."""
    if found.inside is None:
        return []
    facts = found.inside["torch"]
    if "error" in facts:
        remedy = "Build the image anew (`invoke build --no-cache`); `invoke test --quick` shows more."
        return [Finding("container", "torch", "error", f"it cannot be imported: {facts['error']}", remedy)]
    findings = []
    if facts["nms"]:
        seen = f"its operators fail beside torch {facts['version']}: {facts['nms']}"
        remedy = "The two are of different builds: `invoke lock`, then `invoke build`; and install neither by hand."
        findings.append(Finding("container", "torchvision", "error", seen, remedy))
    else:
        findings.append(
            Finding("container", "torch", "good", f"torch {facts['version']} and torchvision's operators work")
        )
    gpu = found.given
    if gpu is None or is_fake(here.inventory.driver):
        return findings
    code = found.inside["cuda_code"]
    if code == 802:
        remedy = "Start the fabric manager on the host: `sudo systemctl enable --now nvidia-fabricmanager`."
        return [*findings, Finding("gpus", "CUDA", "error", "cuInit gives 802: the NVSwitch fabric is not up", remedy)]
    if not facts["devices"]:
        what = "there is no CUDA library of the driver in the container" if code == -1 else f"cuInit gives {code}"
        seen = f"NVML shows {gpu.uuid}, and torch sees no GPU ({what}): tests that skip without one would pass"
        remedy = f"Make the CDI specification anew ({GENERATE}): a stale one brings old device numbers or no libcuda."
        return [*findings, Finding("gpus", "CUDA", "error", seen, remedy)]
    if facts["kernel"]:
        seen = f"a kernel fails on {gpu.name} (built for {', '.join(facts['archs'])}): {facts['kernel']}"
        remedy = f"{variant.name} has no code for it: `invoke doctor --variant cu126` examines another; else {XID}"
        return [*findings, Finding("gpus", "kernels", "error", seen, remedy)]
    return [*findings, Finding("gpus", "CUDA", "good", f"torch computes on {gpu.name}")]
