"""Train the small bases that ship with Tunesmith, from the files `prepare.py` wrote, with Tunesmith's own engine.

    python examples/pretrain/train.py --data work/pretrain --out work/pretrain/base
    python examples/pretrain/train.py --data work/pretrain --out work/pretrain/tiny --size tiny --tokens 6000000
    python examples/pretrain/train.py --data work/more --out work/more/base --after work/pretrain/base  # a second round

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 examples/pretrain/train.py …     # a process per core: faster

On the GPU where there is one, else on the CPU. Continues where it stopped. Documents are learnt once, in the order
`prepare.py` chose.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.text.types import Sample
from tunesmith.training import processes
from tunesmith.training.loop import train
from tunesmith.training.plan import TrainingPlan


class Documents(Sequence[Sample]):
    """The prepared stream from document `first` on as samples, read from disk when asked for."""

    def __init__(self, folder: Path, budget: int | None = None, first: int = 0) -> None:
        self.ids = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
        self.mask = np.memmap(folder / "mask.bin", dtype=np.uint8, mode="r")
        self.offsets = np.load(folder / "documents.npy")[first:]
        self.count = len(self.offsets) - 1
        if budget is not None:
            self.count = int(np.searchsorted(self.offsets, self.offsets[0] + budget, side="right")) - 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        part = slice(self.offsets[index], self.offsets[index + 1])
        weights = self.mask[part].astype(np.float32)
        weights[0] = 0
        return Sample(self.ids[part].astype(np.int64), weights, f"document {index}")


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama's shape; heads are `head` wide, and queries share keys and values."""

    width: int
    feed_forward: int
    layers: int
    queries: int
    keys: int
    head: int


SIZES = {
    "base": Size(width=320, feed_forward=896, layers=7, queries=5, keys=1, head=64),  # 10.4 M parameters
    "tiny": Size(width=96, feed_forward=256, layers=4, queries=3, keys=1, head=32),  # 1.2 M parameters
}


def held_out(path: Path, tokenizer: Any, length: int = 512, limit: int = 60) -> list[Sample]:
    """Validation samples of `length` tokens."""
    ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    samples = []
    for start in range(0, min(len(ids), limit * length) - length + 1, length):
        part = np.asarray([tokenizer.bos_token_id, *ids[start : start + length - 1]], dtype=np.int64)
        samples.append(Sample(part, np.r_[0, np.ones(length - 1)].astype(np.float32), path.stem))
    return samples


def new_model(tokenizer: Any, size: Size, seed: int) -> LlamaForCausalLM:
    """A Llama with fresh weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.queries,
        num_key_value_heads=size.keys,
        head_dim=size.head,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        initializer_range=0.03,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def export(model: LlamaForCausalLM, data: Path, out: Path) -> None:
    """Write a model folder: bf16 weights, tokenizer, record of the training text."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(data / "tokenizer").save_pretrained(out)
    shutil.copy(data / "training_text.hashes", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=None, help="learn only the first N tokens of the prepared stream")
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--after", type=Path, help="folder of an earlier run, whose model is trained on")
    parser.add_argument("--rows", type=int, default=48, help="documents per optimiser step")
    parser.add_argument("--learning-rate", type=float, help="default 0.003, with --after 0.002")
    parser.add_argument(
        "--decay", type=float, help="share of the steps in which the rate falls to zero; default 0.25, with --after 0.8"
    )
    parser.add_argument("--evaluations", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    later = arguments.after is not None
    if arguments.learning_rate is None:
        arguments.learning_rate = 2e-3 if later else 3e-3
    if arguments.decay is None:
        arguments.decay = 0.8 if later else 0.25
    torch.set_flush_denormal(True)
    with processes.joined():
        pretrain(arguments)


def pretrain(arguments: argparse.Namespace) -> None:
    """Train, showing what happens as lines of JSON, and write the model folder at every validation."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.data / "tokenizer")
    mix = json.loads((arguments.data / "mix.json").read_text(encoding="utf-8"))
    first = mix.get("first_document", 0)
    if (first > 0) != (arguments.after is not None):
        raise SystemExit("--after goes with data prepared with --after, and only with it: both name the earlier round")
    documents = Documents(arguments.data, arguments.tokens, first)
    steps = -(-len(documents) // arguments.rows)
    plan = TrainingPlan(
        steps=steps,
        batch_size=arguments.rows,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        schedule="warmup_stable_decay",
        decay_ratio=arguments.decay,
        warmup_steps=max(20, steps // 50),
        optimizer="muon",
        weight_decay=0.1,
        betas=(0.9, 0.95),
        max_grad_norm=1.0,
        micro_batch_tokens=8192,
        shuffle=False,
        select_by="last",
        evaluate_every=max(1, steps // arguments.evaluations),
        keep_checkpoints=1,
        checkpoint_seconds=120,
        precision="bf16",
    )
    validation = [
        s for name in ("wiki", "books") for s in held_out(arguments.data / f"validation_{name}.txt", tokenizer)
    ]
    earlier: dict[str, Any] | None = None
    if arguments.after is None:
        model = new_model(tokenizer, SIZES[arguments.size], arguments.seed)
    else:
        model = LlamaForCausalLM.from_pretrained(arguments.after / "model", dtype=torch.float32)
        earlier = json.loads((arguments.after / "training.json").read_text(encoding="utf-8"))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    use_fused_layers(model)
    began = time.time()

    def show(event: dict[str, Any]) -> None:
        if not processes.first():
            return
        told = {k: round(v, 5) if isinstance(v, float) else v for k, v in event.items()}
        print(json.dumps({"minutes": round((time.time() - began) / 60, 1), **told}), flush=True)
        if event["kind"] == "validation":
            export(model, arguments.data, arguments.out / "model")

    arguments.out.mkdir(parents=True, exist_ok=True)
    result = train(
        LanguageModel(model), documents, plan, arguments.out / "checkpoints", validation=validation, listener=show
    )
    if processes.first():
        export(model, arguments.data, arguments.out / "model")
        facts = {
            "size": arguments.size,
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens": result.tokens,
            "learnt_tokens": result.supervised_tokens,
            "steps": result.steps,
            "rows_per_step": plan.batch_size,
            "learning_rate": plan.learning_rate,
            "decay_ratio": plan.decay_ratio,
            "seconds": round(result.seconds),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "processes": processes.count(),
            "threads": torch.get_num_threads(),
            "seed": plan.seed,
            "earlier": earlier,
        }
        (arguments.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(facts))


if __name__ == "__main__":
    sys.exit(main())
