"""The body of `POST /completions`, and its prompts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from tunesmith.service.asking.chat_request import StreamOptions
from tunesmith.service.asking.fields import (
    Count,
    LogitBias,
    ModelName,
    Penalty,
    Seed,
    Stop,
    Temperature,
    TopP,
    unsupported,
)
from tunesmith.service.errors import ApiError
from tunesmith.service.http import Body

MOST_PROMPTS = 2048
USUAL_TOKENS = 16
"""Length of an answer where nothing is said."""
Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("expected a string, an array of strings, an array of tokens, or an array of such arrays")
    if len(value) > MOST_PROMPTS and not _is_tokens(value):
        raise ValueError(f"expected at most {MOST_PROMPTS} prompts, but got {len(value)} instead")
    if not (all(isinstance(one, str) for one in value) or _is_tokens(value) or all(map(_is_tokens, value))):
        raise ValueError("expected strings only, tokens only (whole numbers from 0), or arrays of tokens only")
    return value


def _is_tokens(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31 for one in value)


_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Prompts = Annotated[
    Any,
    AfterValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                _TOKENS,
                {"type": "array", "items": _TOKENS, "minItems": 1},
                {"type": "null"},
            ]
        }
    ),
]
"""A text, texts, tokens, or lists of tokens. Null is the beginning of a document."""


class CompletionRequest(Body):
    """A request to go on with a text."""

    model: ModelName
    prompt: Prompts
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    echo: bool | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    n: Count | None = None
    presence_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    # What comes behind a gap: refused, as models here go on with a text and fill nothing in.
    suffix: str | None = None
    # Nothing here depends on who asks.
    user: str | None = None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Each prompt as text or tokens."""
        value = self.prompt
        if value is None or isinstance(value, str):
            return (value or "",)
        if isinstance(value[0], int):
            return (tuple(value),)
        return tuple(one if isinstance(one, str) else tuple(one) for one in value)

    @property
    def count(self) -> int:
        """Answers to each prompt that are told; `drawn` of them are written."""
        return self.n or 1

    @property
    def drawn(self) -> int:
        return self.best_of or self.count


def check_completion(request: CompletionRequest) -> None:
    """Raises `ApiError` 400 for fields that do not go together, or ask for what no model here can do."""
    if request.suffix:
        raise unsupported("suffix", "it goes on with a text, and fills in no gaps")
    if request.drawn < request.count:
        raise _together("best_of", f"expected a value >= n, which is {request.count}, but got {request.drawn} instead")
    if request.stream_options is not None and not request.stream:
        raise ApiError(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    if request.stream and request.drawn > request.count:
        raise _together("best_of", "the best answers are known only when all are written, so they are not streamed")
    if request.stream and request.echo and request.logprobs is not None:
        raise _together("echo", "log-probabilities of the prompt come last, so 'echo' with 'logprobs' is not streamed")
    if request.max_tokens == 0 and not request.echo:
        raise _together("max_tokens", "expected a value >= 1, but got 0 instead; 0 is for 'echo' alone")


def _together(param: str, why: str) -> ApiError:
    return ApiError(400, f"Invalid value for '{param}': {why}.", param=param, code="invalid_value")
