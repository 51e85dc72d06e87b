"""Rows go in, examples come out, with everything that is wrong named by line.

`read_rows` reads a source, `load_examples` makes examples of it (`scan_examples` of any number, a block at a time),
`check_examples` looks at them all, `make_splits` divides them, `infer_task` and `propose` say what they seem to be,
`convert` writes them in another format. `CODES` lists every finding.
"""

from tunesmith.data.checks import check_examples
from tunesmith.data.codes import CODES, Code
from tunesmith.data.convert import Conversion, convert, targets
from tunesmith.data.examples import EVERYTHING, LEARNT, ExampleScan, LoadResult, load_examples, scan_examples
from tunesmith.data.proposal import Proposal, propose
from tunesmith.data.reading import ReadResult, read_rows, source_sha256
from tunesmith.data.splits import make_splits, part_hash
from tunesmith.data.task_type import explain_task, infer_task
from tunesmith.data.template import refuse_unknown_specials, special_literals
from tunesmith.data.types import Content, Example, Finding, Message, Row, Severity, Splits, ToolCall

__all__ = [
    "CODES",
    "EVERYTHING",
    "LEARNT",
    "Code",
    "Content",
    "Conversion",
    "Example",
    "ExampleScan",
    "Finding",
    "LoadResult",
    "Message",
    "Proposal",
    "ReadResult",
    "Row",
    "Severity",
    "Splits",
    "ToolCall",
    "check_examples",
    "convert",
    "explain_task",
    "infer_task",
    "load_examples",
    "make_splits",
    "part_hash",
    "propose",
    "read_rows",
    "refuse_unknown_specials",
    "scan_examples",
    "source_sha256",
    "special_literals",
    "targets",
]
