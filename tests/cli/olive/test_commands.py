"""Olive's commands beside the chapter's blocks: --dry_run does nothing, mistakes are told, workflows end to end."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.cli.olive.conftest import write_aliases
from tunesmith.cli.main import invoke
from tunesmith.recipe import load_recipe
from tunesmith.runs import is_run

TUNE = (
    "olive finetune -m meta-llama/Llama-3.2-1B-Instruct -d xxyyzzz/phrase_classification "
    '--text_template "{phrase}\\n{tone}"'
)


def test_dry_run_prints_the_recipe_and_does_nothing(bench, say) -> None:
    before = sorted(bench.rglob("*"))
    said = say(f"{TUNE} --max_steps 7 --dry_run")
    assert said.code == 0 and sorted(bench.rglob("*")) == before
    assert yaml.safe_load(said.out)["train"]["max_steps"] == 7
    assert "10% of the rows; test: 20% of the rows, never trained on" in said.err
    said = say(f"{TUNE} --dry_run --json")
    assert said.json["recipe"]["base"]["chat_template"] == "raw" and said.json["through"] == "evaluate"


def test_the_saved_recipe_is_one_of_ours(bench, say) -> None:
    said = say(f"{TUNE} --max_steps 2 --save_config_file -o out --log_level 3 --through train")
    assert said.code == 0, said.err
    recipe = load_recipe(bench / "out/recipe.yaml")
    assert recipe.train.max_steps == 2 and yaml.safe_load(said.out.split("trained")[0])["train"]["max_steps"] == 2
    assert "step 2" not in said.err  # --log_level 3
    assert json.loads((bench / "out/metrics.json").read_text())["comparison"] == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--lora_rr 3", "lora_r"),
        ("--num_train_epoch 3", "--num_train_epochs"),
        ("--gradient_checkpoint true", "--gradient_checkpointing"),
    ],
)
def test_an_unknown_flag_gets_the_nearest(bench, say, flags, expected) -> None:
    said = say(f"{TUNE} {flags}")
    assert said.code == 2 and "No such option" in said.err and expected in said.err


def test_a_failure_is_an_exit_code_and_leaves_no_finished_output(bench, say) -> None:
    said = say(f"{TUNE} --lora_r 65 -o out --max_steps 2")
    assert said.code == 2 and "rank 65 is larger" in said.err
    assert not (bench / "out/adapter").exists() and not (bench / "out/metrics.json").exists()
    said = say("olive finetune -m meta-llama/Llama-3.2-1B-Instruct -d xxyyzzz/phrase_classification "
               '--text_template "{phrase}<|im_end|>{tone}" --max_steps 2 -o other')  # fmt: skip
    assert said.code == 2 and "does not know <|im_end|>" in said.err


def test_the_same_command_again_goes_on_and_another_one_is_refused(bench, say) -> None:
    block = f"{TUNE} --max_steps 2 -o out --through train"
    assert say(block).code == 0
    said = say(block)
    assert said.code == 0 and "training …" not in said.err
    said = say(block.replace("--max_steps 2", "--max_steps 3"))
    assert said.code == 2 and "train.max_steps was 2 and is now 3" in said.err


def test_a_small_model_stands_in_for_a_large_one(bench, say) -> None:
    said = say(f"{TUNE} --max_steps 2 -o out --test --through train")
    assert said.code == 0, said.err
    assert load_recipe(bench / "out/run/recipe.yaml").base.model == str(bench / "out/reference_hf_model")


def test_a_workflow_tunes_exports_and_holds_goals(bench, say) -> None:
    config = {
        "input_model": {"type": "HfModel", "model_path": "meta-llama/Llama-3.2-1B-Instruct"},
        "data_configs": [{
            "name": "rows", "type": "HuggingfaceContainer",
            "load_dataset_config": {"data_name": "xxyyzzz/phrase_classification", "split": "train[:60]"},
            "pre_process_data_config": {"text_template": "{phrase}\n{tone}"},
        }],
        "passes": {
            "lora": {"type": "LoRA", "r": 4, "training_args": {"max_steps": 5}},
            "graph": {"type": "OnnxConversion"},
        },
        "evaluators": {"size": {"metrics": [{"name": "size", "type": "size_on_disk", "sub_types": [
            {"name": "bytes", "goal": {"type": "threshold", "value": 5_000_000}}]}]}},
        "evaluator": "size",
        "output_dir": "flow",
    }  # fmt: skip
    Path("flow.json").write_text(json.dumps(config))
    said = say("olive run --config flow.json --dry_run")
    assert said.code == 0 and "step graph: export (kind onnx-plain, precision fp32)" in said.out
    said = say("olive run --config flow.json --json")
    assert said.code == 0, said.err
    (outcome,) = said.json["outcomes"]
    assert said.json["chosen"] == outcome["number"] and outcome["measures"]["size_bytes"] < 5_000_000
    artifact = Path(outcome["artifact"])
    assert (artifact if artifact.is_absolute() else Path("flow") / artifact).is_dir()

    config["evaluators"]["size"]["metrics"][0]["sub_types"][0]["goal"]["value"] = 10  # type: ignore[index]
    Path("flow.json").write_text(json.dumps(config))
    said = say("olive run --config flow.json")
    assert said.code == 5 and "misses: " in said.out and "done before" in said.out


def test_a_finished_model_is_exported_by_a_file_too(bench, say) -> None:
    assert say(f"{TUNE} --max_steps 3 -o out").code == 0
    said = say("olive optimize -m out -o plain --exporter dynamo_exporter --save_config_file")
    assert said.code == 0, said.err
    assert (bench / "plain/model/artifact.json").is_file() and is_run(bench / "out/run")
    assert "30 test rows" in said.err  # of the run, found again
    assert say("olive optimize -m out -o plain --exporter dynamo_exporter").code == 2  # it is there already
    said = say("olive run --config plain/config.yaml -o again --json")
    assert said.code == 0, said.err
    assert [step["kind"] for step in said.json["outcomes"][0]["steps"]] == ["export", "measure"]


def test_what_others_wrote_is_never_replaced(bench, shelf, say) -> None:
    """A folder that no run made, the base's own folder; and an output inside the base's folder is not copied in."""
    (bench / "mine/model").mkdir(parents=True)
    (bench / "mine/model/kept.txt").write_text("kept")
    said = say(f"{TUNE} --max_steps 2 -o mine --through train")
    assert said.code == 2 and "would be written over" in said.err
    assert (bench / "mine/model/kept.txt").read_text() == "kept"
    shutil.copytree(shelf / "llama-1b", bench / "own/model")
    own = TUNE.replace("meta-llama/Llama-3.2-1B-Instruct", "own/model") + " --max_steps 2 --through train"
    for output in ("own/model", "own"):
        said = say(f"{own} -o {output}")
        assert said.code == 2 and "the base's own folder" in said.err
    said = say(f"{own} -o own/model/out")
    assert said.code == 0, said.err
    assert not list((bench / "own/model/out/model").rglob("out"))
    assert (bench / "own/model/out/model/model.safetensors").is_file()


def test_json_is_all_that_stdout_has(bench, say) -> None:
    Path("flow.yaml").write_text(
        "input_model: {type: HfModel, model_path: meta-llama/Llama-3.2-1B-Instruct}\n"
        "passes: {graph: {type: Gptq, bits: 8}}\n"
    )
    said = say("olive run --config flow.yaml --save_config_file --json -o flow")
    assert said.code == 0 and said.json["chosen"] is not None
    assert yaml.safe_load((bench / "flow/config.yaml").read_text())["passes"]["graph"] == {"type": "Gptq", "bits": 8}
    said = say("olive quantize -m meta-llama/Llama-3.2-1B-Instruct -o small --save_config_file --json")
    assert said.code == 0 and said.json["precision"] == "int8"
    assert said.json["verification"][0]["passed"]
    assert said.json["notes"] == ([] if find_spec("torchao") else said.json["notes"][:1])
    said = say("olive extract-adapters -m none -f npz --json")
    assert said.code == 2 and "there is no model" in said.json["error"]["what"]


def test_extras_that_a_workflow_needs(bench, say) -> None:
    Path("flow.yaml").write_text(
        "input_model: {type: HfModel, model_path: meta-llama/Llama-3.2-1B-Instruct}\n"
        "passes: {graph: {type: ModelBuilder, precision: int4}, file: {type: ConvertHfToGGUF}}\n"
    )
    needed = "olive run --config flow.yaml --list_required_packages --json"
    assert say(needed).json == {"extras": ["gguf", "onnx"]}
    model = "input_model: {type: HfModel, model_path: meta-llama/Llama-3.2-1B-Instruct}\n"
    Path("flow.yaml").write_text(f"{model}passes: {{vino: {{type: OpenVINOConversion}}}}\n")
    assert say(needed).json == {"extras": ["onnx", "openvino"]}  # its graph comes from plain ONNX
    Path("flow.yaml").write_text(f"{model}passes: {{cut: {{type: Gptq}}}}\n")
    assert say(needed).json == {"extras": []}  # GPTQ is computed here
    assert say("olive run --config flow.yaml --package-config p.json").code == 2
    assert say("olive run").code == 2


def test_help_does_not_import_what_is_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from tunesmith.cli.main import invoke; invoke(['olive', 'finetune', '--help']); "
        "print([m for m in ('torch', 'transformers', 'pydantic', 'onnx') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip().endswith("[]"), said.stderr


def test_a_wrong_alias_file_is_told_before_anything_else(bench, shelf, say) -> None:
    assert invoke(["olive", "quantize", "--aliases", "none.yaml", "-m", "x"]) == 2
    write_aliases(bench, shelf, quantize={"model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct"})
    said = say("olive quantize --dry_run --json")
    assert said.code == 0 and said.json["target"] in ("torchao-int8", "gptq-int8")  # as torchao is installed or not
    write_aliases(bench, shelf, optimize={"trust_remote_code": True})
    said = say("olive optimize -m meta-llama/Llama-3.2-1B-Instruct --dry_run")
    assert said.code == 2 and "cannot be switched on by a file" in said.err
    write_aliases(bench, shelf, quantize={"model_name_or_path": ["a", "b"]})
    assert "quantize.model_name_or_path" in say("olive quantize --dry_run").err
    write_aliases(bench, shelf, quantize={"algoritm": "gptq"})
    said = say("olive quantize --dry_run")
    assert said.code == 2 and "quantize.algoritm: there is no such flag" in said.err and "algorithm" in said.err
