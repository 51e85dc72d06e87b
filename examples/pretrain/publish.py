"""Put a trained base in its place in the package, with a card made from what was recorded and measured.

    python examples/pretrain/publish.py base --run work/pretrain/base --data work/pretrain \\
        --evaluation work/pretrain/base/evaluation

Replaces `src/tunesmith/models/embedded/NAME`. The card says what the files say: `training.json` and `mix.json` of
training and data, the pages of `evaluate.py`. Nothing is published that was not evaluated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

HERE = Path(__file__).resolve().parent
EMBEDDED = HERE.parents[1] / "src" / "tunesmith" / "models" / "embedded"
WATTS_PER_CORE = 8
"""What a busy server core is taken to draw, with its share of memory and cooling."""

PURPOSE = {
    "base": """It is small on purpose: it loads in a moment, tunes in minutes on a laptop, and shows every step of the
work.""",
    "tiny": """It is for tests and for looking at what the program does: it loads at once and tunes in seconds. It has
learnt too little to be useful for anything else; for that there is `embedded:base`.""",
}


def card(name: str, model: Path, run: Path, data: Path, evaluation: Path) -> str:
    """The model card."""
    config = json.loads((model / "config.json").read_text())
    made = json.loads((run / "training.json").read_text())
    mix = json.loads((data / "mix.json").read_text())
    rounds = list(_rounds(made))
    if bool(made.get("earlier")) != bool(mix.get("first_document")):
        raise ValueError(f"{run} and {data} do not belong together: one has an earlier round, the other has none")
    core_hours = sum(one["seconds"] / 3600 * one["processes"] * one["threads"] for one in rounds)
    on_cpu = all(one["device"] == "CPU" for one in rounds)
    template = Template((HERE / "card_template.md").read_text(encoding="utf-8"))
    return template.substitute(
        name=name,
        millions=f"{made['parameters'] / 1e6:.1f}",
        purpose=PURPOSE[name],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        heads=config["num_attention_heads"],
        head=config["head_dim"],
        keys=config["num_key_value_heads"],
        vocabulary=f"{config['vocab_size']:,}",
        context=f"{config['max_position_embeddings']:,}",
        megabytes=f"{(model / 'model.safetensors').stat().st_size / 1e6:.1f}",
        tokens=f"{sum(one['tokens'] for one in rounds) / 1e6:.1f}",
        learnt=f"{sum(one['learnt_tokens'] for one in rounds) / 1e6:.1f}",
        rounds="; then, with weights kept and the optimiser fresh, ".join(_round(one) for one in rounds),
        rows=" and ".join(dict.fromkeys(str(one["rows_per_step"]) for one in rounds)),
        where="; ".join(dict.fromkeys(_where(one) for one in rounds)),
        hours=f"{sum(one['seconds'] for one in rounds) / 3600:.1f}",
        energy=f"{core_hours * WATTS_PER_CORE / 1000:.2f}" if on_cpu else "(not recorded)",
        watts=WATTS_PER_CORE,
        sources="\n".join(_source(source, found) for source, found in mix["sources"].items()),
        held_out=", ".join(mix["held_out"]["sources"]),
        measured=_measured((evaluation / "evaluation.md").read_text(encoding="utf-8")),
    )


def _rounds(made: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rounds of training, the first one first."""
    if made.get("earlier"):
        yield from _rounds(made["earlier"])
    yield made


def _round(one: Mapping[str, Any]) -> str:
    return (
        f"{one['tokens'] / 1e6:.1f} million tokens at rate {one['learning_rate']:g}, warm-up, stable, falling to zero "
        f"in the last {one['decay_ratio']:.0%} of {one['steps']:,} steps"
    )


def _where(one: Mapping[str, Any]) -> str:
    cores = one["processes"] * one["threads"]
    return f"{cores} CPU cores, no GPU" if one["device"] == "CPU" else str(one["device"])


def _source(name: str, found: Mapping[str, Any]) -> str:
    return f"| {name} | {found['share']:.0%} | {found['tokens']:,} |"


def _measured(page: str) -> str:
    """The evaluation's page as a section of the card."""
    title, _, rest = page.partition("\n")
    if not title.startswith("# "):
        raise ValueError(f"evaluation.md begins with {title!r}, not with a title")
    kept = [line for line in rest.splitlines() if not line.startswith("![")]  # pictures stay with the evaluation
    return "## Measured\n" + "\n".join(kept).replace("\n## ", "\n### ").replace("\n\n\n", "\n\n").rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(PURPOSE))
    parser.add_argument("--run", type=Path, required=True, help="folder train.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder prepare.py wrote")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder evaluate.py wrote")
    options = parser.parse_args()
    model, target = options.run / "model", EMBEDDED / options.name
    text = card(options.name, model, options.run, options.data, options.evaluation)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(model, target)
    for path in target.iterdir():
        path.chmod(0o644)
    (target / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    files = sorted(path for path in model.iterdir() if path.name != "sha256.json")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (target / "sha256.json").write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
