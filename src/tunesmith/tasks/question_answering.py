"""Question answering: a short text that answers a question, compared as SQuAD does."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunesmith.data.formats.squad import NO_ANSWER
from tunesmith.data.types import Example
from tunesmith.tasks.answers import references, without_closing
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.tasks.types import Metric
from tunesmith.tasks.words import is_unspaced, words

_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class QuestionAnswering(TextTask):
    """A short answer. A JSON list of texts holds several right ones, the first is learnt; `[]` says there is none."""

    unanswerable: bool = False
    name: ClassVar[str] = "question_answering"
    default_instruction: ClassVar[str] = "Answer the question."
    answer_wording: ClassVar[str] = "Reply with the answer only, in as few words as possible."

    @property
    def full_instruction(self) -> str:
        """The instruction and the form of the answer; where some questions have no answer, what to say then."""
        asked = super().full_instruction
        return f"{asked} If the text does not answer it, reply: {NO_ANSWER}" if self.unanswerable else asked

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Token F1 decides; exact match beside it. Of several right answers the best counts."""
        return (
            MeanMetric("token_f1", binary=False, score=lambda a, target: max(token_f1(a, one) for one in target)),
            MeanMetric("exact_match", binary=True, score=lambda a, target: max(float(same(a, one)) for one in target)),
        )

    def parse(self, text: str) -> str:
        """The answer's text; "" where it says that there is none."""
        answer = without_closing(text, self.closing)
        return "" if self.unanswerable and normalise(answer) == NO_ANSWER else answer

    def target(self, example: Example) -> list[str]:
        """The right answers; one empty text where there is none."""
        return list(references(example.expected)) or [""]

    def reply(self, expected: str) -> str:
        """The first right answer, or that there is none."""
        return next(iter(references(expected)), NO_ANSWER)

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by whether there is an answer, and by the length of the first."""
        first = self.target(example)[0]
        count = len(normalise(first).split())
        length = "none" if not first else "1 word" if count < 2 else "2 to 4 words" if count < 5 else "5 and more words"
        return {"answer": length}


def normalise(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces (Rajpurkar et al. 2016, arXiv:1606.05250).

    Where nothing else is said these count: the answer "A" or "%" would else be the same as none.
    """
    bare = " ".join("".join(char for char in text.lower() if not _is_punctuation(char)).split())
    return " ".join(_ARTICLES.sub(" ", bare).split()) or bare or " ".join(text.lower().split())


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def same(answer: str, target: str) -> bool:
    """Equal after `normalise`."""
    return normalise(answer) == normalise(target)


def token_f1(answer: str, target: str) -> float:
    """F1 of the tokens that both texts share after `normalise`, as multisets; of empty texts whether both are."""
    said, wanted = _tokens(answer), _tokens(target)
    if not said or not wanted:
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted))


def _tokens(text: str) -> list[str]:
    """Words between spaces, as SQuAD has them; where a script has no spaces its characters, so that F1 is no 0 or 1."""
    found: list[str] = []
    for word in normalise(text).split():
        found += words(word) if is_unspaced(word) else [word]
    return found
