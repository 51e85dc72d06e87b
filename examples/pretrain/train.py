"""Train the small base that ships with Tunesmith, from the files `prepare.py` wrote, with Tunesmith's own engine.

    python examples/pretrain/train.py --data /tmp/pretrain --out /tmp/pretrain/run

    torchrun --nproc-per-node 2 examples/pretrain/train.py …     # two processes with OMP_NUM_THREADS=1 each: faster

Continues where it stopped. Documents are learnt once, in the order `prepare.py` chose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunesmith.models.forward import LanguageModel
from tunesmith.text.types import Sample
from tunesmith.training import processes
from tunesmith.training.loop import train
from tunesmith.training.plan import TrainingPlan


class Documents(Sequence[Sample]):
    """The prepared stream as samples, read from disk when asked for."""

    def __init__(self, folder: Path, budget: int | None = None, left_out: range = range(0)) -> None:
        self.ids = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
        self.mask = np.memmap(folder / "mask.bin", dtype=np.uint8, mode="r")
        self.offsets = np.load(folder / "documents.npy")
        self.count = len(self.offsets) - 1
        if budget is not None:
            self.count = int(np.searchsorted(self.offsets, budget, side="right")) - 1
        self.kept = [i for i in range(self.count) if i not in left_out]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self.kept)))]
        place = self.kept[index]
        part = slice(self.offsets[place], self.offsets[place + 1])
        weights = self.mask[part].astype(np.float32)
        weights[0] = 0
        return Sample(self.ids[part].astype(np.int64), weights, f"document {place}")


class WithRepeats(Sequence[Sample]):
    """Every other row a random sequence that comes again: what a small model learns to look back by.

    Without them copying from the prompt (induction) comes late, if at all: it pays in few places of ordinary text.
    Row `i` follows from the seed and `i` alone. Tokens from 8 on are drawn alike; only repetitions are learnt.
    """

    def __init__(self, documents: Sequence[Sample], vocabulary: int, bos: int, seed: int) -> None:
        self.documents, self.vocabulary, self.bos, self.seed = documents, vocabulary, bos, seed

    def __len__(self) -> int:
        return 2 * len(self.documents)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index % 2:
            return self.documents[index // 2]
        draw = np.random.default_rng((self.seed, index))
        part = draw.integers(8, self.vocabulary, draw.integers(6, 48))
        times = int(draw.integers(2, 5))
        ids = np.concatenate([[self.bos], np.tile(part, times)]).astype(np.int64)
        weights = np.r_[np.zeros(1 + len(part)), np.ones((times - 1) * len(part))].astype(np.float32)
        return Sample(ids, weights, f"repeats {index}")


def held_out(path: Path, tokenizer: Any, length: int = 512, limit: int = 60) -> list[Sample]:
    """Validation samples of `length` tokens."""
    ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    samples = []
    for start in range(0, min(len(ids), limit * length) - length + 1, length):
        part = np.asarray([tokenizer.bos_token_id, *ids[start : start + length - 1]], dtype=np.int64)
        samples.append(Sample(part, np.r_[0, np.ones(length - 1)].astype(np.float32), path.stem))
    return samples


def new_model(tokenizer: Any, layers: int, seed: int) -> LlamaForCausalLM:
    """A Llama of about 7 M parameters with fresh weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        initializer_range=0.03,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def export(model: LlamaForCausalLM, data: Path, out: Path) -> None:
    """Write the model folder that `embedded:base` is: bf16 weights, tokenizer, record of the training text, hashes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    dtype = next(model.parameters()).dtype
    model.to(torch.bfloat16).save_pretrained(out)
    model.to(dtype)
    AutoTokenizer.from_pretrained(data / "tokenizer").save_pretrained(out)
    shutil.copy(data / "training_text.hashes", out)
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}
    (out / "sha256.json").write_text(json.dumps(digests, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=None, help="learn only the first N tokens of the prepared stream")
    parser.add_argument(
        "--leave-out", default="0:0", metavar="A:B", help="documents of the stream not learnt, by index"
    )
    parser.add_argument("--from", dest="start", type=Path, help="safetensors weights to start from")
    parser.add_argument("--repeats", action="store_true", help="every other row a repeated random sequence")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--rows", type=int, default=32, help="documents per optimiser step")
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--evaluations", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    tokenizer = AutoTokenizer.from_pretrained(arguments.data / "tokenizer")
    first, last = map(int, arguments.leave_out.split(":"))
    documents: Sequence[Sample] = Documents(arguments.data, arguments.tokens, range(first, last))
    if arguments.repeats:
        documents = WithRepeats(documents, len(tokenizer), tokenizer.bos_token_id, arguments.seed)
    steps = -(-len(documents) // arguments.rows)
    plan = TrainingPlan(
        steps=steps,
        batch_size=arguments.rows,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        schedule="linear",
        warmup_steps=max(20, steps // 50),
        weight_decay=0.1,
        betas=(0.9, 0.95),
        max_grad_norm=1.0,
        micro_batch_tokens=4096,
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
    model = new_model(tokenizer, arguments.layers, arguments.seed)
    if arguments.start is not None:
        model.load_state_dict(load_file(arguments.start), strict=False)  # the tied head has no entry of its own
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
        print(json.dumps({"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds)}))


if __name__ == "__main__":
    sys.exit(main())
