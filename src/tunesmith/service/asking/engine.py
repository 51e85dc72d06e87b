"""Asking the engine: its errors become the API's, and a request that is given up ends the work."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Literal

from tunesmith.errors import EngineError, RecipeError, TunesmithError
from tunesmith.inference.serving.types import (
    NO_TOKEN,
    Ask,
    Loaded,
    ModelRef,
    OverloadedError,
    Piece,
    ServingEngine,
    TooLongError,
    Usage,
)
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError

Spoken = Literal["messages", "prompt", "input"]
"""What a request calls its prompt; sentences and `param` of errors go by it."""
_LOG = logging.getLogger(__name__)


def engine_of(service: Service) -> ServingEngine:
    """The engine. Raises `ApiError` 503 where this server has none."""
    if service.engine is None:
        raise ApiError(503, "This server keeps jobs and files, and answers no questions to models.", "server_error")
    return service.engine


async def loaded(service: Service, ref: ModelRef) -> Loaded:
    """A model, in memory. Raises `ApiError` 500 where it cannot be loaded; why is written to the log."""
    try:
        return await engine_of(service).load(ref)
    except TunesmithError as error:
        _LOG.error("a model could not be loaded: %s", error)
        raise ApiError(
            500, "The model could not be loaded. The server's log says why.", "server_error", code="model_not_loaded"
        ) from None


async def pieces_of(service: Service, ask: Ask, spoken: Spoken) -> AsyncGenerator[Piece | Usage, None]:
    """What the engine answers. Closing this generator closes the engine's.

    Raises `ApiError`: 400 where prompt and answer do not fit or a form cannot be kept, 429 where the queue is full,
    500 where the engine fails.
    """
    answer = engine_of(service).submit(ask)
    begun = False
    try:
        async for piece in answer:
            begun = True
            yield piece
    except TooLongError as error:
        raise too_long(error, spoken) from None
    except OverloadedError as error:
        raise overloaded(error) from None
    except RecipeError as error:
        raise unrenderable(error, spoken) from None
    except EngineError as error:
        held = ask.decoding.form is not None or ask.decoding.grammar is not None
        if held and (not begun or error.what == NO_TOKEN):
            raise ApiError(400, f"Invalid 'response_format' or 'tools': {error.what}.", code="invalid_value") from None
        raise _failed(error) from None
    except TunesmithError as error:
        raise _failed(error) from None
    finally:
        close = getattr(answer, "aclose", None)
        if close is not None:
            await close()


def too_long(error: TooLongError, spoken: Spoken) -> ApiError:
    """400 in OpenAI's words, with the tokens counted."""
    begin = f"This model's maximum context length is {error.context} tokens. However, "
    if error.asked is None:
        text = f"{begin}your {spoken} resulted in {error.prompt} tokens. Please reduce the length of the {spoken}."
    else:
        text = (
            f"{begin}you requested {error.prompt + error.asked} tokens ({error.prompt} in the {spoken}, "
            f"{error.asked} in the completion). Please reduce the length of the {spoken} or completion."
        )
    return ApiError(400, text, param=spoken, code="context_length_exceeded")


def unrenderable(error: TunesmithError, spoken: Spoken) -> ApiError:
    """400 for turns that the model's template does not take, with what it says."""
    return ApiError(400, f"Invalid '{spoken}': {error.what}.", param=spoken, code="invalid_value")


def overloaded(error: OverloadedError) -> ApiError:
    """429, which clients repeat after `Retry-After`."""
    seconds = max(1, error.retry_after)
    return ApiError(
        429,
        f"The server has as many requests as it can take. Please try again in {seconds} s.",
        "requests",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def _failed(error: TunesmithError) -> ApiError:
    _LOG.error("the engine failed: %s", error)
    return ApiError(500, "The engine failed while it answered. The server's log says why.", "server_error")
