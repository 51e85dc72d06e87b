"""Documents cut into passages that fit beside a question, and the passages nearest to one.

A passage is a stretch of its document, cut where a paragraph or else a sentence ends; only a sentence that is longer
than a passage is cut between words. Neighbours overlap by a few sentences, so that what refers back to the sentence
before is found whole. Sizes are tokens of the model that reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.types import Example
from tunesmith.evaluation.document_files import Document
from tunesmith.evaluation.nearness import Encoder, index_of, nearest_places
from tunesmith.tasks.words import words

OVERLAP = 8
"""A passage begins with at most one of so many parts of the one before it."""
_SPARE = 4
"""Passages looked up beyond those wanted, in place of some that hold the row."""
_OWN_ROW_WORDS = 4
"""A shorter question stands in many texts that are not the row: it counts where a passage says little else."""
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE = re.compile(
    r"(?<=[.!?…])[\"'”’»)\]]*\s+"
    r"|(?<=[。！？])[”」』）]*"
    r"|\n(?=[ \t]*(?:[-*+•|#]|\d+[.)]))"  # items of a list, headings, lines of a table
)
_WORD = re.compile(r"\s+")

Count = Callable[[Sequence[str]], Sequence[int]]
"""Tokens of each of several texts, counted together because that is quicker."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document, from character `start` on."""

    text: str
    document: Document
    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is not cut: text[start:end] and its tokens; `paragraph` says whether a paragraph begins with it."""

    start: int
    end: int
    tokens: int
    paragraph: bool


def cut(document: Document, size: int, count: Count) -> list[Passage]:
    """The passages of a document, of at most `size` tokens each (a single word may be longer).

    A passage that is at least half full ends before a paragraph that fits into the next one whole.
    """
    units = list(_units(document.text, size, count))
    made: list[Passage] = []
    first = 0
    while first < len(units):
        last = _last_of(units, first, size)
        start, end = units[first].start, units[last].end
        made.append(Passage(document.text[start:end], document, start, sum(u.tokens for u in units[first : last + 1])))
        if last + 1 == len(units):
            break
        # Back by what may be repeated, but always on: the next passage ends behind this one.
        back, repeated = last + 1, 0
        while back - 1 > first and repeated + units[back - 1].tokens <= size // OVERLAP:
            back -= 1
            repeated += units[back].tokens
        first = back if _last_of(units, back, size) > last else last + 1
    return made


def cut_all(documents: Sequence[Document], size: int, count: Count) -> tuple[Passage, ...]:
    """The passages of all documents, in order."""
    return tuple(passage for document in documents for passage in cut(document, size, count))


class PassageFinder:
    """The passages nearest to a question, by shared words or by an encoder.

    A passage that holds a row itself, its question and its expected answer, is never given for that row: it would be
    the solution. `held_out` are the rows for which that happened.
    """

    def __init__(self, passages: Sequence[Passage], encoder: Encoder | None = None) -> None:
        self.passages = tuple(passages)
        self._index = index_of([_searched(passage) for passage in self.passages], encoder, "passage")
        self._words: dict[int, list[str]] = {}
        self.held_out: set[str] = set()

    def nearest(self, example: Example, k: int) -> tuple[Passage, ...]:
        """The k passages nearest to `example`'s question, most similar first."""
        if k < 1:
            return ()
        for most in (k + _SPARE, len(self.passages)):
            found: list[Passage] = []
            for place in nearest_places(self._index, example.question, most):
                if self._holds(place, example):
                    self.held_out.add(example.id)
                else:
                    found.append(self.passages[place])
                if len(found) == k:
                    return tuple(found)
        return tuple(found)

    def expect(self, examples: Sequence[Example]) -> None:
        """These will be asked about next (see `Index.expect`)."""
        self._index.expect([example.question for example in examples])

    def _holds(self, place: int, example: Example) -> bool:
        question, expected = words(example.question), words(example.expected)
        if place not in self._words:
            self._words[place] = words(self.passages[place].text)
        said = self._words[place]
        telling = len(question) >= _OWN_ROW_WORDS or len(said) <= 2 * (len(question) + len(expected))
        return bool(question) and telling and _contains(said, question) and _contains(said, expected)


def with_passages(example: Example, passages: Sequence[Passage]) -> Example:
    """The row with these passages before its last question, each under the name of its document."""
    if not passages:
        return example
    place = max((i for i, m in enumerate(example.prompt) if m.role == "user"), default=None)
    if place is None:
        return example
    named = [f"[{n}] {passage.document.name}\n{passage.text.strip()}" for n, passage in enumerate(passages, 1)]
    shown = "\n\n".join(named)
    asked = example.messages[place]
    content = f"These passages may help:\n\n{shown}\n\nThe question:\n{asked.content}"
    messages = (*example.messages[:place], replace(asked, content=content), *example.messages[place + 1 :])
    return replace(example, messages=messages)


def _contains(said: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether these words stand in a text one after the other."""
    return f" {' '.join(wanted)} " in f" {' '.join(said)} "


def _searched(passage: Passage) -> str:
    """What is looked through: the passage, and what its document is about."""
    return f"{passage.document.title}\n{passage.text}" if passage.document.title else passage.text


def _last_of(units: Sequence[_Unit], first: int, size: int) -> int:
    """The last unit of a passage that begins with `first`."""
    last, total = first, units[first].tokens
    while last + 1 < len(units) and total + units[last + 1].tokens <= size:
        last += 1
        total += units[last].tokens
    if last + 1 == len(units) or units[last + 1].paragraph:
        return last
    # The next unit goes on with a paragraph that begins within this passage: leave all of it to the next, if it fits.
    begin = last + 1
    while begin > first and not units[begin].paragraph:
        begin -= 1
    end = next((i for i in range(begin + 1, len(units)) if units[i].paragraph), len(units))
    before = sum(unit.tokens for unit in units[first:begin])
    fits = sum(unit.tokens for unit in units[begin:end]) <= size
    return begin - 1 if begin > first and fits and 2 * before >= size else last


def _units(text: str, size: int, count: Count) -> Iterator[_Unit]:
    """Sentences, in pieces where they are longer than a passage; white space belongs to what stands before it."""
    sentences = [
        (start, end, place == 0)
        for paragraph in _spans(text, 0, len(text), _PARAGRAPH)
        for place, (start, end) in enumerate(_spans(text, *paragraph, _SENTENCE))
    ]
    tokens = count([text[start:end] for start, end, _ in sentences]) if sentences else ()
    for (start, end, opens), held in zip(sentences, tokens, strict=True):
        if held <= size:
            yield _Unit(start, end, held, opens)
            continue
        for piece in _pieces(text, start, end, size, count):
            yield _Unit(*piece, paragraph=opens and piece[0] == start)


def _pieces(text: str, start: int, end: int, size: int, count: Count) -> Iterator[tuple[int, int, int]]:
    """Runs of the words of a sentence that fit: (start, end, tokens)."""
    spans = list(_spans(text, start, end, _WORD))
    begin, until, held = start, start, 0
    for (first, last), more in zip(spans, count([text[first:last] for first, last in spans]), strict=True):
        if until > begin and held + more > size:
            yield begin, until, held
            begin, held = first, 0
        until, held = last, held + more
    yield begin, until, held


def _spans(text: str, start: int, end: int, mark: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Stretches that end behind each mark, without gaps; none that are only white space, which joins its neighbour."""
    begin = start
    for match in mark.finditer(text, start, end):
        if match.end() > begin and text[begin : match.end()].strip() and text[match.end() : end].strip():
            yield begin, match.end()
            begin = match.end()
    if text[begin:end].strip():
        yield begin, end
