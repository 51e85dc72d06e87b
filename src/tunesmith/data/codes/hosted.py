"""Findings about what hosted services refuse and Tunesmith takes; looked for only where such a service is meant."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

_LATE = "The service says so only after the upload, one fault at a time, when the job has waited its turn."

HOSTED: Mapping[str, Code] = MappingProxyType(
    {
        "hosted_too_few_rows": Code(
            "error",
            "fewer rows than the service takes",
            _LATE,
            "give at least 10 rows; gains begin at 50 to 100",
        ),
        "hosted_too_many_rows": Code(
            "error",
            "more rows than the service takes for reinforcement",
            _LATE,
            "give at most 50,000 rows to train on and 1,000 to test on",
        ),
        "hosted_no_validation": Code(
            "error",
            "reinforcement without a validation file",
            _LATE,
            "name a file with held-out rows as validation_file",
        ),
        "hosted_file_too_large": Code(
            "error",
            "a file of more than 512 MB",
            "The service refuses the upload.",
            "use fewer rows, or train where there is no such limit",
        ),
        "hosted_not_jsonl": Code(
            "error",
            "a file that is not .jsonl",
            "The service takes JSON Lines only, and goes by the file's name.",
            "`tunesmith data convert FILE --to openai-chat` writes one",
        ),
        "hosted_not_its_format": Code(
            "error",
            "rows that are neither conversations nor prompt and completion",
            _LATE,
            "`tunesmith data convert FILE --to openai-chat` writes them anew",
        ),
        "hosted_mixed": Code(
            "error",
            "rows of another form than most rows of the file",
            _LATE,
            "write all rows in one form: conversations, or prompt and completion",
        ),
        "hosted_wrong_method": Code(
            "error",
            "rows of another kind than the training method takes",
            _LATE,
            "choose the method for these rows: supervised, dpo or reinforcement",
        ),
        "hosted_no_mark": Code(
            "info",
            "a file without byte-order mark",
            "Azure's documents ask for UTF-8 with a byte-order mark; files without one have been taken too.",
            "nothing, or save the file as UTF-8 with BOM",
        ),
        "hosted_arguments": Code(
            "error",
            "a call whose arguments are an object",
            "The service wants the JSON text of the object.",
            'write "arguments": "{\\"city\\": \\"Oslo\\"}"; `tunesmith data convert` does so',
        ),
        "hosted_weight": Code(
            "error",
            "a weight between 0 and 1",
            "The service knows only learnt (1) and not learnt (0).",
            "round it",
        ),
        "hosted_parallel": Code(
            "error",
            "parallel_tool_calls that is neither true nor false",
            "Nobody can tell what is meant, and it is not used.",
            "write true or false, without quotation marks",
        ),
        "hosted_sides": Code(
            "error",
            "a preferred or other output that is not one assistant message",
            "The service compares two single answers.",
            "move earlier turns into input.messages",
        ),
    }
)
