"""Rows in another script or language than the rest, and words put together from two scripts.

Scripts come from Unicode's names of letters. Languages are told by their commonest function words, only for rows of
some length and only where one language clearly leads: enough to find strangers in a file, not to name every language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain, repeat

from tunesmith.data.codes import CODES
from tunesmith.data.findings import FindingLog, finding, shortened
from tunesmith.data.quality.masking import shown
from tunesmith.data.types import Example, Finding

MAIN_SHARE = 0.8
"""Share of the rows from which a script or language is that of the file."""
MIN_LETTERS = 10
MIN_WORDS, MIN_HITS = 8, 4

_WORDS = {
    "English": "the of and to in is that it was for on are as with his they at be this have from or had by not but "
    "what were we when your can said there which she do how their if will about would you who my",
    "German": "der die das und ist nicht ein eine den von mit für auf dem sich des auch als wie im zu bei werden "
    "wird aber nach wir ich sie oder kann zum zur hat einen",
    "French": "le la les des et est une dans que qui pour pas sur au avec ce il elle nous vous sont plus par mais "
    "ou cette aux du je être a été",
    "Spanish": "el la los las de que y en un una por con para es se del no lo su al como más pero sus este ha sí "
    "porque está muy son",
    "Italian": "il la di che e è per un una in non con del della le i dei gli da sono come più ma nel alla si ha "
    "questo anche lo",
    "Portuguese": "o a de que e do da em um uma para com não os as no na por mais dos como mas ao ele das à seu sua ou "
    "são está você",
    "Dutch": "de het een en van ik te dat die in is niet op aan met als voor er maar om hem dan zou wat mijn zijn "
    "was naar heb hij ook",
    "Polish": "i w na nie się że z do jest to jak o ale co za po tak jego od czy dla przez był może są już tylko",
    "Turkish": "ve bir bu da de için ile çok ne o daha var gibi kadar olarak sonra ama mi değil en ben olan",
    "Swedish": "och att det i en som är på av för med den till inte om har de jag ett men var vi så kan från",
}
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(language for language, words in _WORDS.items() if word in words.split())
    for word in {word for words in _WORDS.values() for word in words.split()}
}
"""The languages that a function word belongs to."""
FUNCTION_WORDS = frozenset(_LANGUAGES_OF)
"""Words of these languages that say nothing of what a text is about."""
_LATIN_LOOKALIKE = {"CYRILLIC", "GREEK", "LATIN"}
_WORD = re.compile(r"[^\W\d_]+")
_LETTERS = re.compile(r"(?:[A-Za-z][^A-Za-z]*){10}")
_LOOKALIKES = re.compile("[\u0370-\u03ff\u0400-\u052f]")  # Greek and Cyrillic
_READ = 500
"""Characters of a row by which its script and language are told."""


@dataclass(frozen=True, slots=True)
class Tongues:
    """Script and language of each row, in order, and the rows with words of two scripts."""

    mixed: FindingLog
    scripts: list[str | None] = field(default_factory=list)
    languages: list[str | None] = field(default_factory=list)

    def absorb(self, later: Tongues) -> None:
        """Add those of the rows that follow."""
        self.mixed.absorb(later.mixed)
        self.scripts.extend(later.scripts)
        self.languages.extend(later.languages)


def language_findings(source: str, rows: Sequence[Example]) -> list[Finding]:
    """Strangers by script and by language, and words of two scripts, among the rows of one file."""
    seen = Tongues(FindingLog(source))
    for row in rows:
        look_at_language(row, seen)
    return tongue_findings(source, rows, seen)


def look_at_language(row: Example, seen: Tongues) -> None:
    """Add the script and the language of the next row."""
    text = "\n".join(turn.content for turn in (*row.messages, *row.rejected) if turn.role in ("user", "assistant"))
    script = main_script(text)
    seen.scripts.append(script)
    seen.languages.append(language_of(text) if script == "LATIN" else None)
    if not text.isascii() and (word := mixed_word(text)) is not None:
        seen.mixed.add_shown("mixed_script_words", row.line, partial(shown, row.question), repr(word))


def tongue_findings(source: str, rows: Sequence[Example], seen: Tongues) -> list[Finding]:
    """Findings about the tongues of these rows."""
    found = seen.mixed.findings()
    found += _strangers("script_mix", source, rows, seen.scripts)
    found += _strangers("language_mix", source, rows, seen.languages)
    return found


def main_script(text: str) -> str | None:
    """The script of most letters (`LATIN`, `CYRILLIC`, `CJK`, …), or None with fewer than ten letters."""
    if text.isascii():
        return "LATIN" if _LETTERS.search(text[:_READ]) else None
    counts: Counter[str] = Counter()
    for character, number in Counter(text[:_READ]).items():
        if character.isalpha():
            counts[script_of(character)] += number
    if counts.total() < MIN_LETTERS:
        return None
    return counts.most_common(1)[0][0]


@cache
def script_of(letter: str) -> str:
    """The first word of a letter's Unicode name; Japanese syllables and ideographs count as one script."""
    first = unicodedata.name(letter, "UNKNOWN").split()[0].removesuffix("-COMPATIBILITY")
    return "CJK" if first in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC") else first


def mixed_word(text: str) -> str | None:
    """The first word with letters of two among Latin, Cyrillic and Greek; signs such as µ and Ω alone do not count."""
    if not _LOOKALIKES.search(text):
        return None
    for match in _WORD.finditer(text):
        word = match.group()
        if len(word) > 2 and not word.isascii():
            scripts = Counter(script_of(c) for c in word if script_of(c) in _LATIN_LOOKALIKE)
            if len(scripts) > 1 and not (set(word) & set("µμΩΔλπσαβγ") and scripts["GREEK"] == 1):
                return word
    return None


def language_of(text: str) -> str | None:
    """The language whose function words clearly lead, or None: at least four hits, and twice those of any other."""
    words = _WORD.findall(text[:_READ].lower())
    if len(words) < MIN_WORDS:
        return None
    hits = Counter(chain.from_iterable(map(_LANGUAGES_OF.get, words, repeat(()))))
    best = hits.most_common(2)
    if not best or best[0][1] < MIN_HITS or (len(best) > 1 and best[0][1] < 2 * best[1][1]):
        return None
    return best[0][0]


def _strangers(code: str, source: str, rows: Sequence[Example], kinds: Sequence[str | None]) -> list[Finding]:
    """One finding with the rows of other kinds than the main one, where there is a main one."""
    counts = Counter(kind for kind in kinds if kind is not None)
    if len(counts) < 2:
        return []
    main, most = counts.most_common(1)[0]
    if most < MAIN_SHARE * counts.total():
        return []
    others = [(row, kind) for row, kind in zip(rows, kinds, strict=True) if kind not in (None, main)]
    by_kind = ", ".join(f"{str(kind).title()} {number:,}" for kind, number in counts.most_common()[1:6])
    lines = [row.line for row, _ in others]
    message = f"{CODES[code].title} ({main.title()} {most:,}): {by_kind}; lines {shortened(lines)}"
    return [finding(code, message, lines, source=source, example=shown(others[0][0].question))]
