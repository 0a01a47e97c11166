"""Compiles every source below a folder that has no bytecode of its own age, the same bytes on every run.

What marshal writes for a string depends on who else holds it at that moment (its FLAG_REF follows the reference count),
so on all that the process compiled before: `compileall -j` gives other bytes whenever its workers get other files. Here
each folder is compiled in order by a process of its own, forked from one state.

Usage: PYTHONHASHSEED=0 python bytecode.py FOLDER
"""

import compileall
import importlib.util
import os
import py_compile
import struct
import sys

root = sys.argv[1]
running = set()


def wait(limit):
    while len(running) > limit:
        pid, status = os.wait()
        running.discard(pid)
        if status:
            sys.exit(f"torchdock: bytecode: a process ended with {status}")


def stale(path):
    """Whether a source has no bytecode of its own age: its magic number, no flags, then time and size of the source."""
    try:
        with open(importlib.util.cache_from_source(path), "rb") as file:
            there = file.read(16)
    except FileNotFoundError:
        return True
    facts = os.stat(path)
    return there != importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(facts.st_mtime), facts.st_size)


for folder, folders, files in os.walk(root):
    folders.sort()
    # Those alone that need it: a process for each folder of the layers below would take longer than a small layer.
    sources = sorted(name for name in files if name.endswith(".py") and stale(os.path.join(folder, name)))
    if not sources:
        continue
    wait(os.cpu_count() - 1)
    pid = os.fork()
    if pid == 0:
        for name in sources:
            # A few packages ship sources for other Pythons or templates that do not compile; that is not a failure.
            compileall.compile_file(
                os.path.join(folder, name), quiet=2, invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP
            )
        os._exit(0)
    running.add(pid)
wait(0)
