"""From a row to an answer: the request that a run makes of it, and what is kept of the reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.service.evals.rows import Row
from tunesmith.service.evals.shapes import (
    CompletionsData,
    CompletionsSampling,
    ItemReference,
    JsonlData,
    ResponsesData,
    ResponsesSampling,
    RunData,
    Template,
)
from tunesmith.service.evals.stored import sample_of_completion, sample_of_response
from tunesmith.service.grading import sample_of
from tunesmith.service.grading.asking import Tokens, tokens_of
from tunesmith.service.grading.templates import TemplateError, as_text, fill, look_up, read_path
from tunesmith.service.inner import Post

USUAL: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0, "seed": 42}
"""Settings of a run that gives none, as the hosted service fills them in."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer: the namespace `sample` for graders (None where there is none), and the record that an output item
    shows.
    """

    sample: Mapping[str, Any] | None
    record: Mapping[str, Any]


def asks_model(data: RunData) -> bool:
    """Whether answers are drawn, or stand in the rows."""
    return not isinstance(data, JsonlData) and data.input_messages is not None


async def answer(data: RunData, row: Row, post: Post) -> Answered:
    """Draw or take the answer of one row; a refusal is told in the record's `error`."""
    if isinstance(data, JsonlData) or data.input_messages is None:
        return _given(row)
    try:
        messages = messages_of(data.input_messages, row)
    except TemplateError as error:
        return Answered(None, _record(data, [], None, error={"code": "invalid_template", "message": str(error)}))
    path, body = request_of(data, messages)
    reply = await post(path, body)
    if reply.status != 200:
        code = str((reply.body.get("error") or {}).get("code") or f"status_{reply.status}")
        return Answered(None, _record(data, messages, None, error={"code": code, "message": reply.message}))
    chat = isinstance(data, CompletionsData)
    sample = sample_of_completion(reply.body) if chat else sample_of_response(reply.body)
    finish = reply.body["choices"][0]["finish_reason"] if chat else _finish(reply.body)
    record = _record(data, messages, sample, model=reply.body["model"], finish=finish, tokens=tokens_of(reply))
    return Answered(sample, record)


def messages_of(given: Template | ItemReference, row: Row) -> list[dict[str, Any]]:
    """The messages for one row. Raises `TemplateError`."""
    if isinstance(given, Template):
        values = {"item": row.item}
        return [{"role": one.role, "content": fill(one.text, values)} for one in given.template]
    found = look_up(read_path(given.item_reference), {"item": row.item})
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) and "role" in one for one in found):
        raise TemplateError(f"'{given.item_reference}' is no list of messages")
    return [dict(one) for one in found]


def request_of(data: CompletionsData | ResponsesData, messages: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Path and body of the request."""
    body = {"model": data.model, **settings_of(data)}
    most = body.pop("max_completion_tokens")
    sampling = data.sampling_params
    if sampling is not None and sampling.tools:
        body["tools"] = sampling.tools
    if isinstance(data, CompletionsData):
        body |= {"messages": messages} | ({"max_completion_tokens": most} if most else {})
        if isinstance(sampling, CompletionsSampling) and sampling.response_format:
            body["response_format"] = sampling.response_format
        return "/v1/chat/completions", body
    # The responses route draws without a seed, and stores what it is not told to leave.
    del body["seed"]
    body |= {"input": messages, "store": False} | ({"max_output_tokens": most} if most else {})
    if isinstance(sampling, ResponsesSampling) and sampling.text:
        body["text"] = sampling.text
    return "/v1/responses", body


def settings_of(data: RunData) -> dict[str, Any]:
    """How answers are drawn, as an output item shows it."""
    sampling = None if isinstance(data, JsonlData) else data.sampling_params
    given = {name: getattr(sampling, name, None) for name in USUAL}
    settings = {name: USUAL[name] if value is None else value for name, value in given.items()}
    return {**settings, "max_completion_tokens": sampling.most_tokens if sampling else None}


def _given(row: Row) -> Answered:
    """The answer that stands in a row, whichever of its fields say it. Nobody has checked what else is in it."""
    found = row.sample
    if found is None:
        return Answered(None, _record(None, [], None))
    tools, choices = _list(found.get("output_tools")), _list(found.get("choices"))
    first = choices[0].get("message") if choices and isinstance(choices[0], Mapping) else None
    if "output_text" in found:
        sample = sample_of(_text(found["output_text"]), tools or (), choices, **found)
    elif isinstance(first, Mapping):
        calls = _list(first.get("tool_calls")) or ()
        sample = sample_of(_text(first.get("content")), calls, choices, **found)
    else:
        sample = dict(found)
    shown = [one for one in _list(row.item.get("input")) or () if isinstance(one, Mapping)]
    return Answered(sample, _record(None, shown, sample, model=str(found.get("model") or ""), finish="stop"))


def _list(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) else None


def _text(content: Any) -> str:
    """The content of a message as one text; parts that are no texts are left out."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(text for text in texts if isinstance(text, str))
    return "" if content is None else as_text(content)


def _finish(body: Mapping[str, Any]) -> str:
    return "length" if body.get("status") == "incomplete" else "stop"


def _record(
    data: RunData | None,
    messages: list[Any],
    sample: Mapping[str, Any] | None,
    *,
    model: str = "",
    finish: str = "",
    tokens: Tokens | None = None,
    error: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The `sample` of an output item, with every field that the client's type has."""
    used = tokens or Tokens()
    output = []
    if sample is not None:
        said = sample.get("output_text", "")
        output = [_shown({"role": "assistant", "content": said, "tool_calls": sample.get("output_tools") or None})]
    settings: dict[str, Any] = (
        settings_of(data) if data is not None else dict.fromkeys((*USUAL, "max_completion_tokens"))
    )
    asked = model or (data.model if data is not None and not isinstance(data, JsonlData) else None) or ""
    return {
        "input": [_shown(one) for one in messages],
        "output": output,
        "finish_reason": finish,
        "model": asked,
        "usage": {**used.json(), "invocation_count": used.calls},
        "error": error,
        **settings,
    }


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "role": message.get("role", ""),
        "content": _text(message.get("content")),
        "tool_calls": message.get("tool_calls"),
        "tool_call_id": message.get("tool_call_id"),
        "function_call": message.get("function_call"),
    }
