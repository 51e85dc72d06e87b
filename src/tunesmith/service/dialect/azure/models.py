"""Models as Azure's data plane has them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from tunesmith.service.context import Service, service_of
from tunesmith.service.dialect.azure.objects import model_object
from tunesmith.service.dialect.openai.models import named_model
from tunesmith.service.removing import remove_model

router = APIRouter()
_Service = Annotated[Service, Depends(service_of)]


@router.get("/models")
def list_models(service: _Service) -> dict[str, Any]:
    """Tuned models and checkpoints, then bases by every name that stands for them."""
    return {"object": "list", "data": [model_object(one) for one in service.catalogue.names()]}


@router.get("/models/{model:path}")
def retrieve_model(model: str, service: _Service) -> dict[str, Any]:
    """One model by its name."""
    return model_object(named_model(service, model))


@router.delete("/models/{model:path}")
def delete_model(model: str, service: _Service) -> dict[str, Any]:
    """Delete a tuned model with its weights."""
    return {"id": remove_model(service, model).id, "object": "model", "deleted": True}
