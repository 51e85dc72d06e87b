"""One answer graded: a reward, whether it passes, and what went wrong on the way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tunesmith.service.grading.asking import Judgement, Tokens, judge
from tunesmith.service.grading.code import run_code_beside
from tunesmith.service.grading.formula import FormulaError, read_formula
from tunesmith.service.grading.shapes import (
    Grader,
    LabelModel,
    Multi,
    Python,
    ScoreModel,
    SingleGrader,
    StringCheck,
    TextSimilarity,
)
from tunesmith.service.grading.similarity import TooLongError, similarity
from tunesmith.service.grading.templates import NotJsonError, TemplateError, fill
from tunesmith.service.inner import Post

ErrorKind = Literal[
    "formula_parse_error",
    "invalid_variable_error",
    "model_grader_parse_error",
    "model_grader_refusal_error",
    "model_grader_server_error",
    "other_error",
    "python_grader_runtime_error",
    "python_grader_server_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
]
ERRORS: tuple[ErrorKind, ...] = ErrorKind.__args__  # type: ignore[attr-defined]
"""What the hosted graders tell apart; those that cannot happen here are always false."""


@dataclass(frozen=True, slots=True)
class GradeError:
    """Why there is no reward; `grader` is the part of a multi grader it happened in."""

    kind: ErrorKind
    message: str
    grader: str


@dataclass(frozen=True, slots=True)
class Grade:
    """How an answer was graded.

    Attributes
    ----------
    reward: 0 where something went wrong.
    passed: reached the grader's threshold; never where something went wrong.
    sub_rewards: of a multi grader's parts, by name.
    seconds: it took.
    usage: tokens by the name of the model that was asked.
    judgement: what the grading model was asked and said.
    """

    name: str
    type: str
    reward: float
    passed: bool
    errors: tuple[GradeError, ...] = ()
    sub_rewards: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    usage: Mapping[str, Tokens] = field(default_factory=dict)
    judgement: Judgement | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """As the grader routes show it."""
        told: dict[str, Any] = {kind: any(one.kind == kind for one in self.errors) for kind in ERRORS}
        for kind in ERRORS:
            found = [one for one in self.errors if one.kind == kind]
            told[f"{kind}_details"] = "; ".join(one.message for one in found) if found else None
        server = any(one.kind == "python_grader_server_error" for one in self.errors)
        told["python_grader_server_error_type"] = "sandbox_unavailable" if server else None
        models = sorted(self.usage)
        return {
            "name": self.name,
            "type": self.type,
            "errors": told,
            "execution_time": self.seconds,
            "scores": dict(self.sub_rewards),
            "token_usage": sum(one.prompt + one.answer for one in self.usage.values()) if self.usage else None,
            "sampled_model_name": models[0] if models else None,
        }

    def answer(self) -> dict[str, Any]:
        """The answer of the route that runs a grader."""
        return {
            "reward": self.reward,
            "metadata": self.metadata,
            "sub_rewards": dict(self.sub_rewards),
            "model_grader_token_usage_per_model": {name: one.json() for name, one in self.usage.items()},
        }


def sample_of(
    text: str, tools: Sequence[Any] = (), choices: Sequence[Any] | None = None, /, **more: Any
) -> dict[str, Any]:
    """The namespace `sample` of an answer: `output_json` is None where the text is no JSON."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    message = {"role": "assistant", "content": text, "tool_calls": list(tools) or None}
    made = choices if choices is not None else [{"index": 0, "message": message}]
    return {**more, "output_text": text, "output_json": parsed, "output_tools": list(tools), "choices": list(made)}


async def grade(grader: Grader, sample: Mapping[str, Any], item: Mapping[str, Any], post: Post) -> Grade:
    """Grade one answer.

    Parameters
    ----------
    grader: one that `check_grader` found nothing wrong with.
    sample: see `sample_of`.
    item: the row.
    post: asks this server's models.
    """
    began = time.perf_counter()
    values = {"item": item, "sample": sample}
    made = await (_multi(grader, values, post) if isinstance(grader, Multi) else _single(grader, values, post))
    return replace(made, seconds=time.perf_counter() - began)


