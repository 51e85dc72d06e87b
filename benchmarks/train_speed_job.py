"""One measurement of `train_speed.py`, in a process of its own: load, train, and print what happened as JSON.

    python benchmarks/train_speed_job.py JOB      # JOB is a `Job` as JSON; `train_speed.py` starts it

Here is everything both sides must share to be comparable: the model's weights, the rows, the first adapter, the
optimiser's settings, and what is recorded of every step.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model with tied embeddings."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


@dataclass(frozen=True)
class Setting:
    """How one side is run. `micro_batch`: what is computed at once, the peer in rows, ours in tokens (0: default).

    Only a `candidate` can be the peer of the headline; the others inform. `grouped`: rows in another order (by length).
    `allocator`: with the memory settings our engine makes, to see what they alone bring.
    """

    trainer: str
    name: str
    micro_batch: int = 0
    candidate: bool = False
    checkpointing: bool = False
    grouped: bool = False
    allocator: bool = False


@dataclass(frozen=True)
class TokenRow:
    """One tokenised chat row: `ids` [T] and from where on the answer is learnt."""

    ids: npt.NDArray[np.int64]
    answer_at: int

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The ids with -100 where nothing is learnt."""
        labels = self.ids.copy()
        labels[: self.answer_at] = -100
        return labels

    @property
    def key(self) -> int:
        """What the row is recognised by."""
        return zlib.crc32(self.ids.tobytes())


def make_rows(count: int, vocabulary: int, seed: int = 0) -> list[TokenRow]:
    """Ragged chat rows: log-normal lengths of median 120, of which about 55 % are learnt, ids as frequent as words.

    Eight rows padded to their longest are about 70 % real tokens. Ids 0 and 1 are padding and end of text.
    """
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.rint(rng.lognormal(np.log(120), 0.27, count)), 16, 512).astype(int)
    frequency = 1 / np.arange(1, vocabulary - 1)
    rows = []
    for length, share in zip(lengths, rng.beta(11, 9, count), strict=True):
        ids = rng.choice(vocabulary - 2, length, p=frequency / frequency.sum()).astype(np.int64) + 2
        ids[-1] = 1
        rows.append(TokenRow(ids, int(np.clip(round((1 - share) * length), 1, length - 1))))
    return rows


