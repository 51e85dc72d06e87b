"""Small chat templates that write calls as well-known ones do, and tokenizers with the special tokens they use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.tiny import byte_tokenizer

TAGGED = """\
{%- if tools %}<|im_start|>system
{% for t in tools %}{{ t | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for c in m.tool_calls or [] %}{{ '\\n<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LISTED = """\
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}[INST]{{ m.content }}[/INST]
{%- elif m.tool_calls %}[TOOL_CALLS] [
{%- for c in m.tool_calls %}{{ '{"name": "' + c.function.name + '", "arguments": ' }}{{ c.function.arguments | tojson }}
{%- if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- ', "id": "' + c.id + '"}' }}{% if not loop.last %}, {% endif %}{%- endfor %}]{{ eos_token }}
{%- elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]
{%- else %} {{ m.content }}{{ eos_token }}{% endif %}{%- endfor %}"""

ONE = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}{{ '<|h|>' + m.role + '\\n' }}
{%- if m.tool_calls %}{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
{{- m.tool_calls[0].function.arguments | tojson }}{{ '}' }}
{%- else %}{{ m.content }}{% endif %}{{ '<|eot|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|h|>assistant\\n' }}{% endif %}"""

_KINDS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "plain": (None, ()),
    "tagged": (TAGGED, ("<|im_start|>", "<|im_end|>")),
    "listed": (LISTED, ("[TOOL_CALLS]", "[INST]", "[/INST]")),
    "one": (ONE, ("<|h|>", "<|eot|>")),
}
KINDS = tuple(_KINDS)


def tokenizer_of(kind: str) -> Any:
    """A byte tokenizer with one of these templates."""
    return tokenizer_with(*_KINDS[kind])


def tokenizer_with(template: str | None, specials: Sequence[str]) -> Any:
    """A byte tokenizer with a template and the special tokens that it writes."""
    tokenizer = byte_tokenizer(template)
    if specials:
        tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    return tokenizer
