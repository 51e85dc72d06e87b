"""Training speed and memory: Tunesmith's engine against TRL's SFTTrainer with PEFT, on the same work.

    python benchmarks/train_speed.py                  # both shapes, about a quarter of an hour on two idle cores
    python benchmarks/train_speed.py --shapes 8M --method full
    python benchmarks/train_speed.py --quick          # do both run, and do they learn the same? A minute; no speed

Both sides get the same weights (random, of true shapes), the same tokenised rows in the same order, the same initial
adapter, the same AdamW, and learn exactly the same tokens. Every measurement is a process of its own. First every
setting of the peer runs once; then its fastest exact one runs against ours, in turns, and the medians are compared.
A speed counts only beside what was computed: loss and gradient norm of every step of both sides are compared.
`README.md` says what is measured and how to read it. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
WARMUP = 3
"""Optimiser steps whose time is left out, on both sides."""
PARITY = 1e-3
"""Largest relative difference of a loss or gradient norm that still counts as the same computation (fp32)."""


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model with tied embeddings, and how much of it two cores measure in a few minutes.

    `rows`: rows per optimiser step; `steps` of a round and `sweep_steps` of a setting's single run; `wide`: every
    setting of the peer is run, not only those that can win.
    """

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    rows: tuple[int, ...]
    steps: int
    sweep_steps: int
    wide: bool


SHAPES = {
    "8M": Shape("8M", 8_192, 256, 8, 8, 4, 704, rows=(8, 16), steps=18, sweep_steps=9, wide=True),
    # SmolLM2-135M's shape
    "135M": Shape("135M", 49_152, 576, 30, 9, 3, 1_536, rows=(8,), steps=6, sweep_steps=5, wide=False),
}


@dataclass(frozen=True)
class Setting:
    """How one side is run. `micro_batch`: rows computed at once (0: the trainer's own decision).

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


OURS = Setting("tunesmith", "defaults")


def peer_settings(rows: int, wide: bool) -> list[Setting]:
    """What SFTTrainer can do on a CPU without changing the result, and what is worth knowing beside it.

    Its head and loss are the same for every `loss_type` that is exact; packing needs flash attention to be exact.
    """
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= rows and (wide or size in (1, 2, rows))]
    settings = [Setting("trl", f"{size} x {rows // size}", size, candidate=True) for size in sizes]
    settings.append(Setting("trl", f"{rows} x 1, checkpointing", rows, candidate=True, checkpointing=True))
    settings.append(Setting("transformers", f"1 x {rows}", 1))
    if wide:
        settings.append(Setting("transformers", f"{rows} x 1", rows))
        settings.append(Setting("trl", f"{rows} x 1, grouped by length", rows, grouped=True))
        settings.append(Setting("trl", f"1 x {rows}, our allocator", 1, allocator=True))
    return settings


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


# One measurement, in a process of its own -----------------------------------------------------------------------------


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


# All measurements of one comparison -----------------------------------------------------------------------------------


def run_job(job: Job, threads: int, wait_policy: str) -> dict[str, Any]:
    """One measurement in a fresh process; ends the benchmark with the process's own message where it fails."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": wait_policy,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job.setting.trainer} {job.setting.name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rate = speed(result)
    print(f"  {job.setting.trainer:12} {job.setting.name:28} {rate:8.0f} tokens/s", file=sys.stderr, flush=True)
    return result


def speed(result: Mapping[str, Any]) -> float:
    """Non-padding tokens per second after the warm-up, from step end to step end: loading and logging included."""
    return float(sum(result["tokens"][WARMUP:]) / (result["ends"][-1] - result["ends"][WARMUP - 1]))


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference over the steps."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(one, other, strict=True))


