"""Tuned models on their way out, each compared with the run's own before it is called finished."""

from tunesmith.export.run_export import KINDS, export_run

__all__ = ["KINDS", "export_run"]
