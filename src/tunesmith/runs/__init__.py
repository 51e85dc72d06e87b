"""The folder of one run: recipe, manifest, event log, stage cache."""

from tunesmith.runs.atomic import staged_file, staged_folder, write_bytes, write_json, write_text
from tunesmith.runs.events import EventLog, Listener, read_events
from tunesmith.runs.folder import CHECK_REPORT, RunFolder, RunSummary, is_run, list_runs, resolve_run
from tunesmith.runs.manifest import environment
from tunesmith.runs.stages import stage_key

__all__ = [
    "CHECK_REPORT",
    "EventLog",
    "Listener",
    "RunFolder",
    "RunSummary",
    "environment",
    "is_run",
    "list_runs",
    "read_events",
    "resolve_run",
    "stage_key",
    "staged_file",
    "staged_folder",
    "write_bytes",
    "write_json",
    "write_text",
]
