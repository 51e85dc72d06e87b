"""What will be learnt, token by token, and how long rows are: the facts `check` and `data preview` show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample


@dataclass(frozen=True, slots=True)
class TokenPreview:
    """One sample as people read it: pieces of text with their loss weight.

    `special` says which pieces are special tokens, `ids` which numbers they are. `limit` is how many tokens a row may
    have; a longer row is left out of training, never cut. `ends_turn`: some learnt token ends a turn.
    """

    example_id: str
    tokens: tuple[tuple[str, float], ...]
    ends_turn: bool
    special: tuple[bool, ...] = ()
    ids: tuple[int, ...] = ()
    limit: int | None = None

    @property
    def supervised(self) -> int:
        """Tokens that are learnt, if the row is."""
        return sum(weight != 0 for _, weight in self.tokens)

    @property
    def cut(self) -> int | None:
        """The place of the first token that does not fit, or None where all do."""
        return self.limit if self.limit is not None and len(self.tokens) > self.limit else None

    @property
    def beyond(self) -> int:
        """Supervised tokens behind the limit: what a trainer that cuts rows would lose in silence."""
        return 0 if self.cut is None else sum(weight != 0 for _, weight in self.tokens[self.cut :])

    @property
    def lost(self) -> int:
        """Supervised tokens that are not learnt because the row does not fit: all of them, or none."""
        return 0 if self.cut is None else self.supervised


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


def preview(renderer: Renderer, samples: Sequence[Sample], limit: int | None = None) -> list[TokenPreview]:
    """Each sample with its tokens as text; `limit` is how many tokens a row may have."""
    special = np.asarray(sorted(renderer.special_ids), dtype=np.int64)
    return [
        TokenPreview(
            example_id=s.example_id,
            tokens=tuple(zip(renderer.token_texts(s.ids.tolist()), s.weights.tolist(), strict=True)),
            ends_turn=renderer.ends_turn(s),
            special=tuple(np.isin(s.ids, special).tolist()),
            ids=tuple(s.ids.tolist()),
            limit=limit,
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
