"""A run as Inspect reads it: the test rows as samples, and a log of each candidate as an evaluation leaves one.

```
DIR/samples.jsonl              for `inspect_ai.dataset.json_dataset`: input, target, id, metadata
DIR/logs/<time>_<candidate>_….json  for `inspect view` and `inspect_ai.log.read_eval_log`
```
Logs are written as JSON of version 2 of the log format, so that Inspect need not be installed here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.types import Message
from tunesmith.evaluation.neighbours.evidence import Conversation, Evidence, Shown
from tunesmith.evaluation.neighbours.writing import Options, Use
from tunesmith.evaluation.types import ScoredAnswer
from tunesmith.runs import write_json, write_text
from tunesmith.tasks.answers import references

LOG_VERSION = 2
_SCORER = "tunesmith"
_SEVERAL = frozenset({"question_answering", "summarisation", "translation"})
"""Tasks whose expected answer may be a JSON list of texts that are each right."""


def write_inspect(evidence: Evidence, folder: Path, _: Options) -> Use:
    """Write samples and logs into `folder`."""
    asking = _asking(evidence)
    samples = [_sample(evidence, place, asking) for place in range(len(evidence.questions))]
    write_text(folder / "samples.jsonl", "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in samples))
    created = str(evidence.folder.manifest().get("created", ""))
    for shown in evidence.candidates:
        log = _log(evidence, shown, created)
        write_json(folder / "logs" / f"{_stamp(created)}_{shown.name}_{log['eval']['task_id']}.json", log)
    how = "the turns that the tuned model is asked with" if asking and asking.name == "tuned" else None
    notes = [f"samples.jsonl holds {how or (f'the turns of {asking.name}' if asking else 'bare questions')} as input"]
    return Use("inspect view --log-dir {folder}/logs", tuple(notes))


def _stamp(created: str) -> str:
    """A time as it begins the name of a log: Inspect lists no file without."""
    return re.sub(r"[:.+]", "-", created) or "1970-01-01T00-00-00"


def _asking(evidence: Evidence) -> Shown | None:
    """The candidate whose turns are the samples' input: a tuned model's where it is there, else any that is known."""
    known = [shown for shown in evidence.candidates if shown.conversations is not None]
    return next((shown for shown in known if shown.name == "tuned"), known[0] if known else None)


def _sample(evidence: Evidence, place: int, asking: Shown | None) -> dict[str, Any]:
    answer = evidence.candidates[0].answers[place]
    turns = asking.conversations[place] if asking is not None and asking.conversations is not None else None
    return {
        "id": answer.id,
        "input": _messages(turns) if turns else evidence.questions[answer.id],
        "target": _target(evidence, answer),
        "metadata": {"run": evidence.name, "question": evidence.questions[answer.id], **_tools(turns or ())},
    }


def _tools(turns: Conversation) -> dict[str, Any]:
    """The tools that are offered, which a sample has no other place for."""
    offered = next((turn.tools.definitions for turn in turns if turn.tools is not None), ())
    return {"tools": [json.loads(definition) for definition in offered]} if offered else {}


def _target(evidence: Evidence, answer: ScoredAnswer) -> str | list[str]:
    several = references(answer.expected) if evidence.task.name in _SEVERAL else ()
    return list(several) if len(several) > 1 else answer.expected


def _messages(turns: Conversation) -> list[dict[str, Any]]:
    """Turns as Inspect's chat messages; calls of tools as it writes them."""
    return [_message(turn) for turn in turns]


def _message(turn: Message) -> dict[str, Any]:
    role = "system" if turn.role == "developer" else turn.role
    made: dict[str, Any] = {"role": role, "content": turn.content}
    if turn.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "function": call.name, "arguments": json.loads(call.arguments), "type": "function"}
            for call in turn.tool_calls
        ]
    if turn.tool_call_id is not None:
        made["tool_call_id"] = turn.tool_call_id
    return made


def _log(evidence: Evidence, shown: Shown, created: str) -> dict[str, Any]:
    count, model = len(shown.answers), f"tunesmith/{shown.name}"
    task = re.sub(r"\s+", "_", evidence.name)
    return {
        "version": LOG_VERSION,
        "status": "success",
        "eval": {
            "eval_id": _id("eval", evidence.name, shown.name),
            "run_id": _id("run", evidence.name),
            "task_id": _id("task", evidence.name, evidence.task.name),
            "created": created,
            "task": f"{task}_{evidence.task.name}",
            "task_version": 0,
            "task_attribs": {},
            "task_args": {},
            "solver": shown.name,
            "dataset": {
                "name": evidence.name,
                "location": "samples.jsonl",
                "samples": count,
                "sample_ids": [answer.id for answer in shown.answers],
                "shuffled": False,
            },
            "model": model,
            "model_args": {},
            "config": {"epochs": 1},
            "packages": dict(evidence.folder.manifest().get("environment", {}).get("libraries", {})),
            "metadata": {"facts": dict(shown.facts), "base": evidence.recipe.base.model},
        },
        "plan": {"name": "plan", "steps": [{"solver": shown.name, "params": {}}], "config": _generation(evidence)},
        "results": {
            "total_samples": count,
            "completed_samples": count,
            "scores": [
                {
                    "name": value.metric,
                    "scorer": _SCORER,
                    "params": {},
                    "metrics": {
                        name: {"name": name, "value": number, "params": {}}
                        for name, number in (("value", value.value), ("low", value.low), ("high", value.high))
                    },
                }
                for value in shown.values
            ],
        },
        "stats": {"started_at": created, "completed_at": created, "model_usage": {model: _usage(shown.answers)}},
        "samples": [_logged(evidence, shown, place, model) for place in range(count)],
    }


def _logged(evidence: Evidence, shown: Shown, place: int, model: str) -> dict[str, Any]:
    """One row as it was asked, answered and scored. The prompt is the exact text where turns are not known."""
    answer = shown.answers[place]
    turns = _messages(shown.conversations[place]) if shown.conversations is not None else None
    asked: str | list[dict[str, Any]] = turns or answer.prompt or evidence.questions[answer.id]
    reply = {"role": "assistant", "content": answer.answer, "source": "generate", "model": model}
    before = turns or [{"role": "user", "content": asked}]
    return {
        "id": answer.id,
        "epoch": 1,
        "input": asked,
        "target": _target(evidence, answer),
        "messages": [*before, reply],
        "output": {
            "model": model,
            "choices": [{"message": reply, "stop_reason": "stop" if answer.stopped else "max_tokens"}],
            "usage": _usage([answer]),
        },
        "scores": {
            name: {"value": score, "answer": answer.answer, "metadata": {"parsed": answer.parsed}}
            for name, score in answer.scores.items()
        },
        "metadata": {
            "question": evidence.questions[answer.id],
            **({"probabilities": dict(answer.probabilities)} if answer.probabilities is not None else {}),
            **({"drawn": list(answer.samples)} if answer.samples else {}),
        },
        "model_usage": {model: _usage([answer])},
    }


def _generation(evidence: Evidence) -> dict[str, Any]:
    return {"max_tokens": evidence.longest, "temperature": 0.0, "stop_seqs": list(evidence.stops)}


def _usage(answers: Sequence[ScoredAnswer]) -> dict[str, int]:
    prompt, answer = (sum(getattr(a, name) for a in answers) for name in ("prompt_tokens", "answer_tokens"))
    return {"input_tokens": prompt, "output_tokens": answer, "total_tokens": prompt + answer}


def _id(*words: str) -> str:
    """An id that stays the same when the same evidence is written again."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:22]
