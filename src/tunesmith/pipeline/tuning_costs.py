"""The four costs of tuning, before any of them is spent: base, effort, compute, data.

    effort  = hours_of_work + (training rows missing + test rows missing) × minutes_per_row / 60      [hours]
    hosting = hosting_hours_per_month × hardware_per_hour                                             [per month]

Each cost has a state: `stop` where tuning cannot or may not be done so, `look` where a person has to look at something,
else `fine`. Whether it was worth it is for the verdict, after a run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.quality import detectable_difference, rows_to_detect
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.models.base_files import BaseFiles, cached_folder, look_at_files
from tunesmith.models.licence import LicenceCheck, check_licence
from tunesmith.models.load import LoadedBase, base_folder
from tunesmith.pipeline.estimating import TrainingEstimate
from tunesmith.pipeline.numbers import THIS_MACHINE, DataNumbers
from tunesmith.pipeline.prepare import Prepared, Rows
from tunesmith.pipeline.rows_wanted import RowsWanted, rows_wanted
from tunesmith.recipe.schema import Recipe
from tunesmith.verdict import wording

State = Literal["fine", "look", "stop"]
_MANY_HOURS = 40.0
"""Hours of work from which effort is worth a look: a working week."""


@dataclass(frozen=True, slots=True)
class BaseCost:
    """Whether this base can and may be tuned. longest_row: in tokens; rows_too_long: training rows left out.

    problem: why it could not be loaded, and problem_fix what to do, if known; then `architecture`, `parameters` and
    `context` are what its files say, None where they do not, and nothing is known of rows in its tokens.
    """

    state: State
    name: str
    revision: str | None
    licence: LicenceCheck
    files: BaseFiles
    architecture: str | None
    parameters: int | None
    bytes: int
    context: int | None
    longest_row: int
    rows_too_long: int
    problem: str = ""
    problem_fix: str = ""


@dataclass(frozen=True, slots=True)
class EffortCost:
    """Human work: hours for review, and for rows that are missing. `hours` and `money` are of all of them.

    hours_to_begin, money_to_begin: without the test rows that only a gain as small as `verdict.min_gain` asks for.
    """

    state: State
    review_hours: float
    train_rows_missing: int
    train_rows_hours: float
    test_rows_missing: int
    test_rows_hours: float
    minutes_per_row: float
    hours_to_begin: float
    money_to_begin: float
    hours: float
    per_hour: float
    money: float
    currency: str


@dataclass(frozen=True, slots=True)
class ComputeCost:
    """Machines. training_money: here; None where nothing could be measured. elsewhere: the cheapest other place, with
    its lowest and highest price. hosting_money: per month; hosting_per_1000: at the expected requests.
    """

    state: State
    training_seconds: float | None
    training_money: float | None
    peak_memory_bytes: int | None
    elsewhere: str | None
    elsewhere_money: tuple[float, float] | None
    elsewhere_currency: str | None
    hosting_hours: float
    hosting_money: float
    hosting_electricity: float | None
    hosting_per_1000: float
    requests_per_month: int
    hardware_per_hour: float
    currency: str


@dataclass(frozen=True, slots=True)
class DataCost:
    """Rows. detectable_difference: the smallest the test rows show, 0-1; test_rows_wanted: to see `min_gain`, None
    where that is 0 and any gain counts.
    """

    state: State
    train_rows: int
    wanted: RowsWanted
    train_rows_missing: int
    validation_rows: int
    test_rows: int
    detectable_difference: float
    min_gain: float
    test_rows_wanted: int | None
    test_rows_missing: int


@dataclass(frozen=True, slots=True)
class TuningCosts:
    """All four, and one sentence on them."""

    base: BaseCost
    effort: EffortCost
    compute: ComputeCost
    data: DataCost
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        found = asdict(self)
        if self.data.wanted.curve is not None:
            found["data"]["wanted"]["curve"] = str(self.data.wanted.curve)
        return found


def costs_with_base(
    prepared: Prepared, estimate: TrainingEstimate | None, numbers: DataNumbers | None, too_long: int
) -> TuningCosts:
    """The four costs of a prepared training. too_long: training rows that do not fit and are left out."""
    labels = len(getattr(prepared.task, "labels", ()))
    return _costs(prepared.recipe, prepared.rows, labels, _base(prepared, too_long), estimate, numbers)


def costs_without_base(recipe: Recipe, rows: Rows, labels: int, problem: TunesmithError) -> TuningCosts:
    """The costs that are known although the base could not be loaded. labels: of the task; 0 where it has none."""
    return _costs(recipe, rows, labels, _unloaded(recipe, problem), None, None)


def _costs(
    recipe: Recipe,
    rows: Rows,
    labels: int,
    base: BaseCost,
    estimate: TrainingEstimate | None,
    numbers: DataNumbers | None,
) -> TuningCosts:
    data = _data(recipe, rows, labels)
    effort = _effort(recipe, data)
    compute = _compute(recipe, estimate, numbers)
    return TuningCosts(base, effort, compute, data, _summary(base, effort, compute, data))


def _base(prepared: Prepared, too_long: int) -> BaseCost:
    base, recipe = prepared.base, prepared.recipe
    folder = base.folder or cached_folder(base.name, recipe.base.revision)
    licence = check_licence(folder, recipe.goal.use, name=base.name)
    files = look_at_files(folder, name=base.name)
    state: State = "fine" if licence.permission == "allowed" and not too_long and not files.obstacles else "look"
    if licence.use is not None and licence.permission == "forbidden":
        state = "stop"
    return BaseCost(
        state=state,
        name=base.name,
        revision=base.revision,
        licence=licence,
        files=files,
        architecture=str(base.model.config.model_type),
        parameters=base.parameters,
        bytes=files.bytes or _held_bytes(base),
        context=base.context,
        longest_row=max(prepared.lengths.lengths, default=0),
        rows_too_long=too_long,
    )


def _unloaded(recipe: Recipe, problem: TunesmithError) -> BaseCost:
    """What the files of a base that could not be loaded say."""
    name, revision = recipe.base.model, recipe.base.revision
    try:
        folder = base_folder(name) or cached_folder(name, revision)
    except RecipeError:  # the name means no base: that is the problem, or hides behind it
        folder = Path(name).expanduser() if Path(name).expanduser().is_dir() else None
    files = look_at_files(folder, name=name)
    return BaseCost(
        state="stop",
        name=name,
        revision=revision,
        licence=check_licence(folder, recipe.goal.use, name=name),
        files=files,
        architecture=files.architecture,
        parameters=files.parameters,
        bytes=files.bytes,
        context=files.context,
        longest_row=0,
        rows_too_long=0,
        problem=problem.what,
        problem_fix=problem.fix or (f"expected {problem.expected}" if problem.expected else ""),
    )


def _held_bytes(base: LoadedBase) -> int:
    """Bytes of the weights in memory, where the files are not known."""
    return sum(p.numel() * p.element_size() for p in base.model.parameters())


def _data(recipe: Recipe, rows: Rows, labels: int) -> DataCost:
    wanted = rows_wanted(recipe, rows, labels)
    have, tested = len(rows.splits.train), len(rows.splits.test)
    least = recipe.verdict.min_gain
    needed = rows_to_detect(least, confidence=recipe.evaluate.confidence, power=recipe.verdict.power) if least else None
    missing, test_missing = max(0, wanted.rows - have), max(0, (needed or 0) - tested)
    return DataCost(
        state="look" if missing or test_missing else "fine",
        train_rows=have,
        wanted=wanted,
        train_rows_missing=missing,
        validation_rows=len(rows.splits.validation),
        test_rows=tested,
        detectable_difference=detectable_difference(
            tested, confidence=recipe.evaluate.confidence, power=recipe.verdict.power
        ),
        min_gain=least,
        test_rows_wanted=needed,
        test_rows_missing=test_missing,
    )


def _effort(recipe: Recipe, data: DataCost) -> EffortCost:
    prices = recipe.verdict.prices
    train, test = (
        missing * prices.minutes_per_row / 60 for missing in (data.train_rows_missing, data.test_rows_missing)
    )
    begin = prices.hours_of_work + train
    hours = begin + test
    return EffortCost(
        state="look" if begin > _MANY_HOURS else "fine",
        review_hours=prices.hours_of_work,
        train_rows_missing=data.train_rows_missing,
        train_rows_hours=train,
        test_rows_missing=data.test_rows_missing,
        test_rows_hours=test,
        minutes_per_row=prices.minutes_per_row,
        hours_to_begin=begin,
        money_to_begin=begin * prices.work_per_hour,
        hours=hours,
        per_hour=prices.work_per_hour,
        money=hours * prices.work_per_hour,
        currency=prices.currency,
    )


def _compute(recipe: Recipe, estimate: TrainingEstimate | None, numbers: DataNumbers | None) -> ComputeCost:
    prices, requests = recipe.verdict.prices, recipe.goal.requests_per_month
    hosting = prices.hosting_hours_per_month * prices.hardware_per_hour
    electricity: float | None = None
    if prices.power_watts is not None:
        electricity = prices.power_watts / 1000 * prices.hosting_hours_per_month * prices.electricity_per_kwh
    others = [
        (cost.money, cost.place, cost.currency)
        for cost in (numbers.costs if numbers is not None else ())
        if cost.place != THIS_MACHINE and cost.kind == "estimated" and cost.money is not None
    ]
    # Prices in two currencies do not compare: those of the recipe's count, where it names any.
    own = [cost for cost in others if cost[2] == prices.currency]
    cheapest = min(own or others, default=None)
    seconds = estimate.time.seconds if estimate is not None else None
    return ComputeCost(
        state="fine" if estimate is not None else "look",
        training_seconds=seconds,
        training_money=None if seconds is None else seconds / 3600 * prices.hardware_per_hour,
        peak_memory_bytes=estimate.memory.predicted_peak_bytes if estimate is not None else None,
        elsewhere=cheapest[1] if cheapest else None,
        elsewhere_money=cheapest[0] if cheapest else None,
        elsewhere_currency=cheapest[2] if cheapest else None,
        hosting_hours=prices.hosting_hours_per_month,
        hosting_money=hosting,
        hosting_electricity=electricity,
        hosting_per_1000=1000 * hosting / requests,
        requests_per_month=requests,
        hardware_per_hour=prices.hardware_per_hour,
        currency=prices.currency,
    )


def _summary(base: BaseCost, effort: EffortCost, compute: ComputeCost, data: DataCost) -> str:
    if base.problem:
        fix = f" ({base.problem_fix})" if base.problem_fix else ""
        return f"This base cannot be tuned as it is: {base.problem}{fix}. Compare others with `tunesmith bases`."
    if base.state == "stop":
        return (
            f"Do not tune this base: its licence ({base.licence.name}) forbids {base.licence.use} use. Compare others "
            "with `tunesmith bases`."
        )
    once = effort.money_to_begin + (compute.training_money or 0.0)
    training = "and the training" if compute.training_money is not None else "without the training, which is not known"
    text = (
        f"About {wording.money(once, effort.currency)} once ({effort.hours_to_begin:,.1f} hours of work {training}), "
        f"then {wording.money(compute.hosting_money, compute.currency)} a month for hosting."
    )
    if data.test_rows_missing:
        text += (
            f" To be sure of a gain as small as {wording.bare_points(data.min_gain)} points, "
            f"{data.test_rows_missing:,} more test rows ({effort.test_rows_hours:,.1f} hours)."
        )
    looks = [name for name, cost in (("base", base), ("data", data), ("effort", effort), ("compute", compute))
             if cost.state == "look"]  # fmt: skip
    return f"{text} Look at: {', '.join(looks)}." if looks else f"{text} Nothing stands in the way."
