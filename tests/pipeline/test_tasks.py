"""Kinds of tasks through the whole pipeline: rows, baselines, a few steps, scores, verdict."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import Said, answers
from tunesmith.pipeline import load_run
from tunesmith.runs import RunFolder

pytestmark = pytest.mark.slow

RECIPE: dict[str, Any] = {
    "method": {"rank": 2},
    "train": {"max_steps": 2, "batch_size": 4, "evaluations": 1, "eval_rows": 2, "tensorboard": False},
    "evaluate": {"max_new_tokens": 4, "bootstrap": 200, "latency_rows": 1},
    "baselines": ["zero_shot", "trivial"],
}


def write(folder: Path, base: Path, rows: list[dict[str, Any]], task: dict[str, Any], **more: Any) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "asked", "answer": "said"}
    data = {"train": "rows.jsonl", "columns": columns, "split": {"test": 12, "validation": 6}}
    recipe = {"name": "task", "data": data, "base": str(base), "task": task, **RECIPE, **more}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))


def finished(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.err
    result: dict[str, Any] = said.json
    assert result["verdict"] is not None and {row["candidate"] for row in result["comparison"]} >= {
        "zero_shot",
        "tuned",
    }
    return result


def values(result: dict[str, Any], candidate: str) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in result["comparison"] if row["candidate"] == candidate}


def test_summaries_with_several_references(project, base, tunesmith) -> None:
    texts = [f"Item {i} was sold today. It was blue. Nobody saw it go." for i in range(40)]
    rows = [{"asked": text, "said": [f"Item {i} was sold", f"Sale of {i}"]} for i, text in enumerate(texts)]
    write(project, base, rows, {"type": "summarisation"})
    result = finished(tunesmith("run", "recipe.yaml", "--json"))
    assert set(values(result, "tuned")) == {"rouge_l", "rouge_1", "rouge_2", "length_ratio", "copied_share"}
    lead = values(result, "trivial_lead_k")
    assert lead["rouge_l"] == pytest.approx(8 / 9) and lead["copied_share"] == 1.0
    row = answers(Path(result["run"]), "trivial_lead_k")[0]
    assert json.loads(row["expected"])[0].startswith("Item") and row["parsed"]["copied"] == 1.0


def test_sums_by_their_final_answer_and_a_business_metric_that_decides(project, base, tunesmith) -> None:
    pairs = [(a, b) for a in range(3, 13) for b in range(4)]
    rows = [{"asked": f"{a} apples and {b} more: how many?", "said": f"{a} + {b}\n#### {a + b}"} for a, b in pairs]
    own = {"loss": {"formula": "-abs(float(answer) - float(expected))", "worst": -20, "best": 0}}
    write(project, base, rows, {"type": "maths", "metrics": own}, goal={"metric": "loss"})
    result = finished(tunesmith("run", "recipe.yaml", "--json"))
    assert result["verdict"]["metric"] == "loss"
    assert values(result, "trivial_arithmetic") == {"accuracy": 1.0, "loss": 1.0}
    assert load_run(RunFolder.open(Path(result["run"]))).model.task.metrics["loss"].name == "loss"


def test_queries_on_a_database_beside_the_recipe(project, base, tunesmith) -> None:
    with sqlite3.connect(project / "shop.sqlite") as connection:
        connection.executescript("CREATE TABLE item (n INTEGER); INSERT INTO item VALUES (1), (2), (3);")
    connection.close()
    rows = [
        {"asked": f"items over {i / 7:.2f}?", "said": f"SELECT n FROM item WHERE n > {i / 7:.2f}"} for i in range(40)
    ]
    write(project, base, rows, {"type": "text_to_sql", "database": "shop.sqlite"})
    result = finished(tunesmith("run", "recipe.yaml", "--json"))
    assert result["verdict"]["metric"] == "execution_accuracy"
    nearest = values(result, "trivial_nearest")
    assert nearest["valid_sql"] == 1.0 and nearest["execution_accuracy"] > nearest["exact_match"]
    edited = (project / "recipe.yaml").read_text().replace("shop.sqlite", "none.sqlite")
    (project / "recipe.yaml").write_text(edited)
    said = tunesmith("check", "recipe.yaml", "--json")
    assert said.code != 0 and "no such file" in said.out
