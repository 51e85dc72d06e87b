"""Documents cut into passages that fit beside a question, and the passages nearest to one.

A passage is a stretch of its document, cut where a paragraph or else a sentence ends; only a sentence that is longer
than a passage is cut between words. Neighbours overlap by a few sentences, so that what refers back to the sentence
before is found whole. Sizes are tokens of the model that reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
_NEAR = 1500
"""Characters between a row's question and its answer at most, where a document counts as holding the row."""
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
    the solution. Nor is one that holds the answer, or a part of it, where its question stands close by in the same
    document. `held_out` are the rows for which that happened.
    """

    def __init__(self, passages: Sequence[Passage], encoder: Encoder | None = None) -> None:
        self.passages = tuple(passages)
        self._index = index_of([_searched(passage) for passage in self.passages], encoder, "passage")
        self._places: dict[Document, list[int]] = {}
        for place, passage in enumerate(self.passages):
            self._places.setdefault(passage.document, []).append(place)
        self._spoken: dict[Document, _Spoken] = {}
        self.held_out: set[str] = set()

    def nearest(self, example: Example, k: int) -> tuple[Passage, ...]:
        """The k passages nearest to `example`'s question, most similar first."""
        if k < 1:
            return ()
        row = _Row(words(example.question), words(example.expected))
        for most in (k + _SPARE, len(self.passages)):
            found: list[Passage] = []
            for place in nearest_places(self._index, example.question, most):
                if row.stands_in(self._said_in(self.passages[place].document), place):
                    self.held_out.add(example.id)
                else:
                    found.append(self.passages[place])
                if len(found) == k:
                    return tuple(found)
        return tuple(found)

    def expect(self, examples: Sequence[Example]) -> None:
        """These will be asked about next (see `Index.expect`)."""
        self._index.expect([example.question for example in examples])

    def _said_in(self, document: Document) -> _Spoken:
        if document not in self._spoken:
            self._spoken[document] = _spoken({place: self.passages[place] for place in self._places[document]})
        return self._spoken[document]


@dataclass(frozen=True, slots=True)
class _Spoken:
    """The words of a document with a space before and behind each; `spans` are those of its passages, by their place.

    Neighbouring spans share the space between them.
    """

    text: str
    spans: Mapping[int, tuple[int, int]]


def _spoken(passages: Mapping[int, Passage]) -> _Spoken:
    """The words of the document that these passages are of, each part of its text read once."""
    ends = {place: (one.start, one.start + len(one.text)) for place, one in passages.items()}
    whole = next(iter(passages.values())).document.text
    marks = sorted({0, len(whole), *(mark for pair in ends.values() for mark in pair)})
    at, parts = {0: 0}, [" "]
    for start, end in pairwise(marks):
        said = "".join(f"{word} " for word in words(whole[start:end]))
        at[end] = at[start] + len(said)
        parts.append(said)
    return _Spoken("".join(parts), {place: (at[start], at[end] + 1) for place, (start, end) in ends.items()})


class _Row:
    """A row by its words, looked for in documents."""

    def __init__(self, question: Sequence[str], expected: Sequence[str]) -> None:
        self._question, self._expected = (f" {' '.join(part)} " if part else "" for part in (question, expected))
        self._words = len(question) + len(expected)
        self._telling = len(question) >= _OWN_ROW_WORDS

    def stands_in(self, document: _Spoken, place: int) -> bool:
        """Whether a passage says the row's answer, or a part of it, where its question stands in it or near by.

        An answer without words (a number of stars, a smiley) is taken to be said wherever the question is.
        """
        if not self._question:
            return False
        start, end = document.spans[place]
        said = document.text[start:end]
        if self._question in said and self._expected in said:
            return self._telling or said.count(" ") - 1 <= 2 * self._words
        if not self._telling or not self._expected:
            return False
        return any(
            answer < end - 1 and start < answer + len(self._expected) - 1
            for question in _places_of(self._question, document.text, 0, len(document.text))
            for answer in _places_of(self._expected, document.text, *self._around(question))
        )

    def _around(self, question: int) -> tuple[int, int]:
        """Where the answer may stand to a question that begins there."""
        reach = _NEAR + len(self._expected)
        return max(0, question - reach), question + len(self._question) + reach


def _places_of(wanted: str, text: str, start: int, end: int) -> Iterator[int]:
    """Where a text stands within another one."""
    place = text.find(wanted, start, end)
    while place >= 0:
        yield place
        place = text.find(wanted, place + 1, end)


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
