"""Which chat template a recipe's setting means."""

from __future__ import annotations

import pytest

from tests.text.tokenizers import CHATML, with_special
from tests.tiny import byte_tokenizer
from tunesmith.errors import RecipeError
from tunesmith.text.render import Renderer
from tunesmith.text.templates import BUILT_IN, choose_template, origin_text, template_origin


def test_auto_is_the_tokenizers_own_or_plain():
    assert choose_template(with_special(CHATML), "auto") == ("tokenizer", CHATML)
    assert choose_template(byte_tokenizer(), "auto") == ("plain", BUILT_IN["plain"])
    assert Renderer(byte_tokenizer()).template == "plain"


def test_a_name_overrides_the_tokenizers_own():
    assert choose_template(with_special(CHATML), "raw") == ("raw", BUILT_IN["raw"])


def test_of_several_own_templates_the_default_is_taken():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "other"}
    assert choose_template(tokenizer, "auto") == ("tokenizer", CHATML)


def test_a_file(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}«{{ m.content }}»{{ eos_token }}{% endfor %}")
    renderer = Renderer(byte_tokenizer(), str(file))
    assert renderer.template == "mine.jinja"
    from tunesmith.data.types import Message

    assert renderer.prompt_text([Message("user", "é")]) == "«é»</s>"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("plane", "no chat template 'plane'[\\s\\S]*auto, tokenizer, plain, raw, chatml"),
        ("tokenizer", "this tokenizer has no chat template"),
        ("chatml", r"does not know <\|im_start\|> and <\|im_end\|>[\s\S]*use plain"),
    ],
)
def test_what_cannot_be_is_said(wanted, words):
    with pytest.raises(RecipeError, match=words) as caught:
        choose_template(byte_tokenizer(), wanted)
    assert caught.value.where == "base.chat_template"


@pytest.mark.parametrize("wanted", ["plain", "raw"])
def test_templates_that_write_the_end_token_need_one(wanted):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(RecipeError, match="no end token"):
        choose_template(tokenizer, wanted)


def test_a_broken_template_file_is_told(tmp_path):
    file = tmp_path / "broken.jinja"
    file.write_text("{% for m in messages %}")
    with pytest.raises(RecipeError, match="chat template cannot render"):
        Renderer(byte_tokenizer(), str(file))


def test_where_a_template_comes_from(tmp_path):
    file = tmp_path / "tokenizer"
    file.write_text("{{ messages[0].content }}")
    own, none = with_special(CHATML), byte_tokenizer()
    cases = [
        (own, "auto", "model"),
        (own, "tokenizer", "model"),
        (none, "auto", "fallback"),
        (own, "plain", "built_in"),
    ]
    for tokenizer, wanted, origin in [*cases, (own, str(file), "file")]:
        assert template_origin(wanted, choose_template(tokenizer, wanted)[0]) == origin
    assert len({origin_text(origin) for _, _, origin in cases} | {origin_text("file")}) == 4
