"""Findings about the quality of the texts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

TEXTS: Mapping[str, Code] = MappingProxyType(
    {
        "near_empty_answer": Code(
            "warning",
            "answers that say nothing",
            "A dash, dots or a placeholder is learnt as an answer like any other.",
            "write the answer or remove the row",
        ),
        "mojibake": Code(
            "warning",
            "text that was decoded with the wrong encoding",
            "UTF-8 read as Windows-1252 turns one letter into two or three wrong ones, which a model then learns.",
            "decode the source as UTF-8; `tunesmith check --fix` repairs what can be repaired without doubt",
        ),
        "replacement_character": Code(
            "warning",
            "characters that were lost in decoding (U+FFFD)",
            "The original letters are gone; the model learns the placeholder.",
            "export the rows again with the right encoding",
        ),
        "odd_characters": Code(
            "warning",
            "control, invisible or private characters",
            "They change the tokens of words that look the same to a reader.",
            "remove them; `tunesmith check --fix` does so",
        ),
        "html_remnants": Code(
            "warning",
            "HTML tags or entities inside the text",
            "Unless the task is about HTML, the model learns to write markup.",
            "strip the tags and decode the entities, or leave it if markup is meant",
        ),
        "special_tokens": Code(
            "warning",
            "special tokens of a chat template inside the text",
            "A template takes them for the end of a turn or the start of one; hosted services refuse the file.",
            "remove or rewrite the token, unless the row is already rendered and base.chat_template is raw",
        ),
        "mixed_script_words": Code(
            "warning",
            "words that mix letters of different scripts",
            "Look-alike letters (Cyrillic о for Latin o) make unknown tokens out of known words.",
            "write the word in one script",
        ),
        "script_mix": Code(
            "info",
            "rows mostly in another script than the rest",
            "A few rows in another script are seldom enough to learn it, and often there by accident.",
            "nothing if they belong; else remove them",
        ),
        "language_mix": Code(
            "info",
            "rows in another language than the rest",
            "A few rows in another language are seldom enough to learn it, and often there by accident.",
            "nothing if they belong; else remove them",
        ),
        "refusals": Code(
            "info",
            "answers that refuse",
            "Refusals are learnt quickly and generalise to questions that should be answered.",
            "nothing if the refusals are meant",
        ),
        "many_refusals": Code(
            "warning",
            "many answers that refuse",
            "From a few per cent on, a tuned model refuses what it should answer.",
            "keep only refusals that are meant, and few of them",
        ),
        "system_prompt_varies": Code(
            "warning",
            "system messages that differ from the usual one",
            "The model cannot know which one it will be asked with; use the one of production in every row.",
            "write the same system message into every row, or set data.system and remove them",
        ),
        "prompt_frame_varies": Code(
            "warning",
            "inputs without the text that nearly all others begin or end with",
            "The model is asked with the frame later, so it should learn with it.",
            "write the same frame into every row, or use data.template",
        ),
    }
)
