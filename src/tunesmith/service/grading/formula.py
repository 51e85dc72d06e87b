"""The formula of a multi grader: `0.7 * exact + 0.3 * max(style, tone)`.

    sum     = product (("+" | "-") product)*
    product = sign (("*" | "/") sign)*
    sign    = ("-" | "+") sign | power
    power   = atom ("^" sign)?
    atom    = number | name | name "(" sum ("," sum)* ")" | "(" sum ")"

Names are those of the graders; functions those of `FUNCTIONS`. It is read by hand into a small tree, so nothing but
arithmetic can happen, and length and depth are bounded.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

LONGEST = 2_000
"""Characters of a formula."""
DEEPEST = 50
"""Brackets and signs within each other."""

FUNCTIONS: Mapping[str, tuple[Callable[..., float], int | None]] = {
    "min": (min, None),
    "max": (max, None),
    "abs": (abs, 1),
    "floor": (math.floor, 1),
    "ceil": (math.ceil, 1),
    "exp": (math.exp, 1),
    "sqrt": (math.sqrt, 1),
    "log": (math.log, 1),
}
"""Name → function and number of arguments; None is one or more. `log` is natural."""

_JOINED: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([^\W\d]\w*)|([-+*/^(),]))")

Values = Mapping[str, float]
Compute = Callable[[Values], float]


class FormulaError(ValueError):
    """The formula cannot be read, or gives no number."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that was read; `names` are the graders it needs."""

    names: frozenset[str]
    compute: Compute

    def __call__(self, values: Values) -> float:
        """Its value. Raises `FormulaError` where it has none: division by zero, the root of a negative number."""
        try:
            value = float(self.compute(values))
        except (ArithmeticError, ValueError) as error:
            raise FormulaError(f"the formula gives no number: {error}") from error
        if not math.isfinite(value):
            raise FormulaError("the formula gives no finite number")
        return value


def read_formula(text: str) -> Formula:
    """Raises `FormulaError` that names the place."""
    if len(text) > LONGEST:
        raise FormulaError(f"the formula has {len(text):,} characters, of at most {LONGEST:,}")
    reader = _Reader(_tokens(text))
    compute = reader.sum(0)
    if reader.place < len(reader.tokens):
        raise FormulaError(f"'{reader.tokens[reader.place]}' is not expected after a whole formula")
    return Formula(frozenset(reader.names), compute)


def _tokens(text: str) -> list[str]:
    tokens, place = [], 0
    bare = text.rstrip()
    while place < len(bare):
        found = _TOKEN.match(bare, place)
        if found is None:
            raise FormulaError(f"the formula cannot be read at '{bare[place : place + 20].strip()}'")
        tokens.append(found[0].strip())
        place = found.end()
    return tokens


@dataclass
class _Reader:
    tokens: list[str]
    place: int = 0
    names: set[str] = field(default_factory=set)

    def sum(self, depth: int) -> Compute:
        """One or more products."""
        return self._chain(self.product, depth, "+", "-")

    def product(self, depth: int) -> Compute:
        """One or more signed powers."""
        return self._chain(self.sign, depth, "*", "/")

    def _chain(self, part: Callable[[int], Compute], depth: int, *signs: str) -> Compute:
        """Parts from left to right, in a loop: a long formula is not a deep one."""
        first = part(depth)
        rest: list[tuple[str, Compute]] = []
        while (sign := self._take(*signs)) is not None:
            rest.append((sign, part(depth)))
        return _folded(first, rest) if rest else first

    def sign(self, depth: int) -> Compute:
        if depth > DEEPEST:
            raise FormulaError(f"the formula is nested more than {DEEPEST} levels deep")
        if (sign := self._take("-", "+")) is not None:
            inner = self.sign(depth + 1)
            return (lambda values: -inner(values)) if sign == "-" else inner
        return self.power(depth)

    def power(self, depth: int) -> Compute:
        base = self.atom(depth)
        if self._take("^") is None:
            return base
        exponent = self.sign(depth + 1)
        return lambda values: math.pow(base(values), exponent(values))

    def atom(self, depth: int) -> Compute:
        token = self._next()
        if token == "(":
            inner = self.sum(depth + 1)
            self._expect(")")
            return inner
        if token[0].isdigit() or token[0] == ".":
            number = float(token)
            return lambda values: number
        if not (token[0].isalpha() or token[0] == "_"):
            raise FormulaError(f"a number, a grader or a bracket is expected in place of '{token}'")
        if self._take("(") is None:
            self.names.add(token)
            return lambda values: values[token]
        return self._call(token, depth)

    def _call(self, name: str, depth: int) -> Compute:
        if name not in FUNCTIONS:
            raise FormulaError(f"'{name}' is no function; there are {', '.join(sorted(FUNCTIONS))}")
        function, wanted = FUNCTIONS[name]
        inner = [self.sum(depth + 1)]
        while self._take(",") is not None:
            inner.append(self.sum(depth + 1))
        self._expect(")")
        if wanted is not None and len(inner) != wanted:
            raise FormulaError(f"'{name}' takes {wanted} argument, not {len(inner)}")
        return lambda values: function(*_all(inner, values)) if len(inner) > 1 or wanted else inner[0](values)

    def _take(self, *wanted: str) -> str | None:
        if self.place < len(self.tokens) and self.tokens[self.place] in wanted:
            self.place += 1
            return self.tokens[self.place - 1]
        return None

    def _next(self) -> str:
        if self.place == len(self.tokens):
            raise FormulaError("the formula ends where a number, a grader or a bracket is expected")
        self.place += 1
        return self.tokens[self.place - 1]

    def _expect(self, wanted: str) -> None:
        if self._take(wanted) is None:
            found = f"'{self.tokens[self.place]}'" if self.place < len(self.tokens) else "the end"
            raise FormulaError(f"'{wanted}' is expected in place of {found}")


def _all(inner: list[Compute], values: Values) -> list[float]:
    return [one(values) for one in inner]


def _folded(first: Compute, rest: list[tuple[str, Compute]]) -> Compute:
    def compute(values: Values) -> float:
        value = first(values)
        for sign, part in rest:
            value = _JOINED[sign](value, part(values))
        return value

    return compute
