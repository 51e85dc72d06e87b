"""`bases`: several bases on the same rows, before any is tuned."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.browser import CONTRAST, Heard, looked
from tests.pipeline.conftest import tone_rows
from tests.tiny import FAMILIES, build, byte_tokenizer, save_base
from tunesmith.data.types import Example, Message
from tunesmith.models.base_files import BaseFiles
from tunesmith.models.forward import LanguageModel
from tunesmith.models.licence import LicenceCheck
from tunesmith.pipeline.base_bits import TextBits, answer_bits, asked_text, bits_per_byte, input_bits
from tunesmith.pipeline.base_ranking import rank
from tunesmith.pipeline.base_types import BaseEntry, Measured, RowBits
from tunesmith.tasks.conversation import training_conversation
from tunesmith.tasks.generation import Generation
from tunesmith.text.render import Renderer

QUICK = ("--set", "evaluate.max_new_tokens=4", "--set", "goal.use=commercial")


def example(number: int, question: str, answer: str) -> Example:
    return Example(str(number), (Message("user", question), Message("assistant", answer)), answer, number, "rows")


ROWS = tuple(example(i, f"{phrase} {'x' * i}", f"{tone} é") for i, (phrase, tone) in enumerate(tone_rows(9), 1))


# --- bits per byte ---------------------------------------------------------------------------------------------------


def plain_bits(model, ids: list[int], learnt: list[int]) -> float:
    """Bits of the tokens at the places `learnt`, by the model's own forward pass, one document alone."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(logits[place - 1, ids[place]]) for place in learnt) / math.log(2)


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_cost_what_the_model_itself_says(family):
    renderer = Renderer(byte_tokenizer(), "plain")
    model = build(family)
    found = input_bits(LanguageModel(model), renderer, ROWS, 512)
    eos = renderer.tokenizer.eos_token_id
    for row, bits, size in zip(ROWS, found.bits, found.bytes, strict=True):
        ids = [eos, *renderer.tokenizer(asked_text(row), add_special_tokens=False)["input_ids"]]
        assert bits == pytest.approx(plain_bits(model, ids, list(range(1, len(ids)))), rel=1e-4)
        assert size == len(asked_text(row).encode())
    assert found.ids == tuple(row.id for row in ROWS) and found.left_out == 0


@pytest.mark.parametrize("shots", [(), ROWS[:2]])
def test_answers_cost_what_the_model_itself_says_without_the_mark_that_ends_them(shots):
    renderer, task, model = Renderer(byte_tokenizer(), "plain"), Generation(), build("llama")
    found = answer_bits(LanguageModel(model), renderer, task, ROWS[2:], 4_096, shots)
    for row, bits, size in zip(ROWS[2:], found.bits, found.bytes, strict=True):
        turns = training_conversation(task, row)
        shown = [turn for shot in shots for turn in shot.messages]
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        prompt = renderer.prompt_ids([*turns[:first], *shown, *turns[first:-1]])
        answer = renderer.tokenizer(row.expected, add_special_tokens=False)["input_ids"]
        ids = [*prompt, *answer]
        assert bits == pytest.approx(plain_bits(model, ids, list(range(len(prompt), len(ids)))), rel=1e-4)
        assert size == len(row.expected.encode())  # é is two bytes
    assert found.left_out == 0


def test_a_tokenizer_without_a_first_token_is_charged_for_it():
    tokenizer = byte_tokenizer()
    with_start = Renderer(tokenizer, "raw")
    model = LanguageModel(build("llama"))
    known = input_bits(model, with_start, ROWS, 512)
    tokenizer.eos_token = None
    without = input_bits(model, with_start, ROWS, 512)
    one = tokenizer(asked_text(ROWS[0]), add_special_tokens=False)["input_ids"]
    expected = plain_bits(model.model, one, list(range(1, len(one)))) + math.log2(300)
    assert without.bits[0] == pytest.approx(expected, rel=1e-4)
    assert not np.allclose(without.bits, known.bits)


def test_rows_that_do_not_fit_are_counted_and_shots_leave_room():
    renderer, task, model = Renderer(byte_tokenizer(), "plain"), Generation(), LanguageModel(build("llama"))
    lengths = [len(renderer.sample(training_conversation(task, row)).ids) for row in ROWS]
    context = sorted(lengths)[4]
    alone = answer_bits(model, renderer, task, ROWS, context)
    assert alone.left_out == sum(length > context for length in lengths) > 0
    assert len(alone.bits) + alone.left_out == len(ROWS)
    behind = answer_bits(model, renderer, task, ROWS, context, ROWS[:2])
    assert behind.ids == alone.ids  # no room for a shot beside the longest row that fits
    np.testing.assert_allclose(behind.bits, alone.bits)
    assert (alone.shots, behind.shots) == (0, 0)
    assert answer_bits(model, renderer, task, ROWS[2:], 4_096, ROWS[:2]).shots == 2


