"""Ollama's Modelfile, and chat templates translated into its language where that can be proved."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import tunesmith
from tests.export.gguf.models import Source, build, exported
from tests.export.gguf.tokenizers_made import BYTE_LEVEL, sentence_piece
from tunesmith.export.gguf.modelfile import translate
from tunesmith.export.types import StepError
from tunesmith.text.templates import BUILT_IN

EMBEDDED = Path(tunesmith.__file__).parent / "models" / "embedded" / "base"
TURN = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return BYTE_LEVEL["gpt-2"]()


def go(beginning: str, around: dict[str, tuple[str, str]], answer: str) -> str:
    """A template in Ollama's language, written down by hand."""
    roles = [f'{{{{ if eq .Role "system" }}}}{around["system"][0]}{{{{ .Content }}}}{around["system"][1]}']
    for role in ("user", "assistant"):
        roles.append(f'{{{{ else if eq .Role "{role}" }}}}{around[role][0]}{{{{ .Content }}}}{around[role][1]}')
    return f"{beginning}{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}{answer}"


def test_the_own_template_of_the_embedded_base() -> None:
    own = AutoTokenizer.from_pretrained(EMBEDDED)
    text, why = translate(own, (EMBEDDED / "chat_template.jinja").read_text())
    roles = {role: (f"<|{role}|>\n", "<|end|>\n") for role in ("system", "user", "assistant")}
    assert text == go("<|bos|>", roles, "<|assistant|>\n")
    assert why == ""


@pytest.mark.parametrize("name", BUILT_IN)
def test_templates_that_are_built_in_can_be_translated(name: str, tokenizer: Any) -> None:
    text, why = translate(tokenizer, BUILT_IN[name])
    assert text is not None
    assert why == ""


def test_a_default_system_message_is_written_where_there_is_none(tokenizer: Any) -> None:
    default = "{% if messages[0].role != 'system' %}<|turn|>system\nBe kind.</s>\n{% endif %}"
    text, _ = translate(tokenizer, default + TURN + ANSWER)
    assert text is not None
    assert text.startswith("{{ if not .System }}<|turn|>system\nBe kind.</s>\n{{ end }}{{ range .Messages }}")


def test_a_start_token_that_the_tokenizer_writes_is_left_to_it() -> None:
    template = "<s>" + TURN + ANSWER
    ours, _ = translate(sentence_piece(start=True), template)
    other, _ = translate(sentence_piece(start=False), template)
    assert ours is not None
    assert other == "<s>" + ours


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}<|turn|>{{ m.content | trim }}</s>{% endfor %}" + ANSWER, "trims"),
        ("{% if messages | length > 3 %}long{% endif %}" + TURN + ANSWER, "turns come|comes out otherwise"),
        ("{% for m in messages %}{{ raise_exception('no roles') }}{% endfor %}", "no roles"),
        ("{{ strftime_now('%d') }}" + TURN + ANSWER, "today's date"),
        ("{{ '{{' }}" + TURN + ANSWER, "braces"),
        ("\u200b" + TURN + ANSWER, "characters that Ollama drops"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "otherwise|as it is"),
        (TURN + "{% if messages[-1].role == 'user' %}??{% endif %}" + ANSWER, "depends|otherwise"),
    ],
    ids=["trims", "length", "raises", "date", "braces", "unprintable", "changes", "last-turn"],
)
def test_what_cannot_be_proved_is_left_out_with_the_reason(template: str, why: str, tokenizer: Any) -> None:
    text, reason = translate(tokenizer, template)
    assert text is None
    assert any(words in reason for words in why.split("|")), reason


def test_no_template_no_translation(tokenizer: Any) -> None:
    assert translate(tokenizer, None)[0] is None


def test_the_file_says_how_the_model_was_asked(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model", system="Answer in one word.")
    artifact, facts = exported(source, tmp_path)
    lines = (artifact.folder / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert lines[1].startswith('TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<system>{{ .Content }}</s>')
    assert 'PARAMETER stop "</s>"' in lines
    assert "PARAMETER num_ctx 512" in lines
    assert lines[-1] == 'SYSTEM """Answer in one word."""'
    assert facts["modelfile_template"] == "proved equal to the chat template"


def test_a_template_left_out_is_told(tmp_path: Path) -> None:
    source = Source(
        build("llama"), tmp_path / "model", template="{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    )
    artifact, facts = exported(source, tmp_path)
    assert "TEMPLATE" not in (artifact.folder / "Modelfile").read_text()
    assert "goes by the one in the GGUF file" in facts["modelfile_template"]


def parsed(text: str) -> list[tuple[str, str]]:
    """Commands and values as Ollama reads them: a value that begins with quotes ends at the first line that does."""
    found, lines = [], iter(text.splitlines())
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        mark = next((mark for mark in ('"""', '"') if value.startswith(mark)), "")
        while mark and (len(value.strip()) < 2 * len(mark) or not value.strip().endswith(mark)):
            value += "\n" + next(lines)
        found.append((name, value.strip()[len(mark) : len(value.strip()) - len(mark)]))
    return found


@pytest.mark.parametrize("system", ['a """ b', 'Say "yes"', 'First """x""" line\nand "second"', "x\n\n  y"])
def test_system_messages_come_back_as_they_were(system: str, tmp_path: Path) -> None:
    artifact, _ = exported(Source(build("llama"), tmp_path / "model", system=system), tmp_path)
    values = dict(parsed((artifact.folder / "Modelfile").read_text()))
    assert values["SYSTEM"] == system
    assert values["stop"] == "</s>"


def test_a_system_message_that_a_modelfile_cannot_hold(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model", system='a """\nb')
    with pytest.raises(StepError, match="cannot hold the system message") as caught:
        exported(source, tmp_path)
    assert caught.value.step == "Modelfile"


def test_stop_tokens_are_written_as_the_texts_they_are(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model")
    newline = source.tokenizer("\n")["input_ids"][0]
    source.stops = (newline, source.tokenizer.eos_token_id)
    artifact, _ = exported(source, tmp_path)
    stops = [value for name, value in parsed((artifact.folder / "Modelfile").read_text()) if name == "stop"]
    assert stops == ["\n", "</s>"]
