"""Fields that several requests share, with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, Field, WithJsonSchema

from tunesmith.inference.serving.types import Decoding
from tunesmith.service.errors import ApiError

MOST_STOPS, MOST_BIASES = 4, 1024

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=128)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
ModelName = Annotated[str, Field(min_length=1, max_length=512)]
Top = Annotated[int, Field(ge=0, le=20)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _stops(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"expected a string or an array of at most {MOST_STOPS} strings")
    if len(texts) > MOST_STOPS:
        raise ValueError(f"expected at most {MOST_STOPS} strings, but got {len(texts)} instead")
    if not all(texts):
        raise ValueError("a stop text cannot be empty")
    return value


def _biases(value: dict[str, float]) -> dict[str, float]:
    if len(value) > MOST_BIASES:
        raise ValueError(f"expected at most {MOST_BIASES} tokens, but got {len(value)} instead")
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 9):
            raise ValueError(f"{key[:20]!r} is no token id; keys are ids of the model's tokenizer")
        if not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {key} is {bias:g}, expected -100 to 100")
    return value


Stop = Annotated[
    Any,
    AfterValidator(_stops),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MOST_STOPS}]}
    ),
]
"""A text, or up to four."""

LogitBias = Annotated[dict[str, float], AfterValidator(_biases)]
"""Token ids as text to a number from -100 to 100, which is added to the logit."""


def _texts(value: Any) -> tuple[str, ...]:
    """The texts of a field `stop`."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _numbers(value: Mapping[str, float] | None) -> dict[int, float]:
    """The numbers of a field `logit_bias`."""
    return {int(key): bias for key, bias in (value or {}).items()}


class Drawn(Protocol):
    """A request that says how its answers are drawn; what it leaves out is OpenAI's default."""

    temperature: float | None
    top_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: dict[str, float] | None
    seed: int | None
    stop: Any


def decoding_of(request: Drawn, top: int | None) -> Decoding:
    """How a request wants its answers drawn; `top` as in `Decoding`."""
    return Decoding(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_numbers(request.logit_bias),
        seed=request.seed,
        stop=_texts(request.stop),
        top=top,
    )


def unsupported(name: str, why: str) -> ApiError:
    """400 for a field of OpenAI's that would change the answer and cannot be honoured here."""
    return ApiError(
        400,
        f"Unsupported parameter: '{name}' is not supported with this model: {why}.",
        param=name,
        code="unsupported_parameter",
    )
