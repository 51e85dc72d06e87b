"""General text and general instructions: what is asked, what counts as followed, what perplexity is."""

from __future__ import annotations

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import build, byte_tokenizer
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.general import Instruction, follows, general_sets, perplexity


def test_the_sets_that_ship_are_small_varied_and_answerable() -> None:
    sets = general_sets()
    assert 6_000 < len(sets.text) < 10_000 and sets.text.count("\n\n") > 10
    skills = Counter(one.skill for one in sets.instructions)
    assert len(sets.instructions) == 40 and len(skills) >= 8 and min(skills.values()) >= 3
    assert len({one.prompt for one in sets.instructions}) == 40
    for one in sets.instructions:
        assert all(follows(answer, one) for answer in one.answers), one
        assert not follows("", one) and not follows("I do not know.", one)
        # Echoing the question is what a broken model does; only what is to be repeated stands in it.
        assert not follows(one.prompt, one) or one.skill == "repeat" or "Answer yes or no" in one.prompt, one
    assert sets.sha256 == general_sets().sha256


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("cold", True), (" Cold. \n", True), ('"COLD"', True), ("It is cold.", True), ("Cold, of course", True),
        ("\n\ncold\nand so on", True), ("colder", False), ("hot", False), ("not cold at all", False), ("", False),
    ],
)  # fmt: skip
def test_an_answer_is_followed_by_its_words(answer: str, right: bool) -> None:
    assert follows(answer, Instruction("What is the opposite of hot?", ("cold",))) is right


@pytest.mark.parametrize(
    ("answer", "right"), [("APPLE", True), (" APPLE \nmore", True), ("apple", False), ("APPLE.", False)]
)
def test_where_letters_and_marks_matter_they_must_be_those(answer: str, right: bool) -> None:
    assert follows(answer, Instruction("In capitals: apple", ("APPLE",), exact=True)) is right


def test_ones_own_sets(tmp_path) -> None:
    (tmp_path / "text.txt").write_text("A page of mine.")
    rows = [{"prompt": "say so", "completion": "so be it\nor not"}, {"prompt": "and", "completion": "or"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = general_sets(str(tmp_path / "text.txt"), str(tmp_path / "rows.jsonl"))
    assert sets.text == "A page of mine." and [one.prompt for one in sets.instructions] == ["say so", "and"]
    assert follows("So be it  or not", sets.instructions[0]) and sets.sha256 != general_sets().sha256
    with pytest.raises(RecipeError, match="cannot be read"):
        general_sets(text=str(tmp_path / "missing.txt"))
    (tmp_path / "text.txt").write_text(" \n")
    with pytest.raises(DataError, match="empty"):
        general_sets(text=str(tmp_path / "text.txt"))


def test_perplexity_is_that_of_its_definition() -> None:
    model, tokenizer, text = build("llama"), byte_tokenizer(), "A page of text that is told byte by byte. " * 12
    model.train()
    found, counted = perplexity(model, tokenizer, text, context=512)
    assert model.training, "the model is left as it was"
    model.eval()
    ids = torch.tensor(tokenizer(text)["input_ids"])
    surprise, tokens = 0.0, 0
    for window in ids.split(256):
        chances = model(window[None]).logits[0].log_softmax(-1).detach()
        surprise -= sum(float(chances[i, window[i + 1]]) for i in range(len(window) - 1))
        tokens += len(window) - 1
    assert counted == tokens
    assert found == pytest.approx(math.exp(surprise / tokens), rel=1e-4)


def test_a_model_that_gives_no_numbers_is_as_surprised_as_can_be() -> None:
    model = torch.nn.Linear(1, 1)
    model.forward = lambda input_ids, use_cache: SimpleNamespace(  # type: ignore[method-assign]
        logits=torch.full((1, input_ids.shape[1], 300), float("nan"))
    )
    assert perplexity(model, byte_tokenizer(), "some text", 64) == (math.exp(50), 8)
    assert perplexity(model, byte_tokenizer(), "", 64) == (math.exp(50), 0)
