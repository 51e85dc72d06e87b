"""What will be learnt, token by token, and how long rows are: the facts `check` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample


@dataclass(frozen=True, slots=True)
class TokenPreview:
    """One sample as people read it: pieces of text with their loss weight."""

    example_id: str
    tokens: tuple[tuple[str, float], ...]
    ends_turn: bool


@dataclass(frozen=True, slots=True)
class LengthFacts:
    """Token counts over samples. `padding_share`: what a trainer padding batches in file order would waste."""

    lengths: tuple[int, ...]
    tokens: int
    supervised: int
    longest: int
    mean: float
    too_long: tuple[str, ...]
    padding_share: float


def preview(renderer: Renderer, samples: Sequence[Sample]) -> list[TokenPreview]:
    """Each sample with its tokens as text."""
    return [
        TokenPreview(
            s.example_id,
            tuple(zip(renderer.token_texts(s.ids.tolist()), s.weights.tolist(), strict=True)),
            renderer.ends_turn(s),
        )
        for s in samples
    ]


def length_facts(samples: Sequence[Sample], max_length: int, batch: int = 8) -> LengthFacts:
    """Counts of tokens, of what is learnt, and of what padding would cost."""
    lengths = [len(s.ids) for s in samples]
    padded = sum(max(lengths[i : i + batch]) * len(lengths[i : i + batch]) for i in range(0, len(lengths), batch))
    total = sum(lengths)
    return LengthFacts(
        lengths=tuple(lengths),
        tokens=total,
        supervised=sum(s.supervised for s in samples),
        longest=max(lengths, default=0),
        mean=total / len(lengths) if lengths else 0.0,
        too_long=tuple(s.example_id for s, n in zip(samples, lengths, strict=True) if n > max_length),
        padding_share=1 - total / padded if padded else 0.0,
    )
