"""Running code that a model wrote, in a process of its own that can compute and nothing else.

The process is a fresh Python without site packages, in an empty folder, without the environment's variables. Before
the code it limits itself: CPU time, memory, size of files; it stops being root; and by a seccomp filter it gives up
the system calls that open sockets, start processes, signal others or change how they run, make memory or queues that
outlive it, or write, rename and remove files. So the code has no network and leaves nothing behind. Where the kernel
has Landlock, it can read the standard library and the system's libraries, and look into no other process. Where it has
not, it reads what its user reads: the files and the processes of whoever runs this or, when that is root, of nobody.
Linux on x86-64 and ARM64; elsewhere running is refused.

This protects the machine, not the score. Code and tests share one process, so an answer that sets out to cheat can say
that it passed. Models do not write that unasked; one that is trained to pass tests may learn it.
"""

from __future__ import annotations

import json
import platform
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import ResourceError

MEMORY_BYTES = 512 * 2**20
"""Address space of the process, unless told otherwise."""
_LONGEST_REPORT = 1_000
Outcome = Literal["passed", "failed", "timeout"]


@dataclass(frozen=True, slots=True)
class Ran:
    """How code ended; `error` is the exception it ended with."""

    outcome: Outcome
    error: str = ""


_RUNNER = r"""
import __future__, ctypes, json, os, resource, struct, sys
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
given = json.load(sys.stdin)
passed, parts = given["token"].encode(), given["parts"]
def stop(why):
    os.write(1, passed + b" " + why.encode("utf-8", "replace")); os._exit(3)
def opened(folder):
    try:
        return os.open(folder, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return -1
readable = [opened(folder) for folder in ("/usr", "/lib", "/lib64", ".", os.path.dirname(os.path.dirname(os.__file__)))]
if os.getuid() == 0:
    # A library under root's own folder is found by its path no longer, but still by a folder that is open.
    held = {place: opened(place) for place in sys.path if os.path.isdir(place)}
    def by_number(path):
        home = max((place for place in held if path == place or path.startswith(place + "/")), key=len, default=None)
        return path if home is None else "/proc/self/fd/%d%s" % (held[home], path[len(home):])
    for paths in [sys.path, *(module.__path__ for module in sys.modules.values() if hasattr(module, "__path__"))]:
        paths[:] = map(by_number, paths)
    sys.path_importer_cache.clear()
    readable += held.values()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for what, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 0),
                    (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
    resource.setrlimit(what, (limit, limit))
# By machine: audit number, refused calls, then open and openat (refused for writing), with the place of their flags,
# and fcntl (refused for sending signals).
CALLS = {
    "x86_64": (0xC000003E, (29, 30, 31, 41, 42, 43, 44, 46, 49, 50, 53, 56, 57, 58, 59, 62, 64, 65, 66, 68, 69, 70, 71,
               76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 101, 129, 132, 133, 141, 142, 144, 155, 157, 161,
               165, 166, 169, 175, 188, 189, 190, 197, 198, 199, 200, 203, 220, 234, 235, 240, 241, 242, 243, 244, 245,
               246, 248, 249, 250, 251, 256, 258, 259, 260, 261, 263, 264, 265, 266, 268, 272, 279, 280, 288, 297, 298,
               302, 308, 310, 311, 313, 314, 316, 317, 320, 321, 322, 323, 424, 425, 426, 427, 434, 435, 437, 438, 439,
               440, 448, 452, 463, 466, 469), ((2, 1), (257, 2)), 72),
    "aarch64": (0xC00000B7, (5, 6, 7, 14, 15, 16, 30, 33, 34, 35, 36, 37, 38, 39, 40, 45, 46, 51, 52, 53, 54, 55, 88,
                97, 104, 105, 106, 117, 118, 119, 122, 129, 130, 131, 138, 140, 142, 167, 180, 181, 182, 183, 184, 185,
                186, 187, 188, 189, 190, 191, 192, 193, 194, 195, 196, 198, 199, 200, 201, 202, 203, 206, 211, 217, 218,
                219, 220, 221, 238, 239, 240, 241, 242, 261, 268, 270, 271, 273, 274, 276, 277, 280, 281, 282, 424, 425,
                426, 427, 434, 435, 437, 438, 439, 440, 448, 452, 463, 466, 469), ((56, 2),), 25),
}
audit, refused, opening, fcntl = CALLS[os.uname().machine]
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
program += [(EQUAL, 0, 6, fcntl), (LOAD, 0, 0, 24), (EQUAL, 2, 0, 8), (EQUAL, 1, 0, 10), (EQUAL, 0, 1, 15),
            (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]  # F_SETOWN, F_SETSIG, F_SETOWN_EX
program.append((RETURN, 0, 0, ALLOW))
code = b"".join(struct.pack("HBBI", *one) for one in program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
ready = Filter(len(program), code)
def call(number, *arguments):
    return libc.syscall(ctypes.c_long(number), *(a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments))
libc.prctl(1, 9, 0, 0, 0)  # killed with whoever waits for it: a parent that is killed leaves nothing running
if libc.prctl(38, 1, 0, 0, 0):
    stop("the system refuses the filter (%d)" % ctypes.get_errno())
READ = 0b1101  # Landlock: run a file, read it, list a folder
rules = call(444, struct.pack("Q", READ), 8, 0)
if rules >= 0:  # else the kernel is older than 5.13, or was built without
    for folder in readable:
        if folder >= 0 and call(445, rules, 1, struct.pack("=Qi", READ, folder), 0):
            stop("the system refuses a rule (%d)" % ctypes.get_errno())
    if call(446, rules, 0):
        stop("the system refuses the rules (%d)" % ctypes.get_errno())
    os.close(rules)
if libc.prctl(22, 2, ctypes.byref(ready), 0, 0):
    stop("the system refuses the filter (%d)" % ctypes.get_errno())
try:
    import colorsys  # any small module that is not loaded yet
except (ImportError, OSError) as error:
    stop("the standard library cannot be read: %s" % error)
futures = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
out = os.dup(1)
os.dup2(2, 1)
try:
    names, flags = {"__name__": "__main__"}, 0
    for part in parts:
        compiled = compile(part, "answer.py", "exec", flags, True)
        flags |= compiled.co_flags & futures
        exec(compiled, names)
except BaseException as error:
    os.write(out, (type(error).__name__ + ": " + str(error)).encode("utf-8", "replace")[:300])
else:
    os.write(out, passed)
"""