def test_every_token_inside_an_answer_counts_and_none_around_it():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["  "])  # text, though the tokenizer has it among what was added
    renderer, task, model = Renderer(tokenizer, "plain"), Generation(), build("llama")
    row = example(1, "which", "if  so")
    found = answer_bits(LanguageModel(model), renderer, task, [row], 512)
    prompt = renderer.prompt_ids(list(training_conversation(task, row)[:-1]))
    answer = tokenizer("if  so", add_special_tokens=False)["input_ids"]
    assert len(answer) == 5 and tokenizer.get_added_vocab()["  "] in answer
    ids = [*prompt, *answer]
    assert found.bits[0] == pytest.approx(plain_bits(model, ids, list(range(len(prompt), len(ids)))), rel=1e-4)


def test_a_row_that_the_tokenizer_does_not_know_is_left_out():
    tokenizer = byte_tokenizer()
    (known,) = tokenizer("q", add_special_tokens=False)["input_ids"]
    tokenizer.unk_token = tokenizer.convert_ids_to_tokens(known)  # as if q were what it does not know
    renderer, task, model = Renderer(tokenizer, "plain"), Generation(), LanguageModel(build("llama"))
    rows = [example(1, "aqa", "b"), example(2, "a", "bqb"), example(3, "a", "b")]
    inputs, answers = input_bits(model, renderer, rows, 512), answer_bits(model, renderer, task, rows, 512)
    assert (inputs.ids, inputs.left_out) == (("2", "3"), 1)
    assert (answers.ids, answers.left_out) == (("1", "3"), 1)
    tokenizer.unk_token = tokenizer.eos_token  # some name their end, and know every byte
    assert input_bits(model, Renderer(tokenizer, "plain"), rows, 512).left_out == 0


def test_bits_per_byte_is_a_ratio_of_sums_with_an_interval():
    bits, size = np.array([10.0, 30.0, 20.0, 8.0]), np.array([10.0, 10.0, 10.0, 10.0])
    found = bits_per_byte(TextBits(bits, size, ("a", "b", "c", "d"), 3), confidence=0.95, seed=0)
    assert found is not None and found.value == pytest.approx(68 / 40) and (found.rows, found.left_out) == (4, 3)
    assert found.low is not None and found.high is not None and found.low < 1.7 < found.high
    single = bits_per_byte(TextBits(bits[:1], size[:1], ("a",), 0), confidence=0.95, seed=0)
    assert single is not None and (single.value, single.low, single.high) == (1.0, None, None)
    same = bits_per_byte(TextBits(size, size, ("a", "b", "c", "d"), 0), confidence=0.95, seed=0)
    assert same is not None and (same.low, same.high) == (1.0, 1.0)
    assert bits_per_byte(TextBits(bits[:0], size[:0], (), 4), confidence=0.95, seed=0) is None


# --- the order -------------------------------------------------------------------------------------------------------


def entry(
    name: str,
    bits: float,
    *,
    parameters: int = 1000,
    too_long: int = 0,
    permission: str = "allowed",
    noise: float = 0.5,
    ids: range = range(40),
) -> BaseEntry:
    draw = np.random.default_rng(len(name))
    rows = tuple(RowBits(str(i), 10 * (bits + noise * draw.standard_normal()), 10.0) for i in ids)
    measured = Measured(
        architecture="llama", parameters=parameters, context=512, rows=40, rows_too_long=too_long, longest_row=99,
        tokens_per_byte=0.3, metric="accuracy", inputs=None, answers=None, shown=None, shots=0, zero_shot=None,
        few_shot=None, tune_memory_bytes=1, serve_memory_bytes=1, train_tokens_per_second=1.0, training_seconds=1.0,
        answer_seconds=1.0, answer_tokens_per_second=1.0, servers=("peft",), not_servable={}, seconds=1.0,
        ranked_by="shown", row_bits=rows,
    )  # fmt: skip
    licence = LicenceCheck("L", "commercial", permission, "", ())  # type: ignore[arg-type]
    return BaseEntry(name, licence, BaseFiles("here", True), measured)


def test_fewest_bits_first_and_a_small_difference_is_called_one():
    found = rank([entry("poor", 3.0), entry("good one", 1.0), entry("same", 1.01, parameters=100, noise=1.0)])
    assert [one.base for one in found.ranked] == sorted(
        ("poor", "good one", "same"), key=lambda name: {o.base: o.bits_per_byte for o in found.ranked}[name]
    )
    by_name = {one.base: one for one in found.ranked}
    assert by_name["poor"].place == 3 and by_name["poor"].clearly_behind
    close = by_name["same"] if by_name["same"].place == 2 else by_name["good one"]
    assert not close.clearly_behind and close.behind is not None and close.low is not None and close.low <= close.behind
    assert "Not clearly behind" in found.conclusion
    if found.ranked[0].base == "good one":
        assert "same is 10.0 times smaller" in found.conclusion


