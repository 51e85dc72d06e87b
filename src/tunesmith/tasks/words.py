"""Words of a text in any script, for overlap metrics and retrieval.

ROUGE's own tokenizer keeps only a-z and 0-9, so a Greek or Chinese answer would score 0 against itself. Here a word is
a run of letters, digits and combining marks of any script; scripts written without spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese) give one token per character, marks staying with their letter. Hangul is written
with spaces and keeps its words.
"""

from __future__ import annotations

import re
import unicodedata

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # iteration marks, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Han
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Case-folded tokens of `text`, in order; punctuation and symbols are dropped."""
    if text.isascii():  # the same words, ten times as fast
        return _ASCII_WORD.findall(text.casefold())
    tokens: list[str] = []
    open_word = False
    for char in unicodedata.normalize("NFC", text).casefold():
        category = unicodedata.category(char)[0]
        if category == "M" and open_word:
            tokens[-1] += char
        elif category not in "LN":
            open_word = False
        elif _UNSPACED.match(char):
            tokens.append(char)
            # A mark after this letter belongs to it; another letter begins a new token.
            open_word = True
        elif open_word and not _UNSPACED.match(tokens[-1]):
            tokens[-1] += char
        else:
            tokens.append(char)
            open_word = True
    return tokens


def is_unspaced(text: str) -> bool:
    """Whether a text has letters of a script that puts no spaces between words."""
    return _UNSPACED.search(text) is not None
