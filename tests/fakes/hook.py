"""nvidia-container-runtime-hook of a driver that is not there; tests.fakes.FakeDriver.write_hook puts the values in.

As the real one it is called as ``prestart`` with the container's state on stdin, before its root is pivoted, reads from
its environment which GPUs it is given, and mounts their files in the container's own mount namespace.
"""

import json
import subprocess
import sys
from pathlib import Path

# VALUES


def wanted(environment: "list[str]") -> "list[str]":
    """UUIDs of the devices that the container asks for by NVIDIA_VISIBLE_DEVICES."""
    asked = dict(word.partition("=")[::2] for word in environment).get("NVIDIA_VISIBLE_DEVICES", "")
    if asked in ("", "void", "none"):
        return []
    if asked == "all":
        return ALL  # noqa: F821
    words = asked.split(",")
    unknown = [word for word in words if word not in KNOWN]  # noqa: F821
    if unknown:
        sys.exit(f"nvidia-container-cli: device error: {unknown[0]}: unknown device (fake)")
    return [KNOWN[word] for word in words]  # noqa: F821


def main() -> None:
    state = json.load(sys.stdin)
    bundle = Path(state.get("bundle") or state["bundlePath"])
    config = json.loads((bundle / "config.json").read_text())
    uuids = wanted(config["process"].get("env") or [])
    if not uuids:
        return
    root = Path(bundle, config["root"]["path"])  # an absolute one stays as it is
    lines = ["set -e"]
    for source, target in [*COMMON, *(one for uuid in uuids for one in FILES[uuid])]:  # noqa: F821
        inside = f"{root}{target}"
        lines += [f"mkdir -p '{Path(inside).parent}'", f"test -e '{inside}' || : > '{inside}'"]
        lines += [f"mount --bind '{source}' '{inside}'", f"mount -o remount,ro,bind,nosuid,nodev '{inside}'"]
    done = subprocess.run(["/usr/bin/nsenter", "--target", str(state["pid"]), "--mount", "/bin/sh", "-c",
                           "\n".join(lines)], capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        sys.exit(f"nvidia-container-cli (fake): {done.stderr.strip()}")


if sys.argv[1:] == ["prestart"]:
    main()
