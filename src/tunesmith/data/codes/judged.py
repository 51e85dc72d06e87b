"""Findings about preferences, rated answers and questions alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

JUDGED: Mapping[str, Code] = MappingProxyType(
    {
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
    }
)
