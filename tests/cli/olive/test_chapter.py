"""Every block of the widely used chapter on tuning with Olive, as people type it, with `tunesmith olive` for `olive`.

Hub ids stand for tiny local models and small data sets through the alias file, which also says what the blocks leave
out. Exit codes, files and numbers are looked at, not only that nothing is raised.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.olive.conftest import write_aliases
from tunesmith.cli.main import invoke
from tunesmith.recipe import load_recipe
from tunesmith.runs import RunFolder

LLAMA_TEMPLATE = (
    "<|start_header_id|>user<|end_header_id|>\n{phrase}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n{tone}"
)
BLOCK_5 = r"""olive finetune \
  --model_name_or_path meta-llama/Llama-3.2-1B-Instruct \
  --trust_remote_code \
  --output_path models/llama/ft \
  --data_name xxyyzzz/phrase_classification \
  --text_template "@@" \
  --method lora \
  --max_steps 100 \
  --log_level 1
""".replace("@@", LLAMA_TEMPLATE.replace("\n", "\\n"))
BLOCK_6 = r"""olive auto-opt \
  --model_name_or_path models/llama/ft/model \
  --adapter_path models/llama/ft/adapter \
  --device cpu \
  --provider CPUExecutionProvider \
  --use_ort_genai \
  --output_path models/llama/onnx \
  --log_level 1
"""
BLOCK_7 = [
    {
        "input": "What is machine learning?",
        "output": "Machine learning is a subset of artificial intelligence that enables computers to learn and improve "
        "from experience without being explicitly programmed.",
    },
    {
        "input": "Explain neural networks",
        "output": "Neural networks are computing systems inspired by biological neural networks that learn from data "
        "through interconnected nodes or neurons.",
    },
]
BLOCK_8 = r"""# olive-config.yaml
model:
  type: PyTorchModel
  config:
    model_path: "microsoft/DialoGPT-medium"
    task: "text-generation"

data_configs:
  - name: "custom_dataset"
    type: "HuggingfaceContainer"
    load_dataset_config:
      data_files: "path/to/your/dataset.json"
      split: "train"
    pre_process_data_config:
      text_template: "User: {input}\nAssistant: {output}"

passes:
  lora:
    type: LoRA
    config:
      r: 16
      lora_alpha: 32
      target_modules: ["c_attn", "c_proj"]
      modules_to_save: ["ln_f", "lm_head"]
"""
BLOCK_10 = r"""olive finetune \
  --method qlora \
  --model_name_or_path meta-llama/Meta-Llama-3-8B \
  --data_name nampdn-ai/tiny-codes \
  --train_split "train[:4096]" \
  --eval_split "train[4096:4224]" \
  --text_template "### Language: {programming_language} \n### Question: {prompt} \n### Answer: {response}" \
  --per_device_train_batch_size 16 \
  --per_device_eval_batch_size 16 \
  --max_steps 150 \
  --logging_steps 50 \
  --output_path adapters/tiny-codes
"""
BLOCK_11 = (
    'olive finetune --method lora --task_name "classification" --output_path adapters/classifier',
    'olive finetune --method lora --task_name "generation" --output_path adapters/generator',
    r"""olive generate-adapter \
  --base_model_path models/base \
  --adapter_paths adapters/classifier,adapters/generator \
  --output_path models/multi-adapter
""",
)
BLOCK_12 = """# hyperparameter-search.yaml
search_strategy:
  type: "random"
  num_trials: 20

search_space:
  learning_rate:
    type: "float"
    low: 1e-6
    high: 1e-3
    log: true

  lora_r:
    type: "int"
    low: 8
    high: 64

  batch_size:
    type: "choice"
    values: [8, 16, 32]
"""
BLOCK_13 = """# custom_loss.py
import torch
import torch.nn as nn

class CustomContrastiveLoss(nn.Module):
    def __init__(self, margin=1.0):
        super(CustomContrastiveLoss, self).__init__()
        self.margin = margin

    def forward(self, output1, output2, label):
        euclidean_distance = nn.functional.pairwise_distance(output1, output2)
        loss_contrastive = torch.mean((1-label) * torch.pow(euclidean_distance, 2) +
                                    (label) * torch.pow(torch.clamp(self.margin - euclidean_distance, min=0.0), 2))
        return loss_contrastive
"""
BLOCK_14 = '''# evaluation_script.py
from transformers import AutoTokenizer, AutoModelForCausalLM
from datasets import load_dataset
import torch

def evaluate_model(model_path, test_dataset, metric_type="accuracy"):
    """
    Evaluate fine-tuned model performance
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path)

    # Evaluation logic here
    results = {}

    for example in test_dataset:
        # Process example and calculate metrics
        pass

    return results
