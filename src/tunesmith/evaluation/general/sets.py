"""The general text and the general instructions, those that come with the package or the user's own.

Ours are small on purpose: some 7 KB of English prose of many kinds, and forty instructions of eight skills (repeating,
letters, counting, arithmetic, translation, facts, words, form), each with a short answer that can be checked. They were
written for this and stand in no training text. They tell a model that has forgotten from one that has not; they do not
rank models.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.data import load_examples
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Data

_HERE = Path(__file__).parent
_QUOTES_AND_STOPS = " \t\n.,;:!?\"'`*«»“”‘’"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One thing to do. Any of `answers` is right; `exact`: in these very letters and marks, with nothing beside."""

    prompt: str
    answers: tuple[str, ...]
    skill: str = ""
    exact: bool = False


@dataclass(frozen=True, slots=True)
class GeneralSets:
    """What is measured before and after tuning."""

    text: str
    instructions: tuple[Instruction, ...]

    @property
    def sha256(self) -> str:
        """A hash of both."""
        told = json.dumps([self.text, [asdict(one) for one in self.instructions]])
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def general_sets(text: str | None = None, instructions: str | None = None) -> GeneralSets:
    """The sets that come with the package, or in their places a text file and rows of prompt and answer.

    Raises `RecipeError` for a file that cannot be read as text, `DataError` for one without text or rows.
    """
    return GeneralSets(_text(text), _own(instructions) if instructions is not None else _shipped())


def follows(answer: str, instruction: Instruction) -> bool:
    """Whether an answer does what was asked.

    Its first line, or all of it, is an accepted answer; or the first line begins or ends with one as whole words
    ("Yes, it is."). Case, quotes and punctuation around it do not matter, unless the instruction is about those.
    """
    lines = [line for line in answer.splitlines() if line.strip()] or [""]
    if instruction.exact:
        return _spaced(lines[0]) in {_spaced(one) for one in instruction.answers}
    accepted = {_plain(one) for one in instruction.answers}
    if _plain(answer) in accepted or _plain(lines[0]) in accepted:
        return True
    words = _words(lines[0])
    return any(said and said in (words[: len(said)], words[-len(said) :]) for said in map(_words, accepted))


def _text(path: str | None) -> str:
    if path is None:
        return (_HERE / "text.txt").read_text(encoding="utf-8")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise RecipeError(
            f"the general text cannot be read: {problem}",
            where="evaluate.general_text",
            expected="a text file in UTF-8",
            fix="give the path of one, or leave the setting out to use the text that comes with Tunesmith",
        ) from problem
    if not text.strip():
        raise DataError("the general text is empty", where=path, expected="some pages of text")
    return text


def _shipped() -> tuple[Instruction, ...]:
    lines = (_HERE / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(
        Instruction(row["prompt"], tuple(row["answers"]), row["skill"], row.get("exact", False))
        for row in map(json.loads, lines)
    )


def _own(path: str) -> tuple[Instruction, ...]:
    """The user's rows, read as training rows are."""
    examples = load_examples(Data(train=path), path, task_type="generation").examples
    found = tuple(Instruction(one.question, (one.expected,)) for one in examples)
    if not found:
        raise DataError(
            "there are no general instructions",
            where=path,
            expected="rows with a prompt and an answer",
            fix="name another file in evaluate.general_instructions, or leave it out",
        )
    return found


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _plain(text: str) -> str:
    return _spaced(text).casefold().strip(_QUOTES_AND_STOPS)


def _words(text: str) -> Sequence[str]:
    return [word for part in _plain(text).split() if (word := part.strip(_QUOTES_AND_STOPS))]
