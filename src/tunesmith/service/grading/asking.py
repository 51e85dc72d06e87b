"""Graders that ask a model of this server: a score in a range, or one of some labels.

The model's answer is held to a small JSON object, so it can always be read: `{"result": 0.5}` or `{"result": "good"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.service.grading.shapes import LabelModel, ScoreModel
from tunesmith.service.grading.templates import fill
from tunesmith.service.inner import Post, Reply

MOST_TOKENS = 256
"""Of an answer, where the grader says no number: more than any score or label needs."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What asking a model has cost; `calls` answers were asked for."""

    prompt: int = 0
    answer: int = 0
    cached: int = 0
    calls: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.prompt + other.prompt,
            self.answer + other.answer,
            self.cached + other.cached,
            self.calls + other.calls,
        )

    def json(self) -> dict[str, int]:
        """As the grader routes show it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
            "cached_tokens": self.cached,
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a model said: `value` is a number or a label, or None with the reason.

    `failed`: the model could not be asked at all. `asked` and `said` are the messages, for people to read.
    """

    model: str
    value: float | str | None
    error: str | None = None
    failed: bool = False
    tokens: Tokens = Tokens()
    asked: tuple[Mapping[str, Any], ...] = ()
    said: str | None = None
    finish: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


async def judge(grader: ScoreModel | LabelModel, values: Mapping[str, Any], post: Post) -> Judgement:
    """Ask the grader's model about one answer. Raises `TemplateError` for a name that is not there."""
    body = _request(grader, values)
    asked = tuple(body["messages"])
    reply = await post("/v1/chat/completions", body)
    if reply.status != 200:
        return Judgement(grader.model, None, reply.message, failed=True, asked=asked)
    choice = reply.body["choices"][0]
    said = choice["message"].get("content") or ""
    value, error = _read(grader, said, choice["finish_reason"])
    return Judgement(
        reply.body["model"],
        value,
        error,
        tokens=tokens_of(reply),
        asked=asked,
        said=said,
        finish=choice["finish_reason"],
        settings={name: body[name] for name in ("temperature", "top_p", "seed", "max_completion_tokens")},
    )


def tokens_of(reply: Reply) -> Tokens:
    """The usage of an answer of either route."""
    usage = reply.body.get("usage") or {}
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return Tokens(
        usage.get("prompt_tokens", usage.get("input_tokens", 0)),
        usage.get("completion_tokens", usage.get("output_tokens", 0)),
        details.get("cached_tokens") or 0,
        1,
    )


def _request(grader: ScoreModel | LabelModel, values: Mapping[str, Any]) -> dict[str, Any]:
    messages = [{"role": one.role, "content": fill(one.text, values)} for one in grader.input]
    if isinstance(grader, ScoreModel):
        low, high = grader.bounds
        wanted = f'a number from {low:g} to {high:g}, the score: {{"result": {high:g}}}'
        result: dict[str, Any] = {"type": "number", "minimum": low, "maximum": high}
    else:
        labels = ", ".join(json.dumps(label, ensure_ascii=False) for label in grader.labels)
        wanted = f"one of the labels {labels}"
        result = {"type": "string", "enum": list(grader.labels)}
    told = f'Reply with a JSON object whose only field "result" is {wanted}.'
    first = messages[0]
    if first["role"] in ("system", "developer"):
        first["content"] += "\n\n" + told
    else:
        messages.insert(0, {"role": "system", "content": told})
    schema = {"type": "object", "properties": {"result": result}, "required": ["result"], "additionalProperties": False}
    sampling = grader.sampling_params
    return {
        "model": grader.model,
        "messages": messages,
        "response_format": {"type": "json_schema", "json_schema": {"name": "grade", "schema": schema, "strict": True}},
        "temperature": _given(sampling and sampling.temperature, 0.0),
        "top_p": _given(sampling and sampling.top_p, 1.0),
        "seed": _given(sampling and sampling.seed, 0),
        "max_completion_tokens": _given(sampling and sampling.most_tokens, MOST_TOKENS),
    }


def _given(value: Any, usual: Any) -> Any:
    return usual if value is None else value


def _read(grader: ScoreModel | LabelModel, said: str, finish: str) -> tuple[float | str | None, str | None]:
    """The result of an answer, or why there is none."""
    try:
        result = json.loads(said)["result"]
    except (ValueError, TypeError, KeyError, RecursionError):
        cut = " (it was cut off at its most tokens)" if finish == "length" else ""
        return None, f"the grading model's answer cannot be read{cut}: {said[:200]!r}"
    if isinstance(grader, LabelModel):
        known = result in grader.labels
        return (result, None) if known else (None, f"the grading model chose {str(result)[:100]!r}, which is no label")
    if isinstance(result, bool) or not isinstance(result, int | float):
        return None, f"the grading model's result is no number: {str(result)[:100]!r}"
    low, high = grader.bounds
    if not low <= result <= high:
        return None, f"the grading model's score {result:g} lies outside the range [{low:g}, {high:g}]"
    return float(result), None
