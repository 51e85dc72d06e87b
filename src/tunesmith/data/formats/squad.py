"""Questions on a passage with marked answers (SQuAD, AutoTrain's extractive QA): `context`, `question`, `answers`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.template import cell_text
from tunesmith.data.types import Content, Message, Row

NO_ANSWER = "unanswerable"
"""What is learnt and asked for where a passage does not answer."""


class Squad:
    """Several different answers are kept as a JSON list of references, of which the first is learnt.

    A question whose list of answers is empty is not answered by its passage: `[]` is expected then, and `NO_ANSWER` is
    learnt.
    """

    name = "squad"
    title = "questions on a passage: context, question, answers"
    columns = ("context", "question", "answers")

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with the three columns, answers being objects with text."""
        if not sample.has(*self.columns) or not all(_answers(value) is not None for value in sample.cells("answers")):
            return None
        return Recognition(0.95, "context, question and answers with text")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """Passage and question, and all answers."""
        context, question = (cell_text(row.values.get(name)) for name in ("context", "question"))
        answers = _answers(row.values.get("answers"))
        told = _different(answers or ())
        if not question.strip():
            log.add("empty_prompt", row.line, field="question")
        if answers is None or (answers and not told):  # no list of answers is not an empty one
            log.add("empty_answer", row.line, field="answers")
            return None
        if not question.strip():
            return None
        asked = f"{context}\n\n{question}" if context.strip() else question
        learnt = told[0] if told else NO_ANSWER
        return Content((Message("user", asked), Message("assistant", learnt)), _expected(told))


def expected_of(value: Any) -> str | None:
    """What a row with this cell of answers expects; None where the cell holds none, or blank ones only."""
    answers = _answers(value)
    told = _different(answers or ())
    return None if answers is None or (answers and not told) else _expected(told)


def _different(answers: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text.strip() for text in answers if text.strip()))


def _expected(answers: list[str]) -> str:
    """One answer as it is, several or none as a JSON list; so is one that would be taken for a list."""
    if len(answers) == 1 and not answers[0].startswith("["):
        return answers[0]
    return json.dumps(answers, ensure_ascii=False)


def _answers(value: Any) -> list[str] | None:
    """The texts of {"text": [...]}, or of [{"text": ...}, ...] as in SQuAD's own file; None for anything else."""
    texts: Any
    if isinstance(value, list):
        texts = [item.get("text") if isinstance(item, dict) else None for item in value]
    elif isinstance(value, dict):
        texts = value.get("text")
    else:
        return None
    if isinstance(texts, str):
        texts = [texts]
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


FORMAT = Squad()
