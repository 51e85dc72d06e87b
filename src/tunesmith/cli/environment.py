"""What is set in the process before torch and transformers are imported; a variable that is set already is kept."""

from __future__ import annotations

import os

DEFAULTS = {
    # OpenMP threads that spin while they wait take the cores from those that work: up to three times slower where
    # cores are few or shared. Passive ones sleep.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Tokenising is a small part of the work; its threads beside torch's only draw warnings after a fork.
    "TOKENIZERS_PARALLELISM": "false",
    # Nothing is reported to anybody.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # What matters is said by Tunesmith itself.
    "TRANSFORMERS_VERBOSITY": "error",
}


def set_defaults() -> None:
    """Set each of `DEFAULTS` that is not set. Must run before torch is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
