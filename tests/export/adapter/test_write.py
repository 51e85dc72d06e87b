"""Adapters for other tools: opened by plain `peft`, saying everything explicitly, with what can serve them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.made import made_source, recipe_of, work_for
from tests.models.peft_side import answers, difference, load_plain, plain_adapter
from tests.tiny import build, save_base
from tunesmith.export.adapter import write_adapter
from tunesmith.export.source import open_folders
from tunesmith.export.types import StepError

pytestmark = pytest.mark.filterwarnings("ignore")

METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init": "pissa"},
    "rslora, patterns": {"use_rslora": True, "rank_pattern": {"q_proj|c_attn": 2}},
    "saved norm": {"modules_to_save": ["model.norm"]},
    "vera": {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}},
    "loha": {"type": "peft", "peft_type": "LOHA", "peft_options": {"r": 4}},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(folder / family, family) for family in ("llama", "qwen3", "gpt2")}


@pytest.mark.parametrize("name", METHODS)
def test_plain_peft_opens_it(name, bases, tmp_path):
    source, tuned = made_source(tmp_path / "run", recipe_of(bases["llama"], METHODS[name]))
    work = work_for(source, "adapter", "own", tmp_path / "work")
    facts = write_adapter(work)
    config = json.loads((work.staged / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bases["llama"].resolve())
    assert isinstance(config["target_modules"], list) and facts["target_modules"] == config["target_modules"]
    assert difference(answers(load_plain(build("llama"), work.staged)), tuned) < 1e-5
    assert (work.staged / "chat_template.jinja").read_text() == source.template
    text = (work.staged / "README.md").read_text()
    assert "## Serving" in text and "## Chat template" in text
    served = {server: one["ok"] for server, one in facts["servable"].items()}
    assert served["peft"] and served["vllm"] == (name in ("lora", "pissa"))
    assert all(
        one["ok"] or all(o["reason"] and o["fix"] for o in one["obstacles"]) for one in facts["servable"].values()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]},
    ],
    ids=str,
)
def test_targets_of_any_form_become_names(options, bases, tmp_path):
    tuned = answers(plain_adapter(build("qwen3"), tmp_path / "adapter", r=4, lora_alpha=8, **options))
    source = open_folders(str(bases["qwen3"]), tmp_path / "adapter")
    work = work_for(source, "adapter", "own", tmp_path / "work")
    write_adapter(work)
    config = json.loads((work.staged / "adapter_config.json").read_text())
    targets = config["target_modules"]
    assert isinstance(targets, list) and not any(re.search(r"[*|()]", name) for name in targets)
    assert config["layers_to_transform"] is None and config["exclude_modules"] is None
    assert difference(answers(load_plain(build("qwen3"), work.staged)), tuned) < 1e-6
    code = re.findall(r"```python\n(.*?)```", (work.staged / "README.md").read_text(), re.S)[0]
    names: dict[str, Any] = {}
    exec(code.replace('"."', repr(str(work.staged))), names)  # it came without a card, and gets one that works
    assert difference(answers(names["model"]), tuned) < 1e-6


def test_a_method_of_peft_with_targets_by_expression_gets_names_too(bases, tmp_path):
    method = {
        "type": "peft",
        "peft_type": "LOHA",
        "peft_options": {"r": 4, "target_modules": r".*\.(q_proj|down_proj)"},
    }
    source, tuned = made_source(tmp_path / "run", recipe_of(bases["llama"], method))
    work = work_for(source, "adapter", "own", tmp_path / "work")
    write_adapter(work)
    targets = json.loads((work.staged / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) == 4 and all(name.startswith("model.layers.") for name in targets)
    assert difference(answers(load_plain(build("llama"), work.staged)), tuned) < 1e-5


def test_the_revision_is_written_and_a_whole_model_is_no_adapter(bases, tmp_path):
    recipe = recipe_of(bases["qwen3"], {}, revision="abc123")
    source, _ = made_source(tmp_path / "run", recipe)
    work = work_for(source, "adapter", "own", tmp_path / "work")
    write_adapter(work)
    assert json.loads((work.staged / "adapter_config.json").read_text())["revision"] == "abc123"
    full, _ = made_source(tmp_path / "full", recipe_of(bases["qwen3"], {"type": "full"}))
    with pytest.raises(StepError, match="tuned in full"):
        write_adapter(work_for(full, "adapter", "own", tmp_path / "full-work"))


def test_a_bottleneck_is_told_to_be_for_tunesmith_only(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["qwen3"], {"type": "bottleneck", "bottleneck_size": 8}))
    work = work_for(source, "adapter", "own", tmp_path / "work")
    facts = write_adapter(work)
    assert not any(one["ok"] for one in facts["servable"].values())
    assert "peft: no: the peft library has no bottleneck adapters" in (work.staged / "README.md").read_text()
    assert torch.is_tensor(torch.zeros(1))
