"""Rows that are the same, or nearly: within a file, with different answers, and across the parts of a split.

`normalised` says when two texts count as the same, `find_near_duplicates` finds those that are nearly the same,
`leaked_rows` lists the held-out rows that were seen before.
"""

from tunesmith.data.duplicates.leaks import LeakedRow, leaked_rows
from tunesmith.data.duplicates.near import THRESHOLD, NearDuplicates, NearPair, find_near_duplicates
from tunesmith.data.duplicates.texts import PromptKey, normalised, prompt_key

__all__ = [
    "THRESHOLD",
    "LeakedRow",
    "NearDuplicates",
    "NearPair",
    "PromptKey",
    "find_near_duplicates",
    "leaked_rows",
    "normalised",
    "prompt_key",
]
