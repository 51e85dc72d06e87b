"""What a finished run has to show, in one object: rows, prompts, answers, scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.types import Example, Message
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.rating.pairs import stored_candidates
from tunesmith.evaluation.types import MetricValue, ScoredAnswer
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.tasks import restore_task
from tunesmith.tasks.types import Task

TRIVIAL = "trivial_"
"""What names of candidates begin with that ask no model."""
REMOTE = "remote_"
"""What names of candidates begin with that ask an endpoint, by its turns: their `prompt` is those turns as words."""

Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """One candidate: its answers in the order of the test rows, and its metrics with intervals.

    `conversations` are the turns it was asked with, one per row, where they are known; each answer's `prompt` is the
    exact text in any case. `facts` are latencies and notes.
    """

    name: str
    answers: tuple[ScoredAnswer, ...]
    values: tuple[MetricValue, ...]
    facts: Mapping[str, Any]
    conversations: tuple[Conversation, ...] | None = None

    @property
    def asks_a_model(self) -> bool:
        """Whether there is a prompt that another tool can send to a model."""
        return not self.name.startswith(TRIVIAL)

    @property
    def text_is_sent(self) -> bool:
        """Whether the stored prompt is the very text that a model completed, as it liked.

        Not for an endpoint that is sent turns, nor where answers were held to a form or only scored: free answers to
        the same text are those of another candidate.
        """
        free = self.facts.get("decoding", "free") == "free"
        return self.asks_a_model and free and not self.name.startswith(REMOTE)


@dataclass(frozen=True)
class Evidence:
    """A run as neighbours get it.

    `questions` are the last user turns of the test rows, by row id; `stops` the texts that end an answer; `longest` is
    the most tokens of an answer.
    """

    folder: RunFolder
    recipe: Recipe
    task: Task
    metric: str
    candidates: tuple[Shown, ...]
    questions: Mapping[str, str]
    stops: tuple[str, ...]
    longest: int
    verdict: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def asked(self) -> tuple[Shown, ...]:
        """The candidates whose prompts another tool can send to a model."""
        return tuple(shown for shown in self.candidates if shown.asks_a_model)


def read_evidence(
    folder: RunFolder,
    recipe: Recipe,
    examples: Sequence[Example],
    *,
    stops: Sequence[str],
    names: Sequence[str] = (),
) -> Evidence:
    """The evidence in a run's folder, of all candidates or those of `names`.

    examples: the test rows, in the order in which candidates answered them. Raises `RecipeError` where the run was not
    evaluated or has no such candidate, `DataError` where answers are not to these rows or a line is damaged.
    """
    known = stored_candidates(folder.evaluation)
    record, comparison = _json(folder.path / "task.json"), _json(folder.path / "comparison.json")
    if not known or record is None:
        raise RecipeError(
            "this run has no stored answers", where=str(folder.path), fix="tunesmith run RECIPE, then this again"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RecipeError(
            f"there are no stored answers of {', '.join(unknown)}",
            where="--candidate",
            expected=", ".join(known),
        )
    values = [MetricValue(**value) for value in (comparison or {}).get("values", ())]
    facts = (comparison or {}).get("candidates", {})
    shown = tuple(
        Shown(
            name=name,
            answers=_answers(folder.evaluation / f"{name}.jsonl", examples),
            values=tuple(value for value in values if value.candidate == name),
            facts=facts.get(name, {}),
        )
        for name in (names or known)
    )
    task = restore_task(record)
    return Evidence(
        folder=folder,
        recipe=recipe,
        task=task,
        metric=str((comparison or {}).get("metric", next(iter(task.metrics)))),
        candidates=shown,
        questions={example.id: example.question for example in examples},
        stops=tuple(stops),
        longest=int(recipe.evaluate.max_new_tokens),
        verdict=_json(folder.path / "verdict.json"),
    )


def with_conversations(evidence: Evidence, conversations: Mapping[str, Sequence[Conversation]]) -> Evidence:
    """The same with the turns that candidates were asked with, by candidate."""
    return replace(
        evidence,
        candidates=tuple(
            replace(shown, conversations=tuple(conversations[shown.name])) if shown.name in conversations else shown
            for shown in evidence.candidates
        ),
    )


def row_of(answer_id: str, question: str, expected: str) -> Example:
    """A test row as metrics look at it: what was asked, and what is expected."""
    turns = (Message("user", question), Message("assistant", expected))
    return Example(answer_id, turns, expected, 0, "evaluation")


def _answers(path: Path, examples: Sequence[Example]) -> tuple[ScoredAnswer, ...]:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(_whole(ScoredAnswer(**json.loads(line))))
            except (ValueError, TypeError) as problem:
                raise DataError(
                    "this line is no scored answer", where=f"{path}, line {number}", fix="evaluate the candidate again"
                ) from problem
    if [row.id for row in rows] != [example.id for example in examples]:
        raise DataError(
            f"{path.stem} answered other rows than the run's test rows are now",
            where=str(path),
            expected=f"answers to the {len(examples):,} test rows, in their order",
            fix="bring the data back as they were, or evaluate the run again",
        )
    return tuple(rows)


def _whole(answer: ScoredAnswer) -> ScoredAnswer:
    """Without half of a surrogate pair, which a model of bytes may answer and no UTF-8 file can hold."""
    parsed = json.loads(whole_text(json.dumps(answer.parsed, ensure_ascii=False)))
    return replace(answer, answer=whole_text(answer.answer), prompt=whole_text(answer.prompt), parsed=parsed)


def whole_text(text: str) -> str:
    """`text` with a question mark for every half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError("this file is damaged", where=str(path), fix="evaluate the run again") from problem
    if not isinstance(value, dict):
        raise DataError("this file is damaged", where=str(path), expected="an object", fix="evaluate the run again")
    return value
