"""Tensors in files, with errors as the operating system tells them.

`safetensors`, `tokenizers` and `torch` wrap a full disk or a missing permission in errors of their own; without this,
what a person can mend would look like a bug of ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

_NUMBER = re.compile(r"\(os error (\d+)\)")


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Within this context what `safetensors` or `tokenizers` could not write to `path` is an `OSError`."""
    try:
        yield
    except Exception as error:
        # `tokenizers` raises an `Exception` of no further kind.
        ours = isinstance(error, SafetensorError) or type(error) is Exception
        number = _NUMBER.search(str(error)) if ours else None
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def save_state(path: Path, state: Any) -> None:
    """`torch.save`, raising `OSError` where the file cannot be written."""
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # After a failed write torch fails once more on closing its archive, and hides the first failure behind it.
            first = error.__context__
            if not isinstance(first, OSError):
                raise
            raise OSError(first.errno, first.strerror, str(path)) from error
