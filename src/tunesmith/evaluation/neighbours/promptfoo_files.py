"""A run as a promptfoo config: every candidate's exact prompts, tests by task, and the recorded answers as providers.

```
DIR/promptfooconfig.yaml   prompts, providers, what is right        DIR/rows.json      rows, prompts, recorded answers
DIR/tests.json             one test per row                         DIR/*.cjs          prompts, recorded answers, checks
```
It runs as it is: providers named `recorded:…` ask no model but give the run's answers. An endpoint that serves the
tuned model, and the recipe's remote models, are asked where they are given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith.data.formats.squad import NO_ANSWER
from tunesmith.data.types import Message
from tunesmith.errors import RecipeError
from tunesmith.evaluation.neighbours.evidence import REMOTE, Conversation, Evidence, Shown
from tunesmith.evaluation.neighbours.writing import Options, Use
from tunesmith.recipe.schema import Remote
from tunesmith.runs import write_text
from tunesmith.tasks.types import Task

CHAT = "_chat"
"""What follows a candidate's name where its prompt is the turns instead of the text."""
_SERVED = ("tuned", "tuned_free")
"""The tuned model; under the second name where another way of answering than freely decides."""
_SCHEMA = "https://promptfoo.dev/config-schema.json"
_SCRIPTS = Path(__file__).parent / "promptfoo"
_LOADED = ("file://", "package:")
"""Beginnings of variables that promptfoo would take for files to load."""
_OPENING = re.compile(r"\{(?=[{%#])")
"""The brace before another one, or a mark, with which it would open a placeholder, a tag or a comment."""
_NO_KEY = "none"
"""Sent in place of a key: without one promptfoo would send that of another service, `OPENAI_API_KEY`."""
_CHECKS: Mapping[str, Mapping[str, str]] = {
    "classification": {"label": "accuracy"},
    "ordinal": {"label": "accuracy"},
    "multi_label": {"labels": "exact_match", "labelShare": "mean_f1"},
    "regression": {"number": "within_tolerance"},
    "maths": {"number": "accuracy"},
    "extraction": {"json": "valid_json", "items": "exact_match", "itemShare": "mean_f1"},
    "token_classification": {"text": "exact_match"},
    "question_answering": {"reference": "exact_match", "wordShare": "token_f1"},
    "text_to_sql": {"text": "exact_match"},
    "tool_calls": {"calls": "call_accuracy"},
}
"""By task, the checks of `checks.cjs` and the names under which promptfoo sums them up. `mean_f1` is a mean over rows,
where a metric of ours with F1 in its name is of all rows together."""
_LIKENESS = {"summarisation": "rouge-n", "generation": "rouge-n", "translation": "bleu"}
"""By task, promptfoo's own measure of likeness to the expected text, for answers that have no single right form."""


def write_promptfoo(evidence: Evidence, folder: Path, options: Options) -> Use:
    """Write config, tests, rows and scripts into `folder`."""
    prompts = {shown.name: [answer.prompt for answer in shown.answers] for shown in evidence.asked}
    chats = {
        shown.name + CHAT: [_turns(turns) for turns in shown.conversations]
        for shown in evidence.asked
        if shown.conversations is not None and not any(map(_speaks_of_tools, shown.conversations))
    }
    providers, notes = _providers(evidence, options, chats)
    used = [label for provider in providers for label in provider["prompts"]]
    config = {
        "description": f"{evidence.task.name}: {len(evidence.questions):,} test rows of the run {evidence.name}",
        "prompts": [{"id": f"file://prompts.cjs:{label}", "label": label} for label in dict.fromkeys(used)],
        "providers": providers,
        "defaultTest": {"assert": _asserts(evidence)},
        "tests": "file://tests.json",
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)
    write_text(folder / "promptfooconfig.yaml", f"# yaml-language-server: $schema={_SCHEMA}\n{text}")
    write_text(folder / "rows.json", _json_lines(_rows(evidence, {**prompts, **chats})))
    write_text(folder / "tests.json", _json_lines(_tests(evidence)))
    for script in sorted(_SCRIPTS.glob("*.cjs")):
        write_text(folder / script.name, script.read_text(encoding="utf-8"))
    notes += _what_is_not_said(evidence.task)
    return Use("cd {folder} && npx promptfoo eval", tuple(notes))


