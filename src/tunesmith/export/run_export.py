"""Take a tuned model out of its run: as an adapter, or merged into the base.

Whatever leaves a run takes along the chat template it was trained with, and a whole model also the tokens that end an
answer, so that other tools ask as the run did. A merged model is opened again, as anybody would, and compared with the
tuned one on probe tokens before its folder gets its name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.export.merging import merge, refuse_merging
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.methods import CARD, load_tuned
from tunesmith.models.model_card import model_card
from tunesmith.models.writing import system_errors
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder
from tunesmith.text.render import Renderer
from tunesmith.text.templates import BUILT_IN

KINDS = ("adapter", "merged")
TEMPLATE = "chat_template.jinja"
"""Where `transformers` looks for a tokenizer's chat template."""
_GENERATION = "generation_config.json"
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_DEQUANTISED = "The linear layers here hold the numbers that those stood for, with what was learnt added."


def export_run(folder: RunFolder, recipe: Recipe, to: str, path: Path | None = None) -> Path:
    """Write the tuned model of a run to `path` (default `<run>/export/<to>`) and return it.

    `recipe` is the run's resolved one. Raises `RecipeError` for an unknown kind, a kind that the method does not have,
    or a path that exists; `EngineError` for a method that cannot be merged; `VerificationError` where the merged model
    differs; `ResourceError` where it cannot be written.
    """
    if to not in KINDS:
        raise RecipeError(f"cannot export to {to!r}", where="export", expected=" or ".join(KINDS))
    target = path if path is not None else folder.path / "export" / to
    if target.exists():
        raise RecipeError("this path exists already", where=str(target), fix="choose another, or remove it")
    if folder.adapter.is_dir():
        if to == "merged":
            refuse_merging(recipe.method.type)
            return _write_merged(folder, recipe, target)
        return _copy_adapter(folder, recipe, target)
    if not folder.model.is_dir():
        raise RecipeError("this run has no tuned model yet", where=str(folder.path), fix="tunesmith run RECIPE")
    if to == "adapter":
        raise RecipeError("a fully tuned model is no adapter", where="method.type", expected="merged")
    with staged_folder(target) as staged:
        shutil.copytree(folder.model, staged, dirs_exist_ok=True)
        _write_ways_of_asking(staged, recipe)
    return target


def _copy_adapter(folder: RunFolder, recipe: Recipe, target: Path) -> Path:
    with staged_folder(target) as staged:
        shutil.copytree(folder.adapter, staged, dirs_exist_ok=True)
        template = _own_template(recipe)
        if template is not None:
            (staged / TEMPLATE).write_text(template, encoding="utf-8")
            with (staged / CARD).open("a", encoding="utf-8") as card:
                card.write(
                    "\n## Chat template\n\n"
                    f"It was trained with the template in `{TEMPLATE}`, which is not the base's own:\n\n"
                    f'```python\ntokenizer.chat_template = open(f"{{ADAPTER}}/{TEMPLATE}").read()\n```\n'
                )
    return target


def _write_merged(folder: RunFolder, recipe: Recipe, target: Path) -> Path:
    base = load_base(recipe.base)
    dtype = base.model.dtype
    tuning = load_tuned(base, folder.adapter, recipe.method)
    probe = _probe(base)
    expected = _logits(base.model, probe)
    merge(base.model, tuning, dtype)
    note = f"{tuning.note} {_DEQUANTISED}" if tuning.note else ""
    with staged_folder(target) as staged:
        with system_errors(staged):
            base.model.save_pretrained(staged)
            base.tokenizer.save_pretrained(staged)
        card = model_card(base, f"{tuning.words}, merged into the base", tuning.added, note)
        (staged / CARD).write_text(card, encoding="utf-8")
        _write_ways_of_asking(staged, recipe)
        _verify(staged, probe, expected)
    return target


def _own_template(recipe: Recipe) -> str | None:
    """The chat template's source where it is not the base tokenizer's own, or nothing is asked."""
    name = recipe.base.chat_template
    if recipe.data.columns.second is not None or name in ("auto", "tokenizer"):
        return None
    return BUILT_IN[name] if name in BUILT_IN else Path(name).read_text(encoding="utf-8")


def _write_ways_of_asking(folder: Path, recipe: Recipe) -> None:
    """Into a whole model's folder: the chat template, and the tokens that end an answer."""
    if recipe.data.columns.second is not None:  # pairs are read as they are, and nothing is answered
        return
    from transformers import AutoTokenizer

    template = _own_template(recipe)
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
    stops = sorted(Renderer(AutoTokenizer.from_pretrained(folder), recipe.base.chat_template).stop_ids)
    path = folder / _GENERATION
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


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
            f"logits of the merged model differ from the tuned one's by {error:.1e} (relative)",
            where=str(folder),
            expected=f"at most {allowed:.0e}",
            fix="export the adapter instead, and report this",
        )
