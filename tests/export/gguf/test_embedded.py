"""The embedded base itself, as every user has it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.export.gguf.models import logits_of
from tunesmith.export.gguf.write import write_gguf
from tunesmith.export.source import open_folders
from tunesmith.export.types import Work
from tunesmith.inference.gguf_engine import Reader, open_gguf
from tunesmith.models.artifact import Artifact, Target

TURNS = [
    {"role": "user", "content": "What do I need for a small pot of tea?"},
    {"role": "assistant", "content": "Hot water, a spoon of tea leaves and some patience."},
    {"role": "user", "content": "And how long must it stand?"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The base as a source, a folder for what is made of it, and its log-probabilities on a conversation."""
    source = open_folders("embedded:base", None)
    model = source.open()[0].model.float()
    text = source.tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
    return SimpleNamespace(
        source=source,
        scratch=tmp_path_factory.mktemp("scratch"),
        ids=ids,
        wanted=torch.from_numpy(logits_of(model, ids)).log_softmax(-1),
        parameters=sum(p.numel() for p in model.parameters()),
    )


@pytest.mark.parametrize(
    ("precision", "divergence", "agreement"), [("f32", 1e-6, 1), ("q8_0", 5e-3, 0.9), ("q4_0", 0.3, 0.7)]
)
def test_the_embedded_base(
    precision: str, divergence: float, agreement: float, using: Reader, base: SimpleNamespace, tmp_path: Path
) -> None:
    source, target = base.source, Target("gguf", precision)
    facts = write_gguf(Work(source, target, tmp_path, base.scratch, lambda _: None))
    assert facts["pre_tokenizer"] == "smollm"
    assert facts["modelfile_template"] == "proved equal to the chat template"
    artifact = Artifact(tmp_path, target, {}, 0, "embedded:base", "", "auto", None, source.stop_ids, source.context)
    found = torch.from_numpy(open_gguf(artifact, using=using).logits(base.ids)).log_softmax(-1)
    assert float((base.wanted.exp() * (base.wanted - found)).sum(-1).mean()) < divergence
    assert float((base.wanted.argmax(-1) == found.argmax(-1)).float().mean()) >= agreement
    size = (tmp_path / "model.gguf").stat().st_size
    assert size < facts["bits_per_weight"] / 8 * base.parameters + 500_000  # the vocabulary
