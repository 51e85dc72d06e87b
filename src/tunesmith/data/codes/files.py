"""Findings about reading a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

_SAVE_UTF8 = "save the file as UTF-8, or name its encoding in data.encoding"

FILES: Mapping[str, Code] = MappingProxyType(
    {
        "wrong_encoding": Code(
            "error",
            "bytes that are not in the file's encoding",
            "A wrong encoding turns letters into rubbish, which a model then learns.",
            f"{_SAVE_UTF8} (for example data.encoding: latin-1, or cp1252)",
        ),
        "encoding_doubtful": Code(
            "warning",
            "the file is valid UTF-8 but is read with another encoding",
            "UTF-8 read as Latin-1 becomes two wrong characters per letter, and nothing else fails.",
            "remove data.encoding, unless a few sample rows look right as they are",
        ),
        "broken_json": Code(
            "error",
            "not valid JSON",
            "The row cannot be read, so it is missing from every part.",
            "correct the line; JSONL needs one complete JSON object on every line",
        ),
        "row_not_object": Code(
            "error",
            "a row that is not a JSON object",
            "Without names nobody can tell input from answer.",
            'write every row as an object, such as {"prompt": "…", "completion": "…"}',
        ),
        "duplicate_key": Code(
            "warning",
            "a key given twice in one object",
            "Only the last value is used, the other one is lost.",
            "keep one of the two, or rename one",
        ),
        "rest_unread": Code(
            "error",
            "the rest of the file could not be read",
            "All rows after this place are missing.",
            "correct the first broken place and check again",
        ),
        "unpaired_surrogate": Code(
            "error",
            "half of a surrogate pair in a text",
            "It is no character, so the text can be neither tokenised nor stored.",
            "remove the lone \\ud800-\\udfff escape, or write the character itself",
        ),
        "nul_byte": Code(
            "error",
            "a NUL character",
            "NUL is never text; it usually marks a damaged file or a wrong encoding.",
            f"remove the character; if the whole file looks like this, {_SAVE_UTF8}",
        ),
        "broken_csv": Code(
            "error",
            "a record that breaks the rules of quoting",
            "One open quotation mark can swallow every row behind it.",
            'close the quotation mark, and write a quotation mark inside a quoted cell twice ("")',
        ),
        "too_few_cells": Code(
            "error",
            "a record with fewer cells than the header",
            "Cells may have moved into the wrong column.",
            "give the record one cell per column; quote cells that hold the delimiter or a line break",
        ),
        "too_many_cells": Code(
            "error",
            "a record with more cells than the header",
            "Cells may have moved into the wrong column.",
            "quote cells that hold the delimiter, or remove the surplus cells",
        ),
        "duplicate_column": Code(
            "warning",
            "a column name used twice in the header",
            "A mapping by name would be ambiguous.",
            "rename one of the columns",
        ),
        "unnamed_column": Code(
            "warning",
            "a column without a name",
            "It is often a row number that was exported by accident.",
            "name or remove the column",
        ),
        "quotes_literal": Code(
            "info",
            "quotation marks are taken as ordinary characters",
            "Read as quoting, they would have broken rows.",
            "nothing, if the cells look right",
        ),
        "blank_line": Code(
            "info",
            "an empty line",
            "It is skipped.",
            "nothing, or remove it",
        ),
        "cell_not_text": Code(
            "error",
            "a cell that is neither text nor number, list or object",
            "It cannot be put into a text.",
            "leave the column out of the export, or write it as text",
        ),
        "broken_tags": Code(
            "error",
            "a sentence whose tokens and tags do not match",
            "The marked stretches cannot be told.",
            "give every line as many columns as the others: the token first, its tag last",
        ),
    }
)