def run_python(source: str | Sequence[str], time_limit: float, *, memory: int = MEMORY_BYTES) -> Ran:
    """Run Python code; it passes if it reaches its end. Raises `ResourceError` where it cannot be fenced in.

    source: one text, or several that run one after another and share their names. Each is whole by itself, so that it
    may begin with imports from `__future__`, which hold for those after it too, and leaves no bracket open to another.
    memory: bytes of address space.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise ResourceError(
            f"code cannot be fenced in on {sys.platform} {platform.machine()}",
            where="task.run_code",
            expected="Linux on x86-64 or ARM64",
            fix="set task.run_code: false, and run the answers elsewhere",
        )
    token = secrets.token_hex(16)
    parts = [source] if isinstance(source, str) else list(source)
    seconds = str(int(time_limit) + 1)
    with tempfile.TemporaryDirectory(prefix="tunesmith-code-") as folder, tempfile.TemporaryFile() as given:
        given.write(json.dumps({"token": token, "parts": parts}).encode())
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _RUNNER, str(memory), seconds],
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
    told = said.decode("utf-8", "replace")
    if told.startswith(f"{token} "):
        raise ResourceError(
            f"code cannot be fenced in: {told.removeprefix(token).strip()}",
            where="task.run_code",
            expected="a kernel with seccomp, and a Python that every user may read",
            fix="set task.run_code: false and run the answers elsewhere, or run as another user than root",
        )
    if token in told:
        return Ran("passed")
    return Ran("timeout", f"longer than {time_limit:g} s") if late else Ran("failed", told)
