"""Rows go in, examples come out, with everything that is wrong named by line.

`read_rows` reads a file, `load_examples` makes examples of it, `check_examples` looks at them all, `make_splits`
divides them, `infer_task` and `propose` say what they seem to be. `CODES` lists every finding.
"""

from tunesmith.data.checks import check_examples
from tunesmith.data.codes import CODES, Code
from tunesmith.data.examples import LoadResult, load_examples
from tunesmith.data.proposal import Proposal, propose
from tunesmith.data.reading import ReadResult, read_rows
from tunesmith.data.splits import make_splits, part_hash
from tunesmith.data.task_type import explain_task, infer_task
from tunesmith.data.types import Example, Finding, Message, Row, Severity, Splits

__all__ = [
    "CODES",
    "Code",
    "Example",
    "Finding",
    "LoadResult",
    "Message",
    "Proposal",
    "ReadResult",
    "Row",
    "Severity",
    "Splits",
    "check_examples",
    "explain_task",
    "infer_task",
    "load_examples",
    "make_splits",
    "part_hash",
    "propose",
    "read_rows",
]
