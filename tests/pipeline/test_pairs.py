"""A run on pairs of texts: the model learns to place them, and plain `peft` loads what was learnt."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.models.peft_side import answers, difference, load_plain
from tests.pipeline.conftest import WORDS
from tests.tiny import build, save_base
from tunesmith.errors import DataError, RecipeError
from tunesmith.models.load import load_base
from tunesmith.models.methods import load_tuned
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Recipe

TEXTBOOK = """\
import torch
import torch.nn.functional as F


class ContrastiveLoss(torch.nn.Module):
    def __init__(self, margin=2.0):
        super().__init__()
        self.margin = margin

    def forward(self, output1, output2, label):
        euclidean_distance = F.pairwise_distance(output1, output2, keepdim=True)
        return torch.mean(
            (1 - label) * torch.pow(euclidean_distance, 2)
            + label * torch.pow(torch.clamp(self.margin - euclidean_distance, min=0.0), 2)
        )
"""
TRAIN: dict[str, Any] = {
    "max_steps": 40, "batch_size": 8, "learning_rate": 1e-2, "evaluations": 2, "patience": 0, "precision": "fp32",
    "micro_batch_tokens": 4096, "recompute": "off", "tensorboard": False, "objective": "contrastive",
}  # fmt: skip


def write_pairs(path: Path, count: int = 80, *, graded: bool = False) -> None:
    """Two phrases each: of one tone (0) or of two (1); graded, the share of words that differ in tone."""
    draw = random.Random(0)
    tones = sorted(WORDS)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("left", "right", "apart"))
        for i in range(count):
            mine = draw.choice(tones)
            other = draw.choice([t for t in tones if t != mine]) if i % 2 else mine
            first, second = draw.choices(WORDS[mine], k=3), draw.choices(WORDS[other], k=3)
            label = draw.choice((0.25, 0.5, 0.75)) if graded else i % 2
            out.writerow((f"{' '.join(first)} {i}", " ".join(second), label))


def recipe_of(folder: Path, rows: str = "pairs.csv", method: Any = None, data: Any = None, **train: Any) -> Recipe:
    columns = {"prompt": "left", "second": "right", "answer": "apart"}
    rows_of = {"train": str(folder / rows), "columns": columns, "split": {"test": 10, "validation": 20}, **(data or {})}
    return parse_recipe(
        {
            "data": rows_of,
            "base": str(folder / "base"),
            "method": method or {"rank": 4},
            "train": {**TRAIN, **train},
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("pairs")
    save_base(folder / "base", "qwen3")
    (folder / "loss.py").write_text(TEXTBOOK)
    write_pairs(folder / "pairs.csv")
    write_pairs(folder / "graded.csv", graded=True)
    return folder


@pytest.fixture(scope="module")
def contrastive(folder) -> Result:
    return run(recipe_of(folder), out=folder / "contrastive", through="train")


@pytest.fixture(scope="module")
def textbook(folder) -> Result:
    objective = f"{folder / 'loss.py'}:ContrastiveLoss"
    return run(recipe_of(folder, objective=objective), out=folder / "textbook", through="train")


def validations(result: Result) -> list[dict[str, Any]]:
    lines = (result.folder.path / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["kind"] == "validation"]


def test_pairs_are_learnt_and_measured(contrastive):
    assert contrastive.training is not None and contrastive.comparison is None and contrastive.verdict is None
    first, last = validations(contrastive)
    assert set(last["metrics"]) == {"spearman", "pair_accuracy", "pair_threshold"}
    best = contrastive.training["best_value"]
    assert best == max(first["metrics"]["pair_accuracy"], last["metrics"]["pair_accuracy"]) >= 0.85
    assert last["metrics"]["spearman"] > 0.6
    assert contrastive.training["supervised_tokens"] == 0


def test_the_proof_is_in_the_manifest_and_plain_peft_loads_it(contrastive):
    manifest = json.loads((contrastive.folder.path / "manifest.json").read_text())
    proof = manifest["proof"]
    assert proof["unmoved"] == [] and proof["probe_difference"] > 1e-3 and proof["reloaded_difference"] < 1e-5
    assert manifest["data"]["rows"] == {"train": 50, "validation": 20, "test": 10}
    base = load_base(contrastive.recipe.base)
    load_tuned(base, contrastive.folder.adapter, contrastive.recipe.method)
    plain = load_plain(build("qwen3"), contrastive.folder.adapter)
    assert difference(answers(plain), answers(base.model)) < 1e-5


def test_the_textbook_class_learns_the_same(contrastive, textbook):
    """Its formula is that of `contrastive`, up to the tiny constant that `pairwise_distance` adds."""
    models = []
    for result in (contrastive, textbook):
        base = load_base(result.recipe.base)
        load_tuned(base, result.folder.adapter)
        models.append(answers(base.model))
    assert difference(*models) < 1e-2
    ours, theirs = validations(contrastive)[-1], validations(textbook)[-1]
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-2)
    assert theirs["metrics"]["pair_accuracy"] == ours["metrics"]["pair_accuracy"]


@pytest.mark.parametrize(
    "method",
    [
        "full",
        {"type": "qlora", "rank": 4},
        {"type": "bottleneck", "bottleneck_size": 8},
        {"type": "peft", "peft_type": "LOHA", "peft_options": {"r": 4}},
        {"rank": 4, "last_layers": 1},
    ],
    ids=str,
)
def test_pairs_by_other_methods(method, folder, tmp_path):
    result = run(recipe_of(folder, method=method, max_steps=3, evaluations=1), out=tmp_path / "r", through="train")
    assert result.training is not None
    proof = result.training["proof"]
    # Pairs compare hidden states: a head of its own has nothing to learn.
    assert proof["unmoved"] == (["lm_head.weight"] if method == "full" else [])
    assert proof["probe_difference"] > 1e-4 and proof["reloaded_difference"] < 1e-5


def test_a_scale_is_measured_by_rank_and_cosine_by_angles(folder, tmp_path):
    options = {"distance": "cosine", "margin": 1.0}
    recipe = recipe_of(folder, "graded.csv", objective_options=options, max_steps=2, evaluations=1)
    result = run(recipe, out=tmp_path / "r", through="train")
    (told,) = validations(result)
    assert set(told["metrics"]) == {"spearman"} and result.training is not None
    assert result.training["best_value"] == told["metrics"]["spearman"]


def test_a_cut_off_run_ends_with_the_same_bits(folder, tmp_path):
    recipe = recipe_of(folder, max_steps=4, evaluations=2)
    whole = run(recipe, out=tmp_path / "whole", through="train")

    def cut(event: dict[str, Any]) -> None:
        if event["kind"] == "train_step" and event["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=tmp_path / "cut", through="train", listener=cut)
    again = run(recipe, out=tmp_path / "cut", through="train")
    assert whole.training is not None and again.training is not None
    assert again.training["adapter_sha256"] == whole.training["adapter_sha256"]


def test_long_texts_are_left_out_and_named(folder, tmp_path):
    rows = (folder / "pairs.csv").read_text().splitlines()
    long = f"{'never enough ' * 60},short,1"
    (tmp_path / "pairs.csv").write_text("\n".join([*rows[:41], long, *rows[41:]]) + "\n")
    recipe = recipe_of(folder, data={"train": str(tmp_path / "pairs.csv")}, max_steps=2, evaluations=1)
    heard: list[dict[str, Any]] = []
    run(recipe, out=tmp_path / "r", through="train", listener=heard.append)
    (told,) = [e for e in heard if e["kind"] == "warning" and e["code"] == "row_too_long"]
    assert told["count"] == 1 and "1 pair(s) have a text of more than 512 tokens" in told["text"]
    short = recipe_of(folder, max_steps=2, max_length=4)
    with pytest.raises(DataError, match=r"row_too_long: 50 pair\(s\) have a text of more than 4 tokens"):
        run(short, out=tmp_path / "s", through="train")


def test_what_cannot_be_is_told(folder, tmp_path):
    for through in ("baselines", "evaluate", "verdict"):
        with pytest.raises(RecipeError, match="pairs of texts have no answers to generate"):
            run(recipe_of(folder), out=tmp_path / through, through=through)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="cross_entropy learns tokens, and the rows are pairs"):
        run(recipe_of(folder, objective="cross_entropy"), out=tmp_path / "tokens", through="train")
    with pytest.raises(RecipeError, match=r"train.max_length: 4096 tokens are more than the base's context"):
        run(recipe_of(folder, max_length=4096), out=tmp_path / "long", through="train")
    (tmp_path / "bad.csv").write_text("left,right,apart\na,b,near\nc,d,1\n")
    with pytest.raises(DataError, match="'apart' is not a number: line 2, 'near'"):
        run(recipe_of(folder, data={"train": str(tmp_path / "bad.csv")}), out=tmp_path / "bad", through="train")
