"""Code: an answer is right if its tests pass. It runs in a fenced process, and only where the recipe allows it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.answers import bad_answer, without_closing
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.metrics import ItemMean, MeanMetric, by_name
from tunesmith.tasks.sandbox import run_python
from tunesmith.tasks.types import FloatArray, Metric, Task

_FENCE = re.compile(r"```(?:[A-Za-z0-9+]*)\s*\n(.*?)(?:```|\Z)", re.DOTALL)

_TRIED_SOLUTIONS = 20
_USUAL_K = (5, 10, 25, 50, 100)


@dataclass(frozen=True)
class Code(TextTask):
    """A piece of Python per input.

    The expected answer is a JSON object of columns (`data.columns.answer: [code, test_list]`): the first is the
    solution, which is learnt; the others hold tests, as one text or a list of statements. Columns whose name has
    `setup` or `import` run before the answer, the others after it. `samples` answers are drawn beside the greedy one
    where they are more than one; what was read is then a list, the greedy answer first.
    """

    run_code: bool = False
    time_limit: float = 5.0
    samples: int = 1
    name: ClassVar[str] = "code"
    default_instruction: ClassVar[str] = "Write Python code."
    answer_wording: ClassVar[str] = "Reply with the code only."

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """pass@1 decides where code may be run; the share that is Python, and of exact matches, beside it."""
        valid = MeanMetric("valid_python", binary=True, score=lambda answer, _: float(is_python(answer)))
        exact = MeanMetric("exact_match", binary=True, score=lambda a, b: float(_spelling(a) == _spelling(b["code"])))
        if not self.run_code:
            return (exact, valid)
        return (MeanMetric("pass_at_1", binary=True, score=self._passes), valid, exact)

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """Every metric is of the greedy answer, but for pass@k of the drawn ones, where there are any."""
        of_one: list[Metric] = [*self.own_metrics, *self.custom]
        if self.samples < 2:
            return by_name(*of_one)
        tries = [PassAtK(k, self.time_limit) for k in ks(self.samples)] if self.run_code else []
        return by_name(*(OfGreedy(metric) for metric in of_one), *tries)

    def parse(self, text: str) -> str:
        """The code in an answer: what stands in its first code fence, else all of it."""
        bare = without_closing(text, self.closing)
        fenced = _FENCE.search(bare)
        return (fenced.group(1) if fenced else bare).strip("\n")

    def read_samples(self, texts: Sequence[str], example: Example) -> list[str]:
        """The code in each answer."""
        return [self.parse(text) for text in texts]

    def target(self, example: Example) -> dict[str, Any]:
        """The solution, and the code that runs before and after it. Raises `DataError` for an answer without these."""
        columns = _columns(example.expected)
        if columns is None:
            raise bad_answer(
                example,
                "the answer is not a solution with its tests",
                expected="data.columns.answer: [CODE, TESTS], the first column being the code",
                fix="name both columns, or set task.type: generation",
            )
        (_, solution), *others = columns
        before = [text for name, text in others if _is_setup(name)]
        after = [text for name, text in others if not _is_setup(name)]
        return {"code": solution, "before": "\n".join(before), "tests": "\n".join(after)}

    def refuse_broken(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` for a row whose own solution fails its tests, among some from all over the data.

        Only some, as each takes a process; where tests need what the fence does not have, hardly any passes.
        """
        for example in examples[:: -(-len(examples) // _TRIED_SOLUTIONS)]:
            target = self.target(example)
            ran = run_python(_parts(target, target["code"]), self.time_limit)
            if ran.outcome != "passed":
                raise bad_answer(
                    example,
                    f"the expected solution fails its own tests: {ran.error or 'it ends the process'}",
                    expected=f"code that passes within {self.time_limit:g} s, with the standard library alone",
                    fix="correct the row, raise task.time_limit, or set task.run_code: false",
                )

    def reply(self, expected: str) -> str:
        """The solution alone."""
        columns = _columns(expected)
        return columns[0][1] if columns is not None else expected

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by the length of the solution."""
        lines = len([line for line in str(self.target(example)["code"]).splitlines() if line.strip()])
        return {"lines": "up to 5" if lines <= 5 else "6 to 15" if lines <= 15 else "over 15"}

    def _passes(self, answer: str, target: Mapping[str, str]) -> float:
        return pass_at_k(1, int(_passes(_parts(target, answer), self.time_limit)), 1)


@dataclass(frozen=True)
class OfGreedy:
    """A metric of the first of several answers; of the only one where none was drawn."""

    metric: Metric

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def binary(self) -> bool:
        """As the metric itself."""
        return self.metric.binary

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """Those of the metric."""
        return self.metric.statistics([one[0] if isinstance(one, list) else one for one in parsed], expected)

    def finish(self, sums: FloatArray) -> FloatArray:
        """As the metric does."""
        return self.metric.finish(sums)

    def item(self, statistics: FloatArray) -> FloatArray:
        """As the metric does."""
        return self.metric.item(statistics)


class PassAtK(ItemMean):
    """pass@k of the drawn answers. A candidate that always says the same has one answer, and k tries do not help it."""

    binary = False

    def __init__(self, k: int, time_limit: float) -> None:
        self.k, self.name, self._time_limit = k, f"pass_at_{k}", time_limit
        self.score = self._of_row

    def _of_row(self, answer: str | list[str], target: Mapping[str, str]) -> float:
        drawn = answer[1:] if isinstance(answer, list) else [answer]
        right = sum(_passes(_parts(target, one), self._time_limit) for one in drawn)
        return pass_at_k(len(drawn), right, min(self.k, len(drawn)))


def ks(samples: int) -> tuple[int, ...]:
    """The numbers of tries for which pass@k is told where so many answers are drawn."""
    return (*(k for k in _USUAL_K if k < samples), samples)


def with_samples(task: Task, samples: int) -> Task:
    """The task when so many answers are drawn for every row; only code is told apart by them."""
    return replace(task, samples=samples) if isinstance(task, Code) else task


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that at least one of k answers drawn from `samples` is right, `right` of these being so.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374), as a product. Raises
    `ValueError` for k over the number of samples.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} of {right} right among {samples} answers is not defined")
    if samples - right < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(samples - right + 1, samples + 1)))


def is_python(text: str) -> bool:
    """Whether a text can be compiled and says anything."""
    try:
        compile(text, "answer.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return bool(text.strip())


def _parts(target: Mapping[str, str], answer: str) -> tuple[str, str, str]:
    return target["before"], answer, target["tests"]


@lru_cache(maxsize=65_536)
def _passes(parts: tuple[str, ...], time_limit: float) -> bool:
    return run_python(parts, time_limit).outcome == "passed"


def _is_setup(name: str) -> bool:
    return "setup" in name.lower() or "import" in name.lower()


def _columns(expected: str) -> list[tuple[str, str]] | None:
    """Name and code of each column; None for what is no object of at least two, or holds other than code."""
    try:
        value = json.loads(expected)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or len(value) < 2:
        return None
    found = []
    for name, cell in value.items():
        lines = cell if isinstance(cell, list) else ["" if cell is None else cell]
        if not all(isinstance(line, str) for line in lines):
            return None
        found.append((str(name), "\n".join(lines).replace("\r\n", "\n")))
    return found


def _spelling(code: str) -> str:
    """Code without blank lines and white space at the ends of lines."""
    return "\n".join(line.rstrip() for line in code.splitlines() if line.strip())
