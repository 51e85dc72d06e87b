"""New tokens: in tokenizer, embeddings and head, trained, saved, and there again when loaded by us and by `peft`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.peft_side import IDS, answers, difference, shake
from tests.tiny import build, byte_tokenizer, save_base
from tunesmith.errors import RecipeError, VerificationError
from tunesmith.models.adapter import load_adapter
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.methods import attach, load_tuned
from tunesmith.models.vocabulary import add_tokens
from tunesmith.recipe.schema import Base, Method

TOKENS = ["<|im_start|>", "<|im_end|>", "<sql>"]
KNOWN = len(byte_tokenizer())


def base_at(folder: Path, family: str = "llama", rows: int = KNOWN) -> LoadedBase:
    """A base whose embeddings have no spare row, unless `rows` says so."""
    if not folder.exists():
        build(family, vocabulary=max(rows, 258)).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return load_base(Base(model=str(folder), dtype="float32"))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_the_vocabulary_grows_and_old_answers_stay(family, tmp_path):
    base = base_at(tmp_path / "base", family)
    before = answers(base.model)
    tied = base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight
    assert tied == (family != "qwen3")
    added = add_tokens(base, TOKENS)
    assert added.tokens == tuple(TOKENS) and added.ids == (KNOWN, KNOWN + 1, KNOWN + 2)
    assert (added.rows_before, added.rows, added.grown) == (KNOWN, KNOWN + 3, True)
    assert base.model.config.vocab_size == KNOWN + 3
    ends = [base.model.get_input_embeddings().weight, base.model.get_output_embeddings().weight]
    assert (ends[0] is ends[1]) == tied
    for weight in ends:
        assert weight.shape[0] == KNOWN + 3
        expected = weight[:KNOWN].double().mean(0).float().expand(3, -1)
        torch.testing.assert_close(weight[KNOWN:], expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(answers(base.model)[..., :KNOWN], before)
    ids = base.tokenizer("a<|im_start|>b<sql>").input_ids
    assert ids[1] == KNOWN and ids[3] == KNOWN + 2 and len(ids) == 4


def test_it_is_the_same_each_time_and_draws_nothing(tmp_path):
    state = torch.random.get_rng_state()
    weights = []
    for _ in range(2):
        base = base_at(tmp_path / "base")
        torch.random.set_rng_state(state)
        add_tokens(base, TOKENS)
        assert torch.equal(torch.random.get_rng_state(), state)
        weights.append(base.model.get_input_embeddings().weight.detach())
    assert torch.equal(*weights)


def test_spare_rows_are_used_first_and_known_tokens_stay(tmp_path):
    base = load_base(Base(model=str(save_base(tmp_path / "base")), dtype="float32"))
    known = len(base.tokenizer)
    added = add_tokens(base, ["a", *TOKENS])
    assert added.tokens == tuple(TOKENS) and added.ids == (known, known + 1, known + 2)
    assert added.rows == added.rows_before == 300 and not added.grown
    again = add_tokens(base, TOKENS)
    assert again.tokens == () and again.rows == 300


def test_special_tokens_are_left_out_of_decoded_text_and_others_not(tmp_path):
    base = base_at(tmp_path / "base")
    add_tokens(base, TOKENS, special=TOKENS[:2])
    ids = base.tokenizer("<|im_start|>x<sql>y<|im_end|>").input_ids
    assert base.tokenizer.decode(ids, skip_special_tokens=True) == "x<sql>y"


@pytest.mark.parametrize(("tokens", "words"), [([" "], "' ' is no token"), (["<a>", "<a>"], "'<a>' is given twice")])
def test_what_is_no_token_is_told(tokens, words, tmp_path):
    with pytest.raises(RecipeError, match=r"base\.add_tokens: " + re.escape(words)):
        add_tokens(base_at(tmp_path / "base"), tokens)


def run_card(folder: Path) -> tuple[Any, Any]:
    """Do what the folder's README.md says, word for word; returns model and tokenizer."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    names: dict[str, Any] = {}
    exec(code.replace('"."', repr(str(folder))), names)
    return names["model"], names["tokenizer"]


