"""Training from the disk: rows and tokens of large files are not held, and what is learnt is the same to the bit."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import plain_text
from tests.pipeline.conftest import tone_rows
from tests.tiny import save_base
from tunesmith.cli.progress import bar_text
from tunesmith.data import load_examples, on_disk
from tunesmith.data.on_disk import StoredExample
from tunesmith.data.types import Example, Message, ToolCall
from tunesmith.pipeline import prepare, tokens
from tunesmith.pipeline.prepare import Rows, read_data, trainable_samples
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.pipeline.stage import data_key
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.generation import Generation
from tunesmith.text.render import Renderer
from tunesmith.text.store import StoredSamples
from tunesmith.training.loop import _Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("stored")
    save_base(folder / "base")
    write_chat(folder / "rows.jsonl", [(a, f"{b}, I think") for a, b in tone_rows(60)])
    return folder


def write_chat(path: Path, pairs: list[tuple[str, str]]) -> Path:
    turns = ([{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in pairs)
    path.write_text("".join(json.dumps({"messages": both}) + "\n" for both in turns))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tunesmith.pipeline.planning.may_pay", lambda device: False)
    monkeypatch.setattr("tunesmith.training.loop._LOG_SECONDS", 0.0)  # every step is told
    return tmp_path / "cache"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file counts as large."""
    monkeypatch.setattr(on_disk, "LARGE", 1)
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 1)


def recipe_of(folder: Path, **train: Any) -> Recipe:
    return parse_recipe(
        {
            "data": {"train": str(folder / "rows.jsonl"), "split": {"test": 8, "validation": 6}},
            "base": {"model": str(folder / "base")},
            "method": {"rank": 4},
            "train": {"max_steps": 6, "batch_size": 4, "evaluations": 2, "eval_rows": 2, "tensorboard": False, **train},
            "baselines": [],
            "evaluate": {"max_new_tokens": 2},
        }
    )


def with_data(recipe: Recipe, **changed: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changed)})


def trained(recipe: Recipe, out: Path) -> tuple[Result, list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []
    return run(recipe, out=out, through="train", listener=heard.append), heard


def notes(heard: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in heard if event["kind"] == "note"]


def learnt(result: Result) -> tuple[Any, ...]:
    """What must be the same: weights, every loss, which rows are where."""
    assert result.training is not None
    history = json.loads((result.folder.path / "training.json").read_text())["history"]
    return (
        result.training["adapter_sha256"],
        [(e["step"], e["loss"]) for e in history if e["kind"] in ("train_step", "validation")],
        result.folder.manifest()["data"],
        result.training["supervised_tokens"],
    )


def test_the_same_adapter_from_memory_and_from_the_disk(folder, tmp_path, cache, monkeypatch):
    held, told = trained(recipe_of(folder), tmp_path / "held")
    assert notes(told) == [] and not (cache / "tokens").exists()
    monkeypatch.setattr(on_disk, "LARGE", 1)
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 1)
    stored, told = trained(recipe_of(folder), tmp_path / "stored")
    assert learnt(stored) == learnt(held)
    rows, validation = notes(told)
    assert rows.startswith("46 train rows are") and "MB" in rows and str(cache / "tokens") in rows
    assert validation.startswith("6 validation rows are")
    assert len(list((cache / "tokens").glob("*/index.json"))) == 2
    bars = [e for e in told if e["kind"] == "progress" and e["label"] == "tokenising the train rows"]
    assert bars[-1]["done"] == bars[-1]["total"] == 46 and "rows/s" in bar_text(bars[-1])

    rendered: list[int] = []
    real = Renderer.samples
    monkeypatch.setattr(Renderer, "samples", lambda self, *a, **k: (rendered.append(len(a[0])), real(self, *a, **k))[1])
    again, told = trained(recipe_of(folder), tmp_path / "again")
    assert learnt(again) == learnt(held) and sum(rendered) < 46
    assert [note.split(":")[0] for note in notes(told)] == [
        "the train rows were tokenised before",
        "the validation rows were tokenised before",
    ]


def test_a_run_that_was_held_in_memory_goes_on_from_the_disk(folder, tmp_path, large, monkeypatch):
    whole, _ = trained(recipe_of(folder), tmp_path / "whole")
    monkeypatch.setattr(on_disk, "LARGE", 1 << 40)
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 1 << 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Training, "_log", interrupted_at(4))
        with pytest.raises(KeyboardInterrupt):
            run(recipe_of(folder), out=tmp_path / "run", through="train")
    monkeypatch.setattr(on_disk, "LARGE", 1)
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 1)
    ended, told = trained(recipe_of(folder), tmp_path / "run")
    assert next(e for e in told if e["kind"] == "train_started")["resumed_at"] == 3
    assert learnt(ended)[0] == learnt(whole)[0]


def interrupted_at(step: int) -> Any:
    real = _Training._log

    def log(self: Any, facts: Any, watched: Any) -> None:
        if self.progress.step == step:
            raise KeyboardInterrupt
        real(self, facts, watched)

    return log


