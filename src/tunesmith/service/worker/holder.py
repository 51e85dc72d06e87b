"""Who holds a lease: a process, named so that others on the same machine can see that it is gone.

A lease of a server that was killed would else be waited for until its time is over.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import Lease

_PARTS = 4


def new_holder() -> str:
    """A name for this process that no other, and no earlier one with its pid, ever has."""
    return f"{_machine()} {os.getpid()} {_started(os.getpid())} {secrets.token_hex(4)}"


def surely_gone(holder: str) -> bool:
    """Whether the process of this name ran here and has ended. False where that cannot be known from here."""
    parts = holder.split(" ")
    if len(parts) != _PARTS or parts[0] != _machine() or not parts[1].isdigit():
        return False
    return _started(int(parts[1])) != parts[2]


def is_free(store: Store, name: str) -> bool:
    """Whether nobody has the lease of this name; one whose holder has died on this machine is ended."""
    lease = store.get(Lease, name)
    if lease is None or lease.until <= time.time():
        return True
    if surely_gone(lease.holder):
        store.release(lease)
        return True
    return False


def host() -> str:
    """This machine's name in the names of leases on its devices."""
    return socket.gethostname() or "localhost"


def _machine() -> str:
    """Host, boot and space of process numbers: within one container a pid means something else than beside it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    booted = boot.read_text().strip()[:8] if boot.is_file() else "-"
    return f"{host()}|{booted}|{space.readlink() if space.is_symlink() else '-'}"


def _started(pid: int) -> str:
    """When a process was started, in clock ticks since the boot; empty where there is none, or it has ended already."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]
