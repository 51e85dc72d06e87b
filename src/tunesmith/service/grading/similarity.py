"""How alike two texts are, from 0 to 1, by the measures that text similarity graders name.

| measure | definition |
|---|---|
| fuzzy_match | 2 LCS / (length of one + of the other), over characters (normalised indel similarity) |
| bleu | BLEU of one sentence (Papineni et al. 2002) as sacrebleu counts it, up to the answer's length |
| gleu | Wu et al. 2016, arXiv:1609.08144: matching 1- to 4-grams over those of the longer text; 13a tokens |
| meteor | Banerjee & Lavie 2005 (W05-0909): equal words, then Porter stems; no synonyms: no lexicon is shipped |
| rouge_1 … rouge_5, rouge_l | Lin 2004 (W04-1013): F1 over words of any script, without stemming |

Longest common parts take time by the product of both lengths: texts of more than `LONGEST` characters are refused.

The hosted service says that `fuzzy_match` uses the library rapidfuzz, and not which of its functions; this is its
`ratio`. Texts are compared as they are; ROUGE and METEOR leave case and punctuation aside.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from tunesmith.tasks.words import words

LONGEST = 100_000
"""Characters of a text."""
LONGEST_GRAM = 4
"""Order of the n-grams of GLEU."""


class TooLongError(ValueError):
    """A text is too long to be compared."""


def similarity(measure: str, said: str, reference: str) -> float:
    """One of `MEASURES`. Raises `TooLongError`."""
    for name, text in (("input", said), ("reference", reference)):
        if len(text) > LONGEST:
            raise TooLongError(f"the {name} has {len(text):,} characters, of which at most {LONGEST:,} can be compared")
    return MEASURES[measure](said, reference)


def fuzzy_match(said: str, reference: str) -> float:
    """2 LCS / (|a| + |b|); two empty texts are equal."""
    length = len(said) + len(reference)
    return 2 * lcs_length(said, reference) / length if length else 1.0


def rouge_l(said: str, reference: str) -> float:
    """F1 of the longest common subsequence of words; 0 where there are none."""
    ours, wanted = words(said), words(reference)
    return 2 * lcs_length(ours, wanted) / (len(ours) + len(wanted)) if ours and wanted else 0.0


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence of characters or words, bit-parallel: one addition on an integer of |a|
    bits for each of b (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    places: dict[str, int] = {}
    for place, one in enumerate(a):
        places[one] = places.get(one, 0) | 1 << place
    every = (1 << len(a)) - 1
    open_places = every
    for one in b:
        hits = open_places & places.get(one, 0)
        open_places = ((open_places + hits) | (open_places - hits)) & every
    return len(a) - open_places.bit_count()


def bleu(said: str, reference: str) -> float:
    """Sentence BLEU as a fraction."""
    from tunesmith.tasks.translation import Bleu

    metric = Bleu()
    return float(metric.item(metric.statistics([said], [[reference]]))[0])


def gleu(said: str, reference: str) -> float:
    """The smaller of precision and recall of all n-grams up to `LONGEST_GRAM`; 0 where there are none."""
    ours, wanted = _grams(said), _grams(reference)
    most = max(ours.total(), wanted.total())
    return (ours & wanted).total() / most if most else 0.0


def meteor(said: str, reference: str) -> float:
    """METEOR with the weights of its paper: Fmean = 10PR / (R + 9P), penalty 0.5 (chunks / matches)³."""
    ours, wanted = words(said), words(reference)
    pairs = _aligned(ours, wanted)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(ours), len(pairs) / len(wanted)
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    mean = 10 * precision * recall / (recall + 9 * precision)
    return float(mean * (1 - 0.5 * (chunks / len(pairs)) ** 3))


def _aligned(said: Sequence[str], reference: Sequence[str]) -> list[tuple[int, int]]:
    """Places of the words that match, in order: equal ones first, then those of equal stem, each from the end."""
    pairs: list[tuple[int, int]] = []
    left, right = list(range(len(said))), list(range(len(reference)))
    for form in (str, _stemmer().stem):
        places: dict[str, list[int]] = defaultdict(list)
        for place in right:
            places[form(reference[place])].append(place)
        found = {place: open_places.pop() for place in reversed(left) if (open_places := places[form(said[place])])}
        pairs += found.items()
        left = [place for place in left if place not in found]
        taken = set(found.values())
        right = [place for place in right if place not in taken]
    return sorted(pairs)


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    return PorterStemmer()


def _grams(text: str) -> Counter[tuple[str, ...]]:
    tokens = _tokenize(text).split()
    return Counter(
        tuple(tokens[i : i + order]) for order in range(1, LONGEST_GRAM + 1) for i in range(len(tokens) - order + 1)
    )


def _tokenize(text: str) -> str:
    return str(_tokenizer_13a()(text))


@cache
def _tokenizer_13a() -> Any:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _rouge(kind: str) -> Callable[[str, str], float]:
    def score(said: str, reference: str) -> float:
        return float(_rouge_scorer(kind).score(reference, said)[kind].fmeasure)

    return score


class _Words:
    """`words` behind the interface of the library's tokenizers."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge_scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], tokenizer=_Words())


MEASURES: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": _rouge(f"rouge{n}") for n in (1, 2, 3, 4, 5)},
    "rouge_l": rouge_l,
}
"""Measure → function of (answer, reference)."""
