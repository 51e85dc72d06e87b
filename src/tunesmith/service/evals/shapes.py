"""Evals and their runs as requests write them, after the official client's types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.service.grading.shapes import InputMessage, Name, Shape


class CustomConfig(Shape):
    """Rows of the user's own, each an `item` that keeps a JSON schema."""

    type: Literal["custom"]
    item_schema: dict[str, Any]
    include_sample_schema: bool = False


class StoredConfig(Shape):
    """Rows are what this server has answered and stored, narrowed by metadata."""

    type: Literal["logs", "stored_completions"]
    metadata: dict[str, Any] | None = None


Config = Annotated[CustomConfig | StoredConfig, Field(discriminator="type")]


class GivenRow(Shape):
    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class FileContent(Shape):
    type: Literal["file_content"]
    content: list[GivenRow]


class FileId(Shape):
    type: Literal["file_id"]
    id: str


class StoredCompletions(Shape):
    """Stored chat completions that fit; `limit` takes the newest."""

    type: Literal["stored_completions"]
    created_after: int | None = None
    created_before: int | None = None
    limit: int | None = Field(None, ge=1)
    metadata: dict[str, str] | None = None
    model: str | None = None


class StoredResponses(Shape):
    """Stored responses that fit."""

    type: Literal["responses"]
    created_after: int | None = None
    created_before: int | None = None
    instructions_search: str | None = None
    metadata: dict[str, str] | None = None
    model: str | None = None
    reasoning_effort: str | None = None
    temperature: float | None = None
    tools: list[str] | None = None
    top_p: float | None = None
    users: list[str] | None = None


Source = FileContent | FileId | StoredCompletions | StoredResponses


class Template(Shape):
    """Messages with templates over the row."""

    type: Literal["template"]
    template: Annotated[list[InputMessage], Field(min_length=1)]


class ItemReference(Shape):
    """Messages that stand in the row: `item.input`."""

    type: Literal["item_reference"]
    item_reference: Name


InputMessages = Annotated[Template | ItemReference, Field(discriminator="type")]


class RunSampling(Shape):
    """How answers are drawn; what is not given is as `asking.USUAL`."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_completions_tokens: int | None = Field(None, ge=1)
    # Models here do not reason before they answer, so an effort changes nothing.
    reasoning_effort: str | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Either spelling."""
        return self.max_completion_tokens or self.max_completions_tokens


class CompletionsSampling(RunSampling):
    response_format: dict[str, Any] | None = None


class ResponsesSampling(RunSampling):
    text: dict[str, Any] | None = None


class JsonlData(Shape):
    """Rows with answers in them, or to be graded without any."""

    type: Literal["jsonl"]
    source: Annotated[FileContent | FileId, Field(discriminator="type")]


class CompletionsData(Shape):
    """Answers of a chat model; without `input_messages` the stored ones are graded as they are."""

    type: Literal["completions"]
    source: Annotated[FileContent | FileId | StoredCompletions, Field(discriminator="type")]
    input_messages: InputMessages | None = None
    model: Name | None = None
    sampling_params: CompletionsSampling | None = None


class ResponsesData(Shape):
    """The same through the responses route."""

    type: Literal["responses"]
    source: Annotated[FileContent | FileId | StoredResponses, Field(discriminator="type")]
    input_messages: InputMessages | None = None
    model: Name | None = None
    sampling_params: ResponsesSampling | None = None


RunData = JsonlData | CompletionsData | ResponsesData
AnyRunData = Annotated[RunData, Field(discriminator="type")]
