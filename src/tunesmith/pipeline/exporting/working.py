"""Where an export is worked on: a folder for large files, lines of progress with the time, library versions."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tunesmith.pipeline.prepare import Listener
from tunesmith.runs.lock import locked
from tunesmith.runs.manifest import versions_of

_LIBRARIES = (
    "tunesmith", "torch", "transformers", "peft", "safetensors", "onnx", "onnxruntime", "onnxruntime-genai", "openvino",
    "gguf", "llama-cpp-python", "torchao",
)  # fmt: skip


def teller(listener: Listener | None) -> Callable[[str], None]:
    """Lines of progress as events, with the seconds since the export began."""
    began = time.monotonic()

    def tell(line: str) -> None:
        if listener is not None:
            listener({"kind": "note", "stage": "export", "text": line, "seconds": time.monotonic() - began})

    return tell


def prefixed(name: str, tell: Callable[[str], None]) -> Callable[[str], None]:
    """Lines of progress that say of which model they are."""
    return lambda line: tell(f"{name}: {line}")


@contextmanager
def scratch_folder(*folders: Path) -> Iterator[Path]:
    """A folder for large files on the way to exports, on the disk of the first; gone afterwards.

    One process at a time writes a path: raises `ResourceError` where another does. What a killed one left is removed.
    """
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(_alone(folder))
        path = Path(tempfile.mkdtemp(prefix=f".{folders[0].name}.", suffix=".tmp", dir=folders[0].parent))
        held.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep others from writing a path, and remove what killed ones left half-written beside it."""
    made = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        with locked(lock, f"{folder.name} there"):
            left = re.compile(rf"\.{re.escape(folder.name)}\.[^.]+\.tmp")
            for path in [one for one in folder.parent.iterdir() if left.fullmatch(one.name)]:
                shutil.rmtree(path, ignore_errors=True)
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        if made:
            with suppress(OSError):  # it holds something
                folder.parent.rmdir()


def versions() -> dict[str, str]:
    """Of the libraries that make exports, those that are installed."""
    return versions_of(_LIBRARIES)