'''
BLOCK_15 = r"""olive finetune \
  --logging_steps 10 \
  --eval_steps 50 \
  --save_steps 100 \
  --logging_dir ./logs \
  --report_to tensorboard
"""
BLOCK_16 = """# Regularization techniques
passes:
  lora:
    type: LoRA
    config:
      r: 16  # Reduce rank to prevent overfitting
      lora_alpha: 16  # Lower alpha value
      lora_dropout: 0.1  # Add dropout
      weight_decay: 0.01  # L2 regularization
"""
BLOCK_17 = r"""olive finetune \
  --method qlora \
  --gradient_checkpointing true \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps 16
"""
BLOCK_18 = """# Performance optimization
training_config:
  fp16: true  # Mixed precision
  dataloader_num_workers: 4
  optim: "adamw_torch"
  lr_scheduler_type: "cosine"
"""


def metrics(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "metrics.json").read_text())
    return found


def score(folder: str, candidate: str, metric: str) -> float:
    rows = metrics(folder)["comparison"]
    (value,) = [row["value"] for row in rows if (row["candidate"], row["metric"]) == (candidate, metric)]
    return float(value)


def write_dataset(folder: Path, count: int = 60) -> None:
    """The rows that block 8 names: those of block 7, and more of their shape."""
    more = [{"input": f"What is {i} plus {i % 7}?", "output": str(i + i % 7)} for i in range(count)]
    (folder / "path/to/your").mkdir(parents=True)
    (folder / "path/to/your/dataset.json").write_text(json.dumps([*BLOCK_7, *more]))


@pytest.mark.parametrize(("block", "extras"), [(1, {"onnx"}), (2, {"onnx", "mlflow"})])
def test_blocks_1_and_2_what_they_install_has_its_like_here(block: int, extras: set[str]) -> None:
    """The package is installed with its command, and offers what the chapter's extras are for."""
    assert importlib.metadata.version("tunesmith")
    assert "tunesmith" in {e.name for e in importlib.metadata.distribution("tunesmith").entry_points}
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert extras <= project["optional-dependencies"].keys()


def test_block_3_the_command_is_available(capsys) -> None:
    assert invoke(["olive", "--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("finetune", "auto-opt", "optimize", "run", "generate-adapter", "convert-adapters",
                    "extract-adapters", "quantize", "capture-onnx-graph"):  # fmt: skip
        assert command in shown
        assert invoke(["olive", command, "--help"]) == 0
        assert "--output_path" in capsys.readouterr().out
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", "import tunesmith; print('installed successfully')"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0 and "installed successfully" in said.stdout


def test_block_4_an_empty_folder_is_enough_to_begin_and_nothing_is_fetched(tmp_path, monkeypatch, capsys) -> None:
    """A data set that a hub has and this machine has not: said, with what to do, before anything is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNESMITH_ALIASES", raising=False)
    assert (
        invoke(["olive", "finetune", "-m", "embedded:base", "-d", "somebody/phrases", "--text_template", "{a} {b}"])
        == 2
    )
    said = capsys.readouterr().err
    assert "somebody/phrases" in said and "none is fetched" in said and "aliases.yaml" in said
    assert list(tmp_path.iterdir()) == []


def test_blocks_5_and_6_tune_then_optimise(bench, say) -> None:
    said = say(BLOCK_5)
    assert said.code == 0, said.err
    run = RunFolder.open(bench / "models/llama/ft/run")
    recipe = load_recipe(run.recipe_file)
    assert recipe.train.max_steps == 100 and recipe.data.template == LLAMA_TEMPLATE  # \n is a line's end
    assert recipe.data.max_rows is None and "105 rows, 100 steps" in said.err  # no hidden sample cap
    assert "will run on this machine" in said.err  # --trust_remote_code is said aloud
    assert score("models/llama/ft", "tuned_scored", "accuracy") > 0.5  # of three tones
    assert metrics("models/llama/ft")["validation"] and metrics("models/llama/ft")["training"]["best_step"]
    assert (bench / "models/llama/ft/adapter/adapter_model.safetensors").is_file()
    assert (bench / "models/llama/ft/model/model.safetensors").is_file()
    learnt, prompt = _learnt(run)
    assert learnt in {f"{tone}</s>" for tone in ("warm", "cold", "neutral")}  # the answer alone, and its end
    assert prompt.endswith("<|end_header_id|>\n")

    said = say(BLOCK_6)
    assert said.code == 0, said.err
    folder = bench / "models/llama/onnx/model"
    assert {"model.onnx", "genai_config.json", "artifact.json", "verification.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert list(folder.glob("*.onnx_adapter"))
    assert "test rows are answered word for word as by the tuned model" in said.err
    foundry = json.loads((folder / "inference_model.json").read_text())
    assert foundry["Name"] == "onnx"
    assert foundry["PromptTemplate"]["prompt"] == LLAMA_TEMPLATE.replace("{phrase}", "{Content}").removesuffix("{tone}")
    from tunesmith.models.artifact import read_artifact

    read_artifact(folder)  # the manifest knows the added file too


def _learnt(run: RunFolder) -> tuple[str, str]:
    """What of the first training row is learnt, and what stands before it."""
    from transformers import AutoTokenizer

    from tunesmith.pipeline.exporting.rows import FrozenRows, frozen_rows
    from tunesmith.tasks.conversation import training_conversation
    from tunesmith.text.render import Renderer

    recipe = load_recipe(run.recipe_file)
    rows = frozen_rows(run, recipe)
    assert isinstance(rows, FrozenRows)
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    renderer = Renderer(tokenizer, recipe.base.chat_template)
    (sample,) = renderer.samples([training_conversation(rows.task, rows.train[0])], recipe.train.loss)
    ids, weights = list(sample.ids), list(sample.weights)
    first = next(i for i, weight in enumerate(weights) if weight)
    assert all(weights[first:])
    return tokenizer.decode(ids[first:]), tokenizer.decode(ids[:first])


def test_blocks_7_8_and_9_rows_and_a_configuration_of_ones_own(bench, say) -> None:
    write_dataset(bench)
    (bench / "olive-config.yaml").write_text(BLOCK_8)
    said = say("olive run --config olive-config.yaml --setup --set train.max_steps=20")
    assert said.code == 0, said.err
    assert "--setup changes nothing" in said.err
    recipe = load_recipe(bench / "olive-output/run/recipe.yaml")
    assert (recipe.method.rank, recipe.method.alpha) == (16, 32)
    assert recipe.method.target_modules == ["c_attn", "c_proj"]
    assert recipe.method.modules_to_save == ["ln_f", "lm_head"]
    assert recipe.data.template == "User: {input}\nAssistant: {output}"
    kept = json.loads((bench / "olive-output/adapter/adapter_config.json").read_text())
    assert kept["r"] == 16 and set(kept["modules_to_save"]) == {"ln_f", "lm_head"}
    assert metrics("olive-output")["training"]["steps"] == 20


def test_blocks_7_and_9_with_the_two_rows_as_they_are_printed(bench, say) -> None:
    """Too few to keep some back: both are learnt, which is said."""
    write_dataset(bench, 0)
    (bench / "olive-config.yaml").write_text(BLOCK_8)
    said = say("olive run --config olive-config.yaml --setup --set train.max_steps=3")
    assert said.code == 0, said.err
    assert "2 rows are too few to keep some back" in said.err
    assert metrics("olive-output")["training"]["steps"] == 3


def test_block_9_in_words_says_all_that_is_wrong_with_a_configuration(bench, say) -> None:
    write_dataset(bench)
    wrong = (
        BLOCK_8.replace("lora_alpha", "lora_alfa").replace("type: LoRA", "type: LoRa2").replace("DialoGPT", "Dialog")
    )
    (bench / "olive-config.yaml").write_text(wrong)
    said = say("olive run --config olive-config.yaml")
    assert said.code == 2
    assert "passes.lora.type" in said.err and "did you mean LoRA?" in said.err
    (bench / "olive-config.yaml").write_text(wrong.replace("LoRa2", "LoRA"))
    said = say("olive run --config olive-config.yaml")
    assert said.code == 2
    assert "passes.lora.config.lora_alfa" in said.err and "did you mean lora_alpha?" in said.err
    assert "model.config.model_path" in said.err and "did you mean microsoft/DialoGPT-medium?" in said.err


def test_block_10_qlora_with_slices(bench, say) -> None:
    said = say(BLOCK_10)
    assert said.code == 0, said.err
    recipe = load_recipe(bench / "adapters/tiny-codes/run/recipe.yaml")
    assert (recipe.method.quantize, recipe.train.batch_size, recipe.train.max_steps) == ("nf4", 16, 150)
    assert (recipe.evaluate.batch_size, recipe.train.log_every) == (16, 50)
    lines = [Path(str(part)).read_text().splitlines() for part in (recipe.data.train, recipe.data.validation)]
    assert [len(part) for part in lines] == [4096, 128]
    assert "on 4,096 rows, 150 steps" in said.err  # every one of them, none kept back
    assert json.loads(lines[1][0])["prompt"].startswith("add 4096 ")
    history = metrics("adapters/tiny-codes")["validation"]
    assert history and history[-1]["loss"] < history[0]["loss"] + 1
    assert (bench / "adapters/tiny-codes/adapter/adapter_config.json").is_file()


def test_block_11_several_adapters_over_one_base(bench, shelf, say) -> None:
    shutil.copytree(shelf / "llama-1b", bench / "models/base")
    write_aliases(
        bench, shelf,
        finetune={"model_name_or_path": "models/base", "max_steps": 30},
        tasks={
            "classification": {"data_name": "xxyyzzz/phrase_classification", "text_template": LLAMA_TEMPLATE},
            "generation": {"data_name": "nampdn-ai/tiny-codes", "train_split": "train[:60]",
                           "text_template": "{prompt}\n{response}"},
        },
    )  # fmt: skip
    for block in BLOCK_11:
        said = say(block)
        assert said.code == 0, said.err
    assert load_recipe(bench / "adapters/classifier/run/recipe.yaml").task.type == "classification"
    assert load_recipe(bench / "adapters/generator/run/recipe.yaml").task.type == "generation"
    folder = bench / "models/multi-adapter/model"
    artifact = json.loads((folder / "artifact.json").read_text())
    assert artifact["adapters"] == ["classifier", "generator"]
    assert len(list(folder.glob("*.onnx_adapter"))) == 2 and (folder / "inference_model.json").is_file()
    assert said.err.count("logits differ by at most") == 2

    # What convert-adapters writes is the file that the graph loads: the names are the graph's own.
    packed = sorted(folder.glob("*classifier.onnx_adapter"))[0].read_bytes()
    for graph in ("", " --onnx_model_path models/multi-adapter"):
        said = say(f"olive convert-adapters -a adapters/classifier -o one{graph}")
        assert said.code == 0, said.err
        assert (bench / "one.onnx_adapter").read_bytes() == packed


def test_block_12_search_over_learning_rate_rank_and_batch_size(bench, shelf, say) -> None:
    pytest.importorskip("optuna")
    write_dataset(bench)
    rows = bench / "path/to/your/dataset.json"
    rows.write_text(json.dumps(json.loads(rows.read_text())[2:22]))
    (bench / "olive-config.yaml").write_text(BLOCK_8)
    (bench / "hyperparameter-search.yaml").write_text(BLOCK_12)
    write_aliases(bench, shelf, run={"config": "olive-config.yaml"})
    said = say("olive run --config hyperparameter-search.yaml --set train.max_steps=1 --set train.eval_rows=2 --json")
    assert said.code == 0, said.err
    trials = said.json["trials"]
    assert len(trials) == 20  # asked, and run
    chosen = [trial["values"] for trial in trials]
    assert all(1e-6 <= c["train.learning_rate"] <= 1e-3 and 8 <= c["method.rank"] <= 64 for c in chosen)
    assert {c["train.batch_size"] for c in chosen} == {8, 16, 32}
    assert len({c["train.learning_rate"] for c in chosen}) > 10
    low = sum(c["train.learning_rate"] < 10**-4.5 for c in chosen)
    assert 4 <= low <= 16  # by its logarithm, half of the draws are below the middle
    assert (bench / "olive-output/adapter/adapter_config.json").is_file()
    best = next(t["values"] for t in trials if t["number"] == said.json["best"])
    assert json.loads((bench / "olive-output/adapter/adapter_config.json").read_text())["r"] == best["method.rank"]


def test_block_13_a_loss_of_ones_own(bench, say) -> None:
    (bench / "custom_loss.py").write_text(BLOCK_13)
    rows = [f"{word} a {i},{word if i % 2 else 'other'} b {i},{i % 2}" for i, word in enumerate(["sun", "rain"] * 30)]
    (bench / "pairs.csv").write_text("\n".join(["first,second,label", *rows]) + "\n")
    said = say(
        "olive finetune -m meta-llama/Llama-3.2-1B-Instruct --data_files pairs.csv --input_cols first,second,label "
        "--custom_loss custom_loss.py:CustomContrastiveLoss --max_steps 6 -o pairs"
    )
    assert said.code == 0, said.err
    recipe = load_recipe(bench / "pairs/run/recipe.yaml")
    assert recipe.train.objective == f"{bench / 'custom_loss.py'}:CustomContrastiveLoss"
    assert metrics("pairs")["training"]["steps"] == 6


def test_block_14_an_evaluation_script_opens_what_was_tuned(bench, say) -> None:
    pytest.importorskip("datasets")
    said = say(BLOCK_5.replace("--method lora", "--method full").replace("100", "5"))
    assert said.code == 0, said.err
    (bench / "evaluation_script.py").write_text(BLOCK_14)
    evaluate = runpy.run_path(str(bench / "evaluation_script.py"))["evaluate_model"]
    assert evaluate(str(bench / "models/llama/ft/model"), [{"phrase": "hello"}]) == {}


def test_block_15_logging(bench, shelf, say) -> None:
    write_aliases(
        bench, shelf,
        finetune={"model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct", "max_steps": 60,
                  "data_name": "xxyyzzz/phrase_classification", "text_template": LLAMA_TEMPLATE},
    )  # fmt: skip
    said = say(BLOCK_15)
    assert said.code == 0, said.err
    recipe = load_recipe(bench / "finetuned-adapter/run/recipe.yaml")
    assert (recipe.train.log_every, recipe.train.watch_every, recipe.train.tensorboard) == (10, 50, True)
    assert "--save_steps: changes nothing" in said.err
    assert list((bench / "logs").glob("*/events.out.tfevents.*"))  # where it was asked for
    assert list((bench / "finetuned-adapter/run/tensorboard").glob("events.out.tfevents.*"))  # and in the run
    events = [json.loads(line) for line in (bench / "finetuned-adapter/run/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "watched_loss" in event] == [50]
    assert len(metrics("finetuned-adapter")["validation"]) == 2


def test_block_15_without_a_model_or_data_anywhere(tmp_path, monkeypatch, say) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNESMITH_ALIASES", raising=False)
    said = say(BLOCK_15)
    assert said.code == 2
    assert "--model_name_or_path: missing" in said.err and "--data_name: missing" in said.err
    assert said.err.count("aliases.yaml") == 2 and list(tmp_path.iterdir()) == []


def test_block_16_regularisation(bench, shelf, say) -> None:
    write_dataset(bench)
    (bench / "olive-config.yaml").write_text(BLOCK_8)
    (bench / "regularised.yaml").write_text(BLOCK_16)
    said = say("olive run --config olive-config.yaml --config regularised.yaml --set train.max_steps=3 -o regularised")
    assert said.code == 0, said.err
    recipe = load_recipe(bench / "regularised/run/recipe.yaml")
    method = recipe.method
    assert (method.rank, method.alpha, method.dropout, recipe.train.weight_decay) == (16, 16, 0.1, 0.01)
    assert method.target_modules == ["c_attn", "c_proj"]  # what the fragment does not say stays


def test_block_17_memory(bench, shelf, say) -> None:
    write_aliases(
        bench, shelf,
        finetune={"model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct", "max_steps": 3,
                  "data_name": "xxyyzzz/phrase_classification", "text_template": LLAMA_TEMPLATE},
    )  # fmt: skip
    said = say(BLOCK_17)
    assert said.code == 0, said.err
    recipe = load_recipe(bench / "finetuned-adapter/run/recipe.yaml")
    assert recipe.method.quantize == "nf4" and recipe.train.recompute == "on" and recipe.train.batch_size == 16


def test_block_18_performance(bench, shelf, say) -> None:
    write_aliases(
        bench, shelf,
        finetune={"model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct", "max_steps": 3,
                  "data_name": "xxyyzzz/phrase_classification", "text_template": LLAMA_TEMPLATE},
    )  # fmt: skip
    (bench / "fast.yaml").write_text(BLOCK_18)
    said = say("olive run --config fast.yaml")
    assert said.code == 0, said.err
    recipe = load_recipe(bench / "olive-output/run/recipe.yaml")
    assert (recipe.train.precision, recipe.train.optimizer, recipe.train.schedule) == ("fp16", "adamw", "cosine")
    assert "training_config.dataloader_num_workers: changes nothing" in said.err


def test_the_blocks_are_yaml_and_python_as_written() -> None:
    for block in (BLOCK_8, BLOCK_12, BLOCK_16, BLOCK_18):
        assert isinstance(yaml.safe_load(block), dict)
    for block in (BLOCK_13, BLOCK_14):
        compile(block, "block", "exec")
