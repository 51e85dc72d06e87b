"""Trivial extraction: copying, cutting with a regular expression, looking up what training rows contained."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.types import Example
from tunesmith.evaluation.trivial_rules import Learn, Learned, Rule
from tunesmith.tasks.extraction import Extraction, first_json, normalise
from tunesmith.tasks.metrics import quick_score

Words = tuple[str, ...]

PRECISIONS = (0.0, 0.25, 0.5, 0.75)
"""An entity stays in the dictionary if at least this share of its training matches was right; chosen on validation."""

_TOKEN = re.compile(r"\w+|[^\w\s]")

_NUMBER = r"(?:\d+(?:[.,]\d+)?(?:\s*[/⁄]\s*\d+)?\s*[¼½¾⅐-⅞]?|[¼½¾⅐-⅞])"
_AMOUNT = re.compile(
    rf"\s*(?:[-*•]\s+)?(?:{_NUMBER}(?:\s*(?:-|–|to|or|x|\+|&|and)?\s*{_NUMBER})*"
    r"|(?:a|an|one|two|three|four|five|six|seven|eight|nine|ten|half|dozen|several|few)\b)\s*",
    re.IGNORECASE,
)
_UNITS = (
    "bag|bar|batch|bottle|bowl|box|bunch|can|carton|clove|container|cube|cup|cupful|dash|dessertspoon|drop|ear|"
    "envelope|fillet|fl|floz|fluid|gallon|glass|gram|head|inch|jar|jigger|kilo|kilogram|leaf|leaves|liter|litre|loaf|"
    "loaves|milliliter|millilitre|ounce|pack|package|packet|part|piece|pinch|pint|pot|pound|quart|rasher|scoop|sheet|"
    "shot|slice|splash|sprig|stalk|stick|strip|tablespoon|tbs|tbsp|teaspoon|tin|tsp|tube|g|kg|mg|ml|cl|dl|l|lb|oz|c|t|"
    "pkg|pt|qt|cm|small|medium|large|heaping|level|rounded"
)
_UNIT = re.compile(rf"(?:{_UNITS})(?:e?s)?\b\.?\s*(?:of\s+)?", re.IGNORECASE)
_SIZE = re.compile(r"\([^()]*\)")
_PREPARATION = re.compile(
    r"\s+(?:(?:finely|coarsely|freshly|thinly|roughly|lightly|very|and|or)\s+)*"
    r"(?:beaten|boiled|chilled|chopped|cooked|cored|crumbled|crushed|cubed|cut|deseeded|deveined|diced|divided|drained|"
    r"grated|ground|halved|juiced|mashed|melted|minced|optional|packed|peeled|pitted|quartered|rinsed|seeded|separated|"
    r"shredded|sifted|sliced|slivered|softened|thawed|toasted|trimmed|washed|"
    r"(?:to taste|for \w+|as needed|if desired|at room temperature).*)$",
    re.IGNORECASE,
)


def copied_lines(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
    """Every line of the input (or element of a JSON list in it) as it is. Nothing is learnt."""
    return (lambda examples: [_as_json(_lines(example.question)) for example in examples]), {}


def amount_and_unit(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
    """Every line without leading amount and unit, sizes in parentheses, and preparation. Nothing is learnt."""

    def rule(examples: Sequence[Example]) -> Sequence[str]:
        cut = [[without_amount(line) for line in _lines(example.question)] for example in examples]
        return [_as_json(line for line in lines if line) for lines in cut]

    return rule, {}


def without_amount(line: str) -> str:
    """`2 (8 ounce) cans tomatoes, drained` → `tomatoes`."""
    text = _SIZE.sub(" ", line)
    text = text.split(",", 1)[0].strip()
    amount = _AMOUNT.match(text)
    text = text[amount.end() :] if amount else text
    while unit := _UNIT.match(text):
        text = text[unit.end() :]
    while (shorter := _PREPARATION.sub("", text)) != text:
        text = shorter
    return " ".join(text.split())


def _lines(text: str) -> list[str]:
    """The elements of the first JSON list in a text, else its lines that are not blank."""
    value = first_json(text)
    if isinstance(value, list) and value and all(isinstance(element, str) for element in value):
        return value
    return [line.strip() for line in text.splitlines() if line.strip()]


def list_dictionary(task: Extraction) -> Learn:
    """Every entity of the training answers, found again in the input.

    Matches are the longest ones from left to right, on whole words, case-folded, and are answered in the order and
    with the letters of the input. Entities that were mostly wrong where they matched in training rows are left out;
    how mostly is chosen on validation rows (0 keeps all).
    """

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        entities = {_words(str(entity)) for example in train for entity in task.target(example)} - {()}
        precision = _training_precision(task, train, entities)

        def rule_for(threshold: float) -> Rule:
            kept = _Dictionary.of(entity for entity in entities if precision.get(entity, 1.0) >= threshold)
            return lambda examples: [_as_json(kept.matches(example.question)) for example in examples]

        if not validation:
            return rule_for(0.0), {"entities": len(entities), "min_precision": 0.0, "min_precision_chosen_on": None}
        scores = {
            threshold: quick_score(task, rule_for(threshold)(validation), validation)["entity_f1"]
            for threshold in PRECISIONS
        }
        best = min(PRECISIONS, key=lambda threshold: (-scores[threshold], threshold))
        facts = {
            "entities": len(entities),
            "min_precision": best,
            "min_precision_chosen_on": {str(threshold): score for threshold, score in scores.items()},
        }
        return rule_for(best), facts

    return learn


def _training_precision(task: Extraction, train: Sequence[Example], entities: Collection[Words]) -> dict[Words, float]:
    """Of each entity's longest matches in training questions, the share that the answers hold."""
    known = _Dictionary.of(entities)
    matched: Counter[Words] = Counter()
    right: Counter[Words] = Counter()
    for example in train:
        found = Counter(_words(text) for text in known.matches(example.question))
        wanted = Counter(_words(str(entity)) for entity in task.target(example))
        matched += found
        right += found & wanted
    return {entity: right[entity] / count for entity, count in matched.items()}


