"""What a run gives back: verdict, comparison, training facts, the report, and the model to talk to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.template import parse_template, render_prompt
from tunesmith.data.types import Example, Message
from tunesmith.errors import RecipeError
from tunesmith.evaluation.comparison import Comparison
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import Generation
from tunesmith.pipeline.seeds import Seeds
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.types import Task
from tunesmith.verdict.types import Forgetting, Verdict

if TYPE_CHECKING:
    from tunesmith.pipeline.exporting.types import Exported


class Model:
    """A run's model, asked exactly as it was trained."""

    def __init__(self, engine: TorchEngine, task: Task, recipe: Recipe) -> None:
        self.engine, self.task, self.recipe = engine, task, recipe

    def answer(self, question: str | Mapping[str, Any]) -> str:
        """The answer to one input: a text, or the columns the recipe's template names."""
        return self.chat([Message("user", self._prompt(question))], filled=True)

    def chat(self, messages: Sequence[Message], *, filled: bool = False) -> str:
        """The next turn of a conversation. User turns are put into the recipe's template unless they are `filled`."""
        return self._next(messages, (), None, filled=filled).text

    def reply(self, messages: Sequence[Message], tools: Sequence[str] = (), parallel: bool | None = None) -> Message:
        """The same as a message, which may call one of `tools` (JSON texts of OpenAI's definitions)."""
        made = self._next(messages, tools, parallel, filled=False)
        return Message("assistant", made.beside if made.calls else made.text, tool_calls=made.calls)

    def _next(
        self, messages: Sequence[Message], tools: Sequence[str], parallel: bool | None, *, filled: bool
    ) -> Generation:
        turns = [
            replace(m, content=self._prompt(m.content)) if m.role == "user" and not filled else m for m in messages
        ]
        if self.recipe.data.system and not any(m.role == "system" for m in turns):
            turns.insert(0, Message("system", self.recipe.data.system))
        answered = (*turns, Message("assistant", ""))
        example = Example("asked", answered, "", 0, "chat", tools=tuple(tools), parallel_tool_calls=parallel)
        conversation = asking_conversation(self.task, example)
        tokens = self.engine.count_tokens(conversation)
        if not tokens:
            raise RecipeError("there is nothing to answer", expected="a text")
        room = self.engine.context - tokens
        if room < 1:
            raise RecipeError(
                "the conversation is longer than the model's context", expected=f"at most {self.engine.context} tokens"
            )
        limit = min(room, int(self.recipe.evaluate.max_new_tokens))
        made = next(iter(self.engine.generate([conversation], limit)))
        return made if made.calls else replace(made, text=self._bare(made.text))

    def _prompt(self, question: str | Mapping[str, Any]) -> str:
        template = self.recipe.data.template
        if template is None:
            if isinstance(question, str):
                return question
            raise RecipeError("this recipe has no template to fill", expected="a text")
        shape = parse_template(template, self.recipe.data.answer)
        names = shape.inputs
        if isinstance(question, str):
            if len(names) != 1:
                return question  # a text that is written out already
            question = {names[0]: question}
        missing = [n for n in names if n not in question and n not in self.recipe.data.defaults]
        if missing:
            raise RecipeError(f"missing {', '.join(missing)}", where="answer", expected=f"columns {', '.join(names)}")
        return render_prompt(shape.prompt, question, self.recipe.data.defaults)

    def _bare(self, text: str) -> str:
        """The label of a classification; else the text without the closing text of a template."""
        parsed = self.task.parse(text)
        if self.task.name == "classification" and isinstance(parsed, str):
            return parsed
        closing = str(getattr(self.task, "closing", "")).strip()
        return text.strip().removesuffix(closing).rstrip()


@dataclass(frozen=True)
class Result:
    """One run, as far as it went.

    `candidates` holds by name what else is known of each: the k really used, latencies, notes. `forgetting` and `seeds`
    are None where they were not measured.
    """

    folder: RunFolder
    recipe: Recipe
    comparison: Comparison | None
    training: Mapping[str, Any] | None
    verdict: Verdict | None
    candidates: Mapping[str, Mapping[str, Any]]
    forgetting: Forgetting | None = None
    seeds: Seeds | None = None

    @property
    def report(self) -> Path | None:
        """The HTML report, if there is one."""
        return self.folder.report if self.folder.report.is_file() else None

    @property
    def comparison_rows(self) -> list[dict[str, Any]]:
        """Candidate, metric, value, low, high, n."""
        return self.comparison.rows() if self.comparison is not None else []

    @cached_property
    def model(self) -> Model:
        """The tuned model."""
        from tunesmith.pipeline.loading import load_model

        return load_model(self.folder, self.recipe, tuned=True)

    @cached_property
    def base(self) -> Model:
        """The base as it was before tuning, asked in the same way."""
        from tunesmith.pipeline.loading import load_model

        return load_model(self.folder, self.recipe, tuned=False)

    def export(
        self,
        to: str,
        path: str | Path | None = None,
        *,
        bits: int | None = None,
        precision: str | None = None,
        device: str | None = None,
        max_loss: float | None = None,
    ) -> Exported:
        """Write the tuned model in another format, open it again and prove that it is the same model.

        to: a kind, such as `adapter`, `merged`, `onnx` or `gguf`. path: default `<run>/export/<kind>-<precision>`.
        bits, precision: one of the two; without, the kind's default. max_loss: loss of the deciding metric (0-1) that
        is allowed; None takes the recipe's margin.

        Raises `RecipeError` for what does not go together, `StepError` where this model cannot have the format, and
        `VerificationError` where the export is not the tuned model; it is then kept as `<path>.failed`.
        """
        from tunesmith.pipeline.exporting.flow import export_run
        from tunesmith.pipeline.exporting.targets import choose_targets

        target = choose_targets([to], bits=bits, precision=precision, device=device)[0]
        return export_run(self.folder, target, out=Path(path) if path is not None else None, max_loss=max_loss)

    def to_dict(self) -> dict[str, Any]:
        """The object `tunesmith run --json` prints."""
        training = None
        if self.training is not None:
            keys = ("steps", "tokens", "seconds", "tokens_per_second", "peak_memory_bytes", "adapter_sha256")
            training = {**{k: self.training[k] for k in keys}, **self.training}
        verdict = asdict(self.verdict) if self.verdict is not None else None
        return {
            "run": str(self.folder.path),
            "verdict": verdict,
            "comparison": self.comparison_rows,
            "candidates": {name: dict(facts) for name, facts in self.candidates.items()},
            "training": training,
            "forgetting": asdict(self.forgetting) if self.forgetting is not None else None,
            "seeds": self.seeds.to_dict() if self.seeds is not None else None,
            "report": str(self.report) if self.report else None,
        }
