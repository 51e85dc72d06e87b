"""A recipe that names no task: what the rows are taken for, why, and that everything after it works."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.pipeline.conftest import QUICK
from tunesmith.recipe import load_recipe

RECIPE = """\
name: recognised
data: {{train: {file}, split: {{test: 30, validation: 15}}}}
base: {base}
baselines: [trivial]
evaluate: {{selection_rows: 8, latency_rows: 1, bootstrap: 200}}
"""


def measured(tunesmith: Any, project: Path, base: Path, file: str, **keys: str) -> tuple[dict[str, Any], Path]:
    """The trivial baselines on a file; values of the deciding metric by candidate, and the run."""
    text = RECIPE.format(base=base, file=file) + "".join(f"{key}: {value}\n" for key, value in keys.items())
    (project / "recipe.yaml").write_text(text)
    said = tunesmith("baselines", "recipe.yaml", "--json", *QUICK)
    assert said.code == 0, said
    run = Path(said.json["run"])
    metric = load_recipe(run / "recipe.yaml").goal.metric
    return {row["candidate"]: row["value"] for row in said.json["comparison"] if row["metric"] == metric}, run


def test_stars_are_an_ordinal_task_in_their_order(project: Path, base: Path, tunesmith: Any) -> None:
    said = ("bad", "poor", "fine", "good", "best")
    rows = [f"the {said[i % 5]} place {i},{1 + i % 5}" for i in range(120)]
    (project / "stars.csv").write_text("review,stars\n" + "\n".join(rows) + "\n")
    values, run = measured(tunesmith, project, base, "stars.csv")
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe.task.type == "ordinal" and recipe.task.labels == ["1", "2", "3", "4", "5"]
    assert recipe.data.split.method == "stratified" and recipe.goal.metric == "quadratic_kappa"
    assert "numbers 1 to 5 of the column stars" in (run / "recipe.yaml").read_text()
    assert set(values) == {f"trivial_{name}" for name in ("majority", "median", "knn", "tfidf_lr")}
    assert values["trivial_tfidf_lr"] > 0.9 > values["trivial_median"]
    expected = [json.loads(line)["expected"] for line in (run / "evaluation" / "trivial_knn.jsonl").open()]
    assert sorted(expected) == sorted("12345" * 6)


def test_questions_on_passages_with_several_answers_and_none(project: Path, base: Path, tunesmith: Any) -> None:
    draw = random.Random(0)
    rows = []
    for i in range(90):
        syllables = ["".join(draw.choices("abdeiklmnorstu", k=6)) for _ in range(12)]
        name, place = syllables[0].title(), syllables[1]
        texts = [] if i % 3 == 0 else [name, f"old {name}"] if i % 3 == 1 else [name]
        context = f"{' '.join(syllables[2:7])}. The {place} was built by old {name}. {' '.join(syllables[7:])}."
        rows.append({"context": context, "question": f"Who built the {place}?", "answers": {"text": texts}})
    (project / "squad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values, run = measured(tunesmith, project, base, "squad.jsonl")
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe.task.type == "question_answering" and recipe.data.format == "squad"
    assert "as SQuAD's" in (run / "recipe.yaml").read_text()
    kept = [json.loads(line) for line in (run / "evaluation" / "trivial_sentence.jsonl").open()]
    expected = [row["expected"] for row in kept]
    assert len(expected) == 30 and "[]" in expected
    several = [text for text in expected if text.startswith('["')]
    assert several and any(text[0].isupper() for text in expected)
    # The sentence with the answer shares a few words with it; where there is no answer, any sentence is wrong.
    assert all(row["scores"]["token_f1"] == 0 for row in kept if row["expected"] == "[]")
    assert 0 < values["trivial_sentence"] < 0.5


def test_queries_need_a_database_to_be_run(project: Path, base: Path, tunesmith: Any) -> None:
    rows = [
        {"question": f"How many of kind {i}?", "query": f"SELECT COUNT(*) FROM item WHERE n = {i}"} for i in range(70)
    ]
    (project / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "{train: queries.jsonl, split: {test: 20, validation: 10}, columns: {prompt: question, answer: query}}"
    text = RECIPE.format(base=base, file="x").replace("{train: x, split: {test: 30, validation: 15}}", data)
    (project / "recipe.yaml").write_text(text)
    said = tunesmith("baselines", "recipe.yaml", "--json", *QUICK)
    assert said.code == 0, said
    kept = (Path(said.json["run"]) / "recipe.yaml").read_text()
    assert load_recipe(Path(said.json["run"]) / "recipe.yaml").task.type == "generation"
    assert "task.database" in kept
