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
        "no_final_question": Code(
            "error",
            "a conversation that does not end with the user",
            "There is nothing to ask.",
            "end the row with the user's message",
        ),
        "tool_call_broken": Code(
            "error",
            "a tool call that cannot be read",
            "A model would learn to make calls that nobody can carry out.",
            'give every call a name, and arguments as the JSON text of an object, such as {"city": "Oslo"}',
        ),
        "tool_result_unmatched": Code(
            "error",
            "a tool's result that belongs to no call",
            "Chat templates render such a conversation wrongly or refuse it.",
            "let each result follow the assistant's calls, with the tool_call_id of one of them",
        ),
        "tools_broken": Code(
            "error",
            "tool definitions that cannot be read",
            "The model would not see which tools it may call.",
            'write tools as [{"type": "function", "function": {"name": "…", "parameters": {…}}}]',
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
        "preference_equal": Code(
            "warning",
            "a better and a worse answer that are the same; the row is left out",
            "There is nothing to prefer.",
            "correct one of the two, or remove the row",
        ),
        "preference_apart": Code(
            "error",
            "two answers to different questions",
            "A preference compares answers to the same question.",
            "let both conversations begin alike",
        ),
        "rating_unclear": Code(
            "error",
            "a rating that is neither true nor false",
            "It decides whether the answer is learnt or avoided.",
            "write label as true or false",
        ),
        "rejected_not_learnt": Code(
            "warning",
            "answers that are not wanted are not learnt from; only the better ones are",
            "What makes one answer better than the other is half of what such rows say.",
            "nothing, if the better answers are worth learning by themselves; or choose an objective for preferences",
        ),
        "bad_answer_left_out": Code(
            "warning",
            "an answer that is rated bad; the row is left out",
            "Learning it would teach what is not wanted.",
            "nothing; or choose an objective that learns from bad answers too",
        ),
        "no_answer_given": Code(
            "error",
            "a question without an answer; the row is left out",
            "There is nothing to learn from it without a grader.",
            "add the answer as the last message",
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
        "label_seen_once": Code(
            "warning",
            "labels that occur in one row only",
            "Such a label is either never learnt or never tested.",
            "collect more rows for the label, or merge it with another",
        ),
        "label_rare": Code(
            "warning",
            "labels with fewer than five rows",
            "A label needs a few rows in training and a few in the test before a score says anything about it.",
            "collect more rows of these labels, or merge them with others",
        ),
        "label_noise": Code(
            "warning",
            "labels that look wrong",
            "A classifier that never saw these rows prefers another label. Wrong labels are learnt like right ones.",
            "look at these rows first; more than half of such suspicions are right where a few per cent are wrong",
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
        "test_leak_near": Code(
            "warning",
            "test rows that are nearly the same as training or validation rows",
            "Scores on them measure memory, not ability.",
            "remove these rows from the training and validation files; scores are given with and without them",
        ),
        "test_leak_near_prompt": Code(
            "warning",
            "test inputs that are nearly the same as training or validation inputs, with another answer",
            "The model has seen nearly the same question.",
            "remove these rows from the training and validation files",
        ),
        "test_is_train": Code(
            "error",
            "the test rows are training rows",
            "A model is never judged by what it has learnt: no score from this test would mean anything.",
            "name another file in data.test, or remove it so that test rows are split off",
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
        "validation_leak_near": Code(
            "warning",
            "validation rows that are nearly the same as training rows",
            "The best checkpoint is then chosen by what was memorised.",
            "remove these rows from the training file",
        ),
        "validation_leak_near_prompt": Code(
            "warning",
            "validation inputs that are nearly the same as training inputs, with another answer",
            "The model has seen nearly the same question.",
            "remove these rows from the training file",
        ),
        # Quality of the texts
        "near_empty_answer": Code(
            "warning",
            "answers that say nothing",
            "A dash, dots or a placeholder is learnt as an answer like any other.",
            "write the answer or remove the row",
        ),
        "mojibake": Code(
            "warning",
            "text that was decoded with the wrong encoding",
            "UTF-8 read as Windows-1252 turns one letter into two or three wrong ones, which a model then learns.",
            "decode the source as UTF-8; `tunesmith check --fix` repairs what can be repaired without doubt",
        ),
        "replacement_character": Code(
            "warning",
            "characters that were lost in decoding (U+FFFD)",
            "The original letters are gone; the model learns the placeholder.",
            "export the rows again with the right encoding",
        ),
        "odd_characters": Code(
            "warning",
            "control, invisible or private characters",
            "They change the tokens of words that look the same to a reader.",
            "remove them; `tunesmith check --fix` does so",
        ),
        "html_remnants": Code(
            "warning",
            "HTML tags or entities inside the text",
            "Unless the task is about HTML, the model learns to write markup.",
            "strip the tags and decode the entities, or leave it if markup is meant",
        ),
        "special_tokens": Code(
            "warning",
            "special tokens of a chat template inside the text",
            "A template takes them for the end of a turn or the start of one; hosted services refuse the file.",
            "remove or rewrite the token, unless the row is already rendered and base.chat_template is raw",
        ),
        "mixed_script_words": Code(
            "warning",
            "words that mix letters of different scripts",
            "Look-alike letters (Cyrillic о for Latin o) make unknown tokens out of known words.",
            "write the word in one script",
        ),
        "script_mix": Code(
            "info",
            "rows mostly in another script than the rest",
            "A few rows in another script are seldom enough to learn it, and often there by accident.",
            "nothing if they belong; else remove them",
        ),
        "language_mix": Code(
            "info",
            "rows in another language than the rest",
            "A few rows in another language are seldom enough to learn it, and often there by accident.",
            "nothing if they belong; else remove them",
        ),
        "refusals": Code(
            "info",
            "answers that refuse",
            "Refusals are learnt quickly and generalise to questions that should be answered.",
            "nothing if the refusals are meant",
        ),
        "many_refusals": Code(
            "warning",
            "many answers that refuse",
            "From a few per cent on, a tuned model refuses what it should answer.",
            "keep only refusals that are meant, and few of them",
        ),
        "system_prompt_varies": Code(
            "warning",
            "system messages that differ from the usual one",
            "The model cannot know which one it will be asked with; use the one of production in every row.",
            "write the same system message into every row, or set data.system and remove them",
        ),
        "prompt_frame_varies": Code(
            "warning",
            "inputs without the text that nearly all others begin or end with",
            "The model is asked with the frame later, so it should learn with it.",
            "write the same frame into every row, or use data.template",
        ),
        # Personal data and secrets (never shown in full)
        "personal_email": Code(
            "warning",
            "e-mail addresses",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "personal_phone": Code(
            "warning",
            "telephone numbers",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "payment_card": Code(
            "warning",
            "payment card numbers (the check digit is right)",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "bank_account": Code(
            "warning",
            "bank account numbers (IBAN, the check digits are right)",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "national_id": Code(
            "warning",
            "national identity numbers",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "ip_address": Code(
            "warning",
            "public IP addresses",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "api_key": Code(
            "warning",
            "keys of services",
            "A tuned model can repeat it word for word, and the file itself is a leak.",
            "revoke the secret, then remove it from the rows",
        ),
        "access_token": Code(
            "warning",
            "access tokens",
            "A tuned model can repeat it word for word, and the file itself is a leak.",
            "revoke the secret, then remove it from the rows",
        ),
        "private_key": Code(
            "warning",
            "private keys",
            "A tuned model can repeat it word for word, and the file itself is a leak.",
            "revoke the secret, then remove it from the rows",
        ),
        "password": Code(
            "warning",
            "passwords",
            "A tuned model can repeat it word for word, and the file itself is a leak.",
            "revoke the secret, then remove it from the rows",
        ),
    }
)
