"""What every parser and fitter needs: an example's closing text, and problems that name the row."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tunesmith.data.types import Example
from tunesmith.errors import DataError


def closing_text(examples: Sequence[Example]) -> str:
    """The text a template puts after every answer, such as the `"` that closes `"{phrase}" → "{tone}"`.

    It is what follows `expected` in the last message of *all* examples; "" where they have no such text in common.
    """
    found: set[str] = set()
    for example in examples:
        bare = example.expected.strip()
        learnt = example.messages[-1].content.strip() if example.messages else bare
        if not learnt.startswith(bare):
            return ""
        found.add(learnt[len(bare) :].strip())
    return found.pop() if len(found) == 1 else ""


def without_closing(text: str, closing: str) -> str:
    """`text` stripped, and without one `closing` at its end."""
    text = text.strip()
    return text.removesuffix(closing).strip() if closing else text


def references(expected: str) -> tuple[str, ...]:
    """The texts that are each a right answer: the elements of a JSON list of texts, else the one text.

    Blank elements are left out, so `[]` says that there is no answer. Other JSON is a text like any other.
    """
    if expected.lstrip().startswith("["):
        try:
            value = json.loads(expected)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list) and all(isinstance(element, str) for element in value):
            return tuple(element.strip() for element in value if element.strip())
    return (expected.strip(),)


def bad_answer(example: Example, what: str, expected: str, fix: str) -> DataError:
    """An error about the expected answer of one row, saying where the row is."""
    return DataError(f"{what}: {_shortened(example.expected)}", where=_place(example), expected=expected, fix=fix)


def _place(example: Example) -> str:
    return f"{example.source}:{example.line}"


def _shortened(text: str, limit: int = 120) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "…")
