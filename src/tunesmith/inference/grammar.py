"""Answers held to a form while they are written: of every next token, whether the form allows it.

A form becomes a grammar for llguidance, which knows the bytes of every token and answers in well under a millisecond.
Each row of a batch has a matcher of its own. A stop token is allowed only where the form is complete.

Around the form stand what decoders and templates put there: one space before it (tokenizers of the SentencePiece kind
begin every text with one), and the template's closing text after it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.tasks.types import AnswerForm

_SPACE = "[ \\n\\t]{0,16}"
"""White space allowed between the parts of JSON: enough for indented answers, too little to be lost in."""
_KEPT = 256
"""Compiled grammars that are remembered."""
_NO_FIX = "leave grammar out of evaluate.decoding"


class GrammarError(ValueError):
    """A grammar that cannot be compiled, with the compiler's reason."""


class Grammars:
    """Forms compiled for one tokenizer, each once. `vocabulary` is the width of the model's logits."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: Collection[int]) -> None:
        self._tokens = token_table(tokenizer, vocabulary, sorted(stop_ids))
        self._vocabulary, self._stops = vocabulary, sorted(stop_ids)
        self._compiled: dict[str, Any] = {}

    def check(self, forms: Sequence[AnswerForm | None]) -> None:
        """Raises `EngineError` for a form that cannot be compiled."""
        for form in forms:
            if form is not None:
                self._matcher(form)

    def hold(self, forms: Sequence[AnswerForm | None]) -> HeldRows:
        """A new answer for each form (None: free). Raises `EngineError` for a form that cannot be compiled."""
        matchers = [None if form is None else self._matcher(form).deep_copy() for form in forms]
        return HeldRows(matchers, self._vocabulary, self._stops)

    def one(self, grammar: str) -> HeldRows:
        """A single new answer under a grammar in llguidance's dialect of Lark. Raises `GrammarError`."""
        return HeldRows([self._compile(grammar).deep_copy()], self._vocabulary, self._stops)

    def _matcher(self, form: AnswerForm) -> Any:
        try:
            return self._compile(grammar_text(form))
        except GrammarError as error:
            raise EngineError(
                f"answers cannot be held to their form: {error}",
                where="evaluate.decoding" if form.json_schema is None else "evaluate.decoding, task.json_schema",
                expected="a form that llguidance can compile",
                fix=_NO_FIX if form.json_schema is None else f"simplify the schema, or {_NO_FIX}",
            ) from error

    def _compile(self, text: str) -> Any:
        from llguidance import LLMatcher

        if text not in self._compiled:
            matcher = LLMatcher(self._tokens, text, log_level=0)
            if matcher.is_error():
                raise GrammarError(_first_line(matcher.get_error()))
            if len(self._compiled) >= _KEPT:  # a server is given ever new ones
                self._compiled.pop(next(iter(self._compiled)), None)
            self._compiled[text] = matcher
            return matcher
        return self._compiled[text]


class HeldRows:
    """The answers of a batch as far as they are written; `rows` are named by their place in the batch at its start."""

    def __init__(self, matchers: list[Any], vocabulary: int, stop_ids: list[int]) -> None:
        self._matchers, self._vocabulary, self._stops = matchers, vocabulary, stop_ids

    def allowed(self, rows: Sequence[int]) -> Tensor:
        """Which tokens may come next, bool [len(rows), V]; a row for which there is none cannot be continued."""
        mask = np.ones((len(rows), self._vocabulary), dtype=np.bool_)
        for line, row in zip(mask, rows, strict=True):
            matcher = self._matchers[row]
            if matcher is None:
                continue
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            line[:] = np.unpackbits(bits, count=self._vocabulary, bitorder="little")
            line[self._stops] = matcher.is_accepting()
        return torch.from_numpy(mask)

    def take(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Write one more token, which `allowed` has allowed and which is no stop token, behind each row."""
        for row, token in zip(rows, tokens, strict=True):
            matcher = self._matchers[row]
            if matcher is not None:
                matcher.consume_token(token)


def grammar_text(form: AnswerForm) -> str:
    """A form in llguidance's dialect of Lark."""
    tail = f" ({_spaced(form.closing)})?" if form.closing else ""
    if form.json_schema is not None:
        schema = {**form.json_schema, "x-guidance": {"whitespace_pattern": _SPACE}}
        return f'start: " "? value{tail}\nvalue: %json {json.dumps(schema)}\n'
    choices = " | ".join(_quoted(choice) for choice in form.choices)
    if form.separator is None:
        return f'start: ANSWER\nANSWER: " "? ({choices}){tail}\n'
    none = f" | {_quoted(form.none)}" if form.none else ""
    bare = form.separator.strip(" ")
    between = f'" "? {_quoted(bare)} " "?' if bare else _quoted(form.separator)
    return f'start: ANSWER\nANSWER: " "? ((CHOICE ({between} CHOICE)*){none}){tail}\nCHOICE: {choices}\n'


def _spaced(closing: str) -> str:
    """Closing text, of which white space was stripped when it was read off the rows."""
    return f"/[ \\n]{{0,2}}/ {_quoted(closing)}"


def _quoted(text: str) -> str:
    return json.dumps(text)


def token_table(tokenizer: Any, vocabulary: int, stop_ids: list[int]) -> Any:
    """The bytes of every token (an `LLTokenizer`), as llguidance reads them off a fast tokenizer; else as decoding
    shows them. Raises `EngineError` where neither says what text each token stands for."""
    import llguidance
    import llguidance.hf

    try:
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=stop_ids)
    except ValueError as error:  # a slow tokenizer, or a decoder that llguidance does not know
        shown = _ShownTokens(tokenizer, vocabulary, stop_ids)
        if not shown.faithful():
            raise EngineError(
                f"answers cannot be held to a form with this tokenizer: {_first_line(str(error))}",
                where=f"evaluate.decoding, {type(tokenizer).__name__}",
                expected="a tokenizer of which it can be known what text each token stands for",
                fix=_NO_FIX,
            ) from error
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(shown), n_vocab=vocabulary, eos_token=stop_ids)


class _ShownTokens:
    """Tokens by the text that decoding adds for them behind another token. Those that add no whole character, and
    special ones, stand for no text and are never allowed.
    """

    _TRIED = ("card_lost 12", 'a "b", {"c": [3]}', "two words")

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = stop_ids[0], None
        self.special_token_ids = sorted({*tokenizer.all_special_ids, *stop_ids})
        self._before = tokenizer.encode("a", add_special_tokens=False)
        known = set(tokenizer.get_vocab().values()) - set(self.special_token_ids)
        lead = self._decode(self._before)
        self.tokens = [self._bytes(i, lead) if i in known else b"" for i in range(vocabulary)]
        self._ids = {piece: i for i, piece in reversed(list(enumerate(self.tokens))) if piece}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """Tokens that spell a text exactly, the longest first, up to where none fits: text that a form forces.

        The tokenizer's own way would put a space before it.
        """
        ids: list[int] = []
        at = 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[text[at:end]])
            at = end
        return ids

    def faithful(self) -> bool:
        """Whether texts come back from the bytes of their tokens, up to a space at their beginning."""
        for text in self._TRIED:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            if b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace").removeprefix(" ") != text:
                return False
        return True

    def _bytes(self, token: int, lead: str) -> bytes:
        text = self._decode([*self._before, token])
        added = text.removeprefix(lead)
        return b"" if text == added or "\N{REPLACEMENT CHARACTER}" in added else added.encode()

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
