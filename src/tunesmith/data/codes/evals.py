"""Findings about rows that were written for evaluation tools."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

EVALS: Mapping[str, Code] = MappingProxyType(
    {
        "eval_item_unclear": Code(
            "error",
            "an item whose input and answer cannot be told apart",
            "Guessing which field is the answer would train on the wrong one.",
            "say it: data.columns: {prompt: item.NAME, answer: item.NAME}, or data.template",
        ),
        "ideal_not_text": Code(
            "error",
            "an ideal answer that is neither a text nor a list of texts",
            "There is nothing that an answer could be compared with.",
            'write "ideal": "…", or ["…", "…"] where several answers are right',
        ),
        "test_input_unclear": Code(
            "error",
            "a test with several variables and no prompt that says where they stand",
            "Nobody can tell which of them is the input.",
            "bring the config with its one prompt, or set data.template",
        ),
        "prompts_unused": Code(
            "warning",
            "a config's prompts that are several or files; the test's only variable is taken as the input",
            "The model learns to answer without the words around it that the prompts have.",
            "bring a config with one prompt written out, or put its words into data.template",
        ),
        "tests_elsewhere": Code(
            "warning",
            "tests of a config that are not in its list tests",
            "They are not among the rows.",
            "write them out under tests, or leave them",
        ),
        "test_variable_missing": Code(
            "error",
            "a placeholder for which the test has no variable, or that is more than a name",
            "The model would be asked with a hole in its prompt.",
            "add the variable to the test, or write the text out",
        ),
        "assert_unmapped": Code(
            "error",
            "a test of which no assert says what the answer is",
            "There is nothing to learn or to compare with; the row is left out.",
            "add an assert of type equals, or leave the test out",
        ),
        "assert_loose": Code(
            "info",
            "asserts that ask for less than a whole answer, such as contains; their text is taken as the answer",
            "An answer with more words around it passed there and counts as wrong under exact match.",
            "nothing, or choose a metric that allows for it (task.type: question_answering)",
        ),
        "assert_unused": Code(
            "info",
            "asserts beside the expected answer that are not used",
            "What they check (latency, form, a judge's opinion) is not part of the row.",
            "nothing, or a metric of your own: task.metrics",
        ),
        "several_answers": Code(
            "info",
            "rows with several right answers",
            "The first is learnt; metrics with references take each of them as right.",
            "set task.type to one with references: question_answering, summarisation or translation",
        ),
    }
)
