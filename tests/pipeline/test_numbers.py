"""Time, memory and money before a training: by hand, and against the model's own sizes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import build, byte_tokenizer
from tunesmith.errors import RecipeError
from tunesmith.models.load import LoadedBase
from tunesmith.pipeline.devices import DEVICES, Shape, least_memory, reached, seconds
from tunesmith.pipeline.numbers import THIS_MACHINE, base_shape, data_numbers, estimate_error
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Method
from tunesmith.text.numbers import token_numbers
from tunesmith.training.calibration import TimeForecast

BIG = Shape(parameters=8_000_000_000, matrices=7_500_000_000, layers=32, hidden=4096, trained=40_000_000)
H100 = next(d for d in DEVICES if "H100" in d.name)
T4 = next(d for d in DEVICES if "T4" in d.name)


def loaded(family: str = "llama") -> LoadedBase:
    model = build(family)
    return LoadedBase(model, byte_tokenizer(), "tiny", None, "0", None, 512, sum(p.numel() for p in model.parameters()))


def recipe(**verdict):
    return parse_recipe(
        {"data": "x.csv", "train": {"epochs": 2.0, "batch_size": 4, "learning_rate": 1e-3}, "verdict": verdict}
    )


def tokens(rows: int = 100, length: int = 50):
    lengths = np.full(rows, length, dtype=np.int64)
    return token_numbers(lengths, lengths // 5, limit=512, batch_size=4)


def costs(found):
    return {cost.place: cost for cost in found.costs}


def test_operations_over_the_rate_that_is_reached():
    low, high = reached(H100, BIG.parameters)
    assert (low, high) == (pytest.approx(0.28 * 989e12), pytest.approx(0.43 * 989e12))
    shortest, longest = seconds(H100, BIG, Method(), 1_000_000)
    assert shortest == pytest.approx(4 * 7.5e9 * 1e6 / (0.43 * 989e12))
    assert longest == pytest.approx(4 * 7.5e9 * 1e6 / (0.28 * 989e12))
    assert seconds(H100, BIG, Method(type="full"), 1_000_000)[0] == pytest.approx(1.5 * shortest)


def test_published_speeds_lie_in_the_range():
    """Tokens per second of LoRA on one H100 (Qwen3 1.7B: 20.8k and 32.8k; Llama-3 8B: 12.5k; Qwen3 8B: 8.9k)."""
    for parameters, published in ((1.72e9, (20_800, 32_800)), (8.0e9, (8_900, 12_473))):
        shape = Shape(int(parameters), int(parameters), 32, 4096, 0)
        shortest, longest = seconds(H100, shape, Method(), 1_000_000)
        for speed in published:
            assert longest * 1.15 >= 1_000_000 / speed >= shortest / 1.15


def test_a_small_base_is_bound_by_launches_and_not_by_the_gpu():
    for device in DEVICES:
        low, high = reached(device, 7_000_000)
        assert (low, high) == reached(H100, 7_000_000) and 0 < low < high
    rates = [reached(H100, n)[0] for n in (1e6, 1e8, 6e8, 1e9, 3e9, 7e9, 2e10)]
    assert rates == sorted(rates)


def test_least_memory_by_hand():
    kept = 2 * 4096 * 32 * 1000 + 34 * 4096 * 1000
    assert least_memory(BIG, Method(), 1000) == 16_000_000_000 + 16 * 40_000_000 + kept
    assert least_memory(BIG, Method(quantize="nf4"), 1000) == round(8e9 * 0.56) + 16 * 40_000_000 + kept
    whole = Shape(BIG.parameters, BIG.matrices, 32, 4096, BIG.parameters)
    assert least_memory(whole, Method(type="full"), 1000) == 16 * 8_000_000_000 + kept


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_the_shape_of_a_base_is_counted_from_its_weights(family):
    base = loaded(family)
    shape = base_shape(base, Method(rank=4))
    assert shape.layers == 2 and shape.hidden == 32
    head = base.model.get_output_embeddings().weight.numel()
    inner = sum(p.numel() for n, p in base.model.named_parameters() if p.ndim == 2 and "layers" in n)
    assert shape.matrices == inner + head
    from tunesmith.models.methods import attach

    tuning = attach(base, Method(rank=4), 0, None)
    assert shape.trained == sum(p.numel() for p in tuning.trained().values())


def test_money_of_this_machine_devices_and_services():
    asked = recipe(prices={"hardware_per_hour": 2.0, "power_watts": 500, "electricity_per_kwh": 0.4, "currency": "EUR"})
    time = TimeForecast(steps=50, tokens=1, training_seconds=3000.0, validation_seconds=600.0, answering_seconds=0.0)
    found = data_numbers(asked, loaded(), tokens(), time=time, memory_bytes=10)
    here = costs(found)[THIS_MACHINE]
    assert here.money == (2.0, 2.0) and here.currency == "EUR" and here.kind == "measured"
    assert here.electricity == (pytest.approx(0.2), pytest.approx(0.2))
    assert costs(data_numbers(asked, loaded(), tokens()))[THIS_MACHINE].kind == "unmeasured"
    assert found.trained_tokens == 2 * 100 * 50 and found.epochs == 2 and found.steps == 50
    service = costs(found)["OpenAI gpt-4.1-mini"]
    assert service.money == (pytest.approx(10_000 / 1e6 * 5),) * 2 and service.currency == "USD"
    l4 = costs(found)["NVIDIA L4"]
    assert l4.fits and l4.seconds and l4.money and l4.money[1] == pytest.approx(l4.seconds[1] / 3600 * 0.80)
    assert costs(found)["NVIDIA RTX 4090"].money is None  # bought, not rented: electricity only
    assert costs(found)["NVIDIA RTX 4090"].electricity


def test_prices_of_the_user_replace_those_known():
    prices = {"devices": {"NVIDIA L4": 8.0, "NVIDIA RTX 4090": 1.0}, "services": {"OpenAI gpt-4o": 1.0, "Ours": 2.0}}
    found = costs(data_numbers(recipe(prices={**prices, "currency": "CHF"}), loaded(), tokens()))
    assert found["OpenAI gpt-4o"].money == (pytest.approx(0.01),) * 2 and found["OpenAI gpt-4o"].currency == "CHF"
    assert found["Ours"].money == (pytest.approx(0.02),) * 2
    assert found["NVIDIA L4"].money[0] == pytest.approx(found["NVIDIA L4"].seconds[0] / 3600 * 8)
    assert found["NVIDIA L4"].currency == "CHF" and found["NVIDIA RTX 4090"].money
    with pytest.raises(RecipeError, match=r"no profile of a device 'NVIDIA B9000'[\s\S]*NVIDIA T4"):
        data_numbers(recipe(prices={"devices": {"NVIDIA B9000": 1.0}}), loaded(), tokens())


def test_what_does_not_fit_has_no_time():
    base = loaded()
    many = LoadedBase(base.model, base.tokenizer, "big", None, "0", None, 512, 40_000_000_000)
    found = costs(data_numbers(recipe(), many, tokens()))
    assert found["NVIDIA T4"].fits is False and found["NVIDIA T4"].seconds is None
    assert found["NVIDIA T4"].memory_bytes > T4.memory_bytes
    assert found[THIS_MACHINE].seconds is None  # not measured: nothing is claimed


def test_how_far_a_forecast_was_off_also_where_training_stopped_early():
    time = TimeForecast(steps=100, tokens=1, training_seconds=50.0, validation_seconds=9.0, answering_seconds=9.0)
    assert estimate_error(time, steps=100, seconds=40.0) == {
        "predicted_seconds": 50.0, "measured_seconds": 40.0, "error": pytest.approx(0.25),
    }  # fmt: skip
    assert estimate_error(time, steps=20, seconds=10.0)["error"] == pytest.approx(0.0)
