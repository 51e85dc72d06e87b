"""Adapters for other tools: written for PEFT's readers, made plain LoRA, and added to one another."""

from tunesmith.export.adapter.combine import HOWS, Combined, Part, combine
from tunesmith.export.adapter.convert import Converted, to_plain_lora
from tunesmith.export.adapter.saving import save_plain
from tunesmith.export.adapter.write import write_adapter

__all__ = ["HOWS", "Combined", "Converted", "Part", "combine", "save_plain", "to_plain_lora", "write_adapter"]
