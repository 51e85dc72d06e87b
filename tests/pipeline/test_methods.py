"""Every method through the pipeline: it trains, its proof holds, what it saved is loaded again, by plain `peft` too.

Each run is a few steps on a base with random weights, made once and looked at by all tests of this file.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models.peft_side import IDS, answers, difference
from tests.pipeline.conftest import tone_rows, write_csv
from tests.tiny import build, byte_tokenizer, save_base
from tunesmith.errors import RecipeError, ResourceError, TunesmithError
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.methods import load_tuned
from tunesmith.models.quantized import dequantize_base, quantize_base
from tunesmith.pipeline import load_run
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.recipe import load_recipe, parse_recipe
from tunesmith.recipe.schema import Recipe

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "data": {"train": "rows.csv", "split": {"test": 8, "validation": 6}},
    "baselines": [],
    "evaluate": {"max_new_tokens": 4, "bootstrap": 200, "latency_rows": 1},
}
TRAIN: dict[str, Any] = {
    "max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "evaluations": 1, "eval_rows": 0, "precision": "fp32",
    "micro_batch_tokens": 4096, "recompute": "off", "tensorboard": False,
}  # fmt: skip
CUSTOM = """\
import torch
from torch import nn


class Learnt(nn.Module):
    def __init__(self):
        super().__init__()
        self.heat = nn.Parameter(torch.ones(()))

    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits * self.heat, targets, reduction="none") + self.heat**2
"""

# By name: the method, and what else the recipe says; on the base with a head of its own unless told otherwise.
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"rank": 4}},
    "lora, gpt2": {"method": {"rank": 4}, "base": "gpt2"},
    "rslora": {"method": {"rank": 4, "use_rslora": True}},
    "dora": {"method": {"type": "dora", "rank": 4}},
    "pissa": {"method": {"rank": 4, "init": "pissa"}},
    "olora": {"method": {"rank": 4, "init": "olora"}, "base": "tied"},
    "patterns": {"method": {"rank": 4, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 2.0}}},
    "lora+": {"method": {"rank": 4, "lora_plus_ratio": 16}},
    "dropout": {"method": {"rank": 4, "dropout": 0.2}},
    "last layer": {"method": {"rank": 4, "last_layers": 1}},
    "saved": {"method": {"rank": 4, "modules_to_save": ["lm_head", "norm"]}, "base": "tied"},
    "head": {"method": {"rank": 4, "target_modules": ["q_proj", "lm_head"]}, "base": "tied"},
    "tokens": {"method": {"rank": 4}, "base": {"model": "tight", "add_tokens": ["<warm>", "<cold>"]}},
    "chatml": {"method": {"rank": 4}, "base": {"model": "tight", "chat_template": "chatml"}},
    "vera": {"method": {"type": "peft", "peft_type": "vera", "peft_options": {"r": 4}}},
    "ia3": {"method": {"type": "peft", "peft_type": "IA3"}},
    "vera, chatml": {
        "method": {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}},
        "base": {"model": "tight", "chat_template": "chatml"},
    },
    "bf16": {"method": {"rank": 4}, "train": {"precision": "bf16"}},
    "muon, lora": {"method": {"rank": 4}, "train": {"optimizer": "muon"}},
    "smoothing": {"method": {"rank": 4}, "train": {"label_smoothing": 0.1}},
    "z-loss": {"method": {"rank": 4}, "train": {"z_loss": 1e-2}},
    "neftune": {"method": {"rank": 4}, "train": {"neftune_alpha": 5}},
    "distilled": {"method": {"rank": 4}, "train": {"distillation": {"teacher": "teacher"}}},
    "custom": {"method": {"rank": 4}, "train": {"objective": "loss.py:Learnt"}},
}
QUANTISED: dict[str, dict[str, Any]] = {
    "qlora": {"method": {"type": "qlora", "rank": 4}},
    "qlora, scales whole": {"method": {"type": "qlora", "rank": 4, "double_quantize": False}},
    "qlora, chatml": {
        "method": {"type": "qlora", "rank": 4},
        "base": {"model": "tight", "chat_template": "chatml"},
    },
    "qlora, dora": {"method": {"type": "qlora", "rank": 4, "use_dora": True}, "base": "gpt2"},
    "int8": {"method": {"rank": 4, "quantize": "int8"}, "base": "tied"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, chatml": {"method": "full", "base": {"model": "tight", "chat_template": "chatml"}},
    "full, last layer": {"method": {"type": "full", "last_layers": 1}},
    "full, half": {"method": "full", "base": {"model": "tied", "dtype": "bfloat16"}},
    "full, 8 bits": {"method": "full", "train": {"optimizer": "adamw_8bit"}},
    "full, muon": {"method": "full", "train": {"optimizer": "muon"}},
    "full, bf16": {"method": "full", "train": {"precision": "bf16"}},
    "bottleneck": {"method": {"type": "bottleneck", "bottleneck_size": 8}},
    "bottleneck, nf4": {
        "method": {"type": "bottleneck", "bottleneck_size": 8, "quantize": "nf4", "modules_to_save": ["norm"]}
    },
    "lora, half": {"method": {"rank": 4, "modules_to_save": ["lm_head"]}, "base": {"model": "own", "dtype": "float16"}},
    "pissa, half": {"method": {"rank": 4, "init": "pissa"}, "base": {"model": "tied", "dtype": "bfloat16"}},
    "qlora, half": {"method": {"type": "qlora", "rank": 4}, "base": {"model": "own", "dtype": "bfloat16"}},
}  # fmt: skip
CASES = {**ADAPTERS, **QUANTISED, **OTHERS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Rows, a loss, bases: `own` head, `tied` head, `tight` without spare embedding rows, `gpt2`, and a `teacher`."""
    folder: Path = tmp_path_factory.mktemp("methods")
    write_csv(folder / "rows.csv", tone_rows(60))
    (folder / "loss.py").write_text(CUSTOM)
    for name, family, seed in (("own", "qwen3", 0), ("tied", "llama", 0), ("gpt2", "gpt2", 0), ("teacher", "qwen3", 5)):
        save_base(folder / name, family, seed)
    build("llama", vocabulary=len(byte_tokenizer())).save_pretrained(folder / "tight")
    byte_tokenizer().save_pretrained(folder / "tight")
    return folder


