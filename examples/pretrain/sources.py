"""Reading and cleaning the texts, and deciding what stays out: nothing here knows about tokens.

Every reader yields documents as lists of paragraphs, so that later cuts fall between paragraphs.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Paragraphs = list[str]

HELD_OUT_SOURCES = frozenset({"tldr", "medquad", "gsm8k"})
"""Instruction sources on which tuned models are measured; no row of them is learnt."""

HELD_OUT_DOLLY_BYTES = 26
"""A Dolly row stays out if the first byte of sha256(tidied prompt) is below this: 26 of 256, 10.2 %."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One instruction and its answer."""

    source: str
    prompt: str
    response: str


def read_text(path: Path) -> str:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def dolly_is_held_out(prompt: str) -> bool:
    """The rule that keeps a tenth of Dolly for evaluation.

    `prompt` is the instruction, and if there is a context an empty line and the context. It is tidied first, so the
    rule says the same of the row as published and as learnt.
    """
    return hashlib.sha256(tidy_lines(prompt).encode()).digest()[0] < HELD_OUT_DOLLY_BYTES


def one_percent(key: str) -> bool:
    """A fixed one in a hundred (655 of 65,536) by sha256, whatever the order of the file."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:2], "big") < 655


# --- Wikipedia -------------------------------------------------------------------------------------------------------

_EMPTY_BRACKETS = re.compile(r" ?\((?:[\s,;:]|or|and)*\)")
_BRACKET_START = re.compile(r"\([\s,;]+(?=\w)")


def read_wiki(path: Path) -> Iterator[tuple[str, Paragraphs]]:
    """Yield (title, paragraphs with the title first) per article; articles are separated by an empty line."""
    for block in read_text(path).split("\n\n"):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        title = tidy(lines[0])
        body = [clean for line in lines[1:] if (clean := clean_wiki_line(line))]
        # An article of which less than 200 characters are left is a stub or a list.
        if sum(map(len, body)) >= 200:
            yield title, [title, *body]


def clean_wiki_line(line: str) -> str:
    """The line as it is learnt, or "" if it is not worth learning."""
    line = tidy(line)
    # Brackets whose content (pronunciation, a converted unit) was lost in extraction.
    line = _BRACKET_START.sub("(", _EMPTY_BRACKETS.sub("", line))
    # Formulas survive only as "formula_12": such a paragraph has holes where its meaning was.
    if "formula_" in line or "|" in line:
        return ""
    # Section headings, list items and captions: short, and no sentence.
    if len(line) < 40 or line[-1] not in ".!?\"')…:;":
        return ""
    return line if mostly_latin(line) else ""


def mostly_latin(text: str) -> bool:
    """At least nine letters in ten are Latin, and at least six characters in ten are letters or spaces.

    A vocabulary of 8,192 spells other scripts byte by byte; tables of numbers teach nothing at this size.
    """
    letters = sum(c.isalpha() for c in text)
    foreign = sum(c.isalpha() and ord(c) > 0x24F for c in text)
    spaces = text.count(" ")
    return foreign <= letters / 10 and letters + spaces >= 0.6 * len(text)


def tidy(text: str) -> str:
    """One line: NFC, spaces of all kinds made plain, invisible characters dropped, runs of spaces joined."""
    text = unicodedata.normalize("NFC", text).replace("\u00ad", "").replace("\u200b", "").replace("\ufeff", "")
    return " ".join(text.split())


# --- books and stories -----------------------------------------------------------------------------------------------

_CHAPTER = re.compile(
    r"^(chapter|part|book|volume|canto|act|scene)\b[\s.:\-]*([ivxlc]+|\d+|one|two|three|four|five|six|"
    r"seven|eight|nine|ten|[a-z]+teen|twenty.*)?\b.{0,60}$",
    re.IGNORECASE,
)
_REMNANT = re.compile(
    r"project gutenberg|transcriber'?s? note|\[illustration|\[footnote|\be-?text\b|^contents$", re.IGNORECASE
)


def read_books(path: Path) -> tuple[list[Paragraphs], list[Paragraphs]]:
    """The chapters to learn from, and those held out: the complete stories in the last hundredth of the file.

    The file is one book after another without a mark between them. A chapter heading or two empty lines (a new story of
    a collection) begin a new document. Its last titles are short stories, so the tail can be held out whole: from
    the first double gap within the last hundredth.
    """
    text = read_text(path).replace("\r\n", "\n")
    start = text.find("\n\n\n", int(len(text) * 0.99))
    cut = start if start >= 0 else len(text)
    return list(_chapters(text[:cut])), list(_chapters(text[cut:]))


def _chapters(text: str) -> Iterator[Paragraphs]:
    chapter: Paragraphs = []
    for block in re.split(r"\n[ \t]*\n", text):
        lines = [tidy(line) for line in block.split("\n") if line.strip()]
        new_story = block.startswith("\n") and len(chapter) > 20
        heading = len(lines) == 1 and len(lines[0]) < 80 and _CHAPTER.match(lines[0])
        if (heading or new_story) and chapter:
            yield chapter
            chapter = []
        # The headings themselves ("CHAPTER XLIV") say nothing and are dropped.
        if lines and not heading and (paragraph := clean_book_paragraph(lines)):
            chapter.append(paragraph)
    if chapter:
        yield chapter


def clean_book_paragraph(lines: list[str]) -> str:
    """Lines of one paragraph joined where they were wrapped; "" for ornaments and remarks of transcribers."""
    paragraph = join_wrapped(lines)
    if not any(c.isalpha() for c in paragraph) or _REMNANT.search(paragraph):
        return ""
    # Chapter titles in capitals, page marks.
    if len(paragraph) < 60 and paragraph.upper() == paragraph and not paragraph.endswith(("!", "?", '"')):
        return ""
    return paragraph.replace("--", " - ").replace("_", "") if mostly_latin(paragraph) else ""


def join_wrapped(lines: list[str]) -> str:
    """Join lines broken at a column (on average 50 characters or more, the last aside); keep verse as it is."""
    if len(lines) > 1 and sum(map(len, lines[:-1])) / (len(lines) - 1) >= 50:
        return " ".join(lines)
    return "\n".join(lines)


def read_stories(path: Path) -> list[Paragraphs]:
    """Stories are separated by two empty lines and set in narrow columns: lines of a paragraph are joined."""
    stories = []
    for story in re.split(r"\n\n\n+", read_text(path)):
        paragraphs = [tidy(" ".join(block.split("\n"))) for block in story.split("\n\n")]
        paragraphs = [p for p in paragraphs if p and mostly_latin(p)]
        if sum(map(len, paragraphs)) >= 200:
            stories.append(paragraphs)
    return stories


def read_definitions(path: Path) -> list[str]:
    """One word or phrase a line with its senses. Lines over 600 characters (dozens of senses of "go") are dropped."""
    lines = (tidy(line) for line in read_text(path).split("\n"))
    return [line for line in lines if 20 <= len(line) <= 600 and mostly_latin(line)]


# --- instructions ----------------------------------------------------------------------------------------------------


def read_pairs(path: Path) -> Iterator[Pair]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            # t0_open answers end with another tokenizer's end mark.
            response = row["response"].replace("<|endoftext|>", "")
            yield Pair(row["source"], tidy_lines(row["prompt"]), tidy_lines(response))


def tidy_lines(text: str) -> str:
    """Tidy each line and allow at most one empty line in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(tidy(line) for line in text.splitlines())).strip()


