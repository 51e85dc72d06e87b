"""The other side of `train_speed.py`: TRL's SFTTrainer (or the plain Trainer of transformers) with PEFT.

All it imports is imported first: it belongs to the loaded state that memory is counted from.
"""

from __future__ import annotations

import math
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import peft
import torch
import transformers
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from _train_speed_job import Job, Record, rows_in_order, watch
from _training_work import TokenRow, initial_adapter

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(job: Job) -> Any:
    """The model as the trainer gets it."""
    if job.setting.allocator:
        from tunesmith.training.resources import keep_freed_memory

        keep_freed_memory()
    return transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)


def vocabulary(model: Any) -> int:
    """Tokens the model knows."""
    return int(model.config.vocab_size)


def parameters(model: Any) -> list[Any]:
    """The model's weights."""
    return list(model.parameters())


def train(job: Job, model: Any, rows: Sequence[TokenRow], order: Sequence[Sequence[int]], record: Record) -> None:
    """Train on the same rows in the same order, with the same first adapter; raises if the order was another."""
    sequence = rows_in_order(rows, order)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(job, model, sequence, folder)
        if job.method == "lora":
            _set_first_adapter(trainer.model, job.seed)
        seen: list[int] = []
        collate = trainer.data_collator

        def note_order(examples: list[dict[str, Any]]) -> Any:
            seen.extend(zlib.crc32(np.asarray(e["input_ids"], dtype=np.int64).tobytes()) for e in examples)
            return collate(examples)

        trainer.data_collator = note_order
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(_callback(record, trainer.model if job.exact_norms else None))
        trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        assert all(p.dtype == torch.float32 for p in trained.values())
        compare = watch(trained)
        trainer.train()
    record.tensors_changed = compare()
    if seen[: len(sequence)] != [row.key for row in sequence] and not job.setting.grouped:
        raise SystemExit("the peer did not take the rows in their order")


def _trainer(job: Job, model: Any, sequence: Sequence[TokenRow], folder: str) -> Any:
    setting = job.setting
    config = SFTConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        max_steps=job.steps,
        max_length=None,
        padding_free=setting.padding_free,
        per_device_train_batch_size=setting.micro_batch,
        gradient_accumulation_steps=job.rows_per_step // setting.micro_batch,
        gradient_checkpointing=setting.checkpointing,
        train_sampling_strategy="group_by_length" if setting.grouped else "sequential",
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        seed=job.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    data = datasets.Dataset.from_dict({"input_ids": [r.ids for r in sequence], "labels": [r.labels for r in sequence]})
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.model)
    adapter = _adapter(job, model) if job.method == "lora" else None
    if setting.trainer == "trl":
        return SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, peft_config=adapter)
    # TRL's own collator pads, for both: it is what SFTTrainer makes where none is given.
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    wrapped = peft.get_peft_model(model, adapter) if adapter else model
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=setting.padding_free)
    return transformers.Trainer(wrapped, config, collator, data, processing_class=tokenizer)


def _adapter(job: Job, model: Any) -> Any:
    layers = model.config.num_hidden_layers
    return peft.LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        target_modules=list(LINEAR),
        layers_to_transform=None if job.last_layers is None else list(range(layers - job.last_layers, layers)),
        task_type="CAUSAL_LM",
    )


def _set_first_adapter(model: Any, seed: int) -> None:
    marker = ".lora_A.default.weight"
    first = {n: p for n, p in model.named_parameters() if n.endswith(marker)}
    named = {n.removeprefix("base_model.model.").removesuffix(marker): p for n, p in first.items()}
    for name, a in initial_adapter(named, seed):
        named[name].data.copy_(a)


def _callback(record: Record, model: Any | None) -> Any:
    """Notes every step; with `model`, the norm of its gradients in double, undoing the clipping to 1."""

    class Note(transformers.TrainerCallback):  # type: ignore[misc]
        clipped = 0.0

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            if model is not None:
                began = time.perf_counter()
                self.clipped = _norm(model)
                record.paused += time.perf_counter() - began

        def on_step_end(self, *_: Any, **__: Any) -> None:
            record.end()

        def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
            if "grad_norm" in logs:
                reported = logs["grad_norm"]
                exact = self.clipped * max(1.0, reported + 1e-6)
                record.step(logs["loss"], reported if model is None else exact)

    return Note()


def _norm(model: Any) -> float:
    """Norm of all gradients, summed in double, a million numbers at a time."""
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return math.sqrt(sum(float(part.double().square().sum()) for g in gradients for part in g.split(1 << 20)))