def test_a_damaged_store_is_said_and_made_again(folder, tmp_path, cache, large):
    before, _ = trained(recipe_of(folder), tmp_path / "one")
    file = max((cache / "tokens").glob("*/ids.bin"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    after, told = trained(recipe_of(folder), tmp_path / "two")
    assert learnt(after) == learnt(before)
    damaged = [note for note in notes(told) if "are damaged" in note]
    assert len(damaged) == 1 and "ids.bin is not what was written" in damaged[0]
    assert any(note.startswith("46 train rows are") for note in notes(told))


def prepared(recipe: Recipe, rows: Rows | None = None) -> prepare.Prepared:
    return prepare.prepare(recipe, read_data(recipe) if rows is None else rows)


def test_other_rows_losses_and_instructions_have_stores_of_their_own(folder, cache, large):
    def stores() -> int:
        return len(list((cache / "tokens").glob("*/index.json")))

    prepared(recipe_of(folder))
    assert stores() == 2
    prepared(recipe_of(folder, learning_rate=1e-5, epochs=3, max_steps=None))
    assert stores() == 2  # nothing that decides tokens
    prepared(recipe_of(folder, loss="all"))
    assert stores() == 4
    one = recipe_of(folder)
    prepared(one.model_copy(update={"task": one.task.model_copy(update={"instruction": "Say the tone."})}))
    assert stores() == 6
    prepared(with_data(one, split=one.data.split.model_copy(update={"seed": 5})))
    assert stores() == 8


def test_what_is_prepared_lies_on_the_disk(folder, large):
    made = prepared(recipe_of(folder))
    assert isinstance(made.train, StoredSamples) and isinstance(made.validation, StoredSamples)
    assert all(type(row) is StoredExample for row in (*made.rows.splits.train, *made.rows.splits.test))
    limit = sorted(made.train.lengths.tolist())[-5]
    short = prepared(recipe_of(folder, max_length=limit))
    rows = trainable_samples(short)
    assert isinstance(rows, StoredSamples) and max(rows.lengths) == limit and len(rows) < len(made.train)
    found = next(f for f in short.findings if f.code == "row_too_long")
    longer = {s.example_id for s in made.train if len(s.ids) > limit}
    by_id = {e.id: e.line for e in short.rows.splits.train}
    assert sorted(found.lines) == sorted(by_id[i] for i in longer) and found.count == len(longer) > 0


def test_memory_does_not_grow_with_the_text(folder, tmp_path, large, monkeypatch):
    """Rows 60 times as long: the peak of checking and dividing them grows by a fraction of that, in memory by more."""
    for buffer, size in (("duplicates.shingles._BATCH", 10_000), ("on_disk._READ_AGAIN", 4)):
        monkeypatch.setattr(f"tunesmith.data.{buffer}", size)  # what is held at a time is held of both files alike
    grown = {}
    for name, real in (("disk", prepare.load_on_disk), ("memory", load_examples)):

        def load(spec: Any, path: Any, *folder: Any, real: Any = real, **more: Any) -> Any:
            loaded = real(spec, path, *folder[: real is not load_examples], **more)
            tracemalloc.reset_peak()  # while a file is read, a block of it is held
            return loaded

        monkeypatch.setattr(prepare, "load_on_disk", load)
        peaks, sizes = [], []
        for length in (4, 4, 250):  # what is loaded once is loaded the first time
            texts = [(" ".join(plain_text(i * 1_000 + j) for j in range(length)), f"answer {i}") for i in range(120)]
            file = write_chat(tmp_path / "rows.jsonl", texts)
            sizes.append(file.stat().st_size)
            tracemalloc.start()
            read_data(with_data(recipe_of(folder), train=str(file)))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert sizes[2] - sizes[1] > 1_000_000
        grown[name] = (peaks[2] - peaks[1]) / (sizes[2] - sizes[1])
    assert grown["disk"] < 0.4 and grown["memory"] > 0.8, grown


def test_a_task_that_says_other_words_has_stores_of_its_own(folder, cache, large, monkeypatch):
    """The recipe and the rows are the same; what the code makes of them is not."""
    prepared(recipe_of(folder))
    real = tokens.training_conversation
    monkeypatch.setattr(tokens, "training_conversation", lambda task, row: (Message("system", "so"), *real(task, row)))
    made = prepared(recipe_of(folder))
    assert len(list((cache / "tokens").glob("*/index.json"))) == 4
    assert made.renderer.tokenizer.decode(made.train[0].ids).startswith("so")


def with_tools(number: int, arguments: str = "{}", about: str = "") -> Example:
    tool = json.dumps({"type": "function", "function": {"name": "look", "description": about, "parameters": {}}})
    call = Message("assistant", "", tool_calls=(ToolCall("1", "look", arguments),))
    return Example(f"row {number}", (Message("user", "é?"), call), "[]", number, "x", tools=(tool,))


def test_tools_and_calls_count_for_the_size_of_a_row(monkeypatch):
    rows = [with_tools(n) for n in range(40)]
    rows[7], rows[23] = with_tools(7, json.dumps({"at": "x" * 900})), with_tools(23, about="y" * 900)
    task = Generation(given_instruction="")
    size = tokens.said_bytes(task, rows[0])
    assert size == len("é?".encode()) + len("look" + "{}") + len(rows[0].tools[0])
    assert min(tokens.said_bytes(task, rows[n]) for n in (7, 23)) > 900
    assert [row.line for row in prepare._thinned(rows, task, 4, 1_000)] == [0, 7, 10, 20, 23, 30]
    assert len(prepare._thinned(rows, Generation(given_instruction="z" * 600), 4, 1_000)) == 40
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 40 * size + 1_000)
    assert tokens._many(rows, task) and not tokens._many(rows[8:23], task)


def test_what_was_trained_on_tools_before_they_were_rendered_is_not_done(folder, tmp_path):
    plain = prepared(recipe_of(folder))
    assert not plain.has_tools and "tools" not in data_key(plain)
    row = with_tools(1)
    function = json.loads(row.tools[0])
    lines = [
        {
            "messages": [{"role": "user", "content": f"{a} {n}"}, {"role": "assistant", "content": b}],
            "tools": [function],
        }
        for n, (a, b) in enumerate(tone_rows(60))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = prepared(with_data(recipe_of(folder), train=str(tmp_path / "rows.jsonl")))
    assert made.has_tools
    assert data_key(made)["tools"] == {"version": 1, "source": made.renderer.source, "how": "plain"}
