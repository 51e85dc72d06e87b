"""Progress on stderr: drawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from tunesmith.cli.progress import Progress, bar_text, sparkline, step_text, validation_text
from tunesmith.verdict.wording import count, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Listener = Callable[[dict[str, Any]], None]

_EVERY = 2.0
"""Seconds between two plain lines of a training or an answering that goes on."""


_STYLES = {"warning": "yellow", "out_of_memory": "yellow", "diagnosis": "yellow", "stage_finished": "green"}


@contextmanager
def open_display() -> Iterator[Listener]:
    """A listener that shows a run's events on stderr for as long as the block lasts."""
    if not sys.stderr.isatty():
        yield PlainDisplay(sys.stderr)
        return
    from rich.console import Console

    with LiveDisplay(Console(stderr=True)) as display:
        yield display


def lasting_line(event: Mapping[str, Any], stage: str) -> str | None:
    """The line an event leaves behind in any display, or None where it only moves a display on.

    `stage` is the title of the stage that was going on.
    """
    match event["kind"]:
        case "stage_finished":
            title = stage or str(event["stage"])
            return f"{title}: done before" if event["cached"] else f"{title}: done in {duration(event['seconds'])}"
        case "train_started":
            resumed = event.get("resumed_at", 0)
            return (
                f"training {count(event['trainable'])} of {count(event['parameters'])} parameters on "
                f"{count(event['rows'])} rows, {count(event['steps'])} steps"
                + (f", continued at step {count(resumed)}" if resumed else "")
            )
        case "validation":
            return f"step {event['step']}: {validation_text(event)}"
        case "warning":
            return f"warning: {event['text']}"
        case "note":
            return str(event["text"])
        case "out_of_memory":
            return (
                "warning: memory did not suffice in spite of the plan; the step is computed again with at most "
                f"{count(event['micro_batch_tokens'])} tokens at once (results stay the same)"
            )
        case "diagnosis":
            changes = " ".join(f"--set {key}={value}" for key, value in event["changes"].items() if value is not None)
            return f"{event['title']} (step {event['seen_at']}): {event['seen']} {event['remedy']} {changes}".rstrip()
    return None


class PlainDisplay:
    """Lines for logs: what lasts at once, what moves at most every two seconds and when it is complete."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self.progress = Progress()
        self.told_at = float("-inf")

    def __call__(self, event: dict[str, Any]) -> None:
        stage = self.progress.title
        self.progress.see(event)
        line = f"{self.progress.title} …" if event["kind"] == "stage_started" else lasting_line(event, stage)
        if line is None:
            line = self._moving(event)
        if line is not None:
            print(line, file=self.stream, flush=True)

    def _moving(self, event: Mapping[str, Any]) -> str | None:
        training = self.progress.training
        if event["kind"] == "train_step" and training is not None:
            line, complete = step_text(training), training.step == training.steps
        elif event["kind"] == "progress":
            line, complete = bar_text(event), event["done"] == event["total"]
        else:
            return None
        now = self.clock()
        if now - self.told_at < _EVERY and not complete:
            return None
        self.told_at = now
        return line


class LiveDisplay:
    """The stage that runs now, drawn in place; what lasts scrolls up above it."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self.console = console
        self.progress = Progress()
        self.live = Live(get_renderable=self.picture, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveDisplay:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        from rich.text import Text

        line = lasting_line(event, self.progress.title)
        self.progress.see(event)
        if line is not None:
            self.console.print(Text(line, style=_STYLES.get(event["kind"], "")))

    def picture(self) -> RenderableType:
        """What is drawn now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = []
        if self.progress.title:
            parts.append(Text(f"{self.progress.title} …", style="bold"))
        training = self.progress.training
        if training is not None:
            bar = Table.grid()  # a bar alone does not end its line
            bar.add_row(ProgressBar(total=training.steps, completed=training.step, width=60))
            parts.append(bar)
            if training.losses:
                parts.append(Text(f"loss {sparkline(training.losses, 48)} {training.loss:.4f}"))
                parts.append(Text(step_text(training)))
            if training.validation:
                best = f", best at step {training.best_step}" if training.best_step is not None else ""
                parts.append(Text(f"{training.validation}{best}"))
        if self.progress.bars:
            table = Table.grid(padding=(0, 1))
            for event in self.progress.bars.values():
                table.add_row(ProgressBar(total=event["total"], completed=event["done"], width=24), bar_text(event))
            parts.append(table)
        return Group(*parts)
