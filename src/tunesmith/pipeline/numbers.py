"""The numbers of a training before it begins: tokens, epochs, time, memory and money, here and elsewhere.

Time on this machine is measured (`training.calibration`); other machines and services are estimated from the profiles
in `devices.py`. Every amount comes with the formula it was computed by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.load import LoadedBase
from tunesmith.models.trunk import decoder_layers
from tunesmith.pipeline.devices import (
    DEVICE_SOURCE,
    DEVICES,
    SERVICE_SOURCE,
    SERVICES,
    SHARE_SOURCE,
    Device,
    Service,
    Shape,
    least_memory,
    seconds,
)
from tunesmith.recipe.schema import Method, Prices, Recipe
from tunesmith.text.numbers import TokenNumbers
from tunesmith.training.calibration import TimeForecast
from tunesmith.training.plan import steps_of

THIS_MACHINE = "this machine"
_FITS = 0.9
"""Share of a device's memory that a training may take."""
Kind = Literal["measured", "unmeasured", "estimated", "service"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the training takes in one place; None where it does not apply or is not known.

    kind: measured here (`check` does it, until then it is unmeasured), estimated from a device's profile, or the price
    list of a service.
    seconds, money: lowest and highest. money: in `currency`, of machine hours or tokens; electricity: of energy alone.
    memory_bytes: predicted here; the least that is needed elsewhere. fits: into the memory there.
    """

    place: str
    kind: Kind
    seconds: tuple[float, float] | None = None
    memory_bytes: int | None = None
    fits: bool | None = None
    money: tuple[float, float] | None = None
    currency: str = "USD"
    electricity: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class DataNumbers:
    """All numbers. `epochs` counts the passes over the rows really made; `trained_tokens`: over all passes.

    `currency` is that of the recipe, and of electricity everywhere.
    """

    tokens: TokenNumbers
    epochs: float
    steps: int
    trained_tokens: int
    costs: tuple[Cost, ...]
    currency: str
    formulas: Mapping[str, str]
    sources: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        found = asdict(self)
        found["tokens"] |= {"supervised_share": self.tokens.supervised_share, "mean": self.tokens.mean}
        return found


def data_numbers(
    recipe: Recipe,
    base: LoadedBase,
    tokens: TokenNumbers,
    *,
    time: TimeForecast | None = None,
    memory_bytes: int | None = None,
    trained: int | None = None,
) -> DataNumbers:
    """The numbers of a resolved recipe on rows with these token counts.

    time: as forecast for this machine. memory_bytes: as planned here. trained: parameters that are trained, where the
    adapters are attached; else they are counted from the shapes.

    Raises `RecipeError` for prices of a device that has no profile.
    """
    train, rows = recipe.train, max(1, tokens.rows)
    batch = int(train.batch_size)
    steps = train.max_steps or steps_of(rows, batch, float(train.epochs))
    epochs = steps * batch / rows if train.max_steps else float(train.epochs)
    learnt = round(epochs * tokens.tokens)
    shape = base_shape(base, recipe.method, trained)
    prices = recipe.verdict.prices
    _refuse_unknown(prices)
    costs = [_here(prices, time, memory_bytes)]
    costs += [_there(device, shape, recipe.method, learnt, tokens.longest, prices) for device in devices_of(prices)]
    costs += [_service(service, learnt, prices) for service in services_of(prices)]
    return DataNumbers(
        tokens=tokens,
        epochs=epochs,
        steps=steps,
        trained_tokens=learnt,
        costs=tuple(costs),
        currency=prices.currency,
        formulas=_formulas(recipe.method, shape),
        sources=(DEVICE_SOURCE, SHARE_SOURCE, SERVICE_SOURCE),
    )


def base_shape(base: LoadedBase, method: Method, trained: int | None = None) -> Shape:
    """What of a base and a method decides memory and time elsewhere."""
    layers = decoder_layers(getattr(base.model, base.model.base_model_prefix))
    matrices = [p for layer in layers for p in layer.parameters() if p.ndim == 2]
    head = base.model.get_output_embeddings().weight
    return Shape(
        parameters=base.parameters,
        matrices=sum(p.numel() for p in matrices) + head.numel(),
        layers=len(layers),
        hidden=int(base.model.config.get_text_config().hidden_size),
        trained=_trained(base, method, matrices) if trained is None else trained,
    )


def estimate_error(forecast: TimeForecast, *, steps: int, seconds: float) -> dict[str, float]:
    """How far a forecast of the optimiser steps was off, for the manifest: `(forecast - measured) / measured`.

    A training that stopped early is compared with the same share of its forecast. steps: those taken in `seconds`.
    """
    predicted = forecast.training_seconds * steps / forecast.steps
    return {"predicted_seconds": predicted, "measured_seconds": seconds, "error": predicted / seconds - 1}


def devices_of(prices: Prices) -> tuple[Device, ...]:
    """The devices that are known, with the user's prices where there are some."""
    return tuple(
        Device(d.name, d.peak, d.memory_bytes, d.watts, prices.devices.get(d.name, d.per_hour)) for d in DEVICES
    )


def services_of(prices: Prices) -> tuple[Service, ...]:
    """The services that are known, with the user's prices, and the user's own."""
    known = {service.name: service.per_million_tokens for service in SERVICES}
    return tuple(Service(name, price) for name, price in {**known, **prices.services}.items())


def _refuse_unknown(prices: Prices) -> None:
    known = [device.name for device in DEVICES]
    unknown = [name for name in prices.devices if name not in known]
    if unknown:
        raise RecipeError(
            f"there is no profile of a device {unknown[0]!r}",
            where="verdict.prices.devices",
            expected=f"names among: {', '.join(known)}",
        )


def _here(prices: Prices, time: TimeForecast | None, memory_bytes: int | None) -> Cost:
    if time is None:
        return Cost(THIS_MACHINE, "unmeasured", memory_bytes=memory_bytes, currency=prices.currency)
    money = time.seconds / 3600 * prices.hardware_per_hour
    power = _energy(prices.power_watts, (time.seconds, time.seconds), prices)
    return Cost(
        THIS_MACHINE,
        "measured",
        (time.seconds, time.seconds),
        memory_bytes,
        None,
        (money, money),
        prices.currency,
        power,
    )


def _there(device: Device, shape: Shape, method: Method, tokens: int, longest: int, prices: Prices) -> Cost:
    least = least_memory(shape, method, longest)
    fits = least <= _FITS * device.memory_bytes
    if not fits:
        return Cost(device.name, "estimated", memory_bytes=least, fits=False)
    shortest, slowest = seconds(device, shape, method, tokens)
    hourly = device.per_hour
    money = None if hourly is None else (shortest / 3600 * hourly, slowest / 3600 * hourly)
    # Prices known here are in dollars; those of the recipe are in its currency.
    currency = prices.currency if device.name in prices.devices else "USD"
    power = _energy(device.watts, (shortest, slowest), prices)
    return Cost(device.name, "estimated", (shortest, slowest), least, True, money, currency, power)


def _service(service: Service, tokens: int, prices: Prices) -> Cost:
    money = tokens / 1e6 * service.per_million_tokens
    currency = prices.currency if service.name in prices.services else "USD"
    return Cost(service.name, "service", money=(money, money), currency=currency)


def _energy(watts: float | None, times: tuple[float, float], prices: Prices) -> tuple[float, float] | None:
    if watts is None:
        return None
    low, high = (watts / 1000 * t / 3600 * prices.electricity_per_kwh for t in times)
    return low, high


def _formulas(method: Method, shape: Shape) -> dict[str, str]:
    factor = 6 if method.type == "full" else 4
    return {
        "training tokens": "tokens of all rows × epochs",
        "time on this machine": "micro-batches, tokens and steps × the seconds each takes here, as `check` measures it",
        "time elsewhere": f"{factor} × {shape.matrices:,} weights × training tokens / "
        "(share of the peak that trainings reach × peak)",
        "memory elsewhere": "at least weights + 16 bytes × trained values + (2 × layers + 34) × hidden × longest row",
        "own or rented hardware": "hours × price of an hour",
        "electricity": "kW × hours × price of a kWh",
        "services": "training tokens / 1,000,000 × price of a million",
    }


def _trained(base: LoadedBase, method: Method, matrices: Sequence[nn.Parameter]) -> int:
    """Parameters that are trained, from shapes: for methods of peft counted as LoRA of the same rank."""
    if method.type == "full":
        return base.parameters
    if method.type == "bottleneck":
        hidden = int(base.model.config.get_text_config().hidden_size)
        layers = len(decoder_layers(getattr(base.model, base.model.base_model_prefix)))
        return 2 * layers * 2 * hidden * method.bottleneck_size
    return method.rank * sum(p.shape[0] + p.shape[1] for p in matrices)