async def _single(grader: SingleGrader, values: Mapping[str, Any], post: Post) -> Grade:
    try:
        match grader:
            case StringCheck():
                return _graded(grader, float(_compares(grader, values)), 1.0)
            case TextSimilarity():
                said, reference = fill(grader.input, values), fill(grader.reference, values)
                reward = await asyncio.to_thread(similarity, grader.evaluation_metric, said, reference)
                return _graded(grader, reward, _threshold(grader.pass_threshold, 0.5))
            case Python():
                return await _code(grader, values)
            case ScoreModel() | LabelModel():
                return _judged(grader, await judge(grader, values, post))
    except NotJsonError as error:
        return _failed(grader, "sample_parse_error", str(error))
    except TemplateError as error:
        return _failed(grader, "invalid_variable_error", str(error))
    except TooLongError as error:
        return _failed(grader, "other_error", str(error))


def _compares(grader: StringCheck, values: Mapping[str, Any]) -> bool:
    """`like` is whether the input holds the reference; `ilike` the same without regard to case."""
    said, reference = fill(grader.input, values), fill(grader.reference, values)
    match grader.operation:
        case "eq":
            return said == reference
        case "ne":
            return said != reference
        case "like":
            return reference in said
        case "ilike":
            return reference.casefold() in said.casefold()


async def _code(grader: Python, values: Mapping[str, Any]) -> Grade:
    score = await run_code_beside(grader.source, values["sample"], values["item"])
    if score.value is not None:
        return _graded(grader, score.value, _threshold(grader.pass_threshold, 0.5))
    kind: ErrorKind = "python_grader_server_error" if score.unavailable else "python_grader_runtime_error"
    return _failed(grader, kind, score.error or "")


def _judged(grader: ScoreModel | LabelModel, said: Judgement) -> Grade:
    if said.value is None:
        kind: ErrorKind = "model_grader_server_error" if said.failed else "model_grader_parse_error"
        made = _failed(grader, kind, said.error or "")
    elif isinstance(grader, LabelModel):
        made = _graded(grader, float(said.value in grader.passing_labels), 1.0)
    else:
        low, high = grader.bounds
        made = _graded(grader, float(said.value), _threshold(grader.pass_threshold, (low + high) / 2))
    return replace(made, usage={said.model: said.tokens}, judgement=said)


async def _multi(grader: Multi, values: Mapping[str, Any], post: Post) -> Grade:
    parts = await asyncio.gather(*(_single(part, values, post) for part in grader.parts.values()))
    rewards = {name: part.reward for name, part in zip(grader.parts, parts, strict=True)}
    usage: dict[str, Tokens] = {}
    for part in parts:
        for model, tokens in part.usage.items():
            usage[model] = usage.get(model, Tokens()) + tokens
    errors = tuple(error for part in parts for error in part.errors)
    try:
        reward = read_formula(grader.calculate_output)(rewards)
    except FormulaError as error:
        errors = (*errors, GradeError("formula_parse_error", str(error), grader.name))
    if errors:
        # A formula over a reward that is missing says nothing.
        return Grade(grader.name, grader.type, 0.0, False, errors, rewards, usage=usage)
    passed = reward >= _threshold(grader.pass_threshold, 0.5)
    return Grade(grader.name, grader.type, reward, passed, sub_rewards=rewards, usage=usage)


def _threshold(given: float | None, usual: float) -> float:
    return usual if given is None else given


def _graded(grader: SingleGrader, reward: float, threshold: float) -> Grade:
    return Grade(grader.name, grader.type, reward, reward >= threshold)


def _failed(grader: SingleGrader, kind: ErrorKind, message: str) -> Grade:
    return Grade(grader.name, grader.type, 0.0, False, (GradeError(kind, message, grader.name),))
