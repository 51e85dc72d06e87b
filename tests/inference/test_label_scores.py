"""Label scoring: the probabilities are those of one plain pass per label, whatever is shared and batched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.test_torch_engine import engine, prompts
from tests.tiny import FAMILIES, build, byte_tokenizer
from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference import label_scores, torch_engine
from tunesmith.inference.label_scores import answer_tree, answer_trees
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.text.render import Renderer

LABELS = ("card", "card lost", "card_lost", "c", "über", "warm and cold", "warm")


def reference(made: TorchEngine, prompt: list[Message], text: str) -> float:
    """One label in one forward pass, the end token included."""
    before = made.renderer.prompt_ids(prompt)
    said = [*made.renderer.tokenizer.encode(text, add_special_tokens=False), 256]
    with torch.inference_mode():
        logits = made.model(torch.tensor([before + said]), use_cache=False).logits[0].float().log_softmax(-1)
    return sum(float(logits[len(before) - 1 + i, token]) for i, token in enumerate(said))


@pytest.mark.parametrize("beginning", ["", "a long beginning that all of the prompts share: be kind"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_one_pass_per_label(family: str, beginning: str) -> None:
    made = engine(family)
    asked = prompts(beginning, (3, 40, 1, 17, 61, 8))
    found = list(made.score(asked, [LABELS] * len(asked)))
    for prompt, scores in zip(asked, found, strict=True):
        wanted = [reference(made, prompt, label) for label in LABELS]
        assert scores == pytest.approx(wanted, abs=1e-4)


def test_most_families_are_scored_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows shorter than the rows (Gemma's here) are the exception, and are found out."""
    plain: list[int] = []
    original = torch_engine.score_rows
    monkeypatch.setattr(torch_engine, "score_rows", lambda *a: plain.append(1) or original(*a))
    asked = prompts("", (30, 20, 10))
    counts = {}
    for family in FAMILIES:
        plain.clear()
        list(engine(family).score(asked, [LABELS] * 3))
        counts[family] = len(plain)
    assert counts == {"llama": 1, "qwen3": 1, "gemma": 1, "gpt2": 1, "gemma2": 3, "gemma3": 3}


