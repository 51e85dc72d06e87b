"""Examples as tests write them."""

from __future__ import annotations

import hashlib

from tunesmith.data.types import Example, Message


def example(question: str, answer: str, *, closing: str = "", system: str | None = None, line: int = 1) -> Example:
    """One question and its answer; the id is made of both."""
    first = (Message("system", system),) if system is not None else ()
    messages = (*first, Message("user", question), Message("assistant", answer + closing))
    name = hashlib.sha256(f"{question}\0{answer}\0{line}".encode()).hexdigest()[:12]
    return Example(name, messages, answer, line, "rows.csv")
