"""What a workflow found, as lines and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tunesmith.pipeline.workflow.types import Workflow, WorkflowResult


def workflow_json(workflow: Workflow) -> dict[str, Any]:
    """Steps, goals and search of a workflow as JSON values."""
    return {
        "name": workflow.name,
        "steps": [
            {
                "name": step.name,
                "kind": step.kind,
                "settings": dict(step.settings),
                "space": {key: space.model_dump(mode="json") for key, space in step.space.items()},
            }
            for step in workflow.steps
        ],
        "goals": [asdict(goal) for goal in workflow.goals],
        "search": asdict(workflow.search) if workflow.search is not None else None,
    }


def print_outcomes(result: WorkflowResult) -> None:
    """One line for each step and outcome; what was chosen, or why nothing was."""
    for outcome in result.outcomes:
        chosen = " (chosen)" if outcome.number == result.chosen else ""
        measures = ", ".join(f"{name} {value:.4g}" for name, value in outcome.measures.items())
        said = ", ".join(f"{key} {value}" for key, value in outcome.settings.items())
        click.echo(f"outcome {outcome.number}{chosen}: {outcome.state}{f'; {said}' if said else ''}")
        for step in outcome.steps:
            how = "done before" if step.cached else f"{step.seconds:.1f} s"
            click.echo(f"  {step.name}: {step.error or how}{f', {step.folder}' if step.folder else ''}")
        if measures:
            click.echo(f"  {measures}")
        for goal in outcome.unmet:
            click.echo(f"  misses: {goal}")
    if result.test:
        said = ", ".join(f"{name} {value:.4g}" for name, value in result.test.items())
        click.echo(f"outcome {result.chosen} on test rows: {said}")
    if result.problem:
        click.echo(result.problem, err=True)
    click.echo(f"output: {result.folder}")
