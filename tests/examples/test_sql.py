"""The two tutorial recipes, on a small base and some of their rows: each runs, and loads in plain `peft`."""

from __future__ import annotations

import json
import re
import runpy
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.models.load import load_base
from tunesmith.models.methods import load_tuned
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.recipe import load_recipe

RECIPES = ("tutorial-2024", "tutorial-2025")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, examples: Path) -> Path:
    """Both recipes beside a base of one layer, 64 training rows and 8 test rows."""
    folder: Path = tmp_path_factory.mktemp("sql")
    runpy.run_path(str(examples / "sql" / "make_base.py"))["save_base"](folder / "base", layers=1)
    for part, count in (("train", 64), ("test", 8)):
        rows = (examples / "sql" / f"{part}.jsonl").read_text().splitlines()[:count]
        (folder / f"{part}.jsonl").write_text("\n".join(rows) + "\n")
    for name in RECIPES:
        (folder / f"{name}.yaml").write_text((examples / "sql" / f"{name}.yaml").read_text())
    return folder


@pytest.fixture(scope="module", params=RECIPES)
def result(request, folder) -> Result:
    short = ["train.max_steps=12", "train.evaluations=2", "train.eval_rows=2", "evaluate.max_new_tokens=8"]
    few = ["baselines=[]", "evaluate.bootstrap=200", "evaluate.latency_rows=1"]
    recipe = load_recipe(folder / f"{request.param}.yaml", [*short, *few])
    return run(recipe, out=folder / request.param, through="evaluate")


def by_card(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer that the folder's README.md makes with plain `peft`, word for word."""
    text = (folder / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.S)
    assert found is not None and "tunesmith" not in found[1] and "resize_token_embeddings" in found[1]
    names: dict[str, Any] = {}
    exec(found[1].replace('"."', repr(str(folder))), names)
    return names["model"], names["tokenizer"]


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(ids).logits.double()  # type: ignore[no-any-return]


def test_it_is_what_the_tutorial_asks_for(result):
    recipe, config = result.recipe, json.loads((result.folder.adapter / "adapter_config.json").read_text())
    first = recipe.name == "sql-2024"
    assert (recipe.method.quantize, recipe.method.double_quantize) == ("nf4", True)
    assert (config["r"], config["lora_alpha"]) == ((256, 128) if first else (16, 16))
    assert config["lora_dropout"] == (0.05 if first else 0)
    assert sorted(config["target_modules"]) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip
    lines = (result.folder.path / "events.jsonl").read_text().splitlines()
    steps = [e for e in map(json.loads, lines) if e["kind"] == "train_step"]
    assert len(steps) >= 2 and {e["learning_rate"] for e in steps} == {2e-4}
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_its_proof_holds_and_it_is_scored(result):
    assert result.training is not None
    proof = result.training["proof"]
    assert proof["unmoved"] == [] and proof["probe_difference"] > 1e-3 and proof["reloaded_difference"] < 1e-5
    assert proof["trained"] == 2 * 7 + 2  # A and B of seven layers; embeddings and head
    assert result.comparison is not None and result.comparison.value("tuned").n == 8


def test_plain_peft_loads_it_on_the_grown_base(result):
    model, tokenizer = by_card(result.folder.adapter)
    ours = load_base(result.recipe.base)
    load_tuned(ours, result.folder.adapter)
    assert len(tokenizer) == len(ours.tokenizer) == model.get_input_embeddings().weight.shape[0]
    turns = [{"role": "system", "content": "CREATE TABLE a (b TEXT)"}, {"role": "user", "content": "How many?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nCREATE") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    assert {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>")} <= set(ids[0].tolist())
    theirs, expected = logits(model, ids), logits(ours.model, ids)
    assert float((theirs - expected).norm() / expected.norm()) < 1e-5


def test_merged_it_holds_the_weights_that_were_trained_on(result, tmp_path):
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(result.export("merged", tmp_path / "merged").path)
    ids = torch.arange(3, 40)[None]
    expected = logits(result.model.engine.model, ids)
    assert float((logits(merged, ids) - expected).norm() / expected.norm()) < 1e-5


def test_test_rows_ask_about_other_tables_and_every_query_runs(examples: Path):
    tables: dict[str, set[str]] = {}
    for part in ("train", "test"):
        rows = [json.loads(line) for line in (examples / "sql" / f"{part}.jsonl").read_text().splitlines()]
        assert len(rows) == {"train": 408, "test": 120}[part]  # as examples/README.md says
        assert len({row["messages"][1]["content"] for row in rows}) > 0.9 * len(rows)
        tables[part] = set()
        for row in rows:
            system, question, answer = (m["content"] for m in row["messages"])
            schema = system.splitlines()[-1]
            with sqlite3.connect(":memory:") as database:
                database.execute(schema)
                database.execute(answer)
            tables[part].add(schema.split()[2])
            assert question[0].isupper() and question[-1] in "?."
    assert not tables["train"] & tables["test"] and len(tables["test"]) >= 3


def test_the_rows_are_those_that_the_script_writes(examples: Path):
    script = runpy.run_path(str(examples / "sql" / "make_rows.py"))
    for part in ("train", "test"):
        written = (examples / "sql" / f"{part}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in written] == script["rows"](script[part.upper()])
