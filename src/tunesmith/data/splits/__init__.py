"""Train, validation and test parts that depend on the content of the rows, never on their order in the file.

`make_splits` divides rows; `part_hash` freezes a part.
"""

from tunesmith.data.splits.making import make_splits, part_hash

__all__ = ["make_splits", "part_hash"]
