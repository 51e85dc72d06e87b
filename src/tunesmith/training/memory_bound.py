"""More than a training can take, in closed form: where even this is far below the limit, nothing has to be traced.

    held + weights three times + 32 per trained value + activations or answers + heap

Weights: what is held may not have them yet, they may become fp32, and layers on a CPU sum them with adapters, at most
all at once. A trained value is held, updated with two states, has a gradient, and is copied when it is saved: 20 bytes,
here 32. What a token leaves behind for the backward pass is in proportion to what enters and leaves each matrix: about
two numbers for each, here four. Attention by plain products adds a few numbers for each pair of tokens and head, in
every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.models.lora_init import FROM_WEIGHTS
from tunesmith.models.trunk import decoder_layers
from tunesmith.ops.cross_entropy import CHUNK
from tunesmith.recipe.schema import Method
from tunesmith.training.memory_model import RUNTIME, Row, heap_bytes, row_tokens, weight_bytes
from tunesmith.training.memory_trace import Answering
from tunesmith.training.plan import TrainingPlan

SAFE_SHARE = 0.5
"""Of the limit: what the bound must stay below to decide without a trace."""
_PER_TRAINED = 32
_NUMBERS = 4
"""Kept or made for each number that enters or leaves a matrix."""
_PAIRS = 4
"""Kept or made for each pair of tokens that see each other, and head."""


def memory_bound(
    model: Any,
    method: Method,
    plan: TrainingPlan,
    rows: Sequence[Row],
    held_bytes: int,
    *,
    answers: Answering | None = None,
    grown: bool = False,
) -> int | None:
    """Bytes that cross-entropy on `rows` by this method stays below, or None where no bound is known.

    Parameters
    ----------
    model: the base, nothing attached. plan: its micro-batch is the size that is asked about.
    held_bytes: what the process holds now. answers: what evaluations answer at once. grown: whether its vocabulary
        was, so that embeddings and head are trained.

    Known for full tuning and LoRA on weights that are not quantised.
    """
    if method.type not in ("full", "lora") or method.quantize != "none":
        return None
    weights = weight_bytes(model)
    wide: int = 4 * sum(p.numel() for p in model.parameters())
    ends = _matrix_ends(model)
    everything = method.type == "full" or method.modules_to_save or grown
    trained = wide // 4 if everything else 0
    if method.type == "lora":
        rank = max(method.rank, *method.rank_pattern.values(), 0)
        # Initialised from the weights, the first A and B are kept beside them.
        trained += sum(ends) * (rank * (2 if method.init in FROM_WEIGHTS else 1) + 1)
    longest = max(row_tokens(row) for row in rows)
    tokens = min(max(plan.micro_batch_tokens, longest), plan.batch_size * longest)
    size = max(4, int(model.dtype.itemsize))
    text = model.config.get_text_config()
    layers = len(decoder_layers(getattr(model, model.base_model_prefix)))
    pairs = size * _PAIRS * int(text.num_attention_heads)
    head = size * _NUMBERS * int(model.get_output_embeddings().weight.shape[0])
    per_token = size * _NUMBERS * sum(ends)
    taken = tokens * per_token + tokens * longest * pairs * layers + CHUNK * head
    if answers is not None:
        length = answers.prompt_tokens + answers.answer_tokens
        taken = max(taken, answers.prompts * (length * per_token + length**2 * pairs + head))
    kind = model.device.type
    static = held_bytes + RUNTIME[kind] + weights + 2 * wide + _PER_TRAINED * trained
    return static + taken + heap_bytes(taken, kind)


def _matrix_ends(model: Any) -> list[int]:
    """For each weight of decoder layers that has more than one dimension: how many numbers enter and leave it.

    Experts, which are one weight of three dimensions, count as if each worked on every token.
    """
    layers = decoder_layers(getattr(model, model.base_model_prefix))
    matrices = [p for p in layers.parameters() if p.ndim > 1]
    return [(p.shape[-1] + p.shape[-2]) * int(p.shape[:-2].numel()) for p in matrices]
