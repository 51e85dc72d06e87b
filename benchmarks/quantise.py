"""How far 4- and 8-bit weights move a model's predictions, by method, and what a plan of mixed precision saves.

    python benchmarks/quantise.py [--base embedded:base] [--rows FILE ...] [--bounds 0.01 0.005]

Rows are pieces of 128 tokens of text files, by default of this project's own documents: three of four are fitted to,
the fourth is measured on. Mean KL is from the model as it is, in nats per token. Bytes are those of the quantised
layers, scales included, without embeddings and head. Takes about five minutes on an idle core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tunesmith.export.quantise.divergence import Reference
from tunesmith.export.quantise.folder import load_merged
from tunesmith.export.quantise.fp8 import fp8_codes
from tunesmith.export.quantise.grid import Grid
from tunesmith.export.quantise.layers import Block, blocks_of, group_size, set_weight, weight_of
from tunesmith.export.quantise.quantising import Quantised, by_awq, by_gptq, by_rtn
from tunesmith.export.quantise.sensitivity import plan, split
from tunesmith.inference.quantised_weights import fp8_tokens, fp8_values
from tunesmith.models.load import base_folder

DOCS = Path(__file__).parent.parent / "docs"
_LENGTH, _MOST = 128, 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="embedded:base")
    parser.add_argument("--rows", type=Path, nargs="+", default=sorted(DOCS.glob("*.md")))
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.01, 0.005])
    asked = parser.parse_args()
    folder = base_folder(asked.base)
    if folder is None:
        parser.error("--base is a folder, or embedded:NAME")
    rows = pieces(AutoTokenizer.from_pretrained(folder), asked.rows)
    fitted, measured = split(rows)
    print(f"{asked.base}: {len(fitted)} rows of {_LENGTH} tokens fitted to, {len(measured)} measured on")
    print(f"{'method':<34}{'KL':>10}{'top-1':>9}{'layer MB':>10}{'seconds':>9}")
    group = group_size(blocks_of(load_merged(folder)))
    for name, bits, symmetric, how in methods(fitted):
        measure(folder, measured, name, lambda model, blocks, h=how, b=bits, s=symmetric: h(model, blocks, b, group, s))
    measure(folder, measured, "fp8, tokens in fp8 too", fp8)
    for bound in asked.bounds:
        model, began = load_merged(folder), time.monotonic()
        made = plan(model, rows, bound=bound)
        bits = list(made.bits.values())
        counts = ", ".join(f"{bits.count(b)} layers of {b} bits" for b in sorted(set(bits)))
        print(f"{f'plan, KL at most {bound}':<34}{made.divergence:>10.5f}{'':>9}{made.bytes / 1e6:>10.2f}"
              f"{time.monotonic() - began:>9.1f}  {counts}")  # fmt: skip
        for one in made.facts()["sensitivity"][:3]:
            print(f"    {one['kl']['4']:.5f} alone at 4 bits: {', '.join(one['layers'])}")


def methods(fitted: list[Any]) -> list[tuple[str, int, bool, Callable[..., Quantised]]]:
    """Names, bits, whether zero lies in the middle, and what quantises a model so."""

    def rtn(model: Any, blocks: list[Block], bits: int, group: int, symmetric: bool) -> Quantised:
        return by_rtn(blocks, _same(blocks, bits), lambda b: Grid(b, group, symmetric))

    def gptq(model: Any, blocks: list[Block], bits: int, group: int, symmetric: bool) -> Quantised:
        return by_gptq(model, blocks, _same(blocks, bits), lambda b: Grid(b, group, symmetric), fitted, _quiet)

    def awq(rounding: str) -> Callable[..., Quantised]:
        def cut(model: Any, blocks: list[Block], bits: int, group: int, symmetric: bool) -> Quantised:
            grid = Grid(bits, group, symmetric)
            every = _same(blocks, bits)
            return by_awq(model, blocks, every, lambda b: grid, fitted, _quiet, torch.bfloat16, rounding=rounding)

        return cut

    return [
        ("RTN 4 bits", 4, True, rtn),
        ("GPTQ 4 bits", 4, True, gptq),
        ("RTN 4 bits, free zero", 4, False, rtn),
        ("AWQ 4 bits as published", 4, False, awq("rtn")),
        ("AWQ 4 bits, rounded by GPTQ", 4, False, awq("gptq")),
        ("RTN 8 bits", 8, True, rtn),
        ("GPTQ 8 bits", 8, True, gptq),
    ]


def measure(folder: Path, rows: list[Any], name: str, cut: Callable[[Any, list[Block]], Quantised | None]) -> None:
    """Print one line."""
    model = load_merged(folder)
    reference, began = Reference.of(model, rows), time.monotonic()
    with torch.no_grad():
        done = cut(model, blocks_of(model))
    seconds = time.monotonic() - began
    size = sum(codes.file_bytes for codes in done.codes.values()) / 1e6 if done else float("nan")
    print(
        f"{name:<34}{reference.divergence(model):>10.5f}{reference.agreement(model):>9.3f}{size:>10.2f}{seconds:>9.1f}"
    )


def fp8(model: Any, blocks: list[Block]) -> None:
    """Float8 weights and tokens, as servers compute with them."""
    for block in blocks:
        for module in block.linears.values():
            codes = fp8_codes(weight_of(module))
            set_weight(module, fp8_values(codes["weight"], codes["weight_scale"]))
            module.register_forward_pre_hook(lambda _, args: (fp8_tokens(args[0]), *args[1:]))


def pieces(tokenizer: Any, files: list[Path]) -> list[list[int]]:
    """Token ids of texts, cut into rows; at equal distances where there are too many."""
    ids = [token for file in files for token in tokenizer(file.read_text(encoding="utf-8"))["input_ids"]]
    rows = [ids[start : start + _LENGTH] for start in range(0, len(ids) - _LENGTH + 1, _LENGTH)]
    return rows[:: max(1, len(rows) // _MOST)][:_MOST]


def _same(blocks: list[Block], bits: int) -> dict[str, int]:
    return {path: bits for block in blocks for path in block.linears}


def _quiet(line: str) -> None:
    """Progress that nobody reads."""


if __name__ == "__main__":
    main()
