"""The one room that knows all stages, and passes each what it must not look up itself."""

from tunesmith.pipeline.check import CheckReport, check, check_file, fix
from tunesmith.pipeline.loading import load_run
from tunesmith.pipeline.prepare import DataFindingsError
from tunesmith.pipeline.redeciding import redecide
from tunesmith.pipeline.result import Model, Result
from tunesmith.pipeline.run import run

__all__ = [
    "CheckReport",
    "DataFindingsError",
    "Model",
    "Result",
    "check",
    "check_file",
    "fix",
    "load_run",
    "redecide",
    "run",
]
