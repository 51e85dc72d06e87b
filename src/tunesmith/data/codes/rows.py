"""Findings about making an example of a row that is no conversation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

ROWS: Mapping[str, Code] = MappingProxyType(
    {
        "missing_column": Code(
            "error",
            "a row without a column that is needed",
            "The row has no input or no answer and is left out.",
            "add the column to the row, or remove the row",
        ),
        "unused_columns": Code(
            "info",
            "columns that are not used",
            "What they say cannot be learnt.",
            "use data.template to bring them into the input",
        ),
        "empty_prompt": Code(
            "warning",
            "an empty input; the row is left out",
            "A model would learn to answer to nothing.",
            "fill in the input or remove the row",
        ),
        "empty_answer": Code(
            "warning",
            "an empty answer; the row is left out",
            "A model would learn to say nothing.",
            "fill in the answer or remove the row",
        ),
        "bad_spans": Code(
            "error",
            "an answer that is not a list of spans",
            "The texts to extract cannot be found.",
            'write spans as [{"start": 0, "end": 4, "type": "FOOD", "entity": "…"}]',
        ),
        "answer_not_json": Code(
            "error",
            "an answer that is not a JSON list or object",
            "Extraction is scored by parsing the answer; this one counts as wrong for every candidate.",
            "write the answer as JSON (double quotation marks), or set task.type",
        ),
    }
)