def summary(results: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One side's line of a table, from its rounds and ours."""
    rates = [speed(r) for r in results]
    steps = [1000 * b for r in results for b in np.diff(r["ends"])[WARMUP - 1 :]]
    setting = results[0]["setting"]
    line = {
        **setting,
        "rounds": len(results),
        "tokens_per_second": [statistics.median(rates), min(rates), max(rates)],
        "step_ms": [float(np.percentile(steps, 50)), float(np.percentile(steps, 95))],
        "peak_bytes": statistics.median(r["peak_bytes"] for r in results),
        "above_loaded_bytes": statistics.median(r["peak_bytes"] - r["loaded_bytes"] for r in results),
        "tensors_changed": results[0]["tensors_changed"],
    }
    if setting["grouped"]:
        return line | {"loss_difference": None, "grad_norm_difference": None}
    pairs = list(zip(results, ours, strict=True))
    return line | {
        "loss_difference": max(difference(o["losses"], r["losses"]) for r, o in pairs),
        "grad_norm_difference": max(difference(o["grad_norms"], r["grad_norms"]) for r, o in pairs),
    }


def compare(
    shape: Shape, rows: int, method: str, steps: int | None, rounds: int, threads: int, wait_policy: str, quick: bool
) -> dict[str, Any]:
    """Sweep the peer, then its fastest exact setting against ours in turns."""
    rate = 2e-4 if method == "lora" else 5e-5
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(shape, Path(folder) / "model")

        def run(setting: Setting, count: int) -> dict[str, Any]:
            return run_job(Job(setting, str(model), method, rows, count, rate), threads, wait_policy)

        sweep_steps = min(steps or shape.sweep_steps, shape.sweep_steps)
        best, sweep = Setting("trl", f"{rows} x 1", rows, candidate=True), []
        if not quick:
            print(f"{shape.name}, {rows} rows per step, {method}: every setting once", file=sys.stderr)
            settings = [OURS, *peer_settings(rows, shape.wide)]
            sweep = [run(setting, sweep_steps) for setting in settings]
            rates = {setting: speed(result) for setting, result in zip(settings, sweep, strict=True)}
            best = max((s for s in settings if s.candidate), key=lambda s: rates[s])
        print(f"{shape.name}, {rows} rows per step, {method}: {rounds} rounds against {best.name}", file=sys.stderr)
        both = [(run(OURS, steps or shape.steps), run(best, steps or shape.steps)) for _ in range(rounds)]
    lines = [summary([o for o, _ in both], [o for o, _ in both]), summary([p for _, p in both], [o for o, _ in both])]
    sample = make_rows(rows * 200, shape.vocabulary)
    padded = sum(rows * max(len(r.ids) for r in sample[i : i + rows]) for i in range(0, len(sample), rows))
    tokens = sum(len(r.ids) for r in sample)
    return {
        "shape": asdict(shape),
        "rows_per_step": rows,
        "method": method,
        "steps": steps or shape.steps,
        "sweep_steps": sweep_steps,
        "learning_rate": rate,
        "fill_when_padded": tokens / padded,
        "supervised_share": sum(len(r.ids) - r.answer_at for r in sample) / tokens,
        "headline": {
            "peer": best.name,
            "speed_ratio": lines[0]["tokens_per_second"][0] / lines[1]["tokens_per_second"][0],
            "peak_ratio": lines[0]["peak_bytes"] / lines[1]["peak_bytes"],
            "above_loaded_ratio": lines[0]["above_loaded_bytes"] / lines[1]["above_loaded_bytes"],
            "same_work": max(lines[1]["loss_difference"], lines[1]["grad_norm_difference"]) <= PARITY
            and all(changed == there for changed, there in (line["tensors_changed"] for line in lines)),
        },
        "lines": lines,
        "sweep": [summary([r], sweep[:1]) for r in sweep],
        "raw": {"rounds": both, "sweep": sweep},
    }


def environment(threads: int, wait_policy: str) -> dict[str, Any]:
    """What the numbers depend on."""
    names = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    info = Path("/proc/cpuinfo")
    processor = next(
        (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor,
        "threads": threads,
        "omp_wait_policy": wait_policy,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: version(name) for name in names},
    }


def table(report: Mapping[str, Any]) -> str:
    """The page of a report."""
    facts = report["environment"]
    libraries = ", ".join(f"{n} {facts[n]}" for n in ("torch", "transformers", "trl", "peft"))
    lines = [
        "# Training speed against TRL's SFTTrainer",
        "",
        "Written by `python benchmarks/train_speed.py`; do not edit. How it is measured and how to read it: `README.md`.",
        "",
        f"{facts['processor']}, {facts['threads']} threads, OMP_WAIT_POLICY={facts['omp_wait_policy']}, fp32; {libraries}; "
        f"load before the run {facts['load_before']}; {facts['date'][:10]}.",
        "",
    ]
    for one in report["comparisons"]:
        head = one["headline"]
        lines += [
            f"## {one['shape']['name']}, {one['method']}, {one['rows_per_step']} rows per optimiser step",
            "",
            f"**{head['speed_ratio']:.2f} times the tokens per second, {head['peak_ratio']:.2f} times the peak memory "
            f"({head['above_loaded_ratio']:.2f} times above the loaded model)** of TRL at its fastest exact setting "
            f"(`{head['peer']}`: rows at once x accumulation). "
            + ("Both computed the same." if head["same_work"] else "**The two did not compute the same.**"),
            "",
            f"Rows padded together are {one['fill_when_padded']:.0%} real tokens; {one['supervised_share']:.0%} of the "
            f"tokens are learnt. {one['steps']} steps, the first {WARMUP} not timed; median of the rounds (min to max).",
            "",
            *_lines(one["lines"]),
            "",
            *([f"Every setting once, {one['sweep_steps']} steps:", "", *_lines(one["sweep"]), ""] if one["sweep"] else []),
        ]
    return "\n".join(lines)


def _lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| trainer | setting | tokens/s | step p50 / p95 | peak | above loaded | max loss difference | max norm difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        median, low, high = e["tokens_per_second"]
        span = f" ({low:,.0f} to {high:,.0f})" if e["rounds"] > 1 else ""
        ours = e["trainer"] == "tunesmith"
        loss, norm = (
            "" if ours else "other order" if e[k] is None else f"{e[k]:.0e}"
            for k in ("loss_difference", "grad_norm_difference")
        )
        rows.append(
            f"| {e['trainer']} | {e['name']} | {median:,.0f}{span} | {e['step_ms'][0]:,.0f} / {e['step_ms'][1]:,.0f} ms "
            f"| {e['peak_bytes'] / 2**20:,.0f} MiB | {e['above_loaded_bytes'] / 2**20:,.0f} MiB | {loss} | {norm} |"
        )
    return rows


def physical_cores() -> int:
    """Cores that work for this process, hyper-threads counted once."""
    import psutil

    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="8M,135M", help="comma-separated: " + ", ".join(SHAPES))
    parser.add_argument("--rows", type=int, nargs="*", help="rows per optimiser step (default: by shape)")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--steps", type=int, help="optimiser steps of each measurement (default: by shape)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--wait-policy", choices=("PASSIVE", "ACTIVE"), default="PASSIVE", help="of OpenMP, both sides")
    parser.add_argument("--quick", action="store_true", help="8M, 8 rows, one round of five steps: parity only")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/train_speed-DATE.json)")
    parser.add_argument("--table", type=Path, help="markdown (default: benchmarks/train_speed.md; none with --quick)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.shapes, options.rows, options.steps, options.rounds = "8M", [8], 5, 1
    unknown = set(options.shapes.split(",")) - set(SHAPES)
    if unknown:
        parser.error(f"no shape {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    if any(rows < 1 or rows % size for rows in options.rows or () for size in (1, 2, 4) if size <= rows):
        parser.error("--rows must be 1, 2, or a multiple of 4: the peer divides them into equal micro-batches")
    if options.steps is not None and options.steps <= WARMUP:
        parser.error(f"--steps must be more than the {WARMUP} of the warm-up")
    if not options.quick:
        date = datetime.date.today().isoformat()
        options.out = options.out or HERE / "results" / f"train_speed-{date}.json"
        options.table = options.table or HERE / "train_speed.md"
    return options


def main() -> None:
    """Measure and publish; ends with 5 where the two sides did not compute the same."""
    options = parse()
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(measure(Job(**{**job, "setting": Setting(**job["setting"])}))))
        return
    began = time.perf_counter()
    report: dict[str, Any] = {"environment": environment(options.threads, options.wait_policy), "comparisons": []}
    for name in options.shapes.split(","):
        for rows in options.rows or SHAPES[name].rows:
            settings = (options.method, options.steps, options.rounds, options.threads, options.wait_policy)
            report["comparisons"].append(compare(SHAPES[name], rows, *settings, quick=options.quick))
    report["minutes"] = round((time.perf_counter() - began) / 60, 1)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    page = table(report)
    if options.table:
        options.table.write_text(page, encoding="utf-8")
    print(page)
    if not all(one["headline"]["same_work"] for one in report["comparisons"]):
        raise SystemExit(5)


if __name__ == "__main__":
    main()
