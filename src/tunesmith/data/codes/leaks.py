"""Findings about rows that are in more than one part."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

LEAKS: Mapping[str, Code] = MappingProxyType(
    {
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
    }
)
