"""`olive finetune`: its flags as a recipe, and its output folder.

```
OUTPUT/run/          the run: recipe, events, checkpoints, metrics, report (`tunesmith chat OUTPUT/run`, …)
OUTPUT/adapter/      the adapter, as `peft` saves one
OUTPUT/model/        the base's files (of full tuning the tuned model)
OUTPUT/metrics.json  losses, validation, and what tuned and base score on the test rows
```
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.errors import RecipeError
from tunesmith.pipeline.olive.draft import Draft, nested
from tunesmith.pipeline.olive.methods import NAMES as METHOD_NAMES
from tunesmith.pipeline.olive.methods import method_settings
from tunesmith.pipeline.olive.project import Project
from tunesmith.pipeline.olive.rows import Source, Wanted, address, few_rows, find
from tunesmith.pipeline.olive.training_arguments import NAMES as TRAINING_NAMES
from tunesmith.pipeline.olive.training_arguments import training_settings
from tunesmith.recipe import Recipe, apply_overrides, dump_recipe, parse_recipe
from tunesmith.recipe.overrides import resolve_paths
from tunesmith.recipe.problems import nearest

Through = Literal["train", "evaluate", "verdict"]

OUTPUT = "finetuned-adapter"
RUN = "run"
_FEW = 10
"""Rows below which none are kept back for validation and test."""
_ESCAPE = re.compile(r"\\(n|t|r|\\)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
FLAGS = (
    "model_name_or_path", "task", "task_name", "trust_remote_code", "output_path", "method", "data_name", "data_files",
    "train_subset", "train_split", "eval_subset", "eval_split", "test_split", "text_template", "answer_fields",
    "text_field", "use_chat_template", "max_seq_len", "max_samples", "batch_size", "custom_loss", "input_cols",
    "add_special_tokens", "through",
)  # fmt: skip
"""Flags of `finetune` beside those of methods and the trainer."""
_TASKS = {
    **dict.fromkeys(("text-classification", "sequence-classification", "classification"), "classification"),
    **dict.fromkeys(("extraction", "token-classification"), "extraction"),
    **dict.fromkeys(("summarization", "summarisation"), "summarisation"),
    **dict.fromkeys(("generation", "text2text-generation"), "generation"),
    **dict.fromkeys(("text-generation", "text-generation-with-past", "causal-lm"), None),
    **dict.fromkeys(("question-answering", "question_answering"), "question_answering"),
    "translation": "translation",
}
"""Tasks by Olive's words for them; `text-generation` says how a model answers, not what it is asked."""

_SAID = "finetune"


@dataclass(frozen=True)
class Plan:
    """What a command is going to do.

    Attributes
    ----------
    recipe: everything the training is; `dump_recipe` prints it.
    output: the folder that gets run, adapter and model.
    through: the last stage.
    notes: what was given and changes nothing, each with the reason.
    logs: where TensorBoard files are to be found too (`--logging_dir`).
    """

    recipe: Recipe
    output: Path
    through: Through
    notes: tuple[str, ...] = ()
    logs: Path | None = None

    @property
    def run_folder(self) -> Path:
        return self.output / RUN

    @property
    def rows(self) -> str:
        """Which rows are learnt, and which are kept back, in words."""
        data = self.recipe.data
        validation = "rows of their own" if data.validation else _share(data.split.validation)
        test = "rows of their own" if data.test else _share(data.split.test)
        if not data.test and not data.split.test:
            return (
                f"validation: {validation}; no test rows (--test_split names some), so that only training is measured"
            )
        return f"validation: {validation}; test: {test}, never trained on"


