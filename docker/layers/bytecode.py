"""Compiles every source below a folder that has no bytecode of its own age, the same bytes on every run.

What marshal writes for a string depends on who else holds it at that moment (its FLAG_REF follows the reference count),
so on all that the process compiled before: `compileall -j` gives other bytes whenever its workers get other files. Here
each folder is compiled in order by a process of its own, forked from one state.

Usage: PYTHONHASHSEED=0 python bytecode.py FOLDER
"""

import compileall
import os
import py_compile
import sys

root = sys.argv[1]
running = set()


def wait(limit):
    while len(running) > limit:
        pid, status = os.wait()
        running.discard(pid)
        if status:
            sys.exit(f"torchdock: bytecode: a process ended with {status}")


for folder, folders, files in os.walk(root):
    folders.sort()
    sources = sorted(name for name in files if name.endswith(".py"))
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
