"""Rows of two texts and a label: read, checked all at once, divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import by_code, jsonl, spec, write
from tests.tiny import byte_tokenizer
from tunesmith.data.pairs import Pair, PairResult, check_pairs, load_pairs, parse_label, split_pairs
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Split
from tunesmith.text.pairs import fitting_groups, pair_groups

COLUMNS = {"prompt": "a", "second": "b", "answer": "same"}


def load(path: Path, **keys: Any) -> PairResult:
    return load_pairs(spec(path, **{"columns": COLUMNS, **keys}), path)


def made(count: int, source: str = "train.csv") -> list[Pair]:
    return [Pair(f"{i:016x}", f"text {i}", f"other {i % 7} {i}", float(i % 2), i + 2, source) for i in range(count)]


def test_rows_become_pairs(tmp_path: Path) -> None:
    rows = [{"a": "red", "b": "crimson", "same": 0}, {"a": "red", "b": "blue", "same": True, "note": "x"}]
    result = load(jsonl(tmp_path, rows))
    assert [(p.first, p.second, p.label, p.line) for p in result.pairs] == [
        ("red", "crimson", 0.0, 1),
        ("red", "blue", 1.0, 2),
    ]
    assert result.findings == [] and result.rows == 2 and result.left_out == 0


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, 1.0), (0.25, 0.25), (True, 1.0), (False, 0.0), ("1", 1.0), (" -2.5 ", -2.5), ("True", 1.0), ("false", 0.0),
        ("1e-3", 0.001), ("nan", None), ("inf", None), (float("inf"), None), ("yes", None), ("0,5", None),
        ("1_0", None), (None, None), ([1], None), (10**400, None),
    ],
)  # fmt: skip
def test_labels(value: Any, label: float | None) -> None:
    assert parse_label(value) == label


def test_everything_wrong_is_named_at_once_with_its_lines(tmp_path: Path) -> None:
    rows = [
        {"a": "x", "b": "y", "same": 1},
        {"a": " ", "b": "y", "same": 0},
        {"a": "x", "b": "", "same": "maybe"},
        {"b": "y", "same": 1},
        {"a": "x", "b": "y", "same": ""},
        {"a": "x", "b": "z", "same": "no"},
        {"a": "", "b": "", "same": "nan"},
    ]
    result = load(jsonl(tmp_path, rows))
    assert [p.line for p in result.pairs] == [1] and result.left_out == 6
    lines = {(f.code, f.field): f.lines for f in result.findings}
    assert lines == {
        ("empty_prompt", "a"): (2, 7),
        ("empty_prompt", "b"): (3, 7),
        ("missing_column", "a"): (4,),
        ("empty_answer", "same"): (5,),
        ("label_not_number", "same"): (3, 6, 7),
    }
    bad = next(f for f in result.findings if f.code == "label_not_number")
    assert bad.severity == "error" and bad.count == 3
    assert "line 3, 'maybe'" in bad.message and "lines 3, 6, 7" in bad.message


def test_csv(tmp_path: Path) -> None:
    result = load(write(tmp_path, "rows.csv", "a,b,same\nred,crimson,false\nred,blue,1\nred,green,\n"))
    assert [p.label for p in result.pairs] == [0.0, 1.0]
    assert by_code(result.findings)["empty_answer"].lines == (4,)


@pytest.mark.parametrize("missing", ["prompt", "second", "answer"])
def test_a_column_that_the_recipe_does_not_name(tmp_path: Path, missing: str) -> None:
    path = jsonl(tmp_path, [{"a": "x", "b": "y", "same": 1}])
    columns = {k: v for k, v in COLUMNS.items() if k != missing}
    with pytest.raises(RecipeError, match=f"need a column for {missing}"):
        load(path, columns=columns)


def test_a_column_that_no_row_has_names_the_nearest(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"text_a": "x", "text_b": "y", "label": 1}])
    with pytest.raises(DataError, match=r"no row has 'text_c'.*\n.*text_a, text_b, label\n.*'text_b' meant"):
        load(path, columns={"prompt": "text_a", "second": "text_c", "answer": "label"})


@pytest.mark.parametrize("keys", [{"template": "{a} {same}"}, {"format": "chat"}, {"system": "Compare."}])
def test_pairs_and_something_else_contradict_each_other(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="contradict each other"):
        load(jsonl(tmp_path, [{"a": "x", "b": "y", "same": 1}]), **keys)


def test_one_column_twice(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="named twice"):
        load(jsonl(tmp_path, [{"a": "x", "same": 1}]), columns={"prompt": "a", "second": "a", "answer": "same"})


def test_ids_are_by_content_and_copies_are_told_apart(tmp_path: Path) -> None:
    row = {"a": "x", "b": "y", "same": 1}
    turned = {"a": "y", "b": "x", "same": 1}
    first = load(jsonl(tmp_path, [row, turned, {**row, "same": 0}]))
    ids = [p.id for p in first.pairs]
    assert ids[1] == f"{ids[0]}-2" and ids[2][:16] != ids[0]
    again = load(jsonl(tmp_path, [{**row, "same": 0}, row]))
    assert {p.id for p in again.pairs} == {ids[0], ids[2]}


def test_pairs_as_a_whole_are_checked(tmp_path: Path) -> None:
    rows = [{"a": f"t{i}", "b": f"u{i}", "same": i % 2} for i in range(20)]
    rows += [{"a": "u3", "b": "t3", "same": 1}, {"a": "u4", "b": "t4", "same": 1}]
    found = by_code(check_pairs(load(jsonl(tmp_path, rows)).pairs))
    assert found["duplicate_row"].lines == (4, 21)
    assert found["conflicting_answers"].lines == (5, 22)
    assert "too_few_rows" in found


def test_splits_keep_the_same_two_texts_together_and_stratify_few_labels() -> None:
    rows = made(60)
    turned = [Pair(f"{p.id}-2", p.second, p.first, p.label, p.line + 100, p.source) for p in rows[:20]]
    splits = split_pairs([*rows, *turned], None, None, Split(validation=0.2, test=0.2))
    parts = [splits.train, splits.validation, splits.test]
    assert sum(map(len, parts)) == 80 and all(parts)
    texts = [{frozenset((p.first, p.second)) for p in part} for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert all({p.label for p in part} == {0.0, 1.0} for part in parts)
    assert set(splits.hashes) == {"train", "validation", "test"}


def test_files_of_ones_own_are_used_whole() -> None:
    test = made(5, "test.csv")  # the same ids as in the training file: told apart by the file
    splits = split_pairs(made(20), None, test, Split(validation=4))
    assert splits.test == tuple(test) and len(splits.validation) == 4
    assert {p.source for p in splits.train} == {"train.csv"}


def test_a_scale_of_labels_is_divided_at_random() -> None:
    rows = [Pair(str(i), f"a{i}", f"b{i}", i / 40, i, "f") for i in range(40)]
    assert len(split_pairs(rows, None, None, Split(test=10, validation=5)).test) == 10


def test_rendering_is_plain_text_with_the_pairs_label_and_id() -> None:
    tokenizer = byte_tokenizer()
    groups = pair_groups(tokenizer, made(3))
    assert [g.label for g in groups] == [0.0, 1.0, 0.0]
    assert [g.example_id for g in groups] == [p.id for p in made(3)]
    assert all(len(g.samples) == 2 and g.supervised == 0 for g in groups)
    assert tokenizer.decode(groups[1].samples[1].ids) == "other 1 1"
    assert list(groups[0].samples[0].ids) == tokenizer("text 0")["input_ids"]


def test_rendering_keeps_the_special_tokens_of_the_tokenizer() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 256)])
    assert pair_groups(tokenizer, made(1))[0].samples[0].ids[0] == 256


def test_a_text_of_no_token_is_named() -> None:
    rows = [*made(2, "rows.csv"), Pair("x", "", "b", 1.0, 9, "rows.csv")]
    with pytest.raises(DataError, match=r"rows\.csv, lines 9: .*no token"):
        pair_groups(byte_tokenizer(), rows)


def test_long_pairs_are_left_out_never_cut() -> None:
    rows = [Pair("1", "abc", "abcdefgh", 1.0, 1, "f"), Pair("2", "abc", "abcd", 0.0, 2, "f")]
    assert [g.example_id for g in fitting_groups(pair_groups(byte_tokenizer(), rows), 4)] == ["2"]
