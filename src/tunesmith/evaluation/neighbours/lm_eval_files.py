"""A run as tasks of EleutherAI's lm-evaluation-harness, and its answers as that tool's own result files.

```
DIR/<run>_<candidate>.yaml     a task: our exact prompts, stop texts and metrics      DIR/rows/<candidate>.jsonl
DIR/tunesmith_rows.py          what the tasks call; needs Tunesmith beside lm-eval
DIR/results/<candidate>/results_<time>.json, samples_<task>_<time>.jsonl   as `lm-eval --log_samples` leaves them
```
Prompts are text with the chat template applied, so they are for models that complete text: `hf`, `vllm`,
`local-completions`. Metrics are computed by the task's own code, so a number there is the number here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tunesmith.evaluation.neighbours.evidence import Evidence, Shown
from tunesmith.evaluation.neighbours.writing import Options, Use
from tunesmith.evaluation.types import ScoredAnswer
from tunesmith.runs import write_json, write_text
from tunesmith.tasks import task_record
from tunesmith.tasks.code import Code
from tunesmith.tasks.metrics import ItemMean

MODULE = "tunesmith_rows"
TASK_FILE = "task.json"
TASK_VERSION = 1.0
"""Of how tasks are written; a change of prompts or metrics must change it, as results are then not comparable."""


class _Function(str):
    """A reference to a function, which lm-eval marks with a tag."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))


