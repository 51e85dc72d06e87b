"""`file_checks.look_at` in a process of its own, which gives way to everything else on the machine.

Checking rows keeps a core busy for a second for every seven megabytes; in the server's own process nobody's answer
would come in that time. The process holds the end of a pipe whose other end only the server has: when the server is
killed, the pipe ends, and the process with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tunesmith.service.errors import ApiError
from tunesmith.service.file_checks import look_at
from tunesmith.service.ids import Flavour


def look_at_apart(path: Path, filename: str, purpose: str, flavour: Flavour = "openai") -> Mapping[str, Any] | None:
    """The same answer, and the same `ApiError`. Raises `RuntimeError` where the process dies."""
    command = [sys.executable, "-m", __name__, str(path), filename, purpose, flavour]
    ours, the_servers = os.pipe()
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=ours)
    finally:
        os.close(ours)
        os.close(the_servers)
    if done.returncode != 0:
        raise RuntimeError(
            f"checking a file ended with {done.returncode}: {done.stderr[-2000:].decode(errors='replace')}"
        )
    found = json.loads(done.stdout)
    if "refusal" in found:
        refusal = found["refusal"]
        raise ApiError(**{**refusal, "details": tuple(refusal["details"])})
    return cast("Mapping[str, Any] | None", found["report"])


def _main(path: str, filename: str, purpose: str, flavour: str) -> dict[str, Any]:
    os.nice(10)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    try:
        return {"report": look_at(Path(path), filename, purpose, cast(Flavour, flavour))}
    except ApiError as error:
        names = ("status", "message", "kind", "param", "code", "details")
        return {"refusal": {name: getattr(error, name) for name in names}}


def _end_with_the_server() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the pipe ends
    os._exit(1)


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
