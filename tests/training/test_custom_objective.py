"""Losses of the user's own: loaded, understood by their parameters' names, exact, and told where they are wrong."""

from __future__ import annotations

import copy
import re
import runpy
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import VOCABULARY, build, byte_tokenizer, ragged_samples, save_base
from tunesmith.data import check_examples, load_examples
from tunesmith.data.pairs import Pair
from tunesmith.errors import RecipeError, VerificationError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.ops import token_loss
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Base, Train
from tunesmith.text.pairs import pair_groups
from tunesmith.text.render import Renderer
from tunesmith.text.types import Group, Sample
from tunesmith.training.batching import collate, micro_batches
from tunesmith.training.objectives import BuiltObjective, Objective
from tunesmith.training.objectives.contrastive import contrastive
from tunesmith.training.objectives.cross_entropy import cross_entropy
from tunesmith.training.objectives.make import make_objective
from tunesmith.training.objectives.regularised import regularised_cross_entropy

IMPORTS = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
TEXTBOOK = '''
class ContrastiveLoss(torch.nn.Module):
    """
    Contrastive loss function.
    """

    def __init__(self, margin=2.0):
        super(ContrastiveLoss, self).__init__()
        self.margin = margin

    def forward(self, output1, output2, label):
        euclidean_distance = F.pairwise_distance(output1, output2, keepdim = True)
        loss_contrastive = torch.mean((1-label) * torch.pow(euclidean_distance, 2) +
                                      (label) * torch.pow(torch.clamp(self.margin - euclidean_distance, min=0.0), 2))

        return loss_contrastive
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    loaded = load_base(Base(model=str(save_base(tmp_path_factory.mktemp("base"), "gpt2"))))
    loaded.model.double()
    return loaded


@pytest.fixture
def make(base: LoadedBase, tmp_path: Path) -> Any:
    def build_objective(code: str, name: str = "loss", **options: Any) -> BuiltObjective:
        (tmp_path / "loss.py").write_text(IMPORTS + textwrap.dedent(code))
        train = Train(objective=f"loss.py:{name}", objective_options=options)
        return make_objective(train, folder=tmp_path, allow_code=True, base=base)

    return build_objective


def gradients(
    base: LoadedBase, objective: Objective, rows: Sequence[Sample | Group], budget: int = 10_000
) -> tuple[float, torch.Tensor]:
    """Loss per weight, and all gradients of it in one vector."""
    model = LanguageModel(base.model)
    base.model.zero_grad()
    total, weight = 0.0, 0.0
    with model.packed():
        for batch in micro_batches(rows, budget, share_prefixes=False):
            said = objective(model, batch)
            said.loss.backward()
            total, weight = total + float(said.loss.detach()), weight + said.weight
    grads = [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in base.model.parameters()]
    return total / weight, torch.cat(grads) / weight


def same(base: LoadedBase, ours: Objective, theirs: Objective, rows: Sequence[Sample | Group], budget: int) -> None:
    mine, expected = gradients(base, ours, rows, budget), gradients(base, theirs, rows)
    assert mine[0] == pytest.approx(expected[0], rel=1e-9)
    assert float((mine[1] - expected[1]).norm() / expected[1].norm()) <= 1e-9


def unweighted() -> list[Sample]:
    return ragged_samples()


def weighted() -> list[Sample]:
    rng = np.random.default_rng(3)
    return [
        Sample(s.ids, (s.weights * rng.choice([0.5, 1.0, 2.0], len(s.weights))).astype(np.float32), s.example_id)
        for s in ragged_samples()
    ]


def pairs() -> list[Group]:
    texts = ["a cat", "a dog", "the sea", "far over the sea", "x"]
    rows = [Pair(str(i), texts[i % 5], texts[i * 3 % 4] + "!" * i, float(i % 3 == 0), i, "f") for i in range(9)]
    return pair_groups(byte_tokenizer(), rows)


# --- tokens --------------------------------------------------------------------------------------------------------

SAME_AS_CROSS_ENTROPY = {
    "one per position": "def loss(logits, targets): return F.cross_entropy(logits, targets, reduction='none')",
    "one per position, weighted": """
        def loss(logits, targets, weights): return F.cross_entropy(logits, targets, reduction='none') * weights""",
    "weighted mean": """
        def loss(logits, targets, weights):
            return (F.cross_entropy(logits, targets, reduction='none') * weights).sum() / weights.sum()""",
    "mean of weighted": """
        def loss(logits, targets, weights):
            return (F.cross_entropy(logits, targets, reduction='none') * weights).mean()""",
    "weighted sum": """
        def loss(logits, targets, weights):
            return F.cross_entropy(logits, targets, reduction='none').mul(weights).sum()""",
}
WITHOUT_WEIGHTS = {
    "textbook mean": "def loss(logits, targets): return F.cross_entropy(logits, targets)",
    "sum": "def loss(logits, targets): return F.cross_entropy(logits, targets, reduction='sum')",
    "weights asked for and not used": "def loss(logits, targets, weights): return F.cross_entropy(logits, targets)",
    "a module": "class loss(nn.CrossEntropyLoss):\n    def forward(self, logits, targets):\n"
    "        return super().forward(logits, targets)",
    "a column": """
        def loss(logits, targets): return F.cross_entropy(logits, targets, reduction='none')[:, None]""",
}


@pytest.mark.parametrize("budget", [25, 10_000])
@pytest.mark.parametrize("name", [*SAME_AS_CROSS_ENTROPY, *WITHOUT_WEIGHTS])
def test_whatever_form_it_returns_it_is_the_same_loss(
    base: LoadedBase, make: Any, name: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "CHUNK", 3)
    objective = make({**SAME_AS_CROSS_ENTROPY, **WITHOUT_WEIGHTS}[name])
    assert objective.pairs is False
    same(base, objective, cross_entropy, unweighted(), budget)
    if name in SAME_AS_CROSS_ENTROPY:
        same(base, objective, cross_entropy, weighted(), budget)


def test_weights_that_a_mean_would_lose_are_refused(base: LoadedBase, make: Any) -> None:
    objective = make(WITHOUT_WEIGHTS["textbook mean"])
    with pytest.raises(RecipeError, match="weights other than 1"):
        gradients(base, objective, weighted())


def test_a_supervised_beginning_that_documents_share_counts_for_each(base: LoadedBase, make: Any) -> None:
    rng = np.random.default_rng(0)
    start = rng.integers(3, VOCABULARY, 20)
    rows = [Sample(np.r_[start, rng.integers(3, VOCABULARY, 4)], np.r_[0, np.ones(23)].astype(np.float32))] * 2
    model = LanguageModel(base.model)
    batch = collate(rows, share_prefixes=True)
    assert batch.tokens < batch.documents_tokens
    with model.packed(), torch.no_grad():
        ours, theirs = make(WITHOUT_WEIGHTS["textbook mean"])(model, batch), cross_entropy(model, batch)
    assert ours.weight == theirs.weight == 46
    assert float(ours.loss) == pytest.approx(float(theirs.loss), rel=1e-9)


def test_options_reach_a_function_and_a_class(base: LoadedBase, make: Any) -> None:
    as_function = """
        def smooth(logits, targets, amount, z=0.5):
            plain = F.cross_entropy(logits, targets, reduction='none', label_smoothing=amount)
            return plain + z * logits.logsumexp(-1) ** 2
    """
    as_class = """
        class Smooth(nn.Module):
            def __init__(self, amount, z=0.5):
                super().__init__()
                self.amount, self.z = amount, z
            def forward(self, logits, targets, weights):
                plain = F.cross_entropy(logits, targets, reduction='none', label_smoothing=self.amount)
                return (plain + self.z * logits.logsumexp(-1) ** 2) * weights
    """
    expected = regularised_cross_entropy(0.2, 0.01)
    same(base, make(as_function, "smooth", amount=0.2, z=0.01), expected, weighted(), 25)
    same(base, make(as_class, "Smooth", amount=0.2, z=0.01), expected, weighted(), 25)


def test_logits_are_those_of_supervised_positions_only_a_few_at_a_time(
    base: LoadedBase, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "CHUNK", 10)
    code = """
        seen = []
        def loss(logits, targets, weights):
            seen.append((logits.shape, targets.shape, weights.shape, logits.dtype))
            return F.cross_entropy(logits, targets, reduction='none') * weights
    """
    objective = make(code)
    module = next(m for n, m in sys.modules.items() if n.startswith("tunesmith_objective_") and hasattr(m, "seen"))
    module.seen.clear()
    gradients(base, objective, unweighted())
    counts = [logits[0] for logits, *_ in module.seen]
    assert sum(counts) == sum(s.supervised for s in unweighted()) and max(counts) == 10
    assert all(
        (logits[1], targets, weights) == (VOCABULARY, logits[:1], logits[:1])
        for logits, targets, weights, _ in module.seen
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def loss(logits, targets): return logits.max(), targets", "returns a tuple, not a tensor"),
        ("def loss(logits, targets): return logits.sum().item()", "returns a float"),
        ("def loss(logits, targets): return logits", "shape"),
        ("def loss(logits, targets): return F.cross_entropy(logits, targets).detach()", "no gradient"),
        ("def loss(logits, targets): return (logits.argmax(-1) != targets).float()", "no gradient"),
        ("def loss(logits, targets): return F.cross_entropy(logits, targets) ** 2", "depends on which rows"),
        ("def loss(logits, targets): return F.cross_entropy(logits, targets, reduction='none').max()", "depends on"),
        ("def loss(logits, targets): return F.cross_entropy(logits, targets) / 0", "nan or infinity"),
        ("def loss(logits, targets): return logits.sum() * 0", "returns 0 for every row"),
        ("def loss(logits, targets): return F.dropout(logits, 0.5).sum(-1)", "depends on which rows"),
    ],
)
def test_what_is_no_loss_is_refused_before_training(make: Any, code: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(code)


# --- pairs ---------------------------------------------------------------------------------------------------------

PAIR_FORMS = {
    "textbook": TEXTBOOK,
    "distances without the last dimension": TEXTBOOK.replace(", keepdim = True", ""),
    "one per pair": TEXTBOOK.replace("torch.mean(", "(", 1),
    "one per pair, flat": TEXTBOOK.replace("torch.mean(", "(", 1).replace(", keepdim = True", ""),
    "sum": TEXTBOOK.replace("torch.mean(", "torch.sum("),
    "flattened label": TEXTBOOK.replace(", keepdim = True)", ")\n        label = label.view(-1)"),
    "a function": """
        def ContrastiveLoss(output1, output2, label, margin=2.0):
            d = (output1 - output2 + 1e-6).pow(2).sum(-1, keepdim=True).sqrt()
            return ((1 - label) * d**2 + label * torch.clamp(margin - d, min=0.0)**2).mean()
    """,
}


@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize("form", PAIR_FORMS)
def test_the_textbook_contrastive_loss_runs_unchanged(base: LoadedBase, make: Any, form: str, budget: int) -> None:
    """Labels come as [G, 1] or [G], whichever the code means: the other shape would compare all pairs with all."""
    objective = make(PAIR_FORMS[form], "ContrastiveLoss", margin=6.0)
    assert objective.pairs is True
    same(base, objective, contrastive(margin=6.0), pairs(), budget)


def test_a_batch_of_one_pair(base: LoadedBase, make: Any) -> None:
    objective = make(TEXTBOOK, "ContrastiveLoss")
    same(base, objective, contrastive(), pairs()[:1], 10_000)


def test_a_loss_that_compares_all_pairs_is_refused(make: Any) -> None:
    code = """
        def loss(output1, output2, label):
            return F.cross_entropy(output1 @ output2.T, torch.arange(len(output1)))
    """
    with pytest.raises(RecipeError, match=r"depends on which rows(.|\n)*\(model, batch\)"):
        make(code)


def test_a_head_of_its_own_is_trained_and_saved(base: LoadedBase, make: Any, tmp_path: Path) -> None:
    code = """
        class Projected(nn.Module):
            def __init__(self, hidden_size, vocab_size, width=4):
                super().__init__()
                assert vocab_size == 300
                self.project = nn.Linear(hidden_size, width, dtype=torch.float64)
                self.register_buffer('calls', torch.zeros(1))
            def forward(self, output1, output2, label):
                self.calls += 1
                a, b = self.project(output1.double()), self.project(output2.double())
                return ((label.squeeze(1) - F.cosine_similarity(a, b)) ** 2).mean()
    """
    torch.manual_seed(8)
    before = torch.random.get_rng_state()
    objective = make(code, "Projected", width=6)
    assert torch.equal(torch.random.get_rng_state(), before)
    parameters = objective.parameters()
    assert {n: list(p.shape) for n, p in parameters.items()} == {
        "objective.project.weight": [6, 32],
        "objective.project.bias": [6],
    }
    assert float(objective.state()["objective.calls"]) == 0  # trying it left no trace
    gradients(base, objective, pairs(), 30)
    assert all(p.grad is not None and p.grad.any() for p in parameters.values())
    assert float(objective.state()["objective.calls"]) > 1

    file = objective.save(tmp_path / "adapter")
    assert file is not None and file.name == "objective.safetensors"
    again = make(code, "Projected", width=6)
    with torch.no_grad():
        again.parameters()["objective.project.bias"].zero_()
    again.load(tmp_path / "adapter")
    for name, tensor in objective.state().items():
        assert torch.equal(tensor, again.state()[name])
    with pytest.raises(VerificationError, match="not those of this objective"):
        make(code, "Projected", width=5).load(tmp_path / "adapter")
    with pytest.raises(VerificationError, match="cannot be read"):
        make(code, "Projected", width=6).load(tmp_path / "nowhere")


def test_parameters_begin_with_the_seed(base: LoadedBase, tmp_path: Path) -> None:
    (tmp_path / "loss.py").write_text(
        IMPORTS + "class L(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Parameter(torch.randn(3))\n    def forward(self, logits, targets):\n"
        "        return F.cross_entropy(logits, targets, reduction='none') * self.a.square().sum()\n"
    )

    def first(seed: int) -> torch.Tensor:
        train = Train(objective="loss.py:L", seed=seed)
        made = make_objective(train, folder=tmp_path, allow_code=True, base=base)
        return made.parameters()["objective.a"].detach()

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_a_token_loss_trains_its_own_parameters_too(base: LoadedBase, make: Any) -> None:
    code = """
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.log = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
                self.fixed = nn.Parameter(torch.tensor(1.0), requires_grad=False)
            def forward(self, logits, targets):
                return F.cross_entropy(logits * self.log.exp(), targets, reduction='none') * self.fixed
    """
    objective = make(code, "Scaled")
    (log,) = objective.parameters().values()
    gradients(base, objective, unweighted(), 25)
    ours = float(log.grad)
    model, eps, values = LanguageModel(base.model), 1e-5, []
    with model.packed(), torch.no_grad():
        for shift in (eps, -2 * eps):
            log += shift
            values.append(float(objective(model, collate(unweighted())).loss))
    assert ours == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-6)


def test_dropout_of_the_module_follows_the_model(base: LoadedBase, make: Any) -> None:
    code = """
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.5)
            def forward(self, logits, targets):
                return F.cross_entropy(self.drop(logits), targets, reduction='none')
    """
    objective = make(code, "Noisy")
    model, batch = LanguageModel(base.model), collate(unweighted())
    with model.packed(), torch.no_grad():
        quiet = {float(objective(model, batch).loss) for _ in range(2)}
        base.model.train()
        try:
            noisy = {float(objective(model, batch).loss) for _ in range(2)}
        finally:
            base.model.eval()
    assert len(quiet) == 1 and len(noisy) == 2


# --- everything ----------------------------------------------------------------------------------------------------


def test_model_and_batch(base: LoadedBase, make: Any) -> None:
    code = """
        from tunesmith.training.objectives import LossSum

        def whole(model, batch, factor=1.0):
            loss = model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous)
            return LossSum(factor * loss, float(sum(r.weights.sum() for r in batch.rows)), {"plain": loss.detach()})

        def mean(model, batch):
            return model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous) / batch.weights.sum()

        def wrong(model, batch):
            return model.hidden(batch.ids, batch.packing)
    """
    assert make(code, "whole").pairs is None
    same(base, make(code, "whole"), cross_entropy, weighted(), 25)
    same(base, make(code, "mean"), cross_entropy, weighted(), 25)
    doubled = make(code, "whole", factor=2.0)
    once, twice = gradients(base, cross_entropy, weighted())[0], gradients(base, doubled, weighted())[0]
    assert twice == pytest.approx(2 * once)
    with pytest.raises(RecipeError, match=r"it returns a tensor of shape \[\d+, 32\]"):
        gradients(base, make(code, "wrong"), weighted())


# --- errors --------------------------------------------------------------------------------------------------------


def test_a_missing_file_names_those_beside_it(base: LoadedBase, tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text("")
    with pytest.raises(RecipeError, match=r"no such file(.|\n)*losses\.py"):
        make_objective(Train(objective="loss.py:loss"), folder=tmp_path, allow_code=True, base=base)


def test_a_missing_name_names_the_nearest(make: Any) -> None:
    with pytest.raises(RecipeError, match=r"no 'focal'(.|\n)*one of focal_loss"):
        make("def focal_loss(logits, targets): pass\ndef other(): pass", "focal")


@pytest.mark.parametrize(
    ("code", "line", "message"),
    [
        ("x = 1\ny = undefined_name\n", "line 5: y = undefined_name", "NameError"),
        ("def loss(logits, targets)\n    pass\n", "line 4: def loss", "SyntaxError"),
        ("import nowhere_to_be_found\n", "line 4: import nowhere", "ModuleNotFoundError"),
        (
            "def loss(logits, targets):\n    return logits @ targets\n",
            "line 5: return logits @",
            "RuntimeError",
        ),
        ("def loss(logits, targets):\n    return logits[99999]\n", "line 5: return logits", "IndexError"),
    ],
)
def test_an_error_shows_the_users_own_line(make: Any, code: str, line: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        make(code)
    assert line in str(caught.value) and "loss.py" in str(caught.value)


def test_a_neighbour_that_cannot_be_imported_is_explained(make: Any, tmp_path: Path) -> None:
    (tmp_path / "my_helper.py").write_text("")
    with pytest.raises(RecipeError, match="an objective is one file"):
        make("import my_helper")


def test_an_error_while_training_shows_the_users_line(base: LoadedBase, make: Any) -> None:
    code = """
        def loss(logits, targets, weights):
            if len(targets) > 4:
                raise ValueError('too many')
            return F.cross_entropy(logits, targets, reduction='none') * weights
    """
    with pytest.raises(RecipeError, match=r"line 7: raise ValueError.*too many"):
        gradients(base, make(code), unweighted())


def test_short_memory_is_the_loops_to_answer(base: LoadedBase, make: Any) -> None:
    code = """
        def loss(logits, targets):
            if len(targets) > 4:
                raise torch.OutOfMemoryError('all gone')
            return F.cross_entropy(logits, targets, reduction='none')
    """
    with pytest.raises(torch.OutOfMemoryError):
        gradients(base, make(code), unweighted())


CLASS = """
class L(nn.Module):
    def __init__(self, margin, scale=1.0):
        super().__init__()
    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets)
"""


@pytest.mark.parametrize(
    ("code", "name", "options", "message"),
    [
        (CLASS, "L", {}, r"L needs a value for 'margin'"),
        (CLASS, "L", {"margin": 1, "skale": 2}, r"no argument 'skale' \(is 'scale' meant"),
        (CLASS, "L", {"sclae": 1}, r"no argument 'sclae'.*; needs a value for 'margin'"),
        ("def loss(logits, targets, gamma): return logits.sum(-1)", "loss", {}, "needs a value for 'gamma'"),
        ("def loss(logits, targets): return logits.sum(-1)", "loss", {"gamma": 2}, "no argument 'gamma'"),
        ("def loss(input, target): return input", "loss", {}, r"\(input, target\)(.|\n)*parameters named"),
        ("def loss(*args): return args", "loss", {}, "not clear what to call it with"),
        ("def loss(model, batch, logits, targets): return 1", "loss", {}, "not clear"),
        ("class L:\n    def forward(self, logits, targets): ...", "L", {}, r"no torch\.nn\.Module"),
        ("loss = 3", "loss", {}, "neither a function nor a class"),
        ("class L(nn.Module):\n    def forward(self, logits, targets, gamma): ...", "L", {}, "L.forward needs a value"),
        ("class L(nn.Module):\n    def __init__(self): raise ValueError('bad margin')\n"
         "    def forward(self, logits, targets): ...", "L", {}, "ValueError: bad margin"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(make: Any, code: str, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(code, name, **options)


def test_code_is_refused_where_it_is_not_allowed(base: LoadedBase, tmp_path: Path) -> None:
    (tmp_path / "loss.py").write_text("raise SystemExit('was run')")
    with pytest.raises(RecipeError, match="cannot name code"):
        make_objective(Train(objective="loss.py:loss"), folder=tmp_path, allow_code=False, base=base)


def test_a_file_that_was_changed_is_read_again(base: LoadedBase, make: Any) -> None:
    first = make("def loss(logits, targets): return F.cross_entropy(logits, targets)")
    second = make("def loss(logits, targets): return 2 * F.cross_entropy(logits, targets)")
    assert gradients(base, second, unweighted())[0] == pytest.approx(2 * gradients(base, first, unweighted())[0])


def test_a_softcapped_base(tmp_path: Path) -> None:
    loaded = load_base(Base(model=str(save_base(tmp_path / "base", "gemma2"))))
    (tmp_path / "loss.py").write_text(
        "import torch.nn.functional as F\ndef loss(logits, targets): return F.cross_entropy(logits, targets)"
    )
    objective = make_objective(Train(objective="loss.py:loss"), folder=tmp_path, allow_code=True, base=loaded)
    ours, theirs = gradients(loaded, objective, unweighted()), gradients(loaded, cross_entropy, unweighted())
    assert build("gemma2").config.final_logit_softcapping
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert float((ours[1] - theirs[1]).norm() / theirs[1].norm()) <= 1e-5


# --- what documents and examples show ------------------------------------------------------------------------------


def shown_in_the_document(examples: Path) -> dict[str, str]:
    """The document's Python, by the name of what each block defines."""
    blocks = re.findall(r"```python\n(.*?)```", (examples.parent / "docs/objectives.md").read_text(), re.DOTALL)
    return {re.findall(r"^(?:class|def) (\w+)", block, re.MULTILINE)[0]: block for block in blocks}


def learn(base: LoadedBase, objective: Objective, rows: Sequence[Sample | Group]) -> tuple[float, float]:
    """Loss before and after a few steps on a copy of the base."""
    model = LanguageModel(copy.deepcopy(base.model))
    optimizer, losses = torch.optim.AdamW(model.model.parameters(), lr=3e-3), []
    for _ in range(6):
        with model.packed():
            said = [objective(model, batch) for batch in micro_batches(rows, 200, share_prefixes=False)]
        loss = sum(s.loss for s in said) / sum(s.weight for s in said)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses[0], losses[-1]


def test_every_loss_in_the_document_is_learnt_from(base: LoadedBase, examples: Path, tmp_path: Path) -> None:
    blocks = shown_in_the_document(examples)
    assert set(blocks) == {"FocalLoss", "tempered", "ContrastiveLoss"}
    for name, code in blocks.items():
        (tmp_path / "loss.py").write_text(code)
        objective = make_objective(Train(objective=f"loss.py:{name}"), folder=tmp_path, allow_code=True, base=base)
        before, after = learn(base, objective, pairs() if objective.pairs else unweighted())
        assert after < 0.9 * before, name


def test_the_example_is_the_one_in_the_document_and_short(examples: Path) -> None:
    code = (examples / "custom_loss/loss.py").read_text()
    assert code == shown_in_the_document(examples)["FocalLoss"]
    assert len(code.splitlines()) <= 20


def test_the_example_runs_from_its_recipe(base: LoadedBase, examples: Path) -> None:
    recipe = load_recipe(examples / "custom_loss/recipe.yaml")
    rows = load_examples(recipe.data, Path(recipe.data.train), task_type="classification")
    assert rows.findings == []
    found = {finding.code for finding in check_examples(rows.examples, task_type="classification")}
    assert found <= {"near_duplicate"}  # they are made from few phrases
    objective = make_objective(recipe.train, folder=Path(), allow_code=True, base=base)
    renderer = Renderer(base.tokenizer, "plain")
    samples = [renderer.sample(e.messages) for e in rows.examples[:6]]
    before, after = learn(base, objective, samples)
    assert after < 0.9 * before


def test_the_examples_rows_are_what_its_script_writes(examples: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(examples / "custom_loss/make_rows.py"))
    script["write"](tmp_path / "tickets.csv")
    assert (tmp_path / "tickets.csv").read_bytes() == (examples / "custom_loss/tickets.csv").read_bytes()
