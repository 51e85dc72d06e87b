"""Models behind endpoints as alternatives: `remotes` of a recipe become candidates called `remote_<name>`.

They answer the same test rows through the same prompts, parser and metrics. What is particular is what they cost (their
tokens, at the recipe's prices), and what can go wrong on the way, which stands in their notes and is told as warnings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunesmith.data.types import Example
from tunesmith.errors import RecipeError
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.scoring import finished_rows
from tunesmith.evaluation.shots import draw_shots
from tunesmith.evaluation.types import Evaluation
from tunesmith.inference.endpoint import Budget, Endpoint
from tunesmith.inference.remote_engine import RemoteEngine
from tunesmith.inference.response_format import form_tokens
from tunesmith.pipeline.evaluating import prompted, ways
from tunesmith.pipeline.prepare import Listener, Prepared
from tunesmith.recipe.evidence import Decoding, Remote
from tunesmith.recipe.problems import InvalidRecipeError, Problem
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.verdict.costs import TokenPrice
from tunesmith.verdict.wording import split_way

REMOTE = "remote_"
"""How candidates of `remotes` are named: `remote_<name>`, in a further way of answering `remote_<name>_<way>`."""
_WAYS: tuple[Decoding, ...] = ("free", "grammar")
"""An endpoint does not tell how probable a label is."""
_REPLIES = "replies"


def token_prices(recipe: Recipe) -> dict[str, TokenPrice]:
    """What the tokens of candidates behind an endpoint cost, by the candidate's name without a way of answering."""
    return {
        f"{REMOTE}{name}": TokenPrice(remote.prompt_price, remote.answer_price)
        for name, remote in recipe.remotes.items()
    }