@dataclass(frozen=True, slots=True)
class _Dictionary:
    """Entities as their words. `sizes`: by first word the numbers of words there are, the largest first, so that no
    others are tried: where one entity has hundreds of words, trying all would take the square of that at every word.
    """

    entities: Collection[Words]
    sizes: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, entities: Iterable[Words]) -> _Dictionary:
        known, sizes = frozenset(entities), defaultdict[str, set[int]](set)
        for entity in known:
            sizes[entity[0]].add(len(entity))
        return cls(known, {first: sorted(found, reverse=True) for first, found in sizes.items()})

    def matches(self, text: str) -> Iterator[str]:
        """Longest entities in `text` from left to right, without overlap, in the text's own letters."""
        tokens = list(_TOKEN.finditer(text))
        folded = [token.group().casefold() for token in tokens]
        position = 0
        while position < len(tokens):
            for size in self.sizes.get(folded[position], ()):
                end = position + size
                if end <= len(tokens) and tuple(folded[position:end]) in self.entities:
                    yield text[tokens[position].start() : tokens[end - 1].end()]
                    position = end
                    break
            else:
                position += 1


def object_majority(task: Extraction) -> Learn:
    """For each key the most frequent value in training answers; a key that is mostly absent is left out."""

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        answer = json.dumps(_usual_values(task, train), ensure_ascii=False)
        return (lambda examples: [answer] * len(examples)), {}

    return learn


def object_dictionary(task: Extraction) -> Learn:
    """For each key the longest of its training values that occurs in the input, else its most frequent value.

    Of equally long values the first in the input is taken. Values are answered as they stood in training.
    """

    def learn(train: Sequence[Example], validation: Sequence[Example]) -> Learned:
        usual = _usual_values(task, train)
        known: dict[str, dict[Words, Any]] = defaultdict(dict)
        for key, value in _scalar_fields(task, train):
            words = _words(str(value))
            if words and normalise(value):
                known[key].setdefault(words, value)
        dictionaries = {key: _Dictionary.of(values) for key, values in known.items()}

        def look_up(example: Example) -> str:
            answer = dict(usual)
            for key, values in known.items():
                found = [_words(text) for text in dictionaries[key].matches(example.question)]
                if found:
                    answer[key] = values[max(found, key=len)]
            return json.dumps(answer, ensure_ascii=False)

        return (lambda examples: [look_up(example) for example in examples]), {
            "entities": sum(map(len, known.values()))
        }

    return learn


def _usual_values(task: Extraction, train: Sequence[Example]) -> dict[str, Any]:
    """Each key's most frequent value, where that is not absence; ties go to the value met first."""
    counts: dict[str, Counter[str]] = {key: Counter() for key in task.keys}
    for example in train:
        target = task.target(example)
        for key in task.keys:
            counts[key][json.dumps(target.get(key), sort_keys=True)] += 1
    usual = {key: json.loads(counts[key].most_common(1)[0][0]) for key in task.keys}
    return {key: value for key, value in usual.items() if value is not None}


def _scalar_fields(task: Extraction, train: Sequence[Example]) -> Iterator[tuple[str, Any]]:
    for example in train:
        for key, value in task.target(example).items():
            if isinstance(value, str | int | float):
                yield key, value


def _words(text: str) -> Words:
    return tuple(token.casefold() for token in _TOKEN.findall(text))


def _as_json(texts: Iterable[str]) -> str:
    return json.dumps(list(texts), ensure_ascii=False)
