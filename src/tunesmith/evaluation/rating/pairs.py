"""Two candidates' stored answers side by side: what people rate and judges compare.

A run keeps each candidate's answers in `evaluation/<candidate>.jsonl`. Nothing is answered again here, so what is rated
is exactly what was scored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, RecipeError

_TIMING = ".timing.json"
_TRIVIAL = "trivial_"


@dataclass(frozen=True, slots=True)
class Pair:
    """One row with the answers of two candidates, by candidate name. `expected` is the row's own answer."""

    id: str
    question: str
    answers: Mapping[str, str]
    expected: str

    @property
    def key(self) -> str:
        """A hash of all that is compared: a rating of other answers, or of another question, is not one of this."""
        told = json.dumps([self.question, sorted(self.answers.items()), self.expected])
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    @property
    def identical(self) -> bool:
        """Whether both say the same, so that there is nothing to choose."""
        return len(set(self.answers.values())) == 1


def stored_candidates(folder: Path) -> list[str]:
    """The candidates whose answers lie complete in a run's folder of evaluations."""
    names = sorted(path.name.removesuffix(_TIMING) for path in folder.glob(f"*{_TIMING}"))
    return [name for name in names if (folder / f"{name}.jsonl").is_file()]


def answers_sha256(folder: Path, a: str, b: str) -> str:
    """A hash of both candidates' answers as they are stored now; "" where one of them is gone."""
    paths = [folder / f"{name}.jsonl" for name in sorted((a, b))]
    if not all(path.is_file() for path in paths):
        return ""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def read_pairs(folder: Path, a: str, b: str, *, closing: str = "") -> tuple[Pair, ...]:
    """Both candidates' answers to every row, in the order of the rows.

    closing: the closing text of the recipe's template; it is taken from the end of answers, as it would tell a tuned
    model from others.

    Raises `RecipeError` for a candidate without stored answers, `DataError` where the two answered different rows.
    """
    known = stored_candidates(folder)
    for name in (a, b):
        if name not in known:
            raise RecipeError(
                f"there are no stored answers of {name!r}",
                where=str(folder),
                expected=f"two of {', '.join(known)}" if known else "a run that was evaluated",
                fix="tunesmith evaluate RECIPE" if not known else "choose them with --candidates A B",
            )
    if a == b:
        raise RecipeError(f"{a!r} cannot be compared with itself", where="--candidates", expected="two candidates")
    rows = {name: list(_read(folder / f"{name}.jsonl")) for name in (a, b)}
    if [row["id"] for row in rows[a]] != [row["id"] for row in rows[b]]:
        raise DataError(
            f"{a} and {b} answered different rows",
            where=str(folder),
            expected="the same rows in the same order",
            fix="evaluate both on the same test set again",
        )
    questions = _questions(folder, known)
    return tuple(
        Pair(
            id=str(row["id"]),
            question=_whole(question),
            answers={a: _bare(row["answer"], closing), b: _bare(other["answer"], closing)},
            expected=_whole(str(row["expected"])),
        )
        for row, other, question in zip(rows[a], rows[b], questions, strict=True)
    )


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                row["id"], row["answer"], row["expected"], row["prompt"]
            except (ValueError, KeyError, TypeError) as problem:
                raise DataError(
                    "this line is no scored answer", where=f"{path}, line {number}", fix="evaluate the candidate again"
                ) from problem
            yield row


def _bare(answer: str, closing: str) -> str:
    return _whole(answer).strip().removesuffix(closing.strip()).rstrip()


def _whole(text: str) -> str:
    """Without half of a surrogate pair, which a model of bytes may answer and nobody can be sent or shown."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _questions(folder: Path, known: Sequence[str]) -> list[str]:
    """What every row asks, without what all prompts share.

    Taken from the candidate with the shortest prompts (no examples in them). A rule's prompt is the bare last question:
    it tells where the question ends. Without one, the end that all prompts share is left out from its first mark on.
    """
    prompts = {name: [str(row["prompt"]) for row in _read(folder / f"{name}.jsonl")] for name in known}
    bare = next((prompts[name] for name in known if name.startswith(_TRIVIAL)), None)
    asked = [prompts[name] for name in known if not name.startswith(_TRIVIAL)]
    if not asked:
        return bare or []
    shortest = min(asked, key=lambda texts: sum(map(len, texts)))
    if bare is not None and len(bare) == len(shortest):
        ends = [prompt.rfind(question) + len(question) for prompt, question in zip(shortest, bare, strict=True)]
        found = all(question in prompt for prompt, question in zip(shortest, bare, strict=True))
        tails = {prompt[end:] for prompt, end in zip(shortest, ends, strict=True)}
        if not found or len(tails) != 1:
            return bare
        kept = [prompt[:end] for prompt, end in zip(shortest, ends, strict=True)]
        # Multi-turn rows keep what was said before the last question.
        start = min(_line_start(kept), *(end - len(q) for end, q in zip(ends, bare, strict=True)))
        return [text[start:].strip() for text in kept]
    start, end = _line_start(shortest), _shared_end(shortest)
    return [text[start : len(text) - end].strip() for text in shortest]


def _line_start(texts: Sequence[str]) -> int:
    """Characters of the whole lines that all texts begin with; 0 for a single text."""
    if len(texts) < 2:
        return 0
    return _common_start(texts).rfind("\n") + 1


def _shared_end(texts: Sequence[str]) -> int:
    """Characters at the end of all texts, from the first mark of a template on (a line's end, `<` or `[`)."""
    if len(texts) < 2:
        return 0
    end = _common_start([text[::-1] for text in texts])[::-1]
    first = min((place for mark in "\n<[" if (place := end.find(mark)) >= 0), default=len(end))
    return len(end) - first


def _common_start(texts: Sequence[str]) -> str:
    """What all texts begin with; in sorted order, what the first and the last share is shared by all between."""
    first, last = min(texts), max(texts)
    length = min(len(first), len(last))
    same = next((place for place in range(length) if first[place] != last[place]), length)
    return first[:same]
