"""Questions on a passage with marked answers (SQuAD, AutoTrain's extractive QA): `context`, `question`, `answers`."""

from __future__ import annotations

from typing import Any

from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.template import cell_text
from tunesmith.data.types import Content, Message, Row


class Squad:
    """The first of the answers is learnt; a question without one has the answer empty and is reported."""

    name = "squad"
    title = "questions on a passage: context, question, answers"
    columns = ("context", "question", "answers")

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with the three columns, answers being objects with text."""
        if not sample.has(*self.columns) or not all(_answers(value) is not None for value in sample.cells("answers")):
            return None
        return Recognition(0.95, "context, question and answers with text")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """Passage and question, and the first answer."""
        context, question = (cell_text(row.values.get(name)) for name in ("context", "question"))
        answers = _answers(row.values.get("answers"))
        if not question.strip():
            log.add("empty_prompt", row.line, field="question")
        if not answers or not answers[0].strip():
            log.add("empty_answer", row.line, field="answers")
        if not question.strip() or not answers or not answers[0].strip():
            return None
        asked = f"{context}\n\n{question}" if context.strip() else question
        return Content((Message("user", asked), Message("assistant", answers[0])), answers[0])


def _answers(value: Any) -> list[str] | None:
    if not isinstance(value, dict):
        return None
    texts = value.get("text")
    if isinstance(texts, str):
        texts = [texts]
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


FORMAT = Squad()
