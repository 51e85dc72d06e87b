"""Finding calls in an answer while it is written.

An answer that is held to calls is followed letter by letter: name and arguments are passed on as they come. In a free
one, text that may be the beginning of a call is kept back until it is clear what it is; what is found in the end is
what `text.answers` finds in the whole, as in evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tunesmith.inference.serving.types import Finish, Piece, TokenScore
from tunesmith.service.asking.call_form import CallForm
from tunesmith.service.asking.turns import Argued, Called, Ended, Said, TurnEvent
from tunesmith.text.answers import read_answer
from tunesmith.text.plain_tools import read_call_line

_TAG = "<tool_call>"
_MARKS = ("{", "[", "<|python_tag|>")
_BEGUN_CALL = re.compile(r"[ \t]*(c|ca|cal|call|call .*)?", re.DOTALL)


class FreeReader:
    """An answer that may call tools, written as the model likes. `allowed`: names whose calls are calls."""

    def __init__(self, index: int, new_id: Callable[[], str], *, several: bool = True) -> None:
        self._index, self._new_id, self._several = index, new_id, several
        self._text = ""
        self._told = 0
        self._scores: list[TokenScore] = []

    def feed(self, piece: Piece) -> Sequence[TurnEvent]:
        """What has become clear with a piece."""
        self._text += piece.text
        self._scores += piece.scores
        if piece.finish is not None:
            return self._end(piece.finish)
        clear = clear_length(self._text)
        return self._say(clear) if clear > self._told else ()

    def _say(self, end: int) -> Sequence[TurnEvent]:
        """Pass text on; scores of what is still kept back go with it, as tokens and characters do not coincide."""
        text, scores = self._text[self._told : end], tuple(self._scores)
        self._told, self._scores = max(end, self._told), []
        return [Said(self._index, text, scores)] if text or scores else []

    def _end(self, finish: Finish) -> Sequence[TurnEvent]:
        read = read_answer(self._text)
        if not read.calls:
            return [*self._say(len(self._text)), Ended(self._index, finish)]
        made: list[TurnEvent] = []
        told = self._text[: self._told].lstrip()  # as the content beside calls is
        if len(read.content) > len(told) and read.content.startswith(told):
            made.append(Said(self._index, read.content[len(told) :]))
        for place, call in enumerate(read.calls if self._several else read.calls[:1]):
            made += [Called(self._index, place, self._new_id(), call.name), Argued(self._index, place, call.arguments)]
        return [*made, Ended(self._index, finish, called=True)]


def clear_length(text: str) -> int:
    """How much of an unfinished answer is text whatever comes behind it: not the beginning of a call, and not white
    space before one.
    """
    begun = text.lstrip()
    if begun.startswith(_MARKS) or any(mark.startswith(begun) for mark in (*_MARKS, "[TOOL_CALLS]")):
        return 0
    end = _before_tag(text)
    end = min(end, _before_lines(text))
    return len(text[:end].rstrip())


def _before_tag(text: str) -> int:
    at = text.find(_TAG)
    if at >= 0:
        return at
    return next((len(text) - n for n in range(len(_TAG) - 1, 0, -1) if text.endswith(_TAG[:n])), len(text))


def _before_lines(text: str) -> int:
    """Calls in plain words are the last lines of an answer; empty ones may follow."""
    lines = text.split("\n")
    if not _BEGUN_CALL.fullmatch(lines[-1]):
        return len(text)
    first = len(lines) - 1
    while first > 0 and not lines[first - 1]:
        first -= 1
    while first > 0 and read_call_line(lines[first - 1]) is not None:
        first -= 1
    return sum(len(line) + 1 for line in lines[:first])


class HeldReader:
    """An answer that is held to calls in a form that is known."""

    def __init__(self, index: int, new_id: Callable[[], str], form: CallForm, names: Sequence[str]) -> None:
        self._index, self._new_id = index, new_id
        self._opening: re.Pattern[str] | None = form.opening(names)
        self._next = form.next_opening(names)
        self._rest = ""
        self._object: _ObjectEnd | None = None
        self._place = -1

    def feed(self, piece: Piece) -> Sequence[TurnEvent]:
        """What a piece adds to the calls."""
        self._rest += piece.text
        made: list[TurnEvent] = []
        while self._step(made):
            pass
        if piece.finish is not None:
            if self._place < 0 and self._rest:
                # Cut before the first call was named: what there is is shown.
                made.append(Said(self._index, self._rest))
            made.append(Ended(self._index, piece.finish, called=self._place >= 0))
        return made

    def _step(self, made: list[TurnEvent]) -> bool:
        """Go on by a name or by arguments; False where more text is needed."""
        if self._object is None:
            found = self._opening.match(self._rest) if self._opening is not None else None
            if found is None:
                return False
            self._place += 1
            made.append(Called(self._index, self._place, self._new_id(), found[1]))
            self._rest = self._rest[found.end() :]
            self._object, self._opening = _ObjectEnd(), self._next
            return True
        if not self._rest:
            return False
        taken = self._object.take(self._rest)
        made.append(Argued(self._index, self._place, self._rest[:taken]))
        self._rest = self._rest[taken:]
        if self._object.complete:
            self._object = None
            return True
        return False


class _ObjectEnd:
    """Finds the brace that closes a JSON object."""

    def __init__(self) -> None:
        self.complete = False
        self._depth, self._in_text, self._escaped = 0, False, False

    def take(self, text: str) -> int:
        """How many of these characters belong to the object."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = character == "\\"
                self._in_text = character != '"'
            elif character == '"':
                self._in_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.complete = True
                    return place + 1
        return len(text)
