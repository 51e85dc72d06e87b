"""`POST /embeddings` and `POST /moderations`: refused in OpenAI's shape, as no model for them is registered."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, NoReturn

from fastapi import APIRouter, Depends
from pydantic import ConfigDict

from tunesmith.service.asking.fields import ModelName
from tunesmith.service.context import Service, service_of
from tunesmith.service.errors import ApiError
from tunesmith.service.http import Body

router = APIRouter(tags=["Embeddings and moderations"])


class _Open(Body):
    """Fields beside these are not looked at: whatever they are, the answer is the same."""

    model_config = ConfigDict(extra="allow")


class EmbeddingRequest(_Open):
    """Texts that are to become vectors."""

    model: ModelName
    input: Any


class ModerationRequest(_Open):
    """Texts that are to be judged."""

    input: Any
    model: ModelName | None = None


@router.post("/embeddings", summary="Refused: no model for embeddings is registered", response_model=None)
def create_embedding(body: EmbeddingRequest, service: Annotated[Service, Depends(service_of)]) -> NoReturn:
    """Raises `ApiError`: 404 for a model that does not exist, else 400."""
    try:
        resolved = service.catalogue.resolve(body.model)
    except ApiError as error:  # which models there are is no help: none of them will do
        raise replace(
            error,
            message=f"The model '{body.model[:120]}' does not exist here, and this server has no model that makes "
            "embeddings.",
        ) from error
    raise ApiError(
        400,
        f"The model '{resolved.shown}' writes text and makes no embeddings; this server has no model that does.",
        param="model",
        code="model_not_supported",
    )


@router.post("/moderations", summary="Refused: no model for moderation is registered", response_model=None)
def create_moderation(body: ModerationRequest) -> NoReturn:
    """Raises `ApiError` 400, whatever is asked."""
    raise ApiError(
        400,
        "This server has no model for moderation: nothing is judged, and nothing is held back because of it.",
        param="model",
        code="model_not_supported",
    )
