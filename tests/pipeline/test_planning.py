"""What memory decides is decided on what is trained: fused layers, all steps, the objective, answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import ragged_samples, save_base
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import FusedLayer
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.methods import attach
from tunesmith.pipeline import planning
from tunesmith.pipeline.planning import Planned, fit_memory, fuse_layers, plan_engine, plan_of
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Base, Recipe
from tunesmith.text.types import Sample
from tunesmith.training.batching import RowOrder
from tunesmith.training.memory_model import MemoryModel
from tunesmith.training.objectives import cross_entropy, make_objective
from tunesmith.training.resources import held_memory

ROWS = ragged_samples((120, 90, 100, 110, 95, 105, 80, 115), seed=3)
GREEDY = """\
import torch
from torch import nn


class Greedy(nn.Module):
    def __init__(self):
        super().__init__()
        self.heat = nn.Parameter(torch.ones(1000))

    def forward(self, logits, targets):
        wide = logits.repeat(1, 40) * self.heat.mean()
        return nn.functional.cross_entropy(logits, targets, reduction="none") + 0 * wide.pow(2).mean(1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bases")
    save_base(folder / "llama")
    save_base(folder / "teacher", seed=4)
    (folder / "loss.py").write_text(GREEDY)
    return folder


def recipe_of(folder: Path, method: dict[str, Any] | None = None, **train: Any) -> Recipe:
    settings = {"batch_size": 2, "epochs": 1, "learning_rate": 1e-3, "precision": "fp32", "evaluations": 0, **train}
    evaluate = {"max_new_tokens": 8, "batch_size": settings.pop("answers_at_once", 32)}
    return parse_recipe(
        {
            "data": "rows.csv",
            "base": str(folder / "llama"),
            "method": {"rank": 4, **(method or {})},
            "train": settings,
            "evaluate": evaluate,
        }
    )


def base_of(folder: Path) -> LoadedBase:
    return load_base(Base(model=str(folder / "llama")))


def planned(folder: Path, rows: list[Sample] = ROWS, *, near: bool = True, **train: Any) -> Planned:
    """A plan; `near`: under a limit that no bound is far below."""
    if near:
        train.setdefault("memory_limit", f"{round(held_memory() / 1e6) + 150}MB")
    method = train.pop("method", None)
    return plan_engine(recipe_of(folder, method, **train), base_of(folder), None, rows)


def test_far_below_the_limit_nothing_is_traced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("traced")

    monkeypatch.setattr(planning, "plan_memory", refuse)
    far = planned(folder, near=False, memory_limit="200GB")
    assert (far.recipe.train.micro_batch_tokens, far.recipe.train.recompute, far.memory) == (4096, 0, None)
    reasons = {c.key: c.reason for c in far.choices}
    assert "at most" in reasons["train.recompute"] and "of 200.00 GB" in reasons["train.micro_batch_tokens"]
    with pytest.raises(AssertionError, match="traced"):
        planned(folder)


def test_the_bound_decides_as_the_trace_does(folder: Path) -> None:
    far, near = planned(folder, near=False, memory_limit="200GB"), planned(folder)
    assert near.memory is not None and far.memory is None
    for setting in ("micro_batch_tokens", "recompute"):
        assert getattr(far.recipe.train, setting) == getattr(near.recipe.train, setting)


def test_fused_layers_are_planned_and_the_base_stays_as_it_was(folder: Path) -> None:
    base, recipe = base_of(folder), recipe_of(folder, memory_limit=f"{round(held_memory() / 1e6) + 150}MB")
    memory = plan_engine(recipe, base, None, ROWS).memory
    assert memory is not None
    assert not any(isinstance(module, FusedLayer) for module in base.model.modules())
    attach(base, recipe.method, 0)
    plan = replace(plan_of(recipe, len(ROWS)), micro_batch_tokens=4096)

    def activations() -> int:
        return (
            MemoryModel(LanguageModel(base.model), ROWS, plan, cross_entropy, 10**8).forecast(4096).parts["activations"]
        )

    plain = activations()
    assert fuse_layers(recipe, base) == 2
    assert memory.parts["activations"] == activations() != plain
    assert fuse_layers(recipe, base) == 2  # again: nothing more to replace


def test_the_order_of_every_epoch_is_looked_at(folder: Path) -> None:
    lengths = [20 * (i + 1) for i in range(10)]
    rows = ragged_samples(tuple(lengths), seed=5)

    def heaviest(seed: int, epochs: int) -> int:
        order = RowOrder(10, 2, seed)
        learnt = [len(row.ids) if row.supervised else 0 for row in rows]
        return max(sum(learnt[i] for i in order.of_step(step)) for step in range(5 * epochs))

    seed = next(s for s in range(50) if heaviest(s, 1) < 0.8 * heaviest(s, 8))
    once, often = (planned(folder, rows, seed=seed, epochs=epochs).memory for epochs in (1, 8))
    assert once is not None and often is not None
    assert often.parts["activations"] > 1.1 * once.parts["activations"]


def test_the_objective_is_what_is_minimised(folder: Path) -> None:
    recipe = recipe_of(folder, objective=str(folder / "loss.py") + ":Greedy")
    later = plan_engine(recipe, base_of(folder), None, ROWS)
    assert later.memory is None and later.recipe.train.micro_batch_tokens == "auto"  # with the code, which runs once
    base = base_of(folder)
    attach(base, recipe.method, 0)
    objective = make_objective(recipe.train, folder=folder, allow_code=True, base=base)
    model = LanguageModel(base.model)
    _, _, greedy = fit_memory(recipe, model, ROWS, base, objective=objective)
    _, _, plain = fit_memory(recipe_of(folder), model, ROWS, base)
    learnt = max(int(np.count_nonzero(row.weights)) for row in ROWS)
    assert greedy.predicted_peak_bytes - plain.predicted_peak_bytes > learnt * 300 * 40 * 4
    assert greedy.parts["optimizer"] == plain.parts["optimizer"] + 2 * 4000
    assert all(parameter.grad is None for parameter in objective.parameters().values())
    steps = {choice.key: choice.value for choice in fit_memory(recipe, model, ROWS, base, objective=objective)[1]}
    assert steps == {"train.micro_batch_tokens": 4096, "train.recompute": 0}


def test_a_teacher_is_planned_with_once_it_is_there(folder: Path) -> None:
    recipe = recipe_of(folder, distillation={"teacher": str(folder / "teacher")})
    base = base_of(folder)
    assert plan_engine(recipe, base, None, ROWS).memory is None
    attach(base, recipe.method, 0)
    decided, _, memory = fit_memory(recipe, LanguageModel(base.model), ROWS, base)
    assert decided.train.micro_batch_tokens == 4096 and memory.parts["activations"] > 0


def test_answers_take_their_part(folder: Path) -> None:
    quiet = planned(folder).memory
    loud = planned(folder, evaluations=2, eval_rows=1).memory
    assert quiet is not None and loud is not None
    assert loud.parts["answers"] == 0  # less than a step takes
    few = ragged_samples((12, 11, 13) * 100, seed=1)
    many = planned(folder, few, evaluations=2, eval_rows=300, answers_at_once=300).memory
    assert many is not None and many.parts["answers"] > 0 == many.parts["activations"]


def test_answers_that_do_not_fit_are_refused_with_fewer_at_once(folder: Path) -> None:
    rows = ragged_samples((100, 110) * 100, seed=1)
    roomy = planned(folder, rows, evaluations=2, eval_rows=200, answers_at_once=200, memory_limit="2GB").memory
    assert roomy is not None
    answers = roomy.parts["answers"]
    limit = f"{round((roomy.predicted_peak_bytes - 0.4 * answers) / 1e6)}MB"
    with pytest.raises(ResourceError) as caught:
        planned(folder, rows, evaluations=2, eval_rows=200, answers_at_once=200, memory_limit=limit)
    assert "evaluate.batch_size: 100" in str(caught.value.fix)
    fits = planned(folder, rows, evaluations=2, eval_rows=200, answers_at_once=100, memory_limit=limit).memory
    assert fits is not None


def test_the_prompt_of_a_row_ends_where_its_last_learnt_turn_begins() -> None:
    weights = np.array([0, 0, 1, 1, 0, 0, 0, 1, 1], np.float32)
    assert planning._answer_begins(Sample(np.arange(9), weights)) == 7
    assert planning._answer_begins(Sample(np.arange(9), np.zeros(9, np.float32))) == 9


def test_what_all_prompts_begin_with_is_read_once(folder: Path) -> None:
    base, recipe = base_of(folder), recipe_of(folder, evaluations=1, loss="all")
    begin = np.arange(5, 45)
    rows = [Sample(np.r_[begin, np.arange(n)], np.ones(40 + n, np.float32)) for n in (7, 9, 8)]
    found = planning._answering(recipe, rows, base)
    assert found is not None
    assert (found.prompts, found.prompt_tokens, found.answer_tokens, found.shared_tokens) == (3, 49, 8, 46)
    short = planning._answering(recipe, [Sample(row.ids[20:], row.weights[20:]) for row in rows], base)
    assert short is not None and short.shared_tokens == 0
    for other in ({"evaluations": 0}, {"eval_rows": 0}, {"sharding": "fsdp"}):
        train = recipe.train.model_copy(update=other)
        assert planning._answering(recipe.model_copy(update={"train": train}), rows, base) is None


def test_no_engine_setting_stays_open_and_each_has_a_reason(folder: Path) -> None:
    plan = planned(folder, near=False, memory_limit="200GB", precision="auto")
    for setting in ("precision", "micro_batch_tokens", "recompute", "cache_trunk", "cuda_graphs", "compile"):
        assert getattr(plan.recipe.train, setting) != "auto", setting
        assert any(c.key == f"train.{setting}" and c.reason for c in plan.choices), setting
    assert (plan.recipe.train.cuda_graphs, plan.recipe.train.compile) == ("off", "off")
    again = plan_engine(recipe_of(folder), base_of(folder), None, ROWS, plan.recipe)
    assert {c.key: c.reason for c in again.choices}["train.compile"] == "as this run began"


def test_what_this_device_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.cuda_graphs, train\.precision") as caught:
        planned(folder, near=False, memory_limit="200GB", cuda_graphs="on", precision="fp8")
    assert "captured on CUDA" in str(caught.value) and "8-bit floats" in str(caught.value)


def test_compiled_layers_are_not_fused(folder: Path) -> None:
    base = base_of(folder)
    assert fuse_layers(recipe_of(folder, compile="on"), base) == 0
    assert fuse_layers(recipe_of(folder), base) == 2


def test_graphs_have_no_shared_prefixes_and_memory_to_spare(folder: Path) -> None:
    base, plain, graphs = base_of(folder), recipe_of(folder, memory_limit="10GB"), {"memory_limit": "10GB"}
    asked = recipe_of(folder, cuda_graphs="on", **graphs)
    assert plan_of(plain, 8).share_prefixes and not plan_of(plain, 8).cuda_graphs
    assert plan_of(asked, 8).cuda_graphs and not plan_of(asked, 8).share_prefixes
    assert planning._memory(asked, base) == pytest.approx(0.65 * planning._memory(plain, base))
    eighths = planning._memory(recipe_of(folder, precision="fp8", **graphs), base)
    assert planning._memory(plain, base) - eighths > 2 * 2 * 4 * 32 * 32  # two layers, four matrices and more
