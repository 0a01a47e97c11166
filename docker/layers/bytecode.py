"""Compiles the sources among the files of a list, the same bytes on every run.

What marshal writes for a string depends on who else holds it at that moment (its FLAG_REF follows the reference count),
so on all that the process compiled before: `compileall -j` gives other bytes whenever its workers get other files. Here
the sources are cut, in order, into parts of about the same size, and each part is compiled by a process of its own that
is forked from one state. Whatever is written or changed gets the time SOURCE_DATE_EPOCH.

Without compileall, whose writing to another name first and looking at each file four times took a fifth of the time.

Usage: PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=N python bytecode.py <LIST    (paths, each ended by a NUL)
"""

import gc
import importlib.util
import marshal
import os
import struct
import sys
import warnings

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
        with open(path, "rb") as file:
            source, found = file.read(), os.fstat(file.fileno())
        try:
            code = compile(source, path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError):
            continue  # a few packages ship sources for other Pythons, or templates; that is no failure
        made = importlib.util.cache_from_source(path)
        os.makedirs(os.path.dirname(made), exist_ok=True)
        with open(made, "wb") as file:  # nobody reads it yet, so not by another name first, as py_compile does it
            # PEP 552: by the time and the size of the source.
            file.write(importlib.util.MAGIC_NUMBER)
            file.write(struct.pack("<III", 0, int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF))
            file.write(marshal.dumps(code))
            os.fchmod(file.fileno(), (found.st_mode | 0o200) & 0o666)
            file.flush()
            os.utime(file.fileno(), epoch)


def start(paths):
    wait(os.cpu_count() - 1)
    pid = os.fork()
    if pid == 0:
        compile_part(paths)
        os._exit(0)
    running.add(pid)


warnings.simplefilter("ignore")  # what others' sources should not do
gc.disable()  # a part fits into memory, and nothing lives longer
# Not what packages ship to test themselves, an eighth of all: whoever runs that gets it compiled as Python comes to it.
sources = sorted(
    path
    for path in sys.stdin.read().split("\0")
    if path.endswith(".py") and "/tests/" not in path and os.path.isfile(path)
)
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
