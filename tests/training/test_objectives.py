"""Built-in objectives equal plain computation with all logits, one document at a time, and not depend on grouping.

`float_means_double` lets both sides compute in float64 where architectures round inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from tests.tiny import VOCABULARY, build, byte_tokenizer, ragged_samples, save_base
from tunesmith.data.pairs import Pair
from tunesmith.errors import DataError, EngineError, RecipeError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.recipe.schema import Base, Train
from tunesmith.text.pairs import pair_groups
from tunesmith.text.types import Group, Sample
from tunesmith.training.batching import collate, micro_batches
from tunesmith.training.objectives import BuiltObjective, Objective
from tunesmith.training.objectives.contrastive import Distance, contrastive
from tunesmith.training.objectives.cross_entropy import cross_entropy
from tunesmith.training.objectives.distillation import distillation
from tunesmith.training.objectives.make import make_objective, refuse_other_rows
from tunesmith.training.objectives.neftune import noisy_embeddings
from tunesmith.training.objectives.pair_metrics import best_threshold, pair_distances, pair_metrics, spearman
from tunesmith.training.objectives.regularised import regularised_cross_entropy

Rows = Sequence[Sample | Group]


@pytest.fixture(autouse=True)
def float_means_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    softmax = F.softmax

    def double_softmax(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return softmax(x, dim, dtype=torch.float64 if dtype is torch.float32 else dtype)

    monkeypatch.setattr(F, "softmax", double_softmax)


def relative(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> float:
    """Relative L2 error; where the reference is nothing or zero ours must be exactly that."""
    if theirs is None or not theirs.any():
        return 0.0 if ours is None or not ours.any() else float("inf")
    assert ours is not None
    return float((ours - theirs).norm() / theirs.norm())


def shared_samples() -> list[Sample]:
    """Ragged documents, and three that begin alike, the beginning supervised too."""
    rng = np.random.default_rng(5)
    start = rng.integers(3, VOCABULARY, 24)
    rows = []
    for i, more in enumerate((3, 8, 5)):
        ids = np.concatenate([start, rng.integers(3, VOCABULARY, more)])
        weights = np.full(len(ids), 0.5 + i, np.float32)
        weights[0] = 0
        rows.append(Sample(ids, weights, f"shared {i}"))
    return [*ragged_samples(), *rows]


def mean(
    model: LanguageModel, objective: Objective, rows: Rows, budget: int = 10_000
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss per weight over all streams, and metrics per weight.

    Llama's and Qwen's norms round to fp32 whatever `float` means, so a beginning is shared only by the others.
    """
    share = model.model.config.model_type in ("gpt2", "gemma2")
    loss, weight = torch.zeros((), dtype=torch.float64), 0.0
    metrics: dict[str, float] = {}
    with model.packed():
        for batch in micro_batches(rows, budget, share_prefixes=share):
            said = objective(model, batch)
            loss = loss + said.loss
            weight += said.weight
            for name, value in said.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + float(value)
    return loss / weight, {name: value / weight for name, value in metrics.items()}


def document_logits(model: Any, sample: Sample) -> torch.Tensor:
    logits: torch.Tensor = model(torch.from_numpy(sample.ids)[None], use_cache=False).logits[0, :-1]
    return logits


