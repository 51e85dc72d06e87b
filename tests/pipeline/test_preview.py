"""`data preview` shows what training learns: the very tokens and weights of its batches."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.pipeline.conftest import edit, tone_rows, write_csv
from tunesmith.errors import DataError
from tunesmith.pipeline.prepare import prepare, read_data, trainable_samples
from tunesmith.pipeline.preview import preview_data, preview_of
from tunesmith.pipeline.preview_page import render_preview, token_spans
from tunesmith.recipe import load_recipe
from tunesmith.training.batching import micro_batches


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


def recipe_of(project, *overrides):
    return load_recipe(project / "recipe.yaml", list(overrides))


@pytest.mark.parametrize("share", [False, True], ids=["alone", "shared prefixes"])
@pytest.mark.parametrize("overrides", [(), ("train.loss=all",), ("base.chat_template=raw",)], ids=str)
def test_it_agrees_with_the_training_batch_token_by_token(project, share, overrides):
    recipe = recipe_of(project, *overrides)
    prepared = prepare(recipe, read_data(recipe))
    samples = trainable_samples(prepared)
    shown = {row.preview.example_id: row.preview for row in preview_of(prepared, asked=recipe, rows=1_000).rows}
    assert len(shown) == len(samples) == 50
    seen = 0
    for batch in micro_batches(samples, 600, share_prefixes=share):
        # What a token counts in the loss is the sum over the documents that share it.
        weights = np.zeros(batch.tokens)
        for row, span in zip(batch.rows, batch.documents, strict=True):
            preview = shown[row.example_id]
            assert batch.ids[span].tolist() == list(preview.ids)
            np.add.at(weights, span.numpy(), [weight for _, weight in preview.tokens])
            assert "".join(text for text, _ in preview.tokens) == prepared.renderer.tokenizer.decode(preview.ids)
            seen += 1
        assert weights.tolist() == batch.weights.tolist()
        assert weights.sum() > 0
    assert seen == len(samples)


def test_what_is_said_of_the_rows(project):
    made = preview_data(recipe_of(project), rows=2)
    assert len(made.rows) == 2 and all(row.part == "train" and row.line > 1 for row in made.rows)
    assert (made.template, made.origin, made.loss) == ("plain", "fallback", "assistant")
    assert made.limit == 512 and not made.findings
    numbers = made.numbers.tokens
    assert numbers.rows == made.train_rows == made.looked_at == 50
    assert 0 < numbers.supervised_share < 0.5
    # 60 steps of 4 rows over 50 rows
    assert made.numbers.steps == 60 and made.numbers.epochs == pytest.approx(4.8)
    assert made.numbers.trained_tokens == round(4.8 * numbers.tokens)
    json.dumps(made.to_dict(), allow_nan=False)


def test_tools_are_shown_as_they_are_rendered_and_learnt(project):
    """The base has no place for tools in its template, so they are told in plain words."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Oslo"}'}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is day {n} wet?"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": f"{n} mm"},
                {"role": "assistant", "content": f"It has {n} mm."},
            ],
            "tools": [tool],
        }
        for n in range(60)
    ]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(project, f"data.train={project / 'rows.jsonl'}", "task=generation", "data.template=null")
    made = preview_data(recipe, rows=1)
    (row,) = made.rows
    assert row.tools.startswith("tools offered: 1, called: 1; rendered in plain words")
    text = "".join(text for text, _ in row.preview.tokens)
    learnt = "".join(text for text, weight in row.preview.tokens if weight)
    assert 'You may call these tools:\n{"name": "weather"' in text and "result of weather:" in text
    assert learnt.startswith('call weather {"in": "Oslo"}') and " mm." in learnt and "result" not in learnt
    assert row.tools in render_preview(made, "tools") and made.to_dict()["rows"][0]["tools"] == row.tools


