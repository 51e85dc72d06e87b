"""The ways in which rows are written: recognised, read, and written back."""

from tunesmith.data.formats.registry import MAPPED, format_named, formats, recognise
from tunesmith.data.formats.types import Format, Recognition, Sample, Writer

__all__ = ["MAPPED", "Format", "Recognition", "Sample", "Writer", "format_named", "formats", "recognise"]
