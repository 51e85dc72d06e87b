"""The sections of an Olive configuration that say what is tuned: model, data sets, the tuning pass, the trainer.

Each becomes flags of `finetune` in `given`; `names` remembers by which key of the file a flag was said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.pipeline.olive.config_passes import TUNING, Passes, add_pass
from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.methods import NAMES as METHOD_NAMES
from tunesmith.pipeline.olive.training_arguments import NAMES as TRAINING_NAMES
from tunesmith.recipe.problems import nearest

_MODELS = {"pytorchmodel": True, "hfmodel": True, "huggingfacemodel": True, "pytorchmodelhandler": True,
           "onnxmodel": False, "diffusersmodel": False, "openvinomodel": False, "compositemodel": False}  # fmt: skip
_DATA_KEYS = {
    "load": {"data_name": "data_name", "subset": "train_subset", "split": "train_split", "data_files": "data_files"},
    "pre": {"text_template": "text_template", "text_cols": "text_field", "text_field": "text_field",
            "max_seq_len": "max_seq_len", "max_samples": "max_samples", "add_special_tokens": "add_special_tokens",
            "input_cols": "input_cols", "chat_template": "use_chat_template"},
    "loader": {"batch_size": "batch_size"},
}  # fmt: skip
_DATA_SECTIONS = {"load_dataset_config": "load", "pre_process_data_config": "pre", "dataloader_config": "loader",
                  "post_process_data_config": "post", "params_config": "pre"}  # fmt: skip
_DATA_NO_EFFECT = {
    "strategy": "rows are packed without padding, and never see each other",
    "max_samples_per_dataset": "max_samples says it",
    "trust_remote_code": "data sets' own code is never run",
    "source_max_len": "max_seq_len says it", "pad_to_max_len": "rows are not padded", "use_attention_mask": "rows are "
    "not padded", "token": "nothing is fetched", "label_col": "the template's last column is the answer",
    "label_cols": "the template's last column is the answer", "drop_short_sequences": "no row is left out unsaid",
    "shuffle": "rows are shuffled by the seed", "drop_last": "every row counts", "stride": "rows are never cut",
    "joiner": "rows never see each other", "tokenizer": "the model's own is used", "random_seed": "--seed draws",
    "model_name": "the model's own tokenizer is used", "task": "the task is read from the rows",
}  # fmt: skip


def section_of(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section, empty where it is missing or no mapping."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def read_model(config: Mapping[str, Any], given: dict[str, Any], names: dict[str, str], draft: Draft) -> None:
    """The model, with its adapter, task and dtype, however deep the file has them."""
    section = next((name for name in ("input_model", "model") if config.get(name) is not None), None)
    if section is None:
        return
    model = config[section]
    if not isinstance(model, dict):
        draft.wrong(section, f"{model!r} is not allowed", expected="{type: HfModel, model_path: …}")
        return
    kind = str(model.get("type", "HfModel"))
    tunable = _MODELS.get(kind.lower())
    if tunable is None:
        near = nearest(kind, ("PyTorchModel", "HfModel"))
        draft.wrong(f"{section}.type", f"{kind!r} is not allowed", expected="HfModel or PyTorchModel",
                    fix=f"did you mean {near}?" if near else None)  # fmt: skip
    elif not tunable:
        draft.wrong(f"{section}.type", f"a {kind} cannot be tuned or exported again", expected="HfModel, PyTorchModel")
    inner = section_of(model, "config")
    place = f"{section}.config" if inner else section
    flat = {**{k: v for k, v in model.items() if k not in ("type", "config")}, **inner}
    hf = section_of(flat, "hf_config")
    flat = {**flat, **{k: v for k, v in hf.items() if k in ("model_name", "task")}}
    if len([name for name in ("input_model", "model") if config.get(name) is not None]) == 2:
        draft.wrong("model", "stands beside input_model, which is the same section", expected="one of them")
    path = flat.get("model_path") or flat.get("model_name")
    if isinstance(path, dict):
        draft.wrong(f"{place}.model_path", "models of a registry are not fetched", expected="a folder or a name")
    elif path is not None:
        given["model_name_or_path"] = str(path)
    names["--model_name_or_path"] = f"{place}.model_path"
    for name, flag in (("task", "task"), ("adapter_path", "adapter_path")):
        if flat.get(name) is not None:
            given[flag] = flat[name]
            names[f"--{flag}"] = f"{place}.{name}"
    known = ("model_path", "model_name", "task", "adapter_path", "hf_config", "load_kwargs", "io_config", "generative")
    for name in flat:
        if name in ("model_script", "script_dir", "model_loader"):
            draft.wrong(f"{place}.{name}", "code of a configuration is not run", fix="save the model as a folder")
        elif name not in known and not name.startswith(("model_attributes", "dummy_inputs", "test_model")):
            near = nearest(name, known)
            draft.wrong(f"{place}.{name}", "unknown key", fix=f"did you mean {near}?" if near else None)
    load = section_of(flat, "load_kwargs")
    if load.get("trust_remote_code"):
        draft.wrong(f"{place}.load_kwargs.trust_remote_code", "a file cannot switch this on",
                    expected="said on the command line", fix="--set base.trust_remote_code=true")  # fmt: skip
    if load.get("torch_dtype") is not None:
        given["torch_dtype"] = load["torch_dtype"]
        names["--torch_dtype"] = f"{place}.load_kwargs.torch_dtype"


def read_passes(
    config: Mapping[str, Any], given: dict[str, Any], names: dict[str, str], draft: Draft
) -> tuple[Passes, bool]:
    """Steps after tuning; options of the pass that tunes go into the flags. Also: whether one tunes."""
    passes, tuned = Passes(), False
    value = config.get("passes")
    if value is not None and not isinstance(value, dict):
        draft.wrong("passes", f"{value!r} is not allowed", expected="passes by their name")
        return passes, tuned
    for name, one in (value or {}).items():
        if isinstance(one, list) and len(one) == 1:
            one = one[0]
        if isinstance(one, list):
            draft.wrong(f"passes.{name}", "alternatives of a pass are not searched", fix="keep one of them")
            continue
        if not isinstance(one, dict) or not isinstance(one.get("type"), str):
            draft.wrong(f"passes.{name}.type", "missing", expected="the name of a pass, such as LoRA")
            continue
        inner = section_of(one, "config")
        place = f"passes.{name}.config" if inner else f"passes.{name}"
        options = {**{k: v for k, v in one.items() if k not in ("type", "config", "host", "disable_search")}, **inner}
        for key in ("clean_run_cache", "output_name", "run_config"):
            options.pop(key, None)
        if one["type"].lower() in TUNING:
            if tuned:
                draft.wrong(f"passes.{name}", "a second pass that tunes", expected="one", fix="use one file for each")
                continue
            tuned = True
            _tuning(one["type"], options, f"passes.{name}.type", place, given, names, draft)
        else:
            passes = add_pass(passes, name, one["type"], options, draft)
    return passes, tuned


def _tuning(
    kind: str, options: Mapping[str, Any], said: str, place: str, given: dict[str, Any], names: dict[str, str],
    draft: Draft,
) -> None:  # fmt: skip
    given["method"] = kind.lower()
    names["--method"] = said
    _flags(options.get("training_args") or {}, f"{place}.training_args", given, names, draft)
    own = {key: value for key, value in options.items() if key != "training_args"}
    for key in ("train_data_config", "eval_data_config"):
        own.pop(key, None)
    for key in [key for key, value in own.items() if isinstance(value, str) and value.upper() in _SEARCHED]:
        draft.note(f"{place}.{key}", f"changes nothing: {own.pop(key)} names no values; search_space says them")
    _flags(own, place, given, names, draft)


_SEARCHED = ("SEARCHABLE_VALUES", "DEFAULT_VALUE", "DEFAULT", "SEARCHABLE")


def _flags(
    options: Any, place: str, given: dict[str, Any], names: dict[str, str], draft: Draft
) -> None:  # fmt: skip
    """Options of a tuning pass, or arguments of the trainer, as flags; unknown ones are wrong."""
    if not isinstance(options, dict):
        draft.wrong(place, f"{options!r} is not allowed", expected="a mapping of options")
        return
    extra = options.get("extra_args")
    if isinstance(extra, dict):
        options = {**{k: v for k, v in options.items() if k != "extra_args"}, **extra}
    known = (*METHOD_NAMES, *TRAINING_NAMES)
    for key, value in options.items():
        if key not in known:
            near = nearest(key, known)
            draft.wrong(f"{place}.{key}", "unknown option", fix=f"did you mean {near}?" if near else "leave it out")
            continue
        given[key] = value
        names[f"--{key}"] = f"{place}.{key}"


def read_training(config: Mapping[str, Any], given: dict[str, Any], names: dict[str, str], draft: Draft) -> None:
    """Arguments of the trainer that stand beside the passes."""
    for section in ("training_config", "training_args"):
        if config.get(section) is not None:
            _flags(config[section], section, given, names, draft)


def read_data_sets(config: Mapping[str, Any], given: dict[str, Any], names: dict[str, str], draft: Draft) -> None:
    """The data set of the training, and that of the validation, as the tuning pass names them."""
    value = config.get("data_configs")
    if value is None:
        return
    sets = (
        value if isinstance(value, list) else [{"name": k, **v} for k, v in value.items()] if _mappings(value) else []
    )
    if not sets or not all(isinstance(one, dict) for one in sets):
        draft.wrong("data_configs", "not a list of data sets", expected="[{name: …, type: HuggingfaceContainer, …}]")
        return
    by_name = {str(one.get("name", number)): (number, one) for number, one in enumerate(sets)}
    wanted: dict[str, Any] = {"train": None, "eval": None}
    for one in section_of(config, "passes").values():
        if isinstance(one, dict) and str(one.get("type", "")).lower() in TUNING:
            options = {**one, **section_of(one, "config")}
            wanted = {"train": options.get("train_data_config"), "eval": options.get("eval_data_config")}
    chosen = {part: name if not isinstance(name, dict) else name.get("name") for part, name in wanted.items()}
    if chosen["train"] is None:
        chosen["train"] = next(iter(by_name))
    for part, name in chosen.items():
        if name is None:
            continue
        if str(name) not in by_name:
            near = nearest(str(name), by_name)
            draft.wrong(f"{part}_data_config", f"there is no data set {name!r}", expected=", ".join(by_name),
                        fix=f"did you mean {near}?" if near else None)  # fmt: skip
            continue
        number, one = by_name[str(name)]
        found = _data_set(one, f"data_configs[{number}]", names, draft, quiet=part == "eval")
        if part == "train":
            given.update(found)
        else:
            given["eval_split"] = found.get("train_split", "train")
            names["--eval_split"] = f"data_configs[{number}].load_dataset_config.split"
            if found.get("data_files", found.get("data_name")) != given.get("data_files", given.get("data_name")):
                draft.wrong(f"data_configs[{number}]", "validation rows of another data set",
                            fix="write data.validation into the alias file's recipe section")  # fmt: skip
    for name in by_name.keys() - {str(name) for name in chosen.values()}:
        draft.note(f"data_configs.{name}", "changes nothing: no pass names it")


def _mappings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())


def _data_set(
    one: Mapping[str, Any], place: str, names: dict[str, str], draft: Draft, *, quiet: bool
) -> dict[str, Any]:
    kind = str(one.get("type", "HuggingfaceContainer"))
    if kind.lower() not in ("huggingfacecontainer", "datacontainer", "rawdatacontainer"):
        near = nearest(kind, ("HuggingfaceContainer",))
        draft.wrong(f"{place}.type", f"{kind!r} is not allowed", expected="HuggingfaceContainer",
                    fix=f"did you mean {near}?" if near else None)  # fmt: skip
    found: dict[str, Any] = {}
    for section, content in one.items():
        if section in ("name", "type", "user_script", "script_dir", "components"):
            if section in ("user_script", "components") and content:
                draft.wrong(f"{place}.{section}", "code of a configuration is not run", fix="write the rows to a file")
            continue
        group = _DATA_SECTIONS.get(section)
        if group is None or not isinstance(content, dict):
            near = nearest(section, _DATA_SECTIONS)
            draft.wrong(f"{place}.{section}", "unknown section", fix=f"did you mean {near}?" if near else None)
            continue
        inner = {**content, **section_of(content, "params"), **section_of(content, "kwargs")}
        for key, value in inner.items():
            if key in ("params", "kwargs", "type"):
                continue
            flag = _DATA_KEYS.get(group, {}).get(key)
            if flag is None and (group == "post" or key in _DATA_NO_EFFECT):
                if not quiet:
                    reason = _DATA_NO_EFFECT.get(key, "answers are kept as text")
                    draft.note(f"{place}.{section}.{key}", f"changes nothing: {reason}")
            elif flag is None:
                near = nearest(key, (*_DATA_KEYS.get(group, {}), *_DATA_NO_EFFECT))
                draft.wrong(f"{place}.{section}.{key}", "unknown key", fix=f"did you mean {near}?" if near else None)
            elif value is not None:
                found[flag] = _data_value(flag, value, inner.get("split"), f"{place}.{section}.{key}", draft)
                names[f"--{flag}"] = f"{place}.{section}.{key}"
    return found


def _data_value(flag: str, value: Any, split: Any, said: str, draft: Draft) -> Any:
    """Lists of one text column, and files by the split that they are, as the flags take them."""
    if flag == "text_field" and isinstance(value, list) and len(value) == 1:
        return value[0]
    if flag == "data_files" and isinstance(value, dict):
        wanted = str(split or "train").partition("[")[0]
        if wanted not in value:
            draft.wrong(said, f"has no files for the split {wanted!r}", expected=", ".join(map(str, value)))
        return value.get(wanted)
    return value
