"""A tokenizer as a GGUF file holds it: tokens with their kinds, merges or scores, and what is put around a text.

llama.cpp has three kinds. Byte-level BPE merges by a list of pairs ("gpt2"). SentencePiece's BPE merges whatever two
pieces make the token of the best score ("llama"); `transformers` keeps it as merges, so a token's score is here the
place of the first merge that makes it. Unigram looks for the likeliest pieces by their log-probabilities ("t5").
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType

from tunesmith.export.gguf.families import INSTEAD
from tunesmith.export.gguf.settings import Value
from tunesmith.export.gguf.splitting import way_of
from tunesmith.export.types import StepError

_KEY = "tokenizer.ggml."
_NO_MERGES = ("<none> <none>",)
"""llama.cpp wants at least one merge; this one never happens, for a text begins as single characters."""
_UNREACHED = -1e6
"""Score of tokens that no merge makes."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file says of its tokenizer.

    Attributes
    ----------
    kind: "gpt2", "llama" or "t5", see above.
    pre: llama.cpp's name for how text is cut first; "default" where it is not.
    tokens, types: by id; rows of the embeddings that no token has are unused tokens.
    settings: everything else, under full keys.
    notes: what llama.cpp does otherwise in rare cases.
    begins: the special token that conversations begin with, where only texts behind one are cut as the model's own
        tokenizer does; else empty.
    """

    kind: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    settings: Mapping[str, Value] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    begins: str = ""


def read_vocabulary(tokenizer: Any, rows: int, stop_ids: Sequence[int], template: str | None) -> Vocabulary:
    """What a `transformers` tokenizer is in a GGUF file. `rows`: of the embeddings; `template`: by which it is asked.

    Raises `StepError` for a tokenizer that llama.cpp does not have.
    """
    kept = _json_of(tokenizer)
    model, kind = kept["model"], _kind(kept)
    tokens, types = _tokens(kept, rows)
    ends, notes = _special_ids(tokenizer, stop_ids)
    around, more = _around(tokenizer, template)
    notes = (*notes, *more)
    begins = _begins(kept, tokenizer, template)
    settings = {**ends, **around, **_spaces(kept, kind, bool(begins))}
    if kind == "gpt2":
        normaliser, composed = _normaliser(kept)
        if normaliser:
            raise StepError("tokenizer", f"llama.cpp does not normalise text as it does ({normaliser})", INSTEAD)
        merges = tuple(" ".join(pair) if not isinstance(pair, str) else pair for pair in model["merges"])
        notes = (*notes, *composed)
        return Vocabulary(kind, way_of(kept), tokens, types, (), merges or _NO_MERGES, settings, notes)
    scores = tuple(_scores(model, tokens))
    if begins:
        notes = (*notes, "no blank is put before texts: conversations by the chat template begin with a special token")
    return Vocabulary(kind, "default", tokens, types, scores, (), settings, notes, begins)


def _json_of(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise StepError("tokenizer", "it is none of the tokenizers library, whose parts can be read", INSTEAD)
    kept: dict[str, Any] = json.loads(backend.to_str())
    return kept


def _kind(kept: Mapping[str, Any]) -> str:
    model = kept["model"]
    if model["type"] == "Unigram" and not model.get("byte_fallback"):
        return "t5"
    if model["type"] == "BPE" and model.get("byte_fallback"):
        return "llama"
    if model["type"] == "BPE" and "ByteLevel" in json.dumps(kept.get("pre_tokenizer")):
        odd = [k for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(k)]
        if odd:
            raise StepError("tokenizer", f"llama.cpp has no {', '.join(odd)} in a BPE", INSTEAD)
        return "gpt2"
    fallback = " with byte fallback" if model.get("byte_fallback") else ""
    raise StepError("tokenizer", f"llama.cpp has no {model['type']}{fallback} of this kind", INSTEAD)


def _tokens(kept: Mapping[str, Any], rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and type of every id."""
    vocabulary = kept["model"]["vocab"]
    texts = dict(enumerate(text for text, _ in vocabulary)) if isinstance(vocabulary, list) else _by_id(vocabulary)
    types = {i: int(TokenType.NORMAL) for i in texts}
    if kept["model"].get("byte_fallback"):
        types |= {i: int(TokenType.BYTE) for i, text in texts.items() if _is_byte(text)}
    unknown = kept["model"].get("unk_token")
    types |= {i: int(TokenType.UNKNOWN) for i, text in texts.items() if text == unknown}
    if isinstance(vocabulary, list) and (place := kept["model"].get("unk_id")) is not None:
        types[place] = int(TokenType.UNKNOWN)
    for token in kept["added_tokens"]:
        texts[token["id"]] = token["content"]
        if types.get(token["id"]) != TokenType.UNKNOWN:
            types[token["id"]] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    if max(texts) >= rows:
        said = f"it has {max(texts) + 1} tokens and the model {rows} rows for them"
        raise StepError("tokenizer", said, "give the model a row for every token, and export again")
    for i in range(rows):
        if i not in texts:
            texts[i], types[i] = f"[PAD{i}]", int(TokenType.UNUSED)
    if len(set(texts.values())) != len(texts):
        seen = list(texts.values())
        twice = next(text for text in seen if seen.count(text) > 1)
        raise StepError("tokenizer", f"two of its tokens are {twice!r}, llama.cpp takes each text once", INSTEAD)
    return tuple(texts[i] for i in range(rows)), tuple(types[i] for i in range(rows))


