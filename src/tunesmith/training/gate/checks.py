"""All checks of the gate that need no model of the user's."""

from __future__ import annotations

from tunesmith.training.gate.attention import attention_checks
from tunesmith.training.gate.layers import layer_checks
from tunesmith.training.gate.operations import operation_checks
from tunesmith.training.gate.optimizer import optimizer_checks
from tunesmith.training.gate.steps import step_checks
from tunesmith.training.gate.types import Check


def gate_checks() -> tuple[Check, ...]:
    """Operations first, whole steps last: where both fail, the first names the cause."""
    return (*operation_checks(), *attention_checks(), *layer_checks(), *optimizer_checks(), *step_checks())
