"""Running a causal model on a packed stream: the trunk by `transformers`, head and loss by us.

`LanguageModel` holds a `transformers` causal model and knows how to get hidden states of a packed stream, and how its
head turns them into logits. Whether our reading of the head is right is not assumed but measured once (`verify`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import EngineError
from tunesmith.models.lora import LoraLinear
from tunesmith.ops import packed_attention
from tunesmith.ops.cross_entropy import LogitRule, head_cross_entropy
from tunesmith.ops.packed_attention import Packing


class LanguageModel:
    """A causal model ready to be trained on packed streams.

    Attributes
    ----------
    model: the `transformers` model, LoRA layers included.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.trunk: nn.Module = getattr(model, model.base_model_prefix)
        self.rule = _logit_rule(model.config)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def hidden(self, ids: Tensor, packing: Packing) -> Tensor:
        """Last hidden states [T, H] of a stream of ids [T]; needs the `packed` context."""
        out = self.trunk(input_ids=ids[None, :], position_ids=packing.positions, use_cache=False, packing=packing)
        return out.last_hidden_state[0]  # type: ignore[no-any-return]

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, H] and bias [V] of the output layer, with any adapter on it added (differentiably)."""
        head = self.model.get_output_embeddings()
        if isinstance(head, LoraLinear):
            return head.merged_weight, head.base.bias
        return head.weight, getattr(head, "bias", None)

    def loss_sum(self, ids: Tensor, packing: Packing, weights: Tensor) -> Tensor:
        """Weighted sum of cross-entropies of predicting each token from those before it in its document.

        `ids` [T] int64, `weights` [T] (weight of predicting token t). Documents without any weight cost no head.
        """
        hidden = self.hidden(ids, packing)
        learnt = torch.nonzero(weights).squeeze(1)
        weight, bias = self.head()
        return head_cross_entropy(hidden[learnt - 1], weight, bias, ids[learnt], weights[learnt], self.rule)

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Within this context the model's attention is the packed one."""
        packed_attention.register()
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(packed_attention.ATTENTION)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    @torch.no_grad()
    def verify(self) -> None:
        """Check on two random documents that packed logits are the model's own; raises `EngineError` if not.

        This is what makes any `transformers` architecture safe here: one whose forward pass does something with
        logits, positions or masks that we do not know about is refused instead of trained wrongly.
        """
        was_training = self.model.training
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        documents = [torch.randint(0, vocabulary, (n,), generator=generator).to(self.device) for n in (7, 12)]
        try:
            plain = torch.cat([self.model(input_ids=d[None], use_cache=False).logits[0] for d in documents])
            with self.packed():
                packing = Packing.of([len(d) for d in documents], self.device)
                hidden = self.hidden(torch.cat(documents), packing)
                weight, bias = self.head()
                ours = self.rule(nn.functional.linear(hidden, weight, bias))
        finally:
            self.model.train(was_training)
        error = float((ours.double() - plain.double()).norm() / plain.double().norm().clamp_min(1e-30))
        allowed = 0.03 if plain.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if not error <= allowed:
            raise EngineError(
                f"logits of the packed computation differ from the model's own by {error:.2e} (relative)",
                where=type(self.model).__name__,
                expected=f"at most {allowed:.0e}",
                fix="this architecture changes hidden states or logits in a way not supported yet; use another base",
            )


def _logit_rule(config: Any) -> LogitRule:
    """The steps between head product and logits that `transformers` configurations name."""
    text = config.get_text_config()
    scale = 1.0
    if getattr(text, "logit_scale", None) is not None:  # Cohere
        scale *= float(text.logit_scale)
    if getattr(text, "logits_scaling", None) is not None:  # Granite
        scale /= float(text.logits_scaling)
    cap = getattr(text, "final_logit_softcapping", None)
    return LogitRule(scale=scale, softcap=None if cap is None else float(cap))
