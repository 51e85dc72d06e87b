"""Chat completions that are kept (`store: true`): the source of distillation and of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.service.asking.chat_request import ChatRequest
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError, not_found
from tunesmith.service.http import unknown_cursor
from tunesmith.service.store.interface import Found, Page, UnknownCursorError
from tunesmith.service.store.nouns import StoredCompletion

Json = dict[str, Any]
_TOLD = (
    "tools",
    "tool_choice",
    "response_format",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
"""Fields of the request that a kept completion shows."""
_ANSWER_FIELDS = ("tool_calls", "function_call", "tool_call_id", "name")


def keep_completion(service: Service, request: ChatRequest, answer: Mapping[str, Any]) -> None:
    """Keep a completion under its id, with everything that was asked."""
    asked = request.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"stream", "stream_options"})
    service.store.add(
        StoredCompletion(
            str(answer["id"]),
            int(answer["created"]),
            str(answer["model"]),
            asked,
            dict(answer),
            request.metadata,
        )
    )


def kept_completion(service: Service, id: str) -> StoredCompletion:
    """Raises `ApiError` 404."""
    found = service.store.get(StoredCompletion, id)
    if found is None:
        raise not_found("Chat Completion object", id, param="completion_id")
    return found


def kept_completions(
    service: Service, page: Page, *, model: str | None = None, metadata: Mapping[str, str] | None = None
) -> Found[StoredCompletion]:
    """A page of them, by model and metadata. Raises `ApiError` 400 for a cursor that is none of theirs.

    `model` is the name that answers carry, or one that stands for it.
    """
    where = {"model": _names(service, model)} if model is not None else None
    try:
        return service.store.page(StoredCompletion, page, where, metadata)
    except UnknownCursorError:
        raise unknown_cursor(page.after) from None


def change_metadata(service: Service, id: str, metadata: Mapping[str, str] | None) -> StoredCompletion:
    """Put other metadata in place of what was there. Raises `ApiError` 404."""
    changed = service.store.update(StoredCompletion, id, metadata=dict(metadata or {}))
    if changed is None:
        raise not_found("Chat Completion object", id, param="completion_id")
    return changed


def forget_completion(service: Service, id: str) -> None:
    """Raises `ApiError` 404."""
    if not service.store.remove(StoredCompletion, id):
        raise not_found("Chat Completion object", id, param="completion_id")


def completion_body(record: StoredCompletion) -> Json:
    """A kept completion: the answer as it was given, its metadata, and what was asked for beside the messages."""
    asked = {key: record.request.get(key) for key in _TOLD}
    return {**asked, **record.answer, "metadata": dict(record.metadata or {})}


def message_bodies(record: StoredCompletion) -> list[Json]:
    """The messages that were asked, each with an id of its own."""
    return [
        {
            "id": f"{record.id}-{place}",
            "role": message.get("role"),
            "content": _text(message.get("content")),
            "content_parts": message["content"] if isinstance(message.get("content"), list) else None,
            **{key: message[key] for key in _ANSWER_FIELDS if key in message},
        }
        for place, message in enumerate(record.request.get("messages", ()))
    ]


def _names(service: Service, model: str) -> list[str]:
    try:
        return [model, service.catalogue.resolve(model).shown]
    except ApiError:  # a model that is gone may have left answers behind
        return [model]


def _text(content: Any) -> Any:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content
