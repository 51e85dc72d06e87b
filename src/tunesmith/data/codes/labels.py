"""Findings about the labels of a classification."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

LABELS: Mapping[str, Code] = MappingProxyType(
    {
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
    }
)