METHODS = {
    "lora": {},
    "with a head by name": {"modules_to_save": ["lm_head"]},
    "dora on the last layer": {"use_dora": True, "last_layers": 1},
    "pissa": {"init": "pissa"},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("rows", [KNOWN, 300])
def test_trained_saved_and_loaded_by_the_card_and_by_us(family, name, rows, tmp_path):
    base = base_at(tmp_path / "base", family, rows)
    added = add_tokens(base, TOKENS, special=TOKENS[:2])
    tuning = attach(base, Method(rank=4, alpha=8.0, **METHODS[name]), seed=1, added=added)
    tied = family == "llama"
    assert (base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight) == tied
    trained = tuning.trained()
    assert "model.embed_tokens.weight" in trained and ("lm_head.weight" in trained) != tied
    before = {n: p.detach().clone() for n, p in trained.items()}
    base.model(IDS.remainder(KNOWN)).logits.float().square().mean().backward()
    with torch.no_grad():
        for parameter in trained.values():
            parameter.sub_(parameter.grad, alpha=0.01)
    shake(base.model)
    assert all(not torch.equal(before[n], p) for n, p in trained.items())
    tuned = answers_to(base.model)
    tuning.save(tmp_path / "a", base)
    model, tokenizer = run_card(tmp_path / "a")
    assert difference(answers_to(model), tuned) < 1e-5
    assert tokenizer.get_vocab() == base.tokenizer.get_vocab()
    fresh = base_at(tmp_path / "base", family, rows)
    loaded = load_tuned(fresh, tmp_path / "a")
    assert loaded.kind == "lora" and difference(answers_to(fresh.model), tuned) < 1e-5
    text = "<|im_start|>x<sql>y<|im_end|>"
    assert fresh.tokenizer(text).input_ids == base.tokenizer(text).input_ids
    assert fresh.tokenizer.decode(fresh.tokenizer(text).input_ids, skip_special_tokens=True) == "x<sql>y"
    loaded.save(tmp_path / "b", fresh)
    for file in ("adapter_model.safetensors", "README.md", "tokenizer.json"):
        if file != "README.md" or name != "pissa":  # loaded, it is plain LoRA of twice the rank
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def answers_to(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS.remainder(KNOWN)).logits.double()


@pytest.mark.parametrize(
    "options",
    [
        {"type": "full"},
        {"type": "full", "last_layers": 1},
        {"type": "bottleneck"},
        {"type": "peft", "peft_type": "LOHA"},
    ],
)
def test_other_methods_keep_their_tokens_too(options, tmp_path):
    base = base_at(tmp_path / "base")
    added = add_tokens(base, TOKENS)
    tuning = attach(base, Method(bottleneck_size=8, **options), seed=1, added=added)
    assert any(p is base.model.get_input_embeddings().weight for p in tuning.trained().values())
    shake(base.model)
    tuned = answers_to(base.model)
    tuning.save(tmp_path / "a", base)
    fresh = base_at(tmp_path / "base")
    loaded = load_tuned(fresh, tmp_path / "a")
    assert loaded.kind == options["type"] and difference(answers_to(fresh.model), tuned) < 1e-6
    assert fresh.tokenizer.get_vocab() == base.tokenizer.get_vocab()


def saved_adapter(folder: Path, base: LoadedBase) -> Path:
    added = add_tokens(base, TOKENS)
    attach(base, Method(rank=4, alpha=8.0), seed=1, added=added).save(folder, base)
    return folder


def test_without_its_tokens_the_vocabulary_is_said_not_to_fit(tmp_path):
    folder = saved_adapter(tmp_path / "a", base_at(tmp_path / "base"))
    with pytest.raises(VerificationError, match=rf"\[{KNOWN + 3}, 32\], the base needs \[{KNOWN}, 32\]"):
        load_adapter(base_at(tmp_path / "base").model, folder)


def test_a_tokenizer_of_another_base_is_refused(tmp_path):
    folder = saved_adapter(tmp_path / "a", base_at(tmp_path / "base"))
    other = base_at(tmp_path / "base")
    other.tokenizer.add_tokens(["<other>"])
    with pytest.raises(VerificationError, match="'<other>' has another id there"):
        load_tuned(other, folder)


def test_a_tokenizer_beyond_the_embeddings_is_refused(tmp_path):
    base = base_at(tmp_path / "base")
    attach(base, Method(rank=4, alpha=8.0), seed=1).save(tmp_path / "a", base)
    base.tokenizer.add_tokens(TOKENS)
    base.tokenizer.save_pretrained(tmp_path / "a")
    with pytest.raises(VerificationError, match=rf"tokenizer has {KNOWN + 3} tokens, the model only {KNOWN}"):
        load_tuned(base_at(tmp_path / "base"), tmp_path / "a")


def test_an_adapter_for_the_head_cannot_stand_beside_a_trained_one(tmp_path):
    base = base_at(tmp_path / "base")
    added = add_tokens(base, TOKENS)
    with pytest.raises(RecipeError, match="'lm_head' cannot be adapted: it is trained in full"):
        attach(base, Method(rank=4, target_modules=["lm_head", "q_proj"]), seed=1, added=added)