def write_lm_eval(evidence: Evidence, folder: Path, _: Options) -> Use:
    """Write tasks, rows and results of all candidates into `folder`."""
    write_json(folder / TASK_FILE, task_record(evidence.task))
    write_text(folder / f"{MODULE}.py", _module(evidence))
    asked = [shown for shown in evidence.candidates if shown.text_is_sent]
    for shown in asked:
        _write_rows(evidence, shown, folder / "rows" / f"{shown.name}.jsonl")
        text = yaml.dump(_config(evidence, shown), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        write_text(folder / f"{task_name(evidence, shown)}.yaml", f"# {_title(evidence, shown)}\n{text}")
    made = datetime.now(UTC)
    for shown in evidence.candidates:
        _write_results(evidence, shown, folder / "results" / shown.name, made)
    left = [shown.name for shown in evidence.candidates if not shown.text_is_sent]
    why = "there are results but no task, as no text was sent to a model that answered freely"
    notes = [f"{', '.join(left)}: {why}"] if left else []
    tasks = {shown.name: task_name(evidence, shown) for shown in asked}
    if not tasks:
        return Use("ls {folder}/results", tuple(notes))
    task = tasks.get("tuned", next(iter(tasks.values())))
    command = f"lm-eval run --model hf --model_args pretrained=MODEL --include_path {{folder}} --tasks {task}"
    return Use(command, tuple(notes))


def task_name(evidence: Evidence, shown: Shown) -> str:
    """What lm-eval calls the task; run and candidate, in letters that are safe on its command line."""
    return _safe(f"{evidence.name}_{shown.name}")


def _safe(name: str) -> str:
    """A name in letters that mean nothing in YAML, Python and on a command line."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def function_of(metric: str) -> str:
    """The name in our module of the function that aggregates a metric."""
    return "aggregate_" + re.sub(r"\W", lambda found: f"_{ord(found.group()):x}_", metric)


def _title(evidence: Evidence, shown: Shown) -> str:
    """What stands above a task."""
    count = len(shown.answers)
    return f"{evidence.task.name}, {count:,} test rows of the run {_safe(evidence.name)}, asked as {shown.name} was"


def _config(evidence: Evidence, shown: Shown) -> dict[str, Any]:
    run_code = isinstance(evidence.task, Code) and evidence.task.run_code
    return {
        "task": task_name(evidence, shown),
        "tag": _safe(evidence.name),
        "custom_dataset": _Function(f"{MODULE}.load"),
        "dataset_kwargs": {"candidate": shown.name},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": _Function(f"{MODULE}.prompt"),
        "doc_to_target": _Function(f"{MODULE}.expected"),
        "process_results": _Function(f"{MODULE}.scores"),
        "num_fewshot": 0,
        "generation_kwargs": _generation(evidence),
        "metric_list": [
            {
                "metric": name,
                "aggregation": "mean" if isinstance(metric, ItemMean) else _Function(f"{MODULE}.{function_of(name)}"),
                "higher_is_better": True,
            }
            for name, metric in evidence.task.metrics.items()
        ],
        **({"unsafe_code": True} if run_code else {}),
        "metadata": {"version": TASK_VERSION},
    }


def _generation(evidence: Evidence) -> dict[str, Any]:
    return {
        "until": list(evidence.stops),
        "max_gen_toks": evidence.longest,
        "do_sample": False,
        "temperature": 0.0,
    }


def _module(evidence: Evidence) -> str:
    corpus = [name for name, metric in evidence.task.metrics.items() if not isinstance(metric, ItemMean)]
    lines = [
        f'"""What lm-eval calls for the tasks {_safe(evidence.name)}_…."""',
        "",
        "from pathlib import Path",
        "",
        "from tunesmith.evaluation.neighbours.lm_eval_task import RunTask",
        "",
        "_task = RunTask(Path(__file__).resolve().parent)",
        "load, prompt, expected, scores = _task.load, _task.prompt, _task.expected, _task.scores",
        *(f"{function_of(name)} = _task.aggregation({name!r})" for name in corpus),
    ]
    return "\n".join(lines) + "\n"


def _write_rows(evidence: Evidence, shown: Shown, path: Path) -> None:
    lines = (json.dumps(_document(evidence, answer), ensure_ascii=False) for answer in shown.answers)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _document(evidence: Evidence, answer: ScoredAnswer) -> dict[str, str]:
    return {
        "id": answer.id,
        "prompt": answer.prompt,
        "question": evidence.questions[answer.id],
        "expected": answer.expected,
    }


def _write_results(evidence: Evidence, shown: Shown, folder: Path, made: datetime) -> None:
    """The candidate's answers and scores as lm-eval would have logged them."""
    stamp, task = made.replace(tzinfo=None).isoformat().replace(":", "-"), task_name(evidence, shown)
    samples = [_sample(evidence, place, answer) for place, answer in enumerate(shown.answers)]
    lines = (json.dumps(sample, ensure_ascii=False) for sample in samples)
    write_text(folder / f"samples_{task}_{stamp}.jsonl", "".join(f"{line}\n" for line in lines))
    write_json(folder / f"results_{stamp}.json", _results(evidence, shown, samples, made))


def _sample(evidence: Evidence, place: int, answer: ScoredAnswer) -> dict[str, Any]:
    document = _document(evidence, answer)
    return {
        "doc_id": place,
        "doc": document,
        "target": answer.expected,
        "arguments": {"gen_args_0": {"arg_0": answer.prompt, "arg_1": _generation(evidence)}},
        "resps": [[answer.answer]],
        "filtered_resps": [answer.answer],
        "filter": "none",
        "metrics": list(answer.scores),
        "doc_hash": _sha256(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha256(answer.prompt),
        "target_hash": _sha256(answer.expected),
        **answer.scores,
    }


def _results(evidence: Evidence, shown: Shown, samples: list[dict[str, Any]], made: datetime) -> dict[str, Any]:
    """The tool's result object. It has a place for a standard error but none for our intervals, which are exact or
    resampled: they stand beside the metrics under names of their own."""
    task = task_name(evidence, shown)
    metrics: dict[str, Any] = {"alias": task}
    for value in shown.values:
        metrics |= {f"{value.metric},none": value.value, f"{value.metric}_stderr,none": "N/A"}
        metrics |= {f"{value.metric}_low,none": value.low, f"{value.metric}_high,none": value.high}
    hashes = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    count = len(samples)
    return {
        "results": {task: metrics},
        "group_subtasks": {task: []},
        "configs": {task: _plain(_config(evidence, shown))},
        "versions": {task: TASK_VERSION},
        "n-shot": {task: 0},
        "higher_is_better": {task: dict.fromkeys(evidence.task.metrics, True)},
        "n-samples": {task: {"original": count, "effective": count}},
        "config": {"model": "tunesmith", "model_args": {"run": evidence.name, "candidate": shown.name}, "limit": None},
        "date": made.timestamp(),
        "model_source": "tunesmith",
        "model_name": shown.name,
        "model_name_sanitized": shown.name,
        "task_hashes": {task: _sha256(hashes)},
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
