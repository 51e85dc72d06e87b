"""The gate on the user's machine and model, in one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from tunesmith.recipe.schema import Base
from tunesmith.text.types import Sample
from tunesmith.training.calibration import measured_rates
from tunesmith.training.gate.checks import gate_checks
from tunesmith.training.gate.compare import Comparison
from tunesmith.training.gate.cut import Cut, plan_cut
from tunesmith.training.gate.fast_paths import FastPath, fast_paths
from tunesmith.training.gate.machine import Fact, machine_facts
from tunesmith.training.gate.steps import FULL, Documents, Way, compare_step, documents, drawn, mixed, sharing
from tunesmith.training.gate.types import EVERY, EXACT, Check, Outcome, run_gate
from tunesmith.training.precision import choose_precision
from tunesmith.training.resources import available_memory

GROUP = "your base"
_SHARE = 0.7
"""Of free memory, what a cut may take."""
_SMALL = 50_000_000
"""Weights up to which a cut takes more steps: longer rows, every weight trained, float64 too."""
_ROW = 48
"""Tokens that are kept of a row of the user's."""
_ROWS = 12

Told = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    outcomes: of all checks, those of the base last. layers, of_layers, left_out: of the cut (`cut.Cut`). rates: of
    products, operations per second by type.
    """

    base: str
    layers: tuple[int, ...]
    of_layers: int
    parameters: int
    left_out: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    fast_paths: tuple[FastPath, ...]
    rates: Mapping[str, float]
    machine: tuple[Fact, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Checks that do not hold."""
        return tuple(outcome for outcome in self.outcomes if not outcome.holds)

    @property
    def of_base(self) -> tuple[Outcome, ...]:
        """Those of the cut."""
        return tuple(outcome for outcome in self.outcomes if outcome.group == GROUP)

    @property
    def of_machine(self) -> tuple[Outcome, ...]:
        """Those of operations and small models."""
        return tuple(outcome for outcome in self.outcomes if outcome.group != GROUP)

    @property
    def exit_code(self) -> int:
        """5, as for whatever was produced and is not what it should be; 0 where all hold."""
        return 5 if self.failed else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "base": self.base,
            "holds": not self.failed,
            "cut": {
                "layers": list(self.layers),
                "of_layers": self.of_layers,
                "parameters": self.parameters,
                "left_out": list(self.left_out),
            },
            "checks": [outcome.to_dict() for outcome in self.outcomes],
            "fast_paths": [asdict(path) for path in self.fast_paths],
            "product_gflops": {name: rate / 1e9 for name, rate in self.rates.items()},
            "machine": {fact.name: fact.value for fact in self.machine},
            "seconds": self.seconds,
        }


def examine(
    spec: Base,
    *,
    samples: Sequence[Sample] = (),
    seed: int = 0,
    told: Told = lambda outcome: None,
) -> Report:
    """Run the gate on this machine, and take steps of a cut of the base.

    `samples`: rows of the user's, as tokens, to take a step on too.

    Raises
    ------
    RecipeError, EngineError: there is no such base, its files are damaged, or its architecture is not supported.
    ResourceError: not even the smallest cut fits into memory.
    """
    began = time.perf_counter()
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    device = devices[-1]
    cut = plan_cut(spec, int(_SHARE * _free(device)))
    outcomes: list[Outcome] = []
    for where in devices:
        dtypes = (torch.float64, torch.float32, *((torch.bfloat16,) if where.type == "cuda" else ()))
        outcomes += run_gate(where, dtypes, gate_checks(), seed=seed, told=told)
    rates = measured_rates(device)
    precision, _ = choose_precision(device, rates)
    half = precision == "bf16"
    left_out = cut.left_out
    if precision == "fp16":
        left_out += ("fp16, in which this device would train: steps were compared in fp32",)
    outcomes += run_gate(device, _dtypes(cut, half), base_checks(cut, samples), seed=seed, told=told)
    held = torch.bfloat16 if half and device.type == "cuda" else torch.float32
    return Report(
        base=spec.model,
        layers=cut.layers,
        of_layers=cut.of_layers,
        parameters=cut.parameters,
        left_out=left_out,
        outcomes=tuple(outcomes),
        fast_paths=fast_paths(cut.open(held, held, device), rates),
        rates=rates,
        machine=machine_facts(device),
        seconds=time.perf_counter() - began,
    )


def base_checks(cut: Cut, samples: Sequence[Sample] = ()) -> tuple[Check, ...]:
    """Steps of a cut of a base: with random adapters, and of all its weights where it is small."""
    small = cut.parameters <= _SMALL
    batch = mixed if small else _few
    checks = [Check("LoRA, random rows", GROUP, partial(_step, cut, Way(), batch), EVERY)]
    if small:
        checks.append(Check("full tuning, random rows", GROUP, partial(_step, cut, FULL, batch), EVERY))
    if samples:
        rows = [_shortened(sample, cut.vocabulary) for sample in samples[:_ROWS]]
        # Not in half precision: of one batch its error is mostly chance.
        checks.append(Check("LoRA, your rows", GROUP, partial(_step, cut, Way(), lambda g, v: rows), EXACT))
    return tuple(checks)


def _step(
    cut: Cut,
    way: Way,
    batch: Documents,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> Comparison:
    return compare_step(cut, way, drawn(batch, cut, generator, dtype), generator, device, dtype, widen=True)


def _few(generator: torch.Generator, vocabulary: int) -> list[Sample]:
    """Rows for a large cut: a one-token document, a shared beginning, windows that are crossed; few tokens."""
    return [*documents(generator, vocabulary, (5,)), *sharing(generator, vocabulary, 17, (4, 1))]


def _shortened(sample: Sample, vocabulary: int) -> Sample:
    """At most 48 tokens of a row, around where learning begins; ids that the cut left out become others."""
    learnt = sample.weights.nonzero()[0]
    first = max(0, int(learnt[0]) - _ROW // 2) if len(learnt) else 0
    part = slice(first, first + _ROW)
    weights = sample.weights[part].copy()
    weights[:1] = 0
    return Sample(sample.ids[part] % vocabulary, weights, sample.example_id)


def _dtypes(cut: Cut, half: bool) -> tuple[torch.dtype, ...]:
    """What the base is examined in: fp32, float64 where it is small, and bf16 where training would use it."""
    dtypes = (torch.float64, torch.float32) if cut.parameters <= _SMALL else (torch.float32,)
    return (*dtypes, torch.bfloat16) if half else dtypes


def _free(device: torch.device) -> int:
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return min(int(free), available_memory())
