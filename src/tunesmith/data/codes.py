"""Every finding the data room can report: one table, the only place where severity, reason and remedy are written.

An *error* means a row or file could not be understood (unreadable rows are left out and listed), a *warning* that it
was understood but will hurt or was left out on purpose, an *info* that it is worth knowing. Codes are stable: scripts
may match on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tunesmith.data.types import Severity


@dataclass(frozen=True, slots=True)
class Code:
    """What a code stands for: `title` opens the message, `why` says what it does to a model, `fix` what to do."""

    severity: Severity
    title: str
    why: str
    fix: str


_SAVE_UTF8 = "save the file as UTF-8, or name its encoding in data.encoding"

CODES: Mapping[str, Code] = MappingProxyType(
    {
        # Reading the file
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
        # From rows to examples
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
        # Chat rows
        "messages_not_list": Code(
            "error",
            "messages is not a list with at least one message",
            "The row holds no conversation.",
            'write messages as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        ),
        "message_not_object": Code(
            "error",
            "a message that is not an object",
            "It has neither role nor content.",
            'write it as {"role": "…", "content": "…"}',
        ),
        "unknown_role": Code(
            "error",
            "a message whose role is missing or unknown",
            "A chat template has no place for it.",
            "use system, developer, user or assistant",
        ),
        "content_not_text": Code(
            "error",
            "a message whose content is not a text",
            "Only text can be learnt here.",
            "write content as one string",
        ),
        "roles_out_of_order": Code(
            "error",
            "roles out of order",
            "Chat templates render such a conversation wrongly or refuse it.",
            "one system message at most, first; then user and assistant in turn",
        ),
        "no_final_answer": Code(
            "error",
            "a conversation that does not end with the assistant",
            "There is no answer to learn or to score.",
            "end the row with the assistant's message, or cut what follows it",
        ),
        "bad_weight": Code(
            "error",
            "a weight that is not a number from 0 to 1, or not on an assistant's message",
            "It decides what is learnt, so a guess would be wrong.",
            "use 0 or 1, on assistant messages only",
        ),
        "nothing_to_learn": Code(
            "warning",
            "every assistant message has weight 0; the row is left out",
            "Nothing in the row would be learnt.",
            "give at least one assistant message weight 1, or remove the row",
        ),
        "tools_not_learnt": Code(
            "warning",
            "tool definitions are not learnt yet; the row is used without them",
            "The model does not see which tools it could have called.",
            "nothing, if the answers stand without tools",
        ),
        "tool_calls_not_learnt": Code(
            "warning",
            "conversations with tool calls are not learnt yet; the row is left out",
            "Without the calls the turns do not follow from each other.",
            "write the call as text in content, or leave the row out",
        ),
        "unknown_message_key": Code(
            "info",
            "keys of messages that are not used",
            "What they say is not learnt.",
            "nothing, or remove the keys",
        ),
        # All examples together
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
        "label_seen_once": Code(
            "warning",
            "labels that occur in one row only",
            "Such a label is either never learnt or never tested.",
            "collect more rows for the label, or merge it with another",
        ),
        "label_variants": Code(
            "warning",
            "labels that differ only by case or spaces",
            "They are scored as different labels.",
            "write the label in one way",
        ),
        "label_imbalance": Code(
            "warning",
            "very uneven labels",
            "Accuracy then mostly measures the largest label; macro-F1 shows the rest.",
            "collect more rows of the small labels, or decide by macro_f1",
        ),
        "single_label": Code(
            "error",
            "every row has the same label",
            "There is nothing to tell apart.",
            "check which column holds the label",
        ),
        "label_not_in_train": Code(
            "warning",
            "test labels that no training row has",
            "No candidate can learn them.",
            "add training rows with the label, or remove it from the test",
        ),
        "test_leak_row": Code(
            "warning",
            "test rows that also are training or validation rows",
            "Scores on them measure memory, not ability.",
            "remove these rows from the training and validation files",
        ),
        "test_leak_prompt": Code(
            "warning",
            "test inputs that also occur in training or validation, with another answer",
            "The model has seen the question, and learnt a different answer to it.",
            "remove these rows from the training and validation files",
        ),
        "validation_leak_row": Code(
            "warning",
            "validation rows that also are training rows",
            "The best checkpoint is then chosen by what was memorised.",
            "remove these rows from the training file",
        ),
        "validation_leak_prompt": Code(
            "warning",
            "validation inputs that also occur in training, with another answer",
            "The best checkpoint is then chosen by what was memorised.",
            "remove these rows from the training file",
        ),
    }
)
