"""`auto` becomes a value with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tunesmith.recipe import Facts, dump_recipe, parse_recipe, resolve, settings
from tunesmith.recipe.yaml_text import load_yaml

FACTS = Facts(
    task_type="classification",
    answer_form=None,
    labels=("a", "b"),
    train_rows=320,
    validation_rows=40,
    parameters=7_000_000,
    context=1024,
    longest_row_tokens=180,
    mean_row_tokens=40.0,
    longest_answer_tokens=5,
    device="cpu",
    bf16_supported=False,
    has_chat_template=False,
    metric_default="accuracy",
    data_format="columns",
    encoding="utf-8",
)


def resolved(facts: Facts = FACTS, **data: object):
    return resolve(parse_recipe({"data": "rows.csv", **data}), facts)


def test_nothing_stays_auto_that_applies():
    recipe, choices = resolved()
    text = load_yaml(dump_recipe(recipe))
    assert text["task"].pop("answer_form") == "auto"  # not an extraction
    engine = (
        "precision",
        "recompute",
        "cache_trunk",
        "micro_batch_tokens",
        "memory_limit",
        "cuda_graphs",
        "compile",
    )  # settled by who has a base
    assert [text["train"].pop(name) for name in engine] == ["auto"] * len(engine)
    assert "auto" not in str(text)
    decided = {s.key for s in settings() if s.default == "auto"} - {"task.answer_form"}
    assert {c.key for c in choices} == decided - {f"train.{name}" for name in engine}
    assert parse_recipe(load_yaml(dump_recipe(recipe, omit_auto=True))) == recipe


def test_choices_speak_plainly():
    _, choices = resolved()
    told = {c.key: str(c) for c in choices}
    assert told["train.learning_rate"] == "train.learning_rate 2e-3: LoRA on a base under 50 M parameters"
    assert told["method.alpha"] == "method.alpha 32: twice the rank of 16"
    assert told["task.labels"] == "task.labels a, b: the 2 distinct answers in the data"


def test_what_was_set_is_kept():
    recipe, choices = resolved(train={"learning_rate": 0.5, "batch_size": 4}, method={"alpha": 7}, task="generation")
    assert (recipe.train.learning_rate, recipe.train.batch_size, recipe.method.alpha) == (0.5, 4, 7)
    assert not {"train.learning_rate", "train.batch_size", "method.alpha", "task.type"} & {c.key for c in choices}


@pytest.mark.parametrize(
    ("method", "parameters", "rate"),
    [
        ("lora", 49_999_999, 2e-3), ("lora", 50_000_000, 5e-4), ("lora", 299_000_000, 5e-4),
        ("lora", 500_000_000, 2e-4),
        ("lora", 1_000_000_000, 1e-4), ("lora", 70_000_000_000, 1e-4),
        ("full", 7_000_000, 5e-4), ("full", 100_000_000, 1e-4), ("full", 600_000_000, 2e-5),
        ("full", 8_000_000_000, 1e-5),
    ],
)  # fmt: skip
def test_learning_rate_by_method_and_size(method, parameters, rate):
    recipe, _ = resolved(replace(FACTS, parameters=parameters), method=method)
    assert recipe.train.learning_rate == rate


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("qlora", "LoRA on a base under 50 M parameters"),
        ("bottleneck", "adapters on a base under 50 M parameters"),
        ({"type": "peft", "peft_type": "IA3"}, "IA3 on a base under 50 M parameters"),
        ("full", "full tuning of a base under 50 M parameters"),
    ],
)
def test_every_method_has_a_learning_rate(method, reason):
    recipe, choices = resolved(method=method)
    assert recipe.train.learning_rate == (5e-4 if method == "full" else 2e-3)
    assert next(c.reason for c in choices if c.key == "train.learning_rate") == reason
    assert parse_recipe(load_yaml(dump_recipe(recipe, omit_auto=True))) == recipe


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"),
    [(3, 3, 20), (50, 8, 20), (150, 8, 15), (400, 8, 12), (900, 8, 8), (1_999, 8, 5), (2_000, 16, 3), (10_000, 16, 3),
     (10_001, 32, 3), (40_000, 32, 2), (100_000, 32, 1)],
)  # fmt: skip
def test_batch_size_and_epochs_by_rows(rows, batch, epochs):
    recipe, _ = resolved(replace(FACTS, train_rows=rows))
    assert (recipe.train.batch_size, recipe.train.epochs) == (batch, epochs)


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**7), st.integers(2, 10**6), st.integers(1, 10**5), st.integers(1, 10**5))
def test_every_data_set_gets_a_usable_recipe(rows, context, longest, answer):
    facts = replace(FACTS, train_rows=rows, context=context, longest_row_tokens=longest, longest_answer_tokens=answer)
    recipe, _ = resolve(parse_recipe({"data": "rows.csv"}), facts)
    assert parse_recipe(recipe.model_dump()) == recipe
    assert 1 <= recipe.evaluate.max_new_tokens <= max(1, context // 2)


def test_answers_get_room_to_end():
    assert resolved(replace(FACTS, longest_answer_tokens=100))[0].evaluate.max_new_tokens == 136  # 133 to the next 8
    assert resolved(replace(FACTS, longest_answer_tokens=900))[0].evaluate.max_new_tokens == 512


def test_device_and_template():
    gpu = replace(FACTS, device="cuda", bf16_supported=True, has_chat_template=True)
    recipe, _ = resolved(gpu)
    assert (recipe.base.dtype, recipe.base.chat_template) == ("bfloat16", "tokenizer")
    assert resolved(replace(gpu, bf16_supported=False))[0].base.dtype == "float32"
    assert resolved()[0].base.chat_template == "plain"


def test_extraction_and_generation():
    facts = replace(FACTS, task_type="extraction", answer_form="list", labels=(), metric_default="entity_f1")
    recipe, _ = resolved(facts)
    assert (recipe.task.answer_form, recipe.task.labels, recipe.goal.metric) == ("list", "auto", "entity_f1")
    assert recipe.data.split.method == "random"


def test_steps_in_the_reason_follow_the_batch_size_that_was_set():
    _, choices = resolved(train={"batch_size": 64})
    assert next(c for c in choices if c.key == "train.epochs").reason == "320 training rows, about 60 steps"
    _, choices = resolved(train={"max_steps": 5})
    assert "not used: max_steps is 5" in next(c for c in choices if c.key == "train.epochs").reason


def test_an_ordinal_task_gets_its_labels_in_order_and_stratified_parts():
    facts = replace(
        FACTS, task_type="ordinal", labels=("1", "2", "10"), metric_default="quadratic_kappa", task_reason="of stars"
    )
    recipe, choices = resolved(facts)
    assert recipe.task.labels == ["1", "2", "10"] and recipe.data.split.method == "stratified"
    reasons = {choice.key: choice.reason for choice in choices}
    assert reasons["task.type"] == "of stars" and reasons["task.labels"] == "the 3 numbers in the data, by size"
    given, choices = resolved(facts, task={"type": "ordinal", "labels": ["bad", "good"]})
    assert given.task.labels == ["bad", "good"] and "task.labels" not in {choice.key for choice in choices}


def test_the_task_has_a_reason_even_where_none_was_told():
    assert "from the expected answers" in {choice.reason for choice in resolved()[1]}
