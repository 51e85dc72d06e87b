"""A formula over an answer: the small, safe part of Python's expressions.

Allowed are numbers, texts, lists, `answer` and `expected`, their elements (`answer["amount"]`), arithmetic on numbers,
comparisons, `in`, `and`/`or`/`not`, `A if B else C`, and the functions in `FUNCTIONS`. There are no attributes, no
powers and no repeated texts, and `round` takes few digits, so a formula can neither reach anything nor take long. It is
read once by `compile_formula`, which refuses everything else.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.errors import RecipeError

NAMES = ("answer", "expected")
MOST_DIGITS = 300
"""Digits after the point, or where negative before it, that `round` can be asked for."""


def _round(value: float, digits: int | None = None) -> float:
    if digits is not None and abs(digits) > MOST_DIGITS:
        raise ValueError(f"round to {digits} digits, of at most {MOST_DIGITS}")
    return round(value, digits)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "len": len,
    "lower": lambda text: str(text).lower(),
    "max": max,
    "min": min,
    "round": _round,
    "str": str,
}
LONGEST = 2_000
"""Characters of a formula."""
DEEPEST = 100
"""Levels of a formula's syntax tree; sums and `A if B else C if D else …` go one deeper with each term."""

_ARITHMETIC: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_SIGNS: Mapping[type[ast.AST], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
Formula = Callable[[Any, Any], Any]
"""(answer, expected) -> value; raises `TypeError`, `ValueError`, `LookupError` or `ArithmeticError` on odd values."""


def compile_formula(text: str, where: str) -> Formula:
    """The formula as a function. Raises `RecipeError` naming what is not allowed, and its place."""
    try:
        tree = ast.parse(text.strip()[: LONGEST + 1], mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise _refused(f"not a formula: {getattr(error, 'msg', None) or error}", where) from error
    if len(text.strip()) > LONGEST:
        raise _refused(f"longer than {LONGEST:,} characters", where)
    if _depth(tree) > DEEPEST:
        raise _refused(f"nested more than {DEEPEST} levels deep", where)
    _check(tree, where)
    return lambda answer, expected: _value(tree, {"answer": answer, "expected": expected})


def _refused(what: str, where: str) -> RecipeError:
    return RecipeError(
        what,
        where=where,
        expected=f"an expression over {' and '.join(NAMES)}, with {', '.join(sorted(FUNCTIONS))}",
        fix="for more than that, write a function and name it as file.py:function",
    )


def _depth(tree: ast.AST) -> int:
    """Levels of a tree, counted without recursion."""
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [inner for node in level for inner in ast.iter_child_nodes(node)]
    return depth


def _check(node: ast.AST, where: str) -> None:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            inner: list[ast.AST] = []
        case ast.Name(id=name) if name in NAMES:
            inner = []
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            inner = [left, right]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
            inner = [operand]
        case ast.BoolOp(values=values):
            inner = list(values)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARISONS for op in ops):
            inner = [left, *comparators]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            inner = [test, body, orelse]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            inner = list(elements)
        case ast.Subscript(value=value, slice=index) if not isinstance(index, ast.Slice):
            inner = [value, index]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            inner = list(arguments)
        case _:
            raise _refused(f"{ast.unparse(node)!r} is not allowed in a formula", where)
    for each in inner:
        _check(each, where)


def _value(node: ast.AST, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(_value(left, names)), _number(_value(right, names)))
        case ast.UnaryOp(op=op, operand=operand):
            return _SIGNS[type(op)](_value(operand, names))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value, names) for value in values)
        case ast.BoolOp(values=values):
            return any(_value(value, names) for value in values)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [_value(side, names) for side in (left, *comparators)]
            return all(_COMPARISONS[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, names) else orelse, names)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element, names) for element in elements]
        case ast.Subscript(value=value, slice=index):
            return _value(value, names)[_value(index, names)]
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*(_value(argument, names) for argument in arguments))
    raise AssertionError(f"_check let {ast.dump(node)} pass")


def _number(value: Any) -> float | int:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value