def one_per_passage(pairs: Iterable[Pair]) -> list[Pair]:
    """Of the pairs that ask about the same passage, only the first in the order of a hash.

    A passage recurs under many templates, and a template over many passages; sentences tell them apart. A sentence
    is a template's if the longest sentence beside it (of a short prompt, the prompt) is one of more than 30. A pair is
    kept if none of its other sentences (30 characters and more) was in a kept pair.
    """
    ordered = sorted(pairs, key=lambda pair: hashlib.sha256((pair.prompt + pair.response).encode()).digest())
    sentences = [_sentences(pair.prompt) for pair in ordered]
    beside: defaultdict[str, set[str]] = defaultdict(set)
    frequency = Counter(sentence for found in sentences for sentence in found)
    for pair, found in zip(ordered, sentences, strict=True):
        by_length = sorted(found, key=lambda sentence: (len(sentence), sentence), reverse=True)
        for sentence in found:
            if frequency[sentence] > 30:
                other = by_length[1:] if sentence == by_length[0] else by_length
                beside[sentence].add(other[0] if other else pair.prompt)
    template = {sentence for sentence, others in beside.items() if len(others) > 30}
    used: set[str] = set()
    kept = []
    for pair, found in zip(ordered, sentences, strict=True):
        own = found - template
        if own & used:
            continue
        used |= own
        kept.append(pair)
    return kept


def _sentences(text: str) -> set[str]:
    # A colon or a quotation mark is where a template stops and a passage begins.
    parts = re.split(r"\n+|(?<=[.!?])[\"']?\s+|:\s+|\"", text)
    plain = (re.sub(r"[^a-z0-9]+", " ", part.lower()).strip() for part in parts)
    return {part for part in plain if len(part) >= 30}
