"""What decides whether an export lost too much, apart from any model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.pipeline.exporting.bounds import FULL
from tunesmith.pipeline.exporting.numbers import Parity
from tunesmith.pipeline.exporting.types import Check, Verification
from tunesmith.pipeline.exporting.verify import _asked, _of_logits, _sha256, _stops, computed_in_half, margin_of


@pytest.mark.parametrize(
    ("asked", "margin", "min_gain", "expected"),
    [(0.05, 0.02, 0.01, 0.05), (None, 0.02, 0.01, 0.02), (None, None, 0.03, 0.03), (None, None, 0.0, 0.01)],
)
def test_whose_margin_it_is(asked, margin, min_gain, expected):
    verdict = SimpleNamespace(margin=margin, min_gain=min_gain)
    reference: Any = SimpleNamespace(recipe=SimpleNamespace(verdict=verdict))
    found, whose = margin_of(reference.recipe, asked)
    assert found == expected and whose


def test_a_verification_is_read_back_as_it_was_kept():
    checks = (Check("logits", "passed", "alike", 0.1, 0.2), Check("task", "unsure", "few rows"))
    found = Verification("onnx-int4", checks, "a", {"mean_kl": 0.1})
    assert found.passed and Verification.from_dict(found.to_dict()) == found
    assert not Verification("x", (Check("stops", "failed", "never"),)).passed
    with pytest.raises(KeyError):
        found.check("stops")


@pytest.mark.parametrize(
    ("reader", "activation", "half"),
    [("llama.cpp", "f16", True), ("llama.cpp", "f32", False), ("transformers", "f16", False), (None, "f16", False)],
)
def test_only_llama_cpp_looks_activations_up_in_a_table(reader, activation, half):
    artifact: Any = SimpleNamespace(facts={"activation_precision": activation})
    engine: Any = SimpleNamespace(reader=reader) if reader else SimpleNamespace()
    assert computed_in_half(artifact, engine) is half


def generations(stopped: int, n: int) -> list[Any]:
    return [SimpleNamespace(stopped=place < stopped, prompt_tokens=5) for place in range(n)]


@pytest.mark.parametrize(
    ("before", "now", "n", "status"),
    [
        (3, 2, 3, "passed"), (3, 1, 3, "failed"), (40, 38, 40, "passed"), (40, 37, 40, "failed"),
        (10, 12, 12, "passed"), (0, 3, 3, "unsure"), (1, 0, 3, "passed"),
    ],
)  # fmt: skip
def test_one_answer_may_lose_its_end_and_five_in_a_hundred(before, now, n, status):
    reference: Any = SimpleNamespace(evaluation=None, chats=generations(before, n))
    assert _stops(reference, None, generations(now, n)).status == status


@pytest.mark.parametrize(
    ("width", "narrower", "status"), [(300, False, "passed"), (260, True, "passed"), (240, True, "failed")]
)
def test_padding_may_be_left_out_and_tokens_may_not(width, narrower, status):
    found = Parity(0.0, 0.0, 0.0, 1.0, 1.0, True, width=width, narrower=narrower)
    reference: Any = SimpleNamespace(source=SimpleNamespace(tokenizer=range(258)))
    (check,) = _of_logits(found, FULL, reference)
    assert check.status == status and ("logits for 240 of 258 tokens" in check.text) == (status == "failed")


@pytest.mark.parametrize(
    ("differing", "source", "status"), [(0, "{}", "passed"), (2, "{}", "unsure"), (2, "x", "failed")]
)
def test_a_file_whose_own_tokenizer_makes_other_tokens_is_not_called_the_same(differing, source, status):
    renderer = SimpleNamespace(source="{}", stop_ids={1}, prompt_ids=lambda _: [1, 2], prompt_text=lambda _: "ab")
    checked = {"conversations": 3, "conversations_differing": differing}
    kind = SimpleNamespace(kind="other")  # no file to look into
    artifact: Any = SimpleNamespace(target=kind, template_sha256=_sha256("{}"), facts={"tokenizer_checked": checked})
    theirs = SimpleNamespace(**{**vars(renderer), "source": source})
    engine: Any = SimpleNamespace(renderer=theirs, count_tokens=lambda _: 2)
    reference: Any = SimpleNamespace(source=SimpleNamespace(asked=True, renderer=renderer, template="{}"))
    (found,) = _asked(artifact, engine, reference)
    assert found.status == status and ("2 of 3" in found.text) == (status == "unsure")
