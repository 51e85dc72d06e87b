"""Log-probabilities as chat completions and as completions tell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.inference.serving.types import TokenScore

LEAST = -9999.0
"""For a token of probability 0: JSON has no minus infinity, and this is what OpenAI writes."""


def chat_scores(scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat completion."""
    return [
        {
            **_chat_token(score.text, score.data, score.logprob),
            "top_logprobs": [_chat_token(text, data, logprob) for _, text, data, logprob in score.top],
        }
        for score in scores
    ]


def completion_scores(scores: Sequence[TokenScore], start: int, *, first_unknown: bool = False) -> dict[str, Any]:
    """`logprobs` of a completion. `start` is the offset of the first token in prompt and completion together, in
    characters. Nothing comes before the first token of an echoed prompt: its probability is null (`first_unknown`).
    """
    tokens: list[str] = []
    offsets: list[int] = []
    at = start
    for score, text in zip(scores, _texts(scores), strict=True):
        tokens.append(token_name(score.text, score.data, legacy=True))
        offsets.append(at)
        at += len(text)
    logprobs: list[float | None] = [finite(score.logprob) for score in scores]
    tops: list[Mapping[str, float] | None] = [_top(score) for score in scores]
    if first_unknown and scores:
        logprobs[0] = tops[0] = None
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def token_name(text: str, data: bytes, *, legacy: bool = False) -> str:
    r"""A token as text; one that is a part of a character by its bytes: `\xf0\x9f`, in completions `bytes:\xf0\x9f`."""
    if not data:
        return text
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ("bytes:" if legacy else "") + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if logprob > LEAST else LEAST


def _chat_token(text: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_name(text, data), "logprob": finite(logprob), "bytes": list(data) if data else None}


def _top(score: TokenScore) -> dict[str, float]:
    """The most probable tokens, and the one that was written where it is not among them."""
    top = {token_name(text, data, legacy=True): finite(logprob) for _, text, data, logprob in score.top}
    top.setdefault(token_name(score.text, score.data, legacy=True), finite(score.logprob))
    return top


def _texts(scores: Sequence[TokenScore]) -> list[str]:
    """What each token adds to the text: a character of several tokens is added by the last of them."""
    texts: list[str] = []
    pending = b""
    for score in scores:
        if not score.data:
            texts.append("")
            continue
        pending += score.data
        try:
            texts.append(pending.decode())
        except UnicodeDecodeError:
            if len(pending) < 4:
                texts.append("")
                continue
            texts.append(pending.decode("utf-8", "replace"))
        pending = b""
    return texts
