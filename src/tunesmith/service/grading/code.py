"""Graders written in Python: `grade(sample, item)` in the sandbox that answers of code tasks run in.

A process of its own without network, files to write or third-party packages; at most two minutes and 2 GB. At most
`AT_ONCE` run at the same time.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tunesmith.errors import ResourceError

LARGEST = 256_000
"""Bytes of a source."""
SECONDS = 120.0
MEMORY_BYTES = 2 * 2**30
AT_ONCE = 2
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
"""Of each event loop; a server has one."""

_CALL = """
def _score():
    import json, math
    value = grade(json.loads({sample!r}), json.loads({item!r}))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("grade returned " + type(value).__name__ + ", not a number")
    if not math.isfinite(value):
        raise ValueError("grade returned " + repr(value) + ", not a finite number")
    raise SystemExit({token!r} + repr(float(value)))
_score()
"""


@dataclass(frozen=True, slots=True)
class CodeScore:
    """What a grader returned, or why it did not; `unavailable`: the sandbox could not be had."""

    value: float | None
    error: str | None = None
    unavailable: bool = False


def source_problem(source: str) -> str | None:
    """What is wrong with a source before it is run, as a sentence."""
    size = len(source.encode("utf-8", "surrogatepass"))
    if size > LARGEST:
        return f"The source has {size:,} bytes, but may have at most {LARGEST:,}."
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return f"The source is not Python: line {error.lineno}: {error.msg}."
    except (ValueError, RecursionError, MemoryError):  # null bytes; nested too deeply
        return "The source is not Python that can be read."
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "grade"]
    if not found:
        return "The source defines no function 'grade(sample, item)' at its top level."
    arguments = found[-1].args
    given = len(arguments.posonlyargs) + len(arguments.args)
    if not given - len(arguments.defaults) <= 2 <= given and arguments.vararg is None:
        return f"'grade' takes {given} arguments; it is called with two: grade(sample, item)."
    return None


async def run_code_beside(source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> CodeScore:
    """`run_code` beside the event loop, when one of the places is free.

    In a thread of its own that a server which ends does not wait for: the loop's other threads, which the store needs,
    would be full of graders. The sandbox ends with its thread.
    """
    loop = asyncio.get_running_loop()
    places = _places.setdefault(loop, asyncio.Semaphore(AT_ONCE))
    await places.acquire()
    ended: asyncio.Future[CodeScore] = loop.create_future()

    def tell(score: CodeScore | None, error: BaseException | None) -> None:
        places.release()  # and no earlier: whoever waited may have been cancelled while the sandbox goes on
        if not ended.done():
            ended.set_exception(error) if error is not None else ended.set_result(score)  # type: ignore[arg-type]

    def work() -> None:
        score, failed = None, None
        try:
            score = run_code(source, sample, item)
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, score, failed)

    threading.Thread(target=work, name="python grader", daemon=True).start()
    return await ended


def run_code(source: str, sample: Mapping[str, Any], item: Mapping[str, Any], seconds: float = SECONDS) -> CodeScore:
    """Run `grade(sample, item)`; blocks until it has ended."""
    from tunesmith.tasks.sandbox import run_python

    # The result comes back as the text of an exception. What the answer says is data to the source, never code, so only
    # the source itself could know the token.
    token = secrets.token_hex(16)
    call = _CALL.format(sample=json.dumps(sample), item=json.dumps(item), token=token)
    try:
        ran = run_python([source, call], seconds, memory=MEMORY_BYTES)
    except ResourceError as error:
        return CodeScore(None, error.what, unavailable=True)
    marker = f"SystemExit: {token}"
    if ran.error.startswith(marker):
        return CodeScore(float(ran.error.removeprefix(marker)))
    return CodeScore(None, ran.error or "the source ended the process before 'grade' was called")
