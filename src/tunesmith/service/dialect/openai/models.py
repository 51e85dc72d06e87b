"""`/models`: what can be asked here, and deleting what was tuned."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from tunesmith.service.catalogue import shown_base
from tunesmith.service.context import Service, service_of
from tunesmith.service.removing import remove_model
from tunesmith.service.store.nouns import Model

router = APIRouter()
_Service = Annotated[Service, Depends(service_of)]


def model_object(model: Model) -> dict[str, Any]:
    """OpenAI's object, with what stands behind the name in `tunesmith`: nothing here is ever shut down."""
    behind = {"base": shown_base(model.base), "kind": model.kind, "job": model.job_id, "step": model.step}
    return {
        "id": model.id,
        "object": "model",
        "created": model.created_at,
        "owned_by": model.owned_by,
        "shutdown_date": None,
        "tunesmith": {key: value for key, value in behind.items() if value is not None},
    }


@router.get("/models")
def list_models(service: _Service) -> dict[str, Any]:
    """Tuned models and checkpoints, then bases by every name that stands for them."""
    return {"object": "list", "data": [model_object(one) for one in service.catalogue.names()]}


# A tuned model's name has colons, a hub's a slash; both come raw or percent-encoded.
@router.get("/models/{model:path}")
def retrieve_model(model: str, service: _Service) -> dict[str, Any]:
    """One model by its name."""
    return model_object(named_model(service, model))


@router.delete("/models/{model:path}")
def delete_model(model: str, service: _Service) -> dict[str, Any]:
    """Delete a tuned model with its weights."""
    return {"id": remove_model(service, model).id, "object": "model", "deleted": True}


def named_model(service: Service, name: str) -> Model:
    """A model by its name, bases included, deployments not. Raises `ApiError` 404 where there is none."""
    found = service.catalogue.model_of(name)
    if found.record is not None:
        return found.record
    return next(one for one in service.catalogue.names() if one.id == name)
