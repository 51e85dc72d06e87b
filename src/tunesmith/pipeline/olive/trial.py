"""`--test`: the same on a model of the same architecture with two layers and random weights, to see that all works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import EngineError
from tunesmith.models.load import base_folder
from tunesmith.runs import staged_folder

if TYPE_CHECKING:
    from tunesmith.pipeline.olive.exports import ExportPlan
    from tunesmith.pipeline.olive.finetune import Plan

LAYERS, SEED = 2, 0
FOLDER = "reference_hf_model"
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")


def on_small_model(plan: Plan) -> Plan:
    """The plan with a small model in place of its base, written below the output folder."""
    base = plan.recipe.base
    folder = base_folder(base.model)
    small = plan.output / FOLDER
    write_small(folder or Path(base.model), small, base.trust_remote_code)
    recipe = plan.recipe.model_copy(update={"base": base.model_copy(update={"model": str(small.resolve())})})
    return replace(plan, recipe=recipe)


def write_small(source: Path, target: Path, trust_remote_code: bool) -> None:
    """A model folder with the configuration and tokenizer of `source`, two layers and random weights.

    Raises `EngineError` for a configuration that does not say how many layers there are.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    inner = config.get_text_config()
    names = [name for name in _COUNTS if isinstance(getattr(inner, name, None), int)]
    if not names:
        raise EngineError(
            "its configuration does not say how many layers there are", where=str(source), fix="leave out --test"
        )
    for name in names:
        setattr(inner, name, min(LAYERS, getattr(inner, name)))
    for name in _PER_LAYER:
        if isinstance(kinds := getattr(inner, name, None), list):
            setattr(inner, name, kinds[:LAYERS])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    with staged_folder(target) as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)


def small_export(plan: ExportPlan) -> ExportPlan:
    """An export's plan with a small model in place of its own; an adapter does not fit that, and is left out."""
    subject = plan.subject
    source = subject.source()
    small = plan.output / FOLDER
    write_small(source.base_folder, small, subject.trust_remote_code)
    left = ("--adapter_path: left out, as it does not fit the small model of --test",) if subject.is_adapter else ()
    kind = "onnx" if plan.target.kind == "onnx-multi" else plan.target.kind
    return replace(
        plan, subject=type(subject)(subject.name, None, str(small.resolve())), target=replace(plan.target, kind=kind),
        notes=(*plan.notes, *left),
    )  # fmt: skip
