"""What a loop may take, what it has done, and how quickly it works."""

from __future__ import annotations

import time
from dataclasses import dataclass

_OLD = 0.9
"""Weight of what was measured before in a running mean."""


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """rows: answers in work at once. waiting: answers that may wait. memory: bytes of keys and values.
    stall: seconds by which reading prompts may lengthen a step while others write."""

    rows: int = 32
    waiting: int = 256
    memory: int = 1 << 30
    stall: float = 0.1


@dataclass(slots=True)
class Counts:
    """What a loop has done."""

    requests: int = 0
    failed: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    preempted: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Pace:
    """Running means: seconds for a token of a prompt, and from one answer's end to the next while there is work."""

    per_read_token: float = 0.0
    per_answer: float = 0.0
    _last_end: float | None = None

    def read(self, tokens: int, seconds: float) -> None:
        each = seconds / tokens
        self.per_read_token = each if not self.per_read_token else _OLD * self.per_read_token + (1 - _OLD) * each

    def ended(self, busy: bool) -> None:
        now = time.perf_counter()
        if self._last_end is not None:
            each = now - self._last_end
            self.per_answer = each if not self.per_answer else _OLD * self.per_answer + (1 - _OLD) * each
        self._last_end = now if busy else None