def test_rows_by_id_and_by_line_of_any_part(project):
    recipe = recipe_of(project)
    splits = read_data(recipe).splits
    held = splits.test[0]
    (by_id,) = preview_data(recipe, wanted=[held.id]).rows
    (by_line,) = preview_data(recipe, wanted=[str(held.line)]).rows
    assert by_id == by_line
    assert (by_id.part, by_id.line, by_id.preview.example_id) == ("test", held.line, held.id)
    learnt = "".join(text for text, weight in by_id.preview.tokens if weight)
    assert learnt == held.expected + "</s>"
    with pytest.raises(DataError, match="no row 99999"):
        preview_data(recipe, wanted=["99999"])


def test_a_row_that_is_too_long_is_shown_with_what_is_lost(project):
    rows = tone_rows()
    write_csv(project / "rows.csv", [*rows, ("long " * 200, "cold"), ("longer " * 150, "warm")])
    recipe = recipe_of(project, "data.split.test=0", "data.split.validation=0")
    made = preview_data(recipe, rows=2)
    long = next(row.preview for row in made.rows if row.preview.cut is not None)
    assert long.cut == 512 and long.lost == long.supervised == len("cold</s>") - 3
    assert long.beyond == long.supervised  # the answer stands at the end
    assert made.numbers.tokens.too_long == 2 and made.numbers.tokens.lost == 10
    assert [finding.code for finding in made.findings] == ["row_too_long"]


def test_numbers_of_many_rows_are_scaled_from_some(project, monkeypatch):
    recipe = recipe_of(project)
    whole = preview_data(recipe).numbers.tokens
    for module in ("preview", "prepare"):
        monkeypatch.setattr(f"tunesmith.pipeline.{module}.LOOKED_AT", 10, raising=False)
    made = preview_data(recipe)
    assert made.looked_at == 10 and made.train_rows == 50
    assert made.numbers.tokens.rows == 50
    assert made.numbers.tokens.tokens == pytest.approx(whole.tokens, rel=0.1)


def test_a_template_that_ends_no_turn_is_a_loud_warning(project):
    (project / "open.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    recipe = recipe_of(project, f"base.chat_template={project / 'open.jinja'}")
    made = preview_data(recipe)
    assert made.origin == "file" and made.template == "open.jinja"
    assert [finding.code for finding in made.findings] == ["end_not_learnt"]
    page = render_preview(made, "x")
    assert "the model may never stop" in page and "warning:" in page


def test_the_page_is_complete_and_escapes_what_is_in_the_rows(project):
    write_csv(project / "rows.csv", [*tone_rows(), ("<script>alert(1)</script> & co", "cold")])
    recipe = recipe_of(project, "data.split.test=0", "data.split.validation=0")
    made = preview_data(recipe, wanted=["102"])
    page = render_preview(made, "a <b> title")
    assert "<script" not in page and "&lt;" in page and "a &lt;b&gt; title" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and "prefers-color-scheme: dark" in page
    assert page.count('class="t') > 60
    spans = token_spans(made.rows[0].preview)
    assert len(re.findall("<span", spans)) == len(made.rows[0].preview.tokens)
    assert 'class="t learnt special"' in spans  # the end of the turn is learnt
    assert "↵\n" in spans


def test_the_command_prints_loss_without_colours_and_writes_page_and_json(project, tunesmith):
    said = tunesmith("data", "preview", "recipe.yaml", "--rows", "1", "--html", "page.html")
    assert said.code == 0, said.err
    assert "⟦" in said.out and "‹</s>›⟧" in said.out
    assert "fallback" in said.out and "of them learnt" in said.out and "OpenAI gpt-4.1" in said.out
    assert (project / "page.html").read_text().startswith("<!doctype html>")
    found = tunesmith("data", "preview", "recipe.yaml", "--rows", "1", "--json").json
    assert found["template_origin"] == "fallback" and len(found["rows"]) == 1
    assert sum(token["weight"] for token in found["rows"][0]["tokens"]) == found["rows"][0]["supervised"]


def test_a_row_that_is_not_there_ends_with_the_code_for_data(project, tunesmith):
    edit(project, "name: tones", "name: other")
    said = tunesmith("data", "preview", "recipe.yaml", "--row", "nothing", "--json")
    assert said.code == 3 and "there is no row nothing" in said.error["what"]
