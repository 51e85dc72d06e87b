"""The correctness gate: every fast path beside its plain float64 reference, in CI and on the user's machine.

A check computes both on random ragged batches and says which tensor is furthest off, by how much, and what is allowed
(`compare.py`). `gate_checks` are those of operations and of small models' steps; `examine` takes a step of a cut of the
user's own model.
"""

from tunesmith.training.gate.checks import gate_checks
from tunesmith.training.gate.types import Check, Outcome, run_gate

__all__ = ["Check", "Outcome", "gate_checks", "run_gate"]
