"""A GGUF file's tokenizer, read as llama.cpp reads it, for where no llama.cpp is installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType

from tunesmith.export.gguf.splitting import WAYS
from tunesmith.inference.gguf_file import GgufFile

_KEY = "tokenizer.ggml."
_BLANK = "\u2581"
"""What SentencePiece writes for a blank."""
_FOUND_FIRST = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
Tokenise = Callable[[str], list[int]]


def file_tokenizer(path: Path) -> Tokenise:
    """A function from a text to its tokens, without what is put around it."""
    fields = GgufFile(path).fields
    kind = fields[_KEY + "model"]
    tokens, types = list(fields[_KEY + "tokens"]), list(fields[_KEY + "token_type"])
    ids = {text: i for i, text in enumerate(tokens)}
    cut: Tokenise
    if kind == "gpt2":
        cut = _byte_level(fields, ids)
    elif kind == "llama":
        cut = _sentence_piece(fields, ids)
    else:
        cut = _unigram(fields, tokens)
    marks = [text for text, kind in zip(tokens, types, strict=True) if kind in _FOUND_FIRST]
    prefix = bool(fields.get(_KEY + "add_space_prefix", False)) and kind != "gpt2"
    return _around_marks(cut, marks, ids, prefix)


def _around_marks(cut: Tokenise, marks: Sequence[str], ids: Mapping[str, int], prefix: bool) -> Tokenise:
    """Special tokens are found in the text first, the longest before others; what lies between them is cut."""
    if not marks:
        return lambda text: cut((" " if prefix and text else "") + text)
    pattern = re.compile("(" + "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)) + ")")

    def tokenise(text: str) -> list[int]:
        found: list[int] = []
        for i, part in enumerate(pattern.split(text)):
            if i % 2:
                found.append(ids[part])
            elif part:
                found += cut(" " + part if prefix else part)
        return found

    return tokenise


def _byte_level(fields: Mapping[str, Any], ids: Mapping[str, int]) -> Tokenise:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    way = WAYS[fields[_KEY + "pre"]]
    merges = [(left, right) for left, _, right in (pair.partition(" ") for pair in fields[_KEY + "merges"])]
    known = [pair for pair in merges if pair[0] in ids and pair[1] in ids and "".join(pair) in ids]
    tokenizer = Tokenizer(models.BPE(vocab=dict(ids), merges=known, ignore_merges=way.whole_words))
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in way.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _sentence_piece(fields: Mapping[str, Any], ids: Mapping[str, int]) -> Tokenise:
    scores = [float(score) for score in fields[_KEY + "scores"]]

    def cut(text: str) -> list[int]:
        pieces = list(text.replace(" ", _BLANK))
        while True:
            pairs = ((ids.get(pieces[i] + pieces[i + 1]), i) for i in range(len(pieces) - 1))
            best = max(((scores[j], -i) for j, i in pairs if j is not None), default=None)
            if best is None:
                break
            i = -best[1]
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        found: list[int] = []
        for piece in pieces:
            if piece in ids:
                found.append(ids[piece])
            else:
                found += [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
        return found

    return cut


def _unigram(fields: Mapping[str, Any], tokens: Sequence[str]) -> Tokenise:
    from tokenizers import Tokenizer, models, normalizers

    types, scores = fields[_KEY + "token_type"], fields[_KEY + "scores"]
    unknown = next((i for i, kind in enumerate(types) if kind == TokenType.UNKNOWN), None)
    vocabulary = [(text, float(score)) for text, score in zip(tokens, scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown))
    charsmap = fields.get(_KEY + "precompiled_charsmap")
    if charsmap is not None:
        tokenizer.normalizer = normalizers.Precompiled(bytes(charsmap))
    squeeze = bool(fields.get(_KEY + "remove_extra_whitespaces", False))

    def cut(text: str) -> list[int]:
        if squeeze:
            lead = " " if text.startswith(" ") else ""
            text = lead + " ".join(part for part in text.split(" ") if part)
        return list(tokenizer.encode(text.replace(" ", _BLANK), add_special_tokens=False).ids)

    return cut
