"""What two rows are compared by: their input, or all of it, as one normalised text.

System messages are left out of comparisons by likeness: a long one that all rows share would make any two rows alike.
So is what all inputs begin or end with (a template's literal text), once there are enough rows to call it that.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.types import Example, Message

PromptKey = tuple[tuple[str, str], ...]
Part = Literal["row", "input"]

FRAME_ROWS = 50
"""Rows from which a beginning or ending that all inputs share counts as a template and not as content."""

_SYSTEM = ("system", "developer")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # soft hyphen, zero-width space, word joiner, mark


def normalised(text: str) -> str:
    """The form under which two texts count as the same: compatibility-composed (NFKC), without invisible characters,
    case folded, runs of white space one space, ends stripped.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
    return " ".join(text.casefold().split())


def text_key(text: str) -> int:
    """64 bits of BLAKE2b over a text: among n texts two differ and agree in it with probability n² / 2^65."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def asked(example: Example) -> tuple[Message, ...]:
    """The input: all turns before the answer, or all turns where there is no answer to tell apart."""
    return example.messages if example.kind in ("text", "prompt") else example.prompt


def prompt_key(example: Example) -> PromptKey:
    """What makes two inputs the same: roles and contents of all turns of the input."""
    return tuple((turn.role, turn.content) for turn in asked(example))


def turn_text(turn: Message) -> str:
    """What a turn says: its content, and the calls it makes."""
    calls = "".join(f"\n{call.name} {call.arguments}" for call in turn.tool_calls)
    return f"{turn.content}{calls}"


def input_text(example: Example) -> str:
    """The input without system messages, normalised."""
    return _joined(asked(example))


def row_text(example: Example) -> str:
    """All turns but system messages, normalised."""
    return _joined((*example.messages, *example.rejected))


def _joined(turns: Iterable[Message]) -> str:
    return normalised("\n".join(turn_text(turn) for turn in turns if turn.role not in _SYSTEM))


@dataclass(frozen=True, slots=True)
class Frame:
    """What all inputs begin and end with, in characters of the normalised text."""

    head: int = 0
    tail: int = 0

    def cut(self, text: str) -> str:
        """The text without its frame."""
        return text[self.head : len(text) - self.tail] if self.head or self.tail else text


def common_length(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def common_frame(examples: Sequence[Example]) -> Frame:
    """The beginning and the ending that the inputs of all rows share, cut back to whole words.

    Fewer than `FRAME_ROWS` rows have none, nor have rows whose inputs are all the same.
    """
    if len(examples) < FRAME_ROWS:
        return Frame()
    first = last = input_text(examples[0])
    least = greatest = first[::-1]
    shortest = len(first)
    for example in examples[1:]:
        text = input_text(example)
        first, last = min(first, text), max(last, text)
        backwards = text[::-1]
        least, greatest = min(least, backwards), max(greatest, backwards)
        shortest = min(shortest, len(text))
    if first == last:
        return Frame()
    head = first[: common_length(first, last)].rfind(" ") + 1
    tail = least[: common_length(least, greatest)].rfind(" ") + 1
    return Frame(head, min(tail, max(0, shortest - head)))


class RowTexts:
    """The texts that rows are compared by, made when asked for: a million rows are not copied."""

    def __init__(self, examples: Sequence[Example], part: Part, frame: Frame) -> None:
        self.examples, self.part, self.frame = examples, part, frame

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> str:
        example = self.examples[index]
        if self.part == "input":
            return self.frame.cut(input_text(example))
        if not (self.frame.head or self.frame.tail) or example.kind in ("text", "prompt"):
            return self.frame.cut(row_text(example))
        answer = _joined((example.messages[-1], *example.rejected))
        return f"{self.frame.cut(input_text(example))} {answer}".strip()