def by_document(samples: Sequence[Sample], loss: Callable[[Sample, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Weighted mean of `loss(sample, targets [L - 1])` [L - 1]."""
    total: torch.Tensor = torch.zeros((), dtype=torch.float64)
    for s in samples:
        if len(s.ids) > 1:
            total = total + (loss(s, torch.from_numpy(s.ids[1:])) * torch.from_numpy(s.weights[1:])).sum()
    return total / sum(float(s.weights.sum()) for s in samples)


def same_gradients(model: Any, ours: torch.Tensor, reference: Any, theirs: torch.Tensor) -> None:
    assert relative(ours.detach(), theirs.detach()) <= 1e-9
    ours.backward()
    theirs.backward()
    others = dict(reference.named_parameters())
    errors = {name: relative(p.grad, others[name].grad) for name, p in model.named_parameters()}
    assert len(errors) > 10 and max(errors.values()) <= 1e-9, max(errors.items(), key=lambda item: item[1])


# --- the token loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_smoothing_and_z_loss_equal_the_plain_way(family: str, budget: int) -> None:
    model = build(family).double()
    reference = copy.deepcopy(model)
    rows = shared_samples()

    def plain(sample: Sample, targets: torch.Tensor) -> torch.Tensor:
        logits = document_logits(reference, sample)
        each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)
        return each + 0.01 * logits.logsumexp(-1) ** 2

    objective = regularised_cross_entropy(0.1, 0.01)
    ours, metrics = mean(LanguageModel(model), objective, rows, budget)
    same_gradients(model, ours, reference, by_document(rows, plain))
    with torch.no_grad():
        usual, _ = mean(LanguageModel(model), cross_entropy, rows)
    assert metrics["cross_entropy"] == pytest.approx(float(usual), rel=1e-9)


@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize(("student", "master"), [("gpt2", "llama"), ("gemma2", "gemma2"), ("llama", "gemma2")])
def test_distillation_equals_the_plain_way(student: str, master: str, budget: int) -> None:
    model, teacher = build(student).double(), build(master, seed=3).double()
    reference = copy.deepcopy(model)
    rows = shared_samples()
    share, t = 0.7, 2.0

    def plain(sample: Sample, targets: torch.Tensor) -> torch.Tensor:
        logits = document_logits(reference, sample)
        with torch.no_grad():
            wanted = F.softmax(document_logits(teacher, sample) / t, -1)
        kl = (wanted * (wanted.log() - F.log_softmax(logits / t, -1))).sum(-1)
        return (1 - share) * F.cross_entropy(logits, targets, reduction="none") + share * t * t * kl

    objective = distillation(LanguageModel(teacher), weight=share, temperature=t)
    ours, metrics = mean(LanguageModel(model), objective, rows, budget)
    same_gradients(model, ours, reference, by_document(rows, plain))
    total = (1 - share) * metrics["cross_entropy"] + share * metrics["teacher_kl"]
    assert total == pytest.approx(float(ours.detach()), rel=1e-9)
    assert all(p.grad is None for p in teacher.parameters())


# --- pairs ---------------------------------------------------------------------------------------------------------


def pairs(count: int = 9, texts: Sequence[str] = ("a cat", "a dog", "the sea", "far over the sea")) -> list[Group]:
    """Labelled pairs of ragged texts, a length-1 one among them."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(count):
        first, second = (texts[int(rng.integers(len(texts)))] + " again" * int(rng.integers(3)) for _ in range(2))
        rows.append(Pair(str(i), "x" if i == 4 else first, second, float(rng.integers(2)), i, "rows.csv"))
    return pair_groups(byte_tokenizer(), rows)


def plain_pooled(model: Any, sample: Sample) -> torch.Tensor:
    pooled: torch.Tensor = model.base_model(torch.from_numpy(sample.ids)[None], use_cache=False).last_hidden_state[0]
    return pooled.mean(0)


@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_contrastive_equals_the_plain_way(distance: Distance, budget: int) -> None:
    model = build("gpt2").double()
    reference = copy.deepcopy(model)
    groups = pairs()
    margin = {"euclidean": 6.0, "cosine": 0.3}[distance]
    ours, metrics = mean(LanguageModel(model), contrastive(margin, distance), groups, budget)
    total, lengths = torch.zeros((), dtype=torch.float64), []
    for group in groups:
        a, b = (plain_pooled(reference, s) for s in group.samples)
        d = 1 - (a @ b) / (a.norm() * b.norm()) if distance == "cosine" else (a - b + 1e-6).norm()
        lengths.append(float(d.detach()))
        y = group.label
        assert y is not None
        total = total + (1 - y) * d**2 + y * torch.relu(margin - d) ** 2
    theirs = total / len(groups)
    assert {g.label for g in groups} == {0.0, 1.0}
    assert any(0 < n < margin for n in lengths)
    assert relative(ours.detach(), theirs.detach()) <= 1e-9
    assert metrics["distance"] == pytest.approx(np.mean(lengths), rel=1e-6)
    ours.backward()
    theirs.backward()
    others = dict(reference.named_parameters())
    # A bias behind both texts cancels in their difference: its gradient is rounding only.
    names = [n for n, _ in model.named_parameters() if not (distance == "euclidean" and n.endswith("ln_f.bias"))]
    errors = {name: relative(model.get_parameter(name).grad, others[name].grad) for name in names}
    assert len(errors) > 10 and max(errors.values()) <= 1e-9, max(errors.items(), key=lambda item: item[1])


def test_a_pair_objective_refuses_rows_that_are_no_pairs() -> None:
    model = LanguageModel(build("gpt2"))
    with model.packed(), pytest.raises(DataError, match=r"data\.columns"):
        contrastive()(model, collate(ragged_samples()))


@pytest.mark.parametrize("count", [1, 2, 5, 12, 13])
def test_the_best_threshold_is_the_best_of_all(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        lengths, labels = rng.integers(0, 6, count) / 2, rng.integers(0, 2, count).astype(float)
        accuracy, threshold = best_threshold(lengths, labels)
        tried = [
            max(np.mean((lengths > t) == labels), np.mean((lengths <= t) == labels)) for t in np.arange(-1, 4, 0.25)
        ]
        assert accuracy == pytest.approx(max(tried))
        assert max(
            np.mean((lengths > threshold) == labels), np.mean((lengths <= threshold) == labels)
        ) == pytest.approx(accuracy)


def test_spearman_is_scipys_and_zero_where_nothing_varies() -> None:
    rng = np.random.default_rng(0)
    lengths, labels = rng.normal(size=30), rng.integers(0, 4, 30).astype(float)
    assert spearman(lengths, labels) == pytest.approx(spearmanr(lengths, labels).statistic)
    assert spearman(lengths, np.ones(30)) == 0.0
    assert spearman(lengths[:1], labels[:1]) == 0.0


def test_pair_metrics_of_a_model() -> None:
    model = LanguageModel(build("gpt2"))
    model.model.train()
    groups = pairs(20)
    lengths, labels = pair_distances(model, groups, token_budget=60)
    assert sorted(labels) == sorted(g.label or 0.0 for g in groups) and not model.model.training
    metrics = pair_metrics(model, groups, token_budget=60)
    assert metrics["pair_accuracy"] == best_threshold(lengths, labels)[0] >= 0.5
    assert metrics["spearman"] == pytest.approx(spearman(lengths, labels), abs=1e-6)
    graded = [Group(g.samples, label=i / 7, example_id=g.example_id) for i, g in enumerate(groups)]
    assert set(pair_metrics(model, graded)) == {"spearman"}
    assert pair_metrics(model, []) == {"spearman": 0.0}


def test_training_on_pairs_separates_them() -> None:
    torch.manual_seed(0)
    model = LanguageModel(build("gpt2"))
    near = [("a red apple", "one red apple"), ("the cold sea", "the cool sea"), ("to run fast", "to run quickly")]
    far = [("a red apple", "the cold sea"), ("the cool sea", "to run fast"), ("to run quickly", "one red apple")]
    rows = [Pair(f"{i}", a, b, y, i, "f") for y, part in ((0.0, near), (1.0, far)) for i, (a, b) in enumerate(part)]
    groups = pair_groups(byte_tokenizer(), rows)
    before = pair_metrics(model, groups)["spearman"]
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=3e-3)
    for _ in range(30):
        loss, _ = mean(model, contrastive(margin=4.0), groups)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = pair_metrics(model, groups)
    assert after["pair_accuracy"] == 1.0 and after["spearman"] > max(before, 0.8)


# --- NEFTune -------------------------------------------------------------------------------------------------------


def embeddings(model: LanguageModel, rows: Rows, alpha: float, step: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    """What leaves the embedding layer, by document, over streams of 30 tokens."""
    found: dict[str, torch.Tensor] = {}
    for batch in micro_batches(rows, 30, share_prefixes=False):
        with noisy_embeddings(model, batch, alpha, seed=seed, step=step):
            out = model.model.get_input_embeddings()(batch.ids[None])
        for row, places in zip(batch.rows, batch.documents, strict=True):
            found[row.example_id] = out[0, places].detach()
    return found


def test_noise_is_uniform_within_its_bounds_for_every_document() -> None:
    model = LanguageModel(build("llama"))
    model.model.train()
    rows = ragged_samples((2, 9, 30, 400), seed=3)
    clean, noisy = embeddings(model, rows, 0.0), embeddings(model, rows, 5.0)
    for row in rows:
        if row.supervised:
            noise = noisy[row.example_id] - clean[row.example_id]
            bound = 5.0 / (len(row.ids) * noise.shape[-1]) ** 0.5
            assert bound * 0.9 < float(noise.abs().max()) <= bound * 1.001
    wide = noisy["row 3"] - clean["row 3"]
    assert float(wide.std()) == pytest.approx(5.0 / (400 * 32) ** 0.5 / 3**0.5, rel=0.03)
    assert abs(float(wide.mean())) < 1e-3


def test_noise_follows_from_seed_step_and_document_alone() -> None:
    model = LanguageModel(build("llama"))
    model.model.train()
    rows = ragged_samples()
    state = torch.random.get_rng_state()
    first = embeddings(model, rows, 5.0, step=3)
    torch.rand(7)
    again = embeddings(model, list(reversed(rows))[:4], 5.0, step=3)
    assert again.keys() < first.keys() and all(torch.equal(first[name], again[name]) for name in again)
    torch.random.set_rng_state(state)
    for other in (embeddings(model, rows, 5.0, step=4), embeddings(model, rows, 5.0, step=3, seed=1)):
        assert not any(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_noise_is_for_training_only_and_leaves_nothing_behind() -> None:
    model = LanguageModel(build("llama").double())
    rows = ragged_samples()
    model.model.eval()
    quiet, _ = mean(model, cross_entropy, rows)
    batch = collate(rows, share_prefixes=False)
    with model.packed():
        with noisy_embeddings(model, batch, 5.0, seed=0, step=0):
            assert torch.equal(model.hidden(batch.ids, batch.packing), model.hidden(batch.ids, batch.packing))
            in_evaluation = cross_entropy(model, batch).loss
        model.model.train()
        with pytest.raises(ZeroDivisionError), noisy_embeddings(model, batch, 5.0, seed=0, step=0):
            noisy = cross_entropy(model, batch).loss
            raise ZeroDivisionError
        after = cross_entropy(model, batch).loss
    weight = sum(float(s.weights.sum()) for s in rows)
    assert float(in_evaluation.detach()) / weight == pytest.approx(float(quiet.detach()), rel=1e-12)
    assert float(after.detach()) == pytest.approx(float(in_evaluation.detach()), rel=1e-12)
    assert float(noisy.detach()) != pytest.approx(float(after.detach()), rel=1e-6)
    noisy.backward()
    assert model.model.get_input_embeddings().weight.grad.any()


def test_noise_refuses_shared_beginnings() -> None:
    model = LanguageModel(build("llama"))
    model.model.train()
    batch = collate(shared_samples(), share_prefixes=True)
    with pytest.raises(EngineError, match="share_prefixes"), noisy_embeddings(model, batch, 5.0, seed=0, step=0):
        pass


# --- from the recipe -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return load_base(Base(model=str(save_base(tmp_path_factory.mktemp("base")))))


def make(base: LoadedBase, folder: Path | None = None, **train: Any) -> BuiltObjective:
    return make_objective(Train(**train), folder=folder or Path(), allow_code=False, base=base)


def test_names_and_what_they_need(base: LoadedBase) -> None:
    assert make(base).function is cross_entropy
    assert make(base).pairs is False and make(base).parameters() == {}
    pair = make(base, objective="contrastive", objective_options={"margin": 1, "distance": "cosine"})
    assert pair.pairs is True and pair.name == "contrastive"
    assert make(base, label_smoothing=0.1).function is not cross_entropy


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"objective": "contrastiv"}, "'contrastive' meant"),
        ({"objective": "loss.py"}, "names no function"),
        ({"objective": "loss.py:my loss"}, "names no function"),
        ({"objective": "loss.py:focal"}, "cannot name code"),
        ({"objective_options": {"margin": 1}}, "cross_entropy has no argument 'margin'"),
        ({"objective": "contrastive", "objective_options": {"margn": 1}}, r"'margn' \(is 'margin' meant"),
        ({"objective": "contrastive", "objective_options": {"margin": -1}}, "above 0"),
        ({"objective": "contrastive", "objective_options": {"margin": "big"}}, "above 0"),
        ({"objective": "contrastive", "objective_options": {"distance": "l1"}}, "euclidean or cosine"),
        ({"objective": "contrastive", "label_smoothing": 0.1, "z_loss": 1}, "label_smoothing, train.z_loss belong"),
        ({"objective": "contrastive", "distillation": {"teacher": "x"}}, "train.distillation belong"),
    ],
)
def test_what_does_not_fit_is_refused(base: LoadedBase, train: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(base, **train)


def test_rows_must_be_what_the_objective_compares(base: LoadedBase) -> None:
    tokens, compared = make(base), make(base, objective="contrastive")
    refuse_other_rows(tokens, pairs=False)
    refuse_other_rows(compared, pairs=True)
    with pytest.raises(RecipeError, match="cross_entropy learns tokens"):
        refuse_other_rows(tokens, pairs=True)
    with pytest.raises(RecipeError, match="contrastive compares pairs"):
        refuse_other_rows(compared, pairs=False)


def test_a_teacher_is_loaded_from_its_folder(base: LoadedBase, tmp_path: Path) -> None:
    save_base(tmp_path / "teacher", "qwen3", seed=5)
    settings = {"distillation": {"teacher": "teacher", "weight": 0.25, "temperature": 3.0}, "z_loss": 0.01}
    objective = make(base, tmp_path, **settings)
    model = LanguageModel(base.model)
    teacher = LanguageModel(load_base(Base(model=str(tmp_path / "teacher"))).model)
    with torch.no_grad():
        ours, _ = mean(model, objective, ragged_samples())
        theirs, _ = mean(model, distillation(teacher, weight=0.25, temperature=3.0, z_loss=0.01), ragged_samples())
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_a_teacher_may_be_a_run(base: LoadedBase, tmp_path: Path) -> None:
    from tunesmith.models.adapter import save_adapter
    from tunesmith.models.lora import LoraSettings, attach_lora
    from tunesmith.runs import RunFolder

    run = RunFolder.create_at(tmp_path / "run")
    folder = save_base(tmp_path / "base")
    run.recipe_file.write_text(f"data: rows.csv\nbase: {folder}\n")
    with pytest.raises(RecipeError, match="no tuned model yet"):
        make(base, tmp_path, distillation={"teacher": "run"})
    tuned = load_base(Base(model=str(folder)))
    attached = attach_lora(tuned.model, LoraSettings(4, 8), seed=0)
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.lora_B.normal_(std=0.3)
    save_adapter(run.adapter, attached, base=str(folder), revision=None, conv1d=False)
    model = LanguageModel(base.model)
    with torch.no_grad():
        _, ours = mean(model, make(base, tmp_path, distillation={"teacher": "run"}), ragged_samples())
        _, theirs = mean(model, distillation(LanguageModel(tuned.model)), ragged_samples())
    assert ours["teacher_kl"] == pytest.approx(theirs["teacher_kl"], rel=1e-6)
    assert ours["teacher_kl"] > 0.01


def test_a_teacher_with_other_tokens_is_refused(base: LoadedBase, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "teacher")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(RecipeError, match="1 tokens differ, such as '<think>'"):
        make(base, tmp_path, distillation={"teacher": "teacher"})


def test_a_teacher_whose_head_is_padded_further_compares_what_both_have(base: LoadedBase, tmp_path: Path) -> None:
    teacher = build("qwen3", seed=2, vocabulary=VOCABULARY + 20)
    teacher.save_pretrained(tmp_path / "teacher")
    byte_tokenizer().save_pretrained(tmp_path / "teacher")
    objective = make(base, tmp_path, distillation={"teacher": "teacher", "weight": 1.0})
    model, samples = LanguageModel(base.model), ragged_samples()
    known = 1 + max(base.tokenizer.get_vocab().values())
    assert known < VOCABULARY

    def plain(sample: Sample, targets: torch.Tensor) -> torch.Tensor:
        wanted = F.log_softmax(document_logits(teacher, sample)[:, :known], -1)
        ours = F.log_softmax(document_logits(base.model, sample)[:, :known], -1)
        return F.kl_div(ours, wanted, reduction="none", log_target=True).sum(-1)

    with torch.no_grad():
        ours, _ = mean(model, objective, samples)
        assert float(ours) == pytest.approx(float(by_document(samples, plain)), rel=1e-5)
