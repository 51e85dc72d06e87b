"""A recipe in and out: what is written reads back equal, what is wrong is said all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.recipe import (
    InvalidRecipeError,
    Recipe,
    differences,
    dump_recipe,
    is_recipe_file,
    load_recipe,
    parse_recipe,
    recipe_hash,
    recipe_schema,
)
from tunesmith.recipe.yaml_text import dump_yaml, load_yaml

YAML_TRAPS = [
    *("yes", "no", "on", "Null", "~", "", "2e-4", "0x1F", "12:30", "017", "019", "1_000", "2024-01-01", "=", "<<"),
    *("a: b", "# c", " lead", "trail ", "it's", 'say "x"', '{a} → "{b}"', "- item", "ünïcode", "tab\there", "🙂"),
    *("a\nb", "a\n\n", "\n", "a\n\nb\n", "a\n  b", " a\nb ", "\na", "\x85", "\u2028", "a\x85b\nc", "\ufeffx"),
    *("&a", "*a", "!x", "%x", "@x", "`x`", "|", ">", "?", ".5", "1.", "+1", "TRUE", "true", "---", "..."),
]

# Control characters and surrogates cannot stand in YAML text at all.
WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30) | st.sampled_from(YAML_TRAPS)


def problems_of(data: dict[str, object]) -> dict[str, str]:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(data, "r.yaml")
    return {problem.key: str(problem) for problem in caught.value.problems}


@settings(max_examples=50, deadline=None)
@given(
    use_case=st.none() | WORDS,
    template=st.none() | WORDS,
    labels=st.just("auto") | st.lists(WORDS, unique=True, max_size=5),
    rate=st.just("auto") | st.floats(1e-9, 1.0),
    validation=st.floats(0, 0.4) | st.integers(1, 10_000),
    rank=st.integers(1, 512),
    max_steps=st.none() | st.integers(1, 10**9),
    baselines=st.lists(st.sampled_from(["zero_shot", "few_shot", "retrieval", "trivial"]), unique=True),
    target=st.none() | st.floats(0, 1),
)
def test_what_is_written_reads_back_equal(
    use_case, template, labels, rate, validation, rank, max_steps, baselines, target
):
    recipe = parse_recipe(
        {
            "goal": {"use_case": use_case, "target": target},
            "task": {"labels": labels},
            "data": {"train": "rows.csv", "template": template, "split": {"validation": validation}},
            "method": {"rank": rank},
            "train": {"learning_rate": rate, "max_steps": max_steps},
            "baselines": baselines,
        }
    )
    text = dump_recipe(recipe, {"train.learning_rate": "why: because\nof # this", "data": "rows"})
    assert parse_recipe(load_yaml(text)) == recipe
    # A reader of YAML 1.1 sees the same text values.
    old = yaml.safe_load(text)
    assert old["task"]["labels"] == labels
    assert old["goal"].get("use_case") == use_case


@pytest.mark.parametrize("word", YAML_TRAPS)
def test_a_word_stays_a_word(word):
    text = dump_yaml({"a": word, "b": [word, word], "c": {"d": word}})
    assert load_yaml(text) == {"a": word, "b": [word, word], "c": {"d": word}}


def test_yaml_reads_words_as_words_and_exponents_as_numbers():
    assert load_yaml("[yes, no, on, off, 12:30, 2024-01-01]") == ["yes", "no", "on", "off", "12:30", "2024-01-01"]
    assert load_yaml("[2e-4, 1e5, .5, 017, true, null, ~]") == [2e-4, 1e5, 0.5, 17, True, None, None]


def test_a_key_given_twice_is_refused(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("data: a.csv\ntrain:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(RecipeError, match=r"line 4.*'epochs' is given twice"):
        load_recipe(file)


def test_comments_stand_above_their_key():
    text = dump_yaml({"a": {"b": 1, "c": "x"}}, {"a": "section", "a.c": "one\ntwo"})
    assert text == "# section\na:\n  b: 1\n  # one\n  # two\n  c: x\n"


def test_resolved_recipes_leave_out_what_does_not_apply():
    recipe = parse_recipe({"data": "rows.csv"})
    assert "auto" not in dump_recipe(recipe, omit_auto=True).replace("omit_auto", "")
    assert parse_recipe(load_yaml(dump_recipe(recipe, omit_auto=True))) == recipe


def test_short_forms():
    recipe = parse_recipe({"data": "rows.csv", "base": "embedded:base", "method": "full", "task": "generation"})
    assert (recipe.data.train, recipe.base.model) == ("rows.csv", "embedded:base")
    assert (recipe.method.type, recipe.task.type) == ("full", "generation")
    assert parse_recipe({"data": "rows.csv", "baselines": []}).baselines == []


def test_a_section_whose_lines_are_all_commented_out_is_its_default():
    assert parse_recipe({"data": "rows.csv", "train": None, "verdict": {"prices": None}}) == parse_recipe(
        {"data": "rows.csv"}
    )


def test_all_problems_at_once_each_with_its_key():
    found = problems_of(
        {
            "data": {"train": 1, "columns": "x", "split": {"tests": 0.1}},
            "train": {"batch_size": "q", "lerning_rate": 1, "max_steps": 0},
            "task": {"labels": [1, True]},
            "method": 3,
            "baselines": ["zero-shot"],
            "base": {"dtype": "bfloat"},
            "learning_rate": 3,
        }
    )
    assert set(found) == {
        "data.train", "data.columns", "data.split.tests", "train.batch_size", "train.lerning_rate", "train.max_steps",
        "task.labels", "method", "baselines", "base.dtype", "learning_rate",
    }  # fmt: skip
    assert "integer, at least 1" in found["train.max_steps"]
    assert "integer | auto" in found["train.batch_size"]
    assert "auto | float32 | bfloat16 | float16; did you mean bfloat16?" in found["base.dtype"]
    assert "item 1, 'zero-shot', is not allowed" in found["baselines"]
    assert "did you mean zero_shot?" in found["baselines"]
    assert "put it in quotes" in found["task.labels"]


@pytest.mark.parametrize(
    ("data", "key", "nearest"),
    [
        ({"train": {"lerning_rate": 1}}, "train.lerning_rate", "train.learning_rate"),
        ({"learning_rate": 1}, "learning_rate", "train.learning_rate"),
        ({"methods": "lora"}, "methods", "method"),
        ({"train": {"rank": 8}}, "train.rank", "method.rank"),
        ({"evaluate": {"few-shot-k": [1]}}, "evaluate.few-shot-k", "evaluate.few_shot_k"),
        ({"verdict": {"prices": {"curency": "EUR"}}}, "verdict.prices.curency", "verdict.prices.currency"),
    ],
)
def test_unknown_keys_name_the_nearest_right_one(data, key, nearest):
    found = problems_of({"data": "rows.csv", **data})
    assert f"did you mean {nearest}?" in found[key]


def test_an_unknown_key_like_no_other_lists_what_there_is():
    assert (
        "expected one of prompt, second, answer"
        in problems_of({"data": {"train": "x", "columns": {"zzzz": 1}}})["data.columns.zzzz"]
    )


def test_missing_data_is_named():
    assert problems_of({})["data"].startswith("data: missing")
    assert problems_of({"data": {"format": "chat"}})["data.train"].startswith("data.train: missing")


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"train": {"batch_size": 0}}, "train.batch_size"),
        ({"train": {"learning_rate": -1e-3}}, "train.learning_rate"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
        ({"train": {"max_length": 1}}, "train.max_length"),
        ({"train": {"micro_batch_tokens": -5}}, "train.micro_batch_tokens"),
        ({"evaluate": {"max_new_tokens": 0}}, "evaluate.max_new_tokens"),
        ({"evaluate": {"few_shot_k": []}}, "evaluate.few_shot_k"),
        ({"evaluate": {"retrieval_k": [0, 1]}}, "evaluate.retrieval_k"),
        ({"method": {"alpha": 0}}, "method.alpha"),
        ({"method": {"target_modules": []}}, "method.target_modules"),
        ({"task": {"labels": ["a", "b", "a"]}}, "task.labels"),
        ({"baselines": ["trivial", "trivial"]}, "baselines"),
        ({"data": {"train": "x", "split": {"test": -1}}}, "data.split.test"),
        ({"data": {"train": "x", "split": {"test": 1.5}}}, "data.split.test"),
        ({"data": {"train": "x", "split": {"test": 0.6, "validation": 0.4}}}, "data.split"),
    ],
)
def test_values_that_make_no_sense_are_refused(data, key):
    assert list(problems_of({"data": "rows.csv", **data})) == [key]


def test_shares_of_given_files_do_not_count():
    split = {"test": 0.6, "validation": 0.5}
    recipe = parse_recipe({"data": {"train": "a", "test": "b", "split": split}})
    assert recipe.data.split.test == 0.6


def test_paths_in_a_file_count_from_its_folder_and_overrides_from_here(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    (folder / "bases" / "tiny").mkdir(parents=True)
    (folder / "r.yaml").write_text(
        "data:\n  train: rows.csv\n  test: ../test.csv\nbase: bases/tiny\noutput: {dir: out}\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("project/r.yaml")
    assert recipe.data.train == str(folder / "rows.csv")
    assert recipe.data.test == str(tmp_path / "test.csv")
    assert recipe.base.model == str(folder / "bases" / "tiny")
    assert recipe.output.dir == "out"
    over = load_recipe("project/r.yaml", ["data.train=other.csv", "base=embedded:base"])
    assert over.data.train == str(tmp_path / "other.csv")
    assert over.base.model == "embedded:base"
    assert over.data.test == recipe.data.test


def test_a_chat_template_is_a_file_or_a_name(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "mine.jinja").write_text("")
    for asked, meant in (("plain", "plain"), ("mine.jinja", str(tmp_path / "mine.jinja"))):
        (tmp_path / "r.yaml").write_text(f"data: rows.csv\nbase: {{chat_template: {asked}}}\n")
        assert load_recipe(tmp_path / "r.yaml").base.chat_template == meant


def test_hub_names_are_not_paths(tmp_path):
    (tmp_path / "r.yaml").write_text("data: rows.csv\nbase: org/name\n")
    assert load_recipe(tmp_path / "r.yaml").base.model == "org/name"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "a,b\n1,2\n", "tunesmith init"),
        ("r.yaml", "- a\n- b\n", "a mapping with at least"),
        ("r.yaml", "", "a mapping with at least"),
        ("r.yaml", "data: [1\n", "not valid YAML"),
        ("r.yaml", "data: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_files_that_are_not_recipes(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(tmp_path / name)
    assert caught.value.exit_code == 2


def test_missing_folder_and_wrong_encoding(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="folder"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("goal: für\ndata: x\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8 at byte 7"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfdata: x\n")
    assert load_recipe(tmp_path / "bom.yaml").data.train == str(tmp_path / "x")


def test_recipe_files_are_told_from_rows(tmp_path):
    (tmp_path / "r.json").write_text('{"data": "x.csv"}')
    (tmp_path / "rows.json").write_text('[{"prompt": "a", "completion": "b"}]')
    (tmp_path / "broken.json").write_text("{")
    assert is_recipe_file(Path("any.yaml")) and is_recipe_file(Path("any.YML"))
    assert is_recipe_file(tmp_path / "r.json")
    assert not is_recipe_file(tmp_path / "rows.json")
    assert not is_recipe_file(tmp_path / "broken.json")
    assert not is_recipe_file(Path("rows.csv")) and not is_recipe_file(Path("rows.jsonl"))
    assert load_recipe(tmp_path / "r.json").data.train == str(tmp_path / "x.csv")


def test_the_hash_covers_results_and_nothing_else():
    def recipe(**more: object) -> Recipe:
        return parse_recipe({"data": "rows.csv", **more})

    assert recipe_hash(recipe()) == recipe_hash(recipe(name="x", output={"dir": "elsewhere"}))
    assert recipe_hash(recipe()) == recipe_hash(recipe(data={"train": "rows.csv"}, method={"type": "lora"}))
    changed = recipe(train={"seed": 1})
    assert recipe_hash(recipe()) != recipe_hash(changed)
    assert differences(recipe(), changed) == [("train.seed", 0, 1)]
    assert differences(recipe(), recipe(name="x")) == []


def test_the_schema_knows_short_forms_and_refuses_unknown_keys():
    schema = recipe_schema()
    assert {"type": "string"} in schema["properties"]["method"]["anyOf"]
    assert {"type": "string"} in schema["properties"]["data"]["anyOf"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["data"]
    assert schema["$defs"]["Train"]["properties"]["max_steps"]["description"]


def test_from_yaml_is_the_same_door(tmp_path):
    (tmp_path / "r.yaml").write_text("data: rows.csv\n")
    assert Recipe.from_yaml(tmp_path / "r.yaml", ["method.rank=4"]).method.rank == 4


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ({"type": "full", "dropout": 0.1}, "dropout"),
        ({"type": "full", "target_modules": ["q_proj"]}, "target_modules"),
        ({"type": "bottleneck", "use_dora": True}, "use_dora"),
        ({"type": "peft", "peft_type": "VERA", "dropout": 0.1}, "dropout"),
        ({"type": "lora", "peft_type": "VERA"}, "peft_type"),
    ],
)
def test_settings_that_say_nothing_about_a_method_are_refused(method, key):
    with pytest.raises(InvalidRecipeError, match=f"method.{key}: has no meaning for method.type {method['type']}"):
        parse_recipe({"data": "rows.csv", "method": method})


def test_targets_and_dropout_are_for_the_methods_that_use_them():
    parse_recipe({"data": "a", "method": {"type": "peft", "peft_type": "VERA", "target_modules": ["q_proj"]}})
    parse_recipe({"data": "a", "method": {"type": "bottleneck", "dropout": 0.1}})


def test_settings_of_the_engine_that_contradict_each_other_are_all_named():
    problems = problems_of(
        {
            "data": "x.csv",
            "method": {"type": "qlora", "last_layers": 2},
            "train": {"cache_trunk": "on", "neftune_alpha": 5, "sharding": "fsdp"},
        }
    )
    assert "noise on embeddings would be lost" in problems["train.cache_trunk"]
    assert "quantised weights cannot be divided" in problems["train.sharding"]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_password_in_an_address_is_refused_and_not_shown(part: str) -> None:
    data = {"data": {"train": "rows.csv", part: "postgresql://me:s3cret@host/db#select text from reviews"}}
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(data)
    assert f"data.{part}" in str(caught.value) and "PGPASSWORD" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    for address in ("postgresql://me@host/db#select 'a:b@c'", "sqlite:///x.db#select a from t", "C:\\rows@home.csv"):
        assert parse_recipe({"data": {"train": address}}).data.train == address