def test_a_model_that_does_not_keep_to_the_mask_is_scored_row_by_row() -> None:
    model = build("llama")
    forward = model.forward

    def careless(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        mask = attention_mask if attention_mask is None or attention_mask.dim() == 2 else None
        return forward(*args, attention_mask=mask, **kwargs)

    model.forward = careless
    made = engine(model=model)
    asked = prompts("", (9, 5))
    for prompt, scores in zip(asked, made.score(asked, [LABELS] * 2), strict=True):
        assert list(scores) == pytest.approx([reference(made, prompt, label) for label in LABELS], abs=1e-4)


def test_labels_may_differ_from_row_to_row() -> None:
    made = engine()
    asked = prompts("", (9, 5, 30))
    several = [LABELS, ("yes", "no"), LABELS[2:]]
    for prompt, labels, scores in zip(asked, several, made.score(asked, several), strict=True):
        assert list(scores) == pytest.approx([reference(made, prompt, label) for label in labels], abs=1e-4)


@pytest.mark.parametrize("skip", [0, 1, 5, 6])
def test_continuing_gives_the_same_scores(skip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "_WINDOW_BATCHES", 1)
    asked = prompts("shared beginning of all these prompts", (3, 40, 1, 17, 61, 8))
    whole = list(engine(batch_size=2).score(asked, [LABELS] * 6))
    assert list(engine(batch_size=2).score(asked, [LABELS] * 6, skip=skip)) == whole[skip:]


def test_scoring_leaves_the_model_as_it_was() -> None:
    made = engine()
    made.model.train()
    before = {name: p.clone() for name, p in made.model.named_parameters()}
    list(made.score(prompts()[:2], [LABELS] * 2))
    assert made.model.training
    assert all(torch.equal(p, before[name]) for name, p in made.model.named_parameters())


def test_prompts_that_leave_no_room_are_refused() -> None:
    short = TorchEngine(build("llama"), Renderer(byte_tokenizer(), "raw"), context=20)
    with pytest.raises(EngineError, match="tokens together"):
        next(iter(short.score(prompts("", (10,)), [LABELS])))


def test_a_chat_template_writes_the_answer_as_it_is_learnt() -> None:
    """The tokens that are scored are those training learns, end of turn included."""
    renderer = Renderer(byte_tokenizer(), "plain")
    made = TorchEngine(build("qwen3"), renderer, context=512)
    prompt = [Message("user", "which?")]
    sample = renderer.sample([*prompt, Message("assistant", "warm")], loss="last")
    learnt = sample.ids[sample.weights > 0].tolist()
    ids = torch.tensor([sample.ids[: len(renderer.prompt_ids(prompt)) + len(learnt)].tolist()])
    with torch.inference_mode():
        steps = made.model(ids, use_cache=False).logits[0].log_softmax(-1)
    wanted = sum(float(steps[ids.shape[1] - len(learnt) - 1 + i, t]) for i, t in enumerate(learnt))
    assert next(iter(made.score([prompt], [("warm",)])))[0] == pytest.approx(wanted, abs=1e-4)
    assert learnt[-1] == 256


SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_a_tree_holds_every_answer_once(answers: list[list[int]]) -> None:
    tree = answer_tree(answers)
    assert len(tree.tokens) == len({tuple(a[:n]) for a in answers for n in range(1, len(a))})
    for answer, path in zip(answers, tree.paths, strict=True):
        assert [tree.edges[edge][1] for edge in path] == answer
        for depth, edge in enumerate(path):
            node, spelled = tree.edges[edge][0], []
            while node:
                spelled.append(tree.tokens[node - 1])
                node = tree.parents[node - 1]
            assert spelled[::-1] == answer[:depth]
    sight = tree.sight()
    for node, depth in enumerate(tree.depths):
        assert int(sight[node].sum()) == depth + 1


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2"])
def test_half_precision_is_scored_in_one_pass_too(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: list[int] = []
    original = torch_engine.score_rows
    monkeypatch.setattr(torch_engine, "score_rows", lambda *a: plain.append(1) or original(*a))
    asked = prompts("a long beginning that all of the prompts share: be kind", (30, 20, 10))
    made = engine(family, model=build(family).bfloat16())
    found = list(made.score(asked, [LABELS] * 3))
    assert len(plain) == 1 and made._attends_behind
    wide = list(engine(family).score(asked, [LABELS] * 3))
    for scores, exact in zip(found, wide, strict=True):
        assert scores == pytest.approx(exact, rel=0.05)


def test_a_wrong_mask_is_seen_in_half_precision() -> None:
    model = build("llama").bfloat16()
    forward = model.forward
    model.forward = lambda *a, attention_mask=None, **k: forward(*a, **k)
    made = engine(model=model)
    ids = made.renderer.prompt_ids(prompts("", (30,))[0])
    said = tuple([*made.renderer.tokenizer.encode(label, add_special_tokens=False), 256] for label in LABELS)
    assert not made._tree_serves(ids, said)


def test_many_labels_are_laid_out_in_several_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each small enough for a pass; the scores and their order do not change."""
    labels = tuple(f"{kind}_{i}" for i in range(40) for kind in ("card", "transfer"))
    asked = prompts("a long beginning that all of the prompts share: be kind", (3, 20))
    whole = list(engine().score(asked, [labels] * 2))
    sizes: list[int] = []
    original = torch_engine.score_tree
    monkeypatch.setattr(torch_engine, "score_tree", lambda *a: sizes.append(len(a[4].tokens)) or original(*a))
    monkeypatch.setattr(label_scores, "_BYTES", 4 * 300 * 60)
    for scores, wanted in zip(engine().score(asked, [labels] * 2), whole, strict=True):
        assert len(scores) == 80 and scores == pytest.approx(wanted, abs=1e-4)
    assert len(sizes) > 4 and max(sizes[1:]) < 60


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, st.integers(1, 30))
def test_several_trees_hold_all_answers_in_order(answers: list[list[int]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_scores, "_BYTES", 4 * 10 * most)
        trees = answer_trees(answers, vocabulary=10)
    spelled = [[tree.edges[edge][1] for edge in path] for tree in trees for path in tree.paths]
    assert spelled == answers
    for tree in trees:
        nodes = len(tree.tokens) + 1
        assert len(tree.paths) == 1 or nodes * max(10, nodes) <= 10 * most


def test_labels_too_long_for_the_longest_prompt_are_refused_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_engine, "_WINDOW_BATCHES", 1)
    short = TorchEngine(build("llama"), Renderer(byte_tokenizer(), "raw"), context=60, batch_size=1)
    monkeypatch.setattr(short.model, "forward", None)
    with pytest.raises(EngineError, match="tokens together"):
        next(iter(short.score(prompts("", (3, 3, 50)), [LABELS] * 3)))
