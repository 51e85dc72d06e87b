"""Fingerprints, and scores in both shapes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.inference.serving.types import ModelRef, TokenScore
from tunesmith.service.asking.fingerprint import fingerprint
from tunesmith.service.asking.scores import LEAST, chat_scores, completion_scores, token_name


def score(data: bytes, logprob: float = -0.5, top: tuple[tuple[int, str, bytes, float], ...] = ()) -> TokenScore:
    return TokenScore(1, data.decode("utf-8", "replace"), data, logprob, top)


def test_fingerprints_change_with_what_answers(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    ref = ModelRef(str(base))
    tuned = replace(ref, adapter=adapter)
    marks = [fingerprint(ref), fingerprint(tuned), fingerprint(replace(ref, chat_template="raw"))]
    (adapter / "model.safetensors").write_bytes(b"WEIGHTS")
    marks.append(fingerprint(tuned))
    large = b"x" * 3_000_000
    for last in (b"a", b"b"):
        (base / "model.safetensors").write_bytes(large + last)
        marks.append(fingerprint(ref))
    assert len(set(marks)) == len(marks) and all(len(mark) == 13 and mark.startswith("fp_") for mark in marks)
    assert fingerprint(ref) == marks[-1] and fingerprint(ModelRef("hub/name")) == fingerprint(ModelRef("hub/name"))
    assert fingerprint(ModelRef("embedded:base")) != fingerprint(ModelRef("embedded:tiny"))


def test_probability_nought_is_a_number_that_json_has() -> None:
    impossible = score(b"a", -math.inf, ((2, "b", b"b", -math.inf),))
    told = chat_scores([impossible])
    assert told[0]["logprob"] == LEAST and told[0]["top_logprobs"][0]["logprob"] == LEAST
    json.dumps(told, allow_nan=False)
    legacy = completion_scores([score(b"a", math.nan), impossible], 0, first_unknown=True)
    assert legacy["token_logprobs"] == [None, LEAST] and legacy["top_logprobs"][0] is None
    json.dumps(legacy, allow_nan=False)


def test_tokens_that_are_parts_of_characters() -> None:
    smile = "🙂".encode()
    pieces = [score(b"a"), *(score(smile[i : i + 1]) for i in range(4)), score(b"z"), score(b"")]
    found = completion_scores(pieces, 10)
    assert found["text_offset"] == [10, 11, 11, 11, 11, 12, 13]
    assert found["tokens"][1:3] == ["bytes:\\xf0", "bytes:\\x9f"]
    assert token_name("<end>", b"") == "<end>" and chat_scores(pieces)[-1]["bytes"] is None


@pytest.mark.parametrize("said", [b"a", b"z"])
def test_the_sampled_token_is_among_the_top(said: bytes) -> None:
    top = completion_scores([score(said, -3.0, ((1, "a", b"a", -0.1), (2, "b", b"b", -1.0)))], 0)["top_logprobs"][0]
    assert said.decode() in top and len(top) == (2 if said == b"a" else 3)
