"""`--fix`: a cleaned copy and a log, and nothing changed that was not asked for."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import jsonl, plain_text, write
from tunesmith.data import EVERYTHING, infer_task
from tunesmith.data.examples import examples_from
from tunesmith.data.fixing import ALWAYS, ON_REQUEST, Fixed, fix_rows
from tunesmith.data.reading import read_rows
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Data


def fix(path: Path, *, task_type: str | None = None, also: Collection[str] = (), **keys: Any) -> Fixed:
    spec = Data.model_validate({"train": str(path), **keys})
    read = read_rows(path)
    result = examples_from(read, spec, str(path), learns=EVERYTHING)
    task = task_type or infer_task(result.examples)
    return fix_rows(path, read, result.examples, result.findings, task_type=task, also=also)


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pair(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def test_everything_that_needs_no_judgement(tmp_path: Path) -> None:
    good = [pair(plain_text(n), f"answer {n}", id=n, tags=["a"]) for n in range(5)]
    rows = [
        *good,
        pair("caf\u00c3\u00a9?", "yes\u200b indeed", id=5, tags=["\u00c3\u00bc"]),
        good[1],
        pair(f" {plain_text(2).upper()}", "ANSWER 2", id=6),
        pair("no answer", " "),
        pair("<b>html</b> bob@gmail.com", "-"),
    ]
    path = jsonl(tmp_path, rows)
    before = path.read_bytes()
    made = fix(path, task_type="generation")
    assert path.read_bytes() == before
    assert made.cleaned == tmp_path / "rows.cleaned.jsonl" and made.log == tmp_path / "rows.fixes.jsonl"
    assert rows_of(made.cleaned) == [*good, pair("café?", "yes indeed", id=5, tags=["ü"]), rows[9]]
    log = rows_of(made.log)
    assert [(c["row"], c["code"], c["action"]) for c in log] == [
        (6, "mojibake", "changed"), (6, "mojibake", "changed"), (6, "odd_characters", "changed"),
        (7, "duplicate_row", "dropped"), (8, "duplicate_normalised", "dropped"), (9, "empty_answer", "dropped"),
    ]  # fmt: skip
    assert log[0] == {"row": 6, "code": "mojibake", "action": "changed", "field": "prompt",
                      "before": "caf\u00c3\u00a9?", "after": "café?"}  # fmt: skip
    assert log[1]["field"] == "tags[0]"
    assert "copy of line 2" in log[3]["before"]
    assert (made.rows, made.dropped, made.changed) == (7, 3, 3)
    assert made.rows + made.dropped == len(rows)


def test_more_is_mended_where_it_is_asked_for(tmp_path: Path) -> None:
    near = " ".join(plain_text(n) for n in range(5))
    rows = [
        pair("<p>R&amp;D</p>", "mail bob@gmail.com"),
        pair("what?", "n/a"),
        pair(near, "first"),
        pair(f"{near}!", "first"),
        pair("key AKIAJ5Q2M7XK4W3P9RTZ", "ok"),
    ]
    path = jsonl(tmp_path, rows)
    made = fix(path, also=("html_remnants", "personal_email", "near_empty_answer", "near_duplicate"))
    assert rows_of(made.cleaned) == [pair("R&D\n", "mail [e-mail]"), rows[2], rows[4]]
    text = made.log.read_text()
    assert "bob@gmail.com" not in text and "nearly the same as line 3" in text
    assert made.by_code == {"html_remnants": 1, "personal_email": 1, "near_empty_answer": 1, "near_duplicate": 1}


def test_labels_take_their_usual_spelling(tmp_path: Path) -> None:
    rows = [(plain_text(n), ("card", "loan")[n % 2]) for n in range(20)] + [(plain_text(30), "Card"), ("Card", "loan ")]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    made = fix(path)
    assert made.cleaned.name == "rows.cleaned.csv"
    with made.cleaned.open(newline="", encoding="utf-8") as stream:
        again = [tuple(row) for row in csv.reader(stream)]
    assert again == [("text", "label"), *rows[:20], (plain_text(30), "card"), ("Card", "loan")]
    other = jsonl(tmp_path, [pair(text, label) for text, label in rows], "free.jsonl")
    assert "label_variants" not in fix(other, task_type="generation").by_code


def test_broken_lines_are_in_the_log(tmp_path: Path) -> None:
    lines = [json.dumps(pair(plain_text(n), str(n))) for n in range(3)]
    path = write(tmp_path, "rows.jsonl", "\n".join([lines[0], "{broken", lines[1], '"no object"', lines[2]]))
    made = fix(path)
    assert len(rows_of(made.cleaned)) == 3
    assert [(c["row"], c["action"]) for c in rows_of(made.log)] == [(2, "dropped"), (4, "dropped")]


def test_an_array_on_one_line_loses_nothing(tmp_path: Path) -> None:
    rows = [pair(plain_text(n), str(n)) for n in range(10)]
    path = write(tmp_path, "rows.json", json.dumps([*rows, rows[3], pair("", "x")]))
    made = fix(path)
    assert rows_of(made.cleaned) == rows
    assert sorted(c["code"] for c in rows_of(made.log)) == ["duplicate_row", "empty_prompt"]


def test_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "caf\u00c3\u00a9"}, {"role": "assistant", "content": "oui", "weight": 1}]
    path = jsonl(tmp_path, [{"messages": turns}])
    made = fix(path)
    assert rows_of(made.cleaned) == [{"messages": [{"role": "user", "content": "café"}, turns[1]]}]
    assert rows_of(made.log)[0]["field"] == "messages[0].content"


def test_rows_that_are_not_learnt_stay(tmp_path: Path) -> None:
    """A question alone, a bad answer: nothing is wrong with them."""
    rows = [{"prompt": plain_text(n), "completion": f"answer {n}", "label": n % 2 == 0} for n in range(6)]
    assert rows_of(fix(jsonl(tmp_path, rows)).cleaned) == rows


def test_clean_rows_are_copied_as_they_are(tmp_path: Path) -> None:
    rows = [pair(plain_text(n), str(n), deep={"a": [1, None, True, 2.5]}) for n in range(10)]
    made = fix(jsonl(tmp_path, rows))
    assert rows_of(made.cleaned) == rows and made.log.read_text() == "" and made.by_code == {}


@pytest.mark.parametrize("name", ["rows.cleaned.jsonl", "rows.fixes.jsonl"])
def test_nothing_is_ever_overwritten(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path, [pair("a", "b")])
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        fix(path)
    assert (tmp_path / name).read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"rows.jsonl", name}


def test_what_cannot_be_mended_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [pair("a", "b")])
    with pytest.raises(RecipeError, match="conflicting_answers cannot be mended"):
        fix(path, also=("conflicting_answers",))
    assert not set(ALWAYS) & set(ON_REQUEST)
