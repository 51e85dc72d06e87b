"""Chat templates: the tokenizer's own, or one of ours for bases that have none.

`plain` spells the turns out in words any tokenizer has; `raw` puts nothing between the turns, for text templates such
as `"{phrase}" → "{tone}"`; `chatml` needs its two special tokens, which a run adds where they are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import RecipeError

PLAIN = """\
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ m.content + '\\n\\n' }}
{%- elif m.role == 'assistant' -%}{{ '### Assistant\\n' + m.content + eos_token + '\\n\\n' }}
{%- else -%}{{ '### ' + m.role | capitalize + '\\n' + m.content + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Assistant\\n' }}{%- endif -%}"""

RAW = """\
{%- for m in messages -%}{{ m.content }}{%- if m.role == 'assistant' -%}{{ eos_token }}{%- endif -%}{%- endfor -%}"""

CHATML = """\
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
BUILT_IN = {"plain": PLAIN, "raw": RAW, "chatml": CHATML}
Origin = Literal["model", "fallback", "built_in", "file"]
"""Where a template comes from: with the tokenizer; ours, as that has none; ours by name; a file of the user."""
_ORIGINS: dict[Origin, str] = {
    "model": "the model's own",
    "fallback": "fallback, as the tokenizer brings none",
    "built_in": "built in, chosen by base.chat_template",
    "file": "your file",
}


def choose_template(tokenizer: Any, wanted: str) -> tuple[str, str]:
    """The name and Jinja source of the template a recipe's `base.chat_template` means for this tokenizer.

    Raises `RecipeError` for an unknown name, a tokenizer without end token, or one without the tokens of ChatML.
    """
    own = getattr(tokenizer, "chat_template", None)
    if wanted == "auto":
        wanted = "tokenizer" if own else "plain"
    if wanted == "tokenizer":
        if not own:
            raise RecipeError(
                "this tokenizer has no chat template",
                where="base.chat_template",
                expected="plain, raw, chatml or a file",
            )
        return wanted, own if isinstance(own, str) else own["default"]
    if wanted in BUILT_IN:
        if wanted == "chatml":
            missing = [t for t in CHATML_TOKENS if t not in tokenizer.get_vocab()]
            if missing:
                raise RecipeError(
                    f"the tokenizer does not know {' and '.join(missing)}", where="base.chat_template", fix="use plain"
                )
        elif tokenizer.eos_token is None:
            raise RecipeError("the tokenizer has no end token", where="base.chat_template", fix="set its eos_token")
        return wanted, BUILT_IN[wanted]
    path = Path(wanted)
    if not path.is_file():
        raise RecipeError(
            f"there is no chat template {wanted!r}",
            where="base.chat_template",
            expected="auto, tokenizer, plain, raw, chatml, or a Jinja file",
        )
    return path.name, path.read_text(encoding="utf-8")


def tool_template(tokenizer: Any, wanted: str) -> str | None:
    """The template for conversations with tools, where a tokenizer brings a separate one and its own is wanted."""
    own = getattr(tokenizer, "chat_template", None)
    return own.get("tool_use") if isinstance(own, dict) and wanted in ("auto", "tokenizer") else None


def template_origin(wanted: str, name: str) -> Origin:
    """Where the template called `name`, chosen for a recipe's `base.chat_template: wanted`, comes from."""
    if wanted in ("auto", "tokenizer"):
        return "model" if name == "tokenizer" else "fallback"
    return "built_in" if wanted in BUILT_IN else "file"


def origin_text(origin: Origin) -> str:
    """An origin in words."""
    return _ORIGINS[origin]
