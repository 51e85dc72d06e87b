"""The body of `POST /chat/completions`: every field that the clients know.

Messages are looked at in `conversation`, tools in `tools`: what may stand in them depends on each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from tunesmith.service.asking.fields import (
    Count,
    FunctionName,
    LogitBias,
    ModelName,
    Penalty,
    Seed,
    Stop,
    Temperature,
    Tokens,
    Top,
    TopP,
    unsupported,
)
from tunesmith.service.errors import ApiError
from tunesmith.service.http import Body, Metadata

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Function(Body):
    """A function that may be called. `strict`: its arguments keep the schema, whoever chose to call it."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler(value)
        made._given = dict(value) if isinstance(value, Mapping) else made.model_dump(exclude_unset=True)
        return made

    @property
    def given(self) -> Mapping[str, Any]:
        """The definition as it was written: a model has learnt it with its fields in this order."""
        return self._given


class Tool(Body):
    """A tool; of `custom` ones only the type is looked at, to refuse them by name."""

    type: str
    function: Function | None = None
    custom: dict[str, Any] | None = None


class CalledFunction(Body):
    name: str
    arguments: str


class Call(Body):
    id: str
    type: str = "function"
    function: CalledFunction | None = None
    custom: dict[str, Any] | None = None
    # Where a streamed call stood, which some programs leave in the message that they send back.
    index: int | None = None


class ChatMessage(Body):
    """One turn. `content` is a text or parts of it."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    # What an answer of this API carries beside its text; a program that sends a message back sends them too.
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    annotations: list[dict[str, Any]] | None = None
    # Of rows for training, where it says what is learnt; here nothing is learnt.
    weight: float | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    # Random characters against guessing texts from the sizes of packets: nothing is added here.
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Body):
    """A request for an answer to a conversation."""

    model: ModelName
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=128)] | None = None
    function_call: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    n: Count | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None

    # Nothing here depends on these: who asks, how OpenAI bills and caches, and effort of models that reason.
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    reasoning_effort: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    # A guess at the answer that makes it come faster and never other.
    prediction: dict[str, Any] | None = None

    # These would change the answer, and are refused.
    audio: dict[str, Any] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None

    @property
    def length(self) -> int | None:
        """The most tokens of an answer; None: what the context leaves."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def check_chat(request: ChatRequest) -> None:
    """Raises `ApiError` 400 for fields that do not go together, or ask for what no model here can do."""
    if request.audio is not None or "audio" in (request.modalities or ()):
        raise unsupported("audio" if request.audio is not None else "modalities", "it answers in text")
    if request.web_search_options is not None:
        raise unsupported("web_search_options", "this server reaches no network for it")
    if request.moderation is not None:
        raise unsupported("moderation", "no moderation model is registered")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            param="max_tokens",
            code="invalid_parameter_combination",
        )
    if request.stream_options is not None and not request.stream:
        raise ApiError(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(
            400,
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            param="top_logprobs",
        )