def _providers(
    evidence: Evidence, options: Options, chats: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What promptfoo asks: recorded answers of every candidate, the tuned model where it is served, remote models."""
    found = [_recorded(shown) for shown in evidence.candidates]
    notes = []
    tuned = next((shown for shown in evidence.asked if shown.name in _SERVED and shown.text_is_sent), None)
    if options.url is not None and options.model is not None:
        if tuned is None:
            why = "no tuned model that answers freely is among the candidates written"
            notes.append(f"{options.url} is not asked: {why}")
        else:
            found.append(_served(evidence, tuned, options, chats))
    for name, remote in evidence.recipe.remotes.items():
        own, full = f"{REMOTE}{name}{CHAT}", f"zero_shot{CHAT}"
        if own not in chats and full not in chats:
            notes.append(f"{name} is not asked: no turns are known of it or of zero_shot among the candidates written")
            continue
        found.append(_remote(evidence, name, remote, own if own in chats else full))
        if own not in chats and remote.few_shot_k:
            notes.append(f"{name} is asked without the {remote.few_shot_k} examples it was shown in the run")
    return found, notes


def _recorded(shown: Shown) -> dict[str, Any]:
    """A provider of recorded answers. A rule has no prompt of its own and is shown under the row's id alone."""
    return {
        "id": "file://recorded.cjs",
        "label": f"recorded {shown.name}",
        "prompts": [shown.name],
        "config": {"candidate": shown.name},
    }


def _served(evidence: Evidence, tuned: Shown, options: Options, chats: Mapping[str, Any]) -> dict[str, Any]:
    chat = options.dialect == "chat"
    if chat and tuned.name + CHAT not in chats:
        raise RecipeError(
            f"the turns of {tuned.name}'s prompts are not known, or speak of tools, which promptfoo cannot be given",
            where="--dialect chat",
            fix="--dialect completions, which sends the exact text",
        )
    kind = "chat" if chat else "completion"
    stops = {"stop": list(evidence.stops)} if evidence.stops and not chat else {}
    return {
        "id": f"openai:{kind}:{options.model}",
        "label": "served tuned",
        "prompts": [tuned.name + CHAT if chat else tuned.name],
        "config": {
            "apiBaseUrl": options.url,
            "apiKey": _NO_KEY,
            "temperature": 0,
            "max_tokens": evidence.longest,
            **stops,
        },
    }


def _remote(evidence: Evidence, name: str, remote: Remote, prompt: str) -> dict[str, Any]:
    """The recipe's remote model; its key stays in the environment."""
    key = {"apiKeyEnvar": remote.api_key_env} if remote.api_key_env else {"apiKey": _NO_KEY}
    prices = {"inputCost": remote.prompt_price / 1e6, "outputCost": remote.answer_price / 1e6}
    return {
        "id": f"openai:chat:{remote.model}",
        "label": name,
        "prompts": [prompt],
        "config": {
            "apiBaseUrl": remote.url,
            "temperature": 0,
            "max_tokens": evidence.longest,
            **key,
            **({k: v for k, v in prices.items() if v}),
        },
    }


def _asserts(evidence: Evidence) -> list[dict[str, Any]]:
    """What holds for every row alike."""
    task = evidence.task
    short = task.name == "generation" and getattr(task, "short_answers", False)
    checks = {"text": "exact_match"} if short else _CHECKS.get(task.name, {})
    settings = {name: getattr(task, name) for name in ("closing", "separator", "tolerance") if hasattr(task, name)}
    if getattr(task, "unanswerable", False):
        settings["noAnswer"] = NO_ANSWER
    found: list[dict[str, Any]] = [
        {"type": "javascript", "value": f"file://checks.cjs:{check}", "metric": metric, "config": settings}
        for check, metric in checks.items()
    ]
    schema = getattr(task, "json_schema", None)
    if schema and getattr(task, "form", None) == "object":
        found.append({"type": "contains-json", "value": json.loads(schema), "metric": "schema_valid"})
    return found


def _by_likeness(task: Task) -> bool:
    """Whether an answer can only be more or less like the expected one."""
    return task.name in _LIKENESS and not getattr(task, "short_answers", False)


def _what_is_not_said(task: Task) -> list[str]:
    if task.name == "code":
        return ["code is not run by promptfoo: answers are shown without a check"]
    if task.name == "text_to_sql":
        return ["queries are compared as texts: promptfoo does not run them on task.database"]
    if _by_likeness(task):
        return [f"promptfoo measures {_LIKENESS[task.name]} against one reference; {next(iter(task.metrics))} is ours"]
    return []


def _rows(evidence: Evidence, prompts: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """One object per row. A rule's prompt is the bare question."""
    found = []
    for place, first in enumerate(evidence.candidates[0].answers):
        question = evidence.questions[first.id]
        rules = {shown.name: question for shown in evidence.candidates if not shown.asks_a_model}
        answers = {
            shown.name: {
                "text": shown.answers[place].answer,
                "promptTokens": shown.answers[place].prompt_tokens,
                "answerTokens": shown.answers[place].answer_tokens,
            }
            for shown in evidence.candidates
        }
        asked = {**rules, **{name: texts[place] for name, texts in prompts.items()}}
        found.append({"id": first.id, "expected": first.expected, "prompts": asked, "answers": answers})
    return found


def _tests(evidence: Evidence) -> list[dict[str, Any]]:
    """A test per row. Likeness passes from the goal's target on; without a target it only measures.

    Its reference stands in the test itself: promptfoo fills in an assert's value, but not variables of that value.
    """
    measure = _LIKENESS[evidence.task.name] if _by_likeness(evidence.task) else None
    found: list[dict[str, Any]] = []
    for answer in evidence.candidates[0].answers:
        question, expected = evidence.questions[answer.id], answer.expected
        test: dict[str, Any] = {"vars": {"id": answer.id, "question": _inert(question), "expected": _inert(expected)}}
        if measure is not None:
            least, reference = evidence.recipe.goal.target or 0, _inert(evidence.task.reply(expected))
            test["assert"] = [{"type": measure, "value": reference, "threshold": least, "metric": measure}]
        found.append(test)
    return found


def _inert(text: str) -> str:
    """A text that promptfoo shows as it is: it would load what begins like a file, and fill in placeholders."""
    text = f" {text}" if text.startswith(_LOADED) else text
    return _OPENING.sub('{{ "{" }}', text)


def _speaks_of_tools(turns: Conversation) -> bool:
    return any(turn.tools is not None or turn.tool_calls or turn.role == "tool" for turn in turns)


def _turns(turns: Conversation) -> list[dict[str, Any]]:
    return [_turn(message) for message in turns]


def _turn(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _json_lines(rows: list[dict[str, Any]]) -> str:
    """A JSON array with a row on each line, which a diff can show."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
