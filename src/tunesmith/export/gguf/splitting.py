"""How a byte-level tokenizer cuts text before it merges, and what llama.cpp calls that way.

A GGUF file names its way of cutting and does not hold it. Which name is right is found by what the tokenizer really
does: its steps are written as a list of patterns and compared with those that llama.cpp has. A tokenizer that cuts
otherwise is refused, for llama.cpp would read every text a little wrongly and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.export.gguf.families import INSTEAD
from tunesmith.export.types import StepError

_CLITICS = r"'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE = rf"(?i:{_CLITICS})"
_WORD, _SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

GPT2 = rf"{_CLITICS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
"""Clitics, words, numbers and signs, each with the blank before it (GPT-2)."""
THREE_DIGITS = rf"{_ANY_CASE}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_BLANKS}"
"""Numbers in groups of three, any sign before a word (cl100k, Llama 3)."""
ONE_DIGIT = rf"{_ANY_CASE}|{_WORD}|\p{{N}}|{_SIGNS}|{_BLANKS}"
"""The same with single digits (Qwen 2 and 3)."""
CASED_ONE_DIGIT = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASHED}|{_BLANKS}"
"""Words cut where the case changes, single digits (Mistral's Tekken)."""
CASED_THREE_DIGITS = rf"{_CASED[0]}{_ANY_CASE}?|{_CASED[1]}{_ANY_CASE}?|\p{{N}}{{1,3}}|{_SLASHED}|{_BLANKS}"
"""Words cut where the case changes, with their clitics; digits in threes (o200k)."""
DIGIT = r"\p{N}"


@dataclass(frozen=True, slots=True)
class Way:
    """A way of cutting that llama.cpp has: patterns applied one after the other, and whether a piece that is a token
    already is left whole."""

    patterns: tuple[str, ...]
    whole_words: bool = False


WAYS: Mapping[str, Way] = {
    "gpt-2": Way((GPT2,)),
    "smollm": Way((DIGIT, GPT2)),
    "llama-bpe": Way((THREE_DIGITS,), whole_words=True),
    "dbrx": Way((THREE_DIGITS,)),
    "qwen2": Way((ONE_DIGIT,)),
    "tekken": Way((CASED_ONE_DIGIT,), whole_words=True),
    "gpt-4o": Way((CASED_THREE_DIGITS,)),
}
"""By the name that llama.cpp gives them (`tokenizer.ggml.pre`)."""


def way_of(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer (its JSON) cuts text. Raises `StepError` for one it lacks."""
    way = Way(tuple(_patterns(tokenizer["pre_tokenizer"])), bool(tokenizer["model"].get("ignore_merges")))
    named = next((name for name, known in WAYS.items() if known == way), None)
    if named is None:
        whole = " and leaves known words whole" if way.whole_words else ""
        raise _unknown(f"it cuts text by {' then '.join(way.patterns)}{whole}")
    return named


def _patterns(step: Mapping[str, Any] | None) -> list[str]:
    """What a pre-tokenizer does, as patterns. Raises `StepError` for steps that are no plain cutting."""
    kind = None if step is None else step["type"]
    if step is None or kind not in ("Sequence", "ByteLevel", "Digits", "Split"):
        raise _unknown(f"its pre-tokenizer is {kind or 'missing'}")
    if kind == "Sequence":
        return [pattern for one in step["pretokenizers"] for pattern in _patterns(one)]
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise _unknown("it puts a blank before every text")
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [DIGIT if step.get("individual_digits") else DIGIT + "+"]
    if step.get("invert") or step.get("behavior") not in ("Isolated", "Removed"):
        raise _unknown(f"it cuts with the behaviour {step.get('behavior')}")
    return [_same_pattern(step["pattern"])]


def _same_pattern(pattern: Mapping[str, str]) -> str:
    """A pattern, as `WAYS` spells it where it is another spelling of one."""
    text = pattern.get("Regex", "")
    if not text:
        raise _unknown(f"it cuts at the text {pattern.get('String')!r}")
    spellings: Sequence[tuple[str, str]] = (
        (r"(?i:[sdmt]|ll|ve|re)", ""),
        (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _ANY_CASE),
        (r"?+", "?"),
        (r"++", "+"),
    )
    for spelled, meant in spellings:
        text = text.replace(spelled, meant) if meant else text
    return text


def _unknown(why: str) -> StepError:
    return StepError("tokenizer", f"llama.cpp has no such way of cutting text: {why}", INSTEAD)
