"""What is wrong with single texts and labels: dirt, personal data and secrets, labels, prompts that vary, too few rows.

Each module holds one kind of check as plain functions over examples.
"""

from tunesmith.data.quality.labels import label_findings
from tunesmith.data.quality.language import language_findings
from tunesmith.data.quality.noise import Suspect, noise_findings, suspected_labels
from tunesmith.data.quality.prompts import prompt_findings
from tunesmith.data.quality.sample_size import detectable_difference, rows_to_detect
from tunesmith.data.quality.sensitive import sensitive_findings
from tunesmith.data.quality.single_rows import Seen, look_at_rows, row_findings
from tunesmith.data.quality.text import text_findings

__all__ = [
    "Seen",
    "Suspect",
    "detectable_difference",
    "label_findings",
    "language_findings",
    "look_at_rows",
    "noise_findings",
    "prompt_findings",
    "row_findings",
    "rows_to_detect",
    "sensitive_findings",
    "suspected_labels",
    "text_findings",
]