def plan_finetune(
    given: Mapping[str, Any], project: Project, overrides: Sequence[str] = (), draft: Draft | None = None, *,
    writes: bool = True,
) -> Plan:  # fmt: skip
    """The recipe that flags of `finetune` mean, with what the alias file says where they say nothing.

    `draft` may hold settings, notes and problems already, of a configuration file that the flags were read from.

    `given` holds values as the command line or a file has them, by flag name without dashes. Writes only rows that must
    be written out (a slice of a file), below the output folder, and with `writes` off nothing. Raises `RecipeError`
    with everything that is wrong.
    """
    draft = draft if draft is not None else Draft()
    _refuse_unknown(project, draft)
    flags = _with_defaults(given, project)
    _refuse_no_text(flags, draft)
    output = Path(flags.get("output_path") or OUTPUT)
    draft.defaults["name"] = _name(output)
    _base(flags, project, draft)
    if given.get("trust_remote_code") and draft.truth("--trust_remote_code", given["trust_remote_code"]):
        draft.settings["base.trust_remote_code"] = True
    method_settings(str(flags.get("method") or "lora"), flags, draft)
    training_settings(flags, draft)
    sources = _sources(flags, project, draft)
    if flags.get("custom_loss"):
        _pairs(flags, draft)
    else:
        _reading(flags, draft)
        _task(flags, draft)
    _lengths(flags, draft)
    if flags.get("through") is not None:
        draft.choice("--through", flags["through"], dict.fromkeys(get_args(Through)))
    draft.raise_problems(_SAID)
    _put_sources(sources, output, draft, writes)
    recipe = finished_recipe(draft, project, overrides, _SAID)
    measured = bool(recipe.data.test or recipe.data.split.test)
    through: Through = flags.get("through") or ("evaluate" if measured else "train")
    logs = Path(flags["logging_dir"]) if flags.get("logging_dir") else None
    if logs is not None and not recipe.train.tensorboard:
        draft.note("--logging_dir", "changes nothing: --report_to names no tensorboard, and the events lie in the run")
        logs = None
    return Plan(recipe, output, through, tuple(draft.notes), logs)


def finished_recipe(draft: Draft, project: Project, overrides: Sequence[str], where: str) -> Recipe:
    """The recipe of a draft: what was said over the alias file's settings over defaults, and overrides over all.

    Code that comes with a model runs only where the command line says so. Raises `RecipeError` with every problem.
    """
    if project.recipe.get("base.trust_remote_code") and "base.trust_remote_code" not in draft.settings:
        raise RecipeError(
            "base.trust_remote_code is on in the file", where=str(project.file), expected="said on the command line",
            fix="add --trust_remote_code if you trust the code of the model",
        )  # fmt: skip
    folder = project.file.parent if project.file is not None else Path.cwd()
    said = resolve_paths(nested({**draft.defaults, **project.recipe, **draft.settings}), folder)
    return parse_recipe(apply_overrides(said, overrides, Path.cwd()), where)


def saved_recipe(plan: Plan) -> str:
    """The recipe as `--save_config_file` prints and keeps it: `tunesmith run` takes it as it is."""
    return dump_recipe(plan.recipe)


