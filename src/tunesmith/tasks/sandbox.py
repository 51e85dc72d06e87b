"""Running code that a model wrote, in a process of its own that can compute and nothing else.

The process is a fresh Python without site packages, in an empty folder, without the environment's variables. Before
the code it limits itself: CPU time, memory, size of files; it stops being root; and by a seccomp filter it gives up
the system calls that open sockets, start processes, signal others, or write, rename and remove files. So the code has
no network and leaves nothing behind. What it can still do is read files that any user may read, and lose time; both
are of no use without a way out. Linux on x86-64 and ARM64; elsewhere running is refused.
"""

from __future__ import annotations

import platform
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import ResourceError

MEMORY_BYTES = 512 * 2**20
"""Address space of the process."""
_LONGEST_REPORT = 1_000
Outcome = Literal["passed", "failed", "timeout"]


@dataclass(frozen=True, slots=True)
class Ran:
    """How code ended; `error` is the exception it ended with."""

    outcome: Outcome
    error: str = ""


_RUNNER = r"""
import ctypes, os, resource, struct, sys
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
passed, source = sys.stdin.buffer.read().split(b"\0", 1)
for name in ("array bisect cmath collections copy datetime decimal enum fractions functools heapq itertools json math "
             "operator random re string typing").split():
    __import__(name)  # before it stops being root, who may be the only one to read them
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for what, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 0),
                    (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
    resource.setrlimit(what, (limit, limit))
# By machine: audit number, refused calls, then open and openat (refused for writing), with the place of their flags.
CALLS = {
    "x86_64": (0xC000003E, (41, 42, 43, 44, 46, 49, 50, 53, 56, 57, 58, 59, 62, 76, 77, 82, 83, 84, 85, 86, 87, 88, 90,
               91, 92, 93, 94, 101, 129, 132, 133, 155, 157, 161, 165, 166, 169, 175, 188, 189, 190, 197, 198, 199, 200,
               234, 235, 246, 248, 249, 250, 258, 259, 260, 261, 263, 264, 265, 266, 268, 272, 280, 288, 297, 298, 308,
               310, 311, 313, 316, 317, 320, 321, 322, 323, 424, 425, 426, 427, 434, 435, 437, 438, 439, 452),
               ((2, 1), (257, 2))),
    "aarch64": (0xC00000B7, (5, 6, 7, 14, 15, 16, 33, 34, 35, 36, 37, 38, 39, 40, 45, 46, 51, 52, 53, 54, 55, 88, 97,
                104, 105, 106, 117, 129, 130, 131, 138, 142, 167, 198, 199, 200, 201, 202, 203, 206, 211, 217, 218, 219,
                220, 221, 240, 241, 242, 268, 270, 271, 273, 276, 277, 280, 281, 282, 424, 425, 426, 427, 434, 435, 437,
                438, 439, 452), ((56, 2),)),
}
audit, refused, opening = CALLS[os.uname().machine]
LOAD, EQUAL, ANY, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
if audit == 0xC000003E:  # the second table of calls of this machine
    program += [(0x35, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]
for number in refused:
    program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
for number, place in opening:
    program += [(EQUAL, 0, 4, number), (LOAD, 0, 0, 16 + 8 * place), (ANY, 0, 1, 0o1103 | 0o20000000),
                (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
program.append((RETURN, 0, 0, ALLOW))
code = b"".join(struct.pack("HBBI", *one) for one in program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
ready = Filter(len(program), code)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(ready), 0, 0):
    os.write(1, b"no filter: %d" % ctypes.get_errno()); os._exit(3)
out = os.dup(1)
os.dup2(2, 1)
try:
    exec(compile(source.decode(), "answer.py", "exec"), {"__name__": "__main__"})
except BaseException as error:
    os.write(out, (type(error).__name__ + ": " + str(error)).encode("utf-8", "replace")[:300])
else:
    os.write(out, passed)
"""


def run_python(source: str, time_limit: float) -> Ran:
    """Run Python code; it passes if it reaches its end. Raises `ResourceError` where it cannot be fenced in."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise ResourceError(
            f"code cannot be fenced in on {sys.platform} {platform.machine()}",
            where="task.run_code",
            expected="Linux on x86-64 or ARM64",
            fix="set task.run_code: false, and run the answers elsewhere",
        )
    token = secrets.token_hex(16).encode()
    seconds = str(int(time_limit) + 1)
    with tempfile.TemporaryDirectory(prefix="tunesmith-code-") as folder, tempfile.TemporaryFile() as given:
        given.write(token + b"\0" + source.encode("utf-8", "replace"))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _RUNNER, str(MEMORY_BYTES), seconds],
            stdin=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        stop = threading.Timer(time_limit, process.kill)
        began = time.monotonic()
        with process.stdout as output:
            stop.start()
            said = output.read(_LONGEST_REPORT)  # until it ends or is killed; whatever it floods stays unread
        late = time.monotonic() - began >= time_limit
        stop.cancel()
        process.kill()
        process.wait()
    if said.startswith(b"no filter"):
        raise ResourceError(
            f"code cannot be fenced in: the system refuses the filter ({said.decode()})",
            where="task.run_code",
            expected="a kernel with seccomp",
            fix="set task.run_code: false, and run the answers elsewhere",
        )
    if token in said:
        return Ran("passed")
    return Ran("timeout", f"longer than {time_limit:g} s") if late else Ran("failed", said.decode("utf-8", "replace"))