def test_a_sure_difference_of_less_than_a_tenth_is_none():
    found = rank([entry("first", 1.0, noise=0), entry("close", 1.08, noise=0), entry("far", 1.2, noise=0)])
    assert [one.base for one in found.ranked] == ["first", "close", "far"]
    assert [one.clearly_behind for one in found.ranked] == [False, False, True]
    assert found.ranked[1].low == pytest.approx(0.08)
    assert "Not clearly behind: close." in found.conclusion and "on the answers" in found.rule


def test_what_cannot_or_may_not_be_used_is_out_with_its_reason():
    broken = replace(entry("broken", 1.0), measured=None, problem="it has no weights")
    found = rank([broken, entry("forbidden", 0.5, permission="forbidden"), entry("short", 0.4, too_long=30),
                  entry("unknown licence", 2.0, permission="unknown")])  # fmt: skip
    assert [one.base for one in found.ranked] == ["unknown licence"]
    assert found.left_out["broken"] == "it has no weights"
    assert "forbids commercial use" in found.left_out["forbidden"]
    assert "30 of 40 rows do not fit" in found.left_out["short"]
    assert rank([broken]).conclusion.startswith("None of these bases")


def test_bases_are_compared_on_the_rows_they_share():
    easy = entry("a", 5.0, noise=0)
    rows = tuple(replace(row, bits=1.0) if int(row.id) >= 20 else row for row in easy.measured.row_bits)  # type: ignore[union-attr]
    mixed = replace(easy, measured=replace(easy.measured, row_bits=rows))  # type: ignore[arg-type]
    other = entry("b", 3.0, noise=0, ids=range(20))
    found = rank([mixed, other])
    assert found.rows == 20  # on all of its rows, a would have 2.55 bits per byte and be first
    assert [(one.base, round(one.bits_per_byte, 6)) for one in found.ranked] == [("b", 3.0), ("a", 5.0)]


def test_bases_that_share_no_row_are_not_ranked():
    found = rank([entry("a", 1.0, ids=range(20)), entry("b", 2.0, ids=range(20, 40))])
    assert (found.ranked, found.rows) == ((), 0) and "no row that all of them can hold" in found.conclusion


def test_a_base_that_knows_few_of_the_rows_is_not_ranked():
    found = rank([entry("a", 3.0), entry("blind", 1.0, ids=range(15))])
    assert [one.base for one in found.ranked] == ["a"]
    assert "25 of 40 rows could not be measured" in found.left_out["blind"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_bases_of_all_kinds_side_by_side(project, tunesmith, base):
    other = save_base(project / "qwen", "qwen3", seed=1)
    (other / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (project / "empty").mkdir()
    names = (str(base), "qwen", "empty", "nobody/knows/this", str(base))
    said = tunesmith("bases", "recipe.yaml", *names, "--json", "--rows", "12", *QUICK)
    assert said.code == 0
    report = said.json
    bases = {one["base"]: one for one in report["bases"]}
    assert len(bases) == 4  # one was named twice
    measured = bases[str(base)]["measured"]
    assert measured["rows"] == 12 and measured["rows_too_long"] == 0 and "row_bits" not in measured
    assert measured["shown"]["rows"] == measured["inputs"]["rows"] == 12 and measured["shots"] == 2
    assert measured["tokens_per_byte"] == pytest.approx(1.0)  # a token is a byte
    assert measured["zero_shot"]["rows"] == 8 and measured["zero_shot"]["k"] == 0  # evaluate.selection_rows
    assert measured["few_shot"]["k"] == 2 and measured["few_shot"]["way"] == "scored"
    assert measured["ranked_by"] == "inputs" and "on the inputs" in report["ranking"]["rule"]  # labels say little
    assert report["ranking"]["ranked"][0]["bits_per_byte"] == pytest.approx(measured["inputs"]["value"])
    assert measured["tune_memory_bytes"] > measured["serve_memory_bytes"] > 4 * measured["parameters"]
    assert measured["training_seconds"] > 0 and measured["answer_seconds"] > 0
    assert "peft" in measured["servers"]
    assert bases[str(project / "qwen")]["licence"]["permission"] == "forbidden"
    assert bases[str(project / "qwen")]["measured"] is not None
    ranking = report["ranking"]
    assert [one["base"] for one in ranking["ranked"]] == [str(base)]
    left_out = ranking["left_out"]
    assert "forbids commercial use" in left_out[str(project / "qwen")]
    assert "no config.json" in left_out[str(project / "empty")] and "no folder" in left_out["nobody/knows/this"]
    folder = Path(report["folder"])
    assert folder == project / "runs" / "tones-bases"
    assert json.loads((folder / "bases.json").read_text())["ranking"] == ranking
    page = (folder / "bases.html").read_text()
    assert str(base) in page and "forbids commercial use" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page) and "<script" not in page
    runs = tunesmith("runs", "--json")
    assert runs.code == 0 and "tones-bases" not in runs.out  # it is no run


def test_what_was_measured_is_kept_and_an_interruption_costs_one_base(project, tunesmith, base, monkeypatch):
    from tunesmith.pipeline import bases as module

    second = save_base(project / "second", seed=3)
    measure, asked = module.measure_base, []

    def stopped(recipe, *more):
        asked.append(Path(recipe.base.model).name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(recipe, *more)

    monkeypatch.setattr(module, "measure_base", stopped)
    command = ("bases", "recipe.yaml", base, second, "--json", "--rows", "6", *QUICK)
    said = tunesmith(*command)
    assert said.code == 130 and said.error["where"] == str(project / "runs" / "tones-bases")
    said = tunesmith(*command)
    assert said.code == 0 and asked == [base.name, "second", "second"]
    first = said.json["bases"][0]["measured"]
    assert tunesmith(*command).json["bases"][0]["measured"] == first and len(asked) == 3
    (second / "config.json").touch()  # another file is another base
    assert tunesmith(*command).code == 0 and asked[3:] == ["second"]


def test_a_base_that_breaks_while_it_is_loaded_is_one_line(project, tunesmith, base):
    broken = save_base(project / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "hidden_size": 33}))
    said = tunesmith("bases", "recipe.yaml", broken, base, "--rows", "4", *QUICK)
    assert said.code == 0
    words = " ".join(said.out.split())
    assert re.search(f"not ranked {re.escape(str(broken))}: the (model|tokenizer) could not be loaded: .", words), words
    assert f"{base} is the only one of these that can be ranked" in words
    said = tunesmith("bases", "recipe.yaml", broken, "--json", "--rows", "4", *QUICK)
    assert said.code == 6 and said.json["ranking"]["ranked"] == []


