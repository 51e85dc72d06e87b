"""A config of promptfoo as an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.cli.main import invoke
from tunesmith.data import load_examples
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import load_recipe
from tunesmith.service.moving.promptfoo import move_config

TESTS = "\n".join(
    f"""  - vars: {{country: Land {i}}}
    assert:
      - type: equals
        value: Town {i}
      - type: latency
        threshold: 2000"""
    for i in range(12)
)
CONFIG = f"""description: Capitals of lands
prompts:
  - "Capital of {{{{country}}}}?"
providers:
  - openai:gpt-4o-mini
  - id: anthropic:messages:some-model
tests:
{TESTS}
"""


def config(folder: Path, text: str = CONFIG, name: str = "promptfooconfig.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_config_is_a_recipe_that_can_be_measured(tmp_path: Path) -> None:
    moved = move_config(config(tmp_path), tmp_path / "out", "embedded:tiny")
    recipe = load_recipe(moved.recipe)
    assert moved.rows == 12 and moved.metrics == ("equals",) and recipe.goal.metric == "equals"
    assert recipe.name == "capitals-of-lands" and recipe.data.format == "promptfoo"
    examples = load_examples(recipe.data, recipe.data.train, task_type="generation").examples
    assert examples[0].expected == "Town 0" and "Capital of Land 0?" in str(examples[0].messages)
    assert recipe.data.train == str(tmp_path / "out" / "promptfooconfig.yaml"), "a copy beside the recipe"
    notes = " ".join(moved.notes)
    assert "latency (12 asserts): no metric" in notes
    assert "openai:gpt-4o-mini: to measure it beside" in notes and "anthropic:messages:some-model" in notes
    assert recipe.remotes == {}, "nothing that costs money is written unasked"


def test_tests_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "tests.csv").write_text("country,__expected\n" + "".join(f"Land {i},Town {i}\n" for i in range(12)))
    path = config(tmp_path, 'prompts: ["Capital of {{country}}?"]\ntests: file://tests.csv\n')
    moved = move_config(path, tmp_path / "out", "embedded:tiny")
    assert moved.rows == 12 and (tmp_path / "out" / "tests.csv").is_file()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n- b\n", "it has no tests"),
        ("prompts: [x]\n", "it has no tests"),
        ("tests: [\n", "this is no YAML"),
        ("tests: file://gone.csv\n", "there is no file of tests"),
        ("tests: ['file://a.csv', 'file://b.csv']\n", "spread over 2 places"),
        ("tests: file://*.csv\n", "there is no file of tests"),
        ("prompts: [x]\ntests:\n  - vars: {a: b}\n    assert: [{type: javascript, value: '1'}]\n", "none of its tests"),
    ],
)
def test_what_cannot_be_an_evaluation(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason.replace("*", ".")):
        move_config(config(tmp_path, text), tmp_path / "out", "embedded:tiny")
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_never_overwritten(tmp_path: Path) -> None:
    path = config(tmp_path)
    move_config(path, tmp_path / "out", "embedded:tiny")
    with pytest.raises(RecipeError, match="never overwritten"):
        move_config(path, tmp_path / "out", "embedded:tiny")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path)
    assert invoke(["import", "promptfoo", str(path), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "12 rows, by equals" in told and "next: tunesmith baselines" in told
    assert invoke(["import", "promptfoo", str(path), "--out", str(tmp_path / "out")]) == 2