def remote_problems(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> list[Problem]:
    """Everything that would keep an endpoint from being asked and can be known without asking it."""
    return [problem for name, remote in recipe.remotes.items() for problem in _problems(name, remote, environment)]


def check_remotes(recipe: Recipe) -> None:
    """Raise `InvalidRecipeError` naming all `remote_problems`."""
    problems = remote_problems(recipe)
    if problems:
        raise InvalidRecipeError(problems, "remotes")


def remote_candidates(prepared: Prepared, folder: RunFolder) -> list[tuple[Remote, PromptCandidate]]:
    """A candidate for every remote and every way in which the recipe wants answers that an endpoint can give."""
    recipe = prepared.recipe
    wanted = [way for way in ways(prepared) if way in _WAYS] or ["free"]
    made = []
    for name, remote in recipe.remotes.items():
        shots = draw_shots(prepared.rows.splits.train, prepared.task, remote.few_shot_k, recipe.train.seed)
        budget = Budget(max_money=remote.max_cost, input_price=remote.prompt_price, output_price=remote.answer_price)
        for place, way in enumerate(wanted):
            called = f"{REMOTE}{name}" if place == 0 else f"{REMOTE}{name}_{way}"
            engine = _engine(name, remote, budget, folder.evaluation / _REPLIES / f"{called}.jsonl")
            engine.count_spent()  # its answers may all be there, and their price still counts for the other ways
            candidate = prompted(called, prepared, engine, shots=shots, k=remote.few_shot_k, told=engine.notes)
            facts: dict[str, Any] = {"decoding": way} if list(ways(prepared)) != ["free"] else {}
            if not _has_prices(remote):
                facts["prices"] = "none given, so its tokens count as free"
            made.append((remote, replace(candidate, decoding=way, facts=facts)))
    return made


def announce(
    remote: Remote, candidate: PromptCandidate, prepared: Prepared, folder: RunFolder, listener: Listener
) -> None:
    """Say before it happens what is sent away, and what it can cost at most; nothing where it was done before."""
    test = prepared.rows.splits.test
    if finished_rows(folder.evaluation / f"{candidate.name}.jsonl", test) is not None:
        return
    sizes = _most_tokens(candidate, test)
    again = min(prepared.recipe.evaluate.latency_rows, len(test)) + 1  # asked alone, to measure how long that takes
    asked = sum(sizes) + again * max(sizes)
    answered = candidate.max_new_tokens * (len(test) + again)
    money = (asked * remote.prompt_price + answered * remote.answer_price) / 1e6
    priced = f"{money:.2f} {prepared.recipe.verdict.prices.currency}" if _has_prices(remote) else "no prices are given"
    where = urlsplit(remote.url).hostname
    text = (
        f"{candidate.name}: {len(test)} test rows are sent to {where} (and {again} requests to measure latency), "
        f"at most {asked + answered:,} tokens ({priced}) if none has to be repeated"
    )
    listener({"kind": "note", "text": text})


def _most_tokens(candidate: PromptCandidate, rows: Sequence[Example]) -> list[int]:
    """Of every row's request, with the form of its answer where it is held to one."""
    sizes = [candidate.prompt(row).tokens for row in rows]
    if candidate.decoding != "grammar":
        return sizes
    forms = [candidate.task.answer_form(row) for row in rows]
    return [size + (form_tokens(form) if form is not None else 0) for size, form in zip(sizes, forms, strict=True)]


def tell_of(evaluation: Evaluation, listener: Listener) -> None:
    """Warn of what its notes say went wrong while an endpoint was asked."""
    for text, count in _warnings(evaluation):
        listener({"kind": "warning", "text": f"{evaluation.candidate}: {text}", "code": "remote", "count": count})


def _warnings(evaluation: Evaluation) -> Iterator[tuple[str, int]]:
    notes = evaluation.notes
    if missing := int(notes.get("unanswered_rows", 0)):
        reasons = ", ".join(f"{reason} {count}" for reason, count in notes["unanswered_reasons"].items())
        yield f"{missing} of {len(evaluation.rows)} rows got no answer, which counts as wrong ({reasons})", missing
    if told := notes.get("model_changed"):
        yield f"{told}; its score is of no single model", 1
    if told := notes.get("fingerprint_changed"):
        yield f"{told}; other answers may have become right or wrong by that", 1
    for told in notes.get("not_taken_by_the_endpoint", ()):
        yield f"the endpoint does not take {told}", 1


def _has_prices(remote: Remote) -> bool:
    return bool(remote.prompt_price or remote.answer_price)


def _engine(name: str, remote: Remote, budget: Budget, journal: Path) -> RemoteEngine:
    endpoint = Endpoint(
        url=remote.url,
        model=remote.model,
        key=os.environ.get(remote.api_key_env) if remote.api_key_env else None,
        timeout=remote.timeout,
        attempts=remote.retries + 1,
        set_by=f"remotes.{name}",
    )
    return RemoteEngine(endpoint, budget, concurrency=remote.concurrency, journal=journal)


def _problems(name: str, remote: Remote, environment: Mapping[str, str]) -> Iterator[Problem]:
    key, wanted = f"remotes.{name}", remote.api_key_env
    # Its candidate would be taken for a way of answering of another one, with that one's answers and prices.
    if split_way(f"{REMOTE}{name}")[1] is not None:
        yield Problem(
            key, "a name that ends like a way of answering", expected="another end than free, grammar, scored"
        )
    if wanted is not None and not environment.get(wanted):
        yield Problem(
            f"{key}.api_key_env", f"the environment variable {wanted} is not set", expected="the key in it",
            fix=f"export {wanted}=…, or leave api_key_env out",
        )  # fmt: skip
    try:
        Endpoint(remote.url, remote.model, environment.get(wanted) if wanted else None).check()
    except RecipeError as error:
        yield Problem(f"{key}.url", error.what, expected=error.expected, fix=error.fix)
    if remote.max_cost is not None and not _has_prices(remote):
        yield Problem(f"{key}.max_cost", "a ceiling of money needs prices", expected="prompt_price and answer_price")
