"""A tuned model as one plain `transformers` folder: what was trained added to the base's weights."""

from tunesmith.export.merged.in_memory import merge, refuse_merging
from tunesmith.export.merged.write import write_merged

__all__ = ["merge", "refuse_merging", "write_merged"]