def _by_id(vocabulary: Mapping[str, int]) -> dict[int, str]:
    return {i: text for text, i in vocabulary.items()}


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> Iterator[float]:
    if model["type"] == "Unigram":
        given = [score for _, score in model["vocab"]]
        yield from (float(given[i]) if i < len(given) else 0.0 for i in range(len(tokens)))
        return
    made: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        made.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    yield from (-float(made[text]) if text in made else _UNREACHED for text in tokens)


def _normaliser(kept: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Steps of a byte-level tokenizer's normaliser that llama.cpp lacks, and notes on those that hardly matter."""
    step = kept.get("normalizer")
    if step is None or (step["type"] == "Sequence" and not step["normalizers"]):
        return "", ()
    if step["type"] == "NFC":
        return "", ("llama.cpp does not compose accents (NFC) before it cuts text; nearly all text is composed",)
    return str(step["type"]), ()


def _special_ids(tokenizer: Any, stop_ids: Sequence[int]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The ids of special tokens. Up to three tokens can be named that end an answer."""
    own = tokenizer.eos_token_id
    stops = sorted(stop_ids, key=lambda i: (i != own, i)) or ([own] if own is not None else [])
    ends = dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), stops, strict=False))
    others = {"bos": tokenizer.bos_token_id, "unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    ends |= {f"{name}_token_id": i for name, i in others.items() if i is not None}
    left = tokenizer.convert_ids_to_tokens(stops[3:])
    notes = (f"a GGUF file names three tokens that end an answer; not named are {', '.join(left)}",) if left else ()
    return {_KEY + key: int(i) for key, i in ends.items()}, notes


def _around(tokenizer: Any, template: str | None) -> tuple[dict[str, Value], tuple[str, ...]]:
    """What is put around a text that is to be read, and a note where that is not the tokenizer's own way.

    Conversations are tokenised without the tokenizer's own start token: the chat template writes one or does not. Where
    it does not, llama.cpp must not put one there either.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    given = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(given)) if given[i : i + len(plain)] == plain), None)
    before, after = ([], []) if start is None else (given[:start], given[start + len(plain) :])
    if start is None or before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        raise StepError("tokenizer", "it puts more around a text than a start and an end token", INSTEAD)
    asked = template is None or _starts(tokenizer, template)
    flags: dict[str, Value] = {
        _KEY + "add_bos_token": bool(before) and asked,
        _KEY + "add_eos_token": bool(after) and template is None,
    }
    if before and not asked:
        return flags, ("no start token is put before texts: the chat template, by which it was tuned, has none",)
    return flags, ()


def _starts(tokenizer: Any, template: str) -> bool:
    """Whether what a chat template writes begins with the start token."""
    return bool(tokenizer.bos_token) and _rendered(tokenizer, template).startswith(tokenizer.bos_token)


def _rendered(tokenizer: Any, template: str) -> str:
    turns = [{"role": "user", "content": "a"}]
    return str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))


def _begins(kept: Mapping[str, Any], tokenizer: Any, template: str | None) -> str:
    """The special token that conversations begin with, of a tokenizer that puts a blank before the first text alone.

    llama.cpp puts one behind every special token, or none anywhere: with none, such conversations come out right.
    """
    steps = [*_steps(kept.get("normalizer")), *_steps(kept.get("pre_tokenizer"))]
    if template is None or not any(step.get("prepend_scheme") == "first" for step in steps):
        return ""
    text = _rendered(tokenizer, template)
    return max((mark for mark in map(str, tokenizer.get_added_vocab()) if text.startswith(mark)), key=len, default="")


def _spaces(kept: Mapping[str, Any], kind: str, begun: bool) -> dict[str, Value]:
    """Whether a blank is put before a text, and what Unigram does to blanks and odd characters.

    begun: whether only texts behind a special token are to be right.
    """
    if kind == "gpt2":
        return {}
    steps = list(_steps(kept.get("normalizer"))) + list(_steps(kept.get("pre_tokenizer")))
    known = {"Prepend", "Replace", "Metaspace", "Split", "Strip", "Precompiled", "WhitespaceSplit"}
    if odd := sorted({step["type"] for step in steps} - known):
        raise StepError("tokenizer", f"llama.cpp does not normalise text as it does ({', '.join(odd)})", INSTEAD)
    prefixed = any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    found: dict[str, Value] = {_KEY + "add_space_prefix": prefixed and not begun}
    if kind == "t5":
        squeezed = any(step["type"] == "Replace" and step["pattern"].get("Regex", "") == " {2,}" for step in steps)
        found[_KEY + "remove_extra_whitespaces"] = squeezed or any(s["type"] == "WhitespaceSplit" for s in steps)
        maps = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
        if maps and maps[0]:
            found[_KEY + "precompiled_charsmap"] = base64.b64decode(maps[0])
    return found


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    inner = step.get("normalizers") or step.get("pretokenizers")
    if step["type"] != "Sequence":
        yield step
    for one in inner or ():
        yield from _steps(one)
