"""How the benchmark of bases compares two orders, and that its converted model is the published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bases

    return bases


TUNED = {"a": 0.9, "b": 0.5, "c": 0.1}


def test_the_same_order_agrees_wholly_and_the_opposite_not_at_all(bench: Any) -> None:
    fewer_is_better = {"a": 1.0, "b": 2.0, "c": 3.0}
    same = bench.agreement(fewer_is_better, TUNED, -1)
    assert same == {"tau": pytest.approx(1), "first": ["a"], "first_is_best": True, "bases": 3}
    opposite = bench.agreement(fewer_is_better, TUNED, 1)
    assert opposite["tau"] == pytest.approx(-1) and opposite["first"] == ["c"] and not opposite["first_is_best"]


def test_a_figure_that_is_the_same_for_all_says_nothing(bench: Any) -> None:
    found = bench.agreement(dict.fromkeys(TUNED, 0.0), TUNED, 1)
    assert found["tau"] is None and found["first"] == ["a", "b", "c"] and not found["first_is_best"]


def test_bases_without_the_figure_are_left_out(bench: Any) -> None:
    found = bench.agreement({"a": 1.0, "b": None, "c": 2.0}, TUNED, -1)
    assert (found["bases"], found["tau"], found["first_is_best"]) == (2, pytest.approx(1), True)


def test_stories260k_as_a_folder(bench: Any, tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "stories260K"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    folder = bench.save_stories(source, tmp_path / "stories")  # ends with an error where the tokenizer cuts otherwise
    from tunesmith.models.load import load_base
    from tunesmith.recipe.schema import Base

    base = load_base(Base(model=str(folder)))
    ids = base.tokenizer("Once upon a time, there was a little", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = base.model.generate(torch.cat([torch.tensor([[1]]), ids], 1), max_new_tokens=3, do_sample=False)
    assert base.tokenizer.decode(said[0, ids.shape[1] + 1 :]).strip().startswith(("girl", "boy", "b", "g"))
    assert bench.save_stories(source, folder) == folder
