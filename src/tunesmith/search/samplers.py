"""What chooses the next values to try: asked for them, then told what came of them, one trial after another.

All samplers give the same values again when they are told the same results in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from tunesmith.errors import EngineError, RecipeError
from tunesmith.recipe.searching import DEFAULT_TRIALS, Sampler, Space
from tunesmith.search.spaces import combinations, last_step, size

Direction = Literal["maximize", "minimize"]


class Asking(Protocol):
    """A sampler at work. `ask` and `tell` alternate."""

    def ask(self) -> dict[str, Any]:
        """Values for the next trial, by name."""
        ...

    def tell(self, score: float | None) -> None:
        """What came of them; None where the trial failed."""
        ...

    @property
    def version(self) -> str:
        """What decides which values are asked for, beside spaces, seed and results."""
        ...


def make_sampler(sampler: Sampler, spaces: Mapping[str, Space], *, seed: int, direction: Direction) -> Asking:
    """A sampler that has heard nothing yet. Raises `EngineError` where Optuna is needed and missing."""
    if sampler == "sequential":
        return _Sequential(spaces)
    return _Optuna(sampler, spaces, seed, direction)


def trials_of(sampler: Sampler, spaces: Mapping[str, Space], asked: int | None) -> int:
    """How many trials are meant. Raises `RecipeError` where a grid has fewer combinations than are asked for."""
    if sampler != "sequential":
        return asked or DEFAULT_TRIALS
    endless = [name for name, space in spaces.items() if space.type != "choice" and space.step is None]
    if endless:
        raise RecipeError(
            "every combination of a range without steps has no end",
            where=", ".join(endless),
            expected="a step, or type: choice with values",
            fix="or take the sampler tpe or random",
        )
    whole = size(spaces)
    if asked is not None and asked > whole:
        raise RecipeError(f"{asked} trials of {whole} combinations", where="search.trials", expected=f"at most {whole}")
    return asked or whole


class _Sequential:
    """Every combination of the grids, in their order."""

    version = "sequential"

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        self._left = combinations(spaces)

    def ask(self) -> dict[str, Any]:
        return next(self._left)

    def tell(self, score: float | None) -> None:
        pass


class _Optuna:
    """Optuna's samplers through ask and tell, in memory: the record of a search is our own."""

    def __init__(self, sampler: Sampler, spaces: Mapping[str, Space], seed: int, direction: Direction) -> None:
        try:
            import optuna
        except ImportError as error:
            raise EngineError(
                f"the sampler {sampler} needs Optuna, which is not installed",
                fix="pip install 'tunesmith[search]', or take the sampler sequential with steps or values",
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self.version = f"optuna {optuna.__version__}"
        self._spaces = spaces
        self._distributions = {name: _distribution(optuna.distributions, space) for name, space in spaces.items()}
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(direction=direction, sampler=kinds[sampler](seed=seed))
        self._trial: Any = None

    def ask(self) -> dict[str, Any]:
        self._trial = self._study.ask(self._distributions)
        return {name: _value(self._spaces[name], drawn) for name, drawn in self._trial.params.items()}

    def tell(self, score: float | None) -> None:
        if score is None:
            self._study.tell(self._trial, state=self._failed)
        else:
            self._study.tell(self._trial, score)


def _distribution(kinds: Any, space: Space) -> Any:
    """A space in Optuna's terms. A choice is drawn by place, as its values may be lists."""
    if space.type == "choice":
        return kinds.CategoricalDistribution(range(len(space.values or ())))
    if space.type == "int":
        return kinds.IntDistribution(int(space.low or 0), int(last_step(space)), space.log, int(space.step or 1))
    return kinds.FloatDistribution(float(space.low or 0), last_step(space), space.log, space.step)


def _value(space: Space, drawn: Any) -> Any:
    if space.type == "choice":
        return (space.values or ())[drawn]
    if space.type == "int":
        return int(drawn)
    return float(f"{drawn:.12g}") if space.step is not None else float(drawn)
