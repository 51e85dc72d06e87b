"""What of an exported object is relied on: one that was changed by hand is left out and named, and not half read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Moment = Annotated[int, Field(ge=0, le=2**33)]
Object = dict[str, Any]


class _Told(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    id: Annotated[str, Field(min_length=1, max_length=256)]
    created_at: Moment | None = None
    created: Moment | None = None


class _Settings(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    hyperparameters: Object | None = None


class _Method(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    supervised: _Settings | None = None
    dpo: _Settings | None = None
    reinforcement: _Settings | None = None


class _Job(_Told):
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=256)]
    model: str
    finished_at: Moment | None = None
    method: _Method | None = None
    hyperparameters: Object | None = None
    result_files: list[str] | None = None
    trained_tokens: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    fine_tuned_model: str | None = None
    training_file: str
    validation_file: str | None = None


class _Event(_Told):
    message: str | None = None
    data: Object | None = None


class _Checkpoint(_Told):
    step_number: int | None = None


class _Eval(_Told):
    name: str | None = None
    testing_criteria: list[Object] | None = None


class _Source(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    source: Object | None = None
    input_messages: Object | None = None


class _Run(_Told):
    data_source: _Source | None = None
    per_testing_criteria_results: list[Object] | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    message: Object | None = None


class _Completion(_Told):
    choices: list[_Choice] | None = None
    messages: list[Object] | None = None


_SHAPES: Mapping[str, type[_Told]] = MappingProxyType(
    {
        "jobs": _Job,
        "events": _Event,
        "checkpoints": _Checkpoint,
        "files": _Told,
        "evals": _Eval,
        "runs": _Run,
        "items": _Told,
        "completions": _Completion,
    }
)


def fault_of(kind: str, told: Mapping[str, Any]) -> str | None:
    """What is wrong with an object of this kind; None where nothing is."""
    try:
        _SHAPES[kind].model_validate(dict(told))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        return f"{told.get('object')} {str(told.get('id'))[:60]} is left out: {place}: {first['msg'][:100]}"
    return None
