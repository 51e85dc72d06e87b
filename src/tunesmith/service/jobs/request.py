"""A fine-tuning job as it is asked for: every field that OpenAI and Azure know, each with its range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith.service.errors import invalid
from tunesmith.service.http import Body, Metadata

MOST_EPOCHS, LARGEST_BATCH, LARGEST_SEED, LONGEST_SUFFIX, MOST_INTEGRATIONS = 50, 256, 2**31 - 1, 64, 5
AUTO: Literal["auto"] = "auto"

Auto = Literal["auto"]
Epochs = Auto | Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
BatchSize = Auto | Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
Multiplier = Auto | Annotated[float, Field(gt=0)]
MethodType = Literal["supervised", "dpo", "reinforcement"]


class SupervisedHyperparameters(Body):
    """`hyperparameters` of a supervised job, in the old place (beside `model`) and in the new one (in `method`)."""

    n_epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    learning_rate_multiplier: Multiplier | None = None
    # Azure's, from the time of completion models: how much the prompt's tokens are learnt. See `operations`.
    prompt_loss_weight: float | None = None


class DpoHyperparameters(SupervisedHyperparameters):
    """Those of a job on preferences."""

    beta: Auto | Annotated[float, Field(gt=0, le=2)] | None = None


class ReinforcementHyperparameters(SupervisedHyperparameters):
    """Those of a job with a grader."""

    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None
    compute_multiplier: Auto | Annotated[float, Field(gt=1e-5, le=10)] | None = None
    eval_interval: Auto | Annotated[int, Field(ge=1)] | None = None
    eval_samples: Auto | Annotated[int, Field(ge=1)] | None = None


class Supervised(Body):
    hyperparameters: SupervisedHyperparameters | None = None


class Dpo(Body):
    hyperparameters: DpoHyperparameters | None = None


class Reinforcement(Body):
    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters | None = None
    response_format: dict[str, Any] | None = None


class Method(Body):
    """How is trained. Settings of another method than `type` are refused: they would be without effect."""

    type: MethodType
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None

    @model_validator(mode="after")
    def _settings_of_its_type(self) -> Method:
        others = [name for name in ("supervised", "dpo", "reinforcement") if name != self.type and getattr(self, name)]
        if others:
            raise ValueError(f"settings of {' and '.join(others)} have no effect where type is '{self.type}'")
        if self.type == "reinforcement" and self.reinforcement is None:
            raise ValueError("reinforcement needs a grader: 'method.reinforcement.grader'")
        return self


class Wandb(Body):
    project: Annotated[str, Field(min_length=1)]
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class Integration(Body):
    type: Literal["wandb"]
    wandb: Wandb


class JobRequest(Body):
    """The body of `POST /fine_tuning/jobs`."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    training_file: Annotated[str, Field(min_length=1, max_length=128)]
    validation_file: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=LONGEST_SUFFIX)] | None = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None
    method: Method | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    integrations: Annotated[list[Integration], Field(max_length=MOST_INTEGRATIONS)] | None = None
    metadata: Metadata | None = None
    # Azure's: where a job is run and billed. Here it is always this machine; the value is kept and shown.
    trainingType: Literal["Standard", "GlobalStandard", "developerTier", "DataZoneStandard"] | None = None  # noqa: N815
    prompt_loss_weight: float | None = None

    @property
    def method_type(self) -> MethodType:
        """What is asked for; supervised where nothing is said."""
        return self.method.type if self.method is not None else "supervised"

    def asked_hyperparameters(self) -> dict[str, Any]:
        """Those that were given, by name; the old place and the new one may both be used where they say the same.

        Raises `ApiError` where they contradict each other.
        """
        old, new = _given(self.hyperparameters), _given(self._of_method())
        apart = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
        if apart:
            said = "; ".join(
                f"{name} is {old[name]} in 'hyperparameters' and {new[name]} in 'method.{self.method_type}'"
                for name in apart
            )
            raise invalid(
                f"Invalid value for 'hyperparameters': it contradicts 'method': {said}. Give each once.",
                param="hyperparameters",
                code="invalid_value",
            )
        return {**old, **new}

    def _of_method(self) -> SupervisedHyperparameters | None:
        if self.method is None:
            return None
        chosen: Supervised | Dpo | Reinforcement | None = getattr(self.method, self.method.type)
        return chosen.hyperparameters if chosen is not None else None


class PermissionRequest(Body):
    """The body of `POST /fine_tuning/checkpoints/{name}/permissions`."""

    project_ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=64)
    ]


def _given(hyperparameters: SupervisedHyperparameters | None) -> Mapping[str, Any]:
    return {} if hyperparameters is None else hyperparameters.model_dump(exclude_none=True)
