"""Tokenizers in GGUF files: each kind cuts texts as the model's own does, and what llama.cpp lacks is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tests.export.gguf.models import Source, exported
from tests.export.gguf.test_families import build_with
from tests.export.gguf.tokenizers_made import (
    BYTE_LEVEL,
    CORPUS,
    ROWS,
    byte_level,
    plain_bytes,
    sentence_piece,
    split_by,
    unigram,
    wrapped,
)
from tunesmith.export.gguf import tokens_check, vocabulary
from tunesmith.export.gguf.splitting import ONE_DIGIT, way_of
from tunesmith.export.gguf.tokens_read import file_tokenizer
from tunesmith.export.gguf.vocabulary import read_vocabulary
from tunesmith.export.types import StepError
from tunesmith.inference.gguf_engine import Reader

ASKED = "{% for m in messages %}<|turn|>{{ m.content }}</s>{% endfor %}<|turn|>"
STARTED = "<s>" + ASKED


@pytest.fixture(autouse=True)
def reading(using: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the writer's own check made by each reader."""
    if using == "transformers":
        monkeypatch.setattr(tokens_check, "find_spec", lambda _: None)


def written(tmp_path: Path, tokenizer: Any, template: str | None = ASKED) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tiny model with a tokenizer, written; what its file says, and what the writer says."""
    model = build_with("llama", vocab_size=ROWS)
    artifact, facts = exported(Source(model, tmp_path / "model", template, tokenizer), tmp_path)
    reader = gguf.GGUFReader(artifact.folder / "model.gguf")
    return {key: field.contents() for key, field in reader.fields.items()}, facts


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_tokenizers_are_known_by_what_they_do(name: str, tmp_path: Path, using: Reader) -> None:
    fields, facts = written(tmp_path, BYTE_LEVEL[name]())
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == name
    assert facts["tokenizer_checked"]["texts"] > 20
    assert facts["tokenizer_checked"]["by"] == ("llama.cpp" if using == "llama.cpp" else "reading the file")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(sentence_piece, "llama"), (lambda: sentence_piece(prefix=False), "llama"), (unigram, "t5")],
    ids=["sentence-piece", "sentence-piece-without-prefix", "unigram"],
)
def test_sentence_piece_and_unigram_cut_as_the_models_own(make: Callable[[], Any], kind: str, tmp_path: Path) -> None:
    fields, _ = written(tmp_path, make())
    assert fields["tokenizer.ggml.model"] == kind
    assert len(fields["tokenizer.ggml.scores"]) == ROWS


def test_kinds_of_tokens_and_ids(tmp_path: Path) -> None:
    tokenizer = sentence_piece()
    fields, _ = written(tmp_path, tokenizer, STARTED)
    types = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert types["<unk>"] == gguf.TokenType.UNKNOWN
    assert types["<0x41>"] == gguf.TokenType.BYTE
    assert types["<s>"] == types["<|turn|>"] == gguf.TokenType.CONTROL
    assert types["<fact>"] == gguf.TokenType.USER_DEFINED
    assert types[f"[PAD{ROWS - 1}]"] == gguf.TokenType.UNUSED
    assert fields["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert fields["tokenizer.ggml.unknown_token_id"] == tokenizer.unk_token_id
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False


def test_no_start_token_is_added_where_the_template_has_none(tmp_path: Path) -> None:
    fields, facts = written(tmp_path, sentence_piece(), ASKED)
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert any("no start token" in note for note in facts["notes"])


def test_conversations_are_cut_as_they_were_learnt_where_a_blank_begins_the_first_text_alone(tmp_path: Path) -> None:
    """llama.cpp puts a blank behind every special token, or none: with none, what begins with one comes out right."""
    fields, facts = written(tmp_path / "chat", sentence_piece("first"), STARTED)
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    assert facts["tokenizer_checked"]["conversations"] == 3
    assert facts["tokenizer_checked"]["conversations_differing"] == 0
    assert any("no blank is put before texts" in note for note in facts["notes"])
    begun_otherwise = "Question: {{ messages[0].content }}</s>Answer: "
    fields, facts = written(tmp_path / "text", sentence_piece("first"), begun_otherwise)
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert facts["tokenizer_checked"]["conversations_differing"] == 3
    assert any("conversations become other tokens" in note for note in facts["notes"])


def test_differences_that_are_no_blanks_are_errors_behind_special_tokens_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tokens_check._read

    def swapped(path: Path, texts: Any) -> Any:
        found, by = own(path, texts)
        return [*found[:-1], [*found[-1][:-2], 77, found[-1][-1]]], by

    monkeypatch.setattr(tokens_check, "_read", swapped)
    with pytest.raises(StepError, match=r"cuts 1 of \d+ texts otherwise than the model's"):
        written(tmp_path, sentence_piece(), STARTED)


def test_notes_of_the_weights_are_kept_beside_those_of_the_tokenizer(tmp_path: Path) -> None:
    model = build_with("mistral", vocab_size=ROWS)
    begun_otherwise = "Question: {{ messages[0].content }}</s>Answer: "
    source = Source(model, tmp_path / "model", begun_otherwise, sentence_piece("first"))
    _, facts = exported(source, tmp_path)
    assert any("256 tokens" in note for note in facts["notes"])
    assert any("conversations become other tokens" in note for note in facts["notes"])


def test_up_to_three_tokens_end_an_answer() -> None:
    tokenizer = BYTE_LEVEL["gpt-2"]()
    stops = tokenizer.convert_tokens_to_ids(["<|turn|>", "</s>", "<pad>", "<fact>"])
    read = read_vocabulary(tokenizer, ROWS, stops, ASKED)
    named = [read.settings[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")]
    assert named[0] == tokenizer.eos_token_id
    assert len({*named} & {*stops}) == 3
    assert any("not named are" in note for note in read.notes)


def test_a_normaliser_that_llama_cpp_lacks_is_noted_or_refused(tmp_path: Path) -> None:
    read = read_vocabulary(BYTE_LEVEL["qwen2"](), ROWS, [1], ASKED)
    assert any("NFC" in note for note in read.notes)
    with pytest.raises(StepError, match="Lowercase"):
        read_vocabulary(byte_level(plain_bytes(), normalizer=normalizers.Lowercase()), ROWS, [1], ASKED)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "blank before every text"),
        (split_by(r"\p{L}{1,4}|."), r"cuts text by \\p\{L\}\{1,4\}"),
        (pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), plain_bytes()]), "Whitespace"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), plain_bytes()]),
            "cuts text by",
        ),
        (pre_tokenizers.Sequence([pre_tokenizers.Split("-", "merged_with_next"), plain_bytes()]), "MergedWithNext"),
    ],
    ids=["prefix", "pattern", "step", "runs-of-digits", "behaviour"],
)
def test_ways_of_cutting_that_llama_cpp_lacks_are_refused(pre: Any, words: str) -> None:
    with pytest.raises(StepError, match=words) as caught:
        read_vocabulary(byte_level(pre), ROWS, [1], ASKED)
    assert caught.value.step == "tokenizer"
    assert "--to" in caught.value.instead


def test_the_same_pattern_in_other_spellings_is_known() -> None:
    spelled = ONE_DIGIT.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    assert spelled != ONE_DIGIT
    split = {"type": "Split", "pattern": {"Regex": spelled}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}
    assert way_of({"pre_tokenizer": steps, "model": {}}) == "qwen2"


def test_other_models_of_tokens_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(StepError, match="WordLevel"):
        read_vocabulary(wrapped(words), ROWS, [1], None)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused() -> None:
    tokenizer = BYTE_LEVEL["gpt-2"]()
    with pytest.raises(StepError, match=f"{len(tokenizer)} tokens and the model {len(tokenizer) - 1} rows"):
        read_vocabulary(tokenizer, len(tokenizer) - 1, [1], None)


def test_a_file_that_cuts_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "way_of", lambda _: "smollm")
    with pytest.raises(StepError, match=r"cuts \d+ of \d+ texts otherwise than the model's"):
        written(tmp_path, BYTE_LEVEL["gpt-2"]())


def test_scores_in_the_wrong_order_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = vocabulary._scores
    monkeypatch.setattr(vocabulary, "_scores", lambda model, tokens: [-score for score in own(model, tokens)])
    with pytest.raises(StepError, match="otherwise than the model's"):
        written(tmp_path, sentence_piece())


def test_reading_a_file_agrees_with_the_tokenizer_on_many_texts(tmp_path: Path, using: Reader) -> None:
    if using == "llama.cpp":
        pytest.skip("of our own reading")
    for name in ("smollm", "llama-bpe"):
        tokenizer = BYTE_LEVEL[name]()
        model = build_with("llama", vocab_size=ROWS)
        artifact, _ = exported(Source(model, tmp_path / name / "model", ASKED, tokenizer), tmp_path / name)
        tokenise = file_tokenizer(artifact.folder / "model.gguf")
        for text in (*CORPUS, "<|turn|>", "x<fact>y</s>", "", " "):
            assert tokenise(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text
