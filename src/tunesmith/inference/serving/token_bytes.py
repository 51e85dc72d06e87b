"""What bytes a token stands for: log-probabilities are told with them, as a character may need several tokens."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tunesmith.errors import EngineError
from tunesmith.inference.grammar import token_table


class TokenBytes:
    """The bytes of every token of a tokenizer. Special tokens stand for their name; what a model has beyond its
    tokenizer for nothing.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: list[int]) -> None:
        self._tokenizer, self._vocabulary, self._stops = tokenizer, vocabulary, stop_ids
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(stop_ids)
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._bytes(token)
        return found

    def _bytes(self, token: int) -> bytes:
        if token not in self._vocabulary_ids:
            return b""
        shown: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        if token in self._special or self._table is None:
            return shown.encode()
        data: bytes = self._table.decode_bytes([token])
        return shown.encode() if data == f"<[{token}]>".encode() else data  # it has no bytes for this one

    @cached_property
    def _vocabulary_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_vocab().values())

    @cached_property
    def _table(self) -> Any | None:
        """None where only decoding can show what a token is: parts of characters are then shown as U+FFFD."""
        try:
            return token_table(self._tokenizer, self._vocabulary, self._stops)
        except EngineError:
            return None
