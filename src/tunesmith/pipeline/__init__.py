"""The one room that knows all stages, and passes each what it must not look up itself."""

from tunesmith.pipeline.check import CheckReport, check, check_file, fix
from tunesmith.pipeline.prepare import DataFindingsError
from tunesmith.pipeline.result import Model, Result
from tunesmith.pipeline.run import load_run, run

__all__ = ["CheckReport", "DataFindingsError", "Model", "Result", "check", "check_file", "fix", "load_run", "run"]
