"""A published base: the files it consists of, hashes that are checked when it is loaded, a card that is filled in."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tunesmith.models import load
from tunesmith.models.load import base_folder, embedded_names

SCRIPT = Path(__file__).parents[2] / "examples" / "pretrain" / "publish.py"


@pytest.fixture(scope="module")
def publish() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_publish", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What the three scripts leave, of a made-up model."""
    shape = {
        "num_hidden_layers": 4,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_attention_heads": 3,
        "head_dim": 32,
        "num_key_value_heads": 1,
        "vocab_size": 8192,
        "max_position_embeddings": 2048,
    }
    write(tmp_path / "run" / "model" / "config.json", shape)
    write(tmp_path / "run" / "model" / "model.safetensors", "x" * 2_500_000)
    made = {
        "parameters": 1_179_744,
        "tokens": 6_000_000,
        "learnt_tokens": 5_400_000,
        "steps": 500,
        "rows_per_step": 48,
        "learning_rate": 0.003,
        "decay_ratio": 0.25,
        "seconds": 900,
        "device": "CPU",
        "processes": 2,
        "threads": 1,
    }
    write(tmp_path / "run" / "training.json", made)
    source = {"share": 0.6, "tokens": 3_600_000}
    write(tmp_path / "data" / "mix.json", {"sources": {"wikipedia": source}, "held_out": {"sources": ["tldr"]}})
    write(tmp_path / "evaluation" / "evaluation.md", "# The small base, measured\n\n## Bits per byte\n\n1.5\n")
    return tmp_path


def test_what_is_published_is_what_was_trained_recorded_and_measured(
    publish: ModuleType, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = tmp_path / "embedded"
    write(embedded / "tiny" / "left_over.txt", "of the edition before")
    monkeypatch.setattr(publish, "EMBEDDED", embedded)
    arguments = ["publish.py", "tiny", "--run", "run", "--data", "data", "--evaluation", "evaluation"]
    monkeypatch.chdir(trained)
    monkeypatch.setattr("sys.argv", arguments)
    publish.main()
    published = embedded / "tiny"
    assert sorted(p.name for p in published.iterdir()) == [
        "MODEL_CARD.md",
        "config.json",
        "model.safetensors",
        "sha256.json",
    ]
    digests = json.loads((published / "sha256.json").read_text())
    assert digests == {
        name: hashlib.sha256((published / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }
    card = (published / "MODEL_CARD.md").read_text()
    assert "$" not in card
    for said in (
        "# embedded:tiny",
        "1.2 million parameters",
        "4 layers, width 96",
        "6.0 million tokens",
        "2 CPU cores, no GPU; 0.2 hours",
        "| wikipedia | 60% | 3,600,000 |",
        "## Measured\n\n### Bits per byte",
    ):
        assert said in card, said


def test_a_second_round_is_told_and_counted_with_the_first(publish: ModuleType, trained: Path) -> None:
    made = json.loads((trained / "run" / "training.json").read_text())
    later = {**made, "tokens": 2_000_000, "learning_rate": 0.002, "steps": 170, "seconds": 180, "earlier": made}
    write(trained / "run" / "training.json", later)
    folders = [trained / name for name in ("run", "data", "evaluation")]
    with pytest.raises(ValueError, match="do not belong together"):
        publish.card("tiny", trained / "run" / "model", *folders)
    mix = json.loads((trained / "data" / "mix.json").read_text())
    write(trained / "data" / "mix.json", {**mix, "first_document": 9000})
    text = publish.card("tiny", trained / "run" / "model", *folders)
    assert "8.0 million tokens" in text and "2 CPU cores, no GPU; 0.3 hours" in text
    assert "rate 0.003" in text and "2.0 million tokens at rate 0.002" in text and "about 0.00 kWh" in text


@pytest.mark.parametrize("name", embedded_names())
def test_the_bases_that_ship_say_what_they_are(name: str) -> None:
    folder = base_folder(f"embedded:{name}")
    assert folder is not None
    load._verify_embedded(folder)
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    assert f"# embedded:{name}" in card and f"{config['max_position_embeddings']:,} tokens" in card
    assert (folder / "model.safetensors").stat().st_size <= 40e6


def test_both_sizes_ship() -> None:
    assert {"base", "tiny"} <= set(embedded_names())
