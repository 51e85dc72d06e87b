"""Dirt in single texts, strange scripts and languages, prompts that vary, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.makers import by_code, examples, plain_text
from tunesmith.data import Example, Message
from tunesmith.data.quality import language_findings, prompt_findings, text_findings
from tunesmith.data.quality.language import language_of, main_script, mixed_word
from tunesmith.data.quality.prompts import refuses
from tunesmith.data.quality.text import mojibake_in, says_nothing, without_mojibake, without_odd_characters


def answered(*pairs: tuple[str, str]) -> list[Example]:
    return examples(pairs)


@pytest.mark.parametrize("answer", ["-", "...", " … ", "N/A", "none", "TODO", "?", "—", "''", "tbd"])
def test_answers_that_say_nothing(answer: str) -> None:
    assert says_nothing(answer)
    assert by_code(text_findings("f", answered(("Why?", answer))))["near_empty_answer"].lines == (2,)


@pytest.mark.parametrize("answer", ["no", "7", "ß", "是", "👍", "€", "[]", "A.", "½", "ा"])
def test_short_answers_that_say_something(answer: str) -> None:
    assert text_findings("f", answered(("Why?", answer))) == []


BROKEN = [
    "café",
    "Zürich",
    "naïve façade",
    "“quoted” — ‘so’…",
    "25 °C",
    "€ 5",
    "Ελλάδα",
    "Привет",
    "日本語",
    "🙂",
    "Łódź",
]


@pytest.mark.parametrize("text", BROKEN)
def test_mojibake_is_seen_and_mended(text: str) -> None:
    """UTF-8 read as Windows-1252, whose five gaps are read as Latin-1."""
    broken = "".join(
        bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode()
    )
    assert broken != text and mojibake_in(f"so {broken} then") is not None
    assert without_mojibake(f"so {broken} then") == f"so {text} then"
    latin = text.encode().decode("latin-1")
    assert without_mojibake(latin) == text


@pytest.mark.parametrize(
    "text",
    ["CAFÉ—bar", "à\u00a0» dit-il", "NÃO É", "Ångström “so”", "sagte Ä…", "ÄÖÜ", "Â", "Ã", "l’été", "½ × ¾", "日本語",
     "Málaga, Łódź, Ελλάδα", "“well—known”"],
)  # fmt: skip
def test_right_text_is_left_alone(text: str) -> None:
    assert mojibake_in(text) is None
    assert without_mojibake(text) == text


@given(st.text(st.characters(codec="ascii")))
def test_ascii_is_never_mojibake(text: str) -> None:
    assert without_mojibake(text) == text


def test_twice_broken_text() -> None:
    once = "é".encode().decode("cp1252")
    assert without_mojibake(once.encode().decode("cp1252")) == "é"


@pytest.mark.parametrize(
    "odd", ["\x00", "\x07", "\x1b", "\x7f", "\u200b", "\u2060", "\ufeff", "\u202e", "\u00ad", "\ue000"]
)
def test_odd_characters(odd: str) -> None:
    found = by_code(text_findings("f", answered((f"so{odd}me", "text"), ("clean", "text"))))
    assert found["odd_characters"].lines == (2,)
    assert f"U+{ord(odd):04X}" in found["odd_characters"].message
    assert without_odd_characters(f"so{odd}me\n\ttext") == "some\n\ttext"


@pytest.mark.parametrize("text", ["a\tb\nc\r\n", "👩‍👩‍👧", "می‌خواهم", "a\u00a0b", "naïve", "עברית"])
def test_characters_that_belong(text: str) -> None:
    assert text_findings("f", answered((text, "fine"))) == []


@pytest.mark.parametrize("text", ["<p>Hello</p>", "so<br/>on", "Q&amp;A", "a&nbsp;b", '<a href="x">y</a>', "it&#39;s"])
def test_html(text: str) -> None:
    assert by_code(text_findings("f", answered(("q", text))))["html_remnants"].lines == (2,)


@pytest.mark.parametrize("text", ["a < b and c > d", "AT&T", "x<y>z", "List<String>", "R&D; more", "if a<b: c"])
def test_what_only_looks_like_html(text: str) -> None:
    assert text_findings("f", answered(("q", text))) == []


@pytest.mark.parametrize("token", ["<|im_start|>", "<|endoftext|>", "<|fim_suffix|>", "</s>", "[INST]", "<<SYS>>",
                                   "<start_of_turn>", "<eos>", "[MASK]", "<｜begin▁of▁sentence｜>"])  # fmt: skip
def test_special_tokens(token: str) -> None:
    found = by_code(text_findings("f", answered(("fine", "fine"), (f"a {token} b", "x"))))
    assert found["special_tokens"].lines == (3,)
    assert f"message contains an invalid token: {token}" in found["special_tokens"].message


def test_lost_characters_and_copied_inputs() -> None:
    found = by_code(text_findings("f", answered(("caf\ufffd", "x"), ("same", " same "))))
    assert found["replacement_character"].lines == (2,)
    assert found["answer_equals_input"].lines == (3,)


def test_excerpts_hold_no_secret() -> None:
    secret = "sk-proj-abcDEF1234ghiJKL5678mnop"
    (found,) = text_findings("f", answered((f"{secret}<br>bob@gmail.com", "x")))
    assert found.example == "[key]<br>[e-mail]"


def test_scripts() -> None:
    assert main_script("some plain words") == "LATIN"
    assert main_script("Привет, как дела") == "CYRILLIC"
    assert main_script("これは日本語の文です。東京") == "CJK"
    assert main_script("12 + 3") is None
    rows = answered(*[(plain_text(n), "answer text") for n in range(20)], ("Привет, как дела сегодня?", "Хорошо"))
    found = by_code(language_findings("f", rows))["script_mix"]
    assert found.lines == (22,) and "Cyrillic 1" in found.message and found.severity == "info"


@pytest.mark.parametrize(("text", "word"), [("pаypal now", "pаypal"), ("Βank note", "Βank"), ("5 µm and 3 kΩ", None),
                                            ("naïve", None), ("Привет", None), ("ab-вг", None)])  # fmt: skip
def test_words_of_two_scripts(text: str, word: str | None) -> None:
    assert mixed_word(text) == word


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the best way to get from here to the station when it is raining?", "English"),
        ("Wie komme ich von hier am besten zum Bahnhof, wenn es regnet und der Bus nicht fährt?", "German"),
        ("Quel est le meilleur chemin pour aller à la gare quand il pleut et que les bus sont en retard ?", "French"),
        ("¿Cuál es la mejor manera de llegar a la estación cuando llueve y los autobuses no pasan?", "Spanish"),
        ("print(x) for x in range(10) if x % 2", None),
        ("Hello there", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_rows_in_another_language() -> None:
    english = [
        (f"What is the {plain_text(n)} of the house, and how do you get to it?", "It is there.") for n in range(30)
    ]
    rows = answered(
        *english, ("Wo ist der Schlüssel für die Tür, und wie kann ich sie mit dem öffnen?", "Er ist hier.")
    )
    found = by_code(language_findings("f", rows))["language_mix"]
    assert found.lines == (32,) and "German 1" in found.message
    half = [*english[:15], *[rows[-1].messages[0].content] * 15]
    assert language_findings("f", answered(*[(t if isinstance(t, str) else t[0], "x") for t in half])) == []


@pytest.mark.parametrize("answer", ["I'm sorry, but I can't help with that.", "I\u2019m sorry, but I cannot.",
                                    "As an AI model, I don't have access to that.", "I cannot do this."])  # fmt: skip
def test_refusals(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize("answer", ["Sorry, we are closed on Sundays.", "You can't park here.", "No.", "",
                                    "I am sorry for your loss.", "I can't remember the last time."])  # fmt: skip
def test_answers_that_do_not_refuse(answer: str) -> None:
    assert not refuses(answer)


def test_the_share_of_refusals_decides() -> None:
    refusal = ("Do it", "I'm sorry, but I can't help with that.")
    rows = answered(*[(plain_text(n), "fine") for n in range(99)], refusal)
    assert by_code(prompt_findings("f", rows))["refusals"].lines == (101,)
    many = by_code(prompt_findings("f", answered(*[(plain_text(n), "fine") for n in range(9)], refusal)))
    assert many["many_refusals"].severity == "warning" and "10.0%" in many["many_refusals"].message


def with_system(row: Example, text: str | None) -> Example:
    return row if text is None else replace(row, messages=(Message("system", text), *row.messages))


def test_system_messages_that_differ() -> None:
    rows = answered(*[(plain_text(n), "x") for n in range(10)])
    same = [with_system(row, "Be brief.") for row in rows]
    assert prompt_findings("f", same) == []
    mixed = [*same[:7], with_system(rows[7], "Be brief"), rows[8], same[9]]
    found = by_code(prompt_findings("f", mixed))["system_prompt_varies"]
    assert found.lines == (9, 10) and "2 of 10 rows, 2 variants" in found.message
    own = [with_system(row, f"You are {n}.") for n, row in enumerate(rows)]
    assert prompt_findings("f", own) == []  # every row has its own: they are meant to differ


def test_frames_that_some_rows_lack() -> None:
    framed = [(f"Translate into French: {plain_text(n)}", "x") for n in range(28)]
    found = by_code(prompt_findings("f", answered(*framed, ("just so", "x"), ("and so", "x"))))["prompt_frame_varies"]
    assert found.lines == (30, 31) and "'Translate in'" in found.message
    assert prompt_findings("f", answered(*framed)) == []
    assert prompt_findings("f", answered(*[(plain_text(n), "x") for n in range(30)])) == []
    ends = [(f"{plain_text(n)}\n\nLabel of the text:", "x") for n in range(28)]
    assert by_code(prompt_findings("f", answered(*ends, ("no ending", "x"))))["prompt_frame_varies"].lines == (30,)
