"""Compiles the sources among the files of a list, the same bytes on every run.

What marshal writes for a string depends on who else holds it at that moment (its FLAG_REF follows the reference count),
so on all that the process compiled before: `compileall -j` gives other bytes whenever its workers get other files. Here
the sources are cut, in order, into parts of about the same size, and each part is compiled by a process of its own that
is forked from one state. Whatever is written or changed gets the time SOURCE_DATE_EPOCH.

Usage: PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=N python bytecode.py <LIST    (paths, each ended by a NUL)
"""

import compileall
import gc
import importlib.util
import os
import py_compile
import sys

PART = 2_000_000  # bytes of sources: a process for each folder took half as long again, most of it in forks
epoch = (int(os.environ["SOURCE_DATE_EPOCH"]),) * 2
running = set()


def wait(limit):
    while len(running) > limit:
        pid, status = os.wait()
        running.discard(pid)
        if status:
            sys.exit(f"torchdock: bytecode: a process ended with {status}")


def compile_part(paths):
    for path in paths:
        # A few packages ship sources for other Pythons or templates that do not compile; that is not a failure.
        compileall.compile_file(path, force=True, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
        made = importlib.util.cache_from_source(path)
        if os.path.exists(made):
            os.utime(made, epoch)


def start(paths):
    wait(os.cpu_count() - 1)
    pid = os.fork()
    if pid == 0:
        compile_part(paths)
        os._exit(0)
    running.add(pid)


gc.disable()  # a part fits into memory, and nothing lives longer
sources = sorted(path for path in sys.stdin.read().split("\0") if path.endswith(".py") and os.path.isfile(path))
part, size = [], 0
for path in sources:
    part.append(path)
    size += os.path.getsize(path)
    if size >= PART:
        start(part)
        part, size = [], 0
start(part)
wait(0)
for folder in {os.path.dirname(path) for path in sources}:
    cache = os.path.join(folder, "__pycache__")
    for path in (cache, folder):
        if os.path.isdir(path):
            os.utime(path, epoch)
