"""Answers by deployment: `/deployments/{name}/chat/completions` and its like.

The name in the path decides, whatever `model` says in the body; it may be a deployment's or, as the official client
sends it, a model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, NoReturn

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from tunesmith.service.asking.chat_request import ChatRequest
from tunesmith.service.asking.completion_request import CompletionRequest
from tunesmith.service.asking.fields import ModelName
from tunesmith.service.context import Service, service_of
from tunesmith.service.dialect.openai.chat import answer_chat
from tunesmith.service.dialect.openai.completions import answer_completion
from tunesmith.service.dialect.openai.embeddings import EmbeddingRequest, create_embedding
from tunesmith.service.errors import ApiError

router = APIRouter(prefix="/deployments/{deployment}")
_Service = Annotated[Service, Depends(service_of)]


class DeployedChat(ChatRequest):
    model: ModelName = ""


class DeployedCompletion(CompletionRequest):
    model: ModelName = ""


class DeployedEmbedding(EmbeddingRequest):
    model: ModelName = ""


@router.post("/chat/completions", response_model=None)
async def chat(deployment: str, body: DeployedChat, request: Request, service: _Service) -> Response:
    """Answer a conversation."""
    with _in_azures_words():
        return await answer_chat(body.model_copy(update={"model": deployment}), request, service)


@router.post("/completions", response_model=None)
async def completion(deployment: str, body: DeployedCompletion, request: Request, service: _Service) -> Response:
    """Go on with a text."""
    with _in_azures_words():
        return await answer_completion(body.model_copy(update={"model": deployment}), request, service)


@router.post("/embeddings", response_model=None)
def embedding(deployment: str, body: DeployedEmbedding, service: _Service) -> NoReturn:
    """Refused as long as no model here makes embeddings."""
    with _in_azures_words():
        create_embedding(body.model_copy(update={"model": deployment}), service)


@contextmanager
def _in_azures_words() -> Iterator[None]:
    """A name that means nothing is a deployment that does not exist."""
    try:
        yield
    except ApiError as error:
        if error.code != "model_not_found":
            raise
        raise replace(
            error,
            message="The API deployment for this resource does not exist. If you created the deployment within the "
            f"last 5 minutes, please wait a moment and try again. {error.message}",
            code="DeploymentNotFound",
        ) from error
