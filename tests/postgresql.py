"""A real PostgreSQL server of our own, where its programs are installed."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
USER = "rows"


@contextmanager
def postgresql_server() -> Iterator[str]:
    """`postgresql://rows@/postgres?host=FOLDER` of a server that listens on a socket in a new folder only; skips with
    the reason where none can be started.
    """
    programs, run_as = server_programs(), unprivileged()
    # Not in tmp_path: another user must reach it, and a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    data = folder / "data"
    try:
        if run_as:
            shutil.chown(folder, run_as[2])

        def run(program: str, *arguments: str) -> None:
            command = [*run_as, str(programs / program), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, check=False)
            if done.returncode:
                pytest.skip(f"{program} fails here: {(done.stderr or done.stdout).strip()[:300]}")

        run("initdb", "-D", str(data), "-U", USER, "--auth=trust", "--encoding=UTF8", "--no-sync", "--locale=C")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-t", "30", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://{USER}@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def server_programs() -> Path:
    """Where `initdb` and `pg_ctl` are; skips with the reason where a server cannot be started."""
    found = next((folder for folder in reversed(BINARIES) if (folder / "initdb").is_file()), None)
    if found is None and (ctl := shutil.which("pg_ctl")) is not None:
        found = Path(ctl).resolve().parent
    if found is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (extra postgres)")
    return found


def unprivileged() -> list[str]:
    """What a command begins with so that it does not run as root, which the server refuses."""
    if os.geteuid() != 0:
        return []
    if shutil.which("runuser") is None:
        pytest.skip("the server does not run as root, and there is no runuser")
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return ["runuser", "-u", name, "--"]
    pytest.skip("the server does not run as root, and there is no other user")
