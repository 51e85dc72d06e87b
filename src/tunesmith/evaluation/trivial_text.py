"""Trivial texts out of the input: its first sentences as a summary, the sentence nearest to a question."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.data.types import Example
from tunesmith.evaluation.trivial_rules import Learn, Learned, Rule
from tunesmith.tasks.metrics import quick_score
from tunesmith.tasks.summarisation import Summarisation
from tunesmith.tasks.words import words

LEADS = (1, 2, 3, 4, 5)
"""Numbers of sentences tried on validation rows."""
DEFAULT_LEAD = 3
"""Taken, and said in the notes, where there is no validation row to choose on: usual for news."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")


def sentences(text: str) -> list[str]:
    """The sentences of a text: they end with a mark and white space, with a mark of an unspaced script, or a line."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def lead_sentences(task: Summarisation) -> Learn:
    """The first k sentences of the input; k has the best ROUGE-L on validation rows, ties to the smaller."""

    def rule_for(k: int) -> Rule:
        return lambda examples: [" ".join(sentences(example.question)[:k]) + task.closing for example in examples]

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        if not validation:
            return rule_for(DEFAULT_LEAD), {"sentences": DEFAULT_LEAD, "lead_chosen_on": None}
        scores = {k: quick_score(task, rule_for(k)(validation), validation)["rouge_l"] for k in LEADS}
        best = min(LEADS, key=lambda k: (-scores[k], k))
        return rule_for(best), {"sentences": best, "lead_chosen_on": {str(k): score for k, score in scores.items()}}

    return learn


def nearest_sentence(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
    """The sentence that shares most words with the question, as sliding-window baselines of reading do.

    The question is the last sentence of the input, or the first where only that one ends with a question mark. Nothing
    is learnt.
    """

    def answer(example: Example) -> str:
        parts = sentences(example.question)
        if len(parts) < 2:
            return example.question
        asked = 0 if "?" in parts[0] and "?" not in parts[-1] else len(parts) - 1
        wanted = set(words(parts[asked]))
        rest = [part for i, part in enumerate(parts) if i != asked]
        return max(rest, key=lambda part: len(wanted & set(words(part))))

    return (lambda examples: [answer(example) for example in examples]), {}
