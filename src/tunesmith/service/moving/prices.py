"""What a job has cost where it was trained, by the last list prices that are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.service.jobs.names import root_of

REINFORCEMENT_PER_HOUR: Mapping[str, float] = {"o4-mini": 100.0}
"""US dollars an hour of training; other jobs are priced by the token, see `pipeline.devices.SERVICES`."""
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}\Z")


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars, None where they are not known; `how` says how they were reckoned, or why not."""

    dollars: float | None
    how: str


def cost_there(job: Mapping[str, Any], started: int | None = None) -> Cost:
    """The price of a job's training. `started`: seconds since 1970, by its events."""
    from tunesmith.pipeline.devices import SERVICES

    model = _DATE.sub("", root_of(str(job.get("model", ""))))
    if (job.get("method") or {}).get("type") == "reinforcement":
        return _by_the_hour(job, model, started)
    price = next((one.per_million_tokens for one in SERVICES if one.name == f"OpenAI {model}"), None)
    tokens = job.get("trained_tokens")
    if price is None:
        return Cost(None, f"no list price of {model or 'this model'} is known here")
    if not isinstance(tokens, int):
        return Cost(None, "the job does not say how many tokens were trained")
    return Cost(tokens * price / 1e6, f"{tokens:,} tokens at ${price:g} a million")


def _by_the_hour(job: Mapping[str, Any], model: str, started: int | None) -> Cost:
    price, ended = REINFORCEMENT_PER_HOUR.get(model), job.get("finished_at")
    if price is None or started is None or not isinstance(ended, int):
        return Cost(None, "the hours of this reinforcement job are not known")
    hours = max(0, ended - started) / 3600
    return Cost(hours * price, f"at most: {hours:.2f} hours from start to end at ${price:g}, pauses included")
