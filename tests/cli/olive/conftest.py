"""A working folder as a reader of teaching texts has one: an alias file, tiny local models, small data sets."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.tiny import VOCABULARY, byte_tokenizer
from tunesmith.cli.main import invoke

LLAMA_3_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 256, "tie_word_embeddings": False,
}  # fmt: skip
"""Heads of 16 values, the least that ONNX Runtime's attention takes, and room for ranks up to 64."""
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_positions": 512, "n_embd": 64, "n_layer": 1, "n_head": 4, "bos_token_id": 1,
    "eos_token_id": 256,
}  # fmt: skip
TONES = {"warm": "love dear thanks glad", "cold": "leave never stop enough", "neutral": "note list table report"}
LANGUAGES = ("python", "rust", "bash")


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def save_model(folder: Path, family: str, tokens: list[str], **more: Any) -> Path:
    """A tiny model whose tokenizer knows the special tokens of the one it stands for."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    torch.manual_seed(0)
    if family == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(**GPT2_SIZES))
    else:
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "hidden_size": 64, "intermediate_size": 96, **more}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Path:
    """Models and data sets that hub ids stand for, made once."""
    folder = tmp_path_factory.mktemp("shelf")
    save_model(folder / "llama-1b", "llama", LLAMA_3_TOKENS)
    save_model(folder / "llama-8b", "llama", LLAMA_3_TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    save_model(folder / "dialogpt", "gpt2", [])
    draw = random.Random(0)
    with (folder / "phrases.jsonl").open("w") as stream:
        for i in range(150):
            tone = sorted(TONES)[i % 3]
            words = " ".join(draw.choices(TONES[tone].split(), k=3))
            stream.write(json.dumps({"phrase": f"{words} {i}", "tone": tone}) + "\n")
    with (folder / "codes.jsonl").open("w") as stream:
        for i in range(4300):
            row = {"programming_language": draw.choice(LANGUAGES), "prompt": f"add {i} and {draw.randrange(99)}",
                   "response": f"{i % 7}+{draw.randrange(9)}"}  # fmt: skip
            stream.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def bench(tmp_path, shelf, monkeypatch) -> Path:
    """The working folder, with an alias file; `write_aliases` changes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNESMITH_ALIASES", raising=False)
    write_aliases(tmp_path, shelf)
    return tmp_path


def write_aliases(folder: Path, shelf: Path, **more: Any) -> Path:
    """`aliases.yaml` with the ids of the chapter, and further sections."""
    aliases = {
        "models": {
            "meta-llama/Llama-3.2-1B-Instruct": str(shelf / "llama-1b"),
            "meta-llama/Meta-Llama-3-8B": str(shelf / "llama-8b"),
            "microsoft/DialoGPT-medium": str(shelf / "dialogpt"),
        },
        "datasets": {
            "xxyyzzz/phrase_classification": str(shelf / "phrases.jsonl"),
            "nampdn-ai/tiny-codes": str(shelf / "codes.jsonl"),
        },
        "recipe": {
            "evaluate.bootstrap": 200, "evaluate.max_new_tokens": 8, "evaluate.forgetting": False,
            "evaluate.latency_rows": 2, "baselines": ["zero_shot"], "train.eval_rows": 8, "train.evaluations": 2,
        },
        **more,
    }  # fmt: skip
    path = folder / "aliases.yaml"
    path.write_text(yaml.safe_dump(aliases))
    return path


@pytest.fixture
def say(capsys) -> Callable[[str], Said]:
    """A block of the chapter as a shell reads it, with `olive` replaced by `tunesmith olive`, in this process."""

    def run(block: str) -> Said:
        words = shlex.split(block.replace("\\\n", " "), comments=True)
        assert words[0] == "olive"
        code = invoke(words)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run