def save_model(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """The shape with random weights and a tokenizer that only names its special tokens, as a folder both sides load."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    setting: Setting
    model: str
    method: str
    rows: int
    steps: int
    learning_rate: float
    seed: int = 0
    rank: int = 16
    alpha: int = 32


class Recorder:
    """Loss, gradient norm and end time of every step of a training."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.ends: list[float] = []

    def measures(self, steps: int) -> dict[str, Any]:
        """What was recorded; raises if a step is missing."""
        if not (len(self.losses) == len(self.grad_norms) == len(self.ends) == steps):
            raise SystemExit(f"{len(self.losses)} losses and {len(self.ends)} times of {steps} steps were recorded")
        return {"losses": self.losses, "grad_norms": self.grad_norms, "ends": self.ends}


def measure(job: Job) -> dict[str, Any]:
    """Load, train, and tell. Runs in the child."""
    # What a side imports belongs to its loaded state, so it is imported first.
    if job.setting.trainer == "tunesmith":
        import tunesmith.training.loop  # noqa: F401
        from tunesmith.models.load import load_base
        from tunesmith.recipe.schema import Base

        model = load_base(Base(model=job.model)).model
    else:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import torch
        import trl  # noqa: F401
        from transformers import AutoModelForCausalLM

        if job.setting.allocator:
            from tunesmith.training.resources import keep_freed_memory

            keep_freed_memory()
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    rows = make_rows(job.rows * job.steps, model.config.vocab_size, job.seed)
    loaded = _memory("VmRSS")
    train = train_tunesmith if job.setting.trainer == "tunesmith" else train_peer
    recorder, changed, before = train(job, model, rows)
    return {
        "setting": asdict(job.setting),
        **recorder.measures(job.steps),
        "tokens": [sum(len(r.ids) for r in rows[i : i + job.rows]) for i in range(0, len(rows), job.rows)],
        "loaded_bytes": loaded,
        # Our loop starts a new peak measurement when it begins, so the peak until then is kept apart.
        "peak_bytes": max(before, _memory("VmHWM")),
        "tensors_changed": list(changed),
    }


Trained = tuple[Recorder, tuple[int, int], int]
"""The record, how many trained tensors (changed, there are), and the peak memory before the first step."""


def train_tunesmith(job: Job, model: Any, rows: Sequence[TokenRow]) -> Trained:
    """The engine as `tunesmith train` runs it, told to report every step."""
    from tunesmith.models.forward import LanguageModel
    from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
    from tunesmith.text.types import Sample
    from tunesmith.training import loop
    from tunesmith.training.plan import TrainingPlan

    loop._LOG_SECONDS = 0.0  # the peer, too, logs every step
    if job.method == "lora":
        attached = attach_lora(model, LoraSettings(job.rank, job.alpha), job.seed)
        for name, a in initial_adapter({n: layer.lora_A for n, layer in attached.layers.items()}, job.seed):
            attached.layers[name].lora_A.data.copy_(a)
    else:
        model.requires_grad_(True)
    trained = trainable_parameters(model)
    samples = [Sample(r.ids, (np.arange(len(r.ids)) >= r.answer_at).astype(np.float32)) for r in rows]
    plan = TrainingPlan(
        steps=job.steps,
        batch_size=job.rows,
        learning_rate=job.learning_rate,
        seed=job.seed,
        schedule="constant",
        shuffle=False,
        checkpoint_seconds=math.inf,
    )
    if job.setting.micro_batch:
        plan = replace(plan, micro_batch_tokens=job.setting.micro_batch)
    recorder = Recorder()

    def listen(event: Mapping[str, Any]) -> None:
        if event["kind"] == "train_step":
            recorder.losses.append(event["loss"])
            recorder.grad_norms.append(event["grad_norm"])
            recorder.ends.append(time.perf_counter())

    compare, before = _watch(trained), _memory("VmHWM")
    with tempfile.TemporaryDirectory() as folder:
        loop.train(LanguageModel(model), samples, plan, Path(folder), listener=listen)
    return recorder, compare(), before


def train_peer(job: Job, model: Any, rows: Sequence[TokenRow]) -> Trained:
    """SFTTrainer (or the plain Trainer of transformers) with PEFT on the same rows."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, PrinterCallback, Trainer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    recorder = Recorder()
    setting = job.setting

    class Record(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            recorder.ends.append(time.perf_counter())

        def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
            if "grad_norm" in logs:
                recorder.losses.append(logs["loss"])
                recorder.grad_norms.append(logs["grad_norm"])

    data = Dataset.from_dict({"input_ids": [r.ids for r in rows], "labels": [r.labels for r in rows]})
    lora = LoraConfig(r=job.rank, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            max_steps=job.steps,
            per_device_train_batch_size=setting.micro_batch,
            gradient_accumulation_steps=job.rows // setting.micro_batch,
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
        tokenizer = AutoTokenizer.from_pretrained(job.model)
        adapter = lora if job.method == "lora" else None
        # TRL's own collator pads, for both: it is what SFTTrainer makes where none is given.
        if setting.trainer == "trl":
            trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, peft_config=adapter)
        else:
            from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

            wrapped = get_peft_model(model, adapter) if adapter else model
            collator = DataCollatorForLanguageModeling(pad_token_id=0)
            trainer = Trainer(wrapped, config, collator, data, processing_class=tokenizer)
        if adapter:
            marker = ".lora_A.default.weight"
            first = {n: p for n, p in trainer.model.named_parameters() if n.endswith(marker)}
            named = {n.removeprefix("base_model.model.").removesuffix(marker): p for n, p in first.items()}
            for name, a in initial_adapter(named, job.seed):
                named[name].data.copy_(a)
        seen: list[int] = []
        collate = trainer.data_collator

        def note_order(examples: list[dict[str, Any]]) -> Any:
            seen.extend(zlib.crc32(np.asarray(e["input_ids"], dtype=np.int64).tobytes()) for e in examples)
            return collate(examples)

        trainer.data_collator = note_order
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Record())
        trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        compare, before = _watch(trained), _memory("VmHWM")
        trainer.train()
    if seen[: len(rows)] != [r.key for r in rows] and not setting.grouped:
        raise SystemExit("the peer did not take the rows in their order")
    assert all(p.dtype == torch.float32 for p in trained.values())
    return recorder, compare(), before


def initial_adapter(matrices: Mapping[str, Any], seed: int) -> list[tuple[str, Any]]:
    """The same first A for both sides, by module name: uniform as PEFT draws it, from one generator in name order."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for name in sorted(matrices):
        rank, width = matrices[name].shape
        drawn.append((name, (torch.rand(rank, width, generator=generator) * 2 - 1) / math.sqrt(width)))
    return drawn


def _watch(parameters: Mapping[str, Any]) -> Callable[[], tuple[int, int]]:
    """Afterwards: how many of the tensors changed, and how many there are (looking at the first 1,024 numbers)."""
    before = {name: p.detach().flatten()[:1024].clone() for name, p in parameters.items()}

    def compare() -> tuple[int, int]:
        changed = sum(not bool((p.detach().flatten()[:1024] == before[n]).all()) for n, p in parameters.items())
        return changed, len(before)

    return compare


def _memory(field: str) -> int:
    """Bytes of a memory field of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system does not tell {field}")


def main() -> None:
    """Do the job given on the command line; its result is the last line of the output."""
    job = json.loads(sys.argv[1])
    print(json.dumps(measure(Job(**{**job, "setting": Setting(**job["setting"])}))))


if __name__ == "__main__":
    main()
