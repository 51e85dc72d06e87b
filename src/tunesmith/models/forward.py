"""Running a causal model on a packed stream: the trunk by `transformers`, head and loss by us.

`LanguageModel` holds a `transformers` causal model and knows how to get hidden states of a packed stream, and how its
head turns them into logits. Whether our reading of the head is right is not assumed but measured once (`verify`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.errors import EngineError
from tunesmith.models.lora import LoraLinear
from tunesmith.models.trunk import (
    TrunkStates,
    decoder_layers,
    draws_chance,
    frozen_layers,
    skipping,
    states_entering,
)
from tunesmith.ops import packed_attention
from tunesmith.ops.cross_entropy import LogitRule, head_cross_entropy
from tunesmith.ops.fixed_packing import AnyPacking, FixedPacking
from tunesmith.ops.packing import Packing


class Stream(Protocol):
    """What a forward pass wants of a batch: ids [T], their packing, and the stream places of each document's tokens."""

    @property
    def ids(self) -> Tensor: ...

    @property
    def packing(self) -> Packing: ...

    @property
    def documents(self) -> Sequence[Tensor]: ...


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
        self._cache: TrunkStates | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def hidden(self, ids: Tensor, packing: AnyPacking) -> Tensor:
        """Last hidden states [T, H] of a stream of ids [T]; needs the `packed` context.

        With a trunk cache that knows all documents of the stream, the layers below it are not computed. It is not asked
        about streams of a fixed shape.
        """
        if self._cache is None or isinstance(packing, FixedPacking):
            return self._run(ids, packing)
        states = _known_states(self._cache, ids, packing)
        if states is None:
            return self._run(ids, packing)
        with skipping(decoder_layers(self.trunk), states[None].to(ids.device), self._cache.first_layer):
            return self._run(ids, packing)

    def states_entering(self, layer: int, ids: Tensor, packing: Packing) -> Tensor:
        """Hidden states [T, H] of a stream of ids [T] as they enter decoder layer `layer` (from 1 on)."""
        with states_entering(decoder_layers(self.trunk), layer) as states:
            self._run(ids, packing)
        return states[0][0]

    def _run(self, ids: Tensor, packing: AnyPacking) -> Tensor:
        out = self.trunk(input_ids=ids[None, :], position_ids=packing.positions, use_cache=False, packing=packing)
        return out.last_hidden_state[0]  # type: ignore[no-any-return]

    @property
    def frozen_layers(self) -> int:
        """How many of the lowest decoder layers, and the embeddings below them, training leaves as they are."""
        return frozen_layers(self.model, self.trunk)

    def pooled(self, batch: Stream) -> Tensor:
        """Mean of the last hidden states over each document's tokens, [documents, H]; needs the `packed` context."""
        hidden = self.hidden(batch.ids, batch.packing)
        documents = batch.documents
        shares = hidden.new_zeros(len(documents), len(hidden))
        for row, places in zip(shares, documents, strict=True):
            row[places] = 1 / len(places)
        return shares @ hidden

    def use_trunk_cache(self, cache: TrunkStates | None) -> None:
        """From now on take the states that enter layer `cache.first_layer` from it, for documents it knows.

        None computes them again. Raises `EngineError` where they are not the same throughout the training.
        """
        if cache is not None:
            self.require_constant(cache.first_layer)
        self._cache = cache

    def require_constant(self, layer: int) -> None:
        """Raise `EngineError` unless the states entering decoder layer `layer` are the same throughout a training."""
        if not 1 <= layer <= self.frozen_layers:
            raise EngineError(
                f"the states entering layer {layer} cannot be kept: {self.frozen_layers} layers are frozen",
                where=type(self.model).__name__,
                fix="train the last layers only (method.last_layers), or set train.cache_trunk: off",
            )
        if draws_chance(self.trunk, below=layer):
            raise EngineError(
                "the frozen layers have dropout, so their states are not the same each time",
                where=type(self.model).__name__,
                fix="set train.cache_trunk: off",
            )

    @property
    def draws_chance(self) -> bool:
        """Whether a forward pass in training draws random numbers; then documents cannot share a prefix exactly."""
        return draws_chance(self.model)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, H] and bias [V] of the output layer, with any adapter on it added (differentiably).

        In the type of the model, also where a head trained in full is held in a wider one.
        """
        head = self.model.get_output_embeddings()
        if isinstance(head, LoraLinear):
            return head.merged_weight, head.base.bias
        dtype = getattr(head, "model_dtype", head.weight.dtype)
        bias: Tensor | None = getattr(head, "bias", None)
        return head.weight.to(dtype), None if bias is None else bias.to(dtype)

    def loss_sum(
        self, ids: Tensor, packing: Packing, weights: Tensor, previous: Tensor, learnt: Tensor | None = None
    ) -> Tensor:
        """Weighted sum of cross-entropies of predicting each token from those before it in its document.

        `ids` [T] int64, `weights` [T] (weight of predicting token t), `previous` [T] int64 (stream place of the token
        before t in its document). Documents without any weight cost no head. `learnt` [S]: places with a weight, where
        they are known; looking for them waits for the device.
        """
        if learnt is None:
            learnt = torch.nonzero(weights).squeeze(1)
        return self.loss_at(ids, packing, previous[learnt], ids[learnt], weights[learnt])

    def loss_at(self, ids: Tensor, packing: AnyPacking, places: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of cross-entropies of `targets` [S], each predicted at a place [S] of the stream `ids` [T]."""
        hidden = self.hidden(ids, packing)
        weight, bias = self.head()
        return head_cross_entropy(hidden[places], weight, bias, targets, weights, self.rule)

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
        """Check on random documents that packed logits are the model's own; raises `EngineError` if not.

        This is what makes any `transformers` architecture safe here: one whose forward pass does something with
        logits, positions or masks that we do not know about is refused instead of trained wrongly. One document
        stands alone, two continue a prefix they share.
        """
        was_training = self.model.training
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        lengths = [9, 5, 3, 7]
        words = torch.randint(0, vocabulary, (sum(lengths),), generator=generator)
        prefix, *suffixes, alone = torch.split(words, lengths)
        documents = [torch.cat([prefix, suffix]).to(self.device) for suffix in suffixes] + [alone.to(self.device)]
        try:
            first, second, third = (self.model(input_ids=d[None], use_cache=False).logits[0] for d in documents)
            plain = torch.cat([first, second[len(prefix) :], third])
            with self.packed():
                packing = Packing.of(lengths, self.device, continued=[(0, 2)])
                hidden = self.hidden(words.to(self.device), packing)
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


def _known_states(cache: TrunkStates, ids: Tensor, packing: Packing) -> Tensor | None:
    """States [T, H] of a whole stream, or None if one of its documents is not known."""
    words = ids.cpu().numpy()
    known: dict[int, Tensor] = {}
    shared = {prefix.start for prefix in packing.prefixes}
    for prefix, own in packing.segments:
        if own.start in shared:  # comes with the first document that continues it
            continue
        length = prefix.stop - prefix.start
        begin = 0 if prefix.start not in known else length
        states = cache.states(np.concatenate([words[prefix], words[own]]), begin)
        if states is None:
            return None
        if length and not begin:
            known[prefix.start], states = states[:length], states[length:]
        known[own.start] = states
    return torch.cat([known[start] for start in sorted(known)])


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
