"""Write a small base without chat template, wide enough for adapters of rank 256: random weights, a real tokenizer.

    python examples/sql/make_base.py            # into examples/sql/base

It knows nothing: it is there to try the recipes of this folder in minutes, without a download. To learn SQL, put a
real base into the recipe. The same weights every time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunesmith.models.load import base_folder

CONTEXT = 2048


def save_base(folder: Path, layers: int = 4, seed: int = 0) -> None:
    """A Llama with the tokenizer of `embedded:base` without its template; every linear layer is at least 256 wide."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder("embedded:base"))
    tokenizer.chat_template, tokenizer.model_max_length = None, CONTEXT
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    save_base(parser.parse_args().out)


if __name__ == "__main__":
    main()
