"""Flags and configuration files as recipes, without anything being trained."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.pipeline.olive.config import plan_run
from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.finetune import Plan, plan_finetune, unescape
from tunesmith.pipeline.olive.project import Project, load_project
from tunesmith.pipeline.olive.training_arguments import NAMES, training_settings
from tunesmith.recipe import InvalidRecipeError, dump_recipe, parse_recipe


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNESMITH_ALIASES", raising=False)
    rows = [{"a": f"question {i}", "b": f"answer {i}", "words": f"text {i}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def finetune(**flags: Any) -> Plan:
    """The plan of a command line with a base and rows."""
    given = {"model_name_or_path": "embedded:base", "data_name": "rows.jsonl", "text_template": "{a}\n{b}", **flags}
    return plan_finetune(given, load_project())


def problems(**flags: Any) -> dict[str, str]:
    with pytest.raises(InvalidRecipeError) as caught:
        finetune(**flags)
    return {problem.key: str(problem) for problem in caught.value.problems}


def config(here: Path, **more: Any) -> Path:
    """A configuration with a LoRA pass, and further sections."""
    base = {
        "input_model": {"type": "HfModel", "model_path": "embedded:base"},
        "data_configs": [
            {
                "name": "rows",
                "type": "HuggingfaceContainer",
                "load_dataset_config": {"data_name": "json", "data_files": "rows.jsonl", "split": "train"},
                "pre_process_data_config": {"text_template": "{a}\n{b}"},
            }
        ],
        "passes": {"lora": {"type": "LoRA", "r": 8, "train_data_config": "rows"}},
    }
    path = here / "config.json"
    path.write_text(json.dumps({**base, **more}))
    return path


def test_every_argument_of_the_trainer_is_known() -> None:
    from transformers import TrainingArguments

    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert fields - set(NAMES) <= {"log_level"}  # Olive has a flag of that name


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_argument_of_the_trainer_is_dropped_in_silence(name: str) -> None:
    """Each changes a setting, is named in a note, is refused, or (where it says nothing new) leaves all as it is."""
    draft = Draft()
    value = {
        "optim": "adamw_torch", "lr_scheduler_type": "linear", "report_to": "tensorboard", "eval_strategy": "no",
        "evaluation_strategy": "no", "save_strategy": "steps", "metric_for_best_model": "eval_loss", "run_name": "n",
        "warmup_steps": "0.1", "logging_dir": "logs", "do_eval": "false", "load_best_model_at_end": "false",
    }.get(name, "1")  # fmt: skip
    training_settings({name: value}, draft)
    said = bool(draft.settings or draft.notes or draft.problems)
    assert said or name == "logging_dir"  # the plan's own: where TensorBoard files are linked


def test_arguments_that_make_one_setting_together(here) -> None:
    plan = finetune(
        per_device_train_batch_size="4", gradient_accumulation_steps="3", max_steps="100", warmup_steps="10",
        eval_steps="25", lr_scheduler_type="constant_with_warmup", optim="paged_adamw_8bit", bf16="true",
        report_to="tensorboard,mlflow", load_best_model_at_end="true", metric_for_best_model="eval_loss",
    )  # fmt: skip
    train = plan.recipe.train
    assert (train.batch_size, train.warmup_ratio, train.evaluations, train.watch_every) == (12, 0.1, 4, 25)
    assert (train.schedule, train.optimizer, train.precision) == ("constant", "adamw_8bit", "bf16")
    assert (train.tensorboard, train.trackers, train.select_by) == (True, ["mlflow"], "loss")


def test_alpha_and_lora_alpha_are_one_setting(here) -> None:
    assert finetune(alpha="32").recipe.method.alpha == finetune(lora_alpha="32").recipe.method.alpha == 32
    assert finetune(alpha="32", lora_alpha="32.0").recipe.method.alpha == 32
    assert "says 16.0 where another one says 32.0" in " ".join(problems(alpha="16", lora_alpha="32").values())


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("qlora", {"quantize": "nf4"}), ("dora", {"use_dora": True}), ("full", {"type": "full"}),
        ("loha", {"type": "peft", "peft_type": "LOHA", "peft_options": {"r": 8, "alpha": 4.0}}),
        ("lokr", {"type": "peft", "peft_type": "LOKR", "peft_options": {"r": 8, "alpha": 4.0}}),
        ("LoRA", {"type": "lora", "rank": 8}), ("pissa", {"init": "pissa"}),
    ],
)  # fmt: skip
def test_methods(here, method: str, expected: dict[str, Any]) -> None:
    sizes = {} if method == "full" else {"lora_r": "8", "lora_alpha": "4"}
    made = finetune(method=method, **sizes).recipe.method
    assert {key: getattr(made, key) for key in expected} == expected


def test_everything_that_is_wrong_is_said_at_once(here) -> None:
    found = problems(
        method="loftq", lora_r="0", max_steps="many", deepspeed="ds.json", optim="adamw_torhc", push_to_hub="true",
        train_split="train[:", text_field="words", torch_dtype="int3",
    )  # fmt: skip
    assert {"--method", "--max_steps", "--deepspeed", "--optim", "--push_to_hub", "--train_split"} <= found.keys()
    assert "pissa" in found["--method"] and "did you mean adamw_torch?" in found["--optim"]
    assert "sharding: fsdp" in found["--deepspeed"] and "--text_field" in found


def test_all_rows_are_used_unless_it_is_said(here) -> None:
    assert finetune().recipe.data.max_rows is None
    assert finetune(max_samples="7").recipe.data.max_rows == 7


def test_slices_are_written_out_and_all_of_them_learnt(here) -> None:
    plan = finetune(train_split="train[:50%]", eval_split="train[-3:]", output_path="out")
    data = plan.recipe.data
    assert len(Path(data.train).read_text().splitlines()) == 10
    rows = [json.loads(line)["a"] for line in Path(str(data.validation)).read_text().splitlines()]
    assert rows == ["question 17", "question 18", "question 19"]
    assert data.split.test == 0 and plan.through == "train"
    assert finetune(test_split="train[10:]").through == "evaluate"


def test_a_slice_that_holds_nothing_is_an_error(here) -> None:
    with pytest.raises(DataError, match="rows 4096 to 4224 were asked for, of 20"):
        finetune(train_split="train[4096:4224]")
    assert "--eval_split" in problems(eval_split="test")


def test_a_text_column_is_learnt_whole(here) -> None:
    plan = finetune(text_template=None, text_field="words", output_path="out")
    recipe = plan.recipe
    assert (recipe.data.format, recipe.train.loss, recipe.base.chat_template) == ("text", "all", "raw")
    assert json.loads(Path(recipe.data.train).read_text().splitlines()[0])["text"] == "text 0"
    with pytest.raises(DataError, match="no column 'wrods'"):
        finetune(text_template=None, text_field="wrods")


def test_escapes_of_a_template_and_nothing_else() -> None:
    assert unescape(r"a\nb\tc\\n ü {x}") == "a\nb\tc\\n ü {x}"


def test_the_saved_recipe_means_the_same(here) -> None:
    plan = finetune(max_steps="5", lora_r="4", text_template=r"{a}\n{b}")
    assert parse_recipe(yaml.safe_load(dump_recipe(plan.recipe))) == plan.recipe


def test_remote_code_needs_the_command_line(here) -> None:
    (here / "aliases.yaml").write_text("recipe: {base.trust_remote_code: true}\n")
    with pytest.raises(RecipeError, match="trust_remote_code is on in the file"):
        finetune()
    assert finetune(trust_remote_code="true").recipe.base.trust_remote_code
    for text in ("finetune: {trust_remote_code: true}", "tasks: {t: {trust_remote_code: true}}"):
        (here / "aliases.yaml").write_text(f"{text}\n")
        assert not finetune().recipe.base.trust_remote_code
        with pytest.raises(RecipeError, match="cannot be switched on by a file"):
            load_project().refuse_remote_code()  # which every command does first
    assert finetune(text_template="{a} {b}", use_chat_template="false").recipe.data.template == "{a} {b}"


def test_the_alias_file_says_what_is_wrong_with_it(here) -> None:
    (here / "aliases.yaml").write_text("modles: {}\ndatasets: {a/b: 3}\ntasks: {t: no}\n")
    with pytest.raises(InvalidRecipeError) as caught:
        load_project()
    said = str(caught.value)
    assert "did you mean models?" in said and "datasets.a/b" in said and "tasks.t" in said
    with pytest.raises(RecipeError, match="there is no such alias file"):
        load_project("other.yaml")


def test_command_line_over_task_over_command_over_recipe(here) -> None:
    (here / "aliases.yaml").write_text(
        yaml.safe_dump(
            {
                "finetune": {"model_name_or_path": "embedded:base", "max_steps": 5, "lora_r": 2, "seed": 1},
                "tasks": {"tone": {"data_name": "rows.jsonl", "text_template": "{a} {b}", "max_steps": 6, "lora_r": 4}},
                "recipe": {"train": {"max_steps": 9, "patience": 1}, "train.seed": 7},
            }
        )
    )
    recipe = plan_finetune({"task_name": "tone", "lora_r": "8"}, load_project()).recipe
    assert (recipe.method.rank, recipe.train.max_steps, recipe.train.seed, recipe.train.patience) == (8, 6, 1, 1)
    assert recipe.name == "tone"


def test_flags_that_do_not_exist_in_the_alias_file_are_told(here) -> None:
    (here / "aliases.yaml").write_text("finetune: {lora_rr: 3, through: never}\ntasks: {t: {text_tmplate: x}}\n")
    with pytest.raises(InvalidRecipeError) as caught:
        finetune()
    said = str(caught.value)
    assert "did you mean lora_r?" in said and "did you mean text_template?" in said and "--through" in said


def test_the_environment_names_an_alias_file(here, monkeypatch) -> None:
    (here / "named.yaml").write_text("datasets: {org/rows: rows.jsonl}\n")
    monkeypatch.setenv("TUNESMITH_ALIASES", str(here / "named.yaml"))
    assert finetune(data_name="org/rows").recipe.data.train == str(here / "rows.jsonl")


def test_a_configuration_file_is_its_command_line(here) -> None:
    lora = {"type": "LoRA", "alpha": 4, "r": 8, "training_args": {"max_steps": 3, "dataloader_num_workers": 2}}
    plan = plan_run([config(here, passes={"lora": lora})], Project())
    same = finetune(alpha="4", lora_r="8", max_steps="3")
    assert plan.recipe is not None and plan.workflow is None
    assert plan.recipe.model_copy(update={"name": None}) == same.recipe.model_copy(update={"name": None})
    assert any("passes.lora.training_args.dataloader_num_workers" in note for note in plan.notes)


def test_everything_wrong_in_a_configuration_by_its_own_keys(here) -> None:
    wrong = config(
        here, passes={"lora": {"type": "LoRA", "r": 0, "lora_dropuot": 0.1}, "qnn": {"type": "QNNConversion"}},
        input_model={"type": "HfModle", "model_path": "org/none"}, serach_strategy={"type": "random"},
        search_space={"lerning_rate": {"type": "float"}},
    )  # fmt: skip
    with pytest.raises(InvalidRecipeError) as caught:
        plan_run([wrong], Project())
    found = {problem.key: str(problem) for problem in caught.value.problems}
    assert "did you mean lora_dropout?" in found["passes.lora.lora_dropuot"]
    assert "did you mean search_strategy?" in found["serach_strategy"]
    assert "did you mean learning_rate?" in found["search_space.lerning_rate"]
    assert {"passes.qnn", "passes.lora.r", "input_model.type", "input_model.model_path"} <= found.keys()


def test_passes_after_tuning_are_steps_and_evaluators_goals(here) -> None:
    metrics = [
        {"name": "q", "type": "accuracy", "sub_types": [
            {"name": "accuracy_score", "goal": {"type": "max-degradation", "value": 0.01}}]},
        {"name": "s", "type": "latency", "sub_types": [{"name": "avg", "goal": {"type": "threshold", "value": 50}}]},
        {"name": "d", "type": "size_on_disk", "sub_types": [
            {"name": "bytes", "goal": {"type": "percent-max-degradation", "value": 10}}]},
    ]  # fmt: skip
    passes = {
        "lora": {"type": "LoRA", "r": [8, 16]}, "graph": {"type": "ModelBuilder", "precision": "fp32"},
        "small": {"type": "OnnxKQuantQuantization"}, "fuse": {"type": "OrtTransformersOptimization"},
        "adapters": {"type": "ExtractAdapters"}, "bits": {"type": "Gptq", "bits": 4},
    }  # fmt: skip
    plan = plan_run(
        [config(here, passes=passes, evaluators={"e": {"metrics": metrics}}, evaluator="e",
                search_strategy={"sampler": "tpe", "max_samples": 3, "seed": 5, "execution_order": "pass-by-pass"})],
        Project(),
    )  # fmt: skip
    assert plan.workflow is not None and plan.workflow.search is not None
    kinds = [(step.kind, step.settings.get("precision")) for step in plan.workflow.steps]
    assert kinds == [
        ("train", None),
        ("multi-onnx", "int4"),
        ("quantise", "int4"),
        ("evaluate", None),
        ("measure", None),
    ]
    space = plan.workflow.steps[0].space["method.rank"]
    assert (space.type, space.values) == ("choice", [8, 16])
    search = plan.workflow.search
    assert (search.sampler, search.trials, search.seed, search.order) == ("tpe", 3, 5, "step-by-step")
    goals = [(goal.measure, goal.kind, goal.value, goal.share) for goal in plan.workflow.goals]
    assert goals == [
        ("accuracy", "max-degradation", 0.01, False), ("seconds_per_token", "at-most", 0.05, False),
        ("size_bytes", "max-degradation", 0.1, True),
    ]  # fmt: skip
    assert any("OrtTransformersOptimization changes nothing" in note for note in plan.notes)


def test_a_search_keeps_the_number_of_trials(here) -> None:
    space = {"lora_r": {"type": "int", "low": 4, "high": 8}, "batch_size": [4, 8]}
    for words in ({"type": "random", "num_trials": 7}, {"sampler": "random", "max_samples": 7}):
        recipe = plan_run([config(here, search_space=space, search_strategy=words)], Project()).recipe
        assert recipe is not None and recipe.search is not None
        assert (recipe.search.trials, recipe.search.sampler) == (7, "random")
        assert recipe.search.space["train.batch_size"].values == [4, 8]
    with pytest.raises(InvalidRecipeError, match="say different numbers"):
        plan_run([config(here, search_space=space, search_strategy={"num_trials": 7, "max_samples": 8})], Project())


def test_fragments_change_what_stands_before_them(here) -> None:
    fragment = here / "fragment.yaml"
    fragment.write_text("passes: {lora: {type: LoRA, config: {lora_dropout: 0.1}}}\ntraining_config: {seed: 3}\n")
    recipe = plan_run([config(here), fragment], Project()).recipe
    assert recipe is not None
    assert (recipe.method.rank, recipe.method.dropout, recipe.train.seed) == (8, 0.1, 3)


def test_a_fragment_counts_however_deep_its_options_stand(here) -> None:
    """Flat over nested, nested over flat, and `model` over `input_model`: what stands later holds."""
    fragment = here / "fragment.yaml"
    nested = {"lora": {"type": "LoRA", "config": {"r": 8}}}
    for passes, text in ((nested, "{type: LoRA, r: 4}"), ({}, "{type: LoRA, config: {r: 4}}")):
        fragment.write_text(
            f"passes: {{lora: {text}}}\nmodel: {{type: PyTorchModel, config: {{task: text-generation}}}}\n"
        )
        recipe = plan_run([config(here, **({"passes": passes} if passes else {})), fragment], Project()).recipe
        assert recipe is not None and recipe.method.rank == 4 and recipe.base.model == "embedded:base"
    both = config(here, model={"type": "HfModel", "model_path": "embedded:base"})
    with pytest.raises(InvalidRecipeError, match="stands beside input_model"):
        plan_run([both], Project())


def test_json_is_read_by_its_own_rules(here) -> None:
    """Tabs, characters in pairs of surrogates; a key that is there twice is an error."""
    path = config(here)
    text = json.dumps(json.loads(path.read_text()), indent="\t").replace("{a}\\n{b}", "{a} \\ud83d\\ude00 {b}")
    path.write_text(text)
    recipe = plan_run([path], Project()).recipe
    assert recipe is not None and recipe.data.template == "{a} \U0001f600 {b}"
    for wrong, said in (('{"a": 1, "a": 2}', "'a' is there twice"), ('{\n"a" 1}', "config.json:2")):
        path.write_text(wrong)
        with pytest.raises(RecipeError, match=said):
            plan_run([path], Project())


def test_the_target_system_says_for_which_device_exports_are(here) -> None:
    accelerator = {"device": "gpu", "execution_providers": ["DmlExecutionProvider"]}
    systems = {"local": {"type": "LocalSystem", "accelerators": [accelerator]}}
    passes = {"graph": {"type": "ModelBuilder", "precision": "int4"}}
    plan = plan_run([config(here, passes=passes, systems=systems, target="local")], Project())
    assert plan.workflow is not None and plan.workflow.steps[0].settings["device"] == "directml"
    passes = {"graph": {"type": "OpenVINOConversion"}}
    with pytest.raises(InvalidRecipeError, match="openvino is not made for directml"):
        plan_run([config(here, passes=passes, systems=systems, target="local")], Project())
    with pytest.raises(InvalidRecipeError, match="there is no system 'other'"):
        plan_run([config(here, systems=systems, target="other")], Project())


def test_what_no_pass_uses_is_told(here) -> None:
    """Exports alone have no recipe: settings of a training are named, and --set is refused."""
    graph = {"graph": {"type": "ModelBuilder"}}
    space = {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3}}
    path = config(here, passes=graph, search_space=space, training_config={"seed": 3})
    notes = " ".join(plan_run([path], Project()).notes)
    assert "search_space: changes nothing" in notes and "training_config.seed: changes nothing" in notes
    with pytest.raises(InvalidRecipeError, match="--set: no pass tunes"):
        plan_run([path], Project(), ["train.seed=1"])
    searched = config(here, passes={"lora": {"type": "LoRA", "r": "SEARCHABLE_VALUES"}})
    assert "passes.lora.r: changes nothing" in " ".join(plan_run([searched], Project()).notes)


def test_files_by_split_in_a_configuration(here) -> None:
    load = {"data_name": "json", "data_files": {"validation": "none.jsonl", "train": "rows.jsonl"}, "split": "train"}
    sets = [{"name": "rows", "type": "HuggingfaceContainer", "load_dataset_config": load,
             "pre_process_data_config": {"text_template": "{a} {b}"}}]  # fmt: skip
    recipe = plan_run([config(here, data_configs=sets)], Project()).recipe
    assert recipe is not None and recipe.data.train == str(here / "rows.jsonl")
    load["split"] = "dev"
    with pytest.raises(InvalidRecipeError, match="no files for the split 'dev'"):
        plan_run([config(here, data_configs=sets)], Project())


def test_few_rows_are_all_learnt(here) -> None:
    """The two rows that the chapter prints are enough for a training."""
    lines = (here / "rows.jsonl").read_text().splitlines()
    (here / "few.jsonl").write_text("\n".join(lines[:9]))
    plan = finetune(data_name="few.jsonl")
    assert (plan.recipe.data.split.validation, plan.recipe.data.split.test, plan.through) == (0, 0, "train")
    assert any("9 rows are too few to keep some back" in note for note in plan.notes)
    (here / "few.jsonl").write_text("\n".join(lines[:10]))
    assert finetune(data_name="few.jsonl").recipe.data.split.test > 0


def test_a_plan_that_only_shows_writes_nothing(here) -> None:
    before = sorted(here.rglob("*"))
    given = {"model_name_or_path": "embedded:base", "data_name": "rows.jsonl", "text_template": "{a}\n{b}",
             "train_split": "train[:5]", "output_path": "out"}  # fmt: skip
    plan = plan_finetune(given, Project(), writes=False)
    assert plan.recipe.data.train == str(here / "out/rows/train.jsonl") and sorted(here.rglob("*")) == before


def test_code_in_a_configuration_is_not_run(here) -> None:
    wrong = config(here, input_model={"type": "HfModel", "model_path": "embedded:base", "model_script": "x.py",
                                      "load_kwargs": {"trust_remote_code": True}})  # fmt: skip
    with pytest.raises(InvalidRecipeError) as caught:
        plan_run([wrong], Project())
    keys = {problem.key for problem in caught.value.problems}
    assert {"input_model.model_script", "input_model.load_kwargs.trust_remote_code"} <= keys


WHOLE: dict[str, Any] = {
    "input_model": {
        "type": "HfModel",
        "config": {"model_path": "embedded:base", "load_kwargs": {"torch_dtype": "float32"}},
    },
    "data_configs": [
        {
            "name": "rows",
            "type": "HuggingfaceContainer",
            "load_dataset_config": {"data_files": "rows.jsonl", "split": "train"},
            "pre_process_data_config": {"text_template": "{a}\n{b}", "max_samples": 5},
        }
    ],
    "passes": {
        "lora": {
            "type": "LoRA",
            "config": {"r": [8, 16], "target_modules": ["q_proj"], "training_args": {"max_steps": 3}},
        },
        "graph": {"type": "ModelBuilder", "precision": "int4"},
    },
    "evaluators": {"e": {"metrics": [{"type": "accuracy", "sub_types": [
        {"name": "accuracy_score", "goal": {"type": "threshold", "value": 0.5}}]}]}},
    "search_strategy": {"type": "random", "num_trials": 3},
    "search_space": {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-3, "log": True}},
    "training_config": {"fp16": True},
    "engine": {"output_dir": "out"},
}  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in _places(one, (*path, key)))]


@pytest.mark.parametrize("junk", [None, 3, "x", [], {}, [1], ["a", {}], {"q": 1}, True, float("nan")], ids=repr)
def test_nothing_in_a_configuration_is_a_crash(here, junk) -> None:
    """Whatever stands in any place of the file is either understood or an error for people."""
    assert plan_run([config(here, **WHOLE)], Project()).workflow is not None
    refused = 0
    for place in _places(WHOLE)[1:]:
        changed = copy.deepcopy(WHOLE)
        inner: Any = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = junk
        try:
            plan_run([config(here, **changed)], Project())
        except TunesmithError:
            refused += 1
    assert refused > 10
