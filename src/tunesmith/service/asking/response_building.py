"""A response as it is built: its output items, and the typed events that tell of every step.

The whole answer is what is built when all events are through, so that a stream and a whole answer cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.inference.serving.types import TokenScore, Usage
from tunesmith.service.asking.scores import chat_scores
from tunesmith.service.asking.turns import Argued, Called, Ended, Said, TurnEvent
from tunesmith.service.errors import ApiError
from tunesmith.service.ids import new_id

Json = dict[str, Any]


class ResponseBuilder:
    """Builds one response from `body`, which has every field but the output, status and usage."""

    def __init__(self, body: Mapping[str, Any], *, with_logprobs: bool) -> None:
        self.body: Json = {**body, "status": "in_progress", "output": [], "usage": None}
        self._with_logprobs = with_logprobs
        self._sequence = 0
        self._scores: list[TokenScore] = []

    def begin(self) -> Iterator[Json]:
        """The events before anything is said."""
        yield self._event("response.created", response=self._snapshot())
        yield self._event("response.in_progress", response=self._snapshot())

    def take(self, event: TurnEvent) -> Iterator[Json]:
        """The events that one event of the turn becomes."""
        match event:
            case Said(_, text, scores):
                yield from self._say(text, scores)
            case Called(_, _, id, name):
                yield from self._close()
                yield from self._open(
                    {"id": new_id("fc", separator="_"), "type": "function_call", "call_id": id, "name": name,
                     "arguments": ""}
                )  # fmt: skip
            case Argued(_, _, text):
                self._item["arguments"] += text
                yield self._event("response.function_call_arguments.delta", **self._place, delta=text)
            case Ended(_, finish, _):
                if not self._output:
                    yield from self._say("", ())  # an answer that says nothing is a message all the same
                yield from self._close("completed" if finish == "stop" else "incomplete")
                self.body["status"] = "completed"
                if finish == "length":
                    self.body["status"] = "incomplete"
                    self.body["incomplete_details"] = {"reason": "max_output_tokens"}

    def end(self, usage: Usage, now: int) -> Iterator[Json]:
        """The last event, with the whole response."""
        self.body["usage"] = {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt + usage.answer,
        }
        self.body["completed_at"] = now if self.body["status"] == "completed" else None
        yield self._event(f"response.{self.body['status']}", response=self._snapshot())

    def fail(self, error: ApiError) -> Json:
        """The last event of a response that could not be finished."""
        self.body["status"] = "failed"
        self.body["error"] = {"code": error.code or "server_error", "message": error.message}
        return self._event("response.failed", response=self._snapshot())

    @property
    def _output(self) -> list[Json]:
        output: list[Json] = self.body["output"]
        return output

    @property
    def _item(self) -> Json:
        return self._output[-1]

    @property
    def _place(self) -> Json:
        return {"item_id": self._item["id"], "output_index": len(self._output) - 1}

    def _say(self, text: str, scores: tuple[TokenScore, ...]) -> Iterator[Json]:
        if not self._output or self._item["type"] != "message" or self._item["status"] != "in_progress":
            yield from self._close()
            yield from self._open({"id": new_id("msg", separator="_"), "type": "message", "role": "assistant",
                                   "content": []})  # fmt: skip
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._item["content"].append(part)
            yield self._event("response.content_part.added", **self._place, content_index=0, part=dict(part))
        part = self._item["content"][0]
        part["text"] += text
        told = chat_scores(scores) if self._with_logprobs else []
        part["logprobs"] = [*part["logprobs"], *told]
        if text or told:
            yield self._event("response.output_text.delta", **self._place, content_index=0, delta=text, logprobs=told)

    def _open(self, item: Json) -> Iterator[Json]:
        self._output.append({**item, "status": "in_progress"})
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=_copy(self._item))

    def _close(self, status: str = "completed") -> Iterator[Json]:
        """Finish the item that is being written."""
        if not self._output or self._item["status"] != "in_progress":
            return
        item = self._item
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            yield self._event(
                "response.output_text.done", **self._place, content_index=0, text=part["text"],
                logprobs=part["logprobs"],
            )  # fmt: skip
            yield self._event("response.content_part.done", **self._place, content_index=0, part=dict(part))
        else:
            yield self._event(
                "response.function_call_arguments.done", **self._place, name=item["name"], arguments=item["arguments"]
            )
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=_copy(item))

    def _event(self, kind: str, **fields: Any) -> Json:
        made = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return made

    def _snapshot(self) -> Json:
        return {**self.body, "output": [_copy(item) for item in self._output]}


def _copy(item: Json) -> Json:
    """An item as it is now: it goes on to change."""
    if "content" in item:
        return {**item, "content": [dict(part) for part in item["content"]]}
    return dict(item)
