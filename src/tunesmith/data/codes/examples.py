"""Findings about all examples together: their number, copies, likeness, conflicts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

EXAMPLES: Mapping[str, Code] = MappingProxyType(
    {
        "no_usable_rows": Code(
            "error",
            "no row can be used",
            "There is nothing to learn.",
            "correct the findings listed for the file",
        ),
        "too_few_rows": Code(
            "warning",
            "few rows",
            "A tuned model rarely beats a good prompt with so few examples, and no test can show it.",
            "collect more rows; some hundred is a good start",
        ),
        "few_test_rows": Code(
            "warning",
            "few test rows",
            "The interval around every score will be too wide to tell candidates apart.",
            "raise data.split.test or supply a larger data.test file",
        ),
        "identical_rows": Code(
            "error",
            "all rows are the same",
            "There is one thing to learn, and nothing left to test with.",
            "check how the file was made",
        ),
        "duplicate_row": Code(
            "warning",
            "rows that are exact copies of another row",
            "Copies count double in training; they stay in one part, so they never leak into the test.",
            "remove the copies",
        ),
        "duplicate_normalised": Code(
            "warning",
            "rows that differ from another row only by case, spaces or invisible characters",
            "They count double in training like exact copies, and are easily overlooked.",
            "keep one of them; `tunesmith check --fix` does so",
        ),
        "near_duplicate": Code(
            "warning",
            "rows that are nearly the same as another row",
            "They count double in training; with one in training and one in the test, the test is a leak.",
            "keep one of each group, or leave them: splits made here keep them in one part",
        ),
        "conflicting_answers": Code(
            "warning",
            "the same input with different answers",
            "At most one of them can be predicted; the others lower every score.",
            "decide for one answer, or put into the input what makes the difference",
        ),
        "answer_equals_input": Code(
            "warning",
            "an answer identical to its input",
            "It teaches copying; often two columns were mixed up.",
            "check data.columns or data.template, then the rows",
        ),
    }
)
