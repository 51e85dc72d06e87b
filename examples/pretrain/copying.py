"""Does a model use what stands in its prompt? Lists repeated on request, values looked up, sequences that come again.

Extraction copies from the prompt, so a base that cannot copy cannot learn it from a few hundred rows. Words come from
held-out text and are drawn by seed. An answer is right if it is the expected text exactly, white space at its ends
aside.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.data.types import Message
from tunesmith.evaluation.statistics import wilson
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.text.render import Renderer

WORDS = 8

REPEAT: Mapping[str, tuple[str, str]] = {
    "these words, commas": ("Repeat these words: {}", ", "),
    "these words, spaces": ("Repeat these words: {}", " "),
    "this list, commas": ("Repeat this list.\n{}", ", "),
    "this list, lines": ("Repeat this list.\n{}", "\n"),
    "bullets": ("Write the list again.\n\n- {}", "\n- "),
    "copy in the same order": ("Copy these items in the same order.\n{}", "; "),
    "text first": ("{}\n\nSay these words again.", ", "),
    "in the system turn": ("Repeat the words of the user.", ", "),
}
"""How the list is asked for, and what stands between its items, in question and answer alike."""


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation to be answered, the answer, and of which kind it is."""

    kind: str
    turns: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Share:
    """Right answers of `n` questions, with the Wilson interval of 95 %, and by kind of question."""

    value: float
    low: float
    high: float
    n: int
    by_kind: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return {
            "value": round(self.value, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "n": self.n,
            "by_kind": {kind: round(share, 4) for kind, share in self.by_kind.items()},
        }


def common_words(texts: Iterable[str], least: int = 3) -> list[str]:
    """Words of four to nine small letters that occur at least so often, in alphabetical order."""
    counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]{4,9}\b", text))
    return sorted(word for word, count in counts.items() if count >= least)


def repeat_questions(words: Sequence[str], count: int, rng: random.Random) -> list[Question]:
    """Lists of eight different words, the wordings in turn."""
    questions = []
    for number in range(count):
        kind, (wording, joint) = list(REPEAT.items())[number % len(REPEAT)]
        shown = joint.join(rng.sample(words, WORDS))
        if kind == "in the system turn":
            questions.append(Question(kind, (Message("system", wording), Message("user", shown)), shown))
        else:
            # The mark before the first item of a bullet list belongs to the list.
            answer = f"- {shown}" if kind == "bullets" else shown
            questions.append(Question(kind, (Message("user", wording.format(shown)),), answer))
    return questions


def json_questions(words: Sequence[str], count: int, rng: random.Random) -> list[Question]:
    """The same lists, asked for as JSON: what every extraction into a list does."""
    questions = []
    for number in range(count):
        kind, joint = (("commas", ", "), ("lines", "\n"))[number % 2]
        items = rng.sample(words, WORDS)
        turn = Message("user", f"Return these words as a JSON list.\n{joint.join(items)}")
        questions.append(Question(kind, (turn,), json.dumps(items)))
    return questions


def look_up_questions(words: Sequence[str], count: int, rng: random.Random) -> list[Question]:
    """The value of one of six keys."""
    questions = []
    for _ in range(count):
        drawn = rng.sample(words, 12)
        table = dict(zip(drawn[:6], drawn[6:], strict=True))
        key = rng.choice(list(table))
        shown = ", ".join(f"{k}: {v}" for k, v in table.items())
        questions.append(Question("value", (Message("user", f"{shown}\n\nWhat is {key}?"),), table[key]))
    return questions


def share_exact(model: Any, tokenizer: Any, questions: Sequence[Question]) -> Share:
    """Ask all questions in the tokenizer's chat template, greedily, and count exact answers."""
    engine = TorchEngine(model, Renderer(tokenizer, "tokenizer"), int(model.config.max_position_embeddings))
    longest = max(len(tokenizer(q.answer, add_special_tokens=False)["input_ids"]) for q in questions)
    answers = engine.generate([q.turns for q in questions], longest + 8)
    right = [made.text.strip() == q.answer for made, q in zip(answers, questions, strict=True)]
    low, high = wilson(sum(right), len(right))
    kinds = dict.fromkeys(q.kind for q in questions)
    by_kind = {kind: _mean([r for r, q in zip(right, questions, strict=True) if q.kind == kind]) for kind in kinds}
    return Share(_mean(right), low, high, len(right), by_kind)


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


@torch.inference_mode()
def induction(model: Any, tokenizer: Any, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
    """Sequences of ids read twice in a row: how well the second reading is foreseen, and the first.

    `accuracy`: share of tokens that the model holds for the likeliest; `bits`: mean -log2 p. The first token of a
    reading cannot be known and is counted in neither. The induction score of Olsson et al. 2022 (arXiv:2209.11895),
    "bits saved", is the difference of the two.
    """
    hits = {"first": 0, "second": 0}
    bits = {"first": 0.0, "second": 0.0}
    count = 0
    for part in sequences:
        ids = torch.tensor([[tokenizer.bos_token_id, *part, *part]])
        scores = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
        targets = ids[0, 1:]
        right = scores.argmax(-1) == targets
        surprise = -scores.gather(-1, targets[:, None])[:, 0] / math.log(2)
        for reading, begin in (("first", 1), ("second", len(part) + 1)):
            there = slice(begin, begin + len(part) - 1)
            hits[reading] += int(right[there].sum())
            bits[reading] += float(surprise[there].sum())
        count += len(part) - 1
    return {
        "first_accuracy": round(hits["first"] / count, 4),
        "second_accuracy": round(hits["second"] / count, 4),
        "first_bits": round(bits["first"] / count, 3),
        "second_bits": round(bits["second"] / count, 3),
        "bits_saved": round((bits["first"] - bits["second"]) / count, 3),
    }


def word_sequences(words: Sequence[str], tokenizer: Any, count: int, rng: random.Random) -> list[list[int]]:
    """Twenty different words each, with a space before every word."""
    texts = [" " + " ".join(rng.sample(words, 20)) for _ in range(count)]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def token_sequences(tokenizer: Any, count: int, rng: random.Random, length: int = 40) -> list[list[int]]:
    """Ids drawn alike from the whole vocabulary, special tokens aside: no language helps here."""
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    return [rng.choices(ordinary, k=length) for _ in range(count)]