def carry_out(plan: Plan, listener: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """Train (and evaluate), lay the output folder out, and return the run's `Result`."""
    from tunesmith.pipeline.olive.layout import link_logs, refuse_occupied, write_output
    from tunesmith.pipeline.run import run

    refuse_occupied(plan)
    if plan.logs is not None:
        link_logs(plan.logs, plan.run_folder, plan.output.resolve().name)
    result = run(plan.recipe, out=plan.run_folder, through=plan.through, listener=listener)
    write_output(plan, result)
    return result


def unescape(template: str) -> str:
    r"""`\n`, `\t`, `\r` and `\\` as the characters they mean, as a shell passes them on unread."""
    return _ESCAPE.sub(lambda match: _ESCAPES[match.group(1)], template)


def _refuse_unknown(project: Project, draft: Draft) -> None:
    """Note flags of the alias file that `finetune` does not have."""
    known = (*FLAGS, *METHOD_NAMES, *TRAINING_NAMES)
    places = {_SAID: project.flags.get(_SAID, {}), **{f"tasks.{name}": flags for name, flags in project.tasks.items()}}
    for place, flags in places.items():
        for name in flags:
            if name not in known:
                near = nearest(str(name), known)
                fix = f"did you mean {near}?" if near else None
                draft.wrong(f"{project.file}: {place}.{name}", "there is no such flag", fix=fix)


_TEXTS = (
    "model_name_or_path", "task", "task_name", "output_path", "data_name", "train_subset", "train_split", "eval_subset",
    "eval_split", "test_split", "text_template", "text_field", "custom_loss", "logging_dir",
)  # fmt: skip
"""Flags that files, too, must give as text."""


def _refuse_no_text(flags: dict[str, Any], draft: Draft) -> None:
    """Note flags that a file gives as something else than the text that they are; the others are read all the same."""
    for name in _TEXTS:
        value = flags.get(name)
        if value is not None and not isinstance(value, str):
            draft.wrong(f"--{name}", f"{value!r} is not allowed", expected="text")
            del flags[name]


def _with_defaults(given: Mapping[str, Any], project: Project) -> dict[str, Any]:
    """The flags that were given over those of the task over those of the command."""
    flags = dict(project.flags.get(_SAID, {}))
    task = given.get("task_name") or flags.get("task_name")
    if task is not None and task in project.tasks:
        flags.update(project.tasks[task])
    flags.update({name: value for name, value in given.items() if value is not None})
    if given.get("data_name") is not None and given.get("data_files") is None:
        flags.pop("data_files", None)  # the alias file's belong to its own data set
    templates = [name for name in ("text_template", "text_field", "use_chat_template") if given.get(name)]
    for name in ("text_template", "text_field", "use_chat_template"):
        if templates and name not in templates:
            flags.pop(name, None)
    return flags


def _base(flags: Mapping[str, Any], project: Project, draft: Draft) -> None:
    name = flags.get("model_name_or_path")
    if name is None:
        draft.wrong(
            "--model_name_or_path", "missing", expected="a model's folder, or a name in the alias file",
            fix="give it, or write `finetune: {model_name_or_path: …}` into aliases.yaml",
        )  # fmt: skip
        return
    try:
        draft.settings["base.model"] = project.model(str(name), "--model_name_or_path")
    except RecipeError as error:
        draft.wrong("--model_name_or_path", error.what, expected=error.expected, fix=error.fix)


def _sources(flags: Mapping[str, Any], project: Project, draft: Draft) -> dict[str, Source]:
    """Where training, validation and test rows are."""
    files = draft.words("--data_files", flags["data_files"]) if flags.get("data_files") else None
    name = flags.get("data_name")
    if name is None and not files:
        draft.wrong(
            "--data_name", "missing", expected="a file or folder of rows, or a name in the alias file",
            fix="give it or --data_files, or write `finetune: {data_name: …}` (for one --task_name: `tasks:`) into "
            "aliases.yaml",
        )  # fmt: skip
        return {}
    column = flags.get("text_field")
    wanted = Wanted(name, flags.get("train_subset"), flags.get("train_split"), tuple(files or ()), column)
    if column == "text":
        wanted = replace(wanted, column=None)
    evaluated = replace(wanted, subset=flags.get("eval_subset") or flags.get("train_subset"))
    parts = {"train": (wanted, "train_split")}
    for part, flag in (("validation", "eval_split"), ("test", "test_split")):
        if flags.get(flag):
            parts[part] = (replace(evaluated, split=flags[flag]), flag)
    found: dict[str, Source] = {}
    said = "--data_files" if files else "--data_name"
    for part, (what, flag) in parts.items():
        try:
            source = find(what, project, draft, said, f"--{flag}")
        except RecipeError as error:
            if all(problem.key != draft.names.get(said, said) for problem in draft.problems):
                draft.wrong(said, error.what, expected=error.expected, fix=error.fix)
            continue
        if source is not None:
            found[part] = source
    return found


def _put_sources(sources: Mapping[str, Source], output: Path, draft: Draft, writes: bool) -> None:
    """Name the rows in the recipe. Rows given for validation leave all others to be learnt, unless it is said."""
    for part, source in sources.items():
        draft.settings[f"data.{part}"] = address(source, output / "rows", part, writes)
    if sources.keys() == {"train"} and (few := few_rows(sources["train"], _FEW)) is not None:
        draft.defaults |= {"data.split.validation": 0, "data.split.test": 0}
        draft.note("data", f"{few} rows are too few to keep some back: all are learnt, and nothing is measured")
    if "validation" in sources and "test" not in sources:
        draft.defaults["data.split.test"] = 0


def _reading(flags: Mapping[str, Any], draft: Draft) -> None:
    """What of a row is learnt: a template's answer, a text column's every token, or the answers of conversations."""
    chat = flags.get("use_chat_template")
    on = chat is not None and draft.truth("--use_chat_template", chat)
    given = [n for n in ("text_template", "text_field") if flags.get(n)] + (["use_chat_template"] if on else [])
    if len(given) > 1:
        draft.wrong(f"--{given[1]}", f"cannot stand beside --{given[0]}", expected="one of them")
    elif given == ["text_template"]:
        draft.set("data.template", unescape(str(flags["text_template"])), "--text_template")
        draft.defaults["base.chat_template"] = "raw"
        answers = draft.words("--answer_fields", flags["answer_fields"]) if flags.get("answer_fields") else None
        if answers:
            draft.set("data.answer", answers, "--answer_fields")
    elif given == ["text_field"]:
        draft.set("data.format", "text", "--text_field")
        draft.defaults["base.chat_template"] = "raw"
        draft.defaults["train.loss"] = "all"
    if flags.get("input_cols"):
        draft.note("--input_cols", "changes nothing: the template names the columns")


def _pairs(flags: Mapping[str, Any], draft: Draft) -> None:
    """A loss of the user's own; with three columns it compares the two texts of a pair."""
    draft.set("train.objective", str(flags["custom_loss"]), "--custom_loss")
    if not flags.get("input_cols"):
        _reading(flags, draft)
        _task(flags, draft)
        return
    columns = draft.words("--input_cols", flags["input_cols"])
    if columns is not None and len(columns) != 3:
        draft.wrong("--input_cols", f"{len(columns)} names", expected="the columns of text, second text and label")
    elif columns is not None:
        for key, column in zip(("prompt", "second", "answer"), columns, strict=True):
            draft.settings[f"data.columns.{key}"] = column
        draft.defaults["data.split.test"] = 0  # pairs have no generated answers to measure


def _lengths(flags: Mapping[str, Any], draft: Draft) -> None:
    """How long rows may be, how many are used, and how many make a step."""
    if flags.get("max_seq_len") is not None:
        length = draft.whole("--max_seq_len", flags["max_seq_len"], least=2)
        if length is not None:
            draft.set("train.max_length", length, "--max_seq_len")
    if flags.get("max_samples") is not None:
        samples = draft.whole("--max_samples", flags["max_samples"], least=1)
        if samples is not None:
            draft.set("data.max_rows", samples, "--max_samples")
    if flags.get("add_special_tokens") is not None:
        on = draft.truth("--add_special_tokens", flags["add_special_tokens"])
        if on is False:
            draft.note("--add_special_tokens", "changes nothing: the end of an answer is always learnt")
    if flags.get("batch_size") is not None:
        size = draft.whole("--batch_size", flags["batch_size"], least=1)
        if size is not None:
            draft.defaults["train.batch_size"] = size


def _task(flags: Mapping[str, Any], draft: Draft) -> None:
    """What is asked: by `--task`, or by a `--task_name` that is the name of a kind of task."""
    word = flags.get("task")
    if word is not None:
        kind = draft.choice("--task", word, _TASKS)
        if kind is not None:
            draft.set("task.type", kind, "--task")
    name = flags.get("task_name")
    if name is None:
        return
    draft.defaults["name"] = _name(Path(str(name)))
    if _TASKS.get(str(name)) is not None:
        draft.defaults["task.type"] = _TASKS[str(name)]
    if str(name) not in _TASKS:
        draft.note("--task_name", "is the run's name; what kind of task it is, is read from the rows")


def _name(output: Path) -> str:
    kept = "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in output.name).lstrip("._-")
    return kept or "olive"


def _share(size: float) -> str:
    return f"{size:.0%} of the rows" if 0 < size < 1 else f"{size:g} rows" if size else "none"
