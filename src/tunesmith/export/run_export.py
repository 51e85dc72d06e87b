"""Take a tuned model out of its run: as an adapter, or merged into the base.

A merged model is made with 32-bit sums, saved in the base's own dtype, opened again and compared with the adapter on
probe tokens before its folder gets its name.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.models.adapter import load_adapter
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.lora import Attached
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder

KINDS = ("adapter", "merged")
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def export_run(folder: RunFolder, recipe: Recipe, to: str, path: Path | None = None) -> Path:
    """Write the tuned model of a run to `path` (default `<run>/export/<to>`) and return it.

    Raises `RecipeError` for an unknown kind or a path that exists, `VerificationError` where the merged model differs.
    """
    if to not in KINDS:
        raise RecipeError(f"cannot export to {to!r}", where="export", expected=" or ".join(KINDS))
    target = path if path is not None else folder.path / "export" / to
    if target.exists():
        raise RecipeError("this path exists already", where=str(target), fix="choose another, or remove it")
    if folder.adapter.is_dir():
        if to == "adapter":
            with staged_folder(target) as staged:
                shutil.copytree(folder.adapter, staged, dirs_exist_ok=True)
            return target
        return _write_merged(folder, recipe, target)
    if not folder.model.is_dir():
        raise RecipeError("this run has no tuned model yet", where=str(folder.path), fix="tunesmith run RECIPE")
    if to == "adapter":
        raise RecipeError("a fully tuned model is no adapter", where="method.type", expected="merged")
    with staged_folder(target) as staged:
        shutil.copytree(folder.model, staged, dirs_exist_ok=True)
    return target


def _write_merged(folder: RunFolder, recipe: Recipe, target: Path) -> Path:
    base = load_base(recipe.base)
    attached = load_adapter(base.model, folder.adapter)
    probe = _probe(base)
    expected = _logits(base.model, probe)
    merge(base.model, attached)
    with staged_folder(target) as staged:
        base.model.save_pretrained(staged)
        base.tokenizer.save_pretrained(staged)
        _verify(staged, probe, expected)
    return target


def merge(model: Any, attached: Attached) -> None:
    """Put `W + s B A` in place of every adapted layer, in place."""
    for name, layer in attached.layers.items():
        merged = layer.merged_weight.detach()
        layer.base.weight.data.copy_(merged.t() if layer.conv1d else merged)
        model.set_submodule(name, layer.base)


def _probe(base: LoadedBase) -> torch.Tensor:
    vocabulary = base.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (2, 24), generator=generator).to(base.model.device)


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits.double()


def _verify(folder: Path, probe: torch.Tensor, expected: torch.Tensor) -> None:
    """Open what was written as anybody would, and compare."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).to(probe.device).eval()
    error = float((_logits(model, probe) - expected).norm() / expected.norm())
    allowed = _TOLERANCE[model.dtype]
    if not error <= allowed:
        raise VerificationError(
            f"logits of the merged model differ from the adapter's by {error:.1e} (relative)",
            where=str(folder),
            expected=f"at most {allowed:.0e}",
            fix="export the adapter instead, and report this",
        )