def test_a_short_context_is_seen_before_training(project, tunesmith, base):
    short = save_base(project / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    said = tunesmith("bases", "recipe.yaml", short, base, "--json", "--rows", "4", *QUICK)
    assert said.code == 0
    assert re.search("context of 40 tokens|fits? its context", said.json["ranking"]["left_out"][str(short)])


def test_without_validation_rows_there_is_no_score_but_an_order(project, tunesmith, base):
    rows = [(phrase, f"{tone}, as far as {phrase.split()[0]} goes") for phrase, tone in tone_rows()]
    (project / "rows.csv").write_text("phrase,tone\n" + "".join(f'"{a}","{b}"\n' for a, b in rows))
    more = ("--set", "task.type=generation", "--set", "data.split.validation=0", "--rows", "5")
    said = tunesmith("bases", "recipe.yaml", base, "--json", *more, *QUICK)
    assert said.code == 0
    (found,) = (one["measured"] for one in said.json["bases"])
    assert found["zero_shot"] is None and found["few_shot"] is None and found["rows"] == 5
    assert [one["base"] for one in said.json["ranking"]["ranked"]] == [str(base)]
    assert "not measured" in tunesmith("bases", "recipe.yaml", base, *more, *QUICK).out


def test_pairs_of_texts_are_refused(project, tunesmith, base):
    said = tunesmith("bases", "recipe.yaml", base, "--json", "--set", "data.columns.second=tone")
    assert said.code == 2 and "pairs of texts" in said.error["what"]


def test_wrong_data_or_folder_is_said_at_once(project, tunesmith, base):
    said = tunesmith("bases", "recipe.yaml", base, "--out", ".", "--json")
    assert said.code == 2 and "holds other things" in said.error["what"]
    (project / "rows.csv").write_text("phrase,tone\n")
    said = tunesmith("bases", "recipe.yaml", base, "--json")
    assert said.code == 3
    assert tunesmith("bases", "recipe.yaml").code == 2  # no base named


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_pages_in_a_real_browser(project, tunesmith, base, browser, scheme):
    (project / "empty").mkdir()
    assert tunesmith("bases", "recipe.yaml", base, "empty", "--rows", "4", *QUICK).code == 0
    assert tunesmith("check", "recipe.yaml", "--quick", "--html", "costs.html").code == 0
    for name, path in (("bases", project / "runs" / "tones-bases" / "bases.html"), ("costs", project / "costs.html")):
        for width in (380, 1280):
            context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page = context.new_page()
            heard = Heard(page)
            page.goto(path.as_uri())
            looked(page, f"{name}-{scheme}-{width}", full=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll in their box
            assert page.evaluate(CONTRAST) == []
            assert heard.said == [] and heard.asked_beside("file://", "data:") == []
            context.close()
