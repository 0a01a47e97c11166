"""Ends a layer: the files of a list get the time SOURCE_DATE_EPOCH, and the Python sources among them bytecode.

The same bytes on every run. What marshal writes for a string depends on who else holds it at that moment (its FLAG_REF
follows the reference count), so on all that the process compiled before: `compileall -j` gives other bytes whenever its
workers get other files. Here the list is cut, in order, into parts of about the same size, and each part is done by a
process of its own that is forked from one state. Not by compileall: that it writes under another name first and looks
at each file four times was a fifth of the time.

Usage: PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=N python -B -S finish.py <LIST    (paths, each ended by a NUL)
"""

import gc
import importlib.util
import marshal
import os
import struct
import sys
import warnings

PART = 2_000_000  # bytes of sources: a process for each folder took half as long again, most of it in forks
ANY = 2_000  # what a file counts that is not compiled
times = (int(os.environ["SOURCE_DATE_EPOCH"]),) * 2
running = set()


def wait(limit):
    while len(running) > limit:
        pid, status = os.wait()
        running.discard(pid)
        if status:
            sys.exit(f"torchdock: finish: a process ended with {status}")


def start(part):
    wait(os.cpu_count() - 1)
    pid = os.fork()
    if pid == 0:
        for path in part:
            os.utime(path, times, follow_symlinks=False)  # first: an edited source is known by its time
            if is_compiled(path):
                compile_source(path)
        os._exit(0)
    running.add(pid)


def is_compiled(path):
    # Not what packages ship to test themselves, an eighth of all: Python compiles that for whoever comes to run it.
    # A link, too: Debian's sitecustomize.py is one.
    return path.endswith(".py") and "/tests/" not in path and os.path.isfile(path)


def compile_source(path):
    with open(path, "rb") as file:
        source, found = file.read(), os.fstat(file.fileno())
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except Exception:  # a MemoryError too: so the parser calls what is too deep for it
        return  # a few packages ship sources for other Pythons, or templates; that is no failure
    made = importlib.util.cache_from_source(path)
    os.makedirs(os.path.dirname(made), exist_ok=True)
    with open(made, "wb") as file:
        # PEP 552: by the time and the size of the source.
        file.write(importlib.util.MAGIC_NUMBER)
        file.write(struct.pack("<III", 0, int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF))
        file.write(marshal.dumps(code))
        file.flush()
        os.fchmod(file.fileno(), (found.st_mode | 0o200) & 0o666)
        os.utime(file.fileno(), times)


warnings.simplefilter("ignore")  # what others' sources should not do
gc.disable()  # a part fits into memory, and nothing lives longer
folders, part, size = set(), [], 0
listed = {path for path in sys.stdin.read().split("\0") if path}
for path in sorted(listed):
    if os.path.isdir(path) and not os.path.islink(path):
        folders.add(path)
        continue
    part.append(path)
    if os.path.islink(path) and (there := os.path.realpath(path)) in listed and os.path.isfile(there):
        os.utime(there, times)  # its bytecode records this one's time, whoever comes to it first
    if is_compiled(path):
        folders |= {os.path.dirname(path), os.path.join(os.path.dirname(path), "__pycache__")}
        size += os.path.getsize(path)
    else:
        size += ANY
    if size >= PART:
        start(part)
        part, size = [], 0
start(part)
wait(0)
for path in folders:  # last: what is written into them changes theirs
    if os.path.isdir(path):
        os.utime(path, times)
