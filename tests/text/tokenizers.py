"""Tokenizers and chat templates of the kinds bases come with."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer

CHATML = """\
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""

LLAMA3 = """\
{{- '<|begin|>' -}}
{%- for m in messages -%}
{{- '<|head|>' + m.role + '<|tail|>\n\n' + m.content | trim + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant<|tail|>\n\n' -}}{%- endif -%}"""

THINKING = """\
{%- for m in messages -%}
{%- if m.role == 'assistant' and loop.last -%}
{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content + '<|im_end|>\n' -}}
{%- else -%}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
"""Writes a block into the last answer only, and so rewrites earlier turns when later ones are added."""

ALTERNATING = """\
{%- if messages[0].role == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Roles must alternate') -}}{%- endif -%}
{{- '<|head|>' + m.role + '\n' + m.content + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant\n' -}}{%- endif -%}"""
"""Takes no system message, and users and assistants in turn only."""

HERMES = """\
{%- if tools -%}
{{- '<|im_start|>system\n' + (messages[0].content + '\n' if messages[0].role == 'system' else '') + 'Tools:' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif messages[0].role == 'system' -%}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' -}}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' -}}
{%- elif m.role == 'tool' -%}
{%- if loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
{%- elif m.role == 'assistant' -%}
{{- '<|im_start|>assistant\n' -}}
{%- generation -%}
{{- m.content -}}
{%- for call in m.tool_calls or [] -%}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
"""Takes tools; a call stands in tags that are tokens, and results are a user's turn. Marks what the assistant says."""

TEXT_ARGUMENTS = """\
{%- if tools -%}{{- '<|begin|>' + (tools | tojson) -}}{%- endif -%}
{%- for m in messages -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length > 1 and not parallel_tool_calls -%}
{{- raise_exception('one call at a time') -}}
{%- endif -%}
{{- '<|head|>assistant\n' -}}{%- generation -%}
{%- for call in m.tool_calls -%}
{%- if call.id | length != 9 -%}{{- raise_exception('ids have nine characters') -}}{%- endif -%}
{{- '{"name": "' + call.function.name + '", "parameters": ' + call.function.arguments + '}' -}}
{%- if not loop.last -%}{{- '; ' -}}{%- endif -%}
{%- endfor -%}{{- '<|tail|>' -}}{%- endgeneration -%}
{%- elif m.role == 'assistant' -%}{{- '<|head|>assistant\n' -}}
{%- generation -%}{{- m.content + '<|eot|>' -}}{%- endgeneration -%}
{%- else -%}{{- '<|head|>' + m.role + (' ' + m.name if m.role == 'tool' else '') + '\n' + m.content + '<|eot|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant\n' -}}{%- endif -%}"""
"""Wants arguments as text and ids of nine characters, ends a call in its own way, and says nothing beside a call."""

_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|head|>", "<|tail|>", "<|eot|>"]


def with_special(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens of the templates above; tags of calls are tokens too."""
    tokenizer = byte_tokenizer(chat_template)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL})
    return tokenizer


def merging(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A BPE whose merges run across line ends and words: text cut elsewhere gives other tokens."""
    text = ["### User\na b\n\n### Assistant\na b\n\n", "a\n\na\n\n  b\n\n b a", "Assistant\n\n a\na b a b"] * 4
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", additional_special_tokens=_SPECIAL)
    if chat_template is not None:
        fast.chat_template = chat_template
    return fast
