"""An answer's text as it grows, fit to be sent: whole characters only, and nothing that may become a stop text.

Tokens are decoded behind those of the piece before, as decoders treat the beginning of a text in their own way. What is
sent in pieces is, joined, what decoding all tokens at once gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Decode = Callable[[list[int]], str]
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_PART = 3
"""Bytes that may be the beginning of a character; decoders show them as one broken character, or one for each."""


@dataclass(slots=True)
class AnswerText:
    """The text of one answer.

    Attributes
    ----------
    stops: texts that end the answer and are not part of it.
    stopped: whether one of them was written.
    """

    decode: Decode
    stops: tuple[str, ...] = ()
    stopped: bool = False
    _ids: list[int] = field(default_factory=list)
    _from: int = 0
    _whole: int = 0
    _out: int = 0
    _held: str = ""
    _sent: int = 0
    _starts: list[int] = field(default_factory=list)
    _told: int = 0

    def add(self, token: int) -> tuple[str, int]:
        """One more token: the text that can be sent now, and how many tokens have begun in what was sent so far."""
        if self.stopped:
            return "", self._told
        self._starts.append(self._sent + len(self._held))
        self._ids.append(token)
        text = self.decode(self._ids[self._from :])
        sure = len(text) - _unsure(text)
        new, self._out = text[self._out : sure], max(self._out, sure)
        if sure == len(text):  # from here on only the tokens since the last such place are needed
            self._from, self._whole = self._whole, len(self._ids)
            self._out = len(self.decode(self._ids[self._from : self._whole]))
        return self._release(self._held + new, last=False)

    def finish(self) -> tuple[str, int]:
        """The rest, where no stop text was written: what was held back, and characters that stayed broken."""
        if self.stopped:
            return "", self._told
        text = self.decode(self._ids[self._from :])
        return self._release(self._held + text[self._out :], last=True)

    def _release(self, text: str, last: bool) -> tuple[str, int]:
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            sent, self._held = text[: min(found)], ""
        else:
            keep = 0 if last else _may_become(text, self.stops)
            sent, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._sent += len(sent)
        if last and not self.stopped:
            self._told = len(self._starts)
        else:  # a token is told with the first text it is part of; one behind a stop text never
            while self._told < len(self._starts) and self._starts[self._told] < self._sent:
                self._told += 1
        return sent, self._told


def _unsure(text: str) -> int:
    """How many of the last characters may still become another one."""
    tail = text[-_LONGEST_PART:]
    return len(tail) - len(tail.rstrip(_BROKEN))


def _may_become(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters are the beginning of a stop text."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[len(text) - size :]
        if any(stop.startswith(tail) for stop in stops):
            return size
    return 0
