"""One turn of the assistant as events, whatever dialect it is told in: text, calls, their arguments, the end.

Whole answers are these events put together (`gathered`), so that a stream and a whole answer cannot differ.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from tunesmith.inference.serving.types import Finish, Piece, TokenScore, Usage


@dataclass(frozen=True, slots=True)
class Said:
    """More text of answer `index`, with the scores of the tokens it is made of where they were asked for."""

    index: int
    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """Answer `index` begins its call number `place` (from 0)."""

    index: int
    place: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """More of the JSON text of a call's arguments."""

    index: int
    place: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Answer `index` is complete; `called` says whether it calls tools."""

    index: int
    finish: Finish
    called: bool = False


TurnEvent = Said | Called | Argued | Ended


@dataclass(slots=True)
class MadeCall:
    """A call as far as it is written."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Turn:
    """One answer, put together."""

    text: str = ""
    calls: list[MadeCall] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish: Finish = "stop"

    def take(self, event: TurnEvent) -> None:
        """Add an event of this answer."""
        match event:
            case Said(_, text, scores):
                self.text += text
                self.scores += scores
            case Called(_, _, id, name):
                self.calls.append(MadeCall(id, name))
            case Argued(_, place, text):
                self.calls[place].arguments += text
            case Ended(_, finish, _):
                self.finish = finish

    def take_piece(self, piece: Piece) -> None:
        """Add a part of an answer in which no calls are looked for."""
        self.text += piece.text
        self.scores += piece.scores
        self.finish = piece.finish or self.finish


async def gathered(events: AsyncIterator[TurnEvent | Usage], count: int) -> tuple[list[Turn], Usage]:
    """All answers of a request, and what they have cost."""
    turns = [Turn() for _ in range(count)]
    usage = Usage(0, 0)
    async for event in events:
        if isinstance(event, Usage):
            usage = event
        else:
            turns[event.index].take(event)
    return turns, usage


class TextReader:
    """An answer in which no calls are looked for."""

    def __init__(self, index: int) -> None:
        self._index = index

    def feed(self, piece: Piece) -> Sequence[TurnEvent]:
        """What a piece adds."""
        made: list[TurnEvent] = []
        if piece.text or piece.scores:
            made.append(Said(self._index, piece.text, piece.scores))
        if piece.finish is not None:
            made.append(Ended(self._index, piece.finish))
        return made