Tuned = Callable[[str], Result]


def recipe_of(folder: Path, case: dict[str, Any]) -> Recipe:
    base = case.get("base", "own")
    base = {"model": base} if isinstance(base, str) else dict(base)
    base["model"] = str(folder / base["model"])
    train = {**TRAIN, **case.get("train", {})}
    if "distillation" in train:
        train["distillation"] = {"teacher": str(folder / train["distillation"]["teacher"])}
    if "objective" in train:
        train["objective"] = str(folder / train["objective"])
    rows = {**SMALL["data"], "train": str(folder / "rows.csv")}
    return parse_recipe({**SMALL, "data": rows, "base": base, "method": case["method"], "train": train})


@pytest.fixture(scope="module")
def tuned(folder) -> Tuned:
    """The run of a case, made when it is first asked for."""
    made: dict[str, Result] = {}

    def tune(name: str) -> Result:
        if name not in made:
            out = folder / "runs" / re.sub(r"\W+", "-", name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = run(recipe_of(folder, CASES[name]), out=out, through="train")
        return made[name]

    return tune


def place_of(result: Result) -> Path:
    return result.folder.adapter if result.folder.adapter.is_dir() else result.folder.model


def loaded(result: Result, *, quantised: bool = True) -> LoadedBase:
    """The tuned model of a run from its folder alone."""
    base = load_base(result.recipe.base)
    load_tuned(base, place_of(result), result.recipe.method if quantised else None)
    return base


def by_card(folder: Path) -> Any:
    """The model that the folder's README.md makes, word for word."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert found is not None
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r".*(tied|tie_word_embeddings|config file in).*")
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind)
        exec(found[1].replace('"."', repr(str(folder))), names)
    return names["model"]


@pytest.mark.parametrize("name", CASES)
def test_it_trains_and_its_proof_holds(name, tuned):
    result = tuned(name)
    assert result.training is not None
    proof = result.training["proof"]
    assert result.training["steps"] == 3 and proof["trained"] > 0 and proof["unmoved"] == []
    assert proof["probe_difference"] > 1e-3
    assert proof["reloaded"] == "compared" and proof["reloaded_difference"] < 1e-5
    assert json.loads((result.folder.path / "manifest.json").read_text())["proof"] == proof
    started = [json.loads(line) for line in (result.folder.path / "events.jsonl").read_text().splitlines()]
    (start,) = [event for event in started if event["kind"] == "train_started"]
    assert (start["trainable"] < start["parameters"]) == (name not in FULL)


FULL = [name for name, case in OTHERS.items() if case["method"] == "full"]


@pytest.mark.parametrize("name", ADAPTERS)
def test_plain_peft_loads_it_as_its_card_says(name, tuned):
    result = tuned(name)
    ours, plain = answers(loaded(result).model), answers(by_card(result.folder.adapter))
    assert difference(plain, ours) < 1e-5
    base = answers(load_base(result.recipe.base).model)
    assert difference(plain[..., : base.shape[-1]], base) > 1e-3


@pytest.mark.parametrize("name", QUANTISED)
def test_plain_peft_loads_what_was_trained_on_quantised_weights(name, tuned):
    """On the base's own weights it answers as ours does there, and on what the quantised ones stand for, as trained."""
    result = tuned(name)
    method = result.recipe.method
    trained, whole = answers(loaded(result).model), answers(loaded(result, quantised=False).model)
    card = (result.folder.adapter / "README.md").read_text()
    assert f"held in {'4-bit NF4' if method.quantize == 'nf4' else '8-bit'}" in card and "merged export" in card
    assert ("double quantisation" in card) == (method.quantize == "nf4" and method.double_quantize)
    assert 1e-3 < difference(trained, whole) < 0.6
    assert difference(answers(by_card(result.folder.adapter)), whole) < 1e-5
    dequantised = load_base(result.recipe.base)
    quantize_base(dequantised.model, method.quantize, method.double_quantize)
    dequantize_base(dequantised.model)
    load_tuned(dequantised, result.folder.adapter)
    assert difference(answers(dequantised.model), trained) < 1e-5


@pytest.mark.parametrize("name", [*FULL, "full, last layer"])
def test_a_whole_model_is_loaded_by_transformers_alone(name, tuned):
    result = tuned(name)
    model = by_card(result.folder.model)
    assert model.dtype == load_base(result.recipe.base).model.dtype
    assert difference(answers(model), answers(loaded(result).model)) < (1e-6 if "half" not in name else 1e-3)


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck, nf4"])
def test_bottleneck_adapters_are_loaded_as_their_card_says(name, tuned):
    result = tuned(name)
    text = (result.folder.adapter / "README.md").read_text()
    assert "PeftModel" not in text and ("NF4" in text) == ("nf4" in name)
    assert difference(answers(by_card(result.folder.adapter)), answers(loaded(result).model)) < 1e-6


def test_no_setting_is_without_effect(tuned):
    """Runs that differ in one setting only end with different weights."""
    alike = [
        *("lora", "rslora", "patterns", "lora+", "dropout", "bf16", "muon, lora"),
        *("smoothing", "z-loss", "neftune", "distilled", "custom", "qlora", "qlora, scales whole"),
    ]
    weights = [tuned(name).training["adapter_sha256"] for name in alike]
    assert len(set(weights)) == len(weights)
    whole = [tuned(name).training["adapter_sha256"] for name in ("full", "full, 8 bits", "full, muon", "full, bf16")]
    assert len(set(whole)) == len(whole)


def test_kept_states_of_frozen_layers_change_nothing(folder, tuned):
    """The same recipe with and without them: the answers are the same up to rounding."""
    for name in ("last layer", "full, last layer"):
        case = {**CASES[name], "train": {"cache_trunk": "on", "max_steps": 12}}
        cached, plain = (
            run(
                recipe_of(folder, {**case, "train": {**case["train"], "cache_trunk": wanted}}),
                out=folder / "runs" / f"trunk-{wanted}-{name[:4]}",
                through="train",
            )
            for wanted in ("on", "off")
        )
        engines = []
        for result in (cached, plain):
            lines = (result.folder.path / "events.jsonl").read_text().splitlines()
            engines += [e for e in map(json.loads, lines) if e["kind"] == "engine"]
        assert engines[0]["trunk_cache_bytes"] > 0 and engines[1]["trunk_cache_bytes"] == 0
        assert difference(answers(loaded(cached).model), answers(loaded(plain).model)) < 1e-4


def test_the_custom_loss_is_saved_with_what_it_learnt(tuned):
    from safetensors.torch import load_file

    kept = load_file(tuned("custom").folder.adapter / "objective.safetensors")
    assert list(kept) == ["objective.heat"] and float(kept["objective.heat"]) != 1


def test_with_added_tokens_the_tokenizer_is_saved_with_its_template(tuned):
    from transformers import AutoTokenizer

    for name in ("chatml", "qlora, chatml", "vera, chatml", "full, chatml"):
        tokenizer = AutoTokenizer.from_pretrained(place_of(tuned(name)))
        turns = [{"role": "user", "content": "hi"}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == len("user\nhi\nassistant\n") + 3


@pytest.mark.parametrize("name", ["qlora, chatml", "bottleneck", "vera", "full, half"])
def test_it_goes_on_to_be_evaluated_and_answers(name, folder, tuned):
    """`tunesmith evaluate` in the folder of `tunesmith train`: loaded instead of trained, scored, and asked."""
    trained = tuned(name)
    heard: list[dict[str, Any]] = []
    result = run(recipe_of(folder, CASES[name]), out=trained.folder.path, through="evaluate", listener=heard.append)
    assert "train_started" not in {event["kind"] for event in heard}
    assert result.comparison is not None and result.comparison.value("tuned").n == 8
    lines = (result.folder.evaluation / "tuned.jsonl").read_text().splitlines()
    assert len(lines) == 8
    first = json.loads(lines[0])
    question = next(phrase for phrase, _ in tone_rows(60) if re.search(rf"\b{re.escape(phrase)}\b", first["prompt"]))
    assert load_run(result.folder).model.answer(question) == (first["parsed"] or first["answer"].strip())


class StoppedError(Exception):
    """As if the machine had gone away."""


@pytest.mark.parametrize("name", ["pissa", "qlora", "dora", "neftune", "custom", "dropout", "full, 8 bits", "ia3"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(name, folder, tmp_path):
    longer = {**CASES[name], "train": {**CASES[name].get("train", {}), "max_steps": 4, "evaluations": 2}}
    recipe = recipe_of(folder, longer)
    whole = run(recipe, out=tmp_path / "whole", through="train")

    def cut(event: dict[str, Any]) -> None:
        if event["kind"] == "train_step" and event["step"] == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(recipe, out=tmp_path / "cut", through="train", listener=cut)
    heard: list[dict[str, Any]] = []
    again = run(recipe, out=tmp_path / "cut", through="train", listener=heard.append)
    assert [e["resumed_at"] for e in heard if e["kind"] == "train_started"] == [2]
    files = sorted(p.name for p in place_of(whole).glob("*.safetensors"))
    assert files and (name != "custom" or "objective.safetensors" in files)
    for file in files:
        assert (place_of(again) / file).read_bytes() == (place_of(whole) / file).read_bytes(), file


@pytest.mark.parametrize("teacher", ["qlora", "bottleneck", "full"])
def test_a_run_of_any_method_can_teach(teacher, folder, tuned, tmp_path):
    case = {"method": {"rank": 4}, "train": {"distillation": {"teacher": str(tuned(teacher).folder.path)}}}
    result = run(recipe_of(folder, case), out=tmp_path / "run", through="train")
    assert result.training is not None and result.training["proof"]["unmoved"] == []
    assert result.training["adapter_sha256"] != tuned("distilled").training["adapter_sha256"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"method": {"rank": 4, "use_dora": True, "must_serve": ["vllm"]}}, r"use_dora: vLLM could not load"),
        ({"method": {"type": "bottleneck", "must_serve": ["gguf"]}}, r"llama.cpp \(GGUF\) could not load"),
        (
            {"method": {"must_serve": ["vllm"]}, "base": {"model": "tight", "chat_template": "chatml"}},
            r"base.add_tokens: vLLM could not load",
        ),
        ({"method": {"rank": 64}}, r"method.rank: rank 64 is larger than the layer"),
        ({"method": {"rank": 4, "target_modules": ["q_prj"]}}, r"no module 'q_prj'[\s\S]*q_proj"),
        ({"method": {"type": "peft", "peft_type": "PREFIX_TUNING"}}, r"PREFIX_TUNING cannot be used here"),
        ({"method": {"rank": 4, "last_layers": 3}}, r"the base has 2 layers, not 3"),
    ],
)
def test_what_cannot_be_is_told_before_training(case, words, folder, tmp_path):
    heard: list[str] = []
    with pytest.raises(TunesmithError, match=words) as caught:
        run(recipe_of(folder, case), out=tmp_path / "r", through="train", listener=lambda e: heard.append(e["kind"]))
    assert isinstance(caught.value, RecipeError) and "train_started" not in heard
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_every_method_has_a_learning_rate_of_its_own(folder, tmp_path):
    for name in ("bottleneck", "ia3", "qlora"):
        case = {**CASES[name], "train": {"learning_rate": "auto"}}
        result = run(recipe_of(folder, case), out=tmp_path / name, through="train")
        assert result.recipe.train.learning_rate == 2e-3
        assert result.training is not None and result.training["proof"]["unmoved"] == []


@pytest.mark.parametrize("name", ["lora", "pissa", "qlora, chatml", "bottleneck", "ia3", "full, 8 bits", "full, half"])
def test_memory_is_planned_for_every_method(name, folder, tmp_path):
    """With `auto`, which is the default: decided, and written down for whoever repeats the run."""
    case = {**CASES[name], "train": {**CASES[name].get("train", {}), "micro_batch_tokens": "auto", "recompute": "auto"}}
    result = run(recipe_of(folder, case), out=tmp_path / "run", through="train")
    assert result.training is not None and result.training["proof"]["unmoved"] == []
    written = load_recipe(result.folder.recipe_file).train
    assert isinstance(written.micro_batch_tokens, int) and written.recompute != "auto"


def test_ids_are_in_every_vocabulary():
    assert int(IDS.max()) < len(byte_tokenizer())


def test_settings_of_ones_own_that_cannot_fit_are_refused_before_anything_is_computed(folder, tmp_path):
    case = {**CASES["lora"], "train": {"micro_batch_tokens": 4096, "recompute": "off", "memory_limit": "100MB"}}
    with pytest.raises(ResourceError, match="is what it may take"):
        run(recipe_of(folder, case), out=tmp_path / "run", through="train")
    assert not (tmp_path / "run" / "checkpoints").exists()
